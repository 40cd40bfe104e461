"""Slurm's commands as text: what they print becomes jobs, or an error; never a shorter list. Rows as a real 22.05 printed them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reconciler.backends.slurm_cli import (
    _SIGNS,
    SlurmCli,
    parse_sacct,
    parse_squeue,
    query_environment,
    read_submission,
    submission_environment,
)
from reconciler.backends.slurm_states import base_state, phase_of
from reconciler.errors import (
    AccountingDisabled,
    ClusterUnreachable,
    LimitReached,
    NotSubmitted,
    SubmissionRefused,
    SubmissionUncertain,
)
from reconciler.model import Phase
from reconciler.ports import Doubt, Submission


def squeue_row(*fields: str) -> str:
    return "\x1f".join(f"{field:>20}" for field in fields) + "\x1e\n"


PENDING = squeue_row("7", "PENDING", "JobHeldUser", "1795487182", "N/A", "N/A", "ana", "0", "", "nä|me = +\nzwei", "/tmp/w d/ü|x")
ENDED = squeue_row(
    "4", "FAILED", "JobLaunchFailure", "1795487158", "1795487158", "1795487158", "ana", "4021", "n1", "k.sh", "/tmp/w d"
)
BEGIN = squeue_row("2", "PENDING", "BeginTime", "1795487126", "1795488126", "NONE", "ana", "0", "", "later", "/tmp")
SACCT = (
    "2\x1fCANCELLED by 1234\x1f0:0\x1f1795487126\x1f1795488126\x1fNone\x1f1795487158\x1fana\x1fNone assigned\x1f/tmp/w d\x1flater\n"
    "3\x1fCANCELLED by 0\x1f0:0\x1f1795487126\x1fUnknown\x1fNone\x1f1795487158\x1fana\x1fNone assigned\x1f/tmp/w d\x1ftwo\nlines\n"
    "5\x1fFAILED\x1f3:0\x1f1795487158\x1f1795487158\x1f1795487158\x1f1795487158\x1fana\x1fn1\x1f/tmp/w d\x1ff.sh\n"
)


def test_squeue_rows_become_jobs_whatever_their_names_hold():
    pending, ended, begin = parse_squeue(PENDING + ENDED + BEGIN)
    assert (pending.id, pending.phase, pending.held) == ("7", Phase.QUEUED, True)
    assert (pending.name, pending.workdir) == ("nä|me = +\nzwei", "/tmp/w d/ü|x")
    assert (ended.phase, ended.exit_code, ended.ended, ended.nodes) == (Phase.ENDED, "0:53", 1795487158.0, "n1")
    assert (begin.held, begin.begins, begin.pending_reason) == (False, 1795488126.0, "BeginTime")


def test_squeue_of_24_11_prints_the_exit_code_in_another_way():
    (job,) = parse_squeue(ENDED.replace("4021", "0:53"))
    assert job.exit_code == "0:53"


@pytest.mark.parametrize("cut", range(1, len(PENDING + ENDED)))
def test_a_squeue_answer_cut_off_anywhere_is_an_error_or_whole_rows_at_a_row_end(cut):
    text = (PENDING + ENDED)[:cut]
    if text.endswith("\x1e\n"):
        assert len(parse_squeue(text)) == 1
    else:
        with pytest.raises(ClusterUnreachable):
            parse_squeue(text)


def test_an_empty_answer_is_an_empty_queue_and_anything_else_is_not():
    assert parse_squeue("") == ()
    for garbage in ("slurm_load_jobs error: Unable to contact slurm controller", "1 2 3\n", "\x1e\n"):
        with pytest.raises(ClusterUnreachable):
            parse_squeue(garbage)


def test_sacct_rows_become_jobs_and_tell_who_cancelled():
    later, two_lines, failed = parse_sacct(SACCT)
    assert (later.state, later.cancelled_by, later.phase) == ("CANCELLED", "1234", Phase.ENDED)
    assert two_lines.name == "two\nlines"
    assert (failed.exit_code, failed.started) == ("3:0", 1795487158.0)
    with pytest.raises(ClusterUnreachable):
        parse_sacct(SACCT[:-1])


@pytest.mark.parametrize(
    ("text", "phase"),
    [
        ("PENDING", Phase.QUEUED), ("REQUEUED", Phase.QUEUED), ("REQUEUE_HOLD", Phase.QUEUED), ("SPECIAL_EXIT", Phase.QUEUED),
        ("CONFIGURING", Phase.RUNNING), ("COMPLETING", Phase.RUNNING), ("SUSPENDED", Phase.RUNNING), ("STAGE_OUT", Phase.RUNNING),
        ("COMPLETED", Phase.ENDED), ("CANCELLED by 1234", Phase.ENDED), ("CANCELLED+", Phase.ENDED), ("TIMEOUT", Phase.ENDED),
        ("OUT_OF_MEMORY", Phase.ENDED), ("NODE_FAIL", Phase.ENDED), ("PREEMPTED", Phase.ENDED), ("BOOT_FAIL", Phase.ENDED),
        ("DEADLINE", Phase.ENDED), ("REVOKED", Phase.UNKNOWN), ("SOMETHING_NEW", Phase.UNKNOWN), ("", Phase.UNKNOWN),
    ],
)  # fmt: skip
def test_every_state_is_live_or_ended_only_on_slurms_clear_word(text, phase):
    assert phase_of(base_state(text)[0]) is phase


@pytest.mark.parametrize(("output", "job"), [("17\n", "17"), ("17;mini\n", "17"), ("some notice\n17\n", "17")])
def test_the_id_is_read_from_what_parsable_prints(output, job):
    assert read_submission(0, output, "sbatch: warning: can't run 1 processes on 2 nodes\n") == job


@pytest.mark.parametrize("sign", _SIGNS, ids=lambda sign: sign.part)
def test_each_known_message_means_what_the_table_says(sign):
    assert sign.part in sign.sample
    with pytest.raises(sign.kind):
        read_submission(1, "", f"sbatch: error: {sign.sample}\n")


@pytest.mark.parametrize(
    ("code", "output", "errors"),
    [
        (0, "", ""),
        (0, "Submitted", ""),
        (0, "1", ""),
        (124, "", ""),
        (137, "", ""),
        (1, "", "something nobody has seen"),
        (1, "17\n", "x"),
    ],
)
def test_what_is_not_surely_refused_is_unknown(code, output, errors):
    with pytest.raises(SubmissionUncertain):
        read_submission(code, output, errors)


def test_limits_wait_and_errors_of_the_job_are_refusals():
    with pytest.raises(LimitReached):
        read_submission(
            1, "", "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates"
        )
    with pytest.raises(SubmissionRefused, match="Invalid partition"):
        read_submission(1, "", "sbatch: error: Batch job submission failed: Invalid partition name specified\n")


def test_variables_of_a_surrounding_job_and_of_output_formats_are_dropped_and_the_users_own_kept():
    own = {"SLURM_CONF": "/c", "SLURM_CLUSTERS": "x", "SBATCH_ACCOUNT": "lab", "PATH": "/bin", "CONDA_EXE": "/conda"}
    surrounding = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_STEP_ID", "SLURM_TASK_PID", "SLURM_NTASKS", "SLURMD_NODENAME")
    changing = ("SBATCH_WAIT", "SBATCH_TEST_ONLY", "SBATCH_ARRAY_INX", "SBATCH_JOB_NAME", "SBATCH_REQUEUE")
    everything = own | dict.fromkeys((*surrounding, *changing, "SQUEUE_STATES", "SACCT_FORMAT"), "1")
    assert submission_environment(everything).keys() == own.keys() | {"SQUEUE_STATES", "SACCT_FORMAT"}
    assert query_environment(everything).keys() == own.keys() | {"SLURM_TIME_FORMAT", "LC_ALL"}


# --- the commands, stood in for by scripts on PATH ----------------------------------------------------


def commands(tmp_path: Path, **scripts: str) -> SlurmCli:
    for name, body in scripts.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    return SlurmCli({**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})


@pytest.fixture(autouse=True)
def _on_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    "body", ["exit 1", "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1", "echo 'squeue: error: x' >&2"]
)
def test_a_failed_squeue_is_never_an_empty_queue(tmp_path, body):
    with pytest.raises(ClusterUnreachable):
        commands(tmp_path, squeue=body).queue()


@pytest.mark.parametrize(
    "message",
    ["scancel: error: Kill job error on job id 7: Invalid job id specified", "Job has already finished for job 7"],
)
def test_a_job_that_is_over_can_be_told_nothing_and_that_is_no_error(tmp_path, message):
    cluster = commands(tmp_path, scancel=f"echo '{message}' >&2; exit 1", scontrol=f"echo '{message}' >&2; exit 1")
    cluster.cancel("7")
    cluster.hold("7")
    cluster.release("7")
    with pytest.raises(ClusterUnreachable):
        commands(tmp_path, scontrol="echo 'Access/permission denied' >&2; exit 1").hold("7")


def test_a_site_without_accounting_says_so(tmp_path):
    cluster = commands(tmp_path, sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1")
    with pytest.raises(AccountingDisabled):
        cluster.accounting(Doubt(0.0))


def test_a_submission_runs_in_the_scripts_directory_with_the_lock_open_and_nothing_to_read(tmp_path):
    cluster = commands(tmp_path, sbatch='pwd > "$OUT"; echo "$@" >> "$OUT"; ls /proc/self/fd >> "$OUT"; cat >> "$OUT"; echo 42')
    os.environ["OUT"] = str(tmp_path / "seen")
    script = tmp_path / "run" / "-finetune.slurm"
    script.parent.mkdir()
    script.write_text("#!/bin/bash\n")
    cluster = SlurmCli({**os.environ})
    with (tmp_path / "lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), False)
        job = cluster.submit(Submission(script, "a.rc-1", begin_in=5, held=True, keep_open=(lock.fileno(),)))
        seen = (tmp_path / "seen").read_text().split("\n")
        assert str(lock.fileno()) in seen[2:]
    assert job == "42"
    assert seen[0] == str(script.parent)
    assert seen[1] == "--parsable --job-name=a.rc-1 --no-requeue --begin=now+5 --hold ./-finetune.slurm"
    del os.environ["OUT"]


def test_inside_a_job_only_what_names_the_cluster_is_handed_on():
    around = {
        "SLURM_JOB_ID": "7",
        "SLURM_HINT": "nomultithread",
        "SLURM_RLIMIT_CORE": "0",
        "SLURM_CONF": "/etc/s.conf",
        "HOME": "/h",
    }
    assert submission_environment(around) == {"SLURM_CONF": "/etc/s.conf", "HOME": "/h"}
    mine = {"SLURM_HINT": "nomultithread", "SLURM_CPU_BIND": "cores", "SBATCH_ACCOUNT": "lab"}
    assert submission_environment(mine) == {"SLURM_HINT": "nomultithread", "SBATCH_ACCOUNT": "lab"}


def test_a_pass_that_is_interrupted_leaves_sbatch_under_its_time_limit(tmp_path):
    (tmp_path / "job.sh").write_text("#!/bin/sh\n")
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f"#!/bin/sh\necho $PPID > {tmp_path}/above\nsleep 2\ntouch {tmp_path}/finished\necho 5\n")
    sbatch.chmod(0o755)
    code = (
        "import sys; from pathlib import Path; from reconciler.backends.slurm_cli import SlurmCli; "
        "from reconciler.ports import Submission; SlurmCli().submit(Submission(Path(sys.argv[1]), 'n'))"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    submitting = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "job.sh"], env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_until(lambda: (tmp_path / "above").exists() and (tmp_path / "above").read_text().strip())
    submitting.send_signal(signal.SIGINT)
    assert submitting.wait(10) != 0
    above = int((tmp_path / "above").read_text())
    assert Path(f"/proc/{above}/comm").read_text() == "timeout\n"
    wait_until((tmp_path / "finished").exists)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        *[(each, NotSubmitted) for each in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)],
        *[(each, SubmissionRefused) for each in (errno.ENOENT, errno.ENOTDIR, errno.E2BIG)],
    ],
)
def test_an_sbatch_that_cannot_be_started_for_now_is_no_refusal(monkeypatch, number, kind):
    def popen(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(kind, match="sbatch could not be started"):
        SlurmCli({}).submit(Submission(Path("/exp/a/finetune.slurm"), "n"))


def wait_until(what, seconds=20):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
