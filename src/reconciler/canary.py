"""One step of each stage goes first, alone, where ``canary`` is set; pure.

A fault that all runs share then costs one job, and one job fills the dataset cache that the others would race for. Which step
that is, and whether the others may follow, is read afresh from memory and queue: nothing of its own is written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reconciler.failures import CANCELLED
from reconciler.limits import Gate
from reconciler.memory import Attempt, StepMemory
from reconciler.model import CANARY_FAILED, CANARY_HELD, Action, Condition, Desired, Job, Phase, Reason, Stage, Step
from reconciler.ownership import Ownership


@dataclass(frozen=True)
class Facts:
    """What tells which step went first: what was decided and is in writing of each, whose the jobs are, and the order of the last
    release of the whole experiment."""

    desired: Desired
    decided: Mapping[str, Action]
    known: Mapping[str, StepMemory]
    ours: Ownership
    released: int


class Canary:
    """The limit. ``seconds`` is how long the first job of a stage must have run before the others follow; None: no canary."""

    def __init__(self, facts: Facts, seconds: float | None, now: float) -> None:
        self._facts = facts
        self._seconds = seconds
        self._first = {} if seconds is None else {stage: _first(facts, stage, seconds, now) for stage in Stage}

    def refuses(self, step: Step) -> Gate | None:
        """Every step but the first of its stage, until that one has proved itself."""
        first = self._first.get(step.stage, _FREE)
        if first in (_FREE, _NOBODY, step.key):
            return None
        action = self._facts.decided[first]
        if action.condition.needs_person:
            is_live = any(job.is_live for job in self._facts.ours.of(first))
            if self._facts.known[step.key].released > _last_news(self._facts.known[first], is_live):
                return None  # a person has looked, and wants this one to go
            message = (
                f"{first} went first, alone, and needs you ({action.reason.code}); release it, or this step to go on without it, "
                "or all by releasing the experiment, naming no step"
            )
            return Gate(Reason(CANARY_HELD if is_live else CANARY_FAILED, message))
        message = f"{first} goes first, alone; the others follow when it has run for {_minutes(self._seconds)} or is done"
        return Gate(Reason("Canary", message), needs_person=False)

    def takes(self, step: Step) -> None:
        """Where nobody has gone first yet, this one does."""
        if self._first.get(step.stage) == _NOBODY:
            self._first[step.stage] = step.key


_NOBODY = ""  # has gone first yet
_FREE = "*"  # to go, every step of the stage; no key of a step is like this


def _first(facts: Facts, stage: Stage, seconds: float, now: float) -> str:
    """The key of the stage's canary, whether nobody has gone yet, or whether all may go.

    Once a second one has gone the first has done its duty: the others are not called back when it fails after all.
    """
    steps = [step.key for step in facts.desired.steps if step.stage is stage]
    if any(facts.decided[key].condition is Condition.DONE or facts.known[key].done is not None for key in steps):
        return _FREE
    live = {key: [job for job in facts.ours.of(key) if job.is_live] for key in steps}
    begun = [key for key in steps if live[key] or _outcomes(facts.known[key])]
    if not begun:
        return _NOBODY
    if len(begun) > 1 or any(_has_run(job, seconds, now) for job in live[begun[0]]):
        return _FREE
    first, is_live = begun[0], bool(live[begun[0]])
    goes_on = is_live and not facts.decided[first].condition.needs_person
    return first if goes_on or _last_news(facts.known[first], is_live) > facts.released else _FREE


def _last_news(memory: StepMemory, is_live: bool) -> int:
    """The place in the ledger of what became of a step last; what a person says of it later is news while it has a job."""
    word = memory.word.order if is_live and memory.word is not None else 0
    return max([word, *_outcomes(memory)])


def _outcomes(memory: StepMemory) -> list[int]:
    """The places in the ledger of what became of a step's submissions, as far as they tell of the work: a limit of the site and
    a cancelling do not, nor does what a person's rerun replaced."""
    since = memory.rerun.order if memory.rerun is not None else 0
    return [
        attempt.end.order if attempt.end is not None else attempt.order
        for attempt in memory.attempts
        if attempt.order > since and _tells(attempt)
    ]


def _tells(attempt: Attempt) -> bool:
    if attempt.end is not None:
        return attempt.end.failure not in CANCELLED
    return not attempt.limited and not attempt.withdrawn


def _has_run(job: Job, seconds: float, now: float) -> bool:
    return job.phase is Phase.RUNNING and job.started is not None and now - job.started >= seconds


def _minutes(seconds: float | None) -> str:
    return f"{(seconds or 0) / 60:.3g} min"
