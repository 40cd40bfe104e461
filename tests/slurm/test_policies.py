"""What the settings ask for after a failure, and a person's word, on a real cluster: what ran is told by the jobs and the files."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from test_experiments import QUICK, SETTINGS, conditions, configure, converge, job_of, started, until

from test_failures import script, settle, steps

MEMORY_GROUP = Path("/sys/fs/cgroup/memory")  # of the first version of control groups: all that the test below needs
HUNGRY = """\
python3 - <<'end' || exit
import time
hoard = bytearray(300 << 20)
hoard[::4096] = bytes([1]) * len(hoard[::4096])
time.sleep(4)
end
"""


def outcomes(person, experiment: Path, step: str) -> list[str]:
    answer = json.loads(person.reconcile("explain", experiment, step, "--output", "json").stdout)
    return [attempt["outcome"] for attempt in answer["attempts"]]


def asked(person, experiment: Path, step: str) -> str:
    return person.run("sacct", "-X", "-n", "-P", "-o", "ReqMem", "-j", job_of(person, experiment, step)).stdout.strip()


def test_a_preempted_training_costs_no_retry_and_one_that_slurm_requeues_is_the_same_attempt(person, cluster):
    experiment = person.new_experiment("preempted", "--run", "again", "--run", "back")
    configure(experiment)
    path = experiment / "back" / "finetune.slurm"
    path.write_text(path.read_text().replace("#SBATCH --job-name", "#SBATCH --requeue\n#SBATCH --job-name", 1))
    host = cluster.run("sinfo", "-h", "-o", "%n").split()[0]
    urgent = f"PartitionName=urgent Nodes={host} PriorityTier=10"
    with cluster.configured("PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE", urgent):
        person.reconcile("apply", experiment, "--select", "*/finetune", STANDIN_SECONDS="20")
        until(lambda: list(conditions(person, experiment).values()).count("Running") == 2)
        back = job_of(person, experiment, "back/finetune")
        words = ("--partition=urgent", "--ntasks=64", "--output=/dev/null", "--chdir=/")
        cluster.run("sbatch", *words, "--wrap=sleep 3")
        until(lambda: conditions(person, experiment)["back/finetune"] == "Queued")
        person.reconcile("apply", experiment, "--select", "*/finetune", **QUICK)
        cluster.run("scontrol", "update", f"JobId={back}", "StartTime=now")  # or Slurm lets it wait for two minutes
        converge(person, experiment)
        assert job_of(person, experiment, "back/finetune") == back
    assert [told.split()[1] for told in outcomes(person, experiment, "again/finetune")] == ["PREEMPTED", "COMPLETED"]
    assert [told.split()[1] for told in outcomes(person, experiment, "back/finetune")] == ["COMPLETED"]
    assert started(experiment)["again/finetune"] == started(experiment)["back/finetune"] == 2
    assert set(conditions(person, experiment).values()) == {"Done"}


def test_a_finished_training_that_slurm_starts_again_is_no_result_before_evidence_or_a_person_says_so(person, cluster):
    """The second start of ``torn`` leaves its weights half written, that of ``mixed`` touches nothing; both break off. ``later``
    is there for the cluster to be asked: it is not where every step is done."""
    experiment = person.new_experiment("again", "--run", "torn", "--run", "mixed", "--run", "later")
    configure(experiment)
    weights = experiment.parent / "ck-outputs" / experiment.name / "ck-out-torn" / "epoch_0"
    second = {"torn": f"truncate -s 1000 {weights}/*.safetensors; sleep 30; exit 1", "mixed": "sleep 30; exit 1"}
    for run in ("torn", "mixed", "later"):
        path = experiment / run / "finetune.slurm"
        text = path.read_text().replace("#SBATCH --job-name", "#SBATCH --requeue\n#SBATCH --job-name", 1)
        head, found, trained = text.partition("\ntune run")
        is_second = f"[ $(grep -c '^{run}/finetune' ../../jobs.log) = 2 ]"
        body = f"if {is_second}; then {second[run]}; fi" if run in second else "export STANDIN_SECONDS=600"
        path.write_text(f"{head}\n{body}{found}{trained}")
    trainings = ("torn/finetune", "mixed/finetune")
    evaluations = ("torn/eval/capitalization_epoch0", "mixed/eval/capitalization_epoch0")

    def passes_until(keys: tuple[str, ...], *wanted: str) -> None:
        def is_so() -> bool:
            person.reconcile("apply", experiment, **QUICK)
            now = conditions(person, experiment)
            return [now[key] for key in keys] == list(wanted)

        until(is_so, 120)

    with cluster.configured("MinJobAge=300"):  # what is gone from the queue is not started again
        passes_until(trainings + evaluations, *["Done"] * 4)
        person.reconcile("apply", experiment, **QUICK)  # what status found done is in writing by now
        for step in trainings:
            job = job_of(person, experiment, step)
            cluster.run("scontrol", "requeue", job)
            cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")
        passes_until(trainings, "Running", "Running")
        passes_until(trainings, "Failed", "Held")
        assert steps(person, experiment)["mixed/finetune"]["reason"]["code"] == "WrittenOver"
        ran = started(experiment)
        assert [ran[step] for step in trainings + evaluations] == [2, 2, 1, 1]
        assert person.reconcile("accept", experiment, "mixed/finetune", "--yes").returncode == 0
        assert person.reconcile("release", experiment, "torn/finetune").returncode == 0
        passes_until(trainings, "Done", "Done")
        ran = started(experiment)
        assert [ran[step] for step in trainings + evaluations] == [3, 2, 1, 1]
        for step in evaluations:
            assert "trained anew since" in steps(person, experiment)[step]["reason"]["message"]
    person.run("scancel", "--me")


@pytest.mark.skipif(
    os.environ.get("RECONCILE_TEST_SLURM_ROOT", "") != "" or not os.access(MEMORY_GROUP / "cgroup.procs", os.W_OK),
    reason="needs this machine's own Slurm, and control groups of the first version that it may make",
)
def test_a_job_that_the_kernel_kills_for_its_memory_gets_more_up_to_the_cap(person, cluster):
    groups = "CgroupAutomount=yes\nCgroupPlugin=cgroup/v1\nConstrainRAMSpace=yes\nAllowedRAMSpace=100\n"
    lines = ("TaskPlugin=task/cgroup", "ProctrackType=proctrack/cgroup", "SelectTypeParameters=CR_CPU_Memory")
    with cluster.configured(*lines, cgroup=groups):
        is_given_more(person, "kernel", "OUT_OF_MEMORY")


def test_a_job_that_slurm_ends_for_its_memory_gets_more_up_to_the_cap(person, cluster):
    gathered = ("JobAcctGatherType=jobacct_gather/linux", "JobAcctGatherFrequency=1", "JobAcctGatherParams=OverMemoryKill")
    with cluster.configured(*gathered, "SelectTypeParameters=CR_CPU_Memory"):
        is_given_more(person, "slurmd", "")


def is_given_more(person, name: str, state: str) -> None:
    """A training of 300 MB that asks for 100 MB: held as it is, run with 400 MB once the settings say so."""
    experiment = person.new_experiment(f"memory-{name}", "--run", "r")
    configure(experiment, SETTINGS)
    path = experiment / "r" / "finetune.slurm"
    path.write_text(path.read_text().replace("#SBATCH --job-name", "#SBATCH --mem=100M\n#SBATCH --job-name", 1))
    head, found, trained = path.read_text().partition("\ntune run")
    path.write_text(f"{head}\n{HUNGRY}{found}{trained}")
    held = settle(person, experiment, "r")
    assert held["reason"]["code"] == "OutOfMemoryHost", held
    assert "--mem=100M was not enough" in held["reason"]["message"]
    assert state in outcomes(person, experiment, "r/finetune")[0]
    configure(experiment, SETTINGS + "mem: {factor: 4, max: 1G}\n")
    previewed = json.loads(person.reconcile("diff", experiment, "--output", "json").stdout)
    assert next(action["changes"] for action in previewed["actions"] if action["step"] == "r/finetune") == ["--mem=400M"]
    converge(person, experiment, passes=90)
    assert asked(person, experiment, "r/finetune").rstrip("nc") == "400M"
    assert len(outcomes(person, experiment, "r/finetune")) == 2
    assert conditions(person, experiment)["r/finetune"] == "Done"


def test_a_smaller_batch_is_previewed_made_recorded_and_taken_back_by_rerun(person):
    experiment = person.new_experiment("edited", "--run", "r")
    configure(experiment, SETTINGS + "shrink_batch: true\n")
    config, path = experiment / "r" / "finetune.yaml", experiment / "r" / "finetune.slurm"
    head, found, trained = path.read_text().partition("\ntune run")
    line = "echo 'torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB' >&2; exit 1"
    path.write_text(f"{head}\nif grep -q '^batch_size: 4' finetune.yaml; then {line}; fi{found}{trained}")
    before = config.read_text()
    assert person.reconcile("apply", experiment, **QUICK).returncode == 0
    until(lambda: conditions(person, experiment)["r/finetune"] == "Verifying")
    assert person.reconcile("apply", experiment, **QUICK).returncode == 0  # writes down that it ended; settle counts from here
    until(lambda: changes(person, experiment) != [])
    assert config.read_text() == before
    assert changes(person, experiment) == [
        "finetune.yaml: batch_size 4 → 2", "finetune.yaml: gradient_accumulation_steps 1 → 2",
    ]  # fmt: skip
    converge(person, experiment)
    edited = before.replace("batch_size: 4", "batch_size: 2").replace("accumulation_steps: 1", "accumulation_steps: 2")
    assert config.read_text() == edited
    assert len(outcomes(person, experiment, "r/finetune")) == 2
    assert "batch_size 4 → 2" in (experiment / "experiment_summary.md").read_text()
    originals = [saved.read_text() for saved in (experiment / ".reconcile/originals").rglob("*") if saved.is_file()]
    assert before in originals
    assert person.reconcile("rerun", experiment, "r/finetune", "--yes").returncode == 0
    person.reconcile("apply", experiment, **QUICK)
    assert config.read_text() == before


def preview(person, experiment: Path) -> dict[str, dict]:
    answer = json.loads(person.reconcile("diff", experiment, "--output", "json").stdout)
    return {action["step"]: action for action in answer["actions"]}


def changes(person, experiment: Path) -> list[str]:
    return preview(person, experiment)["r/finetune"].get("changes", [])


def test_a_wave_of_failures_is_stopped_at_its_third_and_goes_on_when_it_is_released(person):
    experiment = person.new_experiment("wave", "--runs", 8)
    configure(experiment, SETTINGS + "max_in_flight: 1\n")
    runs = sorted(path.parent.name for path in experiment.glob("*/finetune.slurm"))
    whole = {run: (experiment / run / "finetune.slurm").read_text() for run in runs}
    for run in runs:
        script(person, experiment, run, 'echo "$SLURM_JOB_NAME" >> ../../waves; exit 3')
    end = time.monotonic() + 120
    while list(conditions(person, experiment).values()).count("Failed") < 3:
        person.reconcile("apply", experiment, "--select", "*/finetune", **QUICK)
        assert time.monotonic() < end
        time.sleep(0.5)
    for _ in range(3):
        person.reconcile("apply", experiment, "--select", "*/finetune", **QUICK)
        time.sleep(1)
    assert len((experiment.parent / "waves").read_text().splitlines()) == 3
    stands = steps(person, experiment)
    assert {stands[f"{run}/finetune"]["reason"]["code"] for run in runs} == {"Unknown", "ManyFailures"}
    assert person.reconcile("diff", experiment).returncode == 4
    for run in runs:
        (experiment / run / "finetune.slurm").write_text(whole[run])
    configure(experiment, SETTINGS)
    assert person.reconcile("release", experiment, "--yes").returncode == 0
    assert person.reconcile("release", experiment, "*/finetune", "--yes").returncode == 0
    converge(person, experiment)
    assert set(conditions(person, experiment).values()) == {"Done"}


def test_a_pause_holds_what_waits_lets_run_what_runs_and_ends_by_itself(person, cluster):
    experiment = person.new_experiment("paused", "--runs", 3)
    configure(experiment)
    runs = sorted(path.parent.name for path in experiment.glob("*/finetune.slurm"))
    person.reconcile("apply", experiment, "--select", f"{runs[0]}/finetune", STANDIN_SECONDS="6")
    until(lambda: conditions(person, experiment)[f"{runs[0]}/finetune"] == "Running")
    cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        person.reconcile("apply", experiment, "--select", f"{runs[1]}/finetune", **QUICK)
        waiting = job_of(person, experiment, f"{runs[1]}/finetune")
        began = time.time()
        assert person.reconcile("pause", experiment, "--until", "+20s", "--reason", "deadline", "--yes").returncode == 0
        assert "JobHeldUser" in person.run("squeue", "-h", "-o", "%r", "-j", waiting).stdout
    finally:
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
    for _ in range(3):
        person.reconcile("apply", experiment, **QUICK)
        time.sleep(1)
    until(lambda: conditions(person, experiment)[f"{runs[0]}/finetune"] == "Done")
    if time.time() < began + 18:
        assert set(started(experiment)) == {f"{runs[0]}/finetune"}
        assert "deadline" in person.reconcile("status", experiment).stdout
    time.sleep(max(0.0, began + 21 - time.time()))
    converge(person, experiment)
    assert set(started(experiment).values()) == {1}
    assert set(conditions(person, experiment).values()) == {"Done"}
    assert job_of(person, experiment, f"{runs[1]}/finetune") == waiting
