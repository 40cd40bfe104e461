"""The simulated Slurm's commands print what the real ones do. The expected texts were printed by 22.05, node and ids apart."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_slurm.client import RemoteWire
from fake_slurm.cluster import Cluster
from fake_slurm.commands import run
from fake_slurm.faults import Fault, Kind
from fake_slurm.pretending import work_of
from fake_slurm.server import Server
from fake_slurm.session import Session
from fake_slurm.site import Partition, Site

BIN = Path(__file__).resolve().parents[1] / "fixtures" / "fake_slurm" / "bin"


class Shell:
    """A user's shell on a simulated cluster."""

    def __init__(self, directory: Path, site: Site) -> None:
        self.directory = directory
        self._place = tempfile.TemporaryDirectory(prefix="fs-")  # a socket's path is short
        self.server = Server(Cluster(site, 1_795_551_280.0, work_of), Path(self._place.name) / "socket")
        self.cluster = self.server.cluster

    def __call__(self, *words: str, user: str = "ana", uid: int = 1000, **environment: str) -> tuple[int, str, str]:
        wire = RemoteWire(str(self.server.path), user, uid)
        session = Session(wire, environment, str(self.directory), lambda: b"#!/bin/sh\nexit 5\n")
        code = run(words[0], words[1:], session)
        return code, session.printed(), "".join(session.errors)

    def prints(self, *words: str, **environment: str) -> str:
        code, output, errors = self(*words, **environment)
        assert (code, errors) == (0, "")
        return output


@contextlib.contextmanager
def shell_on(directory: Path, site: Site | None = None) -> Iterator[Shell]:
    shell = Shell(directory, site or Site())
    shell.server.start()
    try:
        yield shell
    finally:
        shell.server.stop()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    (tmp_path / "j.sh").write_text("#!/bin/bash\n#SBATCH --time=5\nsleep 30\n")
    with shell_on(tmp_path) as started:
        yield started


def test_sbatch_and_squeue_print_what_a_person_is_used_to(shell):
    assert shell.prints("sbatch", "j.sh") == "Submitted batch job 1\n"
    assert shell.prints("sbatch", "--parsable", "--hold", "j.sh") == "2\n"
    shell("sbatch", "--begin=now+3600", "-J", "later job with a long name", "j.sh")
    shell.cluster.advance(1)
    assert shell.prints("squeue") == (
        "             JOBID PARTITION     NAME     USER ST       TIME  NODES NODELIST(REASON)\n"
        "                 2      main     j.sh      ana PD       0:00      1 (JobHeldUser)\n"
        "                 3      main later jo      ana PD       0:00      1 (BeginTime)\n"
        "                 1      main     j.sh      ana  R       0:01      1 node\n"
    )
    assert shell.prints("squeue", "--me", "-h", "-o", "%j") == "j.sh\nlater job with a long name\nj.sh\n"
    assert shell.prints("squeue", "-h", "-t", "all", "-j", "1").split()[:4] == ["1", "main", "j.sh", "ana"]
    assert shell("squeue", "-h", "-t", "all", "-j", "999") == (1, "", "slurm_load_jobs error: Invalid job id specified\n")
    assert shell.prints("squeue", "-h", "-t", "all", "-j", "998,999") == ""
    assert shell.prints("squeue", "-h", "-o", "%i|%-12T|%.6j|%S|%e", "-j", "1", SLURM_TIME_FORMAT="%s") == (
        "1|%-12T|  j.sh|1795551280|1795551580\n"
    )


def test_sacct_prints_tables_and_rows(shell):
    shell("sbatch", "j.sh")
    shell("sbatch", "--wrap", "exit 3")
    shell("sbatch", "--begin=now+500", "--wrap", "true")
    shell("scancel", "1")
    shell.cluster.advance(6)
    assert shell.prints("sacct") == (
        "JobID           JobName  Partition    Account  AllocCPUS      State ExitCode \n"
        "------------ ---------- ---------- ---------- ---------- ---------- -------- \n"
        "1                  j.sh       main                     1 CANCELLED+      0:0 \n"
        "1.batch           batch                                1  CANCELLED      0:0 \n"
        "2                  wrap       main                     1     FAILED      3:0 \n"
        "2.batch           batch                                1     FAILED      3:0 \n"
    )
    rows = ("sacct", "-X", "-P", "-n", "-o", "JobID,State,ExitCode", "-S", "now-1hour")
    assert shell.prints(*rows) == "1|CANCELLED by 1000|0:0\n2|FAILED|3:0\n"
    assert shell.prints(*rows, "-E", "now", "-s", "PD,CA,F") == "1|CANCELLED by 1000|0:0\n2|FAILED|3:0\n"
    assert shell.prints("sacct", "-X", "-p", "-n", "-j", "3") == "3|wrap|main||1|PENDING|0:0|\n"
    assert shell.prints("sacct", "-X", "-P", "-s", "PD") == "JobID|JobName|Partition|Account|AllocCPUS|State|ExitCode\n"
    shell("scancel", "3")
    shell.cluster.advance(1)
    assert "3|CANCELLED" not in shell.prints(*rows)
    assert "3|CANCELLED" in shell.prints(*rows, "-E", "now", "-s", "PD,CA,F")


