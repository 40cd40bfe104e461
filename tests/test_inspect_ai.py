from __future__ import annotations

import json
import os
import shutil
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.disk import RealDisk
from reconciler.errors import DiskUnreadable
from reconciler.model import EvaluationInput, Outputs, OutputState, Reading, Reason, RunInput, RunKind, Step, Unknown
from reconciler.ports import FileInfo
from reconciler.tools.formats.eval_log import LARGEST, LogDamaged, read_eval_log
from reconciler.tools.inspect_ai import TOOL

SAMPLES = Path(__file__).parent / "samples"
DISK = RealDisk()
STORED, DEFLATED, ZSTANDARD = 0, 8, 93
LONG_AGO = datetime.fromisoformat("2026-11-23T00:00:00+00:00").timestamp()
SUCCESS, ERROR, CANCELLED, KILLED, TOLERATED, LIMITED = (
    "success",
    "error",
    "cancelled",
    "killed",
    "error-tolerated",
    "success-limit2",
)


# --- a world of files ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("samples")
    for name in ("inspect", "torchtune"):
        with tarfile.open(SAMPLES / f"{name}.tar.gz") as archive:
            archive.extractall(root, filter="data")
    return root


@pytest.fixture(scope="session")
def trained_run(samples: Path) -> Path:
    return next(samples.rglob("complete/run"))


def sample_log(samples: Path, case: str) -> Path:
    return next(path for path in samples.rglob(f"{case}/*.eval"))


def compress(method: int, content: bytes) -> bytes:
    if method == ZSTANDARD:
        return zstandard.ZstdCompressor().compress(content)
    if method == DEFLATED:
        packer = zlib.compressobj(wbits=-15)
        return packer.compress(content) + packer.flush()
    return content


def archive_of(entries: Mapping[str, bytes], method: int = ZSTANDARD, claimed_size: int | None = None) -> bytes:
    """A zip of any method, which zipfile cannot write; ``claimed_size`` lies about what an entry holds."""
    body, directory = b"", b""
    for name, content in entries.items():
        packed = compress(method, content)
        size = len(content) if claimed_size is None else claimed_size
        common = struct.pack("<HHHHHLLLHH", 20, 0, method, 0, 0x21, zlib.crc32(content), len(packed), size, len(name), 0)
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + common + struct.pack("<HHHLL", 0, 0, 0, 0, len(body)) + name.encode()
        body += b"PK\x03\x04" + common + name.encode() + packed
    end = struct.pack("<HHHHLLH", 0, 0, len(entries), len(entries), len(directory), len(body), 0)
    return body + directory + b"PK\x05\x06" + end


def entries_of(log: Path) -> dict[str, bytes]:
    """Every entry of a zstd log, read independently of the code under test."""
    content, found, at = log.read_bytes(), {}, 0
    while content[at : at + 4] == b"PK\x03\x04":
        size, _, name_length, extra_length = struct.unpack("<LLHH", content[at + 18 : at + 30])
        start = at + 30 + name_length + extra_length
        packed = content[start : start + size]
        found[content[at + 30 : at + 30 + name_length].decode()] = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
        at = start + size
    return found


def merged(base: Any, changes: Mapping[str, Any]) -> Any:
    """``base`` with ``changes`` laid over it, at any depth."""
    if not isinstance(base, dict):
        return changes
    return {
        **base,
        **{key: merged(base.get(key), value) if isinstance(value, dict) and value else value for key, value in changes.items()},
    }


def header_of(log: Path, **changes: Any) -> dict[str, Any]:
    header: dict[str, Any] = merged(json.loads(entries_of(log)["header.json"]), changes)
    return header


class World:
    """One run of an experiment: its scaffolding, its checkpoints, and logs made from a real one."""

    def __init__(self, root: Path, template: Path) -> None:
        self.directory = root / "experiment" / "r8"
        self.checkpoints = {epoch: root / "out" / f"epoch_{epoch}" for epoch in (0, 1)}
        self.template = template
        self.logs = self.directory / "eval" / "logs"
        self.logs.mkdir(parents=True)
        for checkpoint in self.checkpoints.values():
            checkpoint.mkdir(parents=True)
            self.train(checkpoint, LONG_AGO)

    def train(self, checkpoint: Path, at: float) -> None:
        weights = checkpoint / "model-00001-of-00001.safetensors"
        weights.write_bytes(b"weights")
        os.utime(weights, (at, at))

    def script(self, name: str, command: str | None = None, epoch: int | None = 0) -> Path:
        path = self.directory / "eval" / name
        path.parent.mkdir(exist_ok=True)
        task = name.partition("_epoch")[0].partition("_base")[0].partition("/")[0]
        model = f" -M model_path={self.checkpoints[epoch]}" if epoch is not None else ""
        command = command or f"inspect eval tasks.py@{task} --model mockllm/model{model} --log-dir ./logs"
        path.write_text(f"#!/bin/bash\n#SBATCH --job-name=eval\n#SBATCH --time=10:00\n\n{command}\n")
        return path

    def log(self, name: str, directory: Path | None = None, model_path: Path | None = None, **changes: Any) -> Path:
        """A successful log under ``name``, of ``model_path``, with ``changes`` to its header."""
        header = merged(header_of(self.template), changes)
        told = changes.get("eval", {})
        header["eval"]["metadata"] = told.get("metadata", {})
        header["eval"]["model_args"] = {"model_path": str(model_path)} if model_path else {}
        header["eval"] |= {key: told[key] for key in ("task_args", "task_args_passed") if key in told}
        path = (directory or self.logs) / f"2026-11-23T16-00-00-00-00_{name}.eval"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archive_of({"header.json": json.dumps(header).encode()}))
        return path

    def run(self, *evaluations: tuple[str, int | None], **changes: Any) -> RunInput:
        run = RunInput(
            name="r8",
            kind=RunKind.FINE_TUNED,
            directory=self.directory,
            document=self.directory.parent / "experiment_summary.md",
            line=7,
            evaluations=tuple(EvaluationInput(task, epoch, 20 + i) for i, (task, epoch) in enumerate(evaluations)),
            checkpoints=self.checkpoints,
            preparation_key="r8/finetune",
        )
        return replace(run, **changes)

    def read(self, *evaluations: tuple[str, int | None], **changes: Any) -> Reading:
        return TOOL.read(self.run(*evaluations, **changes), DISK)

    def step(self, task: str = "tiny", epoch: int | None = 0, **changes: Any) -> Step:
        """The step of one evaluation, its script written unless it is there."""
        name = f"{task}_base.slurm" if epoch is None else f"{task}_epoch{epoch}.slurm"
        if not (self.directory / "eval" / name).exists():
            self.script(name, epoch=epoch)
        [step] = self.read((task, epoch), **changes).steps
        assert step.blocked is None
        return step


