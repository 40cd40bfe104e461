"""What earlier passes left in writing, as values: attempts, results, a person's words, of each step and of the experiment.

Frozen data only. What came before what is told by ``order``, an event's place in the ledger, from 1: clocks step back and
differ between hosts. Times serve for durations alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from reconciler.model import Ask, Edit
from reconciler.sizes import size_text

LATEST = sys.maxsize
"""The order of what this pass has just learned and not yet written."""

CLOCK_SKEW = 300.0
"""Seconds that the clocks of two hosts of one cluster may differ: beyond that munge refuses them (man munge, TTL)."""

WITHOUT_EVIDENCE = "CompletedWithoutEvidence"
"""The class of a COMPLETED job of whose log nothing else is told, should its outputs be missing. It is not written down with the
job's end: most such jobs did their work."""


@dataclass(frozen=True)
class End:
    """How an attempt's job ended, as the cluster told it; ``failure`` is the class that retries are counted by, ``detail`` the
    words that told it, ``nodes`` where it ran."""

    state: str
    failure: str
    at: float
    started: float | None = None
    exit_code: str = ""
    order: int = LATEST
    detail: str = ""
    nodes: str = ""

    @property
    def never_ran(self) -> bool:
        """As ``Job.never_ran``."""
        return self.started is None or self.started == self.at


@dataclass(frozen=True)
class Attempt:
    """One submission of a step: its intent, then whatever became known of it.

    ``job`` None with none of ``refused``, ``limited`` and ``lost`` is an unconfirmed submission. ``unseen_at`` is when its job
    was first in neither queue nor accounting, ``missing_at`` when the ended job's outputs were first seen not to verify.
    ``limit`` is what the site said where it took no more jobs, ``kept_since`` (epoch s) when it first did, of several times in a
    row: of those the last alone is remembered.
    ``options`` are those that it was submitted with over its script's own, ``from_epoch`` how many whole epochs it went on from.
    ``commands`` is what its script adds to a definition, ``batch`` how large a batch it was submitted with, our edits included.
    ``held`` is True while the job is held by ourselves; ``withdrawn`` that we cancelled it before it could start,
    ``withdrawing`` that we set out to. ``ask`` is what its job asked for, None where that is not in writing;
    ``worked`` (s) is how long earlier starts of a job took that Slurm requeued.
    ``queue_hold`` tells of a queued job that a person's word (``hold`` or ``pause``) has us hold: ``asked`` before it is done,
    ``held`` after that, empty where we do not.
    """

    number: int
    name: str
    at: float
    begins: float
    order: int = 0
    definition: str = ""
    placement: str = ""
    output_dir: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    from_epoch: int = 0
    meaning: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    commands: str = ""
    batch: Mapping[str, str] = field(default_factory=dict)
    held: bool = False
    by_hand: bool = False
    job: str | None = None
    refused: str | None = None
    limited: bool = False
    limit: str = ""
    kept_since: float | None = None
    lost: bool = False
    withdrawing: bool = False
    withdrawn: bool = False
    queue_hold: str = ""
    end: End | None = None
    unseen_at: float | None = None
    missing_at: float | None = None
    ask: Ask | None = None
    worked: float = 0.0

    @property
    def is_unconfirmed(self) -> bool:
        """True while nobody knows whether the submission was accepted."""
        return self.job is None and self.refused is None and not self.limited and not self.lost

    @property
    def is_open(self) -> bool:
        """True while the attempt's outcome is not in writing."""
        return not self.withdrawn and (self.is_unconfirmed or (self.job is not None and self.end is None))


def reopened(attempt: Attempt) -> Attempt:
    """An attempt whose job was thought ended, and is live: Slurm requeues under the same id. The time that it took counts."""
    end = attempt.end
    took = max(0.0, end.at - end.started) if end is not None and end.started is not None else 0.0
    return replace(attempt, end=None, missing_at=None, unseen_at=None, worked=attempt.worked + took)


def unedited(edits: tuple[Edit, ...], key: str, now: str | None) -> tuple[Edit, ...]:
    """The edits less what the file does not show: none of that key, or the part of it that led to what is there ``now``."""
    kept = []
    for edit in edits:
        if edit.key != key:
            kept.append(edit)
        elif now in edit.via:
            kept.append(replace(edit, after=now, via=edit.via[: edit.via.index(now)]))
    return tuple(kept)


