"""What to do next: one action per step, each with its reason; a pure function of facts and ``now``.

Each step climbs the ladder by itself; then the limits that concern all steps together turn submissions into waits. It never
reads a clock, a disk or a cluster, and never acts. What a pass learned by comparing memory with the world (a job ended, a
submission is lost) comes back as events to be written down.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reconciler.budget import Bill, Budget, bill_of, uses_of
from reconciler.canary import Canary, Facts
from reconciler.failures import CANCELLED, INFRASTRUCTURE, NODE, is_slurms_word
from reconciler.ladder import climb, is_given_up, need_blocked
from reconciler.limits import Closed, FullDisk, Gate, InFlight, Limit, SiteLimits, in_turn, stopped
from reconciler.memory import End, Memory, StepMemory
from reconciler.model import (
    NEED_UNMET,
    NOT_SELECTED,
    OUTPUTS_MISSING,
    Action,
    Condition,
    Desired,
    Observed,
    Orphan,
    Policy,
    Reason,
    Stage,
    Step,
    Verb,
    names_step,
)
from reconciler.ownership import Ownership, whose_jobs
from reconciler.remedies import withhold_varied
from reconciler.situation import Situation, outgrow_batch, remember_edits, remember_ends, supersede

_ONE_NODE = re.compile(r"[A-Za-z0-9._-]+")
_ONE_FAILURE = 600.0  # s, within which jobs that a node takes with it ended by one failure


@dataclass(frozen=True)
class Plan:
    """One action per step, in document order; ``learned`` are events that hold whatever becomes of the actions. ``orphans`` are
    live jobs of steps that are not in the document any more: they are shown, and left alone. ``order`` has the steps' keys in the
    order of submission, ``bill`` what they cost before any of the actions. ``wave`` are the steps whose failures, with no success
    between them, stop submissions, ``avoided`` nodes that failed jobs, ``stopped_by`` codes of failures that stop others, even
    where a pause does so first."""

    actions: tuple[Action, ...]
    learned: tuple[Mapping[str, Any], ...] = ()
    orphans: tuple[Orphan, ...] = ()
    order: tuple[str, ...] = ()
    bill: Bill = field(default_factory=Bill)
    wave: tuple[str, ...] = ()
    avoided: tuple[str, ...] = ()
    stopped_by: frozenset[str] = frozenset()

    def of(self, key: str) -> Action:
        """The action of a step."""
        return next(action for action in self.actions if action.step == key)

    @property
    def converged(self) -> bool:
        """True when every step is done and nothing is left to write down."""
        return all(action.condition is Condition.DONE and not action.changes_something for action in self.actions)


def make_plan(
    desired: Desired,
    observed: Observed,
    memory: Memory,
    policy: Policy,
    now: float,
    gate: Gate | None = None,
    select: str = "*",
) -> Plan:
    """The actions that bring the world closer to what is desired. Deterministic, and independent of the order of jobs.

    ``gate`` is set where nothing may be submitted for a reason that lies outside the steps (another environment). Steps that
    ``select`` does not name are looked at and left alone.
    """
    desired = replace(desired, steps=withhold_varied(desired.steps, memory))
    ours = whose_jobs(desired, observed, memory)
    situations, known, decided = _climbed(desired, observed, memory, ours, policy, now)
    suspects = {s.step.key for s in situations if decided[s.step.key].reason.code == OUTPUTS_MISSING and is_given_up(s)}
    learned = [event for situation in situations for event in situation.learned]
    learned += _ends_of_dropped_steps(desired, observed, memory, ours, policy, now)
    decided = {key: _leave_alone(action, select) for key, action in decided.items()}
    nodes = failing_nodes(known, policy, memory.released)
    decided = _avoid_nodes(decided, nodes, known, desired)
    gate = _pause_gate(memory, now) or gate
    failed = failures_in_a_row(decided, known, memory, suspects)
    gate = gate or _names_gate(memory) or _wave_gate(failed, policy)
    desired = replace(desired, steps=tuple(replace(s, ask=s.ask.under(decided[s.key].options)) for s in desired.steps))
    order = in_turn(desired.steps, known)
    budget = Budget(policy, uses_of(desired, known, memory, ours, now))
    bill = bill_of(desired, decided, known, budget)
    disk = FullDisk(desired, known, observed.filesystems, memory.released)
    canary = Canary(Facts(desired, decided, known, ours, memory.released), policy.canary, now)
    kept = [
        found for step in order if decided[step.key].verb is Verb.SUBMIT for x in (disk, canary) if (found := x.refuses(step))
    ]
    limits: list[Limit] = [
        *([Closed(gate)] if gate else []),
        disk,
        canary,
        SiteLimits(desired, known, policy, now, memory.released),
        budget,
        InFlight(observed, policy),
    ]
    held_back = _hold_back(desired, decided, order, limits)
    actions = tuple(held_back[step.key] for step in desired.steps)
    wave = tuple(failed) if len(failed) >= policy.stop_after_failures else ()
    return Plan(
        actions,
        tuple(learned),
        ours.orphans,
        tuple(step.key for step in order),
        bill,
        wave,
        nodes,
        frozenset(gate.reason.code for gate in kept),
    )


def foresee(desired: Desired, observed: Observed, memory: Memory, policy: Policy, now: float) -> dict[str, Action]:
    """What would be decided for each step by itself, whatever limits concern all steps together, were this in writing."""
    desired = replace(desired, steps=withhold_varied(desired.steps, memory))
    return _climbed(desired, observed, memory, whose_jobs(desired, observed, memory), policy, now)[-1]


def _climbed(
    desired: Desired, observed: Observed, memory: Memory, ours: Ownership, policy: Policy, now: float
) -> tuple[list[Situation], dict[str, StepMemory], dict[str, Action]]:
    """What is known of each step, needs first, its memory with what the world newly tells, and its action."""
    situations = [_situation(step, observed, memory, ours, policy, now) for step in _needs_first(desired.steps)]
    known = {situation.step.key: situation.memory for situation in situations}
    return situations, known, _decide(situations, known, _readers(desired, known, ours))


def _situation(step: Step, observed: Observed, memory: Memory, ours: Ownership, policy: Policy, now: float) -> Situation:
    """What is known of one step, the ends included that the world newly tells."""
    occupants = {orphan.output_dir: orphan for orphan in ours.orphans if orphan.output_dir}
    situation = Situation(
        step,
        memory.of(step.key),
        ours.of(step.key),
        observed.outputs.get(step.key),
        observed,
        policy.of(step.tool),
        now,
        shared=ours.shared,
        occupant=occupants.get(str(step.output_dir)) if step.stage is Stage.FINETUNE else None,
        pause=memory.pause if memory.pause is not None and memory.pause.is_on(now) else None,
    )
    situation.memory = remember_ends(situation)
    situation.memory = remember_edits(situation)
    return situation


def _decide(situations: Sequence[Situation], known: Mapping[str, StepMemory], readers: Mapping[str, str]) -> dict[str, Action]:
    """Each step's action, needs first: what becomes of a step hangs on what was decided for the one before it."""
    decided: dict[str, Action] = {}
    for situation in situations:
        need = situation.step.need
        if need is not None and need in known:
            situation.need, situation.need_memory, situation.need_word = decided.get(need), known[need], known[need].word
        situation.reader = readers.get(situation.step.key, "")
        supersede(situation)
        outgrow_batch(situation)
        decided[situation.step.key] = climb(situation)
    return decided


