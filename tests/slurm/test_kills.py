"""Passes killed in the midst of their submissions on a real cluster, and passes started side by side, as often as RECONCILE_KILLS says.

What ran is counted from the jobs' own account, and what was accepted from sacct. ``RECONCILE_KILLS=1000`` takes about half an hour.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_experiments import SETTINGS, conditions, configure, converge, started

KILLS = int(os.environ.get("RECONCILE_KILLS") or 20)
_RUNS = 40
_KILLED = 137  # timeout(1), whose own group is killed with it


def apply_killed(person, experiment: Path, delay: float) -> bool:
    """One pass that is killed after a while; False where it was over by then."""
    apply = [str(person.install / "venv/bin/reconcile"), "apply", str(experiment)]
    killer = ["timeout", "--signal=KILL", f"{delay:.3f}"]
    done = person.run(*killer, *apply, RECONCILE_BACKEND=person.backend, STANDIN_SECONDS="0.1")
    assert done.returncode in (0, 4, 5, _KILLED, -9), done.stderr
    return done.returncode in (_KILLED, -9)


def accepted(person, experiment: Path) -> Counter[str]:
    """The jobs of each step that were accepted and not cancelled before they ran (replacements that turned out not to be needed)."""
    rows = person.run("sacct", "-X", "-P", "--noheader", "--starttime=now-1day", "--format=State,JobName%80,WorkDir%400").stdout
    found = [fields for row in rows.splitlines() if len(fields := row.split("|")) == 3]  # other tests' names hold anything
    ours = [name for state, name, workdir in found if workdir.startswith(f"{experiment}/") and not state.startswith("CANCELLED")]
    return Counter(re.sub(r"-\d+$", "", name) for name in ours)


@pytest.mark.fault(
    "SIGKILL of a pass in the midst of its submissions, on a real Slurm", rerun="RECONCILE_KILLS=1000 make test-slurm"
)
def test_passes_killed_again_and_again_submit_every_job_exactly_once(person, record_property):
    clock, killed, number, tries = random.Random(7), 0, 0, 0
    while killed < KILLS:
        number += 1
        experiment = person.new_experiment(f"kills{number}", "--runs", _RUNS)
        configure(experiment, SETTINGS)
        for _ in range(min(60, KILLS - killed + 5)):
            killed += apply_killed(person, experiment, clock.uniform(0.25, 1.3))
            tries += 1
            if killed >= KILLS or set(conditions(person, experiment).values()) == {"Done"}:
                break
        time.sleep(1)
        converge(person, experiment, passes=90)
        ran, taken = started(experiment), accepted(person, experiment)
        assert set(ran.values()) == {1}, [step for step, times in ran.items() if times > 1]
        assert len(ran) == 2 * _RUNS + 1
        assert set(taken.values()) == {1}, [name for name, times in taken.items() if times > 1]
    print(f"{killed} passes killed of {tries}, in {number} experiments of {2 * _RUNS + 1} steps")
    record_property("cases", killed)


@pytest.mark.fault("passes started side by side, on a real Slurm", rerun="RECONCILE_KILLS=1000 make test-slurm")
def test_passes_side_by_side_submit_every_job_exactly_once(person, record_property):
    experiment = person.new_experiment("beside", "--runs", _RUNS)
    configure(experiment, SETTINGS)
    rounds = max(2, KILLS // 50)
    with ThreadPoolExecutor(10) as pool:
        for _ in range(rounds):
            codes = [
                done.returncode
                for done in pool.map(lambda _: person.reconcile("apply", experiment, STANDIN_SECONDS="0.1"), range(10))
            ]
            assert set(codes) <= {0, 4, 5}
    converge(person, experiment, passes=90)
    assert set(started(experiment).values()) == {1}
    assert set(accepted(person, experiment).values()) == {1}
    record_property("cases", 10 * rounds)
