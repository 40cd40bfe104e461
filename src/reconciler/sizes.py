"""Sizes for people; pure."""

from __future__ import annotations


def size_text(size: float) -> str:
    """Bytes in words, in powers of ten as disks are sold and quotas are told: ``2.1 GB``."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