@pytest.fixture
def world(tmp_path: Path, trained_run: Path) -> World:
    return World(tmp_path, next(trained_run.glob("eval/logs/*_2b8d*.eval")))


def state(outputs: Outputs) -> tuple[OutputState, str]:
    return outputs.state, outputs.reason.code


# --- the header ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [STORED, DEFLATED, ZSTANDARD])
def test_a_header_is_the_same_however_its_zip_is_compressed(samples: Path, tmp_path: Path, method: int) -> None:
    original = sample_log(samples, SUCCESS)
    copy = tmp_path / "copy.eval"
    copy.write_bytes(archive_of(entries_of(original), method))
    assert read_eval_log(copy, DISK, deep=True) == read_eval_log(original, DISK)


def test_a_plain_json_log_tells_the_same_as_a_zip(samples: Path, tmp_path: Path) -> None:
    original = sample_log(samples, SUCCESS)
    plain = tmp_path / "log.json"
    plain.write_text(json.dumps(header_of(original)))
    assert read_eval_log(plain, DISK) == read_eval_log(original, DISK)


def test_a_killed_log_is_known_by_its_journal(samples: Path) -> None:
    log = read_eval_log(sample_log(samples, KILLED), DISK)
    assert log is not None
    assert (log.ended, log.status, log.task, log.total) == (False, "started", "tiny", None)


def test_a_json_file_that_is_no_log_is_none_of_ours(tmp_path: Path) -> None:
    listing = tmp_path / "listing.json"
    listing.write_text('{"a.eval": {}}')
    assert read_eval_log(listing, DISK) is None
    assert read_eval_log(tmp_path / "missing.eval", DISK) is None


@pytest.mark.parametrize(
    "content", [b"", b"PK\x05\x06", b"\0" * 100, archive_of({"other.json": b"{}"}), archive_of({"header.json": b"[]"})]
)
def test_a_file_that_is_no_log_is_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log.eval"
    path.write_bytes(content)
    with pytest.raises(LogDamaged):
        read_eval_log(path, DISK)


@pytest.mark.parametrize("method", [DEFLATED, ZSTANDARD])
@pytest.mark.parametrize("claimed", [None, 10])
def test_a_decompression_bomb_is_refused_before_it_unfolds(tmp_path: Path, method: int, claimed: int | None) -> None:
    bomb = tmp_path / "bomb.eval"
    bomb.write_bytes(archive_of({"header.json": b" " * (4 * LARGEST)}, method, claimed))
    assert bomb.stat().st_size < LARGEST
    tracemalloc.start()
    try:
        with pytest.raises(LogDamaged):
            read_eval_log(bomb, DISK)
        assert tracemalloc.get_traced_memory()[1] < LARGEST
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [STORED, DEFLATED, ZSTANDARD])
def test_contents_that_are_not_those_written_are_damage(samples: Path, tmp_path: Path, method: int) -> None:
    header = entries_of(sample_log(samples, CANCELLED))["header.json"]
    content = archive_of({"header.json": header}, method)
    path = tmp_path / "log.eval"
    path.write_bytes(content.replace(struct.pack("<L", zlib.crc32(header)), struct.pack("<L", zlib.crc32(b"other"))))
    with pytest.raises(LogDamaged):
        read_eval_log(path, DISK)


class Counting(RealDisk):
    """The real disk, adding up what is read from it."""

    def __init__(self) -> None:
        self.bytes_read = 0

    def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        content = super().read(path, offset, length)
        self.bytes_read += len(content or b"")
        return content


def test_a_huge_directory_is_refused_unread(tmp_path: Path) -> None:
    size = LARGEST + 1
    path = tmp_path / "log.eval"
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, 1, 1, size, 0, 0))
    disk = Counting()
    with pytest.raises(LogDamaged):
        read_eval_log(path, disk)
    assert disk.bytes_read < 1 << 20


