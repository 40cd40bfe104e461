"""The pyslurm backend: what it makes of a script, what its rows mean, and that nothing pyslurm does can end or hang a pass.

The modules here stand in for a pyslurm that misbehaves; that the real one and this backend agree is shown on real clusters.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from reconciler.backends import choose, slurm_api
from reconciler.backends.job_description import OnlySbatchCan, Submitter, describe
from reconciler.backends.slurm_api import SlurmApi, accounted_job, queue_job, submission_failure
from reconciler.backends.slurm_cli import SlurmCli
from reconciler.batch_script import parse_batch_script
from reconciler.errors import ClusterUnreachable, LimitReached, SubmissionRefused, SubmissionUncertain, UsageError
from reconciler.model import Phase
from reconciler.ports import Doubt, Submission

SCRIPT = "#!/bin/bash\n#SBATCH --ntasks=1 --time=10\necho hello\n"
GOOD = """
class RPCError(Exception):
    def __init__(self, errno, msg):
        super().__init__(msg)
        self.errno = errno

class settings:
    LOCAL_CLUSTER = "mini"

class slurmctld:
    class Config:
        @staticmethod
        def load():
            return slurmctld.Config()

class Job:
    def __init__(self, id):
        self.id = id
    def cancel(self):
        raise RPCError(2017, "Invalid job id specified")
    def hold(self):
        raise RPCError(2010, "Access/permission denied")

class Jobs(dict):
    @staticmethod
    def load():
        return Jobs()

class JobSubmitDescription:
    def __init__(self, **attributes):
        self.attributes = attributes
    def submit(self):
        return 42
"""


def worker_with(tmp_path, monkeypatch, module: str) -> tuple[SlurmApi, list[str]]:
    """The backend over a stand-in module, over commands that say who they are."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "pyslurm.py").write_text(module)
    (tmp_path / "bin").mkdir()
    for name, text in (
        ("sbatch", "echo 7"),
        ("squeue", ""),
        ("scontrol", "echo 'ClusterName = byhand'"),
        ("scancel", ""),
        ("sacct", ""),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    (tmp_path / "job.slurm").write_text(SCRIPT)
    said: list[str] = []
    environment = {"PATH": path, "PYTHONPATH": str(tmp_path / "site"), "HOME": "/h", "SLURM_CONF": str(tmp_path / "slurm.conf")}
    return SlurmApi(SlurmCli(environment), said.append, environment), said


def submission(tmp_path, **more) -> Submission:
    return Submission(tmp_path / "job.slurm", "train.rc-1", **more)


# --- choosing ----------------------------------------------------------------------------------------


def test_auto_takes_pyslurm_where_it_is_beside_the_commands_and_never_local(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterUnreachable, match="--backend local"):
        choose("auto", None, print)
    with pytest.raises(UsageError, match="install the release of it that is for this Slurm"):
        choose("pyslurm", None, print)
    for command in ("sbatch", "squeue"):
        (tmp_path / command).write_text("#!/bin/sh\n")
        (tmp_path / command).chmod(0o755)
    assert choose("auto", None, print).name == "cli"
    (tmp_path / "pyslurm.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert choose("auto", None, print).name == "pyslurm"
    assert choose("cli", None, print).name == "cli"
    with pytest.raises(UsageError, match="local"):
        choose("slurm", None, print)


# --- isolation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("import os, sys\nprint('slurm_init: no slurm.conf', file=sys.stderr)\nos._exit(1)", "no slurm.conf"),
        ("raise ImportError('libslurm.so.42: cannot open')", "libslurm.so.42"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "ended without an answer"),
    ],
)
def test_a_pyslurm_that_cannot_be_imported_leaves_the_commands_to_do_it_and_says_why_once(tmp_path, monkeypatch, module, why):
    backend, said = worker_with(tmp_path, monkeypatch, module)
    assert backend.identity() == "slurm:byhand"
    assert backend.queue() == ()
    assert backend.submit(submission(tmp_path)) == "7"
    assert len(said) == 1
    assert why in said[0]


def test_a_query_that_hangs_is_given_up_and_the_commands_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm_api, "_QUERY_SECONDS", 1.0)
    hanging = GOOD.replace("return Jobs()", "import time; time.sleep(60)")
    backend, said = worker_with(tmp_path, monkeypatch, hanging)
    began = time.monotonic()
    assert backend.queue() == ()
    assert time.monotonic() - began < 30
    assert len(said) == 1


def test_a_submission_that_dies_with_the_worker_is_uncertain_and_is_not_made_again(tmp_path, monkeypatch):
    dying = GOOD.replace("return 42", "import os; os._exit(1)")
    backend, said = worker_with(tmp_path, monkeypatch, dying)
    with pytest.raises(SubmissionUncertain):
        backend.submit(submission(tmp_path))
    assert len(said) == 1


