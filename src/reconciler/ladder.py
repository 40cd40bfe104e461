"""The rules by which one step's next action is decided, in the order in which they are tried; pure.

Each rule is a short function from a Situation to an action, or None where it has nothing to say. ``climb`` tries them from the
first; the comment of a rule says why it stands where it does.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace

from reconciler.batch_script import log_paths
from reconciler.failures import CANCELLED, class_of_refusal, sentence
from reconciler.memory import CLOCK_SKEW, LATEST, Attempt, Done, Rerun, StepMemory, Word
from reconciler.model import (
    NEED_BLOCKED,
    NEED_UNMET,
    NOT_SELECTED,
    OUTPUTS_MISSING,
    Action,
    Condition,
    Job,
    Outputs,
    OutputState,
    Phase,
    Policy,
    Reason,
    Stage,
    Token,
    Unknown,
    Verb,
    digest,
)
from reconciler.pending import never_starts, tell
from reconciler.plain_values import sealed
from reconciler.queue_holds import watch_hold
from reconciler.remedies import Remedy, advanced, remedy_for, suggestion
from reconciler.situation import Situation, attempt_of
from reconciler.staleness import as_submitted, changed_since, drift, is_trained_anew, outdated_inputs, shortened

_MAX_REFUSALS = 3
_MAX_BACKOFF = 3600.0
_MAX_DOUBLINGS = 60  # of one second, more than the age of the universe; a thousand are more than a float holds
_MAX_CLOCK_AHEAD = 3600.0  # s, of a file server before this host

Rule = Callable[[Situation], Action | None]


def climb(situation: Situation) -> Action:
    """The action of the first rule that has one; the last rule always has."""
    return next(replace(action, rule=name) for name, rule in _RULES if (action := rule(situation)) is not None)


def is_given_up(s: Situation) -> bool:
    """True where a job that Slurm says failed is not to be followed by another, should its outputs stay missing."""
    last = s.memory.last_begun
    has_failed = last is not None and last.end is not None and last.end.state != "COMPLETED"
    return has_failed and _are_retries_spent(s) is not None


def _is_done(s: Situation) -> Action | None:
    """First, so that a finished step costs nothing and survives the loss of everything else."""
    done = s.memory.done
    if done is None or not done.is_of(s.step.definition) or outdated_inputs(done, s.step) or s.live:
        return None
    how = _accepted(done.word) if done.by_person else "its outputs were verified"
    if done.definition != s.step.definition:
        how = f"it was made under this definition ({how} under another one since)"
    if s.memory.freed is not None:
        return s.decide(Verb.KEEP, Condition.DONE, "Freed", f"{how}; {s.memory.freed}")
    if is_trained_anew(done, s.need_memory):
        again = "`rerun --stale` evaluates" if s.step.stage is Stage.EVALUATION else "`rerun` trains"
        how += f"; {s.step.need} was trained anew since ({again} it again)"
    return s.decide(Verb.KEEP, Condition.DONE, "Done", how)


def _is_blocked(s: Situation) -> Action | None:
    """A fault of the run's own input; after done, because a finished step does not need its scaffolding any more."""
    if s.step.blocked is None or s.live:
        return None
    if s.memory.done is not None:
        return s.decide(Verb.KEEP, Condition.DONE, "Done", f"done before; now {s.step.blocked.message}")
    return s.decide(Verb.WAIT, Condition.BLOCKED, s.step.blocked.code, s.step.blocked.message)


def _is_drifted(s: Situation) -> Action | None:
    """A result of another definition is never silently replaced, nor silently kept as if it were this one."""
    done = s.memory.done
    return None if done is None or s.live else _drifted(s, Verb.HOLD, done)


