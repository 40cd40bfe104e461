"""Whole experiments after failures, with the real tools' rules: a training that goes on over time limits, and edits on disk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fake_slurm.backend import FakeBackend
from fake_slurm.cluster import Cluster
from fake_slurm.jobs import Job, State
from fake_slurm.site import Site
from fake_slurm.wire import Wire
from reconciler.disk import RealDisk
from reconciler.experiment.settings import read_settings
from reconciler.handover import accept_identity
from reconciler.ledger import Ledger
from reconciler.loop import Pass, Scene, preview, run_pass
from reconciler.model import Condition, Verb
from reconciler.tools import all_tools
from reconciler.words import Order, Prospect, carry_out

REPOSITORY = Path(__file__).resolve().parents[1]
SETTINGS = "stagger: 0s\nsettle: 0s\nbackoff: 0s\n"


class Lab:
    """One fine-tune of three epochs on a simulated cluster. Its jobs are run for real when a test says so."""

    def __init__(self, place: Path, settings: str) -> None:
        maker = [
            sys.executable,
            str(REPOSITORY / "examples/new_experiment.py"),
            str(place / "lab"),
            "--run",
            "r",
            "--epochs",
            "3",
        ]
        made = subprocess.run(maker, check=True, capture_output=True, text=True).stdout.strip()
        self.experiment = Path(made)
        (self.experiment / "reconcile.yaml").write_text(SETTINGS + settings)
        self.cluster = Cluster(Site(), time.time())
        self.started: list[Job] = []

    @property
    def config(self) -> Path:
        return self.experiment / "r" / "finetune.yaml"

    @property
    def output(self) -> Path:
        return self.experiment.parent / "ck-outputs" / self.experiment.name / "ck-out-r"

    def scene(self) -> Scene:
        settings = read_settings(self.experiment, {}, self.experiment.parent)
        backend = FakeBackend(Wire(self.cluster))
        return Scene(
            self.experiment,
            settings,
            backend,
            RealDisk(),
            all_tools(),
            lambda: self.cluster.now,
            "ana",
            os.environ,
            select="r/finetune",
        )

    def apply(self) -> Pass:
        self.cluster.advance(max(0.0, time.time() - self.cluster.now) + 5.0)
        return run_pass(self.scene())

    def job(self) -> Job:
        (job,) = [job for job in self.cluster.queue() if not job.state.is_final]
        return job

    def run_job(self, end: State = State.COMPLETED, epochs: int | None = None, log: str = "") -> Job:
        """The job's script runs; where ``epochs`` is given it is killed once so many are whole."""
        job = self.job()
        environment = {**os.environ, "STANDIN_SECONDS": "6" if epochs is not None else "0"}
        script = subprocess.Popen(
            ["bash", "finetune.slurm"], cwd=self.config.parent, env=environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while epochs is not None and not self._counts(epochs) and time.monotonic() < deadline:
            time.sleep(0.02)
        if epochs is not None:
            os.killpg(script.pid, 9)
        script.wait()
        (self.config.parent / f"slurm-{job.id}.out").write_text(log)
        self.cluster.finish(job.id, exit_code=int(end is State.FAILED), state=end)
        return job

    def _counts(self, epochs: int) -> bool:
        """Whether the trainer's state counts so many epochs."""
        state = self.output / "recipe_state" / "recipe_state.pt"
        return state.exists() and bool(re.search(rb"epochs_runr....K" + bytes([epochs]), state.read_bytes(), re.DOTALL))


@pytest.fixture
def lab(tmp_path: Path) -> Callable[[str], Lab]:
    return lambda settings: Lab(tmp_path, settings)


def until(lab: Lab, condition: Condition, passes: int = 5) -> Pass:
    for _ in range(passes):
        seen = lab.apply()
        if seen.actions[0].condition is condition:
            return seen
    raise AssertionError(seen.actions)


def test_a_training_goes_on_over_its_time_limits_to_the_end(lab: Callable[[str], Lab]):
    world = lab("resume: true\n")
    before = world.config.read_text()
    until(world, Condition.QUEUED)
    world.run_job(State.TIMEOUT, epochs=1)
    until(world, Condition.QUEUED)
    assert "resume_from_checkpoint: True" in world.config.read_text()
    first = (world.output / "epoch_0" / "adapter_model.pt").stat().st_mtime_ns
    world.run_job(State.TIMEOUT, epochs=2)
    until(world, Condition.QUEUED)
    world.run_job()
    done = until(world, Condition.DONE)
    assert (world.output / "epoch_0" / "adapter_model.pt").stat().st_mtime_ns == first
    assert len(done.memory.of("r/finetune").attempts) == 3
    assert world.config.read_text() == before.replace("resume_from_checkpoint: False", "resume_from_checkpoint: True")
    assert not [action for action in preview(world.scene()).actions if action.changes_something]


def test_without_a_further_epoch_it_is_held(lab: Callable[[str], Lab]):
    world = lab("resume: true\n")
    until(world, Condition.QUEUED)
    world.run_job(State.TIMEOUT, epochs=1)
    until(world, Condition.QUEUED)
    world.cluster.finish(world.job().id, state=State.TIMEOUT)
    held = until(world, Condition.FAILED).actions[0]
    assert (held.reason.code, "no further epoch" in held.reason.message) == ("TimeLimit", True)


def test_a_smaller_batch_is_previewed_made_noted_and_taken_back_by_a_rerun(lab: Callable[[str], Lab]):
    world = lab("shrink_batch: true\n")
    before = world.config.read_text()
    until(world, Condition.QUEUED)
    job = world.job()
    (world.config.parent / f"slurm-{job.id}.out").write_text("torch.OutOfMemoryError: CUDA out of memory.\n")
    world.cluster.finish(job.id, exit_code=1)
    until(world, Condition.VERIFYING)
    world.cluster.advance(5)
    (shown,) = preview(world.scene()).actions
    assert "finetune.yaml: batch_size 4 → 2" in shown.changes
    assert world.config.read_text() == before
    until(world, Condition.QUEUED)
    assert "batch_size: 2" in world.config.read_text()
    assert (world.experiment / ".reconcile/originals/r/finetune.yaml").read_text() == before
    world.run_job()
    until(world, Condition.DONE)
    row = next(line for line in (world.experiment / "experiment_summary.md").read_text().splitlines() if "COMPLETED" in line)
    assert "batch_size 4 → 2" in row
    carry_out(world.scene(), Order("rerun", ("r/finetune",)), lambda prospect: True)
    until(world, Condition.QUEUED)
    assert world.config.read_text() == before
    assert Ledger(world.experiment, time.time).memory().of("r/finetune").edits == ()


def test_more_memory_is_asked_of_slurm_itself(lab: Callable[[str], Lab]):
    world = lab("mem: {factor: 2, max: 8G}\n")
    script = world.config.parent / "finetune.slurm"
    script.write_text(script.read_text().replace("#SBATCH --ntasks=1", "#SBATCH --ntasks=1\n#SBATCH --mem=1G"))
    until(world, Condition.QUEUED)
    world.cluster.finish(world.job().id, state=State.OUT_OF_MEMORY)
    until(world, Condition.QUEUED)
    assert world.job().request.memory == 2048


def out_of_memory(lab: Lab) -> None:
    """One attempt failed for want of memory, and the next one, which asks for more, is in the queue."""
    script = lab.config.parent / "finetune.slurm"
    script.write_text(script.read_text().replace("#SBATCH --ntasks=1", "#SBATCH --ntasks=1\n#SBATCH --mem=1G"))
    until(lab, Condition.QUEUED)
    lab.cluster.finish(lab.job().id, state=State.OUT_OF_MEMORY)
    until(lab, Condition.QUEUED)
    assert lab.job().request.memory == 2048


def say(lab: Lab, verb: str) -> tuple[Prospect, str]:
    """What a word was about to do, and what it answered."""
    heard: list[Prospect] = []
    (done,) = carry_out(lab.scene(), Order(verb, ("r/finetune",)), lambda prospect: heard.append(prospect) or True)
    return heard[0], done.message


@pytest.mark.parametrize("ends", [State.OUT_OF_MEMORY, State.NODE_FAIL])
def test_a_hold_that_is_released_leaves_what_was_raised_and_counted_as_it_was(lab: Callable[[str], Lab], ends: State):
    world = lab("mem: {factor: 2, max: 8G}\n")
    out_of_memory(world)
    world.cluster.finish(world.job().id, state=ends)
    until(world, Condition.VERIFYING)
    world.cluster.advance(5)
    before = preview(world.scene()).actions
    say(world, "hold")
    until(world, Condition.HELD)
    told, answer = say(world, "release")
    assert (answer, told.asks) == ("released; goes on as before it was held", False)
    assert preview(world.scene()).actions == before
    until(world, Condition.QUEUED)
    assert world.job().request.memory == {State.OUT_OF_MEMORY: 4096, State.NODE_FAIL: 2048}[ends]


@pytest.mark.parametrize("is_held", [False, True])
def test_a_release_that_takes_back_more_memory_says_so(lab: Callable[[str], Lab], is_held: bool):
    world = lab("mem: {factor: 2, max: 2G}\n")
    out_of_memory(world)
    world.cluster.finish(world.job().id, state=State.OUT_OF_MEMORY)
    until(world, Condition.FAILED)
    if is_held:
        say(world, "hold")
    told, answer = say(world, "release")
    for text in (told.sentences[0], answer):
        assert "--mem=2048M of attempt 2 counts no more, but what its script asks for" in text
    until(world, Condition.QUEUED)
    assert world.job().request.memory == 1024


@pytest.mark.parametrize("resume", [False, True])
def test_a_release_that_moves_whole_epochs_aside_asks_first(lab: Callable[[str], Lab], resume: bool):
    world = lab("")
    until(world, Condition.QUEUED)
    world.run_job(State.TIMEOUT, epochs=1)
    until(world, Condition.FAILED)
    settle_on(world, f"resume: {str(resume).lower()}\n")
    told, answer = say(world, "release")
    assert (told.asks, "1 whole epoch with it" in told.sentences[0], "1 whole epoch with it" in answer) == (not resume,) * 3
    until(world, Condition.QUEUED)
    assert epochs(world) == (["epoch_0"] if resume else [])


# --- what cannot be edited, and what a person said of it -----------------------------------------------


def settle_on(lab: Lab, settings: str) -> None:
    (lab.experiment / "reconcile.yaml").write_text(SETTINGS + settings)


def tree(lab: Lab) -> dict[str, int]:
    """Every file of the outputs and the configuration, with when it was last written."""
    files = [lab.config, *(path for path in lab.output.rglob("*") if path.is_file())]
    return {str(path): path.stat().st_mtime_ns for path in files}


def epochs(lab: Lab) -> list[str]:
    return sorted(path.name for path in lab.output.glob("epoch_*"))


def spell(lab: Lab, old: str, new: str) -> None:
    text = lab.config.read_text()
    assert old in text
    lab.config.write_text(text.replace(old, new))


def fails_for_want_of_gpu_memory(lab: Lab) -> None:
    job = lab.job()
    (lab.config.parent / f"slurm-{job.id}.out").write_text("torch.OutOfMemoryError: CUDA out of memory.\n")
    lab.cluster.finish(job.id, exit_code=1)


def intents(lab: Lab) -> int:
    return sum(event["event"] == "intent" for event in Ledger(lab.experiment, time.time).events())


@pytest.mark.parametrize("value", ["${compile}", "&later no"])
def test_what_cannot_be_asked_of_the_trainer_is_held_alike_by_all_commands_until_a_person_wrote_it(
    lab: Callable[[str], Lab], value: str
):
    world = lab("resume: true\n")
    until(world, Condition.QUEUED)
    world.run_job(State.TIMEOUT, epochs=1)
    spell(world, "resume_from_checkpoint: False", f"resume_from_checkpoint: {value}")
    until(world, Condition.HELD)
    before = tree(world)
    for _ in range(3):
        (shown,) = preview(world.scene()).actions
        (made,) = world.apply().actions
        assert (shown.reason, shown.condition) == (made.reason, made.condition)
        assert (made.reason.code, "write `resume_from_checkpoint: True`" in made.reason.message) == ("EditRefused", True)
    assert (tree(world), intents(world)) == (before, 1)
    spell(world, f"resume_from_checkpoint: {value}", "resume_from_checkpoint: True")
    until(world, Condition.QUEUED)
    assert epochs(world) == ["epoch_0"]
    assert Ledger(world.experiment, time.time).memory().of("r/finetune").attempts[-1].from_epoch == 1


def test_another_spelling_of_false_is_edited_like_any_other(lab: Callable[[str], Lab]):
    world = lab("resume: true\n")
    until(world, Condition.QUEUED)
    world.run_job(State.TIMEOUT, epochs=1)
    spell(world, "resume_from_checkpoint: False", "resume_from_checkpoint: no   # begin anew")
    until(world, Condition.QUEUED)
    assert "resume_from_checkpoint: True   # begin anew" in world.config.read_text()


def test_a_batch_that_is_a_reference_leaves_the_whole_configuration_as_it_is(lab: Callable[[str], Lab]):
    world = lab("shrink_batch: true\n")
    spell(world, "batch_size: 4", "bs: 4\nbatch_size: ${bs}")
    before = world.config.read_text()
    until(world, Condition.QUEUED)
    fails_for_want_of_gpu_memory(world)
    held = until(world, Condition.FAILED).actions[0]
    assert "`batch_size: 2` and `gradient_accumulation_steps: 2`" in held.reason.message
    world.apply()
    assert (world.config.read_text(), intents(world)) == (before, 1)


def test_halving_ends_at_a_batch_of_one(lab: Callable[[str], Lab]):
    world = lab("shrink_batch: true\n")
    for _ in range(3):
        until(world, Condition.QUEUED)
        fails_for_want_of_gpu_memory(world)
    held = until(world, Condition.FAILED).actions[0]
    assert "`batch_size` in finetune.yaml is 1" in held.reason.message
    text = world.config.read_text()
    assert ("batch_size: 1\n" in text, "gradient_accumulation_steps: 4\n" in text, intents(world)) == (True, True, 3)


def test_resuming_switched_off_while_our_edit_stands_trains_over_nothing(lab: Callable[[str], Lab]):
    world = lab("resume: true\n")
    before = world.config.read_text()
    until(world, Condition.QUEUED)
    world.run_job(State.TIMEOUT, epochs=1)
    until(world, Condition.QUEUED)
    assert world.config.read_text() != before
    world.cluster.finish(world.job().id, state=State.NODE_FAIL)
    settle_on(world, "resume: false\n")
    whole = (world.output / "epoch_0" / "adapter_model.pt").stat().st_ino
    until(world, Condition.QUEUED)
    assert world.config.read_text() == before
    assert (epochs(world), (world.output / "recipe_state").exists()) == ([], False)
    (kept,) = world.output.glob("moved-aside-*/epoch_0/adapter_model.pt")
    assert kept.stat().st_ino == whole


def test_a_rerun_that_would_move_whole_epochs_aside_asks_and_once_it_is_taken_back_the_training_goes_on(
    lab: Callable[[str], Lab],
):
    world = lab("resume: true\n")
    until(world, Condition.QUEUED)
    world.run_job(State.TIMEOUT, epochs=1)
    until(world, Condition.VERIFYING)
    world.cluster.advance(5)
    before = preview(world.scene()).actions
    asked: list[Prospect] = []
    answer = carry_out(world.scene(), Order("rerun", ("r/finetune",)), lambda prospect: asked.append(prospect) or True)
    assert (asked[0].asks, "1 whole epoch with it" in asked[0].sentences[0], "1 whole epoch with it" in answer[0].message) == (
        True,
        True,
        True,
    )
    (anew,) = preview(world.scene()).actions
    assert (anew.from_epoch, [path.name for path in anew.move_aside]) == (0, ["ck-out-r"])
    carry_out(world.scene(), Order("hold", ("r/finetune",)), lambda prospect: True)
    carry_out(world.scene(), Order("accept", ("r/finetune",)), lambda prospect: True)
    until(world, Condition.HELD)
    carry_out(world.scene(), Order("release", ("r/finetune",)), lambda prospect: True)
    (goes_on,) = preview(world.scene()).actions
    assert (goes_on.from_epoch, goes_on.move_aside) == (before[0].from_epoch, before[0].move_aside)
    assert goes_on.from_epoch == 1
    until(world, Condition.QUEUED)
    assert epochs(world) == ["epoch_0"]


def test_a_rerun_of_what_is_told_to_go_on_moves_nothing_aside_before_a_person_wrote_otherwise(lab: Callable[[str], Lab]):
    world = lab("")
    until(world, Condition.QUEUED)
    world.run_job()
    until(world, Condition.DONE)
    spell(world, "resume_from_checkpoint: False", "resume_from_checkpoint: True")
    carry_out(world.scene(), Order("rerun", ("r/finetune",)), lambda prospect: True)
    held = until(world, Condition.HELD).actions[0]
    world.apply()
    assert (held.reason.code, epochs(world), intents(world)) == ("CannotResume", ["epoch_0", "epoch_1", "epoch_2"], 1)
    spell(world, "resume_from_checkpoint: True", "resume_from_checkpoint: False")
    until(world, Condition.QUEUED)
    assert (epochs(world), intents(world)) == ([], 2)


def copied(lab: Lab) -> tuple[Lab, list[str]]:
    """A copy with an output directory of its own, whose scripts go to it, and what was told of it."""
    copy = object.__new__(Lab)
    copy.experiment, copy.cluster, copy.started = lab.experiment.with_name("copy"), Cluster(Site(), lab.cluster.now), []
    shutil.copytree(lab.experiment, copy.experiment)
    for path in (copy.config, copy.experiment / "experiment_summary.md", *copy.experiment.rglob("*.slurm")):
        text = path.read_text().replace(f"ck-outputs/{lab.experiment.name}", "ck-outputs/copy")
        path.write_text(text.replace(str(lab.experiment), str(copy.experiment)))
    return copy, [done.message for done in accept_identity(copy.scene(), "copied")]


@pytest.mark.parametrize("setting", ["resume", "shrink_batch"])
def test_a_copy_takes_our_edits_of_the_original_back_and_says_so(lab: Callable[[str], Lab], setting: str):
    world = lab(f"{setting}: true\n")
    before = world.config.read_text()
    until(world, Condition.QUEUED)
    if setting == "resume":
        world.run_job(State.TIMEOUT, epochs=1)
        until(world, Condition.QUEUED)
    else:
        for _ in range(2):
            fails_for_want_of_gpu_memory(world)
            until(world, Condition.QUEUED)
    world.cluster.finish(world.job().id, state=State.NODE_FAIL)
    edited = world.config.read_text()
    back = {"resume": "resume_from_checkpoint True → False", "shrink_batch": "batch_size 1 → 4"}[setting]
    copy, told = copied(world)
    assert any(f"is taken back by the first submission ({back})" in line for line in told)
    (first,) = preview(copy.scene()).actions
    assert (first.reason.code, f"finetune.yaml: {back}" in first.changes) == ("NotStarted", True)
    until(copy, Condition.QUEUED)
    assert copy.config.read_text() == before.replace(f"ck-outputs/{world.experiment.name}", "ck-outputs/copy")
    assert Ledger(copy.experiment, time.time).memory().of("r/finetune").edits == ()
    assert world.config.read_text() == edited


def test_what_a_person_wrote_in_a_copy_over_our_edit_stays(lab: Callable[[str], Lab]):
    world = lab("shrink_batch: true\n")
    until(world, Condition.QUEUED)
    fails_for_want_of_gpu_memory(world)
    until(world, Condition.QUEUED)
    world.cluster.finish(world.job().id, state=State.NODE_FAIL)
    copy, _ = copied(world)
    spell(copy, "batch_size: 2", "batch_size: 8")
    written = copy.config.read_text()
    until(copy, Condition.QUEUED)
    assert copy.config.read_text() == written


def test_a_smaller_batch_begins_anew_where_the_run_had_gone_on(lab: Callable[[str], Lab]):
    world = lab("resume: true\nshrink_batch: true\n")
    until(world, Condition.QUEUED)
    world.run_job(State.TIMEOUT, epochs=1)
    until(world, Condition.QUEUED)
    fails_for_want_of_gpu_memory(world)
    until(world, Condition.QUEUED)
    text = world.config.read_text()
    assert ("batch_size: 2\n" in text, "resume_from_checkpoint: False\n" in text) == (True, True)
    assert (epochs(world), (world.output / "recipe_state").exists()) == ([], False)
    assert Ledger(world.experiment, time.time).memory().of("r/finetune").attempts[-1].from_epoch == 0


@pytest.mark.parametrize("shrink", ["false", "true"])
def test_a_configuration_that_a_person_put_back_stays_so(lab: Callable[[str], Lab], shrink: str):
    world = lab("shrink_batch: true\n")
    before = world.config.read_text()
    until(world, Condition.QUEUED)
    fails_for_want_of_gpu_memory(world)
    until(world, Condition.QUEUED)
    assert world.config.read_text() != before
    world.cluster.finish(world.job().id, state=State.NODE_FAIL)
    world.config.write_text(before)
    settle_on(world, f"shrink_batch: {shrink}\n")
    until(world, Condition.QUEUED)
    assert world.config.read_text() == before
    assert Ledger(world.experiment, time.time).memory().of("r/finetune").edits == ()


def test_a_directory_that_the_trainer_would_take_for_an_epoch_is_told_of_first(lab: Callable[[str], Lab]):
    world = lab("resume: true\n")
    until(world, Condition.QUEUED)
    world.run_job(State.TIMEOUT, epochs=1)
    (world.output / "epoch_9_old").mkdir()
    held = until(world, Condition.HELD).actions[0]
    assert (held.reason.code, "epoch_9_old" in held.reason.message) == ("CannotResume", True)
    assert epochs(world) == ["epoch_0", "epoch_9_old"]
    (world.output / "epoch_9_old").rename(world.output / "old_epoch_9")
    until(world, Condition.QUEUED)
    assert epochs(world) == ["epoch_0"]


# --- files that cannot be written ----------------------------------------------------------------------


def fill_originals(lab: Lab) -> Path:
    """A file where the directory of the originals would be made; root could write into any directory."""
    (lab.experiment / ".reconcile" / "originals").write_text("in the way")
    return lab.experiment / ".reconcile" / "originals"


def protect(lab: Lab) -> Path:
    lab.config.chmod(0o444)
    return lab.config


@pytest.mark.parametrize("seal", [protect, fill_originals])
def test_a_configuration_that_cannot_be_written_holds_its_step_before_anything_is_moved_alike_in_all_commands(
    lab: Callable[[str], Lab], seal: Callable[[Lab], Path]
):
    world = lab("resume: true\nshrink_batch: true\n")
    until(world, Condition.QUEUED)
    world.run_job(State.FAILED, epochs=1, log="torch.OutOfMemoryError: CUDA out of memory.\n")
    sealed = seal(world)
    until(world, Condition.HELD)
    before = tree(world)
    for _ in range(3):
        (shown,) = preview(world.scene()).actions
        (made,) = world.apply().actions
        assert (shown.reason, shown.condition) == (made.reason, made.condition)
        assert made.reason.code == "EditRefused"
        assert str(sealed) in made.reason.message
        assert "write `batch_size: 2` and `gradient_accumulation_steps: 2` by hand" in made.reason.message
    assert (tree(world), epochs(world)[:1], intents(world)) == (before, ["epoch_0"], 1)
    world.config.chmod(0o644)
    if sealed != world.config:
        sealed.unlink()
    until(world, Condition.QUEUED)
    assert ("batch_size: 2\n" in world.config.read_text(), epochs(world), intents(world)) == (True, [], 2)


def test_a_rerun_whose_edits_cannot_be_taken_back_leaves_the_verified_outputs_where_they_are(lab: Callable[[str], Lab]):
    world = lab("shrink_batch: true\n")
    before = world.config.read_text()
    until(world, Condition.QUEUED)
    fails_for_want_of_gpu_memory(world)
    until(world, Condition.QUEUED)
    world.run_job()
    until(world, Condition.DONE)
    protect(world)
    carry_out(world.scene(), Order("rerun", ("r/finetune",)), lambda prospect: True)
    held = until(world, Condition.HELD).actions[0]
    world.apply()
    assert (held.reason.code, "batch_size: 4" in held.reason.message) == ("EditRefused", True)
    assert (epochs(world), intents(world)) == (["epoch_0", "epoch_1", "epoch_2"], 2)
    world.config.chmod(0o644)
    until(world, Condition.QUEUED)
    assert (world.config.read_text(), epochs(world), intents(world)) == (before, [], 3)


def test_a_configuration_that_is_protected_between_the_look_and_the_act_is_seen_before_the_intent(lab: Callable[[str], Lab]):
    world = lab("shrink_batch: true\n")
    until(world, Condition.QUEUED)
    world.run_job(State.FAILED, epochs=1, log="torch.OutOfMemoryError: CUDA out of memory.\n")
    until(world, Condition.VERIFYING)
    world.cluster.advance(5)
    scene = world.scene()
    (made,) = run_pass(replace(scene, clock=lambda: protect(world) and world.cluster.now)).actions
    assert (made.reason.code, epochs(world)[:1], intents(world)) == ("EditRefused", ["epoch_0"], 1)


# --- layouts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "can_be_edited"),
    [
        (lambda text: text.replace("batch_size:", "tokenizer_note:\nbatch_size:"), True),
        (lambda text: text + "note:\n", True),
        (lambda text: "".join(f"  {line}" for line in text.splitlines(keepends=True)), True),
        (lambda text: text + "...\n", False),
        (lambda text: text + "note: |\n  as it is", False),
    ],
)
def test_whatever_the_layout_what_is_previewed_is_what_happens(lab: Callable[[str], Lab], layout, can_be_edited: bool):
    world = lab("shrink_batch: true\n")
    without = "".join(ln for ln in world.config.read_text().splitlines(True) if not ln.startswith("gradient_accumulation"))
    world.config.write_text(layout(without))
    before = world.config.read_text()
    until(world, Condition.QUEUED)
    fails_for_want_of_gpu_memory(world)
    until(world, Condition.VERIFYING)
    world.cluster.advance(5)
    (shown,) = preview(world.scene()).actions
    (made,) = world.apply().actions
    if can_be_edited:
        assert (shown.verb, made.verb, made.condition, intents(world)) == (Verb.SUBMIT, Verb.SUBMIT, Condition.QUEUED, 2)
        text = world.config.read_text()
        assert re.search(r"^ *batch_size: 2$", text, re.MULTILINE)
        assert re.search(r"^ *gradient_accumulation_steps: 2$", text, re.MULTILINE)
    else:
        assert (shown.reason, shown.condition) == (made.reason, made.condition)
        assert "write `batch_size: 2` and `gradient_accumulation_steps: 2` by hand" in made.reason.message
        assert (made.condition, world.config.read_text(), intents(world)) == (Condition.FAILED, before, 1)


