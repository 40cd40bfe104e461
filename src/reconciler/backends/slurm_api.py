"""Slurm through pyslurm, in a process apart; Slurm's commands for what its API cannot do, and for when it does not work.

The facts are those that the commands give, in the same words. Where the worker fails, the sentence that says why is said once and
the commands do the rest of the pass; a submission that was under way is uncertain, never repeated. It never imports pyslurm here.
"""

from __future__ import annotations

import os
import pwd
import resource
import socket
from collections.abc import Callable, Mapping
from typing import Any

from reconciler.backends.job_description import OnlySbatchCan, Submitter, describe
from reconciler.backends.slurm_api_process import NothingSent, SlurmRefused, Worker, WorkerFailed
from reconciler.backends.slurm_cli import SlurmCli, kind_of_refusal, submission_environment
from reconciler.backends.slurm_states import base_state, is_held, phase_of
from reconciler.batch_script import parse_batch_script
from reconciler.errors import ClusterUnreachable, SubmissionUncertain
from reconciler.files import read_file
from reconciler.model import Job, Phase
from reconciler.ports import Doubt, Environment, Submission

_QUERY_SECONDS = 60.0
_SUBMIT_SECONDS = 60.0
_OF_THE_CONTROLLER = range(2000, 3000)  # slurm_errno.h: what slurmctld answers; other numbers are about reaching it
_ALREADY_OVER = (2017, 2021, 2084)  # invalid job id; already complete; has already finished
_LIMITS = ("CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS")  # man sbatch, --propagate


class SlurmApi:
    """The cluster that pyslurm speaks to, seen as this user. ``say`` hears why the commands have to stand in, once."""

    name = "pyslurm"

    def __init__(self, commands: SlurmCli, say: Callable[[str], None], environment: Environment | None = None) -> None:
        self._commands = commands
        self._say = say
        self._environment = dict(os.environ if environment is None else environment)
        self._worker: Worker | None = None
        self._is_given_up = False
        self.uid = str(os.getuid())
        self._site: Mapping[str, Any] | None = None

    def identity(self) -> str:
        """``slurm:<ClusterName>``, as the commands have it."""
        name = self._ask("cluster")
        return self._commands.identity() if name is None else f"slurm:{name}"

    def queue(self) -> tuple[Job, ...]:
        """Every job of this user that the controller knows. The API asks for everyone's; the others are dropped in the worker."""
        rows = self._ask("queue", uid=os.getuid())
        return self._commands.queue() if rows is None else tuple(queue_job(row) for row in rows)

    def accounting(self, doubt: Doubt) -> tuple[Job, ...]:
        """By ids where every id is known. The API's window of time leaves out jobs that never were eligible, and there is no
        telling why it fails (slurmdbd is down, or there is none): both are sacct's to answer."""
        if doubt.has_unnamed:
            return self._commands.accounting(doubt)
        try:
            rows = self._ask("accounting", uid=os.getuid(), ids=[int(job) for job in doubt.ids if job.isdecimal()])
        except ClusterUnreachable:
            rows = None
        return self._commands.accounting(doubt) if rows is None else tuple(accounted_job(row) for row in rows)

    def submit(self, job: Submission) -> str:
        """Through the API where it makes of the script what sbatch would, else through sbatch."""
        try:
            description = self._describe(job)
        except (OnlySbatchCan, ClusterUnreachable, OSError, UnicodeDecodeError):
            return self._commands.submit(job)
        worker = self._started()
        if worker is None:
            return self._commands.submit(job)
        try:
            return str(worker.ask("submit", _SUBMIT_SECONDS, job.keep_open, description=description))
        except NothingSent:
            return self._commands.submit(job)
        except WorkerFailed as error:
            self._give_up(f"during a submission: {error}")
            raise SubmissionUncertain(f"pyslurm: {error}") from error
        except SlurmRefused as error:
            raise submission_failure(error.number, str(error)) from error

    def cancel(self, job_id: str) -> None:
        """End a job; one that is already gone is no error."""
        if not self._told("cancel", job_id):
            self._commands.cancel(job_id)

    def hold(self, job_id: str) -> None:
        """Keep a queued job from starting."""
        if not self._told("hold", job_id):
            self._commands.hold(job_id)

    def release(self, job_id: str) -> None:
        """Let a held job start."""
        if not self._told("release", job_id):
            self._commands.release(job_id)

    # --- the worker

    def _started(self) -> Worker | None:
        """The worker, started when first needed; None where the commands have to stand in."""
        if self._is_given_up:
            return None
        if self._worker is None:
            # pyslurm puts every SLURM_* of its own process into the jobs: those of a surrounding job must not be there.
            worker = Worker(submission_environment(self._environment))
            try:
                worker.start()
            except (WorkerFailed, OSError) as error:
                self._give_up(str(error))
                return None
            self._worker = worker
        return self._worker

    def _give_up(self, why: str) -> None:
        self._is_given_up = True
        self._worker = None
        self._say(f"pyslurm does not work here, Slurm's commands are used instead: {why}")

    def _ask(self, call: str, **arguments: Any) -> Any:
        """The answer to a question; None where the commands have to be asked. Raises ClusterUnreachable where Slurm said no."""
        worker = self._started()
        if worker is None:
            return None
        try:
            return worker.ask(call, _QUERY_SECONDS, **arguments)
        except SlurmRefused as error:
            raise ClusterUnreachable(f"pyslurm: {error}") from error
        except (WorkerFailed, NothingSent) as error:
            self._give_up(str(error))
            return None

    def _told(self, call: str, job_id: str) -> bool:
        """True where Slurm was told, or the job is over; False where the commands have to do it."""
        worker = self._started() if job_id.isdecimal() else None
        if worker is None:
            return False
        try:
            worker.ask(call, _QUERY_SECONDS, job=int(job_id))
        except SlurmRefused as error:
            if error.number not in _ALREADY_OVER:
                raise ClusterUnreachable(f"pyslurm: {call} {job_id}: {error}") from error
        except (WorkerFailed, NothingSent) as error:
            self._give_up(str(error))
            return False
        return True

    def _describe(self, job: Submission) -> Mapping[str, Any]:
        if self._site is None:
            self._site = self._ask("site") or {"release": "", "filters": []}
        if self._site["filters"]:
            raise OnlySbatchCan(f"this site changes submissions in sbatch: {self._site['filters'][0]}")
        text = read_file(job.script)
        if b"\r" in text or not text.startswith(b"#!"):
            raise OnlySbatchCan("a script that sbatch refuses")
        try:
            script = parse_batch_script(job.script, text.decode())
        except UnicodeDecodeError as error:
            raise OnlySbatchCan("a script that is not UTF-8") from error
        environment = submission_environment(self._environment)
        submitter = Submitter(socket.gethostname(), _umask(), _soft_limits(), _release(self._site["release"]))
        return describe(job, script, environment, submitter)


