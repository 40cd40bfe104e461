"""The ladder, rung by rung: facts in, one action and its reason out."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from reconciler.fold import fold
from reconciler.ladder import backoff
from reconciler.memory import CLOCK_SKEW
from reconciler.model import Condition, OutputState, Phase, Policy, Reason, Stage, Token, Unknown, Verb
from reconciler.plan import Gate
from worlds import (
    ABSENT,
    COMPLETE,
    HERE,
    NOW,
    TORN,
    decide,
    done,
    ended,
    evaluation,
    event,
    finetune,
    job,
    name_of,
    outputs,
    plan_for,
    submitted,
)

STEP = finetune()
UNREADABLE = outputs(OutputState.UNKNOWN)
LATE = Policy(settle=300, grace=600)


@pytest.mark.parametrize(
    ("world", "verb", "condition", "code"),
    [
        pytest.param({}, Verb.SUBMIT, Condition.WAITING, "NotStarted", id="nothing there"),
        pytest.param({"events": [done(STEP)]}, Verb.KEEP, Condition.DONE, "Done", id="done before"),
        pytest.param({"queue": Unknown("down")}, Verb.WAIT, Condition.UNKNOWN, "QueueUnknown", id="queue unknown"),
        pytest.param({"seen": {STEP.key: UNREADABLE}}, Verb.WAIT, Condition.UNKNOWN, "Seen", id="disk unknown"),
        pytest.param({"seen": {STEP.key: COMPLETE}}, Verb.MARK_DONE, Condition.DONE, "Verified", id="trained before us"),
        pytest.param({"seen": {STEP.key: TORN}}, Verb.HOLD, Condition.HELD, "OutputsNotOurs", id="torn, not ours"),
        pytest.param({"queue": (job(STEP),)}, Verb.ADOPT, Condition.RUNNING, "LiveJobFound", id="live, id never recorded"),
        pytest.param(
            {"queue": (job(STEP),), "events": submitted(STEP), "seen": {STEP.key: COMPLETE}},
            Verb.WAIT, Condition.RUNNING, "JobRunning", id="running with outputs that already verify",
        ),
        pytest.param(
            {"queue": (job(STEP, Phase.QUEUED, held=True),), "events": submitted(STEP)},
            Verb.HOLD, Condition.HELD, "JobHeld", id="held by a person",
        ),
        pytest.param(
            {"queue": (job(STEP, Phase.UNKNOWN),), "events": submitted(STEP)},
            Verb.WAIT, Condition.UNKNOWN, "JobStateUnknown", id="a state nobody knows is not an end",
        ),
        pytest.param(
            {"queue": (job(STEP), job(STEP, attempt=2)), "events": submitted(STEP)},
            Verb.HOLD, Condition.HELD, "SeveralJobs", id="two live jobs",
        ),
        pytest.param(
            {"events": submitted(STEP)[:1], "accounting": ()}, Verb.SUBMIT, Condition.WAITING, "SubmissionLost",
            id="unconfirmed beyond grace",
        ),
        pytest.param(
            {"events": submitted(STEP, at=NOW - 10)[:1], "accounting": ()}, Verb.WAIT, Condition.UNKNOWN, "Unconfirmed",
            id="unconfirmed within grace",
        ),
        pytest.param(
            {"events": submitted(STEP)[:1], "accounting": Unknown("slurmdbd down")},
            Verb.WAIT, Condition.UNKNOWN, "AccountingUnknown", id="unconfirmed, accounting unknown",
        ),
        pytest.param(
            {"events": submitted(STEP), "accounting": ()}, Verb.WAIT, Condition.UNKNOWN, "JobNotSeen",
            id="gone from the queue, not yet in accounting",
        ),
        pytest.param(
            {"queue": (job(STEP, Phase.ENDED),), "events": submitted(STEP)},
            Verb.WAIT, Condition.VERIFYING, "OutputsMissing", id="ended without outputs, first look",
        ),
        pytest.param(
            {"events": ended(STEP, "CompletedWithoutEvidence")},
            Verb.HOLD, Condition.FAILED, "CompletedWithoutEvidence", id="COMPLETED is not done",
        ),
        pytest.param(
            {"events": ended(STEP, "UserError"), "seen": {STEP.key: COMPLETE}},
            Verb.MARK_DONE, Condition.DONE, "Verified", id="FAILED with good outputs is done",
        ),
        pytest.param(
            {"events": ended(STEP, "NodeFailure"), "seen": {STEP.key: TORN}},
            Verb.SUBMIT, Condition.WAITING, "Retry", id="node failure is retried",
        ),
        pytest.param(
            {"events": ended(STEP, "NodeFailure", at=NOW - 400), "policy": Policy(backoff=1000)},
            Verb.WAIT, Condition.WAITING, "BackingOff", id="retry backs off",
        ),
        pytest.param(
            {"events": [*ended(STEP, "UserError"), event("release", STEP, NOW - 1)]},
            Verb.SUBMIT, Condition.WAITING, "Retry", id="released after a failure",
        ),
        pytest.param(
            {"events": [event("hold", STEP, NOW - 1)]}, Verb.HOLD, Condition.HELD, "HeldByPerson", id="a person's hold",
        ),
        pytest.param(
            {"gate": Gate(Reason("EnvironmentChanged", "no conda"))},
            Verb.HOLD, Condition.HELD, "EnvironmentChanged", id="another environment submits nothing",
        ),
    ],
)  # fmt: skip
def test_each_situation_has_its_action_and_reason(world, verb, condition, code):
    action = decide(STEP, **world)
    assert (action.verb, action.condition, action.reason.code) == (verb, condition, code)
    assert action.reason.message
    assert action.rule


def test_a_result_of_another_definition_is_drifted_and_shown_by_meaning():
    before = replace(STEP, definition="old", meaning={"optimizer.lr": "1e-5"})
    now = replace(STEP, meaning={"optimizer.lr": "5e-5"})
    action = decide(now, events=[done(before)])
    assert action.condition is Condition.DRIFTED
    assert "optimizer.lr 1e-5 → 5e-5" in action.reason.message


def test_outputs_that_verify_without_an_end_mark_must_be_quiet_or_their_job_ended():
    fresh = outputs(OutputState.COMPLETE, marked=False, newest=NOW - 10)
    old = outputs(OutputState.COMPLETE, marked=False, newest=NOW - 1000)
    assert decide(STEP, seen={STEP.key: fresh}).condition is Condition.VERIFYING
    assert decide(STEP, seen={STEP.key: old}).verb is Verb.MARK_DONE
    by_job = decide(STEP, seen={STEP.key: fresh}, queue=(job(STEP, Phase.ENDED),), events=submitted(STEP))
    assert by_job.verb is Verb.MARK_DONE


def test_a_retry_moves_our_own_torn_epochs_aside_and_says_so():
    action = decide(STEP, events=ended(STEP, "NodeFailure"), seen={STEP.key: TORN})
    assert action.move_aside == TORN.torn
    assert any("epoch_0" in change for change in action.changes)
    assert action.attempt == 2


def test_every_class_of_failure_but_those_of_the_infrastructure_waits_for_a_person():
    for failure in (
        "UserError",
        "TimeLimit",
        "OutOfMemoryHost",
        "CancelledByPerson",
        "LaunchFailure",
        "Vanished",
        "SomethingNew",
    ):
        assert decide(STEP, events=ended(STEP, failure)).condition is Condition.FAILED
    for failure in ("NodeFailure", "BootFailure", "Preempted"):
        assert decide(STEP, events=ended(STEP, failure)).verb is Verb.SUBMIT


def test_a_bad_account_is_a_failure_to_launch_also_where_sbatch_finds_it():
    told = "Batch job submission failed: Invalid account or account/partition combination specified"
    refused = [
        e
        for n in (1, 2, 3)
        for e in (*submitted(STEP, n, NOW - 9000)[:1], event("refused", STEP, NOW - 8999, attempt=n, message=told))
    ]
    action = decide(STEP, events=refused)
    assert (action.condition, action.reason.code) == (Condition.HELD, "LaunchFailure")
    assert told in action.reason.message


def test_three_refusals_hold_a_step_and_fewer_back_off():
    def refused(number, at):
        return [*submitted(STEP, number, at)[:1], event("refused", STEP, at + 1, attempt=number, message="Invalid account")]

    one = refused(1, NOW - 5)
    three = refused(1, NOW - 9000) + refused(2, NOW - 5000) + refused(3, NOW - 1000)
    assert decide(STEP, events=one).reason.code == "BackingOff"
    assert decide(STEP, events=three).reason.code == "SubmissionRefused"
    assert decide(STEP, events=three).condition is Condition.HELD


def test_what_a_refused_submission_left_in_the_queue_is_no_failure_of_a_job():
    refused = [*submitted(STEP)[:1], event("refused", STEP, NOW - 999, attempt=1, message="Requested node configuration")]
    record = job(STEP, Phase.ENDED, state="FAILED", started=NOW - 999, ended=NOW - 999)
    plan = plan_for(STEP, events=refused, queue=(record,))
    assert plan.of(STEP.key).verb is Verb.SUBMIT  # the backoff of one refusal is over
    assert plan.learned == ()


def test_a_site_limit_costs_no_attempt_and_is_tried_again_by_the_next_pass():
    limited = [
        e
        for n in range(1, 6)
        for e in (*submitted(STEP, n, NOW - 100)[:1], event("limited", STEP, NOW - 99, attempt=n, message="QOS"))
    ]
    assert decide(STEP, events=limited).verb is Verb.SUBMIT


def test_a_lost_submission_is_made_again_held_and_freed_only_when_nothing_surfaced():
    lost = [*submitted(STEP)[:1], event("lost", STEP, NOW - 400, attempt=1)]
    again = decide(STEP, events=lost)
    assert again.held
    replacement = [*lost, *submitted(STEP, 2, NOW - 300, held=True)]
    held = job(STEP, Phase.QUEUED, attempt=2, held=True)
    freed = decide(STEP, events=replacement, queue=(held,), accounting=())
    assert (freed.release, freed.job) == (True, "102")
    blind = decide(STEP, events=replacement, queue=(held,), accounting=Unknown("slurmdbd is down"))
    assert not blind.release
    surfaced = decide(STEP, events=replacement, queue=(held, job(STEP)), accounting=())
    assert (surfaced.verb, surfaced.job) == (Verb.CANCEL, "102")
    ran = decide(STEP, events=replacement, queue=(held,), accounting=(job(STEP, Phase.ENDED),))
    assert (ran.verb, ran.job) == (Verb.CANCEL, "102")


REPLACED = [*submitted(STEP)[:1], event("lost", STEP, NOW - 400, attempt=1), *submitted(STEP, 2, NOW - 300, held=True)]
HELD = job(STEP, Phase.QUEUED, attempt=2, held=True)


@pytest.mark.parametrize(("ago", "is_freed"), [(299, False), (300, True), (-299, False), (-9000, True)])
def test_a_held_replacement_is_not_freed_before_two_looks_settle_apart(ago, is_freed):
    """An accounting may be behind for minutes. A clock that was ahead while it was submitted holds it no longer than that."""
    lost = [*submitted(STEP)[:1], event("lost", STEP, NOW - 400, attempt=1)]
    action = decide(STEP, events=[*lost, *submitted(STEP, 2, NOW - ago, held=True)], queue=(HELD,), accounting=())
    expected = ("Confirmed", Condition.QUEUED) if is_freed else ("Unconfirmed", Condition.UNKNOWN)
    assert (action.release, action.verb, action.job, action.attempt) == (is_freed, Verb.WAIT, "102", 2)
    assert (action.reason.code, action.condition) == expected


def test_a_held_replacement_obeys_a_persons_word():
    held = decide(STEP, events=[*REPLACED, event("hold", STEP, NOW - 1)], queue=(HELD,), accounting=())
    assert (held.verb, held.condition, held.release) == (Verb.HOLD, Condition.HELD, False)
    cancelled = decide(STEP, events=[*REPLACED, event("cancel", STEP, NOW - 1)], queue=(HELD,), accounting=())
    assert (cancelled.verb, cancelled.job) == (Verb.CANCEL, "102")


def test_a_held_replacement_stays_held_while_nothing_may_start():
    pause = {"event": "pause", "at": NOW - 1, "user": "ana"}
    action = decide(STEP, events=[*REPLACED, pause], queue=(HELD,), accounting=())
    assert (action.verb, action.job, action.attempt, action.release) == (Verb.WAIT, "102", 2, False)
    assert (action.reason.code, action.condition) == ("Paused", Condition.WAITING)


def test_who_accepted_a_result_is_told():
    by_ana = event("done", STEP, NOW - 9, definition=STEP.definition, by_person=True, user="ana", why="good enough")
    assert decide(STEP, events=[by_ana]).reason.message.startswith("accepted by ana: good enough")
    by_someone = event("done", STEP, NOW - 9, definition=STEP.definition, by_person=True)
    assert decide(STEP, events=[by_someone]).reason.message == "accepted by a person"


def test_a_replacement_that_runs_is_no_longer_held_and_is_left_to_run():
    """A pass died between freeing the job and saying so."""
    plan = plan_for(STEP, events=REPLACED, queue=(job(STEP, attempt=2),), accounting=(), seen={STEP.key: COMPLETE})
    assert plan.of(STEP.key).reason.code == "JobRunning"
    assert [e["event"] for e in plan.learned] == ["unheld"]


def test_a_lost_submission_that_the_queue_shows_as_ended_needs_no_accounting_to_cancel_its_replacement():
    action = decide(STEP, events=REPLACED, queue=(HELD, job(STEP, Phase.ENDED)))
    assert (action.verb, action.job) == (Verb.CANCEL, "102")


def test_a_lost_submission_that_only_the_accounting_calls_live_keeps_its_replacement_from_starting():
    told = replace(job(STEP), source="sacct")
    action = decide(STEP, events=REPLACED, queue=(HELD,), accounting=(told,))
    assert (action.verb, action.job) == (Verb.CANCEL, "102")


def test_a_job_cancelled_by_a_person_while_the_queue_was_silent_is_cancelled_when_it_is_seen():
    word = event("cancel", STEP, NOW - 1, user="ana")
    action = decide(STEP, events=[*submitted(STEP), word], queue=(job(STEP),))
    assert (action.verb, action.job, action.reason.code) == (Verb.CANCEL, "101", "CancelledByPerson")
    later = decide(STEP, events=[word, *submitted(STEP)], queue=(job(STEP),))
    assert later.verb is Verb.WAIT


def test_what_came_first_is_told_by_the_ledger_and_not_by_clocks():
    """The host that gave the word was ten minutes ahead of the one that passes now."""
    release = event("release", STEP, NOW + 600)
    failures = [e for n in range(1, 6) for e in ended(STEP, "UserError", n, at=NOW - 500 + n)]
    assert decide(STEP, events=[release, *failures]).condition is Condition.FAILED
    rerun = event("rerun", STEP, NOW + 600)
    again = [done(STEP), rerun, *submitted(STEP, 2, NOW - 400)]
    fresh = outputs(OutputState.COMPLETE, newest=NOW - 60)
    assert decide(STEP, events=again, seen={STEP.key: fresh}, queue=(job(STEP, Phase.ENDED, attempt=2),)).verb is Verb.MARK_DONE


def test_a_release_while_the_job_is_queued_does_not_excuse_how_it_ends():
    events = [*submitted(STEP), event("release", STEP, NOW - 950), *ended(STEP, "CancelledByPerson")[2:]]
    assert decide(STEP, events=events).condition is Condition.FAILED


def test_a_rerun_evaluation_counts_a_log_that_is_newer_than_the_one_it_replaces_whatever_the_clocks_say():
    step = replace(evaluation(), need=None)
    again = [done(step), event("rerun", step, NOW - 10, newest=NOW - 5000), *submitted(step, 2, NOW - 9)]
    over = job(step, Phase.ENDED, attempt=2)
    old, new = (outputs(OutputState.COMPLETE, newest=at) for at in (NOW - 5000, NOW - 4000))
    assert decide(step, events=again, seen={step.key: new}, queue=(over,)).verb is Verb.MARK_DONE
    assert decide(step, events=again, seen={step.key: old}, queue=(over,)).reason.code == "OutputsMissing"


def test_a_requeued_job_is_the_same_attempt_and_its_own_end_counts():
    preempted = [*ended(STEP, "Preempted")]
    running = plan_for(STEP, events=preempted, queue=(job(STEP),))
    assert running.of(STEP.key).reason.code == "JobRunning"
    assert [e["event"] for e in running.learned] == ["reopened"]
    failed = job(STEP, Phase.ENDED, state="FAILED", exit_code="1:0")
    over = plan_for(STEP, events=[*preempted, event("reopened", STEP, NOW - 50, attempt=1)], queue=(failed,))
    assert [e["failure"] for e in over.learned if e["event"] == "ended"] == ["Unknown"]
    assert over.of(STEP.key).verb is not Verb.SUBMIT


AT_ONCE = Policy(settle=0)
FINISHED = [*submitted(STEP, at=NOW - 9000), event("ended", STEP, NOW - 8000, attempt=1, job="101", state="COMPLETED", failure="",
            ended=NOW - 8000, started=NOW - 8500), done(STEP, NOW - 7900)]  # fmt: skip
BY_HAND = event("adopted", STEP, NOW - 700, attempt=2, job="102", name=name_of(STEP, 2), by_hand=True, begun=NOW - 800)
REQUEUED = event("reopened", STEP, NOW - 700, attempt=1)


def over_again(attempt: int, state: str = "CANCELLED", **more):
    facts = {"started": NOW - 600, "ended": NOW - 100, "cancelled_by": "1000", **more}
    return job(STEP, Phase.ENDED, attempt=attempt, state=state, **facts)


@pytest.mark.parametrize(("began", "number"), [(REQUEUED, 1), (BY_HAND, 2)], ids=["requeued", "by hand"])
def test_what_a_job_wrote_over_a_result_is_looked_at_and_one_that_never_ran_wrote_nothing(began, number):
    evaluated = evaluation()
    world = {"events": [*FINISHED, done(evaluated, NOW - 7000), began], "seen": {STEP.key: TORN}, "policy": AT_ONCE}
    live = plan_for(STEP, evaluated, queue=(job(STEP, attempt=number),), **world)
    assert live.of(STEP.key).reason.code == "JobRunning"
    cancelled = plan_for(STEP, evaluated, queue=(over_again(number),), **world)
    assert cancelled.of(STEP.key).reason.code == "OutputsMissing"
    whole = {**world, "seen": {STEP.key: COMPLETE}}
    again = plan_for(STEP, evaluated, queue=(over_again(number, "COMPLETED"),), **whole).of(STEP.key)
    assert (again.verb, again.reason.code) == (Verb.MARK_DONE, "Verified")
    never_ran = plan_for(STEP, evaluated, queue=(over_again(number, started=None),), **world)
    assert (never_ran.of(STEP.key).verb, never_ran.of(STEP.key).condition) == (Verb.KEEP, Condition.DONE)
    for seen, condition in ((cancelled, Condition.FAILED), (never_ran, Condition.DONE)):
        written = {**world, "events": [*world["events"], *({"at": NOW, **e} for e in seen.learned)]}
        assert plan_for(STEP, evaluated, **written).of(STEP.key).condition is condition
        assert plan_for(STEP, evaluated, **written).learned == ()


def test_whole_epochs_of_two_trainings_are_no_result_before_a_person_says_so():
    world = {"events": [*FINISHED, REQUEUED], "seen": {STEP.key: COMPLETE}, "policy": AT_ONCE}
    broken_off = plan_for(STEP, queue=(over_again(1),), **world)
    written = [*world["events"], *({"at": NOW, **e} for e in broken_off.learned)]
    for action in (broken_off.of(STEP.key), decide(STEP, **{**world, "events": written})):
        assert (action.verb, action.condition, action.reason.code) == (Verb.HOLD, Condition.HELD, "WrittenOver")
        assert "job 101 wrote over a finished result and ended CANCELLED" in action.reason.message
    accepted = [*written, {**done(STEP, NOW), "by_person": True}]
    assert decide(STEP, **{**world, "events": accepted}).condition is Condition.DONE
    again = [*written, event("rerun", STEP, NOW, newest=NOW - 5), *submitted(STEP, 2, NOW)]
    over = job(STEP, Phase.ENDED, attempt=2, state="FAILED")
    assert decide(STEP, **{**world, "events": again}, queue=(over,)).verb is Verb.MARK_DONE


def test_logs_of_two_evaluations_are_files_of_their_own():
    step = replace(evaluation(), need=None)
    first = event("ended", step, NOW - 8000, attempt=1, job="101", state="COMPLETED", failure="", ended=NOW - 8000)
    events = [*submitted(step, at=NOW - 9000), first, done(step, NOW - 7900), event("reopened", step, NOW - 700, attempt=1)]
    over = job(step, Phase.ENDED, state="CANCELLED", cancelled_by="1000", started=NOW - 600, ended=NOW - 100)
    assert decide(step, events=events, queue=(over,), seen={step.key: COMPLETE}).verb is Verb.MARK_DONE


def test_what_was_evaluated_before_a_job_wrote_over_its_checkpoint_is_of_an_older_one():
    evaluated = evaluation()
    before = [*FINISHED, done(evaluated, NOW - 7000), REQUEUED]
    end = event("ended", STEP, NOW - 90, attempt=1, job="101", state="COMPLETED", failure="", ended=NOW - 100, started=NOW - 600)
    told = plan_for(STEP, evaluated, events=[*before, end, done(STEP, NOW - 80)]).of(evaluated.key)
    assert told.condition is Condition.DONE
    how = "its outputs were verified; a/finetune was trained anew since"
    assert told.reason.message == f"{how} (`rerun --stale` evaluates it again)"
    beyond = replace(evaluated, stage=Stage.FINETUNE)
    trained = plan_for(STEP, beyond, events=[*before, end, done(STEP, NOW - 80)]).of(evaluated.key)
    assert trained.reason.message == f"{how} (`rerun` trains it again)"
    never_ran = {**end, "state": "CANCELLED", "started": None}
    assert "anew" not in plan_for(STEP, evaluated, events=[*before, never_ran]).of(evaluated.key).reason.message


def test_a_result_is_of_the_last_of_several_jobs_that_may_have_written_over_it():
    other = {**BY_HAND, "attempt": 3, "job": "103", "name": name_of(STEP, 3)}
    ran = event(
        "ended", STEP, NOW - 90, attempt=2, job="102", state="FAILED", failure="Unknown", ended=NOW - 100, started=NOW - 600
    )
    never = event("ended", STEP, NOW - 90, attempt=3, job="103", state="CANCELLED", failure="CancelledByPerson", ended=NOW - 100)
    seen = {STEP.key: TORN}
    for ends, condition in (([never, ran], Condition.VERIFYING), ([ran, never], Condition.VERIFYING)):
        assert decide(STEP, events=[*FINISHED, BY_HAND, other, *ends], seen=seen, policy=AT_ONCE).condition is condition
    none_ran = [{**never, "attempt": 2, "job": "102"}, never]
    assert decide(STEP, events=[*FINISHED, BY_HAND, other, *none_ran], seen=seen).condition is Condition.DONE


def test_a_job_that_came_to_light_after_its_end_wrote_nothing_over_a_later_result():
    before = [*FINISHED, {**BY_HAND, "begun": NOW - 9500}]
    end = event("ended", STEP, NOW - 90, attempt=2, job="102", state="FAILED", failure="Unknown", started=NOW - 9400)
    long_before, at_the_time = ({**end, "ended": NOW - 7900 - CLOCK_SKEW + more} for more in (-1.0, 0.0))
    assert decide(STEP, events=[*before, long_before], seen={STEP.key: TORN}, policy=AT_ONCE).condition is Condition.DONE
    assert decide(STEP, events=[*before, at_the_time], seen={STEP.key: TORN}, policy=AT_ONCE).condition is Condition.VERIFYING


def test_what_was_freed_of_a_checkpoint_is_not_said_of_the_one_after_it():
    freed = event("free", STEP, NOW - 5000, epochs=[0], bytes=10, user="ana")
    ran = event("ended", STEP, NOW - 90, attempt=1, job="101", state="COMPLETED", failure="", ended=NOW - 100, started=NOW - 600)
    assert fold([*FINISHED, freed, REQUEUED]).of(STEP.key).freed is not None
    assert fold([*FINISHED, freed, REQUEUED, ran]).of(STEP.key).freed is None
    taken_back = fold([*FINISHED, freed, REQUEUED, {**ran, "state": "CANCELLED", "started": None}]).of(STEP.key)
    assert (taken_back.freed is not None, taken_back.done is not None) == (True, True)


@pytest.mark.parametrize("word", ["rerun", "done"])
def test_a_word_or_a_new_result_outlives_what_may_be_written_over(word):
    facts = {"definition": "def"} if word == "done" else {}
    memory = fold([*FINISHED, REQUEUED, event(word, STEP, NOW - 50, **facts)]).of(STEP.key)
    assert (memory.overtaken, memory.done is not None) == (None, word == "done")
    if word == "rerun":
        back = fold([*FINISHED, REQUEUED, event("rerun", STEP, NOW - 50), event("restored", STEP, NOW - 40)]).of(STEP.key)
        assert (back.done, back.overtaken, back.anew) == (None, fold(FINISHED).of(STEP.key).done, 0)


def test_a_job_that_only_the_accounting_calls_running_is_given_up_after_grace():
    """sacctmgr calls them runaway: their end was lost, and they are shown running for ever."""
    runaway = replace(job(STEP), source="sacct")
    first = plan_for(STEP, events=submitted(STEP), accounting=(runaway,))
    assert first.of(STEP.key).reason.code == "JobNotSeen"
    long_ago = [*submitted(STEP), event("unseen", STEP, NOW - 700, attempt=1)]
    given_up = plan_for(STEP, events=long_ago, accounting=(runaway,))
    assert [e["failure"] for e in given_up.learned if e["event"] == "ended"] == ["Vanished"]
    assert given_up.of(STEP.key).verb is not Verb.SUBMIT


def test_an_end_of_which_the_accounting_has_the_state_alone_is_waited_for():
    """A slurmdbd that is behind tells FAILED, no end and 0:0 first (seen on 22.05): it would pass for another failure."""
    behind = job(STEP, Phase.ENDED, state="FAILED", exit_code="0:0", ended=None, source="sacct")
    first = plan_for(STEP, events=submitted(STEP), accounting=(behind,))
    assert (first.of(STEP.key).reason.code, [e["event"] for e in first.learned]) == ("JobNotSeen", ["unseen"])
    told = replace(behind, exit_code="0:53", ended=NOW - 5)
    then = plan_for(STEP, events=submitted(STEP), accounting=(told,))
    assert [e["failure"] for e in then.learned if e["event"] == "ended"] == ["LaunchFailure"]
    shown = plan_for(STEP, events=submitted(STEP), queue=(replace(behind, source="squeue", exit_code="0:53"),))
    assert [e["failure"] for e in shown.learned if e["event"] == "ended"] == ["LaunchFailure"]


def test_a_submission_from_before_the_experiment_was_moved_is_recognised_by_its_name_in_writing():
    name = Token.of(HERE.parent / "elsewhere", STEP.key, 1).job_name("job")
    intent = event("intent", STEP, NOW - 1000, attempt=1, name=name)
    action = decide(STEP, events=[intent], queue=(job(STEP, name=name),), accounting=())
    assert (action.verb, action.job) == (Verb.ADOPT, "101")


def test_outputs_are_not_ours_where_our_job_never_ran_or_ran_after_they_were_written():
    for started in ({}, {"started": NOW - 900}):  # squeue shows what was cancelled while it waited as begun when it ended
        never_ran = [*ended(STEP, "CancelledByPerson", state="CANCELLED", **started), event("release", STEP, NOW - 1)]
        assert decide(STEP, events=never_ran, seen={STEP.key: TORN}).reason.code == "OutputsNotOurs"
    before = replace(TORN, newest=NOW - 90_000)
    assert decide(STEP, events=ended(STEP, "NodeFailure"), seen={STEP.key: before}).reason.code == "OutputsNotOurs"


def test_a_file_time_from_another_day_does_not_keep_outputs_from_settling():
    for ahead, verb in ((60, Verb.WAIT), (86_400, Verb.MARK_DONE)):
        found = outputs(OutputState.COMPLETE, marked=False, newest=NOW + ahead)
        assert decide(STEP, seen={STEP.key: found}).verb is verb


@pytest.mark.parametrize(
    ("world", "code"),
    [
        pytest.param({"queue": (job(STEP),), "events": submitted(STEP)}, "NeedUnmet", id="its checkpoint is being trained anew"),
        pytest.param({"seen": {STEP.key: outputs(OutputState.MISMATCH)}}, "NeedBlocked", id="it is of another definition"),
        pytest.param({"seen": {STEP.key: UNREADABLE}}, "NeedUnmet", id="it cannot be read"),
    ],
)
def test_an_evaluation_that_verifies_proves_nothing_before_its_checkpoint_does(world, code):
    after = evaluation()
    seen = {after.key: COMPLETE, **world.get("seen", {})}
    plan = plan_for(STEP, after, **{**world, "seen": seen})
    assert (plan.of(after.key).verb, plan.of(after.key).reason.code) == (Verb.WAIT, code)


def test_a_training_and_its_evaluation_from_before_this_tool_are_both_recognised_at_once():
    plan = plan_for(STEP, evaluation(), seen={STEP.key: COMPLETE, evaluation().key: COMPLETE})
    assert [a.verb for a in plan.actions] == [Verb.MARK_DONE, Verb.MARK_DONE]


def test_a_job_under_a_name_that_the_site_put_something_before_is_taken_over_once():
    shown = "site-" + name_of(STEP)
    taken = [*submitted(STEP)[:1], event("adopted", STEP, NOW - 900, attempt=1, job="101", name=shown)]
    assert decide(STEP, events=taken, queue=(job(STEP, name=shown),)).reason.code == "JobRunning"


def test_steps_that_are_not_selected_take_no_place_in_the_queue():
    steps = [finetune("a"), finetune("b")]
    plan = plan_for(*steps, policy=Policy(max_in_flight=1), select="b/*")
    assert [(a.reason.code, a.rule) for a in plan.actions] == [("NotSelected", "selection"), ("NotStarted", "submit")]
    assert plan.of("b/finetune").verb is Verb.SUBMIT


def test_what_stands_behind_a_step_stopped_for_a_person_is_not_pending():
    plan = plan_for(STEP, evaluation(), gate=Gate(Reason("ManyFailures", "three in a row")))
    assert [(a.reason.code, a.rule) for a in plan.actions] == [("ManyFailures", "limit"), ("NeedBlocked", "needs unmet")]
    assert not any(a.is_pending for a in plan.actions)


def test_a_cancelled_job_whose_id_was_never_known_is_not_submitted_again():
    cancelled = replace(job(STEP, Phase.ENDED), state="CANCELLED")
    first = plan_for(STEP, events=submitted(STEP)[:1], accounting=(cancelled,))
    assert first.of(STEP.key).verb is not Verb.SUBMIT
    assert [e["failure"] for e in first.learned if e["event"] == "ended"] == ["CancelledByPerson"]


@pytest.mark.parametrize("outcome", [("limited", {"message": "QOSMaxSubmit"}), ("refused", {"message": "no"}), ("withdrawn", {})])
def test_what_was_given_up_for_lost_stays_in_doubt_through_submissions_that_came_to_nothing(outcome):
    """The next one is held too: the first may be alive all the same."""
    kind, facts = outcome
    lost = [submitted(STEP)[0], event("lost", STEP, NOW - 300, attempt=1)]
    nothing = [submitted(STEP, 2, NOW - 200)[0], event(kind, STEP, NOW - 199, attempt=2, **facts)]
    action = decide(STEP, events=[*lost, *nothing], policy=Policy(backoff=0.0))
    assert (action.verb, action.held, action.reason.code) == (Verb.SUBMIT, True, "SubmissionLost")


@pytest.mark.parametrize("outcome", [("limited", {"message": "QOSMaxSubmit"}), ("refused", {"message": "no"}), ("lost", {})])
@pytest.mark.parametrize("accounting", [(), Unknown("down")])
def test_a_job_that_surfaced_may_be_alive_although_its_replacement_came_to_nothing(outcome, accounting):
    """An answer of the queue that misses it says no more of it than of the newest attempt."""
    kind, facts = outcome
    lost = [submitted(STEP)[0], event("lost", STEP, NOW - 300, attempt=1)]
    nothing = [submitted(STEP, 2, NOW - 200)[0], event(kind, STEP, NOW - 199, attempt=2, **facts)]
    surfaced = event("adopted", STEP, NOW - 100, attempt=1, job="101", name=name_of(STEP))
    plan = plan_for(STEP, events=[*lost, *nothing, surfaced], accounting=accounting, policy=Policy(backoff=0.0))
    action = plan.of(STEP.key)
    assert (action.verb, action.condition, action.job, action.attempt) == (Verb.WAIT, Condition.UNKNOWN, "101", 1)
    assert {e["event"] for e in plan.learned} <= {"unseen"}


@pytest.mark.parametrize("outcome", [("limited", {"message": "QOSMaxSubmit"}), ("refused", {"message": "no"})])
def test_the_outputs_of_a_job_that_surfaced_are_looked_for_twice_although_its_replacement_came_to_nothing(outcome):
    kind, facts = outcome
    lost = [submitted(STEP)[0], event("lost", STEP, NOW - 300, attempt=1)]
    nothing = [submitted(STEP, 2, NOW - 200)[0], event(kind, STEP, NOW - 199, attempt=2, **facts)]
    end = event("ended", STEP, NOW - 10, attempt=1, job="101", state="NODE_FAIL", failure="NodeFailure", ended=NOW - 10)
    policy = replace(LATE, backoff=0.0)
    plan = plan_for(STEP, events=[*lost, *nothing, end], policy=policy)
    assert (plan.of(STEP.key).verb, plan.of(STEP.key).reason.code) == (Verb.WAIT, "OutputsMissing")


def test_an_older_job_of_the_same_name_is_not_this_attempt():
    stale = replace(job(STEP, Phase.ENDED), submitted=NOW - 90_000)
    action = decide(STEP, events=submitted(STEP, at=NOW - 10)[:1], accounting=(stale,))
    assert action.reason.code == "Unconfirmed"


def test_a_reused_job_id_under_another_name_is_not_ours():
    stranger = replace(job(STEP), name="someone-elses")
    action = decide(STEP, events=submitted(STEP), queue=(stranger,), accounting=())
    assert action.reason.code == "JobNotSeen"


def test_an_end_in_the_accounting_is_told_although_its_id_is_another_jobs_by_now():
    ended_long_ago = job(STEP, Phase.ENDED, source="sacct")
    stranger = replace(job(STEP), name="someone-elses")
    plan = plan_for(STEP, events=submitted(STEP), queue=(stranger,), accounting=(ended_long_ago,))
    assert [e["state"] for e in plan.learned if e["event"] == "ended"] == ["COMPLETED"]


def test_a_job_submitted_by_hand_from_the_steps_directory_is_taken_over():
    step = replace(STEP, job_name="train-a")
    by_hand = replace(job(step), name="train-a", workdir=str(step.directory))
    action = decide(step, queue=(by_hand,))
    assert (action.verb, action.job) == (Verb.ADOPT, by_hand.id)


def test_a_job_submitted_by_hand_that_fits_two_steps_is_neithers_and_holds_both():
    one, two = (replace(evaluation(task=task), need=None, job_name="eval", workdir="/exp/a/eval") for task in ("cap", "rev"))
    by_hand = replace(job(one), name="eval", workdir="/exp/a/eval")
    plan = plan_for(one, two, queue=(by_hand,))
    assert [(a.verb, a.reason.code) for a in plan.actions] == [(Verb.HOLD, "AmbiguousJob")] * 2


def test_a_queued_job_whose_script_asks_for_other_resources_is_shown_and_left():
    queued = job(STEP, Phase.QUEUED)
    action = decide(replace(STEP, placement="gpus=2"), queue=(queued,), events=submitted(STEP, placement="gpus=1"))
    assert action.condition is Condition.QUEUED
    assert "other resources" in action.reason.message


def test_an_evaluation_waits_for_its_own_checkpoint_and_for_no_other():
    steps = [finetune("a"), evaluation("a"), finetune("b"), evaluation("b")]
    plan = plan_for(*steps, events=[done(steps[0])])
    assert plan.of("a/eval/cap_epoch0").verb is Verb.SUBMIT
    assert plan.of("b/eval/cap_epoch0").reason.code == "NeedUnmet"
    broken = plan_for(*steps, events=ended(steps[0], "UserError"))
    assert broken.of("a/eval/cap_epoch0").reason.code == "NeedBlocked"
    assert not broken.of("a/eval/cap_epoch0").is_pending


def test_a_run_that_begins_from_another_ones_checkpoint_waits_for_it_in_whatever_order_they_are_listed():
    first, later = finetune("a"), finetune("b", need="a/finetune", others=("a/finetune",), begins_from=0)
    steps = [evaluation("b"), later, first]
    codes = lambda **world: [a.reason.code for a in plan_for(*steps, **world).actions]  # noqa: E731
    assert codes() == ["NeedUnmet", "NeedUnmet", "NotStarted"]
    assert codes(events=[done(first)]) == ["NeedUnmet", "NotStarted", "Done"]
    assert codes(events=ended(first, "UserError")) == ["NeedBlocked", "NeedBlocked", "UserError"]
    assert codes(gate=Gate(Reason("ManyFailures", "three in a row"))) == ["NeedBlocked", "NeedBlocked", "ManyFailures"]
    freed = [done(first), event("free", first, NOW - 9, user="u", why="", epochs=[0], bytes=7), event("freed", first, NOW - 8)]
    assert codes(events=freed) == ["NeedBlocked", "NeedFreed", "Freed"]


def test_a_wave_of_failures_stops_submissions_until_a_person_releases():
    steps = [finetune(name) for name in "abcd"]
    wave = [e for step in steps[:3] for e in ended(step, "UserError")]
    assert plan_for(*steps, events=wave).of("d/finetune").reason.code == "ManyFailures"
    assert plan_for(*steps, events=[*wave, {"event": "release", "at": NOW}]).of("d/finetune").verb is Verb.SUBMIT
    assert plan_for(*steps, events=wave[: len(wave) // 3 * 2]).of("d/finetune").verb is Verb.SUBMIT


def test_node_failures_that_are_retried_are_no_wave():
    steps = [finetune(name) for name in "abcd"]
    storm = [e for step in steps[:3] for e in ended(step, "NodeFailure")]
    assert plan_for(*steps, events=storm).of("d/finetune").verb is Verb.SUBMIT


def test_max_in_flight_counts_the_users_other_jobs_and_lets_evaluations_go_first():
    steps = [finetune("a"), evaluation("a"), finetune("b")]
    other = replace(job(steps[0]), id="7", name="something else")
    plan = plan_for(*steps, events=[done(steps[0])], queue=(other,), policy=Policy(max_in_flight=2))
    assert plan.of("a/eval/cap_epoch0").verb is Verb.SUBMIT
    assert plan.of("b/finetune").reason.code == "MaxInFlight"


def test_a_blocked_run_leaves_the_others_alone():
    broken = replace(finetune("a"), blocked=Reason("NotScaffolded", "no script"))
    plan = plan_for(broken, finetune("b"))
    assert plan.of("a/finetune").condition is Condition.BLOCKED
    assert plan.of("b/finetune").verb is Verb.SUBMIT


def test_the_plan_depends_neither_on_the_order_of_jobs_nor_on_the_call():
    steps = [finetune("a"), finetune("b")]
    jobs = (job(steps[0]), replace(job(steps[1]), id="9"), replace(job(steps[0], Phase.ENDED, attempt=3), id="8"))
    plans = [plan_for(*steps, queue=queue, events=submitted(steps[0])) for queue in permutations(jobs)]
    assert all(plan == plans[0] for plan in plans)


def test_backoff_doubles_and_stays_within_an_hour_with_its_jitter():
    delays = [backoff(Policy(backoff=60), "k", tries) for tries in range(1, 12)]
    assert 60 <= delays[0] <= 66
    assert delays[1] > delays[0]
    assert max(delays) <= 3600
    assert max(backoff(Policy(), f"r{run}/finetune", 12) for run in range(50)) <= 3600


def test_a_job_name_keeps_its_token_whatever_the_scripts_name():
    token = Token.of(finetune().script, "a/finetune", 12)
    for script in ("x" * 300, "ümläut |,name", "--help", ""):
        name = token.job_name(script)
        assert len(name.encode()) <= 64
        assert Token.parse(name) == token
        assert not name.startswith("-")
    assert Token.parse("finetune") is None


def test_a_number_that_no_attempt_of_ours_reaches_makes_no_token():
    token = Token.of(HERE, "a/finetune", 99_999_999)
    assert Token.parse(token.job_name("job")) == token
    assert Token.parse(Token.of(HERE, "a/finetune", 100_000_000).job_name("job")) is None


def test_a_job_recorded_and_missing_everywhere_is_given_up_only_after_grace():
    unseen = [*submitted(STEP), event("unseen", STEP, NOW - 100, attempt=1)]
    assert decide(STEP, events=unseen, accounting=()).reason.code == "JobNotSeen"
    long_ago = [*submitted(STEP), event("unseen", STEP, NOW - 700, attempt=1)]
    plan = plan_for(STEP, events=long_ago, accounting=())
    assert [e["failure"] for e in plan.learned if e["event"] == "ended"] == ["Vanished"]
    assert plan.of(STEP.key).verb is not Verb.SUBMIT


def test_absent_outputs_and_an_unknown_queue_never_submit():
    for seen in (ABSENT, TORN, COMPLETE, UNREADABLE):
        assert decide(STEP, queue=Unknown("x"), seen={STEP.key: seen}).verb is Verb.WAIT
    assert name_of(STEP) == job(STEP).name


def test_a_replacement_is_not_given_up_for_a_lost_job_whose_end_was_known_before_it_was_made():
    """Else it is cancelled and made again for ever."""
    step = finetune()
    first = [*submitted(step, 1, NOW - 9000)[:1], event("lost", step, NOW - 8000, attempt=1)]
    surfaced = ended(step, "NodeFailure", 1, NOW - 7000)[2:]
    second = [*submitted(step, 2, NOW - 3000)[:1], event("lost", step, NOW - 2000, attempt=2)]
    events = [*first, *surfaced, *second, *submitted(step, 3, NOW - 300, held=True)]
    action = decide(step, events=events, queue=(job(step, Phase.QUEUED, 3, held=True),), accounting=())
    assert (action.reason.code, action.release) == ("Confirmed", True)
    late = decide(
        step, events=[*events, *ended(step, "NodeFailure", 2)[2:]], queue=(job(step, Phase.QUEUED, 3, held=True),), accounting=()
    )
    assert (late.verb, late.reason.code) == (Verb.CANCEL, "ReplacementNotNeeded")
