"""What carrying out a plan leaves behind: in the queue, in the ledger, on the disk, and what is said of each step."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import reconciler.act
from reconciler.act import Outcome, World, act, move_aside
from reconciler.errors import (
    ClusterUnreachable,
    ControllerFull,
    DiskUnreadable,
    LimitReached,
    NotSubmitted,
    SubmissionRefused,
    SubmissionUncertain,
)
from reconciler.fold import fold
from reconciler.ledger import Ledger
from reconciler.memory import Memory
from reconciler.model import Condition, Desired, Edit, FileId, Observed, OutputState, Phase, Policy, Step, Token, Verb
from reconciler.plan import make_plan
from worlds import ABSENT, NOW, MemoryCluster, decide, done, ended, evaluation, event, finetune, job, outputs, submitted

LOCK = 7


class Bench:
    """One experiment on a real disk, a plan of it, and what acting on it leaves."""

    def __init__(self, directory: Path, *steps: Step) -> None:
        self.directory = directory
        self.steps = tuple(self.on_disk(step) for step in steps)
        self.cluster = MemoryCluster()
        self.ledger = Ledger(directory, lambda: self.now)
        self.ledger.path.parent.mkdir()
        self.now = NOW
        self.said: list[str] = []
        self.policy = Policy()

    def on_disk(self, step: Step, header: str = "") -> Step:
        script = self.directory / step.script.relative_to("/exp")
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(f"#!/bin/bash\n#SBATCH --job-name=work\n{header}echo work\n")
        return replace(step, script=script)

    def act(self, events=(), seen=None, queue=(), accounting=None, policy=None, change=None, meanwhile=None) -> list[Outcome]:
        """``change`` is laid over the plan's actions; ``meanwhile`` is what others do between the look and the acts."""
        for each in events:
            self.ledger.append(each["event"], **{k: v for k, v in each.items() if k not in ("event", "at")})
        desired = Desired("exp", self.directory, self.directory / "experiment_summary.md", self.steps)
        observed = Observed(queue, accounting, {step.key: ABSENT for step in self.steps} | (seen or {}))
        memory = fold(events) if events else Memory()
        plan = make_plan(desired, observed, memory, policy or Policy(), NOW)
        self.ledger.memory()  # as a pass does: what is there now is what it knows of
        world = World(self.cluster, self.ledger, lambda: self.now, LOCK, self.policy, NOW, self.said.append)
        plan = replace(plan, actions=tuple(change(action) if change else action for action in plan.actions))
        if meanwhile:
            meanwhile()
        return list(act(plan, desired, observed, memory, world))

    def written(self, *kinds: str) -> list[dict]:
        return [{k: v for k, v in e.items() if k != "at"} for e in self.ledger.events() if not kinds or e["event"] in kinds]

    def name(self, step: Step, attempt: int = 1) -> str:
        return Token.of(self.directory, step.key, attempt).job_name("work")


@pytest.fixture
def bench(tmp_path):
    return lambda *steps: Bench(tmp_path, *(steps or (finetune(),)))


def told(outcome: Outcome) -> tuple:
    action = outcome.action
    return outcome.result, action.verb, action.condition, action.reason.code


# --- submitting --------------------------------------------------------------------------------------


def test_a_submission_says_what_it_is_and_is_in_writing_before_and_after(bench):
    here = bench()
    (step,) = here.steps
    (outcome,) = here.act()
    assert told(outcome) == ("applied", Verb.SUBMIT, Condition.QUEUED, "Submitted")
    assert outcome.action.job == "1"
    assert outcome.action.reason.message == "submitted as job 1"
    (job_,) = here.cluster.submissions
    assert (job_.script, job_.name, job_.begin_in, job_.held, job_.requeue) == (step.script, here.name(step), 0, False, False)
    assert job_.keep_open == (LOCK,)
    assert here.written() == [
        {
            "event": "intent", "step": step.key, "attempt": 1, "name": here.name(step), "begins": NOW, "held": False,
            "definition": "def", "placement": "place", "output_dir": "/scratch/a", "options": {}, "from_epoch": 0,
                "ask": {"gpus": 0, "seconds": None, "where": ""},
        },
        {"event": "submitted", "step": step.key, "attempt": 1, "job": "1"},
        {"event": "names", "kept": True},
    ]  # fmt: skip
    (said,) = here.said
    assert step.key in said
    assert "1" in said


def test_a_job_may_be_requeued_where_its_script_or_the_settings_ask_for_it(bench):
    for of_step, of_settings in ((True, False), (False, True)):
        here = bench()
        here.steps = tuple(replace(step, requeue=of_step) for step in here.steps)
        here.policy = Policy(requeue=of_settings)
        here.act()
        assert here.cluster.submissions[0].requeue
        shutil.rmtree(here.ledger.path.parent)


def test_evaluations_are_submitted_first_and_the_outcomes_keep_the_documents_order(bench):
    here = bench(finetune("a"), evaluation("b"), finetune("c"))
    here.steps = tuple(replace(step, need=None) for step in here.steps)
    outcomes = here.act()
    assert [o.action.step for o in outcomes] == [step.key for step in here.steps]
    assert [s.script for s in here.cluster.submissions] == [here.steps[n].script for n in (1, 0, 2)]