def _drifted(s: Situation, verb: Verb, done: Done) -> Action:
    """What became of the definition, or of what the result was made from, since it was made."""
    outdated = outdated_inputs(done, s.step)
    changes = drift(done.meaning, s.step.meaning, s.step.config)
    told = [f"done under another definition: {shortened(changes) or 'its definition changed'}"]
    if done.is_of(s.step.definition):
        told = []
    if outdated:
        told.append(f"used an older version of its {' and its '.join(outdated)}")
        changes += tuple(f"{name} changed since" for name in outdated)
    message = f"{'; '.join(told)}; accept or rerun it"
    return s.decide(verb, Condition.DRIFTED, "Drifted", message, changes=changes)


def _is_world_unknown(s: Situation) -> Action | None:
    """Before everything that would act: what cannot be asked is not absent."""
    if isinstance(s.observed.queue, Unknown):
        return s.decide(Verb.WAIT, Condition.UNKNOWN, "QueueUnknown", f"the queue cannot be asked: {s.observed.queue.why}")
    return None


def _has_live_job(s: Situation) -> Action | None:
    """Before verified: a running job may have written its checkpoint and not be finished with it."""
    if not s.live:
        return None
    doubtful = [job for job in s.live if job.id in s.shared]
    if doubtful:
        job = doubtful[-1]
        message = f"job {job.id} ({job.name}) was submitted by hand, and may be this step's or another's of that job name"
        return s.decide(Verb.HOLD, Condition.HELD, "AmbiguousJob", f"{message}; cancel it, or wait for its end", job=job.id)
    cancelled = _cancelled_by_person(s)
    if cancelled is not None:
        return cancelled
    others = [job for job in s.live if (a := attempt_of(s, job)) is None or not (a.held and job.held)]
    held_by_us = [job for job in s.live if job not in others]
    if held_by_us:
        return _held_resubmission(s, held_by_us[-1], others)
    job = s.live[-1]
    attempt = attempt_of(s, job)
    if len(s.live) > 1:
        ids = ", ".join(j.id for j in s.live)
        return s.decide(
            Verb.HOLD, Condition.HELD, "SeveralJobs", f"jobs {ids} all belong to this step; cancel all but one", job=job.id
        )
    if attempt is None or attempt.job != job.id:
        return _adoption(s, job)
    return _watch(s, job, attempt)


def _cancelled_by_person(s: Situation) -> Action | None:
    """A ``cancel`` or ``rerun`` is written before the job is cancelled; where that was not to be done at once, it is done now."""
    for job in s.live:
        attempt = attempt_of(s, job)
        word = s.memory.word_against(attempt) if attempt is not None else None
        if attempt is not None and word is not None:
            condition = Condition.RUNNING if job.phase is Phase.RUNNING else Condition.QUEUED
            code = "CancelledByPerson" if word.verb == "cancel" else "Rerun"
            message = f"{word.by_whom}, and job {job.id} is still there"
            return s.decide(Verb.CANCEL, condition, code, message, job=job.id, attempt=attempt.number)
    return None


