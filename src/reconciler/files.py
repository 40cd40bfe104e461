"""Write files so that a crash, a full disk or a second writer costs nothing: all of the new content, or all of the old.

The only edge that writes what people read. It never reads a meaning into content; only a kill makes it leave a temporary file.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reconciler.errors import TemporaryError


class StaleRead(TemporaryError):
    """The file is no longer what was read; nothing was written, and a fresh look will do."""


def replace_file(path: Path, content: bytes, *, expected: bytes | None) -> None:
    """Replace a file's content in one step, if it still is ``expected`` (None: if there is no such file).

    The content is on disk when this returns. Readers see the old file or the new one, never a part. A symlink stays and
    what it points to is replaced. Mode and, where the system permits, owner and group are kept; a new file follows the umask.
    A rename gives the document a new inode: other hard links keep the old content, and POSIX ACLs and extended attributes are not
    carried over (the directory's default ACL applies). Between the last comparison and the rename remain microseconds in which
    another writer goes unnoticed; rename(2) knows no condition. Raises StaleRead where the content differs, TemporaryError where
    the file cannot be written or is write-protected; the original is untouched then.
    """
    target = Path(os.path.realpath(path))
    with _explained(path):
        before = _stat(target)
        if before is not None and not (before.st_mode & 0o222 and os.access(target, os.W_OK)):
            raise PermissionError(errno.EACCES, "it is write-protected")  # a rename would not even ask
        temporary = target.with_name(f".reconcile-{secrets.token_hex(8)}.tmp")
        try:
            _write_new(temporary, content, before)
            if _content(target) != expected:
                raise StaleRead(f"{path}: changed since it was read; it was left as it is")
            temporary.replace(target)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
        _sync_directory(target.parent)


def append_line(path: Path, line: bytes) -> None:
    """Add ``line`` at the end of a file, made where there is none; on disk when this returns.

    Either all of it or, on an error (TemporaryError, such as a full disk), nothing of it, unless a kill or a crash tears it.
    """
    with _explained(path):
        descriptor, is_new = _open_for_appending(path)
        try:
            _append(descriptor, line)
        finally:
            os.close(descriptor)
        if is_new:
            _sync_directory(path.parent)


def make_directory(path: Path) -> None:
    """A directory, made where there is none; its name is on disk when this returns. Raises OSError."""
    try:
        path.mkdir()
    except FileExistsError:
        return
    _sync_directory(path.parent)


def move(path: Path, destination: Path) -> None:
    """Rename a file or directory into a directory that is made for it; the new name is on disk when this returns, and before the
    old one is gone. Raises OSError."""
    destination.parent.mkdir(exist_ok=True)
    path.rename(destination)
    _sync_directory(destination.parent)
    _sync_directory(path.parent)


# --- steps ---------------------------------------------------------------------------------------


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TemporaryError(f"{path}: cannot be written: {error.strerror or error}") from error


def _stat(target: Path) -> os.stat_result | None:
    try:
        return target.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _content(target: Path) -> bytes | None:
    try:
        return target.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write_new(temporary: Path, content: bytes, like: os.stat_result | None) -> None:
    """Write a file that must not exist yet; until it has its owner, nobody else may read one that replaces another."""
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if like is None else 0o600)
    try:
        _write_all(descriptor, content)
        if like is not None:
            _keep_owner(descriptor, like)
            os.fchmod(descriptor, stat.S_IMODE(like.st_mode))  # after chown, which clears bits
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _keep_owner(descriptor: int, like: os.stat_result) -> None:
    """Owner and group as they were; a user who may not give files away may still keep the group."""
    for owner in (like.st_uid, -1):
        with suppress(PermissionError):
            os.fchown(descriptor, owner, like.st_gid)
            return


def _write_all(descriptor: int, content: bytes) -> None:
    """Every byte: write(2) may take fewer than it was given, on a nearly full disk or after a signal."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _open_for_appending(path: Path) -> tuple[int, bool]:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(path, flags), False
    except FileNotFoundError:
        return os.open(path, flags | os.O_CREAT, 0o666), True


def _append(descriptor: int, line: bytes) -> None:
    before = os.fstat(descriptor).st_size
    try:
        _write_all(descriptor, line)
    except OSError:
        _take_back(descriptor, before, line)
        raise
    os.fsync(descriptor)


def _take_back(descriptor: int, before: int, line: bytes) -> None:
    """Cut off the part that was written, unless somebody else's line may stand behind it."""
    with suppress(OSError):
        if os.fstat(descriptor).st_size < before + len(line):
            os.ftruncate(descriptor, before)


def _sync_directory(directory: Path) -> None:
    """Make a new name durable; some filesystems cannot, and say EINVAL."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
