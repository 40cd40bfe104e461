"""Why an attempt failed, as a class: from how Slurm says that its job ended, and from the tail of the job's log; pure.

Slurm's words are those of man squeue, "JOB STATE CODES"; each sign in a log stands beside a line as it was seen, or as the
program that prints it has it. A class that the retry settings do not name is left to a person.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reconciler.model import Job, Sign
from reconciler.tracebacks import ending

LOG_TAIL = 65536
"""Bytes of a job's log that are looked at, from its end."""

CANCELLED = frozenset({"CancelledByPerson", "CancelledByAdmin", "CancelledByUs"})
"""Ends that are somebody's wish and no fault of the work."""

NODE = frozenset({"NodeFailure", "BootFailure"})
"""Ends that a node is blamed for: by Slurm, or by what the job's program said before it ended."""

INFRASTRUCTURE = NODE | {"Preempted"}
"""Ends that another attempt may well not meet again."""

_BY_STATE = {
    "TIMEOUT": "TimeLimit",
    "DEADLINE": "TimeLimit",
    "OUT_OF_MEMORY": "OutOfMemoryHost",
    "NODE_FAIL": "NodeFailure",
    "BOOT_FAIL": "BootFailure",
    "LAUNCH_FAILED": "LaunchFailure",
    "PREEMPTED": "Preempted",
}

# Slurm reports 0:53 where the batch step could not open its output file (seen on 22.05: output directory missing).
_OUTPUT_NOT_OPENED = "0:53"

