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
from pathlib import Path
from typing import Any

from reconciler.model import Ask, Edit
from reconciler.sizes import size_text

Event = Mapping[str, Any]

LATEST = sys.maxsize
"""The order of what this pass has just learned and not yet written."""


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


@dataclass(frozen=True)
class Attempt:
    """One submission of a step: its intent, then whatever became known of it.

    ``job`` None with none of ``refused``, ``limited`` and ``lost`` is an unconfirmed submission. ``unseen_at`` is when its job
    was first in neither queue nor accounting, ``missing_at`` when the ended job's outputs were first seen not to verify.
    ``options`` are those that it was submitted with over its script's own, ``from_epoch`` how many whole epochs it went on from.
    ``held`` is True while the job is held by ourselves; ``withdrawn`` that we cancelled it before it could start,
    ``withdrawing`` that we set out to. ``ask`` is what its job asked for, None where an earlier version did not write that down;
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
    held: bool = False
    by_hand: bool = False
    job: str | None = None
    refused: str | None = None
    limited: bool = False
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
    person's last ``release`` or ``rerun``. Attempts up to ``taken`` were made under this key by a run that has another name now.
    ``word`` is the ``hold`` or ``cancel`` that stands, ``words`` is all of them. ``edits`` are those of the run's configuration
    that we set out to make and neither took back nor found gone (``remember_edits``)."""

    attempts: tuple[Attempt, ...] = ()
    done: Done | None = None
    word: Word | None = None
    released: int = 0
    rerun: Rerun | None = None
    edits: tuple[Edit, ...] = ()
    words: tuple[Word, ...] = ()
    freed: Freed | None = None
    taken: int = 0

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
    def open(self) -> tuple[Attempt, ...]:
        """The attempts whose outcome is not in writing; any of them, not the newest alone, may have a live job."""
        return tuple(attempt for attempt in self.attempts if attempt.is_open)


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
        self.order = order


def fold(events: Iterable[Event]) -> Memory:
    """Memory from events, oldest first. Raises MalformedEvent for one that lacks what its kind has, or has it in another form."""
    memory = Memory()
    steps: dict[str, StepMemory] = {}
    for order, event in enumerate(events, start=1):
        try:
            _check(event)
            if "step" in event:
                steps[event["step"]] = _with_words(steps.get(event["step"], StepMemory()), event["event"], order, event)
            else:
                memory = _apply(replace(memory, steps=steps), order, event)
                steps = dict(memory.steps) if memory.steps is not steps else steps
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise MalformedEvent(order) from error
    return replace(memory, steps=steps)


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
        return replace(memory, written=_without(memory.written, event["cells"]))
    if kind == "stands":
        return replace(memory, states={**memory.states, **event["states"]})
    if kind == "heard":
        return replace(memory, heard=event["words"])
    return _apply_word(memory, kind, order, event)


def _with_words(step: StepMemory, kind: str, order: int, event: Event) -> StepMemory:
    """What an event makes of a step, a person's word on it among all the others."""
    step = _apply_to_step(step, kind, order, event)
    if kind in _PARTICIPLES or kind == "placed" or event.get("by_person"):
        verb = kind if kind in _PARTICIPLES else "accept"
        step = replace(step, words=(*step.words, _word(verb, order, event)))
    return step


# --- the forms of what events hold -----------------------------------------------------------------

_LATEST_TIME = 253402300800.0  # epoch seconds: the year 10000


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and abs(value) < _LATEST_TIME  # NaN is less than nothing


def _is_time_or_unknown(value: object) -> bool:
    return value is None or _is_time(value)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_job(value: object) -> bool:
    """An id as clusters give them: it goes on a command line, where it must not be an option."""
    return isinstance(value, str) and value[:1] in tuple("0123456789") and value.isprintable()


def _is_text_or_none(value: object) -> bool:
    return value is None or _is_text(value)


def _is_ask(value: object) -> bool:
    """GPUs, seconds and where, as ``Ask`` has them."""
    if not isinstance(value, dict) or value.keys() != {"gpus", "seconds", "where"} or not _is_text(value["where"]):
        return False
    return (value["gpus"] is None or _is_number(value["gpus"])) and _is_time_or_unknown(value["seconds"])


def _are_texts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _are_flags(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_flag, value.values()))


def _are_cells(value: object) -> bool:
    return _are_texts(value) or (isinstance(value, list) and all(map(_is_text, value)))


def _are_files(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(file, dict) and _is_file(file) for file in value)


def _is_file(value: Mapping[str, object]) -> bool:
    return isinstance(value["path"], str) and isinstance(value["size"], int) and isinstance(value["mtime_ns"], int)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 10**9


_FORMS = {
    "at": _is_time, "begins": _is_time, "ended": _is_time, "started": _is_time_or_unknown, "begun": _is_time_or_unknown,
    "newest": _is_time_or_unknown,
    "attempt": _is_number, "job": _is_job, "held": _is_flag, "by_hand": _is_flag, "by_person": _is_flag, "kept": _is_flag,
    "step": _is_text, "name": _is_text, "definition": _is_text, "placement": _is_text, "output_dir": _is_text,
    "message": _is_text,
    "state": _is_text, "failure": _is_text, "exit_code": _is_text, "user": _is_text, "why": _is_text, "words": _is_text,
    "cluster": _is_text, "path": _is_text, "environment": _are_flags, "cells": _are_cells, "states": _are_texts,
    "meaning": _are_texts, "evidence": _are_files, "options": _are_texts, "from_epoch": _is_number, "detail": _is_text,
    "nodes": _is_text, "key": _is_text, "before": _is_text_or_none, "after": _is_text_or_none, "ask": _is_ask,
}  # fmt: skip