def _readers(desired: Desired, known: Mapping[str, StepMemory], ours: Ownership) -> dict[str, str]:
    """For steps whose outputs others read: a job of those, or of an orphan of the run, that is live or may be, in words."""
    found: dict[str, str] = {}
    for step in desired.steps:
        if not step.sources:
            continue
        live = next((f"job {job.id} of {step.key}" for job in ours.of(step.key) if job.is_live), "")
        unsettled = f"a job of {step.key} that is not seen to have ended" if known[step.key].open else ""
        if live or unsettled:
            found.update(dict.fromkeys(step.sources, live or unsettled))
    runs = {orphan.step.partition("/")[0]: orphan for orphan in ours.orphans}
    for step in desired.steps:
        if step.stage is Stage.FINETUNE and step.run in runs:
            orphan = runs[step.run]
            found.setdefault(step.key, f"job {orphan.job.id} of {orphan.step}, which the document does not have,")
    return found


def _ends_of_dropped_steps(
    desired: Desired, observed: Observed, memory: Memory, ours: Ownership, policy: Policy, now: float
) -> list[Mapping[str, Any]]:
    """What the world tells of attempts whose step is not in the document any more: without it they would be in doubt for ever."""
    wanted = {step.key for step in desired.steps}
    learned: list[Mapping[str, Any]] = []
    for key, of_step in memory.steps.items():
        if key not in wanted and of_step.open:
            nothing = Step(key, "", Stage.FINETUNE, "", Path(), Path(), Path(), "", "")
            situation = Situation(nothing, of_step, ours.of(key), None, observed, policy, now)
            remember_ends(situation)
            learned += situation.learned
    return learned


