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
from reconciler.memory import Attempt, Memory, StepMemory
from reconciler.model import Edit, Outputs, Policy, Raise, Reason, Step, Written
from reconciler.plain_values import by_hand, refusal
from reconciler.situation import batch_changes

_MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
_FOR_EACH = {"mem-per-cpu": " (for each CPU)", "mem-per-gpu": " (for each GPU)"}


@dataclass(frozen=True)
class Remedy:
    """``options`` are sbatch's, by long name, over the script's own; ``edits`` are to be made in the run's configuration before
    the job starts, and ``reverts`` take back what we made there. ``is_new``: this failure is answered by something that was not
    tried yet. ``refusal`` is why it is not, where the settings ask for an answer. ``resumes``: the job goes on from the epochs
    that are there; ``note`` says so, or why not. ``obstacle``: nothing may be submitted before a person has cleared it away."""

    options: Mapping[str, str] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    reverts: tuple[Edit, ...] = ()
    resumes: bool = False
    is_new: bool = False
    refusal: str = ""
    obstacle: Reason | None = None
    note: str = ""

    @property
    def changes(self) -> tuple[str, ...]:
        """In words, what the submission changes."""
        told = [f"{edit.path.name}: {edit.words}" for edit in (*self.edits, *self.reverts)]
        options = (f"--{name}={value}{_FOR_EACH.get(name, '')}" for name, value in self.options.items())
        return (*([self.note] if self.note else []), *options, *told)


def remedy_for(step: Step, memory: StepMemory, attempts: Sequence[Attempt], outputs: Outputs | None, policy: Policy) -> Remedy:
    """What the next attempt is to be, given those that count (the last one is the newest)."""
    return _without_refused_edits(_wanted(step, memory, attempts, outputs, policy), step, policy)


def _wanted(step: Step, memory: StepMemory, attempts: Sequence[Attempt], outputs: Outputs | None, policy: Policy) -> Remedy:
    last = attempts[-1] if attempts else None
    options = dict(last.options) if last is not None and last.placement == step.placement else {}
    options.pop("exclude", None)
    failure = last.end.failure if last is not None and last.end is not None else ""
    found = _launch(step, memory, outputs, policy, options)
    if last is None or not failure:
        return found
    if failure == "TimeLimit":
        # The configuration's own flag says how an attempt is launched, not that there is another one.
        has_advanced = policy.resume and found.resumes and last.number in advanced(attempts, outputs)
        return replace(found, is_new=True) if has_advanced else _with_time(found, step, policy, outputs)
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


# --- going on, and a smaller batch -------------------------------------------------------------------


def withhold_varied(steps: Sequence[Step], memory: Memory) -> tuple[Step, ...]:
    """The steps, none of which may shrink a batch that the runs' own configurations do not agree on: it may be what the
    experiment is about, whatever the document calls it. What we changed ourselves is no difference."""
    keys = dict.fromkeys(edit.key for step in steps for edit in step.smaller_batch)
    varied = {}
    for key in keys:
        values = sorted({_before_ours(step, memory.of(step.key), key) for step in steps if key in step.written})
        if len(values) > 1:
            varied[key] = f"the runs' own configurations differ in `{key}` ({', '.join(values)}), so it is not ours to change"
    return tuple(_withheld(step, varied) for step in steps)


def _before_ours(step: Step, memory: StepMemory, key: str) -> str:
    made = next((edit for edit in memory.edits if edit.key == key and edit.after == step.written[key].text), None)
    return step.meaning.get(key, "null") if made is None else made.before or "null"


def _withheld(step: Step, varied: Mapping[str, str]) -> Step:
    why = next((varied[edit.key] for edit in step.smaller_batch if edit.key in varied), None)
    return step if why is None else replace(step, smaller_batch=(), why_no_smaller_batch=why)


def _launch(step: Step, memory: StepMemory, outputs: Outputs | None, policy: Policy, options: Mapping[str, str]) -> Remedy:
    """One that goes on from the whole epochs there are, where the settings or the configuration itself ask for it; else one that
    begins anew."""
    whole, note = (outputs.resumable, outputs.resume_note) if outputs is not None else (0, "")
    is_wanted = policy.resume or _resumes_by_itself(step, memory)
    if not (is_wanted and whole):
        told = f"begins anew: {note}" if is_wanted and note else ""
        return Remedy(
            options, reverts=_reverts(step, memory, resumes=False), obstacle=_no_beginning(step, memory, note), note=told
        )
    edits = () if step.resume is None or step.resume.is_made else (step.resume,)
    told = f"goes on from {whole} whole epochs" + (f"; {note}" if note else "")
    obstacle = _obstacle(step, memory, edits, outputs, policy)
    return Remedy(options, edits, _reverts(step, memory, resumes=True), resumes=True, obstacle=obstacle, note=told)


