"""Writing: all of the new content or all of the old, whatever happens in between."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconciler.errors import TemporaryError
from reconciler.files import StaleRead, append_line, make_directory, replace_file


@contextmanager
def nearly_full(limit: int) -> Iterator[None]:
    """No file may grow beyond ``limit`` bytes: the kernel takes what fits and then refuses, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_a_file_is_replaced_and_nothing_else_is_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "document.md"
    path.write_bytes(b"old")
    replace_file(path, b"new", expected=b"old")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["document.md"]


def test_a_file_that_changed_meanwhile_keeps_the_change(tmp_path: Path) -> None:
    path = tmp_path / "document.md"
    path.write_bytes(b"edited by a person")
    with pytest.raises(StaleRead, match=r"document\.md"):
        replace_file(path, b"new", expected=b"old")
    assert path.read_bytes() == b"edited by a person"
    assert names(tmp_path) == ["document.md"]


def test_a_file_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(StaleRead):
        replace_file(tmp_path / "document.md", b"new", expected=b"old")
    assert names(tmp_path) == []


def test_a_new_file_is_not_written_over_one_that_appeared(tmp_path: Path) -> None:
    path = tmp_path / "STATUS.md"
    path.write_bytes(b"")
    with pytest.raises(StaleRead):
        replace_file(path, b"new", expected=None)
    assert path.read_bytes() == b""


