from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.batch_script import parse_batch_script
from reconciler.disk import RealDisk
from reconciler.errors import DiskUnreadable, Problem
from reconciler.experiment.document import Document
from reconciler.experiment.links import linked
from reconciler.model import Outputs, OutputState, Reason, RunInput, RunKind, Stage, Step, Unknown
from reconciler.ports import FileInfo
from reconciler.script_checks import script_problems
from reconciler.tools import all_tools
from reconciler.tools.formats.omega_config import ConfigFault, read_omega_config
from reconciler.tools.formats.safetensors import safetensors_fault
from reconciler.tools.formats.torch_zip import read_integer, torch_zip_fault
from reconciler.tools.torchtune import TOOL

SAMPLES = Path(__file__).parent / "samples" / "torchtune.tar.gz"
DISK = RealDisk()
SCRIPT = "#!/bin/bash\n#SBATCH --time=01:00:00\ntune run lora_finetune_single_device --config finetune.yaml\n"


@dataclass
class Sealed:
    """A disk on which some paths may not be looked at by this user."""

    is_sealed: Callable[[Path], bool]

    def stat(self, path: Path) -> FileInfo | None:
        return DISK.stat(path)

    def names(self, directory: Path) -> tuple[str, ...] | None:
        self._refuse(directory)
        return DISK.names(directory)

    def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        self._refuse(path)
        return DISK.read(path, offset, length)

    def _refuse(self, path: Path) -> None:
        if self.is_sealed(path):
            raise DiskUnreadable(f"{path}: Permission denied")


@dataclass
class Counting(Sealed):
    """A disk that counts the bytes read."""

    total: int = 0

    def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        found = super().read(path, offset, length)
        self.total += len(found or b"")
        return found


