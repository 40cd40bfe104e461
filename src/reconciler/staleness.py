"""What a finished step was made from, compared with what is there now; pure.

What was not in writing, or cannot be read now, is unknown: it never counts as changed.
"""

from __future__ import annotations

from collections.abc import Mapping

from reconciler.memory import Done, StepMemory
from reconciler.model import Step


def outdated_inputs(done: Done, step: Step) -> tuple[str, ...]:
    """The things that the result was made from in an older version: ``task file cap_task.py``, ``checkpoint``."""
    before = {**done.meaning, **done.inputs}  # earlier versions kept the checkpoint among the meaning alone
    return tuple(name for name, version in sorted(step.inputs.items()) if before.get(name, version) != version)


def staleness(step: Step, memory: StepMemory, need: StepMemory | None) -> tuple[str, ...]:
    """Why a finished step's result is of older things, in a few words each; empty where it is not, or where nobody knows."""
    if memory.done is None:
        return ()
    reasons = outdated_inputs(memory.done, step)
    if "checkpoint" not in reasons and is_trained_anew(memory.done, need):
        return (*reasons, "checkpoint")
    return reasons


def is_trained_anew(done: Done, need: StepMemory | None) -> bool:
    """True where a person had the step before it done again since, and it is done again."""
    return need is not None and need.done is not None and need.rerun is not None and done.order < need.rerun.order


def drift(before: Mapping[str, str], after: Mapping[str, str], file: str = "") -> tuple[str, ...]:
    """What changed between two meanings, item by item, in words: ``finetune.yaml: lr 1e-5 → 5e-5``.

    ``file`` is where the items stand that do not name a file themselves.
    """
    if not before:
        return ()
    keys = sorted(before.keys() | after.keys())
    changed = (k for k in keys if before.get(k) != after.get(k))
    return tuple(f"{_named(k, file)} {before.get(k, '(none)')} → {after.get(k, '(none)')}" for k in changed)


def _named(key: str, file: str) -> str:
    names_its_own = not file or ":" in key or key.endswith(".slurm")
    return key if names_its_own else f"{file}: {key}"
