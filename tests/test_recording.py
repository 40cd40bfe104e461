"""How an experiment stands, in the words of the document and of the tools' logs; and a pass from first look to last note."""

# ruff: noqa: F811 - the fixtures are another module's
from __future__ import annotations

import os
import re
import time
from dataclasses import replace

import pytest

from reconciler.errors import Problem, SubmissionRefused, TemporaryError, UsageError
from reconciler.ledger import Ledger
from reconciler.loop import preview, run_pass
from reconciler.model import Action, Condition, Edit, Observed, OutputState, Phase, Reason, Stage, Verb
from reconciler.record import _out_of_sight, elapsed, status_word
from test_pass import DOCUMENT, Lab, lab, start  # noqa: F401 - the fixture
from worlds import MemoryCluster, StandInTool, decide, finetune, outputs

A, B, EVAL, BASE = "a/finetune", "b/finetune", "a/eval/cap_epoch0", "base/eval/cap_base"


def written(lab: Lab, *kinds: str) -> list[dict]:
    events = Ledger(lab.directory.resolve(), lambda: 0.0).events()
    return [{k: v for k, v in e.items() if k != "at"} for e in events if e["event"] in kinds]


def row(lab: Lab, run: str, table: str = "Fine-tuning Status") -> list[str]:
    text = lab.document.read_text().split(f"## {table}")[1]
    (line,) = re.findall(rf"^\| {run} .*$", text.split("\n## ")[0], re.MULTILINE)
    return [cell.strip() for cell in line.strip("|").split("|")]


def local(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def log(lab: Lab, tool: str = "trainer") -> str:
    path = lab.directory / f"run-{tool}.log"
    return path.read_text() if path.exists() else ""


def test_a_document_that_is_checked_out_as_it_was_long_ago_is_brought_up_to_date(lab):
    lab.run()
    long_ago = lab.document.read_bytes()
    start(lab, A)
    lab.run()
    lab.finish(A)
    lab.run()
    now = row(lab, "a")
    lab.document.write_bytes(long_ago)
    assert lab.run().notes == ()
    assert row(lab, "a") == now


def test_an_edited_cell_is_told_with_the_documents_name(lab):
    lab.run()
    lab.document.write_text(lab.document.read_text().replace("| PENDING |", "| mine |", 1))
    (note,) = lab.run().notes
    assert note.startswith("experiment_summary.md, line ")


# --- the words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "code", "word"),
    [
        (Condition.WAITING, "NotStarted", "PENDING"),
        (Condition.WAITING, "NeedUnmet", "PENDING"),
        (Condition.WAITING, "MaxInFlight", "PENDING"),
        (Condition.WAITING, "BackingOff", "WAITING"),
        (Condition.WAITING, "NotSelected", None),
        (Condition.QUEUED, "JobQueued", "PENDING"),
        (Condition.RUNNING, "JobRunning", "RUNNING"),
        (Condition.VERIFYING, "OutputsMissing", "UNVERIFIED"),
        (Condition.DONE, "Done", "COMPLETED"),
        (Condition.FAILED, "UserError", "FAILED"),
        (Condition.FAILED, "TimeLimit", "TIMEOUT"),
        (Condition.FAILED, "OutOfMemoryHost", "OUT_OF_MEMORY"),
        (Condition.FAILED, "CancelledByPerson", "CANCELLED"),
        (Condition.HELD, "HeldByPerson", "HELD"),
        (Condition.HELD, "CancelledByPerson", "CANCELLED"),
        (Condition.RUNNING, "CancelledByPerson", "RUNNING"),
        (Condition.DRIFTED, "Drifted", "DRIFTED"),
        (Condition.BLOCKED, "NotScaffolded", "WAITING"),
        (Condition.UNKNOWN, "QueueUnknown", None),
    ],
)
def test_each_condition_has_its_word_and_what_nobody_knows_has_none(condition, code, word):
    assert status_word(Action(A, Verb.WAIT, Reason(code, "…"), condition)) == word


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-5, "0s"),
        (1.4, "1s"),
        (59.6, "1m 0s"),
        (483, "8m 3s"),
        (7450, "2h 4m 10s"),
        (3600, "1h 0s"),
        (90061, "25h 1m 1s"),
    ],
)
def test_a_duration_is_told_as_readers_of_these_documents_know_it(seconds, text):
    assert elapsed(seconds) == text