def test_jobs_become_eligible_a_stagger_apart_and_after_those_of_earlier_passes(bench):
    here = bench(finetune("a"), finetune("b"), finetune("c"))
    here.policy = Policy(stagger=30)
    before = [{**e, "begins": NOW - 10} if e["event"] == "intent" else e for e in submitted(here.steps[0], at=NOW - 9)]
    here.act(before, queue=(job(here.steps[0], Phase.QUEUED, name=before[0]["name"]),))
    assert [s.begin_in for s in here.cluster.submissions] == [20, 50]
    assert [e["begins"] for e in here.written("intent")[1:]] == [NOW + 20, NOW + 50]


@pytest.mark.parametrize("line", ["--begin=20:00", "-b 20:00", "--beg 20:00"])
def test_a_job_whose_script_says_when_it_begins_begins_then(bench, line):
    here = bench(finetune("a"), finetune("b"), finetune("c"))
    here.policy = Policy(stagger=30)
    here.steps[1].script.write_text(f"#!/bin/bash\n#SBATCH {line}\ntrain\n")
    here.act()
    assert [s.begin_in for s in here.cluster.submissions] == [0, 0, 60]


def test_a_clock_that_was_ahead_for_a_while_delays_nothing_for_long(bench):
    here = bench(finetune("a"), finetune("b"))
    here.policy = Policy(stagger=30)
    before = [{**e, "begins": NOW + 90_000} if e["event"] == "intent" else e for e in submitted(here.steps[0], at=NOW - 9)]
    here.act(before, queue=(job(here.steps[0], Phase.QUEUED, name=before[0]["name"]),))
    assert [s.begin_in for s in here.cluster.submissions] == [30]


def test_of_two_passes_that_set_out_to_submit_the_same_attempt_one_alone_does(bench):
    here = bench(finetune("a"), finetune("b"))
    token = Token.of(here.directory, "a/finetune", 1)
    assert here.ledger.claim(str(token))
    outcomes = here.act()
    assert told(outcomes[0]) == ("unknown", Verb.WAIT, Condition.UNKNOWN, "NotAlone")
    assert told(outcomes[1])[3] == "NotAlone"
    assert here.cluster.submissions == []


def test_a_pass_that_stood_still_does_nothing_more_on_what_it_saw(bench):
    for stood, code in ((300, "Submitted"), (301, "LookedTooLongAgo"), (-301, "LookedTooLongAgo")):
        here = bench()
        here.now = NOW + stood
        (outcome,) = here.act()
        assert outcome.action.reason.code == code
        assert len(here.cluster.submissions) == len(here.written("intent")) == (code == "Submitted")
        shutil.rmtree(here.ledger.path.parent)


def test_a_result_that_took_long_to_read_is_written_down_all_the_same(bench):
    here = bench(finetune("a"), finetune("b"))
    here.now = NOW + 7200
    outcomes = here.act(seen={"a/finetune": outputs(OutputState.COMPLETE)})
    assert [o.result for o in outcomes] == ["applied", "unknown"]
    assert outcomes[1].action.reason.code == "LookedTooLongAgo"
    assert [e["step"] for e in here.written("done")] == ["a/finetune"]
    assert here.cluster.submissions == []


def test_a_stagger_that_is_over_delays_nothing(bench):
    here = bench(finetune("a"), finetune("b"))
    before = submitted(here.steps[0], at=NOW - 900)
    here.act(before, queue=(job(here.steps[0], Phase.QUEUED, name=before[0]["name"]),))
    assert [s.begin_in for s in here.cluster.submissions] == [0]
    assert here.written("intent")[-1]["begins"] == NOW


def test_a_replacement_is_submitted_held_and_at_once(bench):
    here = bench(finetune("a"))
    (step,) = here.steps
    lost = [{**submitted(step, at=NOW - 1000)[0], "begins": NOW + 300}, event("lost", step, NOW - 300, attempt=1)]
    (outcome,) = here.act(lost)
    (job_,) = here.cluster.submissions
    assert (job_.held, job_.begin_in, job_.name) == (True, 0, here.name(step, 2))
    assert here.written("intent")[-1]["held"] is True
    assert outcome.action.attempt == 2


def test_the_directories_that_a_script_writes_its_output_to_are_made(bench, tmp_path):
    here = bench()
    here.steps = (here.on_disk(finetune(), "#SBATCH --output=logs/deep/%j.out\n#SBATCH --error=errors/deep/%j.err\n"),)
    (tmp_path / "a" / "logs").mkdir()
    here.act()
    assert (tmp_path / "a" / "logs" / "deep").is_dir()
    assert (tmp_path / "a" / "errors" / "deep").is_dir()
    assert len(here.cluster.submissions) == 1