def test_a_large_log_is_judged_by_little_reading(samples: Path, tmp_path: Path) -> None:
    entries = {"samples/1_epoch_1.json": os.urandom(8 << 20), **entries_of(sample_log(samples, SUCCESS))}
    path = tmp_path / "log.eval"
    path.write_bytes(archive_of(entries))
    disk = Counting()
    assert read_eval_log(path, disk) is not None
    assert disk.bytes_read < 1 << 18


def test_damage_in_a_sample_is_found_by_a_deep_check_alone(world: World) -> None:
    log = world.log("tiny", model_path=world.checkpoints[0])
    header = entries_of(log)["header.json"]
    content = archive_of({"samples/1_epoch_1.json": b"a" * 5000 + b"MARK", "header.json": header}, STORED)
    log.write_bytes(content.replace(b"MARK", b"DARK"))
    assert TOOL.check(world.step(), DISK).state is OutputState.COMPLETE
    assert state(TOOL.check(world.step(), DISK, deep=True)) == (OutputState.INCOMPLETE, "LogDamaged")


# --- whether a log proves its evaluation ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "options", "expected", "message"),
    [
        (SUCCESS, "", OutputState.COMPLETE, "5 of 5 samples"),
        (ERROR, "", OutputState.INCOMPLETE, "status error: RuntimeError('boom on sample 3')"),
        (CANCELLED, " -T seconds=3", OutputState.INCOMPLETE, "status cancelled"),
        (KILLED, " -T seconds=3", OutputState.INCOMPLETE, "in progress or was killed"),
        (TOLERATED, "", OutputState.INCOMPLETE, "4 of 5 samples"),
        (LIMITED, "", OutputState.INCOMPLETE, "limited to 2 samples, while the whole dataset"),
        (LIMITED, " --limit 2", OutputState.COMPLETE, "2 of 2 samples"),
        (LIMITED, " --limit 3", OutputState.INCOMPLETE, "--limit 3 is asked for"),
        (LIMITED, ' --limit "$COUNT"', OutputState.COMPLETE, "2 of 2 samples"),
        (SUCCESS, " --limit 2", OutputState.COMPLETE, "5 of 5 samples"),
    ],
)
@pytest.mark.parametrize("suffix", [".eval", ".json"])
def test_each_way_an_evaluation_can_end_is_judged_by_its_header(
    samples: Path, world: World, case: str, options: str, expected: OutputState, message: str, suffix: str
) -> None:
    log = sample_log(samples, case)
    task = "bad" if "error" in case else "tiny"
    epoch = 1 if case == SUCCESS else 0
    world.script(f"{task}_epoch{epoch}.slurm", f"inspect eval tasks.py@{task}{options}")
    copy = world.logs / f"{log.stem}{suffix}"
    if suffix == ".json":
        entries = entries_of(log)
        copy.write_bytes(
            entries.get("header.json") or json.dumps({"status": "started", **json.loads(entries["_journal/start.json"])}).encode()
        )
    else:
        copy.write_bytes(log.read_bytes())
    outputs = TOOL.check(world.step(task, epoch), DISK)
    assert outputs.state is expected
    assert message in outputs.reason.message
    assert outputs.torn == ()
    assert outputs.marked is (expected is OutputState.COMPLETE)
    assert [evidence.path for evidence in outputs.evidence] == ([str(copy)] if outputs.marked else [])


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"invalidated": True}, "LogInvalidated"),
        ({"results": {"completed_samples": 4}}, "SamplesMissing"),
        ({"results": {"total_samples": 4, "completed_samples": 4}}, "SamplesMissing"),
        ({"results": {"total_samples": 0, "completed_samples": 0}, "eval": {"dataset": {"samples": 0}}}, "SamplesMissing"),
        ({"results": None}, "SamplesMissing"),
        ({"eval": {"config": {"epochs": 2}}}, "SamplesMissing"),
        ({"eval": {"config": {"sample_id": [1, 2, 3, 4, 5]}}}, "LimitDiffers"),
        ({"eval": {"dataset": {"samples": None}}}, "SamplesMissing"),
        ({"eval": {"created": "yesterday"}}, "LogDamaged"),
    ],
)
def test_a_success_that_falls_short_is_incomplete(world: World, changes: dict[str, Any], code: str) -> None:
    world.log("tiny", model_path=world.checkpoints[0], **changes)
    outputs = TOOL.check(world.step(), DISK)
    assert state(outputs) == (OutputState.INCOMPLETE, code)
    assert TOOL.may_submit(world.step(), outputs) is None


def test_repeated_samples_count_each_time(world: World) -> None:
    world.log(
        "tiny",
        model_path=world.checkpoints[0],
        eval={"config": {"epochs": 3}},
        results={"total_samples": 15, "completed_samples": 15},
    )
    assert TOOL.check(world.step(), DISK).state is OutputState.COMPLETE


