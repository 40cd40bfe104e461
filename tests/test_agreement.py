"""Every face of the simulated cluster tells the same of every scenario (agreement.py). ``make agreement`` prints the table.

The real cluster's faces are held to the same stories in tests/slurm/test_agreement_on_real.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agreement import ALONE, NEVER, OF_22_05, SCENARIOS, WITHOUT_ACCOUNTING, Scenario, World, differences, story, table, words
from faces import CommandsHere, fake_face
from fake_slurm.faults import Fault, Kind
from reconciler.backends import slurm_cli

FACES = ("cli", "pyslurm")  # held to what is seen in process
ON_PATH = ("a_job_completes", "bad_submissions_are_refused", "a_job_that_waits_for_its_time_is_cancelled")
ALL = (*SCENARIOS, *OF_22_05, *ALONE, *WITHOUT_ACCOUNTING)
_results: dict[str, dict[str, str]] = {}


@pytest.fixture(scope="module", autouse=True)
def the_table() -> Iterator[None]:
    """Printed at the end, for ``make agreement``."""
    yield
    print(table(_results) if _results else "no scenario has run")


@pytest.fixture
def commands_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_cli, "subprocess", CommandsHere())


def told(scenario: Scenario, face: str, place: Path, *faults: Fault) -> list[tuple[str, Any]]:
    place.mkdir(parents=True)
    with fake_face(face, place, has_accounting=scenario not in WITHOUT_ACCOUNTING) as made:
        for fault in faults:
            made.server.faults.inject(fault)
        return story(scenario, made)


@pytest.mark.parametrize("scenario", ALL, ids=words)
def test_faces_agree(scenario, tmp_path, commands_here):
    reference = told(scenario, "in process", tmp_path / "in process")
    assert not [label for label, _ in reference if NEVER in label], reference
    found = {face: differences(reference, told(scenario, face, tmp_path / face)) for face in FACES}
    _results[words(scenario)] = {"in process": "told", **{face: "differs" if found[face] else "agrees" for face in FACES}}
    assert not any(found.values()), found


@pytest.mark.parametrize("name", ON_PATH)
def test_the_programs_on_path_agree_too(name, tmp_path):
    scenario = next(each for each in ALL if each.__name__ == name)
    reference = told(scenario, "in process", tmp_path / "in process")
    assert differences(reference, told(scenario, "cli on PATH", tmp_path / "on PATH")) == []


def something_goes_wrong(w: World) -> None:
    """The first call of a kind meets a fault; what it led to is told, and what the cluster knows afterwards."""
    w.ask("queue")
    w.ask("accounting")
    job = w.submit("sleep 600", held=True)
    w.tell("hold", job or "1")
    w.tell("release", job or "1")
    w.tell("cancel", job or "1")
    w.ask("identity")
    w.see("1")


CALLS = ("queue", "accounting", "submit", "hold")
KINDS = [kind for kind in Kind if "hangs" not in kind.value]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
def test_faces_agree_on_what_went_wrong(kind, tmp_path, commands_here):
    found = {}
    for call in CALLS:
        fault = Fault(call, kind, "Access/permission denied" if kind is Kind.REFUSED else "", seconds=30.0)
        reference = told(something_goes_wrong, "in process", tmp_path / call / "in process", fault)
        for face in FACES:
            found[f"{call}, {face}"] = differences(reference, told(something_goes_wrong, face, tmp_path / call / face, fault))
        row = {face: "differs" if found[f"{call}, {face}"] else "agrees" for face in FACES}
        _results[f"{call}: {kind.value}"] = {"in process": "told", **row}
    assert not any(found.values()), {name: each for name, each in found.items() if each}
