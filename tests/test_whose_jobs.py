"""Whose a job is, and what a pass learns of each attempt by comparing what is in writing with what the cluster shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.batch_script import parse_batch_script
from reconciler.copies import jobs_of_copies
from reconciler.disk import RealDisk
from reconciler.fold import fold
from reconciler.memory import CLOCK_SKEW, Memory
from reconciler.model import Condition, Job, Observed, OutputState, Phase, Policy, Reason, Token, Unknown, Verb
from reconciler.ownership import all_jobs, whose_jobs
from reconciler.situation import Situation, remember_ends
from worlds import (
    COMPLETE,
    HERE,
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
    outputs,
    plan_for,
    submitted,
)

STEP = finetune()
OTHER = finetune("b")


OVER = [*submitted(STEP)[:2], event("ended", STEP, NOW - 800, attempt=1, job="101", state="COMPLETED", failure="", ended=NOW - 800,
        started=NOW - 900), done(STEP)]  # fmt: skip
REQUEUED = event("reopened", STEP, NOW - 100, attempt=1)


def learned(step=STEP, **world):
    """The events that a plan has learned, without the step's key."""
    return [{k: v for k, v in e.items() if k != "step"} for e in plan_for(step, **world).learned]


def kinds(step=STEP, **world):
    return [e["event"] for e in learned(step, **world)]


# --- which jobs there are ----------------------------------------------------------------------------


def test_every_job_is_listed_once_oldest_first_and_the_queue_is_believed():
    def one(number, at, phase=Phase.RUNNING, **more):
        return Job(number, "n" + number, "S", phase, submitted=at, **more)

    queue = (one("3", 30.0), one("10", 20.0), one("2", None))
    over = {"phase": Phase.ENDED, "ended": 60.0}
    told = (one("3", 30.0, **over), one("4", 20.0, **over), one("5", 50.0, Phase.QUEUED), one("6", 55.0, Phase.ENDED))
    seen = all_jobs(Observed(queue, told, {}))
    assert [(j.id, j.phase) for j in seen] == [
        ("2", Phase.RUNNING), ("10", Phase.RUNNING), ("4", Phase.ENDED), ("3", Phase.RUNNING), ("5", Phase.UNLISTED),
        ("6", Phase.UNLISTED),
    ]  # fmt: skip
    assert [j.id for j in all_jobs(Observed(Unknown("down"), told, {}))] == ["4", "3", "5", "6"]
    assert [j.id for j in all_jobs(Observed(queue, Unknown("down"), {}))] == ["2", "10", "3"]
    assert [j.id for j in all_jobs(Observed(queue, None, {}))] == ["2", "10", "3"]
    again = (replace(queue[0], name="another's"),)
    assert len(all_jobs(Observed(queue, again, {}))) == 4


# --- whose they are ----------------------------------------------------------------------------------


def owners(*jobs, events=(), steps=(STEP, OTHER)):
    ours = whose_jobs(experiment(*steps), Observed(jobs, None, {}), fold(events))
    return {key: [j.id for j in of] for key, of in ours.by_step.items()}, ours


def test_a_job_is_its_steps_by_the_name_in_writing_else_by_the_token_in_its_name():
    elsewhere = Token.of(HERE.parent / "elsewhere", STEP.key, 1).job_name("job")
    intent = event("intent", STEP, NOW, attempt=1, name=elsewhere)
    old = replace(job(STEP), name=elsewhere)
    assert owners(old)[0] == {}
    assert owners(old, events=[intent])[0] == {STEP.key: ["101"]}
    assert owners(job(OTHER), replace(job(OTHER, attempt=2), id="5"))[0] == {OTHER.key: ["101", "5"]}
    assert owners(Job("1", "somebody", "RUNNING", Phase.RUNNING))[0] == {}


def test_the_job_of_a_step_that_is_gone_is_an_orphan_while_it_lives():
    gone = finetune("gone")
    began = [{**e, "output_dir": "/scratch/gone"} if e["event"] == "intent" else e for e in submitted(gone)]
    other = [{**e, "output_dir": "/scratch/2"} if e["event"] == "intent" else e for e in submitted(gone, 2)]
    live = job(gone)
    for events, orphan in (
        ([], ("101", "", "")),
        (began, ("101", "gone/finetune", "/scratch/gone")),
        ([*other, *began], ("101", "gone/finetune", "/scratch/gone")),
    ):
        _, ours = owners(live, events=events)
        assert [(o.job.id, o.step, o.output_dir) for o in ours.orphans] == [orphan]
    _, ours = owners(job(gone, Phase.ENDED), job(STEP), events=began)
    assert ours.orphans == ()
    assert ours.of("gone/finetune") != ()
    assert ours.of("never/heard-of") == ()


