"""The YAML form of the document, ``experiment_summary.yaml``.

Pure, and never writes: the file's comments and order are its author's. Its published schema says what it may hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reconciler.errors import InvalidExperiment
from reconciler.experiment.document import (
    Document,
    Faults,
    Named,
    Plan,
    PlannedTask,
    RunRow,
    check_names,
    check_pattern,
    kind_of,
    listed_names,
    listed_run,
)
from reconciler.experiment.yaml_text import line_of, parse_yaml, schema_faults
from reconciler.model import RunKind
from reconciler.schemas import schema
from reconciler.spelling import closest

_PATTERN = "{run_name}/artifacts/epoch_{N}"


def read_yaml(text: str, path: Path) -> Document:
    """The document that ``text`` is. Raises InvalidExperiment with every fault of its form."""
    root = parse_yaml(text, path)
    form = schema_faults(root, schema("experiment"), path)
    if form:
        raise InvalidExperiment(*form)
    faults = Faults(path)
    experiment = root["experiment"]
    runs = tuple(_run(root, index, faults) for index in range(len(root["runs"])))
    check_names((Named(run.name, run.line) for run in runs), faults)
    directory, pattern = _output(root, path, faults)
    return Document(
        name=experiment["name"],
        path=path,
        form="yaml",
        tools={stage: Named(name, line_of(root, ["tools", stage])) for stage, name in _map(root, "tools").items() if name},
        runs=runs,
        plan=_plan(root, runs, faults),
        epochs=_whole(_map(root, "controls").get("epochs")),
        checkpoint_dir=directory,
        naming_pattern=pattern,
        problems=tuple(faults.found),
    )


def _map(node: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A map of the document; one left out or left empty has nothing in it."""
    found: Mapping[str, Any] = node.get(key) or {}
    return found


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _run(root: Any, index: int, faults: Faults) -> RunRow:
    entry = root["runs"][index]
    parameters = _map(entry, "parameters")
    kind = kind_of(entry["type"]) or RunKind.FINE_TUNED  # the schema lets no other word through
    checkpoint = entry.get("checkpoint_path") or parameters.get("checkpoint_path")
    line = line_of(root, ["runs", index, "name"])
    if kind is RunKind.EVAL_ONLY and not checkpoint:
        faults.add(line, f"the eval-only run `{entry['name']}` needs a `checkpoint_path`, the model to evaluate", entry["name"])
    return RunRow(
        name=entry["name"],
        kind=kind,
        line=line,
        parameters={str(key): str(value) for key, value in parameters.items()},
        epochs=_whole(parameters.get("epochs")),
        checkpoint_path=Path(checkpoint) if checkpoint else None,
    )


def _output(root: Any, path: Path, faults: Faults) -> tuple[Path, str]:
    """Where the checkpoints go: in the runs' own directories, or below ``output.base_directory`` where that is named."""
    output, experiment = _map(root, "output"), _map(root, "experiment")
    base, pattern = output.get("base_directory"), output.get("checkpoint_pattern")
    if base and pattern:
        return Path(base), check_pattern(pattern, line_of(root, ["output", "checkpoint_pattern"]), faults)
    return Path(experiment.get("dir") or experiment.get("directory") or path.parent), _PATTERN


def _plan(root: Any, runs: tuple[RunRow, ...], faults: Faults) -> dict[str, tuple[PlannedTask, ...]] | None:
    evaluation = _map(root, "evaluation")
    if evaluation.get("matrix") is None:
        return None
    known = [task["name"] for task in evaluation.get("tasks") or ()]
    names = listed_names(run.name for run in runs)
    plan = Plan(faults.file)
    for index, entry in enumerate(evaluation["matrix"]):
        place: list[str | int] = ["evaluation", "matrix", index]
        name = listed_run(Named(entry["run"], line_of(root, [*place, "run"])), names, faults)
        if name is not None:
            plan.add(name, _wanted(root, place, known, faults))
    return plan.tasks


def _wanted(root: Any, place: list[str | int], known: list[str], faults: Faults) -> Iterator[PlannedTask]:
    """The tasks of one entry of the matrix."""
    entry = root["evaluation"]["matrix"][place[-1]]
    line = line_of(root, [*place, "tasks"])
    epochs = entry.get("epochs")
    every = epochs == "all"
    numbers = () if every or epochs is None else tuple(int(n) for n in (epochs if isinstance(epochs, list) else [epochs]))
    check_names((Named(task, line) for task in entry["tasks"]), faults, "task")
    for task in entry["tasks"]:
        if known and task not in known:
            faults.add(line, f"the task `{task}` is not listed in `evaluation.tasks`{closest(task, known)}")
        yield PlannedTask(task, line, numbers, every)
