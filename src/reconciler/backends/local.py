"""The embedded backend: runs batch scripts as plain processes of one Linux machine, for those who have no Slurm.

A job is a directory (its files: ``local_supervisor``) with a supervisor of its own, so it outlives the command that submitted
it. Nothing here decides whether a job should exist, and no job is ever called ended while a process of it may still run.
"""

from __future__ import annotations

import fnmatch
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from reconciler.backends import local_supervisor
from reconciler.backends.local_supervisor import MARK, End, JobDirectory, Record, Start, locked, write_atomically
from reconciler.batch_script import BatchScript, fill_in, parse_batch_script, parse_time_limit
from reconciler.errors import ClusterUnreachable, SubmissionRefused, could_not_submit
from reconciler.files import home, read_file
from reconciler.model import Job, Phase
from reconciler.ports import Doubt, Environment, Submission

_IN_QUEUE_SECONDS = 3600.0  # how long the queue still shows a job that has ended
_KEPT_SECONDS = 30 * 86400.0  # how long the accounting does
_LAUNCH_SECONDS = 60.0
_CANCEL_SECONDS = 10.0


def default_state_dir() -> Path:
    """Where this user's local jobs live: one place for all experiments, or "one at a time" would hold only within each."""
    chosen = os.environ.get("RECONCILE_LOCAL_DIR")
    if chosen:
        return Path(chosen)
    state_home = os.environ.get("XDG_STATE_HOME")
    return (Path(state_home) if state_home else home() / ".local" / "state") / "reconcile" / "local"


