"""Limits: of the site, told by its own words and waited out, and whose turn it is under them."""

from __future__ import annotations

import contextlib
import os
import random
import stat
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.backends.slurm_cli import SlurmCli, read_submission
from reconciler.errors import ControllerFull, LimitReached, SubmissionRefused, SubmissionUncertain
from reconciler.fold import fold
from reconciler.loop import preview
from reconciler.model import Condition, Observed, Phase, Policy, Verb
from reconciler.moments import shown
from reconciler.pending import _REASONS, never_starts, tell
from reconciler.plan import make_plan
from reconciler.ports import Submission
from test_pass import lab  # noqa: F401 - a fixture
from worlds import (
    ABSENT,
    COMPLETE,
    NOW,
    decide,
    done,
    ended,
    evaluation,
    event,
    experiment,
    finetune,
    job,
    name_of,
    plan_for,
    submitted,
)

STEP = finetune()

# --- a job that waits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", _REASONS, ids=lambda row: row.sample)
def test_each_known_reason_of_a_pending_job_has_its_sentence(row):
    assert tell(row.sample) == f"{row.sentence} ({row.sample})"
    assert never_starts(row.sample) is row.is_final


@pytest.mark.parametrize(("reason", "told"), [("", ""), ("None", ""), ("SomethingNew", "SomethingNew")])
def test_a_reason_that_nobody_knows_is_shown_as_it_is(reason, told):
    assert tell(reason) == told
    assert not never_starts(reason)


def test_a_queued_job_is_told_with_what_it_waits_for():
    queued = job(STEP, Phase.QUEUED, pending_reason="QOSMaxJobsPerUserLimit")
    action = decide(STEP, queue=(queued,), events=submitted(STEP))
    assert action.condition is Condition.QUEUED
    assert "you have as many jobs running as the QOS lets a user have (QOSMaxJobsPerUserLimit)" in action.reason.message


def test_a_queued_job_that_can_never_start_needs_a_person_and_holds_what_follows():
    queued = job(STEP, Phase.QUEUED, pending_reason="PartitionTimeLimit")
    plan = plan_for(STEP, evaluation(), queue=(queued,), events=submitted(STEP))
    assert [(a.condition, a.reason.code, a.job, a.attempt) for a in plan.actions] == [
        (Condition.HELD, "CannotStart", "101", 1),
        (Condition.WAITING, "NeedBlocked", None, None),
    ]
    assert not any(a.is_pending for a in plan.actions)


# --- what sbatch says ------------------------------------------------------------------------------------


def test_a_retry_of_sbatchs_own_that_then_had_no_answer_is_a_doubt_and_no_limit():
    tried = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
    silent = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n"
    full = "sbatch: error: Batch job submission failed: Resource temporarily unavailable\n"
    for code, errors, kind in (
        (1, tried + silent, SubmissionUncertain),
        (124, tried, SubmissionUncertain),
        (1, tried + full, ControllerFull),
    ):
        with pytest.raises(kind) as raised:
            read_submission(code, "", errors)
        assert type(raised.value) is kind
    assert read_submission(0, "80\n", tried) == "80"  # seen while a controller started: accepted after 6 s


def test_a_job_that_asks_for_more_than_any_may_is_refused_and_the_number_of_jobs_is_waited_out():
    policy = "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    for name, kind in (("QOSMaxWallDurationPerJobLimit", SubmissionRefused), ("AssocMaxSubmitJobLimit", LimitReached)):
        with pytest.raises(kind):
            read_submission(1, "", f"sbatch: error: {name}\nsbatch: error: {policy}\n")


def stand_in(tmp_path, body):
    (tmp_path / "job.sh").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\n{body}\n")
    (tmp_path / "sbatch").chmod(stat.S_IRWXU)
    return SlurmCli({**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}), Submission(tmp_path / "job.sh", "n")


TRIES = "echo 'sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying' >&2"