def test_a_log_directory_inside_of_what_is_moved_aside_is_there_for_the_job(bench, tmp_path):
    here = bench()
    here.steps = (here.on_disk(finetune(), "#SBATCH --output=out/logs/%j.out\n"),)
    torn = tmp_path / "a" / "out"
    (torn / "logs").mkdir(parents=True)
    here.act(change=lambda action: replace(action, move_aside=(torn,)))
    assert len(here.cluster.submissions) == 1
    assert (torn / "logs").is_dir()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_log_directory_that_may_not_be_made_here_is_the_nodes_business(bench, monkeypatch, number):
    here = bench()
    here.steps = (here.on_disk(finetune(), "#SBATCH --output=/node/local/%j.out\n"),)
    monkeypatch.setattr("reconciler.act.make_directory", partial(fail, number))
    (outcome,) = here.act()
    assert (outcome.result, len(here.cluster.submissions)) == ("applied", 1)


def fail(number, *arguments, **more):
    raise OSError(number, os.strerror(number))


def test_a_script_in_another_encoding_is_submitted_like_any_other(bench):
    here = bench()
    here.steps[0].script.write_bytes("#!/bin/bash\n#SBATCH --job-name=work\necho für\n".encode("latin-1"))
    here.act()
    assert here.cluster.submissions[0].name == here.name(here.steps[0])


def test_what_cannot_be_prepared_is_not_submitted_and_the_next_step_is(bench):
    here = bench(finetune("a"), finetune("b"))
    too_long = "logs" * 100
    here.steps = (here.on_disk(finetune("a"), f"#SBATCH --output={too_long}/%j\n"), here.steps[1])
    outcomes = here.act()
    assert told(outcomes[0]) == ("failed", Verb.WAIT, Condition.WAITING, "DiskUnknown")
    assert "logs" in outcomes[0].action.reason.message
    assert [s.script for s in here.cluster.submissions] == [here.steps[1].script]
    assert [e["step"] for e in here.written("submitted")] == ["b/finetune"]
    assert [e["step"] for e in here.written("withdrawn")] == ["a/finetune"]


def test_a_script_that_vanished_is_not_submitted(bench):
    here = bench()
    here.steps[0].script.unlink()
    (outcome,) = here.act()
    assert told(outcome) == ("failed", Verb.WAIT, Condition.WAITING, "DiskUnknown")
    assert str(here.steps[0].script) in outcome.action.reason.message
    assert here.cluster.submissions == []


# --- what comes of it --------------------------------------------------------------------------------


def test_a_refusal_concerns_its_step_alone(bench):
    here = bench(finetune("a"), finetune("b"))
    here.cluster.fails_with = [SubmissionRefused("Invalid account")]
    outcomes = here.act()
    assert told(outcomes[0]) == ("failed", Verb.WAIT, Condition.WAITING, "SubmissionRefused")
    assert "Invalid account" in outcomes[0].action.reason.message
    assert told(outcomes[1])[0] == "applied"
    assert here.written("refused") == [{"event": "refused", "step": "a/finetune", "attempt": 1, "message": "Invalid account"}]


def test_a_site_that_takes_no_more_jobs_is_not_asked_again(bench):
    here = bench(finetune("a"), finetune("b"))
    here.cluster.fails_with = [LimitReached("QOSMaxSubmit")]
    outcomes = here.act()
    assert [told(o) for o in outcomes] == [("failed", Verb.WAIT, Condition.WAITING, "LimitReached")] * 2
    assert all("QOSMaxSubmit" in o.action.reason.message for o in outcomes)
    assert here.written("limited") == [{"event": "limited", "step": "a/finetune", "attempt": 1, "message": "QOSMaxSubmit"}]
    assert [e["step"] for e in here.written("intent")] == ["a/finetune"]


@pytest.mark.parametrize("option", ["account", "qos", "partition"])
def test_a_limit_is_met_by_what_is_limited_and_a_full_controller_by_everything(bench, option):
    for error, stopped in ((LimitReached("QOSMaxSubmit"), "a b"), (ControllerFull("too many jobs"), "a b c")):
        here = bench(finetune("a"), finetune("b"), finetune("c"))
        asked = zip((finetune("a"), finetune("b"), finetune("c")), ("x", "x", "y"), strict=True)
        here.steps = tuple(replace(here.on_disk(step), asks={option: value}) for step, value in asked)
        here.cluster.fails_with = [error]
        outcomes = here.act()
        assert [o.action.step[0] for o in outcomes if o.result == "failed"] == stopped.split()
        assert {o.action.reason.code for o in outcomes if o.result == "failed"} == {"LimitReached"}
        shutil.rmtree(here.ledger.path.parent)


@pytest.mark.parametrize("error", [SubmissionUncertain("timed out"), ClusterUnreachable("no route")])
def test_after_a_submission_of_unknown_outcome_nothing_more_is_submitted(bench, error):
    here = bench(finetune("a"), finetune("b"))
    here.cluster.fails_with = [error]
    outcomes = here.act()
    assert told(outcomes[0]) == ("unknown", Verb.SUBMIT, Condition.UNKNOWN, "Unconfirmed")
    assert str(error) in outcomes[0].action.reason.message
    assert told(outcomes[1]) == ("failed", Verb.WAIT, Condition.WAITING, "ClusterUnreachable")
    assert "a/finetune" in outcomes[1].action.reason.message
    assert [e["event"] for e in here.written()] == ["intent"]


