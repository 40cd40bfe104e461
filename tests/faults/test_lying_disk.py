"""Files that are not what they were: torn after they verified, gone, late, from another time, unreadable, or not files at all."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lies import KEYS, PHASES, RERUNS, TRAINING, Lab, lab_at

from fake_slurm.jobs import State
from reconciler.disk import RealDisk
from reconciler.errors import DiskUnreadable
from reconciler.loop import preview, run_pass
from reconciler.model import Condition, Verb
from reconciler.ports import Disk, FileInfo


class LyingDisk:
    """The real disk, but for paths below ``where``: there ``lie`` may raise, or say that nothing is there (None)."""

    def __init__(self, where: Path, lie: Callable[[Path], bool]) -> None:
        self._real, self._where, self._lie = RealDisk(), where, lie

    def _hides(self, path: Path) -> bool:
        return path.is_relative_to(self._where) and self._lie(path)

    def stat(self, path: Path) -> FileInfo | None:
        return None if self._hides(path) else self._real.stat(path)

    def names(self, directory: Path) -> tuple[str, ...] | None:
        return None if self._hides(directory) else self._real.names(directory)

    def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        return None if self._hides(path) else self._real.read(path, offset, length)

    def why_not_writable(self, path: Path) -> str:
        return self._real.why_not_writable(path)


def unreadable(name: str) -> Callable[[Path], bool]:
    def lie(path: Path) -> bool:
        raise DiskUnreadable(f"{path}: {name}")

    return lie


def apply_with(lab: Lab, disk: Disk) -> dict[str, Condition]:
    seen = run_pass(replace(lab.scene(), disk=disk))
    lab._check()
    return {action.step: action.condition for action in seen.actions}


@pytest.mark.fault("the outputs cannot be read: ESTALE, EIO, EACCES")
@pytest.mark.parametrize("name", ["Stale file handle", "Input/output error", "Permission denied"])
@pytest.mark.parametrize("phase", PHASES)
def test_outputs_that_cannot_be_read_make_their_step_wait(phase, name):
    with lab_at(phase) as lab:
        jobs = {job.id for job in lab.jobs_of(TRAINING)}
        disk = LyingDisk(lab.result(TRAINING).parent, unreadable(name))
        for _ in range(4):
            stands = apply_with(lab, disk)
            lab.pass_time(400)
        if phase not in ("done",):
            assert stands[TRAINING] in (Condition.UNKNOWN, Condition.RUNNING, Condition.QUEUED), stands
        assert {job.id for job in lab.jobs_of(TRAINING)} <= jobs
        lab.converges(training=RERUNS.get(phase, 0))


@pytest.mark.fault("a file server shows new files late, for a pass or two")
@pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED, State.NODE_FAIL])
@pytest.mark.parametrize("late", [1, 2])
def test_outputs_that_are_shown_late_are_not_made_again(late, state):
    """Within ``settle``: for longer, nobody could tell them from outputs that are not there."""
    with lab_at("running") as lab:
        lab.finish(TRAINING, "whole", state)
        disk = LyingDisk(lab.result(TRAINING).parent, lambda path: True)
        for _ in range(late):
            apply_with(lab, disk)
            lab.pass_time(140)
        lab.converges()


def torn(path: Path) -> None:
    path.write_text("who")


def gone(path: Path) -> None:
    path.unlink()


def directory_gone(path: Path) -> None:
    shutil.rmtree(path.parent)


def touched(path: Path) -> None:
    os.utime(path)


def from_the_future(path: Path) -> None:
    os.utime(path, (4e9, 4e9))


def from_1970(path: Path) -> None:
    os.utime(path, (0, 0))


def copied_back(path: Path) -> None:
    """cp -r there and back: other inodes, other times."""
    copy = path.parent.with_name("copy")
    shutil.copytree(path.parent, copy, copy_function=shutil.copy)
    shutil.rmtree(path.parent)
    copy.rename(path.parent)


def linked_hard(path: Path) -> None:
    os.link(path, path.with_name("other-name"))


def behind_a_symlink(path: Path) -> None:
    elsewhere = path.with_name("real-result")
    path.rename(elsewhere)
    path.symlink_to(elsewhere.name)


def directory_behind_a_symlink(path: Path) -> None:
    elsewhere = path.parent.with_name("real-out")
    path.parent.rename(elsewhere)
    path.parent.symlink_to(elsewhere)


CHANGES = {
    each.__name__.replace("_", " "): each
    for each in (
        torn, gone, directory_gone, touched, from_the_future, from_1970, copied_back, linked_hard, behind_a_symlink,
        directory_behind_a_symlink,
    )
}  # fmt: skip
_STILL_WHOLE = [what for what in CHANGES if what not in ("torn", "gone", "directory gone")]


@pytest.mark.fault("verified outputs are torn, purged, touched, copied, linked or dated anew")
@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("deep", [False, True], ids=["", "deep"])
def test_what_was_verified_stands_whatever_becomes_of_its_files(what, deep):
    with lab_at("done") as lab:
        CHANGES[what](lab.result(TRAINING))
        for _ in range(3):
            seen = run_pass(replace(lab.scene(), deep=deep))
            lab._check()
            lab.pass_time(400)
            stands = {action.step: action.condition for action in seen.actions}
            assert stands[TRAINING] is Condition.DONE
        assert lab.starts[TRAINING] == 1


@pytest.mark.fault("outputs are touched, copied, linked or dated anew before they were verified")
@pytest.mark.parametrize("what", _STILL_WHOLE)
@pytest.mark.parametrize("phase", ["running", "ended with results"])
def test_whole_outputs_count_whatever_their_dates_and_names(what, phase):
    with lab_at(phase) as lab:
        if phase == "running":
            lab.finish(TRAINING, "whole", State.FAILED)
        CHANGES[what](lab.result(TRAINING))
        lab.converges()


@pytest.mark.fault("outputs that verified by sight are torn before they are settled")
@pytest.mark.parametrize("what", ["torn", "gone", "directory gone"])
def test_what_is_torn_before_it_was_verified_is_never_done(what):
    with lab_at("ended with results") as lab:
        CHANGES[what](lab.result(TRAINING))
        for _ in range(4):
            seen = lab.apply()
            lab.pass_time(400)
        assert seen is not None
        stands = {action.step: action.condition for action in seen.actions}
        assert stands[TRAINING].needs_person
        assert lab.starts[TRAINING] == 1


@pytest.mark.fault("a checkpoint is purged file by file")
@pytest.mark.parametrize("phase", ["ended with results", "done"])
def test_a_checkpoint_purged_file_by_file_is_not_trained_again_unasked(phase):
    with lab_at(phase) as lab:
        for change in (torn, gone, lambda path: path.parent.rmdir()):
            change(lab.result(TRAINING))
            lab.apply()
            lab.pass_time(400)
        assert lab.starts[TRAINING] == 1


def root_of(lab: Lab) -> Path:
    return lab.directory / "a"


@pytest.mark.fault("the output root is unmounted: gone, or empty")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("how", ["gone", "empty"])
def test_an_unmounted_root_submits_nothing_that_was_running_or_made(phase, how):
    """The root of the stand-in's outputs is the run's own directory, of which the disk shows nothing of ``out``."""
    with lab_at(phase) as lab:
        lab.apply()
        root = root_of(lab)
        hidden = root if how == "gone" else root / "out"

        class Unmounted(LyingDisk):
            """The scaffolding is elsewhere: it stays."""

        disk = Unmounted(hidden, lambda path: "eval" not in path.parts and path.name not in ("finetune.slurm",))
        before = lab.starts[TRAINING]
        for _ in range(4):
            apply_with(lab, disk)
            lab.pass_time(100)
        assert lab.starts[TRAINING] <= max(before, 1) + (phase == "to be tried again")
        lab.converges(training=RERUNS.get(phase, 0))


# --- things that are no files


def loop(path: Path) -> None:
    path.symlink_to(path)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.mkdir()


def to_itself(path: Path) -> None:
    path.symlink_to(path.parent, target_is_directory=True)


NO_FILES = {each.__name__.replace("_", " "): each for each in (loop, dangling, fifo, directory, to_itself)}
_PLACES = ("a/out/finetune/result", "a/extra", "extra", "STATUS.md", "a/out")


@pytest.mark.fault("symlink loops, dangling symlinks, FIFOs and directories where files should be")
@pytest.mark.parametrize("what", NO_FILES)
@pytest.mark.parametrize("place", _PLACES)
def test_a_thing_that_is_no_file_costs_at_most_its_own_step(place, what):
    with lab_at("nothing submitted yet") as lab:
        path = lab.directory / place
        path.parent.mkdir(parents=True, exist_ok=True)
        old = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        NO_FILES[what](path)
        for _ in range(2):
            try:
                seen = run_pass(lab.scene())
            except DiskUnreadable:
                continue
            lab._check()
            stands = {action.step: action.condition for action in seen.actions}
            assert stands["base/eval/cap_base"] is not Condition.UNKNOWN
            lab.pass_time(30)
        assert lab.starts["base/eval/cap_base"] == 1
        assert lab.starts[TRAINING] <= 1
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        if old is not None:
            path.write_bytes(old)
        lab.settle_down()
        assert {key: lab.starts[key] for key in KEYS} == dict.fromkeys(KEYS, 1)


@pytest.mark.fault("a directory of 100,000 files")
def test_a_hundred_thousand_files_cost_no_more_than_their_names():
    """The memory of listing them once is the floor; a pass may take a small multiple of that."""
    with lab_at("ended with results") as lab:
        crowd = lab.result(TRAINING).parent
        for number in range(100_000):
            os.close(os.open(crowd / f"step_{number}.tmp", os.O_CREAT | os.O_WRONLY))
        tracemalloc.start()
        try:
            names = os.listdir(crowd)  # noqa: PTH208 - the floor
            floor = tracemalloc.get_traced_memory()[1]
            assert len(names) > 100_000
            del names
            tracemalloc.reset_peak()
            shown = preview(lab.scene())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert shown.plan.of(TRAINING).verb is Verb.MARK_DONE
        assert peak < 4 * floor