def failing_nodes(known: Mapping[str, StepMemory], policy: Policy, released: int) -> tuple[str, ...]:
    """Nodes that failed jobs of this experiment so often that no more are sent there, since a person last released it as a whole:
    a node may have been mended. Jobs that one failure took count once, and none that did its work; where a job had several nodes,
    nothing tells which of them it was."""
    attempts = (attempt for memory in known.values() for attempt in memory.attempts)
    ends = [attempt.end for attempt in attempts if attempt.end is not None and attempt.end.order > released]
    failures: dict[str, list[float]] = {}
    for end in sorted(ends, key=lambda end: end.at):
        if end.failure in NODE and end.state != "COMPLETED" and _ONE_NODE.fullmatch(end.nodes):
            times = failures.setdefault(end.nodes, [])
            if not times or end.at - times[-1] > _ONE_FAILURE:
                times.append(end.at)
    return tuple(sorted(node for node, times in failures.items() if 0 < policy.exclude_after <= len(times)))


def _avoid_nodes(
    decided: Mapping[str, Action], nodes: Sequence[str], known: Mapping[str, StepMemory], desired: Desired
) -> dict[str, Action]:
    """Submissions keep away from nodes that fail jobs, and say so; not where that left no node that would do. What the script
    keeps away from stays excluded: sbatch takes its own option instead of the script's."""
    if not nodes:
        return dict(decided)
    own = {step.key: step.asks.get("exclude", "") for step in desired.steps}

    def avoiding(action: Action) -> Action:
        last = known[action.step].last
        was_refused = last is not None and last.refused is not None and "exclude" in last.options
        if action.verb is not Verb.SUBMIT or was_refused:
            return action
        if "/" in own[action.step]:  # a file of names, to which none can be added (man sbatch, --exclude)
            kept = f"does not keep away from {','.join(nodes)}: the script's --exclude is a file, {own[action.step]}"
            return replace(action, changes=(*action.changes, kept))
        listed = ",".join(filter(None, (own[action.step], *nodes)))
        told = (*action.changes, f"--exclude={listed}")
        return replace(action, options={**action.options, "exclude": listed}, changes=told)

    return {key: avoiding(action) for key, action in decided.items()}


def _leave_alone(action: Action, select: str) -> Action:
    """An act on a step that was not selected turns into a wait."""
    if not action.changes_something or names_step(select, action.step):
        return action
    reason = Reason(NOT_SELECTED, f"--select {select} leaves this step alone")
    idle = replace(action, verb=Verb.WAIT, condition=Condition.WAITING, reason=reason, move_aside=(), changes=())
    return replace(idle, release=False, hold_job=False, options={}, edits=(), reverts=(), rule="selection")