def _check(event: Event) -> None:
    """Raises ValueError where something of a known kind of event is not in its form; what later versions add is theirs."""
    if event["event"] in _KINDS and not all(_FORMS[key](value) for key, value in event.items() if key in _FORMS):
        raise ValueError(event)


# --- events one by one -------------------------------------------------------------------------------


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
        # A pass between a kill and these same words wrote under the old name what the document has under the new one by now.
        between = {f"{new}{name[len(old) :]}": texts for name, texts in memory.written.items() if name.startswith(f"{old}|")}
        written = {name: (*texts, *memory.written.get(name, ())) for name, texts in between.items()}
        return replace(memory, renaming=None, written={**memory.written, **written})

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


def _without(written: Mapping[str, tuple[str, ...]], cells: Mapping[str, str] | list[str]) -> dict[str, tuple[str, ...]]:
    """Less what did not reach the document after all, which need not be the newest where another pass wrote beside this one. Once
    only the cells' names were written down."""
    kept = dict(written)
    for key in kept.keys() & set(cells):
        texts = list(kept.pop(key))
        text = cells[key] if isinstance(cells, Mapping) else texts[0]
        if text in texts:
            texts.remove(text)
        if texts:
            kept[key] = tuple(texts)
    return kept


def _apply_to_step(step: StepMemory, kind: str, order: int, event: Event) -> StepMemory:
    if kind in ("intent", "adopted"):
        return _with_attempt(step, kind, order, event)
    if kind == "reopened":
        return replace(step, attempts=tuple(reopened(a) if a.number == event["attempt"] else a for a in step.attempts))
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
    if kind == "edited":
        edit = Edit(Path(event["path"]), event["key"], event["before"], event["after"], order=order)
        return replace(step, edits=_edited(step.edits, edit))
    if kind == "unedited":
        return replace(step, edits=unedited(step.edits, event["key"], event["after"]))
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


def _edited(edits: tuple[Edit, ...], new: Edit) -> tuple[Edit, ...]:
    """An edit of a value edited before tells where it came from in the beginning; one that leads back there is none."""
    old = next((edit for edit in edits if edit.key == new.key), None)
    others = tuple(edit for edit in edits if edit is not old)
    whole = new if old is None else replace(new, before=old.before, via=(*old.via, old.after))
    return others if whole.before == whole.after else (*others, whole)


def unedited(edits: tuple[Edit, ...], key: str, now: str | None) -> tuple[Edit, ...]:
    """The edits less what the file does not show: none of that key, or the part of it that led to what is there ``now``."""
    kept = []
    for edit in edits:
        if edit.key != key:
            kept.append(edit)
        elif now in edit.via:
            kept.append(replace(edit, after=now, via=edit.via[: edit.via.index(now)]))
    return tuple(kept)


def _end(order: int, event: Event) -> End:
    told = {key: event.get(key, "") for key in ("exit_code", "detail", "nodes")}
    return End(event["state"], event["failure"], float(event["ended"]), event.get("started"), order=order, **told)


_OUTCOMES: Mapping[str, Any] = {
    "submitted": lambda order, e: {"job": str(e["job"])},
    "refused": lambda order, e: {"refused": e["message"]},
    "limited": lambda order, e: {"limited": True},
    "lost": lambda order, e: {"lost": True},
    "unseen": lambda order, e: {"unseen_at": float(e["at"])},
    "seen": lambda order, e: {"unseen_at": None},
    "withdrawing": lambda order, e: {"withdrawing": True},
    "withdrawn": lambda order, e: {"withdrawn": True, "held": False},
    "queue-holding": lambda order, e: {"queue_hold": "asked"},
    "queue-held": lambda order, e: {"queue_hold": "held"},
    "unheld": lambda order, e: {"held": False, "queue_hold": "", "withdrawing": False},
    "missing": lambda order, e: {"missing_at": float(e["at"])},
    "ended": lambda order, e: {
        "job": str(e["job"]),
        "end": _end(order, e),
    },
    "placed": lambda order, e: {"placement": e["placement"]},
}


_KINDS = frozenset(
    {"opened", "root", "names", "writing", "unwritten", "stands", "heard", "intent", "adopted", "done", "hold", "cancel"}
    | {"release", "rerun", "moved", "edited", "unedited", "reopened", *_OUTCOMES}
)


def reopened(attempt: Attempt) -> Attempt:
    """An attempt whose job was thought ended, and is live: Slurm requeues under the same id. The time that it took counts."""
    end = attempt.end
    took = max(0.0, end.at - end.started) if end is not None and end.started is not None else 0.0
    return replace(attempt, end=None, missing_at=None, unseen_at=None, worked=attempt.worked + took)


def _with_attempt(step: StepMemory, kind: str, order: int, event: Event) -> StepMemory:
    """An intent begins an attempt; an adoption confirms the attempt of its number, or stands for one nobody wrote down."""
    number = int(event["attempt"])
    # An adopted job may have begun long before it was found.
    at = float(event["at"] if event.get("begun") is None else event["begun"])
    known = next((a for a in step.attempts if a.number == number), None)
    if kind == "intent" and known is not None:
        return step  # of two passes that meant to make the same attempt, one alone could claim it
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
        options=dict(event.get("options", {})),
        from_epoch=int(event.get("from_epoch", 0)),
        meaning=dict(event.get("meaning", {})),
        inputs=dict(event.get("inputs", {})),
        held=bool(event.get("held")),
        by_hand=bool(event.get("by_hand")),
        job=str(event["job"]) if kind == "adopted" else None,
        ask=Ask(**event["ask"]) if "ask" in event else None,
    )
    return replace(step, attempts=(*(a for a in step.attempts if a.number != number), attempt))
