"""Every reader of foreign bytes as one small function: it takes a case, and raises only where a promise was broken.

What a reader may do with any bytes at all is answer, or raise one of the product's own errors. What it says of them is looked at
too: nothing that steers a terminal, nothing of unbounded length. Readers of files read from memory, or from a directory in it.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

from fuzz import containers
from reconciler import published, render
from reconciler.backends.local import parse_begin
from reconciler.backends.slurm_cli import parse_sacct, parse_squeue, read_submission
from reconciler.batch_script import parse_batch_script, parse_time_limit
from reconciler.disk import RealDisk
from reconciler.errors import PermanentError, ReconcileError
from reconciler.experiment.load import load
from reconciler.experiment.settings import read_settings
from reconciler.fold import fold
from reconciler.ledger import Ledger
from reconciler.loop import Pass, Scene, preview, run_pass
from reconciler.model import Desired, EvaluationInput, Job, Observed, Policy, RunInput, RunKind, Stage, Step
from reconciler.plan import make_plan
from reconciler.ports import FileInfo
from reconciler.script_checks import script_problems
from reconciler.status_tables import StatusRow, update_document
from reconciler.tools import all_tools
from reconciler.tools.formats.epoch_directory import Wanted, judge_epoch
from reconciler.tools.formats.safetensors import safetensors_fault
from reconciler.tools.formats.torch_zip import read_integer, torch_zip_fault
from worlds import HERE, NOW, MemoryCluster, StandInTool, evaluation, finetune, submitted

LONGEST_SENTENCE = 100_000  # characters; what a person is told is no copy of the file


class PromiseBroken(AssertionError):
    """A reader did what it promises never to do; anything else that a target raises is a crash."""


# --- files in memory -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """A disk that is a dictionary. No read takes more than ``most`` bytes at once: that would be a reader without a bound."""

    content: dict[Path, bytes]
    most: int = 128 << 20

    def stat(self, path: Path) -> FileInfo | None:
        if path in self.content:
            return FileInfo(len(self.content[path]), int(NOW * 1e9), is_dir=False)
        is_dir = any(path in file.parents for file in self.content)
        return FileInfo(0, int(NOW * 1e9), is_dir=True) if is_dir else None

    def names(self, directory: Path) -> tuple[str, ...] | None:
        below = {file.relative_to(directory).parts[0] for file in self.content if directory in file.parents}
        return tuple(sorted(below)) or None

    def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        content = self.content.get(path)
        if content is None:
            return None
        start = offset if offset >= 0 else max(0, len(content) + offset)
        found = content[start:] if length is None else content[start : start + length]
        if len(found) > self.most:
            raise PromiseBroken(f"{len(found)} bytes of {path} in one read")
        return found


def in_memory() -> str | None:
    """Where files cost no disk, if there is such a place."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@cache
def _scratch(name: str) -> Path:
    """A directory of this process in memory where there is such a place, emptied at its end."""
    root = Path(tempfile.mkdtemp(prefix=f"reconcile-fuzz-{name}-", dir=os.environ.get("RECONCILE_FUZZ_SCRATCH", in_memory())))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root.resolve()


# --- what a person would see -----------------------------------------------------------------------


