"""The ledger: ``.reconcile/ledger.jsonl``, one event a line, appended with fsync before it is relied upon.

A torn last line is what a crash leaves and is dropped; any other damage stops with LedgerDamaged and nothing is changed.
It never rewrites what is written, except for cutting off that torn line. Beside it, ``claims/`` has an empty file for each
attempt that a pass set out to submit: where locks lie, they tell two passes apart (docs/decisions/0009).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reconciler.errors import DiskUnreadable, LedgerDamaged
from reconciler.events import Event, check_own
from reconciler.files import append_line, create_once, read_file
from reconciler.fold import MalformedEvent, fold
from reconciler.memory import Memory

DIRECTORY = ".reconcile"
LARGEST = 64 << 20  # bytes; some hundred thousand events


class Ledger:
    """The events of one experiment, on disk. Reading creates nothing; appending needs the pass's lock."""

    def __init__(self, experiment: Path, clock: Callable[[], float]) -> None:
        self.path = experiment / DIRECTORY / "ledger.jsonl"
        self._claims = experiment / DIRECTORY / "claims"
        self._clock = clock
        self._mended = False
        self._size = 0

    def events(self) -> list[Event]:
        """Every whole event, oldest first; empty where no ledger was ever written. Raises LedgerDamaged, DiskUnreadable."""
        return list(self._events())

    def _events(self) -> Iterator[Event]:
        content = self._content()
        self._size = len(content)
        lines = content.split(b"\n")
        return (self._event(line, number) for number, line in enumerate(lines[:-1], start=1))

    def memory(self) -> Memory:
        """What the events amount to. Raises LedgerDamaged, DiskUnreadable."""
        try:
            return fold(self._events())
        except MalformedEvent as error:
            raise self._damaged(error.order) from error

    def append(self, event: str, **facts: Any) -> None:
        """One event, safely on disk when this returns. Raises ValueError, and writes nothing, where it is not in the form of its
        kind: no later pass could read the ledger."""
        whole = {"at": self._clock(), "event": event, **facts}
        check_own(whole)
        if not self._mended:
            self._cut_torn_line()
        text = json.dumps(whole, ensure_ascii=False, separators=(",", ":"))
        # A byte that is no UTF-8 (of a path, of a message) becomes JSON's escape of a lone surrogate, and comes back as it was.
        line = text.encode("utf-8", "backslashreplace") + b"\n"
        self._mended = False  # where this fails, a part of the line may stay
        append_line(self.path, line)
        self._mended = True
        self._size += len(line)

    def claim(self, attempt: str) -> bool:
        """Whether this pass alone may submit an attempt (its token): False where any other ever set out to."""
        return create_once(self._claims / attempt)

    def is_left_alone(self) -> bool:
        """True while nobody else has written since this one was read. Raises DiskUnreadable."""
        try:
            return len(read_file(self.path, self._size and self._size - 1)) == min(self._size, 1)
        except FileNotFoundError:
            return self._size == 0
        except OSError as error:
            raise DiskUnreadable(f"{self.path}: {error.strerror}") from error

    def _content(self) -> bytes:
        try:
            content = read_file(self.path, 0, LARGEST + 1)
        except (FileNotFoundError, NotADirectoryError):
            return b""
        except OSError as error:
            raise DiskUnreadable(f"{self.path}: {error.strerror}") from error
        if len(content) > LARGEST:
            raise LedgerDamaged(f"{self.path}: is larger than {LARGEST >> 20} MiB, which no experiment of ours fills")
        return content

    def _event(self, line: bytes, number: int) -> Event:
        try:
            event = json.loads(line)
            if isinstance(event["event"], str) and isinstance(event["at"], (int, float)):
                return dict(event)
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise self._damaged(number)

    def _damaged(self, number: int) -> LedgerDamaged:
        return LedgerDamaged(
            f"{self.path}:{number}: not an event that reconcile wrote; restore this file from a backup, or, while no pass is "
            f"under way on any host, move it and {self._claims} away to start without memory: outputs and live jobs are "
            f"recognised without it; what was said (hold, pause, accept, free), and what was verified and is gone since, is not"
        )

    def _cut_torn_line(self) -> None:
        """Drop what a killed pass left of its last line, so that the next event begins on a line of its own."""
        content = self._content()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
            self._size = min(self._size, whole)
        self._mended = True
