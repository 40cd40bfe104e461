"""Whole passes on a real directory, with a cluster in memory: what the world looks like afterwards."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from reconciler import files
from reconciler.cli.commands import apply_exit_code, diff_exit_code
from reconciler.disk import RealDisk
from reconciler.errors import (
    AnotherPass,
    ClusterUnreachable,
    DiskUnreadable,
    InvalidExperiment,
    LedgerDamaged,
    LimitReached,
    NotSubmitted,
    Problem,
    SubmissionRefused,
    SubmissionUncertain,
    UsageError,
)
from reconciler.freeing import free
from reconciler.handover import accept_identity
from reconciler.ledger import Ledger
from reconciler.loop import Scene, go_on, preview, run_pass
from reconciler.model import Condition, Job, Outputs, OutputState, Phase, Policy, Reading, Reason, Stage, Unknown, Verb
from reconciler.plan import make_plan
from reconciler.render import Paint, applied_text, stand
from reconciler.words import Order, carry_out, release_experiment
from worlds import MemoryCluster, StandInTool

DOCUMENT = """# two runs

## Tools

- **Model Preparation:** trainer
- **Evaluation:** evaluator

## All Runs

| Run Name | Type |
|----------|------|
| a | Fine-tuned |
| b | Fine-tuned |
| base | Control |

## Evaluation Plan

| Run Name | cap |
|----------|-----|
| a | ✓ epoch 0 |
| b | ✓ epoch 0 |
| base | ✓ |
"""


@dataclass
class Lab:
    """One experiment, its cluster, and a clock that tests move."""

    directory: Path
    cluster: MemoryCluster = field(default_factory=MemoryCluster)
    now: float = 2_000_000_000.0
    environment: dict[str, str] = field(default_factory=lambda: {"HOME": "/h", "USER": "u", "CONDA_EXE": "/conda"})
    user: str = "u"
    policy: Policy = field(default_factory=lambda: Policy(settle=10, stagger=0))

    @property
    def document(self) -> Path:
        return self.directory / "experiment_summary.md"

    @property
    def scene(self) -> Scene:
        tools = {tool.name: tool for tool in (StandInTool(Stage.FINETUNE), StandInTool(Stage.EVALUATION))}
        return Scene(self.directory, self.policy, self.cluster, RealDisk(), tools, lambda: self.now, self.user, self.environment)

    def run(self, seconds: float = 60):
        self.now += seconds
        return run_pass(self.scene)

    def conditions(self) -> dict[str, Condition]:
        return {action.step: action.condition for action in preview(self.scene).actions}

    def finish(self, key: str, content: str | None = "whole", state: str = "COMPLETED") -> None:
        """The step's job ends, having written ``content`` (None: nothing)."""
        step = preview(self.scene).desired.step(key)
        if content is not None:
            step.output_dir.mkdir(parents=True, exist_ok=True)
            (step.output_dir / "result").write_text(content)
            os.utime(step.output_dir / "result", (self.now, self.now))
        self.cluster.finish(preview(self.scene).plan.of(key).job, state, self.now)

    def tree(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.directory)): p.read_bytes() for p in sorted(self.directory.rglob("*")) if p.is_file()}


@pytest.fixture
def lab(tmp_path):
    directory = tmp_path / "exp"
    for run, script in (("a", "cap_epoch0"), ("b", "cap_epoch0"), ("base", "cap_base")):
        (directory / run / "eval").mkdir(parents=True)
        (directory / run / "eval" / f"{script}.slurm").write_text("#!/bin/bash\n#SBATCH --job-name=eval\necho eval\n")
        if run != "base":
            (directory / run / "finetune.slurm").write_text("#!/bin/bash\n#SBATCH --output=logs/o-%j\necho train\n")
    (directory / "experiment_summary.md").write_text(DOCUMENT)
    return Lab(directory)


def test_an_experiment_converges_with_one_job_a_step_and_a_filled_in_document(lab):
    lab.run()
    assert len(lab.cluster.submissions) == 3
    lab.run()
    assert len(lab.cluster.submissions) == 3
    for key in ("a/finetune", "b/finetune", "base/eval/cap_base"):
        lab.finish(key)
    lab.run()
    assert len(lab.cluster.submissions) == 5
    for key in ("a/eval/cap_epoch0", "b/eval/cap_epoch0"):
        lab.finish(key)
    assert lab.run().converged
    assert len(lab.cluster.submissions) == 5
    assert lab.document.read_text().startswith(DOCUMENT)
    assert lab.document.read_text().count("COMPLETED") == 5
    before = lab.tree()
    assert lab.run().converged
    assert lab.tree() == before


class HalfBlind(StandInTool):
    """An evaluator that cannot look into the run ``b``, and so does not know which evaluations it has."""

    def read(self, run, disk):
        if run.name == "b":
            return Reading(problems=(Problem(run.document, run.line, "cannot be read", run.name),))
        return super().read(run, disk)


def test_what_nobody_can_see_is_never_all_done(lab):
    lab.run()
    for key in ("a/finetune", "b/finetune", "base/eval/cap_base"):
        lab.finish(key)
    lab.run()
    lab.finish("a/eval/cap_epoch0")
    tools = {tool.name: tool for tool in (StandInTool(Stage.FINETUNE), HalfBlind(Stage.EVALUATION))}
    half_blind = replace(lab.scene, tools=tools)
    for seen in (run_pass(half_blind), preview(half_blind, always_ask=True)):
        assert {action.condition for action in seen.actions} == {Condition.DONE}
        assert not seen.converged
        assert apply_exit_code(seen) == 4
        assert stand(seen) == "steps unknown of b, 4 of 4 done"
    assert diff_exit_code(seen) == 4
    assert "ALL_COMPLETE" not in (lab.directory / "run-evaluator.log").read_text()
    with pytest.raises(UsageError, match="not all evaluations of b are known"):
        free(half_blind, ("b/finetune",), "", lambda prospect: True)
    assert len([job for job in lab.cluster.jobs.values() if job.is_live]) == 1
    lab.finish("b/eval/cap_epoch0")
    assert lab.run().converged
    assert "ALL_COMPLETE" in (lab.directory / "run-evaluator.log").read_text()


