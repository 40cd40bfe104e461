"""Write down how the experiment stands: the document's status tables and the tools' own logs.

Called after acting, from what was decided and from the ledger; it decides nothing. Where the document changed meanwhile it
is left alone, and the next pass writes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.act import Outcome
from reconciler.errors import PermanentError, TemporaryError
from reconciler.experiment.document import LARGEST
from reconciler.failures import CANCELLED
from reconciler.files import read_file, replace_file
from reconciler.ledger import Ledger
from reconciler.memory import Memory, StepMemory
from reconciler.model import (
    NEED_UNMET,
    NOT_SELECTED,
    Action,
    Condition,
    Desired,
    Job,
    Observed,
    OutputState,
    Policy,
    Stage,
    Step,
    Unknown,
    Verb,
    digest,
)
from reconciler.ownership import all_jobs
from reconciler.ports import Tools
from reconciler.status_tables import StatusRow, title, update_document
from reconciler.tool_log import append_block

_WORDS = {
    Condition.WAITING: "WAITING",
    Condition.QUEUED: "PENDING",
    Condition.RUNNING: "RUNNING",
    Condition.VERIFYING: "UNVERIFIED",
    Condition.DONE: "COMPLETED",
    Condition.HELD: "HELD",
    Condition.DRIFTED: "DRIFTED",
    Condition.BLOCKED: "WAITING",
}
_ORDINARY_WAITS = ("NotStarted", NEED_UNMET, "MaxInFlight", "Canary")  # a step whose turn has not come: PENDING, without a note
_FAILURES = {"TimeLimit": "TIMEOUT", "OutOfMemoryHost": "OUT_OF_MEMORY", **dict.fromkeys(CANCELLED, "CANCELLED")}


@dataclass(frozen=True)
class Recorded:
    """``notes`` is what a person should hear of the recording. ``is_news``: the pass did something, or a step stands
    otherwise than after the pass before, or there is something else to be said."""

    notes: tuple[str, ...]
    is_news: bool


def record(
    desired: Desired,
    outcomes: Sequence[Outcome],
    observed: Observed,
    ledger: Ledger,
    tools: Tools,
    policy: Policy,
    now: float,
) -> Recorded:
    """Update the status tables and append to the tools' logs."""
    memory = ledger.memory()
    jobs = {(job.id, job.name): job for job in all_jobs(observed)}  # ids come back
    steps = [(step, outcome) for step, outcome in zip(desired.steps, outcomes, strict=True)]
    rows = {step.key: row for step, outcome in steps if (row := _row(step, outcome.action, memory.of(step.key), jobs))}
    notes: tuple[str, ...] = ()
    try:
        _write_logs(desired, steps, memory, rows, tools, now)
    except TemporaryError as error:
        notes = (f"the tools' logs were not written: {error}",)
    if policy.document != "none" and rows:
        notes += _write_tables(desired, tuple(rows.values()), ledger, memory)
    has_moved = _remember_states(ledger, memory, rows)
    failures = [f"{outcome.action.step}: {outcome.action.reason.code}" for outcome in outcomes if outcome.result != "applied"]
    if isinstance(observed.queue, Unknown):
        failures.append("the cluster cannot be observed")
    failures += [f"{step.key}: {code}" for step, outcome in steps if (code := _out_of_sight(step, outcome.action, observed))]
    has_more_to_say = _remember_words(ledger, memory, [*(str(problem) for problem in desired.problems), *notes, *failures])
    has_acted = any(outcome.action.changes_something for outcome in outcomes)
    return Recorded(notes, has_acted or has_moved or has_more_to_say)


def _out_of_sight(step: Step, action: Action, observed: Observed) -> str:
    """Why a step is unknown, where that is for its outputs: its row stays as it is, and a person should hear of it."""
    outputs = observed.outputs.get(step.key)
    if action.condition is not Condition.UNKNOWN or outputs is None or outputs.state is not OutputState.UNKNOWN:
        return ""
    return outputs.reason.code


# --- rows --------------------------------------------------------------------------------------------


def _row(step: Step, action: Action, memory: StepMemory, jobs: Mapping[tuple[str, str], Job]) -> StatusRow | None:
    """A step's row; None where nobody knows how it stands, so that what the table says stays."""
    status = status_word(action)
    if status is None:
        return None
    last = memory.last_begun
    job = jobs.get((last.job, last.name)) if last is not None and last.job is not None else None
    end = last.end if last is not None else None
    started = (end.started if end else None) or (job.started if job else None)
    is_over = action.condition in (Condition.DONE, Condition.FAILED)
    completed = end.at if end is not None and is_over else None
    return StatusRow(
        run=step.run,
        stage=step.stage,
        task=step.task,
        epoch=step.epoch,
        status=status,
        job_id=(last.job if last is not None and last.job else ""),
        started=_local(started),
        completed=_local(completed),
        notes=_notes(action, started, completed, [e.words for e in memory.edits if e.key != _resume_key(step)]),
    )


