"""What earlier passes left in writing, folded from the ledger's events; pure.

Every event is a flat JSON object with ``at`` (epoch seconds) and ``event``. The fold is total: an event of a kind that
this version does not know is kept in the ledger and ignored here.

What came before what is told by ``order``, an event's place in the ledger, from 1: clocks step back and differ between hosts.
``at`` serves for durations alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from reconciler.sizes import size_text

Event = Mapping[str, Any]

LATEST = sys.maxsize
"""The order of what this pass has just learned and not yet written."""


@dataclass(frozen=True)
class End:
    """How an attempt's job ended, as the cluster told it; ``failure`` is the class that retries are counted by, ``detail`` the
    words that told it."""

    state: str
    failure: str
    at: float
    started: float | None = None
    exit_code: str = ""
    order: int = LATEST
    detail: str = ""


@dataclass(frozen=True)
class Attempt:
    """One submission of a step: its intent, then whatever became known of it.

    ``job`` None with none of ``refused``, ``limited`` and ``lost`` is an unconfirmed submission. ``unseen_at`` is when its job
    was first in neither queue nor accounting, ``missing_at`` when the ended job's outputs were first seen not to verify.
    ``held`` is True while the job is held by ourselves; ``withdrawn`` that we cancelled it before it could start.
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
    meaning: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    held: bool = False
    by_hand: bool = False
    job: str | None = None
    refused: str | None = None
    limited: bool = False
    lost: bool = False
    withdrawn: bool = False
    queue_hold: str = ""
    end: End | None = None
    unseen_at: float | None = None
    missing_at: float | None = None

    @property
    def is_unconfirmed(self) -> bool:
        """True while nobody knows whether the submission was accepted."""
        return self.job is None and self.refused is None and not self.limited and not self.lost

    @property
    def is_open(self) -> bool:
        """True while the attempt's outcome is not in writing."""
        return not self.withdrawn and (self.is_unconfirmed or (self.job is not None and self.end is None))


@dataclass(frozen=True)
class Done:
    """A step's result, once verified (or accepted by a person), under which definition and by which files."""

    definition: str
    order: int
    by_person: bool = False
    evidence: tuple[Mapping[str, Any], ...] = ()
    meaning: Mapping[str, str] = field(default_factory=dict)
    word: Word | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Word:
    """What a person said (``hold``, ``release``, …), who, when (epoch s) and why."""

    verb: str
    order: int
    user: str = ""
    why: str = ""
    at: float = 0.0

    @property
    def by_whom(self) -> str:
        """Such as ``held by ana: waiting for new data``."""
        done = _PARTICIPLES.get(self.verb, self.verb)
        return done + (f" by {self.user}" if self.user else "") + (f": {self.why}" if self.why else "")


