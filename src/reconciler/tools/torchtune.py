"""torchtune, the trainer: one fine-tuning step for each fine-tuned run, proved by the epochs it saved.

``finetune.yaml`` is the authority on what is trained and where to; ``torchtune_config.yaml`` in the output directory is what
was launched. Reads configurations, headers and sizes; never runs anything, never unpickles, never changes a file.
Source of the rules: measured on torchtune 0.6.1, whose last epoch has no end marker and whose reruns overwrite silently.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from reconciler.batch_script import BatchScript, parse_batch_script
from reconciler.errors import DiskUnreadable, Problem
from reconciler.model import (
    Edit,
    Outputs,
    OutputState,
    Reading,
    Reason,
    RunInput,
    RunKind,
    Stage,
    Step,
    Unknown,
    Written,
    defined_by,
    digest,
)
from reconciler.ports import Disk, surely_directory
from reconciler.resources import ask_of
from reconciler.script_checks import script_problems
from reconciler.script_commands import Command, commands_of, is_literal
from reconciler.text_limits import can_be_path
from reconciler.tools.formats.epoch_directory import Verdict, Wanted, judge_epoch, small_files
from reconciler.tools.formats.omega_config import ConfigFault, OmegaConfig, read_omega_config
from reconciler.tools.formats.torch_zip import read_integer

_SCRIPT = "finetune.slurm"
_CONFIG = "finetune.yaml"
_LAUNCHED = "torchtune_config.yaml"
_STATE = Path("recipe_state", "recipe_state.pt")
_EPOCH = re.compile(r"epoch_(0|[1-9][0-9]*)")
_OVERRIDE = re.compile(r"~?[A-Za-z_][\w.]*=\S*")
_RESUME = "resume_from_checkpoint"  # how to launch, not what comes out: no part of what defines a result
_BATCH, _STEPS = "batch_size", "gradient_accumulation_steps"
_ONE = "1"  # what the recipes take where no accumulation is asked for
_OF_THE_BATCH = re.compile(r"batch|accum|(?<![a-z0-9])bs(?![a-z0-9])")  # a document's columns are named by people
_MOST_EPOCHS = 9999
_MAX_CONFIG = 256 << 10  # bytes; a hundred times an honest one, and read in a few seconds
_MAX_SCRIPT = 4 << 20  # bytes; slurm.conf, MaxScriptSize
_NOT_ENDED = "neither recipe_state nor a later epoch shows that its save ended"
_SHOWN = 3


class Torchtune:
    """The fine-tuning stage by torchtune, in the four parts of a tool."""

    name = "torchtune"
    stage = Stage.FINETUNE
    log_file = "run-torchtune.log"
    is_default = True
    signs = ()
    settings = ("retry", "resume", "time", "mem", "shrink_batch")

    def read(self, run: RunInput, disk: Disk) -> Reading:
        """The run's one training; where its scaffolding is at fault, blocked and with a Problem for each fault."""
        if run.kind is not RunKind.FINE_TUNED:
            return Reading()
        missing = _directory_fault(run, disk)
        text, training = (
            missing or _read_text(run.directory / _SCRIPT, run, disk, _MAX_SCRIPT),
            missing or _read_training(run, disk),
        )
        script = parse_batch_script(run.directory / _SCRIPT, text) if isinstance(text, str) else text
        step = _bare_step(run)
        problems: list[Problem] = []
        if isinstance(script, BatchScript):
            made = training.output_dir if isinstance(training, _Training) else None
            problems += script_problems(script, run.name, disk, made=made)
            step = _with_script(step, script)
        if isinstance(training, _Training):
            problems += _disagreements(training, run)
            step = _with_training(step, training, run)
        faults = list(dict.fromkeys(found for found in (script, training) if isinstance(found, _Fault)))
        if isinstance(text, str) and isinstance(script, BatchScript):
            commands = list(_commands(text, script, disk))
            problems += _overrides(commands, script, run)
            led_away = list(_led_away(commands, script, training, run, disk)) if isinstance(training, _Training) else []
            faults += [_Fault("ScriptLeadsAway", problem) for problem in led_away if not problem.warning]
            problems += [problem for problem in led_away if problem.warning]
        if faults:
            step = replace(step, blocked=Reason(faults[0].code, str(faults[0].problem)))
        return Reading((step,), (*(fault.problem for fault in faults), *problems))

    def may_submit(self, step: Step, outputs: Outputs) -> str | None:
        """None where no training is there that counts: the trainer would silently train over anything else."""
        return None if outputs.state in (OutputState.ABSENT, OutputState.INCOMPLETE) else outputs.reason.message

    def log_label(self, step: Step) -> tuple[str, str]:
        """``SUBMIT_JOB`` of the run."""
        return "SUBMIT_JOB", step.run

    def check(self, step: Step, disk: Disk, deep: bool = False) -> Outputs:
        """What the output directory amounts to, epoch by epoch; ``deep`` reads the torch files in full."""
        if step.blocked:
            return Outputs(OutputState.UNKNOWN, step.blocked)
        training = cast(_Training, step.spec["training"])
        try:
            found = _check(training, disk, deep)
            return replace(found, lacks=_lacks(training, disk)) if step.others else found
        except DiskUnreadable as error:
            return Outputs(OutputState.UNKNOWN, Reason("DiskUnreadable", str(error)))


