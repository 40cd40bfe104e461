"""What a person's ``hold`` or ``pause`` asks of a job that has not started yet; pure.

Level-triggered: while the word stands the job is held, once it does not the job is let go. Only a hold that we placed is ours to
lift, and one that a person lifted by hand is not placed again.
"""

from __future__ import annotations

from reconciler.memory import Attempt
from reconciler.model import Action, Condition, Job, Phase, Verb
from reconciler.situation import Situation


def watch_hold(s: Situation, job: Job, attempt: Attempt) -> Action | None:
    """The action on a queued job that a word is about; None where no word is, or where a person has overruled it by hand."""
    if job.phase is not Phase.QUEUED:
        return None
    if attempt.queue_hold == "asked" and job.held:
        s.learn("queue-held", attempt=attempt.number)
    is_lifted_by_hand = attempt.queue_hold == "held" and not job.held
    word = s.memory.word
    if word is not None and word.verb == "hold" and (attempt.order < word.order or (attempt.by_hand and job.held)):
        return None if is_lifted_by_hand else _on_hold(s, job, attempt, word.by_whom)
    if s.pause is not None:
        is_persons = attempt.by_hand or (job.held and not attempt.queue_hold)
        return None if is_lifted_by_hand or is_persons else _in_pause(s, job, attempt, str(s.pause))
    return _let_go(s, job, attempt)


def _on_hold(s: Situation, job: Job, attempt: Attempt, why: str) -> Action:
    """A job that is submitted after the word is not meant by it; one by hand, that may be taken over only after it, is where it
    is held."""
    message = f"{why}; job {job.id} {'stays' if job.held else 'is to be'} held until the step is released"
    return s.decide(Verb.HOLD, Condition.HELD, "HeldByPerson", message, job=job.id, attempt=attempt.number, hold_job=not job.held)


def _in_pause(s: Situation, job: Job, attempt: Attempt, why: str) -> Action:
    message = f"{why}; job {job.id} {'stays' if job.held else 'is to be'} held meanwhile"
    return s.decide(Verb.WAIT, Condition.WAITING, "Paused", message, job=job.id, attempt=attempt.number, hold_job=not job.held)


def _let_go(s: Situation, job: Job, attempt: Attempt) -> Action | None:
    if not attempt.queue_hold:
        return None
    if not job.held:
        s.learn("unheld", attempt=attempt.number)
        return None
    message = f"nothing keeps job {job.id} from starting any more"
    return s.decide(Verb.WAIT, Condition.QUEUED, "Released", message, job=job.id, attempt=attempt.number, release=True)
