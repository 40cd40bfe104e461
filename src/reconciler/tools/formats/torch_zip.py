"""Judges what ``torch.save`` writes, a zip around a pickle: by its central directory, in full by its checksums.

Nothing is ever unpickled: a pickle can run any code, so a number is read from its opcodes. Reads are bounded.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

from reconciler.ports import Disk

_MAX_READ = 8 << 20  # bytes; no honest central directory (of 50,000 tensors) and no honest data.pkl is larger
_MAX_INTEGER = 10**9
_CHUNK = 1 << 20
_LONGEST_NAME = 100
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MOST_FOR_A_BYTE = 1032  # what deflate can make of one byte (zlib's own figure)
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    OverflowError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    struct.error,
)
_INTEGERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
_MEMO = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}


def torch_zip_fault(path: Path, disk: Disk, *, deep: bool = False) -> str | None:
    """What is wrong with the file, or None; ``deep`` reads all of it. DiskUnreadable passes through."""
    found = disk.stat(path)
    if found is None or found.is_dir:
        return "is missing"
    try:
        with closing(_open(path, found.size, disk)) as archive:
            _pickle_entry(archive)
            damaged = _damaged_entry(archive, found.size) if deep else None
    except _DAMAGE as error:
        return f"is cut short or no torch file ({found.size} bytes: {error})"
    return f"is damaged at {damaged}" if damaged else None


def read_integer(path: Path, key: str, disk: Disk) -> int | None:
    """The integer that the pickled dictionary holds under ``key``; None where the file does not (readably) say."""
    found = disk.stat(path)
    if found is None or found.is_dir:
        return None
    try:
        with closing(_open(path, found.size, disk)) as archive:
            entry = _pickle_entry(archive)
            return _integer_after(key, b"".join(_pieces(archive, entry))) if entry.file_size <= _MAX_READ else None
    except _DAMAGE:
        return None


def _open(path: Path, size: int, disk: Disk) -> zipfile.ZipFile:
    return zipfile.ZipFile(cast("io.BytesIO", _DiskFile(path, size, disk)))


def _pickle_entry(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    for entry in archive.infolist():
        if entry.filename.endswith("/data.pkl"):
            return entry
    raise zipfile.BadZipFile("no data.pkl in it")


def _damaged_entry(archive: zipfile.ZipFile, size: int) -> str | None:
    """The first entry that is not what its checksum says. Reads no more than a file of this size can hold."""
    entries = archive.infolist()
    packed, unpacked = sum(entry.compress_size for entry in entries), sum(entry.file_size for entry in entries)
    if packed > size or unpacked > _MOST_FOR_A_BYTE * size:
        raise zipfile.BadZipFile("its entries claim more than it holds")
    for entry in entries:
        try:
            for _ in _pieces(archive, entry):
                pass
        except zipfile.BadZipFile:
            return entry.filename[:_LONGEST_NAME]
    return None


def _pieces(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """An entry's contents, a bounded piece at a time: asked for all of it, zipfile unpacks gigabytes of one that lies."""
    if entry.compress_type not in _METHODS:
        raise zipfile.BadZipFile("compressed as no torch file is")
    with archive.open(entry) as stream:
        while piece := stream.read(_CHUNK):
            yield piece


def _integer_after(key: str, pickle: bytes) -> int | None:
    is_next = False
    for opcode, argument, _ in pickletools.genops(pickle):
        if is_next and opcode.name not in _MEMO:
            is_plausible = opcode.name in _INTEGERS and isinstance(argument, int) and abs(argument) <= _MAX_INTEGER
            return cast(int, argument) if is_plausible else None
        is_next = is_next or (argument == key and "UNICODE" in opcode.name)
    return None


class _DiskFile:
    """As much of a seekable file as zipfile needs, over ``Disk``, with a bound on each read."""

    def __init__(self, path: Path, size: int, disk: Disk) -> None:
        self._path, self._size, self._disk = path, size, disk
        self._position = 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if self._position < 0:
            raise zipfile.BadZipFile("an offset before the file's beginning")
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, length: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        wanted = left if length < 0 else min(length, left)
        if wanted > _MAX_READ:
            raise zipfile.BadZipFile("an entry of implausible size")
        found = self._disk.read(self._path, self._position, wanted) or b""
        self._position += len(found)
        return found

    def close(self) -> None:
        """Nothing is open between two reads."""
