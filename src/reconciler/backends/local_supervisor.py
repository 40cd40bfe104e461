"""The parent of one embedded job: waits for its turn, runs its script, writes down how it ended.

``python -m reconciler.backends.local_supervisor JOBDIR`` returns as soon as the supervisor stands on its own. It depends on
no other process, and never decides what a job is: the files of ``STATE/jobs/<id>/`` are all that it and the backend share.

    slurm_script, environment.json   what the job runs, and with what, copied at submission
    submission                       locked by the submitter until it is settled whether there is a job
    job.json                         what was submitted; its appearance is the acceptance
    alive                            locked by the supervisor as long as it lives
    held, cancel                     what was asked for since: to wait, to end (by whom)
    start.json                       when the script was started, then as which process
    end.json                         how the job ended

Beside them, ``STATE/waiting/<id>`` marks each job not yet started and ``STATE/slots/<host>-<n>`` is locked by the running ones.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from reconciler.errors import ClusterUnreachable
from reconciler.files import open_new

T = TypeVar("T")

MARK = "RECONCILE_LOCAL_JOB"  # in the environment of a job's every process: found again whatever its parent or session
POLL_SECONDS = 0.1
KILL_AFTER_SECONDS = 2.0  # between SIGTERM and SIGKILL
OUTPUT_NOT_OPENED = "0:53"  # what Slurm reports when it cannot open a job's output file


# --- the files of a job ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """What was submitted. Paths are absolute; ``begins`` and ``submitted`` are epoch s, ``time_limit`` s or None for none."""

    name: str
    script: str
    workdir: str
    user: str
    host: str
    output: str
    error: str
    append: bool
    submitted: float
    begins: float
    time_limit: float | None
    slots: int


@dataclass(frozen=True)
class Start:
    """When the script was started (epoch s), in which boot, and as which process once that is known.

    ``mark`` is what its processes carry under MARK, as no others ever do. ``pid`` is also its session and process group;
    ``ticks`` is that process's start time (proc(5), field 22), so that a number used again is not taken for it.
    """

    started: float
    boot: str
    mark: str
    pid: int | None = None
    ticks: int | None = None


@dataclass(frozen=True)
class End:
    """How a job ended: Slurm's state, ``code:signal``, and when (epoch s)."""

    state: str
    exit_code: str
    ended: float
    cancelled_by: str = ""