def _held_resubmission(s: Situation, job: Job, others: Sequence[Job]) -> Action:
    """A job that we submitted held, in place of one never seen: let it start only if nothing else has surfaced."""
    attempt = attempt_of(s, job)
    number = attempt.number if attempt else None
    word = s.memory.word
    if word is not None and word.verb == "hold":
        message = f"{word.by_whom}; job {job.id} stays held until it is released"
        return s.decide(Verb.HOLD, Condition.HELD, "HeldByPerson", message, job=job.id, attempt=number)
    if others:
        message = f"job {others[-1].id}, thought lost, is there after all; its held replacement {job.id} is cancelled"
        return s.decide(Verb.CANCEL, Condition.QUEUED, "ReplacementNotNeeded", message, job=job.id, attempt=number)
    # One whose end was known before this replacement was made is not what it replaces.
    surfaced = [
        a
        for a in s.memory.attempts
        if a.lost and a.job is not None and (attempt is None or a.end is None or a.end.order > attempt.order)
    ]
    if surfaced:
        message = f"job {surfaced[-1].job}, thought lost, has surfaced after all; its held replacement {job.id} is cancelled"
        return s.decide(Verb.CANCEL, Condition.VERIFYING, "ReplacementNotNeeded", message, job=job.id, attempt=number)
    if s.outputs is not None and s.outputs.state is OutputState.COMPLETE:
        message = f"the outputs verify after all; the held replacement {job.id} is cancelled"
        return s.decide(Verb.CANCEL, Condition.VERIFYING, "ReplacementNotNeeded", message, job=job.id, attempt=number)
    if not isinstance(s.observed.accounting, tuple):
        message = f"job {job.id} stays held until the accounting tells that the job it replaces never was"
        return s.decide(Verb.WAIT, Condition.UNKNOWN, "AccountingUnknown", message, job=job.id, attempt=number)
    if attempt is not None and abs(s.now - attempt.at) < s.policy.settle:
        message = f"job {job.id} stays held for {s.policy.settle:.0f} s, in case the job that it replaces comes to light"
        return s.decide(Verb.WAIT, Condition.UNKNOWN, "Unconfirmed", message, job=job.id, attempt=number)
    if s.pause is not None:
        message = f"{s.pause}; job {job.id} stays held"
        return s.decide(Verb.WAIT, Condition.WAITING, "Paused", message, job=job.id, attempt=number)
    message = f"nothing else has surfaced; job {job.id} may start"
    return s.decide(Verb.WAIT, Condition.QUEUED, "Confirmed", message, job=job.id, attempt=number, release=True)


def _adoption(s: Situation, job: Job) -> Action:
    token = Token.parse(job.name)
    number = token.attempt if token else _next_number(s)
    origin = "submitted by an earlier pass" if token else "submitted by hand from the step's directory"
    condition = Condition.RUNNING if job.phase is Phase.RUNNING else Condition.QUEUED
    message = f"live job {job.id} is this step's, {origin}"
    word = s.memory.word
    if word is not None and word.verb == "hold" and job.held:
        condition, message = Condition.HELD, f"{message}; {word.by_whom}"
    return s.decide(Verb.ADOPT, condition, "LiveJobFound", message, job=job.id, attempt=number)


def _progress(s: Situation, job: Job) -> str:
    """How far a running job is; an evaluation writes beside what others left, a fine-tune may go on from it."""
    outputs = s.outputs
    if outputs is None or not outputs.progress:
        return ""
    is_older = outputs.newest is not None and job.started is not None and outputs.newest < job.started - CLOCK_SKEW
    return "" if is_older and s.step.stage is Stage.EVALUATION else f", {outputs.progress}"


def _watch(s: Situation, job: Job, attempt: Attempt) -> Action:
    number = attempt.number
    changes = changed_since(attempt, s.step)
    changed = f"; changed since it was submitted: {shortened(changes)} (`rerun` replaces the job)" if changes else ""
    if job.phase is Phase.RUNNING:
        message = f"job {job.id} is running{_progress(s, job)}{changed}"
        return s.decide(Verb.WAIT, Condition.RUNNING, "JobRunning", message, job=job.id, attempt=number)
    if job.phase is Phase.UNKNOWN:
        message = f"job {job.id} is in state {job.state}, which may be live"
        return s.decide(Verb.WAIT, Condition.UNKNOWN, "JobStateUnknown", message, job=job.id, attempt=number)
    as_said = watch_hold(s, job, attempt)
    if as_said is not None:
        return as_said
    if job.held:
        message = f"job {job.id} is held in the queue ({job.pending_reason or 'by a person'}); release it when it should run"
        return s.decide(Verb.HOLD, Condition.HELD, "JobHeld", message, job=job.id, attempt=number)
    if job.pending_reason == "DependencyNeverSatisfied":
        message = f"job {job.id} waits for a dependency that can never be satisfied; cancel it"
        return s.decide(Verb.HOLD, Condition.HELD, "DependencyNeverSatisfied", message, job=job.id, attempt=number)
    told = tell(job.pending_reason)
    if never_starts(job.pending_reason):
        message = f"job {job.id} will not start as it is: {told}; cancel it and mend its script, or ask your site"
        return s.decide(Verb.HOLD, Condition.HELD, "CannotStart", message, job=job.id, attempt=number)
    why = f": {told}" if told else ""
    if attempt.placement and attempt.placement != s.step.placement:
        why += "; its script asks for other resources by now (rerun replaces the job, accept lets it stand)"
    why += changed
    return s.decide(Verb.WAIT, Condition.QUEUED, "JobQueued", f"job {job.id} is in the queue{why}", job=job.id, attempt=number)


