"""How many GPUs a batch script asks for, and for how long: what its job may cost at most; pure.

Source: man sbatch. Where the script leaves the number to the site, the answer is that nobody knows, never a guess.
"""

from __future__ import annotations

import math
import re

from reconciler.batch_script import BatchScript, parse_time_limit
from reconciler.model import Ask

# Whole nodes with all their GPUs; many jobs, or one of several parts; numbers that depend on the nodes; parts of a GPU.
_NOBODY_KNOWS = ("array", "hetjob", "gpus-per-socket", "ntasks-per-gpu", "tres-per-task")
_MOST_GPUS = 10**6
_SHARED = re.compile(r"(shard|mps)\b")
_COUNT = re.compile(r"(?:[^:,=]+[:=])?(\d+)")
_GRES = re.compile(r"(?:gres[:/])?gpu(?:[:=][^:=\d][^:=]*)?(?:[:=](\d+))?")


def ask_of(script: BatchScript) -> Ask:
    """What one job of the script asks for."""
    where = (f"{option}={value}" for option in ("partition", "qos", "constraint") if (value := script.value(option)))
    return Ask(_gpus(script), _seconds(script), " ".join(where))


def _seconds(script: BatchScript) -> float | None:
    """The time limit, in whole minutes as Slurm has it; None for none, and where the partition gives it."""
    try:
        limit = parse_time_limit(script.value("time"))
    except ValueError:
        return None
    return None if limit is None else math.ceil(limit / 60) * 60.0


def _gpus(script: BatchScript) -> int | None:
    exclusive = script.find("exclusive")
    if (exclusive is not None and exclusive.value is None) or any(script.find(option) for option in _NOBODY_KNOWS):
        return None
    try:
        gpus = max(_in_all(script), default=0)
    except ValueError:
        return None
    return gpus if gpus <= _MOST_GPUS else None  # Slurm refuses such a job, or the number is no number of GPUs


def _in_all(script: BatchScript) -> list[int]:
    """The number of GPUs by each option that tells one. Raises ValueError for one that cannot be read."""
    found = []
    if total := script.value("gpus"):
        found.append(_count(total))
    if per_node := script.value("gpus-per-node"):
        found.append(_count(per_node) * _nodes(script))
    if per_task := script.value("gpus-per-task"):
        found.append(_count(per_task) * _tasks(script))
    gres = _gres(script.value("gres") or "")
    return [*found, gres * _nodes(script)] if gres else found


def _count(text: str) -> int:
    """``2``, ``a100:2`` or ``a100:1,v100:1``."""
    found = [_COUNT.fullmatch(part) for part in text.split(",")]
    if not all(found):
        raise ValueError(text)
    return sum(int(match[1]) for match in found if match)


def _gres(text: str) -> int:
    """``gpu``, ``gpu:2`` or ``gpu:a100:2`` among other things between commas."""
    total = 0
    for part in filter(None, text.split(",")):
        if _SHARED.search(part):
            raise ValueError(text)
        if re.match(r"(gres[:/])?gpu\b", part):
            match = _GRES.fullmatch(part)
            if match is None:
                raise ValueError(text)
            total += int(match[1] or 1)
    return total


def _nodes(script: BatchScript) -> int:
    """The most nodes that the job may get: as many as it has tasks where it does not say."""
    text = script.value("nodes")
    if text is None:
        if script.find("nodelist"):
            raise ValueError("nodelist")
        tasks, per_node = _number(script, "ntasks"), _number(script, "ntasks-per-node")
        return -(-tasks // per_node) if per_node else tasks
    if not re.fullmatch(r"[\d,:-]+", text):
        raise ValueError(text)
    return max(int(number) for number in re.findall(r"\d+", text))


def _tasks(script: BatchScript) -> int:
    per_node = _number(script, "ntasks-per-node", 1)
    return max(_number(script, "ntasks"), _nodes(script) * per_node) if script.find("nodes") else _number(script, "ntasks")


def _number(script: BatchScript, option: str, otherwise: int | None = None) -> int:
    value = script.value(option)
    return int(value) if value is not None else (otherwise if otherwise is not None else (1 if option == "ntasks" else 0))
