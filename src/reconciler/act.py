"""Carry out a plan: write down each intent, then do it, then write down what came of it.

It decides nothing. One step's refusal never stops the others; an interruption between any two lines leaves a ledger from
which the next pass goes on. Before each act it makes sure that the plan is still worth something: that it is not old, and that
nobody else has written to the ledger since.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from reconciler.batch_script import BatchScript, parse_batch_script
from reconciler.config_edit import Draft, draft_edits, make_edits, original_of, require_writable
from reconciler.errors import (
    ClusterUnreachable,
    ControllerFull,
    DiskUnreadable,
    LimitReached,
    NotSubmitted,
    PermanentError,
    SubmissionRefused,
    SubmissionUncertain,
    TemporaryError,
)
from reconciler.files import make_directory, move, read_file
from reconciler.holding import hold_job, let_go
from reconciler.interrupts import shielded
from reconciler.ledger import Ledger
from reconciler.limits import whose_limits
from reconciler.memory import Memory
from reconciler.model import Action, Condition, Desired, Edit, Observed, Policy, Reason, Stage, Step, Token, Verb
from reconciler.ownership import all_jobs
from reconciler.plan import Plan
from reconciler.ports import Backend, Submission
from reconciler.staleness import as_submitted

_ASIDE = "moved-aside-"


@dataclass(frozen=True)
class Outcome:
    """What became of an action: ``result`` is ``applied``, ``failed`` or ``unknown``; the action says how the step stands now."""

    action: Action
    result: str


@dataclass(frozen=True)
class World:
    """What acting needs at hand: the edges of one pass, and when it asked the cluster (epoch s)."""

    backend: Backend
    ledger: Ledger
    clock: Callable[[], float]
    lock: int
    policy: Policy
    looked_at: float
    say: Callable[[str], None]


def act(plan: Plan, desired: Desired, observed: Observed, memory: Memory, world: World) -> tuple[Outcome, ...]:
    """Do every action of a plan, results of the past first: adoptions and evidence before new submissions."""
    pass_ = _Pass(desired, observed, memory, world)
    for event in plan.learned if pass_.intrusion() is None else ():
        facts = {key: value for key, value in event.items() if key != "event"}
        world.ledger.append(event["event"], **facts)
    pass_.see_names()
    submissions = sorted((a for a in plan.actions if a.verb is Verb.SUBMIT), key=lambda a: plan.order.index(a.step))
    others = [a for a in plan.actions if a.verb is not Verb.SUBMIT]
    done = {action.step: pass_.do(action) for action in [*others, *submissions]}
    return tuple(done[action.step] for action in plan.actions)


class _Pass:
    """One pass's submissions share a stagger, the limits once met, and the first read-back of a job's name."""

    def __init__(self, desired: Desired, observed: Observed, memory: Memory, world: World) -> None:
        self._desired = desired
        self._observed = observed
        self._memory = memory
        self._world = world
        self._names_kept = memory.names_kept
        self._stopped: Reason | None = None
        self._limited: dict[tuple[str, ...], Reason] = {}
        begins = [attempt.begins for of_step in memory.steps.values() for attempt in of_step.attempts]
        # Never later than so many submissions can have made it: a clock may have been days ahead for a while.
        latest = world.clock() + world.policy.stagger * len(begins)
        self._eligible_at = min(max(begins, default=0.0) + world.policy.stagger, latest)

    def see_names(self) -> None:
        """An earlier submission that is shown under its name settles what could not be read back at once: squeue may lag."""
        if self._names_kept is None and self.obstacle() is None:
            shown = {(job.id, job.name) for job in all_jobs(self._observed)}
            ours = (a for of_step in self._memory.steps.values() for a in of_step.attempts if not a.by_hand)
            if any((attempt.job, attempt.name) in shown for attempt in ours):
                self._names_kept = True
                self._world.ledger.append("names", kept=True)

    def step(self, action: Action) -> Step:
        found = self._desired.step(action.step)
        assert found is not None
        return found

    def obstacle(self) -> Reason | None:
        """Why the cluster may be told nothing any more on what this pass saw; None where it may. A lock that lies, or a pass that
        stood still, may have let others in."""
        stood = abs(self._world.clock() - self._world.looked_at)
        if stood > self._world.policy.look_lasts:
            return Reason("LookedTooLongAgo", f"this pass looked at the world {stood:.0f} s ago; the next one looks again")
        return self.intrusion()

    def intrusion(self) -> Reason | None:
        """Why nothing may even be written down: what is in writing may be another pass's by now."""
        try:
            if not self._world.ledger.is_left_alone():
                message = (
                    "something else wrote to the ledger during this pass, although it has the lock; the next one looks again"
                )
                return Reason("NotAlone", message)
        except DiskUnreadable as error:
            return Reason("DiskUnknown", str(error))
        return None

    def do(self, action: Action) -> Outcome:
        """One action, whole: an interrupt comes before it or after it."""
        with shielded():
            why = self.obstacle() if action.tells_cluster else self.intrusion() if action.changes_something else None
            return self._do(action, self.step(action)) if why is None else _unknown(action, why)

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
            elif (action.hold_job or action.release) and action.job is not None:
                tell = hold_job if action.hold_job else let_go
                tell(self._world.ledger, self._world.backend, step.key, action.attempt, action.job)
        except ClusterUnreachable as error:
            return _waiting(action, "QueueUnknown", str(error), "unknown")
        return Outcome(action, "applied")

    # --- submission

    def _submit(self, action: Action, step: Step) -> Outcome:
        """The intent is on disk before anything is submitted: without it a crash could lose a job. Then the attempt is claimed:
        of passes that overlap all the same, one alone gets it."""
        try:
            script = parse_batch_script(step.script, _text(step.script))
            stopped = self._stopped or self._limited.get(whose_limits(step))
            if stopped is not None:
                return _waiting(action, stopped.code, stopped.message, "failed")
            drafts = self._drafts(action, step)
        except (OSError, DiskUnreadable) as error:
            return _waiting(action, "DiskUnknown", str(error), "failed")
        except PermanentError as error:
            held = replace(action, verb=Verb.HOLD, condition=Condition.HELD, reason=Reason("EditRefused", str(error)))
            return Outcome(held, "failed")
        token = self._write_intent(action, step, script)
        if not self._world.ledger.claim(str(token)):
            return self._stop(
                action, Reason("NotAlone", f"another pass set out to submit {token}; the next one looks for its job")
            )
        why = self.obstacle()
        if why is not None:
            return self._stop(action, why)
        try:
            why = self._move_aside(action, step)
            if why is not None:
                return self._stop(action, why)
            self._edit(action, step, drafts)
            _make_room_for_logs(script)  # they may be in a directory that was moved aside
        except (OSError, DiskUnreadable, TemporaryError) as error:
            self._world.ledger.append("withdrawn", step=step.key, attempt=action.attempt)
            return _waiting(action, "DiskUnknown", str(error), "failed")
        why = self.obstacle()
        if why is not None:
            return self._stop(action, why)
        is_ours_to_begin = not action.held and script.find("begin") is None  # sbatch takes its option instead of the script's
        job = Submission(
            step.script,
            token.job_name(script.job_name),
            begin_in=max(0, round(self._eligible_at - self._world.clock())) if is_ours_to_begin else 0,
            held=action.held,
            requeue=step.requeue or self._world.policy.requeue,
            options=action.options,
            keep_open=(self._world.lock,),
        )
        return self._hand_over(action, step, job)

    def _stop(self, action: Action, why: Reason) -> Outcome:
        """Nothing more is submitted by this pass. The attempt stays unconfirmed: it may be another pass's."""
        self._stopped = why
        return _unknown(action, why)

    def _write_intent(self, action: Action, step: Step, script: BatchScript) -> Token:
        assert action.attempt is not None
        token = Token.of(self._desired.directory, step.key, action.attempt)
        self._eligible_at = max(self._eligible_at, self._world.clock())
        self._world.ledger.append(
            "intent",
            step=step.key,
            attempt=action.attempt,
            name=token.job_name(script.job_name),
            begins=self._eligible_at,
            held=action.held,
            definition=step.definition,
            placement=step.placement,
            output_dir=str(step.output_dir),
            options=dict(action.options),
            from_epoch=action.from_epoch,
            **_batch_after(step, (*action.edits, *action.reverts)),
            ask=asdict(step.ask.under(action.options)),
            **_made_from(step),
        )
        return token

    def _hand_over(self, action: Action, step: Step, job: Submission) -> Outcome:
        ledger, attempt = self._world.ledger, action.attempt
        try:
            job_id = self._world.backend.submit(job)
        except LimitReached as error:
            ledger.append("limited", step=step.key, attempt=attempt, message=str(error))
            reason = Reason("LimitReached", f"the site accepts no more jobs like this for now: {error}")
            self._limited[whose_limits(step)] = reason
            self._stopped = reason if isinstance(error, ControllerFull) else None
            return _waiting(action, reason.code, reason.message, "failed")
        except NotSubmitted as error:
            ledger.append("withdrawn", step=step.key, attempt=attempt)
            self._stopped = Reason("MachineShort", f"nothing can be submitted from here for now: {error}")
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
        self._eligible_at += self._world.policy.stagger
        self._read_name_back(job_id, job.name)
        why = "" if action.reason.code == "NotStarted" else f": {action.reason.message}"
        reason = Reason("Submitted", f"submitted as job {job_id}{why}")
        return Outcome(replace(action, job=job_id, condition=Condition.QUEUED, reason=reason), "applied")

    def _read_name_back(self, job_id: str, name: str) -> None:
        """Once an experiment: a site that rewrites job names would make our jobs unrecognisable after a crash."""
        if self._names_kept is not None:
            return
        try:
            shown = [job.name for job in self._world.backend.queue() if job.id == job_id]
        except ClusterUnreachable:
            shown = []
        if not shown:
            self._stopped = Reason("NameUnconfirmed", "the first job's name could not be read back yet; the next pass goes on")
            return
        self._names_kept = name in shown  # an id may be shown twice: it came back, or is another cluster's too
        self._world.ledger.append("names", kept=self._names_kept)
        if not self._names_kept:
            self._stopped = Reason("NamesRewritten", f"the site shows job {job_id} as {shown[-1]!r} instead of {name!r}")

    def _move_aside(self, action: Action, step: Step) -> Reason | None:
        """What was in the way may be another pass's result by the time it is moved: then it is put back, and why is returned."""
        for path in [part for torn in action.move_aside for part in _parts_of(torn)]:
            destination = move_aside(path, self._world.clock())
            why = self.obstacle()
            if why is not None:
                if not os.path.lexists(path):
                    move(destination, path)
                return why
            self._world.ledger.append("moved", step=step.key, path=str(path), to=str(destination))
        return None

    def _edit(self, action: Action, step: Step, drafts: Sequence[Draft]) -> None:
        """An edit is in writing before it is made, and one that takes it back after that: whatever a crash leaves, the next pass
        sees in the file whether it was made, and knows that it was ours."""
        self._note_edits(action.edits, step)
        for draft in drafts:
            make_edits(draft, self._original(draft.path, step))
        self._note_edits(action.reverts, step)

    def _drafts(self, action: Action, step: Step) -> list[Draft]:
        """What the configurations will be, before anything else is touched. Raises PermanentError where they cannot be that."""
        edits, drafts = (*action.edits, *action.reverts), []
        for path in dict.fromkeys(edit.path for edit in edits):
            of_file = [edit for edit in edits if edit.path == path]
            drafts.append(draft_edits(path, of_file))
            require_writable(drafts[-1], self._original(path, step), of_file)
        return drafts

    def _original(self, path: Path, step: Step) -> Path:
        return original_of(self._desired.directory, step.run, path)

    def _note_edits(self, edits: Sequence[Edit], step: Step) -> None:
        for edit in edits:
            facts = {"path": str(edit.path), "key": edit.key, "before": edit.before, "after": edit.after}
            self._world.ledger.append("edited", step=step.key, **facts)

    # --- the past

    def _cancel(self, action: Action, step: Step) -> None:
        """A job that is cancelled before it could start is no attempt that failed. The intent first: a job that nothing in
        writing has us cancel would look as if a person had."""
        assert action.job is not None
        is_held = any(job.id == action.job and job.held for job in all_jobs(self._observed))
        if is_held:
            self._world.ledger.append("withdrawing", step=step.key, attempt=action.attempt)
        self._world.backend.cancel(action.job)
        if is_held:
            self._world.ledger.append("withdrawn", step=step.key, attempt=action.attempt)

    def _adopt(self, action: Action, step: Step) -> None:
        job = next(job for job in all_jobs(self._observed) if job.id == action.job)
        self._world.ledger.append(
            "adopted",
            step=step.key,
            attempt=action.attempt,
            job=job.id,
            name=job.name,
            by_hand=Token.parse(job.name) is None,
            begun=job.submitted,
            definition=step.definition,
            placement=step.placement,
            output_dir=str(step.output_dir),
            **_batch_after(step, ()),
            ask=asdict(step.ask),
            **_made_from(step),
        )

    def _mark_done(self, action: Action, step: Step) -> None:
        """A result is of the script that its job was submitted with, whatever became of that since."""
        made = as_submitted(step, self._memory.of(step.key).last_begun)
        self._world.ledger.append(
            "done",
            step=step.key,
            definition=made.definition,
            meaning=dict(made.meaning),
            inputs=dict(made.inputs),
            evidence=[asdict(file) for file in self._observed.outputs[step.key].evidence],
        )


