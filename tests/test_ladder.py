"""Every rung of the ladder, and all that it tells: the rule, the job and attempt concerned, and when it lets go."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.failures import sentence
from reconciler.fold import fold
from reconciler.ladder import _RULES, backoff, drift
from reconciler.memory import CLOCK_SKEW
from reconciler.model import Condition, Job, Observed, OutputState, Phase, Policy, Reason, Unknown, Verb
from reconciler.plan import make_plan
from worlds import (
    COMPLETE,
    NOW,
    TORN,
    decide,
    done,
    ended,
    evaluation,
    event,
    experiment,
    finetune,
    job,
    name_of,
    outputs,
    plan_for,
    submitted,
)

STEP = finetune()
AT_FAULT = replace(STEP, blocked=Reason("NotScaffolded", "no script"))
BY_HAND = replace(STEP, job_name="train-a")
LOST = [*submitted(STEP)[:1], event("lost", STEP, NOW - 300, attempt=1)]
REPLACED = [*LOST, *submitted(STEP, 2, NOW - 300, held=True)]
HELD = job(STEP, Phase.QUEUED, attempt=2, held=True)
EVALUATION, OTHER_TASK = evaluation(), evaluation(task="other")
BEGUN = finetune("b", need=STEP.key, others=(STEP.key,), begins_from=0)
COMPLETE_BEFORE = replace(COMPLETE, newest=NOW - 5000)
SLURMDBD_DOWN = Unknown("slurmdbd is down")


def typed_in(**more) -> Job:
    """A job that a person submitted from the step's directory."""
    return replace(job(BY_HAND), id="7", name="train-a", workdir=str(BY_HAND.directory), **more)


def taken_over(number: int = 1) -> list:
    return [event("adopted", STEP, NOW - 90, attempt=number, job="7", name="train-a", by_hand=True)]


def refused(number: int, at: float) -> list:
    return [*submitted(STEP, number, at)[:1], event("refused", STEP, at + 1, attempt=number, message="Invalid account")]