def test_a_preview_writes_nothing_at_all(lab):
    before = lab.tree()
    preview(lab.scene)
    assert lab.tree() == before
    assert not (lab.directory / ".reconcile").exists()


def test_a_pass_is_news_where_a_step_stands_otherwise_than_before(lab):
    assert lab.run().is_news
    assert not lab.run().is_news
    lab.finish("a/finetune", None, "FAILED")
    assert [lab.run().is_news for _ in range(4)] == [True, True, False, False]
    assert lab.conditions()["a/finetune"] is Condition.FAILED


def test_a_cluster_that_does_not_even_say_which_it_is_leaves_what_is_known_to_be_seen_and_is_news_once(lab):
    class Gone(MemoryCluster):
        def identity(self):
            raise ClusterUnreachable("no controller")

        def queue(self):
            raise AssertionError("the queue was asked, of nobody knows which cluster")

    lab.run()
    there, lab.cluster = lab.cluster, Gone()
    shown = preview(lab.scene)
    why = f"no controller (this experiment runs on {there.identity()})"
    assert (shown.observed.queue, shown.plan.of("a/finetune").job) == (Unknown(why), "2")
    assert [lab.run().is_news for _ in range(3)] == [True, False, False]
    before = lab.tree()
    assert {o.action.condition for o in lab.run().outcomes} == {Condition.UNKNOWN}
    assert lab.tree() == before
    lab.cluster = there
    lab.run()
    assert len(there.submissions) == 3


def test_outputs_that_go_out_of_sight_are_news_once_and_so_is_their_return_none(lab, monkeypatch):
    lab.run()
    with monkeypatch.context() as disk:
        disk.setattr(StandInTool, "check", lambda self, step, disk, deep=False: Outputs(OutputState.UNKNOWN, Reason("Gone", "?")))
        assert [lab.run().is_news for _ in range(3)] == [True, False, False]
        assert Condition.UNKNOWN in lab.conditions().values()
    assert [lab.run().is_news for _ in range(2)] == [False, False]


def test_what_could_not_be_done_is_news_once(lab, monkeypatch):
    def full(directory, *, parents=False):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    lab.run()
    lab.finish("a/finetune", None, "NODE_FAIL")
    lab.run()
    with monkeypatch.context() as disk:
        disk.setattr("reconciler.act.make_directory", full)
        assert [lab.run(3600).is_news for _ in range(3)] == [True, False, False]
    assert [o.action.reason.code for o in lab.run().outcomes if o.action.step == "a/finetune"] == ["Submitted"]


def test_a_finished_experiment_asks_the_cluster_nothing(lab):
    lab.run()
    for key in ("a/finetune", "b/finetune", "base/eval/cap_base"):
        lab.finish(key)
    lab.run()
    for key in ("a/eval/cap_epoch0", "b/eval/cap_epoch0"):
        lab.finish(key)
    lab.run()

    class Silent(MemoryCluster):
        def queue(self):
            raise AssertionError("the queue was asked")

        def identity(self):
            raise AssertionError("the cluster was asked")

    lab.cluster = Silent()
    assert lab.run().converged


def test_steps_that_are_not_selected_are_left_alone(lab):
    run_pass(replace(lab.scene, select="a/*"))
    assert [job.script.parent.name for job in lab.cluster.submissions] == ["a"]
    lab.run()
    assert len(lab.cluster.submissions) == 3


def test_a_preview_tells_what_the_pass_then_does(lab):
    shown = {a.step: a.verb for a in preview(lab.scene).actions}
    assert {a.step: a.verb for a in lab.run().plan.actions} == shown


def test_a_pass_killed_after_acceptance_is_followed_by_adoption_not_by_a_second_job(lab):
    lab.run()
    lab.cluster = MemoryCluster(loses_answer=True)
    shutil.rmtree(lab.directory / ".reconcile")
    with pytest.raises(KeyboardInterrupt):
        lab.run()
    lab.run()
    lab.run()
    names = [job.name for job in lab.cluster.submissions]
    assert len(names) == len(set(names)) == 3
    assert list(lab.conditions().values()).count(Condition.QUEUED) == 3


def test_a_finished_run_that_slurm_starts_again_is_what_its_job_leaves_then(lab):
    lab.run()
    lab.finish("a/finetune")
    lab.run()
    lab.finish("a/eval/cap_epoch0")
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.DONE
    first = next(job for job in lab.cluster.jobs.values() if job.workdir.endswith("/a"))
    lab.now += 1000
    lab.cluster.jobs[first.id] = replace(first, state="RUNNING", phase=Phase.RUNNING, started=lab.now, ended=None)
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.RUNNING
    lab.now += 1000
    (lab.directory / "a/out/finetune/result").write_text("half")
    os.utime(lab.directory / "a/out/finetune/result", (lab.now, lab.now))
    lab.cluster.jobs[first.id] = replace(lab.cluster.jobs[first.id], state="NODE_FAIL", phase=Phase.ENDED, ended=lab.now)
    before = len(lab.cluster.submissions)
    for _ in range(5):
        lab.run(100)
    assert [job.name for job in lab.cluster.submissions[before:]] == [first.name.replace("-1", "-2")]
    lab.finish("a/finetune")
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.DONE


def test_passes_go_on_over_what_mends_itself_until_nothing_is_left_to_do(lab):
    keys = iter([None, "a/finetune", "b/finetune", "base/eval/cap_base", "a/eval/cap_epoch0", "b/eval/cap_epoch0"])
    seconds, complaints, reported = [], [], []

    def sleep(poll):
        seconds.append(poll)
        lab.now += poll
        key = next(keys, "")
        lab.document.write_text("# half-sa" if key is None else DOCUMENT)
        if key:
            lab.finish(key)

    seen = go_on(lambda: lab.scene, lab.policy.poll, run_pass(lab.scene), reported.append, complaints.append, sleep)
    assert seen.converged
    assert set(seconds) == {lab.policy.poll}
    assert (len(reported), len(complaints)) == (len(seconds) - 1, 1)
    assert len(lab.cluster.submissions) == 5


