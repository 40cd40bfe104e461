"""From an experiment's directory to its desired state: the document, then what the tools find for each run.

Reads, and never writes. A fault of the document as a whole raises InvalidExperiment with everything found;
a fault of one run blocks that run's steps and is kept among the problems.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from reconciler.errors import DiskUnreadable, InvalidExperiment, NotAFile, Problem
from reconciler.experiment.document import (
    LARGEST,
    MOST_EVALUATIONS,
    MOST_RUNS,
    TOO_MANY_EVALUATIONS,
    Document,
    Named,
    PlannedTask,
    RunRow,
    decode,
)
from reconciler.experiment.links import linked, missing_models
from reconciler.experiment.names import same_name
from reconciler.experiment.strays import kept_apart
from reconciler.model import (
    CHECKPOINT,
    Desired,
    EvaluationInput,
    Reading,
    Reason,
    RunInput,
    RunKind,
    Stage,
    Step,
    of_generation,
)
from reconciler.ports import Disk, Tool, by_stage
from reconciler.spelling import closest

DOCUMENTS = ("experiment_summary.md", "experiment_summary.yaml", "experiment_summary.yml")
_STAGES = {"preparation": Stage.FINETUNE, "evaluation": Stage.EVALUATION}


def find_document(path: Path) -> Path:
    """The document of an experiment that is named by its directory or by the document itself.

    Raises InvalidExperiment where there is none or more than one, DiskUnreadable where that cannot be told.
    """
    if not _is_there(path):
        raise InvalidExperiment(Problem(path, 0, "does not exist"))
    if not path.is_dir():
        if path.suffix not in (".md", ".yaml", ".yml"):
            raise InvalidExperiment(
                Problem(path, 0, f"is no experiment; accepted: its directory, or its {' or '.join(DOCUMENTS[:2])}")
            )
        return path
    found = [path / name for name in DOCUMENTS if _is_there(path / name)]
    if not found:
        raise InvalidExperiment(
            Problem(path, 0, f"has no {' and no '.join(DOCUMENTS[:2])}; one of them describes the experiment")
        )
    if len(found) > 1:
        both = " and ".join(document.name for document in found)
        raise InvalidExperiment(Problem(path, 0, f"has both {both}; keep one, or name the one that counts"))
    return found[0]


def load(path: Path, tools: Mapping[str, Tool], disk: Disk) -> Desired:
    """The desired state. Raises InvalidExperiment for faults of the document, DiskUnreadable where it cannot be read."""
    document = _read_document(find_document(path), disk)
    if len(document.runs) > MOST_RUNS:
        raise InvalidExperiment(Problem(document.path, 0, f"lists {len(document.runs):,} runs; accepted: up to {MOST_RUNS:,}"))
    chosen, unknown = _choose_tools(document, tools)
    faults = [problem for problem in (*document.problems, *unknown) if problem.run is None and not problem.warning]
    if faults:
        raise InvalidExperiment(*sorted(faults, key=lambda problem: problem.line))
    directory = document.path.parent.resolve()
    entries = disk.names(directory) or ()
    scene = _Scene(document, directory, entries, chosen["preparation"], chosen["evaluation"], disk)
    readings = list(_within_bounds((scene.read(run) for run in document.runs), document))
    steps = [step for reading in readings for step in reading.steps]
    hidden = tuple(run.name for run, reading in zip(document.runs, readings, strict=True) if reading.hides_steps)
    shared = tuple(_shared_outputs(steps, document))
    linked_steps, circles = linked([_kept_back(step, "OutputsShared", shared) for step in steps], document)
    lacking = tuple(missing_models(linked_steps, document, directory, disk))
    kept, strays = kept_apart([_kept_back(step, "NoCheckpoint", lacking) for step in linked_steps], directory, disk, DOCUMENTS)
    found = (problem for reading in readings for problem in reading.problems)
    return Desired(
        name=document.name,
        directory=directory,
        document=directory / document.path.name,
        steps=kept,
        problems=(
            *(*document.problems, *found, *shared, *circles, *lacking, *strays),
            *(*scene.unlisted(steps), *_patterns_in_path(directory, document)),
        ),
        hidden=hidden,
    )


def _within_bounds(readings: Iterable[Reading], document: Document) -> Iterator[Reading]:
    """The readings, as long as their steps are not more than any experiment has."""
    count = 0
    for reading in readings:
        count += len(reading.steps)
        if count > MOST_EVALUATIONS:
            raise InvalidExperiment(Problem(document.path, 0, TOO_MANY_EVALUATIONS))
        yield reading


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DiskUnreadable(f"{path}: cannot be examined: {error.strerror}") from error
    return True


def _read_document(path: Path, disk: Disk) -> Document:
    try:
        content = disk.read(path, 0, LARGEST + 1)
    except NotAFile as error:
        raise InvalidExperiment(Problem(path, 0, "is no regular file; the document must be one")) from error
    if content is None:
        raise InvalidExperiment(Problem(path, 0, "does not exist any more"))
    text = decode(content, path)
    if path.suffix == ".md":
        from reconciler.experiment.markdown_form import read_markdown

        return read_markdown(text, path)
    from reconciler.experiment.yaml_form import read_yaml

    return read_yaml(text, path)


def _choose_tools(document: Document, tools: Mapping[str, Tool]) -> tuple[dict[str, Tool], list[Problem]]:
    """The tool of each stage: the one that the document names, or the one that a document without a word means."""
    chosen: dict[str, Tool] = {}
    problems: list[Problem] = []
    for part, stage in _STAGES.items():
        known = {tool.name.casefold(): tool for tool in by_stage(tools.values(), stage)}
        named = document.tools.get(part) or Named(_unnamed(known), 0)
        tool = known.get(named.text.casefold())
        if tool:
            chosen[part] = tool
        else:
            accepted = ", ".join(f"`{tool.name}`" for tool in known.values())
            message = f"the {part} tool `{named.text}` is not known{closest(named.text, known)}; accepted: {accepted}"
            problems.append(Problem(document.path, named.line, message))
    return chosen, problems


def _unnamed(known: Mapping[str, Tool]) -> str:
    """The tool that a document means by naming none: the default of its stage, or the only one there is."""
    return next((tool.name for tool in known.values() if tool.is_default or len(known) == 1), "")


# --- one run -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scene:
    """What every run of the experiment is read with."""

    document: Document
    directory: Path
    entries: tuple[str, ...]
    preparation: Tool
    evaluator: Tool
    disk: Disk

    def read(self, row: RunRow) -> Reading:
        """The steps of one run, preparation first; blocked where the run is at fault."""
        run = self._input(row)
        prepared = self.preparation.read(run, self.disk) if run.kind is RunKind.FINE_TUNED else Reading()
        step = next(iter(prepared.steps), None)
        evaluations, faults = self._evaluations(row, step)
        run = replace(
            run,
            evaluations=evaluations,
            checkpoints=step.checkpoints if step else {},
            preparation_key=step.key if step else None,
        )
        prepared, evaluated = _blocked(prepared), _blocked(self.evaluator.read(run, self.disk))
        own = (*self._leads_outside(run), *faults)
        in_document = [problem for problem in self.document.problems if problem.run == row.name]
        steps = _block(prepared.steps + _made_from(step, evaluated.steps), (*in_document, *own))
        planned = {task.task for task in (self.document.plan or {}).get(row.name, ())}
        is_whole = planned == {evaluation.task for evaluation in evaluations}
        hides = not is_whole or any(map(_is_lost, (prepared, evaluated, Reading(steps, tuple(in_document)))))
        return Reading(steps, (*own, *prepared.problems, *evaluated.problems), hides_steps=hides)

    def _input(self, row: RunRow) -> RunInput:
        return RunInput(
            name=row.name,
            kind=row.kind,
            directory=self.directory / self._entry(row.name),
            document=self.document.path,
            line=row.line,
            parameters=row.parameters,
            epochs=row.epochs or self.document.epochs,
            checkpoint_dir=self._checkpoint_dir(row),
            checkpoint_path=self.directory / row.checkpoint_path if row.checkpoint_path else None,
            planned=self.document.plan is not None,
            varied=self._varied,
        )

    @cached_property
    def _varied(self) -> frozenset[str]:
        """The parameters whose values differ between fine-tuned runs."""
        seen: dict[str, set[str]] = {}
        for row in self.document.runs:
            if row.kind is RunKind.FINE_TUNED:
                for name, value in row.parameters.items():
                    seen.setdefault(re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"), set()).add(value)
        return frozenset(name for name, values in seen.items() if len(values) > 1)

    def _entry(self, name: str) -> str:
        """The run's directory as it is spelled on disk, which may compose its letters in another way."""
        alike = (entry for entry in self.entries if same_name(entry) == same_name(name))
        return name if name in self.entries else next(alike, name)

    def _checkpoint_dir(self, row: RunRow) -> Path | None:
        expected = self.document.checkpoints_of(row.name) if row.kind is RunKind.FINE_TUNED else None
        return self.directory / expected if expected else None

    def _evaluations(self, row: RunRow, step: Step | None) -> tuple[tuple[EvaluationInput, ...], list[Problem]]:
        """The run's planned evaluations, epoch by epoch, and the problems of that part of its plan."""
        found: list[EvaluationInput] = []
        problems: list[Problem] = []
        for task in (self.document.plan or {}).get(row.name, ()):
            epochs, fault = self._epochs(row, step, task)
            if len(found) + len(epochs) > MOST_EVALUATIONS:
                raise InvalidExperiment(Problem(self.document.path, task.line, TOO_MANY_EVALUATIONS))
            found.extend(EvaluationInput(task.task, epoch, task.line) for epoch in epochs)
            if fault:
                message = f"`{task.task}` of the {row.kind.value} run `{row.name}` {fault}"
                problems.append(Problem(self.document.path, task.line, message, row.name))
        return tuple(dict.fromkeys(found)), problems

    def _epochs(self, row: RunRow, step: Step | None, task: PlannedTask) -> tuple[tuple[int | None, ...], str | None]:
        """The epochs that a task is wanted at (None: the run's own model), and what is wrong with them, if anything."""
        if row.kind is not RunKind.FINE_TUNED:
            fault = "names an epoch, and it has none; accepted: `✓`"
            return (None,), fault if task.epochs or task.every else None
        if task.epochs:
            return task.epochs, None
        known = sorted(step.checkpoints if step else ()) or range(row.epochs or self.document.epochs or 0)
        fault = "names no epoch, and nothing tells how many there are; accepted: `✓ epoch 0`"
        return tuple(known if task.every else known[-1:]), None if known else fault

    def _leads_outside(self, run: RunInput) -> Iterator[Problem]:
        """A directory of the run that is really elsewhere: two experiments could train into it."""
        real = Path(os.path.realpath(run.directory))
        if not real.is_relative_to(self.directory):
            message = f"the directory of run `{run.name}` leads out of the experiment, to {real}; make it a directory of its own"
            yield Problem(run.document, run.line, message, run.name)

    # --- what is there and not listed ---

    def unlisted(self, steps: Iterable[Step]) -> Iterator[Problem]:
        """A warning for each directory that was scaffolded as a run, as those of the document's are, and is none of them."""
        listed = {same_name(run.name) for run in self.document.runs}
        scripts = (step.script for step in steps if step.script.is_relative_to(self.directory))
        marks = {parts[1] for script in scripts if len(parts := script.relative_to(self.directory).parts) > 1}
        for entry in self.entries:
            if not entry.startswith(".") and same_name(entry) not in listed and self._is_scaffolded(entry, marks):
                message = f"the directory `{entry}` is scaffolded but not listed among the runs; it is left alone"
                yield Problem(self.document.path, 0, message, warning=True)

    def _is_scaffolded(self, entry: str, marks: Container[str]) -> bool:
        with suppress(DiskUnreadable):
            return any(name in marks or name.endswith(".slurm") for name in self.disk.names(self.directory / entry) or ())
        return False