def test_one_good_log_is_enough_among_failed_and_damaged_ones(samples: Path, world: World) -> None:
    good = world.log("a", model_path=world.checkpoints[0])
    for case in (KILLED, CANCELLED):
        (world.logs / f"9_{case}.eval").write_bytes(sample_log(samples, case).read_bytes())
    (world.logs / "9_torn.eval").write_bytes(b"PK")
    outputs = TOOL.check(world.step(), DISK)
    assert outputs.state is OutputState.COMPLETE
    assert outputs.evidence[0].path == str(good)
    assert outputs.evidence[0].mtime_ns == good.stat().st_mtime_ns


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fraction=st.floats(0, 1, exclude_max=True), suffix=st.sampled_from([".eval", ".json"]))
def test_a_log_cut_short_anywhere_never_verifies(samples: Path, world: World, fraction: float, suffix: str) -> None:
    world.script("tiny_epoch1.slurm", "./evaluate.sh")
    step = world.step("tiny", 1)
    log = sample_log(samples, SUCCESS)
    content = log.read_bytes() if suffix == ".eval" else entries_of(log)["header.json"]
    path = world.logs / f"log{suffix}"
    path.write_bytes(content)
    assert TOOL.check(step, DISK).state is OutputState.COMPLETE
    path.write_bytes(content[: int(fraction * len(content))])
    assert TOOL.check(step, DISK).state is OutputState.INCOMPLETE
    path.unlink()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_log_with_changed_bytes_is_an_answer_and_no_crash(samples: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(sample_log(samples, SUCCESS).read_bytes())
    at = data.draw(st.integers(len(content) - 1500, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "log.eval"
    path.write_bytes(content)
    try:
        log = read_eval_log(path, DISK)
    except LogDamaged:
        return
    assert log is not None


# --- whose log it is -----------------------------------------------------------------------------------------


def test_the_three_logs_of_a_real_run_are_told_apart(trained_run: Path, world: World) -> None:
    for script in trained_run.glob("eval/*.slurm"):
        here = script.read_text().replace("cd /scratch/lab/runs/tiny_run1/eval", f"cd {world.directory / 'eval'}")
        (world.directory / "eval" / script.name).write_text(here)
    for log in trained_run.glob("eval/logs/*.eval"):
        (world.logs / log.name).write_bytes(log.read_bytes())
    where = Path("/scratch/lab/out/ck-out-tiny_run1/epoch_0")
    reading = world.read(("tiny", 0), ("bad", 0), ("tinycancel", 0), checkpoints={0: where}, preparation_key=None)
    assert [problem for problem in reading.problems if not problem.warning] == []
    found = {step.key: state(TOOL.check(step, DISK)) for step in reading.steps}
    assert found == {
        "r8/eval/tiny_epoch0": (OutputState.COMPLETE, "LogVerified"),
        "r8/eval/bad_epoch0": (OutputState.INCOMPLETE, "EvaluationFailed"),
        "r8/eval/tinycancel_epoch0": (OutputState.INCOMPLETE, "LogUnfinished"),
    }


def test_a_log_of_another_checkpoint_is_not_this_epochs(world: World) -> None:
    world.log("tiny", model_path=world.checkpoints[1])
    assert state(TOOL.check(world.step(), DISK)) == (OutputState.ABSENT, "NoLog")


def test_a_log_without_a_model_path_is_none_of_a_script_that_gives_one(world: World) -> None:
    world.log("tiny")
    assert state(TOOL.check(world.step(), DISK)) == (OutputState.ABSENT, "NoLog")


def test_a_checkpoint_is_known_by_its_real_path(world: World, tmp_path: Path) -> None:
    alias = tmp_path / "alias"
    alias.symlink_to(world.checkpoints[0].parent)
    world.log("tiny", model_path=alias / "epoch_0")
    assert TOOL.check(world.step(), DISK).state is OutputState.COMPLETE


def test_a_model_path_may_be_part_of_the_models_name(world: World) -> None:
    world.script("tiny_epoch0.slurm", f"inspect eval t.py@tiny --model vllm/{world.checkpoints[0]}")
    world.log("other", eval={"model": f"vllm/{world.checkpoints[1]}"})
    assert TOOL.check(world.step(), DISK).state is OutputState.ABSENT
    world.log("tiny", eval={"model": f"vllm/{world.checkpoints[0]}"})
    assert TOOL.check(world.step(), DISK).state is OutputState.COMPLETE


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task_registry_name": "lab/tiny", "task": "a label"}, OutputState.COMPLETE),
        ({"task_registry_name": None, "task": "tiny"}, OutputState.COMPLETE),
        ({"task_registry_name": "other", "task": "other"}, OutputState.ABSENT),
    ],
)
def test_in_the_older_layout_the_registered_task_is_the_identity(
    world: World, changes: dict[str, Any], expected: OutputState
) -> None:
    world.log("tiny", model_path=world.checkpoints[0], eval=changes)
    assert TOOL.check(world.step(), DISK).state is expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("-T vis_label=rank4 -T seconds=0", OutputState.COMPLETE),
        ("-T vis_label=rank8 -T seconds=0", OutputState.ABSENT),
        ("-T vis_label=rank4", OutputState.ABSENT),
        ('-T vis_label="$LABEL" -T seconds=0', OutputState.COMPLETE),
        ("-T vis_label=rank4 -T seconds=0 -T epoch=0", OutputState.COMPLETE),
        ("-T vis_label=rank4 -T seconds=0 -T epoch=1", OutputState.ABSENT),
        ("", OutputState.ABSENT),
    ],
)
def test_in_the_older_layout_task_arguments_are_part_of_the_identity(world: World, arguments: str, expected: OutputState) -> None:
    checkpoint = world.checkpoints[0]
    world.script("tiny_epoch0.slurm", f"CK={checkpoint}\ninspect eval t.py@tiny \\\n  -M model_path=$CK {arguments}")
    passed = {"vis_label": "rank4", "seconds": 0.0}
    world.log("tiny", model_path=checkpoint, eval={"task_args_passed": passed, "task_args": {**passed, "epoch": 0}})
    assert TOOL.check(world.step(), DISK).state is expected