def test_passes_go_on_by_the_settings_as_they_are_and_wait_out_a_fault_of_theirs(lab):
    keys, seconds, complaints = iter(["a/finetune", None, "b/finetune"]), [], []

    def sleep(poll):
        seconds.append(poll)
        lab.now += poll
        lab.policy = replace(lab.policy, poll=len(seconds) * 10.0, max_in_flight=1)
        if key := next(keys, None):
            lab.finish(key)
        elif len(seconds) > 2:
            raise StopIteration

    def look_around():
        if len(seconds) == 2:
            raise InvalidExperiment(Problem(lab.directory / "reconcile.yaml", 1, "no settings"))
        return lab.scene

    with pytest.raises(StopIteration):
        go_on(look_around, 5.0, run_pass(lab.scene), lambda seen: None, complaints.append, sleep)
    assert seconds == [5.0, 10.0, 10.0, 30.0]
    assert complaints == [f"{lab.directory / 'reconcile.yaml'}:1: no settings"]
    assert len(lab.cluster.submissions) == 3  # base's job is in the queue: no evaluation beside it


def test_what_was_selected_is_not_waited_for_behind_what_was_not(lab):
    scene = replace(lab.scene, select="*/eval/*")

    def sleep(poll):
        lab.now += poll
        lab.finish("base/eval/cap_base")

    seen = go_on(lambda: scene, lab.policy.poll, run_pass(scene), lambda seen: None, print, sleep)
    assert [(a.condition, a.reason.message) for a in seen.actions if a.condition is not Condition.DONE] == [
        (Condition.WAITING, "waits for a/finetune, which was not selected"),
        (Condition.WAITING, "waits for b/finetune, which was not selected"),
    ]
    assert diff_exit_code(seen) == 4
    assert "a/eval/cap_epoch0  waits for a/finetune, which was not selected" in applied_text(seen, Paint())
    lab.run()  # whoever selects all has them running
    assert diff_exit_code(preview(scene)) == 1
    for key in ("a/finetune", "b/finetune"):
        lab.finish(key)
    lab.run()
    for key in ("a/eval/cap_epoch0", "b/eval/cap_epoch0"):
        lab.finish(key)
    lab.run()
    assert diff_exit_code(preview(scene)) == 0


def test_a_half_saved_document_that_lacks_what_was_selected_is_waited_out(lab):
    half = "".join(line for line in DOCUMENT.splitlines(keepends=True) if not line.startswith("| b |"))
    texts, complaints = iter([half, DOCUMENT]), []

    def sleep(poll):
        lab.now += poll
        lab.document.write_text(text := next(texts, DOCUMENT))
        if text == DOCUMENT:
            lab.finish("b/finetune")

    scene = replace(lab.scene, select="b/finetune")
    seen = go_on(lambda: scene, lab.policy.poll, run_pass(scene), lambda seen: None, complaints.append, sleep)
    assert [action.condition for action in seen.actions] == [Condition.DONE]
    assert complaints == [
        "no step matches 'b/finetune' (did you mean `a/finetune`?); the steps are a/finetune, a/eval/cap_epoch0, base/eval/cap_base"
    ]
    with pytest.raises(UsageError, match="no step matches 'c'"):
        run_pass(replace(lab.scene, select="c"))


def test_a_file_server_that_hangs_during_the_look_makes_the_look_old(lab):
    class Hanging(RealDisk):
        def read(self, path, offset=0, length=None):
            if path.name == "result" and lab.now < begun + 7200:
                lab.now += 7200
                lab.cluster.jobs["900"] = Job("900", "finetune", "RUNNING", Phase.RUNNING, str(lab.directory / "a"))
            return super().read(path, offset, length)

    begun = lab.now
    run_pass(replace(lab.scene, disk=Hanging()))
    assert (lab.cluster.submissions, list(lab.cluster.jobs)) == ([], ["900"])
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.RUNNING
    assert [job.script.parent.name for job in lab.cluster.submissions].count("a") == 0


def test_losing_the_whole_ledger_submits_nothing_beside_live_jobs(lab):
    lab.run()
    shutil.rmtree(lab.directory / ".reconcile")
    lab.run()
    lab.run()
    assert len(lab.cluster.submissions) == 3


def test_an_unconfirmed_submission_is_repeated_held_after_grace_and_then_freed(lab):
    lab.cluster.fails_with = [SubmissionUncertain("timed out")]
    lab.run()
    assert not lab.cluster.submissions
    lab.run(lab.policy.grace / 2)
    first = lab.conditions()
    assert list(first.values()).count(Condition.UNKNOWN) == 1
    lab.run(lab.policy.grace)
    assert sum(job.held for job in lab.cluster.submissions) == 1
    lab.run()
    assert not any(job.held for job in lab.cluster.jobs.values())
    assert len(lab.cluster.submissions) == 3


def test_a_cluster_that_cannot_be_asked_stops_everything_and_changes_no_step(lab):
    lab.run()
    before = lab.document.read_bytes()
    lab.cluster.is_down = True
    seen = lab.run()
    assert set(lab.conditions().values()) == {Condition.UNKNOWN}
    assert all(not outcome.action.changes_something for outcome in seen.outcomes)
    assert lab.document.read_bytes() == before
    assert len(lab.cluster.submissions) == 3


def test_a_refusal_stops_only_its_own_step_and_is_held_after_three(lab):
    lab.cluster.fails_with = [SubmissionRefused("Invalid account")]
    lab.run()
    assert len(lab.cluster.submissions) == 2
    lab.cluster.fails_with = [SubmissionRefused("Invalid account")]
    lab.run(4000)
    lab.cluster.fails_with = [SubmissionRefused("Invalid account")]
    lab.run(8000)
    lab.run(100_000)
    assert list(lab.conditions().values()).count(Condition.HELD) == 1
    assert len(lab.cluster.submissions) == 2


