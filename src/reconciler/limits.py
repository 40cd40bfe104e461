"""What may keep a step from being submitted although its own ladder would submit it; pure.

Each limit is asked in turn, step by step in the order of submission, and hears of every step that goes. Why a limit says no is a
Gate. It never decides what a step needs: only whether now is the time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from reconciler.memory import StepMemory
from reconciler.model import Action, Condition, Desired, Job, Observed, Policy, Reason, Stage, Step, Verb


@dataclass(frozen=True)
class Gate:
    """Why a step that would be submitted is not; it waits with this reason, for a person where ``needs_person``."""

    reason: Reason
    needs_person: bool = True


class Limit(Protocol):
    """One limit, over the submissions of one plan."""

    def refuses(self, step: Step) -> Gate | None:
        """Why this step may not go now; None where it may."""

    def takes(self, step: Step) -> None:
        """Hear that this step goes."""


def stopped(action: Action, gate: Gate) -> Action:
    """A submission that a gate keeps back."""
    verb, condition = (Verb.HOLD, Condition.HELD) if gate.needs_person else (Verb.WAIT, Condition.WAITING)
    return replace(
        action,
        verb=verb,
        condition=condition,
        reason=gate.reason,
        attempt=None,
        move_aside=(),
        changes=(),
        held=False,
        options={},
        edits=(),
        reverts=(),
    )


def in_turn(steps: Sequence[Step], known: Mapping[str, StepMemory]) -> list[Step]:
    """Steps in the order in which they are submitted, so that none starves.

    Those that a limit of the site kept back last time come after all others, which it may not concern. Then evaluations come
    before fine-tunes, because they finish what was begun; then those that had fewer jobs: a run that is preempted again and
    again takes nobody's turn; then as the document has them.
    """
    return sorted(steps, key=lambda step: _turn(step, known[step.key]))


def _turn(step: Step, memory: StepMemory) -> tuple[bool, bool, int]:
    was_limited = memory.last is not None and memory.last.limited
    return was_limited, step.stage is not Stage.EVALUATION, _jobs_had(memory)


def _jobs_had(memory: StepMemory) -> int:
    return sum(attempt.job is not None and not attempt.withdrawn for attempt in memory.attempts)


@dataclass
class Closed:
    """Nothing at all may be submitted."""

    gate: Gate

    def refuses(self, step: Step) -> Gate | None:
        """Every step, with the same reason."""
        return self.gate

    def takes(self, step: Step) -> None:
        """Never happens."""


class FullDisk:
    """A full disk fails every run that writes to it, and tears the checkpoint that it is in the midst of."""

    def __init__(self, desired: Desired, decided: Mapping[str, Action]) -> None:
        failed = (step for step in reversed(desired.steps) if decided[step.key].reason.code == "DiskQuota")
        self._failed: dict[Path, str] = {step.root: step.key for step in failed}

    def refuses(self, step: Step) -> Gate | None:
        """A step that would write to a full disk."""
        failed = self._failed.get(step.root)
        if failed is None:
            return None
        message = f"{failed} failed because {step.root} is full or its quota is used up; make room, then release {failed}"
        return Gate(Reason("DiskQuota", message), needs_person=False)

    def takes(self, step: Step) -> None:
        """Takes no room that could be known."""


class InFlight:
    """``max_in_flight``: the user's jobs in the queue, other work's counted."""

    def __init__(self, observed: Observed, policy: Policy) -> None:
        self._count = sum(_jobs_of(job) for job in observed.queue) if isinstance(observed.queue, tuple) else 0
        self._most = policy.max_in_flight

    def refuses(self, step: Step) -> Gate | None:
        """A step for which there is no place left."""
        if self._most is None or self._count < self._most:
            return None
        message = f"jobs in the queue or about to be: {self._count}; max_in_flight is {self._most}"
        return Gate(Reason("MaxInFlight", message), needs_person=False)

    def takes(self, step: Step) -> None:
        """One place less."""
        self._count += 1


def _jobs_of(job: Job) -> int:
    """How many jobs a row of the queue stands for: an array's tasks that wait have one row (``7_[1-5,9%2]``, man squeue,
    --array), and the site counts each of them."""
    tasks = re.search(r"_\[([^]%]+)", job.id)
    if not job.is_live or tasks is None:
        return int(job.is_live)
    return sum(_length(part) for part in tasks[1].split(",")) or 1


def _length(part: str) -> int:
    """``9``, ``1-5`` or ``1-9:2``; 0 for the dots of a list that squeue has cut."""
    found = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
    return (int(found[2] or found[1]) - int(found[1])) // int(found[3] or 1) + 1 if found else 0
