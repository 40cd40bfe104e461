"""``rename``: a run under another name, in its directories, in what is in writing, and in the document, in that order.

In this order nothing is ever submitted twice: until the end the document lists a run that has no directory. The intent is in
the ledger first, every step is one that may have been done already, and so the same words finish what was interrupted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from reconciler.act import move_aside
from reconciler.config_edit import originals_of
from reconciler.errors import DiskUnreadable, UsageError
from reconciler.experiment.document import decode
from reconciler.experiment.names import ACCEPTED, fault_of, same_name
from reconciler.experiment.renamed_text import mentions, rename_in_document, rename_in_tables
from reconciler.files import move, replace_file
from reconciler.ledger import Ledger
from reconciler.loop import Pass, Scene
from reconciler.memory import Renaming
from reconciler.model import Condition, Step
from reconciler.ownership import whose_jobs
from reconciler.text_limits import can_be_path
from reconciler.words import Deed, Prospect, named, under_lock

_LARGEST = 1 << 20  # bytes of a scaffolding file that are looked at
_SHOWN = 3
_LINES_SHOWN = 10
_LONGEST_LINE = 1 << 12  # characters of a line that are looked at
_BEGINS = re.compile(
    r"(?:^|(?<=[\s\"'=:,;()\[\]{}<>|&`]))(?=[^\s\"'=])|(?<=/)(?=/)"
)  # a path, also the second / of hf//scratch/…


def rename(scene: Scene, old: str, new: str, why: str, confirm: Callable[[Prospect], bool]) -> tuple[Deed, ...]:
    """Rename a run: what is done stays done. Outputs stay where ``finetune.yaml`` says, whatever name that has in it.

    Raises UsageError where the run or the new name is not fit, where a job of the run may be live, and where its own scripts
    would break.
    """
    with under_lock(scene) as (seen, ledger):
        begun = seen.memory.renaming
        if begun is None:
            _refuse(seen, old, new)
        elif (begun.old, begun.new) != (old, new):
            again = f"`reconcile rename {begun.old} {begun.new}`"
            raise UsageError(f"the renaming of {begun.old} to {begun.new} was interrupted; say {again} first")
        before, after = _texts(seen.desired.document, old, new)
        told = tuple(_told(seen, old, new, after))
        if not confirm(Prospect((f"rename {old} to {new}: its directory, its rows, and all that is in writing of it", *told))):
            return ()
        if begun is None:
            ledger.append("renaming", old=old, new=new, user=scene.user, why=why)
        _finish(seen, ledger, Renaming(old, new, begun is not None and begun.is_told), before, after)
    return (Deed("", f"{old} is {new} from now on"), *(Deed("", line) for line in told))


def _finish(seen: Pass, ledger: Ledger, renaming: Renaming, before: str, after: str) -> None:
    here, there = _directory_of(seen.desired.directory, renaming.old), seen.desired.directory / renaming.new
    _move(here, there)
    _move_originals(seen, renaming)
    if not renaming.is_told:
        ledger.append("renamed", old=renaming.old, new=renaming.new, path=str(here), to=str(there))
    document = seen.desired.document
    if after != before:
        _write(document, before, after)
    status = seen.desired.directory / "STATUS.md"
    if document.suffix != ".md" and status.is_file():
        text = _read(status)
        _write(status, text, rename_in_tables(text, status, renaming.old, renaming.new))
    ledger.append("rename-ended", old=renaming.old, new=renaming.new)


def _move(here: Path, there: Path) -> None:
    if not os.path.lexists(here):
        return  # moved already, or never scaffolded
    if os.path.lexists(there):
        raise UsageError(f"{there} is there already; nothing may be moved over it")
    try:
        move(here, there)
    except OSError as error:
        raise DiskUnreadable(f"{here}: cannot be renamed: {error.strerror}") from error


def _move_originals(seen: Pass, renaming: Renaming) -> None:
    """After the run's directory: before that, a pass could edit the run under its old name. What an earlier run of the new name
    left there is kept, out of the way."""
    here, there = (originals_of(seen.desired.directory, run) for run in (renaming.old, renaming.new))
    if not os.path.lexists(here):
        return  # moved already, or nothing was ever edited
    try:
        if os.path.lexists(there):
            move_aside(there, seen.now)
        move(here, there)
    except OSError as error:
        raise DiskUnreadable(f"{here}: cannot be renamed: {error.strerror}") from error


def _directory_of(experiment: Path, run: str) -> Path:
    """A run's directory as it is spelled on disk, which may compose its letters in another way than the document."""
    alike = (path for path in sorted(experiment.iterdir()) if same_name(path.name) == same_name(run))
    return next(alike, experiment / run)


