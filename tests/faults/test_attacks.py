"""Files made to hurt: each is refused or judged in bounded memory and time, with one clear sentence and no traceback.

What may take memory runs as a process of its own under a limit of address space, and its peak is measured.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from commands import Said, little_memory, no_hang, reconcile
from fuzz import containers
from reconciler.backends.job_description import OnlySbatchCan
from reconciler.backends.local import parse_begin
from reconciler.backends.slurm_api import SlurmApi
from reconciler.backends.slurm_cli import parse_sacct, parse_squeue, read_submission
from reconciler.batch_script import parse_batch_script, parse_time_limit
from reconciler.config_edit import draft_edits
from reconciler.disk import RealDisk
from reconciler.errors import (
    ClusterUnreachable,
    DiskUnreadable,
    InvalidExperiment,
    LedgerDamaged,
    PermanentError,
    ReconcileError,
    SubmissionRefused,
    SubmissionUncertain,
)
from reconciler.experiment.load import load
from reconciler.experiment.settings import read_settings
from reconciler.fold import fold
from reconciler.ledger import Ledger
from reconciler.model import Edit, EvaluationInput, RunInput, RunKind
from reconciler.ports import Submission
from reconciler.tools import all_tools
from reconciler.tools.formats.epoch_directory import small_files
from reconciler.tools.formats.eval_log import LARGEST, LogDamaged, read_eval_log
from reconciler.tools.formats.omega_config import ConfigFault, read_omega_config
from reconciler.tools.formats.safetensors import safetensors_fault
from reconciler.tools.formats.torch_zip import read_integer, torch_zip_fault
from worlds import finetune, submitted

pytestmark = pytest.mark.fault("files made to hurt: bombs, lying sizes, absurd depth, FIFOs and devices", rerun="make faults")

SOURCES = Path(__file__).resolve().parents[2] / "src"
DISK = RealDisk()
MIB = 1 << 20
GIB = 1 << 30
SECONDS = 60.0  # in which each must have its answer, on a machine that has other things to do

MARKDOWN = "# x\n\n## All Runs\n\n| Run Name | Type |\n|---|---|\n| a | Fine-tuned |\n"


# KiB that a process has had since its program began; ru_maxrss would count what the tests had themselves before.
PEAK = "open('/proc/self/status').read().split('VmHWM:')[1].split()[0]"


@dataclass(frozen=True)
class Measured(Said):
    """What a command said, and the most memory that it had (bytes)."""

    peak: int


def measured(*arguments: object) -> Measured:
    """One command as a process of its own that may have a GiB of addresses."""
    child = (
        "import sys; from reconciler.cli import run; code = run(sys.argv[1:]); "
        f"print('peak', {PEAK}, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", child, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (GIB, GIB)),
    )
    said, _, peak = done.stderr.rpartition("peak ")
    return Measured(done.returncode, done.stdout, said, int(peak) * 1024)


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """An experiment of one run, as a person would have it, with a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RECONCILE_LOCAL_DIR", str(tmp_path / "local"))
    monkeypatch.setenv("RECONCILE_BACKEND", "local")
    experiment = tmp_path / "x"
    (experiment / "a").mkdir(parents=True)
    (experiment / "experiment_summary.md").write_text(MARKDOWN)
    (experiment / "a" / "finetune.slurm").write_text("#!/bin/bash\ntrue\n")
    (experiment / "a" / "finetune.yaml").write_text("output_dir: out\nepochs: 1\n")
    return experiment