@pytest.mark.parametrize(
    ("variables", "command", "sees"),
    [
        ({"SQUEUE_FORMAT": "%i"}, ["squeue"], "JOBID\n1\n"),
        ({"SQUEUE_STATES": "PD"}, ["squeue", "-h"], ""),
        ({"SQUEUE_STATES": "PD"}, ["squeue", "-h", "--states=all", "-o", "%i"], "1\n"),
        ({"SQUEUE_USERS": "root"}, ["squeue", "-h"], ""),
        ({"SQUEUE_PARTITION": "nosuch"}, ["squeue", "-h"], ""),
        ({"SQUEUE_NAMES": "other"}, ["squeue", "-h"], ""),
        ({"SQUEUE_FORMAT": "%i"}, ["squeue", "-h", "-O", "JobID,State"], f"{'1':20}{'RUNNING':20}\n"),
        ({"SACCT_FORMAT": "JobID"}, ["sacct", "-X", "-P"], "JobID\n1\n"),
    ],
)
def test_variables_of_the_environment_change_what_is_shown_as_they_really_do(shell, variables, command, sees):
    shell("sbatch", "j.sh")
    shell.cluster.advance(2)
    assert shell.prints(*command, **variables) == sees


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["-p", "nosuch", "j.sh"], 1, "invalid partition specified: nosuch\nsbatch: error: Batch job submission failed: Invalid partition name specified"),
        (["--mem=1000G", "j.sh"], 1, "Memory specification can not be satisfied\nsbatch: error: Batch job submission failed: Requested node configuration is not available"),
        (["--dependency=bad", "j.sh"], 1, "Batch job submission failed: Job dependency problem"),
        (["-J", "a" * 1200, "j.sh"], 1, "Batch job submission failed: Pathname of a file, directory or other parameter too long"),
        (["nosuch.sh"], 1, "Unable to open file nosuch.sh"),
        (["--time=abc", "j.sh"], 255, "Invalid --time specification"),
        (["-n", "abc", "j.sh"], 1, 'Invalid numeric value "abc" for --ntasks.'),
        (["dos.sh"], 1, "Batch script contains DOS line breaks (\\r\\n)\nsbatch: error: instead of expected UNIX line breaks (\\n)."),
        (["empty.sh"], 1, "Batch script is empty!"),
        (["noshebang.sh"], 1, "This does not look like a batch script.  The first\nsbatch: error: line must start with #! followed by the path to an interpreter.\nsbatch: error: For instance: #!/bin/sh"),
    ],
)  # fmt: skip
def test_sbatch_refuses_in_slurms_words(shell, words, code, complaint):
    for name, text in {"dos": b"#!/bin/sh\r\n", "empty": b"", "noshebang": b"echo\n"}.items():
        (shell.directory / f"{name}.sh").write_bytes(text)
    assert shell("sbatch", *words) == (code, "", f"sbatch: error: {complaint}\n")


def test_wrong_options_are_told_in_getopts_words(shell):
    (shell.directory / "bad.sh").write_text("#!/bin/sh\n#SBATCH --bogus\n")
    for words in (["sbatch", "--bogus", "j.sh"], ["sbatch", "bad.sh"]):
        assert shell(*words) == (255, "", "sbatch: unrecognized option '--bogus'\nTry \"sbatch --help\" for more information\n")
    possible = "'--gres' '--gres-flags'\nTry \"sbatch --help\" for more information\n"
    assert shell("sbatch", "--gre=gpu:4", "j.sh")[2] == f"sbatch: option '--gre=gpu:4' is ambiguous; possibilities: {possible}"
    assert shell("squeue", "--bogus")[2].startswith("squeue: unrecognized option '--bogus'\n")
    assert shell("squeue", "-t", "XX")[2].startswith("squeue: error: Invalid job state specified: XX\n")
    assert shell("sacct", "--format=bogus") == (1, "", 'sacct: error: Invalid field requested: "bogus"\n')
    assert shell("sacct", "-s", "XX") == (1, "", "sacct: fatal: unrecognized job state value 'XX'\n")
    assert shell("scancel") == (1, "", "scancel: error: No job identification provided\n")