@dataclass(frozen=True)
class Done:
    """A step's result, verified (or accepted by a person) ``at`` a time (epoch s), under which definition and by which files.

    ``generation`` is the definition that it was really made from, ``made_from`` the inputs: a person's word may let it stand
    under others, and what was made from it stays so.
    """

    definition: str
    order: int
    by_person: bool = False
    evidence: tuple[Mapping[str, Any], ...] = ()
    meaning: Mapping[str, str] = field(default_factory=dict)
    word: Word | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    generation: str = ""
    made_from: Mapping[str, str] = field(default_factory=dict)
    at: float = 0.0

    def is_of(self, definition: str) -> bool:
        """True where it stands under this definition, or was made from it."""
        return definition in (self.definition, self.generation)


@dataclass(frozen=True)
class Word:
    """What a person said (``hold``, ``release``, …), who, when (epoch s) and why; ``about`` is what they named with it, such as
    ``a → c`` of a rename."""

    verb: str
    order: int
    user: str = ""
    why: str = ""
    at: float = 0.0
    about: str = ""

    @property
    def by_whom(self) -> str:
        """Such as ``held by ana: waiting for new data``."""
        done = PARTICIPLES.get(self.verb, self.verb)
        return done + (f" by {self.user}" if self.user else "") + (f": {self.why}" if self.why else "")


PARTICIPLES = {
    "hold": "held",
    "release": "released",
    "cancel": "cancelled",
    "accept": "accepted",
    "rerun": "asked for again",
    "pause": "paused",
    "resume": "resumed",
    "free": "freed",
    "rename": "renamed",
}


@dataclass(frozen=True)
class Pause:
    """A person's wish that nothing starts, until a moment (epoch s, and as it is shown) or until ``resume``."""

    word: Word
    until: float | None = None
    until_text: str = ""

    def is_on(self, now: float) -> bool:
        """True until its end has come."""
        return self.until is None or now < self.until

    def __str__(self) -> str:
        until = f" until {self.until_text}" if self.until is not None else ""
        user = f" by {self.word.user}" if self.word.user else ""
        return f"paused{user}{until}" + (f": {self.word.why}" if self.word.why else "")


@dataclass(frozen=True)
class Rerun:
    """A person's wish for a new result. ``newest`` (epoch s) is when what was there was last written, by the file server's own
    clock; None where that was not known. ``replaced`` is what was in writing of the step before."""

    at: float
    order: int
    newest: float | None = None
    word: Word | None = None
    replaced: StepMemory | None = None


@dataclass(frozen=True)
class Freed:
    """Checkpoints that a person had deleted: of which epochs, and how many bytes they were. Where it ``is_over``, all that could
    go is gone."""

    epochs: frozenset[int]
    size: int
    word: Word
    is_over: bool = False

    def __str__(self) -> str:
        names = ", ".join(f"epoch_{epoch}" for epoch in sorted(self.epochs))
        rest = "" if self.is_over else " (it was interrupted; say `reconcile free` again)"
        return f"{names} {self.word.by_whom}, {size_text(self.size)}{rest}"


