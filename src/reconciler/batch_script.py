"""A batch script as Slurm reads it: ``#SBATCH`` lines up to the first command, then the commands.

Source of the rules: man sbatch ("before any executable commands in the script"; comments and blank lines do not end
the block), and getopt_long(3), by which sbatch reads the words of all those lines together.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.text_limits import can_be_path

# Every option of sbatch and what it does with the next word, as sbatch -vv of 22.05 told of each; those that came
# later are from man sbatch, 23.02 to 26.05.
_SHORT = {
    "A": "account", "a": "array", "B": "extra-node-info", "b": "begin", "C": "constraint", "c": "cpus-per-task", "D": "chdir",
    "d": "dependency", "e": "error", "F": "nodefile", "G": "gpus", "H": "hold", "h": "help", "i": "input", "J": "job-name",
    "k": "no-kill", "L": "licenses", "M": "clusters", "m": "distribution", "N": "nodes", "n": "ntasks", "O": "overcommit",
    "o": "output", "p": "partition", "Q": "quiet", "q": "qos", "S": "core-spec", "s": "oversubscribe", "t": "time",
    "V": "version", "v": "verbose", "W": "wait", "w": "nodelist", "x": "exclude",
}  # fmt: skip
_SWITCHES = {
    "consolidate-segments", "contiguous", "external", "help", "hold", "ignore-pbs", "no-requeue", "overcommit", "oversubscribe",
    "parsable", "quiet", "reboot", "requeue", "spread-job", "spread-segments", "stepmgr", "test-only", "usage", "use-min-nodes",
    "verbose", "version", "wait",
}  # fmt: skip
_OPTIONAL = {
    "exclusive",
    "get-user-env",
    "nice",
    "no-kill",
    "oom-kill-step",
    "propagate",
    "resv-ports",
}  # a value behind "=" alone
_VALUES = {
    "account", "acctg-freq", "array", "batch", "bb", "bbf", "begin", "chdir", "cluster-constraint", "clusters", "comment",
    "constraint", "container", "container-id", "core-spec", "cores-per-socket", "cpu-freq", "cpus-per-gpu", "cpus-per-task",
    "deadline", "delay-boot", "dependency", "distribution", "error", "exclude", "export", "export-file", "extra-node-info", "gid",
    "gpu-bind", "gpu-freq", "gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task", "gres", "gres-flags", "hint", "input",
    "job-name", "kill-on-invalid-dep", "licenses", "mail-type", "mail-user", "mcs-label", "mem", "mem-bind", "mem-per-cpu",
    "mem-per-gpu", "mincpus", "network", "nodefile", "nodelist", "nodes", "ntasks", "ntasks-per-core", "ntasks-per-gpu",
    "ntasks-per-node", "ntasks-per-socket", "ntasks-per-tres", "open-mode", "output", "partition", "power", "prefer", "priority",
    "profile", "qos", "reservation", "segment", "signal", "sockets-per-node", "switches", "tasks-per-node", "thread-spec",
    "threads-per-core", "time", "time-min", "tmp", "tres-bind", "tres-per-task", "uid", "wait-all-nodes", "wckey", "wrap",
}  # fmt: skip
_KNOWN = _SWITCHES | _OPTIONAL | _VALUES
_ALSO_CALLED = {"tasks-per-node": "ntasks-per-node", "ntasks-per-tres": "ntasks-per-gpu"}
_PREFIX = "#SBATCH"
_MEGABYTES = {"K": 1 / 1024, "": 1.0, "M": 1.0, "G": 1024.0, "T": 1024.0**2}
_DAYS_FIRST = re.compile(r"([0-9]+)-([0-9]+)(?::([0-9]+))?(?::([0-9]+))?")
_CLOCK = re.compile(r"([0-9]+)(?::([0-9]+))?(?::([0-9]+))?")
_SPECIFIER = re.compile(r"%([0-9]*)([a-zA-Z%])")
_MOST_ZEROS = 10  # the width that Slurm fills at most
_LONGEST_TIME = 40  # characters; a number of hundreds of digits is no time


@dataclass(frozen=True)
class Directive:
    """One option of a ``#SBATCH`` line, under its long name; ``value`` is None for a switch."""

    option: str
    value: str | None
    line: int


@dataclass(frozen=True)
class BatchScript:
    """A script taken apart. ``commands`` is everything that is not a ``#SBATCH`` line, comment or blank."""

    path: Path
    directives: tuple[Directive, ...]
    commands: str

    def find(self, option: str) -> Directive | None:
        """The last directive of this long name, the one that counts; None where the script does not say."""
        return next((d for d in reversed(self.directives) if d.option == option), None)

    def value(self, option: str) -> str | None:
        """The value given for an option, or None."""
        found = self.find(option)
        return found.value if found else None

    @property
    def asks(self) -> Mapping[str, str]:
        """What the script asks for, by long name; a switch has an empty value."""
        return {directive.option: directive.value or "" for directive in self.directives}

    @property
    def job_name(self) -> str:
        """The name under which a person's sbatch would show this script."""
        return self.value("job-name") or self.path.name

    @property
    def workdir(self) -> str:
        """Where the job of a person's sbatch from the script's own directory runs, as the queue shows it: a real path."""
        chosen = self.value("chdir") or ""
        return os.path.realpath(self.path.parent / chosen if can_be_path(chosen) else self.path.parent)

    @property
    def written_workdir(self) -> str:
        """The same as the script spells it: sbatch does not look through the symlinks of a ``--chdir`` (seen on 22.05)."""
        chosen = self.value("chdir") or ""
        return os.path.join(os.path.realpath(self.path.parent), chosen) if chosen and can_be_path(chosen) else self.workdir  # noqa: PTH118

    def directory_of(self, option: str) -> Path | None:
        """The directory of the file that ``output`` or ``error`` names, from where the job starts; None where the script does not
        say, or only the job will know."""
        value = self.value(option)
        directory = (self.path.parent / (self.value("chdir") or "") / value).parent if value else None
        return None if directory is None or "%" in str(directory) or not can_be_path(str(directory)) else directory

    @property
    def log_patterns(self) -> tuple[str, ...]:
        """Where a job's output and errors go, as Slurm's patterns from its working directory (man sbatch, "FILENAME PATTERN")."""
        output = self.value("output") or "slurm-%j.out"
        found = dict.fromkeys(os.path.join(self.workdir, value) for value in (output, self.value("error")) if value)  # noqa: PTH118
        return tuple(found)

    @property
    def placement(self) -> str:
        """The directives in one canonical text: where and how large the job runs, never what it computes."""
        return "\n".join(sorted({f"{d.option}={d.value or ''}" for d in self.directives}))


