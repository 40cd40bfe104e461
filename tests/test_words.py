"""A person's word, verb by verb and by how the step stands: what becomes of its job, what is written down, what is answered."""

# ruff: noqa: F811 - the fixtures are another module's
from __future__ import annotations

import io
import os
import shutil
from dataclasses import replace
from functools import partial

import pytest

from reconciler.cli.commands import Asked, _say
from reconciler.errors import AnotherPass, ClusterUnreachable, SubmissionUncertain, UsageError
from reconciler.handover import accept_identity
from reconciler.ledger import Ledger
from reconciler.lock import pass_lock
from reconciler.loop import Scene, preview
from reconciler.model import Condition, Job, Outputs, OutputState, Phase, Reason, Stage
from reconciler.pausing import pause, resume
from reconciler.words import Deed, Order, Skipped, carry_out, release_experiment
from test_pass import Lab, drop_run_a, lab, order, start  # noqa: F401 - the fixture
from worlds import MemoryCluster, StandInTool

A, B, EVAL, BASE = "a/finetune", "b/finetune", "a/eval/cap_epoch0", "base/eval/cap_base"


@pytest.fixture
def queued(lab: Lab) -> Lab:
    """An experiment whose three first steps are in the queue."""
    lab.run()
    return lab


def job_of(lab: Lab, key: str) -> str:
    found = preview(lab.scene).plan.of(key).job
    assert found is not None
    return found


def written(lab: Lab, *kinds: str) -> list[dict]:
    events = Ledger(lab.directory.resolve(), lambda: 0.0).events()
    return [{k: v for k, v in e.items() if k != "at"} for e in events if e["event"] in kinds]


def finished(lab: Lab, key: str = A, content: str | None = "whole", state: str = "COMPLETED") -> None:
    lab.finish(key, content, state)
    lab.run()
    lab.run()


def code(lab: Lab, key: str) -> str:
    return preview(lab.scene).plan.of(key).reason.code


# --- hold --------------------------------------------------------------------------------------------


def test_hold_keeps_a_step_that_was_not_submitted_from_being_submitted(lab):
    answer = order(lab, "hold", B, why="wait for Ana")
    assert [(d.step, d.message) for d in answer] == [(B, "held until you release it")]
    lab.run()
    assert code(lab, B) == "HeldByPerson"
    assert len(lab.cluster.submissions) == 2
    assert written(lab, "hold") == [{"event": "hold", "step": B, "user": "u", "why": "wait for Ana"}]


def test_hold_of_a_queued_job_holds_it_in_the_queue_and_release_lets_it_go(queued):
    job, other = job_of(queued, A), job_of(queued, B)
    (held,) = order(queued, "hold", A)
    assert held.message == f"job {job} held until you release it"
    assert queued.cluster.jobs[job].held
    assert not queued.cluster.jobs[other].held
    queued.run()
    assert queued.conditions()[A] is Condition.HELD
    (released,) = order(queued, "release", A)
    assert job in released.message
    assert not queued.cluster.jobs[job].held
    queued.run()
    assert queued.conditions()[A] is Condition.QUEUED


def test_hold_of_a_running_job_lets_it_run_on_and_says_so(queued):
    job = start(queued, A)
    (held,) = order(queued, "hold", A)
    assert held.message.endswith("runs on")
    assert job not in held.message
    assert (queued.cluster.jobs[job].state, queued.cluster.jobs[job].held) == ("RUNNING", False)


@pytest.mark.parametrize("is_paused", [False, True])
def test_release_lets_go_of_what_it_tells_also_of_a_job_submitted_by_hand(lab, is_paused):
    job = by_hand(lab)
    order(lab, "hold", A)
    assert lab.cluster.jobs[job].held
    if is_paused:
        pause(lab.scene, None, "", lambda prospect: True)
    heard = []
    (answer,) = carry_out(lab.scene, Order("release", (A,)), lambda prospect: heard.append(prospect) or True)
    assert heard[0].sentences[0].endswith(f"job {job} may start")
    assert answer.message == f"released; job {job} may start"
    assert not lab.cluster.jobs[job].held
    lab.run()
    assert lab.conditions()[A] is Condition.QUEUED


def test_who_held_a_job_submitted_by_hand_and_why_is_told_before_and_after_it_is_taken_over(lab):
    job = by_hand(lab)
    order(lab, "hold", A, why="ask Ben")
    for expected in ("LiveJobFound", "HeldByPerson", "HeldByPerson"):
        action = preview(lab.scene).plan.of(A)
        assert (action.condition, action.reason.code) == (Condition.HELD, expected)
        assert "held by u: ask Ben" in action.reason.message
        lab.run()
    assert lab.cluster.jobs[job].held
    order(lab, "release", A)
    lab.run()
    assert lab.conditions()[A] is Condition.QUEUED


def test_release_of_what_is_done_says_that_what_follows_may_start(queued):
    finished(queued)
    heard = []
    (answer,) = carry_out(queued.scene, Order("release", (A,)), lambda prospect: heard.append(prospect) or True)
    assert heard[0].sentences[0].endswith("what follows it may start")
    assert answer.message == "released; what follows it may start"


def test_hold_of_outputs_that_another_definition_made_does_not_call_them_done(queued):
    other = Outputs(OutputState.MISMATCH, Reason("Drifted", "launched with lr 1e-4"))
    queued.cluster.finish(job_of(queued, A), "COMPLETED", queued.now)
    with pytest.raises(UsageError, match=r"of another definition .accept or rerun it.; there is nothing to hold"):
        carry_out(told_otherwise(queued, Other(other)), Order("hold", (A,)), lambda prospect: True)


