"""What may keep a step from being submitted although its own ladder would submit it; pure.

Each limit is asked in turn, step by step in the order of submission, and hears of every step that goes. Why a limit says no is a
Gate. It never decides what a step needs: only whether now is the time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from reconciler.memory import Attempt, End, StepMemory
from reconciler.model import DISK_QUOTA, Action, Condition, Desired, Job, Observed, Policy, Reason, Stage, Step, Verb
from reconciler.moments import shown

_LONGEST_ASIDE = 600.0  # s; cron's passes are five minutes apart, and a place that is free is not to stay so for long


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
        rule="limit",
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
    """A full disk fails every run that writes to it, and tears the checkpoint that it is in the midst of.

    Closed from the end of a job that met it until somebody releases that step (or the experiment), or a later job has left a
    result there. The step itself is for its own ladder to decide: a retry that the settings ask for tries the disk for all.
    """

    def __init__(
        self, desired: Desired, known: Mapping[str, StepMemory], filesystems: Mapping[str, int], released: int = 0
    ) -> None:
        self._filesystems = filesystems
        self._written = [(step, _last_written(known[step.key])) for step in desired.steps]
        ends = ((step, _last_end(known[step.key])) for step in desired.steps)
        self._failed = {
            step.key: step
            for step, end in ends
            if end is not None
            and end.failure == DISK_QUOTA
            and end.order > max(released, known[step.key].released, self._written_beside(step))
        }

    def refuses(self, step: Step) -> Gate | None:
        """A step that would write to a full disk, or to one that may be the same."""
        if step.key in self._failed:
            return None
        key = next((key for key in self._failed if self._may_share(key, step.key)), None)
        if key is None:
            return None
        where = f"the disk of {self._failed[key].output_dir} was full, or a quota there used up"
        message = f"{key} failed because {where}; make room, then release {key}"
        return Gate(Reason(DISK_QUOTA, message), needs_person=False)

    def takes(self, step: Step) -> None:
        """Takes no room that could be known."""

    def _may_share(self, one: str, other: str) -> bool:
        """What cannot be told apart waits together."""
        devices = self._filesystems.get(one), self._filesystems.get(other)
        return None in devices or devices[0] == devices[1]

    def _written_beside(self, step: Step) -> int:
        """The order of the last end of a job that left a result surely on the same filesystem; 0 for none. An evaluation's log of
        some kilobytes tells nothing of the room for a checkpoint."""
        device = self._filesystems.get(step.key)
        return max(
            (
                order
                for other, order in self._written
                if device is not None
                and self._filesystems.get(other.key) == device
                and other.stage in (step.stage, Stage.FINETUNE)
            ),
            default=0,
        )


def _last_end(memory: StepMemory) -> End | None:
    """How the last job of a step ended that did; another may be under way since."""
    return next((attempt.end for attempt in reversed(memory.attempts) if attempt.end is not None), None)


def _last_written(memory: StepMemory) -> int:
    end = _last_end(memory)
    return end.order if memory.done is not None and end is not None else 0


class SiteLimits:
    """A limit that the site has told of is met by every job of the same account, QOS and partition, until it takes one again.

    It is asked again after ``backoff``, then after as long as the limit has lasted, ten minutes at most; at once where a person
    has released the step, or asks for other resources by now.
    """

    def __init__(self, desired: Desired, known: Mapping[str, StepMemory], policy: Policy, now: float, released: int = 0) -> None:
        groups: dict[tuple[str, ...], list[tuple[Step, StepMemory]]] = {}
        for step in desired.steps:
            groups.setdefault(whose_limits(step), []).append((step, known[step.key]))
        gates = ((whose, _aside(members, policy, now, released)) for whose, members in groups.items())
        self._gates = {whose: gate for whose, gate in gates if gate is not None}

    def refuses(self, step: Step) -> Gate | None:
        """A step that is not asked for yet."""
        return self._gates.get(whose_limits(step))

    def takes(self, step: Step) -> None:
        """Whether the site takes it, only the site can tell."""


def whose_limits(step: Step) -> tuple[str, ...]:
    """What the site's limits on the number of jobs hang on; a limit that one job meets, others of the same do too."""
    return tuple(step.asks.get(option, "") for option in ("account", "qos", "partition"))


def _aside(members: Sequence[tuple[Step, StepMemory]], policy: Policy, now: float, released: int) -> Gate | None:
    """Why none of these is asked for now; None where the site took one since it told of a limit, or enough time has gone by."""
    kept = [last for step, memory in members if (last := memory.last) and _is_kept(last, step, max(released, memory.released))]
    taken = [attempt for _, memory in members for attempt in memory.attempts if attempt.job is not None]
    newest, accepted = (max(found, key=lambda attempt: attempt.order, default=None) for found in (kept, taken))
    if newest is None or (accepted is not None and accepted.order > newest.order):
        return None
    since = min(attempt.kept_since or attempt.at for attempt in kept)
    lasted = newest.at - max(since, accepted.at if accepted is not None else 0.0)
    delay = min(max(policy.backoff, lasted), _LONGEST_ASIDE)
    if abs(now - newest.at) >= delay:
        return None
    message = f"the site accepts no more jobs like this for now: {newest.limit}; asked again after {shown(newest.at + delay)}"
    return Gate(Reason("LimitReached", message), needs_person=False)


def _is_kept(last: Attempt, step: Step, released: int) -> bool:
    return last.limited and last.order > released and last.placement in ("", step.placement)


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
