"""What each verb of a person's word does to one step: why it makes no sense, what is told before, what is written and done.

``refusal`` and ``told`` are pure; ``fulfil`` writes the word, and notes what the cluster must do at once. What follows from it is
the next pass's to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from reconciler.errands import Errand
from reconciler.holding import hold_job, let_go
from reconciler.ledger import Ledger
from reconciler.loop import Scene
from reconciler.memory import Attempt, Freed, StepMemory
from reconciler.model import Action, Condition, Job, Outputs, OutputState, Phase, Stage, Step, Verb


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
class Deed:
    """What an order did; ``step`` is empty where it concerns the experiment as a whole."""

    step: str
    message: str


@dataclass(frozen=True)
class Skipped(Deed):
    """A step to which nothing was done, and why: a glob matched it, and the word makes no sense for it."""


@dataclass(frozen=True)
class Course:
    """What a ``release`` of a step leads to. Where it ``lifts_hold_only``, nothing that was counted is forgotten, and the step
    goes on as it would have."""

    action: Action
    lifts_hold_only: bool

    @property
    def begins_anew(self) -> bool:
        """True where the word leads to an attempt that keeps none of the epochs there are."""
        return not self.lifts_hold_only and bool(self.action.move_aside) and not self.action.from_epoch


@dataclass(frozen=True)
class Case:
    """One step before an order: how it stands, its jobs that have not ended, what its outputs amount to where that matters.

    ``is_named``: a person named it by its key, so that it refuses where a step that a glob matched is skipped. ``is_shared``: a
    job may be another step's. ``has_checkpoint`` is False where a fine-tune left no epoch at all. ``dependents`` are the steps
    that read its outputs with their jobs that have not ended, ``freed`` is what was deleted of the checkpoint that it needs.
    ``course`` is what a ``release`` leads to.
    """

    step: Step
    action: Action
    live: tuple[Job, ...]
    outputs: Outputs | None
    memory: StepMemory
    is_paused: bool = False
    is_named: bool = True
    is_shared: bool = False
    dependents: Mapping[str, tuple[Job, ...]] = field(default_factory=dict)
    freed: Freed | None = None
    has_checkpoint: bool = True
    course: Course | None = None

    @property
    def key(self) -> str:
        """The step's key."""
        return self.step.key

    @property
    def is_finished(self) -> bool:
        """True where it has a result, of whatever definition."""
        is_known = self.memory.done is not None or self.action.verb is Verb.MARK_DONE
        return self.action.condition is Condition.DONE or (self.is_drifted and is_known)

    @property
    def is_drifted(self) -> bool:
        """True where what is there was made under another definition, be it a result or not."""
        return self.action.condition is Condition.DRIFTED

    @property
    def loses(self) -> int:
        """How many whole epochs a ``rerun``, or a release with this course, has moved aside."""
        is_kept = self.course is not None and not self.course.begins_anew
        return self.outputs.whole if self.outputs is not None and not is_kept else 0

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
    def replaced(self) -> tuple[Job, ...]:
        """Its jobs that ``rerun`` replaced, and that are still to be cancelled."""
        memory = replace(self.memory, word=None)
        attempts = ((job, self.attempt_of(job)) for job in self.live)
        return tuple(job for job, attempt in attempts if attempt is not None and memory.word_against(attempt) is not None)

    @property
    def held_by_word(self) -> tuple[Job, ...]:
        """Its held jobs that ``release`` lets go: a replacement that we submitted held is for a pass to judge."""
        attempts = ((job, self.attempt_of(job)) for job in self.queued if job.held and job not in self.replaced)
        return tuple(job for job, attempt in attempts if attempt is None or not attempt.held)

    @property
    def kept_by_pause(self) -> tuple[Job, ...]:
        """Those of them that a pause would hold: they are its from now on, and are let go with it."""
        attempts = ((job, self.attempt_of(job)) for job in self.held_by_word if self.is_paused)
        return tuple(job for job, attempt in attempts if attempt is not None and not attempt.by_hand)

    @property
    def let_go(self) -> tuple[Job, ...]:
        """Those of them that may start at once."""
        return tuple(job for job in self.held_by_word if job not in self.kept_by_pause)


def named(jobs: Sequence[Job]) -> str:
    """``job 7``, or ``jobs 7, 8``."""
    return f"job{'s' if len(jobs) > 1 else ''} {', '.join(job.id for job in jobs)}"