def test_words_about_half_a_training_of_another_definition_promise_nothing_that_does_not_happen(queued):
    reason = Reason("Drifted", "trained with lr 1e-4; and epoch_1: is missing; rerun it, or put it back as it was")
    half = Outputs(OutputState.MISMATCH, reason, has_work=True, whole=1)
    finished(queued, A, "torn", "FAILED")
    scene, heard = told_otherwise(queued, Other(half)), []
    (released,) = carry_out(scene, Order("release", (A,)), lambda prospect: heard.append(prospect) or True)
    assert heard[0].sentences[0].endswith("nothing follows from that while what is there is of another definition")
    assert released.message == f"released, and nothing follows: {reason.message}"
    assert preview(scene).plan.of(A).reason.code == "Drifted"
    (accepted,) = carry_out(scene, Order("accept", (A,)), lambda prospect: heard.append(prospect) or True)
    assert heard[1].sentences[0].endswith("its outputs count as done by your word")
    assert accepted.message == f"accepted as done, although {reason.message}"
    assert preview(scene).plan.of(A).condition is Condition.DONE


def test_release_of_a_job_that_nobody_held_leaves_the_queue_alone(queued):
    class Untouched(MemoryCluster):
        def release(self, job_id):
            raise AssertionError("nothing is to be released")

    queued.cluster = Untouched(queued.cluster.jobs)
    (released,) = order(queued, "release", A)
    assert released.message.startswith("released")
    assert written(queued, "release") == [{"event": "release", "step": A, "user": "u", "why": ""}]


def test_release_leaves_a_replacement_held_that_may_not_start_yet(lab):
    lab.policy = replace(lab.policy, max_in_flight=1)
    lab.cluster.fails_with = [SubmissionUncertain("timed out")]
    lab.run()
    lab.run(lab.policy.grace)
    (job,) = lab.cluster.jobs.values()
    assert job.held
    key = next(a.step for a in preview(lab.scene).actions if a.job == job.id)
    order(lab, "release", key)
    assert lab.cluster.jobs[job.id].held


def test_what_an_evaluation_in_flight_reads_is_not_rerun_without_it(queued):
    finished(queued)
    job = job_of(queued, EVAL)
    with pytest.raises(UsageError, match=f"{A}: job {job} of {EVAL}.*--with-dependents"):
        order(queued, "rerun", A)
    assert [d.step for d in order(queued, "rerun", A, EVAL)] == [A, EVAL]


def test_a_failed_step_that_is_released_is_tried_again(queued):
    finished(queued, A, None, "FAILED")
    assert queued.conditions()[A] is Condition.FAILED
    order(queued, "release", A)
    queued.run()
    assert queued.conditions()[A] is Condition.QUEUED
    assert len(queued.cluster.submissions) == 4


# --- cancel ------------------------------------------------------------------------------------------


def test_cancel_ends_a_queued_and_a_running_job_and_holds_their_steps(queued):
    queued_job, running = job_of(queued, A), start(queued, B)
    answer = order(queued, "cancel", A, B)
    assert [(d.step, job in d.message) for d, job in zip(answer, (queued_job, running), strict=True)] == [(A, True), (B, True)]
    assert all(queued.cluster.jobs[job].state == "CANCELLED" for job in (queued_job, running))
    queued.run()
    queued.run(1000)
    assert (queued.conditions()[A], queued.conditions()[B]) == (Condition.HELD, Condition.HELD)
    assert len(queued.cluster.submissions) == 3


def test_cancel_of_a_step_that_was_not_submitted_holds_it(lab):
    (answer,) = order(lab, "cancel", A)
    assert answer.message.startswith("held")
    lab.run()
    assert code(lab, A) == "CancelledByPerson"


def test_the_word_is_written_before_the_job_is_cancelled(queued):
    class Watching(MemoryCluster):
        def cancel(self, job_id):
            assert written(queued, "cancel")
            super().cancel(job_id)

    queued.cluster = Watching(queued.cluster.jobs)
    order(queued, "cancel", A)
    assert "CANCELLED" in {job.state for job in queued.cluster.jobs.values()}


@pytest.mark.parametrize("verb", ["hold", "cancel"])
def test_what_is_drifted_is_done_and_can_be_neither_held_nor_cancelled(queued, verb):
    finished(queued)
    (queued.directory / "a" / "finetune.slurm").write_text("#!/bin/bash\necho other\n")
    assert queued.conditions()[A] is Condition.DRIFTED
    with pytest.raises(UsageError, match=f"{A}: .*{verb}"):
        order(queued, verb, A)


def goes_on(lab: Lab, key: str = A) -> bool:
    """Whether the step is submitted again by itself."""
    before = len(lab.cluster.submissions)
    for _ in range(4):
        lab.run(100)
    return lab.conditions()[key] is Condition.QUEUED and len(lab.cluster.submissions) == before + 1


@pytest.mark.parametrize("is_running", [False, True])
def test_a_cancel_is_undone_by_release_also_with_no_pass_between(queued, is_running):
    job = start(queued, A) if is_running else job_of(queued, A)
    order(queued, "cancel", A)
    order(queued, "release", A)
    assert goes_on(queued)
    (end,) = written(queued, "ended")
    assert (end["job"], end["failure"]) == (job, "CancelledByUs")


def test_a_step_that_was_cancelled_and_released_is_submitted_as_if_nothing_had_been_said(queued):
    order(queued, "cancel", A)
    for _ in range(3):
        queued.run()
    order(queued, "release", A)
    reason = preview(queued.scene).plan.of(A).reason
    assert (reason.code, reason.message) == ("NotStarted", "not started; the next pass submits it")
    assert goes_on(queued)