def test_a_key_without_a_value_as_the_last_line_is_held_with_the_line_to_write(lab: Callable[[str], Lab]):
    world = lab("resume: true\n")
    until(world, Condition.QUEUED)
    world.run_job(State.TIMEOUT, epochs=1)
    spell(world, "resume_from_checkpoint: False\n", "")
    world.config.write_text(world.config.read_text() + "? resume_from_checkpoint")
    until(world, Condition.HELD)
    before = tree(world)
    (shown,) = preview(world.scene()).actions
    (made,) = world.apply().actions
    assert (shown.reason, shown.condition) == (made.reason, made.condition)
    assert (made.reason.code, "write `resume_from_checkpoint: True`" in made.reason.message) == ("EditRefused", True)
    assert (tree(world), intents(world)) == (before, 1)


def test_a_state_whose_epochs_were_stashed_is_moved_aside_before_a_smaller_batch(lab: Callable[[str], Lab]):
    world = lab("shrink_batch: true\n")
    until(world, Condition.QUEUED)
    world.run_job(State.FAILED, epochs=1, log="torch.OutOfMemoryError: CUDA out of memory.\n")
    for path in world.output.glob("epoch_*"):
        path.rename(world.experiment / path.name)
    until(world, Condition.QUEUED)
    assert not (world.output / "recipe_state").exists()
    assert len(list(world.output.glob("moved-aside-*/recipe_state"))) == 1
    world.cluster.finish(world.job().id, state=State.NODE_FAIL)
    until(world, Condition.QUEUED)
    assert ("batch_size: 2\n" in world.config.read_text(), intents(world)) == (True, 3)


