"""The ``reconcile`` command: words in, a pass, words and an exit code out. It decides nothing."""

from __future__ import annotations

import io
import sys
import traceback
from contextlib import suppress

import click

from reconciler.errors import (
    AnotherPass,
    ClusterUnreachable,
    DiskUnreadable,
    InvalidExperiment,
    PermanentError,
    ReconcileError,
    TemporaryError,
    UsageError,
)
from reconciler.interrupts import INTERRUPTED
from reconciler.render import plain

_EXIT_CODES: tuple[tuple[type[ReconcileError], int], ...] = (
    (InvalidExperiment, 2),
    (UsageError, 2),
    (AnotherPass, 5),
    (ClusterUnreachable, 3),
    (DiskUnreadable, 3),
    (TemporaryError, 3),
    (PermanentError, 2),
)


def prepare_streams() -> None:
    """A name that this terminal's encoding lacks is no reason to fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run(arguments: list[str]) -> int:
    """The exit code of one command line; every error is one sentence on stderr."""
    from reconciler.cli.commands import reconcile

    try:
        code = reconcile.main(arguments, prog_name="reconcile", standalone_mode=False)
    except click.exceptions.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except click.ClickException as error:
        _complain_of_usage(error)
        return 2
    except ReconcileError as error:
        _complain(error, quiet="--quiet" in arguments)
        return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 70)
    except (BrokenPipeError, SystemExit):  # click answers a reader that is gone with sys.exit(1), which here means "pending"
        sys.stderr.close()
        return 0
    except OSError as error:
        _say(f"reconcile: {plain(str(error))}")
        return 3
    except Exception:  # noqa: BLE001 - whatever was not foreseen is a bug, and must not look like "something is pending" (1)
        for line in traceback.format_exc().splitlines():
            _say(plain(line))
        _say("reconcile: this is a bug in reconcile; the ledger tells how far the pass came")
        return 70
    return _flushed(int(code or 0))


def _flushed(code: int) -> int:
    """The exit code once the output is out; 3 where it cannot be written, a full disk being the likeliest cause."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stderr.close()
    except OSError as error:
        _say(f"reconcile: the output cannot be written: {error.strerror}")
        code = 3
    return code


def _say(line: str) -> None:
    """A line for whoever listens; where nobody can be told, the exit code has to do."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _complain_of_usage(error: click.ClickException) -> None:
    """As click itself does, but for what a shell's glob may have put on the command line."""
    shown = io.StringIO()
    error.show(file=shown)
    for line in shown.getvalue().splitlines():
        _say(plain(line))


def _complain(error: ReconcileError, quiet: bool) -> None:
    if quiet and isinstance(error, AnotherPass):
        return
    for line in str(error).splitlines():
        _say(f"reconcile: {plain(line)}")
