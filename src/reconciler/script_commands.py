"""The simple commands of a batch script, each with its line and the directory in which it runs, as far as its words are literal.

Reads what scripts are mostly made of (The Open Group, Shell Command Language, 2.3 and 2.9) and leaves open what only the shell
can know. Never runs anything; ends at what it cannot read (a quote that is never closed).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.text_limits import can_be_path

_LONGEST_TEXT = 1 << 18  # characters of a script that are read
_LONGEST_WORD = 4096
_MOST_VARIABLES = 1000
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_NAME = re.compile(r"[A-Za-z_]\w*")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_ARITHMETIC = r"\(\( (?: [^()\n] | \( (?:[^()\n] | \([^()\n]*\))* \) )* \)\)"  # on one line; what is in it is no command
_TOKEN = re.compile(
    rf"""(?P<blank>(?:[ \t\r]|\\\n)+)
      | (?P<comment>\#[^\n]*)
      | (?P<redirection>\d*(?:<<<|<<-?|>>|>\||<>|[<>]&?|&>>?))
      | (?P<word>(?:[^\s\\'";&|()<>]+ | \\. | '[^']*' | "[^"\\]*(?:\\.[^"\\]*)*" | {_ARITHMETIC})+)
      | (?P<separator>&&|\|\||;;&?|;&|\|&|[;&|()\n])""",
    re.VERBOSE | re.DOTALL,
)
_PART = re.compile(r"""\\(.) | '([^']*)' | "([^"\\]*(?:\\.[^"\\]*)*)" | ([^\\'"]+)""", re.VERBOSE | re.DOTALL)
_MOST_WORDS = 2000  # of a command
_DEEPEST = 100  # subshells in one another
_BEGIN_BRANCH = {"if", "while", "until", "{", "case", "for", "select"}
_END_BRANCH = {"fi", "esac", "done", "}"}
_PREFIXES = {"if", "while", "until", "{", "then", "do", "else", "elif", "!", "time"}  # a command follows in the same place
_PIPES = ("|", "|&")
_GO_ON = ("&&", "||", *_PIPES)  # the list is not over at the end of the line
_DECLARE = {"export", "readonly", "declare", "typeset", "local"}
_FORGET = {"unset", "read", "for", "select", "mapfile", "readarray", "getopts"}
_MOVES = {"cd", "pushd", "popd"}
_SUCCEED = {"cd", "export", "mkdir", "set"}  # what follows behind `&&` is as certain: where they fail, nothing else happens


@dataclass(frozen=True)
class Command:
    """One simple command, its variables put in where they are known. ``directory`` is where it runs, None where only the shell
    knows; ``is_certain`` where it runs if the script gets that far: in no branch, no function, behind no test. ``variables`` are
    those known there, to be read before the next command is."""

    words: tuple[str, ...]
    line: int
    directory: Path | None
    is_certain: bool
    variables: Mapping[str, str]


def commands_of(
    text: str, submitted_from: Path, begins_in: Path, enters: Callable[[Path | None, bool], bool | None]
) -> Iterator[Command]:
    """Every simple command of a script, in order.

    ``enters`` is asked of each ``cd``: given where it goes (None where only the shell knows) and whether it is certain, it tells
    whether the script is there afterwards; None where that is not known.
    """
    variables = {"SLURM_SUBMIT_DIR": str(submitted_from), "PWD": str(begins_in)}
    places: dict[tuple[int, ...], Path | None] = {(): begins_in}
    for found in _structure(text[:_LONGEST_TEXT]):
        words = [expand(word, variables) for word in found.words]
        here = next(places[shell] for n in range(len(found.shell), -1, -1) if (shell := found.shell[:n]) in places)
        yield Command(tuple(words), found.line, here, found.is_certain, variables)
        _remember(words, variables, is_certain=found.is_certain and not found.shell)
        if not _MOVES.isdisjoint(words):
            target = _target(words, here)
            is_there = enters(target, found.is_certain)
            places[found.shell] = here if is_there is False else target if is_there else None
            if not found.shell:
                variables["PWD"] = str(places[()] or "$PWD")
        if words[0] in ("exit", "exec") and found.is_certain and not found.shell:
            return


def is_literal(word: str) -> bool:
    """True of a word that means what it says, whatever the shell knows."""
    return not any(sign in word for sign in "$`*?") and not word.startswith("~")


def expand(word: str, variables: Mapping[str, str]) -> str:
    """The word with the variables that are known put in; as it stands where that grows without end (``A=$A$A`` many times)."""
    found = _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], match[0]), word)
    return found if len(found) <= max(_LONGEST_WORD, len(word)) else word


def _remember(words: list[str], variables: dict[str, str], *, is_certain: bool) -> None:
    """What a command does to the variables. One that is set in a branch, or in a way not followed here, is not known any more."""
    named = words[1:] if words[0] in _DECLARE else words
    if all(_ASSIGNMENT.match(word) for word in named):
        for name, _, value in (word.partition("=") for word in named):
            variables.pop(name, None)
            if is_certain and len(variables) < _MOST_VARIABLES:
                variables[name] = value
    elif words[0] in _DECLARE | _FORGET or "`" in "".join(words) or re.match(r"\w+(\+=|\[)", words[0]):
        for name in (match[0] for word in words if (match := _NAME.match(word))):
            variables.pop(name, None)