def _parts_of(path: Path) -> list[Path]:
    """What is moved for a path: itself, or all that is in it where it is a link, so that the next outputs go to the same disk."""
    return [part for part in sorted(path.iterdir()) if not part.name.startswith(_ASIDE)] if path.is_symlink() else [path]


def move_aside(path: Path, now: float) -> Path:
    """Rename ``path`` to ``moved-aside-<time>/<name>`` beside it; nothing is ever deleted or overwritten.

    The name itself stays, and out of the way: a trainer that resumes looks for anything beginning with ``epoch_``.
    """
    for suffix in range(1000):
        destination = path.parent / f"{_ASIDE}{int(now)}{f'-{suffix}' if suffix else ''}" / path.name
        if not os.path.lexists(destination):
            move(path, destination)
            return destination
    raise DiskUnreadable(f"{path}: no free name to move it aside to")


def _make_room_for_logs(script: BatchScript) -> None:
    """The directories of the script's output files: Slurm makes none, and a job without them dies at its start. Where none may be
    made here, today or tomorrow, it may be there on the node; else the job dies of it, a failure that a person hears of."""
    for option in ("output", "error"):
        directory = script.directory_of(option)
        if directory is not None:
            try:
                make_directory(directory, parents=True)
            except OSError as error:
                if error.errno not in _NOT_TO_BE_MADE:
                    raise


