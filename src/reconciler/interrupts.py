"""SIGINT, SIGTERM and SIGHUP as KeyboardInterrupt, between two actions rather than in the middle of one.

The first signal waits for the action under way, so that what was begun is written down; a second one ends the process at once,
which costs no more than a kill does. What whoever started the command chose to ignore (nohup, a shell's ``&``) stays ignored.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

INTERRUPTED = 130
"""The exit code of an interrupted command."""

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_shields = 0
_is_due = False


def install() -> None:
    """From now on signals are received as this module says. For the main thread of a process of our own."""
    for number in _NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _receive)


def _receive(number: int, frame: FrameType | None) -> None:
    global _is_due
    if _is_due:
        os._exit(INTERRUPTED)
    _is_due = True
    if not _shields:
        raise KeyboardInterrupt
    with suppress(OSError):
        os.write(2, b"reconcile: stopping once the action under way is over; a second signal stops at once\n")


@contextmanager
def shielded() -> Iterator[None]:
    """What is begun in this block is ended before a signal interrupts: KeyboardInterrupt comes on leaving the outermost one."""
    global _shields
    _shields += 1
    try:
        yield
    finally:
        _shields -= 1
        if _is_due and not _shields:
            raise KeyboardInterrupt
