"""Kill a pass at any of its effects: every call that changes the world, counted as it is entered.

An effect is a write, a sync, a file opened for writing, a rename, a new directory, a removal, or a request to the cluster that changes
something. A killed pass has no further effect, not even in its ``finally`` blocks, as after SIGKILL.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Killed(BaseException):
    """The pass is dead. No product code may catch it."""


@dataclass
class Mortality:
    """A pass under which ``root`` is watched: it dies on entering effect number ``dies_at``, and ``intrusion`` happens on entering number
    ``intrudes_at`` (both from 0, None for never)."""

    root: Path
    dies_at: int | None = None
    intrudes_at: int | None = None
    intrusion: Callable[[], None] = lambda: None
    entered: int = 0
    is_dead: bool = False

    def enter(self) -> None:
        """One effect begins."""
        if self.is_dead:
            raise Killed
        number, self.entered = self.entered, self.entered + 1
        if number == self.intrudes_at:
            with _suspended():
                self.intrusion()
        if number == self.dies_at:
            self.is_dead = True
            raise Killed


# Each with the place, among its arguments, of the descriptor that a path may be relative to.
_CHANGES = {"os.rename": 2, "os.mkdir": 2, "os.remove": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2, "os.truncate": None}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_current: Mortality | None = None
_really_write, _really_sync = os.write, os.fsync


@contextmanager
def watched(mortality: Mortality) -> Iterator[Mortality]:
    """Everything done in the block counts, and may be the last thing done."""
    global _current
    before, _current = _current, mortality
    os.write, os.fsync = _write, _sync
    try:
        yield mortality
    finally:
        _current = before
        os.write, os.fsync = _really_write, _really_sync


@contextmanager
def _suspended() -> Iterator[None]:
    global _current
    before, _current = _current, None
    try:
        yield
    finally:
        _current = before


def _write(descriptor: int, content: Any) -> int:
    """A pass killed in a write leaves a part of it."""
    if _current is not None:
        try:
            _current.enter()
        except Killed:
            if _current.entered - 1 == _current.dies_at:
                _really_write(descriptor, bytes(content)[: len(content) // 2])
            raise
    return _really_write(descriptor, content)


def _sync(descriptor: int) -> None:
    if _current is not None:
        _current.enter()
    _really_sync(descriptor)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _current is None:
        return
    opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
    if (opens or event in _CHANGES) and (str(arguments[0]).startswith(str(_current.root)) or _is_relative(event, arguments)):
        _current.enter()


def _is_relative(event: str, arguments: tuple[Any, ...]) -> bool:
    """True for a path from an open directory: those that the product opens are the experiment's own."""
    place = _CHANGES.get(event)
    return place is not None and arguments[place] >= 0


sys.addaudithook(_audit)