@pytest.mark.parametrize("told", [{"metadata": {"epoch": 1}}, {"task_args": {"epoch": 1}}])
def test_an_epoch_told_in_the_log_decides_where_no_model_path_does(world: World, told: dict[str, Any]) -> None:
    for epoch in (0, 1):
        world.script(f"tiny_epoch{epoch}.slurm", "./evaluate.sh")
    world.log("tiny", eval={"task_args_passed": {}, **told})
    first, second = world.read(("tiny", 0), ("tiny", 1)).steps
    assert TOOL.check(first, DISK).state is OutputState.ABSENT
    assert TOOL.check(second, DISK).state is OutputState.COMPLETE


def test_a_log_that_two_evaluations_could_claim_is_a_question(world: World) -> None:
    for epoch in (0, 1):
        world.script(f"tiny_epoch{epoch}.slurm", "./evaluate.sh")
    log = world.log("tiny", eval={"task_args": None, "task_args_passed": None})
    for step in world.read(("tiny", 0), ("tiny", 1)).steps:
        outputs = TOOL.check(step, DISK)
        assert state(outputs) == (OutputState.AMBIGUOUS, "LogAmbiguous")
        assert log.name in outputs.reason.message
        assert TOOL.may_submit(step, outputs) == outputs.reason.message


def test_a_base_evaluation_takes_no_log_of_a_checkpoint(world: World) -> None:
    world.script("tiny_base.slurm", "./evaluate.sh")
    step = world.step("tiny", None)
    world.log("a", model_path=world.checkpoints[0])
    world.log("b", model_path=Path("/elsewhere/epoch_3"))
    assert TOOL.check(step, DISK).state is OutputState.ABSENT
    world.log("c", model_path=Path("/models/Llama-3.2-1B"))
    assert TOOL.check(step, DISK).state is OutputState.COMPLETE


def test_in_the_newer_layout_the_directory_is_the_identity_whatever_the_label(world: World) -> None:
    world.script("tiny_epoch0/cell.slurm")
    [step] = world.read(("tiny", 0)).steps
    renamed = {"task": "tiny_rank4", "task_registry_name": "model_organism"}
    world.log("x", step.output_dir, world.checkpoints[1], eval=renamed)
    assert TOOL.check(step, DISK).state is OutputState.ABSENT
    world.log("y", step.output_dir, world.checkpoints[0], eval=renamed)
    assert TOOL.check(step, DISK).state is OutputState.COMPLETE


# --- when it was made ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (-60.0, (OutputState.COMPLETE, "LogVerified")),
        (0.9, (OutputState.COMPLETE, "LogVerified")),
        (1.0, (OutputState.ABSENT, "LogOutdated")),
        (3600.0, (OutputState.ABSENT, "LogOutdated")),
    ],
)
def test_a_log_counts_from_the_second_its_weights_were_written(
    world: World, offset: float, expected: tuple[OutputState, str]
) -> None:
    created = datetime.fromisoformat("2026-11-23T15:18:21+00:00").timestamp()
    world.train(world.checkpoints[0], created + offset)
    world.log("tiny", model_path=world.checkpoints[0])
    outputs = TOOL.check(world.step(), DISK)
    assert state(outputs) == expected
    assert (TOOL.may_submit(world.step(), outputs) is None) is (expected[0] is OutputState.ABSENT)


def test_only_weight_files_tell_the_age_of_a_checkpoint(world: World) -> None:
    world.log("tiny", model_path=world.checkpoints[0])
    (world.checkpoints[0] / "config.json").write_text("{}")
    assert TOOL.check(world.step(), DISK).state is OutputState.COMPLETE


def test_a_log_without_its_checkpoint_waits_for_the_training(world: World) -> None:
    world.log("tiny", model_path=world.checkpoints[0])
    (world.checkpoints[0] / "model-00001-of-00001.safetensors").unlink()
    assert state(TOOL.check(world.step(), DISK)) == (OutputState.ABSENT, "CheckpointAbsent")


def test_while_the_whole_training_is_out_of_sight_a_log_is_neither_current_nor_outdated(world: World) -> None:
    """An unmounted root: the evaluation of a checkpoint that was there is not made again, nor called failed."""
    world.log("tiny", model_path=world.checkpoints[0])
    trained = world.checkpoints[0].parent
    away = trained.rename(trained.with_name("unmounted"))
    assert state(TOOL.check(world.step(), DISK)) == (OutputState.UNKNOWN, "CheckpointUnseen")
    away.rename(trained)
    assert state(TOOL.check(world.step(), DISK)) == (OutputState.COMPLETE, "LogVerified")