def _is_unconfirmed(s: Situation) -> Action | None:
    """A submission whose outcome nobody knows may be live somewhere; nothing else may be submitted meanwhile."""
    if not s.memory.open:
        return None
    last = s.memory.open[-1]

    def waits(code: str, message: str) -> Action:
        return s.decide(Verb.WAIT, Condition.UNKNOWN, code, message, job=last.job, attempt=last.number)

    if s.unread_log:
        return waits("DiskUnknown", s.unread_log)
    if isinstance(s.observed.accounting, Unknown):
        what = f"job {last.job} left the queue" if last.job else "a submission is unconfirmed"
        message = f"{what} and the accounting cannot be asked: {s.observed.accounting.why}"
        return waits("AccountingUnknown", message)
    if last.job is not None:
        told = next((job.state for job in s.jobs if job.id == last.job), None)
        message = f"the accounting has job {last.job} as {told}" if told else f"the accounting does not know job {last.job} yet"
        return waits("JobNotSeen", f"{message}, and the queue does not show it")
    return waits("Unconfirmed", "a submission was begun and its job has not been seen yet")


def _is_disk_unknown(s: Situation) -> Action | None:
    """Before every rule that looks at the outputs, and after those of jobs, which hold whatever the disk says."""
    if s.outputs is None or s.outputs.state is OutputState.UNKNOWN:
        reason = s.outputs.reason if s.outputs else Reason("DiskUnknown", "the outputs were not examined")
        return s.decide(Verb.WAIT, Condition.UNKNOWN, reason.code, reason.message)
    return None


def _is_verified(s: Situation) -> Action | None:
    """Evidence decides, whatever Slurm says of the job. A result made from another step's proves nothing before that one is done:
    it may be of an earlier definition, or of a checkpoint that is being trained anew."""
    assert s.outputs is not None
    if s.outputs.state is not OutputState.COMPLETE:
        return None
    if s.step.need is not None and (s.need is None or s.need.condition is not Condition.DONE):
        return _are_needs_unmet(s)
    last = s.memory.last_begun
    ended = last is not None and last.end is not None and last.end.state == "COMPLETED"
    if (
        last is not None
        and last.end is not None
        and last.end.order == s.memory.anew
        and not ended
        and s.step.stage is Stage.FINETUNE
    ):
        message = (
            f"job {last.job} wrote over a finished result and ended {last.end.state}; what is there may be of both trainings"
        )
        return s.decide(Verb.HOLD, Condition.HELD, "WrittenOver", f"{message}; rerun it, or accept what is there")
    if not s.outputs.marked and not ended and s.now - _last_written(s) < s.policy.settle:
        message = f"the outputs verify, and must stay quiet for {s.policy.settle:.0f} s before they count"
        return s.decide(Verb.WAIT, Condition.VERIFYING, "Settling", message)
    made = as_submitted(s.step, last)
    result = Done(made.definition, LATEST, meaning=made.meaning, inputs=made.inputs)
    if result.definition != s.step.definition or outdated_inputs(result, s.step):
        return _drifted(s, Verb.MARK_DONE, result)
    return s.decide(Verb.MARK_DONE, Condition.DONE, "Verified", s.outputs.reason.message)


