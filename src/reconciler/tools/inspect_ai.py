"""inspect-ai, the evaluator: which evaluations a run has, and which logs prove them.

Reads the header of each log and the batch scripts; never runs anything, never reads a sample, never changes a file.
Source of the rules: measured on inspect-ai 0.3.285, whose exit code is 0 also for a failed evaluation.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import cast

from reconciler.batch_script import parse_batch_script
from reconciler.errors import DiskUnreadable, Problem
from reconciler.model import (
    EvaluationInput,
    FileId,
    Outputs,
    OutputState,
    Reading,
    Reason,
    RunInput,
    RunKind,
    Stage,
    Step,
    Unknown,
    digest,
)
from reconciler.ports import Disk
from reconciler.resources import ask_of
from reconciler.script_checks import script_problems
from reconciler.script_commands import commands_of, is_literal
from reconciler.text_limits import can_be_path, unfolded
from reconciler.tools.formats.eval_log import EvalLog, LogDamaged, read_eval_log

_MAX_SCRIPT = 4 << 20  # bytes; slurm.conf, MaxScriptSize
_SETTINGS = "eval.yaml"
_MAX_SETTINGS = 256 << 10  # bytes
_MOST_SETTINGS = 100_000  # values
_LARGEST_TASK = 1 << 20  # bytes; a task file is a page or two
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")
_EPOCH_DIRECTORY = re.compile(r"epoch_\d+$")
_NUMBERED = re.compile(r"(?P<task>.+)_epoch(?P<epoch>0|[1-9][0-9]*)")
_INSPECT = re.compile(r"(^|/)inspect(_ai)?$")
_TIMED = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d")  # how inspect-ai begins a log's name


class InspectAI:
    """The evaluation stage by inspect-ai, in the four parts of a tool."""

    name = "inspect-ai"
    stage = Stage.EVALUATION
    log_file = "run-inspect.log"
    is_default = True
    signs = ()
    settings = ("retry", "time", "mem")  # an evaluation begins anew, and its batch is its task's

    def read(self, run: RunInput, disk: Disk) -> Reading:
        """The evaluations of a run, each with the script found for it; a missing or doubtful script is a Problem."""
        try:
            scripts = _find_scripts(run.directory / "eval", disk)
        except DiskUnreadable as error:
            return _unseen(run, str(error))
        run = run if run.planned else replace(run, evaluations=_evaluations_of(run, scripts))
        lone = _at_one_epoch(run)
        places = ((evaluation, _candidates(run, evaluation, lone)) for evaluation in run.evaluations)
        readings = [_read_evaluation(run, evaluation, candidates, scripts, disk) for evaluation, candidates in places]
        steps = {step.key: step for step, _ in readings}
        problems = [problem for _, its_problems in readings for problem in its_problems]
        return Reading(_with_rivals(tuple(steps.values())), (*problems, *_unplanned(run, scripts)))

    def may_submit(self, step: Step, outputs: Outputs) -> str | None:
        """None unless the logs verify already or leave a question: an evaluation adds a log and overwrites none."""
        return None if outputs.state in (OutputState.ABSENT, OutputState.INCOMPLETE) else outputs.reason.message

    def log_label(self, step: Step) -> tuple[str, str]:
        """``SUBMIT_EVAL`` of ``<run>/<task>/epoch<N>``, or ``…/base``."""
        epoch = "base" if step.epoch is None else f"epoch{step.epoch}"
        return "SUBMIT_EVAL", f"{step.run}/{step.task}/{epoch}"

    def check(self, step: Step, disk: Disk, deep: bool = False) -> Outputs:
        """Judge every log of the step's directory by its header; one good log is enough, and old failed ones do no harm."""
        if step.blocked:
            return Outputs(OutputState.UNKNOWN, step.blocked)
        try:
            return _judge(step, disk, deep=deep)
        except DiskUnreadable as error:
            return Outputs(OutputState.UNKNOWN, Reason("DiskUnreadable", str(error)))


TOOL = InspectAI()