TOOL = Torchtune()


@dataclass(frozen=True)
class _Fault:
    """What keeps a run from being trained."""

    code: str
    problem: Problem


@dataclass(frozen=True)
class _Training:
    """What ``finetune.yaml`` asks for. ``meaning`` is all of it, resolved and flattened."""

    config: Path
    lines: Mapping[str, int]
    output_dir: Path
    base: Path | None
    base_files: tuple[str, ...]
    epochs: int
    saved: tuple[int, ...]
    resume: bool
    resume_edit: Edit
    smaller_batch: tuple[Edit, ...]
    why_no_smaller_batch: str
    written: Mapping[str, Written]
    adapter_only: bool
    adapters: bool
    meaning: Mapping[str, str]
    text: str = field(default="", repr=False)


# --- input: the scaffolding ------------------------------------------------------------------------


def _directory_fault(run: RunInput, disk: Disk) -> _Fault | None:
    try:
        found = disk.stat(run.directory)
    except DiskUnreadable as error:
        return _Fault("ScaffoldingUnreadable", Problem(run.document, run.line, str(error), run.name))
    if found is not None and found.is_dir:
        return None
    message = f"run `{run.name}` is not scaffolded; accepted: a directory {run.directory} with {_SCRIPT} and {_CONFIG}"
    return _Fault("NotScaffolded", Problem(run.document, run.line, message, run.name))


def _read_text(path: Path, run: RunInput, disk: Disk, most: int) -> str | _Fault:
    try:
        content = disk.read(path, 0, most + 1)
    except DiskUnreadable as error:
        return _Fault("ScaffoldingUnreadable", Problem(path, 0, f"cannot be read: {error}", run.name))
    if content is None:
        return _Fault("NotScaffolded", Problem(path, 0, f"is missing; run `{run.name}` needs it to be trained", run.name))
    if len(content) > most:
        return _Fault("ConfigInvalid", Problem(path, 0, f"is larger than {most >> 10} KiB; is it the right file?", run.name))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return _Fault("ConfigInvalid", Problem(path, 0, "is not text; accepted: UTF-8", run.name))


def _read_training(run: RunInput, disk: Disk) -> _Training | _Fault:
    path = run.directory / _CONFIG
    text = _read_text(path, run, disk, _MAX_CONFIG)
    if isinstance(text, _Fault):
        return text
    try:
        return replace(_training(read_omega_config(text), path), text=text)
    except ConfigFault as fault:
        return _Fault("ConfigInvalid", Problem(path, fault.line, str(fault), run.name))


