"""Write files so that a crash, a full disk or a second writer costs nothing: all of the new content, or all of the old.

The only edge that writes what people read. It never reads a meaning into content; only a kill makes it leave a temporary file.
It opens regular files alone, to read or to write: a FIFO or a device would block a pass, or do something. What it makes is never
wider open than the directory that it is made in.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reconciler.errors import TemporaryError, UsageError

_CHUNK = 1 << 20
_PROTECTED = "it is write-protected"


class StaleRead(TemporaryError):
    """The file is no longer what was read; nothing was written, and a fresh look will do."""


def home() -> Path:
    """The user's home directory. Raises UsageError where nothing tells which it is: to go on without a person's settings could
    pass their budget."""
    try:
        return Path.home()
    except RuntimeError as error:
        message = "neither HOME nor the password database tells your home directory, where your settings are; set HOME"
        raise UsageError(message) from error


class NotRegular(OSError):
    """Something else than a regular file; it was not opened."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "not a regular file", str(path))


def read_file(path: Path, offset: int = 0, length: int | None = None) -> bytes:
    """``length`` bytes from ``offset`` (negative: from the end), or all. Raises OSError."""
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


def make_directory(path: Path, *, parents: bool = False) -> None:
    """A directory, made where there is none, no wider open than the one above it; its name is on disk when this returns. Raises
    OSError."""
    if parents and not path.parent.exists():
        make_directory(path.parent, parents=True)
    try:
        path.mkdir(mode=_mode_in(path.parent, 0o777))
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    _sync_directory(path.parent)


def open_new(path: Path, flags: int) -> int:
    """Open a file that is made where there is none, no wider open than its directory. Raises OSError."""
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, _mode_in(path.parent, 0o666))


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
        if before is not None:
            _require_regular(before.st_mode, path)
        if before is not None and _is_protected(target, before):
            raise PermissionError(errno.EACCES, _PROTECTED)  # a rename would not even ask
        temporary = target.with_name(f".reconcile-{secrets.token_hex(8)}.tmp")
        try:
            _write_new(temporary, content, before)
            if _content(target, 1 if expected is None else len(expected) + 1) != expected:
                raise StaleRead(f"{path}: changed since it was read; it was left as it is")
            temporary.replace(target)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
        _sync_directory(target.parent)


def why_not_writable(path: Path) -> str:
    """Why ``replace_file`` would not get to write there, as far as that can be told without trying: the file, or the directory
    that it is or would be made in, is protected. Empty where nothing is in the way."""
    target = Path(os.path.realpath(path))
    try:
        found = _stat(target)
        if found is not None:
            _require_regular(found.st_mode, path)
            if _is_protected(target, found):
                return f"{path}: {_PROTECTED}"
        directory = target.parent
        while (there := _stat(directory)) is None:
            directory = directory.parent
        if not stat.S_ISDIR(there.st_mode):
            return f"{directory}: it is no directory"
        return "" if os.access(directory, os.W_OK | os.X_OK) else f"{directory}: {_PROTECTED}"
    except OSError as error:
        return f"{path}: {error.strerror or error}"


def append_line(path: Path, line: bytes) -> None:
    """Add ``line`` at the end of a file, made where there is none; on disk when this returns.

    Either all of it or, on an error (TemporaryError, such as a full disk), nothing of it. What cannot be taken back stays: after
    a kill or a crash, where the disk refuses that too, and where somebody else's line stands behind it by then.
    """
    with _explained(path):
        descriptor, is_new = _open_for_appending(path)
        try:
            _append(descriptor, line, path.parent if is_new else None)
        finally:
            os.close(descriptor)


def move(path: Path, destination: Path) -> None:
    """Rename a file or directory into a directory that is made for it; the new name is on disk when this returns, and before the
    old one is gone. Raises OSError."""
    make_directory(destination.parent)
    path.rename(destination)
    _sync_directory(destination.parent)
    _sync_directory(path.parent)


def create_once(path: Path) -> bool:
    """Make an empty file, in a directory made for it if need be; False where it is there already. Of several who try at once, on
    whatever hosts, one alone gets True: exclusive creation is atomic, also on NFS from version 3 on (man 2 open, O_EXCL)."""
    with _explained(path):
        make_directory(path.parent)
        try:
            os.close(open_new(path, os.O_WRONLY | os.O_EXCL))
        except FileExistsError:
            return False
    return True


# --- steps ---------------------------------------------------------------------------------------


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TemporaryError(f"{path}: cannot be written: {error.strerror or error}") from error


def _is_protected(target: Path, found: os.stat_result) -> bool:
    """By its mode, also for root, by the filesystem or by an attribute (chattr +i)."""
    return not (found.st_mode & 0o222 and os.access(target, os.W_OK))


def _stat(target: Path) -> os.stat_result | None:
    try:
        return target.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _content(target: Path, most: int) -> bytes | None:
    try:
        return read_file(target, 0, most)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write_new(temporary: Path, content: bytes, like: os.stat_result | None) -> None:
    """Write a file that must not exist yet; until it has its owner, nobody else may read one that replaces another."""
    mode = _mode_in(temporary.parent, 0o666) if like is None else 0o600
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
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
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        _require_regular(path.stat().st_mode, path)
        return os.open(path, flags), False
    except FileNotFoundError:
        return open_new(path, flags), True


def _require_regular(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        raise NotRegular(path)


def _mode_in(directory: Path, mode: int) -> int:
    """As much of a mode as a directory's own lets through; the umask takes its part besides."""
    return mode & stat.S_IMODE(directory.stat().st_mode)


def _append(descriptor: int, line: bytes, named_in: Path | None) -> None:
    """``named_in`` is the directory of a file that is new, whose name must be on disk too."""
    before = os.fstat(descriptor).st_size
    try:
        _write_all(descriptor, line)
        os.fsync(descriptor)
        if named_in is not None:
            _sync_directory(named_in)
    except OSError:
        _take_back(descriptor, before, line)
        raise


def _take_back(descriptor: int, before: int, line: bytes) -> None:
    """Cut off what was written, unless somebody else's line may stand behind it."""
    with suppress(OSError):
        if os.fstat(descriptor).st_size <= before + len(line):
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
