"""A pass as text for people; pure.

The same actions and reasons print everywhere (published.py has them for machines). Names come from documents and job names:
control characters never reach the terminal raw.
"""

from __future__ import annotations

import json
import re
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reconciler import budget
from reconciler.loop import Pass
from reconciler.model import NEED_BLOCKED, Action, Condition, Orphan, Stage, Verb
from reconciler.published import attempts_of, changes_of, explained, explained_orphan, stale_of

_GROUPS: tuple[tuple[str, str, str], ...] = (
    ("Cancel", "-", "red"),
    ("Submit", "+", "green"),
    ("Take over", "»", "green"),
    ("Mark done", "✓", "green"),
    ("In flight", "~", "blue"),
    ("Wait", "·", "dim"),
    ("Needs you", "!", "yellow"),
    ("Unknown", "?", "yellow"),
    ("Done", "=", "dim"),
)
_COLOURS = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "dim": "2", "bold": "1"}
_UNUSUAL = re.compile("[^ -~]")


@dataclass(frozen=True)
class Paint:
    """Colour where it is wanted, plain text elsewhere."""

    is_on: bool = False

    def __call__(self, text: str, colour: str) -> str:
        """The text in that colour, or as it is."""
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self.is_on else text


def plain(text: str) -> str:
    """Text that cannot steer a terminal: control and bidirectional characters are shown as escapes."""
    return _UNUSUAL.sub(lambda found: f"\\u{ord(found[0]):04x}" if _steers(found[0]) else found[0], text)


def _steers(char: str) -> bool:
    """True for a character that moves the cursor, turns the direction of writing, cannot be seen or cannot be printed."""
    return not char.isprintable() and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def json_text(value: Mapping[str, Any]) -> str:
    """A value as JSON with the same care: whatever could steer a terminal, or cannot be encoded, is one of JSON's escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return _UNUSUAL.sub(lambda found: json.dumps(found[0])[1:-1] if _steers(found[0]) and found[0] != "\n" else found[0], text)


def why(seen: Pass, action: Action) -> str:
    """An action's reason for a person who knows where the experiment is: its own files are named from there."""
    return plain(action.reason.message.replace(f"{seen.desired.directory}/", ""))


def group_of(action: Action) -> str:
    """Under which heading an action is shown."""
    by_verb = {Verb.CANCEL: "Cancel", Verb.SUBMIT: "Submit", Verb.ADOPT: "Take over", Verb.MARK_DONE: "Mark done"}
    if action.verb in by_verb:
        return by_verb[action.verb]
    if action.condition is Condition.DONE:
        return "Done"
    if action.condition.needs_person:
        return "Needs you"
    if action.condition in (Condition.QUEUED, Condition.RUNNING):
        return "In flight"
    return "Unknown" if action.condition is Condition.UNKNOWN else "Wait"


def diff_text(seen: Pass, paint: Paint, *, verbose: bool = False) -> str:
    """The pending actions, grouped by what will happen; the last line sums up."""
    lines = [paint(plain(seen.desired.name), "bold"), *_standing_lines(seen)]
    width = max((len(plain(a.step)) for a in seen.actions), default=0)
    for name, symbol, colour in _GROUPS:
        members = [action for action in seen.actions if group_of(action) == name]
        if not members or (name == "Done" and not verbose):
            continue
        lines += ["", f"{paint(name, 'bold')} ({len(members)})"]
        for action in members:
            lines.append(f"  {paint(symbol, colour)} {plain(action.step):<{width}}  {paint(why(seen, action), 'dim')}")
            lines += [f"    {'':<{width}}  {plain(change)}" for change in changes_of(action)]
    return "\n".join([*lines, *_orphan_lines(seen, paint), "", *_stale_lines(seen), *_cost_lines(seen), summary(seen)])


def _standing_lines(seen: Pass) -> list[str]:
    """What holds of the experiment as a whole: a pause, a renaming that was interrupted."""
    pause, renaming = seen.memory.pause, seen.memory.renaming
    lines = [str(pause)] if pause is not None and pause.is_on(seen.now) else []
    if renaming is not None:
        again = f"`reconcile rename {renaming.old} {renaming.new}`"
        lines.append(f"the renaming of {renaming.old} to {renaming.new} was interrupted; {again} finishes it")
    return [plain(line) for line in lines]


def _stale_lines(seen: Pass) -> list[str]:
    evaluations = {step.key for step in seen.desired.steps if step.stage is Stage.EVALUATION}
    finished = [action.step for action in seen.actions if action.condition in (Condition.DONE, Condition.DRIFTED)]
    of_steps = [stale_of(seen, key) for key in finished if key in evaluations]
    count = sum(bool(names) for names in of_steps)
    if not count:
        return []
    names = ", ".join(sorted({name for names in of_steps for name in names}))
    what = "evaluation" if count == 1 else "evaluations"
    return [plain(f"{count} {what} used an older version ({names}); `reconcile rerun --stale` does them again")]


