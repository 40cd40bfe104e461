"""Settings: whose word counts, and what is said where one cannot be followed."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path

import pytest

from reconciler.errors import DiskUnreadable, InvalidExperiment, UsageError
from reconciler.experiment.settings import read_settings
from reconciler.failures import classify
from reconciler.model import Job, Phase, Policy
from reconciler.schemas import schema
from reconciler.tools import all_tools


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home/.config/reconcile").mkdir(parents=True)
    return tmp_path / "home"


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    (tmp_path / "experiment").mkdir()
    return tmp_path / "experiment"


def faults(experiment: Path, home: Path, text: str) -> list[str]:
    (experiment / "reconcile.yaml").write_text(text)
    with pytest.raises(InvalidExperiment) as raised:
        read_settings(experiment, {}, home, all_tools())
    return [f"{problem.file.name}:{problem.line}: {problem.message}" for problem in raised.value.problems]


def personal(home: Path, text: str) -> None:
    (home / ".config/reconcile/config.yaml").write_text(text)


def test_without_any_file_the_defaults_hold(experiment: Path, home: Path) -> None:
    assert read_settings(experiment, {}, home) == Policy()


@pytest.mark.parametrize("text", ["# nothing yet\n", "---\n"])
def test_a_file_without_a_setting_sets_nothing(experiment: Path, home: Path, text: str) -> None:
    (experiment / "reconcile.yaml").write_text(text)
    assert read_settings(experiment, {}, home) == Policy()


@pytest.mark.parametrize("text", ["", "\n", " \n\n"])
def test_an_empty_file_may_be_one_that_is_being_saved_and_sets_nothing_aside(experiment: Path, home: Path, text: str) -> None:
    (fault,) = faults(experiment, home, text)
    assert fault.startswith("reconcile.yaml:0: is empty; if an editor is saving it at this moment, try again")
    (experiment / "reconcile.yaml").unlink()
    personal(home, text)
    with pytest.raises(InvalidExperiment, match=r"config\.yaml: is empty"):
        read_settings(experiment, {}, home)


def test_the_experiment_outranks_the_person_and_flags_outrank_both(experiment: Path, home: Path) -> None:
    personal(home, "backend: cli\nstagger: 1s\ngrace: 1h\n")
    (experiment / "reconcile.yaml").write_text("backend: pyslurm\nstagger: 2s\n")
    policy = read_settings(experiment, {"stagger": "3s", "backend": None}, home)
    assert (policy.backend, policy.stagger, policy.grace) == ("pyslurm", 3.0, 3600.0)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("5s", 5.0), ("10m", 600.0), ("1h", 3600.0), ("2d", 172800.0), ("90", 90.0), ("1.5h", 5400.0), ("0", 0.0), ("'7'", 7.0)],
)
def test_a_duration_is_a_number_with_a_unit_and_a_bare_number_is_seconds(
    experiment: Path, home: Path, written: str, seconds: float
) -> None:
    (experiment / "reconcile.yaml").write_text(f"settle: {written}\n")
    assert read_settings(experiment, {}, home).settle == seconds


@pytest.mark.parametrize(
    ("written", "seconds"), [("true", 600.0), ("false", None), ("10m", 600.0), ("90", 90.0), ("0", 0.0), ("1h", 3600.0)]
)
def test_a_canary_is_asked_for_with_or_without_a_time(experiment: Path, home: Path, written: str, seconds: float | None) -> None:
    (experiment / "reconcile.yaml").write_text(f"canary: {written}\n")
    assert read_settings(experiment, {}, home).canary == seconds


@pytest.mark.parametrize(
    ("written", "hours"), [("40 gpu-hours", 40.0), ("1.5 gpu-hour", 1.5), ("0 gpu-hours", 0.0), ("null", None)]
)
def test_a_budget_is_a_number_of_gpu_hours(experiment: Path, home: Path, written: str, hours: float | None) -> None:
    personal(home, "budget: 7 gpu-hours\n")
    (experiment / "reconcile.yaml").write_text(f"budget: {written}\n")
    assert read_settings(experiment, {}, home).budget == hours


def test_retry_is_merged_class_by_class(experiment: Path, home: Path) -> None:
    personal(home, "retry: {TimeLimit: 1, NodeFailure: 3}\n")
    (experiment / "reconcile.yaml").write_text("retry: {NodeFailure: 0}\n")
    retry = read_settings(experiment, {"retry": {"UserError": 2}}, home).retry
    assert retry == {"NodeFailure": 0, "BootFailure": 10, "Preempted": 100, "TimeLimit": 1, "UserError": 2}


def test_what_holds_for_one_tool_is_merged_tool_by_tool_and_class_by_class(experiment: Path, home: Path) -> None:
    personal(home, "tools: {inspect-ai: {retry: {UserError: 2, Unknown: 1}}, torchtune: {resume: true, shrink_batch: true}}\n")
    (experiment / "reconcile.yaml").write_text("tools: {inspect-ai: {retry: {UserError: 0}}, torchtune: {resume: false}}\n")
    policy = read_settings(experiment, {}, home, all_tools())
    assert policy.tools["torchtune"] == {"resume": False, "shrink_batch": True}
    assert policy.tools["inspect-ai"] == {"retry": {"UserError": 0, "Unknown": 1}}
    assert policy.of("inspect-ai").retry == {"NodeFailure": 10, "BootFailure": 10, "Preempted": 100, "UserError": 0, "Unknown": 1}
    assert policy.of("torchtune").retry == Policy().retry


def test_every_setting_that_a_tool_takes_is_one_that_the_schema_has_for_tools() -> None:
    published = schema("reconcile")["properties"]["tools"]["additionalProperties"]["properties"]
    assert all(set(tool.settings) <= set(published) for tool in all_tools().values())


def test_every_setting_stands_in_the_readmes_block() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    block = readme.partition("Settings (all optional")[2].split("```")[1]
    assert {line.split(":")[0] for line in block.splitlines() if ":" in line} == set(schema("reconcile")["properties"])


def test_no_limit_can_be_said_over_a_persons_limit(experiment: Path, home: Path) -> None:
    personal(home, "max_in_flight: 4\n")
    assert read_settings(experiment, {}, home).max_in_flight == 4
    (experiment / "reconcile.yaml").write_text("max_in_flight: null\n")
    assert read_settings(experiment, {}, home).max_in_flight is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("\nbackend: slurm\n", ":2: `backend` is 'slurm'; accepted: `auto`, `pyslurm`, `cli` or `local`"),
        (
            "grace: 5 parsecs\n",
            ":1: `grace` is '5 parsecs'; accepted: a duration such as 5s, 10m, 1h or 2d, up to 365d; a bare number is seconds",
        ),
        ("grace: 9s\n", ":1: `grace` is '9s'; accepted: 10s or more"),
        ("stagger: 99999999d\n", ":1: `stagger` is '99999999d'; accepted: a duration such as 5s, 10m, 1h or 2d, up to 365d"),
        (
            "mem: {factor: 2, max: 99999999999999999999999999}\n",
            ":1: `mem.max` is 99999999999999999999999999; accepted: an amount",
        ),
        ("grace: -5\n", ":1: `grace` is -5; accepted: a duration"),
        ("grace: .inf\n", ":1: `grace` is inf; accepted: a duration"),
        ("grace: .nan\n", ":1: `grace` is nan; accepted: a duration"),
        ("grace: true\n", ":1: `grace` is True; accepted: a duration"),
        ("grace:\n", ":1: `grace` is empty; accepted: a duration"),
        ("max_in_flight: 0\n", ":1: `max_in_flight` is 0; accepted: a whole number from 1"),
        ("stop_after_failures: three\n", ":1: `stop_after_failures` is 'three'; accepted: a whole number"),
        ("requeue: 1\n", ":1: `requeue` is 1; accepted: `true` or `false`"),
        ("canary: maybe\n", ":1: `canary` is 'maybe'; accepted: `true`, `false`, or for how long"),
        ("canary: -5m\n", ":1: `canary` is '-5m'; accepted: `true`"),
        ("poll: 60s\nbudget: 40\n", ":2: `budget` is 40; accepted: GPU hours such as `40 gpu-hours`"),
        ("budget: 40 cpu-hours\n", ":1: `budget` is '40 cpu-hours'; accepted: GPU hours such as `40 gpu-hours`"),
        ("budget: -1 gpu-hours\n", ":1: `budget` is '-1 gpu-hours'; accepted: GPU hours"),
        ("document: table\n", ":1: `document` is 'table'; accepted: `tables`"),
        ("poll: 60s\nstager: 5s\n", ":2: `stager` is no known key; accepted: `backend`, `stagger`"),
        ("retry:\n  NodeFailure: many\n", ":2: `retry.NodeFailure` is 'many'; accepted: a whole number from 0"),
        ("retry:\n  NodeFail: 3\n", ":2: `retry.NodeFail` is no known key; accepted: `NodeFailure`"),
        ("retry: 3\n", ":1: `retry` is 3; accepted: a map of failure classes"),
        ("poll: 60s\npoll: 70s\n", ":2: the key `poll` stands twice"),
        ("- a\n", ":1: the file is a list; accepted: a map of settings"),
        ("a: [\n", ":2: is not YAML"),
        ("backend: cli\npoll: 5s\n", ":2: `poll` is '5s'; accepted: 10s or more"),
        ("mem:\n  factor: 2\n  max: 0G\n", ":3: `mem.max` is '0G'; accepted: an amount of memory above 0 such as 200G"),
        ("mem: {factor: 2, max: 0.0}\n", ":1: `mem.max` is 0.0; accepted: an amount of memory above 0"),
        ("time: {factor: 2, max: 0}\n", ":1: `time.max` is 0; accepted: a duration above 0"),
        ("time: {factor: 2, max: 0.00h}\n", ":1: `time.max` is '0.00h'; accepted: a duration above 0"),
        (
            "tools:\n  inspect_ai: {retry: {Unknown: 1}}\n",
            ":2: `tools.inspect_ai` is no known key; accepted: `inspect-ai`, `torchtune`",
        ),
        ("tools:\n  torchtun: {}\n", ":2: `tools.torchtun` is no known key; accepted: `inspect-ai`, `torchtune`"),
        (
            "tools:\n  inspect-ai:\n    resume: true\n",
            ":3: `tools.inspect-ai.resume` is no known key; accepted: `retry`, `time`, `mem`",
        ),
        ("tools: {inspect-ai: {shrink_batch: true}}\n", ":1: `tools.inspect-ai.shrink_batch` is no known key; accepted: `retry`"),
        ("tools: {inspect-ai: 3}\n", ":1: `tools.inspect-ai` is 3; accepted: a map of `retry`, `time`, `mem`"),
        (
            "tools: {torchtune: {time: {factor: 2, max: 0h}}}\n",
            ":1: `tools.torchtune.time.max` is '0h'; accepted: a duration above 0",
        ),
    ],
)
def test_a_setting_that_cannot_be_followed_is_named_with_its_line(experiment: Path, home: Path, text: str, fault: str) -> None:
    assert any(found.startswith(f"reconcile.yaml{fault}") for found in faults(experiment, home, text)), faults(
        experiment, home, text
    )


def test_every_fault_of_both_files_is_told_at_once(experiment: Path, home: Path) -> None:
    personal(home, "grace: soon\n")
    found = faults(experiment, home, "settle: later\nbackend: none\n")
    assert [fault.split(": `")[0] for fault in found] == ["config.yaml:1", "reconcile.yaml:1", "reconcile.yaml:2"]


def test_slurm_is_not_asked_more_often_than_every_ten_seconds_but_the_local_backend_may_be(experiment: Path, home: Path) -> None:
    (experiment / "reconcile.yaml").write_text("poll: 1s\n")
    assert read_settings(experiment, {"backend": "local"}, home).poll == 1.0
    with pytest.raises(InvalidExperiment, match="accepted: 10s or more"):
        read_settings(experiment, {}, home)
    with pytest.raises(UsageError, match="accepted: 10s or more"):
        read_settings(experiment, {"poll": 2}, home)


def test_a_flag_that_cannot_be_followed_is_bad_usage(experiment: Path, home: Path) -> None:
    with pytest.raises(UsageError, match="`stagger` is 'x'; accepted: a duration"):
        read_settings(experiment, {"stagger": "x"}, home)


def test_settings_that_cannot_be_read_are_unknown_and_not_the_defaults(experiment: Path, home: Path) -> None:
    (experiment / "reconcile.yaml").symlink_to(experiment / "reconcile.yaml")
    with pytest.raises(DiskUnreadable):
        read_settings(experiment, {}, home)


def test_the_published_schema_knows_the_very_settings_that_there_are() -> None:
    assert set(schema("reconcile")["properties"]) == {field.name for field in fields(Policy)}


def test_every_failure_but_a_persons_own_cancelling_may_be_retried() -> None:
    states = ["COMPLETED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "FAILED"]
    classes = {classify(Job("1", "x", state, Phase.ENDED)).code for state in states}
    assert classes <= set(schema("reconcile")["$defs"]["retry"]["properties"])


def test_the_published_schemas_are_valid_schemas() -> None:
    from jsonschema import Draft202012Validator

    for name in ("experiment", "reconcile"):
        Draft202012Validator.check_schema(schema(name))
    with pytest.raises(KeyError):
        schema("nothing")


def test_the_defaults_that_the_schema_shows_are_those_that_hold(experiment: Path, home: Path) -> None:
    shown = {key: value["default"] for key, value in schema("reconcile")["properties"].items() if "default" in value}
    (experiment / "reconcile.yaml").write_text(json.dumps(shown) + os.linesep)
    assert read_settings(experiment, {}, home) == Policy()