_NOT_TO_BE_MADE = {errno.EEXIST, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS}


def _batch_after(step: Step, edits: Sequence[Edit]) -> dict[str, dict[str, str]]:
    """The batch that the job will have; a setting that we change to no plain number is left out, and so is unknown."""
    changed = {edit.key: edit.after or "" for edit in edits}
    batch = {key: changed.get(key, value) for key, value in step.batch.items()}
    known = {key: value for key, value in batch.items() if key not in changed or value.isdecimal()}
    return {"batch": known} if known else {}


def _made_from(step: Step) -> dict[str, Any]:
    """What a job has as of its submission: sbatch copies the script. A fine-tune's configuration is read when it begins."""
    if step.stage is Stage.EVALUATION:
        return {"meaning": dict(step.meaning), "inputs": dict(step.inputs)}
    script = step.script.name
    return {"meaning": {script: step.meaning[script]}, "commands": step.commands} if script in step.meaning else {}


def _text(script: Path) -> str:
    try:
        return read_file(script).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise DiskUnreadable(f"{script}: {error.strerror}") from error


def _unknown(action: Action, why: Reason) -> Outcome:
    """Not done on what this pass saw: nobody knows how the step stands now."""
    return Outcome(replace(action, verb=Verb.WAIT, condition=Condition.UNKNOWN, reason=why), "unknown")


def _waiting(action: Action, code: str, message: str, result: str) -> Outcome:
    return Outcome(replace(action, verb=Verb.WAIT, condition=Condition.WAITING, reason=Reason(code, message)), result)
