"""What the next attempt does differently after one that failed: more time or memory, a smaller batch, the epochs there are; pure.

A remedy is there only where the settings ask for it; without one a person reads the same as a suggestion. What an attempt was
submitted with is in writing, so that the next one starts from there; a release, or a script that asks for something else by
now, begins again with what the script says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from reconciler.batch_script import parse_memory, parse_time_limit
from reconciler.failures import INFRASTRUCTURE
from reconciler.memory import Attempt, StepMemory
from reconciler.model import Edit, Outputs, Policy, Raise, Step

_MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")


@dataclass(frozen=True)
class Remedy:
    """``options`` are sbatch's, by long name, over the script's own; ``edits`` must hold in the run's configuration when the job
    starts, and ``reverts`` no more. ``is_new``: this failure is answered by something that was not tried yet. ``refusal`` is why
    it is not, where the settings ask for an answer. ``resumes``: the job goes on from the epochs that are there."""

    options: Mapping[str, str] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    reverts: tuple[Edit, ...] = ()
    resumes: bool = False
    is_new: bool = False
    refusal: str = ""

    @property
    def changes(self) -> tuple[str, ...]:
        """In words, what the submission changes."""
        told = [f"{edit.path.name}: {edit.words}" for edit in (*self.edits, *self.reverts)]
        return (*(f"--{name}={value}" for name, value in self.options.items()), *told)


def remedy_for(step: Step, memory: StepMemory, attempts: Sequence[Attempt], outputs: Outputs | None, policy: Policy) -> Remedy:
    """What the next attempt is to be, given those that count (the last one is the newest)."""
    last = attempts[-1] if attempts else None
    options = dict(last.options) if last is not None and last.placement == step.placement else {}
    options.pop("exclude", None)
    failure = last.end.failure if last is not None and last.end is not None else ""
    resumes = policy.resume and outputs is not None and outputs.resumable > 0
    found = Remedy(options, _kept_edits(step, memory, resumes=resumes), _reverts(step, memory, resumes=resumes), resumes)
    if last is None or not failure:
        return found
    if failure == "TimeLimit":
        has_advanced = resumes and last.number in advanced(attempts, outputs)
        return _with(found, is_new=True) if has_advanced else _with_time(found, step, policy)
    if failure == "OutOfMemoryHost":
        return _with_memory(found, step, policy.mem)
    if failure == "OutOfMemoryGpu":
        return _with_smaller_batch(found, step, memory, last, policy)
    return found


def advanced(attempts: Sequence[Attempt], outputs: Outputs | None) -> frozenset[int]:
    """The numbers of the attempts that left more whole epochs than they began with; they count as no failures.

    Only where the time limit or the node cut the job short: a person who cancelled one, or a program that failed, is not
    outvoted by the epochs that were whole by then.
    """
    later = [*(attempt.from_epoch for attempt in attempts[1:]), outputs.resumable if outputs is not None else 0]
    cut_short = INFRASTRUCTURE | {"TimeLimit"}
    return frozenset(
        a.number
        for a, now in zip(attempts, later, strict=True)
        if a.end is not None and a.end.failure in cut_short and now > a.from_epoch
    )


def suggestion(failure: str, step: Step) -> str:
    """What a person might change, where the settings ask for nothing; empty where nothing is known."""
    if failure == "TimeLimit":
        given = f"--time={step.asks['time']}" if "time" in step.asks else "its time limit"
        ways = "`time: {factor: 1.5, max: 24h}` asks for more, `resume: true` goes on from the last whole epoch"
        return f"{given} was not enough; {ways}"
    if failure == "OutOfMemoryHost":
        given = next((f"--{name}={step.asks[name]}" for name in _MEMORY if name in step.asks), "its memory")
        return f"{given} was not enough; `mem: {{factor: 1.5, max: 200G}}` asks for more"
    if failure == "OutOfMemoryGpu" and step.smaller_batch:
        return f"{_told(step.smaller_batch)} would need less; `shrink_batch: true` makes that edit"
    return ""


# --- edits -----------------------------------------------------------------------------------------


def _kept_edits(step: Step, memory: StepMemory, *, resumes: bool) -> tuple[Edit, ...]:
    """What was edited before and is to stay, and that the trainer resumes where it is to."""
    kept = [edit for edit in _in_force(memory) if edit.key != _key_of(step.resume)]
    if resumes and step.resume is not None:
        made = next((edit for edit in _in_force(memory) if edit.key == step.resume.key), None)
        kept.append(made or step.resume)
    return tuple(_here(step, edit) for edit in kept)


def _reverts(step: Step, memory: StepMemory, *, resumes: bool) -> tuple[Edit, ...]:
    """What we edited and a rerun takes back; and resuming, where there is nothing to resume from."""
    gone = [edit for edit in memory.edits if edit not in _in_force(memory)]
    if not resumes:
        gone += [edit for edit in _in_force(memory) if edit.key == _key_of(step.resume)]
    return tuple(_here(step, Edit(edit.path, edit.key, edit.after, edit.before, via=edit.via)) for edit in gone)


def _in_force(memory: StepMemory) -> tuple[Edit, ...]:
    rerun = memory.rerun.order if memory.rerun is not None else 0
    return tuple(edit for edit in memory.edits if edit.order > rerun)


def _here(step: Step, edit: Edit) -> Edit:
    """An edit in the file where it is now: a run may have been renamed since."""
    return edit if step.resume is None else replace(edit, path=step.resume.path)


def _key_of(edit: Edit | None) -> str | None:
    return edit.key if edit is not None else None


def _with_smaller_batch(found: Remedy, step: Step, memory: StepMemory, last: Attempt, policy: Policy) -> Remedy:
    if not policy.shrink_batch:
        return found
    assert last.end is not None
    if any(edit.order > last.end.order and edit.key != _key_of(step.resume) for edit in _in_force(memory)):
        return _with(found, is_new=True)  # made by a pass that did not come to submit
    if not step.smaller_batch:
        return _with(found, refusal=step.why_no_smaller_batch or "its configuration names no batch that could be smaller")
    keys = {edit.key for edit in step.smaller_batch}
    others = tuple(edit for edit in found.edits if edit.key not in keys and edit.key != _key_of(step.resume))
    # Epochs of another batch size are another training's: nothing is resumed.
    return Remedy(found.options, (*others, *step.smaller_batch), found.reverts, is_new=True)


def _told(edits: Sequence[Edit]) -> str:
    return ", ".join(edit.words for edit in edits)


# --- time and memory ---------------------------------------------------------------------------------


def _with_time(found: Remedy, step: Step, policy: Policy) -> Remedy:
    if policy.time is None:
        is_stuck = policy.resume and not found.options
        return _with(found, refusal="it completed no further epoch, so going on would not end" if is_stuck else "")
    given = found.options.get("time") or step.asks.get("time")
    try:
        now = parse_time_limit(given)
    except ValueError:
        now = None
    if now is None:
        return _with(found, refusal="its script states no time limit (#SBATCH --time) that could be raised")
    raised = _raised(now / 60, policy.time, 1 / 60)
    if raised is None:
        return _with(found, refusal=f"{given} was not enough, and `time.max` is {policy.time.max / 3600:g} h")
    return _with(found, {"time": str(raised)})


def _with_memory(found: Remedy, step: Step, policy: Raise | None) -> Remedy:
    if policy is None:
        return found
    name = next((name for name in _MEMORY if name in found.options or name in step.asks), None)
    given = (found.options.get(name) or step.asks.get(name)) if name is not None else None
    now = parse_memory(given)
    if name is None or now is None:
        return _with(found, refusal="its script states no memory (#SBATCH --mem) that could be raised")
    raised = _raised(now, policy, 1.0)
    if raised is None:
        return _with(found, refusal=f"--{name}={given} was not enough, and `mem.max` is {policy.max / 1024:g}G")
    return _with(found, {name: f"{raised}M"})


def _raised(now: float, policy: Raise, unit: float) -> int | None:
    """``now`` times the factor, at most the cap (in units of ``now``), a whole number; None where that is no more than now."""
    raised = math.floor(min(now * policy.factor, policy.max * unit))
    return raised if raised > now else None


def _with(found: Remedy, options: Mapping[str, str] | None = None, *, is_new: bool = False, refusal: str = "") -> Remedy:
    all_options = {**found.options, **(options or {})}
    return Remedy(all_options, found.edits, found.reverts, found.resumes, is_new or bool(options), refusal)