# --- what is refused -----------------------------------------------------------------------------


def _refuse(seen: Pass, old: str, new: str) -> None:
    runs = dict.fromkeys(step.run for step in seen.desired.steps)
    if old not in runs:
        known = ", ".join([*runs][:5])
        raise UsageError(f"{old!r} is no run of this experiment; the runs are {known}")
    fault = fault_of(new)
    if fault is not None:
        raise UsageError(f"the name {new!r} {fault}; accepted: {ACCEPTED}")
    if any(same_name(run) == same_name(new) for run in runs) or os.path.lexists(seen.desired.directory / new):
        raise UsageError(f"there is a run or a directory {new!r} already")
    if any(key.startswith(f"{new}/") and m.attempts for key, m in seen.memory.steps.items()):
        raise UsageError(f"there was a run {new!r} before, of which jobs are in writing; take another name")
    _refuse_live(seen, old)
    _refuse_broken(seen, old)


def _refuse_live(seen: Pass, old: str) -> None:
    """A job runs in the directory, under the name and token of the old key."""
    for key, of_step in seen.memory.steps.items():
        opened = of_step.open
        if key.startswith(f"{old}/") and opened and _has_ended(seen, key):
            raise UsageError(f"{key}: its end is not in writing yet; `reconcile apply` writes it down first")
        if key.startswith(f"{old}/") and opened:
            what = f"job {opened[-1].job}" if opened[-1].job else "a submission that was never confirmed"
            raise UsageError(f"{key}: {what} may be live; rename the run when that has ended, or cancel it")
    for orphan in seen.plan.orphans:
        if not orphan.step or orphan.step.startswith(f"{old}/"):
            raise UsageError(f"job {orphan.job.id} is an orphan that may be this run's; wait for its end, or cancel it")
    ours = whose_jobs(seen.desired, seen.observed, seen.memory)
    for step in _steps(seen, old):
        action = seen.plan.of(step.key)
        live = [job for job in ours.of(step.key) if job.is_live]
        if live:
            raise UsageError(f"{step.key}: {named(live)} may be live; rename the run when that has ended, or cancel it")
        if action.condition in (Condition.QUEUED, Condition.RUNNING, Condition.UNKNOWN):
            raise UsageError(f"{step.key}: {action.reason.message}; rename the run when that is over")


def _has_ended(seen: Pass, key: str) -> bool:
    """True where this look tells how every open attempt of a step ended."""
    told = {event.get("attempt") for event in seen.plan.learned if event["step"] == key and event["event"] in ("ended", "lost")}
    return all(attempt.number in told for attempt in seen.memory.of(key).open)


def _refuse_broken(seen: Pass, old: str) -> None:
    """Scripts and settings that name the run's directory in full would miss it. Those of finished steps are not needed now, but
    for the one that tells where outputs are that move with it."""
    steps = _steps(seen, old)
    is_done = all(seen.plan.of(step.key).condition is Condition.DONE for step in steps)
    here = _directory_of(seen.desired.directory, old)
    moving = (step for step in steps if step.checkpoints and _is_inside(step, here))
    files = [file for step in moving for file in step.files] if is_done else _scaffolding(steps)
    places = [f"{here / file}:{line}" for file, line in _full_mentions(here, old, _within(here, files))]
    if places:
        raise UsageError(
            f"{_some(places)} name the directory of {old} in full, and would miss it; write a relative path "
            f"there{'' if is_done else ', or rename the run once all of it is done'}"
        )