def test_a_limit_of_the_site_is_waited_out(lab):
    lab.cluster.fails_with = [LimitReached("QOSMaxSubmitJobPerUserLimit")]
    lab.run()
    assert not lab.cluster.submissions
    lab.run()
    assert len(lab.cluster.submissions) == 3


def test_a_shortage_of_this_machine_is_waited_out_and_uses_nothing_up(lab):
    lab.cluster.fails_with = [NotSubmitted("sbatch could not be started: Resource temporarily unavailable")] * 5
    for _ in range(5):
        seen = lab.run()
        assert {o.action.reason.code for o in seen.outcomes if o.result == "failed"} == {"MachineShort"}
    assert not lab.cluster.fails_with
    assert not lab.cluster.submissions
    assert set(lab.conditions().values()) == {Condition.WAITING}
    lab.run()
    assert len(lab.cluster.submissions) == 3


def test_a_failed_run_stays_failed_and_the_others_go_on(lab):
    lab.run()
    lab.finish("a/finetune", None, "FAILED")
    lab.finish("b/finetune")
    lab.run()
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.FAILED
    assert lab.conditions()["b/finetune"] is Condition.DONE
    assert re.search(r"^\| a \| FAILED +\|", lab.document.read_text(), re.MULTILINE)
    assert len(lab.cluster.submissions) == 4


def test_a_node_failure_is_retried_with_its_torn_outputs_moved_aside(lab):
    lab.run()
    lab.finish("a/finetune", "torn", "NODE_FAIL")
    for _ in range(4):
        lab.run(120)
    out = lab.directory / "a" / "out" / "finetune"
    assert [p.read_text() for p in out.glob("moved-aside-*/result")] == ["torn"]
    assert not (out / "result").exists()
    assert sum(".rc-" in job.name and job.name.endswith("-2") for job in lab.cluster.submissions) == 1


def test_torn_outputs_of_somebody_else_are_left_and_held(lab):
    out = lab.directory / "a" / "out" / "finetune"
    out.mkdir(parents=True)
    (out / "result").write_text("half")
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.HELD
    assert (out / "result").read_text() == "half"


def test_work_done_before_is_recognised_and_never_submitted(lab):
    out = lab.directory / "a" / "out" / "finetune"
    out.mkdir(parents=True)
    (out / "result").write_text("whole")
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.DONE
    assert not any(job.script.parent.name == "a" for job in lab.cluster.submissions)


def test_verified_work_stays_done_when_its_files_are_purged(lab):
    out = lab.directory / "a" / "out" / "finetune"
    out.mkdir(parents=True)
    (out / "result").write_text("whole")
    lab.run()
    shutil.rmtree(out)
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.DONE
    assert not any(job.script.name == "finetune.slurm" and job.script.parent.name == "a" for job in lab.cluster.submissions)


def test_a_second_pass_at_the_same_time_is_turned_away(lab):
    (lab.directory / ".reconcile").mkdir()
    with (lab.directory / ".reconcile" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(AnotherPass):
            lab.run()
    assert not lab.cluster.submissions


def test_a_torn_last_line_of_the_ledger_is_dropped_and_the_work_goes_on(lab):
    lab.run()
    ledger = lab.directory / ".reconcile" / "ledger.jsonl"
    with ledger.open("ab") as file:
        file.write(b'{"at": 1, "event": "subm')
    lab.finish("a/finetune")
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.DONE
    assert all(json.loads(line) for line in ledger.read_text().splitlines())


def test_any_other_damage_of_the_ledger_stops_and_changes_nothing(lab):
    lab.run()
    ledger = lab.directory / ".reconcile" / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join([lines[0], "garbage\n", *lines[1:]]))
    before = lab.tree()
    with pytest.raises(LedgerDamaged, match=r"ledger\.jsonl:2"):
        lab.run()
    assert lab.tree() == before


def test_who_does_as_told_about_a_damaged_ledger_goes_on_at_once_and_nothing_that_is_live_is_submitted_again(lab):
    lab.run()
    lab.cluster.finish(preview(lab.scene).plan.of("a/finetune").job, "FAILED", lab.now)
    for job in lab.cluster.jobs.values():
        lab.cluster.jobs[job.id] = replace(job, submitted=lab.now)
    ours = lab.directory / ".reconcile"
    (ours / "ledger.jsonl").write_text("garbage\n")
    with pytest.raises(LedgerDamaged) as told:
        lab.run()
    for path in [path for path in ours.iterdir() if re.search(rf"{re.escape(str(path))}(:1)?[: ]", str(told.value))]:
        path.rename(path.with_name(f"old-{path.name}"))
    assert sorted(path.name for path in ours.iterdir()) == ["lock", "old-claims", "old-ledger.jsonl"]
    lab.cluster.jobs = {job.id: job for job in lab.cluster.jobs.values() if job.is_live}
    lab.run(3600)
    assert [job.script.parent.name for job in lab.cluster.submissions[3:]] == ["a"]
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.QUEUED
    assert len([job for job in lab.cluster.jobs.values() if job.is_live]) == 3


def test_submissions_are_staggered_by_start_times_across_passes_and_never_by_sleeping(lab):
    lab.policy = replace(lab.policy, stagger=30, max_in_flight=2)
    lab.run()
    assert [job.begin_in for job in lab.cluster.submissions] == [0, 30]
    lab.policy = replace(lab.policy, max_in_flight=None)
    lab.run(10)
    assert [job.begin_in for job in lab.cluster.submissions] == [0, 30, 50]


def test_the_directory_of_a_scripts_output_is_made_before_its_job(lab):
    lab.run()
    assert (lab.directory / "a" / "logs").is_dir()