def test_a_job_submitted_by_hand_is_the_steps_by_directory_and_name_as_long_as_it_lives_or_once_it_was_taken_over():
    step = replace(STEP, job_name="train-a")
    by_hand = Job("7", "train-a", "RUNNING", Phase.RUNNING, str(step.directory))
    taken = event("adopted", step, NOW, attempt=1, job="7", name="train-a", by_hand=True)
    over = replace(by_hand, phase=Phase.ENDED)
    assert owners(by_hand, steps=(step, OTHER))[0] == {step.key: ["7"]}
    assert owners(replace(by_hand, workdir="/home/ana"), steps=(step, OTHER))[0] == {}
    assert owners(replace(by_hand, name="train-b"), steps=(step, OTHER))[0] == {}
    assert owners(over, steps=(step, OTHER))[0] == {}
    assert owners(over, events=[taken], steps=(step, OTHER))[0] == {step.key: ["7"]}
    assert owners(replace(over, id="8"), events=[taken], steps=(step, OTHER))[0] == {}


def test_a_job_submitted_by_hand_is_the_steps_by_either_spelling_of_its_directory(tmp_path):
    """Real sbatch shows a --chdir as it was written, made absolute and not looked through."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for chosen in ("link", f"{tmp_path}/link", f"{tmp_path}/real/"):
        text = f"#!/bin/bash\n#SBATCH --chdir={chosen}\n"
        found = parse_batch_script(tmp_path / "finetune.slurm", text)
        step = replace(STEP, job_name="train-a", workdir=found.workdir, written_workdir=found.written_workdir)
        for shown in {f"{tmp_path}/real", str(tmp_path) + "/" + chosen.removeprefix(f"{tmp_path}/")}:
            by_hand = Job("7", "train-a", "RUNNING", Phase.RUNNING, shown)
            assert owners(by_hand, steps=(step, OTHER))[0] == {step.key: ["7"]}, (chosen, shown)
        assert owners(replace(by_hand, workdir=str(tmp_path)), steps=(step, OTHER))[0] == {}


def test_a_job_submitted_by_hand_that_fits_two_steps_is_shared_and_a_job_of_ours_never_is():
    one, two = (replace(evaluation(task=task), job_name="eval", workdir="/exp/a/eval") for task in ("cap", "rev"))
    by_hand = Job("7", "eval", "RUNNING", Phase.RUNNING, "/exp/a/eval")
    found, ours = owners(by_hand, job(one), steps=(one, two))
    assert found == {one.key: ["7", "101"], two.key: ["7"]}
    assert ours.shared == {"7"}


# --- what is learned of an attempt -------------------------------------------------------------------


def test_the_end_of_a_job_is_learned_with_everything_that_the_cluster_tells_of_it():
    over = job(STEP, Phase.ENDED, state="FAILED", exit_code="1:0", started=NOW - 950.0, nodes="n1")
    (end,) = [e for e in learned(events=submitted(STEP), queue=(over,)) if e["event"] == "ended"]
    assert end == {
        "event": "ended", "attempt": 1, "job": "101", "state": "FAILED", "failure": "Unknown", "ended": NOW - 900,
        "started": NOW - 950, "exit_code": "1:0", "detail": "exit code 1:0", "nodes": "n1",
    }  # fmt: skip
    (undated,) = [e for e in learned(events=submitted(STEP), queue=(replace(over, ended=None),)) if e["event"] == "ended"]
    assert undated["ended"] == NOW


def test_an_end_that_is_in_writing_is_not_learned_again():
    again = job(STEP, Phase.ENDED, state="FAILED")
    assert kinds(events=ended(STEP, "UserError"), queue=(again,)) == []


def test_a_job_that_ran_twice_under_one_name_ended_as_it_did_the_last_time():
    first = job(STEP, Phase.ENDED, state="NODE_FAIL", submitted=NOW - 1000)
    second = replace(first, id="300", state="FAILED", submitted=NOW - 500)
    (end,) = [e for e in learned(events=submitted(STEP)[:1], queue=(first, second)) if e["event"] == "ended"]
    assert (end["job"], end["failure"]) == ("300", "Unknown")


def test_what_became_of_an_attempt_stays_open_while_the_queue_cannot_be_asked():
    over = job(STEP, Phase.ENDED)
    assert kinds(events=submitted(STEP), queue=Unknown("down"), accounting=(over,)) == []
    assert kinds(events=submitted(STEP, at=NOW - 9999), accounting=Unknown("down")) == []
    assert kinds(events=submitted(STEP, at=NOW - 9999)[:1], accounting=None) == []


def test_a_job_that_only_the_accounting_knows_as_live_gives_its_id_and_is_looked_for_further():
    told = learned(events=submitted(STEP)[:1], accounting=(job(STEP),))
    assert told == [{"event": "submitted", "attempt": 1, "job": "101"}, {"event": "unseen", "attempt": 1}]
    told = learned(events=submitted(STEP), accounting=(job(STEP),))
    assert told == [{"event": "unseen", "attempt": 1}]


def test_a_job_given_up_for_gone_has_vanished():
    unseen = [*submitted(STEP), event("unseen", STEP, NOW - 600, attempt=1)]
    told = learned(events=unseen, accounting=())
    assert told[0] == {
        "event": "ended", "attempt": 1, "job": "101", "state": "UNKNOWN", "failure": "Vanished", "ended": NOW, "started": None,
        "exit_code": "", "detail": "", "nodes": "",
    }  # fmt: skip
    assert learned(events=submitted(STEP, at=NOW - 600)[:1], accounting=()) == [{"event": "lost", "attempt": 1}]


def test_a_job_that_is_back_in_the_queue_was_not_gone():
    unseen = [*submitted(STEP), event("unseen", STEP, NOW - 100, attempt=1)]
    assert learned(events=unseen, queue=(job(STEP),)) == [{"event": "seen", "attempt": 1}]
    back = [*unseen, *ended(STEP, "NodeFailure")[2:]]
    assert learned(events=back, queue=(job(STEP),)) == [{"event": "reopened", "attempt": 1}]
    assert learned(events=submitted(STEP), queue=(job(STEP),)) == []


def test_a_job_held_by_ourselves_is_free_once_it_is_not_shown_as_held():
    held = submitted(STEP, held=True)
    assert learned(events=held, queue=(job(STEP, Phase.QUEUED),)) == [{"event": "unheld", "attempt": 1}]
    assert learned(events=held, queue=(job(STEP, Phase.QUEUED, held=True),), accounting=()) == []


def test_the_failed_record_of_a_job_that_was_refused_is_no_end_unless_it_ran():
    refused = [*submitted(STEP)[:1], event("refused", STEP, NOW - 999, attempt=1, message="BadConstraints")]
    record = job(STEP, Phase.ENDED, state="FAILED", started=NOW - 900, ended=NOW - 900)
    assert kinds(events=refused, queue=(record,)) == []
    assert kinds(events=refused, queue=(replace(record, started=None),)) == []
    assert "ended" in kinds(events=refused, queue=(replace(record, started=NOW - 950),))


def test_a_job_that_nothing_in_writing_knows_is_learned_with_its_end():
    over = job(STEP, Phase.ENDED, state="FAILED", exit_code="1:0", attempt=3)
    told = learned(queue=(over,))
    assert told[0] == {"event": "adopted", "attempt": 3, "job": "103", "name": name_of(STEP, 3), "begun": NOW - 1000}
    assert (told[1]["event"], told[1]["attempt"], told[1]["job"], told[1]["failure"]) == ("ended", 3, "103", "Unknown")
    unlisted = learned(queue=(), accounting=(job(STEP, attempt=3),))
    assert [e["event"] for e in unlisted] == ["adopted", "unseen"]
    assert [e["event"] for e in learned(queue=(over, replace(over, id="9"))) if e["event"] == "adopted"] == ["adopted"]
    live_and_unknown = learned(queue=(job(STEP, attempt=3),))
    assert live_and_unknown == []


def test_outputs_made_after_the_submission_of_a_job_found_in_the_queue_may_be_ours():
    """The ledger was lost, and the queue still shows the job that failed."""
    over = job(STEP, Phase.ENDED, state="NODE_FAIL", submitted=NOW - 5000, ended=NOW - 4000)
    torn = replace(outputs(OutputState.INCOMPLETE, torn=(STEP.output_dir,)), newest=NOW - 4500)
    assert decide(STEP, queue=(over,), seen={STEP.key: torn}).reason.code == "OutputsMissing"
    before = replace(torn, newest=NOW - 6000)
    assert decide(STEP, queue=(over,), seen={STEP.key: before}).reason.code == "OutputsNotOurs"


def test_what_a_job_left_is_ours_also_for_the_passes_after_the_one_that_found_it():
    """The ledger was lost while the job ran, or after it had failed; it was found again long after it had written."""
    torn = replace(outputs(OutputState.INCOMPLETE, torn=(STEP.output_dir,)), newest=NOW - 4500)
    over = job(STEP, Phase.ENDED, state="NODE_FAIL", submitted=NOW - 5000, ended=NOW - 4000)
    found = plan_for(STEP, queue=(over,), seen={STEP.key: torn})
    written = [{"at": NOW - 1000, **e} for e in found.learned]
    later = decide(STEP, events=written, seen={STEP.key: torn})
    assert (later.verb, later.move_aside) == (Verb.SUBMIT, (STEP.output_dir,))


def test_a_job_found_in_the_queue_failed_after_whatever_a_person_said_before():
    failed = job(STEP, Phase.ENDED, state="FAILED", ended=NOW - 400)
    action = decide(STEP, queue=(failed,), events=[event("release", STEP, NOW)], policy=Policy(settle=0))
    assert (action.condition, action.reason.code) == (Condition.VERIFYING, "OutputsMissing")


def test_an_ended_job_is_an_attempts_own_as_far_as_two_clocks_may_differ():
    for older, told in ((0, ["ended", "missing"]), (1, [])):
        over = replace(job(STEP, Phase.ENDED), submitted=NOW - 1000 - CLOCK_SKEW - older)
        assert kinds(events=submitted(STEP)[:1], queue=(over,)) == told
    undated = replace(job(STEP, Phase.ENDED), submitted=None)
    assert kinds(events=submitted(STEP)[:1], queue=(undated,)) == ["ended", "missing"]


# --- what a rerun replaces ---------------------------------------------------------------------------


def rerun(step=STEP, newest=None, at=NOW - 100):
    return event("rerun", step, at, newest=newest)


def after_rerun(step, events, newest, state=OutputState.COMPLETE):
    found = replace(outputs(state), newest=newest)
    return decide(step, events=events, seen={step.key: found})


def test_outputs_from_before_a_rerun_are_moved_aside_and_newer_ones_count():
    for newest, verb in ((NOW - 5000, Verb.SUBMIT), (NOW - 4999, Verb.MARK_DONE)):
        action = after_rerun(STEP, [done(STEP), rerun(newest=NOW - 5000)], newest)
        assert action.verb is verb
        assert action.move_aside == ((STEP.output_dir,) if verb is Verb.SUBMIT else ())
    for newest, verb in ((NOW - 100, Verb.SUBMIT), (NOW - 99, Verb.MARK_DONE)):
        assert after_rerun(STEP, [done(STEP), rerun()], newest).verb is verb


def test_what_was_there_before_a_rerun_does_not_speak_against_the_new_attempt():
    mismatch = after_rerun(STEP, [rerun(newest=NOW - 5000)], NOW - 5000, OutputState.MISMATCH)
    assert (mismatch.verb, mismatch.move_aside) == (Verb.SUBMIT, (STEP.output_dir,))
    nothing = after_rerun(STEP, [rerun()], NOW - 5000, OutputState.ABSENT)
    assert (nothing.verb, nothing.move_aside) == (Verb.SUBMIT, ())
    undated = after_rerun(STEP, [rerun()], None)
    assert undated.verb is Verb.MARK_DONE


def test_what_nobody_understood_is_moved_aside_for_a_rerun_though_it_is_not_ours():
    theirs = replace(outputs(OutputState.INCOMPLETE, torn=(STEP.output_dir / "epoch_0",)), newest=NOW - 5000)
    assert decide(STEP, seen={STEP.key: theirs}).reason.code == "OutputsNotOurs"
    action = decide(STEP, events=[rerun(newest=NOW - 5000)], seen={STEP.key: theirs})
    assert (action.verb, action.move_aside) == (Verb.SUBMIT, (STEP.output_dir,))
    assert "before the rerun" in action.reason.message


def test_once_a_fine_tune_was_submitted_again_what_is_there_is_new_whatever_its_time():
    events = [done(STEP), rerun(), *ended(STEP, "UserError")]
    assert after_rerun(STEP, events, NOW - 5000).verb is Verb.MARK_DONE
    step = replace(evaluation(), need=None)
    events = [done(step), rerun(step), *ended(step, "UserError")]
    assert after_rerun(step, events, NOW - 5000).condition is Condition.FAILED


def test_what_a_replaced_job_wrote_until_it_was_dead_does_not_count():
    late = {**ended(STEP, "CancelledByPerson", at=NOW - 50)[2], "started": NOW - 900}
    events = [*submitted(STEP), rerun(), late]
    for newest, verb in ((NOW - 50, Verb.SUBMIT), (NOW - 49.1, Verb.SUBMIT), (NOW - 48.9, Verb.MARK_DONE)):
        assert after_rerun(STEP, events, newest).verb is verb
    before = [*submitted(STEP), late, rerun()]
    assert after_rerun(STEP, before, NOW - 60).verb is Verb.MARK_DONE


def test_a_rerun_evaluations_old_log_stays_where_it_is():
    step = replace(evaluation(), need=None)
    action = after_rerun(step, [done(step), rerun(step, newest=NOW - 5000)], NOW - 5000)
    assert (action.verb, action.reason.code, action.move_aside) == (Verb.SUBMIT, "NotStarted", ())
    assert decide(step, events=[done(step), rerun(step)], seen={step.key: COMPLETE}).verb is Verb.MARK_DONE


# --- who cancelled, and what a pass goes on with ---------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "by", "failure"),
    [
        pytest.param(submitted(STEP), "", "CancelledByPerson", id="nobody says who"),
        pytest.param(submitted(STEP), "1000", "CancelledByPerson", id="this user"),
        pytest.param(submitted(STEP), "0", "CancelledByAdmin", id="another"),
        pytest.param([*submitted(STEP), event("cancel", STEP, NOW)], "0", "CancelledByUs", id="as a person told us to"),
        pytest.param([event("cancel", STEP, NOW), *submitted(STEP)], "", "CancelledByPerson", id="told before that attempt"),
        pytest.param([*submitted(STEP), event("hold", STEP, NOW)], "", "CancelledByPerson", id="told to hold it"),
        pytest.param([*submitted(STEP), event("rerun", STEP, NOW)], "", "CancelledByUs", id="replaced by a rerun"),
        pytest.param([event("rerun", STEP, NOW), *submitted(STEP)], "", "CancelledByPerson", id="begun by a rerun"),
        pytest.param([*submitted(STEP), event("withdrawn", STEP, NOW, attempt=1)], "", "CancelledByUs", id="withdrawn"),
    ],
)
def test_it_is_told_who_had_a_job_cancelled(events, by, failure):
    over = job(STEP, Phase.ENDED, state="CANCELLED", cancelled_by=by)
    (end,) = [e for e in learned(events=events, queue=(over,)) if e["event"] == "ended"]
    assert end["failure"] == failure
    assert ("uid 0" in end["detail"]) == (failure == "CancelledByAdmin")


SURFACED = [*submitted(STEP)[:1], event("lost", STEP, NOW - 800, attempt=1), *ended(STEP, "NodeFailure")[1:]]
WITHDRAWING = [*SURFACED, *submitted(STEP, 2, NOW - 700, held=True), event("withdrawing", STEP, NOW - 600, attempt=2)]


@pytest.mark.parametrize(
    ("events", "queue"),
    [
        pytest.param(WITHDRAWING, (job(STEP, Phase.ENDED, attempt=2, state="CANCELLED"),), id="and it shows"),
        pytest.param([*WITHDRAWING, event("unseen", STEP, NOW - 600, attempt=2)], (), id="and nothing tells of it any more"),
    ],
)
def test_a_replacement_that_a_dying_pass_cancelled_is_no_attempt_that_a_person_cancelled(events, queue):
    plan = plan_for(STEP, events=events, queue=queue, accounting=(), policy=Policy(backoff=0.0, settle=0.0))
    assert plan.learned[0]["event"] == "withdrawn"
    assert plan.of(STEP.key).reason.code != "CancelledByPerson"
    later = [*events, *plan.learned, event("missing", STEP, NOW - 600, attempt=1)]
    action = decide(STEP, events=[{"at": NOW, **e} for e in later], policy=Policy(backoff=0.0, settle=0.0))
    assert (action.verb, action.reason.code) == (Verb.SUBMIT, "Retry")


def test_a_job_that_was_to_be_withdrawn_and_was_let_go_instead_is_a_persons_to_cancel():
    events = [*submitted(STEP, held=True), event("withdrawing", STEP, NOW, attempt=1), event("unheld", STEP, NOW, attempt=1)]
    (end, _) = learned(events=events, queue=(job(STEP, Phase.ENDED, state="CANCELLED"),))
    assert (end["event"], end["failure"]) == ("ended", "CancelledByPerson")


FAILED = ended(STEP, "NodeFailure")
UNSEEN = [*submitted(STEP), event("unseen", STEP, NOW - 600, attempt=1)]


@pytest.mark.parametrize(
    ("events", "queue", "accounting"),
    [
        pytest.param(FAILED, (job(STEP),), None, id="requeued"),
        pytest.param([*FAILED, event("unseen", STEP, NOW, attempt=1)], (job(STEP),), None, id="requeued, and unseen before"),
        pytest.param(UNSEEN, (job(STEP),), None, id="back"),
        pytest.param(submitted(STEP, held=True), (job(STEP, Phase.QUEUED),), None, id="released"),
        pytest.param(submitted(STEP, held=True), (job(STEP, Phase.QUEUED, held=True),), None, id="still held"),
        pytest.param(UNSEEN, (), (), id="vanished"),
        pytest.param(submitted(STEP), (), (), id="unseen"),
        pytest.param(submitted(STEP)[:1], (), (), id="lost"),
        pytest.param(submitted(STEP)[:1], (), (job(STEP),), id="told of by the accounting alone"),
        pytest.param(submitted(STEP)[:1], (job(STEP, Phase.ENDED),), None, id="ended"),
        pytest.param([], (job(STEP, Phase.ENDED, attempt=2),), None, id="found ended"),
        pytest.param([], (), (job(STEP, attempt=2),), id="found unlisted"),
        pytest.param(
            [*submitted(STEP, held=True), event("withdrawing", STEP, NOW - 50, attempt=1)],
            (job(STEP, Phase.ENDED, state="CANCELLED", started=None),),
            None,
            id="withdrawn by a pass that died",
        ),
        pytest.param(OVER, (job(STEP),), None, id="requeued although done"),
        pytest.param([*OVER, REQUEUED], (job(STEP, Phase.ENDED, started=NOW - 90, ended=NOW - 9),), None, id="and ended again"),
        pytest.param([*OVER, REQUEUED], (job(STEP, Phase.ENDED, state="CANCELLED", ended=NOW - 9),), None, id="and never ran"),
        pytest.param(OVER, (job(STEP, Phase.ENDED, attempt=2, started=NOW - 90, ended=NOW - 9),), None, id="found ended, done"),
        pytest.param(OVER, (job(STEP, Phase.ENDED, attempt=2, ended=NOW - 9000),), None, id="found ended before it was done"),
    ],
)
def test_what_a_pass_goes_on_with_is_what_the_next_one_reads(events, queue, accounting):
    observed = Observed(queue, accounting, {})
    memory = fold(events)
    ours = whose_jobs(experiment(STEP), observed, memory)
    situation = Situation(STEP, memory.of(STEP.key), ours.of(STEP.key), None, observed, Policy(), NOW, None)
    known = remember_ends(situation)
    assert bool(situation.learned) == (queue != (job(STEP, Phase.QUEUED, held=True),))
    read = fold([*events, *({"at": NOW, **e} for e in situation.learned)]).of(STEP.key)
    in_no_order = [[replace(a, order=0, end=a.end and replace(a.end, order=0)) for a in m.attempts] for m in (known, read)]
    assert in_no_order[0] == in_no_order[1]
    assert (known.done, known.overtaken, bool(known.anew)) == (read.done, read.overtaken, bool(read.anew))


@pytest.mark.parametrize("blocked", [None, Reason("NotScaffolded", "no script")])
def test_a_training_that_may_be_submitted_waits_for_the_job_of_a_copy_and_nothing_else_does(blocked):
    training, its_evaluation = replace(finetune(), blocked=blocked), evaluation()
    theirs = [
        replace(job(step), name=Token.of(Path("/copy"), step.key, 1).job_name(step.job_name))
        for step in (training, its_evaluation)
    ]
    desired = experiment(training, its_evaluation)
    found = jobs_of_copies(desired, desired.steps, Memory(), theirs, RealDisk(), {})
    assert found == ({} if blocked else {training.key: theirs[0]})
