"""The limits that concern all steps together: what may be submitted at once, what stops everything, and what is left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.memory import Memory
from reconciler.model import (
    Action,
    Condition,
    Edit,
    Observed,
    OutputState,
    Phase,
    Policy,
    Raise,
    Reason,
    Step,
    Unknown,
    Verb,
    Written,
)
from reconciler.plan import Gate, Plan, make_plan
from worlds import (
    COMPLETE,
    NOW,
    TORN,
    done,
    ended,
    evaluation,
    event,
    experiment,
    finetune,
    job,
    outputs,
    plan_for,
    submitted,
)

STEPS = tuple(finetune(run) for run in "abcd")
TORN_OF = {step.key: replace(TORN, torn=(step.output_dir / "epoch_0",)) for step in STEPS}


def codes(plan: Plan) -> list[str]:
    return [action.reason.code for action in plan.actions]


def is_plain(action: Action) -> bool:
    """Nothing of the submission that it was to be is left."""
    return (action.attempt, action.move_aside, action.changes, action.held, action.release) == (None, (), (), False, False)


# --- how many at once --------------------------------------------------------------------------------


def test_no_more_is_submitted_than_there_is_room_for_and_the_rest_is_told_why():
    plan = plan_for(
        *STEPS, policy=Policy(max_in_flight=3), queue=(job(STEPS[0]), job(STEPS[1], Phase.ENDED)), events=submitted(STEPS[0])
    )
    assert codes(plan) == ["JobRunning", "OutputsMissing", "NotStarted", "NotStarted"]
    plan = plan_for(*STEPS, policy=Policy(max_in_flight=2), queue=(job(STEPS[0]),), events=submitted(STEPS[0]))
    assert codes(plan) == ["JobRunning", "NotStarted", "MaxInFlight", "MaxInFlight"]
    waiting = plan.of("c/finetune")
    assert (waiting.verb, waiting.condition) == (Verb.WAIT, Condition.WAITING)
    assert ": 2; max_in_flight is 2" in waiting.reason.message
    assert is_plain(waiting)
    assert codes(plan_for(*STEPS, policy=Policy(max_in_flight=0))) == ["MaxInFlight"] * 4


def test_what_waits_for_room_moves_nothing_aside_and_is_not_held():
    failed = ended(STEPS[0], "NodeFailure")
    plan = plan_for(STEPS[0], events=failed, seen=TORN_OF, policy=Policy(max_in_flight=0))
    assert is_plain(plan.of("a/finetune"))
    lost = [*submitted(STEPS[0])[:1], event("lost", STEPS[0], NOW - 300, attempt=1)]
    assert is_plain(plan_for(STEPS[0], events=lost, policy=Policy(max_in_flight=0)).of("a/finetune"))


def test_evaluations_go_before_fine_tunes_and_the_plan_stays_in_the_documents_order():
    steps = [finetune("a"), finetune("b"), evaluation("b"), finetune("c")]
    plan = plan_for(*steps, events=[done(steps[1])], policy=Policy(max_in_flight=1))
    assert [a.step for a in plan.actions] == [step.key for step in steps]
    assert codes(plan) == ["MaxInFlight", "Done", "NotStarted", "MaxInFlight"]
    first = [evaluation("b"), finetune("b")]
    assert codes(plan_for(*first, events=[done(first[1])])) == ["NotStarted", "Done"]
    assert codes(plan_for(*first)) == ["NeedUnmet", "NotStarted"]


# --- what stops everything ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "verb", "condition"),
    [
        (Gate(Reason("EnvironmentChanged", "no conda")), Verb.HOLD, Condition.HELD),
        (Gate(Reason("Later", "not yet"), needs_person=False), Verb.WAIT, Condition.WAITING),
    ],
)
def test_a_closed_gate_turns_every_submission_and_nothing_else_into_a_wait(gate, verb, condition):
    events = [*ended(STEPS[0], "NodeFailure"), *submitted(STEPS[1]), done(STEPS[2])]
    plan = plan_for(*STEPS, events=events, queue=(job(STEPS[1]),), seen={STEPS[0].key: TORN_OF[STEPS[0].key]}, gate=gate)
    assert codes(plan) == [gate.reason.code, "JobRunning", "Done", gate.reason.code]
    for key in ("a/finetune", "d/finetune"):
        stopped = plan.of(key)
        assert (stopped.verb, stopped.condition, stopped.reason) == (verb, condition, gate.reason)
        assert is_plain(stopped)
    lost = [*submitted(STEPS[0])[:1], event("lost", STEPS[0], NOW - 300, attempt=1)]
    assert is_plain(plan_for(STEPS[0], events=lost, gate=gate).of("a/finetune"))
    behind = plan_for(finetune(), evaluation(), gate=gate).of(evaluation().key)
    assert behind.reason.code == ("NeedBlocked" if gate.needs_person else "NeedUnmet")


def test_a_site_that_rewrites_names_gets_nothing_more():
    stopped = plan_for(STEPS[0], events=[{"event": "names", "at": NOW, "kept": False}]).of("a/finetune")
    assert (stopped.verb, stopped.condition, stopped.reason.code) == (Verb.HOLD, Condition.HELD, "NamesRewritten")
    for kept in ([], [{"event": "names", "at": NOW, "kept": True}]):
        assert plan_for(STEPS[0], events=kept).of("a/finetune").verb is Verb.SUBMIT


def wave(*failures: str, of=STEPS):
    return [e for step, failure in zip(of, failures, strict=False) for e in ended(step, failure)]


@pytest.mark.parametrize(
    ("events", "is_stopped"),
    [
        pytest.param(wave("UserError", "UserError"), False, id="two"),
        pytest.param(wave("UserError", "UserError", "TimeLimit"), True, id="three"),
        pytest.param(
            wave("UserError", "UserError", "UserError", of=STEPS[1:]), True, id="three, and the first step is not among them"
        ),
        pytest.param(wave("UserError", "UserError", "CancelledByPerson"), False, id="a cancelled one is no fault"),
        pytest.param(wave("UserError", "UserError", "NodeFailure"), False, id="a retried one is no fault"),
        pytest.param(wave("UserError", "UserError", "CompletedWithoutEvidence"), True, id="nor did that one do its work"),
        pytest.param(
            [*wave("UserError", "UserError"), done(STEPS[3]), *ended(STEPS[2], "UserError")], False, id="a success in between"
        ),
        pytest.param([done(STEPS[3]), *wave("UserError", "UserError", "UserError")], True, id="a success before"),
        pytest.param([*wave("UserError", "UserError", "UserError"), {"event": "release", "at": NOW}], False, id="released"),
        pytest.param(
            [*wave("UserError", "UserError"), {"event": "release", "at": NOW}, *ended(STEPS[2], "UserError")],
            False,
            id="released before",
        ),
        pytest.param(
            [*wave("UserError", "UserError", "UserError"), event("release", STEPS[0], NOW)], False, id="one was released"
        ),
    ],
)
def test_three_failures_without_a_success_stop_what_is_left(events, is_stopped):
    more = finetune("e")
    plan = plan_for(*STEPS, more, events=events)
    stopped = plan.of(more.key)
    assert (stopped.reason.code == "ManyFailures") == is_stopped
    if is_stopped:
        assert (stopped.verb, stopped.condition) == (Verb.HOLD, Condition.HELD)
        assert stopped.reason.message.startswith("3 steps failed")
        failed = {e["step"] for e in events if e["event"] == "ended"}
        assert all(key in stopped.reason.message for key in failed)


def test_a_success_that_this_pass_finds_ends_a_wave():
    events = wave("UserError", "UserError", "UserError")
    assert plan_for(*STEPS, events=events).of("d/finetune").reason.code == "ManyFailures"
    found = plan_for(*STEPS, finetune("e"), events=events, seen={STEPS[3].key: COMPLETE})
    assert found.of("e/finetune").verb is Verb.SUBMIT


def test_a_job_that_slurm_calls_failed_counts_at_once_and_one_without_evidence_once_it_has_settled():
    def stopped(state):
        over = tuple(job(step, Phase.ENDED, state=state) for step in STEPS[:3])
        over = tuple(replace(j, id=str(n)) for n, j in enumerate(over))
        events = [e for n, step in enumerate(STEPS[:3]) for e in (submitted(step)[0], {**submitted(step)[1], "job": str(n)})]
        return plan_for(*STEPS, events=events, queue=over).of("d/finetune").reason.code

    assert stopped("FAILED") == "ManyFailures"
    assert stopped("COMPLETED") == "NotStarted"
    assert stopped("NODE_FAIL") == "NotStarted"


def test_a_failure_that_waits_for_a_person_for_another_reason_is_counted_once_it_is_failed():
    events = [*wave("UserError", "UserError", "UserError"), event("hold", STEPS[0], NOW)]
    assert plan_for(*STEPS, events=events).of("d/finetune").verb is Verb.SUBMIT


def test_how_many_failures_make_a_wave_is_the_settings_to_say():
    events = wave("UserError", "UserError")
    for number, code in ((2, "ManyFailures"), (3, "NotStarted")):
        assert plan_for(*STEPS, events=events, policy=Policy(stop_after_failures=number)).of("c/finetune").reason.code == code


def test_a_pause_is_waited_out_and_needs_nobody():
    pause = {"event": "pause", "at": NOW - 5, "user": "ana", "why": "the data move"}
    plan = plan_for(STEPS[0], evaluation(), events=[pause])
    assert [(a.verb, a.condition, a.reason.code) for a in plan.actions] == [
        (Verb.WAIT, Condition.WAITING, "Paused"),
        (Verb.WAIT, Condition.WAITING, "NeedUnmet"),
    ]
    assert all(action.is_pending for action in plan.actions)


# --- what is left alone ------------------------------------------------------------------------------


def test_a_step_that_was_not_selected_is_looked_at_and_nothing_is_done_about_it():
    replaced = [
        *submitted(STEPS[1])[:1],
        event("lost", STEPS[1], NOW - 300, attempt=1),
        *submitted(STEPS[1], 2, NOW - 300, held=True),
    ]
    events = [*ended(STEPS[0], "NodeFailure"), *replaced, *submitted(STEPS[2])]
    queue = (job(STEPS[1], Phase.QUEUED, 2, held=True), replace(job(STEPS[2]), id="101"))
    world = {"events": events, "queue": queue, "accounting": (), "seen": {STEPS[0].key: TORN_OF[STEPS[0].key]}}
    whole = plan_for(*STEPS, **world)
    assert [a.changes_something for a in whole.actions] == [True, True, False, True]
    plan = plan_for(*STEPS, **world, select="d/*")
    assert codes(plan) == ["NotSelected", "NotSelected", "JobRunning", "NotStarted"]
    for action in plan.actions[:2]:
        assert (action.verb, action.condition, action.release) == (Verb.WAIT, Condition.WAITING, False)
        assert (action.move_aside, action.changes) == ((), ())
        assert "d/*" in action.reason.message


def test_of_a_step_that_was_not_selected_no_setting_is_edited_and_no_job_held():
    edit = Edit(Path("/exp/a/finetune.yaml"), "resume_from_checkpoint", "False", "True")
    further = replace(TORN_OF[STEPS[0].key], resumable=1, torn_to_resume=())
    a = replace(STEPS[0], resume=edit, written={edit.key: Written("False")}, asks={"time": "60"})
    events = [*ended(a, "TimeLimit"), *submitted(STEPS[1]), event("hold", STEPS[1], NOW - 9)]
    world = {"events": events, "queue": (job(STEPS[1], Phase.QUEUED),), "seen": {a.key: further}}
    policy = Policy(resume=True, settle=0, backoff=0)
    whole = plan_for(a, STEPS[1], policy=policy, **world)
    assert (whole.of(a.key).edits, whole.of(STEPS[1].key).hold_job) == ((edit,), True)
    plan = plan_for(a, STEPS[1], policy=policy, **world, select="none")
    again = plan_for(a, policy=Policy(time=Raise(2, 9000.0), settle=0, backoff=0), **world, select="none").of(a.key)
    taken_back = [*events, event("edited", a, NOW - 5000, path=str(edit.path), key=edit.key, before="False", after="True")]
    made = replace(a, written={edit.key: Written("True")}, resume=replace(edit, before="True"))
    back = {**world, "events": taken_back}
    assert plan_for(made, policy=Policy(settle=0, backoff=0, retry={"TimeLimit": 1}), **back).of(a.key).reverts
    left = plan_for(made, policy=Policy(settle=0, backoff=0, retry={"TimeLimit": 1}), **back, select="none").of(a.key)
    for action in (*plan.actions, again, left):
        assert (action.edits, action.reverts, action.options, action.hold_job) == ((), (), {}, False)
        assert action.reason.code == "NotSelected"


def test_the_end_of_a_job_whose_step_is_gone_is_learned_and_of_nothing_else():
    gone, also = finetune("gone"), finetune("also")
    events = [*submitted(gone), *ended(also, "UserError"), *submitted(STEPS[0], at=NOW)[:1]]
    over = job(gone, Phase.ENDED)
    plan = plan_for(*STEPS, events=events, queue=(over,), accounting=())
    assert [(e["event"], e["step"]) for e in plan.learned] == [("ended", gone.key)]
    unseen = plan_for(*STEPS, events=submitted(gone), accounting=())
    assert [(e["event"], e["step"]) for e in unseen.learned] == [("unseen", gone.key)]
    later = plan_for(*STEPS, events=[*submitted(gone), event("unseen", gone, NOW - 600, attempt=1)], accounting=())
    assert [(e["event"], e["failure"]) for e in later.learned] == [("ended", "Vanished")]
    grace = plan_for(
        *STEPS, events=[*submitted(gone), event("unseen", gone, NOW - 600, attempt=1)], accounting=(), policy=Policy(grace=601)
    )
    assert grace.learned == ()


def test_what_is_learned_of_several_steps_is_all_kept():
    runs = [finetune(run) for run in ("a", "b", "gone", "lost")]
    events = [e for step in runs for e in submitted(step)]
    plan = plan_for(*runs[:2], events=events, accounting=())
    assert [(e["event"], e["step"]) for e in plan.learned] == [("unseen", step.key) for step in runs]


def test_only_a_fine_tune_is_kept_from_a_directory_that_an_orphan_writes_to():
    """Evaluations add a log each, and share the directory of their logs."""
    after = evaluation()
    gone = replace(finetune("gone"), key="gone/eval/x", output_dir=after.output_dir)
    events = [{**e, "output_dir": str(after.output_dir)} if e["event"] == "intent" else e for e in submitted(gone)]
    plan = plan_for(finetune(), after, events=[done(finetune()), *events], queue=(job(gone),))
    assert len(plan.orphans) == 1
    assert plan.of(after.key).verb is Verb.SUBMIT


def test_a_plan_is_converged_when_all_is_done_and_in_writing():
    assert plan_for(*STEPS, events=[done(step) for step in STEPS]).converged
    assert not plan_for(*STEPS, events=[done(step) for step in STEPS[:3]]).converged
    assert not plan_for(*STEPS, events=[done(step) for step in STEPS[:3]], seen={STEPS[3].key: COMPLETE}).converged
    unknown = plan_for(*STEPS, events=[done(step) for step in STEPS], queue=Unknown("down"))
    assert unknown.converged


def test_a_step_whose_outputs_were_not_looked_at_is_unknown():
    observed = Observed((), None, {STEPS[0].key: outputs(OutputState.ABSENT)})
    plan = make_plan(experiment(*STEPS), observed, Memory(), Policy(), NOW)
    assert [a.condition for a in plan.actions] == [Condition.WAITING, *[Condition.UNKNOWN] * 3]
    assert codes(plan) == ["NotStarted", *["DiskUnknown"] * 3]


# --- remedies ----------------------------------------------------------------------------------------


def on_node(step: Step, node: str, failure: str, number: int = 1, at: float = NOW - 90_000) -> list:
    return [{**e, "nodes": node} if e["event"] == "ended" else e for e in ended(step, failure, number, at)]


def test_nodes_that_fail_jobs_are_avoided_by_submissions_and_by_nothing_else():
    events = [
        *on_node(STEPS[0], "n1", "NodeFailure"), *on_node(STEPS[0], "n2", "BootFailure", 2, NOW - 80_000),
        *on_node(STEPS[1], "n1", "BootFailure", 1, NOW - 70_000), *on_node(STEPS[1], "n2", "NodeFailure", 2, NOW - 60_000),
        done(STEPS[2]), *submitted(STEPS[3], 3),
    ]  # fmt: skip
    plan = plan_for(*STEPS, events=events, queue=(job(STEPS[3], attempt=3),))
    assert [(a.verb, a.options.get("exclude")) for a in plan.actions] == [
        (Verb.SUBMIT, "n1,n2"), (Verb.SUBMIT, "n1,n2"), (Verb.KEEP, None), (Verb.WAIT, None),
    ]  # fmt: skip
    assert plan.of("d/finetune").changes == ()


def test_one_failure_is_enough_where_the_settings_say_so_and_a_file_of_nodes_is_left_as_it_is():
    events = [*on_node(STEPS[0], "n1", "NodeFailure"), *on_node(STEPS[1], "n2", "BootFailure", 1, NOW - 70_000)]
    steps = (*STEPS[:3], replace(STEPS[3], asks={"exclude": "/lab/nodes"}))
    once, never = (plan_for(*steps, events=events, policy=Policy(exclude_after=n)) for n in (1, 0))
    assert (once.of("c/finetune").options, never.of("c/finetune").options) == ({"exclude": "n1,n2"}, {})
    assert once.of("d/finetune").options == {}
    assert once.of("d/finetune").changes == ("does not keep away from n1,n2: the script's --exclude is a file, /lab/nodes",)


def test_a_failure_that_the_settings_retry_is_no_wave_before_its_outputs_have_settled():
    over = tuple(replace(job(step, Phase.ENDED, state="TIMEOUT"), id=str(n)) for n, step in enumerate(STEPS[:3]))
    events = [e for n, step in enumerate(STEPS[:3]) for e in (submitted(step)[0], {**submitted(step)[1], "job": str(n)})]
    for retry, code in (({}, "ManyFailures"), ({"TimeLimit": 1}, "NotStarted")):
        plan = plan_for(*STEPS, events=events, queue=over, policy=Policy(retry=retry))
        assert plan.of("d/finetune").reason.code == code


def test_a_release_of_the_experiment_lets_jobs_go_to_a_mended_node_again_and_one_of_a_step_does_not():
    failed = [*on_node(STEPS[0], "n1", "NodeFailure"), *on_node(STEPS[1], "n1", "NodeFailure", 1, NOW - 70_000)]
    whole, step = {"event": "release", "at": NOW}, event("release", STEPS[0], NOW)
    for later, excluded in (([], "n1"), ([step], "n1"), ([whole], None)):
        assert plan_for(*STEPS, events=[*failed, *later]).of("d/finetune").options.get("exclude") == excluded
    once_more = [*failed, whole, *on_node(STEPS[2], "n1", "NodeFailure", 1, NOW - 50_000)]
    assert plan_for(*STEPS, events=once_more).of("d/finetune").options == {}


def settling(steps: tuple[Step, ...], state: str, attempt: int = 1) -> dict:
    """Jobs that have just ended so, of whose outputs nothing is seen yet."""
    over = tuple(replace(job(step, Phase.ENDED, attempt, state=state), id=str(n)) for n, step in enumerate(steps))
    begun = [submitted(step, attempt) for step in steps]
    events = [e for n, (intent, answer) in enumerate(begun) for e in (intent, {**answer, "job": str(n)})]
    return {"events": events, "queue": over}


def test_what_the_settings_of_its_tool_retry_is_no_wave_before_its_outputs_have_settled():
    for tool, code in (("trainer", "NotStarted"), ("another", "ManyFailures")):
        policy = Policy(tools={tool: {"retry": {"TimeLimit": 1}}})
        assert plan_for(*STEPS, **settling(STEPS[:3], "TIMEOUT"), policy=policy).of("d/finetune").reason.code == code


def test_what_a_remedy_answers_is_no_wave_before_its_outputs_have_settled():
    for policy, whole, code in (
        (Policy(resume=True), 1, "NotStarted"),
        (Policy(resume=True), 0, "ManyFailures"),
        (Policy(tools={"trainer": {"resume": True}}), 1, "NotStarted"),
    ):
        left = {step.key: replace(TORN, resumable=whole, newest=NOW) for step in STEPS[:3]}
        plan = plan_for(*STEPS, **settling(STEPS[:3], "TIMEOUT"), seen=left, policy=policy)
        assert plan.of("a/finetune").reason.code == "OutputsMissing"
        assert plan.of("d/finetune").reason.code == code


def test_a_failure_whose_retries_are_used_up_counts_at_once():
    policy = Policy(retry={"TimeLimit": 1})
    world = settling(STEPS[:3], "TIMEOUT", attempt=2)
    before = [e for step in STEPS[:3] for e in ended(step, "TimeLimit", 1, NOW - 90_000)]
    plan = plan_for(*STEPS, events=[*before, *world["events"]], queue=world["queue"], policy=policy)
    assert plan.of("a/finetune").reason.code == "OutputsMissing"
    assert plan.of("d/finetune").reason.code == "ManyFailures"


def test_a_rerun_goes_on_from_nothing_that_it_replaces():
    step = replace(STEPS[0], resume=Edit(STEPS[0].script.with_name("finetune.yaml"), "resume_from_checkpoint", "False", "True"))
    left = replace(TORN, newest=NOW - 5000, resumable=2, torn_to_resume=())
    events = [*ended(step, "UserError", at=NOW - 4000), event("rerun", step, NOW - 10, newest=NOW - 5000)]
    action = plan_for(step, events=events, seen={step.key: left}, policy=Policy(resume=True)).of(step.key)
    assert (action.verb, action.from_epoch, action.edits) == (Verb.SUBMIT, 0, ())
    assert action.move_aside == (step.output_dir,)


def test_attempts_that_advanced_a_training_count_as_failures_where_nothing_is_gone_on_from():
    events = [e for n in (1, 2) for e in ended(STEPS[0], "TimeLimit", n, at=NOW - 9000 + n)]
    left = replace(TORN, newest=NOW - 8999, resumable=2)
    action = plan_for(STEPS[0], events=events, seen={STEPS[0].key: left}, policy=Policy(retry={"TimeLimit": 1}))
    assert action.of("a/finetune").condition is Condition.FAILED
