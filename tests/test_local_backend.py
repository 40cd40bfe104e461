"""The embedded backend, with real scripts as real processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.backends.local import LocalBackend, default_state_dir, parse_begin
from reconciler.backends.local_supervisor import JobDirectory, find_processes
from reconciler.batch_script import parse_time_limit
from reconciler.errors import ClusterUnreachable, NotSubmitted, SubmissionRefused
from reconciler.model import Job, Phase
from reconciler.ports import Doubt, Submission

PATIENCE = 10.0


class Bench:
    """A state directory, a place for scripts, and the means to wait for what a job does."""

    def __init__(self, directory: Path) -> None:
        self.work = directory / "work"
        self.work.mkdir()
        self.state = directory / "state"
        self.backend = LocalBackend(self.state)

    def script(self, body: str, name: str = "job.slurm") -> Path:
        path = self.work / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        return path

    def submit(self, body: str, name: str = "job.slurm", **options: object) -> str:
        return self.backend.submit(replace(Submission(self.script(body, name), "named"), **options))  # type: ignore[arg-type]

    def job(self, job_id: str) -> Job:
        return next(job for job in self.backend.queue() if job.id == job_id)

    def ended(self, job_id: str) -> Job:
        until(lambda: not self.job(job_id).is_live, f"job {job_id} to end")
        return self.job(job_id)

    def running(self, job_id: str) -> Job:
        until(lambda: self.job(job_id).phase is Phase.RUNNING, f"job {job_id} to run")
        return self.job(job_id)

    def pid(self, name: str = "pid") -> int:
        """The process id that a script wrote down."""
        path = self.work / name
        until(lambda: path.exists() and path.read_text().endswith("\n"), f"{name} to be written")
        return int(path.read_text())

    def text(self, name: str) -> str:
        return (self.work / name).read_text()


def until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def supervisor_of(bench: Bench, job_id: str) -> int:
    """The process whose command line ends with the job's directory."""
    directory = str(bench.state / "jobs" / job_id).encode()
    found = [pid for pid in live_pids() if command_line(pid).endswith(b"\0" + directory + b"\0")]
    assert len(found) == 1
    return found[0]


