"""Slurm through its commands: sbatch, squeue, sacct, scancel, scontrol.

One squeue a look and at most one sacct. Turning their text into jobs is pure (``parse_squeue``, ``parse_sacct``); text that is
not whole is an error, never a shorter list. It never decides what a job is for.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from reconciler.backends.sbatch_answer import whole_answer
from reconciler.backends.slurm_states import base_state, is_held, phase_of
from reconciler.errors import (
    AccountingDisabled,
    ClusterUnreachable,
    ControllerFull,
    LimitReached,
    SubmissionRefused,
    SubmissionUncertain,
    could_not_submit,
)
from reconciler.model import Job
from reconciler.ports import Doubt, Environment, Submission

_LONGEST = 2000  # characters of what a command says that are kept
_QUERY_SECONDS = 60.0  # a dead controller costs every client call 9 s, a busy one more
_SUBMIT_SECONDS = 60

# ASCII's own unit and record separators: job names and directories may hold anything else, newlines included (seen on 22.05).
_FIELD, _RECORD = "\x1f", "\x1e"
_SQUEUE_FIELDS = (
    ("JobArrayID", 60), ("State", 40), ("Reason", 100), ("SubmitTime", 30), ("StartTime", 30), ("EndTime", 30),
    ("UserName", 100), ("exit_code", 20), ("NodeList", 500), ("Name", 1000), ("WorkDir", 4096),
)  # fmt: skip
_SQUEUE_FORMAT = ",".join(f"{name}:.{width}{_RECORD if name == 'WorkDir' else _FIELD}" for name, width in _SQUEUE_FIELDS)
_SACCT_FIELDS = ("JobID", "State", "ExitCode", "Submit", "Eligible", "Start", "End", "User", "NodeList", "WorkDir", "JobName")
# Every state by name: without them sacct leaves out jobs that were never eligible (held, begin time ahead, dependency).
_SACCT_STATES = "BF,CA,CD,DL,F,NF,OOM,PD,PR,R,RS,S,TO"


class SlurmCli:
    """The cluster that Slurm's commands on PATH speak to, seen as this user."""

    name = "cli"

    def __init__(self, environment: Environment | None = None) -> None:
        self._environment = dict(os.environ if environment is None else environment)
        self.uid = str(os.getuid())

    def identity(self) -> str:
        """``slurm:<ClusterName>``."""
        return f"slurm:{self._cluster}"

    @cached_property
    def _cluster(self) -> str:
        text = self._ask(["scontrol", "show", "config"])
        found = re.search(r"^ClusterName\s*=\s*(\S+)", text, re.MULTILINE)
        if not found:
            raise ClusterUnreachable("scontrol show config names no ClusterName")
        return found[1]

    def queue(self) -> tuple[Job, ...]:
        """Every job of this user that squeue shows, those ended within MinJobAge among them (``-t all``)."""
        return parse_squeue(self._ask(["squeue", "--me", "--all", "--noheader", "--states=all", "-O", _SQUEUE_FORMAT]))

    def accounting(self, doubt: Doubt) -> tuple[Job, ...]:
        """Every job of this user that was pending, running or ended since then, whatever became of it."""
        since, states = f"--starttime=uts{int(doubt.since)}", f"--state={_SACCT_STATES}"
        rows = ["sacct", "-X", "-P", "--noheader", "--delimiter", _FIELD, f"--format={','.join(_SACCT_FIELDS)}"]
        return parse_sacct(self._ask([*rows, since, "--endtime=now", states, f"--user={os.getuid()}"]))

    def submit(self, job: Submission) -> str:
        """sbatch from the script's own directory, the lock's descriptor open in it, for a minute at most (timeout(1))."""
        command = ["timeout", "--kill-after=5", str(_SUBMIT_SECONDS), "sbatch", "--parsable", f"--job-name={job.name}"]
        command.append("--requeue" if job.requeue else "--no-requeue")
        if job.begin_in > 0:
            command.append(f"--begin=now+{job.begin_in}")
        if job.held:
            command.append("--hold")
        command += [f"--{name}={value}" for name, value in job.options.items()]
        since = time.monotonic()
        try:
            # Never killed by us, whatever interrupts this pass: without timeout(1) above it a hanging sbatch would keep the lock
            # for ever. In a session of its own it outlives a Ctrl-C at the terminal too.
            sbatch = subprocess.Popen(
                [*command, f"./{job.script.name}"],
                cwd=job.directory,
                env=submission_environment(self._environment),
                pass_fds=job.keep_open,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise could_not_submit("sbatch could not be started", error) from error
        try:
            answer = whole_answer(sbatch, since, _SUBMIT_SECONDS + 10)
        except subprocess.TimeoutExpired as error:
            raise SubmissionUncertain(f"sbatch did not answer within {_SUBMIT_SECONDS} s") from error
        if answer.was_asleep:
            raise ControllerFull("the controller takes no more jobs for now (MaxJobCount, or it has just started)")
        return read_submission(answer.code, _text(answer.output), _text(answer.errors))

    def cancel(self, job_id: str) -> None:
        """scancel; a job that is already gone is no error."""
        self._tell(["scancel", job_id])

    def hold(self, job_id: str) -> None:
        """``scontrol hold``."""
        self._tell(["scontrol", "hold", job_id])

    def release(self, job_id: str) -> None:
        """``scontrol release``."""
        self._tell(["scontrol", "release", job_id])

    # --- commands

    def _ask(self, command: list[str]) -> str:
        """A query's whole answer. Anything but a clean success is no answer."""
        done = self._run(command)
        errors = _text(done.stderr).strip()
        if "accounting storage is disabled" in errors:
            raise AccountingDisabled(errors.splitlines()[-1])
        if done.returncode != 0 or "error:" in errors:
            raise ClusterUnreachable(_last_words(command, errors, done.returncode))
        return _text(done.stdout)

    def _tell(self, command: list[str]) -> None:
        done = self._run(command)
        errors = _text(done.stderr).strip()
        # Seen on 22.05 for a job that has ended: "Invalid job id specified", "Job/step already completing or completed" (scancel)
        # and "Job has already finished" (scontrol hold, release).
        is_over = any(sign in errors for sign in ("Invalid job id", "already complet", "already finished"))
        if done.returncode != 0 and not is_over:
            raise ClusterUnreachable(_last_words(command, errors, done.returncode))

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                command,
                env=query_environment(self._environment),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=_QUERY_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise ClusterUnreachable(f"{command[0]} did not answer within {_QUERY_SECONDS:.0f} s") from error
        except OSError as error:
            raise ClusterUnreachable(f"{command[0]} could not be started: {error.strerror}") from error


def _last_words(command: Sequence[str], errors: str, code: int) -> str:
    """What a failed command said last, under its name once."""
    said = errors.splitlines()[-1][:_LONGEST] if errors else f"exit code {code}"
    return said if said.startswith(command[0]) else f"{command[0]}: {said}"


def _text(output: bytes) -> str:
    return output.decode("utf-8", "surrogateescape")


# --- environments ------------------------------------------------------------------------------------

# Variables that describe a job which this pass itself runs in (man sbatch, OUTPUT ENVIRONMENT VARIABLES). Inside a job there are
# more of them than any list names, and srun in the new job would obey them: there only those stay that say which cluster this is
# and who we are. Outside of one, what else begins with SLURM_ is the user's own.
_OF_A_JOB = re.compile(
    r"SLURM_(JOB|STEP|TASK|ARRAY|NODE|NTASKS|NPROCS|PROCID|LOCALID|GTIDS|SUBMIT|CPU|MEM|TRES|GPU|SCRIPT|RESTART|EXPORT|WORKING"
    r"|LAUNCH|SRUN|PRIO|TOPOLOGY|SCRONTAB|DIST|HET|PACK|CLUSTER_NAME).*|SLURM_NNODES|SLURMD_.*"
)
_OF_THE_SITE = re.compile(r"SLURM_(CONF|CONF_SERVER|CLUSTERS|JWT|SACK_.*|DEBUG_FLAGS|TIME_FORMAT)")
_CHANGES_SUBMISSION = {
    "SBATCH_WAIT", "SBATCH_TEST_ONLY", "SBATCH_ARRAY_INX", "SBATCH_JOB_NAME", "SBATCH_REQUEUE", "SBATCH_NO_REQUEUE",
    "SBATCH_HOLD", "SBATCH_IGNORE_PBS",
}  # fmt: skip


def submission_environment(environment: Environment) -> dict[str, str]:
    """What sbatch gets, and hands on to the job: the user's own variables, without those of a surrounding job."""
    is_inside_a_job = "SLURM_JOB_ID" in environment

    def is_dropped(name: str) -> bool:
        if is_inside_a_job and name.startswith("SLURM_"):
            return not _OF_THE_SITE.fullmatch(name)
        return bool(_OF_A_JOB.fullmatch(name)) or name in _CHANGES_SUBMISSION

    return {name: value for name, value in environment.items() if not is_dropped(name)}


def query_environment(environment: Environment) -> dict[str, str]:
    """What queries get: ``SQUEUE_*`` and ``SACCT_*`` would filter or reformat the answer with exit 0; times in epoch seconds."""
    kept = {n: v for n, v in submission_environment(environment).items() if not n.startswith(("SQUEUE_", "SACCT_"))}
    return {**kept, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C.UTF-8"}


# --- answers to submissions ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sign:
    """A part of sbatch's message and what it means. ``sample`` is a message as it was seen or as slurm_errno.c has it."""

    part: str
    kind: type[Exception]
    sample: str


_FAILED = "Batch job submission failed: "
_TRIED = "Slurm temporarily unable to accept job, sleeping and retrying"
_POLICY = f"{_FAILED}Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
# The first row that fits counts, and doubt comes first: sbatch may have been refused once, tried again, and had no answer.
_SIGNS = (
    _Sign("timed out", SubmissionUncertain, f"{_FAILED}Socket timed out on send/recv operation"),
    _Sign("Unable to contact", SubmissionUncertain, f"{_FAILED}Unable to contact slurm controller (connect failure)"),
    _Sign("Zero Bytes", SubmissionUncertain, f"{_FAILED}Zero Bytes were transmitted or received"),
    _Sign("Unexpected message", SubmissionUncertain, f"{_FAILED}Unexpected message received"),
    _Sign("connection failure", SubmissionUncertain, f"{_FAILED}Communication connection failure"),
    _Sign("Communication", SubmissionUncertain, f"{_FAILED}Communication shutdown failure"),
    _Sign("Insane message", SubmissionUncertain, f"{_FAILED}Insane message length"),
    _Sign("standby mode", SubmissionUncertain, f"{_FAILED}Slurm backup controller in standby mode"),
    _Sign("authentication", SubmissionUncertain, f"{_FAILED}Protocol authentication error"),
    # Limits that are met by waiting. Seen on 22.05 and 24.11, each with exit code 1.
    _Sign("SubmitJob", LimitReached, f"QOSMaxSubmitJobPerUserLimit\nsbatch: error: {_POLICY}"),
    _Sign("SubmitJob", LimitReached, f"QOSGrpSubmitJobsLimit\nsbatch: error: {_POLICY}"),
    _Sign("SubmitJob", LimitReached, f"MaxSubmitJobsPerAccount\nsbatch: error: {_POLICY}"),
    _Sign("SubmitJob", LimitReached, f"AssocMaxSubmitJobLimit\nsbatch: error: {_POLICY}"),
    _Sign("SubmitJob", LimitReached, f"AssocGrpSubmitJobsLimit\nsbatch: error: {_POLICY}"),
    _Sign("inactive or drain", LimitReached, f"{_FAILED}Required partition not available (inactive or drain)"),
    # MaxJobCount (EAGAIN), after sbatch has tried for two minutes; we stop it sooner (sbatch_answer.py).
    _Sign(
        "Resource temporarily unavailable",
        ControllerFull,
        f"{_TRIED}\nsbatch: error: {_FAILED}Resource temporarily unavailable",
    ),
    # A QOS with DenyOnLimit refuses what would never start: this one job asks for more than any may, or for less.
    _Sign("PerJobLimit", SubmissionRefused, f"QOSMaxCpuPerJobLimit\nsbatch: error: {_POLICY}"),
    _Sign("PerJobLimit", SubmissionRefused, f"QOSMaxWallDurationPerJobLimit\nsbatch: error: {_POLICY}"),
    _Sign("PerJobLimit", SubmissionRefused, f"QOSMaxCpuMinutesPerJobLimit\nsbatch: error: {_POLICY}"),
    _Sign("NotSatisfied", SubmissionRefused, f"QOSMinCpuNotSatisfied\nsbatch: error: {_POLICY}"),
    _Sign("MinutesLimit", SubmissionRefused, f"QOSGrpCPUMinutesLimit\nsbatch: error: {_POLICY}"),
    _Sign("GrpWallLimit", SubmissionRefused, f"QOSGrpWallLimit\nsbatch: error: {_POLICY}"),
    # Without the name of the limit (pyslurm gives none) it may be the number of jobs.
    _Sign("accounting/QOS policy", LimitReached, _POLICY),
    # What a person has to mend; the first nine were seen on 22.05 and 24.11.
    _Sign(_FAILED, SubmissionRefused, f"{_FAILED}Invalid account or account/partition combination specified"),
    _Sign(_FAILED, SubmissionRefused, f"{_FAILED}Invalid qos specification"),
    _Sign(_FAILED, SubmissionRefused, f"{_FAILED}Invalid job array specification"),  # beyond MaxArraySize
    _Sign(_FAILED, SubmissionRefused, f"{_FAILED}Requested time limit is invalid (missing or exceeds some limit)"),
    _Sign(_FAILED, SubmissionRefused, f"{_FAILED}Node count specification invalid"),
    _Sign(_FAILED, SubmissionRefused, f"{_FAILED}Requested node configuration is not available"),
    _Sign(_FAILED, SubmissionRefused, f"{_FAILED}Requested reservation is invalid"),
    _Sign(_FAILED, SubmissionRefused, f"{_FAILED}User's group not permitted to use this partition"),
    _Sign(
        _FAILED, SubmissionRefused, f"invalid partition specified: gpu\nsbatch: error: {_FAILED}Invalid partition name specified"
    ),
    _Sign("Batch script", SubmissionRefused, "Batch script contains DOS line breaks (\\r\\n)"),
    _Sign("batch script", SubmissionRefused, "This does not look like a batch script."),
    _Sign("Unable to open file", SubmissionRefused, "Unable to open file ./finetune.slurm"),
    _Sign("unrecognized option", SubmissionRefused, "sbatch: unrecognized option '--nonsense'"),
    _Sign("is ambiguous", SubmissionRefused, "sbatch: option '--gre=gpu:4' is ambiguous; possibilities: '--gres' '--gres-flags'"),
    _Sign("requires an argument", SubmissionRefused, "sbatch: option '--time' requires an argument"),
    _Sign("doesn't allow an argument", SubmissionRefused, "sbatch: option '--hold=x' doesn't allow an argument"),
    _Sign("Unmatched", SubmissionRefused, "sbatch: fatal: ./finetune.slurm: line 2: Unmatched `'` in [ ']"),
    _Sign("nvalid", SubmissionRefused, "Invalid --time specification"),
)


_CUT_SHORT = (124, 137, 143, -9, -15)
"""How a command ends that timeout(1), or somebody else, did not let finish: what it had said by then proves nothing."""


def read_submission(code: int, output: str, errors: str) -> str:
    """The job's id from what sbatch said, or the exception that says what is known of the submission instead.

    ``--parsable`` prints ``ID`` or ``ID;cluster``; warnings go to stderr. A failure that is not recognised may
    have been accepted.
    """
    lines = output.strip().splitlines() if output.endswith("\n") else []  # half an id is another job's
    found = re.fullmatch(r"([0-9]{1,20})(;\S+)?", lines[-1].strip()) if lines else None
    if code == 0 and found:
        return found[1]
    said = " ".join(line.removeprefix("sbatch: error: ") for line in errors.strip().splitlines()) or f"exit code {code}"
    said = said[:_LONGEST]
    if found or code in (0, *_CUT_SHORT):
        raise SubmissionUncertain(f"sbatch ended with {code} and said {(output.strip() or errors.strip())[:200]!r}")
    raise next((sign.kind for sign in _SIGNS if sign.part in errors), SubmissionUncertain)(said)


def kind_of_refusal(message: str) -> type[Exception]:
    """What it means that the controller answered a submission with this message of slurm_errno.c."""
    return next(sign.kind for sign in _SIGNS if sign.part in f"{_FAILED}{message}")


# --- answers to queries ----------------------------------------------------------------------------------


_JOB_ID = re.compile(r"[0-9]")  # how it begins: 12, 12_3, 12_[4-9%2], 12+1


def parse_squeue(text: str) -> tuple[Job, ...]:
    """Jobs from squeue's answer in ``_SQUEUE_FORMAT``. Raises ClusterUnreachable for an answer that is not whole."""
    records = text.split(_RECORD + "\n")
    if records[-1]:
        raise ClusterUnreachable("squeue's answer is cut off")
    return tuple(_queue_job([field.strip() for field in record.split(_FIELD)]) for record in records[:-1])


def _queue_job(fields: Sequence[str]) -> Job:
    if len(fields) != len(_SQUEUE_FIELDS) or not _JOB_ID.match(fields[0]):
        raise ClusterUnreachable(f"squeue's answer has a row that is not one: {' '.join(fields)[:200]!r}")
    row = dict(zip((name for name, _ in _SQUEUE_FIELDS), fields, strict=True))
    state, by = base_state(row["State"])
    phase = phase_of(state)
    start = _time(row["StartTime"])
    has_started = phase.value in ("running", "ended")
    return Job(
        id=row["JobArrayID"],
        name=row["Name"],
        state=state,
        phase=phase,
        workdir=row["WorkDir"],
        user=row["UserName"],
        pending_reason=row["Reason"] if phase.value == "queued" else "",
        held=is_held(phase, row["Reason"]),
        submitted=_time(row["SubmitTime"]),
        begins=None if has_started else start,
        started=start if has_started else None,
        ended=_time(row["EndTime"]) if phase.value == "ended" else None,
        exit_code=_exit_code(row["exit_code"]),
        cancelled_by=by,
        nodes=row["NodeList"],
        source="squeue",
    )


def _exit_code(status: str) -> str:
    """``code:signal`` from what squeue prints: a wait status on 22.05 (768 is 3:0, 4021, output file not opened, is 0:53), and
    ``code:signal`` itself on 24.11."""
    if re.fullmatch(r"[0-9]{1,10}:[0-9]{1,10}", status):
        return status
    if not re.fullmatch(r"[0-9]{1,10}", status):
        return ""
    number = int(status)
    signal = number & 0x7F
    return f"0:{signal}" if signal else f"{number >> 8}:0"


def parse_sacct(text: str) -> tuple[Job, ...]:
    """Jobs from sacct's answer in ``_SACCT_FIELDS``, the newest record where an id was used twice. Raises ClusterUnreachable."""
    if text and not text.endswith("\n"):
        raise ClusterUnreachable("sacct's answer is cut off")
    rows: list[list[str]] = []
    for line in text.removesuffix("\n").split("\n") if text else ():  # splitlines() would cut names and directories at more
        fields = line.split(_FIELD)
        if len(fields) == 1 and rows:
            rows[-1][-1] += f"\n{line}"  # a job name with a line break in it
        elif len(fields) == len(_SACCT_FIELDS) and _JOB_ID.match(line):
            rows.append(fields)
        else:
            raise ClusterUnreachable(f"sacct's answer has a row that is not one: {line[:200]!r}")
    return tuple(_accounted_job(dict(zip(_SACCT_FIELDS, row, strict=True))) for row in rows)


def _accounted_job(row: Mapping[str, str]) -> Job:
    state, by = base_state(row["State"])
    phase = phase_of(state)
    return Job(
        id=row["JobID"],
        name=row["JobName"],
        state=state,
        phase=phase,
        workdir=row["WorkDir"],
        user=row["User"],
        submitted=_time(row["Submit"]),
        begins=_time(row["Eligible"]),
        started=_time(row["Start"]),
        ended=_time(row["End"]) if phase.value == "ended" else None,
        exit_code=row["ExitCode"],
        cancelled_by=by,
        nodes="" if row["NodeList"] == "None assigned" else row["NodeList"],
        source="sacct",
    )


def _time(text: str) -> float | None:
    """Epoch seconds; None for a word (``N/A``, ``Unknown``) and for what no calendar has."""
    return float(text) if re.fullmatch(r"[0-9]{1,11}", text) else None
