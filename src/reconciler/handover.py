"""A person's word on whose experiment this is: moved, copied, on another cluster, taken over from a colleague.

One word changes one thing, and the others are asked for in turn. Jobs that this user cannot see on this cluster are unknown and
not absent: while one may be live, only a person can say that it is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from reconciler.act import move_aside
from reconciler.errors import DiskUnreadable, UsageError
from reconciler.experiment.load import load
from reconciler.experiment.strays import left_behind
from reconciler.ledger import Ledger
from reconciler.lock import pass_lock
from reconciler.loop import Scene, current_identity, environment_facts
from reconciler.memory import Attempt, Identity, Memory
from reconciler.model import Desired, Stage
from reconciler.words import Deed, Prospect

_BEGINNING = 4096
"""Bytes; the first line of a ledger is shorter."""

KINDS = ("moved", "copied", "cluster", "user", "environment")


def accept_identity(
    scene: Scene,
    what: str,
    why: str = "",
    *,
    jobs_gone: bool = False,
    confirm: Callable[[Prospect], bool] = lambda prospect: True,
) -> tuple[Deed, ...]:
    """Go on with an experiment of which one thing has changed: ``what`` is one of KINDS.

    ``jobs_gone`` is a person's word that every job which is not known to have ended has: their steps count as cancelled. A copy
    starts without memory, for what the ledger tells of jobs belongs to the original; the old ledger is kept beside the new one.
    Our edits of configurations alone stay in writing, so that they are not taken for a person's.
    Raises UsageError where there is nothing to accept, and where jobs may be live that nobody here can see.
    """
    desired = load(scene.experiment, scene.tools, scene.disk)
    with pass_lock(desired.directory):
        ledger = Ledger(desired.directory, scene.clock)
        memory = ledger.memory()
        if memory.identity is None:
            raise UsageError(f"{desired.directory}: nothing is known of this experiment yet, so there is nothing to accept")
        here = current_identity(scene, desired.directory)
        environment = environment_facts(scene.environment)
        _refuse_unchanged(memory, here, environment, what)
        if what == "moved":
            _refuse_beside_original(scene, memory.identity, ledger)
        opened = [] if what == "copied" else _open(memory)
        if what in ("cluster", "user") and not jobs_gone:
            _refuse_unseen(memory.identity, here, what, opened)
        now = left_behind(desired, (*memory.former, memory.identity.path)) if what == "moved" else desired
        told = _told_of_copy(desired, memory) if what == "copied" else ()
        if what in ("moved", "copied"):
            told += tuple(f"warning: {step.key}: {step.blocked.message}" for step in now.steps if step.blocked is not None)
        known = here if what == "copied" else _changed(memory.identity, here, what)
        message = f"reconciled from now on as {known.user} on {known.cluster} at {known.path}"
        if not confirm(Prospect((*told, f"{what}: {message}"))):
            return ()
        if what == "copied":
            move_aside(ledger.path, scene.clock())
            ledger = Ledger(desired.directory, scene.clock)
            _keep_edits(ledger, desired, memory)
        gone = _close(ledger, scene, opened) if jobs_gone else ()
        kept = memory.environment if what == "moved" else environment
        facts = {"cluster": known.cluster, "path": known.path, "user": known.user}
        ledger.append("opened", **facts, environment=dict(kept), by=scene.user, why=why, what=what)
    return (Deed("", message), *(Deed("", line) for line in told), *gone)


def _refuse_unchanged(memory: Memory, here: Identity, environment: Mapping[str, bool], what: str) -> None:
    """The word is about something that has changed; a copy without memory in the place of its original would lose that."""
    known = memory.identity
    assert known is not None
    now = {"moved": here.path, "copied": here.path, "cluster": here.cluster, "user": here.user}.get(what, dict(environment))
    before = {"moved": known.path, "copied": known.path, "cluster": known.cluster, "user": known.user}
    if now == before.get(what, dict(memory.environment)):
        named = {"environment": "this environment has what the first pass had"}
        unchanged = named.get(what, f"this experiment is reconciled as {known.user} on {known.cluster} at {known.path}")
        raise UsageError(f"{here.path}: {unchanged} already; there is nothing to accept with --{what}")


def _refuse_beside_original(scene: Scene, known: Identity, ledger: Ledger) -> None:
    """Where the place that it was moved from still has the beginning of this ledger, that is the original, and would go on with
    the same jobs into the same directories. Another experiment in that place has begun otherwise."""
    original = Ledger(Path(known.path), scene.clock).path
    there, ours = (scene.disk.read(path, 0, _BEGINNING) for path in (original, ledger.path))
    if there is None or ours is None or there.partition(b"\n")[0] != ours.partition(b"\n")[0]:
        return
    try:
        if original.samefile(ledger.path):
            return
    except OSError as error:
        raise DiskUnreadable(f"{original}: {error.strerror}") from error
    raise UsageError(
        f"{known.path}: the experiment is still there, and knows the same jobs ({original}). If this is a copy, say --copied; "
        "if it was moved, remove or rename what is left there"
    )


def _changed(known: Identity, here: Identity, what: str) -> Identity:
    """What is known, with the one thing changed that the word is about."""
    changes = {"moved": {"path": here.path}, "user": {"user": here.user}, "cluster": {"cluster": here.cluster}}
    return replace(known, **changes.get(what, {}))


def _open(memory: Memory) -> list[tuple[str, Attempt]]:
    """Attempts whose end is not in writing, of runs that were dropped too."""
    return [(key, attempt) for key, of_step in memory.steps.items() for attempt in of_step.open]


def _refuse_unseen(known: Identity, here: Identity, what: str, opened: list[tuple[str, Attempt]]) -> None:
    if not opened or getattr(known, what) == getattr(here, what):
        return
    named = ", ".join(f"{key} ({_job(attempt)})" for key, attempt in opened)
    of_user = f"of {known.user}, which {here.user} cannot see"
    whose = of_user if what == "user" else f"on {known.cluster}, not seen from {here.cluster}"
    raise UsageError(
        f"these may have live jobs {whose}: {named}. Have them ended and a pass made there first "
        f"(`reconcile cancel`, then `reconcile apply`), or say --jobs-gone when they are surely gone"
    )


def _job(attempt: Attempt) -> str:
    return f"job {attempt.job}" if attempt.job is not None else "a submission that was never confirmed"


def _close(ledger: Ledger, scene: Scene, opened: list[tuple[str, Attempt]]) -> tuple[Deed, ...]:
    """The attempts have ended by a person's word; what they left is looked at, and a person decides what follows."""
    for key, attempt in opened:
        if attempt.job is None:
            ledger.append("withdrawn", step=key, attempt=attempt.number)
        else:
            facts = {"state": "UNKNOWN", "failure": "CancelledByPerson", "detail": f"said to be gone by {scene.user}"}
            ledger.append("ended", step=key, attempt=attempt.number, job=attempt.job, ended=scene.clock(), **facts)
    return tuple(Deed(key, f"{_job(attempt)} counts as gone") for key, attempt in opened)


