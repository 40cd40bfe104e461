"""The tools' own logs, ``run-torchtune.log`` and ``run-inspect.log``, in the blocks that existing readers parse.

Appends only; never reads a log's meaning and never rewrites what is there.
"""

from __future__ import annotations

import time
from pathlib import Path

from reconciler.errors import TemporaryError
from reconciler.files import append_line, make_directory, read_file
from reconciler.status_tables import one_line


def block(at: float, operation: str, subject: str, details: str, job_id: str | None, result: str) -> str:
    """One block with its blank line; ``at`` is epoch seconds, shown as local time. Without a job there is no Job ID line."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    job = [f"Job ID: {one_line(job_id)}"] if job_id is not None else []
    lines = [f"[{stamp}] {one_line(operation)}: {one_line(subject)}", f"Details: {one_line(details)}", *job]
    return "\n".join([*lines, f"Result: {one_line(result)}", "", ""])


def append_block(path: Path, at: float, operation: str, subject: str, details: str, job_id: str | None, result: str) -> None:
    """Add one block to a log, made with its directory where there is none. Raises TemporaryError where that cannot be done."""
    text = block(at, operation, subject, details, job_id, result)
    try:
        make_directory(path.parent)
        gap = "\n" if _is_unfinished(path) else ""
    except OSError as error:
        raise TemporaryError(f"{path}: cannot be written: {error.strerror}") from error
    append_line(path, (gap + text).encode("utf-8"))


def _is_unfinished(path: Path) -> bool:
    """True where the last line has no newline, so that a block would run on in it."""
    try:
        return read_file(path, -1) not in (b"", b"\n")
    except FileNotFoundError:
        return False
