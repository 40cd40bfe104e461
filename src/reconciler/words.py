"""A person's word: release, hold, cancel, accept, rerun, and who an experiment belongs to.

Each verb is one event in the ledger, written under the pass's lock, plus what the cluster must do at once. What follows from
it is the next pass's to decide. Where the queue cannot be asked nothing is said and nothing is done: a job that
nobody sees can be neither cancelled nor held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from reconciler.act import move_aside
from reconciler.errors import ClusterUnreachable, UsageError
from reconciler.experiment.load import load
from reconciler.ledger import Ledger
from reconciler.lock import pass_lock
from reconciler.loop import Scene, current_identity, environment_facts, preview
from reconciler.model import Action, Condition, Desired, Job, Outputs, OutputState, Phase, Stage, Step, Unknown
from reconciler.situation import Ownership, whose_jobs


@dataclass(frozen=True)
class Order:
    """One verb on some steps. ``why`` is kept and shown. ``now`` lets ``rerun`` replace a running job."""

    verb: str
    steps: tuple[str, ...] = ()
    why: str = ""
    now: bool = False
    with_dependents: bool = False


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

    @property
    def key(self) -> str:
        return self.step.key

    @property
    def queued(self) -> tuple[Job, ...]:
        """Its jobs that have not started."""
        return tuple(job for job in self.live if job.phase is Phase.QUEUED)


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

    def cancel(self, jobs: Sequence[Job]) -> str:
        """Every one of the jobs cancelled; a few words of it, empty where there is none."""
        for job in jobs:
            self.scene.backend.cancel(job.id)
        return f"{_named(jobs)} cancelled" if jobs else ""


def carry_out(scene: Scene, order: Order, confirm: Callable[[Prospect], bool]) -> tuple[Done, ...]:
    """Give an order; returns what was done, step by step. Nothing is done where ``confirm`` says no or a step refuses.

    Raises ClusterUnreachable where the queue cannot be asked, UsageError where the verb makes no sense for a step.
    """
    desired = load(scene.experiment, scene.tools, scene.disk)
    with pass_lock(desired.directory):
        cases = _look(scene, order)
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
    seen = preview(scene)
    if isinstance(seen.observed.queue, Unknown):
        raise ClusterUnreachable(f"the queue cannot be asked, and nothing was done: {seen.observed.queue.why}")
    chosen = seen.desired.select(*order.steps)
    if order.with_dependents:
        chosen = _with_dependents(seen.desired, chosen)
    ours = whose_jobs(seen.desired, seen.observed, seen.memory)
    if order.verb == "rerun":
        _refuse_under_live_dependents(seen.desired, chosen, ours)
    is_about_outputs = order.verb in ("accept", "rerun")
    return [
        _Case(
            step,
            seen.plan.of(step.key),
            _live(ours, step),
            scene.tools[step.tool].check(step, scene.disk) if is_about_outputs and step.blocked is None else None,
        )
        for step in chosen
    ]


def release_experiment(scene: Scene) -> tuple[Done, ...]:
    """Let submissions go on after a wave of failures."""
    desired = load(scene.experiment, scene.tools, scene.disk)
    with pass_lock(desired.directory):
        Ledger(desired.directory, scene.clock).append("release", user=scene.user)
    return (Done("", "submissions may go on"),)


def accept_identity(scene: Scene, what: str) -> tuple[Done, ...]:
    """A person's word on whose experiment this is: ``moved``, ``copied``, ``cluster``, ``user`` or ``environment``.

    A copy starts without memory: what the ledger tells of jobs belongs to the original. The old ledger is kept beside it.
    """
    desired = load(scene.experiment, scene.tools, scene.disk)
    with pass_lock(desired.directory):
        ledger = Ledger(desired.directory, scene.clock)
        known = ledger.memory().identity
        if known is None:
            raise UsageError(f"{desired.directory}: nothing is known of this experiment yet, so there is nothing to accept")
        if what == "copied":
            move_aside(ledger.path, scene.clock())
            ledger = Ledger(desired.directory, scene.clock)
        here = current_identity(scene, desired.directory)
        facts = {"cluster": here.cluster, "path": here.path, "user": here.user}
        ledger.append("opened", **facts, environment=environment_facts(scene.environment))
    return (Done("", f"reconciled from now on as {here.user} on {here.cluster} at {here.path}"),)


def _live(ours: Ownership, step: Step) -> tuple[Job, ...]:
    return tuple(job for job in ours.of(step.key) if job.is_live)


def _refuse_under_live_dependents(desired: Desired, chosen: Sequence[Step], ours: Ownership) -> None:
    """An evaluation in flight would read a checkpoint that is moved aside and trained anew."""
    keys = {step.key for step in chosen}
    for step in desired.steps:
        live = _live(ours, step)
        if step.need in keys and step.key not in keys and live:
            message = f"{_named(live)} of {step.key} needs it; say --with-dependents to replace that too, or wait for its end"
            raise UsageError(f"{step.need}: {message}")


# --- what each verb does ------------------------------------------------------------------------------


def _prospect(order: Order, case: _Case, desired: Desired, chosen: Sequence[str]) -> str:
    """One sentence of what will happen; raises UsageError where the verb makes no sense for the step."""
    refusal = _refusal(order, case)
    if refusal is not None:
        raise UsageError(f"{case.key}: {refusal}")
    step, action = case.step, case.action
    text = f"{order.verb} {case.key} ({action.condition.value}: {action.reason.message})"
    if order.verb == "rerun":
        if step.stage is Stage.FINETUNE:
            text += f"; what is in {step.output_dir} is moved aside"
        others = [d.key for d in desired.steps if d.need == step.key and d.key not in chosen]
        if others:
            text += f"; {', '.join(others)} depend on it and stay as they are without --with-dependents"
    return text


def _refusal(order: Order, case: _Case) -> str | None:
    """Why the verb makes no sense for a step that stands like this; None where it does."""
    verb, step, action = order.verb, case.step, case.action
    running = [job for job in case.live if job not in case.queued]
    if verb in ("rerun", "accept") and step.blocked is not None:
        return step.blocked.message
    if verb in ("hold", "cancel") and action.condition in (Condition.DONE, Condition.DRIFTED):
        return f"is done; there is nothing to {verb}"
    if verb == "rerun":
        if running and not order.now:
            return f"{_named(running)} may be running; say --now to cancel it and start again"
        if action.condition is Condition.UNKNOWN and not case.live:
            return f"{action.reason.message}; nothing may be replaced before that is known"
        if step.stage is Stage.FINETUNE and step.script.is_relative_to(step.output_dir):
            return f"{step.output_dir} holds more than its outputs; move those away by hand"
    if verb == "accept" and running:
        return f"{_named(running)} may be running; there is no result to accept yet"
    if verb == "accept" and not case.queued:
        return _why_not_acceptable(case)
    return None


def _why_not_acceptable(case: _Case) -> str | None:
    outputs, action = case.outputs, case.action
    if action.condition in (Condition.WAITING, Condition.UNKNOWN):
        return f"there is no result to accept ({action.reason.message})"
    if outputs is None or outputs.state is OutputState.UNKNOWN:
        return outputs.reason.message if outputs else "its outputs were not examined"
    if outputs.state is OutputState.ABSENT and action.condition is not Condition.DRIFTED:
        return f"there are no outputs to accept ({outputs.reason.message})"
    return None


def _with_dependents(desired: Desired, chosen: Sequence[Step]) -> tuple[Step, ...]:
    keys = {step.key for step in chosen}
    return tuple(step for step in desired.steps if step.key in keys or step.need in keys)


def _named(jobs: Sequence[Job]) -> str:
    return f"job{'s' if len(jobs) > 1 else ''} {', '.join(job.id for job in jobs)}"


def _release(court: _Court, case: _Case) -> None:
    court.write("release", case.key)
    held = [job for job in case.queued if job.held] if case.action.reason.code == "JobHeld" else []
    for job in held:
        court.scene.backend.release(job.id)
    court.tell(case, f"{f'{_named(held)} ' if held else ''}released, decided afresh by the next pass")


def _hold(court: _Court, case: _Case) -> None:
    court.write("hold", case.key)
    for job in case.queued:
        court.scene.backend.hold(job.id)
    what = f"{_named(case.queued)} held" if case.queued else "held"
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
        court.tell(case, f"{_named(case.queued)} stands as it is")
        return
    evidence = case.outputs.evidence if case.outputs else ()
    court.write(
        "done",
        step.key,
        definition=step.definition,
        meaning=dict(step.meaning),
        by_person=True,
        evidence=[asdict(file) for file in evidence],
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