@pytest.mark.parametrize(
    ("world", "told"),
    [
        pytest.param(
            {"events": [*ended(STEP, "UserError"), done(STEP)]}, ("done", Verb.KEEP, Condition.DONE, "Done", "101", 1), id="done"
        ),
        pytest.param(
            {"step": AT_FAULT, "events": submitted(STEP, 3)[:1]},
            ("blocked", Verb.WAIT, Condition.BLOCKED, "NotScaffolded", None, 3), id="its run is at fault",
        ),
        pytest.param(
            {"step": AT_FAULT, "events": submitted(STEP), "queue": (job(STEP),)},
            ("live job", Verb.WAIT, Condition.RUNNING, "JobRunning", "101", 1), id="its run is at fault while its job runs",
        ),
        pytest.param(
            {"step": replace(AT_FAULT, definition="x"), "events": [done(STEP)]},
            ("blocked", Verb.KEEP, Condition.DONE, "Done", None, None), id="done before its run was at fault",
        ),
        pytest.param(
            {"step": replace(STEP, definition="new"), "events": [*ended(STEP, "UserError"), done(STEP)]},
            ("drifted", Verb.HOLD, Condition.DRIFTED, "Drifted", "101", 1), id="done under another definition",
        ),
        pytest.param(
            {"step": replace(STEP, definition="new"), "events": [*submitted(STEP), done(STEP)], "queue": (job(STEP),)},
            ("live job", Verb.WAIT, Condition.RUNNING, "JobRunning", "101", 1), id="done under another, and a job runs",
        ),
        pytest.param(
            {"queue": Unknown("down"), "events": submitted(STEP)},
            ("queue unknown", Verb.WAIT, Condition.UNKNOWN, "QueueUnknown", "101", 1), id="the queue cannot be asked",
        ),
        pytest.param(
            {"queue": (job(STEP), job(STEP, attempt=2)), "events": submitted(STEP)},
            ("live job", Verb.HOLD, Condition.HELD, "SeveralJobs", "102", 1), id="two jobs",
        ),
        pytest.param(
            {"queue": (job(STEP),), "events": [*submitted(STEP), event("cancel", STEP, NOW)]},
            ("live job", Verb.CANCEL, Condition.RUNNING, "CancelledByPerson", "101", 1), id="cancelled, and still running",
        ),
        pytest.param(
            {"queue": (job(STEP, Phase.QUEUED),), "events": [*submitted(STEP), event("cancel", STEP, NOW)]},
            ("live job", Verb.CANCEL, Condition.QUEUED, "CancelledByPerson", "101", 1), id="cancelled, and still queued",
        ),
        pytest.param(
            {"step": BY_HAND, "queue": (typed_in(),), "events": [*taken_over(), event("cancel", STEP, NOW)]},
            ("live job", Verb.WAIT, Condition.RUNNING, "JobRunning", "7", 1), id="cancelled, but a person's own job runs",
        ),
        pytest.param(
            {
                "step": BY_HAND, "queue": (typed_in(submitted=NOW - 2000), job(STEP, attempt=2)),
                "events": [*taken_over(), *submitted(STEP, 2), event("cancel", STEP, NOW)],
            },
            ("live job", Verb.CANCEL, Condition.RUNNING, "CancelledByPerson", "102", 2),
            id="cancelled: ours goes, though a person's own runs beside it",
        ),
        pytest.param(
            {"events": [*REPLACED, event("hold", STEP, NOW)], "queue": (HELD,), "accounting": ()},
            ("live job", Verb.HOLD, Condition.HELD, "HeldByPerson", "102", 2), id="replacement: a person's hold",
        ),
        pytest.param(
            {"events": REPLACED, "queue": (job(STEP), HELD), "accounting": ()},
            ("live job", Verb.CANCEL, Condition.QUEUED, "ReplacementNotNeeded", "102", 2), id="replacement: the lost lives",
        ),
        pytest.param(
            {"events": REPLACED, "queue": (job(STEP, Phase.ENDED), HELD), "accounting": ()},
            ("live job", Verb.CANCEL, Condition.VERIFYING, "ReplacementNotNeeded", "102", 2),
            id="replacement: the lost one has run",
        ),
        pytest.param(
            {"events": REPLACED, "queue": (HELD,), "accounting": (), "seen": {STEP.key: COMPLETE}},
            ("live job", Verb.CANCEL, Condition.VERIFYING, "ReplacementNotNeeded", "102", 2),
            id="replacement: the outputs verify",
        ),
        pytest.param(
            {"events": REPLACED, "queue": (HELD,), "accounting": SLURMDBD_DOWN},
            ("live job", Verb.WAIT, Condition.UNKNOWN, "AccountingUnknown", "102", 2), id="replacement: accounting unknown",
        ),
        pytest.param(
            {"events": REPLACED, "queue": (HELD,), "accounting": ()},
            ("live job", Verb.WAIT, Condition.QUEUED, "Confirmed", "102", 2), id="replacement: may start",
        ),
        pytest.param(
            {"queue": (job(STEP, attempt=4),)},
            ("live job", Verb.ADOPT, Condition.RUNNING, "LiveJobFound", "104", 4), id="adopted under its token's number",
        ),
        pytest.param(
            {"step": BY_HAND, "queue": (typed_in(phase=Phase.QUEUED),), "events": ended(STEP, "UserError", 3)},
            ("live job", Verb.ADOPT, Condition.QUEUED, "LiveJobFound", "7", 4), id="a person's own job is the next attempt",
        ),
        pytest.param(
            {"queue": (job(STEP, Phase.UNKNOWN),), "events": submitted(STEP)},
            ("live job", Verb.WAIT, Condition.UNKNOWN, "JobStateUnknown", "101", 1), id="a state that nobody knows",
        ),
        pytest.param(
            {"queue": (job(STEP, Phase.QUEUED, held=True),), "events": submitted(STEP)},
            ("live job", Verb.HOLD, Condition.HELD, "JobHeld", "101", 1), id="held in the queue",
        ),
        pytest.param(
            {"queue": (job(STEP, Phase.QUEUED, pending_reason="DependencyNeverSatisfied"),), "events": submitted(STEP)},
            ("live job", Verb.HOLD, Condition.HELD, "DependencyNeverSatisfied", "101", 1), id="a dependency that never comes",
        ),
        pytest.param(
            {"queue": (job(STEP, Phase.QUEUED),), "events": submitted(STEP)},
            ("live job", Verb.WAIT, Condition.QUEUED, "JobQueued", "101", 1), id="queued",
        ),
        pytest.param(
            {"events": submitted(STEP), "accounting": SLURMDBD_DOWN},
            ("unconfirmed submission", Verb.WAIT, Condition.UNKNOWN, "AccountingUnknown", "101", 1), id="gone, accounting unknown",
        ),
        pytest.param(
            {"events": submitted(STEP), "accounting": ()},
            ("unconfirmed submission", Verb.WAIT, Condition.UNKNOWN, "JobNotSeen", "101", 1), id="gone, not accounted yet",
        ),
        pytest.param(
            {"events": submitted(STEP, at=NOW)[:1], "accounting": ()},
            ("unconfirmed submission", Verb.WAIT, Condition.UNKNOWN, "Unconfirmed", None, 1), id="begun, and not seen yet",
        ),
        pytest.param(
            {"seen": {STEP.key: outputs(OutputState.UNKNOWN)}, "events": ended(STEP, "UserError")},
            ("disk unknown", Verb.WAIT, Condition.UNKNOWN, "Seen", "101", 1), id="the disk cannot be read",
        ),
        pytest.param(
            {"seen": {STEP.key: None}, "events": ended(STEP, "UserError")},
            ("disk unknown", Verb.WAIT, Condition.UNKNOWN, "DiskUnknown", "101", 1), id="the disk was not looked at",
        ),
        pytest.param(
            {"seen": {STEP.key: outputs(OutputState.COMPLETE, marked=False, newest=NOW)}, "events": ended(STEP, "UserError")},
            ("verified", Verb.WAIT, Condition.VERIFYING, "Settling", "101", 1), id="verifies, and must stay quiet",
        ),
        pytest.param(
            {"seen": {STEP.key: COMPLETE}, "events": ended(STEP, "UserError")},
            ("verified", Verb.MARK_DONE, Condition.DONE, "Verified", "101", 1), id="verified",
        ),
        pytest.param(
            {"seen": {STEP.key: outputs(OutputState.MISMATCH)}},
            ("outputs not ours", Verb.HOLD, Condition.DRIFTED, "Drifted", None, None), id="trained from something else",
        ),
        pytest.param(
            {"seen": {STEP.key: outputs(OutputState.AMBIGUOUS)}},
            ("outputs not ours", Verb.HOLD, Condition.HELD, "AmbiguousOutputs", None, None), id="may be another step's",
        ),
        pytest.param(
            {"seen": {STEP.key: TORN}},
            ("outputs not ours", Verb.HOLD, Condition.HELD, "OutputsNotOurs", None, None), id="somebody else's half",
        ),
        pytest.param(
            {"queue": (job(STEP, Phase.ENDED),), "events": submitted(STEP)},
            ("settling", Verb.WAIT, Condition.VERIFYING, "OutputsMissing", "101", 1), id="ended, nothing there yet",
        ),
        pytest.param(
            {"events": [*ended(STEP, "NodeFailure"), event("hold", STEP, NOW)]},
            ("held by a person", Verb.HOLD, Condition.HELD, "HeldByPerson", "101", 1), id="held, after a failure that is retried",
        ),
        pytest.param(
            {"events": [*ended(STEP, "NodeFailure"), event("cancel", STEP, NOW)]},
            ("held by a person", Verb.HOLD, Condition.HELD, "CancelledByPerson", "101", 1), id="cancelled, after such a failure",
        ),
        pytest.param(
            {"events": [e for n in (1, 2, 3) for e in refused(n, NOW - 9000 + n)]},
            ("retries spent", Verb.HOLD, Condition.HELD, "SubmissionRefused", None, 3), id="refused three times",
        ),
        pytest.param(
            {"events": ended(STEP, "TimeLimit")},
            ("retries spent", Verb.HOLD, Condition.FAILED, "TimeLimit", "101", 1), id="failed",
        ),
        pytest.param(
            {"events": ended(STEP, "NodeFailure", at=NOW - 301)},
            ("submit", Verb.SUBMIT, Condition.WAITING, "Retry", None, 2), id="retried",
        ),
        pytest.param(
            {"events": ended(STEP, "NodeFailure", at=NOW - 301), "policy": Policy(backoff=400)},
            ("backing off", Verb.WAIT, Condition.WAITING, "BackingOff", "101", 1), id="backing off",
        ),
        pytest.param(
            {"events": [*ended(STEP, "UserError"), event("rerun", STEP, NOW)]},
            ("submit", Verb.SUBMIT, Condition.WAITING, "Rerun", None, 2), id="asked for again",
        ),
        pytest.param({}, ("submit", Verb.SUBMIT, Condition.WAITING, "NotStarted", None, 1), id="never tried"),
        pytest.param({"events": LOST}, ("submit", Verb.SUBMIT, Condition.WAITING, "SubmissionLost", None, 2), id="lost"),
    ],
)  # fmt: skip
def test_every_rung_tells_its_rule_its_job_and_its_attempt(world, told):
    world = dict(world)
    action = decide(world.pop("step", STEP), **world)
    assert (action.rule, action.verb, action.condition, action.reason.code, action.job, action.attempt) == told
    assert action.held == (told[3] == "SubmissionLost")
    assert action.release == (told[3] == "Confirmed")