def make_sparse(path: Path, size: int, beginning: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(beginning)
        file.truncate(size)


def one_clear_error(ended: Said, *words: str) -> None:
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err
    lines = [line for line in (ended.err + ended.out).splitlines() if any(word in line for word in words)]
    assert lines, ended
    assert len(ended.err) < 2000


# --- sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["experiment_summary.md", "experiment_summary.yaml", "reconcile.yaml", "a/finetune.yaml"])
def test_a_file_of_a_gigabyte_is_refused_with_one_error_in_little_memory(directory, name):
    if name.endswith("summary.yaml"):
        (directory / "experiment_summary.md").unlink()
    make_sparse(directory / name, GIB, b"# x\n")
    ended = measured("validate", directory)
    one_clear_error(ended, Path(name).name)
    assert "larger" in ended.err + ended.out
    assert ended.peak < 200 * MIB


@pytest.mark.parametrize("name", ["a/finetune.slurm", "a/eval/cap_epoch0.slurm", "a/eval/cap_epoch0/eval.yaml"])
def test_scaffolding_of_a_gigabyte_blocks_its_run_alone(directory, name):
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith("eval.yaml"):
        (directory / name).with_name("cell.slurm").write_text("#!/bin/bash\n")
    make_sparse(directory / name, GIB, b"#!/bin/bash\n")
    ended = measured("validate", directory)
    one_clear_error(ended, "larger")
    assert ended.peak < 200 * MIB


def test_a_ledger_of_a_gigabyte_is_damaged_and_stays_as_it_is(directory):
    (directory / ".reconcile").mkdir()
    path = directory / ".reconcile" / "ledger.jsonl"
    make_sparse(path, GIB, b'{"at":1,"event":"opened"')
    ended = measured("apply", directory)
    one_clear_error(ended, "ledger.jsonl")
    assert ended.peak < 400 * MIB
    assert path.stat().st_size == GIB


def test_a_status_page_of_a_gigabyte_is_left_alone(directory):
    (directory / "experiment_summary.md").unlink()
    (directory / "experiment_summary.yaml").write_text("experiment: {name: x}\nruns:\n- {name: a, type: fine-tuned}\n")
    make_sparse(directory / "STATUS.md", GIB)
    assert reconcile("hold", directory, "a/finetune").code == 0
    ended = measured("apply", directory)
    assert "STATUS.md: the status tables were not written" in ended.err
    assert ended.peak < 200 * MIB


# --- YAML -----------------------------------------------------------------------------------------------

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)
DEEP = "[" * 700 + "]" * 700  # more than Python's stack bears
CHAIN = "k0: {x: 1}\n" + "".join(f"k{n + 1}: {{x: ${{k{n}}}}}\n" for n in range(1500))
DOUBLED = "k0: {x: 1, y: 2}\n" + "".join(f"k{n + 1}: {{x: '${{k{n}}}', y: '${{k{n}}}'}}\n" for n in range(40))
SPELLED = "k0: {x: 1, y: 2}\n" + "".join(f"k{n + 1}: {{x: '${{k{n}}}', y: 'a ${{k{n}}}'}}\n" for n in range(40))


@pytest.mark.parametrize("text", [LAUGHS, f"a: {DEEP}", CHAIN, DOUBLED, SPELLED, "a: &a {b: *a}", "a: &a [*a]", 'x: "\\ud800"'])
def test_yaml_that_unfolds_without_end_is_refused_wherever_it_stands(directory, text):
    (directory / "a" / "finetune.yaml").write_text(f"output_dir: out\nepochs: 1\n{text}\n")
    one_clear_error(reconcile("validate", directory), "finetune.yaml")


@pytest.mark.parametrize("text", [LAUGHS, f"a: {DEEP}", 'a: "\\ud800"', 'a: "\\0"', f"a: 0x{'f' * 20000}"])
def test_so_is_a_document_and_so_are_settings(directory, text):
    (directory / "experiment_summary.md").rename(directory / "other.md")
    (directory / "experiment_summary.yaml").write_text(f"experiment: {{name: x}}\nruns:\n- {{name: a, type: control}}\n{text}\n")
    one_clear_error(reconcile("validate", directory), "experiment_summary.yaml")
    (directory / "experiment_summary.yaml").rename(directory / "reconcile.yaml")
    (directory / "other.md").rename(directory / "experiment_summary.md")
    one_clear_error(reconcile("validate", directory), "reconcile.yaml")


@pytest.mark.parametrize("text", [LAUGHS, f"a: {DEEP}", "a: &a {b: *a}", f"a: 0x{'f' * 20000}"])
def test_so_are_the_settings_of_a_cell(directory, text):
    cell = directory / "a" / "eval" / "cap_epoch0"
    cell.mkdir(parents=True)
    (cell / "cell.slurm").write_text("#!/bin/bash\ninspect eval x.py\n")
    (cell / "eval.yaml").write_text(text)
    one_clear_error(reconcile("validate", directory), "eval.yaml")


