"""Whole experiments on a real cluster, as ordinary users. What ran is counted from what the jobs themselves wrote."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

SETTINGS = "stagger: 0s\nsettle: 3s\ngrace: 20s\npoll: 10s\nbackoff: 2s\n"
QUICK = {"STANDIN_SECONDS": "0.5"}


def started(experiment: Path) -> Counter[str]:
    """How often each step's job really started, by the jobs' own account."""
    log = experiment.parent / "jobs.log"
    return Counter(log.read_text().split("\n")[:-1]) if log.exists() else Counter()


def configure(experiment: Path, text: str = SETTINGS) -> None:
    (experiment / "reconcile.yaml").write_text(text)
    shutil.chown(experiment / "reconcile.yaml", experiment.owner(), experiment.group())


def until(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.3)


def converge(person, experiment: Path, passes: int = 60, **environment: str) -> None:
    """Passes, as cron would run them, until diff says that nothing is left."""
    for _ in range(passes):
        applied = person.reconcile("apply", experiment, **{**QUICK, **environment})
        assert applied.returncode in (0, 4), applied.stderr + applied.stdout
        if person.reconcile("diff", experiment).returncode in (0, 4):
            return
        time.sleep(1)
    raise AssertionError(person.reconcile("status", experiment).stdout)


def conditions(person, experiment: Path) -> dict[str, str]:
    answer = json.loads(person.reconcile("status", experiment, "--output", "json").stdout)
    return {step["step"]: step["condition"] for step in answer["steps"]}


def job_of(person, experiment: Path, step: str) -> str:
    answer = json.loads(person.reconcile("status", experiment, "--output", "json").stdout)
    return next(s["job_id"] for s in answer["steps"] if s["step"] == step)


def test_thirty_runs_of_two_epochs_in_the_odd_form_converge_with_one_job_a_step(person):
    experiment = person.new_experiment("thirty", "--runs", 30, "--epochs", 2, "--odd")
    configure(experiment)
    document = experiment / "experiment_summary.md"
    before = document.read_text()
    converge(person, experiment)
    assert person.reconcile("diff", experiment).returncode == 0
    ran = started(experiment)
    assert set(ran.values()) == {1}
    assert len(ran) == len(conditions(person, experiment))
    after = document.read_text()
    assert after.count("COMPLETED") >= len(ran)
    kept = [line for line in before.splitlines() if "COMPLETED" not in line and "PENDING" not in line]
    assert all(line in after.splitlines() for line in kept)


def requests(cluster, person, command: Callable[[], object]) -> int:
    """How many requests of this person's the controller counted while a command ran (sdiag)."""
    cluster.run("sdiag", "-r")
    command()
    by_user = cluster.run("sdiag").split("Remote Procedure Call statistics by user", 1)[1].split("Pending RPC", 1)[0]
    found = re.search(rf"{person.name}\s*\(\s*\d+\)\s*count:(\d+)", by_user)
    return int(found[1]) if found else 0


def test_a_pass_with_nothing_to_do_asks_the_controller_almost_nothing(person, cluster):
    experiment = person.new_experiment("idle")
    configure(experiment)
    person.reconcile("apply", experiment, STANDIN_SECONDS="30")
    until(lambda: sum(started(experiment).values()) == 5)
    in_flight = requests(cluster, person, lambda: person.reconcile("apply", experiment))
    assert set(conditions(person, experiment).values()) == {"Running", "Waiting"}
    converge(person, experiment)
    done = requests(cluster, person, lambda: person.reconcile("apply", experiment))
    print(f"requests of a pass: {in_flight} with five jobs in flight, {done} with everything done")
    assert in_flight <= 5  # on 22.05 a squeue is three small requests (JOB_USER_INFO, PARTITION_INFO, FED_INFO)
    assert done == 0


def test_a_finished_fine_tune_is_rerun_beside_what_it_left_and_its_evaluation_told_to_follow(person):
    experiment = person.new_experiment("rerun", "--runs", 2)
    configure(experiment)
    converge(person, experiment)
    step = next(key for key in conditions(person, experiment) if key.endswith("/finetune"))
    assert person.reconcile("rerun", experiment, step, "--with-dependents", "--yes").returncode == 0
    converge(person, experiment)
    again = {key for key, times in started(experiment).items() if times == 2}
    assert again == {key for key in started(experiment) if key.split("/")[0] == step.split("/")[0]}
    assert max(started(experiment).values()) == 2
    assert len(list((experiment.parent / "ck-outputs").rglob("moved-aside-*/*/epoch_0"))) == 1
    assert set(conditions(person, experiment).values()) == {"Done"}