@pytest.mark.parametrize(("mask", "mode"), [(0o027, 0o640), (0, 0o666)])
def test_a_new_file_follows_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    tmp_path.chmod(0o777)
    with umask(mask):
        replace_file(tmp_path / "STATUS.md", b"new", expected=None)
        append_line(tmp_path / "log", b"new\n")
    assert stat.S_IMODE((tmp_path / "STATUS.md").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_a_replaced_file_keeps_its_mode_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "document.md"
    path.write_bytes(b"old")
    path.chmod(mode)
    with umask(0o077):
        replace_file(path, b"new", expected=b"old")
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_replaced_file_keeps_its_owner_and_a_group_that_may_be_given(tmp_path: Path) -> None:
    path = tmp_path / "document.md"
    path.write_bytes(b"old")
    group = next((gid for gid in os.getgroups() if gid != os.getegid()), 4242 if os.geteuid() == 0 else os.getegid())
    os.chown(path, -1, group)
    before = path.stat()
    replace_file(path, b"new", expected=b"old")
    assert (path.stat().st_uid, path.stat().st_gid) == (before.st_uid, group)


def test_nobody_else_reads_a_private_file_while_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "document.md"
    path.write_bytes(b"old")
    path.chmod(0o600)
    tmp_path.chmod(0o777)
    modes, write = [], os.write

    def watched(descriptor: int, content: bytes) -> int:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", watched)
    with umask(0):
        replace_file(path, b"new", expected=b"old")
    assert modes == [0o600]


def test_who_may_not_give_a_file_away_keeps_its_group_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "document.md"
    path.write_bytes(b"old")
    given, chown = [], os.fchown

    def refusing(descriptor: int, owner: int, group: int) -> None:
        if owner != -1:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        given.append(group)
        chown(descriptor, owner, group)

    monkeypatch.setattr(os, "fchown", refusing)
    replace_file(path, b"new", expected=b"old")
    assert given == [path.stat().st_gid]
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("mode", [0o444, 0o555])
def test_a_write_protected_file_is_left_alone(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "document.md"
    path.write_bytes(b"old")
    path.chmod(mode)
    with pytest.raises(TemporaryError, match="write-protected"):
        replace_file(path, b"new", expected=b"old")
    assert path.read_bytes() == b"old"


def test_a_symlink_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    elsewhere = tmp_path / "shared"
    elsewhere.mkdir()
    (elsewhere / "real.md").write_bytes(b"old")
    link = tmp_path / "document.md"
    link.symlink_to("shared/real.md")
    replace_file(link, b"new", expected=b"old")
    assert link.is_symlink()
    assert (elsewhere / "real.md").read_bytes() == b"new"
    assert names(elsewhere) == ["real.md"]


def test_another_hard_link_keeps_the_old_content(tmp_path: Path) -> None:
    path, backup = tmp_path / "document.md", tmp_path / "backup.md"
    path.write_bytes(b"old")
    backup.hardlink_to(path)
    replace_file(path, b"new", expected=b"old")
    assert (path.read_bytes(), backup.read_bytes()) == (b"new", b"old")


def test_a_full_disk_leaves_the_original_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "document.md"
    path.write_bytes(b"old" * 100)
    with nearly_full(4096), pytest.raises(TemporaryError, match=os.strerror(errno.EFBIG)):
        replace_file(path, b"x" * 10_000, expected=b"old" * 100)
    assert path.read_bytes() == b"old" * 100
    assert names(tmp_path) == ["document.md"]


def test_a_directory_that_is_not_there_is_an_error_for_later(tmp_path: Path) -> None:
    with pytest.raises(TemporaryError, match="cannot be written"):
        replace_file(tmp_path / "gone" / "document.md", b"new", expected=None)


def test_a_directory_in_the_place_of_the_file_is_an_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "document.md").mkdir()
    with pytest.raises(TemporaryError):
        replace_file(tmp_path / "document.md", b"new", expected=None)
    assert names(tmp_path) == ["document.md"]


def test_readers_never_see_a_part_and_a_kill_never_leaves_one(tmp_path: Path) -> None:
    path = tmp_path / "document.md"
    first, second = b"a" * 500_000, b"b" * 500_000
    path.write_bytes(first)
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from reconciler.files import replace_file
        path, one, two = Path(sys.argv[1]), b"a" * 500_000, b"b" * 500_000
        print("begun", flush=True)
        while True:
            replace_file(path, two, expected=one)
            replace_file(path, one, expected=two)
        """
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        seen = {path.read_bytes() for _ in range(200)}
        writer.kill()
    assert seen <= {first, second}
    assert path.read_bytes() in (first, second)


def test_a_line_is_added_at_the_end_of_a_file_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    append_line(path, b"one\n")
    append_line(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_line_that_does_not_fit_is_not_there_at_all(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    append_line(path, b"one\n")
    with nearly_full(1000), pytest.raises(TemporaryError, match=r"ledger\.jsonl"):
        append_line(path, b"x" * 5000 + b"\n")
    assert path.read_bytes() == b"one\n"
    append_line(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_write_that_takes_a_part_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:7]))
    append_line(tmp_path / "slow", b"y" * 300 + b"\n")
    assert (tmp_path / "slow").read_bytes() == b"y" * 300 + b"\n"


@pytest.mark.parametrize("write", [lambda path: append_line(path, b"x"), lambda path: replace_file(path, b"x", expected=b"")])
def test_a_fifo_is_never_opened(tmp_path: Path, write: Callable[[Path], None]) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(TemporaryError, match="not a regular file"):
        write(tmp_path / "fifo")
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


def test_a_line_goes_nowhere_without_a_directory(tmp_path: Path) -> None:
    with pytest.raises(TemporaryError):
        append_line(tmp_path / "gone" / "ledger.jsonl", b"one\n")


def test_a_new_name_is_made_durable_and_only_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = [], os.fsync

    def watched(descriptor: int) -> None:
        synced.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    append_line(tmp_path / "log", b"one\n")
    assert synced == ["file", "directory"]
    append_line(tmp_path / "log", b"two\n")
    assert synced == ["file", "directory", "file"]
    replace_file(tmp_path / "document.md", b"new", expected=None)
    assert synced[3:] == ["file", "directory"]


@pytest.mark.parametrize(("number", "is_fault"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_filesystem_that_cannot_make_a_name_durable_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_fault: bool
) -> None:
    fsync = os.fsync

    def refusing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    if is_fault:
        with pytest.raises(TemporaryError):
            append_line(tmp_path / "log", b"one\n")
    else:
        append_line(tmp_path / "log", b"one\n")
    assert (tmp_path / "log").read_bytes() == (b"" if is_fault else b"one\n")


def test_a_line_that_may_not_have_reached_the_disk_is_not_there_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    append_line(path, b"one\n")
    with monkeypatch.context() as failing:
        failing.setattr(os, "fsync", refuse)
        with pytest.raises(TemporaryError, match=r"ledger\.jsonl"):
            append_line(path, b"two\n")
    assert path.read_bytes() == b"one\n"


def test_a_line_of_somebody_else_is_not_taken_back_with_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"

    def beside_another(descriptor: int) -> None:
        with path.open("ab") as other:
            other.write(b"theirs\n")
        refuse(descriptor)

    monkeypatch.setattr(os, "fsync", beside_another)
    with pytest.raises(TemporaryError):
        append_line(path, b"ours\n")
    assert path.read_bytes() == b"ours\ntheirs\n"


def refuse(descriptor: int, *rest: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_directory_is_made_with_all_above_it_no_wider_open_than_the_first(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with umask(0):
        make_directory(tmp_path / "a" / "b" / "c", parents=True)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c")] == [
        0o750
    ] * 3
    make_directory(tmp_path / "a" / "b", parents=True)
    with pytest.raises(FileNotFoundError):
        make_directory(tmp_path / "x" / "y")
