"""Steps that would write where they do not belong: into another experiment since theirs is a copy of it, or into the place that
theirs was moved away from. Scripts that name their directory in full lead there, and go on doing so."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from reconciler.errors import DiskUnreadable, Problem
from reconciler.model import Desired, Reason, Stage, Step
from reconciler.ports import Disk
from reconciler.text_limits import can_be_path

_CODE = "ScriptLeadsAway"


def kept_apart(
    steps: Sequence[Step], directory: Path, disk: Disk, documents: Collection[str]
) -> tuple[tuple[Step, ...], tuple[Problem, ...]]:
    """The same steps: an evaluation whose logs would go into another experiment is blocked, with a problem. A fine-tune may be
    told to go on in the directory of the original."""
    another_around = _finder(directory, disk, documents)
    kept, problems = [], []
    for step in steps:
        is_asked = step.stage is Stage.EVALUATION and step.blocked is None and not step.output_dir.is_relative_to(directory)
        around = another_around(step.output_dir) if is_asked else None
        if around is not None:
            message = (
                f"its logs would go to {step.output_dir}, inside another experiment, {around}; "
                f"accepted: a `cd` and a log directory that lead into {directory}, or out of both"
            )
            problems.append(Problem(step.script, 0, message, step.run))
            step = replace(step, blocked=Reason(_CODE, str(problems[-1])))
        kept.append(step)
    return tuple(kept), tuple(problems)


def left_behind(desired: Desired, former: Collection[str]) -> Desired:
    """The same experiment; steps that would write to a place that it was moved away from, and that is gone, are blocked."""
    gone = [place for place in former if not os.path.lexists(place)]

    def checked(step: Step) -> Step:
        place = next((place for place in gone if step.output_dir.is_relative_to(place)), None)
        if place is None or step.blocked:
            return step
        message = f"it leads to {step.output_dir}, in {place}, where this experiment was before it was moved"
        return replace(step, blocked=Reason(_CODE, f"{message}; change {' or '.join(map(str, (step.script, *step.files)))}"))

    return replace(desired, steps=tuple(checked(step) for step in desired.steps)) if gone else desired


def _finder(directory: Path, disk: Disk, documents: Collection[str]) -> Callable[[Path], Path | None]:
    """What tells the experiment around a path, if that is neither this one nor around this one."""

    @cache
    def is_experiment(place: Path) -> bool:
        try:
            return any(disk.stat(place / name) is not None for name in documents)
        except DiskUnreadable:
            return False

    def around(path: Path) -> Path | None:
        if not can_be_path(str(path)):
            return None
        real = Path(os.path.realpath(path))
        found = next((place for place in (real, *real.parents) if is_experiment(place)), directory)
        return None if directory.is_relative_to(found) else found

    return around
