"""Orphans are cancelled where a person names them, and never because the document lacks them."""

from __future__ import annotations

import shutil
from dataclasses import replace

import jsonschema
import pytest

from reconciler.errors import ClusterUnreachable, UsageError
from reconciler.loop import preview
from reconciler.orphans import cancel, named, names_orphans_alone, prune
from reconciler.published import explained_orphan
from reconciler.render import explain_orphan_text
from reconciler.schemas import schema
from test_pass import DOCUMENT, drop_run_a, lab, order, start  # noqa: F401 - the fixture
from test_words import deafly, written


def say_prune(world, *names):
    return prune(world.scene, names, "pruned", lambda prospect: True)


@pytest.fixture
def orphaned(lab):  # noqa: F811
    """Run ``a`` is not in the document any more, and its job runs."""
    lab.run()
    lab.orphan = start(lab, "a/finetune")
    drop_run_a(lab)
    return lab


def live(world):
    return sorted(job.id for job in world.cluster.jobs.values() if job.is_live)


def test_a_half_saved_document_cancels_nothing(orphaned):
    before = live(orphaned)
    orphaned.document.write_text(DOCUMENT.replace("| b | Fine-tuned |\n", "").replace("| b | ✓ epoch 0 |\n", ""))
    for _ in range(3):
        orphaned.run()
    assert set(before) <= set(live(orphaned))


@pytest.mark.parametrize("name", ["a", "a/finetune", "a/*", "?", "the id"])
def test_an_orphan_is_cancelled_by_its_run_its_step_or_its_job(orphaned, name):
    before = live(orphaned)
    done = say_prune(orphaned, orphaned.orphan if name == "the id" else name)
    assert [d.step for d in done] == ["a/finetune"]
    assert live(orphaned) == [job for job in before if job != orphaned.orphan]
    orphaned.run()
    assert orphaned.run().plan.orphans == ()


@pytest.mark.parametrize("name", ["a/finetune", "the id"])
def test_an_orphan_is_explained_by_its_job_its_attempts_and_what_was_said_of_it(orphaned, name):
    order(orphaned, "hold", "b/finetune")
    seen, found, steps = named(orphaned.scene, [orphaned.orphan if name == "the id" else name, "b/finetune"])
    (orphan,) = found
    assert [step.key for step in steps] == ["b/finetune"]
    text, facts = explain_orphan_text(seen, orphan), explained_orphan(seen, orphan)
    jsonschema.validate(facts, schema("explanation"))
    assert (facts["step"], facts["orphan"]["job_id"]) == ("a/finetune", orphaned.orphan)
    assert [attempt["job"] for attempt in facts["attempts"]] == [orphaned.orphan]
    assert f"`reconcile cancel {orphaned.orphan}` ends it" in text
    assert f", job {orphaned.orphan}, submitted" in text
    with pytest.raises(UsageError, match="no step"):
        named(orphaned.scene, ["c/finetune"])


def test_a_run_that_comes_back_after_its_job_was_pruned_is_held_until_released(orphaned):
    say_prune(orphaned, "a")
    orphaned.run()
    orphaned.document.write_text(DOCUMENT)
    for _ in range(3):
        orphaned.run(1000)
    assert preview(orphaned.scene).plan.of("a/finetune").reason.code == "CancelledByPerson"
    order(orphaned, "release", "a/finetune")
    orphaned.run()
    assert preview(orphaned.scene).plan.of("a/finetune").job != orphaned.orphan


def test_a_run_whose_jobs_have_ended_needs_no_pruning_and_a_strange_name_is_refused(orphaned):
    say_prune(orphaned, "a")
    orphaned.run()
    assert say_prune(orphaned, "a") == ()
    before = orphaned.tree()
    for name, match in (("b", "in the document"), ("c", "there is none"), ("b/finetune", "in the document")):
        with pytest.raises(UsageError, match=match):
            say_prune(orphaned, "a", name)
    assert orphaned.tree() == before


def test_where_one_name_is_refused_no_orphan_is_cancelled(orphaned):
    before = live(orphaned)
    with pytest.raises(UsageError, match="no orphan is named 'zzz'; the orphans are a/finetune"):
        say_prune(orphaned, "a", "zzz")
    assert live(orphaned) == before


