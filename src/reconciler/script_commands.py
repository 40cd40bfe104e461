"""The simple commands of a batch script, each with its line and the directory in which it runs, as far as that is surely known.

What only the shell can know (a variable from elsewhere, a branch, a subshell) is left open, and nothing is said of what follows
it: whoever stops a run because of what a script does must be sure. Never runs anything.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from reconciler.errors import DiskUnreadable
from reconciler.ports import Disk
from reconciler.text_limits import can_be_path

_LONGEST_LINE = 1 << 16  # characters that are looked at for a command
_LONGEST_WORD = 4096
_MOST_VARIABLES = 1000
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_SEPARATORS = set("();<>|&")
_BEGIN_BRANCH = {"if", "case", "for", "while", "until", "select", "function", "{"}
_END_BRANCH = {"fi", "esac", "done", "}"}
_MOVES = {"cd", "pushd", "popd"}


@dataclass(frozen=True)
class Command:
    """One simple command. ``directory`` is where it runs, None where only the shell knows; ``leads_to`` is where a ``cd`` goes,
    if that is surely known, and ``is_there`` whether it gets there."""

    words: tuple[str, ...]
    line: int
    directory: Path | None
    leads_to: Path | None = None
    is_there: bool = True


def commands_of(text: str, submitted_from: Path, begins_in: Path, disk: Disk) -> Iterator[Command]:
    """Every simple command of a script, in order; those after a here-document are left out."""
    variables = {"SLURM_SUBMIT_DIR": str(submitted_from), "PWD": str(begins_in)}
    directory: Path | None = begins_in
    depth = 0
    for line, found in _lines(text):
        if "<<" in found:
            return
        commands, is_grouped = _split(found)
        for command in commands:
            words = [expand(word, variables) for word in command]
            depth += (words[0] in _BEGIN_BRANCH) - (words[0] in _END_BRANCH)
            assignments = words[1:] if words[0] == "export" else words
            if all(_ASSIGNMENT.match(word) for word in assignments):
                variables |= dict(_assigned(assignments)) if not depth and len(variables) < _MOST_VARIABLES else {}
                continue
            leads_to, is_there = None, True
            if not depth and not is_grouped:
                leads_to = _leads_to(words, directory)
                is_there = leads_to is not None and _is_directory(leads_to, disk)
            yield Command(tuple(words), line, directory, leads_to, is_there)
            if not _MOVES.isdisjoint(words):
                directory = leads_to if is_there else None
                variables["PWD"] = str(directory or "$PWD")


def simple_commands(text: str) -> Iterator[list[str]]:
    """The words of each simple command, wherever it runs; redirections and separators end one."""
    for _, line in _lines(text):
        yield from _split(line)[0]


def is_literal(word: str) -> bool:
    """True of a word that means what it says, whatever the shell knows."""
    return not any(sign in word for sign in "$`*?") and not word.startswith("~")


def expand(word: str, variables: Mapping[str, str]) -> str:
    """The word with the variables that are known put in; as it stands where that grows without end (``A=$A$A`` many times)."""
    found = _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], match[0]), word)
    return found if len(found) <= max(_LONGEST_WORD, len(word)) else word


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines with commands, those that go on joined into one, each with the number of its first."""
    numbered = enumerate(text.split("\n"), start=1)
    for number, line in numbered:
        while line.endswith("\\"):
            line = line[:-1] + " " + next(numbered, (0, ""))[1]
        if line.strip() and not line.lstrip().startswith("#") and len(line) <= _LONGEST_LINE:
            yield number, line


def _split(line: str) -> tuple[list[list[str]], bool]:
    """The words of each simple command, and whether any is in a subshell. A line that cannot be split has none."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        words = list(lexer)
    except ValueError:
        return [], False
    words = words[: next((place for place, word in enumerate(words) if word.startswith("#")), None)]
    parts = [(is_separator, list(part)) for is_separator, part in groupby(words, key=_is_separator)]
    is_grouped = any(is_separator and any("(" in word for word in part) for is_separator, part in parts)
    return [part for is_separator, part in parts if not is_separator], is_grouped


def _is_separator(word: str) -> bool:
    return bool(word) and set(word) <= _SEPARATORS


def _assigned(words: list[str]) -> Iterator[tuple[str, str]]:
    return ((name, value) for name, _, value in (word.partition("=") for word in words))


def _leads_to(words: list[str], directory: Path | None) -> Path | None:
    if len(words) != 2 or words[0] != "cd" or not is_literal(words[1]) or words[1].startswith("-") or not can_be_path(words[1]):
        return None
    target = Path(words[1])
    return target if target.is_absolute() else directory / target if directory is not None else None


def _is_directory(path: Path, disk: Disk) -> bool:
    """What cannot be looked at may be there."""
    try:
        found = disk.stat(path)
    except DiskUnreadable:
        return True
    return found is not None and found.is_dir
