"""The header of an inspect-ai log: what was evaluated, and how it ended.

A ``.eval`` log is a zip whose entries are mostly zstd (method 93, which the standard library cannot decompress); a plain
``.json`` log holds the same fields. Reads through a Disk, in bounded memory; never extracts a file, never reads samples
unless asked for a full check.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Protocol, cast

from reconciler.errors import DiskUnreadable
from reconciler.ports import Disk

LARGEST = 32 * 2**20
"""Bytes that one directory, entry or plain log may occupy, before and after decompression."""

_CHUNK = 2**20
_ZSTANDARD = 93
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_MOST_FOR_A_BYTE = 1032  # what deflate can make of one byte, and honest zstd does not
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, _ZSTANDARD)
_LONGEST = 300  # characters of a text that is shown
_MOST_SAMPLES = 10**9
_SIGNS_OF_DAMAGE = (  # what zipfile and json raise for bytes that are not theirs; RuntimeError: encrypted, or nested too deeply
    zipfile.BadZipFile, zlib.error, struct.error, ValueError, TypeError, LookupError, OverflowError, EOFError, RuntimeError,
)  # fmt: skip


class LogDamaged(Exception):
    """The file is not a whole log, or larger than may be read; its contents prove nothing."""


@dataclass(frozen=True)
class EvalLog:
    """One log's header. ``ended`` is False while the run is in progress, and for ever after a kill.

    ``created`` is epoch seconds. ``passed`` are the task arguments given on the command line, None where the log does not
    tell them from defaults. ``limit`` is whatever narrowed the samples (``--limit`` or ``--sample-id``), None for all of them.
    """

    status: str
    ended: bool
    created: float
    task: str
    registry_name: str = ""
    arguments: Mapping[str, object] = field(default_factory=dict)
    passed: Mapping[str, object] | None = None
    model: str = ""
    model_path: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)
    limit: object = None
    samples: int | None = None
    epochs: int = 1
    total: int | None = None
    completed: int | None = None
    is_invalidated: bool = False
    error: str = ""


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


def read_eval_log(path: Path, disk: Disk, *, deep: bool = False) -> EvalLog | None:
    """The header of the log at ``path``; None where there is no file, or a ``.json`` that is no log.

    ``deep`` decompresses every entry of a ``.eval`` and checks its CRC. Raises LogDamaged and DiskUnreadable.
    """
    found = disk.stat(path)
    if found is None or found.is_dir:
        return None
    try:
        if path.suffix == ".json":
            return _read_plain(path, disk)
        return _read_archive(_Window(path, disk, 0, found.size), deep=deep)
    except _SIGNS_OF_DAMAGE as error:
        raise LogDamaged(f"{path.name} is damaged or incomplete: {str(error)[:_LONGEST]}") from error


def _read_plain(path: Path, disk: Disk) -> EvalLog | None:
    text = disk.read(path, 0, LARGEST + 1)
    if text is None:
        return None
    if len(text) > LARGEST:
        raise LogDamaged(f"{path.name} is larger than {LARGEST >> 20} MiB and was not read")
    content = json.loads(text)
    if not isinstance(content, dict) or "eval" not in content:
        return None
    return _header(content)


def _read_archive(window: _Window, *, deep: bool) -> EvalLog:
    archive = zipfile.ZipFile(window)
    entries = {entry.filename: entry for entry in archive.infolist()}
    if deep:
        _check_claims(entries.values(), window)
        for entry in entries.values():
            for _ in _pieces(archive, window, entry):
                pass
    written_last = entries.get("header.json")
    written_first = entries.get("_journal/start.json")
    if written_last is not None:
        return _header(json.loads(_contents(archive, window, written_last)))
    if written_first is not None:
        return _header({**json.loads(_contents(archive, window, written_first)), "status": "started"})
    raise LogDamaged(f"{window.name} has neither header.json nor _journal/start.json")


def _named(entry: zipfile.ZipInfo, window: _Window) -> str:
    return f"{entry.filename[:_LONGEST]} in {window.name}"


def _check_claims(entries: Iterable[zipfile.ZipInfo], window: _Window) -> None:
    """Raises LogDamaged where the entries claim more than a file of this size can hold: no check may take for ever."""
    packed, unpacked = sum(entry.compress_size for entry in entries), sum(entry.file_size for entry in entries)
    if packed > window.size or unpacked > _MOST_FOR_A_BYTE * window.size:
        raise LogDamaged(f"the entries of {window.name} claim more than it holds")


def _contents(archive: zipfile.ZipFile, window: _Window, entry: zipfile.ZipInfo) -> bytes:
    if entry.file_size > LARGEST:
        raise LogDamaged(f"{_named(entry, window)} is larger than {LARGEST >> 20} MiB and was not read")
    return b"".join(_pieces(archive, window, entry))


def _pieces(archive: zipfile.ZipFile, window: _Window, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """An entry's contents, a bounded piece at a time; raises before more than the declared size has been given."""
    if entry.compress_type not in _METHODS:
        raise LogDamaged(f"{_named(entry, window)} is compressed as no log is")
    stream = _open_zstandard(window, entry) if entry.compress_type == _ZSTANDARD else archive.open(entry)
    size = crc = 0
    while piece := stream.read(_CHUNK):
        size, crc = size + len(piece), zlib.crc32(piece, crc)
        if size > entry.file_size:
            break
        yield piece
    if (size, crc) != (entry.file_size, entry.CRC):
        raise LogDamaged(f"{_named(entry, window)} is not what the log's directory says")