LIMITED = [*submitted(STEP, 9, NOW - 60)[:1], event("limited", STEP, NOW - 60, attempt=9, message="QOS")]


def test_a_step_that_a_limit_of_the_site_put_off_says_so_until_it_is_submitted():
    put_off = "put off by a limit of the site: QOS"
    assert put_off in decide(STEP, events=LIMITED).reason.message
    assert put_off in decide(STEP, events=[*ended(STEP, "NodeFailure"), *LIMITED]).reason.message
    assert (
        put_off
        not in decide(STEP, events=[*LIMITED, *submitted(STEP, 10)[:1], event("lost", STEP, NOW, attempt=10)]).reason.message
    )


def test_the_ladder_of_the_readme_has_exactly_the_rules_in_their_order():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (told,) = re.findall(r"the first rule that matches decides:\n(.*?)\.\s", readme, re.DOTALL)
    assert " ".join(told.split()).split(" → ") == [name for name, _ in _RULES]


@pytest.mark.parametrize(
    ("events", "queue", "told"),
    [
        (submitted(STEP), (job(STEP),), ("JobRunning", "101", 1)),
        (submitted(STEP), (job(STEP, Phase.UNKNOWN),), ("JobStateUnknown", "101", 1)),
        (submitted(STEP), (job(STEP, Phase.QUEUED),), ("JobQueued", "101", 1)),
        (submitted(STEP), (job(STEP, Phase.QUEUED, held=True),), ("JobHeld", "101", 1)),
        (
            submitted(STEP),
            (job(STEP, Phase.QUEUED, pending_reason="DependencyNeverSatisfied"),),
            ("DependencyNeverSatisfied", "101", 1),
        ),
        (REPLACED, (HELD,), ("Confirmed", "102", 2)),
        (REPLACED, (job(STEP), HELD), ("ReplacementNotNeeded", "102", 2)),
        (REPLACED, (job(STEP, Phase.ENDED), HELD), ("ReplacementNotNeeded", "102", 2)),
        ([*REPLACED, event("hold", STEP, NOW)], (HELD,), ("HeldByPerson", "102", 2)),
    ],
)
def test_what_is_told_of_is_the_job_that_lives_and_not_the_submission_that_came_last(events, queue, told):
    action = decide(STEP, events=[*events, *LIMITED], queue=queue, accounting=())
    assert (action.reason.code, action.job, action.attempt) == told