def test_a_cancelled_job_whose_end_comes_to_light_after_the_release_is_no_failure(queued):
    job = start(queued, A)
    shown = queued.cluster.jobs[job]
    order(queued, "cancel", A)
    queued.cluster.jobs[job] = replace(shown, state="COMPLETING")
    order(queued, "release", A)
    queued.run()
    queued.cluster.finish(job, "CANCELLED", queued.now)
    assert goes_on(queued)


def test_a_cancelled_job_that_nothing_tells_of_any_more_is_no_failure(queued):
    job = job_of(queued, A)
    order(queued, "cancel", A)
    del queued.cluster.jobs[job]
    order(queued, "release", A)
    queued.run(queued.policy.grace + 1)
    assert goes_on(queued)


def test_a_failure_that_was_shown_and_is_not_in_writing_is_released_too(queued):
    queued.finish(A, None, "FAILED")
    order(queued, "release", A)
    assert goes_on(queued)


def test_an_ended_jobs_outputs_are_waited_for_also_after_a_release(queued):
    queued.finish(A, None, "FAILED")
    order(queued, "release", A)
    queued.run(queued.policy.settle / 2)
    assert queued.conditions()[A] is Condition.VERIFYING
    queued.finish(A, "whole", "FAILED")
    queued.run()
    queued.run()
    assert queued.conditions()[A] is Condition.DONE


def test_a_job_that_a_person_cancels_after_a_release_is_theirs(queued):
    order(queued, "cancel", A)
    order(queued, "release", A)
    assert goes_on(queued)
    queued.cluster.finish(job_of(queued, A), "CANCELLED", queued.now)
    queued.run()
    queued.run(100)
    assert code(queued, A) == "CancelledByPerson"


# --- rerun -------------------------------------------------------------------------------------------


def test_rerun_says_what_it_will_do_and_asks_where_a_result_is_replaced(queued):
    heard = []

    def confirm(prospect):
        heard.append(prospect)
        return False

    assert carry_out(queued.scene, Order("rerun", (B,)), confirm) == ()
    assert not heard[0].asks
    order(queued, "hold", EVAL)
    finished(queued)
    before = queued.tree()
    assert carry_out(queued.scene, Order("rerun", (A, BASE)), confirm) == ()
    assert queued.tree() == before
    assert heard[1].asks
    one, two = heard[1].sentences
    assert all(part in one for part in ("rerun", A, "Done", "out/finetune is moved aside", EVAL, "--with-dependents"))
    assert all(part in two for part in ("rerun", BASE, "Queued"))
    assert "aside" not in two
    assert "depend" not in two
    carry_out(queued.scene, Order("rerun", (A,), with_dependents=True), confirm)
    assert len(heard[2].sentences) == 2
    assert "depend" not in heard[2].sentences[0]
    carry_out(queued.scene, Order("hold", (BASE,)), confirm)
    assert not heard[3].asks
    assert "aside" not in heard[3].sentences[0]


def test_rerun_asks_before_a_drifted_result_is_replaced(queued):
    finished(queued, BASE)
    (queued.directory / "base" / "eval" / "cap_base.slurm").write_text("#!/bin/bash\necho other\n")
    heard = []
    carry_out(queued.scene, Order("rerun", (BASE,)), lambda prospect: heard.append(prospect) or False)
    assert heard[0].asks


def test_rerun_remembers_when_what_it_replaces_was_written(queued):
    order(queued, "hold", EVAL)
    finished(queued)
    written_at = (queued.directory / "a" / "out" / "finetune" / "result").stat().st_mtime
    (answer,) = order(queued, "rerun", A)
    assert answer == Deed(A, "the next pass submits it again; until then `accept` takes that back")
    order(queued, "release", EVAL)
    order(queued, "rerun", B, now=True)
    assert [e["newest"] for e in written(queued, "rerun")] == [written_at, None]


def test_rerun_replaces_a_queued_job_at_once_and_a_running_one_only_when_told_to(queued):
    job = job_of(queued, A)
    (answer,) = order(queued, "rerun", A)
    assert job in answer.message
    assert queued.cluster.jobs[job].state == "CANCELLED"
    running = start(queued, B)
    with pytest.raises(UsageError, match=f"{running}.*--now"):
        order(queued, "rerun", B)
    assert queued.cluster.jobs[running].state == "RUNNING"
    order(queued, "rerun", B, now=True)
    assert queued.cluster.jobs[running].state == "CANCELLED"


def test_nothing_is_rerun_while_nobody_knows_what_became_of_it(queued):
    del queued.cluster.jobs[job_of(queued, A)]
    queued.run()
    assert queued.conditions()[A] is Condition.UNKNOWN
    with pytest.raises(UsageError, match=f"{A}: .*before that is known"):
        order(queued, "rerun", A)
    shown = queued.cluster.jobs[job_of(queued, B)]
    queued.cluster.jobs[shown.id] = replace(shown, state="REVOKED", phase=Phase.UNKNOWN)
    assert queued.conditions()[B] is Condition.UNKNOWN
    order(queued, "rerun", B, now=True)
    assert queued.cluster.jobs[shown.id].state == "CANCELLED"


class Other(StandInTool):
    """A trainer whose steps and outputs are other than they were."""

    def __init__(self, found: Outputs | None = None, **changes) -> None:
        super().__init__(Stage.FINETUNE)
        self.found, self.changes = found, changes

    def read(self, run, disk):
        reading = super().read(run, disk)
        changes = {name: value(run) if callable(value) else value for name, value in self.changes.items()}
        return replace(reading, steps=tuple(replace(step, **changes) for step in reading.steps))

    def check(self, step, disk, deep=False):
        return self.found or super().check(step, disk, deep)


