"""``free``: what was verified and evaluated goes, and nothing else ever does."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler import freeing
from reconciler.deletion import delete, examine
from reconciler.errors import ClusterUnreachable, UsageError
from reconciler.handover import accept_identity
from reconciler.ledger import Ledger
from reconciler.loop import Scene, preview, run_pass
from reconciler.model import Condition, FileId, Job, OutputState, Phase
from reconciler.words import Prospect, Skipped
from test_pass import Lab, lab, order  # noqa: F401 - the fixture
from worlds import StandInTool


class TwoFiles(StandInTool):
    """A trainer whose epoch holds two files that are verified, and one that is not."""

    def check(self, step, disk, deep=False):
        found = super().check(step, disk, deep)
        if found.state is not OutputState.COMPLETE:
            return found
        more = step.output_dir / "epoch_0" / "shard"
        info = disk.stat(more)
        return found if info is None else replace(found, evidence=(*found.evidence, FileId(str(more), info.size, info.mtime_ns)))


@pytest.fixture
def world(lab):  # noqa: F811
    """An experiment whose run ``a`` is trained and evaluated."""
    tools = dict(lab.scene.tools)
    trainer = TwoFiles(tools["trainer"].stage)
    trainer.result = "epoch_0/result"
    found = Done(lab, replace(lab.scene, tools=tools | {"trainer": trainer}))
    found.train()
    found.run()
    found.lab.finish("a/eval/cap_epoch0")
    found.run()
    assert found.condition("a/eval/cap_epoch0") is Condition.DONE
    return found


class Done:
    def __init__(self, lab: Lab, scene: Scene) -> None:  # noqa: F811
        self.lab, self._scene = lab, scene

    @property
    def scene(self) -> Scene:
        return replace(self._scene, clock=lambda: self.lab.now)

    @property
    def epoch(self) -> Path:
        return self.lab.directory / "a" / "out" / "finetune" / "epoch_0"

    def train(self, run="a"):
        self.run()
        epoch = self.lab.directory / run / "out" / "finetune" / "epoch_0"
        epoch.mkdir(parents=True, exist_ok=True)
        (epoch / "result").write_text("whole")
        (epoch / "shard").write_text("weights" * 100)
        (epoch / "config.json").write_text("{}")
        for path in epoch.iterdir():
            os.utime(path, (self.lab.now, self.lab.now))
        self.lab.cluster.finish(preview(self.scene).plan.of(f"{run}/finetune").job, "COMPLETED", self.lab.now)
        self.run()

    def run(self):
        self.lab.now += 60
        return run_pass(self.scene)

    def condition(self, key):
        return preview(self.scene).plan.of(key).condition

    def reason(self, key):
        return preview(self.scene).plan.of(key).reason

    def free(self, *steps, confirm=lambda prospect: True, why=""):
        return freeing.free(self.scene, steps or ("a/finetune",), why, confirm)

    def files(self):
        return sorted(path.name for path in self.epoch.iterdir())


def test_verified_and_evaluated_checkpoints_go_and_the_step_stays_done(world):
    told: list[Prospect] = []
    done = world.free(confirm=lambda prospect: told.append(prospect) or True, why="the quota")
    assert world.files() == ["config.json"]
    assert told[0].asks
    assert "705 bytes" in told[0].sentences[0]
    assert "705 bytes" in done[0].message
    before = len(world.lab.cluster.submissions)
    for _ in range(3):
        world.run()
    assert len(world.lab.cluster.submissions) == before
    assert world.condition("a/finetune") is Condition.DONE
    assert world.reason("a/finetune").code == "Freed"
    assert "freed by u: the quota" in world.reason("a/finetune").message
    assert world.condition("a/eval/cap_epoch0") is Condition.DONE
    assert "nothing was left" in world.free()[0].message


def test_what_was_verified_before_the_experiment_was_moved_may_go_after_it(world):
    moved = world.lab.directory.with_name("moved")
    world.lab.directory = world.lab.directory.rename(moved)
    world = Done(world.lab, replace(world.scene, experiment=moved))
    accept_identity(world.scene, "moved")
    assert "gave back 705 bytes" in world.free()[0].message
    assert world.files() == ["config.json"]
    world.run()
    assert world.reason("a/finetune").code == "Freed"


def test_a_glob_frees_what_may_go_and_names_what_stays(world):
    told: list[Prospect] = []
    freed, skipped = world.free("*", confirm=lambda prospect: told.append(prospect) or True)
    assert (freed.step, world.files()) == ("a/finetune", ["config.json"])
    assert isinstance(skipped, Skipped)
    assert skipped.step == "b/finetune"
    assert "left as it is: only checkpoints in writing" in skipped.message
    assert "b/finetune" in told[0].sentences[1]
    assert world.condition("b/finetune") is Condition.QUEUED


def test_what_verifies_and_is_not_in_writing_yet_is_not_freed_and_the_way_out_is_told(world):
    order(world, "rerun", "a/eval/cap_epoch0")
    world.run()
    world.lab.now += 60
    world.lab.finish("a/eval/cap_epoch0")
    with pytest.raises(UsageError, match="a/eval/cap_epoch0 needs it and verifies; `reconcile apply`"):
        world.free()
    Ledger(world.lab.directory.resolve(), lambda: 0.0).path.unlink()
    with pytest.raises(UsageError, match="it verifies, and `reconcile apply` writes that down first"):
        world.free()
    world.run()
    world.run()
    world.free()
    assert world.files() == ["config.json"]


def test_a_second_free_without_a_reason_keeps_the_first(world):
    world.free(why="the quota")
    world.free()
    assert "freed by u: the quota" in world.reason("a/finetune").message


def test_nothing_goes_where_a_person_says_no(world):
    before = world.lab.tree()
    assert world.free(confirm=lambda prospect: False) == ()
    assert world.lab.tree() == before


def test_a_file_that_changed_since_it_was_verified_stays_and_is_named(world):
    (world.epoch / "shard").write_text("other weights")
    told: list[Prospect] = []
    world.free(confirm=lambda prospect: told.append(prospect) or True)
    assert world.files() == ["config.json", "shard"]
    assert "shard (it changed since it was verified)" in told[0].sentences[0]


def test_a_file_that_changes_after_the_question_stays(world):
    def confirm(prospect):
        (world.epoch / "shard").write_text("other weights")
        return True

    assert "1 files changed meanwhile" in world.free(confirm=confirm)[0].message
    assert world.files() == ["config.json", "shard"]


def test_a_symbolic_link_in_the_place_of_a_file_or_of_the_epoch_is_not_followed(world, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    world.epoch.rename(elsewhere)
    world.epoch.symlink_to(elsewhere)
    with pytest.raises(UsageError, match="symbolic link"):
        world.free()
    assert len(list(elsewhere.iterdir())) == 3
    world.epoch.unlink()
    elsewhere.rename(world.epoch)
    (world.epoch / "shard").rename(tmp_path / "shard")
    (world.epoch / "shard").symlink_to(tmp_path / "shard")
    world.free()
    assert (tmp_path / "shard").exists()
    assert world.files() == ["config.json", "shard"]


@pytest.mark.parametrize("path", ["{0}/../finetune/epoch_0/shard", "/etc/hostname", "{0}/epoch_0", "{0}/other/shard"])
def test_nothing_outside_the_checkpoint_is_ever_deleted(world, path):
    """Whatever is in the ledger, which a person may have edited."""
    out = world.epoch.parent
    (out / "other").mkdir()
    (out / "other" / "shard").write_text("x")
    file = Path(path.format(out))
    found = file.stat()
    tampered = FileId(str(file), found.st_size, found.st_mtime_ns)
    assert not examine(world.epoch, tampered).may_go
    assert not delete(world.epoch, tampered).may_go
    assert file.exists()


def test_what_an_unfinished_evaluation_needs_stays(world):
    order(world, "rerun", "a/eval/cap_epoch0")
    with pytest.raises(UsageError, match="a/eval/cap_epoch0 needs it and is not done"):
        world.free()
    world.train("b")
    with pytest.raises(UsageError, match="b/eval/cap_epoch0 needs it"):
        world.free("b/finetune")


def test_a_job_that_a_person_submitted_though_all_is_done_keeps_its_checkpoint(world):
    _leave_only_what_is_done(world)
    step = preview(world.scene).desired.step("a/eval/cap_epoch0")
    world.lab.cluster.jobs["90"] = Job("90", step.job_name, "RUNNING", Phase.RUNNING, str(step.workdir))
    with pytest.raises(UsageError, match="job 90"):
        world.free()
    assert len(world.files()) == 3


@pytest.mark.parametrize("verb", ["free", "rerun"])
def test_nothing_is_freed_or_replaced_while_the_queue_cannot_be_asked_though_all_is_done(world, verb):
    _leave_only_what_is_done(world)
    assert preview(world.scene).converged
    world.lab.cluster.is_down = True
    before = world.lab.tree()
    with pytest.raises(ClusterUnreachable):
        world.free() if verb == "free" else order(world, "rerun", "a/finetune")
    assert world.lab.tree() == before


def _leave_only_what_is_done(world: Done) -> None:
    order(world, "cancel", "b/*", "base/*")
    world.run()
    document = world.lab.document
    document.write_text(
        "".join(line for line in document.read_text().splitlines(True) if not line.startswith(("| b ", "| base ")))
    )


def test_what_is_not_done_not_ours_to_judge_or_no_fine_tune_is_refused_and_nothing_goes(world):
    before = world.lab.tree()
    with pytest.raises(UsageError, match="b/finetune: only"):
        world.free("a/finetune", "b/finetune")
    for steps in (["a/eval/*"], ["a/finetune", "a/eval/cap_epoch0"]):
        with pytest.raises(UsageError, match="nothing to free"):
            world.free(*steps)
    (world.lab.directory / "a" / "finetune.slurm").write_text("#!/bin/bash\necho other\n")
    with pytest.raises(UsageError, match="Drifted"):
        world.free()
    assert {k: v for k, v in world.lab.tree().items() if "out" in k} == {k: v for k, v in before.items() if "out" in k}


def test_what_a_person_accepted_and_is_not_what_was_verified_is_not_freed(world):
    script = world.lab.directory / "a" / "finetune.slurm"
    script.write_text("#!/bin/bash\necho other\n")
    (world.epoch / "result").write_text("torn")
    order(world, "accept", "a/finetune")
    with pytest.raises(UsageError, match="its files are not those verified: result"):
        world.free()
    assert len(world.files()) == 3


def test_after_a_kill_amid_the_deletion_the_same_words_finish_it(world, monkeypatch):
    real = freeing.delete
    deleted = []

    def killed(directory, file):
        if deleted:
            raise KeyboardInterrupt
        deleted.append(file)
        return real(directory, file)

    monkeypatch.setattr(freeing, "delete", killed)
    with pytest.raises(KeyboardInterrupt):
        world.free()
    monkeypatch.setattr(freeing, "delete", real)
    assert len(world.files()) == 2
    before = len(world.lab.cluster.submissions)
    world.run()
    assert len(world.lab.cluster.submissions) == before
    assert "say `reconcile free` again" in world.reason("a/finetune").message
    world.free()
    assert world.files() == ["config.json"]
    assert "again" not in world.reason("a/finetune").message
    assert "705 bytes" in world.reason("a/finetune").message


def test_an_evaluation_wanted_after_its_checkpoint_was_freed_is_held_not_submitted(world):
    world.free()
    document = world.lab.document
    document.write_text(
        document.read_text()
        .replace("| a | ✓ epoch 0 |", "| a | ✓ epoch 0 | ✓ epoch 0 |")
        .replace("| Run Name | cap |\n|----------|-----|", "| Run Name | cap | rev |\n|----------|-----|-----|")
        .replace("| b | ✓ epoch 0 |", "| b | ✓ epoch 0 | - |")
        .replace("| base | ✓ |", "| base | ✓ | - |")
    )
    script = world.lab.directory / "a" / "eval" / "rev_epoch0.slurm"
    script.write_text("#!/bin/bash\necho eval\n")
    before = len(world.lab.cluster.submissions)
    world.run()
    assert world.reason("a/eval/rev_epoch0").code == "NeedFreed"
    assert len(world.lab.cluster.submissions) == before
    with pytest.raises(UsageError, match="its checkpoint is gone"):
        order(world, "rerun", "a/eval/cap_epoch0")
    order(world, "rerun", "a/finetune", with_dependents=True)
    world.run()
    assert world.condition("a/finetune") is Condition.QUEUED


def test_a_ledger_that_was_lost_after_freeing_does_not_train_over_what_is_left(world):
    world.free()
    Ledger(world.lab.directory.resolve(), lambda: 0.0).path.unlink()
    (world.epoch / "result").write_text("left by the trainer")
    before = len(world.lab.cluster.submissions)
    world.run()
    assert not any(
        job.script.parent.name == "a" and job.script.stem == "finetune" for job in world.lab.cluster.submissions[before:]
    )


def test_the_queue_must_be_known(world):
    order(world, "rerun", "base/eval/cap_base")
    world.lab.cluster.is_down = True
    with pytest.raises(ClusterUnreachable):
        world.free()
    assert len(world.files()) == 3


def test_a_file_with_another_name_gives_nothing_back(world, tmp_path):
    os.link(world.epoch / "shard", tmp_path / "shard")
    assert "5 bytes" in world.free()[0].message
    assert (tmp_path / "shard").exists()


def test_what_another_run_begins_from_stays(world):
    class Chained(TwoFiles):
        def _step(self, run, key, script):
            step = super()._step(run, key, script)
            return replace(step, reads=(world.epoch,)) if run.name == "b" else step

    trainer = Chained(world.scene.tools["trainer"].stage)
    trainer.result = "epoch_0/result"
    world._scene = replace(world.scene, tools=world.scene.tools | {"trainer": trainer})
    with pytest.raises(UsageError, match="b/finetune needs it and is not done"):
        world.free()
    assert len(world.files()) == 3