class LocalBackend:
    """This machine as a cluster that runs ``slots`` jobs at a time, first come, first served."""

    name = "local"

    def __init__(self, state_dir: Path, slots: int = 1) -> None:
        self._state = Path(os.path.abspath(state_dir))  # noqa: PTH100 (resolve() would ask the disk)
        self._slots = slots
        self._host = socket.gethostname()
        self.uid = str(os.getuid())

    def identity(self) -> str:
        """``local:<host>``: processes are of one machine, even where its home directories are not."""
        return f"local:{self._host}"

    def queue(self) -> tuple[Job, ...]:
        """Every live job, and those that ended within the last hour."""
        since = time.time() - _IN_QUEUE_SECONDS
        return tuple(job for job in self._jobs("queue") if job.ended is None or job.ended >= since)

    def accounting(self, doubt: Doubt) -> tuple[Job, ...]:
        """Every job that was live then or later, and those in doubt; ended jobs are kept for 30 days."""
        jobs = self._jobs("accounting")
        return tuple(job for job in jobs if job.ended is None or job.ended >= doubt.since or job.id in doubt.ids)

    def submit(self, job: Submission) -> str:
        """Start a supervisor for a copy of the script; the job exists from the moment that its ``job.json`` does.

        Whoever dies before that leaves nothing behind that will ever run. Descriptors in ``keep_open`` are not handed on: when
        this returns, or this program is killed, the outcome is settled.
        """
        content, script = _read_script(job.script)
        try:
            self._prepare()
            directory = self._new_directory()
            with locked(directory.path / "submission"):
                try:
                    self._accept(directory, job, content, script)
                except (OSError, SubmissionRefused):
                    shutil.rmtree(directory.path, ignore_errors=True)
                    raise
        except OSError as error:
            raise could_not_submit(f"{self._state}: the job could not be written down", error) from error
        return directory.id

    def cancel(self, job_id: str) -> None:
        """End a queued or running job; its processes get SIGTERM, and SIGKILL after 2 s."""
        with _as_unreachable(self._state):
            job = self._find(job_id)
            if job is None or job.end() is not None:
                return
            job.write("cancel", {"uid": str(os.getuid())})
            if not job.is_supervised():
                self._end_orphan(job)

    def hold(self, job_id: str) -> None:
        """Keep a queued job from starting; one that has started runs on."""
        with _as_unreachable(self._state):
            job = self._find(job_id)
            if job is not None and job.start() is None and job.end() is None:
                write_atomically(job.path / "held", "")

    def release(self, job_id: str) -> None:
        """Let a held job start."""
        with _as_unreachable(self._state):
            job = self._find(job_id)
            if job is not None:
                (job.path / "held").unlink(missing_ok=True)

    # --- observation

    def _jobs(self, source: str) -> list[Job]:
        with _as_unreachable(self._state):
            shown = (self._observe(directory, source) for directory in self._directories())
            return [job for job in shown if job is not None]

    def _directories(self) -> list[JobDirectory]:
        """Every job directory by id; none where there never was a submission."""
        self._check_owner()
        try:
            names = os.listdir(self._state / "jobs")  # noqa: PTH208 (names, not paths)
        except FileNotFoundError:
            return []
        return [self._directory(name) for name in sorted(filter(str.isdecimal, names), key=int)]

    def _directory(self, job_id: str) -> JobDirectory:
        return JobDirectory(self._state / "jobs" / job_id)

    def _find(self, job_id: str) -> JobDirectory | None:
        """An accepted job of this machine, or None."""
        self._check_owner()
        job = self._directory(job_id) if job_id.isdecimal() else None
        record = job.record() if job is not None else None
        return job if record is not None and record.host == self._host else None

    def _check_owner(self) -> None:
        with suppress(FileNotFoundError):
            owner = self._state.stat().st_uid
            if owner != os.getuid():
                raise ClusterUnreachable(f"{self._state} belongs to user {owner}, not to you; set RECONCILE_LOCAL_DIR")

    def _observe(self, job: JobDirectory, source: str) -> Job | None:
        """A job of this machine as it stands. The order matters: a supervisor writes the end before it goes."""
        record = job.record()
        if record is None or record.host != self._host:
            return None
        is_supervised = job.is_supervised()
        start, end = job.start(), job.end()
        if end is None and not is_supervised and not (start and local_supervisor.find_processes(start)):
            end = _record_loss(job)
        if job.record() is None:
            return None  # removed meanwhile, 30 days after its end
        return _shown(job, record, start, end, source)

    def _end_orphan(self, job: JobDirectory) -> None:
        """Do for a job what its supervisor no longer can."""
        start = job.start()
        if start and not local_supervisor.end_processes(lambda: local_supervisor.find_processes(start), _CANCEL_SECONDS):
            raise ClusterUnreachable(f"job {job.id}: its processes are being killed and have not ended yet")
        if job.end() is None:
            _record_loss(job)

    # --- submission

    def _prepare(self) -> None:
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check_owner_before_submission()
        for name in ("jobs", "slots", "waiting"):
            (self._state / name).mkdir(mode=0o700, exist_ok=True)
        with suppress(OSError, ClusterUnreachable):
            self._remove_old()

    def _check_owner_before_submission(self) -> None:
        try:
            self._check_owner()
        except ClusterUnreachable as error:
            raise SubmissionRefused(str(error)) from error

    def _remove_old(self) -> None:
        """Renamed first, so that nobody ever sees a job without its end."""
        before = time.time() - _KEPT_SECONDS
        for job in self._directories():
            end = job.end()
            if end is not None and end.ended < before:
                shutil.rmtree(job.path.rename(job.path.with_name(f".{job.id}.old")), ignore_errors=True)

    def _new_directory(self) -> JobDirectory:
        """A directory under an id that no job has had: one more than the highest ever given."""
        counter = self._state / "counter"
        with locked(self._state / "counter.lock"):
            try:
                last = int(counter.read_text())
            except (FileNotFoundError, ValueError):
                last = 0
            job = self._directory(str(1 + max([last, *(int(known.id) for known in self._directories())])))
            write_atomically(counter, job.id)
            job.path.mkdir(mode=0o700)
            return job

    def _accept(self, directory: JobDirectory, job: Submission, content: bytes, script: BatchScript) -> None:
        record = self._record(directory.id, job, script)
        directory.script.write_bytes(content)
        directory.script.chmod(0o700)
        directory.write("environment.json", _job_environment(os.environ, directory.id, record, script))
        if job.held or script.find("hold"):
            write_atomically(directory.path / "held", "")
        _launch(directory)
        (self._state / "waiting" / directory.id).touch()
        directory.write("job.json", record)

    def _record(self, job_id: str, job: Submission, script: BatchScript) -> Record:
        now = time.time()
        user, name = _user(), job.name or script.job_name
        workdir = os.path.realpath(job.directory / (script.value("chdir") or ""))
        known = {"j": job_id, "A": job_id, "x": name, "u": user, "N": self._host.partition(".")[0], "n": "0", "t": "0"}
        output = fill_in(script.value("output") or "slurm-%j.out", known)
        error = fill_in(own, known) if (own := script.value("error")) else output
        return Record(
            name=name,
            script=os.path.abspath(job.script),  # noqa: PTH100 (a symlink is shown under its own name)
            workdir=workdir,
            user=user,
            host=self._host,
            output=os.path.join(workdir, output),  # noqa: PTH118 (text in, text out)
            error=os.path.join(workdir, error),  # noqa: PTH118
            append=(script.value("open-mode") or "").startswith("a"),
            submitted=now,
            begins=now + job.begin_in if job.begin_in else max(now, parse_begin(script.value("begin") or "now", now)),
            time_limit=_time_limit(job.options.get("time") or script.value("time")),
            slots=self._slots,
        )


