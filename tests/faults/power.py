"""What a power cut leaves of a directory: a file system that keeps only what was synced, replayed from a trace of system calls.

Files keep what fsync(2) was called for, directories the names that they had when they were synced themselves (man 2 fsync: "Calling
fsync() does not necessarily ensure that the entry in the directory containing the file has also reached disk"). What was not synced
may have reached the disk all the same, in whole or in part, so there is more than one image of one cut.
"""

from __future__ import annotations

import ast
import enum
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from syscalls import Call

_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')
_DESCRIPTOR = re.compile(r"(\d+)<([^>]*)>")


class Image(enum.Enum):
    """How much of what was not synced is there."""

    NOTHING = "only what was synced"
    NAMES = "names, but no content"
    TORN = "half of the content"
    ZEROS = "zeros for content"
    EVERYTHING = "everything"


@dataclass(eq=False)
class _File:
    content: bytes
    durable: bytes

    def image(self, image: Image) -> bytes:
        new, old = self.content, self.durable
        if image in (Image.NOTHING, Image.NAMES) or new == old:
            return old
        if image is Image.EVERYTHING:
            return new
        kept = len(old) if new.startswith(old) else 0
        half = kept + (len(new) - kept) // 2
        return new[:half] if image is Image.TORN else new[:kept] + bytes(len(new) - kept)


@dataclass(eq=False)
class _Directory:
    names: dict[str, _File | _Directory] = field(default_factory=dict)
    durable: dict[str, _File | _Directory] = field(default_factory=dict)


class Replay:
    """The directory at ``root`` as it is when this is made, all of it on disk; then what the calls of a trace do to it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._top = _read(root)
        self._open: dict[str, tuple[_File, int, bool]] = {}

    def play(self, calls: Iterable[Call]) -> None:
        for call in calls:
            if call.result is not None and call.result >= 0:
                getattr(self, f"_{call.name}", lambda call: None)(call)

    def write(self, image: Image) -> None:
        """Make the directory what a power cut would leave of it; files that nobody touched keep their times."""
        _write(self._root, self._top, image)

    # --- calls

    def _openat(self, call: Call) -> None:
        path = self._path(call)
        if path is None or not re.search("O_WRONLY|O_RDWR", call.arguments):
            return
        parent, name = self._parent(path)
        node = parent.names.get(name)
        if node is None:
            node = parent.names[name] = _File(b"", b"")
        assert isinstance(node, _File)
        if "O_TRUNC" in call.arguments:
            node.content = b""
        self._open[str(call.result)] = (node, 0, "O_APPEND" in call.arguments)

    def _write(self, call: Call) -> None:
        opened = self._opened(call)
        if opened is None:
            return
        number, (node, offset, appends) = opened
        assert call.result is not None
        data = _text(call.arguments)[: call.result]
        at = len(node.content) if appends else offset
        node.content = node.content[:at].ljust(at, b"\0") + data + node.content[at + len(data) :]
        self._open[number] = (node, at + len(data), appends)

    def _pwrite64(self, call: Call) -> None:
        opened = self._opened(call)
        if opened is not None:
            node, at, data = opened[1][0], int(call.arguments.rsplit(",", 1)[1]), _text(call.arguments)
            node.content = node.content[:at].ljust(at, b"\0") + data + node.content[at + len(data) :]

    def _ftruncate(self, call: Call) -> None:
        opened = self._opened(call)
        if opened is not None:
            size = int(call.arguments.rsplit(",", 1)[1])
            opened[1][0].content = opened[1][0].content[:size].ljust(size, b"\0")

    def _fsync(self, call: Call) -> None:
        found = _DESCRIPTOR.match(call.arguments)
        path = self._inside(found[2]) if found else None
        if path is None:
            return
        node = self._node(path)
        opened = self._opened(call)
        if isinstance(node, _Directory):
            node.durable = dict(node.names)
        elif opened is not None:
            opened[1][0].durable = opened[1][0].content

    _fdatasync = _fsync

    def _rename(self, call: Call) -> None:
        old, new = (self._inside(_unquoted(each)) for each in _PATH.findall(call.arguments)[:2])
        if old is not None and new is not None:
            (from_, name), (to, new_name) = self._parent(old), self._parent(new)
            to.names[new_name] = from_.names.pop(name)

    def _mkdir(self, call: Call) -> None:
        path = self._path(call)
        if path is not None:
            parent, name = self._parent(path)
            parent.names[name] = _Directory()

    def _unlink(self, call: Call) -> None:
        path = self._path(call)
        if path is not None:
            parent, name = self._parent(path)
            del parent.names[name]

    # --- paths and descriptors

    def _path(self, call: Call) -> str | None:
        found = _PATH.search(call.arguments)
        return self._inside(_unquoted(found[1])) if found else None

    def _inside(self, path: str) -> str | None:
        prefix = f"{self._root}/"
        return path[len(prefix) :] if path.startswith(prefix) else "" if path == str(self._root) else None

    def _node(self, path: str) -> _File | _Directory:
        node: _File | _Directory = self._top
        for part in filter(None, path.split("/")):
            assert isinstance(node, _Directory)
            node = node.names[part]
        return node

    def _parent(self, path: str) -> tuple[_Directory, str]:
        directory, _, name = path.rpartition("/")
        parent = self._node(directory)
        assert isinstance(parent, _Directory)
        return parent, name

    def _opened(self, call: Call) -> tuple[str, tuple[_File, int, bool]] | None:
        found = _DESCRIPTOR.match(call.arguments)
        if found is None or self._inside(found[2]) is None or found[1] not in self._open:
            return None
        return found[1], self._open[found[1]]


def _text(arguments: str) -> bytes:
    found = _PATH.search(arguments)
    assert found is not None
    return _bytes(found[1])


def _bytes(quoted: str) -> bytes:
    """What strace printed with C's escapes, octal ones among them, as bytes."""
    value = ast.literal_eval(f'b"{quoted}"')
    assert isinstance(value, bytes)
    return value


def _unquoted(quoted: str) -> str:
    return _bytes(quoted).decode("utf-8", "surrogateescape")


def _read(directory: Path) -> _Directory:
    names: dict[str, _File | _Directory] = {}
    for path in directory.iterdir():
        if path.is_symlink():
            continue
        if path.is_dir():
            names[path.name] = _read(path)
        else:
            content = path.read_bytes()
            names[path.name] = _File(content, content)
    return _Directory(names, dict(names))


def _write(path: Path, directory: _Directory, image: Image) -> None:
    names = directory.durable if image is Image.NOTHING else directory.names
    path.mkdir(exist_ok=True)
    for there in path.iterdir():
        if there.name not in names and not there.is_symlink():
            shutil.rmtree(there) if there.is_dir() else there.unlink()
    for name, node in names.items():
        if isinstance(node, _Directory):
            _write(path / name, node, image)
            continue
        content = node.image(image)
        if not (path / name).exists() or (path / name).read_bytes() != content:
            (path / name).write_bytes(content)