# --- the tables --------------------------------------------------------------------------------------


def test_a_row_tells_of_its_job_from_the_queue_to_its_end(lab):
    lab.run()
    job = preview(lab.scene).plan.of(A).job
    assert row(lab, "a") == ["a", "PENDING", job, "-", "-", "-"]
    began = lab.now
    lab.cluster.jobs[job] = replace(lab.cluster.jobs[job], state="RUNNING", phase=Phase.RUNNING, started=began)
    lab.run()
    assert row(lab, "a") == ["a", "RUNNING", job, local(began), "-", "-"]
    lab.now += 3600
    lab.finish(A)
    lab.run()
    assert row(lab, "a") == ["a", "COMPLETED", job, local(began), local(began + 3660), "1h 1m 0s"]
    assert row(lab, "a", "Evaluation Status")[:4] == ["a", "cap", "0", "PENDING"]
    assert row(lab, "base", "Evaluation Status")[:4] == ["base", "cap", "-", "PENDING"]


def test_a_failed_row_tells_when_and_why_and_one_that_is_looked_at_again_that_it_is(lab):
    lab.run()
    job = preview(lab.scene).plan.of(A).job
    lab.cluster.jobs[job] = replace(lab.cluster.jobs[job], started=lab.now - 5)
    lab.finish(A, None, "TIMEOUT")
    failed_at = lab.now
    lab.run()
    assert row(lab, "a") == ["a", "UNVERIFIED", job, local(failed_at - 5), "-", "OutputsMissing"]
    lab.run()
    assert row(lab, "a") == ["a", "TIMEOUT", job, local(failed_at - 5), local(failed_at), "TimeLimit"]


def test_what_waits_for_its_turn_has_no_note_and_what_waits_for_something_else_has(lab):
    lab.policy = replace(lab.policy, max_in_flight=2)
    lab.run()
    assert row(lab, "a", "Evaluation Status") == ["a", "cap", "0", "PENDING", "-", "-", "-"]
    assert [row(lab, run)[1::4] for run in "ab"] == [["PENDING", "-"]] * 2
    lab.policy = replace(lab.policy, max_in_flight=None, backoff=9000)
    lab.finish("b/finetune" if preview(lab.scene).plan.of(B).job else A, None, "NODE_FAIL")
    lab.run()
    lab.run()
    failed = "b" if "WAITING" in row(lab, "b") else "a"
    assert row(lab, failed)[1::4] == ["WAITING", "BackingOff"]


def test_work_from_before_this_tool_has_no_times(lab):
    out = lab.directory / "a" / "out" / "finetune"
    out.mkdir(parents=True)
    (out / "result").write_text("whole")
    lab.run()
    assert row(lab, "a") == ["a", "COMPLETED", "-", "-", "-", "-"]


def test_the_edits_that_change_the_science_stay_beside_the_result_and_going_on_is_none(lab):
    lab.run()
    ledger = Ledger(lab.directory.resolve(), lambda: lab.now)
    config = lab.directory.resolve() / "a" / "finetune.yaml"
    for key, before, after in (("batch_size", "4", "2"), ("resume_from_checkpoint", "False", "True")):
        ledger.append("edited", step=A, path=str(config), key=key, before=before, after=after)

    class Resuming(StandInTool):
        def read(self, run, disk):
            reading = super().read(run, disk)
            going_on = Edit(config, "resume_from_checkpoint", "False", "True")
            return replace(reading, steps=tuple(replace(step, resume=going_on) for step in reading.steps))

    start(lab, A)
    run_pass(replace(lab.scene, tools={**lab.scene.tools, "trainer": Resuming(Stage.FINETUNE)}))
    assert row(lab, "a")[5] == "batch_size 4 → 2"
    lab.now += 100
    lab.run()
    assert row(lab, "a")[5] == "batch_size 4 → 2; resume_from_checkpoint False → True"


def test_the_times_of_a_job_stay_when_the_queue_has_forgotten_it(lab):
    lab.run()
    job = preview(lab.scene).plan.of(A).job
    lab.cluster.jobs[job] = replace(lab.cluster.jobs[job], started=lab.now - 5)
    lab.finish(A, None, "TIMEOUT")
    failed_at = lab.now
    lab.run()
    del lab.cluster.jobs[job]
    lab.run()
    assert row(lab, "a") == ["a", "TIMEOUT", job, local(failed_at - 5), local(failed_at), "TimeLimit"]


