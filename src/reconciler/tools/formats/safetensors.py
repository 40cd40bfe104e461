"""Judges a ``.safetensors`` file by its header alone: never reads a tensor, never trusts a length it did not check.

The format: 8 bytes of header length (little-endian), a JSON header, the tensors. A file cut short is smaller than that says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reconciler.ports import Disk

_PREFIX = 8
_MAX_HEADER = 16 << 20  # of a hundred thousand tensors; the format's own limit, 100 MB, takes more than 1 GiB to parse
_MAX_OFFSET = 1 << 63


def safetensors_fault(path: Path, disk: Disk) -> str | None:
    """What is wrong with the file, or None: its size must be exactly what its header says. DiskUnreadable passes through."""
    found = disk.stat(path)
    if found is None or found.is_dir:
        return "is missing"
    length = int.from_bytes(disk.read(path, 0, _PREFIX) or b"", "little")
    if found.size < _PREFIX or not 0 < length <= min(found.size - _PREFIX, _MAX_HEADER):
        return f"is cut short or no safetensors file ({found.size} bytes)"
    end = _last_offset(disk.read(path, _PREFIX, length) or b"")
    if end is None:
        return "has a header that cannot be read"
    expected = _PREFIX + length + end
    return None if found.size == expected else f"has {found.size} bytes where its header says {expected}"


def _last_offset(header: bytes) -> int | None:
    """Where the last tensor ends, counted from the end of the header; None where the header makes no sense."""
    try:
        tensors: Any = json.loads(header)
        ends = [_end(entry) for name, entry in tensors.items() if name != "__metadata__"]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None
    return max(ends, default=None)


def _end(tensor: Any) -> int:
    begin, end = tensor["data_offsets"]
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end < _MAX_OFFSET:
        raise ValueError(tensor)
    return end
