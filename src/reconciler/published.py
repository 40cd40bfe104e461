"""A pass as JSON, in the published forms (schemas/); pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reconciler import budget
from reconciler.batch_script import log_paths
from reconciler.errors import Problem
from reconciler.loop import Pass
from reconciler.memory import Attempt, StepMemory, Word
from reconciler.model import Action, Condition, Orphan, Step, Verb
from reconciler.staleness import staleness
from reconciler.words import Deed, Skipped


def actions_json(seen: Pass) -> dict[str, Any]:
    """What ``diff`` and ``apply`` print; its form is schemas/actions.schema.json."""
    return {
        "experiment": seen.desired.name,
        "converged": seen.converged,
        "paused": _pause(seen),
        "actions": [
            {
                "step": action.step,
                "action": action.verb.value,
                "reason": {"code": action.reason.code, "message": action.reason.message},
                "condition": action.condition.value,
                "job_id": action.job,
                "attempt": action.attempt,
                "changes": list(action.changes),
                "result": result or None,
            }
            for action, result in ((outcome.action, outcome.result) for outcome in seen.shown)
        ],
        "orphans": _orphans(seen),
        "cost": _cost(seen.plan.bill),
    }


def _cost(bill: budget.Bill) -> dict[str, Any]:
    return {
        "unit": "gpu-hours",
        "budget": bill.budget,
        "spent": round(bill.spent, 4),
        "untold": bill.untold,
        "in_flight": round(bill.in_flight, 4) if math.isfinite(bill.in_flight) else None,
        "likely": round(bill.likely, 4),
        "unknown": list(bill.unknown),
    }


def _pause(seen: Pass) -> dict[str, Any] | None:
    pause = seen.memory.pause
    if pause is None or not pause.is_on(seen.now):
        return None
    return {"user": pause.word.user, "why": pause.word.why, "at": pause.word.at, "until": pause.until}


def _orphans(seen: Pass) -> list[dict[str, Any]]:
    return [{"job_id": o.job.id, "step": o.step or None, "state": o.job.state} for o in seen.plan.orphans]


def status_json(seen: Pass) -> dict[str, Any]:
    """What ``status`` prints; its form is schemas/status.schema.json."""
    return {
        "experiment": seen.desired.name,
        "converged": seen.converged,
        "paused": _pause(seen),
        "steps": [
            {
                "step": action.step,
                "condition": action.condition.value,
                "reason": {"code": action.reason.code, "message": action.reason.message},
                "next": action.verb.value,
                "job_id": action.job,
                "attempts": len(seen.memory.of(action.step).attempts),
                "changes": list(action.changes) if action.condition is Condition.DRIFTED else [],
                "stale": list(stale_of(seen, action.step)),
            }
            for action in seen.actions
        ],
        "orphans": _orphans(seen),
        "cost": _cost(seen.plan.bill),
    }


def words_json(done: Sequence[Deed]) -> dict[str, Any]:
    """What the commands that take a person's word print; its form is schemas/words.schema.json."""
    told = [(isinstance(each, Skipped), {"step": each.step or None, "message": each.message}) for each in done]
    return {"done": [each for is_skipped, each in told if not is_skipped], "skipped": [each for is_it, each in told if is_it]}


def problems_json(experiment: str, steps: Sequence[Step], problems: Sequence[Problem]) -> dict[str, Any]:
    """What ``validate`` prints; its form is schemas/problems.schema.json. A document that cannot be read has no steps."""
    told = [{"file": str(p.file), "line": p.line, "message": p.message, "run": p.run, "warning": p.warning} for p in problems]
    return {"experiment": experiment, "steps": [step.key for step in steps], "problems": told}


def explained(seen: Pass, key: str) -> dict[str, Any]:
    """What ``explain`` prints; its form is schemas/explanation.schema.json."""
    action, step, memory = seen.plan.of(key), seen.desired.step(key), seen.memory.of(key)
    assert step is not None
    outputs = seen.observed.outputs.get(key)
    return {
        "step": key,
        "condition": action.condition.value,
        "action": action.verb.value,
        "rule": action.rule,
        "reason": {"code": action.reason.code, "message": action.reason.message},
        "script": str(step.script),
        "output_dir": str(step.output_dir),
        "need": step.need,
        "job_id": action.job,
        "outputs": {
            "state": outputs.state.value,
            "reason": {"code": outputs.reason.code, "message": outputs.reason.message},
        }
        if outputs
        else None,
        "attempts": attempts_of(seen, action),
        "edits": [{"file": str(e.path), "key": e.key, "before": e.before, "after": e.after, "at": e.at} for e in memory.edits],
        "evidence": _evidence(memory),
        "word": _word(memory.word) if memory.word else None,
        "words": _words(seen, key),
        "paused": _pause(seen),
        "changes": list(changes_of(action)),
        "stale": list(stale_of(seen, key)),
        "freed": {
            "epochs": sorted(memory.freed.epochs),
            "bytes": memory.freed.size,
            "is_over": memory.freed.is_over,
        }
        if memory.freed
        else None,
    }


