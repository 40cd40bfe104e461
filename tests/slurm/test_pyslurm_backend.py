"""Our backend over the real pyslurm: a job that it submits is the job that sbatch would have made, at less cost.

The suite of whole experiments runs on it too (BACKEND=pyslurm).
"""

from __future__ import annotations

import re

import pytest

BOTH = """
import os, sys, time
from pathlib import Path
from reconciler.backends.slurm_api import SlurmApi
from reconciler.backends.slurm_cli import SlurmCli
from reconciler.ports import Doubt, Submission
os.umask(0o027)
said = []
api, cli = SlurmApi(SlurmCli(), said.append), SlurmCli()
here = Path(os.getcwd())
"""
REPORT = 'echo "--- env"; env | sort; echo "--- limits"; ulimit -a; echo "--- umask"; umask; echo "--- cwd"; pwd; hostname'
# What two jobs cannot have in common, and the three things in which they were seen to differ: left out, pyslurm asks for every
# kind of profile (so it is told "none"), and for OOMKillStep=0 where sbatch leaves it open; the record, not the job's environment,
# lacks what --cpus-per-task also says as TresPerTask.
DIFFERENT = re.compile(
    r"^\s*(JobId|AllocNode:Sid|Command|StdErr|StdOut|SubmitTime|EligibleTime|AccrueTime|StartTime|EndTime|LastSchedEval|RunTime"
    r"|OOMKillStep|TresPerTask|Scheduler|Priority|SLURM_JOB_?ID|SLURM_TASK_PID|SLURM_PROFILE|SLURM_JOB_(START|END)_TIME|_|SLURMD_\w+)=\S*"
)


def submitted_both_ways(person, options: str, **more: str) -> dict[str, tuple[str, str]]:
    """Output and ``scontrol show job`` of one script, by backend."""
    place = person.home / "both"
    person.run("mkdir", "-p", place / "logs")
    script = "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in options.splitlines()), REPORT, ""])
    made = person.python(
        f"""{BOTH}
script = here / "both" / "job.slurm"
script.write_text({script!r})
for backend in (api, cli):
    job = backend.submit(Submission(script, "same.rc-1", **{more!r}))
    while not all(j.state in ("COMPLETED", "FAILED") for j in cli.queue() if j.id == job):
        time.sleep(0.3)
    print(backend.name, job, flush=True)
assert not said, said
"""
    )
    assert made.returncode == 0, made.stderr
    answers = {}
    for line in made.stdout.splitlines():
        name, job = line.split()
        shown = person.run("scontrol", "show", "job", job).stdout
        output = re.search(r"StdOut=(.*)", shown)
        assert output
        text = person.run("cat", output[1]).stdout
        answers[name] = (same_part(text), same_part(shown.replace(" ", "\n")))
    return answers


def same_part(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.strip() and not DIFFERENT.match(line))


@pytest.mark.parametrize(
    "options",
    [
        "--ntasks=1 --time=5",
        "--ntasks=1 --cpus-per-task=2 --mem=100M --time=1:30",
        '--job-name="of its own" -n 1 -N 1 -p main -t 5\n--output=logs/o-%j.txt --comment="two words, ü"',
        "-n 2 -N 1 --mem-per-cpu=10 --time=0-1 --open-mode=append --error=logs/e-%j.txt",
        "-n1 --chdir=logs --mail-type=FAIL,END --mail-user=somebody -t 1:00:00",
    ],
)
def test_a_job_is_the_same_whichever_way_it_was_submitted(person, options):
    answers = submitted_both_ways(person, options)
    assert answers["pyslurm"][1] == answers["cli"][1]
    assert answers["pyslurm"][0] == answers["cli"][0]
    assert "SLURM_SUBMIT_DIR" in answers["cli"][0]


def test_a_script_that_the_api_cannot_say_goes_through_sbatch_and_is_the_same_job(person):
    answers = submitted_both_ways(person, "--cpus-per-task=1 --gpus-per-task=0 --time=5")
    assert answers["pyslurm"] == answers["cli"]


def test_both_backends_tell_the_same_of_every_job(person):
    made = person.python(
        f"""{BOTH}
script = here / "same.slurm"
script.write_text("#!/bin/sh\\n#SBATCH -n1 -t9\\nexit 3\\n")
held = api.submit(Submission(script, "held.rc-1", held=True))
later = api.submit(Submission(script, "later.rc-1", begin_in=3600))
ran = api.submit(Submission(script, "ran ü|x.rc-1"))
gone = api.submit(Submission(script, "gone.rc-1", held=True))
api.cancel(gone)
api.cancel("999999")
time.sleep(4)
ours = {{held, later, ran, gone}}
facts = [sorted((j for j in b.queue() if j.id in ours), key=lambda j: j.id) for b in (api, cli)]
assert facts[0] == facts[1], facts
doubt = Doubt(time.time() - 600, tuple(ours))
facts = [sorted((j for j in b.accounting(doubt) if j.id in ours), key=lambda j: j.id) for b in (api, cli)]
# sacct of 24.11 leaves out jobs that wait and never were eligible, whatever states are named; the queue has those.
assert [j for j in facts[0] if j.id in (ran, gone)] == facts[1], facts
assert len(facts[0]) == 4, facts
assert api.identity() == cli.identity()
for job in (held, later):
    api.cancel(job)
assert not said, said
"""
    )
    assert made.returncode == 0, made.stderr


def test_what_the_controller_is_asked_and_how_long_a_submission_takes(person, cluster):
    """The times are printed and judged by nobody: machines are noisy."""
    cluster.run("sdiag", "-r")
    made = person.python(
        f"""{BOTH}
script = here / "speed.slurm"
script.write_text("#!/bin/sh\\n#SBATCH -n1 -t9\\ntrue\\n")
took = {{}}
for backend in (api, cli):
    backend.submit(Submission(script, "warm.rc-1", held=True))
    began = time.perf_counter()
    for number in range(20):
        backend.submit(Submission(script, f"fast.rc-{{number}}", held=True))
    took[backend.name] = (time.perf_counter() - began) / 20
print("ms a submission:", {{name: round(1000 * each, 1) for name, each in took.items()}},
      "sbatch takes", round(took["cli"] / took["pyslurm"], 1), "times as long")
assert not said, said
"""
    )
    assert made.returncode == 0, made.stderr
    print(made.stdout)
    by_type = cluster.run("sdiag").split("by message type", 1)[1].split("by user", 1)[0]
    print(by_type)
    person.run("scancel", "--me")
    asked = dict(re.findall(r"(REQUEST_\w+|MESSAGE_\w+)\s*\(\s*\d+\)\s*count:(\d+)", by_type))
    assert int(asked["REQUEST_SUBMIT_BATCH_JOB"]) == 42
    assert "REQUEST_JOB_INFO" not in asked  # nothing was looked at


def test_a_dead_controller_is_told_and_never_taken_for_an_empty_queue(person, cluster):
    cluster.stop_controller()
    try:
        made = person.python(
            f"""{BOTH}
from reconciler.errors import ClusterUnreachable, SubmissionUncertain
(here / "dead.slurm").write_text("#!/bin/sh\\n#SBATCH -n1 -t9\\n")
try:
    api.queue()
except ClusterUnreachable as error:
    print(error)
try:
    api.submit(Submission(here / "dead.slurm", "dead.rc-1"))
except SubmissionUncertain as error:
    print(error)
"""
        )
    finally:
        cluster.start_controller()
    assert made.stdout.count("Unable to contact") == 2, made.stdout + made.stderr