def _launch(directory: JobDirectory) -> None:
    """Returns once the supervisor has its lock. It gets none of our descriptors and stands in no directory of the user's."""
    root = str(Path(local_supervisor.__file__).resolve().parents[2])
    environment = {name: value for name, value in os.environ.items() if name != MARK}  # it belongs to no other job
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    try:
        launched = subprocess.run(
            [sys.executable, "-m", local_supervisor.__name__, str(directory.path)],
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            timeout=_LAUNCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SubmissionRefused(f"the job's supervisor did not start within {_LAUNCH_SECONDS:.0f} s") from error
    if launched.returncode != 0:
        raise SubmissionRefused(f"the job's supervisor did not start: {launched.stderr.decode(errors='replace').strip()}")


@contextmanager
def _as_unreachable(state: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ClusterUnreachable(f"{state}: {error}") from error


# --- what a job looks like ---------------------------------------------------------------------------


def _record_loss(job: JobDirectory) -> End:
    """The end of a job that lost its supervisor and runs no more; written down, so that it stays so."""
    canceller = job.canceller()
    end = End("NODE_FAIL" if canceller is None else "CANCELLED", "0:0", time.time(), canceller or "")
    with suppress(OSError):
        job.write("end.json", end)
        (job.state / "waiting" / job.id).unlink(missing_ok=True)
    return end


def _shown(job: JobDirectory, record: Record, start: Start | None, end: End | None, source: str) -> Job:
    is_pending = start is None and end is None
    phase = Phase.ENDED if end else Phase.QUEUED if is_pending else Phase.RUNNING
    is_held = is_pending and job.is_held()
    waits_for = "JobHeldUser" if is_held else "BeginTime" if record.begins > time.time() else "Resources"
    return Job(
        id=job.id,
        name=record.name,
        state=end.state if end else "PENDING" if is_pending else "RUNNING",
        phase=phase,
        workdir=record.workdir,
        user=record.user,
        pending_reason=waits_for if is_pending else "",
        held=is_held,
        submitted=record.submitted,
        begins=record.begins,
        started=start.started if start else None,
        ended=end.ended if end else None,
        exit_code=end.exit_code if end else "",
        cancelled_by=end.cancelled_by if end else "",
        source=source,
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


# --- what a script asks for --------------------------------------------------------------------------

_NO_SCRIPT = (
    "This does not look like a batch script. The first line must start with #! followed by the path to an interpreter. "
    "For instance: #!/bin/sh"
)
_MEANS_OTHER_JOBS = ("array", "dependency", "test-only")  # to run such a script once, now, would not be what it says


def _read_script(path: Path) -> tuple[bytes, BatchScript]:
    """The script as sbatch would take it; the messages are sbatch's."""
    try:
        content = read_file(path)
    except OSError as error:
        raise could_not_submit("Unable to open file", error) from error
    if not content.strip():
        raise SubmissionRefused(f"{path}: Batch script is empty!")
    if not content.startswith(b"#!"):
        raise SubmissionRefused(f"{path}: {_NO_SCRIPT}")
    if b"\r\n" in content:
        raise SubmissionRefused(f"{path}: Batch script contains DOS line breaks (\\r\\n) instead of UNIX line breaks (\\n).")
    script = parse_batch_script(path, content.decode("utf-8", "surrogateescape"))
    for directive in script.directives:
        if directive.option in _MEANS_OTHER_JOBS:
            raise SubmissionRefused(f"{path}:{directive.line}: the local backend cannot honour --{directive.option}")
    return content, script


_BEGIN_IN = re.compile(r"now(?:\+([0-9]{1,12})\s*(second|minute|hour|day|week)?s?)?")
_UNIT_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 7 * 86400}


def _time_limit(text: str | None) -> float | None:
    try:
        return parse_time_limit(text)
    except ValueError as error:
        raise SubmissionRefused(str(error)) from error


def parse_begin(text: str, now: float) -> float:
    """The epoch second of a ``--begin``: ``now``, ``now+N[seconds|minutes|hours|days|weeks]``, or a date and time."""
    if match := _BEGIN_IN.fullmatch(text):
        return now + int(match[1] or 0) * _UNIT_SECONDS[match[2] or "second"]
    try:
        return datetime.fromisoformat(text).timestamp()  # without a zone, local time, as Slurm has it
    except (ValueError, OverflowError) as error:
        accepted = "now+N[seconds|minutes|hours|days|weeks], YYYY-MM-DD[THH:MM[:SS]]"
        raise SubmissionRefused(f"Invalid --begin specification: {text} (accepted: {accepted})") from error


# --- what a job is told ------------------------------------------------------------------------------

_USERS_OWN = ("SLURM_CONF*", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")  # settings; every other one describes a job
_LOGIN = ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TZ", "USER")


def _job_environment(ours: Environment, job_id: str, record: Record, script: BatchScript) -> dict[str, str]:
    """The submitter's variables as ``--export`` has them, without those of a job that it runs in itself, and the job's own."""
    submitters = {name: value for name, value in ours.items() if not _describes_a_job(name)}
    cpus = script.value("cpus-per-task")
    return {
        **_exported(submitters, script.value("export") or "ALL"),
        **({"SLURM_CPUS_PER_TASK": cpus} if cpus else {}),
        "SLURM_CLUSTER_NAME": "local",
        "SLURM_JOBID": job_id,
        "SLURM_JOB_ID": job_id,
        "SLURM_JOB_NAME": record.name,
        "SLURM_JOB_NODELIST": record.host,
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_PARTITION": "local",
        "SLURM_NTASKS": script.value("ntasks") or "1",
        "SLURM_SUBMIT_DIR": os.path.realpath(Path(record.script).parent),
        "SLURM_SUBMIT_HOST": record.host,
        "SLURMD_NODENAME": record.host,
        "PWD": record.workdir,
    }


def _describes_a_job(variable: str) -> bool:
    if any(fnmatch.fnmatchcase(variable, pattern) for pattern in _USERS_OWN):
        return False
    return variable.startswith(("SLURM_", "SLURMD_")) or variable == MARK


def _exported(variables: Mapping[str, str], wanted: str) -> dict[str, str]:
    """What ``--export`` leaves (man sbatch): ``ALL``, ``NONE`` or ``NIL``, names, and ``NAME=value``, with commas between."""
    words = [word.strip() for word in wanted.split(",")]
    kept = dict(variables) if "ALL" in words else {name: variables[name] for name in (*_LOGIN, *words) if name in variables}
    return {**kept, **dict(word.split("=", 1) for word in words if "=" in word)}