def _are_outputs_not_ours(s: Situation) -> Action | None:
    """Before any submission: nothing that we did not make, or do not understand, is trained over."""
    assert s.outputs is not None
    outputs = s.outputs
    if outputs.state is OutputState.MISMATCH:
        return s.decide(Verb.HOLD, Condition.DRIFTED, "Drifted", outputs.reason.message)
    if outputs.state is OutputState.AMBIGUOUS:
        return s.decide(Verb.HOLD, Condition.HELD, "AmbiguousOutputs", outputs.reason.message)
    if (
        outputs.state is OutputState.INCOMPLETE
        and outputs.has_work
        and not any(_may_have_made(a, outputs) for a in s.memory.attempts)
    ):
        message = f"there are outputs that no job of ours made and that do not verify: {outputs.reason.message}"
        return s.decide(Verb.HOLD, Condition.HELD, "OutputsNotOurs", message)
    return None


def _is_settling(s: Situation) -> Action | None:
    """An ended job's outputs are looked for twice, ``settle`` apart: a file server may show them late."""
    last = s.memory.last_begun
    if last is None or last.end is None or _is_replaced(last, s.memory):
        return None
    if last.missing_at is None:
        s.learn("missing", attempt=last.number)
    since = max(last.missing_at if last.missing_at is not None else s.now, _last_written(s))
    if last.missing_at is not None and s.now - since >= s.policy.settle:
        return None
    message = (
        f"job {last.job} ended ({last.end.state}); its outputs do not verify yet, looking again after {s.policy.settle:.0f} s"
    )
    return s.decide(Verb.WAIT, Condition.VERIFYING, OUTPUTS_MISSING, message)


def _is_held(s: Situation) -> Action | None:
    """A person's word, before any retry."""
    word = s.memory.word
    if word is None:
        return None
    code = "HeldByPerson" if word.verb == "hold" else "CancelledByPerson"
    return s.decide(Verb.HOLD, Condition.HELD, code, f"{word.by_whom}; release it to go on")


def _are_retries_spent(s: Situation) -> Action | None:
    """After evidence and a person's word, which outweigh any number of failures; before the wait for a retry that never comes."""
    attempts = _since_release(s.memory)
    last = attempts[-1] if attempts else None
    if last is None:
        return None
    if last.refused is not None and len(_trailing_refusals(attempts)) >= _MAX_REFUSALS:
        message = f"refused {_MAX_REFUSALS} times, last with: {last.refused}"
        return s.decide(Verb.HOLD, Condition.HELD, class_of_refusal(last.refused), message)
    if last.end is None:
        return None
    failure = last.end.failure
    remedy = _remedy(s)
    if remedy.is_new:
        return None
    if remedy.refusal or _times_failed(s, attempts, failure) > s.policy.retry.get(failure, 0):
        advice = remedy.refusal or suggestion(failure, s.step)
        told = [f"job {last.job}: {_why_failed(s, last)}", advice, _log_of(s, last), _next_word(s, failure)]
        return s.decide(Verb.HOLD, Condition.FAILED, failure, "; ".join(filter(None, told)))
    return None


def _is_backing_off(s: Situation) -> Action | None:
    """Last of what the step's own past says: a retry is due, and not yet."""
    attempts = _since_release(s.memory)
    last = attempts[-1] if attempts else None
    if last is None or (last.refused is None and last.end is None):
        return None
    if last.refused is not None:
        tries, since, why = len(_trailing_refusals(attempts)), last.at, f"refused: {last.refused}"
    else:
        assert last.end is not None
        tries, since, why = _times_failed(s, attempts, last.end.failure), last.end.at, _why_failed(s, last)
    delay = backoff(s.policy, s.step.key, tries)
    if s.now >= since + delay:
        return None
    return s.decide(Verb.WAIT, Condition.WAITING, "BackingOff", f"{why}; tried again {delay:.0f} s after that")


