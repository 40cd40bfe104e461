"""What one pass knows of one step: its memory, its jobs, its outputs, and what comparing them newly teaches; pure.

Nothing here decides what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reconciler.failures import classify
from reconciler.memory import (
    CLOCK_SKEW,
    LATEST,
    WITHOUT_EVIDENCE,
    Attempt,
    End,
    Pause,
    StepMemory,
    Word,
    overtaken,
    reopened,
    unedited,
    with_end,
)
from reconciler.model import (
    Action,
    Condition,
    Edit,
    Job,
    Observed,
    Orphan,
    Outputs,
    OutputState,
    Phase,
    Policy,
    Reason,
    Stage,
    Step,
    Token,
    Unknown,
    Verb,
    Written,
)


@dataclass
class Situation:
    """What one pass knows of one step when the ladder is tried on it.

    ``need`` and ``need_word`` are what was decided for the step that must be done before it, and a person's standing word on
    that one. ``shared`` are ids of jobs that a person submitted and that may be another step's, ``occupant`` an orphan that
    writes where this step would, ``reader`` names a job that may be reading what this step made. ``is_superseded``: the outputs
    there are from before a person's ``rerun``, or of a batch that did not fit. ``unread_log`` tells of a job that ended in a
    way that only its log explains, where that could not be read. ``pause`` is a person's, while it lasts, ``need_memory`` is
    what is in writing of the step before it.
    """

    step: Step
    memory: StepMemory
    jobs: tuple[Job, ...]
    outputs: Outputs | None
    observed: Observed
    policy: Policy
    now: float
    need: Action | None = None
    need_word: Word | None = None
    shared: frozenset[str] = frozenset()
    occupant: Orphan | None = None
    is_superseded: bool = False
    unread_log: str = ""
    pause: Pause | None = None
    need_memory: StepMemory | None = None
    reader: str = ""
    learned: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def live(self) -> tuple[Job, ...]:
        """The step's jobs that have not ended."""
        return tuple(job for job in self.jobs if job.is_live)

    def decide(self, verb: Verb, condition: Condition, code: str, message: str, **more: Any) -> Action:
        """An action of this step; job and attempt are those of the last attempt unless said otherwise."""
        last = self.memory.last
        more.setdefault("job", last.job if last else None)
        more.setdefault("attempt", last.number if last else None)
        return Action(self.step.key, verb, Reason(code, message), condition, **more)

    def learn(self, event: str, **facts: Any) -> None:
        """Note an event that the ledger should hold, whatever becomes of the actions."""
        self.learned.append({"event": event, "step": self.step.key, **facts})


def attempt_of(situation: Situation, job: Job) -> Attempt | None:
    """The attempt that a job belongs to: by its recorded id, else by the number in its name if it is not from before."""
    for attempt in situation.memory.attempts:
        if attempt.job == job.id and attempt.name == job.name:
            return attempt
    for attempt in situation.memory.attempts:
        is_new = job.submitted is None or job.submitted >= attempt.at - CLOCK_SKEW
        if attempt.name == job.name and attempt.job is None and is_new:
            return attempt
    return None


def remember_ends(situation: Situation) -> StepMemory:
    """Memory with what the world newly tells of open attempts: their jobs' ends, and submissions given up for lost.

    A job of ours that nothing in writing knows is an attempt too: the ledger was lost, not the job. One that the queue shows live
    is for the ladder to take over.
    """
    memory = situation.memory
    for attempt in memory.attempts:
        jobs = [job for job in situation.jobs if attempt_of(situation, job) is attempt]
        memory = _followed(memory, attempt, _updated(situation, attempt, jobs))
    known = {attempt.number for attempt in memory.attempts}
    for job in situation.jobs:
        token = Token.parse(job.name)
        if token is not None and not job.is_live and token.attempt not in known:
            known.add(token.attempt)
            memory = _followed(memory, None, _found(situation, job, token.attempt))
    return memory


def _followed(memory: StepMemory, was: Attempt | None, now: Attempt) -> StepMemory:
    """Memory with what became of one attempt, ``was`` None where it was found; as the events tell that were learned of it."""
    others = (attempt for attempt in memory.attempts if attempt.number != now.number)
    memory = replace(memory, attempts=tuple(sorted((*others, now), key=lambda attempt: attempt.number)))
    if was is None or (was.end is not None and now.end is None):
        memory = overtaken(memory)
    if now.end is not None and (was is None or was.end is None):
        memory = with_end(memory, now.end)
    return memory