# --- 1, input: which script belongs to which evaluation ---------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where the script of one evaluation may stand. ``name`` ends the step's key; ``is_cell`` means the newer layout."""

    script: Path
    name: str
    is_cell: bool = False


def _at_one_epoch(run: RunInput) -> frozenset[str]:
    """The tasks that are evaluated at one epoch alone, whose cells need not name it."""
    counts = Counter(task for task, _ in {(evaluation.task, evaluation.epoch) for evaluation in run.evaluations})
    return frozenset(task for task, count in counts.items() if count == 1)


def _candidates(run: RunInput, evaluation: EvaluationInput, lone: frozenset[str]) -> list[_Place]:
    """Every place that is accepted for an evaluation's script, the expected one first."""
    directory, task, epoch = run.directory / "eval", evaluation.task, evaluation.epoch
    flat = f"{task}_base" if epoch is None else f"{task}_epoch{epoch}"
    cells = [task if epoch is None else flat]
    if run.kind is RunKind.FINE_TUNED and epoch is not None and task in lone:
        cells.append(task)
    places = [_Place(directory / f"{flat}.slurm", flat), *(_Place(directory / c / "cell.slurm", c, True) for c in cells)]
    return places if run.document.suffix == ".md" else [*places[1:], places[0]]


def _find_scripts(directory: Path, disk: Disk) -> tuple[Path, ...]:
    """Every batch script in a run's ``eval`` directory, of both layouts."""
    names = disk.names(directory) or ()
    cells = [directory / name / "cell.slurm" for name in names if not name.endswith(".slurm") and name != "logs"]
    return (
        *(directory / name for name in names if name.endswith(".slurm")),
        *(cell for cell in cells if _may_be_there(cell, disk)),
    )


def _may_be_there(path: Path, disk: Disk) -> bool:
    """False where it is surely absent. What cannot be examined counts as there, so that reading it tells why it cannot be."""
    try:
        return disk.stat(path) is not None
    except DiskUnreadable:
        return True


def _unseen(run: RunInput, why: str) -> Reading:
    """The planned evaluations, each at its expected place, where nobody can see which scripts there are."""
    lone, fault = _at_one_epoch(run), Reason("ScaffoldingUnreadable", why)
    bare = (_bare_step(run, evaluation, _candidates(run, evaluation, lone)[0]) for evaluation in run.evaluations)
    steps = {step.key: replace(step, blocked=fault) for step in bare}
    return Reading(tuple(steps.values()), (Problem(run.document, run.line, why, run.name),))


def _evaluations_of(run: RunInput, scripts: Iterable[Path]) -> tuple[EvaluationInput, ...]:
    """The plan that the names of the scripts amount to, where the document has none."""
    found: list[EvaluationInput] = []
    for script in scripts:
        is_cell = script.name == "cell.slurm"
        name = script.parent.name if is_cell else script.stem
        if match := _NUMBERED.fullmatch(name):
            found.append(EvaluationInput(match["task"], int(match["epoch"]), run.line))
        elif is_cell:
            lone = next(iter(run.checkpoints)) if len(run.checkpoints) == 1 and run.kind is RunKind.FINE_TUNED else None
            found.append(EvaluationInput(name, lone, run.line))
        elif name.endswith("_base"):
            found.append(EvaluationInput(name.removesuffix("_base"), None, run.line))
    return tuple(dict.fromkeys(found))


def _unplanned(run: RunInput, scripts: Iterable[Path]) -> Iterator[Problem]:
    lone = _at_one_epoch(run)
    wanted = {place.script for evaluation in run.evaluations for place in _candidates(run, evaluation, lone)}
    message = "no planned evaluation has this script; accepted are <task>_epoch<N>.slurm, <task>_base.slurm, <cell>/cell.slurm"
    return (Problem(script, 0, message, run.name, warning=True) for script in scripts if script not in wanted)