def _orphan_lines(seen: Pass, paint: Paint) -> list[str]:
    """Jobs of ours whose steps the document has no more."""
    if not seen.plan.orphans:
        return []
    lines = [f"  {paint('!', 'yellow')} {_orphan_sentence(orphan)}" for orphan in seen.plan.orphans]
    return ["", f"{paint('Orphans', 'bold')} ({len(lines)})", *lines]


def _orphan_sentence(orphan: Orphan) -> str:
    job = orphan.job
    whose = f"job {job.id} ({job.state}) is of {orphan.step or 'a step'}, which the document does not have"
    return plain(f"{whose}; it is left alone, `reconcile cancel {job.id}` ends it")


def _cost_lines(seen: Pass) -> list[str]:
    """What the experiment costs, where it costs anything."""
    return [line] if (line := budget.told(seen.plan.bill)) else []


def summary(seen: Pass) -> str:
    """One line: how many of each, and of how many."""
    actions = seen.actions
    phrases = {
        "Cancel": "to cancel",
        "Submit": "to submit",
        "Take over": "to take over",
        "Mark done": "to mark done",
        "In flight": "in flight",
        "Wait": "waiting",
        "Needs you": "for you to decide",
        "Unknown": "unknown",
    }
    counts = {name: sum(group_of(action) == name for action in actions) for name, _, _ in _GROUPS}
    parts = [f"{counts[name]} {phrase}" for name, phrase in phrases.items() if counts[name]]
    parts += _hidden(seen)
    return ", ".join([*parts, _done(actions)]) if parts else f"{_done(actions)}: nothing to do"


def applied_text(seen: Pass, paint: Paint, *, verbose: bool = False) -> str:
    """What a pass did, what needs a person, and how things stand; every step where it is to tell more."""
    if verbose:
        return diff_text(seen, paint, verbose=True)
    lines = _standing_lines(seen)
    lines += [f"{paint('!', 'yellow')} {plain(a.step)}  {why(seen, a)}" for a in seen.actions if a.condition.needs_person]
    lines += [f"{paint('?', 'yellow')} {plain(a.step)}  {why(seen, a)}" for a in _behind_others(seen)]
    for action in (o.action for o in seen.shown if o.action.changes_something and o.result == "applied"):
        lines.append(f"{paint(mark(action), 'green')} {plain(action.step)}  {why(seen, action)}")
        lines += [f"    {plain(change)}" for change in changes_of(action)]
    lines += [f"{paint('?', 'yellow')} {plain(o.action.step)}  {why(seen, o.action)}" for o in failed(seen)]
    return "\n".join([*lines, *_orphan_lines(seen, paint)[2:], stand(seen)])


def _behind_others(seen: Pass) -> list[Action]:
    """What waits, for more than a time, for a step that is not shown."""
    shown = {action.step for action in seen.actions}
    needs = {step.key: step.need for step in seen.desired.steps}
    return [action for action in seen.actions if action.reason.code == NEED_BLOCKED and needs[action.step] not in shown]


def stand(seen: Pass) -> str:
    """How many steps are in each condition, in one line."""
    actions = seen.actions
    counts = {condition: sum(a.condition is condition for a in actions) for condition in Condition}
    parts = [
        f"{count} {condition.value.lower()}" for condition, count in counts.items() if count and condition is not Condition.DONE
    ]
    return ", ".join([*parts, *_hidden(seen), _done(actions)])


def _hidden(seen: Pass) -> list[str]:
    """Runs of which not every step is known, so that the numbers do not tell all."""
    return [f"steps unknown of {plain(', '.join(seen.desired.hidden))}"] if seen.desired.hidden else []


def _done(actions: Sequence[Action]) -> str:
    """Those that are about to be marked done are done."""
    return f"{sum(action.condition is Condition.DONE for action in actions)} of {len(actions)} done"


def failed(seen: Pass) -> list[Any]:
    """Outcomes of this pass that were not what was planned."""
    return [outcome for outcome in seen.shown if outcome.result not in ("", "applied")]


def mark(action: Action) -> str:
    """The symbol of an action."""
    return next(symbol for name, symbol, _ in _GROUPS if name == group_of(action))