def test_a_failing_run_is_told_and_does_not_stop_the_others(person):
    experiment = person.new_experiment("failing")
    configure(experiment)
    converge(person, experiment, STANDIN_FAIL="r8_lr1e-5")
    stands = conditions(person, experiment)
    assert stands["r8_lr1e-5/finetune"] == "Failed"
    assert stands["r8_lr1e-5/eval/capitalization_epoch0"] == "Waiting"
    assert sorted(stands.values()).count("Done") == 7
    assert max(started(experiment).values()) == 1
    assert person.reconcile("diff", experiment).returncode == 4


def test_names_of_any_kind_work(person):
    names = ["mit leer zeichen", "lr=1e-5", "a+b", "größe_ü"]
    options = [word for name in names for word in ("--run", name)]
    experiment = person.new_experiment("names", *options)
    configure(experiment)
    converge(person, experiment)
    assert set(started(experiment).values()) == {1}
    assert set(conditions(person, experiment).values()) == {"Done"}


def test_a_pass_killed_at_any_moment_never_leads_to_a_second_job(person):
    experiment = person.new_experiment("killed", "--runs", 8)
    configure(experiment)
    for delay in (0.3, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2):
        reconcile = [str(person.install / "venv/bin/reconcile"), "apply", str(experiment)]
        person.run("timeout", "--signal=KILL", str(delay), *reconcile, RECONCILE_BACKEND=person.backend, STANDIN_SECONDS="0.5")
        time.sleep(0.2)
    time.sleep(1)
    converge(person, experiment, passes=90)
    assert set(started(experiment).values()) == {1}


def test_accounting_down_in_the_middle_delays_and_loses_nothing(person, cluster):
    experiment = person.new_experiment("dbd")
    configure(experiment)
    person.reconcile("apply", experiment, **QUICK)
    cluster.stop_accounting()
    try:
        for _ in range(4):
            assert person.reconcile("apply", experiment, **QUICK).returncode in (0, 4)
            time.sleep(1)
    finally:
        cluster.start_accounting()
    converge(person, experiment)
    assert set(started(experiment).values()) == {1}
    assert set(conditions(person, experiment).values()) == {"Done"}


def test_a_dead_controller_is_exit_3_and_its_return_is_enough(person, cluster):
    experiment = person.new_experiment("ctld")
    configure(experiment)
    person.reconcile("apply", experiment, **QUICK)
    document = (experiment / "experiment_summary.md").read_bytes()
    cluster.stop_controller()
    try:
        for command in ("diff", "apply"):
            said = person.reconcile(command, experiment)
            assert said.returncode == 3, said.stdout
            assert "nothing to do" not in said.stdout
        assert (experiment / "experiment_summary.md").read_bytes() == document
    finally:
        cluster.start_controller()
    converge(person, experiment)
    assert set(started(experiment).values()) == {1}


def test_a_job_that_came_and_went_between_two_passes_is_found_in_the_accounting(person, cluster):
    experiment = person.new_experiment("purged")
    configure(experiment)
    person.reconcile("apply", experiment, **QUICK, STANDIN_FAIL="r8_lr1e-5")
    until(lambda: sum(started(experiment).values()) == 5)
    until(lambda: person.run("squeue", "--me", "-h", "-t", "all").stdout == "", 120)
    converge(person, experiment)
    assert conditions(person, experiment)["r8_lr1e-5/finetune"] == "Failed"
    assert max(started(experiment).values()) == 1


def test_a_job_held_and_cancelled_while_its_id_was_unknown_stays_cancelled(person):
    """The job waits for its begin time, the ledger loses its id, a person holds and then cancels it."""
    experiment = person.new_experiment("unknown-id")
    configure(experiment, SETTINGS.replace("stagger: 0s", "stagger: 1h"))
    person.reconcile("apply", experiment, **QUICK)
    ledger = experiment / ".reconcile/ledger.jsonl"
    events = [json.loads(line) for line in ledger.read_text().splitlines()]
    lost = [e for e in events if e["event"] == "submitted"][-1]
    kept = [e for e in events if e is not lost and e["event"] not in ("stands", "writing")]
    ledger.write_text("".join(json.dumps(e) + "\n" for e in kept))
    person.run("scontrol", "hold", lost["job"])
    assert conditions(person, experiment)[lost["step"]] in ("Held", "Queued")
    person.run("scancel", lost["job"])
    until(lambda: person.run("squeue", "--me", "-h", "-t", "all", "-j", lost["job"]).stdout == "", 120)
    for _ in range(4):
        person.reconcile("apply", experiment, **QUICK)
        time.sleep(2)
    assert conditions(person, experiment)[lost["step"]] == "Failed"
    assert started(experiment)[lost["step"]] == 0
    live = person.run("squeue", "--me", "-h", "-o", "%j").stdout.split()
    assert len(live) == len(set(live))
    person.run("scancel", "--me")


