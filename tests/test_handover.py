"""Whose experiment it is: one word changes one thing, and jobs that cannot be seen are not taken for absent."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.errors import SubmissionUncertain, UsageError
from reconciler.handover import accept_identity
from reconciler.loop import preview
from reconciler.model import Condition, Reading, Stage
from reconciler.render import explain_text
from test_pass import lab, start  # noqa: F401 - the fixture
from worlds import MemoryCluster, StandInTool


@pytest.fixture
def handed(lab):  # noqa: F811
    """Ana's jobs are in the queue; Ben, who sees only his own, takes the experiment over."""
    lab.user = "ana"
    lab.run()
    start(lab, "a/finetune")
    lab.anas, lab.cluster, lab.user = lab.cluster, MemoryCluster(), "ben"
    return lab


def test_an_experiment_is_not_handed_over_while_jobs_of_the_other_may_be_live(handed):
    before = handed.tree()
    with pytest.raises(UsageError, match=r"of ana, which ben cannot see: .*a/finetune \(job 2\).*--jobs-gone"):
        accept_identity(handed.scene, "user")
    assert handed.tree() == before


def test_what_a_person_says_is_gone_counts_as_cancelled_and_is_not_submitted_until_released(handed):
    done = accept_identity(handed.scene, "user", "Ana is on leave", jobs_gone=True)
    assert "job 2 counts as gone" in [d.message for d in done if d.step == "a/finetune"]
    for _ in range(3):
        handed.run(1000)
    assert handed.conditions()["a/finetune"] is Condition.FAILED
    assert "said to be gone by ben" in preview(handed.scene).plan.of("a/finetune").reason.message
    assert not handed.cluster.submissions


def test_what_the_other_has_finished_is_taken_over_as_it_is(handed):
    handed.cluster, handed.user = handed.anas, "ana"
    for key in ("a/finetune", "b/finetune", "base/eval/cap_base"):
        handed.finish(key)
    handed.policy = replace(handed.policy, max_in_flight=1)
    handed.run()
    open_jobs = [job.id for job in handed.cluster.jobs.values() if job.is_live]
    for job in open_jobs:
        handed.cluster.finish(job, "FAILED", handed.now)
    handed.policy = replace(handed.policy, stop_after_failures=1)
    handed.run()
    handed.run()
    handed.cluster, handed.user = MemoryCluster(), "ben"
    accept_identity(handed.scene, "user")
    handed.policy = replace(handed.policy, stop_after_failures=9, max_in_flight=None)
    handed.run()
    assert handed.conditions()["a/finetune"] is Condition.DONE
    assert not any("finetune" in job.script.name for job in handed.cluster.submissions)


def test_a_submission_of_the_other_that_was_never_confirmed_stands_in_the_way_too(lab):  # noqa: F811
    lab.cluster.fails_with = [SubmissionUncertain("timed out")]
    lab.run()
    lab.user = "ben"
    with pytest.raises(UsageError, match="never confirmed"):
        accept_identity(lab.scene, "user")


def test_another_cluster_is_refused_while_jobs_of_the_first_may_be_live(lab):  # noqa: F811
    lab.run()

    class Other(MemoryCluster):
        def identity(self):
            return "memory:other"

    lab.cluster = Other()
    with pytest.raises(UsageError, match="--cluster"):
        lab.run()
    with pytest.raises(UsageError, match="on memory:test, not seen from memory:other"):
        accept_identity(lab.scene, "cluster")
    accept_identity(lab.scene, "cluster", jobs_gone=True)
    lab.run(1000)
    assert not lab.cluster.submissions


def test_one_word_changes_one_thing(lab):  # noqa: F811
    lab.run()
    moved = lab.directory.with_name("moved")
    lab.directory.rename(moved)
    other = replace(lab, directory=moved, user="ben")
    accept_identity(other.scene, "moved")
    with pytest.raises(UsageError, match="--user"):
        other.run()
    back = replace(other, user="u")
    back.run()
    assert len(lab.cluster.submissions) == 3
    assert set(back.conditions().values()) <= {Condition.QUEUED, Condition.WAITING}


def test_a_copy_does_not_train_into_the_directory_where_its_original_does(lab):  # noqa: F811
    lab.run()
    copy = lab.directory.with_name("copy")
    shutil.copytree(lab.directory, copy)
    ledger = copy / ".reconcile" / "ledger.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    out = str(lab.directory / "a" / "out" / "finetune")
    shared = [
        {**line, "output_dir": out.replace(str(lab.directory), str(copy))} if line.get("output_dir") == out else line
        for line in lines
    ]
    ledger.write_text("".join(json.dumps(line) + "\n" for line in shared))
    other = replace(lab, directory=copy)
    before = other.tree()
    with pytest.raises(UsageError, match="give the copy an output directory of its own"):
        accept_identity(other.scene, "copied")
    assert {k: v for k, v in other.tree().items() if "lock" not in k} == {k: v for k, v in before.items() if "lock" not in k}