def test_a_document_larger_than_anyone_writes_is_left_alone_and_that_is_told(lab, monkeypatch):
    monkeypatch.setattr("reconciler.record.LARGEST", len(DOCUMENT.encode()) - 1)
    notes = lab.run().notes
    assert lab.document.read_text() == DOCUMENT
    assert any("larger than" in note for note in notes)
    monkeypatch.setattr("reconciler.record.LARGEST", len(DOCUMENT.encode()))
    lab.run()
    assert "PENDING" in lab.document.read_text()


def test_a_row_whose_step_nobody_knows_of_stays_as_it_is(lab):
    lab.run()
    before = lab.document.read_bytes()
    job = preview(lab.scene).plan.of(A).job
    del lab.cluster.jobs[job]
    lab.run()
    assert lab.conditions()[A] is Condition.UNKNOWN
    assert lab.document.read_bytes() == before


def test_the_job_in_a_row_is_the_steps_own_and_not_a_later_one_with_its_id(lab):
    lab.run()
    job = preview(lab.scene).plan.of(A).job
    lab.cluster.jobs[job] = replace(lab.cluster.jobs[job], state="RUNNING", phase=Phase.RUNNING, started=lab.now)
    stranger = replace(lab.cluster.jobs[job], name="somebody-elses", started=5.0)

    class Both(MemoryCluster):
        def queue(self):
            return (*super().queue(), stranger)

    began = lab.now
    lab.cluster = Both(lab.cluster.jobs)
    lab.run()
    assert row(lab, "a")[3] == local(began)


def test_a_document_that_is_to_be_left_alone_is(lab):
    lab.policy = replace(lab.policy, document="none")
    lab.run()
    assert lab.document.read_text() == DOCUMENT
    assert "SUBMIT_JOB" in log(lab)


def test_a_document_that_changes_in_the_middle_of_a_pass_is_left_to_the_next(lab):
    class Editing(MemoryCluster):
        def submit(self, job):
            lab.document.write_text(DOCUMENT + "\nA last word.\n")
            return super().submit(job)

    lab.cluster = Editing()
    lab.run()
    lab.run()
    text = lab.document.read_text()
    assert text.startswith(DOCUMENT + "\nA last word.\n")
    assert text.count("PENDING") == 5


# --- the tools' logs ---------------------------------------------------------------------------------


def test_the_logs_tell_of_each_submission_each_change_and_the_end_once(lab):
    lab.run()
    at = local(lab.now)
    job = preview(lab.scene).plan.of(A).job
    assert f"[{at}] SUBMIT_JOB: {A}\nDetails: sbatch finetune.slurm\nJob ID: {job}\nResult: success\n\n" in log(lab)
    assert log(lab).count("SUBMIT_JOB") == 2
    assert log(lab, "evaluator").count("SUBMIT_EVAL") == 1
    start(lab, A)
    lab.run()
    changed = f"[{local(lab.now)}] STATE_CHANGE: {A}\nDetails: PENDING -> RUNNING\nJob ID: {job}\nResult: success\n\n"
    assert changed in log(lab)
    assert "STATE_CHANGE" not in log(lab, "evaluator")
    before = log(lab)
    lab.run()
    assert log(lab) == before
    lab.finish(A)
    lab.finish(B)
    lab.run()
    assert log(lab).count("ALL_COMPLETE: two runs\nDetails: all 2 steps are verified\nResult: success\n\n") == 1
    assert "ALL_COMPLETE" not in log(lab, "evaluator")
    lab.run()
    assert log(lab).count("ALL_COMPLETE") == 1


def test_a_change_of_a_step_without_a_job_has_no_job_in_the_log(lab):
    out = lab.directory / "a" / "out" / "finetune"
    out.mkdir(parents=True)
    (out / "result").write_text("half")
    lab.run()
    (out / "result").write_text("whole")
    os.utime(out / "result", (lab.now - 5000, lab.now - 5000))
    lab.run()
    assert f"STATE_CHANGE: {A}\nDetails: HELD -> COMPLETED\nResult: success\n" in log(lab)


def test_a_submission_that_failed_is_none_in_the_log(lab):
    lab.cluster.fails_with = [SubmissionRefused("Invalid account")]
    lab.run()
    submitted = log(lab) + log(lab, "evaluator")
    assert submitted.count("SUBMIT_") == 2