def test_the_environment_is_obeyed_by_sbatch_before_the_script_and_after_the_command_line(shell):
    assert shell("sbatch", "j.sh", SBATCH_PARTITION="nosuch")[0] == 1
    shell("sbatch", "j.sh", SBATCH_TIMELIMIT="3", SBATCH_JOB_NAME="of-env")
    shell("sbatch", "--time=7", "j.sh", SBATCH_TIMELIMIT="3")
    assert shell.prints("squeue", "-h", "-o", "%j %l") == "of-env 3:00\nj.sh 7:00\n"


def test_scancel_and_scontrol_speak_of_jobs_that_are_over_unknown_or_anothers_as_they_really_do(shell):
    shell("sbatch", "--wrap", "true")
    shell.cluster.advance(1)
    assert shell("scancel", "1") == shell("scancel", "99") == (0, "", "")
    assert shell("scancel", "-v", "99")[2].endswith("scancel: error: Kill job error on job id 99: Invalid job id specified\n")
    for verb in ("hold", "release"):
        for job, why in (
            ("1", "Job has already finished"),
            ("99", "Invalid job id specified"),
            ("x", "Invalid job id specified"),
        ):
            assert shell("scontrol", verb, job) == (1, "", f"{why} for job {job}\nslurm_suspend error: {why}\n")
    shell("sbatch", "--no-requeue", "j.sh")
    assert shell("scontrol", "requeue", "2") == (1, "", "Requested operation is presently disabled for job 2\n")
    assert shell("scancel", "2", user="ben", uid=1001)[0] == 210
    assert shell("scontrol", "hold", "2", user="ben", uid=1001)[2].startswith("Invalid user id for job 2\n")
    shell("sbatch", "--hold", "j.sh")
    shell("scontrol", "hold", "3", user="root", uid=0)
    assert shell("scontrol", "release", "3")[2].startswith("Access/permission denied for job 3\n")
    assert shell.prints("squeue", "-h", "-o", "%r", "-j", "3") == "JobHeldAdmin\n"
    assert shell("scontrol", "requeue", "1") == (0, "", "")  # an ended job comes back


def test_what_never_could_fit_leaves_a_record(shell):
    shell("sbatch", "--mem=1000G", "j.sh")
    assert shell.prints("squeue", "-t", "all", "-h", "-o", "%t %r") == "F BadConstraints\n"


def test_sdiag_counts_by_type_and_user_and_only_root_resets_it(shell):
    assert shell("sdiag", "-r") == (255, "", "slurm_reset_statistics: Access/permission denied\n")
    shell("squeue", "--me")
    shell("sbatch", "j.sh")
    text = shell.prints("sdiag", user="root", uid=0)  # type: ignore[arg-type]
    by_type, by_user = text.split("Remote Procedure Call statistics by user")
    for rpc in ("JOB_USER_INFO", "PARTITION_INFO", "FED_INFO", "SUBMIT_BATCH_JOB"):
        assert f"REQUEST_{rpc} " in by_type
    assert "ana             (    1000) count:4 " in by_user
    assert shell("sdiag", "-r", user="root", uid=0)[0] == 0
    assert "ana             (    1000) count:1 " in shell.prints("sdiag")  # this one


def test_a_dead_controller_and_a_dead_database_are_told_as_they_really_are(shell):
    for words, code, errors in (
        (["squeue", "--me"], 1, "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"),
        (
            ["scancel", "4"],
            8,
            "scancel: error: Kill job error on job id 4: Unable to contact slurm controller (connect failure)\n",
        ),
        (
            ["sbatch", "j.sh"],
            1,
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)\n",
        ),
        (["scontrol", "show", "config"], 1, "slurm_load_ctl_conf error: Unable to contact slurm controller (connect failure)\n"),
        (
            ["scontrol", "hold", "4"],
            1,
            "Unexpected message received for job 4\nslurm_suspend error: Unexpected message received\n",
        ),
    ):
        shell.server.faults.inject(Fault("*", Kind.DOWN))
        assert shell(*words) == (code, "", errors)
    shell.server.faults.clear()
    shell.cluster.accounting.stop()
    assert shell("sacct")[2].endswith("sacct: error: Problem talking to the database: Connection refused\n")
    shell.server.stop()
    assert shell("squeue")[0] == shell("sbatch", "j.sh")[0] == 1


def test_answers_can_be_lost_cut_empty_or_garbage(shell):
    def meets(kind: Kind, *words: str) -> tuple[int, str, str]:
        shell.server.faults.inject(Fault("*", kind))
        return shell(*words)

    timed_out = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n"
    assert meets(Kind.LOST_BEFORE, "sbatch", "j.sh") == (1, "", timed_out)
    assert shell.cluster.queue() == ()
    assert meets(Kind.LOST_AFTER, "sbatch", "j.sh") == (1, "", timed_out)
    assert len(shell.cluster.queue()) == 1
    assert meets(Kind.EMPTY, "squeue") == (0, "", "")
    assert not meets(Kind.CUT, "squeue", "-h")[1].endswith("\n")
    assert "j.sh" not in meets(Kind.GARBLED, "squeue")[1]


