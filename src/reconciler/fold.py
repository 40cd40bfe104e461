"""The fold: what the ledger's events, oldest first, amount to; pure.

It is total: an event of a kind that this version does not know is kept in the ledger and ignored here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from reconciler.events import KINDS, Event, check, is_of_step
from reconciler.memory import (
    PARTICIPLES,
    WITHOUT_EVIDENCE,
    Attempt,
    Done,
    End,
    Freed,
    Identity,
    Memory,
    Pause,
    Renaming,
    Rerun,
    StepMemory,
    Word,
    overtaken,
    reopened,
    unedited,
    with_end,
)
from reconciler.model import Ask, Edit


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
            check(event)
        except ValueError as error:
            raise MalformedEvent(order) from error
        if is_of_step(event):
            steps[event["step"]] = _with_words(steps.get(event["step"], StepMemory()), event["event"], order, event)
        elif event["event"] in KINDS:
            memory = _apply(replace(memory, steps=steps), order, event)
            steps = dict(memory.steps) if memory.steps is not steps else steps
    return replace(memory, steps=steps)


def _apply(memory: Memory, order: int, event: Event) -> Memory:
    kind = event["event"]
    if kind == "opened":
        if event.get("what") == "moved" and memory.identity is not None:
            memory = replace(memory, former=(*memory.former, memory.identity.path))
            memory = _moved_whole(memory, memory.former[-1], event["path"])
        identity = Identity(event["cluster"], event["path"], event["user"])
        words = memory.words
        if "by" in event:
            about = f"--{event['what']}" if "what" in event else ""
            words += (replace(_word("adopt", order, event), user=event["by"], about=about),)
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
    if kind in PARTICIPLES or kind in ("placed", "restored") or event.get("by_person"):
        verb = kind if kind in PARTICIPLES else "accept"
        step = replace(step, words=(*step.words, _word(verb, order, event)))
    return step


def _word(verb: str, order: int, event: Event) -> Word:
    return Word(verb, order, event.get("user", ""), event.get("why", ""), float(event["at"]))


def _kept_why(word: Word, before: Word | None) -> Word:
    """A word said again without a reason keeps the reason that was given before."""
    return word if word.why or before is None else replace(word, why=before.why)


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
    if kind == "resume":
        return replace(memory, pause=None)
    before = memory.pause.word if memory.pause is not None and memory.pause.is_on(word.at) else None
    end = None if until is None else float(until)
    return replace(memory, pause=Pause(_kept_why(word, before), end, event.get("until_text", "")))


def _apply_renaming(memory: Memory, kind: str, order: int, event: Event) -> Memory:
    old, new = event["old"], event["new"]
    if kind == "renaming":
        word = replace(_word("rename", order, event), about=f"{old} → {new}")
        return replace(memory, renaming=Renaming(old, new), words=(*memory.words, word))
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
            taken = memory.of(key(name, "/")).taken
            steps[key(name, "/")] = _moved(replace(step, taken=taken), event.get("path", ""), event.get("to", ""))
    return replace(
        memory,
        renaming=Renaming(old, new, is_told=True),
        steps=steps,
        states={key(name, "/"): word for name, word in memory.states.items()},
        written={key(name, "|"): texts for name, texts in memory.written.items()},
    )


def _moved_whole(memory: Memory, path: str, to: str) -> Memory:
    """What was in the experiment's directory has moved with it."""
    steps = {key: _moved(step, path, to) for key, step in memory.steps.items()}
    return replace(memory, steps=steps, roots=frozenset(_there(root, path, to) for root in memory.roots))


def _moved(step: StepMemory, path: str, to: str) -> StepMemory:
    """What was in a directory has moved with it, also of a result that a rerun gave up and that may be taken back."""
    attempts = tuple(replace(attempt, output_dir=_there(attempt.output_dir, path, to)) for attempt in step.attempts)
    edits = tuple(replace(edit, path=Path(_there(str(edit.path), path, to))) for edit in step.edits)
    done, before, rerun = step.done, step.overtaken, step.rerun
    if done is not None:
        done = _result_moved(done, path, to)
    if before is not None:
        before = _result_moved(before, path, to)
    if rerun is not None and rerun.replaced is not None:
        rerun = replace(rerun, replaced=_moved(rerun.replaced, path, to))
    return replace(step, attempts=attempts, edits=edits, done=done, overtaken=before, rerun=rerun)


def _result_moved(done: Done, path: str, to: str) -> Done:
    return replace(done, evidence=tuple({**file, "path": _there(file["path"], path, to)} for file in done.evidence))


def _there(name: str, path: str, to: str) -> str:
    """A path as it is since ``path`` is ``to``."""
    return f"{to}{name[len(path) :]}" if path and f"{name}/".startswith(f"{path}/") else name


def _names_taken(step: StepMemory) -> StepMemory:
    return StepMemory(taken=max([step.taken, *(attempt.number for attempt in step.attempts)]))


