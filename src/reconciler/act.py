"""Carry out a plan: write down each intent, then do it, then write down what came of it.

It decides nothing. One step's refusal never stops the others; an interruption between any two lines leaves a ledger from
which the next pass goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from reconciler.batch_script import parse_batch_script
from reconciler.errors import (
    ClusterUnreachable,
    DiskUnreadable,
    LimitReached,
    SubmissionRefused,
    SubmissionUncertain,
)
from reconciler.files import move
from reconciler.interrupts import shielded
from reconciler.ledger import Ledger
from reconciler.memory import Memory
from reconciler.model import Action, Condition, Desired, Observed, Reason, Stage, Step, Token, Verb
from reconciler.plan import Plan
from reconciler.ports import Backend, Disk, Submission
from reconciler.situation import all_jobs


@dataclass(frozen=True)
class Outcome:
    """What became of an action: ``result`` is ``applied``, ``failed`` or ``unknown``; the action says how the step stands now."""

    action: Action
    result: str


@dataclass(frozen=True)
class World:
    """What acting needs at hand: the edges of one pass."""

    backend: Backend
    disk: Disk
    ledger: Ledger
    clock: Callable[[], float]
    lock: int
    stagger: float
    requeue: bool
    say: Callable[[str], None]


def act(plan: Plan, desired: Desired, observed: Observed, memory: Memory, world: World) -> tuple[Outcome, ...]:
    """Do every action of a plan, results of the past first: adoptions and evidence before new submissions."""
    for event in plan.learned:
        facts = {key: value for key, value in event.items() if key != "event"}
        world.ledger.append(event["event"], **facts)
    pass_ = _Pass(desired, observed, memory, world)
    ordered = sorted(plan.actions, key=lambda action: action.verb is Verb.SUBMIT)
    submissions = sorted((a for a in ordered if a.verb is Verb.SUBMIT), key=lambda a: pass_.step(a).stage is not Stage.EVALUATION)
    done = {action.step: pass_.do(action) for action in [*(a for a in ordered if a.verb is not Verb.SUBMIT), *submissions]}
    return tuple(done[action.step] for action in plan.actions)


class _Pass:
    """One pass's submissions share a stagger, a limit once met, and the first read-back of a job's name."""

    def __init__(self, desired: Desired, observed: Observed, memory: Memory, world: World) -> None:
        self._desired = desired
        self._observed = observed
        self._memory = memory
        self._world = world
        self._names_kept = memory.names_kept
        self._stopped: Reason | None = None
        self._eligible_at = max((a.begins + world.stagger for m in memory.steps.values() for a in m.attempts), default=0.0)

    def step(self, action: Action) -> Step:
        found = self._desired.step(action.step)
        assert found is not None
        return found

    def do(self, action: Action) -> Outcome:
        """One action, whole: an interrupt comes before it or after it."""
        with shielded():
            return self._do(action, self.step(action))

    def _do(self, action: Action, step: Step) -> Outcome:
        try:
            if action.verb is Verb.SUBMIT:
                return self._submit(action, step)
            if action.verb is Verb.ADOPT:
                self._adopt(action, step)
            elif action.verb is Verb.MARK_DONE:
                self._mark_done(action, step)
            elif action.verb is Verb.CANCEL and action.job is not None:
                self._cancel(action, step)
            elif action.hold_job and action.job is not None:
                self._hold(action, step)
            elif action.release and action.job is not None:
                self._world.backend.release(action.job)
                self._world.ledger.append("unheld", step=step.key, attempt=action.attempt)
        except ClusterUnreachable as error:
            return _waiting(action, "QueueUnknown", str(error), "unknown")
        return Outcome(action, "applied")

    # --- submission

    def _submit(self, action: Action, step: Step) -> Outcome:
        if self._stopped is not None:
            return _waiting(action, self._stopped.code, self._stopped.message, "failed")
        try:
            self._prepare(action, step)
        except (OSError, DiskUnreadable) as error:
            return _waiting(action, "DiskUnknown", str(error), "failed")
        name = self._write_intent(action, step)
        job = Submission(
            step.script,
            name,
            begin_in=0 if action.held else max(0, round(self._eligible_at - self._world.clock())),
            held=action.held,
            requeue=step.requeue or self._world.requeue,
            keep_open=(self._world.lock,),
        )
        return self._hand_over(action, step, job)

    def _write_intent(self, action: Action, step: Step) -> str:
        """The intent is on disk before anything is submitted: without it a crash could lose a job."""
        assert action.attempt is not None
        script = parse_batch_script(step.script, _text(step.script))
        name = Token.of(self._desired.directory, step.key, action.attempt).job_name(script.job_name)
        self._eligible_at = max(self._eligible_at, self._world.clock())
        self._world.ledger.append(
            "intent",
            step=step.key,
            attempt=action.attempt,
            name=name,
            begins=self._eligible_at,
            held=action.held,
            definition=step.definition,
            placement=step.placement,
            output_dir=str(step.output_dir),
            **_made_from(step),
        )
        return name

    def _hand_over(self, action: Action, step: Step, job: Submission) -> Outcome:
        ledger, attempt = self._world.ledger, action.attempt
        try:
            job_id = self._world.backend.submit(job)
        except LimitReached as error:
            ledger.append("limited", step=step.key, attempt=attempt, message=str(error))
            self._stopped = Reason("LimitReached", f"the site accepts no more jobs for now: {error}")
            return _waiting(action, self._stopped.code, self._stopped.message, "failed")
        except SubmissionRefused as error:
            ledger.append("refused", step=step.key, attempt=attempt, message=str(error))
            return _waiting(action, "SubmissionRefused", f"refused: {error}", "failed")
        except (SubmissionUncertain, ClusterUnreachable) as error:
            self._stopped = Reason("ClusterUnreachable", f"the submission of {step.key} is unconfirmed: {error}")
            unknown = replace(action, condition=Condition.UNKNOWN, reason=Reason("Unconfirmed", str(error)))
            return Outcome(unknown, "unknown")
        ledger.append("submitted", step=step.key, attempt=attempt, job=job_id)
        self._world.say(f"{step.key}: submitted as job {job_id}")
        self._eligible_at += self._world.stagger
        self._read_name_back(job_id, job.name)
        reason = Reason("Submitted", f"submitted as job {job_id}: {action.reason.message}")
        return Outcome(replace(action, job=job_id, condition=Condition.QUEUED, reason=reason), "applied")

    def _read_name_back(self, job_id: str, name: str) -> None:
        """Once an experiment: a site that rewrites job names would make our jobs unrecognisable after a crash."""
        if self._names_kept is not None:
            return
        try:
            shown = next((job.name for job in self._world.backend.queue() if job.id == job_id), None)
        except ClusterUnreachable:
            shown = None
        if shown is None:
            self._stopped = Reason("NameUnconfirmed", "the first job's name could not be read back yet; the next pass goes on")
            return
        self._names_kept = shown == name
        self._world.ledger.append("names", kept=self._names_kept)
        if not self._names_kept:
            self._stopped = Reason("NamesRewritten", f"the site shows job {job_id} as {shown!r} instead of {name!r}")

    def _prepare(self, action: Action, step: Step) -> None:
        for path in action.move_aside:
            destination = move_aside(path, self._world.clock())
            self._world.ledger.append("moved", step=step.key, path=str(path), to=str(destination))
        script = parse_batch_script(step.script, _text(step.script))
        for option in ("output", "error"):
            directory = script.directory_of(option)
            if directory is not None:
                directory.mkdir(parents=True, exist_ok=True)

    # --- the past

    def _cancel(self, action: Action, step: Step) -> None:
        """A job that is cancelled before it could start is no attempt that failed."""
        assert action.job is not None
        self._world.backend.cancel(action.job)
        if any(job.id == action.job and job.held for job in all_jobs(self._observed)):
            self._world.ledger.append("withdrawn", step=step.key, attempt=action.attempt)

    def _hold(self, action: Action, step: Step) -> None:
        """The intent first: a hold that nothing in writing tells of would look like a person's, and never be released."""
        assert action.job is not None
        self._world.ledger.append("queue-holding", step=step.key, attempt=action.attempt)
        self._world.backend.hold(action.job)
        self._world.ledger.append("queue-held", step=step.key, attempt=action.attempt)

    def _adopt(self, action: Action, step: Step) -> None:
        job = next(job for job in all_jobs(self._observed) if job.id == action.job)
        self._world.ledger.append(
            "adopted",
            step=step.key,
            attempt=action.attempt,
            job=job.id,
            name=job.name,
            by_hand=Token.parse(job.name) is None,
            definition=step.definition,
            placement=step.placement,
            output_dir=str(step.output_dir),
            **_made_from(step),
        )

    def _mark_done(self, action: Action, step: Step) -> None:
        """A fine-tune's outputs tell what they were launched from; an evaluation is what its script was when submitted."""
        last = self._memory.of(step.key).last
        was_submitted = step.stage is Stage.EVALUATION and last is not None and bool(last.definition)
        definition = last.definition if was_submitted and last is not None else step.definition
        meaning = dict(step.meaning) if definition == step.definition else dict(last.meaning) if last is not None else {}
        inputs = dict(last.inputs) if was_submitted and last is not None else dict(step.inputs)
        self._world.ledger.append(
            "done",
            step=step.key,
            definition=definition,
            meaning=meaning,
            inputs=inputs,
            evidence=[asdict(file) for file in self._observed.outputs[step.key].evidence],
        )


def move_aside(path: Path, now: float) -> Path:
    """Rename ``path`` to ``moved-aside-<time>/<name>`` beside it; nothing is ever deleted or overwritten.

    The name itself stays, and out of the way: a trainer that resumes looks for anything beginning with ``epoch_``.
    """
    for suffix in range(1000):
        destination = path.parent / f"moved-aside-{int(now)}{f'-{suffix}' if suffix else ''}" / path.name
        if not os.path.lexists(destination):
            move(path, destination)
            return destination
    raise DiskUnreadable(f"{path}: no free name to move it aside to")


def _made_from(step: Step) -> dict[str, dict[str, str]]:
    """What an evaluation is made from, as of its submission; a fine-tune's outputs tell it themselves."""
    return {"meaning": dict(step.meaning), "inputs": dict(step.inputs)} if step.stage is Stage.EVALUATION else {}


def _text(script: Path) -> str:
    try:
        return script.read_text("utf-8", "surrogateescape")
    except OSError as error:
        raise DiskUnreadable(f"{script}: {error.strerror}") from error


def _waiting(action: Action, code: str, message: str, result: str) -> Outcome:
    return Outcome(replace(action, verb=Verb.WAIT, condition=Condition.WAITING, reason=Reason(code, message)), result)