def test_a_site_without_accounting_says_so(tmp_path):
    with shell_on(tmp_path, Site(has_accounting=False)) as shell:
        assert shell("sacct") == (1, "", "Slurm accounting storage is disabled\n")


def test_a_limit_of_the_site_is_told_before_the_refusal(tmp_path):
    with shell_on(tmp_path, Site(max_submit_jobs=1, partitions=(Partition("main", cpus=2),))) as shell:
        assert shell.prints("sbatch") == "Submitted batch job 1\n"
        code, _, errors = shell("sbatch")
        assert code == 1
        assert errors.startswith(
            "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job viol"
        )


def test_the_server_outlives_clients_that_die_or_talk_nonsense(shell):
    path = str(shell.server.path)
    for text in (b"", b'{"call": "que', b"nonsense\n", b'{"call": "nosuch", "user": "x", "uid": 1}\n', b"[]\n"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(text)
    assert shell.prints("sbatch", "j.sh") == "Submitted batch job 1\n"


# --- as programs -------------------------------------------------------------------------------------


def program(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{BIN}:{os.environ['PATH']}"
    return subprocess.run(words, env={**os.environ, "PATH": path, **environment}, capture_output=True, text=True, check=False)


def started(*options: str, **environment: str) -> dict[str, str]:
    said = program("fake-slurm", "start", *options, **environment)
    assert said.returncode == 0, said.stderr
    lines = [line.removeprefix("export ").partition("=") for line in said.stdout.splitlines()]
    assert [name for name, _, _ in lines] == ["FAKE_SLURM", "PATH"]
    return {"FAKE_SLURM": lines[0][2]}


def test_a_person_starts_a_cluster_and_its_scripts_really_run(tmp_path):
    there = started("--real-time", "--cpus=2")
    place = Path(there["FAKE_SLURM"]).parent
    try:
        script = tmp_path / "j.sh"
        script.write_text(f"#!/bin/sh\n#SBATCH --output={tmp_path}/%x-%j.txt\necho $SLURM_JOB_ID $OWN $1; exit 3\n")
        assert program("sbatch", "--wait", str(script), "argument", OWN="mine", **there).returncode == 3
        assert (tmp_path / "j.sh-1.txt").read_text() == "1 mine argument\n"
        held = program("sbatch", "--parsable", f"--output={tmp_path}/o", "--wrap", "trap 'exit 9' TERM; sleep 60 & wait", **there)
        until(lambda: " R " in program("squeue", "-h", "-j", held.stdout.strip(), **there).stdout)
        program("scancel", held.stdout.strip(), **there)
        missing = program("sbatch", "--parsable", "--output=/nosuch/place/o", "--wrap", "true", **there).stdout.strip()
        shown = ("sacct", "-X", "-n", "-P", "-o", "JobID,State,ExitCode")
        want = f"1|FAILED|3:0\n{held.stdout.strip()}|CANCELLED by {os.getuid()}|0:0\n{missing}|FAILED|0:53\n"
        until(lambda: program(*shown, **there).stdout == want)
        assert "real time" in program("fake-slurm", "status", **there).stdout
    finally:
        assert program("fake-slurm", "stop", **there).returncode == 0
    until(lambda: not place.exists())
    assert program("squeue", **there).returncode == 1


def test_a_virtual_clock_moves_when_told_and_faults_come_from_the_command_line(tmp_path):
    there = started(f"--directory={tmp_path}")
    try:
        assert program("sbatch", "--wrap", "sleep 600; exit 2", **there).stdout == "Submitted batch job 1\n"
        assert program("squeue", "-h", "-o", "%T", **there).stdout == "RUNNING\n"
        program("fake-slurm", "advance", "601", **there)
        assert program("squeue", "-h", "-t", "all", "-o", "%T", **there).stdout == "FAILED\n"
        program("fake-slurm", "fault", "queue", "down", **there)
        assert program("squeue", **there).returncode == 1
        assert program("squeue", **there).returncode == 0
        program("fake-slurm", "fault", "database", **there)
        assert program("sacct", **there).returncode == 1
        program("fake-slurm", "fault", "database", "up", **there)
        assert program("sacct", **there).returncode == 0
    finally:
        program("fake-slurm", "stop", **there)


def test_without_a_cluster_the_commands_say_what_to_do():
    assert "fake-slurm start" in program("squeue", FAKE_SLURM="").stderr


def until(what, seconds=20):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