def _are_needs_unmet(s: Situation) -> Action | None:
    """After the step's own past, which needs a person or time whatever becomes of its need; before what a need leaves behind."""
    if s.step.need is None:
        return None
    if s.need is not None and s.need.condition is Condition.DONE:
        return _what_follows_a_hold(s) or _is_checkpoint_freed(s)
    if s.need is not None and s.need.condition.needs_person:
        reason = need_blocked(s.need)
        return s.decide(Verb.WAIT, Condition.WAITING, reason.code, reason.message)
    return s.decide(Verb.WAIT, Condition.WAITING, NEED_UNMET, f"waits for {s.step.need}")


def _what_follows_a_hold(s: Situation) -> Action | None:
    """A person held the need while it ran: it ran on, and nothing follows it."""
    if s.need_word is None:
        return None
    return s.decide(Verb.HOLD, Condition.HELD, "NeedHeld", f"{s.step.need} was {s.need_word.by_whom}; release it to go on")


def _is_checkpoint_freed(s: Situation) -> Action | None:
    """A need that is done and whose files a person had deleted leaves nothing to evaluate, or to begin from."""
    freed = s.need_memory.freed if s.need_memory is not None else None
    if freed is None or s.step.epoch_needed not in freed.epochs:
        return None
    message = f"the checkpoint that it needs is gone ({freed}); rerun {s.step.need} for a new one"
    return s.decide(Verb.HOLD, Condition.HELD, "NeedFreed", message)


def _is_input_missing(s: Situation) -> Action | None:
    """After the needs: a training that is not done has no checkpoint yet, one that is done in writing may have none any more."""
    lacks = s.outputs.lacks if s.outputs is not None else None
    if isinstance(lacks, Unknown):
        return s.decide(Verb.WAIT, Condition.UNKNOWN, "InputUnseen", lacks.why)
    return s.decide(Verb.HOLD, Condition.HELD, lacks.code, lacks.message) if lacks else None


def _is_directory_in_use(s: Situation) -> Action | None:
    """A run was renamed or dropped, or the experiment copied or moved, while its job runs, and this step would write where that
    job does."""
    copy = s.observed.copies.get(s.step.key)
    if s.occupant is not None:
        whose = f" of {s.occupant.step}" if s.occupant.step else ""
        message = f"job {s.occupant.job.id}{whose}, a step that the document no longer has, writes to {s.step.output_dir}"
    elif copy is not None:
        message = f"job {copy.id} ({copy.name}) of another experiment, in {copy.workdir}, may write to {s.step.output_dir} too"
    else:
        return None
    return s.decide(Verb.WAIT, Condition.WAITING, "OutputsInUse", f"{message}; cancel it, or wait for its end")


def _is_checkpoint_in_use(s: Situation) -> Action | None:
    """A new attempt moves aside, or writes over, what another step may be reading. ``rerun`` refuses while it sees such a job;
    this is for one that comes to light later."""
    if not s.reader or s.outputs is None or s.outputs.state is OutputState.ABSENT:
        return None
    message = f"{s.reader} may be reading what is in {s.step.output_dir}; cancel it, or wait for its end"
    return s.decide(Verb.WAIT, Condition.WAITING, "CheckpointInUse", message)


def _does_the_tool_object(s: Situation) -> Action | None:
    """Last before a submission: the tool knows best over which outputs it can start afresh."""
    objection = None if s.is_superseded else s.observed.objections.get(s.step.key)
    return s.decide(Verb.HOLD, Condition.HELD, "ToolObjects", objection) if objection else None


def _is_remedy_in_doubt(s: Situation) -> Action | None:
    """What the next attempt needs cannot be brought about: without it, it would train over what it was to go on from."""
    obstacle = _remedy(s).obstacle
    return s.decide(Verb.HOLD, Condition.HELD, obstacle.code, obstacle.message) if obstacle else None


