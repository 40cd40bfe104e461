"""What sbatch would make of a script, as a description that pyslurm can submit; or why only sbatch itself can; pure.

pyslurm's own reading of ``#SBATCH`` lines is not used: it fails on ``--partition``, on quotes and on two options a line, and
passes over options that it does not know. Here every option of a script must be one whose meaning was compared with sbatch's on a
real cluster; anything else goes to sbatch. The same holds for what sbatch reads from the environment (``SBATCH_*``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from reconciler.batch_script import BatchScript, parse_time_limit
from reconciler.ports import Submission


@dataclass(frozen=True)
class Submitter:
    """Where a job is submitted from, as far as that comes through to the job. ``limits`` are the soft limits by name (``CORE``),
    -1 for none; ``release`` is Slurm's, such as (24, 11)."""

    host: str
    umask: int
    limits: Mapping[str, int]
    release: tuple[int, int]


_PLAIN = re.compile(r"[\w.@/+-]+")
_MEMORY = re.compile(r"(\d+)([KMGT]?)B?", re.IGNORECASE)
_NO_LIMIT = (1 << 64) - 1  # RLIM_INFINITY, as sbatch prints it
_CPUS_COMPARED = (24, 11)  # what srun reads of --cpus-per-task was another variable before
_UNITS = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024 * 1024}

# Set by sbatch itself since 23.11, for MPI launchers inside the job; a job without them would start its ranks in another way.
_FOR_LAUNCHERS = {
    "HYDRA_BOOTSTRAP": "slurm",
    "HYDRA_LAUNCHER_EXTRA_ARGS": "--external-launcher",
    "I_MPI_HYDRA_BOOTSTRAP": "slurm",
    "I_MPI_HYDRA_BOOTSTRAP_EXEC_EXTRA_ARGS": "--external-launcher",
    "OMPI_MCA_plm_slurm_args": "--external-launcher",
    "PRTE_MCA_plm_slurm_args": "--external-launcher",
}


class OnlySbatchCan(Exception):
    """The script or the environment asks for something that this module does not know how to say; the message names it."""


def describe(job: Submission, script: BatchScript, environment: Mapping[str, str], submitter: Submitter) -> dict[str, Any]:
    """The attributes of a ``JobSubmitDescription``. Raises OnlySbatchCan."""
    if job.options:
        raise OnlySbatchCan(f"--{next(iter(job.options))} over the script's own")
    named = sorted(name for name in environment if name.startswith("SBATCH_"))
    if named:
        raise OnlySbatchCan(f"{named[0]} is set")
    found: dict[str, Any] = {}
    for directive in script.directives:
        convert = _OPTIONS.get(directive.option)
        if convert is None:
            raise OnlySbatchCan(f"--{directive.option}")
        found |= convert(directive.value or "")
    _refuse_what_pyslurm_would_fill_in(found, submitter)
    directory = str(job.directory / found.pop("working_directory", ""))
    return found | {
        "name": job.name,
        "script": str(job.script),
        "working_directory": directory,
        "is_requeueable": job.requeue,
        "profile_types": "none",  # left out, pyslurm asks for every profile
        **({"begin_time": f"now+{job.begin_in}"} if job.begin_in else {}),
        **({"priority": 0} if job.held or "priority" in found else {}),
        "environment": _environment(environment, str(job.directory), found.get("cpus_per_task"), submitter),
    }


def _refuse_what_pyslurm_would_fill_in(found: Mapping[str, Any], submitter: Submitter) -> None:
    """Where a script leaves something open, sbatch does too, and pyslurm puts a number there that the job would see."""
    if found.get("time_limit") is None:
        raise OnlySbatchCan("a script without a time limit")  # it would get one of 365 days
    if "ntasks" not in found or (found["ntasks"] != 1 and "nodes" not in found):
        raise OnlySbatchCan("a script that leaves the number of tasks or nodes open")
    if "cpus_per_task" in found and submitter.release < _CPUS_COMPARED:
        raise OnlySbatchCan("--cpus-per-task on this release of Slurm")


