"""The simulated cluster through each of its faces, for the agreement suite: its clock is virtual, its user is who runs the tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fake_slurm.backend import FakeBackend
from fake_slurm.client import RemoteWire, user_name
from fake_slurm.cluster import Cluster
from fake_slurm.commands import COMMANDS, run
from fake_slurm.errors import SlurmError
from fake_slurm.faults import Fault, Kind
from fake_slurm.pretending import work_of
from fake_slurm.server import Server
from fake_slurm.session import Session
from fake_slurm.site import Site
from fake_slurm.wire import Wire
from reconciler.backends.slurm_api import SlurmApi
from reconciler.backends.slurm_cli import SlurmCli
from reconciler.ports import Backend

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
UID, USER = os.getuid(), user_name(os.getuid())
_REQUESTS = ("submit", "queue", "cancel", "hold", "release", "requeue", "config")


@dataclass
class FakeFace:
    """A simulated cluster and one way to it."""

    backend: Backend
    directory: Path
    server: Server
    patience: float = 200.0

    def person(self, verb: str, job: str) -> bool:
        return self._do(verb, job, UID)

    def admin(self, verb: str, job: str) -> None:
        self._do(verb, job, None)

    def now(self) -> float:
        return self.server.cluster.now

    def let(self, seconds: float) -> None:
        with self.server.lock:
            self.server.cluster.advance(seconds)

    def stop(self, what: str) -> None:
        if what == "database":
            self.server.cluster.accounting.stop()
        for call in _REQUESTS if what == "controller" else ():
            self.server.faults.inject(Fault(call, Kind.DOWN, times=None))

    def _do(self, verb: str, job: str, uid: int | None) -> bool:
        cluster = self.server.cluster
        with self.server.lock:
            try:
                if verb == "requeuehold":
                    cluster.requeue(int(job), uid, hold=True)
                else:
                    getattr(cluster, verb)(int(job), uid)
            except SlurmError:
                return False
        return True


@contextlib.contextmanager
def fake_face(name: str, directory: Path, **site: Any) -> Iterator[FakeFace]:
    """A new cluster through ``in process``, ``cli``, ``cli on PATH`` or ``pyslurm``. Nobody is its administrator but the test."""
    options = {"min_job_age": 5.0, "admins": frozenset[int](), **site}
    with tempfile.TemporaryDirectory(prefix="fs-") as place:
        server = Server(Cluster(Site(**options), 2_000_000_000.0, work_of), Path(place) / "socket")
        server.start()
        environment = {**os.environ, "FAKE_SLURM": str(server.path)}
        try:
            yield FakeFace(_backend(name, server, environment), directory, server)
        finally:
            server.stop()


def _backend(name: str, server: Server, environment: Mapping[str, str]) -> Backend:
    if name == "in process":
        return FakeBackend(Wire(server.cluster, USER, UID, server.faults))
    if name == "pyslurm":
        path = {"PYTHONPATH": f"{FIXTURES / 'pyslurm_face'}:{FIXTURES}"}
        return SlurmApi(SlurmCli(environment), _complain, {**environment, **path})
    if name == "cli on PATH":
        return SlurmCli({**environment, "PATH": f"{FIXTURES / 'fake_slurm/bin'}:{os.environ['PATH']}"})
    return SlurmCli(environment)


def _complain(text: str) -> None:
    raise AssertionError(text)


class CommandsHere:
    """Stands in for ``subprocess`` in the cli backend: Slurm's commands run in this process, which saves starting hundreds."""

    DEVNULL, PIPE = subprocess.DEVNULL, subprocess.PIPE
    CompletedProcess, TimeoutExpired = subprocess.CompletedProcess, subprocess.TimeoutExpired

    def run(self, command: list[str], *, env: Mapping[str, str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        code, output, errors = _outcome(command, env, str(Path.cwd()))
        return subprocess.CompletedProcess(command, code, output, errors)

    def Popen(self, command: list[str], *, env: Mapping[str, str], cwd: Path, **_: Any) -> _Done:
        return _Done(*_outcome(command, env, str(cwd)))


class _Done:
    """A process that is over; what it said waits in its pipes."""

    def __init__(self, returncode: int, output: bytes, errors: bytes) -> None:
        self.returncode = returncode
        self.stdout, self.stderr = _pipe_with(output), _pipe_with(errors)

    def wait(self, timeout: float | None = None) -> int:
        return self.returncode

    def poll(self) -> int:
        return self.returncode


def _pipe_with(content: bytes) -> IO[bytes]:
    reads, writes = os.pipe()
    with os.fdopen(writes, "wb") as pipe:
        pipe.write(content)
    return os.fdopen(reads, "rb")


def _outcome(command: list[str], environment: Mapping[str, str], directory: str) -> tuple[int, bytes, bytes]:
    words = command[next(number for number, word in enumerate(command) if word in COMMANDS) :]
    session = Session(RemoteWire(environment["FAKE_SLURM"], USER, UID), environment, directory)
    code = run(words[0], words[1:], session)
    texts = (session.printed(), "".join(session.errors))
    return code, *(text.encode("utf-8", "surrogateescape") for text in texts)  # type: ignore[return-value]