def test_the_first_jobs_name_is_read_back_once_in_an_experiments_life(bench):
    here = bench(finetune("a"), finetune("b"))

    class Counting(MemoryCluster):
        asked = 0

        def queue(self):
            self.asked += 1
            return super().queue()

    here.cluster = Counting()
    here.act()
    assert here.cluster.asked == 1
    here.cluster = Counting()
    here.ledger.path.unlink()
    here.act([{"event": "names", "at": NOW, "kept": True}])
    assert here.cluster.asked == 0


def test_an_earlier_job_that_is_shown_by_its_name_settles_that_names_are_kept(bench):
    here = bench(finetune("a"), finetune("b"))
    before = submitted(here.steps[0])
    here.cluster.queue = None  # not asked for
    outcomes = here.act(before, queue=(job(here.steps[0], name=before[0]["name"]),))
    assert [o.action.reason.code for o in outcomes] == ["JobRunning", "Submitted"]
    assert here.written("names") == [{"event": "names", "kept": True}]


def test_a_site_that_shows_another_name_gets_one_job(bench):
    here = bench(finetune("a"), finetune("b"))

    class Rewriting(MemoryCluster):
        def queue(self):
            others = tuple(replace(j, id="99") for j in super().queue())
            return others + tuple(replace(j, name="rewritten") for j in super().queue())

    here.cluster = Rewriting()
    outcomes = here.act()
    assert told(outcomes[0])[0] == "applied"
    assert told(outcomes[1]) == ("failed", Verb.WAIT, Condition.WAITING, "NamesRewritten")
    assert "rewritten" in outcomes[1].action.reason.message
    assert here.written("names") == [{"event": "names", "kept": False}]


@pytest.mark.parametrize("shows", [(), ClusterUnreachable("down")])
def test_where_the_first_name_cannot_be_read_back_the_next_pass_goes_on(bench, shows):
    here = bench(finetune("a"), finetune("b"))

    class Silent(MemoryCluster):
        def queue(self):
            if isinstance(shows, Exception):
                raise shows
            return shows

    here.cluster = Silent()
    outcomes = here.act()
    assert [told(o)[::3] for o in outcomes] == [("applied", "Submitted"), ("failed", "NameUnconfirmed")]
    assert here.written("names") == []


def test_a_machine_that_is_short_of_something_submits_nothing_and_costs_no_attempt(bench):
    here = bench(finetune("a"), finetune("b"))
    here.cluster.fails_with = [NotSubmitted("no more processes")]
    outcomes = here.act()
    assert [told(o)[::3] for o in outcomes] == [("failed", "MachineShort")] * 2
    assert [(e["event"], e["step"]) for e in here.written()] == [("intent", "a/finetune"), ("withdrawn", "a/finetune")]


# --- the past ----------------------------------------------------------------------------------------


def test_what_a_plan_learned_is_written_down_first(bench):
    here = bench()
    (step,) = here.steps
    over = job(step, Phase.ENDED, state="FAILED", name=submitted(step)[0]["name"])
    here.act(submitted(step), queue=(over,))
    ended_, missing = here.written("ended", "missing")
    assert (ended_["step"], ended_["job"], ended_["failure"]) == (step.key, "101", "Unknown")
    assert missing == {"event": "missing", "step": step.key, "attempt": 1}


def test_a_live_job_that_was_found_is_taken_over_as_it_is(bench):
    here = bench()
    (step,) = here.steps
    found = job(step, name=here.name(step, 3), id="77")
    (outcome,) = here.act(queue=(job(finetune("other")), found))
    assert told(outcome) == ("applied", Verb.ADOPT, Condition.RUNNING, "LiveJobFound")
    assert here.written() == [
        {
            "event": "adopted", "step": step.key, "attempt": 3, "job": "77", "name": here.name(step, 3), "by_hand": False,
            "begun": NOW - 1000,
            "definition": "def", "placement": "place", "output_dir": "/scratch/a",
            "ask": {"gpus": 0, "seconds": None, "where": ""},
        }
    ]  # fmt: skip
    assert here.cluster.submissions == []


def test_a_job_that_a_person_submitted_is_taken_over_as_such(bench):
    here = bench()
    here.steps = tuple(replace(step, job_name="train", workdir=str(step.directory)) for step in here.steps)
    here.act(queue=(job(here.steps[0], name="train", workdir=str(here.steps[0].directory)),))
    (adopted,) = here.written("adopted")
    assert (adopted["by_hand"], adopted["name"], adopted["attempt"]) == (True, "train", 1)


