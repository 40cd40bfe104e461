"""A person's word on steps: release, hold, cancel, accept, rerun.

Each verb is one event in the ledger, written under the pass's lock, plus what the cluster must do at once. What follows from
it is the next pass's to decide. Where the queue cannot be asked nothing is said and nothing is done: a job that
nobody sees can be neither cancelled nor held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from reconciler.errors import ClusterUnreachable, UsageError
from reconciler.experiment.load import load
from reconciler.ledger import Ledger
from reconciler.lock import pass_lock
from reconciler.loop import Pass, Scene, preview
from reconciler.memory import Attempt, Memory, StepMemory
from reconciler.model import Action, Condition, Desired, Job, Outputs, OutputState, Phase, Stage, Step, Unknown
from reconciler.situation import Ownership, whose_jobs
from reconciler.staleness import staleness


@dataclass(frozen=True)
class Order:
    """One verb on some steps. ``why`` is kept and shown. ``now`` lets ``rerun`` replace a running job; ``stale`` means of the
    steps only those whose result is of older things (staleness.py)."""

    verb: str
    steps: tuple[str, ...] = ()
    why: str = ""
    now: bool = False
    with_dependents: bool = False
    stale: bool = False


@dataclass(frozen=True)
class Prospect:
    """What an order would do, step by step, before it is given; ``asks`` where a person should confirm."""

    sentences: tuple[str, ...]
    asks: bool = False


@dataclass(frozen=True)
class Done:
    """What an order did; ``step`` is empty where it concerns the experiment as a whole."""

    step: str
    message: str


@dataclass(frozen=True)
class _Case:
    """One step before an order: how it stands, its jobs that have not ended, what its outputs amount to where that matters."""

    step: Step
    action: Action
    live: tuple[Job, ...]
    outputs: Outputs | None
    memory: StepMemory
    is_paused: bool

    @property
    def key(self) -> str:
        return self.step.key

    @property
    def queued(self) -> tuple[Job, ...]:
        """Its jobs that have not started."""
        return tuple(job for job in self.live if job.phase is Phase.QUEUED)

    @property
    def running(self) -> tuple[Job, ...]:
        """Its jobs that may be running: all that have not ended and are not surely in the queue."""
        return tuple(job for job in self.live if job.phase is not Phase.QUEUED)

    def attempt_of(self, job: Job) -> Attempt | None:
        """The attempt whose job it is, where that is in writing."""
        return next((a for a in self.memory.attempts if (a.job, a.name) == (job.id, job.name)), None)

    @property
    def held_by_word(self) -> tuple[Job, ...]:
        """Its held jobs that ``release`` lets go: a replacement that we submitted held is for a pass to judge."""
        attempts = ((job, self.attempt_of(job)) for job in self.queued if job.held)
        return tuple(job for job, attempt in attempts if attempt is None or not attempt.held)


@dataclass
class _Court:
    """One order being carried out."""

    scene: Scene
    ledger: Ledger
    order: Order
    done: list[Done] = field(default_factory=list)

    def tell(self, case: _Case, message: str) -> None:
        self.done.append(Done(case.key, message))

    def write(self, event: str, step: str, **facts: Any) -> None:
        self.ledger.append(event, step=step, user=self.scene.user, why=self.order.why, **facts)

    def hold(self, case: _Case) -> None:
        """Every queued job held, and remembered as held by this word: it ends with it. The intent comes first."""
        for job in case.queued:
            attempt = case.attempt_of(job)
            if attempt is not None:
                self.ledger.append("queue-holding", step=case.key, attempt=attempt.number)
            self.scene.backend.hold(job.id)
            if attempt is not None:
                self.ledger.append("queue-held", step=case.key, attempt=attempt.number)

    def let_go(self, case: _Case, jobs: Sequence[Job]) -> None:
        """Held jobs may start, and nothing remembers them as held by us."""
        for job in jobs:
            self.scene.backend.release(job.id)
            attempt = case.attempt_of(job)
            if attempt is not None and attempt.queue_hold:
                self.ledger.append("unheld", step=case.key, attempt=attempt.number)

    def cancel(self, jobs: Sequence[Job]) -> str:
        """Every one of the jobs cancelled; a few words of it, empty where there is none."""
        for job in jobs:
            self.scene.backend.cancel(job.id)
        return f"{named(jobs)} cancelled" if jobs else ""


def carry_out(scene: Scene, order: Order, confirm: Callable[[Prospect], bool]) -> tuple[Done, ...]:
    """Give an order; returns what was done, step by step. Nothing is done where ``confirm`` says no or a step refuses.

    Raises ClusterUnreachable where the queue cannot be asked, UsageError where the verb makes no sense for a step.
    """
    desired = load(scene.experiment, scene.tools, scene.disk)
    with pass_lock(desired.directory):
        cases = _look(scene, order)
        if order.stale and not cases:
            return (Done("", "no result is known to be of an older version"),)
        prospect = Prospect(
            tuple(_prospect(order, case, desired, [c.key for c in cases]) for case in cases),
            asks=order.verb == "rerun" and any(c.action.condition in (Condition.DONE, Condition.DRIFTED) for c in cases),
        )
        if not confirm(prospect):
            return ()
        court = _Court(scene, Ledger(desired.directory, scene.clock), order)
        for case in cases:
            _VERBS[order.verb](court, case)
    return tuple(court.done)


def _look(scene: Scene, order: Order) -> list[_Case]:
    """The steps that the order is about, as they stand now."""
    seen = look_at(scene)
    chosen = seen.desired.select(*order.steps)
    if order.stale:
        chosen = tuple(s for s in chosen if staleness(s, seen.memory.of(s.key), seen.memory.of(s.need) if s.need else None))
    if order.with_dependents:
        chosen = _with_dependents(seen.desired, chosen)
    ours = whose_jobs(seen.desired, seen.observed, seen.memory)
    if order.verb == "rerun":
        _refuse_under_live_dependents(seen.desired, chosen, ours)
        _refuse_without_checkpoint(seen.memory, chosen)
    is_about_outputs = order.verb in ("accept", "rerun")
    return [
        _Case(
            step,
            seen.plan.of(step.key),
            _live(ours, step),
            scene.tools[step.tool].check(step, scene.disk) if is_about_outputs and step.blocked is None else None,
            seen.memory.of(step.key),
            seen.memory.pause is not None and seen.memory.pause.is_on(seen.now),
        )
        for step in chosen
    ]


def look_at(scene: Scene) -> Pass:
    """The experiment as it stands; a job may be live although everything is done, submitted by hand. Raises ClusterUnreachable
    where the queue cannot be asked: no word is taken then."""
    seen = preview(scene, always_ask=True)
    if isinstance(seen.observed.queue, Unknown):
        raise ClusterUnreachable(f"the queue cannot be asked, and nothing was done: {seen.observed.queue.why}")
    return seen


def release_experiment(scene: Scene, why: str = "") -> tuple[Done, ...]:
    """Let submissions go on after a wave of failures."""
    desired = load(scene.experiment, scene.tools, scene.disk)
    with pass_lock(desired.directory):
        Ledger(desired.directory, scene.clock).append("release", user=scene.user, why=why)
    return (Done("", "submissions may go on"),)


def _live(ours: Ownership, step: Step) -> tuple[Job, ...]:
    return tuple(job for job in ours.of(step.key) if job.is_live)


def _refuse_under_live_dependents(desired: Desired, chosen: Sequence[Step], ours: Ownership) -> None:
    """An evaluation in flight would read a checkpoint that is moved aside and trained anew."""
    keys = {step.key for step in chosen}
    for step in desired.steps:
        live = _live(ours, step)
        if step.need in keys and step.key not in keys and live:
            message = f"{named(live)} of {step.key} needs it; say --with-dependents to replace that too, or wait for its end"
            raise UsageError(f"{step.need}: {message}")


def _refuse_without_checkpoint(memory: Memory, chosen: Sequence[Step]) -> None:
    """An evaluation of a checkpoint that was freed would only fail, after its old result was given up."""
    keys = {step.key for step in chosen}
    for step in chosen:
        freed = memory.of(step.need).freed if step.need is not None and step.need not in keys else None
        if freed is not None and step.epoch in freed.epochs:
            raise UsageError(f"{step.key}: its checkpoint is gone ({freed}); rerun {step.need} --with-dependents instead")


# --- what each verb does ------------------------------------------------------------------------------


def _prospect(order: Order, case: _Case, desired: Desired, chosen: Sequence[str]) -> str:
    """One sentence of what will happen; raises UsageError where the verb makes no sense for the step."""
    refusal = _refusal(order, case)
    if refusal is not None:
        raise UsageError(f"{case.key}: {refusal}")
    action = case.action
    if order.verb == "rerun":
        told = _rerun_told(case, [d.key for d in desired.steps if d.need == case.key and d.key not in chosen])
    else:
        told = _TOLD[order.verb](case)
    return f"{order.verb} {case.key} ({action.condition.value}: {action.reason.message}): {told}"


def _hold_told(case: _Case) -> str:
    if case.running:
        return f"{named(case.running)} runs on, and nothing follows it"
    return f"{named(case.queued)} is held until you release it" if case.queued else "it is not submitted until you release it"


def _release_told(case: _Case) -> str:
    if case.held_by_word and case.is_paused:
        return f"{named(case.held_by_word)} may start once the pause is over"
    if case.held_by_word:
        return f"{named(case.held_by_word)} may start"
    return "a person's word on it is lifted" if case.live else "decided afresh by the next pass, retries counted from zero"


def _cancel_told(case: _Case) -> str:
    held = "it is held until you release it"
    return f"{named(case.live)} is cancelled, and {held}" if case.live else held


def _accept_told(case: _Case) -> str:
    if case.queued:
        return f"{named(case.queued)} stands as it is"
    is_drifted = case.action.condition is Condition.DRIFTED
    return "its result stands under the new definition" if is_drifted else "its outputs count as done by your word"


_TOLD: dict[str, Callable[[_Case], str]] = {
    "hold": _hold_told,
    "release": _release_told,
    "cancel": _cancel_told,
    "accept": _accept_told,
}


def _rerun_told(case: _Case, others: Sequence[str]) -> str:
    step = case.step
    told = [f"{named(case.live)} is cancelled"] if case.live else []
    if step.stage is Stage.FINETUNE:
        told.append(f"what is in {step.output_dir} is moved aside")
    told.append("the next pass submits it again")
    if others:
        told.append(f"{', '.join(others)} depend on it and stay as they are without --with-dependents")
    return "; ".join(told)


def _refusal(order: Order, case: _Case) -> str | None:
    """Why the verb makes no sense for a step that stands like this; None where it does."""
    verb, step, action, running = order.verb, case.step, case.action, case.running
    if verb in ("rerun", "accept") and step.blocked is not None:
        return step.blocked.message
    if verb in ("hold", "cancel") and action.condition in (Condition.DONE, Condition.DRIFTED):
        return f"is done; there is nothing to {verb}"
    if verb == "rerun":
        if running and not order.now:
            return f"{named(running)} may be running; say --now to cancel it and start again"
        if action.condition is Condition.UNKNOWN and not case.live:
            return f"{action.reason.message}; nothing may be replaced before that is known"
        if step.stage is Stage.FINETUNE and step.script.is_relative_to(step.output_dir):
            return f"{step.output_dir} holds more than its outputs; move those away by hand"
    if verb == "accept" and running:
        return f"{named(running)} may be running; there is no result to accept yet"
    if verb == "accept" and not case.queued:
        return _why_not_acceptable(case)
    return None


def _why_not_acceptable(case: _Case) -> str | None:
    outputs, action = case.outputs, case.action
    if action.condition in (Condition.WAITING, Condition.UNKNOWN):
        return f"there is no result to accept ({action.reason.message})"
    if outputs is None or outputs.state is OutputState.UNKNOWN:
        return outputs.reason.message if outputs else "its outputs were not examined"
    if outputs.state is OutputState.ABSENT and action.condition not in (Condition.DRIFTED, Condition.DONE):
        return f"there are no outputs to accept ({outputs.reason.message})"
    return None


def _with_dependents(desired: Desired, chosen: Sequence[Step]) -> tuple[Step, ...]:
    keys = {step.key for step in chosen}
    return tuple(step for step in desired.steps if step.key in keys or step.need in keys)


def named(jobs: Sequence[Job]) -> str:
    """``job 7``, or ``jobs 7, 8``."""
    return f"job{'s' if len(jobs) > 1 else ''} {', '.join(job.id for job in jobs)}"


def _release(court: _Court, case: _Case) -> None:
    """A job that a pause would hold is the pause's from now on, and is let go with it."""
    held = case.held_by_word if case.action.reason.code in ("JobHeld", "HeldByPerson", "Paused") else ()
    court.write("release", case.key)
    if held and case.is_paused:
        for attempt in filter(None, map(case.attempt_of, held)):
            court.ledger.append("queue-held", step=case.key, attempt=attempt.number)
        court.tell(case, f"{named(held)} may start once the pause is over")
        return
    court.let_go(case, held)
    court.tell(case, f"{f'{named(held)} ' if held else ''}released, decided afresh by the next pass")


