"""A pause: nothing starts while it lasts, and what it held, and only that, starts again."""

from __future__ import annotations

import pytest

from reconciler.errors import SubmissionUncertain, UsageError
from reconciler.loop import preview
from reconciler.model import Condition
from reconciler.pausing import pause, resume
from test_pass import lab, order, start  # noqa: F401 - the fixture
from test_words import deafly


def say_pause(world, until=None, why=""):
    return pause(world.scene, until, why, lambda prospect: True)


def say_resume(world):
    return resume(world.scene, "", lambda prospect: True)


def job_of(world, key):
    return world.cluster.jobs[preview(world.scene).plan.of(key).job]


def reason_of(world, key):
    return preview(world.scene).plan.of(key).reason


def test_nothing_is_submitted_while_paused_and_it_goes_on_when_resumed(lab):  # noqa: F811
    say_pause(lab, why="the data are moving")
    for _ in range(3):
        assert all(
            outcome.action.reason.code == "Paused" for outcome in lab.run().outcomes if not outcome.action.step.endswith("epoch0")
        )
    assert not lab.cluster.submissions
    assert "paused by u: the data are moving" in reason_of(lab, "a/finetune").message
    say_resume(lab)
    lab.run()
    assert len(lab.cluster.submissions) == 3


def test_a_pause_ends_by_itself_when_its_date_has_come(lab):  # noqa: F811
    lab.run()
    say_pause(lab, "+2h")
    lab.run(3600)
    assert all(job.held for job in lab.cluster.jobs.values())
    lab.run(3700)
    assert not any(job.held for job in lab.cluster.jobs.values())
    lab.run()
    assert set(lab.conditions().values()) <= {Condition.QUEUED, Condition.WAITING}
    assert len(lab.cluster.submissions) == 3


def test_queued_jobs_are_held_and_running_ones_run_on(lab):  # noqa: F811
    lab.run()
    running = start(lab, "a/finetune")
    say_pause(lab)
    assert not lab.cluster.jobs[running].held
    assert job_of(lab, "b/finetune").held
    assert lab.conditions()["a/finetune"] is Condition.RUNNING
    assert lab.conditions()["b/finetune"] is Condition.WAITING
    lab.finish("a/finetune")
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.DONE
    assert reason_of(lab, "a/eval/cap_epoch0").code == "Paused"
    say_resume(lab)
    assert not job_of(lab, "b/finetune").held


def test_a_job_that_a_person_held_before_or_meanwhile_stays_held(lab):  # noqa: F811
    lab.run()
    by_scontrol = job_of(lab, "a/finetune").id
    lab.cluster.hold(by_scontrol)
    order(lab, "hold", "b/finetune", why="ask Ben")
    say_pause(lab)
    lab.run()
    order(lab, "hold", "base/eval/cap_base")
    say_resume(lab)
    for _ in range(3):
        lab.run()
    assert all(job.held for job in lab.cluster.jobs.values())
    assert reason_of(lab, "a/finetune").code == "JobHeld"
    assert "held by u: ask Ben" in reason_of(lab, "b/finetune").message
    order(lab, "release", "b/finetune", "base/eval/cap_base")
    assert not job_of(lab, "b/finetune").held
    assert not job_of(lab, "base/eval/cap_base").held


def test_a_step_released_while_paused_starts_with_the_others(lab):  # noqa: F811
    lab.run()
    order(lab, "hold", "a/finetune")
    say_pause(lab)
    order(lab, "release", "a/finetune")
    lab.run()
    assert job_of(lab, "a/finetune").held
    say_resume(lab)
    lab.run()
    assert not job_of(lab, "a/finetune").held


def test_a_job_that_a_person_lets_go_by_hand_in_a_pause_is_not_held_again(lab):  # noqa: F811
    lab.run()
    say_pause(lab)
    lab.cluster.release(job_of(lab, "a/finetune").id)
    for _ in range(3):
        lab.run()
    assert not job_of(lab, "a/finetune").held
    assert job_of(lab, "b/finetune").held


def test_a_hold_and_a_pause_that_did_not_reach_the_cluster_are_carried_out_by_the_next_pass(lab):  # noqa: F811
    lab.run()
    deafly(lab, lambda: order(lab, "hold", "a/finetune"))
    assert not job_of(lab, "a/finetune").held
    lab.run()
    assert job_of(lab, "a/finetune").held
    deafly(lab, lambda: say_pause(lab))
    lab.run()
    assert all(job.held for job in lab.cluster.jobs.values())
    deafly(lab, lambda: say_resume(lab))
    lab.run()
    assert [job.held for job in lab.cluster.jobs.values()].count(True) == 1
    deafly(lab, lambda: order(lab, "release", "a/finetune"))
    lab.run()
    assert not any(job.held for job in lab.cluster.jobs.values())


def test_a_replacement_that_is_held_for_another_reason_does_not_start_in_a_pause(lab):  # noqa: F811
    lab.cluster.fails_with = [SubmissionUncertain("timed out")]
    lab.run()
    lab.run(lab.policy.grace + 1)
    replacement = next(job for job in lab.cluster.jobs.values() if job.held)
    say_pause(lab)
    for _ in range(3):
        lab.run(lab.policy.grace)
    assert lab.cluster.jobs[replacement.id].held
    say_resume(lab)
    lab.run()
    lab.run()
    assert not any(job.held for job in lab.cluster.jobs.values())


def test_a_job_that_surfaces_late_is_held_too(lab):  # noqa: F811
    lab.run()
    hidden = job_of(lab, "a/finetune")
    del lab.cluster.jobs[hidden.id]
    say_pause(lab)
    lab.cluster.jobs[hidden.id] = hidden
    lab.run()
    assert lab.cluster.jobs[hidden.id].held


def test_a_bad_date_is_refused_and_nothing_is_done(lab):  # noqa: F811
    lab.run()
    before = lab.tree()
    with pytest.raises(UsageError, match="accepted"):
        say_pause(lab, "someday")
    assert lab.tree() == before


def test_to_resume_what_is_not_paused_says_so_and_does_nothing(lab):  # noqa: F811
    lab.run()
    before = lab.tree()

    def confirm(prospect):
        raise AssertionError("nothing is shown before there is something to resume")

    assert "not paused" in resume(lab.scene, "", confirm)[0].message
    assert lab.tree() == before


def test_a_pause_that_the_cluster_refuses_for_one_job_holds_every_other_one(lab):  # noqa: F811
    lab.run()
    job = job_of(lab, "a/finetune").id
    heard = deafly(lab, lambda: say_pause(lab), job)
    assert heard == f"paused until you resume it; job {job} could not be held: Socket timed out; the next pass does it"
    assert {other.id for other in lab.cluster.jobs.values() if not other.held} == {job}
    lab.run()
    assert all(other.held for other in lab.cluster.jobs.values())
    heard = deafly(lab, lambda: say_resume(lab), job)
    assert heard == f"submissions go on; job {job} could not be released: Socket timed out; the next pass does it"
    assert {other.id for other in lab.cluster.jobs.values() if other.held} == {job}
    lab.run()
    assert not any(other.held for other in lab.cluster.jobs.values())