def test_who_took_it_over_and_why_is_shown_by_explain(lab):  # noqa: F811
    lab.run()
    lab.environment = {"HOME": "/h", "USER": "u"}
    accept_identity(lab.scene, "environment", "a new login node")
    assert "adopt --environment by u: a new login node" in explain_text(preview(lab.scene), "a/finetune")


@pytest.mark.parametrize("what", ["moved", "copied", "user", "cluster", "environment"])
@pytest.mark.parametrize("jobs_gone", [False, True])
def test_where_nothing_has_changed_there_is_nothing_to_accept(lab, what, jobs_gone):  # noqa: F811
    lab.run()
    before = lab.tree()
    with pytest.raises(UsageError, match=f"there is nothing to accept with --{what}"):
        accept_identity(lab.scene, what, jobs_gone=jobs_gone)
    assert lab.tree() == before
    assert lab.conditions()["a/finetune"] is Condition.QUEUED


def test_what_a_copy_shares_with_its_original_is_among_what_was_done(lab):  # noqa: F811
    lab.run()
    lab.finish("a/finetune")
    lab.run()
    copy = replace(lab, directory=lab.directory.with_name("copy"))
    shutil.copytree(lab.directory, copy.directory)
    ledger = copy.directory / ".reconcile" / "ledger.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    ends = {line["step"] for line in lines if line["event"] == "ended"}
    out = str(copy.directory / "a" / "out" / "finetune")
    lines = [{**line, "output_dir": out} if line.get("step") in ends and "output_dir" in line else line for line in lines]
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = accept_identity(copy.scene, "copied")
    assert f"warning: a/finetune has the output directory of the original, {out}" in [d.message for d in done]


def test_a_copy_is_not_taken_for_the_moved_experiment_while_the_original_is_there(lab):  # noqa: F811
    lab.run()
    copy = replace(lab, directory=lab.directory.with_name("copy"))
    shutil.copytree(lab.directory, copy.directory)
    before = copy.tree()
    with pytest.raises(UsageError, match=f"{lab.directory}: the experiment is still there, .* say --copied"):
        accept_identity(copy.scene, "moved")
    assert copy.tree() == before
    with pytest.raises(UsageError, match="--copied"):
        copy.run()
    lab.run()
    assert len(lab.cluster.submissions) == 3
    shutil.rmtree(lab.directory / ".reconcile")
    accept_identity(copy.scene, "moved")
    copy.run()
    assert len(lab.cluster.submissions) == 3
    assert copy.conditions()["a/finetune"] is Condition.QUEUED


class LeadingBack(StandInTool):
    """Evaluates in a directory that its script names in full."""

    def __init__(self, place: Path) -> None:
        super().__init__(Stage.EVALUATION)
        self.place = place

    def read(self, run, disk):
        steps = super().read(run, disk).steps
        return Reading(tuple(replace(step, output_dir=self.place / step.run / "eval" / "logs") for step in steps))


def test_scripts_that_lead_to_the_place_before_a_move_are_told_of_and_blocked(lab):  # noqa: F811
    lab.run()
    moved = replace(lab, directory=lab.directory.with_name("moved"))
    tools = {"trainer": StandInTool(Stage.FINETUNE), "evaluator": LeadingBack(lab.directory)}
    lab.directory.rename(moved.directory)
    scene = replace(moved.scene, tools=tools)
    told = [deed.message for deed in accept_identity(scene, "moved")]
    where = f"it leads to {lab.directory / 'base' / 'eval' / 'logs'}, in {lab.directory}, where this experiment was before it was moved"
    assert any(f"warning: base/eval/cap_base: {where}; change {moved.directory / 'base'}" in line for line in told)
    stands = {action.step: (action.condition, action.reason.code) for action in preview(scene).actions}
    assert stands["a/eval/cap_epoch0"] == stands["b/eval/cap_epoch0"] == (Condition.BLOCKED, "ScriptLeadsAway")
    assert stands["base/eval/cap_base"][0] is Condition.QUEUED  # its job is known
    lab.directory.symlink_to(moved.directory)
    assert "ScriptLeadsAway" not in {action.reason.code for action in preview(scene).actions}
    lab.directory.unlink()
    assert "ScriptLeadsAway" not in {action.reason.code for action in preview(moved.scene).actions}


@pytest.mark.parametrize("is_link", [True, False])
def test_what_was_moved_is_adopted_where_a_link_or_another_experiment_is_in_its_old_place(lab, is_link):  # noqa: F811
    lab.run()
    moved = replace(lab, directory=lab.directory.with_name("moved"))
    lab.directory.rename(moved.directory)
    if is_link:
        lab.directory.symlink_to(moved.directory)
    else:
        shutil.copytree(moved.directory, lab.directory, ignore=shutil.ignore_patterns(".reconcile"))
        replace(lab, cluster=MemoryCluster(), user="ben").run()
    accept_identity(moved.scene, "moved")
    moved.run()
    assert len(lab.cluster.submissions) == 3
    assert moved.conditions()["a/finetune"] is Condition.QUEUED
