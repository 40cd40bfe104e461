"""What the work costs in GPU hours, and how ``budget`` is never passed; pure.

What has ended counts with the time that it really took, whatever became of it; what may still run counts with all the time that
it may take. So the sum can only fall when a job ends, and nothing is submitted that could make it pass the budget. A job without
GPUs costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from reconciler.failures import CANCELLED
from reconciler.limits import Gate
from reconciler.memory import Attempt, End, Memory, StepMemory
from reconciler.model import Action, Ask, Condition, Desired, Job, Policy, Reason, Stage, Step
from reconciler.ownership import Ownership

_HOUR = 3600.0
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Bill:
    """GPU hours. ``spent``: of jobs that have ended. ``untold`` jobs have ended of which nobody knows how many GPUs the site gave
    them. ``in_flight``: what those that have not may use at most (infinite where one has no time limit, or no number of GPUs).
    ``likely``: what everything that is not done will probably use, jobs in flight included. ``by_experience`` counts the steps of
    which that is known from like runs, ``unknown`` names those of which nobody knows what they may cost."""

    budget: float | None = None
    spent: float = 0.0
    untold: int = 0
    in_flight: float = 0.0
    likely: float = 0.0
    by_experience: int = 0
    unknown: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True where there is nothing to tell: no GPU, no budget."""
        return self.budget is None and not (self.spent or self.in_flight or self.likely)


@dataclass(frozen=True)
class _Use:
    """What one step's jobs have used, may still use, and may use should a submission that was never seen be there after all.
    Of ``untold`` jobs that have ended nobody knows what they used."""

    spent: float = 0.0
    untold: int = 0
    in_flight: float = 0.0
    in_doubt: float = 0.0


@dataclass
class Budget:
    """The limit."""

    policy: Policy
    uses: Mapping[str, _Use]
    taken: float = 0.0
    is_saving: bool = False

    def refuses(self, step: Step) -> Gate | None:
        """A step that could make the sum pass the budget, or of which nobody knows how much it could.

        Once one has to wait for jobs in flight to end, those after it do not take from under it what becomes free.
        """
        budget = self.policy.budget
        if budget is None or step.ask.gpus == 0:
            return None
        most = at_most(step.ask)
        if most is None or step.requeue or self.policy.requeue:
            return Gate(Reason("CostUnknown", _why_unknown(step)))
        if self.spent + most > budget + _ROUNDING:
            message = (
                f"it may take {_hours(most)} GPU hours, and {_hours(self.spent)} of the budget of {_hours(budget)} are spent; "
                "raise `budget`, or shorten its --time"
            )
            return Gate(Reason("BudgetReached", message))
        # The step's own submission in doubt and the one that replaces it are one job.
        others = self.taken + sum(use.in_flight + (use.in_doubt if key != step.key else 0.0) for key, use in self.uses.items())
        if self.is_saving or self.spent + others + most > budget + _ROUNDING:
            self.is_saving = True
            message = (
                f"it may take {_hours(most)} GPU hours; of the budget of {_hours(budget)}, {_hours(self.spent)} are spent and "
                f"{_hours(others)} GPU hours may still be used by jobs in flight"
            )
            return Gate(Reason("BudgetInUse", message), needs_person=False)
        return None

    def takes(self, step: Step) -> None:
        """All that the step may cost is spoken for."""
        self.taken += at_most(step.ask) or 0.0

    @cached_property
    def spent(self) -> float:
        """By jobs that have ended."""
        return sum(use.spent for use in self.uses.values())

    @cached_property
    def in_flight(self) -> float:
        """By jobs that have not, at most; doubtful ones count as there."""
        return sum(use.in_flight + use.in_doubt for use in self.uses.values())


def at_most(ask: Ask) -> float | None:
    """The GPU hours of one job that runs until its time limit; None where nobody knows."""
    if ask.gpus == 0:
        return 0.0
    return None if ask.gpus is None or ask.seconds is None else ask.gpus * ask.seconds / _HOUR


def _up_to(ask: Ask) -> float:
    hours = at_most(ask)
    return math.inf if hours is None else hours


def uses_of(desired: Desired, known: Mapping[str, StepMemory], memory: Memory, ours: Ownership, now: float) -> dict[str, _Use]:
    """What each step's jobs use, those of steps that the document does not have any more too."""
    asks = {step.key: step.ask for step in desired.steps}
    steps = {**memory.steps, **known}
    return {key: _use(of_step.attempts, ours.of(key), asks.get(key, Ask()), now) for key, of_step in steps.items()}