def status_text(seen: Pass, paint: Paint, *, verbose: bool = False, quiet: bool = False) -> str:
    """Each step's condition, its job, and why; with its attempts, or without the steps that are done."""
    actions = [a for a in seen.actions if not (quiet and a.condition is Condition.DONE)]
    rows = [(plain(a.step), a.condition.value, plain(a.job or "-"), why(seen, a)) for a in actions]
    header = ("STEP", "CONDITION", "JOB", "REASON")
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(3)]
    head = "  ".join([*(h.ljust(w) for h, w in zip(header, widths, strict=False)), header[3]])
    lines = [*_standing_lines(seen), paint(head, "bold")]
    for action, row in zip(actions, rows, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        cells[1] = paint(cells[1], _colour_of(action.condition))
        lines.append("  ".join([*cells, row[3]]))
        attempts = attempts_of(seen, action) if verbose else []
        lines += [f"  attempt {a['number']}: {_attempt_sentence(a)}" for a in attempts]
    return "\n".join([*lines, *_orphan_lines(seen, paint), "", *_stale_lines(seen), *_cost_lines(seen), stand(seen)])


def _colour_of(condition: Condition) -> str:
    if condition is Condition.DONE:
        return "green"
    if condition.needs_person:
        return "yellow"
    return "blue" if condition in (Condition.RUNNING, Condition.QUEUED) else "dim"


def explain_text(seen: Pass, key: str, *, verbose: bool = False, quiet: bool = False) -> str:
    """The facts seen of one step, the rule that decided, the attempts and the evidence; what defines the result too, or how it
    stands alone."""
    facts = explained(seen, key)
    lines = [f"{plain(key)}", f"  {facts['condition']}: {plain(facts['reason']['message'])}"]
    if quiet:
        return "\n".join(lines)
    lines.append(f"  decided by the rule {facts['rule']!r} ({facts['reason']['code']}), action {facts['action']}")
    lines += [f"  {plain(change)}" for change in facts["changes"]]
    for name in ("script", "output_dir", "need"):
        if facts[name]:
            lines.append(f"  {name.replace('_', ' ')}: {plain(facts[name])}")
    step = seen.desired.step(key)
    lines += [f"  defined by {plain(item)}: {plain(text)}" for item, text in step.meaning.items()] if verbose and step else []
    outputs = facts["outputs"]
    lines.append(
        f"  outputs: {outputs['state']}, {plain(outputs['reason']['message'])}" if outputs else "  outputs: not examined"
    )
    for attempt in facts["attempts"]:
        lines.append(f"  attempt {attempt['number']}: {_attempt_sentence(attempt)}")
        lines += [f"    log: {plain(log)}" for log in attempt["logs"]]
    lines += [f"  {_edit_sentence(edit)}" for edit in facts["edits"]]
    if facts["evidence"]:
        lines.append(f"  evidence ({len(facts['evidence'])} files):")
        lines += [f"    {plain(file['path'])}  {file['size']} bytes" for file in facts["evidence"]]
    lines += [f"  {line}" for line in _standing_lines(seen)]
    return "\n".join([*lines, *_word_lines(facts["words"])])


def explain_orphan_text(seen: Pass, orphan: Orphan) -> str:
    """What is known of a job whose step the document does not have."""
    facts = explained_orphan(seen, orphan)
    lines = [plain(orphan.step or f"job {orphan.job.id}"), f"  Orphan: {_orphan_sentence(orphan)}"]
    lines += [f"  attempt {attempt['number']}: {_attempt_sentence(attempt)}" for attempt in facts["attempts"]]
    return "\n".join([*lines, *_word_lines(facts["words"])])


def _word_lines(words: Sequence[Mapping[str, Any]]) -> list[str]:
    return ["  what persons said:", *(f"    {_said(word)}" for word in words)] if words else []


def _said(word: Mapping[str, Any]) -> str:
    by = f"by {word['user']}" if word["user"] else ""
    return plain(f"{_local(word['at'])}  " + " ".join(filter(None, (word["verb"], word["about"], by))) + _because(word["why"]))


def _because(why: str) -> str:
    return f": {why}" if why else ""


def _attempt_sentence(attempt: Mapping[str, Any]) -> str:
    job = f"job {attempt['job']}" if attempt["job"] else "no job known"
    options = "".join(f" --{name}={value}" for name, value in attempt["options"].items())
    told = [f"submitted with{options}"] if options else []
    told += [f"going on from {attempt['from_epoch']} whole epochs"] if attempt["from_epoch"] else []
    return plain(", ".join([_local(attempt["at"]), job, *told, attempt["outcome"]]))


def _edit_sentence(edit: Mapping[str, Any]) -> str:
    before, after = (value if value is not None else "(none)" for value in (edit["before"], edit["after"]))
    return plain(f"edited {edit['file']}: {edit['key']} {before} → {after}, {_local(edit['at'])}")


def _local(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
