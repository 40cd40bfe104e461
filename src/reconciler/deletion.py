"""Delete files that are still what was verified, and nothing else: the only place where anything is destroyed.

A file goes only where path, size and modification time are those in writing, inside the directory given, reached from there
without following a symbolic link. It never deletes a directory.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reconciler.errors import DiskUnreadable
from reconciler.model import FileId

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_IS_LINK = (errno.ELOOP, errno.ENOTDIR)  # what O_NOFOLLOW and O_DIRECTORY say of a symbolic link, or of no directory


@dataclass(frozen=True)
class Finding:
    """What a file is now: ``objection`` tells why it stays, ``is_gone`` that it is there no more. ``size`` is what deleting it
    gives back, in bytes: nothing where the file has another name."""

    file: FileId
    size: int = 0
    is_gone: bool = False
    objection: str = ""

    @property
    def may_go(self) -> bool:
        """True where it is the very file that was verified."""
        return not self.is_gone and not self.objection


class _Objection(Exception):
    """Why a file stays."""


def examine(directory: Path, file: FileId) -> Finding:
    """Whether a file is still the one that was verified. Raises DiskUnreadable where that cannot be known."""
    try:
        with _holder(directory, file) as (holder, name):
            return Finding(file, size=_same(holder, name, file))
    except FileNotFoundError:
        return Finding(file, is_gone=True)
    except _Objection as objection:
        return Finding(file, objection=str(objection))
    except OSError as error:
        raise DiskUnreadable(f"{file.path}: {error.strerror}") from error


def delete(directory: Path, file: FileId) -> Finding:
    """Delete a file if it still is the one that was verified; what it was. Raises DiskUnreadable where that cannot be done."""
    try:
        with _holder(directory, file) as (holder, name):
            size = _same(holder, name, file)
            os.unlink(name, dir_fd=holder)
            os.fsync(holder)
            return Finding(file, size=size)
    except FileNotFoundError:
        return Finding(file, is_gone=True)
    except _Objection as objection:
        return Finding(file, objection=str(objection))
    except OSError as error:
        raise DiskUnreadable(f"{file.path}: cannot be deleted: {error.strerror}") from error


@contextmanager
def _holder(directory: Path, file: FileId) -> Iterator[tuple[int, str]]:
    """The open directory that holds the file, and the file's name in it."""
    path = Path(file.path)
    if not path.is_relative_to(directory) or path == directory or ".." in path.parts:
        raise _Objection(f"it is outside {directory}")
    *between, name = path.relative_to(directory).parts
    holder = _open(directory, None)
    try:
        for part in between:
            inner = _open(part, holder)
            os.close(holder)
            holder = inner
        yield holder, name
    finally:
        os.close(holder)


def _open(directory: Path | str, holder: int | None) -> int:
    try:
        return os.open(directory, _DIRECTORY, dir_fd=holder)
    except OSError as error:
        if error.errno in _IS_LINK:
            raise _Objection(f"{directory} is a symbolic link, or no directory") from error
        raise


def _same(holder: int, name: str, file: FileId) -> int:
    """The bytes that deleting gives back; raises _Objection where it is not the file that was verified."""
    found = os.stat(name, dir_fd=holder, follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode):
        raise _Objection("it is a symbolic link, or no file")
    if (found.st_size, found.st_mtime_ns) != (file.size, file.mtime_ns):
        raise _Objection("it changed since it was verified")
    return found.st_size if found.st_nlink == 1 else 0