def _training(config: OmegaConfig, path: Path) -> _Training:
    """The settings that matter, each checked; ConfigFault names the line and what would be accepted."""
    output_dir = _directory(config, "output_dir", path.parent)
    if output_dir is None:
        raise ConfigFault(0, "`output_dir` is missing; accepted: the directory for this run's epochs")
    epochs = config.get("epochs")
    if type(epochs) is not int or not 1 <= epochs <= _MOST_EPOCHS:
        message = f"`epochs` is {epochs!r:.100}; accepted: a whole number from 1 to {_MOST_EPOCHS}"
        raise ConfigFault(config.line("epochs"), message)
    elsewhere = _directory(config, "checkpointer.output_dir", path.parent)
    if elsewhere is not None and not _is_same_path(elsewhere, output_dir):
        line = config.line("checkpointer.output_dir")
        raise ConfigFault(line, f"`checkpointer.output_dir` is {elsewhere}; accepted: the same as `output_dir`, {output_dir}")
    smaller, why_not = _smaller_batch(config, path)
    return _Training(
        config=path,
        lines={key: config.line(key) for key in ("output_dir", "epochs")},
        output_dir=output_dir,
        base=_directory(config, "checkpointer.checkpoint_dir", path.parent),
        base_files=_listed(config.get("checkpointer.checkpoint_files")),
        epochs=epochs,
        saved=_saved_epochs(config, epochs),
        resume=_flag(config, _RESUME),
        resume_edit=_resume_edit(config, path),
        smaller_batch=smaller,
        why_no_smaller_batch=why_not,
        written={key: config.written(key) for key in (_RESUME, _BATCH, _STEPS)},
        adapter_only=_flag(config, "save_adapter_weights_only"),
        adapters=_trains_adapters(config),
        meaning=config.meaning,
    )


def _directory(config: OmegaConfig, key: str, base: Path) -> Path | None:
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or "$" in value or value.startswith("~") or not can_be_path(value):
        raise ConfigFault(config.line(key), f"`{key}` is {value!r:.300}; accepted: a path written out (no `~`, no `$VARIABLE`)")
    return base / value


def _listed(value: object) -> tuple[str, ...]:
    """The names in a list; none where they are given in another form."""
    return tuple(name for name in value if isinstance(name, str)) if isinstance(value, list) else ()


def _flag(config: OmegaConfig, key: str) -> bool:
    value = config.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ConfigFault(
        config.line(key), f"`{key}` is {value!r:.100}, which the trainer would take as it likes; accepted: True or False"
    )


def _saved_epochs(config: OmegaConfig, epochs: int) -> tuple[int, ...]:
    """The epochs that will be saved; ``save_last_epoch_only`` has the last word, as in the recipes that know these keys."""
    if _flag(config, "save_last_epoch_only"):
        return (epochs - 1,)
    value = config.get("epochs_to_save")
    if value is None or value == "all":
        return tuple(range(epochs))
    listed = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
    is_list = isinstance(listed, list)
    numbers = {int(str(epoch)) for epoch in listed if re.fullmatch(r"[0-9]{1,9}", str(epoch))} if is_list else set()
    saved = tuple(sorted(numbers & set(range(epochs))))
    if not saved or len(numbers) != len(listed):
        message = (
            f"`epochs_to_save` is {value!r:.100}; accepted: all, or a list of epochs from 0 to {epochs - 1}, one at least "
            "(a training that saves nothing leaves nothing to verify)"
        )
        raise ConfigFault(config.line("epochs_to_save"), message)
    return saved


def _resume_edit(config: OmegaConfig, path: Path) -> Edit:
    """The edit by which a launch goes on; already made where the configuration says so in any spelling."""
    now = config.written(_RESUME).text
    return Edit(path, _RESUME, now, now if _flag(config, _RESUME) else "True")


