"""A person's word: release, hold, cancel, accept, rerun, and who an experiment belongs to.

Each verb is one event in the ledger, written under the pass's lock, plus what the cluster or the disk must do at once. What
follows from it is the next pass's to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from reconciler.act import move_aside
from reconciler.errors import UsageError
from reconciler.experiment.load import load
from reconciler.ledger import Ledger
from reconciler.lock import pass_lock
from reconciler.loop import Scene, current_identity, environment_facts, preview
from reconciler.model import Action, Condition, Desired, OutputState, Stage, Step

_IN_QUEUE = (Condition.QUEUED, Condition.RUNNING)


@dataclass(frozen=True)
class Order:
    """One verb on some steps. ``why`` is kept and shown. ``now`` lets ``rerun`` replace a running job."""

    verb: str
    steps: tuple[str, ...]
    why: str = ""
    now: bool = False
    with_dependents: bool = False


@dataclass(frozen=True)
class Prospect:
    """What an order would do, step by step, before it is given; ``asks`` where a person should confirm."""

    sentences: tuple[str, ...]
    asks: bool = False


@dataclass
class _Court:
    """One order being carried out."""

    scene: Scene
    desired: Desired
    ledger: Ledger
    order: Order
    said: list[str] = field(default_factory=list)

    def write(self, event: str, step: str, **facts: Any) -> None:
        self.ledger.append(event, step=step, user=self.scene.user, why=self.order.why, **facts)


def select(desired: Desired, patterns: Sequence[str]) -> tuple[Step, ...]:
    """The steps that keys or globs name, in document order. Raises UsageError for a pattern that names none."""
    for pattern in patterns:
        if not any(fnmatchcase(step.key, pattern) for step in desired.steps):
            known = ", ".join(step.key for step in desired.steps[:5])
            raise UsageError(f"no step matches {pattern!r}; the steps are {known}{', …' if len(desired.steps) > 5 else ''}")
    return tuple(step for step in desired.steps if any(fnmatchcase(step.key, pattern) for pattern in patterns))


def carry_out(scene: Scene, order: Order, confirm: Callable[[Prospect], bool]) -> tuple[str, ...]:
    """Give an order; returns what was done, a sentence a step. Nothing is done where ``confirm`` says no or a step refuses."""
    desired = load(scene.experiment, scene.tools, scene.disk)
    with pass_lock(desired.directory):
        seen = preview(scene)
        chosen = select(seen.desired, order.steps)
        if order.with_dependents:
            chosen = _with_dependents(seen.desired, chosen)
        actions = {step.key: seen.plan.of(step.key) for step in chosen}
        prospect = Prospect(
            tuple(_prospect(order, step, actions[step.key], seen.desired, chosen) for step in chosen),
            asks=order.verb == "rerun" and any(a.condition in (Condition.DONE, Condition.DRIFTED) for a in actions.values()),
        )
        if not confirm(prospect):
            return ("nothing was done",)
        court = _Court(scene, seen.desired, Ledger(seen.desired.directory, scene.clock), order)
        for step in chosen:
            _VERBS[order.verb](court, step, actions[step.key])
    return tuple(court.said)


def release_experiment(scene: Scene) -> tuple[str, ...]:
    """Let submissions go on after a wave of failures."""
    desired = load(scene.experiment, scene.tools, scene.disk)
    with pass_lock(desired.directory):
        Ledger(desired.directory, scene.clock).append("release", user=scene.user)
    return (f"{desired.name}: submissions may go on",)


def accept_identity(scene: Scene, what: str) -> tuple[str, ...]:
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
    return (f"{desired.name}: reconciled from now on as {here.user} on {here.cluster} at {here.path}",)


# --- what each verb does ------------------------------------------------------------------------------


def _prospect(order: Order, step: Step, action: Action, desired: Desired, chosen: Sequence[Step]) -> str:
    """One sentence of what will happen; raises UsageError where the verb makes no sense for the step."""
    if order.verb in ("rerun", "accept") and step.blocked is not None:
        raise UsageError(f"{step.key}: {step.blocked.message}")
    if order.verb == "rerun" and action.condition is Condition.RUNNING and not order.now:
        raise UsageError(f"{step.key}: job {action.job} is running; say --now to cancel it and start again")
    if order.verb == "rerun" and action.condition is Condition.UNKNOWN:
        raise UsageError(f"{step.key}: {action.reason.message}; nothing may be replaced before that is known")
    if order.verb in ("hold", "cancel") and action.condition in (Condition.DONE, Condition.DRIFTED):
        raise UsageError(f"{step.key}: is done; there is nothing to {order.verb}")
    if order.verb == "accept" and action.condition in (Condition.RUNNING, Condition.WAITING, Condition.UNKNOWN):
        raise UsageError(f"{step.key}: there is no result to accept ({action.reason.message})")
    text = f"{order.verb} {step.key} ({action.condition.value}: {action.reason.message})"
    if order.verb == "rerun":
        if step.stage is Stage.FINETUNE:
            if step.script.is_relative_to(step.output_dir):
                raise UsageError(f"{step.key}: {step.output_dir} holds more than its outputs; move those away by hand")
            text += f"; what is in {step.output_dir} is moved aside"
        others = [d.key for d in desired.steps if d.need == step.key and d not in chosen]
        if others:
            text += f"; {', '.join(others)} depend on it and stay as they are without --with-dependents"
    return text


def _with_dependents(desired: Desired, chosen: Sequence[Step]) -> tuple[Step, ...]:
    keys = {step.key for step in chosen}
    return tuple(step for step in desired.steps if step.key in keys or step.need in keys)


def _release(court: _Court, step: Step, action: Action) -> None:
    court.write("release", step.key)
    if action.reason.code == "JobHeld" and action.job is not None:
        court.scene.backend.release(action.job)
    court.said.append(f"{step.key}: released, decided afresh by the next pass")


def _hold(court: _Court, step: Step, action: Action) -> None:
    court.write("hold", step.key)
    if action.condition is Condition.QUEUED and action.job is not None:
        court.scene.backend.hold(action.job)
    court.said.append(f"{step.key}: held until you release it")


def _cancel(court: _Court, step: Step, action: Action) -> None:
    """The word is written first: a job that was cancelled without it would look like a failure."""
    court.write("cancel", step.key)
    is_live = action.condition in _IN_QUEUE or action.reason.code in ("JobHeld", "DependencyNeverSatisfied", "SeveralJobs")
    if is_live and action.job is not None:
        court.scene.backend.cancel(action.job)
        court.said.append(f"{step.key}: job {action.job} cancelled, and held until you release it")
    else:
        court.said.append(f"{step.key}: held until you release it")


def _accept(court: _Court, step: Step, action: Action) -> None:
    outputs = court.scene.tools[step.tool].check(step, court.scene.disk)
    if outputs.state is OutputState.UNKNOWN:
        raise UsageError(f"{step.key}: {outputs.reason.message}")
    if outputs.state is OutputState.ABSENT and action.condition is not Condition.DRIFTED:
        raise UsageError(f"{step.key}: there are no outputs to accept ({outputs.reason.message})")
    court.write(
        "done",
        step.key,
        definition=step.definition,
        meaning=dict(step.meaning),
        by_person=True,
        evidence=[asdict(file) for file in outputs.evidence],
    )
    court.said.append(f"{step.key}: accepted as done")


def _rerun(court: _Court, step: Step, action: Action) -> None:
    """The word first; the job that it replaces is cancelled now, and outputs are moved aside by the submission that follows."""
    outputs = court.scene.tools[step.tool].check(step, court.scene.disk)
    court.write("rerun", step.key, newest=outputs.newest)
    cancelled = ""
    if action.condition in _IN_QUEUE and action.job is not None:
        court.scene.backend.cancel(action.job)
        cancelled = f"job {action.job} cancelled; "
    court.said.append(f"{step.key}: {cancelled}the next pass submits it again")


_VERBS: dict[str, Callable[[_Court, Step, Action], None]] = {
    "release": _release,
    "hold": _hold,
    "cancel": _cancel,
    "accept": _accept,
    "rerun": _rerun,
}