def test_a_submission_that_pyslurm_stumbles_over_before_it_asks_anything_goes_to_sbatch(tmp_path, monkeypatch):
    stumbling = GOOD.replace("return 42", "raise TypeError('an integer is required')")
    backend, said = worker_with(tmp_path, monkeypatch, stumbling)
    assert backend.submit(submission(tmp_path)) == "7"
    assert said == []


def test_a_submission_keeps_the_lock_until_it_is_settled_even_where_the_pass_is_killed(tmp_path, monkeypatch):
    slow = GOOD.replace(
        "return 42", f"import time; open('{tmp_path}/begun', 'w'); time.sleep(2); open('{tmp_path}/over', 'w'); return 42"
    )
    worker_with(tmp_path, monkeypatch, slow)
    code = (
        "import fcntl, os, sys; from pathlib import Path; from reconciler.ports import Submission;"
        "from reconciler.backends.slurm_api import SlurmApi; from reconciler.backends.slurm_cli import SlurmCli;"
        f"lock = os.open('{tmp_path}/lock', os.O_RDWR | os.O_CREAT); fcntl.flock(lock, fcntl.LOCK_EX);"
        f"SlurmApi(SlurmCli(), print).submit(Submission(Path('{tmp_path}/job.slurm'), 'n', keep_open=(lock,)))"
    )
    pid = os.spawnve(os.P_NOWAIT, sys.executable, [sys.executable, "-c", code], dict(os.environ))
    wait_until((tmp_path / "begun").exists)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not (tmp_path / "over").exists()
    assert is_locked(tmp_path / "lock")
    wait_until((tmp_path / "over").exists)
    wait_until(lambda: not is_locked(tmp_path / "lock"))


def is_locked(path: Path) -> bool:
    import fcntl

    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def wait_until(what, seconds=20):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_what_the_api_answers_is_used_and_errors_are_told_apart(tmp_path, monkeypatch):
    backend, said = worker_with(tmp_path, monkeypatch, GOOD)
    assert backend.identity() == "slurm:mini"
    assert backend.submit(submission(tmp_path)) == "42"
    backend.cancel("5")  # unknown to the controller: over
    with pytest.raises(ClusterUnreachable, match="Access"):
        backend.hold("5")
    assert said == []


def test_an_unknown_id_and_a_failing_accounting_are_for_sacct(tmp_path, monkeypatch):
    backend, _ = worker_with(tmp_path, monkeypatch, GOOD)
    assert backend.accounting(Doubt(0.0, ("5",), has_unnamed=True)) == ()
    assert backend.accounting(Doubt(0.0, ("5",))) == ()  # the stand-in has no db at all


def test_a_site_that_changes_submissions_in_sbatch_gets_them_through_sbatch(tmp_path, monkeypatch):
    backend, _ = worker_with(tmp_path, monkeypatch, GOOD)
    (tmp_path / "plugstack.conf").write_text("# required nothing.so\ninclude more.d/*.conf\n")
    assert backend.submit(submission(tmp_path)) == "42"
    (tmp_path / "more.d").mkdir()
    (tmp_path / "more.d" / "site.conf").write_text("optional private-tmp.so option=1\n")
    again = SlurmApi(backend._commands, print, backend._environment)
    assert again.submit(submission(tmp_path)) == "7"


def test_errors_of_a_submission_mean_what_sbatchs_do():
    assert isinstance(submission_failure(2000, "Invalid partition name specified"), SubmissionRefused)
    policy = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    assert isinstance(submission_failure(2050, policy), LimitReached)
    assert isinstance(submission_failure(11, "Resource temporarily unavailable"), LimitReached)
    for number in (5004, 1800, 1007, -1):
        assert isinstance(submission_failure(number, "Socket timed out on send/recv operation"), SubmissionUncertain)


# --- descriptions ------------------------------------------------------------------------------------


def described(text: str, environment: dict[str, str] | None = None, release: tuple[int, int] = (24, 11), **more):
    job = Submission(Path("/exp/r8/finetune.slurm"), "finetune.rc-1", **more)
    script = parse_batch_script(job.script, text)
    submitter = Submitter("login1", 0o027, {"CORE": 0, "NOFILE": -1}, release)
    return describe(job, script, environment or {"HOME": "/h"}, submitter)