def _both(written: Mapping[str, tuple[str, ...]], cells: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    return {**written, **{key: tuple(dict.fromkeys((text, *written.get(key, ())))) for key, text in cells.items()}}


def _without(written: Mapping[str, tuple[str, ...]], cells: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Less what did not reach the document after all, which need not be the newest where another pass wrote beside this one."""
    kept = dict(written)
    for key in kept.keys() & cells.keys():
        texts = list(kept.pop(key))
        if cells[key] in texts:
            texts.remove(cells[key])
        if texts:
            kept[key] = tuple(texts)
    return kept


def _apply_to_step(step: StepMemory, kind: str, order: int, event: Event) -> StepMemory:
    if kind == "intent":
        return _with_attempt(step, kind, order, event)
    if kind == "adopted":
        return overtaken(_with_attempt(step, kind, order, event))
    if kind == "reopened":
        attempts = tuple(reopened(a) if a.number == event["attempt"] else a for a in step.attempts)
        return overtaken(replace(step, attempts=attempts))
    if kind in _OUTCOMES:
        changes = _OUTCOMES[kind](order, event)
        attempts = tuple(replace(a, **changes) if a.number == event["attempt"] else a for a in step.attempts)
        changed = replace(step, attempts=attempts)
        return with_end(changed, changes["end"]) if kind == "ended" else changed
    if kind == "done":
        evidence = tuple(event.get("evidence", ()))
        by_person = bool(event.get("by_person"))
        word = _word("accept", order, event) if by_person else None
        inputs = dict(event.get("inputs", {}))
        definition = event["definition"]
        made = step.done if by_person else None
        generation, made_from = (made.generation, made.made_from) if made is not None else (definition, inputs)
        meaning, at = event.get("meaning", {}), float(event["at"])
        done = Done(definition, order, by_person, evidence, meaning, word, inputs, generation, made_from, at)
        # A hold outlives the result: nothing is to follow it. What was to be cancelled has ended by itself.
        standing = step.word if step.word is not None and step.word.verb == "hold" and not done.by_person else None
        attempts = step.attempts if by_person else _with_result(step)
        return replace(step, done=done, overtaken=None, word=standing, attempts=attempts)
    if kind == "edited":
        place = 0 if event.get("copied") else order
        edit = Edit(Path(event["path"]), event["key"], event["before"], event["after"], order=place, at=float(event["at"]))
        return replace(step, edits=_edited(step.edits, edit))
    if kind == "unedited":
        return replace(step, edits=unedited(step.edits, event["key"], event["after"]))
    if kind in ("hold", "cancel"):
        word = _kept_why(_word(kind, order, event), step.word)
        return replace(step, word=word, cancelled=order if kind == "cancel" else step.cancelled)
    if kind == "release":
        return replace(step, word=None, released=step.released if event.get("hold_only") else order)
    if kind == "free":
        before = step.freed or Freed(frozenset(), 0, _word(kind, order, event))
        epochs = before.epochs | {int(epoch) for epoch in event["epochs"]}
        is_same_again = step.freed is not None and not step.freed.is_over
        size = before.size + (0 if is_same_again else int(event["bytes"]))
        return replace(step, freed=Freed(epochs, size, _kept_why(_word(kind, order, event), before.word)))
    if kind == "freed" and step.freed is not None:
        return replace(step, freed=replace(step.freed, is_over=True))
    if kind == "rerun":
        rerun = Rerun(float(event["at"]), order, event.get("newest"), _word(kind, order, event), step.given_up or step)
        return replace(step, word=None, released=order, done=None, overtaken=None, anew=order, rerun=rerun, freed=None)
    if kind == "restored" and step.given_up is not None:
        return _restored(step, step.given_up)
    return step


def _restored(step: StepMemory, then: StepMemory) -> StepMemory:
    """A rerun taken back: as ``then``. Of a step without a result, what a person said of it since stands. A job that the rerun
    had us cancel was cancelled by us all the same."""
    assert step.rerun is not None
    is_released = step.released > step.rerun.order
    is_newer = then.done is None and (is_released or step.word is not None)
    return replace(
        step,
        done=then.done,
        overtaken=then.overtaken,
        anew=then.anew,
        word=step.word if is_newer else then.word,
        released=step.released if is_released else then.released,
        rerun=then.rerun,
        freed=then.freed,
        cancelled=max(step.cancelled, step.rerun.order),
    )


def _with_result(step: StepMemory) -> tuple[Attempt, ...]:
    """The attempts, of which the last has left what was seen to be missing at first."""
    return tuple(replace(a, missing_at=None) if a is step.last_begun else a for a in step.attempts)


def _edited(edits: tuple[Edit, ...], new: Edit) -> tuple[Edit, ...]:
    """An edit of a value edited before tells where it came from in the beginning; one that leads back there is none."""
    old = next((edit for edit in edits if edit.key == new.key), None)
    others = tuple(edit for edit in edits if edit is not old)
    whole = new if old is None else replace(new, before=old.before, via=(*old.via, old.after))
    return others if whole.before == whole.after else (*others, whole)


def _end(order: int, event: Event) -> End:
    told = {key: event.get(key, "") for key in ("exit_code", "detail", "nodes")}
    failure = event["failure"] or WITHOUT_EVIDENCE
    return End(event["state"], failure, float(event["ended"]), event.get("started"), order=order, **told)


_OUTCOMES: Mapping[str, Any] = {
    "submitted": lambda order, e: {"job": str(e["job"])},
    "refused": lambda order, e: {"refused": e["message"]},
    "limited": lambda order, e: {"limited": True, "limit": e["message"]},
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
        adopted = replace(known, name=event["name"], job=str(event["job"]), lost=False, limited=False, limit="", refused=None)
        return replace(step, attempts=tuple(adopted if a is known else a for a in step.attempts))
    before = [attempt for attempt in step.attempts if attempt.limited] if kind == "intent" else []
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
        commands=event.get("commands", ""),
        batch=dict(event.get("batch", {})),
        held=bool(event.get("held")),
        by_hand=bool(event.get("by_hand")),
        job=str(event["job"]) if kind == "adopted" else None,
        ask=Ask(**event["ask"]) if "ask" in event else None,
        kept_since=(before[-1].kept_since or before[-1].at) if before and before[-1] is step.attempts[-1] else None,
    )
    # What a limit of the site kept back is surely no job, and for weeks there may be one try after another.
    return replace(step, attempts=(*(a for a in step.attempts if a.number != number and a not in before), attempt))