def _open_zstandard(window: _Window, entry: zipfile.ZipInfo) -> _Readable:
    import zstandard  # heavy, and needed by few commands

    window.seek(entry.header_offset)
    signature, name_length, extra_length = _LOCAL_HEADER.unpack(window.read(_LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise LogDamaged(f"{_named(entry, window)} is not where the log's directory says")
    start = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    return _Zstandard(
        zstandard.ZstdDecompressor(max_window_size=LARGEST).stream_reader(
            cast("IO[bytes]", window.part(start, entry.compress_size)), read_across_frames=True
        )
    )


class _Zstandard:
    """A zstd stream whose errors are those of a damaged file."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        import zstandard  # see above

        try:
            return bytes(self._stream.read(size))
        except zstandard.ZstdError as error:
            raise LogDamaged(str(error)) from error


class _Window:
    """Part of a file on a Disk, as the seekable stream that zipfile reads. No single read exceeds LARGEST."""

    def __init__(self, path: Path, disk: Disk, start: int, end: int) -> None:
        self.name = path.name
        self._path, self._disk, self._start, self._end, self._at = path, disk, start, end, start

    def part(self, start: int, length: int) -> _Window:
        return _Window(self._path, self._disk, start, min(start + length, self._end))

    @property
    def size(self) -> int:
        return self._end - self._start

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at - self._start

    def seek(self, offset: int, whence: int = 0, /) -> int:
        base = {0: self._start, 1: self._at, 2: self._end}[whence]
        if base + offset < self._start:
            raise EOFError("it ends where its directory should begin")
        self._at = base + offset
        return self.tell()

    def read(self, size: int = -1, /) -> bytes:
        left = max(self._end - self._at, 0)
        wanted = left if size < 0 else min(size, left)
        if wanted > LARGEST:
            raise LogDamaged(f"{self.name} has a directory larger than {LARGEST >> 20} MiB, which was not read")
        chunk = self._disk.read(self._path, self._at, wanted) if wanted else b""
        if chunk is None:
            raise DiskUnreadable(f"{self._path} went away while it was read")
        self._at += len(chunk)
        return chunk


# --- from JSON to the header ---------------------------------------------------------------------


def _header(content: Mapping[str, Any]) -> EvalLog:
    """Field names as inspect-ai 0.3 writes them; fields that it added over time may be missing."""
    run, results = _mapping(content["eval"]), _mapping(content.get("results"))
    config, arguments = _mapping(run.get("config")), _mapping(run.get("model_args"))
    status, passed = str(content["status"]), run.get("task_args_passed")
    return EvalLog(
        status=status,
        ended=status != "started",
        created=_epoch_seconds(run["created"]),
        task=str(run["task"]),
        registry_name=str(run.get("task_registry_name") or ""),
        arguments=_mapping(run.get("task_args")),
        passed=passed if isinstance(passed, dict) else None,
        model=str(run.get("model") or ""),
        model_path=str(arguments["model_path"]) if arguments.get("model_path") else None,
        metadata=_mapping(run.get("metadata")),
        limit=_limit(config),
        samples=_count(_mapping(run.get("dataset")).get("samples")),
        epochs=_count(config.get("epochs")) or 1,
        total=_count(results.get("total_samples")),
        completed=_count(results.get("completed_samples")),
        is_invalidated=bool(content.get("invalidated")),
        error=str(_mapping(content.get("error")).get("message") or "")[:_LONGEST],
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_SAMPLES
    return cast(int, value) if is_count else None


def _limit(config: Mapping[str, Any]) -> object:
    """What narrowed the samples; a number that counts nothing is no number."""
    found = config.get("limit") if config.get("limit") is not None else config.get("sample_id")
    return str(found)[:_LONGEST] if isinstance(found, int) and _count(found) is None else found


def _epoch_seconds(text: object) -> float:
    """Epoch seconds of an ISO 8601 time; Python before 3.11 does not know the ``Z`` suffix."""
    return datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
