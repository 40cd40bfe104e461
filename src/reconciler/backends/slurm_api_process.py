"""The worker process that speaks to Slurm through pyslurm, from this side: started when needed, bounded in time, never trusted.

Whatever becomes of it, a call here returns or raises within its time limit. It never kills a worker in the midst of a submission:
the worker ends itself after its time.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reconciler.backends import slurm_api_worker
from reconciler.backends.slurm_api_worker import read_exactly

_START_SECONDS = 30.0
_PATIENCE = 10.0  # s, beyond the worker's own limit


class WorkerFailed(Exception):
    """The worker does not work (any more); nothing can be said of the request that it had. The message says what was seen."""


class SlurmRefused(Exception):
    """Slurm answered with an error. ``number`` is Slurm's errno (slurm_errno.h), -1 where pyslurm tells none."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class NothingSent(Exception):
    """pyslurm failed before Slurm was asked anything."""


class Worker:
    """One worker process; ``start`` before any ``ask``."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._connection: socket.socket | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the worker
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """pyslurm's version. Raises WorkerFailed where it cannot be imported here."""
        here, there = socket.socketpair()
        with there:
            there.set_inheritable(True)
            self._process = subprocess.Popen(
                [sys.executable, str(Path(slurm_api_worker.__file__)), str(there.fileno())],
                env=self._environment,
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                start_new_session=True,  # a submission outlives a Ctrl-C at the terminal
            )
        self._connection = here
        return str(self._receive(_START_SECONDS)["value"])

    def ask(self, call: str, seconds: float, descriptors: Sequence[int] = (), **arguments: Any) -> Any:
        """The value of a call that may take so long. ``descriptors`` stay open in the worker until it has answered.

        Raises SlurmRefused, NothingSent, or WorkerFailed.
        """
        assert self._connection is not None
        body = json.dumps({"call": call, "seconds": seconds, "arguments": arguments}).encode()
        try:
            self._connection.settimeout(_PATIENCE)
            socket.send_fds(self._connection, [len(body).to_bytes(8, "big")], list(descriptors))
            self._connection.sendall(body)
        except OSError as error:
            raise WorkerFailed(self._last_words(str(error))) from error
        answer = self._receive(seconds + _PATIENCE)
        if "errno" in answer:
            raise SlurmRefused(answer["errno"], answer["message"])
        if "unsent" in answer:
            raise NothingSent(answer["unsent"])
        return answer["value"]

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self._connection is not None
        self._connection.settimeout(seconds)
        try:
            size = read_exactly(self._connection, 8)
            body = read_exactly(self._connection, int.from_bytes(size, "big")) if len(size) == 8 else b""
            return dict(json.loads(body))
        except TimeoutError as error:
            raise WorkerFailed(f"no answer within {seconds:.0f} s") from error
        except (OSError, ValueError) as error:
            raise WorkerFailed(self._last_words("it ended without an answer")) from error

    def _last_words(self, otherwise: str) -> str:
        """What the worker's process said last: libslurm tells its troubles on stderr before it ends the interpreter."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else otherwise
