"""One pass at a time: an flock on ``.reconcile/lock``, which the kernel frees when its last holder is gone.

flock reaches between the hosts of a shared filesystem (NFS since Linux 2.6.12, GPFS, Lustre with ``-o flock``; man 2 flock),
and a submission that outlives its pass keeps it through the inherited descriptor. The text in the file only tells people
who holds it; it decides nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reconciler.errors import AnotherPass, DiskUnreadable
from reconciler.files import make_directory, open_new
from reconciler.ledger import DIRECTORY


@contextmanager
def pass_lock(experiment: Path) -> Iterator[int]:
    """Hold the experiment's lock; yields the descriptor that submissions inherit. Raises AnotherPass at once when it is held."""
    path = experiment / DIRECTORY / "lock"
    try:
        make_directory(path.parent)
        # A link would have what it leads to emptied and written over; opening a FIFO for both directions never blocks.
        descriptor = open_new(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        raise DiskUnreadable(f"{path}: cannot be opened for locking: {error.strerror}") from error
    try:
        _take(descriptor, path)
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise AnotherPass(f"another pass holds {path}{_owner(descriptor)}") from error
    except OSError as error:
        raise DiskUnreadable(f"{path}: this filesystem grants no locks ({error.strerror}); reconcile needs flock here") from error
    with suppress(OSError):  # for people alone
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)


def _owner(descriptor: int) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        owner = json.loads(os.pread(descriptor, 1000, 0))
        return f" (process {owner['pid']} on {owner['host']}, or a submission that it began)"
    return ""