def told_otherwise(lab: Lab, tool: StandInTool) -> Scene:
    return replace(lab.scene, tools={**lab.scene.tools, "trainer": tool})


def test_rerun_refuses_to_move_a_directory_that_holds_its_own_script(queued):
    order(queued, "hold", EVAL)
    finished(queued)
    everything = told_otherwise(queued, Other(output_dir=lambda run: run.directory))
    with pytest.raises(UsageError, match=f"{A}: .*by hand"):
        carry_out(everything, Order("rerun", (A,)), lambda prospect: True)
    assert written(queued, "rerun") == []


def test_a_run_that_is_at_fault_can_be_neither_rerun_nor_accepted_but_held(queued):
    at_fault = told_otherwise(queued, Other(blocked=Reason("NotScaffolded", "no script is there")))
    for verb in ("rerun", "accept"):
        with pytest.raises(UsageError, match=f"{A}: no script is there"):
            carry_out(at_fault, Order(verb, (A,)), lambda prospect: True)
    (held,) = carry_out(at_fault, Order("hold", (A,)), lambda prospect: True)
    assert held.step == A


def test_dependents_are_rerun_with_what_they_depend_on_and_nothing_else_is(queued):
    finished(queued)
    assert queued.conditions()[EVAL] is Condition.QUEUED
    answer = order(queued, "rerun", A, with_dependents=True)
    assert [d.step for d in answer] == [A, EVAL]
    assert {e["step"] for e in written(queued, "rerun")} == {A, EVAL}


def test_a_fine_tune_is_rerun_where_its_evaluation_is_over(queued):
    finished(queued)
    finished(queued, EVAL)
    assert [d.step for d in order(queued, "rerun", A)] == [A]
    assert queued.conditions()[EVAL] is Condition.DONE


class Chained(Lab):
    """Run ``b`` begins from what run ``a`` made."""

    @property
    def scene(self) -> Scene:
        found = super().scene
        trainer = _Beginner(Stage.FINETUNE)
        return replace(found, tools={**found.tools, trainer.name: trainer})


class _Beginner(StandInTool):
    def _step(self, run, key, script):
        step = super()._step(run, key, script)
        return replace(step, reads=(run.directory.parent / "a" / "out" / "finetune",) if run.name == "b" else ())


@pytest.fixture
def chained(lab) -> Lab:
    """Run ``a`` is trained, and the fine-tune of ``b`` is in the queue."""
    world = Chained(lab.directory, lab.cluster)
    world.run()
    assert code(world, B) == "NeedUnmet"
    finished(world)
    return world


def test_what_another_run_begins_from_is_not_rerun_while_that_ones_job_may_read_it(chained):
    order(chained, "cancel", EVAL)
    job = start(chained, B)
    with pytest.raises(UsageError, match=f"{A}: job {job} of {B} needs it; say --with-dependents"):
        order(chained, "rerun", A)
    chained.run()
    assert (chained.directory / "a" / "out" / "finetune" / "result").read_text() == "whole"
    assert chained.cluster.jobs[job].state == "RUNNING"
    answer = order(chained, "rerun", A, with_dependents=True, now=True)
    assert [d.step for d in answer] == [A, EVAL, B, "b/eval/cap_epoch0"]
    assert chained.cluster.jobs[job].state == "CANCELLED"


def test_a_run_that_begins_from_a_checkpoint_that_was_trained_anew_says_so_and_is_trained_again_by_name_alone(chained):
    order(chained, "cancel", EVAL, "b/eval/cap_epoch0")
    finished(chained, B)
    order(chained, "rerun", A)
    chained.run()
    finished(chained, A)
    assert chained.conditions()[B] is Condition.DONE
    assert "a/finetune was trained anew since (`rerun` trains it again)" in preview(chained.scene).plan.of(B).reason.message
    assert [d.message for d in order(chained, "rerun", "*", stale=True)] == ["no result is known to be of an older version"]
    assert [d.step for d in order(chained, "rerun", B, stale=True)] == [B]


class Deaf(MemoryCluster):
    """A cluster that does not do what it is told, about some jobs or all."""

    def __init__(self, jobs, *deaf_to):
        super().__init__(jobs)
        self.deaf_to = deaf_to

    def _hear(self, job_id):
        if not self.deaf_to or job_id in self.deaf_to:
            raise ClusterUnreachable("Socket timed out")

    def cancel(self, job_id):
        self._hear(job_id)
        super().cancel(job_id)

    def hold(self, job_id):
        self._hear(job_id)
        super().hold(job_id)

    def release(self, job_id):
        self._hear(job_id)
        super().release(job_id)


def deafly(lab: Lab, say, *deaf_to: str) -> str:
    """What a person hears where the cluster does not do what the word asks."""
    hearing, lab.cluster = lab.cluster, Deaf(lab.cluster.jobs, *deaf_to)
    try:
        with pytest.raises(ClusterUnreachable) as raised:
            say()
    finally:
        lab.cluster = hearing
    return str(raised.value)


@pytest.mark.parametrize("verb", ["hold", "cancel", "rerun"])
def test_a_word_that_the_cluster_refuses_for_one_job_is_said_of_every_step_and_done_to_every_other_job(queued, verb):
    jobs = {key: job_of(queued, key) for key in (A, B, BASE)}
    heard = deafly(queued, lambda: order(queued, verb, A, B, BASE), jobs[A])
    done = "held" if verb == "hold" else "cancelled"
    assert heard == f"said of all 3 steps; job {jobs[A]} could not be {done}: Socket timed out; the next pass does it"
    assert [event["step"] for event in written(queued, verb)] == [A, B, BASE]
    before = {key: queued.cluster.jobs[job] for key, job in jobs.items()}
    assert [job.held or not job.is_live for job in before.values()] == [False, True, True]
    queued.run()
    after = queued.cluster.jobs[jobs[A]]
    assert after.held if verb == "hold" else not after.is_live