def test_no_yaml_has_its_text_printed_by_the_parser(directory):
    (directory / "a" / "finetune.yaml").write_text("output_dir: out\nepochs: 1\nx: &n \u202e\ny: &n 2\n")
    ended = reconcile("validate", directory)
    assert "Warning" not in ended.err
    assert "\u202e" not in ended.err + ended.out


# --- documents --------------------------------------------------------------------------------------------

WIDE = "|" + "a|" * 3000 + "\n|" + "-|" * 3000 + "\n" + "|a\n" * 3000
LONG_LINES = {
    "spaces": "a" + " " * 100_000 + "b",
    "spaces in bold": "**a" + " " * 100_000 + "b**",
    "spaces in a value": "**Epochs:** a" + " " * 100_000 + "(b",
    "backticks": "**Epochs:** " + "`" * 50_000 + "a",
    "brackets": "[" * 5_000,
    "quotations": ">" * 50_000,
    "comments": "<!--" * 20_000,
    "stars": "*a **a " * 3_000,
    "a wide table": WIDE,
    "a mark": "| Run Name | cap |\n|---|---|\n| a | ✓ epochs " + "0-9999," * 20_000 + "0 |",
    "an unlisted run": "| Run Name | cap |\n|---|---|\n" + f"| {'z' * 100_000} | ✓ |\n",
}


@pytest.mark.parametrize("what", LONG_LINES)
def test_a_long_line_takes_no_longer_than_its_length(directory, what):
    began = time.process_time()
    (directory / "experiment_summary.md").write_text(f"{MARKDOWN}\n## Evaluation Plan\n\n{LONG_LINES[what]}\n")
    with suppress(InvalidExperiment), little_memory(), no_hang(SECONDS):
        load(directory, all_tools(), DISK)
    assert time.process_time() - began < 15


@pytest.mark.parametrize(
    ("runs", "plan", "words"),
    [
        (10_001, "", "10,001 runs"),
        (30, "| a{n} |" + " ✓ epochs 0-9999 |" * 2, "evaluations"),
        (9, "| a{n} |" + " ✓ all |" * 2, "evaluations"),
    ],
)
def test_a_plan_that_unfolds_into_too_much_is_refused(directory, runs, plan, words):
    text = MARKDOWN + "".join(f"| a{n} | Fine-tuned |\n" for n in range(runs - 1))
    if plan:
        text += "\n## Evaluation Plan\n\n| Run Name | one | two |\n|---|---|---|\n"
        text += "".join(plan.replace("{n}", str(n)) + "\n" for n in range(runs - 1)) + "\n## Configuration\n**Epochs:** 9999\n"
    (directory / "experiment_summary.md").write_text(text)
    with pytest.raises(InvalidExperiment, match=words), little_memory(), no_hang(SECONDS):
        load(directory, all_tools(), DISK)


@pytest.mark.parametrize("epochs", ["999999999", "10000", "1e9", "0x7fffffffff"])
def test_epochs_that_would_fill_the_memory_are_refused(directory, epochs):
    (directory / "a" / "finetune.yaml").write_text(f"output_dir: out\nepochs: {epochs}\n")
    one_clear_error(reconcile("validate", directory), "a whole number from 1 to 9999")


