"""What both stand-ins share: how long a job takes, and which run is to fail."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

SEEDS = Path(__file__).resolve().parent / "seeds"


def paced(steps: int, skip: int = 0) -> Iterator[int]:
    """1 to ``steps`` without the first ``skip``, all of them spread over ``STANDIN_SECONDS`` (1.5 where unset)."""
    pause = float(os.environ.get("STANDIN_SECONDS", "1.5")) / steps
    for step in range(skip + 1, steps + 1):
        time.sleep(pause)
        yield step


def must_fail(run: str) -> bool:
    """True where ``STANDIN_FAIL`` names this run."""
    return os.environ.get("STANDIN_FAIL") == run


def read_safetensors_header(path: Path) -> tuple[bytes, dict[str, dict[str, object]]]:
    """The header's own bytes (with its length before it) and the tensors that it lists.

    Raises ValueError where the file is not as long as its header says.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length)
    tensors = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
    end = max(entry["data_offsets"][1] for entry in tensors.values())
    if path.stat().st_size != 8 + length + end:
        raise ValueError(f"{path}: SafetensorError: incomplete metadata, file not fully covered")
    return length.to_bytes(8, "little") + text, tensors