def test_jobs_that_could_not_be_released_are_told_together(queued):
    jobs = [job_of(queued, key) for key in (A, B)]
    order(queued, "hold", A, B)
    heard = deafly(queued, lambda: order(queued, "release", A, B))
    assert heard == f"said of all 2 steps; jobs {', '.join(jobs)} could not be released: Socket timed out; the next pass does it"
    for _ in range(3):
        queued.run()
    assert not any(queued.cluster.jobs[job].held for job in jobs)


@pytest.mark.parametrize("verb", ["hold", "cancel"])
def test_a_job_by_hand_that_the_cluster_did_not_hear_of_asks_for_the_word_again(lab, verb):
    job = by_hand(lab)
    assert deafly(lab, lambda: order(lab, verb, A)).endswith("Socket timed out; say it again")
    order(lab, verb, A)
    assert lab.cluster.jobs[job].held or not lab.cluster.jobs[job].is_live


@pytest.mark.parametrize("is_running", [False, True])
def test_a_rerun_that_did_not_reach_the_cluster_is_carried_out_by_the_next_pass(queued, is_running):
    job = start(queued, A) if is_running else job_of(queued, A)
    deafly(queued, lambda: order(queued, "rerun", A, now=True))
    assert queued.cluster.jobs[job].is_live
    assert code(queued, A) == "Rerun"
    queued.run()
    assert queued.cluster.jobs[job].state == "CANCELLED"
    for _ in range(3):
        queued.run()
    again = job_of(queued, A)
    assert again != job
    assert [j.id for j in queued.cluster.jobs.values() if j.is_live and j.name[:-1] == queued.cluster.jobs[job].name[:-1]] == [
        again
    ]
    finished(queued)
    assert queued.conditions()[A] is Condition.DONE
    assert len(queued.cluster.submissions) == 5
    assert not list((queued.directory / "a" / "out").glob("moved-aside-*"))


@pytest.mark.parametrize("verb", ["rerun", "cancel"])
def test_a_job_that_is_still_to_be_cancelled_is_not_accepted(queued, verb):
    job = job_of(queued, A)
    deafly(queued, lambda: order(queued, verb, A))
    with pytest.raises(UsageError, match=f"{A}: job {job} is (replaced by `rerun`, and the next pass cancels|to be cancelled)"):
        order(queued, "accept", A)
    assert written(queued, "placed") == []
    queued.run()
    assert queued.cluster.jobs[job].state == "CANCELLED"


def test_a_cancelled_job_that_is_still_there_stands_once_it_is_released_and_a_replaced_one_does_not(queued):
    jobs = {key: job_of(queued, key) for key in (A, B)}
    queued.cluster.hold(jobs[B])
    deafly(queued, lambda: order(queued, "cancel", A))
    deafly(queued, lambda: order(queued, "rerun", B))
    answers = order(queued, "release", A, B)
    assert not any("may start" in answer.message for answer in answers)
    order(queued, "accept", A)
    queued.run()
    assert queued.cluster.jobs[jobs[A]].is_live
    assert queued.cluster.jobs[jobs[B]].state == "CANCELLED"


def test_what_a_replaced_job_wrote_in_its_last_second_is_old(queued):
    """Slurm gives the whole second in which a job ended."""
    job = start(queued, A)
    order(queued, "rerun", A, now=True)
    result = queued.directory / "a" / "out" / "finetune" / "result"
    result.parent.mkdir(parents=True)
    result.write_text("whole")
    queued.now += 3
    os.utime(result, (queued.now + 0.9, queued.now + 0.9))
    queued.cluster.finish(job, "CANCELLED", queued.now)
    queued.run()
    assert [p.read_text() for p in (queued.directory / "a" / "out").glob("moved-aside-*/finetune/result")] == ["whole"]
    assert queued.conditions()[A] is Condition.QUEUED


# --- accept ------------------------------------------------------------------------------------------


def test_accepting_a_failed_result_makes_it_a_persons(queued):
    finished(queued, A, "torn", "FAILED")
    (answer,) = order(queued, "accept", A, why="good enough")
    assert answer.step == A
    (done,) = written(queued, "done")
    step = preview(queued.scene).desired.step(A)
    assert done == {
        "event": "done", "step": A, "user": "u", "why": "good enough", "definition": step.definition, "meaning": {}, "inputs": {},
        "by_person": True, "evidence": [],
    }  # fmt: skip
    assert queued.conditions()[A] is Condition.DONE


def test_accepting_a_drifted_result_keeps_its_evidence_under_the_new_definition(queued):
    finished(queued)
    (queued.directory / "a" / "finetune.slurm").write_text("#!/bin/bash\necho other\n")
    order(queued, "accept", A)
    first, second = written(queued, "done")
    assert first["definition"] != second["definition"] == preview(queued.scene).desired.step(A).definition
    assert second["evidence"] == first["evidence"] != []


def test_a_drifted_result_whose_files_were_purged_can_still_be_accepted(queued):
    finished(queued)
    shutil.rmtree(queued.directory / "a" / "out")
    (queued.directory / "a" / "finetune.slurm").write_text("#!/bin/bash\necho other\n")
    order(queued, "accept", A)
    assert queued.conditions()[A] is Condition.DONE