_CANCELLED_AT = "slurmstepd: error: *** JOB 117 ON n1 CANCELLED AT 2026-01-01T00:00:00"
SIGNS: tuple[Sign, ...] = (
    # Before everything else: on a full disk whatever was being done fails in some way of its own.
    Sign("DiskQuota", r"Disk quota exceeded|\bEDQUOT\b", "OSError: [Errno 122] Disk quota exceeded: '/scratch/out/epoch_0'"),
    Sign("DiskQuota", r"No space left on device", "OSError: [Errno 28] No space left on device"),
    Sign("OutOfMemoryGpu", r"torch\.(cuda\.)?OutOfMemoryError", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"),
    Sign("OutOfMemoryGpu", r"CUDA out of memory", "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0;"),
    Sign("OutOfMemoryGpu", r"CUBLAS_STATUS_ALLOC_FAILED", "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
    Sign("OutOfMemoryHost", r"oom[-_]kill", "slurmstepd: error: Detected 1 oom_kill event in StepId=117.batch."),
    # JobAcctGatherParams=OverMemoryKill: Slurm itself says FAILED, 0:9 (seen on 22.05).
    Sign("OutOfMemoryHost", r"Exceeded (job|step) memory limit", "slurmstepd-n1: error: Exceeded job memory limit"),
    Sign("NodeFailure", r"DUE TO NODE FAILURE", f"{_CANCELLED_AT} DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***"),
    Sign("NodeFailure", r"uncorrectable (NVLink|ECC) error", "RuntimeError: CUDA error: uncorrectable ECC error encountered"),
    # Of a node only where the job was to have a GPU; where nobody asked for one, no other attempt would find any.
    Sign("NodeFailure", r"No CUDA GPUs are available", "RuntimeError: No CUDA GPUs are available", without_gpus="LaunchFailure"),
    Sign("TimeLimit", r"DUE TO TIME LIMIT", f"{_CANCELLED_AT} DUE TO TIME LIMIT ***"),
    Sign("Preempted", r"DUE TO PREEMPTION", f"{_CANCELLED_AT} DUE TO PREEMPTION ***"),
    Sign("LaunchFailure", r"^ModuleNotFoundError: ", "ModuleNotFoundError: No module named 'datasets'"),
    Sign(
        "LaunchFailure",
        r"Lmod has detected the following error",
        "Lmod has detected the following error: These",
    ),
    Sign(
        "LaunchFailure",
        r"slurm_script: line \d+: .*: command not found",
        "/d/slurm_script: line 2: tune: command not found",
    ),
    Sign(
        "LaunchFailure",
        r"slurm_script: line \d+: .*: No such file",
        "/d/slurm_script: line 9: activate: No such file or directory",
    ),
    Sign(
        "LaunchFailure",
        r"slurm_script: (line \d+: )?.*: Permission denied",
        "/d/slurm_script: line 9: ./train.sh: Permission denied",
    ),
    Sign(
        "LaunchFailure",
        r"execve\(\): .*: (Permission denied|No such file)",
        "slurmstepd: error: execve(): /d/train.py: Permission denied",
    ),
    # Environment Modules in Tcl (ModuleCmd_Load.c's line in 3.2 ends so too).
    Sign("LaunchFailure", r"Unable to locate a modulefile", "ERROR: Unable to locate a modulefile for 'cuda/12.4'"),
    Sign("LaunchFailure", r"^EnvironmentNameNotFound: ", "EnvironmentNameNotFound: Could not find conda environment: llm"),
    Sign(
        "LaunchFailure",
        r"Invalid account or account/partition combination",
        "srun: error: Unable to create step for job 117: Invalid account or account/partition combination specified",
    ),
    Sign("LaunchFailure", r"[Cc]ouldn't chdir to", "slurmstepd: error: couldn't chdir to `/scratch/run': No such file"),
)
"""What a job's log may tell, whatever tool wrote it: in the exception of its last traceback and what follows, or anywhere where
there is none. The first that is found counts. Tools have more of their own. (The forms of tracebacks are in tracebacks.py.)"""

# tqdm's bars end in no line break; what is printed next stands behind them.
_BAR = re.compile(
    r"(?:%\|[^|]{0,300}\|\s*(?:\S{1,20}/\S{1,20} ?\[[^]]{0,200}\]|[\d.]{1,20}/[\d.]{1,20}(?![\d.]| ?\[))|\dit \[[^]]{0,200}\])"
    r" *(?=\S)"
)
_ASK_FOR_A_GPU = "does its script ask for a GPU? `#SBATCH --gres=gpu:1` would"
_NOBODY_KNOWS = "nothing tells whether it was given a GPU: is that its script, or its node?"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
_LONGEST = 300  # characters of a line that is shown

_SENTENCES = {
    "CompletedWithoutEvidence": "the job ended without an error, but its outputs do not verify",
    "TimeLimit": "the job reached its time limit",
    "OutOfMemoryHost": "the job ran out of memory on the node",
    "OutOfMemoryGpu": "the GPU's memory was not enough",
    "NodeFailure": "the node failed",
    "BootFailure": "the node did not boot",
    "Preempted": "the job was preempted",
    "CancelledByPerson": "the job was cancelled by a person",
    "CancelledByAdmin": "the job was cancelled by an administrator",
    "CancelledByUs": "the job was cancelled as it was asked for",
    "LaunchFailure": "the job could not start what it was to run",
    "DiskQuota": "the disk was full, or a quota was used up",
    "UserError": "the program failed",
    "Unknown": "the job failed, and nothing tells why",
    "Vanished": "the job left the queue and nothing tells how it ended",
}
CLASSES = tuple(_SENTENCES)
"""Every class, for the settings and the documentation."""


@dataclass(frozen=True)
class Failure:
    """The class of an end, and the words of Slurm or of the log that tell it."""

    code: str
    detail: str = ""


def needs_log(job: Job) -> bool:
    """True where Slurm's word alone does not tell why a job ended."""
    return job.state not in _BY_STATE and job.state != "CANCELLED" and job.exit_code != _OUTPUT_NOT_OPENED


def is_slurms_word(state: str, failure: str) -> bool:
    """True where the class of an end is what Slurm itself says of the job; else its log alone told it."""
    return _BY_STATE.get(state) == failure


def classify(
    job: Job,
    log: str | None = None,
    signs: Sequence[Sign] = (),
    uid: str = "",
    *,
    was_asked: bool = False,
    gpus: int | None = None,
) -> Failure:
    """The class of an ended job.

    ``log`` is the tail of its log, None where there is none; ``signs`` are its tool's own. ``uid`` is this user's, and
    ``was_asked`` tells that a person's word to reconcile had the job cancelled. ``gpus`` is how many it asked for, None where
    nobody knows.
    """
    if job.state == "CANCELLED":
        return _cancelled(job, uid, was_asked=was_asked)
    if job.state in _BY_STATE:
        return Failure(_BY_STATE[job.state])
    if job.exit_code == _OUTPUT_NOT_OPENED:
        return Failure("LaunchFailure", "its output file could not be opened: does the directory of #SBATCH --output exist?")
    told = _told_by_log(plain_log(log), signs, gpus) if log else None
    if told is not None:
        return told
    if job.state == "COMPLETED":
        return Failure("CompletedWithoutEvidence")
    return Failure("Unknown", f"exit code {job.exit_code}" if job.exit_code else "")


def class_of_refusal(message: str) -> str:
    """What a job that was never accepted is held as: a bad account is the same failure whoever finds it, sbatch or srun."""
    is_known = any(sign.failure == "LaunchFailure" and re.search(sign.pattern, message) for sign in SIGNS)
    return "LaunchFailure" if is_known else "SubmissionRefused"


def sentence(failure: str, detail: str = "") -> str:
    """What a class of failure means, for people, and what told it."""
    text = _SENTENCES.get(failure, failure)
    return f"{text} ({detail})" if detail else text


def plain_log(text: str) -> str:
    """A log's lines as they would stay on a terminal: of a progress bar its last state, on a line of its own, and no escapes."""
    return "\n".join(_BAR.sub(r"\g<0>\n", _CONTROL.sub("", line.rstrip("\r").rpartition("\r")[2])) for line in text.split("\n"))


def _cancelled(job: Job, uid: str, *, was_asked: bool) -> Failure:
    if was_asked:
        return Failure("CancelledByUs")
    if job.cancelled_by and uid and job.cancelled_by != uid:
        return Failure("CancelledByAdmin", f"by uid {job.cancelled_by}")
    return Failure("CancelledByPerson")


def _told_by_log(log: str, signs: Sequence[Sign], gpus: int | None) -> Failure | None:
    """By what its last traceback tells: what a program said before, it went on after."""
    end = ending(log)
    for sign in (*signs, *SIGNS):
        found = re.search(sign.pattern, end.text, re.MULTILINE)
        if found is not None:
            return _meaning(sign, _line_around(end.text, found.start()), gpus)
    return Failure("UserError", end.exception[:_LONGEST]) if end.exception else None


def _meaning(sign: Sign, line: str, gpus: int | None) -> Failure:
    """What a sign stands for, in the line where it was found."""
    if sign.without_gpus and not gpus:
        return Failure(sign.without_gpus, f"{line}; {_NOBODY_KNOWS if gpus is None else _ASK_FOR_A_GPU}")
    return Failure(sign.failure, line)


def _line_around(text: str, at: int) -> str:
    begin = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at)
    return text[begin : end if end >= 0 else len(text)].strip()[:_LONGEST]