def _told_of_copy(desired: Desired, memory: Memory) -> tuple[str, ...]:
    """What a copy still shares with its original. Raises UsageError where the original may be writing there now."""
    told = []
    for step in desired.steps:
        if step.stage is not Stage.FINETUNE:
            continue
        of_original = [(k, a) for k, m in memory.steps.items() for a in m.attempts if a.output_dir == str(step.output_dir)]
        live = [(key, attempt) for key, attempt in of_original if attempt.is_open]
        if live:
            message = f"{_job(live[-1][1])} of the original's {live[-1][0]} may be writing to {step.output_dir}"
            raise UsageError(f"{step.key}: {message}; give the copy an output directory of its own")
        if of_original:
            told.append(f"warning: {step.key} has the output directory of the original, {step.output_dir}")
        for edit in memory.of(step.key).edits:
            if edit.key in step.written and step.written[edit.key].text == edit.after:
                back = f"{edit.key} {edit.after} → {edit.before or '(none)'}"
                told.append(f"{step.key}: the original's edit of {step.config} is taken back by the first submission ({back})")
    return tuple(told)


def _keep_edits(ledger: Ledger, desired: Desired, memory: Memory) -> None:
    """What we changed in the original's configurations, from each value to the next; of what a person has changed since, the next
    pass sees that it is theirs."""
    for key, of_step in memory.steps.items():
        step = desired.step(key)
        for edit in of_step.edits:
            path = step.resume.path if step is not None and step.resume is not None else edit.path
            for before, after in pairwise((edit.before, *edit.via, edit.after)):
                ledger.append("edited", step=key, path=str(path), key=edit.key, before=before, after=after, copied=True)