def test_there_must_be_something_to_accept(queued):
    with pytest.raises(UsageError, match=f"{EVAL}: there is no result"):
        order(queued, "accept", EVAL)
    running = start(queued, A)
    with pytest.raises(UsageError, match=f"{A}: job {running} may be running"):
        order(queued, "accept", A)
    finished(queued, A, None, "FAILED")
    with pytest.raises(UsageError, match=f"{A}: there are no outputs"):
        order(queued, "accept", A)
    assert written(queued, "done", "placed") == []


def test_an_evaluation_that_slurm_calls_completed_is_accepted_wherever_its_log_went(queued):
    finished(queued)
    queued.run()
    for state, is_taken in (("FAILED", False), ("COMPLETED", True)):
        queued.finish(EVAL, None, state)
        queued.run(1000)
        queued.run(1000)
        if not is_taken:
            with pytest.raises(UsageError, match=f"{EVAL}: there are no outputs to accept"):
                order(queued, "accept", EVAL)
            order(queued, "release", EVAL)
            queued.run()
    (accepted,) = order(queued, "accept", EVAL)
    assert accepted.message.startswith("accepted as done, although ")
    assert queued.conditions()[EVAL] is Condition.DONE


def test_what_cannot_be_read_cannot_be_accepted(queued):
    finished(queued)
    (queued.directory / "a" / "finetune.slurm").write_text("#!/bin/bash\necho other\n")
    unreadable = Outputs(OutputState.UNKNOWN, Reason("DiskUnreadable", "Stale file handle"))
    with pytest.raises(UsageError, match=f"{A}: Stale file handle"):
        carry_out(told_otherwise(queued, Other(unreadable)), Order("accept", (A,)), lambda prospect: True)


def test_accepting_a_queued_job_lets_it_stand_and_is_about_its_attempt(queued):
    job = job_of(queued, A)
    (answer,) = order(queued, "accept", A)
    assert job in answer.message
    assert written(queued, "placed") == [{"event": "placed", "step": A, "user": "u", "why": "", "attempt": 1, "placement": "p"}]
    assert written(queued, "done") == []


def by_hand(lab: Lab, key: str = A, **more) -> str:
    """A person submits the step's script by hand, and no pass has seen it yet."""
    step = preview(lab.scene).desired.step(key)
    lab.cluster.jobs["90"] = Job("90", step.job_name, "PENDING", Phase.QUEUED, str(step.workdir), submitted=lab.now, **more)
    return "90"


def test_a_job_submitted_by_hand_is_accepted_once_it_is_taken_over(lab):
    by_hand(lab)
    before = lab.tree()
    with pytest.raises(UsageError, match="job 90 is not in writing yet; `reconcile apply`"):
        order(lab, "accept", A)
    assert {name: text for name, text in lab.tree().items() if "lock" not in name} == before
    lab.run()
    order(lab, "accept", A)
    assert [event["attempt"] for event in written(lab, "placed")] == [1]
    assert lab.conditions()[A] is Condition.QUEUED


def test_a_fine_tune_that_left_no_epoch_is_not_accepted(queued):
    finished(queued, A, "torn", "FAILED")
    no_epoch = told_otherwise(queued, Other(checkpoints=lambda run: {0: run.directory / "out" / "finetune" / "epoch_0"}))
    with pytest.raises(UsageError, match=f"{A}: there is no checkpoint to accept"):
        carry_out(no_epoch, Order("accept", (A,)), lambda prospect: True)
    assert written(queued, "done") == []
    (queued.directory / "a" / "out" / "finetune" / "epoch_0").mkdir()
    carry_out(no_epoch, Order("accept", (A,)), lambda prospect: True)
    assert len(written(queued, "done")) == 1


def test_which_of_several_jobs_stands_is_not_guessed(queued):
    first = job_of(queued, A)
    queued.cluster.jobs["77"] = replace(queued.cluster.jobs[first], id="77")
    with pytest.raises(UsageError, match=f"jobs {first}, 77 all belong to it; cancel all but one"):
        order(queued, "accept", A)
    assert written(queued, "placed") == []
    assert code(queued, A) == "SeveralJobs"


def test_a_job_that_may_be_another_steps_is_not_accepted(lab):
    evaluations = lab.directory / "a" / "eval"
    lab.document.write_text(lab.document.read_text().replace("| a | ✓ epoch 0 |", "| a | ✓ epoch 0,1 |"))
    shutil.copy(evaluations / "cap_epoch0.slurm", evaluations / "cap_epoch1.slurm")
    by_hand(lab, EVAL)
    assert code(lab, EVAL) == "AmbiguousJob"
    with pytest.raises(UsageError, match=f"{EVAL}: job 90 .*another's"):
        order(lab, "accept", EVAL)
    assert written(lab, "placed") == []
    assert code(lab, EVAL) == "AmbiguousJob"


def test_to_accept_what_is_done_and_verified_does_nothing_and_says_so(queued):
    finished(queued)
    (answer,) = order(queued, "accept", A, why="surely")
    assert answer == Skipped(A, "is done already; there is nothing to accept")
    assert len(written(queued, "done")) == 1
    assert preview(queued.scene).plan.of(A).reason.message == "its outputs were verified"
    queued.finish(B)
    (answer,) = order(queued, "accept", B)
    assert "the next pass writes that down" in answer.message
    queued.run()
    assert [event.get("by_person") for event in written(queued, "done")] == [None, None]


def test_a_rerun_is_taken_back_by_accept_before_anything_follows_it(queued):
    finished(queued)
    finished(queued, EVAL)
    before = preview(queued.scene)
    order(queued, "rerun", A, EVAL)
    order(queued, "rerun", A)
    answer = order(queued, "accept", A, EVAL, why="a mistake")
    assert [(d.step, d.message) for d in answer] == [(A, "its result stands as before"), (EVAL, "its result stands as before")]
    after = preview(queued.scene)
    for key in (A, EVAL):
        assert after.memory.of(key).done == before.memory.of(key).done
        assert after.plan.of(key) == before.plan.of(key)
        assert after.memory.of(key).words[-1].by_whom == "accepted by u: a mistake"
    submitted = len(queued.cluster.submissions)
    queued.run()
    assert len(queued.cluster.submissions) == submitted
    assert (queued.directory / "a" / "out" / "finetune" / "result").read_text() == "whole"


