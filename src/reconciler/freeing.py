"""``free``: delete the checkpoints of finished fine-tunes that were verified and evaluated; the record stays, and the step done.

What goes is decided from what is in writing of each file. The intent is in the ledger before anything goes, so that after a
crash the checkpoint counts as gone, and the same words finish the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.deletion import Finding, delete, examine
from reconciler.errors import UsageError
from reconciler.ledger import Ledger
from reconciler.loop import Pass, Scene
from reconciler.memory import Done
from reconciler.model import Condition, FileId, Stage, Step, Verb
from reconciler.sizes import size_text
from reconciler.staleness import is_trained_anew
from reconciler.words import Deed, Prospect, Skipped, left_alone, under_lock

_SHOWN = 3


@dataclass(frozen=True)
class _Case:
    """One fine-tune that may be freed: which of its epochs, and each verified file of those with the directory it must be in."""

    step: Step
    epochs: tuple[int, ...]
    files: tuple[tuple[Path, Finding], ...]
    was_freed: bool

    @property
    def going(self) -> tuple[tuple[Path, Finding], ...]:
        return tuple((directory, found) for directory, found in self.files if found.may_go)

    @property
    def size(self) -> int:
        return sum(found.size for _, found in self.going)


def free(scene: Scene, patterns: Sequence[str], why: str, confirm: Callable[[Prospect], bool]) -> tuple[Deed, ...]:
    """Delete the verified and evaluated checkpoints of fine-tunes. Nothing is deleted where one that is named refuses.

    Raises UsageError where there is nothing that may be freed, ClusterUnreachable where the queue cannot be asked.
    """
    with under_lock(scene) as (seen, ledger):
        cases, skipped = _cases(seen, patterns)
        told = (*map(_told, cases), *(f"{each.step}: {each.message}" for each in skipped))
        if not confirm(Prospect(told, asks=any(case.going for case in cases))):
            return ()
        return (*(_free(case, ledger, scene.user, why) for case in cases), *skipped)


def _cases(seen: Pass, patterns: Sequence[str]) -> tuple[list[_Case], tuple[Skipped, ...]]:
    """The fine-tunes that may be freed, and those that are skipped. Raises UsageError where one that is named may not be."""
    cases, refused = [], {}
    for step in _fine_tunes(seen, patterns):
        try:
            cases.append(_case(seen, step))
        except _MayNotGo as why:
            refused[step.key] = str(why)
    return cases, left_alone(patterns, refused, is_any_left=bool(cases))


def _fine_tunes(seen: Pass, patterns: Sequence[str]) -> list[Step]:
    chosen = seen.desired.select(*patterns)
    fine_tunes = [step for step in chosen if step.stage is Stage.FINETUNE]
    named = [step.key for step in chosen if step.stage is not Stage.FINETUNE and step.key in patterns]
    if named or not fine_tunes:
        raise UsageError(f"{', '.join(named or patterns)}: there is nothing to free but the checkpoints of fine-tunes")
    return fine_tunes


class _MayNotGo(Exception):
    """Why a fine-tune's checkpoints stay."""


def _case(seen: Pass, step: Step) -> _Case:
    """Raises _MayNotGo where nothing of the fine-tune may be freed."""
    result = _freeable(seen, step)
    memory = seen.memory.of(step.key)
    evaluated = {other.epoch for other in seen.desired.steps if other.need == step.key}
    epochs = tuple(sorted(epoch for epoch in step.checkpoints if epoch in evaluated))
    if not epochs:
        raise _MayNotGo("no evaluation of its checkpoints is in the plan; what was not evaluated is not freed")
    recorded = [FileId(str(f["path"]), int(f["size"]), int(f["mtime_ns"])) for f in result.evidence]
    places = [(step.checkpoints[epoch], file) for epoch in epochs for file in recorded]
    files = tuple((place, examine(place, file)) for place, file in places if Path(file.path).is_relative_to(place))
    case = _Case(step, epochs, files, memory.freed is not None)
    _refuse_what_changed(case, result)
    if not case.going and not case.was_freed:
        why = _kept(case) or ("the files are gone already" if files else f"no file in writing is in {step.output_dir}")
        raise _MayNotGo(f"there is nothing to delete: {why}")
    return case