def _needs_first(steps: Sequence[Step]) -> list[Step]:
    """Each step after the one that it needs: a run may begin from what another one made."""
    needs = {step.key: step.need for step in steps}

    def depth(key: str) -> int:
        chain = [key]
        while (need := needs.get(chain[-1])) is not None and need not in chain:
            chain.append(need)
        return len(chain)

    return sorted(steps, key=lambda step: depth(step.key))


# --- limits that concern all steps together ----------------------------------------------------------


def _hold_back(
    desired: Desired, decided: Mapping[str, Action], order: Sequence[Step], limits: Sequence[Limit]
) -> dict[str, Action]:
    """Submissions that the experiment as a whole does not allow now become waits."""
    held_back = dict(decided)
    for step in order:
        if decided[step.key].verb is not Verb.SUBMIT:
            continue
        gate = next((found for limit in limits if (found := limit.refuses(step)) is not None), None)
        if gate is not None:
            held_back[step.key] = stopped(decided[step.key], gate)
            continue
        for limit in limits:
            limit.takes(step)
    for step in _needs_first(desired.steps):
        held_back[step.key] = _behind(held_back[step.key], held_back.get(step.need or ""))
    return held_back


def _behind(action: Action, need: Action | None) -> Action:
    """A step whose need does not go on by itself waits for the same person."""
    if action.reason.code != NEED_UNMET or need is None or need.is_pending:
        return action
    return replace(action, reason=need_blocked(need))


def _pause_gate(memory: Memory, now: float) -> Gate | None:
    """Before every other gate: while nothing is to start, nothing else needs a person."""
    if memory.pause is None or not memory.pause.is_on(now):
        return None
    return Gate(Reason("Paused", f"{memory.pause}; `reconcile resume` goes on"), needs_person=False)


def _names_gate(memory: Memory) -> Gate | None:
    if memory.names_kept is not False:
        return None
    message = "this site rewrites job names, so a job could not be recognised after a crash; nothing more is submitted"
    return Gate(Reason("NamesRewritten", message))


def _wave_gate(failed: Sequence[str], policy: Policy) -> Gate | None:
    if len(failed) < policy.stop_after_failures:
        return None
    named = ", ".join(failed[:3])
    message = (
        f"{len(failed)} steps failed with no success between them ({named}); look at them, then `reconcile release` the "
        "experiment, naming no step"
    )
    return Gate(Reason("ManyFailures", message))


def failures_in_a_row(
    decided: Mapping[str, Action], known: Mapping[str, StepMemory], memory: Memory, suspects: Container[str]
) -> list[str]:
    """Steps that failed since the last success or release.

    A job that Slurm says failed counts at once where it would be given up (``suspects``), before its outputs have settled: should
    they verify after all, it counts no more. Failures that are retried and cancellations are no fault of the work; a node that
    the log alone blames is in doubt, and counts until something succeeds, retried or not.
    """
    if any(action.verb is Verb.MARK_DONE for action in decided.values()):
        return []
    since = max([memory.released, *(m.done.order for m in known.values() if m.done is not None)])
    failed = []
    for key, action in decided.items():
        last = known[key].last_begun
        is_fault = last is not None and last.end is not None and last.end.order > since and _is_fault(last.end)
        is_over = action.condition is Condition.FAILED or key in suspects
        if (is_fault and is_over) or _blames_its_node(known[key], since):
            failed.append(key)
    return failed


def _is_fault(end: End) -> bool:
    return end.failure not in CANCELLED | INFRASTRUCTURE


def _blames_its_node(memory: StepMemory, since: int) -> bool:
    """The last job of a step to end says that its node was at fault, and Slurm does not say so."""
    end = next((attempt.end for attempt in reversed(memory.attempts) if attempt.end is not None), None)
    is_new = end is not None and end.order > max(since, memory.released)
    return is_new and end is not None and end.failure in NODE and not is_slurms_word(end.state, end.failure)
