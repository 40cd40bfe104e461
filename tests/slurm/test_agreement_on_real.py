"""Real Slurm tells every scenario as the simulated cluster does (../agreement.py): where they differ, the simulation is wrong."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from machine import slurm_release

from conftest import BACKEND, Person

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "fixtures")]

from agreement import (  # noqa: E402 - found by the path above
    OF_22_05,
    SCENARIOS,
    WITHOUT_ACCOUNTING,
    Scenario,
    differences,
    story,
    table,
    the_controller_is_down,
    the_database_is_down,
    words,
)
from faces import fake_face  # noqa: E402

_results: dict[str, dict[str, str]] = {}


def told(person: Person, place: Path, *scenarios: Scenario, stop: Callable[[str], None] = print) -> dict[str, Any]:
    """The stories of scenarios that run beside each other on the real cluster."""
    scratch = person.home / f"agreement-{len(list(person.home.iterdir()))}"
    scratch.mkdir()
    for source in (HERE / "agreement_child.py", HERE.parent / "agreement.py"):
        shutil.copy(source, scratch)
    shutil.chown(scratch, person.name)
    is_over = threading.Event()
    administrator = threading.Thread(target=_obey, args=(person, scratch, is_over, stop))
    administrator.start()
    try:
        python = person.install / "venv/bin/python"
        child = person.run(python, scratch / "agreement_child.py", BACKEND, scratch, *(each.__name__ for each in scenarios))
    finally:
        is_over.set()
        administrator.join()
    assert child.returncode == 0, child.stderr
    return dict(json.loads(child.stdout))


def _obey(person: Person, scratch: Path, is_over: threading.Event, stop: Callable[[str], None]) -> None:
    while not is_over.wait(0.05):
        for asked in sorted(scratch.glob("request-*")):
            command = asked.read_text().split()
            if command[0] == "stop":
                stop(command[1])
            else:
                person.cluster.run(*command)
            asked.unlink()


def simulated(scenario: Scenario, place: Path) -> list[Any]:
    place.mkdir()
    with fake_face("in process", place, has_accounting=scenario not in WITHOUT_ACCOUNTING) as face:
        return list(json.loads(json.dumps(story(scenario, face))))


def compare(scenarios: Iterable[Scenario], stories: dict[str, Any], tmp_path: Path) -> None:
    found = {}
    for scenario in scenarios:
        real = stories[scenario.__name__]
        found[words(scenario)] = differences(real, simulated(scenario, tmp_path / scenario.__name__))
        _results[words(scenario)] = {f"real, {BACKEND}": "differs" if found[words(scenario)] else "agrees"}
    text = "\n".join(f"{name}: {line}" for name, lines in found.items() for line in lines)
    assert not text, f"real and simulated\n{text}"


def test_the_simulated_cluster_tells_of_jobs_what_the_real_one_does(person, tmp_path):
    scenarios = (*SCENARIOS, *(OF_22_05 if slurm_release(person.cluster.machine) == (22, 5) else ()))
    compare(scenarios, told(person, tmp_path, *scenarios), tmp_path)


def test_the_database_goes_away_as_it_does_in_the_simulation(person, cluster, tmp_path):
    try:
        stories = told(person, tmp_path, the_database_is_down, stop=lambda what: cluster.stop_accounting())
    finally:
        cluster.start_accounting()
    compare([the_database_is_down], stories, tmp_path)


def test_the_controller_goes_away_as_it_does_in_the_simulation(person, cluster, tmp_path):
    try:
        stories = told(person, tmp_path, the_controller_is_down, stop=lambda what: cluster.stop_controller())
    finally:
        cluster.start_controller()
        person.run("scancel", "--me")
    compare([the_controller_is_down], stories, tmp_path)


def test_a_site_without_accounting_is_as_it_is_in_the_simulation(bare_person, tmp_path):
    compare(WITHOUT_ACCOUNTING, told(bare_person, tmp_path, *WITHOUT_ACCOUNTING), tmp_path)


def test_the_table():
    assert _results, "no scenario has run before its table"
    print(table(_results))