def _target(words: list[str], here: Path | None) -> Path | None:
    if len(words) != 2 or words[0] != "cd" or not is_literal(words[1]) or words[1].startswith("-") or not can_be_path(words[1]):
        return None
    target = Path(words[1])
    return target if target.is_absolute() else here / target if here is not None else None


# --- the structure ------------------------------------------------------------------------------------


@dataclass
class _Found:
    """A simple command as it stands. ``shell`` are the subshells that it is in, the outermost first; none: the script's own."""

    words: list[str]
    line: int
    shell: tuple[int, ...]
    is_certain: bool


@dataclass
class _Level:
    """The script, or what is between parentheses, at a depth of branches. ``since`` is where the list begins that runs now
    (``a && b``), of which ``is_next_certain`` and ``is_piped`` tell how its next command runs."""

    shell: tuple[int, ...]
    depth: int
    is_certain: bool
    since: int = 0
    is_next_certain: bool = field(init=False)
    is_piped: bool = field(init=False)

    def __post_init__(self) -> None:
        self.begin(self.since)

    def begin(self, since: int) -> None:
        """A new list begins."""
        self.since, self.is_next_certain, self.is_piped = since, self.is_certain, False


def _structure(text: str) -> Iterator[_Found]:
    levels = [_Level((), 0, True)]
    pending: list[_Found] = []
    words: list[str] = []
    depth = shells = began = 0
    before = last = ""  # the separator right before, if no word came since; the first word of the last command
    for is_word, token, line in _tokens(text):
        if is_word:
            began = began if words else line
            words += [token] if len(words) < _MOST_WORDS else []
            before = ""
            continue
        if token == "\n" and before in _GO_ON:
            continue
        level = levels[-1]
        start = next((n for n, word in enumerate(words) if word not in _PREFIXES), len(words))
        depth += sum(word in _BEGIN_BRANCH for word in words[:start])
        if words[start:]:
            first = words[start]
            depth = max(0, depth + _opens_branch(words[start:]) - (first in _END_BRANCH))
            shells += 1
            is_apart = level.is_piped or token in _PIPES
            shell = (*level.shell, shells) if is_apart else level.shell
            found = _Found(words[start:], began, shell, level.is_next_certain and depth == 0)
            if token == "(" and found.words[-1].endswith("="):
                found.words[-1] += "$"  # an array
            pending.append(found)
            last = first
        words = []
        if token == "(":
            if len(levels) == _DEEPEST:
                break
            shells += 1
            is_certain = level.is_next_certain and before != "()"  # else it is the body of a function
            levels.append(_Level((*level.shell, shells), depth, is_certain, len(pending)))
        elif token == ")" and len(levels) > 1 and level.depth == depth:  # any other ends a pattern of `case`
            levels.pop()
            last = ""
        elif token == "&&":
            level.is_next_certain = level.is_next_certain and (last in _SUCCEED or bool(_ASSIGNMENT.match(last)))
        elif token == "||":
            level.is_next_certain = False
        elif token == "&":
            for found in pending[level.since :]:
                found.shell = (*level.shell, shells + 1, *found.shell[len(level.shell) :])
            shells += 1
        if token in _GO_ON:
            level.is_piped = token in _PIPES
        elif token not in ("(", ")"):
            level.begin(len(pending))
            if len(levels) == 1:
                yield from pending
                pending.clear()
                level.since = 0
        if token != "\n" or before != "()":
            before = "()" if (before, token) == ("(", ")") else token
    yield from pending


def _opens_branch(words: list[str]) -> bool:
    return words[0] in _BEGIN_BRANCH or (words[0] == "function" and words[-1] == "{")


def _tokens(text: str) -> Iterator[tuple[bool, str, int]]:
    """Words without their quotes (True) and separators (False), each with its line; redirections, comments and here-documents are
    left out."""
    place, line, end = 0, 1, len(text)
    is_target, awaited = False, list[str]()
    is_document = False
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None:
            return
        kind, token = match.lastgroup or "", match[0]
        place = match.end()
        if kind == "redirection":
            is_target, is_document = True, "<<" in token and "<<<" not in token
        elif kind == "word" and is_target:
            awaited += [_unquoted(token)] if is_document else []
            is_target = False
        elif kind in ("word", "separator"):
            is_target = False
            yield kind == "word", _unquoted(token) if kind == "word" else token, line
        line += token.count("\n")
        if token == "\n" and awaited:
            body = _after_documents(text, place, awaited)
            line += text.count("\n", place, body)
            place, awaited = body, []
    yield False, "\n", line


def _after_documents(text: str, place: int, ends: Iterable[str]) -> int:
    """Where the script goes on behind here-documents; at its end where one is never closed."""
    for word in ends:
        found = re.compile(rf"^\t*{re.escape(word)}$\n?", re.MULTILINE).search(text, place)
        place = found.end() if found else len(text)
    return place


def _unquoted(word: str) -> str:
    def part(match: re.Match[str]) -> str:
        escaped, single, double, plain = match.groups()
        if double is not None:
            return re.sub(r'\\([$`"\\])', r"\1", double.replace("\\\n", ""))
        return next(found for found in ("" if escaped == "\n" else escaped, single, plain, "") if found is not None)

    return _PART.sub(part, word)
