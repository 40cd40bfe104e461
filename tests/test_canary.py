"""The canary: one job of each stage goes first, alone, and the others follow or are kept; told from memory and queue alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.fold import fold
from reconciler.model import Condition, Observed, Phase, Policy, Verb
from reconciler.plan import make_plan
from worlds import ABSENT, COMPLETE, NOW, done, ended, evaluation, event, experiment, finetune, job, plan_for, submitted

POLICY = Policy(canary=600, backoff=0)
A, B, C = (finetune(run) for run in "abc")
STEPS = (A, B, C)


def codes(**world):
    return [a.reason.code for a in plan_for(*STEPS, **{"policy": POLICY, **world}).actions]


def running(step, seconds):
    return (job(step, started=NOW - seconds),)


def release(at=NOW - 1):
    return {"event": "release", "at": at}


@pytest.mark.parametrize(
    ("world", "told"),
    [
        pytest.param({"policy": Policy()}, ["NotStarted"] * 3, id="not asked for"),
        pytest.param({}, ["NotStarted", "Canary", "Canary"], id="nothing begun: the first goes alone"),
        pytest.param(
            {"events": submitted(A)[:1], "accounting": ()}, ["SubmissionLost", "Canary", "Canary"], id="its submission was lost"
        ),
        pytest.param(
            {"events": submitted(A), "queue": (job(A, Phase.QUEUED),)}, ["JobQueued", "Canary", "Canary"], id="in the queue"
        ),
        pytest.param({"events": submitted(A), "queue": running(A, 599)}, ["JobRunning", "Canary", "Canary"], id="runs, not long"),
        pytest.param(
            {"events": submitted(A), "queue": running(A, 600)}, ["JobRunning", *["NotStarted"] * 2], id="has run so long"
        ),
        pytest.param({"queue": running(B, 1)}, ["Canary", "LiveJobFound", "Canary"], id="a job that a person submitted is first"),
        pytest.param({"events": [done(B)]}, ["NotStarted", "Done", "NotStarted"], id="one is done: no canary"),
        pytest.param({"seen": {B.key: COMPLETE}}, ["NotStarted", "Verified", "NotStarted"], id="one was done before us"),
        pytest.param(
            {"events": [*submitted(A), *submitted(B)], "queue": (*running(A, 9), *running(B, 9))},
            ["JobRunning", "JobRunning", "NotStarted"],
            id="the others have followed already",
        ),
        pytest.param({"events": ended(A, "UserError")}, ["UserError", "CanaryFailed", "CanaryFailed"], id="it failed"),
        pytest.param({"events": ended(A, "NodeFailure")}, ["Retry", "Canary", "Canary"], id="it is tried again"),
        pytest.param(
            {"events": [*ended(A, "UserError"), event("release", A, NOW - 1)]},
            ["Retry", "Canary", "Canary"],
            id="it was released: it goes first again",
        ),
        pytest.param(
            {"events": [*ended(A, "UserError"), release()]}, ["UserError", *["NotStarted"] * 2], id="the experiment was released"
        ),
        pytest.param(
            {"events": [*ended(A, "UserError"), event("release", C, NOW - 1)]},
            ["UserError", "CanaryFailed", "NotStarted"],
            id="another step was released after it failed",
        ),
        pytest.param(
            {"events": [release(), *ended(A, "UserError")]},
            ["UserError", "CanaryFailed", "CanaryFailed"],
            id="an older release excuses nothing",
        ),
        pytest.param(
            {"events": ended(A, "CancelledByPerson")}, ["CancelledByPerson", "NotStarted", "Canary"], id="it was cancelled"
        ),
        pytest.param(
            {"events": [*submitted(A)[:1], event("limited", A, NOW - 9, attempt=1, message="QOS")]},
            ["Canary", "NotStarted", "Canary"],
            id="a limit of the site kept it back: another one may go",
        ),
        pytest.param(
            {"events": [*submitted(A)[:1], event("refused", A, NOW - 9, attempt=1, message="Invalid account")]},
            ["Retry", "Canary", "Canary"],
            id="it was refused",
        ),
        pytest.param(
            {"events": [*submitted(A), event("hold", A, NOW - 9)], "queue": (job(A, Phase.QUEUED, held=True),)},
            ["HeldByPerson", "CanaryHeld", "CanaryHeld"],
            id="it is held in the queue",
        ),
        pytest.param(
            {"events": [*submitted(A), event("hold", A, NOW - 9), release()], "queue": (job(A, Phase.QUEUED, held=True),)},
            ["HeldByPerson", "NotStarted", "NotStarted"],
            id="it is held in the queue, and the experiment was released",
        ),
        pytest.param(
            {"events": [*submitted(A), release(), event("hold", A, NOW - 9)], "queue": (job(A, Phase.QUEUED, held=True),)},
            ["HeldByPerson", "CanaryHeld", "CanaryHeld"],
            id="it was held after the experiment was released",
        ),
        pytest.param(
            {"events": [*submitted(A), release()], "queue": (job(A, Phase.QUEUED),)},
            ["JobQueued", "Canary", "Canary"],
            id="a release does not outrun a job that goes on",
        ),
        pytest.param(
            {"events": [event("hold", A, NOW - 9)]},
            ["HeldByPerson", "NotStarted", "Canary"],
            id="a step that is held is not first",
        ),
    ],
)
def test_who_goes_first_and_whether_the_others_follow(world, told):
    assert codes(**world) == told


def test_a_failed_canary_is_named_and_what_waits_for_it_needs_a_person():
    plan = plan_for(A, B, evaluation("b"), events=ended(A, "UserError"), policy=POLICY)
    assert "a/finetune went first" in plan.of(B.key).reason.message
    assert [a.condition for a in plan.actions] == [Condition.FAILED, Condition.HELD, Condition.WAITING]
    assert not any(a.is_pending for a in plan.actions)


def test_the_first_evaluation_goes_alone_too_and_each_stage_has_its_own_canary():
    after = [evaluation(run) for run in "abc"]
    plan = plan_for(*STEPS, *after, events=[done(A), done(B)], policy=POLICY)
    assert [a.reason.code for a in plan.actions] == ["Done", "Done", "NotStarted", "NotStarted", "Canary", "NeedUnmet"]


def test_a_step_that_another_limit_keeps_back_is_no_canary():
    plan = plan_for(A, B, policy=Policy(canary=600, max_in_flight=1), queue=(job(finetune("x"), name="other"),))
    assert not any(a.verb is Verb.SUBMIT for a in plan.actions)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_no_second_job_of_a_stage_begins_before_the_first_has_run_or_ended_well(seed):
    chance = random.Random(seed)
    events, live, proved = [], {}, False
    for now in range(int(NOW), int(NOW) + 60 * 200, 200):
        memory = fold(events)
        seen = {s.key: COMPLETE if memory.of(s.key).done else ABSENT for s in STEPS}
        plan = make_plan(experiment(*STEPS), Observed(tuple(live.values()), (), seen), memory, POLICY, now)
        events += [{"at": now, **e} for e in plan.learned]
        begun = {key for key in memory.steps if memory.of(key).attempts}
        submits = [s for s in STEPS if plan.of(s.key).verb is Verb.SUBMIT]
        proved = proved or any(now - j.started >= 600 for j in live.values()) or any(memory.of(s.key).done for s in STEPS)
        assert proved or len(begun | {s.key for s in submits}) <= 1
        for step in submits:
            intent, accepted = submitted(step, plan.of(step.key).attempt, now)
            events += [intent] if chance.random() < 0.2 else [intent, accepted]  # a pass killed before it wrote the id down
            live[step.key] = job(step, Phase.RUNNING, intent["attempt"], submitted=now, started=now)
        for step in STEPS:
            if step.key in live and plan.of(step.key).reason.code == "JobRunning" and chance.random() < 0.2:
                gone = live.pop(step.key)
                how = chance.choice(["Preempted", "UserError", ""])
                facts = {"attempt": int(gone.id) - 100, "job": gone.id, "started": gone.started, "ended": now}
                if how:
                    events.append(event("ended", step, now, state="FAILED", failure=how, **facts))
                    events.append(event("missing", step, now - 1000, attempt=facts["attempt"]))
                    events += [event("release", step, now)] if chance.random() < 0.5 else []
                else:
                    events += [event("ended", step, now, state="COMPLETED", failure="", **facts), done(step, now)]
            elif step.key in live and plan.of(step.key).verb is Verb.ADOPT:
                events.append(
                    event(
                        "adopted", step, now, attempt=plan.of(step.key).attempt, job=live[step.key].id, name=live[step.key].name
                    )
                )