def _obstacle(step: Step, memory: StepMemory, edits: Sequence[Edit], outputs: Outputs | None, policy: Policy) -> Reason | None:
    """What only a person can clear away before the training goes on."""
    if outputs is not None and outputs.in_the_way:
        return Reason("CannotResume", f"{outputs.in_the_way}, or set {_asked_by(step, memory, policy)} to begin anew")
    for edit in edits:
        why_not = step.written.get(edit.key, Written()).why_not
        if why_not:
            return Reason("EditRefused", f"{edit.path}: {why_not}; {by_hand(edit)}, or set `resume: false` to begin anew")
    return None


def _no_beginning(step: Step, memory: StepMemory, note: str) -> Reason | None:
    """A trainer that is told to go on does not begin where there is nothing to go on from: it ends at once."""
    if step.resume is None or not _resumes_by_itself(step, memory):
        return None
    asks = f"{step.resume.path.name} says `{step.resume.key}: True`, and there is nothing to go on from"
    return Reason("CannotResume", f"{asks}{f' ({note})' if note else ''}; set it to False to begin anew")


def _asked_by(step: Step, memory: StepMemory, policy: Policy) -> str:
    """What asks for going on, as it is to be written where nothing is to be gone on from."""
    ways = ["`resume: false`"] if policy.resume else []
    if step.resume is not None and _resumes_by_itself(step, memory):
        ways.append(f"`{step.resume.key}: False` in {step.resume.path.name}")
    return " and ".join(ways)


def _without_refused_edits(remedy: Remedy, step: Step, policy: Policy) -> Remedy:
    """The same, which waits for a person where the text lets the edits not be made: it is tried here, as acting would."""
    edits = (*remedy.edits, *remedy.reverts)
    if remedy.obstacle is not None or step.text is None or not edits:
        return remedy
    why_not = refusal(step.text, edits)
    or_else = ", or set `resume: false` to begin anew" if remedy.resumes and policy.resume else ""
    return replace(remedy, obstacle=Reason("EditRefused", f"{why_not}{or_else}")) if why_not else remedy


def _resumes_by_itself(step: Step, memory: StepMemory) -> bool:
    """True where the configuration asks for going on, and not because we made it."""
    return step.resume is not None and step.resume.is_made and not any(edit.key == step.resume.key for edit in memory.edits)


def _reverts(step: Step, memory: StepMemory, *, resumes: bool) -> tuple[Edit, ...]:
    """What we edited and a rerun, or a copy, takes back; and resuming, where nothing is resumed."""
    key = _key_of(step.resume)
    gone = [edit for edit in memory.edits if edit not in _in_force(memory) or edit.key == key]
    back = tuple(_back(step, edit, edit.before) for edit in gone if not (resumes and edit.key == key))
    return (*back, *_other_half(step, memory))


def _other_half(step: Step, memory: StepMemory) -> tuple[Edit, ...]:
    """What is left of a smaller batch of ours where a person put one of its settings back, and so the other one too."""
    ours = {edit.key: edit for edit in _in_force(memory) if edit.key in step.batch}
    values = {key: (edit.before, *edit.via, edit.after) for key, edit in ours.items()}
    stands = min((len(values.get(key, ("",))) for key in step.batch), default=0) - 1  # how often we made it smaller, both alike
    return tuple(_back(step, ours[key], told[stands]) for key, told in values.items() if len(told) - 1 > stands)


def _in_force(memory: StepMemory) -> tuple[Edit, ...]:
    rerun = memory.rerun.order if memory.rerun is not None else 0
    return tuple(edit for edit in memory.edits if edit.order > rerun)


def _back(step: Step, edit: Edit, to: str | None) -> Edit:
    """The way back, in the file where it is now: a run may have been renamed since."""
    path = edit.path if step.resume is None else step.resume.path
    return Edit(path, edit.key, edit.after, to)