# --- why a verb makes no sense ------------------------------------------------------------------------


def refusal(order: Order, case: Case, chosen: Collection[str]) -> str | None:
    """Why the verb makes no sense for a step that stands like this; None where it does. ``chosen`` are the keys of all steps that
    the order is about."""
    if order.verb in ("hold", "cancel"):
        return _nothing_to_stop(order.verb, case)
    if order.verb in ("rerun", "accept") and case.step.blocked is not None:
        return case.step.blocked.message
    if order.verb == "rerun":
        return _not_to_replace(order, case) or _taken_from_others(order, case, chosen)
    return _not_acceptable(case) if order.verb == "accept" else None


def nothing_to_do(order: Order, case: Case) -> str | None:
    """Why the word is true already, where it is: nothing is done then, and that is no mistake."""
    if order.verb != "accept" or case.action.condition is not Condition.DONE or case.step.blocked is not None:
        return None
    if case.memory.done is None:
        return "its outputs verify, and the next pass writes that down; there is nothing to accept"
    return "is done already; there is nothing to accept"


def _nothing_to_stop(verb: str, case: Case) -> str | None:
    if case.action.condition is Condition.DRIFTED:
        return f"its result is of another definition (accept or rerun it); there is nothing to {verb}"
    return f"is done; there is nothing to {verb}" if case.action.condition is Condition.DONE else None


def _not_to_replace(order: Order, case: Case) -> str | None:
    step, action = case.step, case.action
    if case.is_shared:
        return f"{action.reason.message}; nothing may be replaced before that is known"
    if case.running and not order.now:
        return f"{named(case.running)} may be running; say --now to cancel it and start again"
    if action.condition is Condition.UNKNOWN and not case.live:
        return f"{action.reason.message}; nothing may be replaced before that is known"
    if step.stage is Stage.FINETUNE and step.script.is_relative_to(step.output_dir):
        return f"{step.output_dir} holds more than its outputs; move those away by hand"
    return None


def _taken_from_others(order: Order, case: Case, chosen: Collection[str]) -> str | None:
    """A job in flight would read a checkpoint that is moved aside and trained anew; a step that reads one that was freed would
    only fail, after its old result was given up."""
    for key, live in case.dependents.items():
        if live and key not in chosen:
            way_out = "" if order.with_dependents else "say --with-dependents to replace that too, or "
            return f"{named(live)} of {key} needs it; {way_out}wait for its end"
    if case.freed is not None and case.step.epoch_needed in case.freed.epochs and case.step.need not in chosen:
        return f"its checkpoint is gone ({case.freed}); rerun {case.step.need} --with-dependents instead"
    return None


def _not_acceptable(case: Case) -> str | None:
    if case.running:
        return f"{named(case.running)} may be running; there is no result to accept yet"
    if case.is_shared:
        return f"{case.action.reason.message}; there is nothing to accept before that is known"
    if len(case.queued) > 1:
        return f"{named(case.queued)} all belong to it; cancel all but one before one is accepted"
    if case.queued and case.attempt_of(case.queued[0]) is None:
        return f"{named(case.queued)} is not in writing yet; `reconcile apply` takes it over as it is"
    if case.replaced:
        return f"{named(case.replaced)} is replaced by `rerun`, and the next pass cancels it; there is nothing to accept"
    attempt = case.attempt_of(case.queued[0]) if case.queued else None
    word = case.memory.word_against(attempt) if attempt is not None else None
    if word is not None:
        return f"{named(case.queued)} is to be cancelled ({word.by_whom}); release it to let the job stand"
    if case.queued or case.memory.given_up is not None:
        return None
    return _no_outputs_to_accept(case)


def _no_outputs_to_accept(case: Case) -> str | None:
    outputs, action = case.outputs, case.action
    if action.condition in (Condition.WAITING, Condition.UNKNOWN):
        return f"there is no result to accept ({action.reason.message})"
    if outputs is None or outputs.state is OutputState.UNKNOWN:
        return outputs.reason.message if outputs else "its outputs were not examined"
    if outputs.state is OutputState.ABSENT and not (case.is_finished or _ended_well(case)):
        return f"there are no outputs to accept ({outputs.reason.message})"
    if not case.has_checkpoint and not case.is_finished:
        return f"there is no checkpoint to accept ({outputs.reason.message})"
    return None