def _read_evaluation(
    run: RunInput, evaluation: EvaluationInput, candidates: list[_Place], scripts: tuple[Path, ...], disk: Disk
) -> tuple[Step, list[Problem]]:
    there = [place for place in candidates if place.script in scripts]
    if len(there) == 1:
        return _read_script(run, evaluation, there[0], disk)
    what = f"the evaluation {evaluation.task} of {run.name}" + (
        "" if evaluation.epoch is None else f" at epoch {evaluation.epoch}"
    )
    paths = " or ".join(str(place.script) for place in there or candidates)
    if there:
        reason = Reason("ScriptAmbiguous", f"{what} has more than one script; which counts, {paths}? Move the other away")
    else:
        reason = Reason("NotScaffolded", f"{what} has no script; accepted: {paths}")
    step = _bare_step(run, evaluation, (there or candidates)[0])
    return replace(step, blocked=reason), [Problem(run.document, evaluation.line, reason.message, run.name)]


def _bare_step(run: RunInput, evaluation: EvaluationInput, place: _Place) -> Step:
    return Step(
        key=f"{run.name}/eval/{place.name}",
        run=run.name,
        stage=Stage.EVALUATION,
        tool=InspectAI.name,
        script=place.script,
        files=(place.script.parent / _SETTINGS,) if place.is_cell else (),
        output_dir=place.script.parent / "logs",
        root=run.directory,
        definition="",
        placement="",
        task=evaluation.task,
        epoch=evaluation.epoch,
        need=run.preparation_key if evaluation.epoch is not None and run.kind is RunKind.FINE_TUNED else None,
    )


def _read_script(run: RunInput, evaluation: EvaluationInput, place: _Place, disk: Disk) -> tuple[Step, list[Problem]]:
    step = _bare_step(run, evaluation, place)
    try:
        text = _script_text(place.script, disk)
        settings = _read_settings(place, disk)
        script = parse_batch_script(place.script, text)
        problems = list(script_problems(script, run.name, disk))
        command = _parse_command(script.commands, place.script.parent, run.directory.parent, disk)
    except _Invalid as invalid:
        problem = Problem(invalid.file, invalid.line, str(invalid), run.name)
        return replace(step, blocked=Reason("ConfigInvalid", str(problem))), [problem]
    except DiskUnreadable as error:
        fault = Reason("ScaffoldingUnreadable", str(error))
        return replace(step, blocked=fault), [Problem(place.script, 0, fault.message, run.name)]
    wanted = _wanted(run, evaluation, place, command, settings)
    blocked = _no_such_epoch(run, evaluation, place)
    if blocked:
        problems.append(Problem(run.document, evaluation.line, blocked.message, run.name, warning=True))
    if wanted.script_path and wanted.model_path and _real(wanted.script_path) != _real(wanted.model_path):
        message = f"it evaluates {wanted.script_path}, while the checkpoint of this evaluation is {wanted.model_path}"
        problems.append(Problem(place.script, 0, message, run.name, warning=True))
    output_dir = command.log_dir if command else step.output_dir
    return replace(
        step,
        output_dir=output_dir,
        root=run.directory if output_dir.is_relative_to(run.directory) else output_dir.parent,
        definition=digest(script.commands, json.dumps(settings, sort_keys=True), evaluation.task),
        placement=script.placement,
        meaning={
            "task": evaluation.task,
            "script": f"commands {digest(script.commands)[:8]}",
            **{f"eval.yaml:{k}": v for k, v in settings.items()},
        },
        inputs=_task_files(command, disk),
        spec={"wanted": wanted},
        reads=tuple(path for path in (wanted.model_path, wanted.script_path) if path is not None),
        job_name=script.job_name,
        workdir=script.workdir,
        written_workdir=script.written_workdir,
        logs=script.log_patterns,
        asks=script.asks,
        ask=ask_of(script),
        requeue=[d.option for d in script.directives if d.option in ("requeue", "no-requeue")][-1:] == ["requeue"],
        blocked=blocked,
    ), problems


def _script_text(path: Path, disk: Disk) -> str:
    content = disk.read(path, 0, _MAX_SCRIPT + 1)
    if content is None:
        raise DiskUnreadable(f"{path}: is not there any more")
    if len(content) > _MAX_SCRIPT:
        raise _Invalid(path, 0, f"is larger than {_MAX_SCRIPT >> 20} MiB; is it the right file?")
    return content.decode("utf-8", "surrogateescape")


