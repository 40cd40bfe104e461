"""Writing files so that a crash, a full disk or a concurrent edit loses nothing.

``replace_file`` is all or nothing and never overwrites what it has not read; ``append_line`` is durable when it returns.
ACLs and extended attributes of a replaced file are not carried over, and its other hard links keep the old content.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from reconciler.errors import TemporaryError


class StaleRead(TemporaryError):
    """The file is no longer what was read; nothing was written."""


def replace_file(path: Path, content: bytes, *, expected: bytes | None) -> None:
    """Put ``content`` at ``path`` in one step, if the file still holds ``expected`` (None: if there is no file).

    The new file keeps the old one's mode and, where permitted, its owner; a symlink stays and its target is replaced.
    Raises StaleRead, or OSError with the original untouched and no temporary file left.
    """
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            _copy_attributes(target, descriptor)
            _write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if _content(target) != expected:
            raise StaleRead(f"{path}: changed while it was being updated; left as it is")
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(target.parent)


def append_line(path: Path, line: bytes) -> None:
    """Append ``line``, on disk when this returns; the file and its directory are made where they are missing."""
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        _write_all(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        _sync_directory(path.parent)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _copy_attributes(source: Path, descriptor: int) -> None:
    try:
        old = source.stat()
    except FileNotFoundError:
        return
    with suppress(PermissionError):
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
