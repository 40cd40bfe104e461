"""Judges one ``epoch_<N>/`` by what is in it: the weights, the adapter files, the copies of the base model's small files.

Broken and unreadable are kept apart: what could not be read is a doubt, never a fault. Whether the trainer went on after
this epoch is not to be seen in here. Source of the rules: measured on torchtune 0.6.1 killed at chosen system calls.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from reconciler.errors import DiskUnreadable
from reconciler.model import FileId
from reconciler.ports import Disk
from reconciler.tools.formats.safetensors import safetensors_fault
from reconciler.tools.formats.torch_zip import torch_zip_fault

INDEX = "model.safetensors.index.json"
ADAPTER_WEIGHTS = ("adapter_model.pt", "adapter_model.safetensors")
ADAPTER_CONFIG = "adapter_config.json"
STASH = "adapter_weights"

_NOT_COPIED = (".pt", ".pth", ".bin", ".safetensors", ".index.json")
_LARGEST_COPY = 100 << 20  # the trainer copies no larger file
_MAX_JSON = 16 << 20
_MAX_DEPTH = 8
_MAX_COPIES = 10_000


@dataclass(frozen=True)
class Wanted:
    """What an epoch must hold. ``copies`` are sizes by relative path, or a sentence why they are not known.

    ``since`` (ns) is when the launch began that must have written the weights, None where an earlier one may have.
    """

    merged: bool
    adapters: bool
    copies: Mapping[Path, int] | str
    since: int | None = None
    deep: bool = False


@dataclass(frozen=True)
class Verdict:
    """What was found: ``faults`` make the epoch incomplete, ``doubts`` unknown. ``files`` are its weights and index."""

    faults: tuple[str, ...]
    doubts: tuple[str, ...]
    files: tuple[FileId, ...]


def judge_epoch(directory: Path, wanted: Wanted, disk: Disk) -> Verdict:
    """The verdict on one epoch's directory; never raises for what cannot be read."""
    examination = _Examination(directory, wanted, disk)
    examination.run()
    return Verdict(tuple(examination.faults), tuple(examination.doubts), tuple(examination.files))


def locate(directory: Path, name: str, disk: Disk) -> Path:
    """Where an adapter file of an epoch is: in its place, or moved into the stash beside it."""
    stashed = directory / STASH / name
    return stashed if disk.stat(directory / name) is None and disk.stat(stashed) is not None else directory / name


def small_files(base: Path, disk: Disk) -> dict[Path, int] | str:
    """The files of the base model that the trainer copies, with their sizes, or why they are not known."""
    try:
        if disk.names(base) is None:
            return f"the base model {base} is not there to compare with"
        found = dict(islice(_walk(base, Path(), disk), _MAX_COPIES + 1))
    except DiskUnreadable as error:
        return f"the base model cannot be read: {error}"
    is_plausible = len(found) <= _MAX_COPIES
    return found if is_plausible else f"the base model {base} has more than {_MAX_COPIES:,} files; is it the right one?"


def _walk(base: Path, inside: Path, disk: Disk) -> Iterable[tuple[Path, int]]:
    for name in disk.names(base / inside) or ():
        path = inside / name
        found = None if name.startswith(".") else disk.stat(base / path)
        if found is None:
            continue
        if found.is_dir:
            yield from _walk(base, path, disk) if len(path.parts) < _MAX_DEPTH else ()
        elif not name.endswith(_NOT_COPIED) and not name.startswith("adapter_") and found.size <= _LARGEST_COPY:
            yield path, found.size


# --- the questions ---------------------------------------------------------------------------------


class _Examination:
    """Asks about every file of one epoch, and goes on past what is broken or cannot be read."""

    def __init__(self, directory: Path, wanted: Wanted, disk: Disk) -> None:
        self._directory, self._wanted, self._disk = directory, wanted, disk
        self._shards: tuple[str, ...] = ()
        self.faults: list[str] = []
        self.doubts: list[str] = []
        self.files: list[FileId] = []

    def run(self) -> None:
        if self._wanted.merged:
            self._ask(INDEX, self._index_fault)
            for shard in self._shards:
                self._ask(shard, self._weights_fault, self._directory / shard)
        if self._wanted.adapters:
            for name in ADAPTER_WEIGHTS:
                self._ask(name, self._adapter_fault, name)
            self._ask(ADAPTER_CONFIG, self._adapter_config_fault)
        if isinstance(self._wanted.copies, str):
            self.doubts.append(self._wanted.copies)
        else:
            for path, size in self._wanted.copies.items():
                self._ask(str(path), self._copy_fault, self._directory / path, size)

    def _ask(self, name: str, question: Callable[..., str | None], *about: object) -> None:
        try:
            fault = question(*about)
        except DiskUnreadable as error:
            self.doubts.append(str(error))
        else:
            self.faults += [f"{name} {fault}"] if fault else []

    def _index_fault(self) -> str | None:
        index = _read_json(self._directory / INDEX, self._disk)
        if isinstance(index, str):
            return index
        named = index.get("weight_map")
        if not isinstance(named, dict) or not named or not all(_is_plain_name(name) for name in named.values()):
            return "names no shards"
        self._shards = tuple(sorted(set(named.values())))
        return self._identify(self._directory / INDEX, None)

    def _weights_fault(self, path: Path) -> str | None:
        is_safetensors = path.suffix == ".safetensors"
        deep, disk = self._wanted.deep, self._disk
        fault = safetensors_fault(path, disk) if is_safetensors else torch_zip_fault(path, disk, deep=deep)
        return fault or self._identify(path, self._wanted.since)

    def _adapter_fault(self, name: str) -> str | None:
        return self._weights_fault(locate(self._directory, name, self._disk))

    def _adapter_config_fault(self) -> str | None:
        content = _read_json(locate(self._directory, ADAPTER_CONFIG, self._disk), self._disk)
        return content if isinstance(content, str) else None

    def _copy_fault(self, path: Path, size: int) -> str | None:
        found = self._disk.stat(path)
        if found is None or found.is_dir:
            return "is missing, a copy of the base model's (`accept` what is there if the base model got that file since)"
        return None if found.size == size else f"has {found.size} bytes, the base model's {size}"

    def _identify(self, path: Path, since: int | None) -> str | None:
        """Note the file as evidence, unless it is older than the launch that should have written it."""
        found = self._disk.stat(path)
        if found is None:
            return "is missing"
        if since is not None and found.mtime_ns < since:
            return "is older than the last launch"
        self.files.append(FileId(str(path), found.size, found.mtime_ns))
        return None


def _read_json(path: Path, disk: Disk) -> dict[str, Any] | str:
    """The JSON object in a file, or what is wrong with it."""
    found = disk.stat(path)
    if found is None or found.is_dir:
        return "is missing"
    if found.size > _MAX_JSON:
        return f"is implausibly large ({found.size} bytes)"
    try:
        content = json.loads(disk.read(path, 0, _MAX_JSON) or b"")
    except (ValueError, RecursionError):
        return f"is cut short or no JSON ({found.size} bytes)"
    return content if isinstance(content, dict) else "holds no JSON object"


def _is_plain_name(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and "/" not in name and "\0" not in name
