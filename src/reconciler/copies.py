"""Live jobs of another experiment of this user that may write where a fine-tune of this one would: of its copy, of what it is a
copy of, or of itself before it was moved and its ledger was lost.

Such a job has our token of the same step and of another path, under the same script's name. Many experiments have a run
``r8_lr1e-5``: where the job's own directory tells that its outputs go elsewhere, it is nothing to us. Reads, and decides nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from reconciler.errors import DiskUnreadable
from reconciler.memory import Memory
from reconciler.model import Desired, Job, RunInput, RunKind, Stage, Step, Token
from reconciler.ports import Disk, Tools


def jobs_of_copies(
    desired: Desired, steps: Iterable[Step], memory: Memory, queue: Sequence[Job], disk: Disk, tools: Tools
) -> dict[str, Job]:
    """By fine-tune among ``steps``: a job of another experiment that is live and may be writing to the same directory."""
    written = {attempt.name for of_step in memory.steps.values() for attempt in of_step.attempts}
    theirs = [(job, token) for job in queue if job.is_live and job.name not in written and (token := Token.parse(job.name))]
    found: dict[str, Job] = {}
    for step in steps:
        if not theirs or step.stage is not Stage.FINETUNE or step.blocked is not None:
            continue
        own = Token.of(desired.directory, step.key, 1)
        for job, token in theirs:
            is_like_ours = (token.step, token.job_name(step.job_name)) == (own.step, job.name)
            if is_like_ours and token.experiment != own.experiment and _may_write_to(job, step, disk, tools):
                found.setdefault(step.key, job)
    return found


def _may_write_to(job: Job, step: Step, disk: Disk, tools: Tools) -> bool:
    """What the run's directory tells in which the job began; one that is gone was moved, and with it whatever could tell. A job
    that began elsewhere than in its run's directory tells nothing, and is left out."""
    directory = Path(job.workdir)
    try:
        if not job.workdir or disk.stat(directory) is None:
            return True
    except DiskUnreadable:
        return True
    run = RunInput(step.run, RunKind.FINE_TUNED, directory, directory.parent, 0)
    their = next((found for found in tools[step.tool].read(run, disk).steps if found.definition), None)
    return their is not None and os.path.realpath(their.output_dir) == os.path.realpath(step.output_dir)