def test_an_orphan_that_nothing_in_writing_knows_is_named_by_its_job_alone(orphaned):
    shutil.rmtree(orphaned.directory / ".reconcile")
    orphan = preview(orphaned.scene).plan.orphans[0]
    assert orphan.step == ""
    with pytest.raises(UsageError):
        say_prune(orphaned, "a")
    say_prune(orphaned, orphan.job.id)
    assert orphan.job.id not in live(orphaned)


def test_a_glob_that_means_steps_of_the_document_means_no_orphan(orphaned):
    seen = preview(orphaned.scene)
    assert [names_orphans_alone(seen, name) for name in ("*", "*/finetune", "a/*", "a", "b/finetune")] == [
        False, False, True, True, False,
    ]  # fmt: skip


def say_cancel(world, *names, confirm=lambda prospect: True):
    return cancel(world.scene, names, "wrong data", confirm)


def test_orphans_and_steps_are_cancelled_together_or_not_at_all(orphaned):
    orphaned.finish("b/finetune")
    orphaned.run()
    before, tree = live(orphaned), orphaned.tree()
    for names in (("a", "b/finetune"), ("b/finetune", "a"), ("a", "nobody")):
        with pytest.raises(UsageError):
            say_cancel(orphaned, *names)
    heard = []
    assert say_cancel(orphaned, "a", "b/eval/*", confirm=lambda prospect: heard.append(prospect) or False) == ()
    assert [sentence.split(" (")[0] for sentence in heard[0].sentences] == [
        f"cancel job {orphaned.orphan}", "cancel b/eval/cap_epoch0",
    ]  # fmt: skip
    assert (live(orphaned), orphaned.tree()) == (before, tree)
    done = say_cancel(orphaned, "a", "b")
    assert [d.step for d in done] == ["a/finetune", "b/eval/cap_epoch0", "b/finetune"]
    assert len(live(orphaned)) == len(before) - 2


def test_the_step_of_an_orphan_that_was_cancelled_goes_on_once_it_is_back_and_released_with_no_pass_between(orphaned):
    say_cancel(orphaned, orphaned.orphan)
    orphaned.document.write_text(DOCUMENT)
    order(orphaned, "release", "a/finetune")
    for _ in range(4):
        orphaned.run(100)
    job = preview(orphaned.scene).plan.of("a/finetune").job
    assert job != orphaned.orphan
    assert orphaned.cluster.jobs[job].is_live


def test_a_queue_that_cannot_be_asked_prunes_nothing(orphaned):
    orphaned.cluster.is_down = True
    with pytest.raises(ClusterUnreachable):
        say_prune(orphaned, "a")


def test_orphans_and_steps_that_are_cancelled_together_are_all_said_before_the_cluster_fails(orphaned):
    job, other = (preview(orphaned.scene).plan.of(key).job for key in ("b/finetune", "base/eval/cap_base"))
    heard = deafly(orphaned, lambda: say_cancel(orphaned, "a", "b/finetune", "base"), orphaned.orphan, job)
    assert heard.startswith("said of all 3 steps; ")
    assert f"job {orphaned.orphan} could not be cancelled: Socket timed out; say it again" in heard
    assert f"job {job} could not be cancelled: Socket timed out; the next pass does it" in heard
    assert {orphaned.orphan, job} <= set(live(orphaned))
    assert other not in live(orphaned)
    assert len(written(orphaned, "cancel")) == 3
    orphaned.run()
    assert job not in live(orphaned)
    say_prune(orphaned, "a")
    assert orphaned.orphan not in live(orphaned)


def test_pruned_orphans_are_all_said_before_the_cluster_fails(orphaned):
    again = replace(orphaned.cluster.jobs[orphaned.orphan], id="77")
    orphaned.cluster.jobs["77"] = again
    heard = deafly(orphaned, lambda: say_prune(orphaned, "a"), orphaned.orphan)
    assert heard == f"said of a/finetune; job {orphaned.orphan} could not be cancelled: Socket timed out; say it again"
    assert "77" not in live(orphaned)


def test_whether_a_name_is_an_orphans_is_not_denied_while_the_queue_cannot_be_asked(orphaned):
    orphaned.cluster.is_down = True
    with pytest.raises(
        ClusterUnreachable, match=f"'{orphaned.orphan}', and whether it names an orphan nobody can say; the queue"
    ):
        named(orphaned.scene, ["b/finetune", orphaned.orphan])
    assert [step.key for step in named(orphaned.scene, ["b/finetune"])[2]] == ["b/finetune"]