def test_what_is_taken_over_counts_as_made_from_what_its_step_says_then(bench):
    here = bench()
    (step,) = here.steps
    here.steps = (replace(step, batch={"batch_size": "8"}, meaning={step.script.name: "commands 1"}, commands="c"),)
    here.act(queue=(job(step, name=here.name(step, 3), id="77"),))
    (adopted,) = here.written("adopted")
    assert (adopted["batch"], adopted["commands"]) == ({"batch_size": "8"}, "c")
    assert adopted["meaning"] == {step.script.name: "commands 1"}


def test_a_result_is_written_down_with_its_evidence_and_the_definition_that_it_is_of(bench):
    here = bench()
    here.steps = tuple(replace(step, meaning={"lr": "1"}) for step in here.steps)
    whole = replace(outputs(OutputState.COMPLETE), evidence=(FileId("/scratch/a/x", 5, 6),))
    (outcome,) = here.act(seen={"a/finetune": whole})
    assert told(outcome) == ("applied", Verb.MARK_DONE, Condition.DONE, "Verified")
    assert here.written() == [
        {
            "event": "done", "step": "a/finetune", "definition": "def", "meaning": {"lr": "1"}, "inputs": {},
            "evidence": [{"path": "/scratch/a/x", "size": 5, "mtime_ns": 6}],
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("step", "before", "definition", "meaning"),
    [
        pytest.param(evaluation(), "older", "older", {}, id="an evaluation is what its script was when it was submitted"),
        pytest.param(evaluation(), "def", "def", {"lr": "1"}, id="and that may be what it still is"),
        pytest.param(evaluation(), None, "def", {"lr": "1"}, id="an evaluation that nobody submitted"),
        pytest.param(evaluation(), "", "def", {"lr": "1"}, id="an evaluation whose submission says nothing"),
        pytest.param(finetune(), "older", "def", {"lr": "1"}, id="a fine-tune's outputs tell its configuration themselves"),
    ],
)
def test_which_definition_a_result_is_of(bench, step, before, definition, meaning):
    here = bench(replace(step, need=None, meaning={"lr": "1"}))
    (step,) = here.steps
    attempt = [] if before is None else ended(replace(step, definition=before), "UserError")
    here.act(attempt, seen={step.key: outputs(OutputState.COMPLETE)})
    (result,) = here.written("done")
    assert (result["definition"], result["meaning"]) == (definition, meaning)


def test_a_fine_tune_is_of_the_script_that_was_submitted_and_drifts_where_that_is_another_by_now(bench):
    here = bench()
    (step,) = here.steps
    step = replace(step, meaning={"lr": "1", step.script.name: "commands new"})
    here.steps = (step,)
    here.act()
    (intent,) = here.written("intent")
    assert intent["meaning"] == {step.script.name: "commands new"}
    for script, definition in (("commands old", "older"), ("commands new", "def")):
        here.ledger.path.unlink(missing_ok=True)
        submitted_as = {**intent, "definition": "older", "meaning": {step.script.name: script}, "at": NOW - 900}
        over = [event for event in ended(step, "UserError") if event["event"] != "intent"]
        here.act([submitted_as, *over], seen={step.key: outputs(OutputState.COMPLETE)})
        (result,) = here.written("done")
        assert (result["definition"], result["meaning"]) == (definition, {"lr": "1", step.script.name: script})
    drifted = decide(step, events=[{**result, "at": NOW, "definition": "older", "meaning": {"lr": "1", step.script.name: "x"}}])
    assert drifted.condition is Condition.DRIFTED
    assert f"{step.script.name} x → commands new" in drifted.reason.message


class Deaf(MemoryCluster):
    def cancel(self, job_id):
        raise ClusterUnreachable("scancel: Socket timed out")


def test_a_job_that_is_cancelled_before_it_could_start_is_no_attempt(bench):
    here = bench()
    (step,) = here.steps
    word = event("cancel", step, NOW)
    for phase, withdrawn in ((Phase.RUNNING, False), (Phase.QUEUED, False)):
        here.cluster.jobs["101"] = job(step, phase, name=submitted(step)[0]["name"])
        elsewhere = replace(job(finetune("other"), Phase.QUEUED, held=True), id="5")
        here.act([*submitted(step), word], queue=(elsewhere, here.cluster.jobs["101"]))
        assert here.cluster.jobs["101"].state == "CANCELLED"
        assert bool(here.written("withdrawn")) == withdrawn
        here.ledger.path.unlink()
    other = job(finetune("other"), Phase.QUEUED, held=True)
    held = job(step, Phase.QUEUED, attempt=1, name=submitted(step)[0]["name"], held=True)
    here.cluster.jobs["101"] = held
    here.act([*submitted(step), word], queue=(replace(other, id="5"), held))
    assert here.written("withdrawn") == [{"event": "withdrawn", "step": step.key, "attempt": 1}]


def test_that_a_held_job_is_about_to_be_cancelled_is_in_writing_first(bench):
    here = bench()
    here.cluster = Deaf()
    (step,) = here.steps
    held = job(step, Phase.QUEUED, name=submitted(step)[0]["name"], held=True)
    here.act([*submitted(step), event("cancel", step, NOW)], queue=(held,))
    assert here.written("withdrawing") == [{"event": "withdrawing", "step": step.key, "attempt": 1}]
    assert here.written("withdrawn") == []


def test_a_replacement_that_may_start_is_released_and_that_is_written_down(bench):
    here = bench()
    (step,) = here.steps
    lost = [submitted(step)[0], event("lost", step, NOW - 400, attempt=1), *submitted(step, 2, NOW - 300, held=True)]
    held = job(step, Phase.QUEUED, 2, held=True, name=lost[2]["name"])
    here.cluster.jobs["102"] = held
    (outcome,) = here.act(lost, queue=(held,), accounting=())
    assert told(outcome) == ("applied", Verb.WAIT, Condition.QUEUED, "Confirmed")
    assert not here.cluster.jobs["102"].held
    assert here.written("unheld") == [{"event": "unheld", "step": step.key, "attempt": 2}]


def test_a_cluster_that_goes_away_in_the_middle_leaves_the_step_unknown_and_the_others_go_on(bench):
    here = bench(finetune("a"), finetune("b"))
    here.cluster = Deaf()
    step = here.steps[0]
    live = job(step, name=submitted(step)[0]["name"])
    outcomes = here.act([*submitted(step), event("cancel", step, NOW)], queue=(live,))
    assert told(outcomes[0]) == ("unknown", Verb.WAIT, Condition.WAITING, "QueueUnknown")
    assert "Socket timed out" in outcomes[0].action.reason.message
    assert told(outcomes[1])[0] == "applied"


def test_a_step_that_nothing_is_to_be_done_about_is_left_as_it_is(bench):
    here = bench()
    (outcome,) = here.act([done(here.steps[0])])
    assert told(outcome) == ("applied", Verb.KEEP, Condition.DONE, "Done")
    assert [e["event"] for e in here.written()] == ["done"]


# --- moving aside ------------------------------------------------------------------------------------


def test_torn_outputs_are_moved_aside_and_that_is_written_down(bench, tmp_path):
    here = bench()
    (step,) = here.steps
    torn = tuple(tmp_path / "out" / name for name in ("epoch_0", "epoch_1"))
    for path in torn:
        path.mkdir(parents=True)
        (path / "x").write_text(path.name)
    half = replace(outputs(OutputState.INCOMPLETE, torn=torn), newest=NOW - 950)
    here.act(ended(step, "NodeFailure"), seen={step.key: half})
    aside = tmp_path / "out" / f"moved-aside-{int(NOW)}"
    assert {p.name: (p / "x").read_text() for p in aside.iterdir()} == {"epoch_0": "epoch_0", "epoch_1": "epoch_1"}
    assert not any(path.exists() for path in torn)
    assert here.written("moved") == [
        {"event": "moved", "step": step.key, "path": str(path), "to": str(aside / path.name)} for path in torn
    ]


def test_of_a_link_to_another_disk_the_outputs_are_moved_and_the_link_stays(bench, tmp_path):
    here = bench()
    (step,) = here.steps
    disk, link = tmp_path / "disk", tmp_path / "out"
    for name in ("epoch_0", "logs", "moved-aside-7/epoch_0"):
        (disk / name).mkdir(parents=True)
        (disk / name / "x").write_text(name)
    link.symlink_to("disk")
    half = replace(outputs(OutputState.INCOMPLETE, torn=(link,)), newest=NOW - 950)
    here.act(ended(step, "NodeFailure"), seen={step.key: half})
    assert len(here.cluster.submissions) == 1
    aside = link / f"moved-aside-{int(NOW)}"
    assert {p.name: (p / "x").read_text() for p in aside.iterdir()} == {"epoch_0": "epoch_0", "logs": "logs"}
    assert (link.is_symlink(), sorted(p.name for p in disk.iterdir())) == (True, [aside.name, "moved-aside-7"])
    assert [e["path"] for e in here.written("moved")] == [str(link / "epoch_0"), str(link / "logs")]


def test_nothing_that_was_moved_aside_before_is_overwritten(tmp_path):
    places = []
    for content in "abc":
        (tmp_path / "epoch_0").write_text(content)
        places.append(move_aside(tmp_path / "epoch_0", 12.7))
    assert [str(p.relative_to(tmp_path)) for p in places] == [
        "moved-aside-12/epoch_0", "moved-aside-12-1/epoch_0", "moved-aside-12-2/epoch_0",
    ]  # fmt: skip
    assert [p.read_text() for p in places] == ["a", "b", "c"]
    dangling = tmp_path / "moved-aside-13" / "epoch_0"
    dangling.parent.mkdir()
    dangling.symlink_to("nowhere")
    (tmp_path / "epoch_0").write_text("d")
    assert move_aside(tmp_path / "epoch_0", 13.0).parent.name == "moved-aside-13-1"


def test_where_no_name_is_free_nothing_is_moved(tmp_path):
    for n in range(1000):
        (tmp_path / f"moved-aside-1{f'-{n}' if n else ''}").mkdir()
        (tmp_path / f"moved-aside-1{f'-{n}' if n else ''}" / "x").touch()
    (tmp_path / "x").write_text("stays")
    with pytest.raises(DiskUnreadable):
        move_aside(tmp_path / "x", 1.0)
    assert (tmp_path / "x").read_text() == "stays"


# --- edits and options -----------------------------------------------------------------------------------


def batch(path: Path, before: str = "4", after: str = "2") -> Edit:
    return Edit(path, "batch_size", before, after)


def test_what_is_asked_for_beyond_the_script_reaches_the_cluster_and_the_ledger(bench):
    here = bench()
    here.act(change=lambda action: replace(action, options={"mem": "8G"}, from_epoch=2))
    assert here.cluster.submissions[0].options == {"mem": "8G"}
    (intent,) = here.written("intent")
    assert (intent["options"], intent["from_epoch"]) == ({"mem": "8G"}, 2)


def test_an_edit_is_in_writing_and_made_before_its_job_and_the_original_is_kept(bench, tmp_path):
    here = bench()
    one, other = tmp_path / "a" / "finetune.yaml", tmp_path / "a" / "other.yaml"
    for path in (one, other):
        path.write_text("batch_size: 4  # as it was\n")
    here.act(change=lambda action: replace(action, edits=(batch(one), batch(other, "4", "1"))))
    assert (one.read_text(), other.read_text()) == ("batch_size: 2  # as it was\n", "batch_size: 1  # as it was\n")
    assert here.written("edited") == [
        {"event": "edited", "step": "a/finetune", "path": str(path), "key": "batch_size", "before": "4", "after": after}
        for path, after in ((one, "2"), (other, "1"))
    ]
    kept = here.ledger.path.parent / "originals" / "a"
    assert sorted((path.name, path.read_text()) for path in kept.iterdir()) == [
        (name, "batch_size: 4  # as it was\n") for name in ("finetune.yaml", "other.yaml")
    ]
    assert len(here.cluster.submissions) == 1


def test_the_batch_that_a_job_will_have_is_in_writing(bench, tmp_path):
    here = bench(finetune("a", batch={"batch_size": "4", "steps": "null"}))
    config = tmp_path / "a" / "finetune.yaml"
    config.write_text("batch_size: 4\n")
    here.act(change=lambda action: replace(action, edits=(batch(config),)))
    (intent,) = here.written("intent")
    assert intent["batch"] == {"batch_size": "2", "steps": "null"}


@pytest.mark.parametrize(
    "text", ["- no map of values\n", "batch_size: ${bs}\nbs: 4\n", "batch_size: 8\n", "a: &b 4\nbatch_size: *b\n", "a: [\n"]
)
def test_an_edit_that_cannot_be_made_holds_its_step_before_anything_is_touched(bench, tmp_path, text):
    here = bench(finetune("a"), finetune("b"))
    config, torn = tmp_path / "a" / "finetune.yaml", tmp_path / "a" / "epoch_0"
    config.write_text(text)
    torn.mkdir()
    first = here.steps[0].key
    steps = Edit(config, "gradient_accumulation_steps", None, "2")
    for more in ({"edits": (steps, batch(config))}, {"reverts": (batch(config),)}):
        outcomes = here.act(
            change=lambda action, more=more: replace(action, move_aside=(torn,), **more) if action.step == first else action
        )
        assert told(outcomes[0]) == ("failed", Verb.HOLD, Condition.HELD, "EditRefused")
        assert "finetune.yaml" in outcomes[0].action.reason.message
        assert (config.read_text(), torn.is_dir()) == (text, True)
        assert [e["event"] for e in here.written() if e.get("step") == first] == []
        assert here.steps[0].script not in [s.script for s in here.cluster.submissions]
    assert [s.script for s in here.cluster.submissions][:1] == [here.steps[1].script]


def test_an_edit_is_taken_back_before_that_is_in_writing(bench, tmp_path, monkeypatch):
    here = bench()
    config = tmp_path / "a" / "finetune.yaml"
    config.write_text("batch_size: 2\n")
    seen = []
    append = here.ledger.append
    monkeypatch.setattr(
        here.ledger, "append", lambda kind, **facts: (seen.append((kind, config.read_text())), append(kind, **facts))
    )
    here.act(change=lambda action: replace(action, reverts=(batch(config, "2", "4"),)))
    assert ("edited", "batch_size: 4\n") in seen
    assert config.read_text() == "batch_size: 4\n"


def test_what_cannot_be_moved_aside_keeps_its_step_from_being_submitted_and_costs_no_attempt(bench, tmp_path):
    here = bench()
    gone = tmp_path / "gone" / "epoch_0"
    (outcome,) = here.act(change=lambda action: replace(action, move_aside=(gone,)))
    assert told(outcome) == ("failed", Verb.WAIT, Condition.WAITING, "DiskUnknown")
    assert "gone" in outcome.action.reason.message
    assert here.written("withdrawn") == [{"event": "withdrawn", "step": "a/finetune", "attempt": 1}]
    assert here.cluster.submissions == []


# --- nobody else ---------------------------------------------------------------------------------------------


def test_a_pass_that_is_not_alone_does_nothing_and_writes_nothing_more(bench):
    here = bench(finetune("a"), finetune("b"), finetune("c"))
    a, _, c = here.steps
    before = [done(c), *submitted(a)]
    over = job(a, Phase.ENDED, state="FAILED", name=submitted(a)[0]["name"])
    other = Ledger(here.directory, lambda: NOW)
    outcomes = here.act(before, queue=(over,), meanwhile=lambda: other.append("release"))
    assert [told(o) for o in outcomes] == [
        ("applied", Verb.WAIT, Condition.VERIFYING, "OutputsMissing"),
        ("unknown", Verb.WAIT, Condition.UNKNOWN, "NotAlone"),
        ("applied", Verb.KEEP, Condition.DONE, "Done"),
    ]
    assert [e["event"] for e in here.written()] == ["done", "intent", "submitted", "release"]
    assert here.cluster.submissions == []


def test_a_ledger_that_cannot_be_read_any_more_stops_everything(bench):
    here = bench()

    def meanwhile():
        here.ledger.path.unlink(missing_ok=True)
        here.ledger.path.mkdir()

    (outcome,) = here.act(meanwhile=meanwhile)
    assert told(outcome) == ("unknown", Verb.WAIT, Condition.UNKNOWN, "DiskUnknown")
    assert "ledger.jsonl" in outcome.action.reason.message


def test_a_pass_that_is_not_alone_writes_down_no_result(bench):
    here = bench()
    other = Ledger(here.directory, lambda: NOW)
    seen = {"a/finetune": outputs(OutputState.COMPLETE)}
    (outcome,) = here.act(seen=seen, meanwhile=lambda: other.append("release"))
    assert told(outcome) == ("unknown", Verb.WAIT, Condition.UNKNOWN, "NotAlone")
    assert here.written("done") == []


def stand_still(here: Bench, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """On coming to a moment of a submission, a pass stands still for longer than a look lasts."""

    def slow(real, *arguments):
        here.now += 400
        return real(*arguments)

    if moment == "claim":
        monkeypatch.setattr(here.ledger, "claim", partial(slow, here.ledger.claim))
    else:
        monkeypatch.setattr(f"reconciler.act.{moment}", partial(slow, getattr(reconciler.act, moment)))


@pytest.mark.parametrize("moment", ["claim", "_make_room_for_logs"])
def test_a_pass_that_stands_still_before_or_after_an_edit_submits_nothing(bench, tmp_path, monkeypatch, moment):
    here = bench()
    config = tmp_path / "a" / "finetune.yaml"
    config.write_text("batch_size: 4\n")
    stand_still(here, monkeypatch, moment)
    (outcome,) = here.act(change=lambda action: replace(action, edits=(batch(config),)))
    assert told(outcome) == ("unknown", Verb.WAIT, Condition.UNKNOWN, "LookedTooLongAgo")
    assert here.cluster.submissions == []
    assert config.read_text() == ("batch_size: 4\n" if moment == "claim" else "batch_size: 2\n")


@pytest.mark.parametrize("moment", ["claim", "move_aside"])
def test_a_pass_that_stands_still_in_the_middle_of_a_submission_does_not_go_on_with_it(bench, tmp_path, monkeypatch, moment):
    here = bench(finetune("a"), finetune("b"))
    torn = tmp_path / "torn"
    torn.write_text("half")
    stand_still(here, monkeypatch, moment)
    outcomes = here.act(change=lambda action: replace(action, move_aside=(torn,)))
    assert [told(o)[3] for o in outcomes] == ["LookedTooLongAgo"] * 2
    assert here.cluster.submissions == []
    assert here.written("moved") == []
    assert torn.read_text() == "half"


@pytest.mark.parametrize("anew", ["", "anew"])
def test_what_another_pass_makes_while_something_is_moved_aside_is_put_back_or_stays(bench, tmp_path, monkeypatch, anew):
    """Under a lock that lies: by the time the name is changed, another pass's job may have made it whole, or be making it anew."""
    here = bench()
    torn = tmp_path / "torn"
    torn.write_text("half")

    def overtaken(path, now):
        here.ledger.path.write_text(here.ledger.path.read_text() + '{"at": 1, "event": "seen", "step": "x", "attempt": 1}\n')
        path.write_text("whole")
        found = move_aside(path, now)
        if anew:
            path.write_text(anew)
        return found

    monkeypatch.setattr("reconciler.act.move_aside", overtaken)
    (outcome,) = here.act(change=lambda action: replace(action, move_aside=(torn,)))
    assert told(outcome)[3] == "NotAlone"
    assert torn.read_text() == (anew or "whole")
    assert here.cluster.submissions == []


def test_an_attempt_is_claimed_under_its_token_beside_the_ledger(bench):
    here = bench()
    here.act()
    (claim,) = (here.ledger.path.parent / "claims").iterdir()
    assert claim.name == str(Token.of(here.directory, "a/finetune", 1))
    assert not here.ledger.claim(claim.name)