def _hold(court: _Court, case: _Case) -> None:
    court.write("hold", case.key)
    court.hold(case)
    what = f"{named(case.queued)} held" if case.queued else "held"
    court.tell(case, f"{what} until you release it" + ("; its job runs on" if case.live and not case.queued else ""))


def _cancel(court: _Court, case: _Case) -> None:
    """The word is written first: a job that was cancelled without it would look like a failure."""
    court.write("cancel", case.key)
    cancelled = court.cancel(case.live)
    court.tell(case, f"{f'{cancelled}, and ' if cancelled else ''}held until you release it")


def _accept(court: _Court, case: _Case) -> None:
    """A queued job stands as it is, also where its script asks for other resources by now; else the outputs count as done."""
    step = case.step
    if case.queued:
        court.write("placed", case.key, attempt=case.action.attempt, placement=step.placement)
        court.tell(case, f"{named(case.queued)} stands as it is")
        return
    evidence = [asdict(file) for file in case.outputs.evidence] if case.outputs else []
    if not evidence and case.memory.done is not None:
        evidence = [dict(file) for file in case.memory.done.evidence]  # what was verified then stands in writing
    court.write(
        "done",
        step.key,
        definition=step.definition,
        meaning=dict(step.meaning),
        inputs=dict(step.inputs),
        by_person=True,
        evidence=evidence,
    )
    court.tell(case, "accepted as done")


def _rerun(court: _Court, case: _Case) -> None:
    """The word first; what it replaces is cancelled now, and outputs are moved aside by the submission that follows."""
    court.write("rerun", case.key, newest=case.outputs.newest if case.outputs else None)
    cancelled = court.cancel(case.live)
    court.tell(case, f"{f'{cancelled}; ' if cancelled else ''}the next pass submits it again")


_VERBS: dict[str, Callable[[_Court, _Case], None]] = {
    "release": _release,
    "hold": _hold,
    "cancel": _cancel,
    "accept": _accept,
    "rerun": _rerun,
}
