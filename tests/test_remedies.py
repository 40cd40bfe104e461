"""What the next attempt does differently: only what the settings ask for, up to their caps, and in writing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reconciler.config_edit import draft_edits, make_edits
from reconciler.errors import DiskUnreadable, PermanentError
from reconciler.fold import fold
from reconciler.model import Action, Condition, Edit, Observed, Outputs, OutputState, Policy, Raise, Reason, Step, Verb, Written
from reconciler.plan import foresee, make_plan
from reconciler.situation import batch_changes
from worlds import ABSENT, NOW, TORN, decide, ended, event, experiment, finetune, name_of, plan_for

CONFIG = Path("/exp/a/finetune.yaml")

RESUME, BATCH, STEPS = "resume_from_checkpoint", "batch_size", "gradient_accumulation_steps"


def standing(batch: int = 4, steps: int = 1, resume: str = "False", run: str = "a") -> Step:
    """A training whose configuration says so now."""
    path = Path(f"/exp/{run}/finetune.yaml")
    smaller = (Edit(path, BATCH, str(batch), str(batch // 2)), Edit(path, STEPS, str(steps), str(2 * steps)))
    values = {RESUME: resume, BATCH: str(batch), STEPS: str(steps)}
    return finetune(
        run,
        asks={"time": "01:00:00", "mem": "100G"},
        resume=Edit(path, RESUME, resume, "True"),
        smaller_batch=smaller if batch > 1 else (),
        why_no_smaller_batch="" if batch > 1 else "`batch_size` is 1",
        written={key: Written(value) for key, value in values.items()},
        batch={BATCH: str(batch), STEPS: str(steps)},
        meaning=values,
    )


STEP = standing()
TIME, MEM = Raise(1.5, 4 * 3600.0), Raise(1.5, 200 * 1024.0)
QUICK: dict[str, Any] = {"backoff": 0.0, "settle": 0.0}


def policy(**more: Any) -> Policy:
    return Policy(**{**QUICK, **more})


def failed(failure: str, number: int = 1, at: float = NOW - 900, **intent: Any) -> list[dict[str, Any]]:
    """One attempt that ended so, submitted with more than its script asks for where ``intent`` says."""
    facts = {"name": name_of(STEP, number), "definition": STEP.definition, "placement": STEP.placement}
    told = ended(STEP, failure, number, at, started=at - 50)
    return [event("intent", STEP, at - 100, attempt=number, **facts, **intent), *told[1:]]


def left(whole: int, of: int = 3) -> Outputs:
    """A training that broke off after some whole epochs."""
    epochs = tuple(Path(f"/scratch/a/epoch_{n}") for n in range(whole + 1))
    reason = Reason("Incomplete", f"epoch {whole} is torn")
    return Outputs(OutputState.INCOMPLETE, reason, torn=epochs, has_work=True, resumable=whole, torn_to_resume=epochs[whole:])


def after(events: list[dict[str, Any]], seen: Outputs = TORN, step: Step = STEP, **settings: Any) -> Action:
    return decide(step, events=events, seen={step.key: seen}, policy=policy(**settings))


def words(edits: tuple[Edit, ...]) -> list[str]:
    return [edit.words for edit in edits]


# --- time and memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "settings", "options"),
    [
        ("TimeLimit", {"time": TIME}, {"time": "90"}),
        ("OutOfMemoryHost", {"mem": MEM}, {"mem": "153600M"}),
    ],
)
def test_more_is_asked_for_where_the_settings_say_so(failure: str, settings: dict[str, Any], options: dict[str, str]):
    action = after(failed(failure), **settings)
    assert (action.verb, dict(action.options)) == (Verb.SUBMIT, options)
    assert f"--{next(iter(options))}={next(iter(options.values()))}" in action.changes


@pytest.mark.parametrize(
    ("failure", "advice"), [("TimeLimit", "time:"), ("OutOfMemoryHost", "mem:"), ("OutOfMemoryGpu", "batch_size 4 → 2")]
)
def test_without_a_setting_it_is_held_with_the_suggestion(failure: str, advice: str):
    action = after(failed(failure))
    assert (action.verb, action.condition, action.reason.code) == (Verb.HOLD, Condition.FAILED, failure)
    assert advice in action.reason.message


@pytest.mark.parametrize(
    ("given", "factor", "minutes"),
    [("00:00:02", 2, "2"), ("1", 1.5, "2"), ("00:01:30", 1.5, "3"), ("03:00:00", 1.5, "240"), ("10", 1.1, "11")],
)
def test_time_is_raised_in_whole_minutes_as_slurm_has_it(given: str, factor: float, minutes: str):
    step = replace(STEP, asks={"time": given})
    assert after(failed("TimeLimit"), step=step, time=Raise(factor, 4 * 3600.0)).options == {"time": minutes}


def test_memory_that_is_asked_for_by_the_cpu_is_raised_and_capped_by_the_cpu_and_it_is_said():
    step = replace(STEP, asks={"mem-per-cpu": "4G"})
    action = after(failed("OutOfMemoryHost"), step=step, mem=Raise(2, 6 * 1024.0))
    assert action.options == {"mem-per-cpu": "6144M"}
    assert "--mem-per-cpu=6144M (for each CPU)" in action.changes
    events = [*failed("OutOfMemoryHost"), *failed("OutOfMemoryHost", 2, NOW - 500, options={"mem-per-cpu": "6144M"})]
    held = after(events, step=step, mem=Raise(2, 6 * 1024.0))
    assert "`mem.max` is 6G (for each CPU)" in held.reason.message


def test_each_failure_raises_from_what_it_had_and_the_cap_holds_it():
    events = [*failed("OutOfMemoryHost"), *failed("OutOfMemoryHost", 2, NOW - 500, options={"mem": "153600M"})]
    assert after(events, mem=MEM).options == {"mem": "204800M"}
    capped = [*events, *failed("OutOfMemoryHost", 3, NOW - 300, options={"mem": "204800M"})]
    held = after(capped, mem=MEM)
    assert (held.verb, held.condition) == (Verb.HOLD, Condition.FAILED)
    assert "mem.max` is 200G" in held.reason.message


def test_what_was_raised_stays_for_attempts_that_fail_otherwise():
    events = [*failed("OutOfMemoryHost"), *failed("NodeFailure", 2, NOW - 500, options={"mem": "153600M"})]
    assert after(events, mem=MEM).options == {"mem": "153600M"}


def test_a_script_that_asks_for_something_else_by_now_is_taken_at_its_word():
    events = failed("NodeFailure", options={"mem": "153600M"})
    changed = replace(STEP, placement="other", asks={"mem": "300G"})
    action = decide(changed, events=events, seen={STEP.key: TORN}, policy=policy(mem=MEM))
    assert (action.verb, dict(action.options)) == (Verb.SUBMIT, {})


def test_a_release_begins_again_with_what_the_script_says():
    events = [*failed("OutOfMemoryHost", options={"mem": "204800M"}), event("release", STEP, NOW - 1)]
    assert after(events, mem=MEM).options == {}


def test_what_is_not_stated_cannot_be_raised():
    bare = replace(STEP, asks={})
    for failure, settings in (("TimeLimit", {"time": TIME}), ("OutOfMemoryHost", {"mem": MEM})):
        action = decide(bare, events=failed(failure), seen={STEP.key: TORN}, policy=policy(**settings))
        assert (action.verb, "states no" in action.reason.message) == (Verb.HOLD, True)


def test_what_is_set_for_one_tool_holds_for_its_steps_alone():
    settings = {"tools": {STEP.tool: {"mem": MEM}}}
    assert after(failed("OutOfMemoryHost"), **settings).verb is Verb.SUBMIT
    assert after(failed("OutOfMemoryHost"), tools={"another": {"mem": MEM}}).verb is Verb.HOLD
    own = Policy(retry={"NodeFailure": 1}, tools={"t": {"retry": {"UserError": 2}}}).of("t")
    assert own.retry == {"NodeFailure": 1, "UserError": 2}


# --- going on ----------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_its_whole_epochs_and_moves_aside_only_what_would_be_trained_twice():
    action = after(failed("TimeLimit"), left(2), resume=True)
    assert (action.verb, action.from_epoch) == (Verb.SUBMIT, 2)
    assert action.move_aside == (Path("/scratch/a/epoch_2"),)
    assert words(action.edits) == ["resume_from_checkpoint False → True"]
    assert "goes on from 2 whole epochs" in action.changes


def test_attempts_that_advanced_it_do_not_count_and_one_that_did_not_holds_it():
    events: list[dict[str, Any]] = []
    for number in range(1, 6):
        events += failed("TimeLimit", number, NOW - 900 + number, from_epoch=number - 1)
        assert after(events, left(number, of=9), resume=True).verb is Verb.SUBMIT
    stuck = [*events, *failed("TimeLimit", 6, NOW - 300, from_epoch=5)]
    action = after(stuck, left(5, of=9), resume=True)
    assert (action.verb, action.condition, action.reason.code) == (Verb.HOLD, Condition.FAILED, "TimeLimit")
    assert "no further epoch" in action.reason.message
    assert after(stuck, left(5, of=9), resume=True, time=TIME).options == {"time": "90"}


def test_what_the_last_attempt_left_tells_whether_it_advanced():
    events = [*RESUMED, *failed("NodeFailure", 1, NOW - 900), *failed("NodeFailure", 2, NOW - 300, from_epoch=1)]
    settings: dict[str, Any] = {"resume": True, "retry": {"NodeFailure": 0}}
    assert after(events, left(2, of=9), standing(resume="True"), **settings).verb is Verb.SUBMIT
    assert after(events, left(1, of=9), standing(resume="True"), **settings).condition is Condition.FAILED


def test_after_a_rerun_nothing_is_told_of_what_it_gave_up():
    noted = replace(left(0), newest=NOW - 950, resume_note="recipe_state counts 3 epochs")
    events = failed("NodeFailure")
    assert "begins anew: recipe_state counts 3 epochs" in after(events, noted, resume=True).changes
    again = after([*events, event("rerun", STEP, NOW - 10, newest=NOW - 950)], noted, resume=True)
    assert (again.verb, again.reason.code) == (Verb.SUBMIT, "Rerun")
    assert not any("begins anew" in change for change in again.changes)


def test_where_the_configuration_cannot_be_written_nothing_is_moved_for_an_edit_that_will_not_be_made():
    def planned(sealed: dict[str, str], resume: bool) -> Action:
        observed = Observed((), None, {STEP.key: left(1)}, sealed=sealed)
        memory = fold(failed("NodeFailure"))
        return make_plan(experiment(STEP), observed, memory, policy(resume=resume), NOW).of(STEP.key)

    held = planned({STEP.key: "read-only file system"}, resume=True)
    assert (held.verb, held.condition, held.reason.code, held.move_aside) == (Verb.HOLD, Condition.HELD, "EditRefused", ())
    assert "read-only file system" in held.reason.message
    assert planned({STEP.key: "read-only file system"}, resume=False).verb is Verb.SUBMIT
    assert planned({"b/finetune": "read-only file system"}, resume=True).verb is Verb.SUBMIT


def test_a_setting_that_the_file_does_not_have_is_no_change_of_the_batch_and_nobodys():
    one = replace(STEP, batch={BATCH: "8", STEPS: "1"}, written={RESUME: Written("False"), BATCH: Written("8")})
    before = edits((BATCH, "4", "2"), at=NOW - 2000)
    seen = plan_for(one, events=[*failed("NodeFailure"), *before], seen={STEP.key: left(1)}, policy=policy())
    assert [(e["key"], e["after"]) for e in seen.learned if e["event"] == "unedited"] == [(BATCH, "8")]
    (attempt,) = fold(failed("NodeFailure", batch={BATCH: "4", "other": "x"})).of(STEP.key).attempts
    assert batch_changes(attempt, one) == (f"{BATCH} 4 → 8",)


def test_the_wait_after_an_attempt_that_advanced_it_is_the_first_wait_however_many_went_before():
    events = [e for n in range(1, 6) for e in failed("TimeLimit", n, NOW - 9000 + n, from_epoch=n - 1)]
    waits, over = (failed("TimeLimit", 6, NOW - ago, from_epoch=5) for ago in (599, 661))
    assert after([*events, *waits], left(6, of=9), resume=True, backoff=600.0).reason.code == "BackingOff"
    assert after([*events, *over], left(6, of=9), resume=True, backoff=600.0).verb is Verb.SUBMIT
    settings: dict[str, Any] = {"resume": True, "backoff": 600.0, "retry": {"NodeFailure": 3}}
    lost = [*failed("NodeFailure", 6, NOW - 5000, from_epoch=5), *failed("NodeFailure", 7, NOW - 661, from_epoch=5)]
    assert after([*events, *lost], left(5, of=9), **settings).reason.code == "BackingOff"


@pytest.mark.parametrize("failure", ["CancelledByPerson", "CancelledByAdmin", "UserError", "Unknown", "CompletedWithoutEvidence"])
def test_whole_epochs_do_not_outvote_a_person_who_cancelled_nor_a_program_that_failed(failure: str):
    action = after(failed(failure), left(2), resume=True)
    assert (action.verb, action.condition, action.reason.code) == (Verb.HOLD, Condition.FAILED, failure)


def test_a_renamed_runs_edits_are_taken_back_where_the_run_is_now():
    old = [{**edit, "path": "/exp/old/finetune.yaml"} for edit in MADE]
    events = [*failed("OutOfMemoryGpu"), *old, event("rerun", STEP, NOW - 10, newest=None)]
    action = decide(HALVED, events=events, policy=policy(shrink_batch=True))
    assert {edit.path for edit in action.reverts} == {CONFIG}


def test_without_the_setting_nothing_is_resumed_and_everything_torn_is_moved_aside():
    action = after(failed("NodeFailure"), left(2))
    assert (action.from_epoch, action.edits, len(action.move_aside)) == (0, (), 3)


def test_where_nothing_can_be_resumed_our_edit_is_taken_back():
    action = after([*RESUMED, *failed("NodeFailure", from_epoch=1)], left(0), standing(resume="True"), resume=True)
    assert (action.edits, words(action.reverts)) == ((), ["resume_from_checkpoint True → False"])


def test_resuming_switched_off_moves_all_epochs_aside_while_our_edit_is_still_in_the_file():
    action = after([*RESUMED, *failed("NodeFailure", from_epoch=1)], left(2), standing(resume="True"))
    assert (action.from_epoch, words(action.reverts)) == (0, ["resume_from_checkpoint True → False"])
    assert action.move_aside == left(2).torn


def test_a_configuration_that_asks_for_going_on_by_itself_is_heard():
    action = after(failed("NodeFailure"), left(2), standing(resume="True"))
    assert (action.from_epoch, action.edits, action.reverts) == (2, (), ())
    assert action.move_aside == left(2).torn_to_resume


@pytest.mark.parametrize("failure", ["NodeFailure", "TimeLimit"])
def test_where_going_on_cannot_be_asked_of_the_trainer_a_person_is_and_nothing_else_happens(failure: str):
    refers = replace(STEP, written={**STEP.written, RESUME: Written(why_not="`resume_from_checkpoint` is `${go_on}`")})
    action = after(failed(failure), left(2), refers, resume=True)
    assert (action.verb, action.condition, action.reason.code) == (Verb.HOLD, Condition.HELD, "EditRefused")
    for told in ("${go_on}", "resume_from_checkpoint: True", "resume: false"):
        assert told in action.reason.message
    assert (action.move_aside, action.edits) == ((), ())
    assert after(failed("NodeFailure"), left(2), refers).verb is Verb.SUBMIT


def test_a_name_that_the_trainer_would_take_for_an_epoch_holds_what_would_go_on_and_nothing_else():
    odd = replace(left(2), in_the_way="/scratch/a/epoch_9_old would be taken for an epoch")
    action = after(failed("NodeFailure"), odd, resume=True)
    assert (action.verb, action.reason.code, "epoch_9_old" in action.reason.message) == (Verb.HOLD, "CannotResume", True)
    assert after(failed("NodeFailure"), odd).verb is Verb.SUBMIT


@pytest.mark.parametrize(
    ("resume", "by_itself", "way"),
    [
        (True, "False", "or set `resume: false` to begin anew"),
        (False, "True", "or set `resume_from_checkpoint: False` in finetune.yaml to begin anew"),
        (True, "True", "or set `resume: false` and `resume_from_checkpoint: False` in finetune.yaml to begin anew"),
    ],
)
def test_what_is_to_be_set_to_begin_anew_is_what_asks_for_going_on(resume: bool, by_itself: str, way: str):
    odd = replace(left(2), in_the_way="/scratch/a/epoch_9_old would be taken for an epoch")
    assert way in after(failed("NodeFailure"), odd, standing(resume=by_itself), resume=resume).reason.message


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("events", [[], failed("NodeFailure")])
def test_a_configuration_that_asks_for_going_on_where_there_is_nothing_is_held(events: list[dict[str, Any]], resume: bool):
    outputs = left(0) if events else ABSENT
    action = after(events, outputs, standing(resume="True"), resume=resume)
    assert (action.verb, action.condition, action.reason.code) == (Verb.HOLD, Condition.HELD, "CannotResume")
    assert "finetune.yaml says `resume_from_checkpoint: True`" in action.reason.message
    assert "set it to False to begin anew" in action.reason.message
    assert action.move_aside == ()
    assert after(events, outputs, resume=resume).verb is Verb.SUBMIT


def test_a_configuration_that_resumes_by_itself_asks_for_no_retry_after_a_time_limit():
    events = failed("TimeLimit", from_epoch=1)
    action = after(events, left(2), standing(resume="True"))
    assert (action.verb, action.condition, action.reason.code) == (Verb.HOLD, Condition.FAILED, "TimeLimit")
    assert after(events, left(2), standing(resume="True"), resume=True).verb is Verb.SUBMIT
    assert after(events, left(2), standing(resume="True"), retry={"TimeLimit": 1}).from_epoch == 2


def test_what_is_trained_again_and_why_is_said_before_it_happens():
    note = "recipe_state.pt counts 1 of them, so epoch_1 will be trained again"
    action = after(failed("NodeFailure"), replace(left(1), resume_note=note), resume=True)
    assert f"goes on from 1 whole epochs; {note}" in action.changes
    lost = replace(left(0), resume_note="recipe_state.pt is missing, so epoch_0 would be trained again")
    assert f"begins anew: {lost.resume_note}" in after(failed("NodeFailure"), lost, resume=True).changes
    held = after(failed("TimeLimit"), lost, resume=True)
    assert (held.condition, lost.resume_note in held.reason.message) == (Condition.FAILED, True)


# --- edits ---------------------------------------------------------------------------------------------------


def test_a_smaller_batch_is_an_edit_only_where_the_settings_ask_for_it():
    action = after(failed("OutOfMemoryGpu"), shrink_batch=True)
    assert (action.verb, action.edits) == (Verb.SUBMIT, SMALLER)
    assert "finetune.yaml: batch_size 4 → 2" in action.changes


def test_a_parameter_that_the_document_varies_is_not_ours_to_change():
    varied = replace(STEP, smaller_batch=(), why_no_smaller_batch="the document varies `batch_size` between its runs")
    action = decide(varied, events=failed("OutOfMemoryGpu"), seen={STEP.key: TORN}, policy=policy(shrink_batch=True))
    assert (action.verb, "varies" in action.reason.message) == (Verb.HOLD, True)


def test_after_a_smaller_batch_nothing_is_gone_on_from():
    events = [*RESUMED, *failed("OutOfMemoryGpu", from_epoch=1)]
    action = after(events, left(2), standing(resume="True"), resume=True, shrink_batch=True)
    assert (action.verb, action.from_epoch, action.move_aside) == (Verb.SUBMIT, 0, left(2).torn)
    assert words(action.edits) == words(SMALLER)
    assert words(action.reverts) == ["resume_from_checkpoint True → False"]
    assert any("another batch size" in change for change in action.changes)
    own = after(failed("OutOfMemoryGpu"), left(2), standing(resume="True"), resume=True, shrink_batch=True)
    assert (own.condition, "set that to False" in own.reason.message) == (Condition.FAILED, True)


def test_a_batch_of_one_is_the_end_of_it():
    action = after(failed("OutOfMemoryGpu"), step=standing(batch=1, steps=8), shrink_batch=True)
    assert (action.condition, "`batch_size` is 1" in action.reason.message) == (Condition.FAILED, True)


def edits(*changes: tuple[str, str | None, str | None], at: float = NOW - 50) -> list[dict[str, Any]]:
    return [event("edited", STEP, at, path=str(CONFIG), key=k, before=b, after=a) for k, b, a in changes]


SMALLER = STEP.smaller_batch
MADE = edits((BATCH, "4", "2"), (STEPS, "1", "2"))
RESUMED = edits((RESUME, "False", "True"), at=NOW - 1000)
HALVED = standing(batch=2, steps=2)


def test_an_edit_that_a_killed_pass_made_is_not_made_a_second_time():
    action = decide(HALVED, events=[*failed("OutOfMemoryGpu"), *MADE], seen={STEP.key: TORN}, policy=policy(shrink_batch=True))
    assert (action.verb, action.edits, action.reverts) == (Verb.SUBMIT, (), ())


RAN_WITH = {BATCH: "4", STEPS: "1"}


def test_a_batch_that_a_person_made_smaller_is_submitted_as_it_is_and_halved_only_if_it_fails_too():
    events = failed("OutOfMemoryGpu", batch=RAN_WITH)
    action = after(events, left(1), HALVED, shrink_batch=True)
    assert (action.verb, action.edits, action.reverts, action.from_epoch) == (Verb.SUBMIT, (), (), 0)
    assert action.move_aside == left(1).torn
    assert any("batch_size 4 → 2, gradient_accumulation_steps 1 → 2 since attempt 1" in change for change in action.changes)
    again = [*events, *failed("OutOfMemoryGpu", 2, NOW - 20, batch={BATCH: "2", STEPS: "2"})]
    assert [edit.after for edit in after(again, left(1), HALVED, shrink_batch=True).edits] == ["1", "4"]
    itself = after(events, left(1), standing(batch=2, steps=2, resume="True"), shrink_batch=True)
    assert (itself.condition, "set that to False" in itself.reason.message) == (Condition.FAILED, True)


def test_epochs_of_the_batch_that_did_not_fit_are_no_drift():
    launched = Reason("Drifted", "trained from another configuration: batch_size 4 → 2")
    other = replace(left(1), state=OutputState.MISMATCH, reason=launched, resumable=0, differs=(BATCH, STEPS))
    events = failed("OutOfMemoryGpu", batch=RAN_WITH)
    assert after(events, other, HALVED, shrink_batch=True).move_aside == other.torn
    assert after(events, other, HALVED).condition is Condition.FAILED
    released = [*events, event("release", STEP, NOW - 10)]
    assert after(released, other, HALVED).move_aside == other.torn
    for drifted in (
        after(events, replace(other, differs=(BATCH, "lr")), HALVED, shrink_batch=True),
        after(events, other, STEP, shrink_batch=True),
        after(failed("NodeFailure", batch=RAN_WITH), other, HALVED, shrink_batch=True),
    ):
        assert (drifted.condition, drifted.reason.code) == (Condition.DRIFTED, "Drifted")


@pytest.mark.parametrize("then", ["OutOfMemoryGpu", "NodeFailure"])
def test_a_batch_of_which_a_person_put_one_setting_back_is_put_back_whole(then: str):
    events = [*failed("OutOfMemoryGpu", batch=RAN_WITH), *MADE]
    events += failed(then, 2, NOW - 20, batch={BATCH: "2", STEPS: "2"}) if then == "NodeFailure" else []
    action = after(events, step=standing(batch=4, steps=2), shrink_batch=True)
    assert (action.verb, action.edits) == (Verb.SUBMIT, ())
    assert words(action.reverts) == ["gradient_accumulation_steps 2 → 1"]
    other = after(events, step=standing(batch=2, steps=1), shrink_batch=True)
    assert (other.verb, words(other.reverts)) == (Verb.SUBMIT, ["batch_size 2 → 4"])


def test_a_batch_of_which_a_person_put_one_setting_back_by_one_step_is_put_back_so_in_both():
    more = edits((BATCH, "2", "1"), (STEPS, "2", "4"))
    events = [*failed("OutOfMemoryGpu", batch=RAN_WITH), *MADE, *more]
    action = after(events, step=standing(batch=2, steps=4), shrink_batch=True)
    assert words(action.reverts) == ["gradient_accumulation_steps 4 → 2"]


def test_a_batch_of_which_a_person_chose_one_setting_is_theirs_whole():
    events = [*failed("OutOfMemoryGpu", batch=RAN_WITH), *MADE]
    for theirs in (standing(batch=1, steps=2), standing(batch=2, steps=8)):
        action = after(events, step=theirs, shrink_batch=True)
        assert (action.verb, action.edits, action.reverts) == (Verb.SUBMIT, (), ())
        told = plan_for(theirs, events=events, policy=policy()).learned
        assert fold([*events, *({**e, "at": NOW} for e in told)]).of(STEP.key).edits == ()


def test_an_edit_in_writing_that_a_killed_pass_did_not_make_is_made_afresh():
    action = after([*failed("OutOfMemoryGpu"), *MADE[:1]], shrink_batch=True)
    assert (action.verb, words(action.edits)) == (Verb.SUBMIT, words(SMALLER))


@pytest.mark.parametrize("batch", [4, 16])
@pytest.mark.parametrize("shrink", [True, False])
def test_a_value_that_a_person_put_back_is_a_word_and_is_not_edited_again(batch: int, shrink: bool):
    events = [*failed("OutOfMemoryGpu"), *MADE, *failed("NodeFailure", 2, NOW - 20)]
    restored = standing(batch=batch)
    action = after(events, step=restored, shrink_batch=shrink)
    assert (action.verb, action.edits, action.reverts) == (Verb.SUBMIT, (), ())
    told = plan_for(restored, events=events, policy=policy()).learned
    assert [(e["event"], e["key"], e["after"]) for e in told if e["event"] == "unedited"] == [
        ("unedited", BATCH, str(batch)), ("unedited", STEPS, "1")
    ]  # fmt: skip
    known = fold([*events, *({**e, "at": NOW} for e in told)])
    assert known.of(STEP.key).edits == ()


def test_of_several_edits_of_a_value_the_file_tells_which_were_made():
    events = [*failed("OutOfMemoryGpu"), *MADE, *failed("OutOfMemoryGpu", 2, NOW - 20), *edits((BATCH, "2", "1"))]
    told = plan_for(HALVED, events=events, policy=policy()).learned
    (kept,) = (e for e in fold([*events, *({**e, "at": NOW} for e in told)]).of(STEP.key).edits if e.key == BATCH)
    assert (kept.before, kept.after, kept.via) == ("4", "2", ())


def test_the_next_failure_halves_once_more_and_tells_where_it_came_from():
    events = [*failed("OutOfMemoryGpu"), *MADE, *failed("OutOfMemoryGpu", 2, NOW - 20)]
    action = decide(HALVED, events=events, seen={STEP.key: TORN}, policy=policy(shrink_batch=True))
    assert [edit.after for edit in action.edits] == ["1", "4"]
    both = fold([*events, *edits(("batch_size", "2", "1"))]).of(STEP.key).edits
    assert [(e.before, e.after, e.via) for e in both if e.key == "batch_size"] == [("4", "1", ("2",))]


def test_a_rerun_takes_our_edits_back():
    events = [*failed("OutOfMemoryGpu"), *MADE, event("rerun", STEP, NOW - 10, newest=None)]
    action = decide(HALVED, events=events, policy=policy(shrink_batch=True))
    assert (action.edits, words(action.reverts)) == ((), ["batch_size 2 → 4", "gradient_accumulation_steps 2 → 1"])
    back = fold([*events, *edits(("batch_size", "2", "4"), ("gradient_accumulation_steps", "2", "1"))]).of(STEP.key)
    assert back.edits == ()


def test_runs_whose_own_configurations_differ_in_their_batch_keep_it():
    seen = {"a/finetune": TORN, "b/finetune": TORN}
    for other in (standing(2, 1, run="b"), standing(4, 2, run="b"), standing(2, 2, run="b")):
        plan = plan_for(STEP, other, events=failed("OutOfMemoryGpu"), seen=seen, policy=policy(shrink_batch=True))
        assert (plan.of(STEP.key).verb, "differ in" in plan.of(STEP.key).reason.message) == (Verb.HOLD, True)
    alike = plan_for(STEP, standing(run="b"), events=failed("OutOfMemoryGpu"), seen=seen, policy=policy(shrink_batch=True))
    assert alike.of(STEP.key).edits == SMALLER


def test_what_a_word_foresees_keeps_a_batch_that_differs_between_runs_too():
    other = standing(4, 2, run="b")
    observed = Observed((), None, {"a/finetune": TORN, "b/finetune": TORN}, uid="1000")
    memory, asked = fold(failed("OutOfMemoryGpu")), policy(shrink_batch=True)
    action = foresee(experiment(STEP, other), observed, memory, asked, NOW)[STEP.key]
    assert (action.verb, "differ in" in action.reason.message) == (Verb.HOLD, True)


def test_what_we_changed_ourselves_is_no_difference_between_runs():
    events = [*failed("OutOfMemoryGpu"), *MADE, *failed("OutOfMemoryGpu", 2, NOW - 20)]
    plan = plan_for(HALVED, standing(run="b"), events=events, seen={STEP.key: TORN}, policy=policy(shrink_batch=True))
    assert words(plan.of(STEP.key).edits) == ["batch_size 2 → 1", "gradient_accumulation_steps 2 → 4"]


# --- the file ------------------------------------------------------------------------------------------------

TEXT = "# my run\nbatch_size: 4   # fits an A100\nlr:   1e-5\n\n'epochs': 2\nmodel: {rank: 8}\n# the end\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "finetune.yaml"
    path.write_text(TEXT)
    return path


def apply(path: Path, *wanted: Edit) -> None:
    make_edits(draft_edits(path, wanted), path.parent / "kept" / "original.yaml")


def test_one_value_changes_and_every_other_byte_stays(config: Path):
    apply(config, Edit(config, "batch_size", "4", "2"))
    assert config.read_text() == TEXT.replace("batch_size: 4 ", "batch_size: 2 ")
    assert (config.parent / "kept/original.yaml").read_text() == TEXT


@pytest.mark.parametrize("value", ["no", "off", "False", "false", "null", "~", "", "  # not yet", "'epochs': 3"])
def test_an_edit_and_its_way_back_leave_the_very_bytes(config: Path, value: str):
    text = TEXT.replace("'epochs': 2", value) if "epochs" in value else TEXT + f"{RESUME}: {value}\nlast: 1\n"
    config.write_text(text)
    before = value if value[:1].isalpha() or value == "~" else ""
    for wanted in (Edit(config, BATCH, "4", "2"), Edit(config, STEPS, None, "2"), Edit(config, RESUME, before, "True")):
        if wanted.key == RESUME and RESUME not in text:
            continue
        apply(config, wanted)
        assert f"\n{wanted.key}: {wanted.after}" in config.read_text()
        apply(config, Edit(config, wanted.key, wanted.after, wanted.before))
    assert config.read_text() == text


def test_what_a_person_wrote_beside_a_value_of_ours_stays_when_it_goes(config: Path):
    config.write_text(TEXT + f"{STEPS}: 2  # why?\n")
    apply(config, Edit(config, STEPS, "2", None))
    assert config.read_text() == TEXT + "# why?\n"


def test_the_original_is_that_of_the_first_edit(config: Path):
    apply(config, Edit(config, "batch_size", "4", "2"))
    apply(config, Edit(config, "batch_size", "2", "1"))
    assert (config.parent / "kept/original.yaml").read_text() == TEXT


def test_an_edit_that_holds_already_changes_nothing(config: Path):
    apply(config, Edit(config, BATCH, "8", "4"))
    assert config.read_text() == TEXT
    assert not (config.parent / "kept").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TEXT.replace("4   #", "|\n  4\n#"), "not one plain value"),
        (TEXT.replace("4   #", '"4" #'), "not one plain value"),
        (TEXT.replace("4   #", "!!int 4 #"), "not one plain value"),
        (TEXT.replace("4   #", "[4] #"), "not one plain value"),
        (TEXT.replace("4   #", "${bs} #"), "`${bs}`, which refers to another setting"),
        (TEXT.replace("4   #", "&b 4 #"), "shared with another setting"),
        ("b: &b 4\nbatch_size: *b\n", "shared with another setting"),
        (TEXT + "batch_size: 4\n", "twice"),
        ("x: &x {batch_size: 4}\n<<: *x\n", "not there by itself"),
        ("{lr: 1}\n", "do not stand line by line"),
        ("- 1\n", "holds no `key: value` lines"),
        ("a: [\n", "is not valid YAML"),
        (TEXT.replace("4   #", "8   #"), "is 8 by now"),
        ("lr: 1\n", "is not there by now"),
        ("lr: 1\n...\n", "is not there by now"),
    ],
)
def test_of_edits_that_cannot_all_be_made_none_is_and_it_is_said_why(config: Path, text: str, told: str):
    config.write_text(text)
    before = config.read_bytes()
    with pytest.raises(PermanentError, match=re.escape(told)):
        apply(config, Edit(config, "batch_size", "4", "2"))
    with pytest.raises(PermanentError, match=re.escape(told)):
        apply(config, Edit(config, "lr", "1e-5", "2e-5"), Edit(config, "batch_size", "4", "2")) if "1e-5" in text else apply(
            config, Edit(config, "batch_size", "4", "2")
        )
    assert config.read_bytes() == before
    assert not (config.parent / "kept").exists()


def test_nothing_is_added_after_the_end_of_a_document(config: Path):
    config.write_text("lr: 1\n...\n")
    with pytest.raises(PermanentError, match="without changing more; write `batch_size: 2` by hand"):
        apply(config, Edit(config, BATCH, None, "2"))


@pytest.mark.parametrize("text", ["note:\nbatch_size: 4\nlast:\n", "last:\nbatch_size: 4\nnote:", "batch_size: 4\nnote:\n# end"])
def test_an_empty_value_beside_it_keeps_no_value_from_being_edited(config: Path, text: str):
    config.write_text(text)
    apply(config, Edit(config, BATCH, "4", "2"), Edit(config, STEPS, None, "2"))
    wanted = text.replace("4", "2")
    assert config.read_text() == wanted + ("" if wanted.endswith("\n") else "\n") + f"{STEPS}: 2\n"


def test_what_one_edit_of_several_cannot_be_made_for_tells_all_that_is_to_be_written_by_hand(config: Path):
    config.write_text("batch_size: '4'\n")
    with pytest.raises(PermanentError, match="write `batch_size: 2` and `gradient_accumulation_steps: 2` by hand"):
        apply(config, Edit(config, BATCH, "4", "2"), Edit(config, STEPS, None, "2"))


def test_a_configuration_that_is_gone_is_unknown(tmp_path: Path):
    with pytest.raises(DiskUnreadable):
        draft_edits(tmp_path / "none.yaml", [Edit(CONFIG, "batch_size", "4", "2")])


@pytest.mark.parametrize(
    "text", [TEXT.replace("\n", "\r\n"), "batch_size: 4", "{batch_size: 4, lr: 1}\n", "\ufeffbatch_size: 4\nx: caf\xe9\n"]
)
def test_any_ordinary_layout_can_be_edited(config: Path, text: str):
    config.write_bytes(text.encode())
    apply(config, Edit(config, "batch_size", "4", "2"))
    assert config.read_bytes().decode() == text.replace("batch_size: 4", "batch_size: 2")


# --- nodes ---------------------------------------------------------------------------------------------------


def on(node: str, run: str, failure: str = "NodeFailure", at: float = NOW - 900) -> list[dict[str, Any]]:
    return ended(finetune(run), failure, at=at, nodes=node)


TWICE = [*on("n1", "a", at=NOW - 9000), *on("n1", "b")]


def excluded(*events: dict[str, Any], **settings: Any) -> set[str]:
    plan = plan_for(*(finetune(run) for run in ("a", "b", "c")), events=list(events), policy=policy(**settings))
    assert {action.verb for action in plan.actions} == {Verb.SUBMIT}
    return {action.options.get("exclude", "") for action in plan.actions}


def test_a_node_that_fails_several_jobs_is_avoided_and_named():
    assert excluded(*TWICE) == {"n1"}
    assert "--exclude=n1" in plan_for(finetune("a"), finetune("b"), events=TWICE, policy=policy()).of("a/finetune").changes
    assert excluded(*on("n1", "a", at=NOW - 9000), *on("n2", "b")) == {""}
    assert excluded(*TWICE, exclude_after=3) == excluded(*TWICE, exclude_after=0) == {""}


def test_nodes_that_the_script_keeps_away_from_stay_excluded():
    step = replace(finetune("c"), asks={"exclude": "n7,n[8-9]"})
    action = plan_for(step, finetune("a"), finetune("b"), events=TWICE, policy=policy()).of(step.key)
    assert action.options["exclude"] == "n7,n[8-9],n1"
    assert "--exclude=n7,n[8-9],n1" in action.changes
    assert "exclude" not in plan_for(step, policy=policy()).of(step.key).options
    listed = replace(step, asks={"exclude": "./bad_nodes.txt"})
    action = plan_for(listed, finetune("a"), finetune("b"), events=TWICE, policy=policy()).of(step.key)
    assert "exclude" not in action.options
    assert "is a file, ./bad_nodes.txt" in action.changes[-1]


def test_a_node_whose_jobs_did_their_work_is_not_avoided_for_what_their_logs_say():
    assert excluded(*(event | {"state": "COMPLETED"} if event["event"] == "ended" else event for event in TWICE)) == {""}


def test_jobs_that_one_failure_took_together_count_once():
    assert excluded(*on("n1", "a"), *on("n1", "b", at=NOW - 890), *on("n1", "c", at=NOW - 800)) == {""}


def test_where_no_other_node_would_do_the_node_is_tried_again():
    refused = [{"event": "refused", "at": NOW - 1, "step": "a/finetune", "attempt": 2, "message": "not available"}]
    intent = event("intent", finetune("a"), NOW - 2, attempt=2, name="x", options={"exclude": "n1"})
    plan = plan_for(finetune("a"), finetune("b"), events=[*TWICE, intent, *refused], policy=policy())
    assert [action.options.get("exclude") for action in plan.actions] == [None, "n1"]


@pytest.mark.parametrize(("node", "failure"), [("n[1-2]", "NodeFailure"), ("", "NodeFailure"), ("n1", "Preempted")])
def test_only_a_nodes_own_failures_count_and_only_where_it_is_known_which(node: str, failure: str):
    assert excluded(*on(node, "a", failure, NOW - 9000), *on(node, "b", failure)) == {""}


def test_a_node_that_was_avoided_once_is_not_avoided_for_ever():
    action = after(failed("NodeFailure", options={"exclude": "n9"}))
    assert "exclude" not in action.options