def _smaller_batch(config: OmegaConfig, path: Path) -> tuple[tuple[Edit, ...], str]:
    """Half the batch, accumulated over twice the steps: the same number of samples to each step of the optimizer. Both edits, or
    none and why."""
    batch, steps = config.get(_BATCH), config.get(_STEPS)
    if type(batch) is not int or batch < 2 or batch % 2:
        return (), f"`{_BATCH}` in {_CONFIG} is {batch!r:.100}, no even number that could be halved"
    if not (steps is None or (type(steps) is int and steps > 0)):
        return (), f"`{_STEPS}` in {_CONFIG} is {steps!r:.100}, no number that could be doubled"
    new = {_BATCH: str(batch // 2), _STEPS: str(2 * (steps or 1))}
    why_not = [why for key in new if (why := config.written(key).why_not)]
    if why_not:
        by_hand = " and ".join(f"`{key}: {value}`" for key, value in new.items())
        return (), f"{path}: {'; '.join(why_not)}; {by_hand} would need less, so write that by hand"
    return tuple(Edit(path, key, config.written(key).text, value) for key, value in new.items()), ""


def _why_no_smaller_batch(training: _Training, varied: frozenset[str]) -> str:
    names = sorted(name for name in varied if _OF_THE_BATCH.search(name))
    if names:
        return f"the document varies `{names[0]}` between its runs, so its batch is not ours to change"
    return training.why_no_smaller_batch


def _trains_adapters(config: OmegaConfig) -> bool:
    model = config.get("model")
    if not isinstance(model, dict):
        return False
    component = str(model.get("_component_", ""))
    return any(name.startswith("lora_") for name in model) or "lora" in component or "dora" in component


def _commands(text: str, script: BatchScript, disk: Disk) -> Iterator[Command]:
    def enters(target: Path | None, is_certain: bool) -> bool | None:
        return True if target is not None and is_certain and surely_directory(target, disk) else None

    return commands_of(text, script.path.parent, Path(script.workdir), enters)


def _overrides(commands: Sequence[Command], script: BatchScript, run: RunInput) -> Iterator[Problem]:
    """Settings on the command line: the launch then differs from ``finetune.yaml``, and so do its outputs."""
    for command in commands:
        _, following = _config_of(command.words)
        found = [word for word in following if _OVERRIDE.fullmatch(word)]
        if found:
            message = f"`{' '.join(found)}` overrides {_CONFIG}, and the outputs will not be taken for this run's; put it there"
            yield Problem(script.path, command.line, message, run.name, warning=True)


def _led_away(
    commands: Sequence[Command], script: BatchScript, training: _Training, run: RunInput, disk: Disk
) -> Iterator[Problem]:
    """What the script would surely launch instead of this run's training: a ``cd`` or ``--config`` that is another run's, since a
    copy or a renaming, would train over what that one made. Another configuration in the run's own directory is warned of."""
    for command in commands:
        why, is_ours = _launched_otherwise(command, training, run, disk) if command.is_certain else ("", False)
        if is_ours:
            message = f"{why}; unless the job makes it anew, the outputs will not be taken for this run's"
            yield Problem(script.path, command.line, message, run.name, warning=True)
        elif why:
            message = f"{why}; accepted: a launch of this run's {_CONFIG}, as after `cd {run.directory}`, or with no `cd` at all"
            yield Problem(script.path, command.line, message, run.name)


def _launched_otherwise(command: Command, training: _Training, run: RunInput, disk: Disk) -> tuple[str, bool]:
    """How a launch differs from what this run's configuration asks for, and whether by another one in the run's own directory,
    which the job may make; empty where it does not, or only the job will know."""
    here, (name, _) = command.directory, _config_of(command.words)
    if here is None or name is None or not is_literal(name) or not can_be_path(name):
        return "", False
    path, own = here / name, training.config
    is_same = _is_same_path(path, own)
    is_ours = not is_same and _is_inside(path, run.directory)
    if is_same and _is_same_path(here, own.parent):
        return "", False
    try:
        launched = read_omega_config((disk.read(path, 0, _MAX_CONFIG) or b"").decode("utf-8-sig"))
        output_dir = _directory(launched, "output_dir", here)
    except (DiskUnreadable, UnicodeDecodeError, ConfigFault):
        return "", False  # the job may make it first
    if output_dir is not None and not _is_same_path(output_dir, training.output_dir):
        return f"launches {path}{f' in {here}' if is_same else ''}, which trains into {output_dir}", is_ours
    differences = _differences(launched, training.meaning)
    return f"launches {path}, which is not {own}: {_differing(differences)}" if differences else "", is_ours and bool(differences)


def _config_of(words: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """The configuration of a ``tune run`` and the words after it; None and none where that names none, and of other commands."""
    at = next((place for place, word in enumerate(words[:-1]) if Path(word).name == "tune" and words[place + 1] == "run"), None)
    for place in range(at, len(words)) if at is not None else ():
        option, equals, value = words[place].partition("=")
        if option == "--config":
            following = words[place + 1 :]
            return (value, following) if equals else (next(iter(following), ""), following[1:])
    return None, ()


def _is_inside(path: Path, directory: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory))


def _disagreements(training: _Training, run: RunInput) -> Iterator[Problem]:
    """Where the document says otherwise; ``finetune.yaml`` counts."""
    if run.checkpoint_dir is not None and not _is_same_path(run.checkpoint_dir, training.output_dir):
        message = f"`output_dir` is {training.output_dir}, the document says {run.checkpoint_dir}; {_CONFIG} counts"
        yield Problem(training.config, training.lines["output_dir"], message, run.name, warning=True)
    if run.epochs is not None and run.epochs != training.epochs:
        message = f"`epochs` is {training.epochs}, the document says {run.epochs}; {_CONFIG} counts"
        yield Problem(training.config, training.lines["epochs"], message, run.name, warning=True)


def _is_same_path(one: Path | str, other: Path | str) -> bool:
    return os.path.normpath(one) == os.path.normpath(other) or os.path.realpath(one) == os.path.realpath(other)


# --- input: the step -------------------------------------------------------------------------------


def _bare_step(run: RunInput) -> Step:
    """The step as far as the document alone defines it."""
    expected = run.checkpoint_dir or run.directory
    return Step(
        key=f"{run.name}/finetune",
        run=run.name,
        stage=Torchtune.stage,
        tool=Torchtune.name,
        script=run.directory / _SCRIPT,
        files=(run.directory / _CONFIG,),
        output_dir=expected,
        root=expected.parent,
        definition="",
        placement="",
    )


def _with_script(step: Step, script: BatchScript) -> Step:
    requeue = [directive.option for directive in script.directives if directive.option in ("requeue", "no-requeue")]
    return replace(
        step,
        definition=digest(script.commands),
        commands=digest(script.commands),
        placement=digest(script.placement),
        meaning={_SCRIPT: f"commands {digest(script.commands)[:8]}"},
        requeue=requeue[-1:] == ["requeue"],
        job_name=script.job_name,
        workdir=script.workdir,
        written_workdir=script.written_workdir,
        logs=script.log_patterns,
        asks=script.asks,
        ask=ask_of(script),
    )


def _with_training(step: Step, training: _Training, run: RunInput) -> Step:
    meaning = {key: value for key, value in sorted(training.meaning.items()) if key != _RESUME}
    is_inside = training.output_dir.is_relative_to(run.directory)
    why_not = _why_no_smaller_batch(training, run.varied)
    return replace(
        step,
        output_dir=training.output_dir,
        root=run.directory if is_inside else training.output_dir.parent,
        checkpoints={epoch: training.output_dir / f"epoch_{epoch}" for epoch in training.saved},
        definition=defined_by(step.definition, meaning),
        meaning={**meaning, **step.meaning},
        resume=training.resume_edit,
        smaller_batch=() if why_not else training.smaller_batch,
        why_no_smaller_batch=why_not,
        written=training.written,
        text=training.text,
        batch={_BATCH: meaning.get(_BATCH, "null"), _STEPS: _ONE if meaning.get(_STEPS) in (None, "null") else meaning[_STEPS]},
        config=_CONFIG,
        reads=(training.base, *(training.base / name for name in training.base_files)) if training.base is not None else (),
        spec={**step.spec, "training": training},
    )


# --- verification ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Traces:
    """What a trainer has left in an output directory. ``odd`` are names that it would take for epochs and we do not. ``since``
    (ns) is the last launch that started from nothing."""

    directory: Path
    epochs: Mapping[int, Path]
    odd: tuple[str, ...]
    has_state: bool
    has_launched: bool
    launched: OmegaConfig | str
    since: int | None
    newest: float | None

    @property
    def is_trained(self) -> bool:
        return bool(self.epochs) or self.has_state


def _check(training: _Training, disk: Disk, deep: bool) -> Outputs:
    directory = training.output_dir
    found = disk.stat(directory)
    if found is not None and not found.is_dir:
        return Outputs(OutputState.UNKNOWN, Reason("NotADirectory", f"{directory} is not a directory"))
    traces = _look(directory, disk)
    if traces is None:
        return Outputs(OutputState.ABSENT, Reason("NoOutputs", f"{directory} holds no training"))
    judged = _judge(training, traces, disk, deep)
    differences = _differences(traces.launched, training.meaning)
    if not (traces.is_trained and differences):
        return judged
    message = f"{directory} was trained from another configuration: {_CONFIG}: {_differing(differences)}"
    is_whole = judged.state is OutputState.COMPLETE
    way_out = "accept or rerun it" if is_whole else f"and {judged.reason.message}; rerun it, or put {_CONFIG} back as it was"
    return Outputs(
        OutputState.MISMATCH,
        Reason("Drifted", f"{message}; {way_out}"),
        newest=traces.newest,
        evidence=judged.evidence,
        torn=_torn(traces, 0),
        has_work=True,
        whole=judged.whole,
        differs=tuple(differences),
    )


def _lacks(training: _Training, disk: Disk) -> Reason | Unknown | None:
    """What another run made and the trainer would begin from, where that is not there: it was deleted, or is never saved. A base
    model of elsewhere may be one that only the job can see."""
    base = training.base
    if base is None:
        return None
    try:
        if disk.stat(base.parent) is None:
            return Unknown(f"{base.parent} is not there; is its filesystem mounted?")
        missing = [name for name in training.base_files if disk.stat(base / name) is None] if disk.stat(base) else [""]
    except DiskUnreadable as error:
        return Unknown(str(error))
    if not missing:
        return None
    named = _some([str(base / name) for name in missing], ", ")
    return Reason("CheckpointGone", f"it begins from {named}, which is not there; make it again, or put it back")


def _look(directory: Path, disk: Disk) -> _Traces | None:
    """The traces of a trainer; None where there is none (the scheduler's log files are not the trainer's)."""
    names = disk.names(directory) or ()
    epochs = {int(match[1]): directory / name for name in names if (match := _EPOCH.fullmatch(name))}
    has_state = _STATE.parts[0] in names
    logs = disk.names(directory / "logs") if "logs" in names else ()
    if not (epochs or has_state or logs or _LAUNCHED in names):
        return None
    launched = _read_launched(directory / _LAUNCHED, disk)
    began = disk.stat(directory / _LAUNCHED)
    is_resumed = isinstance(launched, OmegaConfig) and launched.get(_RESUME) is True
    return _Traces(
        directory=directory,
        epochs=epochs,
        odd=tuple(name for name in names if name.startswith("epoch_") and not _EPOCH.fullmatch(name)),
        has_state=has_state,
        has_launched=_LAUNCHED in names,
        launched=launched,
        since=began.mtime_ns if began and not is_resumed else None,
        newest=_newest([directory / _LAUNCHED], [*epochs.values(), directory / _STATE.parts[0], directory / "logs"], disk),
    )


def _read_launched(path: Path, disk: Disk) -> OmegaConfig | str:
    """The configuration of the last launch, or what is wrong with it."""
    found = disk.stat(path)
    if found is None:
        return f"{_LAUNCHED} is missing, so nothing shows what was trained"
    try:
        return read_omega_config((disk.read(path, 0, _MAX_CONFIG) or b"").decode())
    except (ConfigFault, UnicodeDecodeError):
        return f"{_LAUNCHED} is cut short or no configuration ({found.size} bytes)"


def _newest(files: list[Path], directories: list[Path], disk: Disk) -> float | None:
    """When anything was last written (epoch s)."""
    inside = [directory / name for directory in directories for name in disk.names(directory) or ()]
    found = [disk.stat(path) for path in (*files, *directories, *inside)]
    return max((info.mtime_ns / 1e9 for info in found if info), default=None)


def _differences(launched: OmegaConfig | str, wanted: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Where what was launched does not mean the same as what is wanted: both, by setting."""
    if isinstance(launched, str):
        return {}
    there = launched.meaning
    pairs = {key: (there.get(key, "null"), wanted.get(key, "null")) for key in sorted({*there, *wanted} - {_RESUME})}
    return {key: (was, now) for key, (was, now) in pairs.items() if not _means_same(was, now)}


def _differing(differences: Mapping[str, tuple[str, str]]) -> str:
    return _some([f"{key} {was} → {now}" for key, (was, now) in differences.items()], ", ")


def _means_same(one: str, other: str) -> bool:
    return one == other or (one.startswith("/") and other.startswith("/") and _is_same_path(one, other))


def _judge(training: _Training, traces: _Traces, disk: Disk, deep: bool) -> Outputs:
    """The wanted epochs, one by one: broken outweighs unknown, unknown outweighs whole."""
    wanted = Wanted(
        merged=not (training.adapter_only and training.adapters),
        adapters=training.adapters,
        copies=small_files(training.base, disk) if training.base else {},
        since=traces.since,
        deep=deep,
    )
    saved = training.saved if traces.epochs else ()
    verdicts = {epoch: _judge_epoch(epoch, training, traces, wanted, disk) for epoch in saved}
    faults = [f"epoch_{epoch}: {fault}" for epoch, verdict in verdicts.items() for fault in verdict.faults]
    doubts = [f"epoch_{epoch}: {doubt}" for epoch, verdict in verdicts.items() for doubt in verdict.doubts]
    if not traces.epochs:
        faults = ["a launch left no epoch"]
    elif isinstance(traces.launched, str):
        faults.insert(0, traces.launched)
    whole = sum(not verdict.faults and not verdict.doubts for verdict in verdicts.values())
    progress = f"epoch {whole}/{len(training.saved)}"
    if faults:
        first, note = _resumes_from(training, traces, verdicts, disk)
        return Outputs(
            OutputState.INCOMPLETE,
            Reason("Incomplete", _some(faults)),
            newest=traces.newest,
            torn=_torn(traces, 0),
            has_work=True,
            progress=progress,
            resumable=first,
            torn_to_resume=_torn(traces, first),
            resume_note=note,
            whole=whole,
            in_the_way=_in_the_way(traces),
        )
    if doubts:
        return Outputs(OutputState.UNKNOWN, Reason("DiskUnreadable", _some(doubts)), newest=traces.newest, progress=progress)
    evidence = tuple(file for verdict in verdicts.values() for file in verdict.files)
    names = ", ".join(f"epoch_{epoch}" for epoch in training.saved)
    return Outputs(
        OutputState.COMPLETE,
        Reason("Verified", f"{names} verified in {traces.directory}"),
        marked=training.saved[-1] != training.epochs - 1,
        newest=traces.newest,
        evidence=evidence,
        progress=progress,
        whole=whole,
    )


def _judge_epoch(epoch: int, training: _Training, traces: _Traces, wanted: Wanted, disk: Disk) -> Verdict:
    """What is in the epoch's directory, and whether the trainer got past it (the last epoch has no such mark)."""
    if epoch not in traces.epochs:
        return Verdict(("is missing",), (), ())
    verdict = judge_epoch(traces.epochs[epoch], wanted, disk)
    if epoch == training.epochs - 1:
        return verdict
    try:
        went_on = _went_past(epoch, traces, disk)
    except DiskUnreadable as error:
        return replace(verdict, doubts=(*verdict.doubts, str(error)))
    return verdict if went_on else replace(verdict, faults=(*verdict.faults, _NOT_ENDED))


def _went_past(epoch: int, traces: _Traces, disk: Disk) -> bool:
    """True where this launch has begun a later epoch's save or recorded the end of this one's."""
    if any(number > epoch and _is_of_launch(path, traces, disk) for number, path in traces.epochs.items()):
        return True
    state = traces.directory / _STATE
    return _is_of_launch(state, traces, disk) and (read_integer(state, "epochs_run", disk) or 0) > epoch


def _is_of_launch(path: Path, traces: _Traces, disk: Disk) -> bool:
    found = disk.stat(path)
    return found is not None and (traces.since is None or found.mtime_ns >= traces.since)


def _torn(traces: _Traces, first: int) -> tuple[Path, ...]:
    """What another launch would train over. One that goes on with epoch ``first`` keeps those before it, and the state."""
    if not traces.is_trained:
        return ()
    epochs = tuple(path for epoch, path in sorted(traces.epochs.items()) if epoch >= first)
    if first:
        return epochs
    rest = ((_STATE.parts[0], traces.has_state), (_LAUNCHED, traces.has_launched))
    return (*epochs, *(traces.directory / name for name, is_there in rest if is_there))


def _resumes_from(training: _Training, traces: _Traces, verdicts: Mapping[int, Verdict], disk: Disk) -> tuple[int, str]:
    """The epoch that a resumed launch would begin with, and what it would train again in words; 0 where there is nothing sound to
    resume, and why although there are epochs whose files verify.

    The trainer goes on after the epochs that its state counts, with the adapter of the highest epoch there is: where a later
    epoch's save had begun, that one would be trained twice, and is moved aside first. An adapter that was stashed away since is
    one that the trainer does not find.
    """
    sound = [epoch for epoch, verdict in verdicts.items() if not verdict.doubts and not {*verdict.faults} - {_NOT_ENDED}]
    try:
        done = read_integer(traces.directory / _STATE, "epochs_run", disk) or 0
        why_not = _why_not_resumed(done, training, traces, verdicts, disk)
    except DiskUnreadable as error:
        done, why_not = 0, str(error)
    if why_not:
        return 0, f"{why_not}, so {_named(sound)} would be trained again" if sound else ""
    again = [epoch for epoch in sound if epoch >= done]
    return done, f"{_STATE} counts {done} of them, so {_named(again)} will be trained again" if again else ""


def _why_not_resumed(done: int, training: _Training, traces: _Traces, verdicts: Mapping[int, Verdict], disk: Disk) -> str:
    """Why the trainer would not go on after as many epochs as its state counts; empty where it would. Raises DiskUnreadable."""
    if not done:
        found = disk.stat(traces.directory / _STATE)
        return f"{_STATE} is missing" if found is None else f"{_STATE} counts no epoch ({found.size} bytes)"
    if done - 1 not in verdicts:
        return f"{_STATE} counts {done} epochs, and epoch_{done - 1} is none of those to be saved"
    broken = [epoch for epoch, verdict in verdicts.items() if epoch < done and (verdict.faults or verdict.doubts)]
    if broken:
        return f"{_named(broken)}, which {_STATE} counts, does not verify"
    adapter = traces.epochs[done - 1] / "adapter_model.pt"
    if training.adapters and disk.stat(adapter) is None:
        return f"{adapter} is not where the trainer looks for it (stashed away?)"
    return ""


def _named(epochs: list[int]) -> str:
    return ", ".join(f"epoch_{epoch}" for epoch in epochs)


def _in_the_way(traces: _Traces) -> str:
    """The trainer takes the adapter of whatever begins with ``epoch_`` and has the highest number."""
    if not traces.odd:
        return ""
    return f"{traces.directory / traces.odd[0]} would be taken for an epoch by a trainer that goes on; give it another name"


def _some(findings: list[str], separator: str = "; ") -> str:
    """The first few findings in one sentence."""
    more = [f"and {len(findings) - _SHOWN} more"] if len(findings) > _SHOWN else []
    return separator.join(findings[:_SHOWN] + more)