def _ended_well(case: Case) -> bool:
    """True where Slurm calls the last job of an evaluation COMPLETED: its log may be where it is not looked for."""
    last = case.memory.last_begun
    return case.step.stage is Stage.EVALUATION and last is not None and last.end is not None and last.end.state == "COMPLETED"


# --- what is told before ------------------------------------------------------------------------------


def told(order: Order, case: Case, chosen: Collection[str]) -> str:
    """One sentence of what will happen to the step."""
    if order.verb == "rerun":
        what = _rerun_told(case, [key for key in case.dependents if key not in chosen])
    else:
        what = _TOLD[order.verb](case)
    return f"{order.verb} {case.key} ({case.action.condition.value}: {case.action.reason.message}): {what}"


def _hold_told(case: Case) -> str:
    if case.running:
        return f"{named(case.running)} runs on, and nothing follows it"
    return f"{named(case.queued)} is held until you release it" if case.queued else "it is not submitted until you release it"


def _release_told(case: Case) -> str:
    if case.held_by_word:
        return "; ".join(_starts(case))
    if case.is_finished:
        return "what follows it may start"
    if case.is_drifted:
        return "nothing follows from that while what is there is of another definition"
    if case.live:
        return "a person's word on it is lifted"
    if case.course is not None and case.course.lifts_hold_only:
        return "goes on as before it was held"
    return "; ".join(["decided afresh by the next pass, retries counted from zero", *_given_up_by(case)])


def _given_up_by(case: Case) -> Iterable[str]:
    """What the step had come to, and a release that decides it afresh does not keep."""
    last = case.memory.last_begun
    if case.course is None or case.course.lifts_hold_only or case.course.action.verb is not Verb.SUBMIT or last is None:
        return
    if case.loses:
        yield f"what is in {case.step.output_dir} is moved aside{_of_which(case.loses)}"
    kept = {"exclude", *case.course.action.options}
    raised = [f"--{name}={value}" for name, value in last.options.items() if name not in kept]
    if raised:
        yield f"{', '.join(raised)} of attempt {last.number} counts no more, but what its script asks for"


def _starts(case: Case) -> Iterable[str]:
    if case.let_go:
        yield f"{named(case.let_go)} may start"
    if case.kept_by_pause:
        yield f"{named(case.kept_by_pause)} may start once the pause is over"


def _cancel_told(case: Case) -> str:
    held = "it is held until you release it"
    return f"{named(case.live)} is cancelled, and {held}" if case.live else held


def _accept_told(case: Case) -> str:
    if case.queued:
        return f"{named(case.queued)} stands as it is"
    if case.memory.given_up is not None:
        return f"it is not done again, and {_as_before(case.memory.given_up)}"
    is_result = case.is_drifted and case.is_finished
    return "its result stands under the new definition" if is_result else "its outputs count as done by your word"


def _as_before(then: StepMemory) -> str:
    return "its result stands as before" if then.done is not None else "it stands as before the rerun"


_TOLD: dict[str, Callable[[Case], str]] = {
    "hold": _hold_told,
    "release": _release_told,
    "cancel": _cancel_told,
    "accept": _accept_told,
}


def _rerun_told(case: Case, others: Sequence[str]) -> str:
    step = case.step
    told = [f"{named(case.live)} is cancelled"] if case.live else []
    if step.stage is Stage.FINETUNE:
        told.append(f"what is in {step.output_dir} is moved aside{_of_which(case.loses)}")
    told.append("the next pass submits it again")
    if others:
        told.append(f"{', '.join(others)} depend on it and stay as they are without --with-dependents")
    return "; ".join(told)


def _of_which(whole: int) -> str:
    return f", {whole} whole epoch{'s' if whole > 1 else ''} with it" if whole else ""


# --- what is written and done -------------------------------------------------------------------------


