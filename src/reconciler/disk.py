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

from reconciler.errors import DiskUnreadable, NotAFile
from reconciler.files import NotRegular, read_file, why_not_writable
from reconciler.ports import FileInfo


class RealDisk:
    """``ports.Disk`` by system calls, with no cache: every answer is of this moment."""

    def stat(self, path: Path) -> FileInfo | None:
        """What is at ``path`` (symlinks followed); None where there is surely nothing."""
        try:
            with _unreadable(path):
                found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return FileInfo(found.st_size, found.st_mtime_ns, stat.S_ISDIR(found.st_mode), found.st_dev)

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
                return read_file(path, offset, length)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def why_not_writable(self, path: Path) -> str:
        """Why the file at ``path`` could not be replaced, or made; empty where nothing is in the way."""
        return why_not_writable(path)


@contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    """Let "no such file" through and turn every other failure into DiskUnreadable."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except NotRegular as error:
        raise NotAFile(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise DiskUnreadable(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL or a lone surrogate: no file can have such a name
        raise FileNotFoundError(f"{path!r}: {error}") from error
