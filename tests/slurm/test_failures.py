"""Every class of failure provoked on a real cluster, and what followed; a training resumed over its time limits."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from test_experiments import QUICK, conditions, configure, converge, started, until

SETTINGS = "stagger: 0s\nsettle: 1s\ngrace: 20s\npoll: 10s\nbackoff: 0s\nretry: {NodeFailure: 0, Preempted: 0}\n"
TRACE = "python3 -c \"raise KeyError('lr')\""


def script(person, experiment: Path, run: str, body: str, *directives: str) -> None:
    """A run's training is replaced by a few lines of shell."""
    path = experiment / run / "finetune.slurm"
    asked = "".join(f"#SBATCH {directive}\n" for directive in ("--ntasks=1", "--time=00:10:00", *directives))
    path.write_text(f"#!/bin/bash\n{asked}{body}\n")


def steps(person, experiment: Path) -> dict[str, dict]:
    answer = json.loads(person.reconcile("status", experiment, "--output", "json").stdout)
    return {step["step"]: step for step in answer["steps"]}


def settle(person, experiment: Path, run: str, condition: str = "Failed", seconds: float = 90, select: str = "*") -> dict:
    """Passes until a run's fine-tune stands so; how it stands then."""

    def stands() -> bool:
        person.reconcile("apply", experiment, "--select", select, **QUICK)
        return steps(person, experiment)[f"{run}/finetune"]["condition"] == condition

    until(stands, seconds)
    return steps(person, experiment)[f"{run}/finetune"]


def job_of(person, experiment: Path, run: str) -> str:
    return steps(person, experiment)[f"{run}/finetune"]["job_id"]


def test_each_class_of_failure_is_told_and_followed_as_the_settings_say(person, cluster):
    runs = ["gpu", "host", "quota", "module", "trace", "silent", "nothing", "byme", "byroot", "told", "nolog", "nogpu"]
    experiment = person.new_experiment("classes", *(word for run in runs for word in ("--run", run)))
    configure(experiment, SETTINGS + "stop_after_failures: 100\n")
    script(person, experiment, "gpu", "echo 'torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB' >&2; exit 1")
    script(person, experiment, "host", "echo 'slurmstepd: error: Detected 1 oom_kill event in StepId=1.batch.'; kill -9 $$")
    script(person, experiment, "module", "module load cuda; tune run; exit 127")
    script(person, experiment, "trace", TRACE)
    script(person, experiment, "silent", "exit 3")
    script(person, experiment, "nothing", "exit 0")
    for run in ("byme", "byroot", "told"):
        script(person, experiment, run, "sleep 300")
    # Its log goes where nothing can be made: to a file's inside.
    script(person, experiment, "nolog", "exit 0", "--output=finetune.yaml/%j.out")
    script(person, experiment, "nogpu", "echo 'RuntimeError: No CUDA GPUs are available' >&2; exit 1")
    script(person, experiment, "quota", "echo 'OSError: [Errno 122] Disk quota exceeded' >&2; exit 1")
    person.reconcile("apply", experiment, "--select", "[!q]*/finetune", **QUICK)
    until(
        lambda: all(steps(person, experiment)[f"{run}/finetune"]["condition"] == "Running" for run in ("byme", "byroot", "told"))
    )
    person.run("scancel", job_of(person, experiment, "byme"))
    cluster.run("scancel", job_of(person, experiment, "byroot"))
    # Who did it is in the accounting alone, which may hear of it a little later.
    until(lambda: "CANCELLED by 0" in cluster.run("sacct", "-a", "-X", "-n", "-P", "-o", "State"))
    assert person.reconcile("cancel", experiment, "told/finetune").returncode == 0
    expected = {
        "gpu": "OutOfMemoryGpu", "host": "OutOfMemoryHost", "module": "LaunchFailure", "trace": "UserError", "silent": "Unknown",
        "nothing": "CompletedWithoutEvidence", "nolog": "LaunchFailure", "nogpu": "LaunchFailure",
    }  # fmt: skip
    for run, failure in expected.items():
        assert settle(person, experiment, run)["reason"]["code"] == failure, run
    assert "KeyError: 'lr'" in steps(person, experiment)["trace/finetune"]["reason"]["message"]
    told = {
        run: settle(person, experiment, run, "Held" if run == "told" else "Failed")["reason"]["code"]
        for run in ("byme", "byroot", "told")
    }
    assert told == {"byme": "CancelledByPerson", "byroot": "CancelledByAdmin", "told": "CancelledByPerson"}
    # A full disk: whatever else would be written there waits.
    assert settle(person, experiment, "quota", select="quota/finetune")["reason"]["code"] == "DiskQuota"
    person.reconcile("release", experiment, "trace/finetune")
    person.reconcile("apply", experiment, **QUICK)
    assert steps(person, experiment)["trace/finetune"]["reason"]["code"] == "DiskQuota"
    explained = person.reconcile("explain", experiment, "gpu/finetune").stdout
    assert "OutOfMemoryGpu" in explained
    assert "CUDA out of memory" in explained