def explained_orphan(seen: Pass, orphan: Orphan) -> dict[str, Any]:
    """What ``explain`` prints of an orphan; its form is in the same schema."""
    return {
        "step": orphan.step or None,
        "orphan": {"job_id": orphan.job.id, "state": orphan.job.state},
        "attempts": [_attempt_json(a, _fate(a, is_settled=True), ()) for a in seen.memory.of(orphan.step).attempts],
        "words": _words(seen, orphan.step),
    }


def _words(seen: Pass, key: str) -> list[dict[str, Any]]:
    words = (*seen.memory.of(key).words, *_that_concern(key.partition("/")[0], seen.memory.words))
    return [_word(word) for word in sorted(words, key=lambda word: word.order)]


def _that_concern(run: str, words: Sequence[Word]) -> Iterator[Word]:
    """What was said of the experiment, newest first, without the renaming of other runs; the run itself had other names."""
    for word in reversed(words):
        old, _, new = word.about.partition(" → ")
        if word.verb != "rename" or run in (old, new):
            yield word
        run = old if word.verb == "rename" and run == new else run


def _word(word: Word) -> dict[str, Any]:
    return {"verb": word.verb, "user": word.user, "why": word.why, "at": word.at, "about": word.about}


def attempts_of(seen: Pass, action: Action) -> list[dict[str, Any]]:
    """A step's attempts, the first one first."""
    memory, step = seen.memory.of(action.step), seen.desired.step(action.step)
    is_open = action.condition in (Condition.VERIFYING, Condition.UNKNOWN)  # its outputs may still come to light
    return [
        _attempt_json(
            attempt,
            _fate(attempt, is_settled=not (is_open and attempt is memory.last_begun)),
            _logs_of(seen, step, attempt) if step is not None else (),
        )
        for attempt in memory.attempts
    ]


def _attempt_json(attempt: Attempt, outcome: str, logs: Sequence[Path]) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "job": attempt.job,
        "at": attempt.at,
        "name": attempt.name,
        "outcome": outcome,
        "options": dict(attempt.options),
        "from_epoch": attempt.from_epoch,
        "logs": [str(log) for log in logs],
    }


def _logs_of(seen: Pass, step: Step, attempt: Attempt) -> tuple[Path, ...]:
    """Where its job writes, as far as the script and what is in writing tell."""
    user = seen.memory.identity.user if seen.memory.identity is not None else ""
    return log_paths(step.logs, attempt.job, attempt.name, user) if attempt.job is not None else ()


def _fate(attempt: Attempt, *, is_settled: bool) -> str:
    if attempt.end is not None:
        end = attempt.end
        has_failed = end.state != "COMPLETED" or (attempt.missing_at is not None and is_settled)
        why = f"({end.failure}: {end.detail})" if end.detail else f"({end.failure})"
        return " ".join(part for part in ("ended", end.state, end.exit_code, why if has_failed else "") if part)
    if attempt.withdrawn:
        return "withdrawn"
    if attempt.refused is not None:
        return f"refused: {attempt.refused}"
    if attempt.limited:
        return f"put off by a limit of the site: {attempt.limit}"
    if attempt.lost:
        return "given up for lost"
    return "submitted" if attempt.job else "unconfirmed"


def _evidence(memory: StepMemory) -> list[dict[str, Any]]:
    return [dict(file) for file in memory.done.evidence] if memory.done else []


def stale_of(seen: Pass, key: str) -> tuple[str, ...]:
    """What a finished step's result is an older version of."""
    step = seen.desired.step(key)
    return () if step is None else staleness(step, seen.memory.of(key), seen.memory.of(step.need) if step.need else None)


def changes_of(action: Action) -> tuple[str, ...]:
    """What a submission alters besides, or what has changed of a result."""
    return action.changes if action.verb is Verb.SUBMIT or action.condition is Condition.DRIFTED else ()