def test_a_script_becomes_a_description_with_what_sbatch_would_have_added():
    text = """#!/bin/bash
#SBATCH --job-name="r8 lr=1e-5" --ntasks=1 -c 4
#SBATCH -p gpu,debug --gres=gpu:a100:2 --mem=64G --time=1-2:30
#SBATCH --output=logs/%j.out --account=lab --mail-type=END,FAIL
echo
#SBATCH --nodes=9
"""
    found = described(text)
    environment = found.pop("environment")
    assert found == {
        "name": "finetune.rc-1",
        "script": "/exp/r8/finetune.slurm",
        "working_directory": "/exp/r8",
        "ntasks": 1,
        "cpus_per_task": 4,
        "partitions": ["gpu", "debug"],
        "gres_per_node": {"gpu:a100": 2},
        "memory_per_node": 65536,
        "time_limit": 1590,
        "standard_output": "logs/%j.out",
        "account": "lab",
        "mail_types": ["END", "FAIL"],
        "is_requeueable": False,
        "profile_types": "none",
    }
    assert environment["SLURM_SUBMIT_DIR"] == "/exp/r8"
    assert environment["SLURM_SUBMIT_HOST"] == "login1"
    assert (environment["SLURM_UMASK"], environment["SLURM_RLIMIT_CORE"]) == ("0027", "0")
    assert environment["SLURM_RLIMIT_NOFILE"] == str(2**64 - 1)
    assert environment["HOME"] == "/h"
    assert (environment["SLURM_CPUS_PER_TASK"], environment["SLURM_TRES_PER_TASK"]) == ("4", "cpu=4")
    with pytest.raises(OnlySbatchCan):
        described(text, release=(23, 11))


def test_a_held_and_a_later_submission_say_so():
    assert described(SCRIPT, held=True)["priority"] == 0
    assert described(SCRIPT, begin_in=30)["begin_time"] == "now+30"
    assert described(SCRIPT.replace("=1 ", "=1 --hold "))["priority"] == 0
    assert described(SCRIPT, requeue=True)["is_requeueable"] is True
    assert "priority" not in described(SCRIPT)


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ("-n1 -t9 --array=1-3", {}),
        ("-n1 -t9 --export=NONE", {}),
        ("-n1 -t9 --no-such-option", {}),
        ("-n1 -t9 --gpus=2", {}),
        ("-n1 -t9 --constraint=a|b", {}),
        ("-n1 -t9 --mem=0", {}),
        ("-n1 -t9 --nodelist=n[1-3]", {}),
        ("-n1 -t9 --nodes=1-2", {}),
        ("-n1 --time=0", {}),
        ("-n1 --time=soon", {}),
        ("-n1", {}),
        ("-n4 -t9", {}),
        ("-N1 -t9", {}),
        ("-n1 -t9", {"SBATCH_ACCOUNT": "lab"}),
        ("-n1 -t9", {"BLOB": "\udcff"}),
    ],
)
def test_what_is_not_known_to_mean_the_same_is_left_to_sbatch(options, environment):
    with pytest.raises(OnlySbatchCan):
        described(f"#!/bin/sh\n#SBATCH {options}\n", {"HOME": "/h", **environment})


# --- rows --------------------------------------------------------------------------------------------

ROW = {
    "id": 5, "name": "ü|x = +", "state": "PENDING", "state_reason": "JobHeldUser", "exit_code": 0, "exit_code_signal": 0,
    "submit_time": 1795487126, "eligible_time": None, "start_time": None, "end_time": None, "user_name": "ana",
    "working_directory": "/tmp/w d", "array_id": None, "array_task_id": None, "array_tasks_waiting": None, "cancelled_by": None,
}  # fmt: skip


def test_rows_of_the_controller_and_of_the_accounting_become_jobs():
    held = queue_job(ROW)
    assert (held.id, held.phase, held.held, held.name, held.workdir) == ("5", Phase.QUEUED, True, "ü|x = +", "/tmp/w d")
    failed = queue_job({**ROW, "state": "FAILED", "exit_code_signal": 53, "start_time": 1795487158, "end_time": 1795487159})
    assert (failed.phase, failed.exit_code, failed.started, failed.ended) == (Phase.ENDED, "0:53", 1795487158.0, 1795487159.0)
    running = accounted_job({**ROW, "state": "RUNNING", "end_time": 1795487159, "start_time": 1795487158})
    assert (running.phase, running.ended) == (Phase.RUNNING, None)
    cancelled = accounted_job({**ROW, "state": "CANCELLED", "cancelled_by": "root"})
    assert (cancelled.state, cancelled.cancelled_by) == ("CANCELLED", "0")
    waiting = queue_job({**ROW, "array_id": 5, "array_tasks_waiting": "1-3"})
    assert waiting.id == "5_[1-3]"
    assert queue_job({**ROW, "id": 8, "array_id": 5, "array_task_id": 2}).id == "5_2"


def test_a_row_that_is_none_is_an_error():
    for broken in ({**ROW, "state": None}, {**ROW, "id": None}):
        with pytest.raises(ClusterUnreachable):
            queue_job(broken)