def _refuse_what_changed(case: _Case, result: Done) -> None:
    """What a person accepted may be another training than the one whose files are in writing."""
    if result.by_person and _kept(case):
        raise _MayNotGo(f"its result was accepted by a person, and its files are not those verified: {_kept(case)}")


def _freeable(seen: Pass, step: Step) -> Done:
    """The result of a fine-tune that nothing needs any more; raises _MayNotGo where that is not so."""
    action = seen.plan.of(step.key)
    result = seen.memory.of(step.key).done
    if step.run in seen.desired.hidden:
        raise _MayNotGo(f"not all evaluations of {step.run} are known, and one may need it")
    if action.verb is Verb.MARK_DONE:
        raise _MayNotGo(
            "only checkpoints in writing as done are freed; it verifies, and `reconcile apply` writes that down first"
        )
    if action.condition is not Condition.DONE or result is None:
        why = f"{action.condition.value}: {action.reason.message}"
        raise _MayNotGo(f"only checkpoints in writing as done are freed, and it is {why}")
    if not result.evidence:
        raise _MayNotGo("nothing in writing tells which of its files were verified")
    for other in seen.desired.steps:
        if step.key not in other.sources:
            continue
        if seen.plan.of(other.key).condition is not Condition.DONE:
            raise _MayNotGo(f"{other.key} needs it and is not done ({seen.plan.of(other.key).reason.message})")
        if seen.plan.of(other.key).verb is Verb.MARK_DONE:
            raise _MayNotGo(f"{other.key} needs it and verifies; `reconcile apply` writes that down first")
        if is_trained_anew(_result(seen, other.key), seen.memory.of(step.key)):
            again = "evaluate it (`rerun --stale`)" if other.stage is Stage.EVALUATION else "begin from it (`rerun`)"
            raise _MayNotGo(f"it was trained anew since {other.key}, which has to {again}")
    for orphan in seen.plan.orphans:
        if not orphan.step or orphan.step.startswith(f"{step.run}/"):
            raise _MayNotGo(f"job {orphan.job.id}, of a step that the document does not have, may need it")
    return result


def _result(seen: Pass, key: str) -> Done:
    result = seen.memory.of(key).done
    assert result is not None, "what is done is in writing"
    return result


def _told(case: _Case) -> str:
    names = ", ".join(f"epoch_{epoch}" for epoch in case.epochs)
    kept = _kept(case)
    return (
        f"free {case.step.key}: {len(case.going)} verified files of {names} in {case.step.output_dir} are deleted, which "
        f"gives back {size_text(case.size)}; the record stays{f'; left as they are: {kept}' if kept else ''}"
    )


def _kept(case: _Case) -> str:
    kept = [f"{Path(found.file.path).name} ({found.objection})" for _, found in case.files if found.objection]
    return ", ".join(kept[:_SHOWN]) + (f" and {len(kept) - _SHOWN} more" if len(kept) > _SHOWN else "")


def _free(case: _Case, ledger: Ledger, user: str, why: str) -> Deed:
    key = case.step.key
    ledger.append("free", step=key, user=user, why=why, epochs=list(case.epochs), bytes=case.size)
    gone = [delete(directory, found.file) for directory, found in case.going]
    ledger.append("freed", step=key)
    given = sum(found.size for found in gone)
    left = [found for found in gone if found.objection]
    message = f"freed, which gave back {size_text(given)}" if gone else "was freed before; nothing was left to delete"
    return Deed(key, message + (f"; {len(left)} files changed meanwhile and were left" if left else ""))
