"""torchtune's outputs where it matters by a hair: what a launch can go on from, equal times, and how much is told."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

from reconciler.errors import DiskUnreadable
from reconciler.model import OutputState
from test_torchtune import DISK, Sample, Sealed, complete, sample, truncate, unpacked  # noqa: F401 - the fixtures

BROKEN = OutputState.INCOMPLETE
KILLED = "killed9_between_epochs"  # after epoch 0, whose end is recorded
IN_SAVE = "killed_during_save_epoch1_adapter_pt"
EVERYTHING = ["epoch_0", "recipe_state", "torchtune_config.yaml"]


def test_a_training_goes_on_from_the_epochs_whose_end_was_recorded(sample: Callable[[str], Sample]) -> None:  # noqa: F811
    between, within = sample(KILLED), sample(IN_SAVE)
    outputs = between.check()
    assert (outputs.state, outputs.resumable, outputs.torn_to_resume) == (BROKEN, 1, ())
    assert outputs.torn == tuple(between.output / name for name in EVERYTHING)
    outputs = within.check()
    assert (outputs.resumable, outputs.torn_to_resume) == (1, (within.output / "epoch_1",))


@pytest.mark.parametrize("lost", ["recipe_state", "an epoch that is whole", "its adapter", "the record cannot be read"])
def test_nothing_is_gone_on_from_that_the_trainer_would_not_find_whole(
    sample: Callable[[str], Sample],  # noqa: F811
    lost: str,
) -> None:
    killed = sample(KILLED)
    epoch, disk = killed.output / "epoch_0", DISK
    names = EVERYTHING
    if lost == "recipe_state":
        shutil.rmtree(killed.output / "recipe_state")
        names = ["epoch_0", "torchtune_config.yaml"]
    elif lost == "an epoch that is whole":
        truncate(epoch / "adapter_model.safetensors", 100)
    elif lost == "its adapter":
        (epoch / "adapter_weights").mkdir()
        (epoch / "adapter_model.pt").rename(epoch / "adapter_weights" / "adapter_model.pt")
    else:
        disk = Sealed(lambda path: path.name == "recipe_state.pt")
    outputs = killed.check(disk)
    assert (outputs.state, outputs.resumable) == (BROKEN, 0)
    assert outputs.torn == outputs.torn_to_resume == tuple(killed.output / name for name in names)


def test_what_was_written_at_the_very_time_of_the_launch_is_the_launchs(complete: Sample) -> None:  # noqa: F811
    complete.set(epochs_to_save="[0]")
    at = complete.launched.stat().st_mtime_ns
    for path in complete.output.rglob("*"):
        os.utime(path, ns=(at, at))
    assert complete.check().state is OutputState.COMPLETE
    for path in (complete.output / "recipe_state").rglob("*"):
        os.utime(path, ns=(at - 1, at - 1))
    shutil.rmtree(complete.output / "epoch_1")
    assert complete.check().state is BROKEN


def test_three_faults_are_told_and_the_others_counted(complete: Sample) -> None:  # noqa: F811
    epoch = complete.output / "epoch_1"
    names = ["adapter_model.pt", "adapter_model.safetensors", "adapter_config.json", "config.json", "generation_config.json"]
    (epoch / names[0]).unlink()
    (epoch / names[1]).unlink()
    (epoch / names[2]).unlink()
    message = complete.check().reason.message
    assert message.count(";") == 2
    assert "more" not in message
    (epoch / names[3]).unlink()
    (epoch / names[4]).unlink()
    message = complete.check().reason.message
    assert message.count("is missing") == 3
    assert message.endswith("and 2 more")


def test_a_launch_that_cannot_be_read_is_told_before_what_it_left(complete: Sample) -> None:  # noqa: F811
    complete.launched.unlink()
    truncate(complete.output / "epoch_1" / "adapter_model.pt", 100)
    message = complete.check().reason.message
    assert message.startswith("torchtune_config.yaml is missing")
    assert "adapter_model.pt" in message


def test_what_cannot_be_read_is_told_with_its_path(complete: Sample) -> None:  # noqa: F811
    complete.set(epochs_to_save="[0]")
    shutil.rmtree(complete.output / "epoch_1")
    outputs = complete.check(Sealed(lambda path: path.name == "recipe_state.pt"))
    assert outputs.state is OutputState.UNKNOWN
    assert "recipe_state.pt: Permission denied" in outputs.reason.message


def test_a_disk_that_fails_in_the_middle_of_a_look_leaves_everything_unknown(complete: Sample) -> None:  # noqa: F811
    class Failing(Sealed):
        def names(self, directory):
            raise DiskUnreadable(f"{directory}: Input/output error")

    outputs = complete.check(Failing(lambda path: False))
    assert (outputs.state, outputs.reason.code) == (OutputState.UNKNOWN, "DiskUnreadable")
    assert "Input/output error" in outputs.reason.message


# --- all that is told of outputs ---------------------------------------------------------------------


def test_a_verdict_tells_all_that_a_plan_needs_of_it(sample: Callable[[str], Sample], complete: Sample) -> None:  # noqa: F811
    newest = max(path.stat().st_mtime_ns / 1e9 for path in complete.output.rglob("*"))
    whole = complete.check()
    assert (whole.reason.code, whole.newest, whole.has_work, whole.torn) == ("Verified", newest, False, ())
    sealed = complete.check(Sealed(lambda path: path.name == "adapter_model.safetensors"))
    assert (sealed.state, sealed.reason.code, sealed.newest) == (OutputState.UNKNOWN, "DiskUnreadable", newest)
    assert sealed.progress == "epoch 0/2"
    killed = sample(KILLED)
    broken = killed.check()
    assert (broken.reason.code, broken.has_work, broken.marked, broken.evidence) == ("Incomplete", True, False, ())
    assert broken.newest == max(path.stat().st_mtime_ns / 1e9 for path in killed.output.rglob("*"))
    nothing = sample("failed_exception").check()
    assert (nothing.has_work, nothing.resumable, nothing.torn, nothing.torn_to_resume) == (True, 0, (), ())
    complete.edit(("epochs: 2", "epochs: 3"))
    other = complete.check()
    assert (other.state, other.reason.code, other.newest) == (OutputState.MISMATCH, "Drifted", newest)
    shutil.rmtree(complete.output)
    gone = complete.check()
    assert (gone.state, gone.reason.code) == (OutputState.ABSENT, "NoOutputs")
    assert str(complete.output) in gone.reason.message
    complete.output.write_text("a file")
    file = complete.check()
    assert (file.state, file.reason.code) == (OutputState.UNKNOWN, "NotADirectory")


@pytest.mark.parametrize(
    ("launched", "wanted"), [("/data/one", "/data/two"), ("a//b", "a/b"), ("/data", "data"), ("data", "/data")]
)
def test_another_path_or_word_is_another_training(complete: Sample, launched: str, wanted: str) -> None:  # noqa: F811
    complete.set(data=launched)
    assert complete.check().state is OutputState.COMPLETE
    complete.edit((f"data: {launched}\n", f"data: {wanted}\n"))
    outputs = complete.check()
    assert outputs.state is OutputState.MISMATCH
    assert f"data {launched} → {wanted}" in outputs.reason.message


def test_a_longer_way_to_the_same_path_is_the_same_training(complete: Sample) -> None:  # noqa: F811
    complete.set(data="/data/one")
    complete.edit(("data: /data/one\n", "data: /data/../data//one\n"))
    assert complete.check().state is OutputState.COMPLETE