def remember_edits(situation: Situation) -> StepMemory:
    """Memory without the edits of ours that the configuration does not show: a pass died before it made them, or a person changed
    the value since, and that is a word. A result that is done keeps what it was made with."""
    memory = situation.memory
    if memory.done is not None:
        return memory
    gone: dict[str, str | None] = {}
    for edit in memory.edits:
        now = situation.step.written.get(edit.key)
        if now is not None and (now.why_not or now.text != edit.after):
            gone |= {key: situation.step.written[key].text for key in _theirs_with(edit, now, situation.step)}
    for key, text in gone.items():
        if any(edit.key == key for edit in memory.edits):
            situation.learn("unedited", key=key, after=text)
            memory = replace(memory, edits=unedited(memory.edits, key, text))
    return memory


def _theirs_with(edit: Edit, now: Written, step: Step) -> tuple[str, ...]:
    """The settings that are a person's once this one is. A batch is one thing in two settings: where a person chose another half,
    both are theirs; where they put it back, the other half is still ours to put back with it."""
    texts = {step.batch.get(edit.key), *(() if now.why_not else (now.text,))}
    is_put_back = not texts.isdisjoint((edit.before, *edit.via))
    others = tuple(key for key in step.batch if key in step.written and key != edit.key)
    return (edit.key,) if is_put_back or edit.key not in step.batch else (edit.key, *others)


def batch_changes(attempt: Attempt, step: Step) -> tuple[str, ...]:
    """In words, where the configuration asks for another batch by now than the attempt was submitted with."""
    now = {key: step.batch.get(key, was) for key, was in attempt.batch.items()}
    return tuple(f"{key} {was} → {now[key]}" for key, was in attempt.batch.items() if now[key] != was)


def outgrow_batch(situation: Situation) -> None:
    """What was trained with a batch that did not fit is in the way of a smaller one, and no result of another definition: a
    person wrote that batch as they were told, or a pass of ours did not come to submit it."""
    last, outputs, step = situation.memory.last_begun, situation.outputs, situation.step
    if outputs is None or outputs.state is not OutputState.MISMATCH or last is None or last.end is None:
        return
    if last.end.failure == "OutOfMemoryGpu" and batch_changes(last, step) and {*outputs.differs} <= step.batch.keys():
        situation.is_superseded = True
        situation.outputs = replace(outputs, state=OutputState.INCOMPLETE, reason=Reason("Superseded", outputs.reason.message))


def _found(situation: Situation, job: Job, number: int) -> Attempt:
    situation.learn("adopted", attempt=number, job=job.id, name=job.name, begun=job.submitted)
    at = situation.now if job.submitted is None else job.submitted
    attempt = Attempt(number, job.name, at, at, LATEST, job=job.id)
    return _over(situation, attempt, job) if job.phase is Phase.ENDED else _unseen(situation, attempt)


def supersede(situation: Situation) -> None:
    """After a person's ``rerun``, outputs from before it count no more: a fine-tune's are moved aside by the next submission,
    an evaluation's stay, because another one adds to them.

    Once a fine-tune was submitted again, what is there is new, whatever a file server's clock says.
    """
    rerun, outputs = situation.memory.rerun, situation.outputs
    if rerun is None or outputs is None or outputs.newest is None or outputs.state is OutputState.ABSENT:
        return
    attempts = situation.memory.attempts
    is_finetune = situation.step.stage is Stage.FINETUNE
    if is_finetune and any(attempt.order > rerun.order for attempt in attempts):
        return
    # A job that the rerun replaced may have gone on writing until it was dead, within the second that Slurm names.
    replaced = [a.end.at + 1.0 for a in attempts if a.order < rerun.order and a.end is not None and a.end.order > rerun.order]
    if outputs.newest > max([rerun.at if rerun.newest is None else rerun.newest, *replaced]):
        return
    situation.is_superseded = True
    torn = (situation.step.output_dir,) if is_finetune else ()
    reason = Reason("Superseded", "what is there is from before the rerun")
    state = OutputState.INCOMPLETE
    situation.outputs = replace(outputs, state=state, reason=reason, torn=torn, has_work=False, resumable=0, resume_note="")