def test_so_it_is_where_the_accounting_is_silent_the_outputs_verify_or_a_person_has_cancelled():
    silent = {"events": [*REPLACED, *LIMITED], "queue": (HELD,)}
    unknown = decide(STEP, **silent, accounting=SLURMDBD_DOWN)
    assert (unknown.reason.code, unknown.job, unknown.attempt) == ("AccountingUnknown", "102", 2)
    verified = decide(STEP, **silent, accounting=(), seen={STEP.key: COMPLETE})
    assert (verified.reason.code, verified.job, verified.attempt) == ("ReplacementNotNeeded", "102", 2)
    cancelled = decide(STEP, events=[*submitted(STEP), *LIMITED, event("cancel", STEP, NOW)], queue=(job(STEP),))
    assert (cancelled.reason.code, cancelled.job, cancelled.attempt) == ("CancelledByPerson", "101", 1)


def test_a_job_that_may_be_another_steps_is_named_and_holds_the_step():
    one, two = (replace(evaluation(task=task), need=None, job_name="eval", workdir="/exp/a/eval") for task in ("cap", "rev"))
    jobs = tuple(replace(job(one), id=n, name="eval", workdir="/exp/a/eval", submitted=NOW - 9 + int(n)) for n in "12")
    for action in plan_for(one, two, queue=jobs).actions:
        assert (action.verb, action.condition, action.reason.code, action.job) == (
            Verb.HOLD, Condition.HELD, "AmbiguousJob", "2",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("of_need", "code"),
    [
        ([], "NeedUnmet"),
        (ended(STEP, "UserError"), "NeedBlocked"),
        ([done(STEP), event("hold", STEP, NOW)], "NeedHeld"),
        ([done(STEP)], "NotStarted"),
    ],
)
def test_an_evaluation_waits_for_its_fine_tune_and_for_the_person_who_holds_it(of_need, code):
    action = plan_for(STEP, evaluation(), events=of_need).of(evaluation().key)
    assert action.reason.code == code
    if code == "NeedUnmet":
        assert (action.rule, action.verb, action.condition) == ("needs unmet", Verb.WAIT, Condition.WAITING)
    if code == "NeedHeld":
        assert (action.rule, action.verb, action.condition) == ("needs unmet", Verb.HOLD, Condition.HELD)


# --- how long it waits -----------------------------------------------------------------------------

UNMARKED = outputs(OutputState.COMPLETE, marked=False)
UNSEEN = [*submitted(STEP), event("unseen", STEP, NOW, attempt=1)]


@pytest.mark.parametrize(
    ("setting", "seconds", "events", "found", "before", "after"),
    [
        pytest.param("grace", 600, submitted(STEP, at=NOW)[:1], None, "Unconfirmed", "SubmissionLost", id="never seen"),
        pytest.param("grace", 600, UNSEEN, None, "JobNotSeen", "OutputsMissing", id="gone without a trace"),
        pytest.param("settle", 300, [], UNMARKED, "Settling", "Verified", id="quiet"),
        pytest.param("settle", 300, ended(STEP, "UserError", at=NOW), None, "OutputsMissing", "UserError", id="seen missing twice"),
        pytest.param(
            "settle", 300, ended(STEP, "UserError", at=NOW - 900), TORN, "OutputsMissing", "UserError", id="still written to"
        ),
    ],
)  # fmt: skip
def test_what_must_be_waited_for_is_waited_for_as_long_as_the_settings_say_and_no_longer(
    setting, seconds, events, found, before, after
):
    for passed, code in ((seconds - 1, before), (seconds, after)):
        policy = replace(Policy(), **{setting: seconds})
        moved = [{**e, **{k: e[k] - passed for k in ("at", "ended") if k in e}} for e in events]
        seen = {} if found is None else {STEP.key: replace(found, newest=NOW - passed)}
        assert decide(STEP, events=moved, seen=seen, accounting=(), policy=policy).reason.code == code