def test_a_job_whose_output_directory_vanished_while_it_waited_is_told_by_what_slurm_made_of_it(person):
    """22.05 ends it with 0:53; 24.11 and 26.05 make the directory themselves."""
    experiment = person.new_experiment("vanished", "--run", "gone", "--run", "made")
    configure(experiment, SETTINGS)
    for run in ("gone", "made"):
        script(person, experiment, run, "exit 0", "--output=joblogs/%j.out", "--begin=now+8")
    person.reconcile("apply", experiment, **QUICK)
    (experiment / "gone" / "joblogs").rmdir()  # as a person does who tidies up: it was made before the job was submitted
    gone = settle(person, experiment, "gone")["reason"]
    assert settle(person, experiment, "made")["reason"]["code"] == "CompletedWithoutEvidence"
    attempts = json.loads(person.reconcile("explain", experiment, "gone/finetune", "--output", "json").stdout)["attempts"]
    outcomes = [attempt["outcome"].split()[1:3] for attempt in attempts]
    if (experiment / "gone" / "joblogs").is_dir():
        assert (gone["code"], outcomes[0][0]) == ("CompletedWithoutEvidence", "COMPLETED")
    else:
        assert (gone["code"], outcomes) == ("LaunchFailure", [["FAILED", "0:53"]])
        assert "output file could not be opened" in gone["message"]


def test_a_node_that_goes_down_and_a_job_that_is_requeued_cost_no_retry(person, cluster):
    experiment = person.new_experiment("node", "--run", "r")
    configure(experiment, SETTINGS.replace("NodeFailure: 0", "NodeFailure: 2"))
    person.reconcile("apply", experiment, STANDIN_SECONDS="20")
    until(lambda: conditions(person, experiment)["r/finetune"] == "Running")
    name = cluster.run("squeue", "-h", "-o", "%N", "-j", job_of(person, experiment, "r")).strip()
    cluster.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=test")
    try:
        until(lambda: conditions(person, experiment)["r/finetune"] != "Running")
    finally:
        cluster.run("scontrol", "update", f"NodeName={name}", "State=RESUME")
    # Until its slurmd has reported, sbatch refuses: "Requested node configuration is not available".
    until(lambda: "idle" in cluster.run("sinfo", "-h", "-o", "%T"))
    converge(person, experiment)
    explained = json.loads(person.reconcile("explain", experiment, "r/finetune", "--output", "json").stdout)
    print(explained["attempts"])
    assert [attempt["outcome"].split()[1] for attempt in explained["attempts"]] == ["NODE_FAIL", "COMPLETED"]
    assert conditions(person, experiment)["r/finetune"] == "Done"


@pytest.mark.skipif(
    os.environ.get("RECONCILE_TEST_SLURM_ROOT", "") != "", reason="it takes minutes: on this machine's own Slurm alone"
)
def test_a_training_resumed_over_three_time_limits_ends_whole(person, cluster):
    """Slurm's limits are whole minutes, and enforced up to half a minute late: one whole epoch each, and the beginning of another."""
    experiment = person.new_experiment("limits", "--run", "r", "--epochs", 4)
    configure(experiment, SETTINGS + "resume: true\n")
    path = experiment / "r" / "finetune.slurm"
    path.write_text(path.read_text().replace("--time=00:10:00", "--time=00:01:00"))
    end = time.monotonic() + 500
    while conditions(person, experiment)["r/finetune"] != "Done":
        person.reconcile("apply", experiment, "--select", "r/finetune", STANDIN_SECONDS="220")
        assert time.monotonic() < end, person.reconcile("explain", experiment, "r/finetune").stdout
        time.sleep(3)
    explained = json.loads(person.reconcile("explain", experiment, "r/finetune", "--output", "json").stdout)
    print(explained["attempts"])
    assert len(explained["attempts"]) >= 4
    output = experiment.parent / "ck-outputs" / experiment.name / "ck-out-r"
    whole = [output / f"epoch_{number}" / "adapter_model.pt" for number in range(4)]
    assert sorted(path.stat().st_mtime for path in whole) == [path.stat().st_mtime for path in whole]
    assert started(experiment)["r/finetune"] == len(explained["attempts"])


def test_an_experiment_that_is_moved_or_copied_asks_whose_it_is(person):
    experiment = person.new_experiment("original")
    configure(experiment, SETTINGS)
    converge(person, experiment)
    copy = experiment.parent / "copy"
    shutil.copytree(experiment, copy)
    for path in [copy, *copy.rglob("*")]:
        shutil.chown(path, experiment.owner(), experiment.group())
    refused = person.reconcile("apply", copy)
    assert refused.returncode == 2
    assert "--moved" in refused.stderr
    assert "--copied" in refused.stderr
    moved = experiment.with_name("moved")
    experiment.rename(moved)
    assert person.reconcile("apply", moved).returncode == 2
    assert person.reconcile("accept", moved, "--moved").returncode == 0
    before = started(moved)
    assert person.reconcile("diff", moved).returncode in (0, 1, 4)
    person.reconcile("apply", moved)
    assert started(moved) == before
    # The copy begins without memory, and finds in the directories that it shares with the original what that one made.
    accepted = person.reconcile("adopt", copy, "--copied", "--yes")
    assert accepted.returncode == 0, accepted.stderr
    person.reconcile("apply", copy)
    assert started(copy) == before
    assert set(conditions(person, copy).values()) == {"Done"}