def test_a_requeued_job_is_the_same_attempt(person, cluster):
    experiment = person.new_experiment("requeued", "--runs", 1)
    configure(experiment)
    for script in experiment.glob("*/finetune.slurm"):
        script.write_text(script.read_text().replace("#SBATCH --job-name", "#SBATCH --requeue\n#SBATCH --job-name", 1))
    person.reconcile("apply", experiment, STANDIN_SECONDS="6")
    step = next(key for key in conditions(person, experiment) if key.endswith("/finetune"))
    until(lambda: started(experiment)[step] == 1)
    job = job_of(person, experiment, step)
    cluster.run("scontrol", "requeue", job)
    for _ in range(3):
        person.reconcile("apply", experiment, **QUICK)
        time.sleep(1)
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # or Slurm lets it wait for two minutes
    until(lambda: started(experiment)[step] == 2, 200)
    assert job_of(person, experiment, step) == job
    person.run("scancel", "--me")


def test_a_colleague_is_told_whose_experiment_it_is_and_submits_nothing(person, colleague):
    experiment = person.new_experiment("shared")
    configure(experiment)
    person.reconcile("apply", experiment, **QUICK)
    subprocess.run(["chmod", "-R", "a+rwX", str(experiment)], check=True)
    said = colleague.reconcile("apply", experiment)
    assert said.returncode == 2
    assert person.name in said.stderr
    assert colleague.run("squeue", "--me", "-h").stdout == ""
    converge(person, experiment)
    assert set(started(experiment).values()) == {1}


def test_a_scratch_directory_that_vanishes_makes_steps_wait_and_comes_back(person):
    experiment = person.new_experiment("vanishing")
    configure(experiment)
    outputs = experiment.parent / "ck-outputs"
    person.reconcile("apply", experiment, **QUICK)
    until(lambda: outputs.exists() and any(outputs.iterdir()))
    person.reconcile("apply", experiment, **QUICK)  # a pass that sees the directory
    until(lambda: sum(started(experiment).values()) >= 5)
    until(lambda: (queue := person.run("squeue", "--me", "-h")).returncode == 0 and queue.stdout == "", 60)
    root = next(outputs.iterdir())
    away = root.with_name("unmounted")
    os.rename(root, away)  # noqa: PTH104 - as an unmount, in one step
    ran = started(experiment)
    for _ in range(3):
        person.reconcile("apply", experiment, **QUICK)
        time.sleep(2)
    assert "Failed" not in conditions(person, experiment).values(), person.reconcile("status", experiment).stdout
    assert started(experiment) == ran  # no evaluation of a checkpoint that nobody can see now
    os.rename(away, root)  # noqa: PTH104
    converge(person, experiment)
    assert set(started(experiment).values()) == {1}


def test_a_cluster_without_accounting_converges_too(bare_person):
    experiment = bare_person.new_experiment("bare")
    configure(experiment)
    converge(bare_person, experiment)
    assert set(started(experiment).values()) == {1}
    assert set(conditions(bare_person, experiment).values()) == {"Done"}


def test_on_a_cluster_without_accounting_a_job_that_ended_unseen_is_left_to_a_person(bare_person):
    experiment = bare_person.new_experiment("bare-failing")
    configure(experiment)
    bare_person.reconcile("apply", experiment, **QUICK, STANDIN_FAIL="r8_lr1e-5")
    until(lambda: sum(started(experiment).values()) == 5)
    until(lambda: bare_person.run("squeue", "--me", "-h", "-t", "all").stdout == "", 120)
    converge(bare_person, experiment)
    assert conditions(bare_person, experiment)["r8_lr1e-5/finetune"] == "Failed"
    assert max(started(experiment).values()) == 1