def test_a_rerun_that_was_submitted_is_not_taken_back(queued):
    order(queued, "hold", EVAL)
    finished(queued)
    order(queued, "rerun", A)
    queued.run()
    order(queued, "accept", A)
    assert written(queued, "restored") == []
    assert queued.conditions()[A] is Condition.QUEUED


# --- which steps, and when not -----------------------------------------------------------------------


def test_a_word_is_taken_in_the_documents_order_and_for_globs(queued):
    assert [d.step for d in order(queued, "hold", "b/*", "a/*")] == [A, EVAL, B, "b/eval/cap_epoch0"]


def test_several_jobs_of_one_step_are_all_named(queued):
    first = job_of(queued, A)
    queued.cluster.jobs["77"] = replace(queued.cluster.jobs[first], id="77")
    (answer,) = order(queued, "cancel", A)
    assert f"jobs {first}, 77" in answer.message


def test_a_step_that_a_glob_matched_is_skipped_where_the_word_makes_no_sense_and_one_that_is_named_refuses(queued):
    finished(queued)
    jobs = {key: job_of(queued, key) for key in (EVAL, B, BASE)}
    for verb in ("hold", "cancel"):
        with pytest.raises(UsageError, match=f"{A}: is done; there is nothing to {verb}"):
            order(queued, verb, "*", A)
        assert written(queued, verb) == []
        answer = order(queued, verb, "*")
        assert answer[-1] == Skipped(A, f"left as it is: is done; there is nothing to {verb}")
        assert {d.step for d in answer[:-1]} == {EVAL, B, BASE, "b/eval/cap_epoch0"}
        assert {e["step"] for e in written(queued, verb)} == {EVAL, B, BASE, "b/eval/cap_epoch0"}
    assert {queued.cluster.jobs[job].state for job in jobs.values()} == {"CANCELLED"}


def test_where_a_glob_leaves_nothing_every_reason_is_told(queued):
    finished(queued)
    finished(queued, EVAL)
    with pytest.raises(UsageError, match=rf"nothing was done:\n{A}: is done.*\n{EVAL}: is done"):
        order(queued, "hold", "a/*")
    with pytest.raises(UsageError, match=f"^{A}: is done"):
        order(queued, "hold", "a/fine*")
    assert written(queued, "hold") == []


def test_a_run_names_its_steps_and_a_slip_of_the_pen_is_told(queued):
    assert [d.step for d in order(queued, "hold", "a")] == [A, EVAL]
    with pytest.raises(UsageError, match="did you mean `base`"):
        order(queued, "hold", "bse")
    with pytest.raises(UsageError, match="did you mean `a/finetune`"):
        order(queued, "hold", "a/fintune")


def test_what_is_stale_is_rerun_but_for_what_cannot_be(queued):
    finished(queued)
    finished(queued, EVAL)
    finished(queued, BASE)
    (queued.directory / "task.py").write_text("new")
    order(queued, "rerun", EVAL, BASE)
    for key in (EVAL, BASE):
        queued.run()
        finished(queued, key)
    (queued.directory / "task.py").write_text("newer")
    Ledger(queued.directory.resolve(), lambda: queued.now).append("free", step=A, epochs=[0], bytes=1, user="u", why="")
    answer = order(queued, "rerun", "*", stale=True)
    assert [(d.step, isinstance(d, Skipped)) for d in answer] == [(BASE, False), (EVAL, True)]
    assert "its checkpoint is gone" in answer[1].message
    assert queued.conditions()[EVAL] is Condition.DRIFTED
    with pytest.raises(UsageError, match=f"{EVAL}: its checkpoint is gone"):
        order(queued, "rerun", EVAL, stale=True)


def test_a_fine_tune_is_not_rerun_under_an_evaluation_that_is_skipped(queued):
    finished(queued)
    running = start(queued, EVAL)
    answer = order(queued, "rerun", "*", with_dependents=True)
    skipped = {d.step: d.message for d in answer if isinstance(d, Skipped)}
    assert skipped.keys() == {A, EVAL}
    assert f"job {running} of {EVAL} needs it; wait" in skipped[A]
    assert queued.cluster.jobs[running].state == "RUNNING"
    with pytest.raises(UsageError, match=f"{EVAL}: .*--now"):
        order(queued, "rerun", A, with_dependents=True)
    assert queued.conditions()[A] is Condition.DONE


def test_a_word_is_not_given_while_a_pass_is_under_way(queued):
    with pass_lock(queued.directory.resolve()), pytest.raises(AnotherPass):
        order(queued, "hold", A)
    with pass_lock(queued.directory.resolve()), pytest.raises(AnotherPass):
        release_experiment(queued.scene)
    with pass_lock(queued.directory.resolve()), pytest.raises(AnotherPass):
        accept_identity(queued.scene, "moved")
    assert written(queued, "hold", "release") == []


@pytest.fixture
def stopped(queued: Lab) -> Lab:
    """An experiment whose submissions two failures stopped; the second of them no pass has written down yet."""
    queued.policy = replace(queued.policy, stop_after_failures=2)
    finished(queued, A, None, "FAILED")
    order(queued, "rerun", BASE)
    queued.finish(B, None, "FAILED")
    return queued