@pytest.mark.parametrize("inside", ["a-file/o-%j", "a-file/logs/o-%j"])
def test_a_file_where_the_directory_of_a_scripts_output_should_be_makes_no_step_wait_for_ever(lab, inside):
    """The job is submitted and dies of it (0:53), which is told; the directory could be made on no later day either."""
    (lab.directory / "a" / "a-file").write_text("")
    (lab.directory / "a" / "finetune.slurm").write_text(f"#!/bin/bash\n#SBATCH --output={inside}\necho train\n")
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.QUEUED


def test_every_intent_is_on_disk_before_its_submission(lab):
    class Watching(MemoryCluster):
        def submit(self, job):
            names = [e["name"] for e in Ledger(lab.directory.resolve(), lambda: 0.0).events() if e["event"] == "intent"]
            assert job.name in names
            return super().submit(job)

    lab.cluster = Watching()
    lab.run()
    assert len(lab.cluster.submissions) == 3


def test_a_moved_a_copied_and_a_strangers_experiment_are_refused_until_a_person_says_which(lab):
    lab.run()
    moved = lab.directory.with_name("moved")
    shutil.copytree(lab.directory, moved)
    other = replace(lab, directory=moved)
    with pytest.raises(UsageError, match="--moved"):
        other.run()
    accept_identity(other.scene, "copied")
    other.run()
    assert len(lab.cluster.submissions) == 6
    stranger = replace(lab, user="somebody")
    with pytest.raises(UsageError, match="--user"):
        stranger.run()


def test_an_environment_that_lost_something_submits_nothing(lab):
    lab.cluster.fails_with = [LimitReached("later")]
    lab.run()
    lab.environment = {"HOME": "/h", "USER": "u"}
    lab.run()
    assert not lab.cluster.submissions
    assert set(lab.conditions().values()) <= {Condition.HELD, Condition.WAITING}
    accept_identity(lab.scene, "environment")
    lab.run()
    assert len(lab.cluster.submissions) == 3


def test_a_site_that_rewrites_names_gets_one_job_and_no_more(lab):
    class Rewriting(MemoryCluster):
        def queue(self):
            return tuple(replace(job, name=job.name[:5]) for job in super().queue())

    lab.cluster = Rewriting()
    lab.run()
    lab.run()
    assert len(lab.cluster.submissions) == 1


def test_a_queue_that_shows_a_job_only_to_the_next_pass_holds_one_pass_back_and_no_more(lab):
    class Lagging(MemoryCluster):
        def queue(self):
            return self.seen

        seen: tuple = ()

    lab.cluster = Lagging()
    lab.run()
    assert len(lab.cluster.submissions) == 1
    lab.cluster.seen = tuple(lab.cluster.jobs.values())
    lab.run()
    assert len(lab.cluster.submissions) == 3


@pytest.mark.parametrize("edit", ["ask Ana", "CANCELLED"])
def test_a_persons_edit_of_a_cell_is_kept_and_reported(lab, edit):
    lab.run()
    text = lab.document.read_text().replace("| a | PENDING |", f"| a | {edit} |")
    lab.document.write_text(text)
    lab.finish("a/finetune")
    seen = lab.run()
    assert f"| a | {edit} |" in lab.document.read_text()
    assert any(edit in note for note in seen.notes)


def test_cells_are_still_ours_after_the_document_could_not_be_written_for_a_while(lab):
    lab.policy = replace(lab.policy, backoff=1000)
    lab.run()
    lab.document.chmod(0o444)
    lab.finish("a/finetune", None, "NODE_FAIL")
    refused = [note for _ in range(4) for note in lab.run(200).notes]
    lab.document.chmod(0o644)
    assert len(refused) > 2
    assert all("not written" in note for note in refused)
    assert lab.run(1).notes == ()
    assert re.search(r"^\| a \| WAITING +\|", lab.document.read_text(), re.MULTILINE)


def test_a_document_that_could_not_be_written_the_first_time_is_written_by_a_later_pass(lab):
    lab.document.chmod(0o444)
    refused = [note for _ in range(2) for note in lab.run().notes]
    lab.document.chmod(0o644)
    assert refused
    assert lab.run().notes == ()
    assert "| a | " in lab.document.read_text()


def test_cells_are_still_ours_where_the_document_was_replaced_and_its_directory_could_not_be_synced(lab, monkeypatch):
    sync = files._sync_directory

    def refuse(directory):
        if directory == lab.directory:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(directory)

    lab.run()
    lab.finish("a/finetune", None)
    with monkeypatch.context() as patched:
        patched.setattr(files, "_sync_directory", refuse)
        assert any("not written" in note for note in lab.run().notes)
    lab.finish("a/finetune")
    assert lab.run().notes == ()
    assert re.search(r"^\| a \| COMPLETED +\|", lab.document.read_text(), re.MULTILINE)


def test_cells_are_still_ours_after_a_pass_was_killed_between_ledger_and_document(lab):
    lab.run()
    old = lab.document.read_bytes()
    lab.finish("a/finetune")
    lab.run()
    lab.document.write_bytes(old)
    seen = lab.run()
    assert seen.notes == ()
    assert "| a | COMPLETED |" in lab.document.read_text()


def test_a_root_that_was_seen_and_is_gone_makes_its_steps_wait_and_nothing_is_lost(lab):
    lab.run()
    lab.finish("a/finetune", None)
    scene = lab.scene
    gone = lab.directory / "a"
    tool = scene.tools["trainer"]
    observed = preview(scene)
    assert str(gone.resolve()) in observed.memory.roots
    shutil.rmtree(gone / "out", ignore_errors=True)
    tool.root = gone / "not-mounted"
    Ledger(lab.directory.resolve(), lambda: lab.now).append("root", path=str(tool.root))
    for _ in range(3):
        lab.now += 1000
        seen = run_pass(scene)
        assert seen.plan.of("a/finetune").reason.code == "RootGone"
        assert seen.plan.of("a/finetune").condition is Condition.UNKNOWN
    assert len(lab.cluster.submissions) == 3