def _made_from(preparation: Step | None, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """What is made from another step's checkpoint is of that one's definition."""
    if preparation is None or not preparation.definition:
        return steps
    made = {CHECKPOINT: of_generation(preparation.definition)}
    return tuple(replace(step, inputs={**step.inputs, **made}) if step.need == preparation.key else step for step in steps)


# --- blocking ------------------------------------------------------------------------------------


def _is_lost(reading: Reading) -> bool:
    """True where a fault leaves no step that it could block: what the run has is not known then, and not nothing."""
    return reading.hides_steps or (not reading.steps and any(not problem.warning for problem in reading.problems))


def _blocked(reading: Reading) -> Reading:
    """A reading whose faults block something: all of it, where the tool has not said which step."""
    if any(step.blocked for step in reading.steps):
        return reading
    return replace(reading, steps=_block(reading.steps, reading.problems))


def _block(steps: tuple[Step, ...], problems: Iterable[Problem]) -> tuple[Step, ...]:
    """Steps blocked by the first problem that is no warning; a step already blocked keeps its reason."""
    fault = next((problem for problem in problems if not problem.warning), None)
    if fault is None:
        return steps
    return tuple(step if step.blocked else replace(step, blocked=Reason("Blocked", str(fault))) for step in steps)


def _shared_outputs(steps: Iterable[Step], document: Document) -> Iterator[Problem]:
    """A problem for each run whose training would write where another one's does, or inside it: what moves one's outputs aside
    would take the other's along."""
    lines = {run.name: run.line for run in document.runs}
    directories = {step.run: Path(os.path.realpath(step.output_dir)) for step in steps if step.stage is Stage.FINETUNE}
    runs_of: dict[Path, set[str]] = {}
    for run, directory in directories.items():
        runs_of.setdefault(directory, set()).add(run)
    others: dict[str, set[str]] = {run: runs_of[directory] - {run} for run, directory in directories.items()}
    for run, directory in directories.items():
        for around in (run for parent in directory.parents for run in runs_of.get(parent, ())):
            others[run].add(around)
            others[around].add(run)
    for run, directory in directories.items():
        if others[run]:
            named = ", ".join(f"`{other}`" for other in sorted(others[run]))
            message = f"run `{run}` trains into the directory of {named}, {directory}; each needs its own, none inside another"
            yield Problem(document.path, lines.get(run, 0), message, run)


def _patterns_in_path(directory: Path, document: Document) -> Iterator[Problem]:
    """Slurm expands ``%`` in the whole path of an output file (seen on 22.05 and 24.11), not in its name alone."""
    if "%" in str(directory):
        message = f"Slurm takes the `%` in {directory} for a pattern, and jobs may end without a log; use a path without it"
        yield Problem(document.path, 0, message, warning=True)


def _kept_back(step: Step, code: str, problems: tuple[Problem, ...]) -> Step:
    """The step, blocked where one of the problems is its run's."""
    fault = next((problem for problem in problems if problem.run == step.run), None)
    return replace(step, blocked=Reason(code, fault.message)) if fault and not step.blocked else step