def _updated(situation: Situation, attempt: Attempt, jobs: Sequence[Job]) -> Attempt:
    if not isinstance(situation.observed.queue, tuple):
        return attempt
    live = [job for job in jobs if job.is_live]
    if live:
        return _seen_live(situation, attempt, live)
    # A job that was refused may leave a record that says FAILED (seen on 24.11: BadConstraints).
    over = [job for job in jobs if job.phase is Phase.ENDED and not (attempt.refused is not None and job.never_ran)]
    if over and attempt.end is None:
        return _over(situation, attempt, over[-1])
    told = [job for job in jobs if job.phase is Phase.UNLISTED]
    if told and attempt.job is None:
        situation.learn("submitted", attempt=attempt.number, job=told[-1].id)
        attempt = replace(attempt, job=told[-1].id)
    if not attempt.is_open or not isinstance(situation.observed.accounting, tuple):
        return attempt
    return _unseen(situation, attempt)


def _seen_live(situation: Situation, attempt: Attempt, jobs: Sequence[Job]) -> Attempt:
    """A job thought ended or gone may be back: Slurm requeues under the same id. One that we held may have been released, by a
    person or by a pass that died before it could say so."""
    if attempt.end is not None:
        situation.learn("reopened", attempt=attempt.number)
        attempt = reopened(attempt)
    if attempt.unseen_at is not None:
        situation.learn("seen", attempt=attempt.number)
        attempt = replace(attempt, unseen_at=None)
    if attempt.held and not any(job.held for job in jobs):
        situation.learn("unheld", attempt=attempt.number)
        attempt = replace(attempt, held=False)
    return attempt


def _unseen(situation: Situation, attempt: Attempt) -> Attempt:
    """An open attempt that neither a good queue nor a good accounting shows: given up only after ``grace``."""
    if attempt.job is None:
        if situation.now - attempt.at < situation.policy.grace:
            return attempt
        situation.learn("lost", attempt=attempt.number)
        return replace(attempt, lost=True)
    if attempt.unseen_at is None:
        situation.learn("unseen", attempt=attempt.number)
        return replace(attempt, unseen_at=situation.now)
    if situation.now - attempt.unseen_at < situation.policy.grace:
        return attempt
    if attempt.withdrawing:
        return _withdrawn(situation, attempt)
    failure = "CancelledByUs" if _was_asked(situation.memory, attempt) else "Vanished"
    return _ended(situation, attempt, attempt.job, End("UNKNOWN", failure, situation.now))


def _was_asked(memory: StepMemory, attempt: Attempt) -> bool:
    """True where a person's word had us cancel the attempt's job, also where that word is lifted by now."""
    is_replaced = memory.rerun is not None and attempt.order < memory.rerun.order
    return is_replaced or attempt.order < memory.cancelled


def _over(situation: Situation, attempt: Attempt, job: Job) -> Attempt:
    """Where only the log tells why it ended, and the log cannot be read, the end is not in writing yet."""
    observed, memory = situation.observed, situation.memory
    log = observed.logs.get((job.id, job.name))
    if isinstance(log, Unknown):
        situation.unread_log = f"job {job.id} ended ({job.state}), and its log cannot be read: {log.why}"
        return attempt if attempt.job is not None else replace(attempt, job=job.id)
    if attempt.withdrawing and not attempt.withdrawn:
        attempt = _withdrawn(situation, attempt)
    signs = observed.signs.get(situation.step.key, ())
    gpus = (attempt.ask or situation.step.ask).gpus
    why = classify(job, log, signs, observed.uid, was_asked=_was_asked(memory, attempt) or attempt.withdrawn, gpus=gpus)
    end = End(job.state, why.code, job.ended or situation.now, job.started, job.exit_code, detail=why.detail, nodes=job.nodes)
    return _ended(situation, attempt, job.id, end)


def _withdrawn(situation: Situation, attempt: Attempt) -> Attempt:
    """The pass that cancelled its held job died before it could say so."""
    situation.learn("withdrawn", attempt=attempt.number)
    return replace(attempt, withdrawn=True, held=False)


def _ended(situation: Situation, attempt: Attempt, job_id: str, end: End) -> Attempt:
    situation.learn(
        "ended",
        attempt=attempt.number,
        job=job_id,
        state=end.state,
        failure="" if end.failure == WITHOUT_EVIDENCE else end.failure,
        ended=end.at,
        started=end.started,
        exit_code=end.exit_code,
        detail=end.detail,
        nodes=end.nodes,
    )
    return replace(attempt, job=job_id, end=end)