# --- a batch in two settings -----------------------------------------------------------------------------

LOG = "torch.OutOfMemoryError: CUDA out of memory.\n"


def batch_of(lab: Lab) -> tuple[str, ...]:
    return tuple(re.findall(r"^(?:batch_size|gradient_accumulation_steps): (\S+)", lab.config.read_text(), re.MULTILINE))


def write_batch(lab: Lab, batch: str, steps: str) -> None:
    text = re.sub(r"^batch_size: \S+", f"batch_size: {batch}", lab.config.read_text(), flags=re.MULTILINE)
    text = re.sub(r"^gradient_accumulation_steps: \S+", f"gradient_accumulation_steps: {steps}", text, flags=re.MULTILINE)
    lab.config.write_text(text)


@pytest.mark.parametrize("whole", [0, 1])
def test_the_printed_instruction_for_a_smaller_batch_is_followed_and_that_is_what_runs(lab: Callable[[str], Lab], whole: int):
    world = lab("shrink_batch: true\n")
    spell(world, "batch_size: 4", "bs: 4\nbatch_size: ${bs}")
    until(world, Condition.QUEUED)
    if whole:
        world.run_job(State.FAILED, epochs=whole, log=LOG)
    else:
        fails_for_want_of_gpu_memory(world)
    held = until(world, Condition.FAILED).actions[0]
    assert "`batch_size: 2` and `gradient_accumulation_steps: 2`" in held.reason.message
    write_batch(world, "2", "2")
    until(world, Condition.QUEUED)
    assert (sorted(batch_of(world)), epochs(world), intents(world)) == (["2", "2"], [], 2)
    assert len(list(world.output.glob("moved-aside-*/epoch_0"))) == whole
    attempt = Ledger(world.experiment, time.time).memory().of("r/finetune").attempts[-1]
    assert attempt.batch == {"batch_size": "2", "gradient_accumulation_steps": "2"}
    fails_for_want_of_gpu_memory(world)
    until(world, Condition.QUEUED)
    assert (sorted(batch_of(world)), intents(world)) == (["1", "4"], 3)