def _some(places: list[str]) -> str:
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return ", ".join(places[:_SHOWN]) + more


def _is_inside(step: Step, directory: Path) -> bool:
    return Path(os.path.realpath(step.output_dir)).is_relative_to(os.path.realpath(directory))


def _scaffolding(steps: Iterable[Step]) -> Iterator[Path]:
    """What these steps were scaffolded with, whatever their tools are."""
    return (file for step in steps for file in (step.script, *step.files))


def _within(here: Path, files: Iterable[Path]) -> list[Path]:
    """Each of these files that is a run's own, as it stands in the run's directory."""
    return list(dict.fromkeys(file.relative_to(here) for file in files if file.is_relative_to(here)))


def _full_mentions(here: Path, run: str, files: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    """Where a run is named by way of its experiment's directory, in those of these files that are there: each file, as it stands
    in ``here``, where they are now, and the line."""
    for file in files:
        path = here / file
        for number, line in enumerate(_read(path).splitlines() if path.is_file() else (), start=1):
            if _leads_to(here.parent, run, line[:_LONGEST_LINE], path.parent):
                yield file, number


def _leads_to(experiment: Path, run: str, line: str, base: Path) -> bool:
    """True where a line has a path through the experiment's own directory to a run, however it gets there; a directory of outputs
    may have the same two names. What only the shell knows (``$ROOT``) counts where it has both."""
    real = os.path.realpath(experiment)
    for found in re.finditer(rf"/{re.escape(run)}(?![\w.+=@-])", line):
        for begins in _BEGINS.finditer(line, 0, found.start()):
            before = os.path.expanduser(os.path.expandvars(line[begins.start() : found.start()]))  # noqa: PTH111 (text in, text out)
            if "$" in before and before.endswith(f"/{Path(real).name}"):
                return True
            if (
                can_be_path(before)
                and os.path.realpath(base / before) == real
                and before.rpartition("/")[2] not in ("", ".", "..")
            ):
                return True
    return False


def _steps(seen: Pass, run: str) -> list[Step]:
    return [step for step in seen.desired.steps if step.run == run]


# --- texts ---------------------------------------------------------------------------------------


def _told(seen: Pass, old: str, new: str, after: str) -> Iterator[str]:
    """What still has the old name afterwards; ``after`` is the document's text then."""
    directory = seen.desired.directory
    outside = (step for step in _steps(seen, old) if not step.output_dir.is_relative_to(directory))
    for step in (step for step in outside if old in step.output_dir.name):
        yield f"its outputs stay in {step.output_dir}, where its own settings put them"
    lines = [str(line) for line in mentions(after, old)]
    if lines:
        more = f" and {len(lines) - _LINES_SHOWN} more" if len(lines) > _LINES_SHOWN else ""
        where = f"line{'s' if len(lines) > 1 else ''} {', '.join(lines[:_LINES_SHOWN])}{more} of {seen.desired.document.name}"
        yield f"only tables are rewritten; {old} is still named in {where}"
    here = _directory_of(directory, old)
    moved = here if os.path.lexists(here) else directory / new
    files = _within(here, _scaffolding(_steps(seen, old)))
    places = [f"{directory / new / file}:{line}" for file, line in _full_mentions(moved, old, files)]
    if places:
        verb = "names" if len(places) == 1 else "name"
        yield f"{_some(places)} {verb} the old directory, and would need a change before a rerun"


def _texts(document: Path, old: str, new: str) -> tuple[str, str]:
    """The document's text as it is and as it will be; the same where it was rewritten already."""
    text = _read(document)
    return text, rename_in_document(text, document, old, new)


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DiskUnreadable(f"{path}: {error.strerror}") from error
    if path.suffix in (".md", ".yaml", ".yml") and path.name.startswith(("experiment_summary", "STATUS")):
        decode(content, path)
        return content.decode("utf-8")
    return content[:_LARGEST].decode("utf-8", "replace")


def _write(path: Path, before: str, after: str) -> None:
    replace_file(path, after.encode("utf-8"), expected=before.encode("utf-8"))
