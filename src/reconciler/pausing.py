"""A person's word on the experiment as a whole: nothing starts for now, or goes on again.

The word is in the ledger, and every pass makes it so; what is in the queue is held and let go at once all the same. Running jobs
run on. A hold that a person placed is not lifted here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from reconciler.errands import Errand, run
from reconciler.holding import hold_job, let_go
from reconciler.loop import Pass, Scene
from reconciler.memory import Attempt
from reconciler.model import Job, Phase
from reconciler.moments import moment, shown
from reconciler.ownership import whose_jobs
from reconciler.words import Deed, Prospect, named, under_lock

Confirm = Callable[[Prospect], bool]
_Queued = list[tuple[str, Attempt, Job]]


def pause(scene: Scene, until: str | None, why: str, confirm: Confirm) -> tuple[Deed, ...]:
    """Submit nothing, and hold our queued jobs, until ``until`` (as people write it) or until ``resume``."""
    end = None if until is None else moment(until, scene.clock())
    when = "until you resume it" if end is None else f"until {shown(end)}"
    with under_lock(scene) as (seen, ledger):
        jobs = [(key, a, job) for key, a, job in _queued(seen) if not job.held and not a.by_hand]
        held = f"; {named([job for _, _, job in jobs])} held meanwhile" if jobs else ""
        if not confirm(Prospect((f"pause {seen.desired.name}: nothing is submitted {when}{held}; what runs runs on",))):
            return ()
        text = "" if end is None else shown(end)
        ledger.append("pause", user=scene.user, why=why, until=end, until_text=text)
        calls = [(job.id, partial(hold_job, ledger, scene.backend, key, attempt.number, job.id)) for key, attempt, job in jobs]
        run([Errand(job, "held", call, is_taken_up=True) for job, call in calls], f"paused {when}")
    steps = (Deed(key, f"job {job.id} held") for key, _, job in jobs)
    return (Deed("", f"paused {when}; `reconcile resume` goes on before that" if end else f"paused {when}"), *steps)


def resume(scene: Scene, why: str, confirm: Confirm) -> tuple[Deed, ...]:
    """Let submissions go on, and the jobs start that the pause held; what a person held stays so."""
    with under_lock(scene) as (seen, ledger):
        is_paused = seen.memory.pause is not None and seen.memory.pause.is_on(seen.now)
        jobs = [(key, a, job) for key, a, job in _queued(seen) if job.held and a.queue_hold and not _is_on_hold(seen, key)]
        if not is_paused and not jobs:
            return (Deed("", "it is not paused; there is nothing to resume"),)
        released = f"; {named([job for _, _, job in jobs])} may start" if jobs else ""
        if not confirm(Prospect((f"resume {seen.desired.name}: submissions go on{released}",))):
            return ()
        ledger.append("resume", user=scene.user, why=why)
        calls = [(job.id, partial(let_go, ledger, scene.backend, key, attempt.number, job.id)) for key, attempt, job in jobs]
        run([Errand(job, "released", call, is_taken_up=True) for job, call in calls], "submissions go on")
    return (Deed("", "submissions go on"), *(Deed(key, f"job {job.id} may start") for key, _, job in jobs))


def _queued(seen: Pass) -> _Queued:
    """Our jobs that have not started, of steps of the document, with the attempts they belong to. Replacements that were
    submitted held are for a pass to judge."""
    ours = whose_jobs(seen.desired, seen.observed, seen.memory)
    found: _Queued = []
    for step in seen.desired.steps:
        attempts = {(a.job, a.name): a for a in seen.memory.of(step.key).attempts if not a.held}
        jobs = (job for job in ours.of(step.key) if job.phase is Phase.QUEUED)
        found += [(step.key, attempts[job.id, job.name], job) for job in jobs if (job.id, job.name) in attempts]
    return found


def _is_on_hold(seen: Pass, key: str) -> bool:
    word = seen.memory.of(key).word
    return word is not None and word.verb == "hold"