def test_a_step_backs_off_from_the_end_of_its_last_failure_longer_after_each():
    policy = Policy(backoff=600, settle=0)
    two = [*ended(STEP, "NodeFailure", 1, at=NOW - 9000), *ended(STEP, "NodeFailure", 2, at=NOW - 1000)]
    assert decide(STEP, events=ended(STEP, "NodeFailure", at=NOW - 599), policy=policy).reason.code == "BackingOff"
    assert decide(STEP, events=ended(STEP, "NodeFailure", at=NOW - 661), policy=policy).reason.code == "Retry"
    assert decide(STEP, events=two, policy=policy).reason.code == "BackingOff"
    assert decide(STEP, events=refused(1, NOW - 599), policy=policy).reason.code == "BackingOff"
    assert decide(STEP, events=refused(1, NOW - 661), policy=policy).reason.code == "Retry"
    again = [*refused(1, NOW - 9000), *refused(2, NOW - 661)]
    assert decide(STEP, events=again, policy=policy).reason.code == "BackingOff"


def test_each_wait_before_a_retry_is_twice_the_one_before_and_no_two_steps_wait_the_same_time():
    policy = Policy(backoff=60)
    for tries, base in ((0, 60), (1, 60), (2, 120), (3, 240), (6, 1920), (7, 3600 / 1.1), (30, 3600 / 1.1), (5000, 3600 / 1.1)):
        waits = [backoff(policy, f"{run}/finetune", tries) for run in range(50)]
        assert all(base <= wait <= base * 1.1 for wait in waits)
        assert len({round(wait, 6) for wait in waits}) > 40
        assert max(waits) - min(waits) > base * 0.08
    assert len({backoff(Policy(backoff=3600), "a/finetune", tries) for tries in range(1, 20)}) > 15