@pytest.mark.parametrize(
    ("hide", "expected"),
    [
        (lambda epoch: next(epoch.glob("*.safetensors")).unlink(), Reason),
        (shutil.rmtree, Reason),
        (lambda epoch: shutil.rmtree(epoch.parent), Unknown),
    ],
    ids=["weights deleted", "epoch deleted", "training out of sight"],
)
@pytest.mark.parametrize("has_failed_log", [False, True])
def test_an_evaluation_whose_checkpoint_is_out_of_sight_lacks_it(
    world: World, hide: Callable[[Path], object], expected: type, has_failed_log: bool
) -> None:
    if has_failed_log:
        world.log("tiny", model_path=world.checkpoints[0], status="error")
    assert TOOL.check(world.step(), DISK).lacks is None
    hide(world.checkpoints[0])
    lacks = TOOL.check(world.step(), DISK).lacks
    assert isinstance(lacks, expected)
    assert isinstance(lacks, Unknown) or lacks.code == "CheckpointGone"
    assert str(world.checkpoints[0].parent) in (lacks.why if isinstance(lacks, Unknown) else lacks.message)


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.pt", "consolidated.00.pth", "pytorch_model.bin"])
def test_weights_of_any_format_are_a_checkpoint_that_is_there(world: World, name: str) -> None:
    shutil.rmtree(world.checkpoints[0])
    world.checkpoints[0].mkdir()
    assert TOOL.check(world.step(), DISK).lacks is not None
    (world.checkpoints[0] / name).write_bytes(b"weights")
    assert TOOL.check(world.step(), DISK).lacks is None


# --- what cannot be read ----------------------------------------------------------------------------------------------


