"""A person's word on steps: release, hold, cancel, accept, rerun (what each does to one step is in verbs.py).

A word is taken whole or not at all: one look under the pass's lock, every refusal before the first line is written, every line
before the cluster is told anything (errands.py). Where the queue cannot be asked nothing is said and nothing is done: a job that
nobody sees can be neither cancelled nor held.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from reconciler.errands import run, said_of
from reconciler.errors import ClusterUnreachable, UsageError
from reconciler.experiment.load import load
from reconciler.ledger import Ledger
from reconciler.lock import pass_lock
from reconciler.loop import Pass, Scene, preview
from reconciler.memory import LATEST, StepMemory
from reconciler.model import CANARY_FAILED, CANARY_HELD, DISK_QUOTA, Action, Condition, Desired, Job, Stage, Step, Unknown
from reconciler.ownership import Ownership, whose_jobs
from reconciler.plan import Plan, foresee
from reconciler.staleness import staleness
from reconciler.verbs import Case, Course, Court, Deed, Order, Skipped, named, nothing_to_do, refusal, told

__all__ = [
    "Considered",
    "Deed",
    "Order",
    "Prospect",
    "Skipped",
    "carry_out",
    "consider",
    "left_alone",
    "look_at",
    "named",
    "release_experiment",
    "under_lock",
    "write",
]


@dataclass(frozen=True)
class Prospect:
    """What an order would do, step by step, before it is given; ``asks`` where a person should confirm."""

    sentences: tuple[str, ...]
    asks: bool = False


@dataclass(frozen=True)
class Considered:
    """An order that may be given: the steps that it is about as they stand now, and those that are skipped."""

    order: Order
    cases: tuple[Case, ...]
    skipped: tuple[Skipped, ...]

    @property
    def prospect(self) -> Prospect:
        """What is shown before."""
        keys = [case.key for case in self.cases]
        sentences = [told(self.order, case, keys) for case in self.cases]
        sentences += [f"{each.step}: {each.message}" for each in self.skipped]
        is_rerun, is_release = self.order.verb == "rerun", self.order.verb == "release"
        asks = any((is_rerun and case.is_finished) or ((is_rerun or is_release) and case.loses) for case in self.cases)
        return Prospect(tuple(sentences), asks=asks)


def carry_out(scene: Scene, order: Order, confirm: Callable[[Prospect], bool]) -> tuple[Deed, ...]:
    """Give an order; returns what was done, step by step, and what was skipped. Nothing is done where ``confirm`` says no.

    Raises ClusterUnreachable where the queue cannot be asked, UsageError where the verb makes no sense for a step that is named
    by its key, or for every step that is meant.
    """
    with under_lock(scene) as (seen, ledger):
        considered = consider(scene, seen, order)
        if order.stale and not considered.cases and not considered.skipped:
            return (Deed("", "no result is known to be of an older version"),)
        if considered.cases and not confirm(considered.prospect):
            return ()
        court = write(scene, ledger, seen, considered)
        run(court.errands, said_of([case.key for case in considered.cases]))
        return (*court.done, *considered.skipped)


@contextmanager
def under_lock(scene: Scene) -> Iterator[tuple[Pass, Ledger]]:
    """The experiment as it stands, while no pass is under way, and the ledger that a word is written into. Raises AnotherPass,
    and ClusterUnreachable where the queue cannot be asked."""
    directory = load(scene.experiment, scene.tools, scene.disk).directory
    with pass_lock(directory):
        yield look_at(scene), Ledger(directory, scene.clock)


def look_at(scene: Scene) -> Pass:
    """The experiment as it stands; a job may be live although everything is done, submitted by hand. Raises ClusterUnreachable
    where the queue cannot be asked: no word is taken then."""
    seen = preview(scene, always_ask=True)
    if isinstance(seen.observed.queue, Unknown):
        raise ClusterUnreachable(f"the queue cannot be asked, and nothing was done: {seen.observed.queue.why}")
    return seen


def consider(scene: Scene, seen: Pass, order: Order) -> Considered:
    """What an order is about. Raises UsageError where it is refused; nothing was done then."""
    cases = _cases(scene, seen, order)
    idle = {case.key: why for case in cases if (why := nothing_to_do(order, case)) is not None}
    able, refused = _able(order, [case for case in cases if case.key not in idle])
    skipped = left_alone([case.key for case in cases if case.is_named], refused, is_any_left=bool(able or idle))
    idle_ones = tuple(Skipped(key, why) for key, why in idle.items())
    return Considered(order, tuple(able), (*idle_ones, *skipped))


def left_alone(named_keys: Collection[str], refused: dict[str, str], *, is_any_left: bool) -> tuple[Skipped, ...]:
    """Steps that refuse a word: those that a glob matched are skipped where others are left.

    Raises UsageError for one that a person named by its key, and where none is left.
    """
    for key, why in refused.items():
        if key in named_keys or (len(refused) == 1 and not is_any_left):
            raise UsageError(f"{key}: {why}")
    if refused and not is_any_left:
        raise UsageError("\n".join(["nothing was done:", *(f"{key}: {why}" for key, why in refused.items())]))
    return tuple(Skipped(key, f"left as it is: {why}") for key, why in refused.items())


def _able(order: Order, cases: Sequence[Case]) -> tuple[list[Case], dict[str, str]]:
    """The steps for which the verb makes sense, and why it does not for the others. One that drops out may be what another leant
    on: a fine-tune is not rerun under an evaluation that stays."""
    able, refused = list(cases), dict[str, str]()
    while True:
        keys = {case.key for case in able}
        news = {case.key: why for case in able if (why := refusal(order, case, keys)) is not None}
        if not news:
            return able, refused
        refused |= news
        able = [case for case in able if case.key not in news]


def _cases(scene: Scene, seen: Pass, order: Order) -> list[Case]:
    """The steps that an order means, as they stand now."""
    desired, memory = seen.desired, seen.memory
    chosen = desired.select(*order.steps)
    if order.stale:
        chosen = tuple(s for s in chosen if _is_stale(seen, s) and (s.stage is Stage.EVALUATION or s.key in order.steps))
    is_named = {step.key for step in chosen if step.key in order.steps}
    if order.with_dependents:
        is_named = _with_dependents(desired, is_named)
        keys = _with_dependents(desired, {step.key for step in chosen})
        chosen = tuple(step for step in desired.steps if step.key in keys)
    ours = whose_jobs(desired, seen.observed, memory)
    is_about_outputs = order.verb in ("accept", "rerun")
    courses = _courses(scene, seen, chosen, ours) if order.verb == "release" else {}
    return [
        Case(
            step,
            seen.plan.of(step.key),
            _live(ours, step),
            scene.tools[step.tool].check(step, scene.disk)
            if is_about_outputs and step.blocked is None
            else seen.observed.outputs.get(step.key),
            memory.of(step.key),
            is_paused=memory.pause is not None and memory.pause.is_on(seen.now),
            is_named=step.key in is_named,
            is_shared=any(job.id in ours.shared for job in _live(ours, step)),
            dependents={other.key: _live(ours, other) for other in desired.steps if step.key in other.sources},
            freed=memory.of(step.need).freed if step.need is not None else None,
            has_checkpoint=not is_about_outputs or _has_checkpoint(scene, step),
            course=courses.get(step.key),
        )
        for step in chosen
    ]


def _courses(scene: Scene, seen: Pass, chosen: Sequence[Step], ours: Ownership) -> dict[str, Course]:
    """What a release of these steps leads to. Where a hold alone keeps a step, it is lifted and no more; one that needs a person
    all the same, or whose end is still looked at, is decided afresh."""
    lifted = _foreseen(scene, seen, {step.key: replace(seen.memory.of(step.key), word=None) for step in chosen})
    anew = {step.key: replace(seen.memory.of(step.key), word=None, released=LATEST) for step in chosen}
    afresh = _foreseen(scene, seen, anew)

    def course(key: str, *, is_live: bool) -> Course:
        word, stands = seen.memory.of(key).word, lifted[key].condition
        goes_on = is_live or not (stands.needs_person or stands is Condition.VERIFYING)
        is_hold_only = word is not None and word.verb == "hold" and goes_on
        return Course((lifted if is_hold_only else afresh)[key], is_hold_only)

    return {step.key: course(step.key, is_live=bool(_live(ours, step))) for step in chosen}


def _foreseen(scene: Scene, seen: Pass, steps: Mapping[str, StepMemory]) -> dict[str, Action]:
    memory = replace(seen.memory, steps={**seen.memory.steps, **steps})
    return foresee(seen.desired, seen.observed, memory, scene.policy, seen.now)


def _has_checkpoint(scene: Scene, step: Step) -> bool:
    """False for a fine-tune of whose epochs surely none is there, whole or not."""
    paths = step.checkpoints.values() if step.stage is Stage.FINETUNE else ()
    return not paths or any(scene.disk.stat(path) is not None for path in paths)


def _live(ours: Ownership, step: Step) -> tuple[Job, ...]:
    return tuple(job for job in ours.of(step.key) if job.is_live)


def _is_stale(seen: Pass, step: Step) -> bool:
    need = seen.memory.of(step.need) if step.need else None
    return bool(staleness(step, seen.memory.of(step.key), need))


def _with_dependents(desired: Desired, keys: set[str]) -> set[str]:
    """These steps, what reads their outputs, what reads the outputs of those, and so on."""
    found = keys | {step.key for step in desired.steps if not keys.isdisjoint(step.sources)}
    return found if found == keys else _with_dependents(desired, found)


def write(scene: Scene, ledger: Ledger, seen: Pass, considered: Considered) -> Court:
    """Put what was considered in writing, under the same lock. What the cluster must do at once comes after that, lest a call
    that fails keeps back the word on other steps."""
    order = considered.order
    court = Court(scene, ledger, order)
    if order.verb == "release":
        _write_learned(court.ledger, seen, [case.key for case in considered.cases])
    for case in considered.cases:
        court.fulfil(case)
    return court


def _write_learned(ledger: Ledger, seen: Pass, keys: Collection[str]) -> None:
    """An end that a person was shown, and that no pass wrote down yet, is released too: it goes into writing first."""
    for event in seen.plan.learned:
        if event["step"] in keys:
            ledger.append(event["event"], **{name: value for name, value in event.items() if name != "event"})


# --- the experiment as a whole ------------------------------------------------------------------------


def release_experiment(
    scene: Scene, why: str = "", confirm: Callable[[Prospect], bool] = lambda prospect: True
) -> tuple[Deed, ...]:
    """Let submissions go on after a wave of failures or a canary that failed or is held, on a disk that was full, to nodes that
    failed jobs.

    Raises ClusterUnreachable as every word.
    """
    with under_lock(scene) as (seen, ledger):
        lifted = " and ".join(_what_it_lifts(seen.plan))
        if not lifted:
            return (Deed("", "no failures stop submissions; there is nothing to release without naming a step"),)
        if not confirm(Prospect((f"release {seen.desired.name}: submissions go on, although {lifted}",))):
            return ()
        _write_learned(ledger, seen, [step.key for step in seen.desired.steps])
        ledger.append("release", user=scene.user, why=why)
    return (Deed("", f"submissions go on, although {lifted}; a failed or held step stays so until it is released itself"),)


def _what_it_lifts(plan: Plan) -> Iterator[str]:
    """What failed, or is held, and stops the submissions of others, or sends them elsewhere."""
    if plan.wave:
        yield f"{', '.join(plan.wave)} failed"
    elif CANARY_FAILED in plan.stopped_by:
        yield "the first step failed"
    elif CANARY_HELD in plan.stopped_by:
        yield "the first step is held"
    if DISK_QUOTA in plan.stopped_by:
        yield "a disk was full"
    if plan.avoided:
        yield f"jobs failed with {', '.join(plan.avoided)}"
