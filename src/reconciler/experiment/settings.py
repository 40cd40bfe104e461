"""The settings of an experiment: its own over the person's, flags over both.

Reads at most two small files and the values given; never writes, and leaves nothing unknown unsaid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler.batch_script import parse_memory
from reconciler.errors import DiskUnreadable, InvalidExperiment, Problem, UsageError
from reconciler.experiment.document import LARGEST, decode
from reconciler.experiment.yaml_text import line_of, parse_yaml, schema_faults
from reconciler.files import NotRegular, read_file
from reconciler.model import Policy, Raise
from reconciler.ports import Tool, Tools
from reconciler.schemas import schema

FILE = "reconcile.yaml"
PERSONAL = Path(".config", "reconcile", "config.yaml")
LEAST_POLL = 10.0  # seconds; Slurm's controller answers every user's squeue from one lock
LEAST_GRACE = 10.0  # seconds; a pass that takes more than half of it does not believe its own look any more (act.py)
_DURATIONS = ("stagger", "poll", "grace", "settle", "backoff")
_CANARY = 600.0  # seconds, where it only says `true`
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class _Source:
    """Some settings, and where a person finds them."""

    values: Mapping[str, Any]
    file: Path | None = None


def read_settings(experiment: Path, overrides: Mapping[str, object], home: Path, tools: Tools | None = None) -> Policy:
    """The policy of the experiment in directory ``experiment``; an override of None is none. ``tools`` are those that settings
    may name (None: any).

    Raises InvalidExperiment for a fault of a file, UsageError for one of ``overrides``.
    """
    flags = _Source({key: value for key, value in overrides.items() if value is not None})
    files = (home / PERSONAL, experiment / FILE)
    sources = [*(_Source(_read(file), file) for file in files), flags]
    rules = schema("reconcile") if tools is None else _with_tools(schema("reconcile"), tools)
    faults = [problem for source in sources for problem in _faults(source, rules)]
    if faults:
        raise InvalidExperiment(*faults)
    merged = _merge(sources)
    merged.update({key: _seconds(merged[key]) for key in _DURATIONS if key in merged})
    merged = _with_raises(merged)
    merged["tools"] = {name: _with_raises(own) for name, own in merged["tools"].items()}
    merged.update({key: read(merged[key]) for key, read in (("canary", _canary), ("budget", _gpu_hours)) if key in merged})
    policy = Policy(**merged)
    if policy.poll < LEAST_POLL and policy.backend != "local":
        raise _refused(sources, "poll", "10s or more, except with the backend `local`")
    if policy.grace < LEAST_GRACE:
        raise _refused(sources, "grace", "10s or more")
    return policy


def _read(file: Path) -> Mapping[str, Any]:
    """The settings in a file; none where it does not exist or holds comments alone. An empty one may be on its way to or from
    saying how much may be spent."""
    try:
        content = read_file(file, 0, LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except NotRegular as error:
        raise InvalidExperiment(Problem(file, 0, "is no regular file; settings are read from one, or left out")) from error
    except OSError as error:
        raise DiskUnreadable(f"{file}: cannot be read: {error.strerror}") from error
    if not content.strip():
        wrong = "is empty; if an editor is saving it at this moment, try again, or remove it if it sets nothing"
        raise InvalidExperiment(Problem(file, 0, wrong))
    found: Mapping[str, Any] | None = parse_yaml(decode(content, file), file)
    return {} if found is None else found


def _with_tools(rules: dict[str, Any], tools: Tools) -> dict[str, Any]:
    """The schema where ``tools`` has these tools and no others, each with the settings that mean something for it."""
    of_any = rules["properties"]["tools"]["additionalProperties"]

    def of(tool: Tool) -> dict[str, Any]:
        listed = ", ".join(f"`{key}`" for key in tool.settings)
        known = {key: of_any["properties"][key] for key in tool.settings}
        return {**of_any, "description": f"a map of {listed}", "properties": known}

    named = {"properties": {name: of(tool) for name, tool in sorted(tools.items())}, "additionalProperties": False}
    return {**rules, "properties": {**rules["properties"], "tools": {**rules["properties"]["tools"], **named}}}


def _faults(source: _Source, rules: Mapping[str, Any]) -> tuple[Problem, ...]:
    """What is wrong with a file's settings; a fault of the flags is raised at once, having no line."""
    found = schema_faults(source.values, rules, source.file or Path())
    if found and source.file is None:
        raise UsageError("; ".join(problem.message for problem in found))
    return found


def _merge(sources: list[_Source]) -> dict[str, Any]:
    """Later sources over earlier ones; of ``retry``, class by class; of ``tools``, tool by tool in the same way."""
    names = dict.fromkeys(name for source in sources for name in source.values.get("tools", {}))
    tools = {name: _overlaid([source.values.get("tools", {}).get(name, {}) for source in sources]) for name in names}
    defaults = {"retry": dict(Policy().retry)}
    return _overlaid([defaults, *(source.values for source in sources)]) | {"tools": tools}


def _overlaid(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each layer over those before it, ``retry`` class by class."""
    merged: dict[str, Any] = {}
    for layer in layers:
        retry = {**merged.get("retry", {}), **layer.get("retry", {})}
        merged.update(layer)
        merged.update({"retry": retry} if retry else {})
    return merged


def _with_raises(values: Mapping[str, Any]) -> dict[str, Any]:
    """``time`` and ``mem`` as what they mean."""
    found = dict(values)
    for key, read in (("time", _seconds), ("mem", lambda value: parse_memory(str(value)) or 0.0)):
        if found.get(key) is not None:
            found[key] = Raise(float(found[key]["factor"]), read(found[key]["max"]))
    return found


def _seconds(value: Any) -> float:
    """``5s``, ``10m``, ``1h``, ``2d`` or a bare number, in seconds; the schema lets nothing else through."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([smhd]?)\s*", str(value)) if isinstance(value, str) else None
    return float(match[1]) * _SECONDS[match[2]] if match else float(value)


def _canary(value: Any) -> float | None:
    """Seconds that the first job must have run; None for no canary."""
    return (_CANARY if value else None) if isinstance(value, bool) else _seconds(value)


def _gpu_hours(value: Any) -> float | None:
    """``40 gpu-hours`` as hours; None for no limit."""
    return None if value is None else float(str(value).split("gpu")[0])


def _refused(sources: list[_Source], key: str, accepted: str) -> InvalidExperiment | UsageError:
    """The error for a duration that is too short, at the place that says so."""
    source = next(source for source in reversed(sources) if key in source.values)
    message = f"`{key}` is {str(source.values[key])!r}; accepted: {accepted}"
    if source.file is None:
        return UsageError(message)
    return InvalidExperiment(Problem(source.file, line_of(source.values, [key]), message))