def test_a_smaller_batch_by_hand_goes_on_after_a_release_also_where_no_setting_asks_for_it(lab: Callable[[str], Lab]):
    world = lab("")
    until(world, Condition.QUEUED)
    world.run_job(State.FAILED, epochs=1, log=LOG)
    until(world, Condition.FAILED)
    write_batch(world, "2", "2")
    until(world, Condition.FAILED)
    carry_out(world.scene(), Order("release", ("r/finetune",)), lambda prospect: True)
    until(world, Condition.QUEUED)
    assert (sorted(batch_of(world)), epochs(world), intents(world)) == (["2", "2"], [], 2)


def test_a_batch_half_put_back_is_submitted_whole(lab: Callable[[str], Lab]):
    world = lab("shrink_batch: true\n")
    before = batch_of(world)
    until(world, Condition.QUEUED)
    fails_for_want_of_gpu_memory(world)
    until(world, Condition.QUEUED)
    world.cluster.finish(world.job().id, state=State.NODE_FAIL)
    spell(world, "batch_size: 2", "batch_size: 4")
    until(world, Condition.QUEUED)
    assert batch_of(world) == before
    assert Ledger(world.experiment, time.time).memory().of("r/finetune").edits == ()


def test_a_script_that_changed_for_a_while_makes_no_drift_of_a_step_with_a_smaller_batch(lab: Callable[[str], Lab]):
    world = lab("shrink_batch: true\n")
    until(world, Condition.QUEUED)
    fails_for_want_of_gpu_memory(world)
    until(world, Condition.QUEUED)
    world.run_job()
    script = world.config.parent / "finetune.slurm"
    before = script.read_text()
    script.write_text(before + "echo done\n")
    world.apply()
    world.cluster.advance(5)
    (drifted,) = world.apply().actions
    assert (drifted.condition, "commands" in drifted.reason.message) == (Condition.DRIFTED, True)
    script.write_text(before)
    (stands,) = world.apply().actions
    assert (stands.condition, intents(world)) == (Condition.DONE, 2)
