"""What in a batch script would surprise its owner once a reconciler submits it, as warnings with their lines.

Warnings only: nothing here blocks a run, and nothing here changes a script.
Source: man sbatch; that a missing output directory ends the job as FAILED 0:53 without any log was measured.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from reconciler.batch_script import BatchScript, Directive
from reconciler.errors import DiskUnreadable, Problem
from reconciler.ports import Disk

_SURPRISES = {
    "array": "--array makes many jobs of one step; give each its own run, or loop inside the script",
    "hetjob": "`#SBATCH hetjob` makes one job of several, which the queue shows as several of one step; make it one job",
    "wait": "--wait keeps sbatch from answering until the job ends; take it out",
    "test-only": "--test-only validates and submits nothing; take it out",
    "clusters": "--clusters may send the job where this cluster's queue does not show it; submit from that cluster instead",
    "dependency": "--dependency names jobs of one submission and is wrong at the next; the order of steps is kept without it",
}
_FILES = ("output", "error")


def script_problems(script: BatchScript, run: str, disk: Disk, *, made: Path | None = None) -> tuple[Problem, ...]:
    """The warnings about one script, by line. ``made`` is a directory that will exist by the time the job starts."""
    found = [Problem(script.path, line, message, run, warning=True) for line, message in _findings(script, disk, made)]
    return tuple(sorted(found, key=lambda problem: problem.line))


def _findings(script: BatchScript, disk: Disk, made: Path | None) -> Iterator[tuple[int, str]]:
    for option, message in _SURPRISES.items():
        directive = script.find(option)
        if directive:
            yield directive.line, message
    for option in _FILES:
        directive = script.find(option)
        if directive and directive.value:
            yield from _file_findings(script, directive, directive.value, disk, made)


def _file_findings(
    script: BatchScript, directive: Directive, value: str, disk: Disk, made: Path | None
) -> Iterator[tuple[int, str]]:
    if "%x" in value:
        yield directive.line, f"--{directive.option}: %x is the job's name, which ends with our token; %j would be stable"
    directory = script.directory_of(directive.option)
    if directory is not None and not _will_exist(directory, disk, made):
        message = f"there is no directory {directory}: submitted by hand the job would end at once without a log (apply makes it)"
        yield directive.line, f"--{directive.option}: {message}"


def _will_exist(directory: Path, disk: Disk, made: Path | None) -> bool:
    """False only where the directory is surely missing."""
    if made is not None and os.path.normpath(directory) == os.path.normpath(made):
        return True
    try:
        found = disk.stat(directory)
    except DiskUnreadable:
        return True
    return found is not None and found.is_dir