def test_an_sbatch_that_waits_for_a_full_controller_is_stopped_while_it_surely_sleeps(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    cluster, job = stand_in(tmp_path, f"{TRIES}; sleep 1; touch {tmp_path}/again; sleep 1; exit 1")
    for _ in range(5):  # on a machine too busy to be sure in time it is a doubt
        (tmp_path / "again").unlink(missing_ok=True)
        with pytest.raises((ControllerFull, SubmissionUncertain)) as raised:
            cluster.submit(job)
        if isinstance(raised.value, ControllerFull):
            break
    assert isinstance(raised.value, ControllerFull)
    assert not (tmp_path / "again").exists()


def test_an_sbatch_that_cannot_be_stopped_before_its_next_try_is_a_doubt_or_an_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    cluster, job = stand_in(tmp_path, f"trap '' TERM; {TRIES}; sleep 1.2; exit 1")
    with pytest.raises(SubmissionUncertain):
        cluster.submit(job)
    cluster, job = stand_in(tmp_path, f"trap '' TERM; {TRIES}; sleep 1.2; echo 17")
    for _ in range(5):  # a doubt where timeout(1) was signalled before it knew its child: see the next test
        with contextlib.suppress(SubmissionUncertain):
            assert cluster.submit(job) == "17"
            break
    else:
        pytest.fail("no answer in five tries")


def test_an_sbatch_whose_timeout_ended_without_handing_the_signal_on_is_a_doubt(tmp_path, monkeypatch):
    """Seen of timeout(1) of coreutils: signalled between its fork and the return of it, it ends with 143, and its child goes on."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    cluster, job = stand_in(tmp_path, f"{TRIES}; sleep 1.2; touch {tmp_path}/accepted; echo 17")
    (tmp_path / "timeout").write_text("#!/bin/sh\ntrap 'exit 143' TERM\nshift 2\n\"$@\" &\nwait\n")
    (tmp_path / "timeout").chmod(stat.S_IRWXU)
    for _ in range(5):  # on a machine too busy to be sure in time it is not signalled, and answers
        (tmp_path / "accepted").unlink(missing_ok=True)
        try:
            assert cluster.submit(job) == "17"
        except SubmissionUncertain:
            break
    else:
        pytest.fail("never signalled in five tries")
    assert (tmp_path / "accepted").exists()


# --- a limit costs nothing -------------------------------------------------------------------------------


def test_a_lost_submission_is_made_again_held_also_after_a_limit_or_a_refusal_kept_it_back():
    lost = [*submitted(STEP)[:1], event("lost", STEP, NOW - 300, attempt=1)]
    for outcome in ({"kind": "limited"}, {"kind": "refused", "message": "Invalid account"}):
        kept = event(outcome["kind"], STEP, NOW - 200, attempt=2, message=outcome.get("message", "QOS"))
        again = decide(STEP, events=[*lost, *submitted(STEP, 2, NOW - 201, held=True)[:1], kept])
        assert (again.verb, again.held) == (Verb.SUBMIT, True)


def test_a_limit_of_one_partition_stops_only_what_asks_for_that_partition(lab):  # noqa: F811
    for run, partition in (("a", "gpu"), ("b", "gpu"), ("base", "cpu")):
        for script in (lab.directory / run).rglob("*.slurm"):
            script.write_text(f"#!/bin/bash\n#SBATCH --partition={partition}\necho {run}\n")
    refuse = lab.cluster.submit
    down = "Required partition not available (inactive or drain)"

    def submit(job):
        if "partition=gpu" in job.script.read_text():
            lab.tries = getattr(lab, "tries", 0) + 1
            raise LimitReached(down)
        return refuse(job)

    lab.cluster.submit = submit
    codes = {o.action.step: o.action.reason.code for o in lab.run().outcomes}
    assert codes["base/eval/cap_base"] == "Submitted"
    assert codes["a/finetune"] == codes["b/finetune"] == "LimitReached"
    assert lab.tries == 1
    lab.cluster.submit = refuse
    assert {o.action.step for o in lab.run().outcomes if o.action.verb is Verb.SUBMIT} == {"a/finetune", "b/finetune"}


def test_a_full_controller_is_asked_once_a_pass(lab):  # noqa: F811
    lab.cluster.fails_with = [ControllerFull("no more jobs")]
    assert {o.action.reason.code for o in lab.run().outcomes if o.action.condition is Condition.WAITING} == {
        "LimitReached",
        "NeedUnmet",
    }
    assert lab.cluster.submissions == []


# --- how often the site is asked ----------------------------------------------------------------------


def kept(step, *ages, first=1, **more):
    """Tries that a limit of the site kept back, so many seconds ago."""
    tries = [(number, NOW - age) for number, age in enumerate(ages, start=first)]
    return [
        e
        for number, at in tries
        for e in (submitted(step, number, at, **more)[0], event("limited", step, at, attempt=number, message="QOS"))
    ]


@pytest.mark.parametrize(
    ("ages", "verb"),
    [
        ((59,), Verb.WAIT),
        ((60,), Verb.SUBMIT),
        ((200, 140, 79), Verb.WAIT),
        ((200, 140, 70), Verb.WAIT),
        ((200, 140, 99), Verb.WAIT),
        ((200, 140, 101), Verb.SUBMIT),
        ((9000, 8000, 599), Verb.WAIT),
        ((9000, 8000, 600), Verb.SUBMIT),
        ((-700,), Verb.SUBMIT),
    ],
)
def test_a_limit_is_asked_about_again_after_as_long_as_it_has_lasted_ten_minutes_at_most(ages, verb):
    assert decide(STEP, events=kept(STEP, *ages)).verb is verb


def test_what_waits_for_a_limit_says_what_the_site_said_and_when_it_is_asked_again():
    reason = decide(STEP, events=kept(STEP, 20)).reason
    assert reason.code == "LimitReached"
    assert reason.message == f"the site accepts no more jobs like this for now: QOS; asked again after {shown(NOW + 40)}"


def test_a_limit_keeps_back_what_it_may_concern_and_nothing_else():
    steps = [finetune("a"), finetune("b"), finetune("c", asks={"partition": "gpu2"}), replace(evaluation("d"), need=None)]
    plan = plan_for(*steps, events=kept(steps[0], 20))
    assert [(a.verb, a.reason.code) for a in plan.actions] == [
        (Verb.WAIT, "LimitReached"),
        (Verb.WAIT, "LimitReached"),
        (Verb.SUBMIT, "NotStarted"),
        (Verb.WAIT, "LimitReached"),
    ]
    assert all(action.is_pending for action in plan.actions)


def test_a_limit_is_over_once_the_site_takes_a_job_again_and_begins_anew_after_that():
    steps = [finetune("a"), finetune("b"), finetune("c")]
    taken = [*kept(steps[0], 9000, 8000, 700), *submitted(steps[1], at=NOW - 100)]
    assert plan_for(*steps, queue=(job(steps[1]),), events=taken).of("c/finetune").verb is Verb.SUBMIT
    for age, verb in ((59, Verb.WAIT), (61, Verb.SUBMIT)):
        again = [*taken, *kept(steps[0], age, first=4)]
        assert plan_for(*steps, queue=(job(steps[1]),), events=again).of("c/finetune").verb is verb


def test_a_limit_is_told_by_the_clock_of_this_pass_and_no_more_after_a_release_of_the_whole():
    step = finetune()
    kept = [*submitted(step, 1, NOW - 30)[:1], event("limited", step, NOW - 30, attempt=1, message="QOS")]
    policy = Policy(backoff=60)
    assert decide(step, events=kept, policy=policy).reason.code == "LimitReached"
    long_ago = [{**e, "at": e["at"] - 60} for e in kept]
    assert decide(step, events=long_ago, policy=policy).verb is Verb.SUBMIT
    assert decide(step, events=[*kept, {"event": "release", "at": NOW}], policy=policy).verb is Verb.SUBMIT


def test_a_limit_is_asked_about_at_once_after_a_release_and_where_the_script_asks_for_something_else():
    assert decide(STEP, events=[*kept(STEP, 20), event("release", STEP, NOW)]).verb is Verb.SUBMIT
    assert decide(STEP, events=[*kept(STEP, 20), {"event": "release", "at": NOW}]).verb is Verb.SUBMIT
    assert decide(STEP, events=kept(STEP, 20, placement="other")).verb is Verb.SUBMIT
    assert decide(STEP, events=kept(STEP, 20, placement=STEP.placement)).verb is Verb.WAIT


def test_of_tries_that_a_limit_kept_back_the_last_is_remembered_and_no_number_comes_twice():
    events = kept(STEP, *range(90_000, 80_000, -100))
    memory = fold([*ended(STEP, "NodeFailure", at=NOW - 100_000), *kept(STEP, *range(90_000, 80_000, -100), first=2)])
    assert [attempt.number for attempt in memory.of(STEP.key).attempts] == [1, 101]
    assert memory.of(STEP.key).attempts[-1].kept_since == NOW - 90_000
    assert decide(STEP, events=events).attempt == 101
    taken = fold([*events, *submitted(STEP, 101)]).of(STEP.key).attempts
    assert [(attempt.number, attempt.job) for attempt in taken] == [(101, "201")]
    surfaced = event("adopted", STEP, NOW, attempt=7, job="7", name=name_of(STEP, 7))
    assert [a.number for a in fold([*events, surfaced]).of(STEP.key).attempts] == [100, 7]


def test_a_limit_of_hours_leaves_few_claims_and_is_over_within_ten_minutes(lab):  # noqa: F811
    refuse = lab.cluster.submit

    def submit(job):
        raise LimitReached("QOSMaxSubmitJobPerUserLimit")

    lab.cluster.submit = submit
    for _ in range(10 * 60):
        lab.run()
    claims = lab.directory / ".reconcile" / "claims"
    assert len([*claims.iterdir()]) < 70
    assert {len(of_step.attempts) for of_step in preview(lab.scene).memory.steps.values()} == {1}
    lab.cluster.submit = refuse
    for _ in range(11):
        lab.run()
    assert len(lab.cluster.submissions) == 3


# --- whose turn it is ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "count"),
    [("7", 1), ("7_3", 1), ("7_[1-5]", 5), ("7_[1-5,9%2]", 6), ("7_[0-8:2]", 5), ("7_[4]", 1), ("7_[1-3,...]", 3)],
)
def test_the_waiting_tasks_of_another_array_are_counted_one_by_one(row, count):
    other = job(STEP, Phase.QUEUED, id=row, name="other")
    for most, code in ((count, "MaxInFlight"), (count + 1, "NotStarted")):
        assert decide(STEP, queue=(other,), policy=Policy(max_in_flight=most)).reason.code == code


def test_what_a_limit_of_the_site_kept_back_lets_others_go_first():
    steps = [finetune("a"), finetune("b")]
    kept = [*submitted(steps[0])[:1], event("limited", steps[0], NOW - 9, attempt=1, message="inactive")]
    plan = plan_for(*steps, events=kept, policy=Policy(max_in_flight=1))
    assert [a.reason.code for a in plan.actions] == ["MaxInFlight", "NotStarted"]


def test_a_run_that_is_preempted_again_and_again_takes_nobodys_turn():
    steps = [finetune("a"), finetune("b")]
    plan = plan_for(*steps, events=ended(steps[0], "Preempted"), policy=Policy(max_in_flight=1))
    assert [a.verb for a in plan.actions] == [Verb.WAIT, Verb.SUBMIT]


STEPS = [step for run in "abcd" for step in (finetune(run), evaluation(run), evaluation(run, "rev"))]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2**32))
def test_under_any_limit_every_step_is_submitted_in_the_end_and_evaluations_of_finished_runs_go_first(most, seed):
    """Some jobs are preempted, and what the site takes is limited at times; each pass goes on from the ledger alone."""
    chance = random.Random(seed)
    events, live = [], {}
    policy = Policy(max_in_flight=most, backoff=0, settle=0, retry={"Preempted": 1000})
    for now in range(int(NOW), int(NOW) + 300 * 60, 60):
        memory = fold(events)
        if all(memory.of(step.key).done for step in STEPS):
            return
        seen = {step.key: COMPLETE if memory.of(step.key).done else ABSENT for step in STEPS}
        plan = make_plan(experiment(*STEPS), Observed(tuple(live.values()), None, seen), memory, policy, now)
        submits = [key for key in plan.order if plan.of(key).verb is Verb.SUBMIT]
        assert len(live) + len(submits) <= most
        _assert_that_evaluations_go_first(plan, submits, memory)
        is_limited = chance.random() < 0.2
        for step in STEPS:
            if step.key in submits:
                intent, accepted = submitted(step, plan.of(step.key).attempt, now)
                limited = event("limited", step, now, attempt=intent["attempt"], message="QOS")
                events += [intent, limited if is_limited else accepted]
                if not is_limited:
                    live[step.key] = job(step, Phase.RUNNING, intent["attempt"], submitted=now)
            elif step.key in live and chance.random() < 0.5:
                events += _some_end(step, live.pop(step.key), now, chance.random() < 0.3)
    raise AssertionError(f"never done: {[s.key for s in STEPS if not fold(events).of(s.key).done]}")


def _assert_that_evaluations_go_first(plan, submits, memory):
    kept = [a.step for a in plan.actions if a.reason.code == "MaxInFlight"]
    was_limited = {key for key in kept if memory.of(key).last is not None and memory.of(key).last.limited}
    if any("/eval/" in key for key in set(kept) - was_limited):
        assert not any(key.endswith("/finetune") for key in submits)


def _some_end(step, live, now, is_preempted):
    number = int(live.id) - 100
    state, failure = ("PREEMPTED", "Preempted") if is_preempted else ("COMPLETED", "CompletedWithoutEvidence")
    facts = {"attempt": number, "job": live.id, "state": state, "failure": failure, "started": now - 1, "ended": now}
    return [event("ended", step, now, **facts), event("missing", step, now, attempt=number) if is_preempted else done(step, now)]
