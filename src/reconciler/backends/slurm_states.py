"""Slurm's state words as phases: live (queued or running), ended, or not known; pure.

Each row has its source. A word that is not here is UNKNOWN, which counts as live: a job is called ended only on Slurm's
clear word.
"""

from __future__ import annotations

import re

from reconciler.model import Phase

_PHASES: dict[str, Phase] = {
    # man squeue, JOB STATE CODES: before it runs
    "PENDING": Phase.QUEUED,
    "REQUEUED": Phase.QUEUED,  # comes back under the same id
    "REQUEUE_FED": Phase.QUEUED,
    "REQUEUE_HOLD": Phase.QUEUED,  # comes back held
    "SPECIAL_EXIT": Phase.QUEUED,  # requeued and held, because its script asked for it
    "RESV_DEL_HOLD": Phase.QUEUED,
    # man squeue: it has resources
    "CONFIGURING": Phase.RUNNING,  # nodes are booting
    "RUNNING": Phase.RUNNING,
    "COMPLETING": Phase.RUNNING,  # processes may still write (seen for 4 s after a scancel that a job ignored)
    "SUSPENDED": Phase.RUNNING,
    "STOPPED": Phase.RUNNING,
    "SIGNALING": Phase.RUNNING,
    "RESIZING": Phase.RUNNING,
    "STAGE_OUT": Phase.RUNNING,
    "UPDATE_DB": Phase.RUNNING,  # slurm.h JOB_UPDATE_DB
    "POWER_UP_NODE": Phase.RUNNING,  # slurm.h JOB_POWER_UP_NODE
    "EXPEDITING": Phase.QUEUED,  # 25.11 and later: an urgent requeue
    # man squeue and man sacct: ended
    "COMPLETED": Phase.ENDED,
    "CANCELLED": Phase.ENDED,
    "FAILED": Phase.ENDED,
    "TIMEOUT": Phase.ENDED,
    "DEADLINE": Phase.ENDED,
    "NODE_FAIL": Phase.ENDED,
    "BOOT_FAIL": Phase.ENDED,
    "OUT_OF_MEMORY": Phase.ENDED,
    "PREEMPTED": Phase.ENDED,
    "LAUNCH_FAILED": Phase.ENDED,  # slurm.h JOB_LAUNCH_FAILED
    # man squeue: withdrawn from this cluster of a federation; it may run on another one
    "REVOKED": Phase.UNKNOWN,
}
_HOLDS = re.compile(r"JobHeld|held", re.IGNORECASE)
_CANCELLED_BY = re.compile(r"CANCELLED by (\d+)")


def phase_of(state: str) -> Phase:
    """The phase of a base state word; UNKNOWN for a word that is not in the table."""
    return _PHASES.get(state, Phase.UNKNOWN)


def base_state(text: str) -> tuple[str, str]:
    """The state word and the uid that cancelled the job, of ``CANCELLED by 1234``, ``COMPLETED`` or ``CANCELLED+``."""
    cancelled = _CANCELLED_BY.match(text)
    if cancelled:
        return "CANCELLED", cancelled[1]
    return text.split(" ", 1)[0].rstrip("+").upper(), ""


def is_held(phase: Phase, reason: str) -> bool:
    """True where a queued job waits for somebody's release: ``JobHeldUser``, ``launch failed requeued held``."""
    return phase is Phase.QUEUED and _HOLDS.search(reason) is not None