def _key_of(edit: Edit | None) -> str | None:
    return edit.key if edit is not None else None


def _with_smaller_batch(found: Remedy, step: Step, memory: StepMemory, last: Attempt, policy: Policy) -> Remedy:
    """Epochs of another batch size are another training's: nothing is resumed."""
    if not policy.shrink_batch:
        return found
    assert last.end is not None
    anew = Remedy(found.options, reverts=_reverts(step, memory, resumes=False), is_new=True)
    if found.resumes:
        anew = replace(anew, note="begins anew: what is there was trained with another batch size")
    changed = ", ".join(batch_changes(last, step))
    if changed:
        anew = replace(anew, note=f"begins anew with the batch that is there: {changed} since attempt {last.number}")
        return _if_not_resuming(anew, found, f"{changed} is there", step, memory)
    if any(edit.order > last.end.order and edit.key != _key_of(step.resume) for edit in _in_force(memory)):
        return anew  # made by a pass that did not come to submit
    if not step.smaller_batch:
        why = step.why_no_smaller_batch or "its configuration names no batch that could be smaller"
        return replace(found, refusal=why)
    why_not = refusal(step.text, step.smaller_batch) if step.text is not None else ""
    if why_not:
        return replace(found, refusal=why_not)
    smaller = replace(anew, edits=step.smaller_batch)
    return _if_not_resuming(smaller, found, f"{_told(step.smaller_batch)} would need less", step, memory)


def _if_not_resuming(anew: Remedy, found: Remedy, told: str, step: Step, memory: StepMemory) -> Remedy:
    """``anew``, where the configuration does not itself ask for going on."""
    if step.resume is None or not _resumes_by_itself(step, memory):
        return anew
    why = f"{step.resume.path.name} asks for `{step.resume.key}`, and epochs of another batch size are not to be gone on from"
    return replace(found, refusal=f"{told}, but {why}; set that to False")


def _told(edits: Sequence[Edit]) -> str:
    return ", ".join(edit.words for edit in edits)


# --- time and memory ---------------------------------------------------------------------------------


def _with_time(found: Remedy, step: Step, policy: Policy, outputs: Outputs | None) -> Remedy:
    if policy.time is None:
        return replace(found, refusal=_why_stuck(outputs) if policy.resume and not found.options else "")
    given = found.options.get("time") or step.asks.get("time")
    try:
        now = parse_time_limit(given)
    except ValueError:
        now = None
    if now is None:
        return replace(found, refusal="its script states no time limit (#SBATCH --time) that could be raised")
    raised = _raised(math.ceil(now / 60), policy.time, 1 / 60)  # whole minutes, as Slurm has it (man sbatch, --time)
    if raised is None:
        return replace(found, refusal=f"{given} was not enough, and `time.max` is {policy.time.max / 3600:g} h")
    return _with(found, {"time": str(raised)})


def _why_stuck(outputs: Outputs | None) -> str:
    note = outputs.resume_note if outputs is not None else ""
    stuck = "it completed no further epoch that could be gone on from, so going on would not end"
    return f"{stuck}: {note}" if note else stuck


def _with_memory(found: Remedy, step: Step, policy: Raise | None) -> Remedy:
    if policy is None:
        return found
    name = next((name for name in _MEMORY if name in found.options or name in step.asks), None)
    given = (found.options.get(name) or step.asks.get(name)) if name is not None else None
    now = parse_memory(given)
    if name is None or now is None:
        return replace(found, refusal="its script states no memory (#SBATCH --mem) that could be raised")
    raised = _raised(now, policy, 1.0)
    if raised is None:
        most = f"{policy.max / 1024:g}G{_FOR_EACH.get(name, '')}"
        return replace(found, refusal=f"--{name}={given} was not enough, and `mem.max` is {most}")
    return _with(found, {name: f"{raised}M"})


def _raised(now: float, policy: Raise, unit: float) -> int | None:
    """``now`` times the factor rounded up, at most the cap (in units of ``now``); None where that is no more than now."""
    raised = min(math.ceil(round(now * policy.factor, 6)), math.floor(policy.max * unit))
    return raised if raised > now else None


def _with(found: Remedy, options: Mapping[str, str]) -> Remedy:
    return replace(found, options={**found.options, **options}, is_new=True)
