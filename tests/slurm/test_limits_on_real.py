"""Limits of a real site: each is waited out with its reason, uses nothing up, and leaves one job a step."""

from __future__ import annotations

import json
import time
from pathlib import Path

from test_experiments import QUICK, SETTINGS, configure, converge, started, until


def reasons(person, experiment: Path) -> dict[str, tuple[str, str]]:
    answer = json.loads(person.reconcile("status", experiment, "--output", "json").stdout)
    return {step["step"]: (step["reason"]["code"], step["reason"]["message"]) for step in answer["steps"]}


def applied(person, experiment: Path, **environment: str) -> list[tuple[str, str]]:
    done = person.reconcile("apply", experiment, "--output", "json", **{**QUICK, **environment})
    assert done.returncode in (0, 4), done.stderr
    answer = json.loads(done.stdout)
    return [(action["reason"]["code"], action["reason"]["message"]) for action in answer["actions"]]


def retried(experiment: Path) -> set[str]:
    events = [json.loads(line) for line in (experiment / ".reconcile/ledger.jsonl").read_text().splitlines()]
    return {event["step"] for event in events if event["event"] in ("refused", "lost")}


def test_an_inactive_partition_is_waited_out(person, cluster):
    experiment = person.new_experiment("inactive")
    configure(experiment)
    cluster.run("scontrol", "update", "PartitionName=main", "State=INACTIVE")
    try:
        for _ in range(4):  # more often than a refusal is tried
            told = [message for code, message in applied(person, experiment) if code == "LimitReached"]
            assert told
            assert all("inactive or drain" in message for message in told)
    finally:
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
    converge(person, experiment)
    assert set(started(experiment).values()) == {1}
    assert retried(experiment) == set()


def test_a_pending_job_is_told_with_why_it_waits(person, cluster):
    experiment = person.new_experiment("told", "--runs", 1)
    configure(experiment)
    host = cluster.run("sinfo", "-h", "-o", "%n").split()[0]
    cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        person.reconcile("apply", experiment, **QUICK)
        until(lambda: any("its partition is down" in message for _, message in reasons(person, experiment).values()))
    finally:
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
    converge(person, experiment)
    again = person.new_experiment("maintained", "--runs", 1)
    configure(again)
    facts = ("StartTime=now", "Duration=60", "Flags=maint,ignore_jobs", f"Nodes={host}", "Users=root")
    cluster.run("scontrol", "create", "reservation", "ReservationName=maint", *facts)
    try:
        person.reconcile("apply", again, **QUICK)
        until(lambda: any("reserved for maintenance" in message for _, message in reasons(person, again).values()))
    finally:
        cluster.run("scontrol", "delete", "ReservationName=maint")
    converge(person, again)
    assert set(started(again).values()) == {1}


def test_a_job_that_asks_for_more_than_the_partition_gives_needs_a_person(person, cluster):
    experiment = person.new_experiment("too-long", "--runs", 1)
    configure(experiment)
    cluster.run("scontrol", "update", "PartitionName=main", "MaxTime=1")
    try:
        person.reconcile("apply", experiment, **QUICK)
        # Only once the scheduler has looked at every one of its jobs: until then one of them is in the queue as any other.
        until(lambda: person.reconcile("diff", experiment).returncode == 4)
        assert "CannotStart" in {code for code, _ in reasons(person, experiment).values()}
    finally:
        cluster.run("scontrol", "update", "PartitionName=main", "MaxTime=INFINITE")
    # The queue tells the old reason until the scheduler has looked again.
    until(lambda: "CannotStart" not in {code for code, _ in reasons(person, experiment).values()})
    converge(person, experiment)
    assert set(started(experiment).values()) == {1}


def test_a_controller_that_takes_no_more_jobs_is_asked_once_a_pass_and_waited_out(person, cluster):
    experiment = person.new_experiment("full")
    configure(experiment)
    with cluster.configured("MaxJobCount=4"):
        began = time.monotonic()
        codes = [code for code, _ in applied(person, experiment, STANDIN_SECONDS="5")]
        took = time.monotonic() - began
        assert "LimitReached" in codes
        assert took < 30, f"a pass at MaxJobCount took {took:.0f} s"
        converge(person, experiment, passes=90)
    assert set(started(experiment).values()) == {1}
    assert retried(experiment) == set()


def test_a_qos_that_lets_a_user_have_two_jobs_is_lived_with(person, cluster):
    experiment = person.new_experiment("qos")
    configure(experiment)
    cluster.run("sacctmgr", "-i", "add", "user", person.name, "account=lab", "defaultaccount=lab")
    cluster.run("sacctmgr", "-i", "add", "qos", "two")
    cluster.run("sacctmgr", "-i", "modify", "qos", "two", "set", "MaxSubmitJobsPerUser=2")
    cluster.run("sacctmgr", "-i", "modify", "user", person.name, "set", "qos=two", "defaultqos=two")
    with cluster.configured("AccountingStorageEnforce=associations,limits,qos"):
        until(lambda: "two" in cluster.run("scontrol", "show", "assoc_mgr", "flags=qos"))
        told = [message for code, message in applied(person, experiment) if code == "LimitReached"]
        assert told
        # sbatch names the limit; the API has only the sentence of the error's number.
        why = "Job violates accounting/QOS policy" if person.backend == "pyslurm" else "QOSMaxSubmitJobPerUserLimit"
        assert all(why in message for message in told), told
        converge(person, experiment, passes=90)
    assert set(started(experiment).values()) == {1}
    assert retried(experiment) == set()


def test_a_canary_goes_first_on_a_real_cluster_too(person):
    experiment = person.new_experiment("canary")
    configure(experiment, SETTINGS + "canary: 1h\n")
    applied(person, experiment, STANDIN_SECONDS="8")
    live = [code for code, _ in reasons(person, experiment).values()]
    assert live.count("Canary") == 3
    converge(person, experiment)
    assert set(started(experiment).values()) == {1}