def _release(text: str) -> tuple[int, int]:
    """(24, 11) of ``24.11.5``; (0, 0) where nothing tells."""
    numbers = text.split(".")[:2]
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 and all(n.isdecimal() for n in numbers) else (0, 0)


def _umask() -> int:
    """This process's umask (proc(5): status); asking the system for it would change it."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
        return next((int(line.split()[1], 8) for line in status if line.startswith("Umask:")), 0o022)


def _soft_limits() -> dict[str, int]:
    return {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0] for name in _LIMITS}


def submission_failure(number: int, message: str) -> Exception:
    """What an error of a submission means. A number that is not the controller's own says nothing of what became of the job: 5004
    ("Socket timed out") was seen after it had been accepted."""
    if number in _OF_THE_CONTROLLER or number == 11:  # EAGAIN, which sbatch waits out
        return kind_of_refusal(message)(message)
    return SubmissionUncertain(message)


# --- rows ----------------------------------------------------------------------------------------------


def queue_job(row: Mapping[str, Any]) -> Job:
    """A job as the controller has it. Raises ClusterUnreachable for a row that is none."""
    phase, state, _ = _state(row)
    reason = str(row["state_reason"] or "")
    has_started = phase in (Phase.RUNNING, Phase.ENDED)
    start = _seconds(row["start_time"])
    return Job(
        id=_id(row),
        name=str(row["name"] or ""),
        state=state,
        phase=phase,
        workdir=str(row["working_directory"] or ""),
        user=str(row["user_name"] or ""),
        pending_reason=reason if phase is Phase.QUEUED else "",
        held=is_held(phase, reason),
        submitted=_seconds(row["submit_time"]),
        begins=None if has_started else start,
        started=start if has_started else None,
        ended=_seconds(row["end_time"]) if phase is Phase.ENDED else None,
        exit_code=_exit_code(row),
        nodes=str(row.get("allocated_nodes") or ""),
        source="squeue",
    )


def accounted_job(row: Mapping[str, Any]) -> Job:
    """A job as the accounting has it. Raises ClusterUnreachable for a row that is none."""
    phase, state, by = _state(row)
    return Job(
        id=_id(row),
        name=str(row["name"] or ""),
        state=state,
        phase=phase,
        workdir=str(row["working_directory"] or ""),
        user=str(row["user_name"] or ""),
        submitted=_seconds(row["submit_time"]),
        begins=_seconds(row["eligible_time"]),
        started=_seconds(row["start_time"]),
        ended=_seconds(row["end_time"]) if phase is Phase.ENDED else None,
        exit_code=_exit_code(row),
        cancelled_by=by or _uid(row.get("cancelled_by")),
        nodes=_accounted_nodes(row),
        source="sacct",
    )


def _state(row: Mapping[str, Any]) -> tuple[Phase, str, str]:
    if not isinstance(row.get("state"), str) or not isinstance(row.get("id"), int):
        raise ClusterUnreachable(f"pyslurm's answer has a row that is not one: {dict(row)!r:.200}")
    state, by = base_state(row["state"])
    return phase_of(state), state, by


def _id(row: Mapping[str, Any]) -> str:
    """The job's id; of an array's waiting tasks, what squeue shows for them."""
    if row.get("array_task_id") is not None:
        return f"{row['array_id']}_{row['array_task_id']}"
    return f"{row['id']}_[{row['array_tasks_waiting']}]" if row.get("array_tasks_waiting") else str(row["id"])


def _uid(user: Any) -> str:
    """The number of a user who is told by name, as sacct tells them."""
    try:
        return str(pwd.getpwnam(user).pw_uid) if user else ""
    except KeyError:
        return str(user)


def _accounted_nodes(row: Mapping[str, Any]) -> str:
    """Where it ran; the accounting has a phrase for nowhere."""
    nodes = str(row.get("nodelist") or "")
    return "" if nodes == "None assigned" else nodes


def _exit_code(row: Mapping[str, Any]) -> str:
    signal = row["exit_code_signal"] or 0
    return f"0:{signal}" if signal else f"{row['exit_code'] or 0}:0"


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, int) and 0 < value < 10**11 else None