@dataclass(frozen=True)
class StepMemory:
    """All that is in writing about one step. Retries are counted among attempts that ended after ``released``, the order of a
    person's last ``rerun``, or ``release`` of more than a hold. What was submitted before ``cancelled``, the last ``cancel``, was
    cancelled by us.
    Attempts up to ``taken`` were made under this key by a run that has another name now.
    ``word`` is the ``hold`` or ``cancel`` that stands, ``words`` is all of them. ``edits`` are those of the run's configuration
    that we set out to make and neither took back nor found gone (``remember_edits``).
    ``overtaken`` is a result over which a job may write that lives since: requeued by Slurm, or submitted by hand. From the order
    ``anew`` on, what is there is another result than before, by a rerun or by such a job."""

    attempts: tuple[Attempt, ...] = ()
    done: Done | None = None
    overtaken: Done | None = None
    anew: int = 0
    word: Word | None = None
    released: int = 0
    rerun: Rerun | None = None
    edits: tuple[Edit, ...] = ()
    words: tuple[Word, ...] = ()
    freed: Freed | None = None
    taken: int = 0
    cancelled: int = 0

    @property
    def last(self) -> Attempt | None:
        """The newest attempt that was not withdrawn, or None."""
        return next((attempt for attempt in reversed(self.attempts) if not attempt.withdrawn), None)

    @property
    def last_begun(self) -> Attempt | None:
        """The newest attempt that has or had a job, or may have one, or None. A later one may be surely without a job: refused,
        not taken by the site, or given up unseen."""
        begun = (a for a in reversed(self.attempts) if not a.withdrawn and (a.job is not None or a.is_unconfirmed))
        return next(begun, None)

    @property
    def given_up(self) -> StepMemory | None:
        """What was in writing before a rerun; None once something was submitted since, or it is done again."""
        if self.rerun is None or self.done is not None or any(a.order > self.rerun.order for a in self.attempts):
            return None
        return self.rerun.replaced

    @property
    def last_result(self) -> Done | None:
        """Its result, or the last one that a rerun gave up or a job may write over; None where it never had one."""
        before = self.rerun.replaced if self.rerun is not None else None
        return self.done or self.overtaken or (before.last_result if before is not None else None)

    def word_against(self, attempt: Attempt) -> Word | None:
        """The ``cancel`` or ``rerun`` by which a job of this attempt, should it be live, is to be cancelled. One that a person
        submitted by hand, or that was submitted after the word, is not meant."""
        if attempt.by_hand:
            return None
        if self.word is not None and self.word.verb == "cancel" and attempt.order < self.word.order:
            return self.word
        if self.rerun is not None and attempt.order < self.rerun.order:
            return self.rerun.word or Word("rerun", self.rerun.order)
        return None

    @property
    def open(self) -> tuple[Attempt, ...]:
        """The attempts whose outcome is not in writing; any of them, not the newest alone, may have a live job."""
        return tuple(attempt for attempt in self.attempts if attempt.is_open)


def overtaken(step: StepMemory) -> StepMemory:
    """The step as it is since one of its jobs is live although it was done: evidence decides once that has ended."""
    return step if step.done is None else replace(step, done=None, overtaken=step.done)


def with_end(step: StepMemory, end: End) -> StepMemory:
    """The step since one of its jobs has ended, which its attempts show already. An overtaken result stands again where no job
    ran after it."""
    result = step.overtaken
    if result is None:
        return step
    never_ran = end.never_ran and end.state == "CANCELLED"
    if not never_ran and end.at >= result.at - CLOCK_SKEW:
        return replace(step, overtaken=None, freed=None, anew=end.order)
    return step if step.open else replace(step, done=result, overtaken=None)


@dataclass(frozen=True)
class Renaming:
    """A run that is being renamed; ``is_told``: what is in writing of it has the new name already."""

    old: str
    new: str
    is_told: bool = False


@dataclass(frozen=True)
class Identity:
    """Whose experiment this is: another one of these three asks for a person's word."""

    cluster: str
    path: str
    user: str


@dataclass(frozen=True)
class Memory:
    """Everything in writing. An empty Memory is that of an experiment never seen before.

    ``written`` maps each cell of the document that we own to the texts that we ever left there, the last one first: a crash,
    an editor or a checkout may bring an older one back. ``states`` is each step's last known word for the Status column.
    ``heard`` tells the warnings of the last pass from others. ``released`` is the order of the last release of the whole
    experiment; ``words`` is what persons said of it as a whole. ``former`` are the directories that it was moved away from.
    """

    steps: Mapping[str, StepMemory] = field(default_factory=dict)
    identity: Identity | None = None
    former: tuple[str, ...] = ()
    environment: Mapping[str, bool] = field(default_factory=dict)
    roots: frozenset[str] = frozenset()
    names_kept: bool | None = None
    released: int = 0
    written: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    heard: str = ""
    pause: Pause | None = None
    words: tuple[Word, ...] = ()
    renaming: Renaming | None = None

    def of(self, key: str) -> StepMemory:
        """What is known of a step; an empty StepMemory where nothing is."""
        return self.steps.get(key, StepMemory())