def status_word(action: Action) -> str | None:
    """The word for the Status column; None while unknown, and for a step that this pass was told to leave alone."""
    if action.reason.code == NOT_SELECTED:
        return None
    if action.condition is Condition.FAILED:
        return _FAILURES.get(action.reason.code, "FAILED")
    if action.condition is Condition.WAITING and action.reason.code in _ORDINARY_WAITS:
        return "PENDING"
    if action.condition is Condition.HELD and action.reason.code == "CancelledByPerson":
        return "CANCELLED"
    return _WORDS.get(action.condition)


def _notes(action: Action, started: float | None, completed: float | None, edits: Sequence[str]) -> str:
    """``edits`` are those of ours that change the science: they stay beside the result."""
    if action.condition is Condition.DONE:
        took = elapsed(completed - started) if started is not None and completed is not None else ""
        return "; ".join(part for part in (took, *edits) if part)
    if action.condition in (Condition.RUNNING, Condition.QUEUED):
        return "; ".join(edits)
    return "" if action.reason.code in _ORDINARY_WAITS else action.reason.code


def elapsed(seconds: float) -> str:
    """A duration as readers of these documents know it: ``8m 3s``, ``2h 4m 10s``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return " ".join(f"{value}{unit}" for value, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if value or unit == "s")


def _resume_key(step: Step) -> str:
    return step.resume.key if step.resume is not None else ""


def _local(at: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if at else ""


# --- the document ------------------------------------------------------------------------------------


def _write_tables(desired: Desired, rows: Sequence[StatusRow], ledger: Ledger, memory: Memory) -> tuple[str, ...]:
    """The tables in the markdown document, or in ``STATUS.md`` beside the YAML one; there too every other byte is a person's."""
    is_own = desired.document.suffix == ".md"
    target = desired.document if is_own else desired.directory / "STATUS.md"
    try:
        before = _content(target, must_exist=is_own)
        update = update_document(title(desired.name) if before is None else before.decode("utf-8"), rows, memory.written)
        after = update.text.encode("utf-8")
        conflicts = tuple(f"{target.name}, {conflict}" for conflict in update.conflicts)
        if after == before:
            return conflicts
        # Written down first: after a crash in between, a cell that still holds the older text is ours all the same.
        cells = {key: text for key, text in update.written.items() if memory.written.get(key, ("",))[0] != text}
        ledger.append("writing", cells=cells)
        try:
            replace_file(target, after, expected=before)
        except TemporaryError:
            if _content(target, must_exist=is_own) != after:  # it may be there, and its directory alone not be synced
                ledger.append("unwritten", cells=cells)
            raise
    except (TemporaryError, PermanentError, UnicodeDecodeError) as error:
        why = str(error).removeprefix(f"{target}: ")
        return (f"{target}: the status tables were not written: {why}",)
    except OSError as error:
        return (f"{target}: the status tables were not written: {error.strerror}",)
    return conflicts


def _content(target: Path, *, must_exist: bool) -> bytes | None:
    try:
        content = read_file(target, 0, LARGEST + 1)
    except FileNotFoundError:
        if must_exist:
            raise
        return None
    if len(content) > LARGEST:
        raise PermanentError(f"it is larger than {LARGEST >> 20} MiB")
    return content


# --- the tools' logs ---------------------------------------------------------------------------------


def _write_logs(
    desired: Desired,
    steps: Sequence[tuple[Step, Outcome]],
    memory: Memory,
    rows: Mapping[str, StatusRow],
    tools: Tools,
    now: float,
) -> None:
    directory = desired.directory if desired.document.suffix == ".md" else desired.directory / "logs"
    for step, outcome in steps:
        tool = tools[step.tool]
        operation, subject = tool.log_label(step)
        path = directory / tool.log_file
        action, row, before = outcome.action, rows.get(step.key), memory.states.get(step.key)
        if action.verb is Verb.SUBMIT and outcome.result == "applied":
            append_block(path, now, operation, subject, f"sbatch {step.script.name}", action.job, "success")
        elif row is not None and before is not None and row.status != before:
            append_block(path, now, "STATE_CHANGE", subject, f"{before} -> {row.status}", row.job_id or None, "success")
    for name in sorted({step.tool for step, _ in steps}):
        of_tool = [(step, outcome) for step, outcome in steps if step.tool == name]
        all_done = all(outcome.action.condition is Condition.DONE for _, outcome in of_tool)
        was_done = all(memory.states.get(step.key) == "COMPLETED" for step, _ in of_tool)
        is_whole = tools[name].stage is not Stage.EVALUATION or not desired.hidden
        if all_done and is_whole and not was_done:
            details = f"all {len(of_tool)} steps are verified"
            append_block(directory / tools[name].log_file, now, "ALL_COMPLETE", desired.name, details, None, "success")


def _remember_states(ledger: Ledger, memory: Memory, rows: Mapping[str, StatusRow]) -> bool:
    changed = {key: row.status for key, row in rows.items() if memory.states.get(key) != row.status}
    if changed:
        ledger.append("stands", states=changed)
    return bool(changed)


def _remember_words(ledger: Ledger, memory: Memory, words: Sequence[str]) -> bool:
    """Warnings and notes are said again by every pass, and are news once."""
    heard = digest(*words) if words else ""
    if heard != memory.heard:
        ledger.append("heard", words=heard)
    return heard not in ("", memory.heard)
