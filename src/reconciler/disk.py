"""The real disk behind ``ports.Disk``: present, surely absent, or not to be known.

Only ENOENT and ENOTDIR mean absent; a permission, a stale NFS handle or an I/O error is DiskUnreadable. Reads
only, and only regular files: a FIFO or a device is never opened, so nothing on the disk can make a pass block.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler.errors import DiskUnreadable
from reconciler.ports import FileInfo

_CHUNK = 1 << 20


class RealDisk:
    """``ports.Disk`` by system calls, with no cache: every answer is of this moment."""

    def stat(self, path: Path) -> FileInfo | None:
        """What is at ``path`` (symlinks followed); None where there is surely nothing."""
        try:
            with _unreadable(path):
                found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return FileInfo(found.st_size, found.st_mtime_ns, stat.S_ISDIR(found.st_mode))

    def names(self, directory: Path) -> tuple[str, ...] | None:
        """The sorted entries of a directory; None where there is surely no such directory."""
        try:
            with _unreadable(directory):
                return tuple(sorted(os.listdir(directory)))  # noqa: PTH208 - the names alone are wanted
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        """``length`` bytes from ``offset`` (negative: from the end), or all; None where there is surely no file."""
        try:
            with _unreadable(path):
                return _read(path, offset, length)
        except (FileNotFoundError, NotADirectoryError):
            return None


@contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    """Let "no such file" through and turn every other failure into DiskUnreadable."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise DiskUnreadable(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL or a lone surrogate: no file can have such a name
        raise FileNotFoundError(f"{path!r}: {error}") from error


def _read(path: Path, offset: int, length: int | None) -> bytes:
    _require_regular(path.stat().st_mode, path)  # before open: opening a FIFO or a device has effects
    # O_NONBLOCK and the second look are for a path that became a FIFO in between.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        found = os.fstat(descriptor)
        _require_regular(found.st_mode, path)
        file.seek(offset if offset >= 0 else max(0, found.st_size + offset))
        chunks: list[bytes] = []
        left = length
        while left is None or left > 0:
            chunk = file.read(_CHUNK if left is None else min(_CHUNK, left))
            if not chunk:
                break
            chunks.append(chunk)
            left = None if left is None else left - len(chunk)
        return b"".join(chunks)


def _require_regular(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        raise DiskUnreadable(f"{path}: not a regular file")