@dataclass(frozen=True)
class JobDirectory:
    """One job's files. Readers give None for what is surely not there, and raise ClusterUnreachable for what cannot be read."""

    path: Path

    @property
    def id(self) -> str:
        """The job's id."""
        return self.path.name

    @property
    def state(self) -> Path:
        """The state directory that the job belongs to."""
        return self.path.parent.parent

    @property
    def script(self) -> Path:
        """The copy that runs, under the name that Slurm gives it."""
        return self.path / "slurm_script"

    def record(self) -> Record | None:
        """What was submitted; None where nothing was accepted (or it has been removed since)."""
        return self._read("job.json", lambda fields: Record(**fields))

    def start(self) -> Start | None:
        """How it was started, or None where it surely was not."""
        return self._read("start.json", lambda fields: Start(**fields))

    def end(self) -> End | None:
        """How it ended, or None where that is not recorded."""
        return self._read("end.json", lambda fields: End(**fields))

    def environment(self) -> dict[str, str]:
        """The variables that the script gets, all of them."""
        return self._read("environment.json", lambda fields: {str(k): str(v) for k, v in fields.items()}) or {}

    def canceller(self) -> str | None:
        """The uid of who asked for the job's end, or None."""
        return self._read("cancel", lambda fields: str(fields["uid"]))

    def is_held(self) -> bool:
        """True where somebody wants the job to wait."""
        return (self.path / "held").exists()

    def is_supervised(self) -> bool:
        """True while the supervisor lives; the kernel frees its lock whatever it dies of."""
        try:
            descriptor = os.open(self.path / "alive", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not try_lock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def write(self, name: str, content: Record | Start | End | Mapping[str, str]) -> None:
        """Put a file there in full or not at all."""
        fields = dict(content) if isinstance(content, Mapping) else asdict(content)
        write_atomically(self.path / name, json.dumps(fields))

    def _read(self, name: str, parse: Callable[[dict[str, Any]], T]) -> T | None:
        try:
            return parse(json.loads((self.path / name).read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ClusterUnreachable(f"{self.path / name}: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            message = f"{self.path / name} is damaged; remove {self.path} once nothing of that job runs any more"
            raise ClusterUnreachable(message) from error


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content in full or not at all; readable by its owner alone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Take an flock unless somebody else has it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's flock, waiting for it; the file is made where there is none."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --- the processes of a job --------------------------------------------------------------------------


def boot_id() -> str:
    """Which boot of the machine this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def find_processes(start: Start) -> tuple[int, ...]:
    """The job's processes that still run: every one that carries its mark or belongs to its session.

    In doubt a process counts as the job's, since a live training must never be taken for ended: of a session whose leader is
    gone, the members do (the kernel gives out no number that still names a session). Raises OSError without a ``/proc``.
    """
    if start.boot != boot_id():
        return ()
    mark = f"{MARK}={start.mark}".encode()
    session = start.pid
    if session is not None and _ticks(session) not in (None, start.ticks):
        session = None  # the number names somebody else's process by now
    return tuple(pid for pid in _live_pids() if (session is not None and _session(pid) == session) or mark in _variables(pid))


def end_processes(find: Callable[[], tuple[int, ...]], patience: float | None = None) -> bool:
    """TERM to a job's processes, KILL to what is left after 2 s; True when none is left, False after ``patience`` s."""
    began, told = time.monotonic(), False
    while left := find():
        waited = time.monotonic() - began
        if patience is not None and waited > patience:
            return False
        if waited > KILL_AFTER_SECONDS:
            _send(left, signal.SIGKILL)
        elif not told:
            _send(left, signal.SIGTERM)
            _send(left, signal.SIGCONT)  # a stopped process acts on no TERM
            told = True
        time.sleep(0.02)
    return True


def _send(pids: tuple[int, ...], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _live_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _stat(int(name))]  # noqa: PTH208 (names, not paths)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on (proc(5)); none for a process that is gone or a zombie, or another user's
    where /proc hides those (``hidepid``)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
    fields = text.rpartition(")")[2].split()  # the command's name before it may hold anything
    return [] if fields[0] in ("Z", "X") else fields


def _session(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[3]) if fields else None


def _ticks(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _variables(pid: int) -> list[bytes]:
    """The variables that a process was started with; none where they are not ours to read, so not this user's process."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


# --- a job's turn ------------------------------------------------------------------------------------


def supervise(job: JobDirectory) -> None:
    """See one job from its acceptance to its recorded end."""
    with locked(job.path / "submission"):  # the submitter has it until the job is accepted, or never will be
        record = job.record()
    if record is None:
        shutil.rmtree(job.path, ignore_errors=True)
        return
    slot = _wait_for_turn(job, record)
    (job.state / "waiting" / job.id).unlink(missing_ok=True)
    end = End("CANCELLED", "0:0", time.time(), job.canceller() or "") if slot is None else _run(job, record)
    _record(job, end)


def _record(job: JobDirectory, end: End) -> None:
    """Write the end down, for 10 minutes if need be: a disk that is full now must not make a failure look like a lost node."""
    for _ in range(600):
        with suppress(OSError):
            return job.write("end.json", end)
        time.sleep(1)
    return job.write("end.json", end)


def _wait_for_turn(job: JobDirectory, record: Record) -> int | None:
    """The descriptor of the slot that the job may run in, or None where it was cancelled before there was one."""
    while job.canceller() is None:
        if _is_eligible(job, record) and not _is_another_ahead(job, record):
            slot = _take_slot(job, record)
            if slot is not None:
                return slot
        time.sleep(POLL_SECONDS)
    return None


def _is_eligible(job: JobDirectory, record: Record) -> bool:
    return not job.is_held() and record.begins <= time.time()


def _is_another_ahead(job: JobDirectory, record: Record) -> bool:
    """True where a job submitted earlier could run now: first come, first served."""
    waiting = [int(path.name) for path in (job.state / "waiting").iterdir()]
    earlier = sorted(number for number in waiting if number < int(job.id))
    return any(_could_run(JobDirectory(job.path.parent / str(number)), record.host) for number in earlier)


def _could_run(other: JobDirectory, host: str) -> bool:
    try:
        record = other.record()
    except ClusterUnreachable:
        return False
    return record is not None and record.host == host and _is_eligible(other, record) and other.is_supervised()


def _take_slot(job: JobDirectory, record: Record) -> int | None:
    """A locked slot, or None. Its file names the last job in it: one that lost its supervisor may run there still."""
    for number in range(record.slots):
        path = job.state / "slots" / f"{record.host}-{number}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if try_lock(descriptor) and not _is_occupied(job, os.pread(descriptor, 100, 0).decode()):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, job.id.encode(), 0)
            return descriptor
        os.close(descriptor)
    return None


def _is_occupied(job: JobDirectory, last: str) -> bool:
    if not last:
        return False
    occupant = JobDirectory(job.path.parent / last)
    try:
        start = occupant.start() if occupant.end() is None else None
        return start is not None and bool(find_processes(start))
    except ClusterUnreachable:
        return True


# --- the script --------------------------------------------------------------------------------------


def _run(job: JobDirectory, record: Record) -> End:
    """Run the script to its end. Its start is on disk before it exists, so that it can never run unseen."""
    start = Start(time.time(), boot_id(), os.urandom(16).hex())
    job.write("start.json", start)
    try:
        output = _open_output(record.output, record)
        error = output if record.error == record.output else _open_output(record.error, record)
    except OSError:
        return End("FAILED", OUTPUT_NOT_OPENED, time.time())
    try:
        leader = subprocess.Popen(
            [job.script],
            cwd=record.workdir,
            env={**job.environment(), MARK: start.mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=error,
            start_new_session=True,
        )
    except OSError as failure:  # as slurmstepd does: the reason to the job's stderr, errno for its exit code
        os.write(error, f"slurmstepd: error: execve(): {failure.filename or job.script}: {failure.strerror}\n".encode())
        return End("FAILED", f"{failure.errno}:0", time.time())
    start = replace(start, pid=leader.pid, ticks=_ticks(leader.pid))
    with suppress(OSError):  # a full disk: the mark finds the processes all the same
        job.write("start.json", start)
    return _watch(job, start, leader, record.time_limit)


def _open_output(path: str, record: Record) -> int:
    mode = os.O_APPEND if record.append else os.O_TRUNC
    return open_new(Path(path), os.O_WRONLY | mode)


def _watch(job: JobDirectory, start: Start, leader: subprocess.Popen[bytes], time_limit: float | None) -> End:
    """Until the script ends, is cancelled, or its time is up. What it left behind is ended with it, as Slurm does."""
    state, canceller = _await_verdict(job, leader, None if time_limit is None else time.monotonic() + time_limit)
    end_processes(lambda: find_processes(start))
    code = leader.wait()
    exit_code = f"{code}:0" if code >= 0 else f"0:{-code}"
    return End(state or ("COMPLETED" if code == 0 else "FAILED"), exit_code, time.time(), canceller)


def _await_verdict(job: JobDirectory, leader: subprocess.Popen[bytes], deadline: float | None) -> tuple[str, str]:
    """Why the script has to end, and at whose word; two empty words where it ended by itself."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            leader.wait(POLL_SECONDS)
            return "", ""
        canceller = job.canceller()
        if canceller is not None:
            return "CANCELLED", canceller
        if deadline is not None and time.monotonic() > deadline:
            return "TIMEOUT", ""


# --- coming to life ----------------------------------------------------------------------------------


def main() -> None:
    """Take the job's ``alive`` lock, go on in the background, and return 0 to the submitter once that is certain."""
    job = JobDirectory(Path(sys.argv[1]))
    alive = os.open(job.path / "alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not try_lock(alive):
        sys.exit(f"job {job.id} has a supervisor already")
    if os.fork() != 0:  # the lock belongs to the open file, and so to the child as well
        os._exit(0)
    log = os.open(job.path / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    supervise(job)


if __name__ == "__main__":
    main()