@dataclass(frozen=True)
class Sample:
    """One run of the samples, unpacked, with its configurations naming where it now is."""

    run: RunInput
    output: Path
    base: Path

    @property
    def config(self) -> Path:
        return self.run.directory / "finetune.yaml"

    @property
    def launched(self) -> Path:
        return self.output / "torchtune_config.yaml"

    def read(self) -> tuple[Step, tuple[Problem, ...]]:
        reading = TOOL.read(self.run, DISK)
        (step,) = reading.steps
        return step, reading.problems

    def check(self, disk: RealDisk | Sealed = DISK, *, deep: bool = False) -> Outputs:
        return TOOL.check(self.read()[0], disk, deep=deep)

    def edit(self, *changes: tuple[str, str], launched: bool = False) -> None:
        """Replace text in finetune.yaml, and in what was launched too where ``launched``."""
        for path in (self.config, self.launched) if launched else (self.config,):
            rewrite(path, lambda text: [text := text.replace(old, new) for old, new in changes][-1])

    def set(self, **settings: object) -> None:
        """Give top-level settings, as if the run had been configured and launched so."""
        lines = "".join(f"{name}: {value}\n" for name, value in settings.items())
        given = re.compile(rf"^({'|'.join(settings)}):.*\n", re.MULTILINE)
        for path in (self.config, self.launched):
            rewrite(path, lambda text: given.sub("", text) + lines)


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Change a text file and keep its times."""
    times = path.stat()
    path.write_text(change(path.read_text()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def truncate(path: Path, size: int) -> None:
    """Cut a file short and keep its times."""
    times = path.stat()
    os.truncate(path, size)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("samples")
    with tarfile.open(SAMPLES) as archive:
        archive.extractall(root, filter="data")
    return root / "torchtune"


@pytest.fixture
def sample(unpacked: Path, tmp_path: Path) -> Callable[[str], Sample]:
    def unpack(name: str) -> Sample:
        home = tmp_path / name
        shutil.copytree(unpacked / name, home)
        base = tmp_path / "base"
        if not base.exists():
            shutil.copytree(unpacked / "base-tiny", base)
        (output,) = home.glob("ck-out-*")
        for path in (home / "run" / "finetune.yaml", output / "torchtune_config.yaml"):
            rewrite(path, lambda text: text.replace("/scratch/lab/base/tiny", str(base)))
            rewrite(path, lambda text: re.sub(r"/scratch/lab/out/[\w-]+", str(output), text))
        script = home / "run" / "finetune.slurm"
        if not script.exists():
            script.write_text(SCRIPT)
        run = RunInput(name, RunKind.FINE_TUNED, home / "run", home / "experiment_summary.md", 7)
        return Sample(run, output, base)

    return unpack


@pytest.fixture
def complete(sample: Callable[[str], Sample]) -> Sample:
    return sample("complete")


# --- every sample, judged by the rules -------------------------------------------------------------

BROKEN = OutputState.INCOMPLETE


@pytest.mark.parametrize(
    ("name", "state", "words", "progress"),
    [
        ("complete", OutputState.COMPLETE, "epoch_0, epoch_1 verified", "epoch 2/2"),
        ("adapter_only", OutputState.COMPLETE, "epoch_0, epoch_1 verified", "epoch 2/2"),
        ("rerun_stale_epoch1", OutputState.COMPLETE, "epoch_0 verified", "epoch 1/1"),
        ("failed_but_job_COMPLETED", BROKEN, "left no epoch", "epoch 0/2"),
        ("failed_exception", BROKEN, "left no epoch", "epoch 0/2"),
        ("killed9_between_epochs", BROKEN, "epoch_1: is missing", "epoch 1/2"),
        ("killed_during_save_epoch1_adapter_pt", BROKEN, "epoch_1: adapter_model.pt is cut short", "epoch 1/2"),
        ("killed_during_save_epoch1_safetensors070", BROKEN, "epoch_1: model.safetensors.index.json is missing", "epoch 1/2"),
        ("killed_between_save_and_recipe_state_3ep", OutputState.MISMATCH, "epochs 3 → 2", ""),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_a_sample_is_what_the_rules_say(
    sample: Callable[[str], Sample], name: str, state: OutputState, words: str, progress: str, deep: bool
) -> None:
    outputs = sample(name).check(deep=deep)
    assert outputs.state is state
    assert words in outputs.reason.message
    assert outputs.progress == progress
    assert not outputs.marked


def test_a_kill_between_two_saves_names_what_is_missing(sample: Callable[[str], Sample]) -> None:
    killed = sample("killed_between_save_and_recipe_state_3ep")
    killed.edit(("epochs: 2", "epochs: 3"))
    outputs = killed.check()
    assert outputs.state is BROKEN
    assert "epoch_1: adapter_model.safetensors is missing" in outputs.reason.message
    assert outputs.progress == "epoch 1/3"


def test_what_another_launch_would_train_over_is_named_and_the_logs_are_not(sample: Callable[[str], Sample]) -> None:
    killed = sample("killed_during_save_epoch1_adapter_pt")
    names = ["epoch_0", "epoch_1", "recipe_state", "torchtune_config.yaml"]
    assert killed.check().torn == tuple(killed.output / name for name in names)


@pytest.mark.parametrize("name", ["failed_but_job_COMPLETED", "failed_exception", "complete"])
def test_where_nothing_was_trained_or_all_was_nothing_is_torn(sample: Callable[[str], Sample], name: str) -> None:
    assert sample(name).check().torn == ()


def test_a_verified_training_is_evidenced_by_its_weights_and_index(complete: Sample) -> None:
    files = {str(Path(file.path).relative_to(complete.output)): file for file in complete.check().evidence}
    weights = (
        "adapter_model.pt",
        "adapter_model.safetensors",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
    )
    assert sorted(files) == [f"epoch_{epoch}/{name}" for epoch in (0, 1) for name in weights]
    assert files["epoch_1/adapter_model.pt"].size == 15695


def test_the_newest_file_tells_how_long_all_has_been_quiet(complete: Sample) -> None:
    log = next((complete.output / "logs").iterdir())
    later = time.time() + 50
    os.utime(log, (later, later))
    assert complete.check().newest == pytest.approx(later)


def test_looking_reads_little(complete: Sample) -> None:
    disk = Counting(lambda path: False)
    assert complete.check(disk).state is OutputState.COMPLETE
    assert disk.total < 100_000


# --- rule 1 and 2: weights and adapters -------------------------------------------------------------

FILES = [
    "epoch_1/model-00001-of-00001.safetensors",
    "epoch_1/model.safetensors.index.json",
    "epoch_0/adapter_model.pt",
    "epoch_1/adapter_model.pt",
    "epoch_1/adapter_model.safetensors",
    "epoch_1/adapter_config.json",
    "epoch_1/config.json",
    "epoch_0/original/tokenizer.model",
]


@pytest.mark.parametrize("file", FILES)
def test_no_file_cut_short_ever_verifies(complete: Sample, file: str) -> None:
    path = complete.output / file
    size = path.stat().st_size
    for length in (size - 1, size - 21, size // 2, 9, 8, 7, 1, 0):
        truncate(path, max(0, length))
        outputs = complete.check()
        assert outputs.state is BROKEN, length
        assert path.name in outputs.reason.message
        assert outputs.torn


@pytest.mark.parametrize("file", FILES)
def test_no_file_missing_ever_verifies(complete: Sample, file: str) -> None:
    (complete.output / file).unlink()
    outputs = complete.check()
    assert outputs.state is BROKEN
    assert "is missing" in outputs.reason.message


@pytest.mark.parametrize("file", FILES[:6])
def test_a_file_that_may_not_be_read_is_unknown(complete: Sample, file: str) -> None:
    outputs = complete.check(Sealed(lambda path: path == complete.output / file))
    assert outputs.state is OutputState.UNKNOWN
    assert "Permission denied" in outputs.reason.message


def test_what_is_surely_broken_is_broken_even_beside_what_cannot_be_read(complete: Sample) -> None:
    truncate(complete.output / "epoch_1" / "adapter_model.pt", 100)
    sealed = Sealed(lambda path: path.name == "adapter_model.safetensors")
    assert complete.check(sealed).state is BROKEN


def test_an_output_directory_that_may_not_be_listed_is_unknown(complete: Sample) -> None:
    assert complete.check(Sealed(lambda path: path == complete.output)).state is OutputState.UNKNOWN


def test_damage_in_the_middle_of_a_torch_file_is_seen_by_a_deep_look(complete: Sample) -> None:
    path = complete.output / "epoch_1" / "adapter_model.pt"
    content = bytearray(path.read_bytes())
    content[9_000:9_100] = bytes(100)
    path.write_bytes(content)
    assert TOOL.check(complete.read()[0], DISK).state is OutputState.COMPLETE
    assert complete.check(deep=True).state is BROKEN


@pytest.mark.parametrize("moved", [3, 2, 1])
def test_stashed_adapters_are_found_also_half_stashed(complete: Sample, moved: int) -> None:
    for epoch in ("epoch_0", "epoch_1"):
        stash = complete.output / epoch / "adapter_weights"
        stash.mkdir()
        for name in ("adapter_config.json", "adapter_model.pt", "adapter_model.safetensors")[:moved]:
            (complete.output / epoch / name).rename(stash / name)
    assert complete.check().state is OutputState.COMPLETE
    truncate(stash / "adapter_config.json", 0)
    assert complete.check().state is BROKEN


def test_an_adapter_in_its_place_counts_before_a_stashed_one(complete: Sample) -> None:
    epoch = complete.output / "epoch_1"
    (epoch / "adapter_weights").mkdir()
    shutil.copy2(epoch / "adapter_model.pt", epoch / "adapter_weights")
    truncate(epoch / "adapter_model.pt", 100)
    assert complete.check().state is BROKEN


def test_a_leftover_temporary_file_alone_means_nothing(complete: Sample) -> None:
    (complete.output / "epoch_1" / ".tmpabcdef").write_bytes(bytes(100))
    assert complete.check().state is OutputState.COMPLETE


def test_shards_are_those_that_the_index_names(complete: Sample) -> None:
    for epoch in ("epoch_0", "epoch_1"):
        index = complete.output / epoch / "model.safetensors.index.json"
        rewrite(index, lambda text: text.replace("model-00001-of-00001", "part-a", 1))
        assert complete.check().state is BROKEN
        shutil.copy2(complete.output / epoch / "model-00001-of-00001.safetensors", complete.output / epoch / "part-a.safetensors")
    assert complete.check().state is OutputState.COMPLETE


def test_an_index_cannot_lead_out_of_its_epoch(complete: Sample) -> None:
    index = complete.output / "epoch_1" / "model.safetensors.index.json"
    rewrite(index, lambda text: text.replace("model-00001-of-00001", "../epoch_0/model-00001-of-00001"))
    assert complete.check().state is BROKEN


def test_a_full_finetune_needs_no_adapters(complete: Sample) -> None:
    for path in complete.output.glob("epoch_*/adapter_*"):
        path.unlink()
    assert complete.check().state is BROKEN
    for path in (complete.config, complete.launched):
        rewrite(
            path, lambda text: re.sub(r"(?m)^  (lora_|apply_lora|- \w+_proj).*\n", "", text).replace("lora_llama3_2", "llama3_2")
        )
    assert complete.check().state is OutputState.COMPLETE


# --- rule 3: the copies of the base model's files ------------------------------------------------------


def test_purged_copies_of_the_base_model_are_missing(complete: Sample) -> None:
    for path in complete.output.glob("epoch_*/tokenizer*.json"):
        path.unlink()
    outputs = complete.check()
    assert outputs.state is BROKEN
    assert "tokenizer.json is missing" in outputs.reason.message


def test_a_base_model_that_cannot_be_read_leaves_a_sound_training_unknown(complete: Sample) -> None:
    sealed = Sealed(lambda path: path == complete.base)
    outputs = complete.check(sealed)
    assert outputs.state is OutputState.UNKNOWN
    assert "base model" in outputs.reason.message
    (complete.output / "epoch_1" / "adapter_model.pt").unlink()
    assert complete.check(sealed).state is BROKEN


def test_a_base_model_that_is_gone_leaves_a_sound_training_unknown(complete: Sample) -> None:
    shutil.rmtree(complete.base)
    assert complete.check().state is OutputState.UNKNOWN


class Closed(RealDisk):
    """A disk on which the base model may not be looked at."""

    def stat(self, path: Path) -> FileInfo | None:
        if path.name == "base":
            raise DiskUnreadable("base: Permission denied")
        return super().stat(path)


def test_a_training_begins_from_the_files_that_are_named_wherever_their_epoch_is_said(complete: Sample) -> None:
    complete.edit(
        (str(complete.base), str(complete.base.parent)), ("model.safetensors", f"{complete.base.name}/model.safetensors")
    )
    step, problems = complete.read()
    assert not problems
    assert complete.base / "model.safetensors" in step.reads
    assert step.need is None
    maker = replace(step, key="a/finetune", run="a", output_dir=complete.base.parent, reads=(), checkpoints={3: complete.base})
    (_, later), _ = linked((maker, step), Document("e", complete.base / "experiment_summary.md", "md", {}, ()))
    assert (later.need, later.sources, later.epoch_needed) == ("a/finetune", ("a/finetune",), 3)


def test_what_another_run_made_and_a_training_begins_from_must_be_there_down_to_its_files(complete: Sample) -> None:
    step = complete.read()[0]
    later = replace(step, others=("a/finetune",))
    assert TOOL.check(later, DISK).lacks is None
    closed = TOOL.check(later, Closed()).lacks
    (complete.base / "model.safetensors").unlink()
    gone = TOOL.check(later, DISK).lacks
    assert isinstance(gone, Reason)
    assert gone.code == "CheckpointGone"
    assert f"it begins from {complete.base / 'model.safetensors'}, which is not there" in gone.message
    assert TOOL.check(step, DISK).lacks is None
    shutil.rmtree(complete.base)
    gone = TOOL.check(later, DISK).lacks
    assert isinstance(gone, Reason)
    assert f"it begins from {complete.base}, which is not there" in gone.message
    complete.edit((str(complete.base), str(complete.base / "deeper")))
    unseen = TOOL.check(replace(complete.read()[0], others=("a/finetune",)), DISK).lacks
    assert closed == Unknown("base: Permission denied")
    assert isinstance(unseen, Unknown)
    assert f"{complete.base} is not there; is its filesystem mounted?" in unseen.why


def test_hidden_files_weights_and_indexes_of_the_base_model_are_not_asked_for(complete: Sample) -> None:
    for name in (".gitattributes", "extra.safetensors", "old.bin", "w.pth", "model.safetensors.index.json"):
        (complete.base / name).write_text("x")
    (complete.base / ".cache").mkdir()
    (complete.base / ".cache" / "x.json").write_text("x")
    assert complete.check().state is OutputState.COMPLETE
    (complete.base / "new.json").write_text("x")
    assert complete.check().state is BROKEN


# --- rule 4: the trainer went on -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "removed", "state", "marked"),
    [
        ({"epochs_to_save": "all"}, [], OutputState.COMPLETE, False),
        ({"epochs_to_save": "[1]"}, ["epoch_0"], OutputState.COMPLETE, False),
        ({"save_last_epoch_only": "True"}, ["epoch_0"], OutputState.COMPLETE, False),
        ({"save_last_epoch_only": "True", "epochs_to_save": "[0]"}, ["epoch_0"], OutputState.COMPLETE, False),
        ({"epochs_to_save": "[0]"}, ["epoch_1"], OutputState.COMPLETE, True),
        ({"epochs_to_save": "[0]"}, ["recipe_state"], OutputState.COMPLETE, True),
        ({"epochs_to_save": "[0]"}, ["epoch_1", "recipe_state"], BROKEN, False),
        ({"epochs_to_save": "'0,1'"}, ["epoch_1"], BROKEN, False),
        ({"epochs": "4", "epochs_to_save": "[0, 1]"}, [], BROKEN, False),
    ],
)
def test_only_the_epochs_to_save_are_wanted(
    complete: Sample, settings: dict[str, str], removed: list[str], state: OutputState, marked: bool
) -> None:
    complete.set(**settings)
    for name in removed:
        shutil.rmtree(complete.output / name)
    outputs = complete.check()
    assert (outputs.state, outputs.marked) == (state, marked)


def test_a_later_epoch_than_the_next_shows_that_a_save_ended(complete: Sample) -> None:
    complete.set(epochs=3, epochs_to_save="[0, 2]")
    (complete.output / "epoch_1").rename(complete.output / "epoch_2")
    shutil.rmtree(complete.output / "recipe_state")
    assert complete.check().state is OutputState.COMPLETE


def test_a_torn_recipe_state_shows_nothing(complete: Sample) -> None:
    complete.set(epochs_to_save="[0]")
    shutil.rmtree(complete.output / "epoch_1")
    truncate(complete.output / "recipe_state" / "recipe_state.pt", 30_000)
    outputs = complete.check()
    assert outputs.state is BROKEN
    assert "recipe_state" in outputs.reason.message


def test_an_unreadable_recipe_state_that_is_needed_is_unknown(complete: Sample) -> None:
    complete.set(epochs_to_save="[0]")
    shutil.rmtree(complete.output / "epoch_1")
    assert complete.check(Sealed(lambda path: path.name == "recipe_state.pt")).state is OutputState.UNKNOWN


# --- rule 5: the same launch -----------------------------------------------------------------------


def relaunch(sample: Sample) -> None:
    later = sample.launched.stat().st_mtime + 3600
    os.utime(sample.launched, (later, later))


def test_weights_older_than_the_launch_are_an_earlier_ones(complete: Sample) -> None:
    relaunch(complete)
    outputs = complete.check()
    assert outputs.state is BROKEN
    assert "older than the last launch" in outputs.reason.message
    assert complete.output / "epoch_0" in outputs.torn


def test_a_launch_that_resumed_keeps_the_epochs_from_before(complete: Sample) -> None:
    rewrite(complete.launched, lambda text: text.replace("resume_from_checkpoint: false", "resume_from_checkpoint: true"))
    relaunch(complete)
    assert complete.check().state is OutputState.COMPLETE


def test_a_stale_recipe_state_and_epoch_do_not_end_the_save_of_a_new_one(complete: Sample) -> None:
    complete.set(epochs_to_save="[0]")
    relaunch(complete)
    later = complete.launched.stat().st_mtime + 1
    for path in (complete.output / "epoch_0").rglob("*"):
        os.utime(path, (later, later))
    assert complete.check().state is BROKEN


@pytest.mark.parametrize(
    ("name", "torn"), [("killed_during_save_epoch1_adapter_pt", ["epoch_1"]), ("killed9_between_epochs", [])]
)
def test_what_a_launch_would_train_over_does_not_hang_on_what_the_configuration_says_of_resuming(
    sample: Callable[[str], Sample], name: str, torn: list[str]
) -> None:
    killed = sample(name)
    before = killed.check()
    killed.edit(("resume_from_checkpoint: False", "resume_from_checkpoint: True"))
    outputs = killed.check()
    assert outputs.state is BROKEN
    assert outputs.torn_to_resume == tuple(killed.output / directory for directory in torn)
    assert outputs.torn == before.torn
    assert {"epoch_0", "recipe_state", "torchtune_config.yaml"} <= {path.name for path in outputs.torn}


# --- what was launched -----------------------------------------------------------------------------


def test_another_learning_rate_is_a_mismatch_that_shows_both(complete: Sample) -> None:
    complete.edit(("lr: 3e-4", "lr: 5e-5"))
    outputs = complete.check()
    assert outputs.state is OutputState.MISMATCH
    assert "optimizer.lr 0.0003 → 5e-5" in outputs.reason.message
    assert TOOL.may_submit(complete.read()[0], outputs) == outputs.reason.message


def test_a_mismatch_shows_three_differences_and_counts_the_others(complete: Sample) -> None:
    complete.edit(
        ("seed: 14", "seed: 15"), ("batch_size: 2", "batch_size: 4"), ("lora_rank: 4", "lora_rank: 8"), ("bf16", "fp32")
    )
    assert "and 1 more" in complete.check().reason.message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lr: 3e-4", "lr: 0.00030"),
        ("lr: 3e-4", "lr: 3.0E-4   # the default"),
        ("shuffle: True", "shuffle: true"),
        ("shuffle: True", "shuffle: yes"),
        ("epochs: 2", "epochs:   2\n\n"),
        ("split: train", "split: 'train'"),
        ("lora_dropout: 0.0", "lora_dropout: 0"),
        ("clip_grad_norm: null\n", ""),
        ("resume_from_checkpoint: False", "resume_from_checkpoint: True"),
        ("path: ${base_dir}/original", "path: ${checkpointer.checkpoint_dir}/original"),
        ("\n", "\r\n"),
    ],
)
def test_another_spelling_means_the_same(complete: Sample, old: str, new: str) -> None:
    before = complete.read()[0]
    assert old in complete.config.read_text()
    complete.edit((old, new))
    after, problems = complete.read()
    assert problems == ()
    assert complete.check().state is OutputState.COMPLETE
    if "clip_grad_norm" not in old:
        assert after.definition == before.definition


def test_a_path_through_a_link_means_the_same(complete: Sample, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "base")
    complete.edit((f"base_dir: {complete.base}", f"base_dir: {tmp_path / 'link'}/"))
    assert complete.check().state is OutputState.COMPLETE


def test_another_configuration_matters_only_once_something_is_trained(sample: Callable[[str], Sample]) -> None:
    failed = sample("failed_exception")
    failed.edit(("lr: 3e-4", "lr: 5e-5"))
    outputs = failed.check()
    assert outputs.state is BROKEN
    assert TOOL.may_submit(failed.read()[0], outputs) is None


@pytest.mark.parametrize(("content", "words"), [(None, "is missing"), ("", "cut short"), ("epochs: [", "cut short")])
def test_epochs_without_a_readable_launch_are_incomplete(complete: Sample, content: str | None, words: str) -> None:
    if content is None:
        complete.launched.unlink()
    else:
        rewrite(complete.launched, lambda _: content)
    outputs = complete.check()
    assert outputs.state is BROKEN
    assert f"torchtune_config.yaml {'is ' if content is not None else ''}{words}" in outputs.reason.message
    assert complete.output / "epoch_0" in outputs.torn


# --- nothing there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("leftovers", [None, [], ["slurm-17.out"], ["logs/"], ["slurm-17.out", "logs/", "notes.txt"]])
def test_without_a_trace_of_the_trainer_the_outputs_are_absent(complete: Sample, leftovers: list[str] | None) -> None:
    shutil.rmtree(complete.output)
    for name in leftovers or []:
        complete.output.mkdir(exist_ok=True)
        (complete.output / name).mkdir() if name.endswith("/") else (complete.output / name).touch()
    outputs = complete.check()
    assert outputs.state is OutputState.ABSENT
    assert outputs.torn == ()
    assert TOOL.may_submit(complete.read()[0], outputs) is None


def test_a_finished_training_is_not_submitted_over(complete: Sample) -> None:
    outputs = complete.check()
    assert TOOL.may_submit(complete.read()[0], outputs) == outputs.reason.message


def test_a_file_in_the_place_of_the_output_directory_is_not_understood(complete: Sample) -> None:
    shutil.rmtree(complete.output)
    complete.output.write_text("a note")
    assert complete.check().state is OutputState.UNKNOWN


# --- input -----------------------------------------------------------------------------------------


def test_a_run_has_one_training_that_says_all_about_itself(complete: Sample) -> None:
    step, problems = complete.read()
    assert problems == ()
    assert (step.key, step.run, step.stage, step.tool) == ("complete/finetune", "complete", Stage.FINETUNE, "torchtune")
    assert step.script == complete.run.directory / "finetune.slurm"
    assert (step.output_dir, step.root) == (complete.output, complete.output.parent)
    assert step.checkpoints == {0: complete.output / "epoch_0", 1: complete.output / "epoch_1"}
    assert step.meaning["optimizer.lr"] == "0.0003"
    assert step.meaning["checkpointer.checkpoint_dir"] == str(complete.base)
    assert step.blocked is None
    assert TOOL.log_label(step) == ("SUBMIT_JOB", "complete")


@pytest.mark.parametrize("kind", [RunKind.CONTROL, RunKind.EVAL_ONLY])
def test_a_run_that_is_not_fine_tuned_has_no_training(complete: Sample, kind: RunKind) -> None:
    assert TOOL.read(replace(complete.run, kind=kind), DISK).steps == ()


def test_outputs_inside_the_run_count_from_the_run(complete: Sample) -> None:
    complete.edit((f"output_dir: {complete.output}", "output_dir: artifacts"))
    step, problems = complete.read()
    assert problems == ()
    assert (step.output_dir, step.root) == (complete.run.directory / "artifacts", complete.run.directory)
    assert step.root == complete.run.directory


def test_a_changed_setting_or_command_defines_another_result(complete: Sample) -> None:
    before = complete.read()[0]
    complete.edit(("seed: 14", "seed: 15"))
    seeded = complete.read()[0]
    rewrite(complete.read()[0].script, lambda text: text + "echo done\n")
    scripted = complete.read()[0]
    assert len({before.definition, seeded.definition, scripted.definition}) == 3
    assert before.placement == scripted.placement


def test_a_changed_resource_is_placement_alone(complete: Sample) -> None:
    before = complete.read()[0]
    rewrite(before.script, lambda text: text.replace("--time=00:10:00", "--time=00:20:00\n#SBATCH --requeue"))
    after = complete.read()[0]
    assert after.definition == before.definition
    assert after.placement != before.placement
    assert (before.requeue, after.requeue) == (False, True)


def test_a_working_directory_behind_a_symlink_has_two_spellings(complete: Sample) -> None:
    script = complete.read()[0].script
    (script.parent / "link").symlink_to("..")
    rewrite(script, lambda text: text.replace("#SBATCH --time", "#SBATCH --chdir=link --time"))
    after = complete.read()[0]
    assert (after.workdir, after.written_workdir) == (str(script.parent.parent), str(script.parent / "link"))


def test_a_run_without_a_directory_is_not_scaffolded(complete: Sample) -> None:
    shutil.rmtree(complete.run.directory)
    step, (problem,) = complete.read()
    assert (problem.file, problem.line, problem.run) == (complete.run.document, 7, "complete")
    assert step.blocked is not None
    assert step.blocked.code == "NotScaffolded"
    assert step.key == "complete/finetune"


@pytest.mark.parametrize("name", ["finetune.slurm", "finetune.yaml"])
def test_a_run_without_one_of_its_files_is_not_scaffolded(complete: Sample, name: str) -> None:
    (complete.run.directory / name).unlink()
    step, (problem,) = complete.read()
    assert problem.file == complete.run.directory / name
    assert step.blocked is not None
    assert step.blocked.code == "NotScaffolded"


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("epochs: 2", "epochs: 0", 57, "a whole number from 1"),
        ("epochs: 2", "epochs: two", 57, "'two'"),
        ("epochs: 2", "epochs: true", 57, "a whole number"),
        ("epochs: 2", "epochs: 2.5", 57, "a whole number"),
        ("epochs: 2", "", 0, "a whole number"),
        ("output_dir: /", "out: /", 0, "names no key"),
        ("seed: 14", "seed: [", 0, "not valid YAML"),
        ("seed: 14", "seed: ${nothing.here}", 42, "names no key"),
        ("seed: 14", "seed: ${shuffle}\nx: ${seed}\nloop: ${loop}", 44, "circle"),
        ("seed: 14", "seed: 14\nseed: 15", 43, "twice"),
        ("save_adapter_weights_only: False", "save_adapter_weights_only: 'false'", 34, "True or False"),
        ("seed: 14", "epochs_to_save: none", 42, "accepted: all"),
        ("seed: 14", "epochs_to_save: [7]", 42, "from 0 to 1"),
        ("output_dir: ${output_dir}", "output_dir: /elsewhere", 31, "the same as `output_dir`"),
        ("checkpoint_dir: ${base_dir}", "checkpoint_dir: ~/base", 28, "no `~`"),
    ],
)
def test_a_fault_of_the_configuration_blocks_the_run_and_names_its_line(
    complete: Sample, old: str, new: str, line: int, words: str
) -> None:
    assert old in complete.config.read_text()
    complete.edit((old, new))
    step, (problem,) = complete.read()
    assert words in problem.message
    assert (problem.file, problem.run, problem.warning) == (complete.config, "complete", False)
    if line:
        assert problem.line == line
    assert step.blocked is not None
    assert step.blocked.code == "ConfigInvalid"


def test_scaffolding_that_cannot_be_read_is_not_called_missing(complete: Sample) -> None:
    reading = TOOL.read(complete.run, Sealed(lambda path: path == complete.config))
    (step,) = reading.steps
    assert step.blocked is not None
    assert step.blocked.code == "ScaffoldingUnreadable"


def test_where_the_document_disagrees_the_configuration_counts_and_a_warning_says_so(complete: Sample, tmp_path: Path) -> None:
    run = replace(complete.run, epochs=5, checkpoint_dir=tmp_path / "elsewhere")
    reading = TOOL.read(run, DISK)
    assert [(problem.line, problem.warning) for problem in reading.problems] == [(2, True), (57, True)]
    assert reading.steps[0].output_dir == complete.output
    assert sorted(reading.steps[0].checkpoints) == [0, 1]
    assert reading.steps[0].blocked is None


def test_a_slash_or_a_link_is_no_disagreement(complete: Sample, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(complete.output.parent)
    for spelled in (
        f"{complete.output}/",
        f"{tmp_path}/link/{complete.output.name}",
        f"{complete.output}/../{complete.output.name}",
    ):
        assert TOOL.read(replace(complete.run, epochs=2, checkpoint_dir=Path(spelled)), DISK).problems == ()


@pytest.mark.parametrize("behind", ["", " || echo tune run", " || echo --config"])
def test_settings_on_the_command_line_are_warned_of(complete: Sample, behind: str) -> None:
    script = complete.run.directory / "finetune.slurm"
    launch = f"--config finetune.yaml \\\n  epochs=3 optimizer.lr=1e-5{behind}"
    rewrite(script, lambda text: text.replace("--config finetune.yaml", launch))
    (problem,) = complete.read()[1]
    assert problem.warning
    assert "epochs=3 optimizer.lr=1e-5" in problem.message


# --- scripts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--array=1-3", "--array"),
        ("-a 1-3", "--array"),
        ("--wait", "--wait"),
        ("-W", "--wait"),
        ("--test-only", "--test-only"),
        ("hetjob", "#SBATCH hetjob"),
        ("--clusters=other", "--clusters"),
        ("-M other", "--clusters"),
        ("--dependency=afterok:17", "--dependency"),
        ("-d singleton", "--dependency"),
        ("--output=%x-%j.out", "%x"),
        ("-e %x.err", "%x"),
        ("--output=missing/slurm-%j.out", "no directory"),
        ("--error=/no/such/place/%j.err", "no directory"),
    ],
)
def test_a_surprising_directive_is_warned_of_at_its_line(tmp_path: Path, line: str, words: str) -> None:
    script = parse_batch_script(tmp_path / "job.slurm", f"#!/bin/bash\n#SBATCH --time=1\n#SBATCH {line}\nsrun true\n")
    (problem,) = script_problems(script, "r8", DISK)
    assert words in problem.message
    assert (problem.file, problem.line, problem.run, problem.warning) == (script.path, 3, "r8", True)


@pytest.mark.parametrize("value", ["slurm-%j.out", "logs/%j.out", "/dev/null", "made/slurm-%j.out", "%u/%j.out"])
def test_an_output_file_that_can_be_written_is_fine(tmp_path: Path, value: str) -> None:
    (tmp_path / "logs").mkdir()
    script = parse_batch_script(tmp_path / "job.slurm", f"#SBATCH --output={value}\n#SBATCH --mem=1G\nsrun true\n")
    assert script_problems(script, "r8", DISK, made=tmp_path / "made") == ()


def test_an_output_directory_that_cannot_be_looked_at_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    script = parse_batch_script(tmp_path / "job.slurm", "#SBATCH --output=loop/%j.out\nsrun true\n")
    assert script_problems(script, "r8", DISK) == ()


# --- formats -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("a: 3e-4", "0.0003"),
        ("a: 1e-5", "1e-5"),
        ("a: 1_000", "1000"),
        ("a: 0x1F", "31"),
        ("a: 010", "8"),
        ("a: .5", "0.5"),
        ("a: -.inf", "-inf"),
        ("a: off", "false"),
        ("a: ~", "null"),
        ("a:", "null"),
        ("a: 2024-01-01", "2024-01-01"),
        ("a: '3'", '"3"'),
        ("a: 3", "3"),
        ("a: [1, x]", "[1, x]"),
        ("a: {}", "{}"),
        ("a: ${b}x\nb: ${c}\nc: 1", "1x"),
        ("a: ${b.${c}}\nb: {k: 5}\nc: k", "5"),
        ("a: ${b[1]}\nb: [4, 5]", "5"),
        ("a: ${b.k}\nb: ${c}\nc: {k: 7}", "7"),
        ("a: ${oc.env:HOME}/x", '"${oc.env:HOME}/x"'),
        ("b: &b 4\na: *b", "4"),
    ],
)
def test_a_scalar_means_what_the_trainers_loader_makes_of_it(text: str, meaning: str) -> None:
    assert read_omega_config(text).meaning["a"] == meaning


def test_relative_references_and_merged_mappings_are_followed() -> None:
    config = read_omega_config("x: &x {a: 1, b: 2}\ny:\n  <<: *x\n  b: 3\n  c: ${.a}\n  d: ${..x.b}")
    assert config.get("y") == {"a": 1, "b": 3, "c": 1, "d": 2}
    assert config.line("y.c") == 5


@pytest.mark.parametrize(
    "text", ["", "- a", "a", "a: b: c", "\t", "a: \x01", "a: ${a}", "a: ${b}\nb: {c: '${a}'}", "x: &x [*x]", "? [a]\n: b"]
)
def test_what_is_no_configuration_is_a_fault(text: str) -> None:
    with pytest.raises(ConfigFault):
        read_omega_config(text)


def test_references_that_multiply_are_stopped() -> None:
    lines = [f"k{n}: ${{k{n + 1}}}${{k{n + 1}}}" for n in range(60)]
    with pytest.raises(ConfigFault, match="grows without end"):
        read_omega_config("\n".join([*lines, "k60: xx"]))
    aliases = "\n".join(f"k{n}: &k{n} [{f'*k{n - 1}, ' * 9}]" for n in range(1, 12))
    with pytest.raises(ConfigFault, match="too large"):
        read_omega_config(f"k0: &k0 x\n{aliases}")


@given(st.text(max_size=60))
def test_any_text_is_a_configuration_or_a_fault(text: str) -> None:
    with suppress(ConfigFault):
        assert all(isinstance(value, str) for value in read_omega_config(text).meaning.values())


@given(cut=st.integers(min_value=0, max_value=57_655))
def test_weights_cut_anywhere_are_faulty(unpacked: Path, tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes((unpacked / "base-tiny" / "model.safetensors").read_bytes()[:cut])
    assert safetensors_fault(path, DISK)


@given(cut=st.integers(min_value=0, max_value=15_694), deep=st.booleans())
def test_an_adapter_cut_anywhere_is_faulty(
    unpacked: Path, tmp_path_factory: pytest.TempPathFactory, cut: int, deep: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.pt"
    whole = unpacked / "complete" / "ck-out-tiny_run1" / "epoch_0" / "adapter_model.pt"
    path.write_bytes(whole.read_bytes()[:cut])
    assert torch_zip_fault(path, DISK, deep=deep)


@given(st.binary(max_size=200))
def test_any_bytes_are_judged_without_an_exception(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    assert torch_zip_fault(path, DISK, deep=True)
    assert safetensors_fault(path, DISK)
    assert read_integer(path, "epochs_run", DISK) is None


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}",
        b'{"a": 1}',
        b'{"a": {"data_offsets": [0]}}',
        b'{"a": {"data_offsets": [0, "4"]}}',
        b'{"a": {"data_offsets": [4, -4]}}',
        b"[" * 100_000,
    ],
)
def test_a_header_that_makes_no_sense_is_faulty(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert safetensors_fault(path, DISK)


def test_the_weights_follow_a_header_with_or_without_notes(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert safetensors_fault(path, DISK) is None
    path.write_bytes(path.read_bytes() + b"x")
    assert safetensors_fault(path, DISK)


def pickled(tmp_path: Path, pickle: bytes) -> Path:
    path = tmp_path / "state.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("state/data.pkl", pickle)
    return path


@pytest.mark.parametrize(
    ("pickle", "value"),
    [
        (b"\x80\x02}X\x0a\x00\x00\x00epochs_runq\x01K\x03s.", 3),
        (b"\x80\x04}\x94\x8c\x0aepochs_run\x94M\x2c\x01s.", 300),
        (b"\x80\x02}X\x0a\x00\x00\x00epochs_runq\x01Ns.", None),
        (b"\x80\x02}X\x0a\x00\x00\x00other_namesq\x01K\x03s.", None),
        (b"\x80\x02}.", None),
        (b"\xff\xff", None),
        (b"", None),
    ],
)
def test_a_number_is_read_from_a_pickle_without_running_it(tmp_path: Path, pickle: bytes, value: int | None) -> None:
    assert read_integer(pickled(tmp_path, pickle), "epochs_run", DISK) == value


def test_a_pickle_that_would_run_code_is_only_read(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    command = f"touch {witness}".encode()
    pickle = b"cos\nsystem\n(V" + command + b"\ntR0\x80\x02}X\x0a\x00\x00\x00epochs_runK\x01s."
    assert read_integer(pickled(tmp_path, pickle), "epochs_run", DISK) == 1
    assert not witness.exists()


def test_every_tool_is_found_by_looking() -> None:
    tools = all_tools()
    assert tools["torchtune"] is TOOL
    assert all(tool.name == name for name, tool in tools.items())