def live_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    ids = [path.name for path in (bench.state / "jobs").glob("[0-9]*")] if bench.state.exists() else []
    marks = [json.loads(path.read_text())["mark"].encode() for path in bench.state.glob("jobs/*/start.json")]
    for pid in live_pids():
        supervises = any(str(bench.state / "jobs" / job_id).encode() in command_line(pid).split(b"\0") for job_id in ids)
        try:
            if supervises or any(mark in Path(f"/proc/{pid}/environ").read_bytes() for mark in marks):
                os.kill(pid, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue


# --- a job's life ------------------------------------------------------------------------------------


def test_a_script_that_succeeds_is_completed_and_its_output_is_where_sbatch_would_put_it(bench: Bench) -> None:
    before = time.time()
    job_id = bench.submit("echo hello; echo trouble >&2")
    job = bench.ended(job_id)
    assert (job.state, job.exit_code, job.name, job.workdir) == ("COMPLETED", "0:0", "named", str(bench.work))
    times = [job.submitted or 0.0, job.started or 0.0, job.ended or 0.0]
    assert times == sorted(times)
    assert before <= times[0]
    assert times[-1] <= time.time()
    assert bench.text(f"slurm-{job_id}.out") == "hello\ntrouble\n"


@pytest.mark.parametrize(("body", "exit_code"), [("exit 7", "7:0"), ("kill -KILL $$", "0:9")])
def test_a_script_that_fails_is_failed_with_its_code_and_signal(bench: Bench, body: str, exit_code: str) -> None:
    job = bench.ended(bench.submit(body))
    assert (job.state, job.exit_code) == ("FAILED", exit_code)


def test_the_copy_of_submission_time_runs_and_not_what_the_script_became_since(bench: Bench) -> None:
    job_id = bench.submit("echo first", held=True)
    bench.script("echo second")
    bench.backend.release(job_id)
    bench.ended(job_id)
    assert bench.text(f"slurm-{job_id}.out") == "first\n"


SUBMITTER = """
import sys, time
from pathlib import Path
from reconciler.backends.local import LocalBackend
from reconciler.ports import Doubt, Submission
print(LocalBackend(Path(sys.argv[1])).submit(Submission(Path(sys.argv[2]), "named")), flush=True)
time.sleep(float(sys.argv[3]))
"""


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_job_outlives_the_program_that_submitted_it(bench: Bench, is_killed: bool) -> None:
    script = bench.script("echo $$ > pid; until [ -e go ]; do sleep 0.05; done; echo done")
    command = [sys.executable, "-c", SUBMITTER, str(bench.state), str(script), "60" if is_killed else "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as submitter:
        assert submitter.stdout is not None
        job_id = submitter.stdout.readline().strip()
        if is_killed:
            submitter.kill()
    assert bench.running(job_id).is_live
    assert os.getsid(bench.pid()) != os.getsid(0)
    (bench.work / "go").touch()
    assert bench.ended(job_id).state == "COMPLETED"
    assert bench.text(f"slurm-{job_id}.out") == "done\n"


def test_a_submitter_killed_before_the_acceptance_leaves_no_job_that_would_ever_run(bench: Bench) -> None:
    bench.backend.submit(Submission(bench.script("true"), "first"))
    script = bench.script("touch ran")
    dies_before_acceptance = SUBMITTER.replace(
        "print(",
        "import os, signal; from reconciler.backends import local\n"
        "real = local._launch; local._launch = lambda job: (real(job), os.kill(os.getpid(), signal.SIGKILL))\nprint(",
    )
    subprocess.run([sys.executable, "-c", dies_before_acceptance, str(bench.state), str(script), "0"], check=False)
    until(lambda: [path.name for path in (bench.state / "jobs").iterdir()] == ["1"], "the supervisor to clear up")
    assert [job.name for job in bench.backend.queue()] == ["first"]
    assert not (bench.work / "ran").exists()


@pytest.mark.parametrize(("script", "option", "seconds"), [("1:00:00", "0:01", 1.0), ("0:01", "90", 5400.0), ("0:07", None, 7.0)])
def test_the_time_that_a_submission_asks_for_outranks_its_scripts(bench: Bench, script: str, option: str | None, seconds: float):
    options = {"time": option} if option else {}
    job_id = bench.submit(f"#SBATCH --time={script}\nsleep 60", held=True, options=options)
    assert json.loads((bench.state / "jobs" / job_id / "job.json").read_text())["time_limit"] == seconds
    bench.backend.cancel(job_id)


def test_a_submission_whose_time_was_raised_is_given_it(bench: Bench) -> None:
    job = bench.ended(bench.submit("#SBATCH --time=0:01\nsleep 1.5", options={"time": "1"}))
    assert job.state == "COMPLETED"


def test_the_time_limit_ends_a_script(bench: Bench) -> None:
    job = bench.ended(bench.submit("#SBATCH --time=0:01\nsleep 60"))
    assert (job.state, job.exit_code) == ("TIMEOUT", "0:15")
    assert job.started
    assert job.ended
    assert 1.0 <= job.ended - job.started < 3.0


def test_what_a_script_leaves_behind_ends_with_it_even_in_a_session_of_its_own(bench: Bench) -> None:
    bench.ended(bench.submit("setsid sleep 60 & echo $! > pid"))
    assert not is_alive(bench.pid())


# --- turns -------------------------------------------------------------------------------------------

NOTE_TIMES = "begin=$(date +%s.%N); sleep 0.1; echo $SLURM_JOB_ID $begin $(date +%s.%N) >> times"


def spans(bench: Bench) -> list[tuple[str, float, float]]:
    lines = (line.split() for line in bench.text("times").splitlines())
    return sorted(((job_id, float(begin), float(end)) for job_id, begin, end in lines), key=lambda span: span[1])


def most_at_once(bench: Bench) -> int:
    times = spans(bench)
    return max(sum(begin <= moment < end for _, begin, end in times) for _, moment, _ in times)


def test_jobs_run_one_at_a_time_in_the_order_of_submission(bench: Bench) -> None:
    first = bench.submit("until [ -e go ]; do sleep 0.02; done; " + NOTE_TIMES)
    ids = [first, *(bench.submit(NOTE_TIMES) for _ in range(4))]
    (bench.work / "go").touch()
    for job_id in ids:
        assert bench.ended(job_id).state == "COMPLETED"
    assert most_at_once(bench) == 1
    assert [job_id for job_id, _, _ in spans(bench)] == ids


def test_two_slots_run_two_jobs_at_a_time_and_never_three(bench: Bench) -> None:
    bench.backend = LocalBackend(bench.state, slots=2)
    gate = "touch here.$SLURM_JOB_ID; until [ $(ls here.* | wc -l) -ge 2 ]; do sleep 0.02; done; "
    for job_id in [bench.submit(gate + NOTE_TIMES) for _ in range(3)]:
        assert bench.ended(job_id).state == "COMPLETED"
    assert most_at_once(bench) == 2


def test_a_job_behind_another_waits_for_resources(bench: Bench) -> None:
    bench.running(bench.submit("sleep 60"))
    waiting = bench.job(bench.submit("true"))
    assert (waiting.state, waiting.phase, waiting.pending_reason, waiting.held) == ("PENDING", Phase.QUEUED, "Resources", False)


def test_a_held_job_lets_a_later_one_pass_and_runs_once_released(bench: Bench) -> None:
    held = bench.submit("true", held=True)
    assert bench.ended(bench.submit("true")).state == "COMPLETED"
    job = bench.job(held)
    assert (job.phase, job.held, job.pending_reason) == (Phase.QUEUED, True, "JobHeldUser")
    bench.backend.release(held)
    assert bench.ended(held).state == "COMPLETED"


def test_a_queued_job_that_is_held_does_not_start_when_its_turn_comes(bench: Bench) -> None:
    first = bench.submit("until [ -e go ]; do sleep 0.02; done")
    second = bench.submit("touch ran")
    bench.backend.hold(second)
    (bench.work / "go").touch()
    bench.ended(first)
    time.sleep(0.3)
    assert bench.job(second).held
    assert not (bench.work / "ran").exists()


def test_hold_and_release_leave_a_running_job_alone(bench: Bench) -> None:
    job_id = bench.submit("until [ -e go ]; do sleep 0.02; done")
    bench.running(job_id)
    bench.backend.hold(job_id)
    bench.backend.release(job_id)
    (bench.work / "go").touch()
    assert bench.ended(job_id).state == "COMPLETED"


def test_a_script_may_ask_to_be_held_itself(bench: Bench) -> None:
    assert bench.job(bench.submit("#SBATCH --hold\ntrue")).held


def test_a_job_starts_at_its_begin_time_and_not_before(bench: Bench) -> None:
    job_id = bench.submit("true", begin_in=1)
    waiting = bench.job(job_id)
    assert waiting.submitted
    assert waiting.begins
    assert waiting.begins == pytest.approx(waiting.submitted + 1, abs=0.01)
    assert (waiting.phase, waiting.pending_reason) == (Phase.QUEUED, "BeginTime")
    job = bench.ended(job_id)
    assert job.started
    assert job.started >= waiting.begins


def test_the_processes_of_other_users_may_be_hidden(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hidepid=1 the directory of a foreign process is there, and nothing in it can be read."""
    job_id = bench.submit("echo $$ > pid\nexec sleep 60")
    bench.pid()  # it is there, and makes no other
    start = JobDirectory(bench.state / "jobs" / job_id).start()
    assert start is not None
    ours = find_processes(start)
    read = Path.read_text

    def shown(path: Path, *options: str) -> str:
        if str(path).startswith("/proc/") and path.name == "stat" and int(path.parent.name) not in ours:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path, *options)

    monkeypatch.setattr(Path, "read_text", shown)
    assert find_processes(start) == ours != ()


def test_the_begin_time_of_the_submission_outranks_the_scripts(bench: Bench) -> None:
    asked = bench.job(bench.submit("#SBATCH --begin=now+1hour\ntrue"))
    told = bench.job(bench.submit("#SBATCH --begin=now+1hour\ntrue", begin_in=60))
    assert asked.submitted
    assert told.submitted
    assert asked.begins == pytest.approx(asked.submitted + 3600, abs=0.01)
    assert told.begins == pytest.approx(told.submitted + 60, abs=0.01)


# --- cancelling --------------------------------------------------------------------------------------


def test_a_cancelled_queued_job_never_runs(bench: Bench) -> None:
    job_id = bench.submit("touch ran", begin_in=1)
    bench.backend.cancel(job_id)
    job = bench.ended(job_id)
    assert (job.state, job.cancelled_by, job.started) == ("CANCELLED", str(os.getuid()), None)
    time.sleep(1.1)
    assert not (bench.work / "ran").exists()


def test_cancelling_ends_every_process_of_a_running_job(bench: Bench) -> None:
    job_id = bench.submit("sleep 60 & echo $! > child\nsetsid bash -c 'echo $$ > far; exec sleep 60' &\necho $$ > pid; wait")
    processes = [bench.pid(name) for name in ("pid", "child", "far")]
    bench.backend.cancel(job_id)
    job = bench.ended(job_id)
    assert (job.state, job.cancelled_by, job.exit_code) == ("CANCELLED", str(os.getuid()), "0:15")
    assert [pid for pid in processes if is_alive(pid)] == []


def test_cancelling_kills_what_ignores_the_signal(bench: Bench) -> None:
    job_id = bench.submit("trap '' TERM\necho $$ > pid\nwhile true; do sleep 0.1; done")
    leader = bench.pid()
    bench.backend.cancel(job_id)
    assert bench.ended(job_id).exit_code == "0:9"
    assert not is_alive(leader)


def test_cancelling_an_ended_or_unknown_job_is_no_error(bench: Bench) -> None:
    job_id = bench.submit("true")
    bench.ended(job_id)
    for known in (job_id, "999", "../jobs/1"):
        bench.backend.cancel(known)
    assert bench.job(job_id).state == "COMPLETED"


# --- the supervisor dies -----------------------------------------------------------------------------


def orphan(bench: Bench, body: str) -> str:
    job_id = bench.submit(body)
    bench.running(job_id)
    bench.pid()
    supervisor = supervisor_of(bench, job_id)
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not is_alive(supervisor), "the supervisor to be gone")
    return job_id


def test_a_script_without_its_supervisor_is_running_until_its_processes_end_and_never_again(bench: Bench) -> None:
    job_id = orphan(bench, "echo $$ > pid; until [ -e go ]; do sleep 0.05; done")
    successor = bench.submit("touch successor")
    assert bench.job(job_id).phase is Phase.RUNNING
    time.sleep(0.3)
    assert bench.job(successor).pending_reason == "Resources"
    assert not (bench.work / "successor").exists()
    (bench.work / "go").touch()
    lost = bench.ended(job_id)
    assert (lost.state, lost.phase) == ("NODE_FAIL", Phase.ENDED)
    assert bench.ended(successor).state == "COMPLETED"
    assert bench.job(job_id) == lost


def test_a_trainer_in_a_session_of_its_own_keeps_its_job_running_when_script_and_supervisor_are_gone(bench: Bench) -> None:
    job_id = orphan(bench, "echo $$ > script\nsetsid bash -c 'echo $$ > pid; until [ -e go ]; do sleep 0.05; done' & wait")
    os.kill(bench.pid("script"), signal.SIGKILL)
    until(lambda: not is_alive(bench.pid("script")), "the script to be gone")
    assert bench.job(job_id).phase is Phase.RUNNING
    (bench.work / "go").touch()
    assert bench.ended(job_id).state == "NODE_FAIL"


def test_a_process_that_hid_its_environment_keeps_its_job_running_by_its_session(bench: Bench) -> None:
    job_id = orphan(bench, "env -i bash -c 'echo $$ > pid; until [ -e go ]; do sleep 0.05; done' & echo $$ > script; wait")
    os.kill(bench.pid("script"), signal.SIGKILL)
    until(lambda: not is_alive(bench.pid("script")), "the script to be gone")
    assert bench.job(job_id).phase is Phase.RUNNING
    (bench.work / "go").touch()
    assert bench.ended(job_id).state == "NODE_FAIL"


def test_a_script_without_its_supervisor_can_be_cancelled(bench: Bench) -> None:
    job_id = orphan(bench, "echo $$ > pid; sleep 60")
    bench.backend.cancel(job_id)
    job = bench.job(job_id)
    assert (job.state, job.cancelled_by) == ("CANCELLED", str(os.getuid()))
    assert not is_alive(bench.pid())


def test_a_process_number_used_again_is_not_taken_for_the_job(bench: Bench) -> None:
    job_id = orphan(bench, "echo $$ > pid; sleep 60")
    os.kill(bench.pid(), signal.SIGKILL)
    start = bench.state / "jobs" / job_id / "start.json"
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        start.write_text(json.dumps({**json.loads(start.read_text()), "pid": stranger.pid, "mark": "another"}))
        assert bench.job(job_id).state == "NODE_FAIL"
        stranger.kill()


def test_nothing_of_an_earlier_boot_is_running(bench: Bench) -> None:
    job_id = orphan(bench, "echo $$ > pid; sleep 60")
    start = bench.state / "jobs" / job_id / "start.json"
    start.write_text(json.dumps({**json.loads(start.read_text()), "boot": "an earlier one"}))
    leader = bench.pid()
    assert bench.job(job_id).state == "NODE_FAIL"
    os.kill(leader, signal.SIGKILL)


def test_a_queued_job_without_its_supervisor_is_lost_and_blocks_nobody(bench: Bench) -> None:
    job_id = bench.submit("touch ran", begin_in=1)
    os.kill(supervisor_of(bench, job_id), signal.SIGKILL)
    assert bench.ended(job_id).state == "NODE_FAIL"
    assert bench.ended(bench.submit("true", begin_in=1)).state == "COMPLETED"
    assert not (bench.work / "ran").exists()


# --- what a script asks for, and gets ----------------------------------------------------------------


def test_output_and_error_go_where_the_patterns_say(bench: Bench) -> None:
    (bench.work / "logs").mkdir()
    job_id = bench.submit("#SBATCH -o logs/%x_%5j_%%.out\n#SBATCH --error=%A.err\necho out; echo err >&2")
    bench.ended(job_id)
    assert bench.text(f"logs/named_{job_id.zfill(5)}_%.out") == "out\n"
    assert bench.text(f"{job_id}.err") == "err\n"


def test_a_missing_output_directory_fails_the_job_as_slurm_does(bench: Bench) -> None:
    job = bench.ended(bench.submit("#SBATCH --output=nowhere/%j.out\ntouch ran"))
    assert (job.state, job.exit_code) == ("FAILED", "0:53")
    assert not (bench.work / "ran").exists()


@pytest.mark.parametrize(("mode", "kept"), [("append", "before\n"), ("truncate", "")])
def test_the_open_mode_decides_what_becomes_of_earlier_output(bench: Bench, mode: str, kept: str) -> None:
    (bench.work / "log").write_text("before\n")
    bench.ended(bench.submit(f"#SBATCH --output=log --open-mode={mode}\necho after"))
    assert bench.text("log") == kept + "after\n"


def test_chdir_moves_the_job_and_its_output(bench: Bench) -> None:
    (bench.work / "below").mkdir()
    job_id = bench.submit("#SBATCH --chdir=below\npwd; echo $SLURM_SUBMIT_DIR")
    assert bench.ended(job_id).workdir == str(bench.work / "below")
    assert bench.text(f"below/slurm-{job_id}.out") == f"{bench.work / 'below'}\n{bench.work}\n"


def test_an_interpreter_that_is_not_there_fails_the_job_and_says_so(bench: Bench) -> None:
    path = bench.work / "job.slurm"
    path.write_text("#!/no/such/interpreter\n")
    job_id = bench.backend.submit(Submission(path, "named"))
    job = bench.ended(job_id)
    assert (job.state, job.exit_code) == ("FAILED", "2:0")
    assert "execve" in bench.text(f"slurm-{job_id}.out")


def test_a_job_gets_its_own_variables_and_none_of_the_job_that_submitted_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_TASKS_PER_NODE": "8", "SLURM_RESTART_COUNT": "2"}
    own = {"SLURM_CONF": "/etc/mine.conf", "SBATCH_ACCOUNT": "mine", "MY_TOKEN": "two words\nand lines"}
    for name, value in {**outer, **own}.items():
        monkeypatch.setenv(name, value)
    job_id = bench.submit("#SBATCH -c 3\nenv -0 > env")
    bench.ended(job_id)
    env = dict(entry.split("=", 1) for entry in bench.text("env").split("\0") if entry)
    assert {name: env[name] for name in own} == own
    assert env["SLURM_JOB_ID"] == env["SLURM_JOBID"] == job_id
    assert (env["SLURM_JOB_NAME"], env["SLURM_CPUS_PER_TASK"], env["SLURM_CLUSTER_NAME"]) == ("named", "3", "local")
    assert env["SLURM_SUBMIT_DIR"] == env["PWD"] == str(bench.work)
    assert {"SLURM_STEP_ID", "SLURM_TASKS_PER_NODE", "SLURM_RESTART_COUNT", "PYTHONPATH"} & set(env) <= {"PYTHONPATH"} & set(
        os.environ
    )


def test_export_limits_and_extends_what_a_job_gets(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "yes")
    monkeypatch.setenv("DROPPED", "yes")
    bench.ended(bench.submit("#SBATCH --export=KEPT,SEED=3\necho $KEPT-$DROPPED-$SEED > env"))
    assert bench.text("env") == "yes--3\n"


def test_the_environment_is_kept_for_its_owners_eyes_alone(bench: Bench) -> None:
    job_id = bench.submit("true", held=True)
    assert (bench.state / "jobs" / job_id / "environment.json").stat().st_mode & 0o777 == 0o600
    assert bench.state.stat().st_mode & 0o777 == 0o700


def test_neither_the_job_nor_its_supervisor_inherits_the_lock_of_the_pass(bench: Bench, tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(lock, True)
    fcntl.flock(lock, fcntl.LOCK_EX)
    bench.running(bench.submit("sleep 60", keep_open=(lock,)))
    os.close(lock)
    again = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(again)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"echo no shebang\n", "does not look like a batch script"),
        (b"#!/bin/bash\r\ntrue\r\n", "DOS line breaks"),
        (b"#!/bin/bash\n#SBATCH --array=1-3\n", "--array"),
        (b"#!/bin/bash\n#SBATCH --time=soon\n", "--time"),
        (b"#!/bin/bash\n#SBATCH --begin=later\n", "--begin"),
    ],
)
def test_a_script_that_cannot_be_honoured_is_refused_and_leaves_no_job(bench: Bench, content: bytes, message: str) -> None:
    path = bench.work / "job.slurm"
    path.write_bytes(content)
    with pytest.raises(SubmissionRefused, match=message):
        bench.backend.submit(Submission(path, "named"))
    assert bench.backend.queue() == ()


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NotSubmitted), (errno.EROFS, SubmissionRefused)])
def test_a_disk_that_is_full_for_now_is_no_refusal_and_leaves_no_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def write(path: Path, content: bytes) -> int:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(kind, match="could not be written down"):
        bench.submit("true")
    assert bench.backend.queue() == ()
    assert not list((bench.state / "jobs").iterdir())


def test_a_script_that_is_not_there_is_refused(bench: Bench) -> None:
    with pytest.raises(SubmissionRefused, match="Unable to open file"):
        bench.backend.submit(Submission(bench.work / "absent.slurm", "named"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None), ("UNLIMITED", None), ("0", None), ("90", 5400.0), ("1:30", 90.0), ("2:01:30", 7290.0),
        ("1-2", 93600.0), ("1-2:03", 93780.0), ("1-02:03:04", 93784.0),
    ],
)  # fmt: skip
def test_time_limits_read_as_sbatch_reads_them(text: str | None, seconds: float | None) -> None:
    assert parse_time_limit(text) == seconds


@pytest.mark.parametrize(
    ("text", "begins"), [("now", 1000.0), ("now+60", 1060.0), ("now+2minutes", 1120.0), ("now+1hour", 4600.0)]
)
def test_relative_begin_times_count_from_now(text: str, begins: float) -> None:
    assert parse_begin(text, 1000.0) == begins


def test_absolute_begin_times_are_local() -> None:
    assert parse_begin("2031-05-06T07:08:09", 0.0) == time.mktime((2031, 5, 6, 7, 8, 9, 0, 0, -1))


# --- the books ---------------------------------------------------------------------------------------


def test_many_submissions_at_once_get_an_id_each(bench: Bench) -> None:
    script = bench.script("true")
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda number: bench.backend.submit(Submission(script, f"n{number}", held=True)), range(8)))
    assert sorted(map(int, ids)) == list(range(1, 9))
    assert {job.id: job.name for job in bench.backend.queue()} == {job_id: f"n{number}" for number, job_id in enumerate(ids)}


def age(bench: Bench, job_id: str, seconds: float) -> None:
    end = bench.state / "jobs" / job_id / "end.json"
    end.write_text(json.dumps({**json.loads(end.read_text()), "ended": time.time() - seconds}))


def test_the_queue_forgets_an_ended_job_after_an_hour_and_the_accounting_does_not(bench: Bench) -> None:
    job_id = bench.submit("true")
    bench.ended(job_id)
    age(bench, job_id, 3700)
    assert bench.backend.queue() == ()
    assert [job.id for job in bench.backend.accounting(Doubt(time.time() - 7200))] == [job_id]
    assert bench.backend.accounting(Doubt(time.time())) == ()
    assert [job.id for job in bench.backend.accounting(Doubt(time.time(), (job_id,)))] == [job_id]


def test_a_job_that_ended_a_month_ago_is_removed_and_its_id_not_used_again(bench: Bench) -> None:
    first = bench.submit("true")
    bench.ended(first)
    age(bench, first, 31 * 86400)
    second = bench.submit("true", held=True)
    assert int(second) > int(first)
    assert [path.name for path in (bench.state / "jobs").iterdir()] == [second]


def test_a_machine_that_never_ran_a_job_has_an_empty_queue_and_stays_untouched(bench: Bench) -> None:
    assert bench.backend.queue() == bench.backend.accounting(Doubt(0.0, ("1",))) == ()
    assert not bench.state.exists()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"name": "x"}'])
def test_a_damaged_job_makes_the_queue_unknown_and_not_shorter(bench: Bench, damage: str) -> None:
    job_id = bench.submit("true")
    bench.ended(job_id)
    (bench.state / "jobs" / job_id / "job.json").write_text(damage)
    with pytest.raises(ClusterUnreachable, match=rf"jobs/{job_id}/job\.json is damaged"):
        bench.backend.queue()


def test_a_submission_that_was_never_accepted_is_no_job(bench: Bench) -> None:
    (bench.state / "jobs" / "5").mkdir(parents=True)
    assert bench.backend.queue() == ()


def test_a_state_directory_that_cannot_be_read_is_unknown_and_not_empty(bench: Bench) -> None:
    bench.state.mkdir()
    (bench.state / "jobs").symlink_to("jobs")  # a loop: an error for everybody, the superuser too
    with pytest.raises(ClusterUnreachable):
        bench.backend.queue()


def test_jobs_of_another_machine_on_a_shared_home_are_not_of_this_cluster(bench: Bench) -> None:
    job_id = bench.submit("true")
    bench.ended(job_id)
    record = bench.state / "jobs" / job_id / "job.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "host": "elsewhere"}))
    assert bench.backend.queue() == ()


def test_the_state_directory_is_one_for_all_experiments_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECONCILE_LOCAL_DIR", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_state_dir() == Path("/home/someone/.local/state/reconcile/local")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_state_dir() == Path("/state/reconcile/local")
    monkeypatch.setenv("RECONCILE_LOCAL_DIR", "/chosen")
    assert default_state_dir() == Path("/chosen")
