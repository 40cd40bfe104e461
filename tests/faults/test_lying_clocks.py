"""Clocks that step, zones that differ, and Slurm's times in local form across a change of daylight saving."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from lies import ALL, PHASES, RERUNS, TRAINING, Lie, Said, commands_at, lab_at

from fake_slurm.jobs import State
from mortality import Mortality
from reconciler.backends.slurm_cli import query_environment
from reconciler.loop import run_pass

_STEPS = (-40 * 86400.0, -3600.0, -301.0, -290.0, 290.0, 301.0, 3600.0, 40 * 86400.0)


@pytest.mark.fault("the clock of the host steps, between passes")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("step", _STEPS if ALL else (-3600.0, _STEPS[-1]))
def test_a_clock_that_steps_and_steps_back_costs_time_at_most(step, phase):
    """Beyond five minutes munge would let no request through; here they go through all the same."""
    with lab_at(phase) as lab:
        lab.step_clock(step)
        for _ in range(2):
            lab.apply()
            lab.pass_time(70)
        lab.step_clock(0.0)
        lab.converges(training=RERUNS.get(phase, 0))


@pytest.mark.fault("the clock of the host steps, in the midst of a pass")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_a_clock_that_steps_during_a_pass_costs_a_pass_at_most(step, phase):
    with lab_at(phase) as lab:
        lab._pass(Mortality(lab.directory, intrudes_at=3, intrusion=lambda: lab.step_clock(step)))
        lab.step_clock(0.0)
        lab.converges(training=RERUNS.get(phase, 0))


# Noon two days before, and the night of, the changes of 2033 in Berlin and New York (both sides of each hour that is missing or twice).
_NIGHTS = {
    "Europe/Berlin": (
        1_995_494_400.0,
        1_995_667_200.0 - 1800,
        1_995_667_200.0 + 1800,
        2_014_416_000.0 - 1800,
        2_014_416_000.0 + 1800,
    ),
    "America/New_York": (1_994_457_600.0 - 1800, 1_994_457_600.0 + 1800, 2_015_020_800.0 - 1800, 2_015_020_800.0 + 1800),
}


@pytest.fixture
def zone(request, monkeypatch):
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def in_local_form(command: str, clusters: str) -> Lie:
    """A site whose wrapper ignores SLURM_TIME_FORMAT: every time is local to the cluster."""
    end = b"\x1e\n" if command == "squeue" else b"\n"
    times = (3, 4, 5) if command == "squeue" else (3, 4, 5, 6)

    def local(text: bytes) -> bytes:
        stripped = text.strip()
        if not stripped.isdigit():
            return text
        return time.strftime(
            "%Y-%m-%dT%H:%M:%S", time.gmtime(int(stripped) + (3600 if "Berlin" in clusters else -18000))
        ).encode()

    def lie(truth) -> Said:
        code, output, errors = truth()
        changed = []
        for row in [row for row in output.split(end) if row]:
            fields = row.split(b"\x1f")
            changed.append(b"\x1f".join(local(f) if n in times else f for n, f in enumerate(fields)) + end)
        return code, b"".join(changed), errors

    return lie


@pytest.mark.fault("times in local form, on both sides of a change of daylight saving, in the cluster's zone or another")
@pytest.mark.parametrize("zone", list(_NIGHTS), indirect=True)
@pytest.mark.parametrize("clusters", list(_NIGHTS))
@pytest.mark.parametrize("is_local", [False, True], ids=["epoch seconds", "local times"])
@pytest.mark.parametrize("state", [State.COMPLETED, State.NODE_FAIL])
def test_no_zone_and_no_change_of_daylight_saving_makes_a_second_job(
    state, is_local, clusters, zone, monkeypatch, record_property
):
    """Times are asked for in epoch seconds; where they come in another form they are not known, and nothing is guessed."""
    nights = _NIGHTS[clusters]
    record_property("cases", len(nights))
    for night in nights if ALL else nights[1:2]:
        with commands_at("nothing submitted yet", monkeypatch) as (lab, commands):
            lab.cluster.now = night
            if is_local:
                commands.lies = {each: in_local_form(each, clusters) for each in ("squeue", "sacct")}
            lab.apply()
            lab.pass_time(1800)
            lab.finish(TRAINING, "whole" if state is State.COMPLETED else "half", state)
            for _ in range(3):
                lab.apply()
                lab.pass_time(1200)
            lab.converges(training=0 if state is State.COMPLETED else 1)


def test_slurm_is_asked_for_epoch_seconds_whatever_the_environment_says():
    said = query_environment({"SLURM_TIME_FORMAT": "%H:%M", "TZ": "Asia/Kolkata", "SACCT_FORMAT": "JobID"})
    assert (said["SLURM_TIME_FORMAT"], "SACCT_FORMAT" in said) == ("%s", False)


@pytest.mark.fault("passes of several hosts whose clocks differ")
@pytest.mark.parametrize("phase", PHASES)
def test_hosts_whose_clocks_differ_by_minutes_share_an_experiment(phase):
    with lab_at(phase) as lab:
        for ahead in (280.0, -280.0, 140.0, 0.0):
            now = lab.cluster.now
            run_pass(replace(lab.scene(), clock=lambda now=now, ahead=ahead: now + ahead))
            lab._check()
            lab.pass_time(45)
        lab.converges(training=RERUNS.get(phase, 0))