def parse_batch_script(path: Path, text: str) -> BatchScript:
    """Take a script's text apart. Never fails: a line that cannot be split into words is no directive."""
    words: deque[tuple[str, int]] = deque()
    commands: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() ends a line where neither bash nor sbatch does
        stripped = line.strip()
        if line.startswith(_PREFIX) and not commands:
            words += ((word, number) for word in _split(line[len(_PREFIX) :]))
        elif stripped and not stripped.startswith("#"):
            commands.append(stripped)
    return BatchScript(path, tuple(_directives(words)), "\n".join(commands))


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:
        return []


def _directives(words: deque[tuple[str, int]]) -> Iterator[Directive]:
    """The options that getopt_long sees. Words that belong to none are passed over: sbatch refuses such a script."""
    while words:
        word, line = words.popleft()
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            option = _long_name(name)
            yield Directive(option, value if equals else _next_value(option, words), line)
        elif word.startswith("-"):
            yield from _short_options(word[1:], words, line)
        elif word in ("hetjob", "packjob"):
            yield Directive("hetjob", None, line)


def _short_options(letters: str, words: deque[tuple[str, int]], line: int) -> Iterator[Directive]:
    """``-sO`` is two switches, ``-p gpu`` and ``-pgpu`` are one option."""
    for place, letter in enumerate(letters, start=1):
        option = _SHORT.get(letter, letter)
        if option not in _SWITCHES:
            yield Directive(option, letters[place:] or _next_value(option, words), line)
            return
        yield Directive(option, None, line)


def _long_name(given: str) -> str:
    """The option that is meant, maybe by the beginning of its name. What is unknown or ambiguous (``--gre``) stays as it is:
    sbatch refuses it, or it is a plugin's."""
    found = [given] if given in _KNOWN else [name for name in _KNOWN if name.startswith(given)]
    return _ALSO_CALLED.get(found[0], found[0]) if len(found) == 1 else given


def _next_value(option: str, words: deque[tuple[str, int]]) -> str | None:
    """The word after an option where that is its value, also from the next line. Whether a plugin's option (SPANK) takes one
    nobody can tell; an option after it is none."""
    is_alone = option in _SWITCHES or option in _OPTIONAL
    if is_alone or not words or (option not in _KNOWN and words[0][0].startswith("-")):
        return None
    return words.popleft()[0]


def log_paths(patterns: Sequence[str], job: str, name: str, user: str) -> tuple[Path, ...]:
    """The files of a job's output, without those of which only the job itself knows."""
    found = (log_path(pattern, job, name, user) for pattern in patterns)
    return tuple(path for path in found if path is not None)


def log_path(pattern: str, job: str, name: str, user: str) -> Path | None:
    """The file of a job's output; None where only the job itself knows (``%N``, ``%a``, …), and where its
    name has a ``user`` that is not known ("")."""
    known = {"j": job, "J": job, "A": job, "x": name, "n": "0", "t": "0", "s": "batch", **({"u": user} if user else {})}
    asked = {found[2] for found in _SPECIFIER.finditer(pattern)}
    return None if asked - known.keys() - {"%"} else Path(fill_in(pattern, known))


def fill_in(pattern: str, known: Mapping[str, str]) -> str:
    """A file name pattern of man sbatch with the values of the letters that are ``known``; a width, as in ``%5j``, fills a number
    with zeros."""

    def fill(found: re.Match[str]) -> str:
        value = known.get(found[2], "%" if found[0] == "%%" else found[0])
        return value.zfill(min(int(found[1][:4]), _MOST_ZEROS)) if found[1] and value.isdecimal() else value

    return _SPECIFIER.sub(fill, pattern)


def parse_time_limit(text: str | None) -> float | None:
    """Seconds of a ``--time`` (man sbatch: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S); None for no limit. Raises ValueError."""
    if text is not None and len(text) > _LONGEST_TIME:
        raise ValueError(f"Invalid --time specification: {text[:_LONGEST_TIME]}…")
    if text is None or text.lower() in ("unlimited", "infinite", "-1", "0"):
        return None
    if match := _DAYS_FIRST.fullmatch(text):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    if match := _CLOCK.fullmatch(text):
        parts = [int(part) for part in match.groups() if part is not None]
        hours, minutes, seconds = {1: [0, *parts, 0], 2: [0, *parts], 3: parts}[len(parts)]
        return float((hours * 60 + minutes) * 60 + seconds)
    raise ValueError(f"Invalid --time specification: {text} (accepted: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S)")


def parse_memory(text: str | None) -> float | None:
    """Megabytes of a ``--mem`` (man sbatch: of a bare number too); None for none that can be told (``0`` is the whole node's)."""
    found = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([KMGT]?)B?\s*", text or "", re.IGNORECASE)
    return (float(found[1]) * _MEGABYTES[found[2].upper()] or None) if found else None