def _submit(s: Situation) -> Action:
    assert s.outputs is not None
    begun = [a for a in s.memory.attempts if not (a.withdrawn or a.limited)]
    last = begun[-1] if begun else None
    tried = next((a for a in reversed(begun) if a.end is None or a.end.failure != "CancelledByUs"), None)
    replaces_lost = _is_last_one_lost(s.memory)
    is_asked_for = last is not None and s.memory.rerun is not None and last.order < s.memory.rerun.order
    code, message = ("NotStarted", "not started; the next pass submits it")
    if replaces_lost:
        code, message = "SubmissionLost", "the last submission was never seen; submitted held, released when nothing surfaces"
    elif is_asked_for:
        code, message = "Rerun", _asked_again(s.memory.rerun)
    elif tried is not None:
        code, message = "Retry", f"attempt {tried.number} did not succeed; once more"
    elif s.outputs.state is not OutputState.ABSENT:
        message = f"{s.outputs.reason.message}; the next pass submits it"
    if s.memory.last is not None and s.memory.last.limited:
        message += f" (put off by a limit of the site: {s.memory.last.limit})"
    remedy = _remedy(s)
    aside = s.outputs.torn_to_resume if remedy.resumes else s.outputs.torn
    changes = (*remedy.changes, *(f"moves {path} aside" for path in aside))
    return s.decide(
        Verb.SUBMIT,
        Condition.WAITING,
        code,
        message,
        job=None,
        attempt=_next_number(s),
        held=replaces_lost,
        move_aside=aside,
        changes=changes,
        options=remedy.options,
        edits=remedy.edits,
        reverts=remedy.reverts,
        from_epoch=s.outputs.resumable if remedy.resumes else 0,
    )


_RULES: tuple[tuple[str, Rule], ...] = (
    ("done", _is_done),
    ("blocked", _is_blocked),
    ("drifted", _is_drifted),
    ("queue unknown", _is_world_unknown),
    ("live job", _has_live_job),
    ("unconfirmed submission", _is_unconfirmed),
    ("disk unknown", _is_disk_unknown),
    ("verified", _is_verified),
    ("outputs not ours", _are_outputs_not_ours),
    ("settling", _is_settling),
    ("held by a person", _is_held),
    ("retries spent", _are_retries_spent),
    ("backing off", _is_backing_off),
    ("needs unmet", _are_needs_unmet),
    ("input missing", _is_input_missing),
    ("directory in use", _is_directory_in_use),
    ("checkpoint in use", _is_checkpoint_in_use),
    ("tool objects", _does_the_tool_object),
    ("remedy in doubt", _is_remedy_in_doubt),
    ("submit", _submit),
)


# --- what the rules count --------------------------------------------------------------------------


def backoff(policy: Policy, key: str, tries: int) -> float:
    """Seconds before try ``tries`` + 1: doubled each time, plus up to a tenth by the step's own jitter; an hour at most."""
    jitter = 1 + int(digest(key, str(tries))[:4], 16) / 0xFFFF / 10
    doublings = min(max(tries, 1), _MAX_DOUBLINGS + 1) - 1
    return min(policy.backoff * 2.0**doublings, _MAX_BACKOFF / 1.1) * jitter


def need_blocked(need: Action) -> Reason:
    """Why a step waits whose need goes on by a person alone."""
    if need.reason.code == NOT_SELECTED:
        return Reason(NEED_BLOCKED, f"waits for {need.step}, which was not selected")
    return Reason(NEED_BLOCKED, f"{need.step} needs a person first ({need.reason.code})")


def _last_written(s: Situation) -> float:
    """When the outputs were last written (epoch s), as far as that can be believed: a file server's clock may be ahead by
    minutes; a time from another day was put there by somebody."""
    newest = s.outputs.newest if s.outputs is not None and s.outputs.newest is not None else 0.0
    return newest if newest <= s.now + _MAX_CLOCK_AHEAD else 0.0


def _may_have_made(attempt: Attempt, outputs: Outputs) -> bool:
    """True where an attempt of ours may have left these outputs: its job may have run, and they are not from before it."""
    end = attempt.end
    never_ran = attempt.job is None or (end is not None and end.failure in CANCELLED and end.never_ran)
    return not never_ran and (outputs.newest is None or outputs.newest >= attempt.at - CLOCK_SKEW)


