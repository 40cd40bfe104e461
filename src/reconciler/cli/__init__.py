"""The ``reconcile`` command: words in, a pass, words and an exit code out. It decides nothing."""

from __future__ import annotations

import sys
import traceback

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
        error.show()
        return 2
    except ReconcileError as error:
        _complain(error, quiet="--quiet" in arguments)
        return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 70)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception:  # noqa: BLE001 - whatever was not foreseen is a bug, and must not look like "something is pending" (1)
        traceback.print_exc()
        print("reconcile: this is a bug in reconcile; the ledger tells how far the pass came", file=sys.stderr)
        return 70
    return int(code or 0)


def _complain(error: ReconcileError, quiet: bool) -> None:
    if quiet and isinstance(error, AnotherPass):
        return
    for line in str(error).splitlines():
        print(f"reconcile: {plain(line)}", file=sys.stderr)