class Denied(RealDisk):
    """The real disk, on which names with some text in them cannot be examined."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _refuse(self, path: Path) -> None:
        if self.text in path.name:
            raise DiskUnreadable(f"{path}: Permission denied")

    def stat(self, path: Path) -> FileInfo | None:
        self._refuse(path)
        return super().stat(path)

    def names(self, directory: Path) -> tuple[str, ...] | None:
        self._refuse(directory)
        return super().names(directory)

    def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        self._refuse(path)
        return super().read(path, offset, length)


@pytest.mark.parametrize("denied", ["logs", "secret", "epoch_0"])
def test_what_cannot_be_examined_is_unknown_and_never_absent(world: World, denied: str) -> None:
    step = world.step()
    world.log("secret", model_path=world.checkpoints[0])
    outputs = TOOL.check(step, Denied(denied))
    assert outputs.state is OutputState.UNKNOWN
    assert TOOL.may_submit(step, outputs) == outputs.reason.message


def test_an_unreadable_log_does_no_harm_beside_a_good_one(world: World) -> None:
    world.log("z_secret", model_path=world.checkpoints[0])
    world.log("good", model_path=world.checkpoints[0])
    assert TOOL.check(world.step(), Denied("secret")).state is OutputState.COMPLETE


def test_an_unreadable_log_may_be_the_good_one_where_the_others_failed(world: World) -> None:
    world.log("secret", model_path=world.checkpoints[0])
    world.log("failed", model_path=world.checkpoints[0], status="error")
    assert TOOL.check(world.step(), Denied("secret")).state is OutputState.UNKNOWN


def test_no_log_directory_is_absent(world: World) -> None:
    world.logs.rmdir()
    assert state(TOOL.check(world.step(), DISK)) == (OutputState.ABSENT, "NoLog")


def test_scaffolding_that_cannot_be_read_blocks_its_evaluation(world: World) -> None:
    world.script("tiny_epoch0.slurm")
    reading = TOOL.read(world.run(("tiny", 0)), Denied("tiny_epoch0"))
    assert reading.steps[0].blocked is not None
    assert reading.problems[0].run == "r8"


# --- which script belongs to which evaluation ------------------------------------------------------------------------------


@pytest.fixture
def evaluate(world: World) -> Callable[..., Reading]:
    def read(scripts: Iterator[str], *evaluations: tuple[str, int | None], **changes: Any) -> Reading:
        for script in scripts:
            world.script(script, "true")
        return world.read(*evaluations, **changes)

    return read


@pytest.mark.parametrize(
    ("script", "evaluation", "kind", "key", "logs"),
    [
        ("tiny_epoch1.slurm", ("tiny", 1), RunKind.FINE_TUNED, "tiny_epoch1", "logs"),
        ("tiny_base.slurm", ("tiny", None), RunKind.CONTROL, "tiny_base", "logs"),
        ("tiny_epoch1/cell.slurm", ("tiny", 1), RunKind.FINE_TUNED, "tiny_epoch1", "tiny_epoch1/logs"),
        ("tiny/cell.slurm", ("tiny", 1), RunKind.FINE_TUNED, "tiny", "tiny/logs"),
        ("tiny/cell.slurm", ("tiny", None), RunKind.CONTROL, "tiny", "tiny/logs"),
        ("tiny/cell.slurm", ("tiny", None), RunKind.EVAL_ONLY, "tiny", "tiny/logs"),
    ],
)
@pytest.mark.parametrize("planned", [True, False])
def test_a_script_is_found_in_either_layout(
    evaluate: Callable[..., Reading],
    world: World,
    script: str,
    evaluation: tuple[str, int | None],
    kind: RunKind,
    key: str,
    logs: str,
    planned: bool,
) -> None:
    checkpoints = {1: world.checkpoints[1]} if kind is RunKind.FINE_TUNED else {}
    reading = evaluate([script], *([evaluation] if planned else []), kind=kind, planned=planned, checkpoints=checkpoints)
    assert [problem for problem in reading.problems if not problem.warning] == []
    [step] = reading.steps
    assert (step.key, step.task, step.epoch) == (f"r8/eval/{key}", *evaluation)
    assert step.script == world.directory / "eval" / script
    assert step.output_dir == world.directory / "eval" / logs
    assert step.root == world.directory
    assert step.need == ("r8/finetune" if kind is RunKind.FINE_TUNED else None)


def test_a_missing_script_blocks_its_evaluation_and_says_what_would_do(world: World) -> None:
    reading = world.read(("tiny", 0))
    [step], [problem] = reading.steps, reading.problems
    assert step.blocked is not None
    assert step.blocked.code == "NotScaffolded"
    assert (problem.file.name, problem.line, problem.run, problem.warning) == ("experiment_summary.md", 20, "r8", False)
    for accepted in ("eval/tiny_epoch0.slurm", "eval/tiny_epoch0/cell.slurm", "eval/tiny/cell.slurm"):
        assert accepted in problem.message


def test_two_scripts_for_one_evaluation_are_a_question(evaluate: Callable[..., Reading]) -> None:
    reading = evaluate(["tiny_epoch0.slurm", "tiny_epoch0/cell.slurm"], ("tiny", 0))
    assert reading.steps[0].blocked is not None
    assert reading.steps[0].blocked.code == "ScriptAmbiguous"
    assert "which counts" in reading.problems[0].message


def test_a_script_that_no_plan_lists_is_a_warning(evaluate: Callable[..., Reading], world: World) -> None:
    reading = evaluate(["tiny_epoch0.slurm", "other_epoch0.slurm", "notes.slurm"], ("tiny", 0))
    assert [step.key for step in reading.steps] == ["r8/eval/tiny_epoch0"]
    unplanned = [problem for problem in reading.problems if "no planned evaluation" in problem.message]
    assert {problem.file.name for problem in unplanned} == {"other_epoch0.slurm", "notes.slurm"}
    assert all(problem.warning for problem in unplanned)


def test_a_cell_named_by_its_task_alone_needs_a_single_epoch(evaluate: Callable[..., Reading]) -> None:
    reading = evaluate(["tiny/cell.slurm"], ("tiny", 0), ("tiny", 1))
    assert [step.blocked.code for step in reading.steps if step.blocked] == ["NotScaffolded"] * 2


def test_an_epoch_that_training_will_not_save_is_blocked(evaluate: Callable[..., Reading]) -> None:
    reading = evaluate(["tiny_epoch7.slurm"], ("tiny", 7))
    assert reading.steps[0].blocked is not None
    assert reading.steps[0].blocked.code == "NoSuchEpoch"
    assert "saved: 0, 1" in reading.steps[0].blocked.message


def test_a_task_cannot_name_a_script_outside_its_run(world: World) -> None:
    (world.directory.parent / "x_epoch0.slurm").write_text("#!/bin/bash\ntrue\n")
    reading = world.read(("../../x", 0))
    assert reading.steps[0].blocked is not None
    assert reading.steps[0].blocked.code == "NotScaffolded"


def test_a_script_that_loads_another_checkpoint_is_pointed_out(world: World) -> None:
    world.script("tiny_epoch0.slurm", epoch=1)
    assert any("while the checkpoint of this evaluation is" in problem.message for problem in world.read(("tiny", 0)).problems)


@pytest.mark.parametrize(
    ("text", "line"),
    [("task: tiny\nlimit: 1: 2\n", 2), ("- a list\n", 1), ("a: &a [*a]\n", 1), ("a: {1: x, b: y}\n", 1), ("\0", 1)],
)
def test_an_eval_yaml_that_is_no_mapping_blocks_its_evaluation_and_names_its_line(world: World, text: str, line: int) -> None:
    world.script("tiny_epoch0/cell.slurm")
    file = world.directory / "eval" / "tiny_epoch0" / "eval.yaml"
    file.write_text(text)
    reading = world.read(("tiny", 0))
    assert [(problem.file, problem.line, problem.run) for problem in reading.problems] == [(file, line, "r8")]
    assert reading.steps[0].blocked == Reason("ConfigInvalid", str(reading.problems[0]))


@pytest.mark.parametrize(
    ("command", "logs"),
    [
        ("inspect eval t.py", "eval/logs"),
        ("inspect eval t.py --log-dir ./results", "eval/results"),
        ("inspect eval t.py --log-dir=../results", "results"),
        ("OUT=results\ninspect eval t.py --log-dir ${OUT}/a", "eval/results/a"),
        ("cd .. && srun inspect eval t.py --log-dir here", "here"),
        ("cd no/such/directory\ninspect eval t.py --log-dir ./logs", "eval/logs"),
        ("cd /no/such/directory\ninspect eval t.py --log-dir ./logs", "/no/such/directory/logs"),
        ('cd "$(dirname "$0")"\ninspect eval t.py --log-dir "$SLURM_SUBMIT_DIR/mine"', "eval/mine"),
        ("inspect eval t.py --log-dir $(mktemp -d)", "eval/logs"),
        ("export INSPECT_LOG_DIR=elsewhere\ninspect eval t.py", "eval/elsewhere"),
        ("if true; then inspect eval t.py --log-dir x > out.txt 2>&1; fi", "eval/x"),
        ("echo 'over two\nlines' # isn't\ninspect eval t.py --log-dir y", "eval/y"),
        ("cat > x <<EOF\ncd /no/such/directory\nEOF\ninspect eval t.py --log-dir y", "eval/y"),
        ("[ -d /no/site ] && cd /no/site\ninspect eval t.py --log-dir y", "eval/y"),
        ("if [ -d /no/site ]; then\n  cd /no/site\nfi\ninspect eval t.py --log-dir y", "eval/y"),
        ("(cd .. && make)\ninspect eval t.py --log-dir y", "eval/y"),
        ("[ -d .. ] && cd ..\ninspect eval t.py --log-dir y", "y"),
        ("(cd .. && inspect eval t.py --log-dir y) 2>&1 | tee log", "y"),
        ("INSPECT_LOG_DIR=z inspect eval t.py", "eval/z"),
        ("python evaluate.py", "eval/logs"),
    ],
)
def test_logs_are_looked_for_where_the_script_sends_them(world: World, command: str, logs: str) -> None:
    world.script("tiny_epoch0.slurm", command)
    assert world.step().output_dir == world.directory / logs


def test_logs_outside_the_run_depend_on_their_own_directory(world: World, tmp_path: Path) -> None:
    world.script("tiny_epoch0.slurm", f"inspect eval t.py --log-dir {tmp_path}/scratch/logs")
    assert world.step().root == tmp_path / "scratch"


def test_what_defines_an_evaluation_is_told_from_where_it_runs(world: World) -> None:
    def rewritten(**changes: str) -> Step:
        texts = {"time": "10:00", "command": "inspect eval t.py@tiny", **changes}
        script = world.directory / "eval" / "tiny_epoch0.slurm"
        script.write_text(f"#!/bin/bash\n#SBATCH --time={texts['time']}\n# a comment\n{texts['command']}\n")
        return world.step()

    first = rewritten()
    assert rewritten(time="20:00").definition == first.definition
    assert rewritten(time="20:00").placement != first.placement
    assert rewritten(command="inspect eval t.py@tiny --seed 1").definition != first.definition


def test_the_meaning_of_eval_yaml_defines_an_evaluation_and_its_layout_does_not(world: World) -> None:
    world.script("tiny_epoch0/cell.slurm")
    file = world.directory / "eval" / "tiny_epoch0" / "eval.yaml"

    def written(text: str) -> Step:
        file.write_text(text)
        return world.read(("tiny", 0)).steps[0]

    first = written("a: 1\nlimit: 2\n")
    assert written("# why\na:   1\n\nlimit: 2\n").definition == first.definition
    changed = written("a: 2\nlimit: 2\n")
    assert changed.definition != first.definition
    assert (first.meaning["eval.yaml:a"], changed.meaning["eval.yaml:a"]) == ("1", "2")


def test_a_limit_in_eval_yaml_is_one_asked_for(samples: Path, world: World) -> None:
    world.script("tiny_epoch0/cell.slurm", "./evaluate.sh")
    cell = world.directory / "eval" / "tiny_epoch0"
    (cell / "logs").mkdir()
    (cell / "logs" / "log.eval").write_bytes(sample_log(samples, LIMITED).read_bytes())
    assert TOOL.check(world.read(("tiny", 0)).steps[0], DISK).state is OutputState.INCOMPLETE
    (cell / "eval.yaml").write_text("limit: 2\n")
    assert TOOL.check(world.read(("tiny", 0)).steps[0], DISK).state is OutputState.COMPLETE


def test_a_script_may_ask_to_be_requeued(world: World) -> None:
    assert not world.step().requeue
    (world.directory / "eval" / "tiny_epoch0.slurm").write_text("#!/bin/bash\n#SBATCH --requeue\ntrue\n")
    assert world.step().requeue
    (world.directory / "eval" / "tiny_epoch0.slurm").write_text("#!/bin/bash\n#SBATCH --requeue\n#SBATCH --no-requeue\ntrue\n")
    assert not world.step().requeue


def test_a_working_directory_behind_a_symlink_has_two_spellings(world: World) -> None:
    (world.directory / "link").symlink_to("eval")
    (world.directory / "eval" / "tiny_epoch0.slurm").write_text("#!/bin/bash\n#SBATCH --chdir=../link\ntrue\n")
    step = world.step()
    assert (step.workdir, step.written_workdir) == (f"{world.directory}/eval", f"{world.directory}/eval/../link")


def test_a_submission_is_labelled_as_existing_tools_know_it(world: World) -> None:
    assert TOOL.log_label(world.step("tiny", 1)) == ("SUBMIT_EVAL", "r8/tiny/epoch1")
    assert TOOL.log_label(world.step("tiny", None)) == ("SUBMIT_EVAL", "r8/tiny/base")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("inspect eval task.py@tiny", ["task file task.py"]),
        ("inspect eval ../eval/task.py", ["task file task.py"]),
        ("T=task.py\ninspect eval $T@tiny --model m", ["task file task.py"]),
        ("cd ..\ninspect eval eval/task.py@tiny", ["task file task.py"]),
        ("inspect eval --model m task.py@tiny", ["task file task.py"]),
        ("inspect eval gone.py@tiny", []),
        ("inspect eval $WHERE/task.py@tiny", []),
        ("inspect eval package/tiny --solver task.py", []),
        ("inspect eval dir@tiny", []),
        ("inspect eval package/tiny --extra=../eval/task.py@tiny", []),
    ],
)
def test_the_version_of_a_task_file_is_known_where_the_script_names_it(world: World, command: str, expected: list[str]) -> None:
    script = world.script("tiny_epoch0.slurm", command)
    task = script.parent / "task.py"
    task.write_text("def tiny(): ...\n")
    first = world.step()
    assert [name for name in first.inputs if name != "checkpoint"] == expected
    for text in ("def tiny(): return 1\n", "Def tiny(): ...\n"):
        task.write_text(text)
        second = world.step()
        assert (first.inputs != second.inputs) is bool(expected)
        assert first.definition == second.definition
