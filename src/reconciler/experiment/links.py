"""Which steps read what the fine-tune of another run makes: they need that one first, as evaluations need their own run's.

A tool reads one run at a time and knows of no other; here all of them are at hand.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from reconciler.errors import DiskUnreadable, Problem
from reconciler.experiment.document import Document
from reconciler.model import Reason, RunKind, Stage, Step
from reconciler.ports import Disk
from reconciler.text_limits import can_be_path


def linked(steps: Sequence[Step], document: Document) -> tuple[tuple[Step, ...], tuple[Problem, ...]]:
    """The same steps: those that read another run's outputs name its fine-tune, and need it where they read an epoch of it.
    Fine-tunes that begin from one another in a circle could wait for ever: they are blocked, each with a problem."""
    outputs = _Outputs(steps)
    found = {step.key: _linked(step, outputs) for step in steps}
    lines = {run.name: run.line for run in document.runs}
    problems = []
    for step in [step for step in found.values() if step.stage is Stage.FINETUNE]:
        circle = _circle(step, found)
        if circle:
            message = f"run `{step.run}` begins from its own outputs, by way of {', '.join(circle)}; one must begin elsewhere"
            problems.append(Problem(document.path, lines.get(step.run, 0), message, step.run))
    for problem in problems:
        for key in [key for key, step in found.items() if step.run == problem.run and step.stage is Stage.FINETUNE]:
            found[key] = replace(found[key], need=None, blocked=found[key].blocked or Reason("Circle", problem.message))
    return tuple(found.values()), tuple(problems)


def missing_models(steps: Sequence[Step], document: Document, directory: Path, disk: Disk) -> Iterator[Problem]:
    """A problem for each eval-only run whose model is not there and is none that a run of this experiment makes: an evaluation
    without it would only fail."""
    outputs = _Outputs(steps)
    for run in document.runs:
        if run.kind is not RunKind.EVAL_ONLY or run.checkpoint_path is None:
            continue
        model = directory / run.checkpoint_path
        with suppress(DiskUnreadable):  # not known: the job will see
            if outputs.maker_of(model) is None and disk.stat(model) is None:
                message = f"the checkpoint of the eval-only run `{run.name}`, {model}, is not there"
                yield Problem(document.path, run.line, message, run.name)


@dataclass(frozen=True)
class _Outputs:
    """Where the fine-tunes write, symbolic links followed."""

    steps: Sequence[Step]

    @cached_property
    def _makers(self) -> Mapping[str, Step]:
        return {os.path.realpath(step.output_dir): step for step in self.steps if step.stage is Stage.FINETUNE}

    @cached_property
    def _real(self) -> dict[Path, Path]:
        return {}

    def maker_of(self, path: Path) -> Step | None:
        """The fine-tune inside whose outputs a path is."""
        real = self.real(path)
        return next((found for place in (real, *real.parents) if (found := self._makers.get(str(place)))), None)

    def real(self, path: Path) -> Path:
        """Each path is asked for once: runs begin from the same few models."""
        if path not in self._real:
            self._real[path] = Path(os.path.realpath(path)) if can_be_path(str(path)) else path
        return self._real[path]


def _linked(step: Step, outputs: _Outputs) -> Step:
    found = [(maker, path) for path in step.reads if (maker := outputs.maker_of(path)) and maker.run != step.run]
    if not found:
        return step
    epochs = {maker.key: epoch for maker, path in found for epoch in _epochs_at(maker, path, outputs)}
    need = step.need or next(iter(epochs), None)
    others = tuple(dict.fromkeys(maker.key for maker, _ in found))
    return replace(step, need=need, others=others, begins_from=epochs.get(need or ""))


def _epochs_at(maker: Step, path: Path, outputs: _Outputs) -> Iterator[int]:
    real = outputs.real(path)
    return (epoch for epoch, place in maker.checkpoints.items() if real.is_relative_to(outputs.real(place)))


def _circle(step: Step, found: Mapping[str, Step]) -> list[str]:
    """The keys on the way from a fine-tune back to itself; empty where there is none."""
    way: list[str] = []
    need = step.need
    while need is not None and need in found and need not in way:
        way.append(need)
        need = found[need].need
    return way if step.key in way else []