def test_no_second_pass_begins_while_one_submits(lab):
    class Overlapping(MemoryCluster):
        def submit(self, job):
            with pytest.raises(AnotherPass):
                run_pass(lab.scene)
            return super().submit(job)

    lab.cluster = Overlapping()
    lab.run()
    assert len(lab.cluster.submissions) == 3


def test_the_job_id_of_a_later_attempt_replaces_ours_without_a_complaint(lab):
    lab.run()
    job = preview(lab.scene).plan.of("a/finetune").job
    lab.finish("a/finetune", None, "NODE_FAIL")
    notes = [note for _ in range(4) for note in lab.run(200).notes]
    later = preview(lab.scene).plan.of("a/finetune").job
    assert later != job
    assert re.search(rf"^\| a \| PENDING +\| {later} ", lab.document.read_text(), re.MULTILINE)
    assert notes == []


def test_the_yaml_form_gets_a_status_file_beside_it_and_stays_as_it_is(lab):
    lab.document.unlink()
    text = """experiment: {name: "two", dir: "/nowhere", date: "2026-01-01"}
tools: {preparation: trainer, evaluation: evaluator}
models: {base: [{name: "m", path: "/m"}]}
runs:
  - {name: a, type: fine-tuned, model: m, parameters: {}}
evaluation:
  tasks: [{name: cap, script: "/t.py"}]
  matrix:
    - {run: a, tasks: [cap], epochs: [0]}
"""
    document = lab.directory / "experiment_summary.yaml"
    document.write_text(text)
    lab.run()
    assert document.read_text() == text
    status = lab.directory / "STATUS.md"
    assert "| a | PENDING |" in status.read_text()
    status.write_text("My own notes.\n\n" + status.read_text())
    lab.finish("a/finetune")
    lab.run()
    assert status.read_text().startswith("My own notes.\n\n# two\n")
    assert "| a | COMPLETED |" in status.read_text()
    assert "SUBMIT_JOB: a/finetune" in (lab.directory / "logs" / "run-trainer.log").read_text()


# --- a person's word ------------------------------------------------------------------------------------


def order(lab, verb, *steps, **more):
    return carry_out(lab.scene, Order(verb, steps, **more), lambda prospect: True)


def test_a_cancelled_step_is_not_submitted_again_until_released(lab):
    lab.run()
    order(lab, "cancel", "a/finetune", why="wrong data")
    assert [job.state for job in lab.cluster.jobs.values()].count("CANCELLED") == 1
    for _ in range(3):
        lab.run(1000)
    assert lab.conditions()["a/finetune"] is Condition.HELD
    assert len(lab.cluster.submissions) == 3
    order(lab, "release", "a/finetune")
    lab.run()
    assert len(lab.cluster.submissions) == 4


def test_no_word_is_given_while_the_queue_cannot_be_asked(lab):
    lab.run()
    lab.cluster.is_down = True
    before = lab.tree()
    for verb in ("hold", "cancel", "rerun", "accept", "release"):
        with pytest.raises(ClusterUnreachable, match="nothing was done"):
            order(lab, verb, "a/finetune")
    assert lab.tree() == before


def test_every_job_of_a_cancelled_step_is_cancelled(lab):
    lab.run()
    first = preview(lab.scene).plan.of("a/finetune").job
    second = replace(lab.cluster.jobs[first], id="77")
    lab.cluster.jobs["77"] = second
    order(lab, "cancel", "a/finetune")
    assert {lab.cluster.jobs[job].state for job in (first, "77")} == {"CANCELLED"}


def test_a_cancellation_that_did_not_reach_the_cluster_is_carried_out_by_the_next_pass(lab):
    lab.run()
    job = preview(lab.scene).plan.of("a/finetune").job

    class Deaf(MemoryCluster):
        def cancel(self, job_id):
            raise ClusterUnreachable("scancel: Socket timed out")

    hearing, lab.cluster = lab.cluster, Deaf(lab.cluster.jobs)
    with pytest.raises(ClusterUnreachable):
        order(lab, "cancel", "a/finetune")
    lab.cluster = hearing
    lab.run()
    assert hearing.jobs[job].state == "CANCELLED"
    for _ in range(3):
        lab.run(1000)
    assert lab.conditions()["a/finetune"] is Condition.HELD


def test_rerun_replaces_a_job_that_is_held_in_the_queue(lab):
    lab.run()
    job = preview(lab.scene).plan.of("a/finetune").job
    lab.cluster.hold(job)
    order(lab, "rerun", "a/finetune")
    assert lab.cluster.jobs[job].state == "CANCELLED"
    lab.run()
    later = preview(lab.scene).plan.of("a/finetune")
    assert (later.condition, later.job != job) == (Condition.QUEUED, True)


def test_a_fine_tune_is_not_rerun_under_an_evaluation_in_flight(lab):
    lab.run()
    lab.finish("a/finetune")
    lab.run()
    job = preview(lab.scene).plan.of("a/eval/cap_epoch0").job
    with pytest.raises(UsageError, match="--with-dependents"):
        order(lab, "rerun", "a/finetune")
    assert lab.cluster.jobs[job].state == "PENDING"
    order(lab, "rerun", "a/finetune", with_dependents=True)
    assert lab.cluster.jobs[job].state == "CANCELLED"


def drop_run_a(lab):
    """The document is saved without run ``a``."""
    kept = [line for line in lab.document.read_text().splitlines(keepends=True) if not line.startswith("| a |")]
    lab.document.write_text("".join(kept))


def test_the_job_of_a_run_that_was_dropped_is_shown_and_left_alone_and_its_end_is_remembered(lab):
    lab.run()
    job = start(lab, "a/finetune")
    drop_run_a(lab)
    seen = lab.run()
    assert [(o.job.id, o.step) for o in seen.plan.orphans] == [(job, "a/finetune")]
    assert lab.cluster.jobs[job].state == "RUNNING"
    lab.cluster.finish(job, "COMPLETED", lab.now)
    lab.run()
    assert Ledger(lab.directory.resolve(), lambda: 0.0).memory().of("a/finetune").attempts[0].end is not None
    assert lab.run().plan.orphans == ()


