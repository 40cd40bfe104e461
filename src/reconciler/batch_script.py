"""A batch script as Slurm reads it: ``#SBATCH`` lines up to the first command, then the commands.

Source of the rules: man sbatch ("before any executable commands in the script"; comments and blank lines do not end
the block), options abbreviated as GNU getopt does only in their short forms here.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.text_limits import can_be_path

_SHORT = {
    "a": "array", "A": "account", "b": "begin", "c": "cpus-per-task", "C": "constraint", "d": "dependency",
    "D": "chdir", "e": "error", "G": "gpus", "H": "hold", "i": "input", "J": "job-name", "L": "licenses",
    "M": "clusters", "m": "distribution", "N": "nodes", "n": "ntasks", "o": "output", "p": "partition", "q": "qos",
    "t": "time", "W": "wait", "w": "nodelist", "x": "exclude",
}  # fmt: skip
_SWITCHES = {"hold", "wait", "test-only", "requeue", "no-requeue", "parsable", "exclusive", "overcommit", "contiguous"}
_PREFIX = "#SBATCH"
_MEGABYTES = {"K": 1 / 1024, "": 1.0, "M": 1.0, "G": 1024.0, "T": 1024.0**2}
_DAYS_FIRST = re.compile(r"([0-9]+)-([0-9]+)(?::([0-9]+))?(?::([0-9]+))?")
_CLOCK = re.compile(r"([0-9]+)(?::([0-9]+))?(?::([0-9]+))?")
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
        return "\n".join(sorted(f"{d.option}={d.value or ''}" for d in self.directives))


def parse_batch_script(path: Path, text: str) -> BatchScript:
    """Take a script's text apart. Never fails: a line that cannot be split into words is no directive."""
    directives: list[Directive] = []
    commands: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() ends a line where neither bash nor sbatch does
        stripped = line.strip()
        if line.startswith(_PREFIX) and not commands:
            directives += _directives(line[len(_PREFIX) :], number)
        elif stripped and not stripped.startswith("#"):
            commands.append(stripped)
    return BatchScript(path, tuple(directives), "\n".join(commands))


def _directives(text: str, line: int) -> list[Directive]:
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        return []
    found: list[Directive] = []
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            option, equals, value = word[2:].partition("=")
            if equals:
                found.append(Directive(option, value, line))
            else:
                found.append(Directive(option, None if option in _SWITCHES else next(rest, None), line))
        elif word.startswith("-") and len(word) > 1:
            option = _SHORT.get(word[1], word[1])
            attached = word[2:].removeprefix("=") or None
            found.append(Directive(option, attached if attached or option in _SWITCHES else next(rest, None), line))
    return found


def log_paths(patterns: Sequence[str], job: str, name: str, user: str) -> tuple[Path, ...]:
    """The files of a job's output, without those of which only the job itself knows."""
    found = (log_path(pattern, job, name, user) for pattern in patterns)
    return tuple(path for path in found if path is not None)


def log_path(pattern: str, job: str, name: str, user: str) -> Path | None:
    """The file of a job's output; None where only the job itself knows (``%N``, ``%a``, …), and where its
    name has a ``user`` that is not known ("")."""
    known = {"%%": "%", "%j": job, "%J": job, "%A": job, "%x": name, "%n": "0", "%t": "0", "%s": "batch"}
    known |= {"%u": user} if user else {}
    parts = re.split(r"(%%|%0?\d*[a-zA-Z])", pattern)
    if any(part.startswith("%") and part not in known for part in parts):
        return None
    return Path("".join(known.get(part, part) for part in parts))


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
