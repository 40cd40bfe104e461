"""Whose the cluster's jobs are; pure.

A job is a step's by recorded id and name, by the token in its name, or by directory and name where it is a live one that a person
submitted. Nothing here decides what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from reconciler.memory import Memory
from reconciler.model import Desired, Job, Observed, Orphan, Phase, Token, digest


def all_jobs(observed: Observed) -> tuple[Job, ...]:
    """Every job seen, once: where queue and accounting both show one, the queue is believed (facts: a job that ignored
    TERM was CANCELLED in sacct while squeue still said COMPLETING). What the accounting alone calls live is UNLISTED, and so
    is a job whose end has not reached it: a slurmdbd that is behind tells the state first (22.05: FAILED, 0:0, no end)."""
    queue = observed.queue if isinstance(observed.queue, tuple) else ()
    accounting = observed.accounting if isinstance(observed.accounting, tuple) else ()
    told = (replace(job, phase=Phase.UNLISTED) if job.is_live or job.ended is None else job for job in accounting)
    # By name too: ids come back, and an old job of ours may have the id of somebody's new one.
    seen = {(job.id, job.name): job for job in told}
    for job in queue:
        who = seen.get((job.id, job.name), job).cancelled_by  # the queue does not tell
        seen[job.id, job.name] = replace(job, cancelled_by=job.cancelled_by or who) if job.state == "CANCELLED" else job
    return tuple(sorted(seen.values(), key=lambda job: (job.submitted or 0.0, job.id)))


@dataclass(frozen=True)
class Ownership:
    """Whose jobs the cluster's jobs are. A job that a person submitted may fit several steps: it is then in ``shared``, and with
    each of them in ``by_step``."""

    by_step: Mapping[str, tuple[Job, ...]]
    shared: frozenset[str]
    orphans: tuple[Orphan, ...]

    def of(self, key: str) -> tuple[Job, ...]:
        """The jobs of a step, oldest first."""
        return self.by_step.get(key, ())


def whose_jobs(desired: Desired, observed: Observed, memory: Memory) -> Ownership:
    """Jobs by the step that they belong to; those of no step of this experiment are left out.

    Names in writing come before tokens: a submission from before the experiment was moved has a token of the old path.
    """
    recorded = {a.name: key for key, m in memory.steps.items() for a in m.attempts if not a.by_hand}
    taken_over = {(a.job, a.name): key for key, m in memory.steps.items() for a in m.attempts if a.by_hand}
    experiment = digest(str(desired.directory))[:8]
    keys = {digest(step.key)[:10]: step.key for step in desired.steps}
    by_hand: dict[tuple[str, str], list[str]] = {}
    for step in desired.steps:
        for workdir in {step.workdir, step.written_workdir or step.workdir}:
            by_hand.setdefault((workdir, step.job_name), []).append(step.key)

    def owners(job: Job) -> list[str]:
        token = Token.parse(job.name)
        key = recorded.get(job.name) or taken_over.get((job.id, job.name))
        if key is not None:
            return [key]
        if token is not None:
            return [keys.get(token.step, "")] if token.experiment == experiment else []
        return by_hand.get((job.workdir, job.name), []) if job.is_live else []

    by_step: dict[str, list[Job]] = {}
    shared: set[str] = set()
    for job in all_jobs(observed):
        found = owners(job)
        shared |= {job.id} if len(found) > 1 else set()
        for key in found:
            by_step.setdefault(key, []).append(job)
    wanted = {step.key for step in desired.steps}
    orphans = (
        Orphan(job, key, next((a.output_dir for a in memory.of(key).attempts if a.name == job.name), ""))
        for key, jobs in by_step.items()
        for job in jobs
        if key not in wanted and job.is_live
    )
    return Ownership({key: tuple(jobs) for key, jobs in by_step.items()}, frozenset(shared), tuple(orphans))
