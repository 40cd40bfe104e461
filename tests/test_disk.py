from __future__ import annotations

import os
from pathlib import Path

import pytest

from reconciler.disk import RealDisk
from reconciler.errors import DiskUnreadable

DISK = RealDisk()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"0123456789")
    return path


def test_a_file_has_its_size_and_its_time_in_nanoseconds(file: Path) -> None:
    os.utime(file, ns=(5, 1_700_000_000_123_456_789))
    found = DISK.stat(file)
    assert found is not None
    assert (found.size, found.mtime_ns, found.is_dir) == (10, 1_700_000_000_123_456_789, False)


def test_what_is_there_has_the_filesystem_that_it_is_on(file: Path) -> None:
    found, above = RealDisk().stat(file), RealDisk().stat(file.parent)
    assert found is not None
    assert above is not None
    assert found.device == above.device == os.stat(file).st_dev  # noqa: PTH116


def test_a_directory_lists_its_entries_in_order_hidden_ones_too(tmp_path: Path) -> None:
    for name in ("b", ".hidden", "a"):
        (tmp_path / name).touch()
    found = DISK.stat(tmp_path)
    assert found is not None
    assert found.is_dir
    assert DISK.names(tmp_path) == (".hidden", "a", "b")


@pytest.mark.parametrize("inside", ["nothing", "weights/below-a-file", "nothing/at/all", "dangling", "a\0b"])
def test_what_surely_does_not_exist_is_none(file: Path, inside: str) -> None:
    (file.parent / "dangling").symlink_to(file.parent / "gone")
    path = file.parent / inside
    assert DISK.stat(path) is None
    assert DISK.names(path) is None
    assert DISK.read(path) is None


def test_a_file_is_no_directory_to_list(file: Path) -> None:
    assert DISK.names(file) is None


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, None, b"0123456789"),
        (3, 4, b"3456"),
        (8, 100, b"89"),
        (7, 1, b"7"),
        (-3, None, b"789"),
        (-3, 2, b"78"),
        (-99, 2, b"01"),
        (99, 5, b""),
    ],
)
def test_a_read_takes_the_bytes_asked_for(file: Path, offset: int, length: int | None, expected: bytes) -> None:
    assert DISK.read(file, offset, length) == expected


def test_nothing_is_read_where_no_bytes_are_asked_for(file: Path) -> None:
    assert DISK.read(file, 2, 0) == b""


def test_a_file_larger_than_one_system_call_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "large"
    content = bytes(range(256)) * 20_000
    path.write_bytes(content)
    assert DISK.read(path) == content
    assert DISK.read(path, 1, 3_000_000) == content[1:3_000_001]


def test_an_endless_link_is_unknown_not_absent(tmp_path: Path) -> None:
    path = tmp_path / "loop"
    path.symlink_to(path)
    for ask in (DISK.stat, DISK.names, DISK.read):
        with pytest.raises(DiskUnreadable, match="loop"):
            ask(path)


def test_a_name_too_long_to_ask_for_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(DiskUnreadable):
        DISK.stat(tmp_path / ("x" * 5000))


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(DiskUnreadable, match="not a regular file"):
        DISK.read(path)


def test_a_fifo_is_not_taken_from_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    os.write(writer, b"theirs")
    with pytest.raises(DiskUnreadable):
        DISK.read(path)
    assert os.read(reader, 10) == b"theirs"
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("refused", ["/dev/zero", "."])
def test_devices_and_directories_are_refused(refused: str) -> None:
    with pytest.raises(DiskUnreadable, match="not a regular file"):
        DISK.read(Path(refused))


def test_an_unreadable_path_keeps_the_error_that_caused_it(tmp_path: Path) -> None:
    path = tmp_path / "loop"
    path.symlink_to(path)
    with pytest.raises(DiskUnreadable) as caught:
        DISK.stat(path)
    assert isinstance(caught.value.__cause__, OSError)