def _no_such_epoch(run: RunInput, evaluation: EvaluationInput, place: _Place) -> Reason | None:
    if run.kind is not RunKind.FINE_TUNED:
        return None
    saved = ", ".join(str(epoch) for epoch in sorted(run.checkpoints)) or "not known"
    if evaluation.epoch is None and place.is_cell:
        return Reason("EpochUnknown", f"{run.name} is fine-tuned; which epoch does {place.name} evaluate? Saved: {saved}")
    if evaluation.epoch is None or evaluation.epoch in run.checkpoints or not run.checkpoints:
        return None  # a training at fault saves nothing, and says so itself
    return Reason("NoSuchEpoch", f"{run.name} will save no epoch {evaluation.epoch} (epochs count from 0; saved: {saved})")


class _Invalid(Exception):
    """A script that is none, or an ``eval.yaml`` that is no YAML mapping; ``line`` counts from 1, 0 means the file as a whole."""

    def __init__(self, file: Path, line: int, message: str) -> None:
        super().__init__(message)
        self.file = file
        self.line = line


def _read_settings(place: _Place, disk: Disk) -> dict[str, str]:
    """The meaning of the cell's ``eval.yaml``, each top-level key with its value as JSON; empty where there is none."""
    file = place.script.parent / _SETTINGS
    content = disk.read(file, 0, _MAX_SETTINGS + 1) if place.is_cell else None
    if content is None:
        return {}
    if len(content) > _MAX_SETTINGS:
        raise _Invalid(file, 0, f"is larger than {_MAX_SETTINGS >> 10} KiB; is it the right file?")
    from ruamel.yaml import YAML  # heavy, and needed by the newer layout alone
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they would print the text as it is
            settings = YAML(typ="safe", pure=True).load(content.decode("utf-8")) or {}
        _check_size(settings)
        return {str(key): json.dumps(value, sort_keys=True, default=str) for key, value in settings.items()}
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _Invalid(file, line, f"not valid YAML: {error.problem}") from error
    except (YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _Invalid(file, 1, f"expected a YAML mapping of settings: {str(error)[:300]}") from error


def _check_size(settings: object) -> None:
    if unfolded(settings, {})[0] > _MOST_SETTINGS:
        raise ValueError("its aliases (`*name`) unfold into too many values; write them out")


# --- what the script asks of inspect-ai --------------------------------------------------------------


@dataclass(frozen=True)
class _Command:
    """The one ``inspect eval`` of a script, as far as its words are literal (``$NAME`` of a literal assignment counts).

    ``arguments`` are the ``-T`` whose values are known; ``is_literal`` is True where every word was. Unknown is None.
    """

    directory: Path
    log_dir: Path
    task: str | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    is_literal: bool = False
    model: str | None = None
    model_path: str | None = None
    limit: str | None = None
    task_files: tuple[Path, ...] = ()


def _parse_command(commands: str, directory: Path, experiment: Path, disk: Disk) -> _Command | None:
    """None where the script has no ``inspect eval`` that can be seen, or several."""

    def enters(target: Path | None, is_certain: bool) -> bool:
        return target is not None and _is_entered(target, experiment, disk, is_certain=is_certain)

    found: list[_Command] = []
    for command in commands_of(commands, directory, directory, enters):
        words = command.words
        at = next((i for i, word in enumerate(words[:-1]) if _INSPECT.search(word) and words[i + 1] == "eval"), None)
        if at is not None:
            variables = {**command.variables, **{name: value for name, _, value in (word.partition("=") for word in words[:at])}}
            found.append(_read_command(words[at + 2 :], command.directory or directory, variables))
    return found[0] if len(found) == 1 else None


def _read_command(words: Sequence[str], directory: Path, variables: Mapping[str, str]) -> _Command:
    options = _options(words)
    pairs = [pair.partition("=") for pair in options.get("-T", ()) if "=" in pair]
    model_path = [pair.partition("=")[2] for pair in options.get("-M", ()) if pair.startswith("model_path=")]
    limits = options.get("--limit") or options.get("--sample-id") or [variables.get("INSPECT_EVAL_LIMIT", "")]
    log_dir = _last(options.get("--log-dir") or [variables.get("INSPECT_LOG_DIR", "logs")]) or "logs"
    return _Command(
        directory=directory,
        log_dir=Path(os.path.normpath(directory / log_dir)),
        task=_task_name(words),
        arguments={key: value for key, _, value in pairs if is_literal(value)},
        is_literal=all(is_literal(word) for word in words) and not {"--task-config", "--model-config"} & set(words),
        model=_last(options.get("--model", ())),
        model_path=_last(model_path),
        limit=limits[-1] or None,
        task_files=tuple(dict.fromkeys(Path(os.path.normpath(directory / word)) for word in _files_in(words))),
    )


def _files_in(words: Sequence[str]) -> Iterator[str]:
    """The files of Python that the tasks are in, of ``file.py`` and ``file.py@task``, where they are literal."""
    for place, word in enumerate(words):
        name = word.partition("@")[0]
        if name.endswith(".py") and (".py@" in word or place == 0) and not word.startswith("-") and is_literal(name):
            yield name


def _task_files(command: _Command | None, disk: Disk) -> dict[str, str]:
    """The version of each task file; one that is not there, or cannot be read, is unknown and left out."""
    versions = {}
    for path in command.task_files if command else ():
        with suppress(DiskUnreadable):
            content = disk.read(path, 0, _LARGEST_TASK)
            if content is not None:
                versions[f"task file {path.name}"] = hashlib.sha256(content).hexdigest()[:16]
    return versions


def _is_entered(directory: Path, experiment: Path, disk: Disk, *, is_certain: bool) -> bool:
    """A ``cd`` that fails leaves a batch script where it was. What is missing in the experiment or right in a directory above it
    surely is not there; what is missing elsewhere may be on a filesystem that is not mounted now: there a script is taken at its
    word, unless it asks first or has other ways."""
    found = disk.stat(directory)
    if found is not None:
        return found.is_dir
    nearest = next((Path(_real(above)) for above in directory.parents if disk.stat(above) is not None), Path("/"))
    here = Path(_real(experiment))
    return is_certain and (nearest == Path("/") or not (here.is_relative_to(nearest) or nearest.is_relative_to(here)))


def _last(words: Iterable[str]) -> str | None:
    """The last of some values, the one that counts, where it is literal."""
    value = (list(words) or [""])[-1]
    return value if value and is_literal(value) else None


def _options(words: Sequence[str]) -> dict[str, list[str]]:
    """The values of each option, in order, for ``--name value``, ``--name=value`` and ``-Xvalue``."""
    options: dict[str, list[str]] = {}
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if word[:2] in ("-T", "-M"):
            options.setdefault(word[:2], []).append(word[2:] or following)
        elif word.startswith("--"):
            options.setdefault(name, []).append(value if equals else following)
    return options


def _task_name(words: Sequence[str]) -> str | None:
    """The registered name in ``file.py@name`` or ``package/name``; None where the file alone, or several, are given."""
    first = words[0] if words and not words[0].startswith("-") else ""
    named = {word.rpartition("@")[2] for word in words if ".py@" in word} or {first.rpartition("/")[2]}
    name = named.pop() if len(named) == 1 else ""
    return name if name and is_literal(name) and not name.endswith(".py") else None


# --- 4, verification: which logs are this step's, and what they prove -----------------------------------


@dataclass(frozen=True)
class _Wanted:
    """What a log must say to be one evaluation's. None where the scaffolding does not tell.

    ``model_path`` is the checkpoint that the run's plan means, ``script_path`` the one that the script loads, ``epochs`` all
    checkpoints of the run. ``owns_directory``: the newer layout, where no other evaluation logs to the same directory.
    ``limit`` is the limit asked for, with a ``$`` in it where only the shell knows.
    """

    task: str
    epoch: int | None
    owns_directory: bool
    model_path: Path | None
    script_path: Path | None = None
    epochs: tuple[Path, ...] = ()
    directory: Path = Path()
    task_name: str | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    is_literal: bool = False
    model: str | None = None
    limit: str | None = None


def _wanted(
    run: RunInput, evaluation: EvaluationInput, place: _Place, command: _Command | None, settings: Mapping[str, str]
) -> _Wanted:
    epoch = evaluation.epoch
    command = command or _Command(place.script.parent, place.script.parent / "logs")
    limit = command.limit or settings.get("limit")
    return _Wanted(
        task=evaluation.task,
        epoch=epoch,
        owns_directory=place.is_cell and _real(command.log_dir) == _real(place.script.parent / "logs"),
        model_path=run.checkpoints.get(epoch, run.checkpoint_path) if epoch is not None else run.checkpoint_path,
        script_path=command.directory / command.model_path if command.model_path else None,
        epochs=tuple(run.checkpoints.values()),
        directory=command.directory,
        task_name=command.task,
        arguments=command.arguments,
        is_literal=command.is_literal,
        model=command.model,
        limit=None if limit in (None, "null") else limit,
    )


def _with_rivals(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Each step with what the others want whose logs go to the same directory."""
    described = [(step.key, _real(step.output_dir), step.spec["wanted"]) for step in steps if "wanted" in step.spec]

    def rivals(step: Step) -> tuple[object, ...]:
        directory = _real(step.output_dir)
        return tuple(wanted for key, its_directory, wanted in described if key != step.key and its_directory == directory)

    return tuple(replace(step, spec={**step.spec, "rivals": rivals(step)}) if step.spec else step for step in steps)


class _Worth(IntEnum):
    """What one log contributes, the most telling first."""

    GOOD = 0
    UNREADABLE = 1
    SHARED = 2
    FAILED = 3
    DAMAGED = 4
    OUTDATED = 5


_STATES = {
    _Worth.GOOD: OutputState.COMPLETE,
    _Worth.UNREADABLE: OutputState.UNKNOWN,
    _Worth.SHARED: OutputState.AMBIGUOUS,
    _Worth.FAILED: OutputState.INCOMPLETE,
    _Worth.DAMAGED: OutputState.INCOMPLETE,
    _Worth.OUTDATED: OutputState.ABSENT,
}


@dataclass(frozen=True)
class _Finding:
    worth: _Worth
    reason: Reason
    file: FileId | None = None
    created: float = 0.0
    progress: str = ""


def _judge(step: Step, disk: Disk, *, deep: bool) -> Outputs:
    wanted = cast(_Wanted, step.spec["wanted"])
    names = disk.names(step.output_dir)
    logs = [name for name in names or () if name.endswith((".eval", ".json"))]
    weights = _newest_weights(wanted.model_path, disk) if wanted.model_path else None
    lacks = _lacks(step, wanted.model_path, disk) if wanted.model_path and weights is None and step.need else None
    timed = [name for name in logs if _TIMED.match(name)]
    findings: list[_Finding] = []
    for name in [*(name for name in logs if name not in timed), *reversed(timed)]:
        if finding := _judge_log(step, step.output_dir / name, weights, lacks, disk, deep=deep):
            findings.append(finding)
            if finding.worth is _Worth.GOOD and name in timed:
                break  # those that follow are older, and what has a name of its own was looked at
    best = min(findings, key=lambda finding: (finding.worth, -finding.created), default=None)
    if best is None:
        message = f"no log of this evaluation is in {step.output_dir}{_whose(step, logs, disk)}"
        return Outputs(OutputState.ABSENT, Reason("NoLog", message), lacks=lacks)
    return Outputs(
        _STATES[best.worth],
        best.reason,
        marked=best.worth is _Worth.GOOD,
        newest=best.file.mtime_ns / 1e9 if best.file else None,
        evidence=(best.file,) if best.file and best.worth is _Worth.GOOD else (),
        progress=best.progress,
        lacks=lacks,
    )


def _judge_log(
    step: Step, path: Path, weights: float | None, lacks: Reason | Unknown | None, disk: Disk, *, deep: bool
) -> _Finding | None:
    """What one log says of a step; None where it is another's."""
    wanted, rivals = cast(_Wanted, step.spec["wanted"]), cast("tuple[_Wanted, ...]", step.spec["rivals"])
    try:
        info = disk.stat(path)
        log = read_eval_log(path, disk, deep=deep)
    except DiskUnreadable as error:
        return _Finding(_Worth.UNREADABLE, Reason("DiskUnreadable", str(error)))
    except LogDamaged as error:
        return _Finding(_Worth.DAMAGED, Reason("LogDamaged", str(error)))
    if info is None or log is None or not _is_of(wanted, log):
        return None
    file = FileId(str(path), info.size, info.mtime_ns)
    progress = f"{log.completed} of {log.total} samples" if log.total is not None else ""

    def found(worth: _Worth, code: str, message: str) -> _Finding:
        return _Finding(worth, Reason(code, message), file, log.created, progress)

    if isinstance(lacks, Unknown):
        return found(_Worth.UNREADABLE, "CheckpointUnseen", f"nothing tells whether {path.name} is current: {lacks.why}")
    if lacks is not None:
        return found(
            _Worth.OUTDATED,
            "CheckpointAbsent",
            f"{path.name} is there, but no weights in {wanted.model_path} tell whether it is current",
        )
    if weights is not None and math.floor(log.created) < math.floor(weights):
        return found(_Worth.OUTDATED, "LogOutdated", f"an older log is there, {path.name}; it evaluated weights since replaced")
    if fault := _fault(log, wanted.limit):
        return found(_Worth.FAILED, fault.code, f"{fault.message} ({path.name})")
    if any(_is_of(rival, log) for rival in rivals):
        others = ", ".join(_title(rival) for rival in rivals if _is_of(rival, log))
        return found(_Worth.SHARED, "LogAmbiguous", f"{path.name} may belong to {_title(wanted)} or to {others}; which is it?")
    return found(_Worth.GOOD, "LogVerified", f"{path.name} succeeded with {progress}")


def _whose(step: Step, logs: Sequence[str], disk: Disk) -> str:
    """What a log that is there is of instead, in words that tell a slip in the script or the document; empty where none is."""
    wanted = cast(_Wanted, step.spec["wanted"])
    with suppress(DiskUnreadable, LogDamaged):
        log = read_eval_log(step.output_dir / logs[-1], disk) if logs else None
        if log is not None:
            of = log.registry_name or log.task
            return f"; {logs[-1]} is of the task {of} and {_model_path(log) or log.model}, not of {_title(wanted)}"
    return ""


def _title(wanted: _Wanted) -> str:
    return f"{wanted.task} " + ("of the base model" if wanted.epoch is None else f"at epoch {wanted.epoch}")


def _fault(log: EvalLog, limit: str | None) -> Reason | None:
    """Why a log does not prove its evaluation done; None where it does."""
    if not log.ended:
        return Reason("LogUnfinished", "a run is in progress or was killed")
    if log.status != "success":
        first_line = next(iter(log.error.splitlines()), "")
        return Reason(
            "EvaluationFailed", f"inspect-ai ended with status {log.status}" + (f": {first_line}" if first_line else "")
        )
    if log.is_invalidated:
        return Reason("LogInvalidated", "the log was invalidated")
    if not log.total or log.completed != log.total:
        return Reason("SamplesMissing", f"{log.completed or 0} of {log.total or 0} samples completed")
    if log.limit is not None and not _is_limit_asked(log.limit, limit):
        asked = f"--limit {limit} is asked for" if limit else "the whole dataset is asked for"
        return Reason("LimitDiffers", f"it was limited to {log.limit!s:.100} samples, while {asked}")
    if log.samples is None:
        return Reason("SamplesMissing", "the log does not say how many samples its dataset has")
    expected = log.samples if log.limit is None else min(log.limit, log.samples) if isinstance(log.limit, int) else None
    if expected is not None and log.total != expected * log.epochs:
        return Reason("SamplesMissing", f"{log.total} samples were run of the {expected * log.epochs} expected")
    return None


def _is_limit_asked(found: object, asked: str | None) -> bool:
    """A single number must be the same; a range or a list of samples is logged in other words than it is asked for."""
    if asked is None or not is_literal(asked) or isinstance(found, list):
        return asked is not None
    return str(found) == asked.strip("\"'")


def _lacks(step: Step, checkpoint: Path, disk: Disk) -> Reason | Unknown:
    """What to make of a checkpoint without weights: a training leaves its directory where it is, also when a rerun moves its
    epochs aside, so where even that is not there nobody deleted the weights alone."""
    trained = checkpoint.parent
    if disk.stat(trained) is None:
        return Unknown(f"{trained} is not there; is its filesystem mounted? If it was deleted, rerun {step.need}")
    return Reason("CheckpointGone", f"no weights are in {checkpoint} any more; rerun {step.need}, or put them back")


def _newest_weights(directory: Path, disk: Disk) -> float | None:
    """When the weights of a checkpoint were last written, by weight files alone: copies of base files keep old times."""
    names = [name for name in disk.names(directory) or () if name.endswith(_WEIGHTS)]
    times = [info.mtime_ns / 1e9 for info in (disk.stat(directory / name) for name in names) if info is not None]
    return max(times, default=None)


# --- whose log is it ---------------------------------------------------------------------------------


def _is_of(wanted: _Wanted, log: EvalLog) -> bool:
    """True where a log can be this evaluation's. In the newer layout the directory says so already: a task may carry a label."""
    if not _has_model(wanted, log):
        return False
    return wanted.owns_directory or (_has_task(wanted, log) and _has_arguments(wanted, log))


def _has_task(wanted: _Wanted, log: EvalLog) -> bool:
    names = {log.registry_name.rpartition("/")[2] or log.task, log.task.rpartition("/")[2]}
    return (wanted.task_name or wanted.task) in names


def _has_model(wanted: _Wanted, log: EvalLog) -> bool:
    path = _model_path(log)
    if path is None:
        same_name = wanted.model is None or wanted.model == log.model
        return wanted.script_path is None and same_name and _has_epoch(wanted, log)
    real = _real(wanted.directory / path)
    target = wanted.model_path or wanted.script_path
    if wanted.epoch is None and wanted.model_path is None and real in {_real(epoch) for epoch in wanted.epochs}:
        return False
    return real == _real(target) if target else not _EPOCH_DIRECTORY.search(real)


def _model_path(log: EvalLog) -> str | None:
    """The path of a local model: the model argument, or what follows the provider in ``hf//path/to/model``."""
    name = log.model.partition("/")[2]
    return log.model_path or (name if name.startswith("/") else None)


def _has_epoch(wanted: _Wanted, log: EvalLog) -> bool:
    """Tells epochs apart where no path does. A task argument's default says nothing of a base model."""
    told = log.metadata.get("epoch", (log.passed or {}).get("epoch"))
    if told is None and wanted.epoch is not None:
        told = log.arguments.get("epoch")
    return told is None or str(told) == str(wanted.epoch)


def _has_arguments(wanted: _Wanted, log: EvalLog) -> bool:
    """True unless an argument contradicts the script's, or was passed and the script, all of it known, does not pass it."""
    logged = {**log.arguments, **(log.passed or {})}
    if any(key in logged and not _means(text, logged[key]) for key, text in wanted.arguments.items()):
        return False
    expected = {**wanted.arguments, "epoch": str(wanted.epoch)}  # an epoch that is passed along is only a label
    return not wanted.is_literal or all(key in expected and _means(expected[key], logged[key]) for key in log.passed or {})


def _means(text: str, value: object) -> bool:
    """True unless the text of a ``-T key=text`` surely is another value than the one logged."""
    if isinstance(value, bool):
        return text.lower() in (("true", "yes", "on") if value else ("false", "no", "off"))
    if isinstance(value, (int, float)):
        try:
            return float(text) == value
        except ValueError:
            return False
    return text == value if isinstance(value, str) else True


def _real(path: Path | str) -> str:
    """The path without symbolic links, as far as it exists."""
    return os.path.realpath(path) if can_be_path(str(path)) else str(path)