_PARTICIPLES = {
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
    clock; None where that was not known."""

    at: float
    order: int
    newest: float | None = None
    word: Word | None = None


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
    person's last ``release`` or ``rerun``. Attempts up to ``taken`` were made under this key by a
    run that has another name now. ``word`` is the ``hold`` or ``cancel`` that stands, ``words`` is all of them."""

    attempts: tuple[Attempt, ...] = ()
    done: Done | None = None
    word: Word | None = None
    released: int = 0
    rerun: Rerun | None = None
    words: tuple[Word, ...] = ()
    freed: Freed | None = None
    taken: int = 0

    @property
    def last(self) -> Attempt | None:
        """The newest attempt that was not withdrawn, or None."""
        return next((attempt for attempt in reversed(self.attempts) if not attempt.withdrawn), None)


@dataclass(frozen=True)
class Renaming:
    """A run that is being renamed; ``is_told``: what is in writing of it has the new name already."""

    old: str
    new: str
    is_told: bool = False


@dataclass(frozen=True)
class Identity:
    """Whose experiment this is: another one of these four asks for a person's word."""

    cluster: str
    path: str
    user: str


@dataclass(frozen=True)
class Memory:
    """Everything in writing. An empty Memory is that of an experiment never seen before.

    ``written`` maps each cell of the document that we own to the texts it may hold: the last one, and the one before it,
    which a crash may have left there. ``states`` is each step's last known word for the Status column. ``heard`` tells
    the warnings of the last pass from others. ``released`` is the order of the last release of the whole experiment; ``words`` is
    what persons said of it as a whole.
    """

    steps: Mapping[str, StepMemory] = field(default_factory=dict)
    identity: Identity | None = None
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


class MalformedEvent(Exception):
    """An event that no version of this program wrote. ``order`` is its place in the ledger, from 1."""

    def __init__(self, order: int) -> None:
        super().__init__(order)
        self.order = order


def fold(events: Iterable[Event]) -> Memory:
    """Memory from events, oldest first. Raises MalformedEvent for one that lacks what its kind has."""
    memory = Memory()
    for order, event in enumerate(events, start=1):
        try:
            memory = _apply(memory, order, event)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MalformedEvent(order) from error
    return memory


def _apply(memory: Memory, order: int, event: Event) -> Memory:
    kind = event["event"]
    if kind == "opened":
        identity = Identity(event["cluster"], event["path"], event["user"])
        said = (_word("adopt", order, {**event, "user": event["by"]}),) if "by" in event else ()
        words = (*memory.words, *said)
        return replace(memory, identity=identity, environment=dict(event["environment"]), words=words)
    if kind == "root":
        return replace(memory, roots=memory.roots | {event["path"]})
    if kind == "names":
        return replace(memory, names_kept=bool(event["kept"]))
    if kind == "writing":
        return replace(memory, written=_both(memory.written, event["cells"]))
    if kind == "unwritten":
        return replace(memory, written={k: v[1:] if k in event["cells"] else v for k, v in memory.written.items()})
    if kind == "stands":
        return replace(memory, states={**memory.states, **event["states"]})
    if kind == "heard":
        return replace(memory, heard=event["words"])
    if "step" not in event:
        return _apply_word(memory, kind, order, event)
    step = _apply_to_step(memory.of(event["step"]), kind, order, event)
    if kind in _PARTICIPLES or kind == "placed" or event.get("by_person"):
        verb = kind if kind in _PARTICIPLES else "accept"
        step = replace(step, words=(*step.words, _word(verb, order, event)))
    return replace(memory, steps={**memory.steps, event["step"]: step})


def _word(verb: str, order: int, event: Event) -> Word:
    return Word(verb, order, event.get("user", ""), event.get("why", ""), float(event["at"]))


def _apply_word(memory: Memory, kind: str, order: int, event: Event) -> Memory:
    """What a person says of the experiment as a whole."""
    if kind in ("renaming", "renamed", "rename-ended"):
        return _apply_renaming(memory, kind, order, event)
    if kind not in ("release", "pause", "resume"):
        return memory
    word = _word(kind, order, event)
    memory = replace(memory, words=(*memory.words, word))
    if kind == "release":
        return replace(memory, released=order)
    until = event.get("until")
    pause = Pause(word, None if until is None else float(until), event.get("until_text", "")) if kind == "pause" else None
    return replace(memory, pause=pause)


def _apply_renaming(memory: Memory, kind: str, order: int, event: Event) -> Memory:
    old, new = event["old"], event["new"]
    if kind == "renaming":
        return replace(memory, renaming=Renaming(old, new), words=(*memory.words, _word("rename", order, event)))
    if kind == "rename-ended":
        return replace(memory, renaming=None)

    def key(name: str, sign: str) -> str:
        return f"{new}{sign}{name.removeprefix(old + sign)}" if name.startswith(old + sign) else name

    steps = {name: step for name, step in memory.steps.items() if not name.startswith(f"{old}/")}
    for name, step in memory.steps.items():
        if name.startswith(f"{old}/"):
            # Numbers go on where the run left off, should its old name come back: names of jobs are made from both.
            steps[name] = _names_taken(step)
            steps[key(name, "/")] = replace(step, taken=memory.of(key(name, "/")).taken)
    return replace(
        memory,
        renaming=Renaming(old, new, is_told=True),
        steps=steps,
        states={key(name, "/"): word for name, word in memory.states.items()},
        written={key(name, "|"): texts for name, texts in memory.written.items()},
    )


def _names_taken(step: StepMemory) -> StepMemory:
    return StepMemory(taken=max([step.taken, *(attempt.number for attempt in step.attempts)]))


def _both(written: Mapping[str, tuple[str, ...]], cells: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    return {**written, **{key: (text, *written.get(key, ())[:1]) for key, text in cells.items()}}


def _apply_to_step(step: StepMemory, kind: str, order: int, event: Event) -> StepMemory:
    if kind in ("intent", "adopted"):
        return _with_attempt(step, kind, order, event)
    if kind in _OUTCOMES:
        changes = _OUTCOMES[kind](order, event)
        attempts = tuple(replace(a, **changes) if a.number == event["attempt"] else a for a in step.attempts)
        return replace(step, attempts=attempts)
    if kind == "done":
        evidence = tuple(event.get("evidence", ()))
        by_person = bool(event.get("by_person"))
        word = _word("accept", order, event) if by_person else None
        inputs = dict(event.get("inputs", {}))
        done = Done(event["definition"], order, by_person, evidence, event.get("meaning", {}), word, inputs)
        # A hold outlives the result: nothing is to follow it. What was to be cancelled has ended by itself.
        standing = step.word if step.word is not None and step.word.verb == "hold" and not done.by_person else None
        return replace(step, done=done, word=standing)
    if kind in ("hold", "cancel"):
        return replace(step, word=_word(kind, order, event))
    if kind == "release":
        return replace(step, word=None, released=order)
    if kind == "free":
        before = step.freed or Freed(frozenset(), 0, _word(kind, order, event))
        epochs = before.epochs | {int(epoch) for epoch in event["epochs"]}
        is_same_again = step.freed is not None and not step.freed.is_over
        size = before.size + (0 if is_same_again else int(event["bytes"]))
        return replace(step, freed=Freed(epochs, size, _word(kind, order, event)))
    if kind == "freed" and step.freed is not None:
        return replace(step, freed=replace(step.freed, is_over=True))
    if kind == "rerun":
        rerun = Rerun(float(event["at"]), order, event.get("newest"), _word(kind, order, event))
        return replace(step, word=None, released=order, done=None, rerun=rerun, freed=None)
    return step


_OUTCOMES: Mapping[str, Any] = {
    "submitted": lambda order, e: {"job": str(e["job"])},
    "refused": lambda order, e: {"refused": e["message"]},
    "limited": lambda order, e: {"limited": True},
    "lost": lambda order, e: {"lost": True},
    "unseen": lambda order, e: {"unseen_at": float(e["at"])},
    "seen": lambda order, e: {"unseen_at": None},
    "withdrawn": lambda order, e: {"withdrawn": True, "held": False},
    "queue-holding": lambda order, e: {"queue_hold": "asked"},
    "queue-held": lambda order, e: {"queue_hold": "held"},
    "unheld": lambda order, e: {"held": False, "queue_hold": ""},
    "missing": lambda order, e: {"missing_at": float(e["at"])},
    "ended": lambda order, e: {
        "job": str(e["job"]),
        "end": End(
            e["state"], e["failure"], float(e["ended"]), e.get("started"), e.get("exit_code", ""), order, e.get("detail", "")
        ),
    },
    "placed": lambda order, e: {"placement": e["placement"]},
    "reopened": lambda order, e: {"end": None, "missing_at": None, "unseen_at": None},
}


def _with_attempt(step: StepMemory, kind: str, order: int, event: Event) -> StepMemory:
    """An intent begins an attempt; an adoption confirms the attempt of its number, or stands for one nobody wrote down."""
    number, at = int(event["attempt"]), float(event["at"])
    known = next((a for a in step.attempts if a.number == number), None)
    if kind == "adopted" and known is not None and not event.get("by_hand"):
        # Under the name that the cluster shows: a site may put something before ours.
        adopted = replace(known, name=event["name"], job=str(event["job"]), lost=False, limited=False, refused=None)
        return replace(step, attempts=tuple(adopted if a is known else a for a in step.attempts))
    attempt = Attempt(
        number=number,
        name=event["name"],
        at=at,
        begins=float(event.get("begins", at)),
        order=order,
        definition=event.get("definition", ""),
        placement=event.get("placement", ""),
        output_dir=event.get("output_dir", ""),
        meaning=dict(event.get("meaning", {})),
        inputs=dict(event.get("inputs", {})),
        held=bool(event.get("held")),
        by_hand=bool(event.get("by_hand")),
        job=str(event["job"]) if kind == "adopted" else None,
    )
    return replace(step, attempts=(*(a for a in step.attempts if a.number != number), attempt))