def test_releasing_the_experiment_is_a_word_on_no_step_and_submissions_go_on(stopped):
    assert code(stopped, BASE) == "ManyFailures"
    heard = []
    (answer,) = release_experiment(stopped.scene, "seen", lambda prospect: heard.append(prospect) or True)
    assert answer == Deed("", answer.message)
    assert A in heard[0].sentences[0]
    assert written(stopped, "release") == [{"event": "release", "user": "u", "why": "seen"}]
    stopped.run()
    assert stopped.conditions()[BASE] is Condition.QUEUED


def test_releasing_the_experiment_lets_jobs_go_to_nodes_that_failed_some(queued):
    for key in (A, B):
        (job,) = [job for job in queued.cluster.jobs.values() if job.id == preview(queued.scene).plan.of(key).job]
        queued.cluster.jobs[job.id] = replace(job, nodes="n1")
        queued.finish(key, None, "NODE_FAIL")
        queued.run(700)
    assert preview(queued.scene).plan.avoided == ("n1",)
    (answer,) = release_experiment(queued.scene)
    assert "although jobs failed with n1" in answer.message
    assert preview(queued.scene).plan.avoided == ()


@pytest.mark.parametrize("is_paused", [False, True])
def test_releasing_the_experiment_lifts_a_failed_canary_also_in_a_pause(lab, is_paused):
    lab.policy = replace(lab.policy, canary=600.0)
    lab.run()
    finished(lab, A, None, "FAILED")
    if is_paused:
        pause(lab.scene, None, "", lambda prospect: True)
    (answer,) = release_experiment(lab.scene)
    assert "although the first step failed" in answer.message
    resume(lab.scene, "", lambda prospect: True)
    lab.run()
    assert lab.conditions()[B] is Condition.QUEUED


def test_releasing_the_experiment_goes_on_without_a_canary_that_is_held_in_the_queue(lab):
    lab.policy = replace(lab.policy, canary=600.0)
    lab.run()
    order(lab, "hold", A)
    assert code(lab, B) == "CanaryHeld"
    (answer,) = release_experiment(lab.scene)
    assert "although the first step is held" in answer.message
    lab.run()
    assert (lab.conditions()[A], lab.conditions()[B]) == (Condition.HELD, Condition.QUEUED)
    assert lab.cluster.jobs[job_of(lab, A)].held


def test_where_no_failures_stop_submissions_there_is_nothing_to_release(queued):
    (answer,) = release_experiment(queued.scene)
    assert "nothing to release" in answer.message
    assert written(queued, "release") == []


def test_the_experiment_is_not_released_where_the_queue_is_down_by_a_stranger_or_where_a_person_says_no(stopped):
    stopped.cluster.is_down = True
    with pytest.raises(ClusterUnreachable):
        release_experiment(stopped.scene)
    stopped.cluster.is_down = False
    copy = stopped.directory.with_name("copy")
    shutil.copytree(stopped.directory, copy)
    with pytest.raises(UsageError, match="--copied"):
        release_experiment(replace(stopped, directory=copy).scene)
    assert release_experiment(stopped.scene, "", lambda prospect: False) == ()
    assert written(stopped, "release") == []


def test_the_job_of_a_dropped_run_is_nobodys_to_cancel_by_its_old_name(queued):
    drop_run_a(queued)
    with pytest.raises(UsageError, match="no step matches"):
        order(queued, "cancel", A)


# --- whose experiment it is --------------------------------------------------------------------------


def test_nothing_can_be_accepted_of_an_experiment_never_seen(lab):
    with pytest.raises(UsageError, match="nothing is known"):
        accept_identity(lab.scene, "moved")
    assert written(lab, "opened") == []


# --- while a person is asked -----------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def asked_meanwhile(monkeypatch, *meanwhile):
    """A person says yes each time, and before that something happens."""
    moments = list(meanwhile)
    asked = []

    def confirm(text, err):
        moments.pop(0)()
        asked.append(text)
        return True

    monkeypatch.setattr("click.confirm", confirm)
    monkeypatch.setattr("sys.stdin", Terminal())
    return asked


def test_passes_go_on_while_a_person_is_asked(lab, monkeypatch):
    lab.run()
    lab.finish("a/finetune")
    lab.run()
    asked = asked_meanwhile(monkeypatch, lambda: lab.run(0))
    assert _say(Asked(), False, partial(carry_out, lab.scene, Order("rerun", ("a",)))) == 0
    assert len(asked) == 1
    lab.run()
    assert [job.script.parent.name for job in lab.cluster.submissions].count("a") == 2


def test_what_was_not_shown_is_not_done_and_the_person_is_asked_again(lab, monkeypatch, capsys):
    """The evaluation's job waits while its cancellation is shown, and has begun by the time that a person says yes."""
    lab.run()
    lab.finish("a/finetune")
    lab.run()
    job = lab.cluster.submissions[-1].name
    (id_,) = [each.id for each in lab.cluster.jobs.values() if each.name == job]

    def begin():
        lab.cluster.jobs[id_] = replace(lab.cluster.jobs[id_], state="RUNNING", phase=Phase.RUNNING, started=lab.now)

    asked_meanwhile(monkeypatch, begin)
    with pytest.raises(UsageError, match="--now"):
        _say(Asked(), False, partial(carry_out, lab.scene, Order("rerun", ("a",))))
    assert lab.cluster.jobs[id_].state == "RUNNING"

    asked = asked_meanwhile(monkeypatch, lambda: lab.cluster.finish(id_, "FAILED", lab.now), lambda: None)
    assert _say(Asked(), False, partial(carry_out, lab.scene, Order("rerun", ("a",), now=True))) == 0
    assert len(asked) == 2
    assert "by now it would be" in capsys.readouterr().err
