"""What the next attempt does differently: only what the settings ask for, up to their caps, and in writing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reconciler.config_edit import make_edits, open_edits
from reconciler.errors import DiskUnreadable, PermanentError
from reconciler.fold import fold
from reconciler.model import Action, Condition, Edit, Outputs, OutputState, Policy, Raise, Reason, Verb
from worlds import NOW, TORN, decide, ended, event, finetune, name_of, plan_for

CONFIG = Path("/exp/a/finetune.yaml")
RESUME = Edit(CONFIG, "resume_from_checkpoint", "False", "True")
SMALLER = (Edit(CONFIG, "batch_size", "4", "2"), Edit(CONFIG, "gradient_accumulation_steps", "1", "2"))
STEP = finetune(asks={"time": "01:00:00", "mem": "100G"}, resume=RESUME, smaller_batch=SMALLER)
TIME, MEM = Raise(1.5, 4 * 3600.0), Raise(1.5, 200 * 1024.0)
QUICK: dict[str, Any] = {"backoff": 0.0, "settle": 0.0}


def policy(**more: Any) -> Policy:
    return Policy(**QUICK, **more)


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


def after(events: list[dict[str, Any]], seen: Outputs = TORN, **settings: Any) -> Action:
    return decide(STEP, events=events, seen={STEP.key: seen}, policy=policy(**settings))


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
    assert [edit.words for edit in action.edits] == ["resume_from_checkpoint False → True"]
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


@pytest.mark.parametrize(
    "failure", ["CancelledByPerson", "CancelledByAdmin", "CancelledByUs", "UserError", "Unknown", "CompletedWithoutEvidence"]
)
def test_whole_epochs_do_not_outvote_a_person_who_cancelled_nor_a_program_that_failed(failure: str):
    action = after(failed(failure), left(2), resume=True)
    assert (action.verb, action.condition, action.reason.code) == (Verb.HOLD, Condition.FAILED, failure)


def test_a_renamed_runs_edits_are_taken_back_where_the_run_is_now():
    old = [{**edit, "path": "/exp/old/finetune.yaml"} for edit in MADE]
    events = [*failed("OutOfMemoryGpu"), *old, event("rerun", STEP, NOW - 10, newest=None)]
    action = decide(HALVED, events=events, policy=policy(shrink_batch=True))
    assert {edit.path for edit in action.edits} == {CONFIG}


def test_without_the_setting_nothing_is_resumed_and_everything_torn_is_moved_aside():
    action = after(failed("NodeFailure"), left(2))
    assert (action.from_epoch, action.edits, len(action.move_aside)) == (0, (), 3)


def test_where_nothing_can_be_resumed_our_edit_is_taken_back():
    edited = event("edited", STEP, NOW - 1000, path=str(CONFIG), key=RESUME.key, before="False", after="True")
    action = after([edited, *failed("NodeFailure", from_epoch=1)], left(0), resume=True)
    assert [edit.words for edit in action.edits] == ["resume_from_checkpoint True → False"]


# --- edits ---------------------------------------------------------------------------------------------------


def test_a_smaller_batch_is_an_edit_only_where_the_settings_ask_for_it():
    action = after(failed("OutOfMemoryGpu"), shrink_batch=True)
    assert (action.verb, action.edits) == (Verb.SUBMIT, SMALLER)
    assert "finetune.yaml: batch_size 4 → 2" in action.changes


def test_a_parameter_that_the_document_varies_is_not_ours_to_change():
    varied = replace(STEP, smaller_batch=(), why_no_smaller_batch="the document varies `batch_size` between its runs")
    action = decide(varied, events=failed("OutOfMemoryGpu"), seen={STEP.key: TORN}, policy=policy(shrink_batch=True))
    assert (action.verb, "varies" in action.reason.message) == (Verb.HOLD, True)


def edits(*changes: tuple[str, str | None, str | None], at: float = NOW - 50) -> list[dict[str, Any]]:
    return [event("edited", STEP, at, path=str(CONFIG), key=k, before=b, after=a) for k, b, a in changes]


MADE = edits(("batch_size", "4", "2"), ("gradient_accumulation_steps", "1", "2"))
HALVED = replace(
    STEP, smaller_batch=(Edit(CONFIG, "batch_size", "2", "1"), Edit(CONFIG, "gradient_accumulation_steps", "2", "4"))
)


def test_an_edit_that_a_killed_pass_made_is_not_made_a_second_time():
    action = decide(HALVED, events=[*failed("OutOfMemoryGpu"), *MADE], seen={STEP.key: TORN}, policy=policy(shrink_batch=True))
    assert action.verb is Verb.SUBMIT
    assert [(edit.key, edit.after) for edit in action.edits] == [("batch_size", "2"), ("gradient_accumulation_steps", "2")]


def test_the_next_failure_halves_once_more_and_tells_where_it_came_from():
    events = [*failed("OutOfMemoryGpu"), *MADE, *failed("OutOfMemoryGpu", 2, NOW - 20)]
    action = decide(HALVED, events=events, seen={STEP.key: TORN}, policy=policy(shrink_batch=True))
    assert [edit.after for edit in action.edits] == ["1", "4"]
    both = fold([*events, *edits(("batch_size", "2", "1"))]).of(STEP.key).edits
    assert [(e.before, e.after, e.via) for e in both if e.key == "batch_size"] == [("4", "1", ("2",))]


def test_a_rerun_takes_our_edits_back():
    events = [*failed("OutOfMemoryGpu"), *MADE, event("rerun", STEP, NOW - 10, newest=None)]
    action = decide(HALVED, events=events, policy=policy(shrink_batch=True))
    assert [edit.words for edit in action.edits] == ["batch_size 2 → 4", "gradient_accumulation_steps 2 → 1"]
    back = fold([*events, *edits(("batch_size", "2", "4"), ("gradient_accumulation_steps", "2", "1"))]).of(STEP.key)
    assert back.edits == ()


# --- the file ------------------------------------------------------------------------------------------------

TEXT = "# my run\nbatch_size: 4   # fits an A100\nlr:   1e-5\n\n'epochs': 2\nmodel: {rank: 8}\n# the end\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "finetune.yaml"
    path.write_text(TEXT)
    return path


def apply(path: Path, *wanted: Edit) -> None:
    make_edits(path, open_edits(path, wanted), path.parent / "kept" / "original.yaml")


def test_one_value_changes_and_every_other_byte_stays(config: Path):
    apply(config, Edit(config, "batch_size", "4", "2"))
    assert config.read_text() == TEXT.replace("batch_size: 4 ", "batch_size: 2 ")
    assert (config.parent / "kept/original.yaml").read_text() == TEXT


def test_an_edit_and_its_way_back_leave_the_very_bytes(config: Path):
    for wanted in (Edit(config, "batch_size", "4", "2"), Edit(config, "gradient_accumulation_steps", None, "2")):
        apply(config, wanted)
        apply(config, Edit(config, wanted.key, wanted.after, wanted.before))
    assert config.read_text() == TEXT


def test_the_original_is_that_of_the_first_edit(config: Path):
    apply(config, Edit(config, "batch_size", "4", "2"))
    apply(config, Edit(config, "batch_size", "2", "1"))
    assert (config.parent / "kept/original.yaml").read_text() == TEXT


def test_a_value_that_a_person_set_is_left_alone(config: Path):
    assert open_edits(config, [Edit(config, "batch_size", "8", "2")]) == ()


def test_an_edit_goes_on_from_what_we_wrote_in_between(config: Path):
    (found,) = open_edits(config, [Edit(config, "batch_size", "16", "1", via=("8", "4"))])
    assert (found.before, found.after) == ("4", "1")


@pytest.mark.parametrize(
    "text", [TEXT.replace("4   #", "|\n  4\n#"), "- 1\n", "a: [\n", "{batch_size: 4, lr: 1}\n", "batch_size: &b 4\nother: *b\n"]
)
def test_what_cannot_be_edited_in_place_is_left_as_it_is(config: Path, text: str):
    config.write_text(text)
    before = config.read_bytes()
    with pytest.raises(PermanentError):
        make_edits(config, [Edit(config, "batch_size", "4", "2")], config.parent / "kept")
    assert config.read_bytes() == before
    assert not (config.parent / "kept").exists()


def test_a_configuration_that_is_gone_is_unknown(tmp_path: Path):
    with pytest.raises(DiskUnreadable):
        open_edits(tmp_path / "none.yaml", [Edit(CONFIG, "batch_size", "4", "2")])


@pytest.mark.parametrize("text", [TEXT.replace("\n", "\r\n"), TEXT.replace("4   #", '"4" #'), "batch_size: 4"])
def test_any_ordinary_layout_can_be_edited(config: Path, text: str):
    config.write_bytes(text.encode())
    apply(config, Edit(config, "batch_size", "4", "2"))
    assert open_edits(config, [Edit(config, "batch_size", "2", "3")])
    assert config.read_bytes().count(b"\r") == text.count("\r")


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
