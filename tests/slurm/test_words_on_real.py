"""What a person's word does to a real queue and to real files; what ran is counted from what the jobs themselves wrote."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
from test_experiments import QUICK, SETTINGS, conditions, configure, converge, job_of, started, until


@contextmanager
def nothing_starts(cluster):
    """What is submitted stays in the queue."""
    cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        yield
    finally:
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")


@pytest.fixture
def say(person):
    """A word that must be taken."""

    def said(*words: object) -> str:
        answer = person.reconcile(*words)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout + answer.stderr

    return said


def reason(person, job: str) -> str:
    return person.run("squeue", "-h", "-o", "%r", "-j", job).stdout.strip()


def test_words_on_what_waits_in_the_queue_are_seen_there_and_undone_by_their_opposites(person, cluster, say):
    experiment = person.new_experiment("waiting", "--run", "kept", "--run", "back")
    configure(experiment)
    with nothing_starts(cluster):
        person.reconcile("apply", experiment, "--select", "*/finetune", **QUICK)
        jobs = {run: job_of(person, experiment, f"{run}/finetune") for run in ("kept", "back")}
        say("hold", experiment, "kept", "--reason", "not yet")
        assert reason(person, jobs["kept"]) == "JobHeldUser"
        assert "not yet" in say("status", experiment)
        say("release", experiment, "kept")
        assert reason(person, jobs["kept"]) != "JobHeldUser"
        script = experiment / "kept" / "finetune.slurm"
        script.write_text(script.read_text().replace("--time=00:10:00", "--time=00:09:00"))
        assert "asks for other resources" in say("status", experiment)
        say("accept", experiment, "kept/finetune")
        assert "asks for other resources" not in say("status", experiment)
        say("cancel", experiment, "back")
        until(lambda: not reason(person, jobs["back"]))
        say("release", experiment, "back")
    converge(person, experiment)
    assert set(conditions(person, experiment).values()) == {"Done"}
    assert set(started(experiment).values()) == {1}
    assert job_of(person, experiment, "kept/finetune") == jobs["kept"]
    assert job_of(person, experiment, "back/finetune") != jobs["back"]


def test_a_run_that_left_the_document_is_shown_cancelled_by_name_alone_and_held_when_it_comes_back(person, say):
    experiment = person.new_experiment("orphan", "--run", "stays", "--run", "goes")
    configure(experiment)
    person.reconcile("apply", experiment, "--select", "*/finetune", STANDIN_SECONDS="60")
    until(lambda: list(conditions(person, experiment).values()).count("Running") == 2)
    job = job_of(person, experiment, "goes/finetune")
    document = experiment / "experiment_summary.md"
    whole = document.read_text()
    document.write_text("".join(line for line in whole.splitlines(keepends=True) if not line.startswith("| goes ")))
    person.reconcile("apply", experiment, "--select", "*/finetune")
    assert job in say("status", experiment)
    assert reason(person, job) == "None"
    assert job in say("apply", experiment, "--select", "*/finetune", "--prune", "goes")
    until(lambda: not reason(person, job))
    document.write_text(whole)
    before = started(experiment)["goes/finetune"]

    def is_held() -> bool:
        person.reconcile("apply", experiment, "--select", "*/finetune")
        return conditions(person, experiment)["goes/finetune"] == "Held"

    until(is_held)  # once what it may have left was looked for twice
    assert started(experiment)["goes/finetune"] == before
    say("cancel", experiment, "stays")


def test_what_is_done_is_renamed_evaluated_again_where_its_task_changed_and_freed_without_training_again(person, say):
    experiment = person.new_experiment("finished", "--run", "r")
    configure(experiment, SETTINGS)
    converge(person, experiment)
    say("rename", experiment, "r", "renamed", "--yes")
    assert set(conditions(person, experiment).values()) == {"Done"}
    assert person.reconcile("diff", experiment).returncode == 0
    task = experiment.parent / "tasks" / "cap_task.py"
    task.write_text(task.read_text() + "# another version\n")
    assert "rerun --stale" in person.reconcile("diff", experiment).stdout
    say("rerun", experiment, "--stale", "--yes")
    converge(person, experiment)
    evaluation = next(step for step in started(experiment) if "/eval/capitalization_epoch0" in step)
    assert {step: count for step, count in started(experiment).items() if count > 1}.keys() >= {evaluation}
    weights = list(_weights(experiment))
    assert weights
    assert "gave back" in say("free", experiment, "renamed/finetune", "--yes")
    assert not any(path.exists() for path in weights)
    before = started(experiment)
    for _ in range(2):
        person.reconcile("apply", experiment, **QUICK)
    assert started(experiment) == before
    assert person.reconcile("diff", experiment).returncode == 0


def _weights(experiment: Path):
    return (experiment.parent / "ck-outputs" / experiment.name / "ck-out-r").glob("epoch_*/*.safetensors")