def _environment(environment: Mapping[str, str], directory: str, cpus: int | None, submitter: Submitter) -> dict[str, str]:
    """What sbatch hands to a job: the submitter's variables, and its own (sbatch.c, env_array_for_batch_job)."""
    own = {f"SLURM_RLIMIT_{name}": str(_NO_LIMIT if value < 0 else value) for name, value in submitter.limits.items()}
    own |= {"SLURM_SUBMIT_DIR": directory, "SLURM_SUBMIT_HOST": submitter.host, "SLURM_PRIO_PROCESS": "0"}
    own |= {"SLURM_UMASK": f"{submitter.umask:04o}"}
    own |= {} if cpus is None else {"SLURM_CPUS_PER_TASK": str(cpus), "SLURM_TRES_PER_TASK": f"cpu={cpus}"}
    variables = {**_FOR_LAUNCHERS, **environment, **own}
    if not all(_is_text(name) and _is_text(value) for name, value in variables.items()):
        raise OnlySbatchCan("a variable of the environment that is not UTF-8")
    return variables


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)


# --- options -----------------------------------------------------------------------------------------


def _as(attribute: str) -> Callable[[str], dict[str, Any]]:
    def convert(value: str) -> dict[str, Any]:
        if not value:
            raise OnlySbatchCan(f"an empty {attribute}")
        return {attribute: value}

    return convert


def _word(attribute: str) -> Callable[[str], dict[str, Any]]:
    def convert(value: str) -> dict[str, Any]:
        if not _PLAIN.fullmatch(value):
            raise OnlySbatchCan(f"{attribute} {value!r}")
        return {attribute: value}

    return convert


def _listed(attribute: str) -> Callable[[str], dict[str, Any]]:
    """Names between commas, without the brackets that stand for many."""

    def convert(value: str) -> dict[str, Any]:
        names = value.split(",")
        if not all(_PLAIN.fullmatch(name) for name in names):
            raise OnlySbatchCan(f"{attribute} {value!r}")
        return {attribute: names}

    return convert


def _number(attribute: str) -> Callable[[str], dict[str, Any]]:
    def convert(value: str) -> dict[str, Any]:
        if not value.isdecimal() or int(value) < 1:
            raise OnlySbatchCan(f"{attribute} {value!r}")
        return {attribute: int(value)}

    return convert


def _memory(attribute: str) -> Callable[[str], dict[str, Any]]:
    """Whole MiB; sbatch rounds kilobytes up."""

    def convert(value: str) -> dict[str, Any]:
        match = _MEMORY.fullmatch(value)
        if match is None or int(match[1]) == 0:
            raise OnlySbatchCan(f"{attribute} {value!r}")
        return {attribute: int(-(-int(match[1]) * _UNITS[match[2].upper()] // 1))}

    return convert


def _minutes(value: str) -> dict[str, Any]:
    """Whole minutes; sbatch rounds seconds up."""
    try:
        seconds = parse_time_limit(value)
    except ValueError as error:
        raise OnlySbatchCan(f"--time={value}") from error
    return {"time_limit": None if seconds is None else int(-(-seconds // 60))}


def _gres(value: str) -> dict[str, Any]:
    """``gpu:2`` or ``gpu:a100:2``, several between commas; the count written out, as pyslurm wants it."""
    found = {}
    for part in value.split(","):
        words = part.split(":")
        count = words.pop() if words[-1].isdecimal() else "1"
        if not 1 <= len(words) <= 2 or not all(_PLAIN.fullmatch(word) for word in words):
            raise OnlySbatchCan(f"--gres={value}")
        found[":".join(words)] = int(count)
    return {"gres_per_node": found}


_OPTIONS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "account": _word("account"),
    "chdir": _as("working_directory"),
    "comment": _as("comment"),
    "constraint": _word("constraints"),
    "cpus-per-task": _number("cpus_per_task"),
    "error": _as("standard_error"),
    "exclude": _listed("excluded_nodes"),
    "gres": _gres,
    "hold": lambda value: {"priority": 0},
    "input": _as("standard_in"),
    "job-name": lambda value: {},  # ours takes its place
    "mail-type": _listed("mail_types"),
    "mail-user": _word("mail_user"),
    "mem": _memory("memory_per_node"),
    "mem-per-cpu": _memory("memory_per_cpu"),
    "no-requeue": lambda value: {},  # said with every submission
    "nodelist": _listed("required_nodes"),
    "nodes": _number("nodes"),
    "ntasks": _number("ntasks"),
    "open-mode": _word("log_files_open_mode"),
    "output": _as("standard_output"),
    "partition": _listed("partitions"),
    "qos": _word("qos"),
    "requeue": lambda value: {},
    "reservation": _listed("reservations"),
    "time": _minutes,
}
