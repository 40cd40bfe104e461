"""The tools' own logs, in the blocks that existing programs parse; written, never read."""

from __future__ import annotations

import re
import time
from pathlib import Path

from reconciler.files import append_line


def block(at: float, operation: str, subject: str, details: str, job_id: str | None, result: str) -> str:
    """One block: a time-stamped heading, its details, and a blank line. ``at`` is epoch seconds, shown as local time."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    lines = [f"[{stamp}] {_line(operation)}: {_line(subject)}", f"Details: {_line(details)}"]
    if job_id:
        lines.append(f"Job ID: {_line(job_id)}")
    return "\n".join([*lines, f"Result: {_line(result)}", "", ""])


def append_block(path: Path, at: float, operation: str, subject: str, details: str, job_id: str | None, result: str) -> None:
    """Append one block to a log, whole."""
    append_line(path, block(at, operation, subject, details, job_id, result).encode("utf-8", "replace"))


def _line(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f\u2028\u2029]+", " ", text).strip()