def check_shown(text: str) -> None:
    """No control, bidirectional or invisible character but the newline, and nothing that cannot be printed."""
    if text.replace("\n", "").isprintable():
        return
    bad = next((c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")), None)
    if bad is not None:
        at = text.index(bad)
        raise PromiseBroken(f"U+{ord(bad):04X} reaches the terminal: {text[max(0, at - 60) : at + 20]!r}")


def check_sentence(text: str) -> None:
    if len(text) > LONGEST_SENTENCE:
        raise PromiseBroken(f"a sentence of {len(text)} characters: {text[:100]!r}")
    check_shown("\n".join(render.plain(line) for line in text.splitlines()))


@contextmanager
def told() -> Iterator[None]:
    """The product's own errors are an answer; each is a sentence."""
    try:
        yield
    except ReconcileError as error:
        check_sentence(str(error))


def _check_views(seen: Pass) -> None:
    """Every view of a pass, as text and as JSON."""
    paint = render.Paint()
    check_shown(render.diff_text(seen, paint, verbose=True))
    check_shown(render.status_text(seen, paint, verbose=True))
    check_shown(render.applied_text(seen, paint))
    check_shown(render.json_text(published.actions_json(seen)))
    check_shown(render.json_text(published.status_json(seen)))
    for step in seen.desired.steps:
        check_shown(render.explain_text(seen, step.key))
        check_shown(render.json_text(published.explained(seen, step.key)))


# --- the document, the settings, the scaffolding -----------------------------------------------------


def _load_document(name: str, data: bytes) -> None:
    directory = _scratch("document")
    for other in directory.glob("experiment_summary.*"):
        other.unlink()
    (directory / name).write_bytes(data)
    with told():
        desired = load(directory, all_tools(), RealDisk())
        check_shown(render.plain(desired.name))
        check_shown(render.json_text(published.problems_json(desired.name, desired.steps, desired.problems)))
        for problem in desired.problems:
            check_sentence(str(problem))
        for step in desired.steps:
            _check_inside(desired, step)


def _check_inside(desired: Desired, step: Step) -> None:
    if not step.script.is_relative_to(desired.directory) or ".." in step.script.parts:
        raise PromiseBroken(f"{step.script} is outside of the experiment")
    check_shown(step.key)


def markdown(data: bytes) -> None:
    _load_document("experiment_summary.md", data)


def yaml_form(data: bytes) -> None:
    _load_document("experiment_summary.yaml", data)


def settings(data: bytes) -> None:
    directory = _scratch("settings")
    (directory / "reconcile.yaml").write_bytes(data)
    with told():
        policy = read_settings(directory, {}, directory / "home")
        times = (policy.stagger, policy.poll, policy.grace, policy.settle, policy.backoff)
        if not all(0 <= seconds < 10**9 for seconds in times):
            raise PromiseBroken(f"durations {times}")


_RUN = RunInput("r8", RunKind.FINE_TUNED, HERE / "r8", HERE / "experiment_summary.md", 7, epochs=2)
_SCRIPT = b"#!/bin/bash\n#SBATCH --output=x/%j.out\ntune run lora --config finetune.yaml\n"


def finetune_yaml(data: bytes) -> None:
    """As what is to be trained, and as what was launched."""
    disk = Files({_RUN.directory / "finetune.yaml": data, _RUN.directory / "finetune.slurm": _SCRIPT})
    tool = all_tools()["torchtune"]
    reading = tool.read(_RUN, disk)
    _check_problems(reading.problems)
    (step,) = reading.steps
    if step.blocked is None:
        launched = {step.output_dir / "torchtune_config.yaml": data, step.output_dir / "epoch_0" / "model.safetensors": b""}
        outputs = tool.check(step, Files({**disk.content, **launched}))
        check_sentence(outputs.reason.message)


def eval_yaml(data: bytes) -> None:
    cell = HERE / "r8" / "eval" / "cap_epoch0"
    _read_evaluation(Files({cell / "cell.slurm": b"#!/bin/bash\ninspect eval x.py\n", cell / "eval.yaml": data}))


def batch_script(data: bytes) -> None:
    """As each of the tools reads it, and as the local backend does."""
    path = HERE / "r8" / "eval" / "cap_epoch0.slurm"
    disk = Files(
        {path: data, HERE / "r8" / "finetune.slurm": data, HERE / "r8" / "finetune.yaml": b"output_dir: /o\nepochs: 1\n"}
    )
    _read_evaluation(disk)
    _check_problems(all_tools()["torchtune"].read(_RUN, disk).problems)
    script = parse_batch_script(path, data.decode("utf-8", "surrogateescape"))
    _check_problems(script_problems(script, "r8", disk))
    with suppress(ValueError):
        parse_time_limit(script.value("time"))
    with told():
        parse_begin(script.value("begin") or "now", NOW)


def _read_evaluation(disk: Files) -> None:
    run = replace(_RUN, evaluations=(EvaluationInput("cap", 0, 9),), checkpoints={0: Path("/o/epoch_0")})
    reading = all_tools()["inspect-ai"].read(run, disk)
    _check_problems(reading.problems)
    for step in reading.steps:
        for text in (*step.meaning.values(), step.definition, step.placement, step.job_name, step.workdir):
            if len(text) > len(next(iter(disk.content.values()))) * 10 + LONGEST_SENTENCE:
                raise PromiseBroken(f"{len(text)} characters out of {step.script}")
        step.meaning and json.dumps(dict(step.meaning))


def _check_problems(problems: Iterable[object]) -> None:
    for problem in problems:
        check_sentence(str(problem))


# --- the status tables -------------------------------------------------------------------------------

STATUS_ROWS = (
    StatusRow("r8_lr1e-5", Stage.FINETUNE, None, None, "RUNNING", "12", "2026-01-02 03:04:05", "", "a|b `c`"),
    StatusRow("r8_lr1e-5", Stage.EVALUATION, "capitalization", 0, "PENDING", "", "", "", "NeedUnmet"),
    StatusRow("1B_base", Stage.EVALUATION, "capitalization", None, "COMPLETED", "7", "", "2026-01-02 03:04:05", "8m 3s"),
)
_ADDED = re.compile(r"[ \t>]*.*\|.*|## (Fine-tuning|Evaluation) Status\s*|\s*")


def status_tables(data: bytes) -> None:
    """Every line of the document stays, but for cells of rows; a second writing changes nothing."""
    try:
        text = data.decode("utf-8")
        first = update_document(text, STATUS_ROWS, {})
    except (UnicodeDecodeError, PermanentError):
        return
    _check_kept(text, first.text)
    second = update_document(first.text, STATUS_ROWS, {address: (cell,) for address, cell in first.written.items()})
    if second.text != first.text:
        raise PromiseBroken("a second writing changes the document again")


def _check_kept(old: str, new: str) -> None:
    """Each old line is there, in its order, the same or a row of which cells are; all other lines are of tables that were added."""
    before, after = (re.split(r"\r\n?|\n", text.removeprefix("\ufeff")) for text in (old, new))
    found = {0}  # how many of the old lines may have come so far: a new row may look like an old one
    for line in after:
        kept = {count + 1 for count in found if count < len(before) and _is_kept(before[count], line)}
        following = kept | (found if _ADDED.fullmatch(line) else set())
        if not following:
            raise PromiseBroken(f"the line {line!r} came out of nowhere, beside {[before[count : count + 1] for count in found]}")
        found = following
    if len(before) not in found:
        raise PromiseBroken(f"lines are gone: {[before[count : count + 1] for count in found]}")
    if old.startswith("\ufeff") != new.startswith("\ufeff"):
        raise PromiseBroken("the byte order mark came or went")


def _is_kept(old: str, new: str) -> bool:
    """The same line, or the same row: as many cells or more, and one of them with its words."""
    if old == new:
        return True
    bars = re.compile(r"(?<!\\)\|")
    before, after = bars.split(old), bars.split(new)
    return (
        len(before) > 1 and len(after) >= len(before) and any(a == b and a.strip() for a, b in zip(before, after, strict=False))
    )


# --- what Slurm says -----------------------------------------------------------------------------------


def squeue(data: bytes) -> None:
    with told():
        _see_jobs(queue=parse_squeue(data.decode("utf-8", "surrogateescape")))


def sacct(data: bytes) -> None:
    with told():
        _see_jobs(accounting=parse_sacct(data.decode("utf-8", "surrogateescape")))


@lru_cache(maxsize=1 << 14)
def _see_jobs(queue: tuple[Job, ...] = (), accounting: tuple[Job, ...] | None = None) -> None:
    """What a pass makes of them, with a submission of its own in doubt; the same jobs need no second look."""
    steps = (finetune(), evaluation())
    desired = Desired("exp", HERE, HERE / "experiment_summary.md", steps)
    memory = fold(submitted(steps[0]))
    observed = Observed(queue, accounting, {})
    _check_views(Pass(desired, observed, memory, make_plan(desired, observed, memory, Policy(), NOW), NOW))


def sbatch(data: bytes) -> None:
    """A case is an exit code, then what was said on stdout and, behind a NUL, on stderr."""
    output, _, errors = data[1:].partition(b"\0")
    texts = [part.decode("utf-8", "surrogateescape") for part in (output, errors)]
    with told():
        job_id = read_submission(data[0] if data else 0, *texts)
        if not re.fullmatch(r"[0-9]{1,20}", job_id):
            raise PromiseBroken(f"the job id {job_id!r}")


# --- the ledger ------------------------------------------------------------------------------------------


def ledger(data: bytes) -> None:
    """Whole passes with this ledger, as often as it takes for one to write everything down; then all views of it."""
    scene = replace(_ledger_scene(), backend=MemoryCluster())  # a cluster and a document of its own: no case is of another's past
    (scene.experiment / "experiment_summary.md").write_text(LEDGER_DOCUMENT)
    path = Ledger(scene.experiment, scene.clock).path
    path.write_bytes(data)
    with told():
        seen = preview(scene)
        _check_views(seen)
        run_pass(scene)
        after = preview(scene)
        _check_views(after)
        if path.read_bytes()[: data.rfind(b"\n") + 1] != data[: data.rfind(b"\n") + 1]:
            raise PromiseBroken("what was written is not there any more")


@cache
def _ledger_scene() -> Scene:
    directory = _scratch("ledger")
    (directory / "a" / "eval").mkdir(parents=True)
    (directory / ".reconcile").mkdir()
    (directory / "a" / "finetune.slurm").write_bytes(_SCRIPT)
    (directory / "a" / "eval" / "cap_epoch0.slurm").write_bytes(_SCRIPT)
    tools = {tool.name: tool for tool in (StandInTool(Stage.FINETUNE), StandInTool(Stage.EVALUATION))}
    policy = Policy(document="tables")
    return Scene(directory, policy, MemoryCluster(), RealDisk(), tools, lambda: NOW, "u", {"HOME": "/h", "USER": "u"})


LEDGER_DOCUMENT = """# ledger

## Tools

- **Model Preparation:** trainer
- **Evaluation:** evaluator

## All Runs

| Run Name | Type |
|----------|------|
| a | Fine-tuned |

## Evaluation Plan

| Run Name | cap |
|----------|-----|
| a | ✓ epoch 0 |
"""


# --- outputs -------------------------------------------------------------------------------------------------


def eval_log(data: bytes) -> None:
    """One log among an evaluation's, judged by its header and in full."""
    content = containers.eval_log(data)
    step = _evaluation_step()
    log = step.output_dir / f"2026-01-01T00-00-00_cap_x{'.json' if data[:1] == b'j' else '.eval'}"
    for deep in (False, True):
        outputs = all_tools()["inspect-ai"].check(step, Files({log: content}), deep=deep)
        check_sentence(outputs.reason.message)
        check_sentence(outputs.progress)


@cache
def _evaluation_step() -> Step:
    script = b"#!/bin/bash\ninspect eval task.py@tiny --model mockllm/model --limit 2\n"
    run = replace(_RUN, kind=RunKind.CONTROL, evaluations=(EvaluationInput("tiny", None, 9),))
    disk = Files({HERE / "r8" / "eval" / "tiny_base.slurm": script})
    (step,) = all_tools()["inspect-ai"].read(run, disk).steps
    return step


def safetensors(data: bytes) -> None:
    fault = safetensors_fault(Path("/o/x.safetensors"), Files({Path("/o/x.safetensors"): containers.safetensors(data)}))
    check_sentence(fault or "")


def torch_zip(data: bytes) -> None:
    path = Path("/o/x.pt")
    disk = Files({path: containers.torch_zip(data)})
    for deep in (False, True):
        check_sentence(torch_zip_fault(path, disk, deep=deep) or "")
    number = read_integer(path, "epochs_run", disk)
    check_sentence(f"{number}")


def epoch_directory(data: bytes) -> None:
    """The JSON files of a checkpoint: the index of its shards, and the adapter's configuration."""
    epoch = Path("/o/epoch_0")
    files = {"model.safetensors.index.json": data, "adapter_config.json": data, "model-1.safetensors": b"\x02" + bytes(7) + b"{}"}
    disk = Files({epoch / name: content for name, content in files.items()})
    verdict = judge_epoch(epoch, Wanted(merged=True, adapters=True, copies={}), disk)
    for sentence in (*verdict.faults, *verdict.doubts):
        check_sentence(sentence)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "markdown": markdown,
    "yaml_form": yaml_form,
    "settings": settings,
    "finetune_yaml": finetune_yaml,
    "eval_yaml": eval_yaml,
    "batch_script": batch_script,
    "status_tables": status_tables,
    "squeue": squeue,
    "sacct": sacct,
    "sbatch": sbatch,
    "ledger": ledger,
    "eval_log": eval_log,
    "safetensors": safetensors,
    "torch_zip": torch_zip,
    "epoch_directory": epoch_directory,
}