def _use(attempts: Sequence[Attempt], jobs: Sequence[Job], ask: Ask, now: float) -> _Use:
    spent = in_flight = in_doubt = 0.0
    untold = 0
    live = [job for job in jobs if job.is_live]
    for attempt in attempts:
        asked = attempt.ask or ask
        took = attempt.worked + (_took(attempt, attempt.end, asked) if attempt.end else 0.0)
        spent += (asked.gpus or 0) * took / _HOUR
        untold += asked.gpus is None and took > 0
        its = [job for job in live if job.name == attempt.name and attempt.job in (None, job.id)]
        if attempt.is_open or (its and attempt.end is None):
            so_far = max((now - job.started for job in its if job.started is not None), default=0.0)
            in_flight += max((asked.gpus or 0) * so_far / _HOUR, _up_to(asked))
        elif attempt.lost and attempt.job is None:
            is_replaced = any(later.number > attempt.number and later.job is not None for later in attempts)
            in_doubt = 0.0 if is_replaced else _up_to(asked)
    names, ids = {attempt.name for attempt in attempts if attempt.job is None}, {attempt.job for attempt in attempts}
    unwritten = [job for job in live if job.name not in names and job.id not in ids]
    return _Use(spent, untold, in_flight + sum(_up_to(ask) for _ in unwritten), in_doubt)


def _took(attempt: Attempt, end: End, asked: Ask) -> float:
    """Seconds. Where nobody knows when it started, all that it might have taken."""
    if end.started is not None:
        return max(0.0, end.at - end.started)
    if end.failure in CANCELLED:
        return 0.0  # before it could start
    return asked.seconds if asked.seconds is not None else max(0.0, end.at - attempt.at)


# --- what is to be expected ------------------------------------------------------------------------------


def bill_of(desired: Desired, decided: Mapping[str, Action], known: Mapping[str, StepMemory], budget: Budget) -> Bill:
    """What the experiment has cost, and what it will cost as far as that can be told."""
    experience = _experience(desired, known)
    expected = {}
    by_experience = 0
    for step in desired.steps:
        if decided[step.key].condition is Condition.DONE:
            continue
        seconds = experience.get((step.stage, step.ask))
        by_experience += seconds is not None and bool(step.ask.gpus)
        expected[step.key] = at_most(step.ask if seconds is None else Ask(step.ask.gpus, seconds))
    return Bill(
        budget.policy.budget,
        budget.spent,
        sum(use.untold for use in budget.uses.values()),
        budget.in_flight,
        sum(hours for hours in expected.values() if hours is not None),
        by_experience,
        tuple(key for key, hours in expected.items() if hours is None),
    )


def _experience(desired: Desired, known: Mapping[str, StepMemory]) -> dict[tuple[Stage, Ask], float]:
    """The median time (s) that steps of one stage took which are done and asked for the same."""
    took: dict[tuple[Stage, Ask], list[float]] = {}
    for step in desired.steps:
        last = known[step.key].last_begun
        if known[step.key].done is None or last is None or last.end is None or last.end.started is None:
            continue
        took.setdefault((step.stage, last.ask or step.ask), []).append(last.end.at - last.end.started)
    return {like: median(times) for like, times in took.items()}


def _why_unknown(step: Step) -> str:
    if step.ask.gpus is None:
        return f"{step.script.name} leaves to the site how many GPUs it gets, and there is a budget; ask for a number of GPUs"
    if step.ask.seconds is None:
        return f"{step.script.name} has no --time, and there is a budget; give it a time limit"
    return "Slurm may start its job again without end (--requeue), and there is a budget; take --requeue out"


def _hours(hours: float) -> str:
    return "any number of" if math.isinf(hours) else f"{hours:.4g}"


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def told(bill: Bill) -> str:
    """The bill in one line; empty where there is nothing to tell."""
    if bill.is_empty:
        return ""
    parts = [f"about {_hours(bill.likely)} GPU hours to come"]
    if bill.by_experience:
        parts[0] += f" (of {_steps(bill.by_experience)} by what like ones took)"
    if bill.unknown:
        parts.append(f"{_steps(len(bill.unknown))} of unknown cost")
    parts.append(f"{_hours(bill.spent)} spent")
    if bill.untold:
        jobs = "1 job" if bill.untold == 1 else f"{bill.untold} jobs"
        parts[-1] += f" besides {jobs} of which nobody knows how many GPUs the site gave"
    if bill.in_flight:
        parts.append(f"at most {_hours(bill.in_flight)} in flight")
    return ", ".join(parts) + ("" if bill.budget is None else f"; the budget is {_hours(bill.budget)}")