def _accepted(word: Word | None) -> str:
    return word.by_whom if word is not None and word.user else "accepted by a person"


def _asked_again(rerun: Rerun | None) -> str:
    word = rerun.word if rerun is not None else None
    return word.by_whom if word is not None and word.user else "asked for again by a person"


def _why_failed(s: Situation, attempt: Attempt) -> str:
    assert attempt.end is not None
    found = f"; {s.outputs.reason.message}" if s.outputs and s.outputs.state is OutputState.INCOMPLETE else ""
    return sentence(attempt.end.failure, attempt.end.detail) + found


def _log_of(s: Situation, attempt: Attempt) -> str:
    assert attempt.job is not None
    user = next((job.user for job in s.jobs if (job.id, job.name) == (attempt.job, attempt.name)), "")
    paths = log_paths(s.step.logs, attempt.job, attempt.name, user)
    return f"its log: {' and '.join(map(str, paths))}" if paths else ""


def _next_word(s: Situation, failure: str) -> str:
    """What a person does next, whose experiment is the current directory."""
    word = f"`reconcile release {shlex.quote(s.step.key)}`"
    return f"{word} submits it again" if failure in CANCELLED else f"mend it, then {word}"


def _since_release(memory: StepMemory) -> tuple[Attempt, ...]:
    return tuple(
        a for a in memory.attempts if _counts(a, memory) and not (a.limited or a.withdrawn or (a.lost and a.end is None))
    )


def _counts(attempt: Attempt, memory: StepMemory) -> bool:
    """True where an attempt's outcome came after the last release; what a person had us cancel is no failure, also where its end
    comes to light after the word was taken back."""
    if attempt.end is None:
        return attempt.order > memory.released and not _is_replaced(attempt, memory)
    is_failure = attempt.end.failure != "CancelledByUs"
    return is_failure and attempt.end.order > memory.released and not _is_replaced(attempt, memory)


def _is_replaced(attempt: Attempt, memory: StepMemory) -> bool:
    """What a rerun replaces counts no more, however it ends."""
    return memory.rerun is not None and attempt.order < memory.rerun.order


def _is_last_one_lost(memory: StepMemory) -> bool:
    """True where the last submission that may have been accepted was never seen; one that surely was not clears no doubt."""
    maybe = (a for a in reversed(memory.attempts) if not (a.withdrawn or a.limited or a.refused is not None))
    last = next(maybe, None)
    return last is not None and last.lost and last.job is None


def _trailing_refusals(attempts: Sequence[Attempt]) -> list[Attempt]:
    refusals: list[Attempt] = []
    for attempt in reversed(attempts):
        if attempt.refused is None:
            break
        refusals.append(attempt)
    return refusals


def _times_failed(s: Situation, attempts: Sequence[Attempt], failure: str) -> int:
    """How often it failed so, not counting the attempts that brought it further."""
    did_advance = advanced(attempts, s.outputs) if s.policy.resume else frozenset()
    return sum(1 for a in attempts if a.end is not None and a.end.failure == failure and a.number not in did_advance)


def _remedy(s: Situation) -> Remedy:
    """What the next attempt is to be; where it needs edits and the file lets none be made, nobody's outputs are moved for it."""
    remedy = remedy_for(s.step, s.memory, _since_release(s.memory), s.outputs, s.policy)
    edits, why = (*remedy.edits, *remedy.reverts), s.observed.sealed.get(s.step.key, "")
    if not (edits and why) or remedy.obstacle is not None:
        return remedy
    return replace(remedy, obstacle=Reason("EditRefused", sealed(why, edits)))


def _next_number(s: Situation) -> int:
    tokens = [token.attempt for job in s.jobs if (token := Token.parse(job.name))]
    return max([s.memory.taken, *tokens, *(a.number for a in s.memory.attempts)]) + 1
