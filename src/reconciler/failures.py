"""The class of a failure, from how Slurm says that the job ended; pure.

The words are those of man squeue, "JOB STATE CODES". A class that the retry settings do not name is left to a person.
"""

from __future__ import annotations

from reconciler.model import Job

_BY_STATE = {
    "COMPLETED": "CompletedWithoutEvidence",
    "TIMEOUT": "TimeLimit",
    "DEADLINE": "TimeLimit",
    "OUT_OF_MEMORY": "OutOfMemoryHost",
    "NODE_FAIL": "NodeFailure",
    "BOOT_FAIL": "BootFailure",
    "PREEMPTED": "Preempted",
    "CANCELLED": "Cancelled",
    "FAILED": "Failed",
}

# Slurm reports 0:53 where the batch step could not open its output file (seen on 22.05: output directory missing).
_OUTPUT_NOT_OPENED = "0:53"

_SENTENCES = {
    "CompletedWithoutEvidence": "the job ended without an error, but its outputs do not verify",
    "TimeLimit": "the job reached its time limit",
    "OutOfMemoryHost": "the job ran out of memory on the node",
    "NodeFailure": "the node failed",
    "BootFailure": "the node did not boot",
    "Preempted": "the job was preempted",
    "Cancelled": "the job was cancelled",
    "LaunchFailure": "the job could not open its output file (does the directory of #SBATCH --output exist?)",
    "Failed": "the job failed",
    "Vanished": "the job left the queue and nothing tells how it ended",
}


def classify(job: Job) -> str:
    """The failure class of an ended job."""
    if job.state == "FAILED" and job.exit_code == _OUTPUT_NOT_OPENED:
        return "LaunchFailure"
    return _BY_STATE.get(job.state, "Failed")


def sentence(failure: str, exit_code: str = "") -> str:
    """What a class of failure means, for people."""
    text = _SENTENCES.get(failure, failure)
    return f"{text} (exit code {exit_code})" if failure == "Failed" and exit_code else text