def test_a_log_that_cannot_be_written_is_told_and_the_tables_are_written_all_the_same(lab):
    (lab.directory / "run-trainer.log").mkdir()
    notes = lab.run().notes
    assert any("logs were not written" in note and "run-trainer.log" in note for note in notes)
    assert "PENDING" in lab.document.read_text()


def test_a_document_that_may_not_be_written_is_named_once(lab, monkeypatch):
    def refused(target, content, *, expected):
        raise TemporaryError(f"{target}: cannot be written: Permission denied")

    monkeypatch.setattr("reconciler.record.replace_file", refused)
    (note,) = lab.run().notes
    assert note == f"{lab.document.resolve()}: the status tables were not written: cannot be written: Permission denied"


# --- what is news ------------------------------------------------------------------------------------


def test_a_note_is_news_once_and_so_is_its_end_none(lab):
    lab.run()
    lab.document.chmod(0o444)
    lab.finish(A, None, "FAILED")
    lab.run()
    lab.run()
    assert [(bool((seen := lab.run()).notes), seen.is_news) for _ in range(2)] == [(True, False)] * 2
    lab.document.chmod(0o644)
    over = lab.run()
    assert (over.notes, over.is_news) == ((), False)
    assert written(lab, "heard")[-1]["words"] == ""


def test_a_pass_that_submitted_something_is_news_though_the_tables_read_as_before(lab):
    lab.policy = replace(lab.policy, max_in_flight=1)
    lab.run()
    lab.policy = replace(lab.policy, max_in_flight=2)
    before = lab.document.read_text().count("PENDING")
    assert lab.run().is_news
    assert len(lab.cluster.submissions) == 2
    assert lab.document.read_text().count("PENDING") == before
    assert not lab.run().is_news


def test_a_warning_is_news_once_and_another_one_again(lab):
    class Warning(StandInTool):
        text = "`--array` is many jobs"

        def read(self, run, disk):
            found = Problem(run.document, 3, self.text, run.name, warning=True)
            return replace(super().read(run, disk), problems=(found,))

    tool = Warning(Stage.FINETUNE)
    scene = replace(lab.scene, tools={**lab.scene.tools, "trainer": tool})
    assert [run_pass(scene).is_news for _ in range(2)] == [True, False]
    tool.text = "`--requeue` is not kept"
    assert [run_pass(scene).is_news for _ in range(2)] == [True, False]


def test_how_steps_stand_is_written_down_where_it_changed(lab):
    lab.run()
    assert set(written(lab, "stands")[0]["states"].values()) == {"PENDING"}
    lab.run()
    assert len(written(lab, "stands")) == 1
    start(lab, A)
    lab.run()
    assert [e["states"] for e in written(lab, "stands")[1:]] == [{A: "RUNNING"}]


# --- a pass ------------------------------------------------------------------------------------------


def test_the_first_pass_writes_down_whose_experiment_this_is_and_where_outputs_go(lab):
    lab.environment = {"LOGNAME": "u", "LMOD_CMD": "/lmod"}
    lab.run()
    lab.run()
    here = str(lab.directory.resolve())
    assert written(lab, "opened") == [
        {
            "event": "opened", "cluster": "memory:test", "path": here, "user": "u",
            "environment": {"module": True, "conda": False, "HOME": False, "USER": True},
        }
    ]  # fmt: skip
    assert [e["path"] for e in written(lab, "root")] == [f"{here}/{run}" for run in ("a", "b", "base")]


@pytest.mark.parametrize(
    ("variable", "fact"),
    [
        ("MODULESHOME", "module"),
        ("LMOD_CMD", "module"),
        ("BASH_FUNC_module%%", "module"),
        ("CONDA_EXE", "conda"),
        ("MAMBA_EXE", "conda"),
        ("HOME", "HOME"),
        ("USER", "USER"),
        ("LOGNAME", "USER"),
    ],
)
def test_an_environment_without_what_the_first_pass_had_submits_nothing_and_says_what_is_missing(lab, variable, fact):
    lab.policy = replace(lab.policy, max_in_flight=1)
    lab.environment = {variable: "x"}
    lab.run()
    assert len(lab.cluster.submissions) == 1
    lab.policy = replace(lab.policy, max_in_flight=None)
    lab.environment = {"ANOTHER": "x"}
    lab.run()
    assert len(lab.cluster.submissions) == 1
    gate = [a.reason for a in preview(lab.scene).actions if a.reason.code == "EnvironmentChanged"]
    assert gate
    assert f"lacks {fact}," in gate[0].message
    lab.environment = {variable: "y", "HOME": "/h", "CONDA_EXE": "x", "MODULESHOME": "x", "USER": "u"}
    lab.run()
    assert len(lab.cluster.submissions) == 3


