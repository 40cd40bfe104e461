"""The document as values, the same from both of its forms, and the checks that both forms share.

Pure: reads no file and knows no tool. What is wrong with the document as a whole is a Problem
without a run; what is wrong with one run names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.errors import InvalidExperiment, Problem
from reconciler.experiment.names import ACCEPTED, fault_of, same_name, shortened
from reconciler.model import RunKind
from reconciler.spelling import closest

LARGEST = 1 << 20  # bytes of a document or of settings; markdown takes 10 s for that, YAML 30 s
MOST_RUNS = 10_000
MOST_EVALUATIONS = 20_000
LAST_EPOCH = 9999
TOO_MANY_EVALUATIONS = f"the evaluation plan comes to more than {MOST_EVALUATIONS:,} evaluations; no experiment has that many"
_LONGEST = 2000  # characters of a message
_HINTS = 20  # likenesses are dear to find, and nobody reads them all
DEFAULT_PATTERN = "ck-out-{run_name}/epoch_{N}"
TYPES = "`Fine-tuned`, `Control` or `eval-only`"


@dataclass(frozen=True)
class Named:
    """A word of the document and the line it stands on."""

    text: str
    line: int


@dataclass(frozen=True)
class PlannedTask:
    """A task wanted for one run. No ``epochs`` and not ``every``: the run's own model, or its last epoch."""

    task: str
    line: int
    epochs: tuple[int, ...] = ()
    every: bool = False


@dataclass(frozen=True)
class RunRow:
    """One run as the document lists it. ``epochs`` is its own number of epochs, where it has one."""

    name: str
    kind: RunKind
    line: int
    parameters: Mapping[str, str] = field(default_factory=dict)
    epochs: int | None = None
    checkpoint_path: Path | None = None


@dataclass(frozen=True)
class Document:
    """What the document says. ``plan`` maps each run to its evaluations; None where the document plans none.

    ``tools`` has the keys ``preparation`` and ``evaluation``, where the document names them. ``checkpoint_dir``
    is the root below which ``naming_pattern`` (with ``{run_name}`` and ``{N}``) places the checkpoints.
    """

    name: str
    path: Path
    form: str
    tools: Mapping[str, Named]
    runs: tuple[RunRow, ...]
    plan: Mapping[str, tuple[PlannedTask, ...]] | None = None
    epochs: int | None = None
    checkpoint_dir: Path | None = None
    naming_pattern: str | None = None
    problems: tuple[Problem, ...] = ()

    def checkpoints_of(self, run: str) -> Path | None:
        """The directory in which the document expects ``epoch_<N>/`` of a run; None where it does not say."""
        if self.checkpoint_dir is None or self.naming_pattern is None:
            return None
        parts = self.naming_pattern.replace("{run_name}", run).strip("/").split("/")
        return self.checkpoint_dir.joinpath(*(part for part in parts if part != "epoch_{N}"))


class Faults:
    """Collects the problems of one file, so that a person sees all of them at once."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: list[Problem] = []

    def add(self, line: int, message: str, run: str | None = None, *, warning: bool = False) -> None:
        """Note one problem at a line (0: the file as a whole)."""
        told = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}…"
        self.found.append(Problem(self.file, line, told, run, warning))


class Plan:
    """The evaluations of each run, as they are read; what unfolds into too many of them is refused at once."""

    def __init__(self, file: Path) -> None:
        self.tasks: dict[str, tuple[PlannedTask, ...]] = {}
        self._file = file
        self._count = 0

    def add(self, run: str, wanted: Iterable[PlannedTask]) -> None:
        """Plan tasks for a run, beside those that it has. Raises InvalidExperiment."""
        found = dict.fromkeys(self.tasks.get(run, ()))
        for task in wanted:
            self._count += len(task.epochs) or 1
            if self._count > MOST_EVALUATIONS:
                raise InvalidExperiment(Problem(self._file, task.line, TOO_MANY_EVALUATIONS))
            found[task] = None
        self.tasks[run] = tuple(found)


def decode(content: bytes, file: Path) -> str:
    """The text of a document. Raises InvalidExperiment where it is too large, empty or not UTF-8."""
    if len(content) > LARGEST:
        wrong = f"is larger than {LARGEST >> 20} MiB, and no document of an experiment is; is it the right file?"
        raise InvalidExperiment(Problem(file, 0, wrong))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        wrong = f"byte 0x{content[error.start]:02X} is not UTF-8; save the document as UTF-8"
        raise InvalidExperiment(Problem(file, line, wrong)) from error
    if not text.strip():
        raise InvalidExperiment(Problem(file, 0, "is empty; if an editor is saving it at this moment, try again"))
    return text


def kind_of(text: str) -> RunKind | None:
    """The kind that a Type value names, however it is capitalised and hyphenated; None for any other word."""
    word = re.sub(r"[\s_\-\u2010-\u2015]", "", text.casefold())
    return next((kind for kind in RunKind if kind.value.replace("-", "") == word), None)


def check_names(names: Iterable[Named], faults: Faults, what: str = "run name") -> None:
    """Note every name that cannot be a directory and every name that stands twice."""
    first: dict[str, Named] = {}
    for name in names:
        fault = fault_of(name.text)
        if fault:
            shown = "" if not name.text else f" {shortened(name.text)!r}"
            faults.add(name.line, f"the {what}{shown} {fault}; accepted: {ACCEPTED}")
            continue
        earlier = first.setdefault(same_name(name.text), name)
        if earlier is not name:
            spelled = "" if earlier.text == name.text else ", with the same letters in another Unicode form"
            faults.add(
                name.line,
                f"the {what} `{shortened(name.text)}` is already used on line {earlier.line}{spelled}; each needs its own",
            )


def listed_names(names: Iterable[str]) -> dict[str, str]:
    """Each listed run's name, by the form in which equal-looking names are equal."""
    return {same_name(name): name for name in names}


def listed_run(name: Named, listed: Mapping[str, str], faults: Faults) -> str | None:
    """The run that a row of the evaluation plan means, as the list of runs spells it; otherwise noted, and None."""
    found = listed.get(same_name(name.text))
    if found is None:
        hint = closest(name.text, listed.values()) if len(faults.found) < _HINTS else ""
        faults.add(name.line, f"the evaluation plan names the run `{shortened(name.text)}`, which is not listed{hint}")
    return found


def is_nothing(text: str) -> bool:
    """True for an empty cell and for the signs that people write into one instead."""
    return text.casefold() in {"", "-", "–", "—", "n/a"}


def check_pattern(pattern: str, line: int, faults: Faults) -> str:
    """``pattern`` itself, noted where it cannot be followed."""
    unknown = re.findall(r"[{<$][^}/]*[}>]?", pattern.replace("{run_name}", "").replace("/epoch_{N}", ""))
    if unknown or ".." in pattern.split("/"):
        faults.add(line, f"the naming pattern {pattern!r} cannot be followed; accepted: such as `{DEFAULT_PATTERN}`")
    return pattern