def test_a_renamed_run_is_not_trained_beside_the_job_that_it_left(lab):
    """The new run's finetune.yaml still names the directory where the old one's job writes."""
    lab.run()
    job = start(lab, "a/finetune")
    directory = str(preview(lab.scene).desired.step("a/finetune").output_dir)
    drop_run_a(lab)
    lab.run()
    seen = preview(lab.scene)
    renamed = replace(seen.desired.step("b/finetune"), key="c/finetune", run="c", output_dir=Path(directory))
    desired = replace(seen.desired, steps=(*seen.desired.steps, renamed))
    absent = Outputs(OutputState.ABSENT, Reason("NoOutputs", "nothing"))
    observed = replace(seen.observed, outputs={**seen.observed.outputs, "c/finetune": absent})
    action = make_plan(desired, observed, seen.memory, lab.policy, lab.now).of("c/finetune")
    assert (action.verb, action.reason.code) == (Verb.WAIT, "OutputsInUse")
    assert job in action.reason.message


def test_a_failure_that_the_queue_still_shows_is_not_forgotten_with_the_ledger(lab):
    lab.run()
    lab.finish("a/finetune", None, "FAILED")
    shutil.rmtree(lab.directory / ".reconcile")
    for _ in range(4):
        lab.run()
    assert lab.conditions()["a/finetune"] is Condition.FAILED
    assert len(lab.cluster.submissions) == 3


def test_an_event_that_lacks_something_is_damage_with_its_line(lab):
    lab.run()
    ledger = lab.directory / ".reconcile" / "ledger.jsonl"
    lines = ledger.read_text().splitlines()
    ledger.write_text("\n".join([*lines, '{"at":1,"event":"submitted","step":"a/finetune"}']) + "\n")
    before = ledger.read_bytes()
    with pytest.raises(LedgerDamaged, match=f"ledger.jsonl:{len(lines) + 1}"):
        lab.run()
    assert ledger.read_bytes() == before


def test_a_selection_that_names_no_step_touches_nothing(lab):
    with pytest.raises(UsageError, match="no step matches"):
        run_pass(replace(lab.scene, select="c/*"))
    assert not (lab.directory / ".reconcile").exists()


def test_accept_lets_a_queued_job_stand_under_its_older_resources(lab):
    lab.run()
    Ledger(lab.directory.resolve(), lambda: lab.now).append("placed", step="a/finetune", attempt=1, placement="older")
    assert "other resources" in preview(lab.scene).plan.of("a/finetune").reason.message
    order(lab, "accept", "a/finetune")
    action = preview(lab.scene).plan.of("a/finetune")
    assert (action.condition, "other resources" in action.reason.message) == (Condition.QUEUED, False)


def test_accept_of_several_steps_accepts_none_where_one_refuses(lab):
    for run in ("a", "b"):
        result = lab.directory / run / "out" / "finetune" / "result"
        result.parent.mkdir(parents=True)
        result.write_text("by somebody else")
    lab.run()
    shutil.rmtree(lab.directory / "b" / "out")
    before = lab.tree()
    with pytest.raises(UsageError):
        order(lab, "accept", "a/finetune", "b/finetune")
    assert lab.tree() == before


def test_a_job_held_by_a_person_is_not_released_by_us(lab):
    lab.run()
    lab.cluster.hold("1")
    lab.run()
    assert lab.cluster.jobs["1"].held
    assert Condition.HELD in lab.conditions().values()


def test_accept_makes_a_failed_result_stand(lab):
    lab.run()
    lab.finish("a/finetune", "torn", "FAILED")
    lab.run()
    lab.run()
    order(lab, "accept", "a/finetune")
    assert lab.conditions()["a/finetune"] is Condition.DONE


class Elsewhere(StandInTool):
    """A trainer that writes where the file ``outputs`` of its run says."""

    def _step(self, run, key, script):
        step = super()._step(run, key, script)
        told = run.directory / "outputs"
        out = Path(told.read_text()) if told.is_file() else step.output_dir
        return replace(step, output_dir=out, root=out.parent, job_name="finetune.slurm")


@pytest.mark.parametrize(
    "fate",
    [
        "copied",
        "moved",
        "its directory cannot be looked at",
        "tells no directory",
        "given outputs of its own",
        "not scaffolded",
        "ended",
    ],
)
def test_nothing_is_trained_where_the_job_of_a_copy_or_of_the_same_experiment_before_it_was_moved_may_write(lab, tmp_path, fate):
    (lab.directory / "a" / "outputs").write_text(str(tmp_path / "ck-out-a"))
    trainer = Elsewhere(Stage.FINETUNE)
    there = tmp_path / "there"

    class Blind(RealDisk):
        def stat(self, path):
            if fate.startswith("its") and path == lab.directory / "a":
                raise DiskUnreadable(f"{path}: Stale file handle")
            return super().stat(path)

    def scene(directory):
        tools = {**lab.scene.tools, trainer.name: trainer}
        return replace(lab.scene, experiment=directory, tools=tools, disk=Blind())

    run_pass(scene(lab.directory))
    job = next(job for job in lab.cluster.jobs.values() if job.workdir.endswith("/a"))
    shutil.copytree(lab.directory, there)
    shutil.rmtree(there / ".reconcile")
    if fate == "moved":
        shutil.rmtree(lab.directory)
    elif fate == "tells no directory":
        lab.cluster.jobs[job.id] = replace(job, workdir="")
    elif fate == "not scaffolded":
        (lab.directory / "a" / "finetune.slurm").unlink()
    elif fate == "ended":
        lab.cluster.finish(job.id)
    elif fate.startswith("given"):
        (there / "a" / "outputs").write_text(str(tmp_path / "ck-out-b"))
    run_pass(scene(there))
    action = preview(scene(there)).plan.of("a/finetune")
    is_waited_for = fate in ("copied", "moved", "tells no directory") or fate.startswith("its")
    submitted = [each.script.parent for each in lab.cluster.submissions if each.script.name == "finetune.slurm"]
    assert submitted.count(there / "a") == (0 if is_waited_for else 1)
    assert submitted.count(there / "b") == (0 if fate == "moved" else 1)
    if is_waited_for:
        assert (action.verb, action.reason.code) == (Verb.WAIT, "OutputsInUse")
        told = f"job {job.id} ({job.name}) of another experiment, in {lab.cluster.jobs[job.id].workdir}, may write to {tmp_path / 'ck-out-a'} too"
        assert action.reason.message.startswith(told)