def test_another_cluster_is_refused_until_a_person_says_so_but_not_where_all_is_done(lab):
    class Elsewhere(MemoryCluster):
        def identity(self):
            return "slurm:other"

    lab.run()
    here, lab.cluster = lab.cluster, Elsewhere()
    with pytest.raises(UsageError, match=r"memory:test.*slurm:other.*--cluster"):
        lab.run()
    assert lab.cluster.submissions == []
    lab.cluster = here
    for _ in range(2):
        for action in preview(lab.scene).actions:
            if action.condition is Condition.QUEUED:
                lab.finish(action.step)
        lab.run()
    lab.cluster = Elsewhere()
    assert lab.run().converged


def test_an_empty_queue_is_doubted_before_anything_is_submitted(lab):
    lab.run()
    hidden = dict(lab.cluster.jobs)

    asked = []

    class Empty(MemoryCluster):
        def queue(self):
            return ()

        def accounting(self, doubt):
            asked.append(doubt)
            return tuple(replace(job, source="sacct") for job in hidden.values())

    (lab.directory / ".reconcile" / "ledger.jsonl").unlink()
    lab.cluster = Empty()
    lab.run()
    assert lab.cluster.submissions == []
    assert [doubt.since for doubt in asked] == [lab.now - 3600]


def test_a_selection_limits_what_is_shown_and_not_what_is_known(lab):
    seen = run_pass(replace(lab.scene, select="a/*"))
    assert [o.action.step for o in seen.shown] == [A, EVAL]
    assert len(seen.outcomes) == 5
    assert not seen.converged
    shown = preview(replace(lab.scene, select="b/finetune"))
    assert [a.step for a in shown.actions] == [B]
    assert shown.outcomes == ()
    assert [o.result for o in shown.shown] == [""]


def test_a_selection_holds_also_where_the_queue_is_not_empty(lab):
    run_pass(replace(lab.scene, select="a/*"))
    run_pass(replace(lab.scene, select="base/*"))
    assert [job.script.name for job in lab.cluster.submissions] == ["finetune.slurm", "cap_base.slurm"]


def test_a_pass_tells_which_step_it_looks_at_and_what_it_submitted(lab):
    ticks, said = [], []
    run_pass(replace(lab.scene, tick=ticks.append, say=said.append))
    assert ticks == [A, EVAL, B, "b/eval/cap_epoch0", BASE]
    assert [line.split(":")[0] for line in said] == [BASE, A, B]


def test_a_deep_pass_looks_deeply(lab):
    looked = []

    class Deep(StandInTool):
        def check(self, step, disk, deep=False):
            looked.append(deep)
            return super().check(step, disk, deep)

    scene = lab.scene
    tools = {name: Deep(tool.stage) for name, tool in scene.tools.items()}
    preview(replace(scene, tools=tools, deep=True))
    assert set(looked) == {True}
    looked.clear()
    preview(replace(scene, tools=tools))
    assert set(looked) == {False}


def test_jobs_are_requeued_and_staggered_as_the_settings_say(lab):
    lab.policy = replace(lab.policy, requeue=True, stagger=7)
    lab.run()
    assert all(job.requeue for job in lab.cluster.submissions)
    assert [job.begin_in for job in lab.cluster.submissions] == [0, 7, 14]


@pytest.mark.parametrize(
    ("condition", "found", "told"),
    [
        (Condition.UNKNOWN, outputs(OutputState.UNKNOWN), "Seen"),
        (Condition.RUNNING, outputs(OutputState.UNKNOWN), ""),
        (Condition.UNKNOWN, outputs(OutputState.ABSENT), ""),
        (Condition.UNKNOWN, None, ""),
    ],
)
def test_a_step_is_out_of_sight_where_it_is_unknown_for_its_outputs(condition, found, told):
    step = finetune()
    action = replace(decide(step), condition=condition)
    assert _out_of_sight(step, action, Observed((), None, {} if found is None else {step.key: found})) == told