@pytest.mark.parametrize(
    "content",
    [
        b"\0",
        b"\0" * 5000,
        b"\r",
        MARKDOWN.replace("\n", "\r").encode(),
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\x1b[2J",
        b" ",
    ],
)
def test_bytes_that_are_no_document_are_an_answer_and_never_a_traceback(directory, content):
    (directory / "experiment_summary.md").write_bytes(content)
    ended = reconcile("validate", directory)
    assert ended.code in ((0, 2) if b"All Runs" in content else (2,)), ended
    assert "Traceback" not in ended.err
    assert "\x1b" not in ended.err + ended.out


@pytest.mark.parametrize("text", ["runs: [{? {run: b, tasks: [cap]}}]\n", "? {a: [1]}\n: 1\n", "{{a: [b]}: 1, {a: [b]}: 2}\n"])
def test_a_key_that_holds_a_list_is_no_document_and_no_bug(directory, text):
    (directory / "experiment_summary.md").unlink(missing_ok=True)
    (directory / "experiment_summary.yaml").write_text(text)
    one_clear_error(reconcile("validate", directory), "accepted: words for keys")
    config = directory / "finetune.yaml"
    config.write_text(text)
    with pytest.raises(PermanentError, match="`epochs` is not there"):
        draft_edits(config, (Edit(config, "epochs", "1", "2"),))


def test_variables_of_a_script_that_double_without_end_are_left_as_they_are(directory):
    script = directory / "a" / "eval" / "cap_epoch0.slurm"
    script.parent.mkdir()
    script.write_text("#!/bin/bash\nA=aa\n" + "A=$A$A\n" * 60 + "inspect eval x.py@cap -T a=$A\ninspect eval\n")
    run = RunInput("a", RunKind.FINE_TUNED, directory / "a", directory / "experiment_summary.md", 1)
    run = RunInput(**{**run.__dict__, "evaluations": (EvaluationInput("cap", 0, 1),), "checkpoints": {0: Path("/o/epoch_0")}})
    with little_memory(), no_hang(20):
        (step,) = all_tools()["inspect-ai"].read(run, DISK).steps
    assert step.blocked is None


# --- logs -------------------------------------------------------------------------------------------------


def log_of(directory: Path, content: bytes, name: str = "x.eval") -> Path:
    path = directory / name
    path.write_bytes(content)
    return path


def zeros(size: int) -> bytes:
    """A zstd frame that unfolds into ``size`` zeros without ever being in memory as such."""
    import zstandard

    packer = zstandard.ZstdCompressor().compressobj()
    parts = [packer.compress(bytes(MIB)) for _ in range(size // MIB)]
    return b"".join(parts) + packer.flush()


def test_a_decompression_bomb_is_given_up_at_the_size_that_it_claims(tmp_path):
    bomb = zeros(4 * GIB)
    assert len(bomb) < MIB
    path = log_of(tmp_path, containers.packed_archive([("header.json", bomb, b"{}")], containers.ZSTANDARD))
    with pytest.raises(LogDamaged, match="not what"), little_memory(), no_hang(20):
        read_eval_log(path, DISK)
    honest = containers.packed_archive([("header.json", bomb, b"{}")], containers.ZSTANDARD, claimed=0xFFFFFFF0)
    with pytest.raises(LogDamaged, match="larger than"):
        read_eval_log(log_of(tmp_path, honest), DISK)
    entries = [("header.json", containers.compress(containers.ZSTANDARD, b"{}"), b"{}"), ("samples/1.json", bomb, b"")]
    deep = containers.packed_archive(entries, containers.ZSTANDARD, claimed=0xFFFFFFF0)
    with pytest.raises(LogDamaged, match="claim more"):
        read_eval_log(log_of(tmp_path, deep), DISK, deep=True)


def test_a_bomb_in_a_torch_file_is_given_up_at_the_size_that_it_claims(tmp_path):
    packer = zlib.compressobj(wbits=-15)
    bomb = b"".join(packer.compress(bytes(MIB)) for _ in range(1024)) + packer.flush()
    path = tmp_path / "x.pt"
    for claimed in (10, 0xFFFFFFF0):
        path.write_bytes(containers.packed_archive([("x/data.pkl", bomb, b"")], containers.DEFLATED, claimed))
        child = (
            "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29)); from pathlib import Path;"
            "from reconciler.disk import RealDisk; from reconciler.tools.formats.torch_zip import *;"
            "p = Path(sys.argv[1]); print(read_integer(p, 'epochs_run', RealDisk()), torch_zip_fault(p, RealDisk(), deep=True))"
        )
        done = subprocess.run(
            [sys.executable, "-c", child, path],
            env={**os.environ, "PYTHONPATH": str(SOURCES)},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.stdout.startswith("None is "), done


@pytest.mark.parametrize("count", [60_000, 1_000_000])
def test_a_zip_of_a_million_entries_is_judged_in_bounded_memory(tmp_path, count):
    one = b"PK\x01\x02" + struct.pack("<HHHHHHLLLHHHHHLL", 20, 20, 0, 0, 0, 0x21, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    archive = one * count + containers.end_of_archive(count, len(one) * count, 0)
    for name in ("x.eval", "x.pt"):
        log_of(tmp_path, archive, name)
    child = (
        "import sys; from pathlib import Path; from reconciler.disk import RealDisk;"
        "from reconciler.tools.formats.torch_zip import *; from reconciler.tools.formats.eval_log import *;"
        "p = Path(sys.argv[1]); print(torch_zip_fault(p / 'x.pt', RealDisk(), deep=True))\n"
        "try: read_eval_log(p / 'x.eval', RealDisk(), deep=True)\n"
        "except LogDamaged as error: print(error)\n"
        f"print({PEAK})"
    )
    done = subprocess.run(
        [sys.executable, "-c", child, tmp_path],
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    torch, log, peak = done.stdout.splitlines()
    assert torch.startswith("is cut short or no torch file")
    assert log.startswith("x.eval ")
    assert int(peak) < 300 * 1024


@pytest.mark.parametrize("method", [9, 12, 14, 95])
def test_a_method_of_compression_that_no_tool_uses_is_damage(tmp_path, method):
    path = log_of(tmp_path, containers.packed_archive([("header.json", b"{}", b"{}"), ("x/data.pkl", b"{}", b"{}")], method))
    with pytest.raises(LogDamaged, match="compressed"):
        read_eval_log(path, DISK)
    assert "damaged" in (torch_zip_fault(path, DISK, deep=True) or "")
    assert read_integer(path, "epochs_run", DISK) is None


@pytest.mark.parametrize("count", [100, 20_000])
def test_entries_that_share_their_bytes_are_not_read_again_and_again(tmp_path, count):
    """The bomb that is no larger than its directory: every entry names the same bytes."""
    content = bytes(MIB)
    body = containers.packed_archive([("x/data.pkl", content, content)], containers.STORED)
    at = body.rfind(b"PK\x01\x02")
    directory = body[at : body.rfind(b"PK\x05\x06")]
    path = tmp_path / "x.eval"
    path.write_bytes(body[:at] + directory * count + containers.end_of_archive(count, len(directory) * count, at))
    began = time.process_time()
    assert "claim more" in (torch_zip_fault(path, DISK, deep=True) or "")
    with pytest.raises(LogDamaged):
        read_eval_log(path, DISK, deep=True)
    assert time.process_time() - began < 15


HEADER = {
    "status": "success",
    "eval": {"created": "2026-11-23T15:12:57+00:00", "task": "tiny", "model": "m", "dataset": {"samples": 5}, "config": {}},
    "results": {"total_samples": 5, "completed_samples": 5},
}
NINES = "9" * 4300


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ('"2026-11-23T15:12:57+00:00"', "5"),
        ('"2026-11-23T15:12:57+00:00"', '"0001-01-01"'),
        ('"2026-11-23T15:12:57+00:00"', "NaN"),
        ('"samples": 5', f'"samples": {NINES}'),
        ('"config": {}', f'"config": {{"limit": -{NINES}, "epochs": {NINES}}}'),
        ('"config": {}', '"config": {"limit": Infinity}'),
        ('"config": {}', f'"config": {{"limit": "{"x" * MIB}"}}'),
        ('"model": "m"', '"model": "hf//a\\u0000b"'),
        ('"model": "m"', '"model": "hf//\\ud800"'),
        ('"model": "m"', f'"model": "hf/{"/a" * MIB}"'),
        ('"status": "success"', f'"status": "error", "error": {{"message": "{"x" * MIB}\\u001b[2J"}}'),
        ('"total_samples": 5', f'"total_samples": {"[" * 100_000}'),
    ],
)
def test_values_of_a_log_that_no_tool_writes_are_an_answer(tmp_path, was, now):
    text = json.dumps(HEADER).replace(was, now)
    assert text != json.dumps(HEADER)
    script = tmp_path / "a" / "eval" / "tiny_base.slurm"
    (script.parent / "logs").mkdir(parents=True)
    script.write_text("#!/bin/bash\ninspect eval task.py@tiny --limit $N\n")
    run = RunInput("a", RunKind.CONTROL, tmp_path / "a", tmp_path / "x.md", 1, evaluations=(EvaluationInput("tiny", None, 1),))
    tool = all_tools()["inspect-ai"]
    (step,) = tool.read(run, DISK).steps
    for name, content in (("a.eval", containers.archive({"header.json": text.encode()})), ("b.json", text.encode())):
        (script.parent / "logs" / name).write_bytes(content)
    outputs = tool.check(step, DISK)
    assert len(outputs.reason.message) < 5000


# --- checkpoints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claimed", [1 << 60, (1 << 64) - 1, 1 << 31, 100_000_000])
def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path, claimed):
    path = tmp_path / "x.safetensors"
    make_sparse(path, 8 * GIB, struct.pack("<Q", claimed))
    assert "cut short or no safetensors" in (safetensors_fault(path, DISK) or "")


@pytest.mark.parametrize(
    "header",
    [
        f'{{"a": {{"data_offsets": [0, {NINES}]}}}}',
        '{"a": {"data_offsets": [0, 1e308]}}',
        '{"a": {"data_offsets": [NaN, Infinity]}}',
        "[" * 100_000,
        '{"a": {"data_offsets": [true, false]}}',
        '{"a": {"data_offsets": [-5, -4]}}',
        "null",
    ],
)
def test_offsets_that_no_file_has_are_a_fault(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    assert safetensors_fault(path, DISK) == "has a header that cannot be read"


def test_a_pickle_is_read_and_never_run(tmp_path):
    evil = b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path / "pwned") + b"'\ntR."
    path = tmp_path / "x.pt"
    path.write_bytes(containers.archive({"x/data.pkl": b"\x80\x02}X\x0a\x00\x00\x00epochs_run" + evil}, containers.STORED))
    assert torch_zip_fault(path, DISK, deep=True) is None
    assert read_integer(path, "epochs_run", DISK) is None
    assert not (tmp_path / "pwned").exists()


def test_a_base_model_that_leads_into_itself_is_given_up(tmp_path):
    for number in range(12):
        (tmp_path / f"again{number}").symlink_to(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    began = time.process_time()
    with no_hang(SECONDS):
        assert isinstance(small_files(tmp_path, DISK), str)
    assert time.process_time() - began < 15


# --- the ledger -------------------------------------------------------------------------------------------


def test_bytes_that_are_no_utf8_come_back_from_the_ledger_as_they_were(tmp_path):
    (tmp_path / ".reconcile").mkdir()
    ledger = Ledger(tmp_path, lambda: 1.0)
    ledger.append("root", path="/scratch/caf\udce9")
    ledger.append("heard", words="half a \ud83d character")
    assert ledger.memory().roots == {"/scratch/caf\udce9"}
    assert ledger.events()[1]["words"] == "half a \ud83d character"


@pytest.mark.parametrize(
    "change",
    [
        {"at": float("nan")},
        {"at": float("inf")},
        {"at": 1e300},
        {"at": 10**400},
        {"begins": "soon"},
        {"attempt": "1"},
        {"attempt": -1},
        {"name": None},
        {"definition": 5},
        {"step": ["a/finetune"]},
        {"held": "no"},
    ],
)
def test_an_intent_in_another_form_is_damage(change):
    from reconciler.fold import MalformedEvent

    intent, confirmed = submitted(finetune())
    with pytest.raises(MalformedEvent):
        fold([{**intent, **change}, confirmed])


@pytest.mark.parametrize(
    "event",
    [
        {"event": "submitted", "job": "--help"},
        {"event": "submitted", "job": ""},
        {"event": "submitted", "job": "1\x1b[2J"},
        {"event": "done", "definition": "d", "evidence": [1]},
        {"event": "done", "definition": "d", "evidence": [{"path": 1, "size": 2, "mtime_ns": 3}]},
        {"event": "done", "definition": "d", "meaning": {"a": 1}},
        {"event": "refused", "message": ["no"]},
        {"event": "ended", "job": "1", "state": 3, "failure": "UserError", "ended": 5.0},
        {"event": "hold", "why": {}},
        {"event": "rerun", "newest": "yesterday"},
    ],
)
def test_an_event_of_a_step_in_another_form_is_damage(event):
    from reconciler.fold import MalformedEvent

    with pytest.raises(MalformedEvent):
        fold([*submitted(finetune()), {"at": 5.0, "step": "a/finetune", "attempt": 1, **event}])


def test_a_cell_whose_first_writing_failed_was_never_written():
    cells = {"a|||Status": "RUNNING"}
    writing, unwritten = (
        {"event": "writing", "at": 1.0, "cells": cells},
        {"event": "unwritten", "at": 2.0, "cells": cells},
    )
    assert fold([writing, unwritten]).written == {}
    assert fold([writing, {**writing, "cells": {"a|||Status": "HELD"}}, unwritten]).written == {"a|||Status": ("HELD",)}


def test_a_ledger_of_many_steps_is_read_in_the_time_of_its_length(tmp_path):
    events = [{"event": "hold", "at": 1.0, "step": f"r{number}/finetune"} for number in range(30_000)]
    began = time.process_time()
    assert len(fold(events).steps) == 30_000
    assert time.process_time() - began < 5


# --- what Slurm says, and what it is told ---------------------------------------------------------------------


def queue_row(**changes: str) -> str:
    row = {"id": "101", "state": "RUNNING", "reason": "None", "submit": "1700000000", "start": "1700000000", "end": "N/A"}
    row |= {"user": "u", "exit": "0:0", "nodes": "n1", "name": "job", "workdir": "/x"}
    return "\x1f".join((row | changes).values()) + "\x1e\n"


@pytest.mark.parametrize("number", ["²", "٣", "9" * 400, "9" * 5000, "-1", "1e999", "NaN"])
def test_numbers_that_slurm_never_prints_are_not_known(number):
    (job,) = parse_squeue(queue_row(submit=number, start=number, exit=number))
    assert (job.submitted, job.started, job.exit_code) == (None, None, "")
    fields = ["101", "RUNNING", number, number, number, number, number, "u", "n1", "/x", "job"]
    (accounted,) = parse_sacct("\x1f".join(fields) + "\n")
    assert (accounted.submitted, accounted.begins, accounted.started) == (None, None, None)


@pytest.mark.parametrize("job_id", ["--help", "", "²", "٣", "\x1b[2J1", " "])
def test_a_row_whose_id_is_none_is_no_answer(job_id):
    with pytest.raises(ClusterUnreachable):
        parse_squeue(queue_row(id=job_id))
    with pytest.raises(ClusterUnreachable):
        parse_sacct("\x1f".join([job_id, *["x"] * 10]) + "\n")
    with pytest.raises((SubmissionUncertain, SubmissionRefused)):
        read_submission(0, f"{job_id}\n", "")


def test_a_directory_with_a_line_separator_does_not_cut_the_accounting():
    fields = ["101", "COMPLETED", "0:0", *["1700000000"] * 4, "u", "n1", "/x\u2028y\x85z", "a\x0bb"]
    (job,) = parse_sacct("\x1f".join(fields) + "\n")
    assert (job.workdir, job.name) == ("/x\u2028y\x85z", "a\x0bb")


@pytest.mark.parametrize("begin", [f"now+{'9' * 400}days", "0001-01-01", "9999-12-31T23:59:59", "now+²days"])
def test_a_beginning_that_no_clock_has_is_refused_or_a_time(begin):
    with suppress(SubmissionRefused):
        assert abs(parse_begin(begin, 0.0)) < 10**12


def test_a_time_limit_of_hundreds_of_digits_is_refused():
    for text in ("9" * 400, f"{'9' * 400}-0", "²", "٣:00"):
        with pytest.raises(ValueError, match="--time"):
            parse_time_limit(text)


def test_a_script_that_is_no_utf8_goes_through_sbatch_and_not_through_the_api(tmp_path):
    script = tmp_path / "x.slurm"
    script.write_bytes(b"#!/bin/bash\n# caf\xe9\n")
    api = SlurmApi.__new__(SlurmApi)
    api._site, api._environment = {"release": "24.11.5", "filters": []}, {}
    with pytest.raises(OnlySbatchCan, match="UTF-8"):
        api._describe(Submission(script, "x"))


def test_directives_with_a_nul_make_no_directory(tmp_path):
    script = parse_batch_script(tmp_path / "x.slurm", "#!/bin/bash\n#SBATCH --output=a\0/b --chdir=c\0\n")
    assert script.directory_of("output") is None
    assert script.workdir == str(tmp_path)


def test_only_a_newline_ends_a_line_of_a_script(tmp_path):
    script = parse_batch_script(tmp_path / "x.slurm", "#!/bin/bash\n# a remark\x0c#SBATCH -J no\u2028tune run\n#SBATCH -J yes\n")
    assert script.commands == ""
    assert script.job_name == "yes"


# --- what is no file ----------------------------------------------------------------------------------------


def as_fifo(path: Path) -> None:
    os.mkfifo(path)


def as_directory(path: Path) -> None:
    path.mkdir()


def as_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def as_terminal(path: Path) -> None:
    path.symlink_to("/dev/tty")


KINDS = [as_fifo, as_directory, as_device, as_terminal]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["experiment_summary.md", "reconcile.yaml", "a/finetune.yaml", "a/finetune.slurm"])
def test_what_is_no_file_is_refused_and_never_opened(directory, kind: Callable[[Path], None], name):
    (directory / name).unlink(missing_ok=True)
    kind(directory / name)
    one_clear_error(reconcile("validate", directory), Path(name).name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["ledger.jsonl", "lock"])
def test_in_our_own_directory_too(directory, kind: Callable[[Path], None], name):
    (directory / ".reconcile").mkdir()
    kind(directory / ".reconcile" / name)
    assert reconcile("hold", directory, "a/finetune").code in (0, 3)
    ended = reconcile("apply", directory)
    assert ended.code in (0, 3, 4), ended
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_pages_that_are_no_files_hold_up_nothing(directory, kind: Callable[[Path], None]):
    (directory / "experiment_summary.md").unlink()
    (directory / "experiment_summary.yaml").write_text("experiment: {name: x}\nruns:\n- {name: a, type: fine-tuned}\n")
    epoch = directory / "a" / "out" / "epoch_0"
    epoch.mkdir(parents=True)
    (directory / "logs").mkdir()
    for path in (
        directory / "STATUS.md",
        directory / "logs" / "run-torchtune.log",
        directory / "a" / "out" / "torchtune_config.yaml",
        epoch / "model.safetensors.index.json",
        epoch / "adapter_model.pt",
        epoch / "adapter_model.safetensors",
    ):
        kind(path)
    for command in (("diff",), ("status",), ("hold", "a/finetune"), ("apply",), ("explain", "a/finetune")):
        ended = reconcile(command[0], directory, *command[1:])
        assert ended.code in (0, 1, 3, 4), ended
        assert "Traceback" not in ended.err


def test_a_link_in_place_of_the_lock_does_not_have_its_target_emptied(directory, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("data")
    (directory / ".reconcile").mkdir()
    (directory / ".reconcile" / "lock").symlink_to(precious)
    assert reconcile("apply", directory).code == 3
    assert precious.read_text() == "data"


def test_a_lock_that_says_nonsense_of_its_owner_is_still_a_lock(directory):
    import fcntl

    (directory / ".reconcile").mkdir()
    lock = directory / ".reconcile" / "lock"
    for said in ("[1]", "[" * 900, "5", '{"pid": "\x1b[2J"}'):
        lock.write_text(said)
        with lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            ended = reconcile("apply", directory)
        assert ended.code == 5, ended
        assert "\x1b" not in ended.err


def test_every_reader_of_the_library_raises_its_own_errors_for_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "reconcile.yaml")
    with pytest.raises(InvalidExperiment):
        read_settings(tmp_path, {}, tmp_path / "home")
    (tmp_path / ".reconcile").mkdir()
    os.mkfifo(tmp_path / ".reconcile" / "ledger.jsonl")
    with pytest.raises(DiskUnreadable):
        Ledger(tmp_path, lambda: 1.0).memory()
    for raised in (InvalidExperiment, DiskUnreadable, LedgerDamaged):
        assert issubclass(raised, ReconcileError)


@pytest.mark.parametrize(
    "command", [("hold", "a" * 300, "x"), ("diff", "a" * 5000), ("explain", "a" * 300), ("diff", "--select", "x" * 5000)]
)
def test_an_argument_of_absurd_length_is_an_error_and_no_bug(directory, monkeypatch, command):
    monkeypatch.chdir(directory)
    assert reconcile(*command).code in (2, 3)


def test_a_plain_log_of_the_largest_size_is_judged_in_bounded_memory(tmp_path):
    path = tmp_path / "x.json"
    make_sparse(path, LARGEST + 1, b"{")
    with pytest.raises(LogDamaged, match="larger"):
        read_eval_log(path, DISK)


def test_a_configuration_of_references_says_where_it_unfolds():
    with pytest.raises(ConfigFault, match="unfold"):
        read_omega_config(DOUBLED)
