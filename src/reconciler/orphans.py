"""A person's word on orphans: live jobs of runs or steps that the document does not have any more.

They are cancelled by name alone, by ``cancel`` or ``apply --prune``, and never because a document lacks them: it may be half
saved. Where the step comes back, it is held like any step that a person cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial

from reconciler.errands import Errand, run, said_of
from reconciler.errors import ClusterUnreachable, UsageError
from reconciler.ledger import Ledger
from reconciler.loop import Pass, Scene, preview
from reconciler.model import Orphan, Step, Unknown, names_step
from reconciler.words import Considered, Deed, Order, Prospect, consider, under_lock, write

Confirm = Callable[[Prospect], bool]


def cancel(scene: Scene, names: Sequence[str], why: str, confirm: Confirm) -> tuple[Deed, ...]:
    """Cancel the jobs of steps and hold the steps, and cancel orphans, all that is named or nothing.

    Raises UsageError for a name that means neither, and where a step refuses, before anything is done.
    """
    with under_lock(scene) as (seen, ledger):
        chosen = [orphan for orphan in seen.plan.orphans if any(_means(seen, name, orphan) for name in names)]
        others = tuple(name for name in names if not names_orphans_alone(seen, name))
        order = Order("cancel", others, why)
        considered = consider(scene, seen, order) if others else Considered(order, (), ())
        prospect = Prospect((*map(_told, chosen), *considered.prospect.sentences))
        if not confirm(prospect):
            return ()
        pruned = [_write(scene, ledger, orphan, why) for orphan in chosen]
        court = write(scene, ledger, seen, considered)
        said = said_of([*map(_named, chosen), *(case.key for case in considered.cases)])
        run([*(_errand(scene, orphan) for orphan in chosen), *court.errands], said)
        return (*pruned, *court.done, *considered.skipped)


def prune(scene: Scene, names: Sequence[str], why: str, confirm: Confirm) -> tuple[Deed, ...]:
    """Cancel the orphans that are named, each by its run, its step (globs too) or its job's id.

    Raises UsageError for a name that is no orphan's and never was a run of this experiment, and for one that the document has.
    """
    with under_lock(scene) as (seen, ledger):
        chosen = [orphan for orphan in seen.plan.orphans if any(is_named(orphan, name) for name in names)]
        for name in names:
            _refuse_others(seen, name)
        if chosen and not confirm(Prospect(tuple(_told(orphan) for orphan in chosen))):
            return ()
        pruned = tuple(_write(scene, ledger, orphan, why) for orphan in chosen)
        run([_errand(scene, orphan) for orphan in chosen], said_of([_named(orphan) for orphan in chosen]))
        return pruned


def named(scene: Scene, names: Sequence[str]) -> tuple[Pass, tuple[Orphan, ...], tuple[Step, ...]]:
    """What there is, with the orphans and the steps that are named (all steps, where nothing is). Raises UsageError for a name of
    neither, ClusterUnreachable where nobody can say that it is of neither."""
    seen = preview(scene)
    if not all(any(names_step(name, step.key) for step in seen.desired.steps) for name in names):
        seen = preview(scene, always_ask=True)  # where everything is done, the queue was not asked
        _refuse_blindly(seen, names)
    theirs = [name for name in names if names_orphans_alone(seen, name)]
    others = [name for name in names if name not in theirs]
    found = tuple(orphan for orphan in seen.plan.orphans if any(is_named(orphan, name) for name in theirs))
    return seen, found, seen.desired.select(*others) if others or not theirs else ()


def _refuse_blindly(seen: Pass, names: Sequence[str]) -> None:
    if not isinstance(seen.observed.queue, Unknown):
        return
    for name in names:
        if not any(names_step(name, step.key) for step in seen.desired.steps) and not names_orphans_alone(seen, name):
            why = f"the queue cannot be asked: {seen.observed.queue.why}"
            raise ClusterUnreachable(f"no step matches {name!r}, and whether it names an orphan nobody can say; {why}")


def names_orphans_alone(seen: Pass, name: str) -> bool:
    """True where a name given to ``cancel`` means orphans and no step of the document."""
    is_step = any(names_step(name, step.key) for step in seen.desired.steps)
    return not is_step and any(is_named(orphan, name) for orphan in seen.plan.orphans)


def _means(seen: Pass, name: str, orphan: Orphan) -> bool:
    return names_orphans_alone(seen, name) and is_named(orphan, name)


def is_named(orphan: Orphan, name: str) -> bool:
    """True where a person means this orphan: by its job's id, or by its run or step, as a glob."""
    run = orphan.step.partition("/")[0]
    return name == orphan.job.id or (bool(orphan.step) and (fnmatchcase(run, name) or fnmatchcase(orphan.step, name)))


def _refuse_others(seen: Pass, name: str) -> None:
    if any(is_named(orphan, name) for orphan in seen.plan.orphans):
        return
    if any(name in (step.run, step.key) for step in seen.desired.steps):
        raise UsageError(f"{name} is in the document, and its jobs are no orphans; `reconcile cancel` cancels those")
    if any(fnmatchcase(key.partition("/")[0], name) or fnmatchcase(key, name) for key in seen.memory.steps):
        return  # a run of earlier, whose jobs have ended: there is nothing left to do
    known = sorted({_named(orphan) for orphan in seen.plan.orphans})
    raise UsageError(f"no orphan is named {name!r}; " + (f"the orphans are {', '.join(known)}" if known else "there is none"))


def _told(orphan: Orphan) -> str:
    return f"cancel job {orphan.job.id} ({orphan.job.state}) of {orphan.step or 'a step'}, which the document does not have"


def _named(orphan: Orphan) -> str:
    return orphan.step or f"job {orphan.job.id}"


def _write(scene: Scene, ledger: Ledger, orphan: Orphan, why: str) -> Deed:
    """The word first, as for every cancellation."""
    if orphan.step:
        ledger.append("cancel", step=orphan.step, user=scene.user, why=why)
    else:
        ledger.append("pruned", job=orphan.job.id, user=scene.user, why=why)
    return Deed(orphan.step, f"job {orphan.job.id} cancelled; the document does not have its step")


def _errand(scene: Scene, orphan: Orphan) -> Errand:
    """No pass cancels an orphan."""
    return Errand(orphan.job.id, "cancelled", partial(scene.backend.cancel, orphan.job.id), is_taken_up=False)