@dataclass
class Court:
    """One order being carried out: what was said and, to be done once all of it is in writing, what the cluster must do."""

    scene: Scene
    ledger: Ledger
    order: Order
    done: list[Deed] = field(default_factory=list)
    errands: list[Errand] = field(default_factory=list)

    def fulfil(self, case: Case) -> None:
        """Write the word, and note what the cluster must do at once."""
        _VERBS[self.order.verb](self, case)

    def tell(self, case: Case, message: str) -> None:
        """Remember what was done."""
        self.done.append(Deed(case.key, message))

    def write(self, event: str, step: str, **facts: Any) -> None:
        """The word, with who said it and why."""
        self.ledger.append(event, step=step, user=self.scene.user, why=self.order.why, **facts)

    def hold(self, case: Case) -> None:
        """Every queued job held, and remembered as held by this word: it ends with it."""
        for job in case.queued:
            attempt = case.attempt_of(job)
            call = partial(hold_job, self.ledger, self.scene.backend, case.key, attempt.number if attempt else None, job.id)
            self.errands.append(Errand(job.id, "held", call, is_taken_up=attempt is not None))

    def let_go(self, case: Case) -> None:
        """Held jobs may start, and nothing remembers them as held by us; those that a pause keeps are its from now on."""
        for job in case.let_go:
            attempt = case.attempt_of(job)
            ours = attempt.number if attempt is not None and attempt.queue_hold else None
            call = partial(let_go, self.ledger, self.scene.backend, case.key, ours, job.id)
            self.errands.append(Errand(job.id, "released", call, is_taken_up=ours is not None))
        for attempt in filter(None, map(case.attempt_of, case.kept_by_pause)):
            self.ledger.append("queue-held", step=case.key, attempt=attempt.number)

    def cancel(self, case: Case) -> str:
        """Every one of its live jobs cancelled; a few words of it, empty where there is none. No pass cancels what a person
        submitted by hand."""
        for job in case.live:
            attempt = case.attempt_of(job)
            is_ours = attempt is not None and not attempt.by_hand
            self.errands.append(Errand(job.id, "cancelled", partial(self.scene.backend.cancel, job.id), is_taken_up=is_ours))
        return f"{named(case.live)} cancelled" if case.live else ""


def _release(court: Court, case: Case) -> None:
    facts = {"hold_only": True} if case.course is not None and case.course.lifts_hold_only else {}
    court.write("release", case.key, **facts)
    court.let_go(case)
    if case.held_by_word:
        court.tell(case, f"released; {'; '.join(_starts(case))}")
    elif case.is_finished:
        court.tell(case, "released; what follows it may start")
    elif case.is_drifted:
        court.tell(case, f"released, and nothing follows: {case.action.reason.message}")
    elif case.live or facts:
        court.tell(case, "released" if case.live else "released; goes on as before it was held")
    else:
        court.tell(case, "; ".join(["released, decided afresh by the next pass", *_given_up_by(case)]))


def _hold(court: Court, case: Case) -> None:
    court.write("hold", case.key)
    court.hold(case)
    what = f"{named(case.queued)} held" if case.queued else "held"
    court.tell(case, f"{what} until you release it" + ("; its job runs on" if case.live and not case.queued else ""))


def _cancel(court: Court, case: Case) -> None:
    """The word is written first: a job that was cancelled without it would look like a failure."""
    court.write("cancel", case.key)
    cancelled = court.cancel(case)
    court.tell(case, f"{f'{cancelled}, and ' if cancelled else ''}held until you release it")


def _accept(court: Court, case: Case) -> None:
    """A queued job stands as it is, also where its script asks for other resources by now; a rerun that nothing followed is taken
    back, and no more than that; else the outputs count as done."""
    for attempt in filter(None, map(case.attempt_of, case.queued)):
        court.write("placed", case.key, attempt=attempt.number, placement=case.step.placement)
        court.tell(case, f"{named(case.queued)} stands as it is")
        return
    if case.memory.given_up is not None:
        court.write("restored", case.key)
        court.tell(case, _as_before(case.memory.given_up))
        return
    _accept_outputs(court, case)


def _accept_outputs(court: Court, case: Case) -> None:
    step = case.step
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
    doubt = case.outputs.reason.message if case.outputs and case.outputs.state is not OutputState.COMPLETE else ""
    court.tell(case, "accepted as done" + (f", although {doubt}" if doubt and not case.is_finished else ""))


def _rerun(court: Court, case: Case) -> None:
    """The word first; what it replaces is cancelled now, and outputs are moved aside by the submission that follows."""
    court.write("rerun", case.key, newest=case.outputs.newest if case.outputs else None)
    cancelled = court.cancel(case)
    aside = f"moves {case.step.output_dir} aside{_of_which(case.loses)}, and " if case.loses else ""
    what = f"the next pass {aside}submits it again; until then `accept` takes that back"
    court.tell(case, f"{cancelled}; {what}" if cancelled else what)


_VERBS: dict[str, Callable[[Court, Case], None]] = {
    "release": _release,
    "hold": _hold,
    "cancel": _cancel,
    "accept": _accept,
    "rerun": _rerun,
}