def test_only_the_failures_since_the_last_release_count_against_the_retries():
    policy = Policy(retry={"NodeFailure": 1}, settle=0)
    twice = [*ended(STEP, "NodeFailure", 1, at=NOW - 9000), *ended(STEP, "NodeFailure", 2, at=NOW - 8000)]
    assert decide(STEP, events=twice[: len(twice) // 2], policy=policy).verb is Verb.SUBMIT
    assert decide(STEP, events=twice, policy=policy).condition is Condition.FAILED
    assert decide(STEP, events=[*twice, event("release", STEP, NOW)], policy=policy).verb is Verb.SUBMIT
    again = [*twice, event("release", STEP, NOW - 7500), *ended(STEP, "NodeFailure", 3, at=NOW - 7000)]
    assert decide(STEP, events=again, policy=policy).verb is Verb.SUBMIT
    other = [*ended(STEP, "Preempted", 1, at=NOW - 9000), *ended(STEP, "NodeFailure", 2, at=NOW - 8000)]
    assert decide(STEP, events=other, policy=policy).verb is Verb.SUBMIT


@pytest.mark.parametrize("outcome", ["limited", "withdrawn"])
def test_what_the_site_did_not_take_or_was_withdrawn_is_no_attempt_that_a_retry_follows(outcome):
    def come_to_nothing(number: int) -> list:
        return [*submitted(STEP, number, NOW - 15)[:1], event(outcome, STEP, NOW - 14, attempt=number, message="QOS")]

    assert decide(STEP, events=come_to_nothing(1), policy=Policy(backoff=0)).reason.code == "NotStarted"
    failed_before = [*ended(STEP, "NodeFailure", at=NOW - 20), *come_to_nothing(2)]
    assert decide(STEP, events=failed_before, policy=Policy(backoff=60, settle=0)).reason.code == "BackingOff"


def test_a_refusal_after_a_limit_or_a_lost_submission_is_still_the_third_in_a_row():
    limited = [*submitted(STEP, 3, NOW - 6000)[:1], event("limited", STEP, NOW - 6000, attempt=3, message="QOS")]
    lost = [*submitted(STEP, 4, NOW - 5500)[:1], event("lost", STEP, NOW - 5400, attempt=4)]
    events = [*refused(1, NOW - 9000), *refused(2, NOW - 8000), *limited, *lost, *refused(5, NOW - 5000)]
    assert decide(STEP, events=events).reason.code == "SubmissionRefused"
    failed_between = [*refused(1, NOW - 9000), *refused(2, NOW - 8000), *ended(STEP, "NodeFailure", 3, NOW - 6000)]
    assert decide(STEP, events=[*failed_between, *refused(4, NOW - 5000)]).verb is Verb.SUBMIT


# --- what it may have made, and what it moves aside ---------------------------------------------------


def test_outputs_may_be_ours_as_far_as_two_clocks_may_differ_and_no_further():
    ours = ended(STEP, "NodeFailure", at=NOW - 900)  # begun at NOW - 1000
    for newest, code in ((NOW - 1000 - CLOCK_SKEW, "Retry"), (NOW - 1001 - CLOCK_SKEW, "OutputsNotOurs")):
        assert decide(STEP, events=ours, seen={STEP.key: replace(TORN, newest=newest)}).reason.code == code


def test_outputs_of_a_job_that_a_person_cancelled_while_it_ran_are_ours():
    ran = [*ended(STEP, "CancelledByPerson", started=NOW - 950), event("release", STEP, NOW)]
    action = decide(STEP, events=ran, seen={STEP.key: TORN})
    assert (action.verb, action.move_aside) == (Verb.SUBMIT, TORN.torn)


def test_what_no_attempt_of_ours_touched_because_it_was_refused_is_not_ours():
    action = decide(STEP, events=refused(1, NOW - 9000), seen={STEP.key: TORN})
    assert action.reason.code == "OutputsNotOurs"


def test_leftovers_that_a_fresh_start_does_not_build_on_do_not_hold_a_step():
    harmless = outputs(OutputState.INCOMPLETE)
    action = decide(STEP, seen={STEP.key: harmless})
    assert (action.verb, action.move_aside, action.changes) == (Verb.SUBMIT, (), ())
    assert action.reason.message == f"{harmless.reason.message}; the next pass submits it"


def test_a_file_time_an_hour_ahead_is_believed_and_one_further_ahead_is_not():
    for ahead, verb in ((3600, Verb.WAIT), (3601, Verb.MARK_DONE)):
        found = outputs(OutputState.COMPLETE, marked=False, newest=NOW + ahead)
        assert decide(STEP, seen={STEP.key: found}).verb is verb
    undated = outputs(OutputState.COMPLETE, marked=False)
    assert decide(STEP, seen={STEP.key: undated}).verb is Verb.MARK_DONE


# --- what a person is told ---------------------------------------------------------------------------


def test_a_drift_tells_what_was_added_and_what_was_taken_away():
    before, after = {"lr": "1e-5", "seed": "1", "epochs": "2"}, {"lr": "5e-5", "packed": "True", "epochs": "2"}
    assert drift(before, after) == ("lr 1e-5 → 5e-5", "packed (none) → True", "seed 1 → (none)")
    assert drift({}, after) == ()
    action = decide(replace(STEP, meaning=after), events=[done(replace(STEP, definition="old", meaning=before))])
    assert action.changes == drift(before, after)
    assert all(change in action.reason.message for change in action.changes)


@pytest.mark.parametrize("word", ["release", "rerun"])
def test_what_was_refused_before_a_persons_word_counts_no_more(word):
    refusals = [e for number in (1, 2, 3) for e in refused(number, NOW - 5000 + number)]
    assert decide(STEP, events=refusals).reason.code == "SubmissionRefused"
    assert decide(STEP, events=[*refusals, event(word, STEP, NOW - 50)]).verb is Verb.SUBMIT


def test_a_drift_of_which_no_item_is_known_is_told_all_the_same():
    action = decide(STEP, events=[done(replace(STEP, definition="old", meaning={}))])
    assert (action.reason.message, action.changes) == (
        "done under another definition: its definition changed; accept or rerun it",
        (),
    )


def test_a_result_that_verifies_is_of_what_its_job_was_submitted_with():
    now = replace(evaluation(), definition="new", meaning={"limit": "10"}, inputs={"task file": "1"})
    before = submitted(replace(now, definition="old"), meaning={"limit": "5"}, inputs={"task file": "1"})
    world = {"seen": {now.key: COMPLETE}, "events": [done(STEP, NOW - 2000), *before]}
    drifted = plan_for(STEP, now, accounting=(job(now, Phase.ENDED),), **world).of(now.key)
    assert (drifted.verb, drifted.condition, drifted.changes) == (Verb.MARK_DONE, Condition.DRIFTED, ("limit 5 → 10",))
    world["events"] += submitted(now, 2, NOW - 800, meaning={"limit": "10"}, inputs={"task file": "0"})
    outdated = plan_for(STEP, now, accounting=(job(now, Phase.ENDED), job(now, Phase.ENDED, 2)), **world).of(now.key)
    assert (outdated.verb, outdated.condition) == (Verb.MARK_DONE, Condition.DRIFTED)
    assert outdated.changes == ("task file changed since",)


def test_older_versions_are_told_beside_what_changed_of_the_definition():
    now = replace(STEP, inputs={"file a": "2", "file b": "2"}, meaning={"lr": "1"})
    old = {**done(replace(STEP, definition="old", meaning={"lr": "2"})), "inputs": {"file a": "1", "file b": "1"}}
    action = decide(now, events=[old])
    assert action.changes == ("lr 2 → 1", "file a changed since", "file b changed since")
    assert action.reason.message.endswith("; used an older version of its file a and its file b; accept or rerun it")


def test_who_asked_for_it_again_is_told():
    before = ended(STEP, "UserError")
    by_ana = event("rerun", STEP, NOW, user="ana", why="new data")
    assert decide(STEP, events=[*before, by_ana]).reason.message.startswith("asked for again by ana: new data")
    by_someone = event("rerun", STEP, NOW)
    assert decide(STEP, events=[*before, by_someone]).reason.message.startswith("asked for again by a person")


def test_a_persons_word_is_told_with_who_gave_it_and_why():
    for verb, told in (("hold", "held by ana: the data are wrong"), ("cancel", "cancelled by ana: the data are wrong")):
        word = event(verb, STEP, NOW, user="ana", why="the data are wrong")
        assert told in decide(STEP, events=[word]).reason.message
        assert decide(STEP, events=[event(verb, STEP, NOW)]).reason.message.startswith(f"{told.split()[0]};")


def test_a_failure_is_told_with_its_job_its_exit_code_and_what_it_left():
    message = decide(STEP, events=ended(STEP, "UserError", detail="exit code 1:0"), seen={STEP.key: TORN}).reason.message
    assert all(part in message for part in ("101", "failed", "1:0", TORN.reason.message))
    told = f"job 101: {sentence('UserError')}"
    assert decide(STEP, events=ended(STEP, "UserError")).reason.message == f"{told}; mend it, then `reconcile release a/finetune`"
    logged = replace(STEP, logs=("/exp/a/%x-%j.out", "/exp/a/%u.err"))
    assert (
        f"{told}; its log: /exp/a/{name_of(STEP)}-101.out; mend" in decide(logged, events=ended(STEP, "UserError")).reason.message
    )
    logged, accounting = replace(STEP, logs=("/exp/%j.out", "/exp/%u.err")), (job(STEP, Phase.ENDED, user="ana"),)
    both = decide(logged, events=ended(STEP, "UserError"), accounting=(typed_in(user="eve"), *accounting)).reason.message
    assert "; its log: /exp/101.out and /exp/ana.err; mend" in both
    cancelled = decide(STEP, events=ended(STEP, "CancelledByPerson")).reason.message
    assert cancelled.endswith("; `reconcile release a/finetune` submits it again")


def test_what_was_accepted_by_a_person_is_not_said_to_be_verified():
    accepted = decide(STEP, events=[{**done(STEP), "by_person": True}]).reason.message
    verified = decide(STEP, events=[done(STEP)]).reason.message
    assert "person" in accepted
    assert "verified" in verified


def test_a_queued_job_is_told_with_slurms_reason_and_a_held_one_with_who_holds_it():
    def message(**more):
        return decide(STEP, queue=(job(STEP, Phase.QUEUED, **more),), events=submitted(STEP)).reason.message

    assert "(Priority)" in message(pending_reason="Priority")
    assert "(" not in message(pending_reason="None")
    assert "(" not in message()
    assert "JobHeldAdmin" in message(held=True, pending_reason="JobHeldAdmin")
    assert "by a person" in message(held=True)
    same = [{**e, "placement": STEP.placement} for e in submitted(STEP)]
    assert "resources" not in decide(STEP, queue=(job(STEP, Phase.QUEUED),), events=same).reason.message


def test_a_running_evaluation_is_not_told_with_the_progress_of_an_earlier_log():
    step = evaluation()
    skewed = NOW - 100 - CLOCK_SKEW
    for newest, told in ((skewed - 1, "is running"), (skewed, "is running, 5 of 5 samples")):
        found = replace(outputs(OutputState.INCOMPLETE, newest=newest), progress="5 of 5 samples")
        action = decide(step, events=submitted(step), queue=(job(step, started=NOW - 100),), seen={step.key: found})
        assert action.reason.message.endswith(told)


def test_a_running_job_is_told_with_its_progress():
    half = replace(outputs(OutputState.INCOMPLETE), progress="epoch 1/2")
    running = {"queue": (job(STEP),), "events": submitted(STEP)}
    assert decide(STEP, **running, seen={STEP.key: half}).reason.message.endswith("running, epoch 1/2")
    assert decide(STEP, **running).reason.message.endswith("running")


def test_two_jobs_of_one_step_are_both_named():
    message = decide(STEP, queue=(job(STEP), job(STEP, attempt=2)), events=submitted(STEP)).reason.message
    assert "101, 102" in message


def test_a_job_that_left_the_queue_is_named_with_what_the_accounting_has_of_it():
    world = {"events": submitted(STEP)}
    assert "job 101" in decide(STEP, **world, accounting=SLURMDBD_DOWN).reason.message
    assert "job 101 as RUNNING" in decide(STEP, **world, accounting=(job(STEP),)).reason.message
    assert "does not know job 101" in decide(STEP, **world, accounting=()).reason.message
    other = job(STEP, Phase.ENDED, attempt=3, state="FAILED")
    begun = [*ended(STEP, "UserError", 3), *submitted(STEP, 4)]
    assert "does not know job 104" in decide(STEP, events=begun, accounting=(other,)).reason.message
    assert "job" not in decide(STEP, events=submitted(STEP)[:1], accounting=SLURMDBD_DOWN).reason.message


def test_a_job_found_live_is_told_with_who_submitted_it():
    assert "earlier pass" in decide(STEP, queue=(job(STEP),)).reason.message
    assert "by hand" in decide(BY_HAND, queue=(typed_in(),)).reason.message


def test_the_number_of_a_new_attempt_is_above_all_that_were_ever_seen():
    assert decide(STEP, events=ended(STEP, "NodeFailure", 3)).attempt == 4
    by_hand = {"step": BY_HAND, "events": [*ended(STEP, "NodeFailure", 3), event("release", STEP, NOW)]}
    seen = (typed_in(), job(STEP, Phase.ENDED, attempt=7))
    assert decide(by_hand["step"], events=by_hand["events"], queue=seen).attempt == 8


def test_a_failure_is_told_once_its_retries_are_spent_with_the_last_jobs_number():
    twice = [*ended(STEP, "NodeFailure", 1, at=NOW - 9000), *ended(STEP, "NodeFailure", 2, at=NOW - 8000)]
    action = decide(STEP, events=twice, policy=Policy(retry={"NodeFailure": 1}))
    assert (action.job, action.attempt) == ("102", 2)
    assert "102" in action.reason.message


def test_a_directory_that_another_runs_job_writes_to_is_not_trained_in():
    old = replace(finetune("old"), output_dir=STEP.output_dir)
    events = [{**e, "output_dir": str(STEP.output_dir)} if e["event"] == "intent" else e for e in submitted(old)]
    plan = plan_for(STEP, events=events, queue=(job(old),))
    action = plan.of(STEP.key)
    assert (action.rule, action.verb, action.condition, action.reason.code) == (
        "directory in use", Verb.WAIT, Condition.WAITING, "OutputsInUse",
    )  # fmt: skip
    assert all(part in action.reason.message for part in ("101", old.key, str(STEP.output_dir)))
    assert [(o.job.id, o.step, o.output_dir) for o in plan.orphans] == [("101", old.key, str(STEP.output_dir))]


@pytest.mark.parametrize(
    ("world", "words"),
    [
        ({"queue": (job(EVALUATION),)}, f"job 101 of {EVALUATION.key}"),
        ({"queue": (job(EVALUATION, Phase.QUEUED),), "events": submitted(EVALUATION)}, f"job 101 of {EVALUATION.key}"),
        ({"events": submitted(EVALUATION)}, f"a job of {EVALUATION.key} that is not seen to have ended"),
        ({"events": submitted(EVALUATION, at=NOW - 500)[:1]}, f"a job of {EVALUATION.key} that is not seen to have ended"),
        ({"queue": (job(OTHER_TASK),), "events": submitted(OTHER_TASK)}, f"job 101 of {OTHER_TASK.key}, which the document"),
        ({"queue": (job(BEGUN),)}, f"job 101 of {BEGUN.key}"),
    ],
)
def test_a_checkpoint_that_another_step_may_be_reading_is_not_made_anew(world, words):
    """``rerun`` refuses where it sees such a job: this one came to light later."""
    asked = event("rerun", STEP, NOW - 10)
    events = [done(STEP), *world.get("events", []), asked]
    plan = plan_for(BEGUN, STEP, EVALUATION, **{**world, "events": events, "accounting": (), "seen": {STEP.key: COMPLETE_BEFORE}})
    action = plan.of(STEP.key)
    assert (action.rule, action.verb, action.reason.code) == ("checkpoint in use", Verb.WAIT, "CheckpointInUse")
    assert action.reason.message.startswith(words)
    assert str(STEP.output_dir) in action.reason.message


def test_a_checkpoint_whose_readers_are_over_or_that_is_not_there_yet_is_made():
    asked = [done(STEP), event("rerun", STEP, NOW - 10)]
    over = plan_for(STEP, EVALUATION, events=[*ended(EVALUATION, "UserError"), *asked], seen={STEP.key: COMPLETE_BEFORE})
    assert over.of(STEP.key).verb is Verb.SUBMIT
    new = plan_for(STEP, EVALUATION, queue=(job(EVALUATION),), events=asked)
    assert new.of(STEP.key).verb is Verb.SUBMIT


@pytest.mark.parametrize(
    ("lacks", "expected"),
    [
        (Unknown("/o is not there"), (Verb.WAIT, Condition.UNKNOWN, Reason("InputUnseen", "/o is not there"))),
        (Reason("CheckpointGone", "no weights"), (Verb.HOLD, Condition.HELD, Reason("CheckpointGone", "no weights"))),
    ],
)
def test_an_evaluation_whose_checkpoint_is_out_of_sight_is_not_begun_once_its_training_is_done(lacks, expected):
    unseen = {EVALUATION.key: replace(outputs(OutputState.ABSENT), lacks=lacks)}
    before = plan_for(STEP, EVALUATION, seen=unseen).of(EVALUATION.key)
    assert (before.verb, before.reason.code) == (Verb.WAIT, "NeedUnmet")
    after = plan_for(STEP, EVALUATION, seen=unseen, events=[done(STEP)]).of(EVALUATION.key)
    assert (after.rule, after.verb, after.condition, after.reason) == ("input missing", *expected)
    seen = plan_for(STEP, EVALUATION, seen={EVALUATION.key: outputs(OutputState.ABSENT)}, events=[done(STEP)])
    assert seen.of(EVALUATION.key).verb is Verb.SUBMIT


def test_a_tool_that_objects_holds_the_step_with_its_own_words_unless_a_person_asked_for_a_rerun():
    observed = Observed(
        (), None, {STEP.key: replace(outputs(OutputState.INCOMPLETE), newest=NOW - 5000)}, {STEP.key: "a torn log"}
    )
    action = make_plan(experiment(STEP), observed, fold([]), Policy(), NOW).of(STEP.key)
    assert (action.rule, action.verb, action.condition) == ("tool objects", Verb.HOLD, Condition.HELD)
    assert (action.reason.code, action.reason.message) == ("ToolObjects", "a torn log")
    rerun = fold([event("rerun", STEP, NOW - 10)])
    assert make_plan(experiment(STEP), observed, rerun, Policy(), NOW).of(STEP.key).verb is Verb.SUBMIT