def start(lab, key):
    """The step's queued job begins to run."""
    action = preview(lab.scene).plan.of(key)
    lab.cluster.jobs[action.job] = replace(lab.cluster.jobs[action.job], state="RUNNING", phase=Phase.RUNNING)
    return action.job


def moved_aside(lab, run="a"):
    return [p.read_text() for p in (lab.directory / run / "out").glob("moved-aside-*/finetune/result")]


def test_rerun_moves_a_finished_fine_tune_aside_and_submits_it_again(lab):
    lab.run()
    order(lab, "hold", "a/eval/cap_epoch0")
    lab.finish("a/finetune")
    lab.run()
    order(lab, "rerun", "a/finetune")
    assert preview(lab.scene).plan.of("a/finetune").changes == (f"moves {lab.directory}/a/out/finetune aside",)
    lab.run()
    assert moved_aside(lab) == ["whole"]
    assert lab.conditions()["a/finetune"] is Condition.QUEUED
    lab.finish("a/finetune")
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.DONE
    assert moved_aside(lab) == ["whole"]


def test_rerun_of_a_running_job_does_not_count_what_it_wrote_while_it_was_dying(lab):
    lab.run()
    job = start(lab, "a/finetune")
    lab.now += 10
    order(lab, "rerun", "a/finetune", now=True)
    result = lab.directory / "a" / "out" / "finetune" / "result"
    result.parent.mkdir(parents=True)
    result.write_text("whole")
    os.utime(result, (lab.now + 2, lab.now + 2))
    lab.cluster.finish(job, "CANCELLED", lab.now + 3)
    lab.run()
    assert moved_aside(lab) == ["whole"]
    assert [job.state for job in lab.cluster.jobs.values()].count("PENDING") == 3


def test_rerun_puts_outputs_that_nobody_understood_aside(lab):
    result = lab.directory / "a" / "out" / "finetune" / "result"
    result.parent.mkdir(parents=True)
    result.write_text("by somebody else")
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.HELD
    order(lab, "rerun", "a/finetune")
    lab.run()
    assert moved_aside(lab) == ["by somebody else"]
    assert lab.conditions()["a/finetune"] is Condition.QUEUED


def test_what_a_person_restored_after_a_rerun_counts(lab):
    lab.run()
    order(lab, "hold", "a/eval/cap_epoch0")
    lab.finish("a/finetune")
    lab.run()
    order(lab, "rerun", "a/finetune")
    result = lab.directory / "a" / "out" / "finetune" / "result"
    os.utime(result, (lab.now + 5, lab.now + 5))
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.DONE
    assert moved_aside(lab) == []


def test_an_evaluation_is_rerun_beside_its_old_log(lab):
    lab.run()
    lab.finish("base/eval/cap_base")
    lab.run()
    order(lab, "rerun", "base/eval/cap_base")
    lab.run()
    assert lab.conditions()["base/eval/cap_base"] is Condition.QUEUED
    assert (lab.directory / "base" / "out" / "cap_base" / "result").read_text() == "whole"


def test_nothing_follows_a_step_that_was_held_while_it_ran(lab):
    lab.run()
    start(lab, "a/finetune")
    order(lab, "hold", "a/finetune", why="the data are wrong")
    lab.finish("a/finetune")
    lab.run()
    lab.run()
    stands = {action.step: action for action in preview(lab.scene).actions}
    assert stands["a/finetune"].condition is Condition.DONE
    assert stands["a/eval/cap_epoch0"].reason.code == "NeedHeld"
    assert "the data are wrong" in stands["a/eval/cap_epoch0"].reason.message
    assert not any("cap_epoch0" in str(job.script) and "/a/" in str(job.script) for job in lab.cluster.submissions)
    order(lab, "release", "a/finetune")
    lab.run()
    assert lab.conditions()["a/eval/cap_epoch0"] is Condition.QUEUED


def test_a_finished_step_can_be_neither_held_nor_cancelled(lab):
    lab.run()
    lab.finish("a/finetune")
    lab.run()
    for verb in ("hold", "cancel"):
        with pytest.raises(UsageError, match="nothing to"):
            order(lab, verb, "a/finetune")


def test_rerun_refuses_a_running_job_without_now(lab):
    lab.run()
    job = next(job for job in lab.cluster.jobs.values() if "finetune" in job.name)
    lab.cluster.jobs[job.id] = replace(job, state="RUNNING", phase=job.phase.RUNNING)
    with pytest.raises(UsageError, match="--now"):
        order(lab, "rerun", "a/finetune", "b/finetune")


def test_a_changed_script_of_a_finished_step_is_drift_and_accept_lets_it_stand(lab):
    lab.run()
    lab.finish("a/finetune")
    lab.run()
    (lab.directory / "a" / "finetune.slurm").write_text("#!/bin/bash\necho other\n")
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.DRIFTED
    order(lab, "accept", "a/finetune")
    assert lab.conditions()["a/finetune"] is Condition.DONE


def test_release_without_a_step_lifts_the_stop_after_many_failures(lab):
    lab.policy = replace(lab.policy, stop_after_failures=1)
    lab.policy = replace(lab.policy, max_in_flight=1)
    lab.run()
    first = next(a.step for a in preview(lab.scene).actions if a.job)
    lab.finish(first, None, "FAILED")
    lab.run()
    lab.run()
    assert len(lab.cluster.submissions) == 1
    release_experiment(lab.scene)
    lab.run()
    assert len(lab.cluster.submissions) == 2
