"""What a finished step was made from, compared with what is there now; pure.

What was not in writing, or cannot be read now, is unknown: it never counts as changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from reconciler.memory import Attempt, Done, Memory, StepMemory
from reconciler.model import CHECKPOINT, Desired, Stage, Step, defined_by, of_generation

_SHOWN = 3


def with_generations(desired: Desired, memory: Memory) -> Desired:
    """The same steps, of which those that are made from a finished one's checkpoint are made from the one that is there: that of
    its last result, also where its definition has changed since, or a rerun gave that up and there is no newer one."""

    def made_from(step: Step) -> Step:
        need = memory.of(step.need).last_result if step.need is not None else None
        if need is None or CHECKPOINT not in step.inputs:
            return step
        return replace(step, inputs={**step.inputs, CHECKPOINT: of_generation(need.generation)})

    return replace(desired, steps=tuple(map(made_from, desired.steps)))


def outdated_inputs(done: Done, step: Step) -> tuple[str, ...]:
    """The things that the result was made from in an older version: ``task file cap_task.py``, ``checkpoint``."""
    inputs = sorted(step.inputs.items())
    return tuple(name for name, now in inputs if now not in (done.inputs.get(name, now), done.made_from.get(name)))


def staleness(step: Step, memory: StepMemory, need: StepMemory | None) -> tuple[str, ...]:
    """Why a finished step's result is of older things, in a few words each; empty where it is not, or where nobody knows."""
    if memory.done is None:
        return ()
    reasons = outdated_inputs(memory.done, step)
    if CHECKPOINT not in reasons and is_trained_anew(memory.done, need):
        return (*reasons, CHECKPOINT)
    return reasons


def is_trained_anew(done: Done, need: StepMemory | None) -> bool:
    """True where the step before it was done again since."""
    return need is not None and need.done is not None and done.order < need.anew


def changed_since(attempt: Attempt, step: Step) -> tuple[str, ...]:
    """What its job was submitted with and is otherwise by now, in words. Of a fine-tune only its script is in writing: the
    configuration is read when the job begins."""
    names = attempt.meaning.keys() | (step.meaning.keys() if step.stage is Stage.EVALUATION else set())
    return drift(attempt.meaning, {name: step.meaning[name] for name in names & step.meaning.keys()}, step.config)


def as_submitted(step: Step, attempt: Attempt | None) -> Step:
    """The step as this attempt's job had it; as it is where that is not in writing. Which configuration a fine-tune was launched
    with, its outputs tell."""
    if attempt is None or not attempt.definition:
        return step
    if step.stage is Stage.EVALUATION:
        meaning = step.meaning if attempt.definition == step.definition else attempt.meaning
        return replace(step, definition=attempt.definition, meaning=meaning, inputs=attempt.inputs)
    if not changed_since(attempt, step):
        return step
    configuration = {name: value for name, value in step.meaning.items() if name != step.script.name}
    # Not as of the intent: its own edits came after that, and the configuration was read later still.
    definition = defined_by(attempt.commands, configuration) if attempt.commands else attempt.definition
    return replace(step, definition=definition, meaning={**step.meaning, **attempt.meaning})


def drift(before: Mapping[str, str], after: Mapping[str, str], file: str = "") -> tuple[str, ...]:
    """What changed between two meanings, item by item, in words: ``finetune.yaml: lr 1e-5 → 5e-5``.

    ``file`` is where the items stand that do not name a file themselves.
    """
    if not before:
        return ()
    keys = sorted(before.keys() | after.keys())
    changed = (k for k in keys if before.get(k) != after.get(k))
    return tuple(f"{_named(k, file)} {before.get(k, '(none)')} → {after.get(k, '(none)')}" for k in changed)


def shortened(changes: Sequence[str]) -> str:
    """The first few changes in one line, and how many there are besides."""
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return "; ".join(changes[:_SHOWN]) + more


def _named(key: str, file: str) -> str:
    names_its_own = not file or ":" in key or key.endswith(".slurm")
    return key if names_its_own else f"{file}: {key}"
