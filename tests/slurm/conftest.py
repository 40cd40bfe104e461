"""What the tests on a real cluster share: the cluster, two ordinary users, and the package as they would install it.

Environment variables choose what is tested:

    RECONCILE_TEST_SLURM=1       these tests run at all
    RECONCILE_TEST_SLURM_ROOT    whose Slurm: empty for this machine's own; a Debian suite (``trixie``, ``testing``) to have it in a
                                 directory made for it and removed; the path of a directory that debian_root.py made
    RECONCILE_TEST_BACKEND       ``cli`` (the default) or ``pyslurm``, which is then built for that Slurm
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import Cluster, running_cluster
from debian_root import debian_root
from machine import PYTHON, Machine, ThisMachine, output_of, python_release
from pyslurm_on_24_11.build import pyslurm_wheel
from wheels import gather

REPOSITORY = Path(__file__).resolve().parents[2]
BACKEND = os.environ.get("RECONCILE_TEST_BACKEND") or "cli"
_OURS = f"rec{os.getpid()}"  # users of this session's own: several may run at a time on one machine


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """These tests run only where they were asked for; then they must run."""
    if not collection_path.name.startswith("test_"):
        return None
    if os.environ.get("RECONCILE_TEST_SLURM") != "1":
        return True
    return True if BACKEND != "pyslurm" and "pyslurm" in collection_path.name else None


def pytest_configure() -> None:
    """A time limit ends a run with SIGTERM: then too the daemons are stopped and the directories removed."""
    if os.environ.get("RECONCILE_TEST_SLURM") == "1":
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@dataclass(frozen=True)
class Person:
    """An ordinary user at a login node of the cluster."""

    name: str
    home: Path
    cluster: Cluster
    install: Path
    backend: str = BACKEND

    def run(self, *command: object, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {
            "HOME": str(self.home), "USER": self.name, "LOGNAME": self.name, "LANG": "C.UTF-8",
            **self.cluster.environment, **environment,
        }  # fmt: skip
        variables["PATH"] = f"{self.install / 'venv/bin'}:{variables['PATH']}"
        at_home = ["env", f"--chdir={self.home}"]  # there, not here: entering a root leads to its top
        drop = [
            "setpriv",
            f"--reuid={self.name}",
            f"--regid={pwd.getpwnam(self.name).pw_gid}",
            "--init-groups",
            "--inh-caps=-all",
        ]
        return subprocess.run(
            self.cluster.machine.words(*at_home, *drop, *command),
            env=variables,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )

    def reconcile(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        done = self.run(self.install / "venv/bin/reconcile", *arguments, RECONCILE_BACKEND=self.backend, **environment)
        assert "pyslurm does not work" not in done.stderr, done.stderr  # or the commands would be what is tested
        return done

    def python(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A piece of Python of this user's, with the package to import."""
        return self.run(self.install / "venv/bin/python", "-c", code, **environment)

    def new_experiment(self, name: str, *options: object) -> Path:
        """An experiment of this user's, in a lab directory of its own."""
        made = self.run(self.install / "venv/bin/python", self.install / "examples/new_experiment.py", self.home / name, *options)
        assert made.returncode == 0, made.stderr
        return Path(made.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A directory that ordinary users may enter; gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="reconcile-slurm-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def machine(place: Path) -> Iterator[Machine]:
    """Whose Slurm and Python the cluster and its users have."""
    wanted = os.environ.get("RECONCILE_TEST_SLURM_ROOT")
    if not wanted:
        yield ThisMachine()
        return
    with debian_root(wanted, shared=place) as root:
        yield root


@pytest.fixture(scope="session")
def cluster(place: Path, machine: Machine) -> Iterator[Cluster]:
    with running_cluster(place / "cluster", machine) as started:
        yield started


@pytest.fixture(scope="session")
def bare_cluster(place: Path, machine: Machine, cluster: Cluster) -> Iterator[Cluster]:
    """A cluster without any accounting; it shares the first one's munge."""
    with running_cluster(place / "bare", machine, has_accounting=False) as started:
        yield started


@pytest.fixture(scope="session")
def install(place: Path, machine: Machine) -> Path:
    """The package in a virtual environment that ordinary users can run, and the examples beside it."""
    target = place / "install"
    gather(REPOSITORY, python_release(machine), place / "wheels")
    wanted = ["reconciler"]
    if BACKEND == "pyslurm":
        shutil.copy(pyslurm_wheel(machine, place / "pyslurm"), place / "wheels")
        wanted.append("pyslurm")
    output_of(machine, PYTHON, "-m", "venv", target / "venv")
    pip = [target / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    output_of(machine, *pip, "--no-index", "--find-links", place / "wheels", *wanted)
    shutil.copytree(REPOSITORY / "examples", target / "examples")
    subprocess.run(["chmod", "-R", "a+rX", target], check=True)
    return target


def _account(name: str, place: Path, machine: Machine) -> Iterator[Path]:
    home = place / name
    home.mkdir()
    made = subprocess.run(["useradd", "--no-create-home", f"--home-dir={home}", name], capture_output=True, check=False)
    shutil.chown(home, name, name)
    machine.adopt(name)
    yield home
    if made.returncode == 0:
        _remove_account(name)


def _remove_account(name: str) -> None:
    """Jobs may still run as this user, and userdel refuses then."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, KeyError):  # gone by now, or of no user that is listed
            if process.owner() == name:
                os.kill(int(process.name), signal.SIGKILL)
    end = time.monotonic() + 20
    while (removed := subprocess.run(["userdel", name], capture_output=True, text=True, check=False)).returncode:
        assert time.monotonic() < end, removed.stderr
        time.sleep(0.2)


@pytest.fixture(scope="session")
def first_home(place: Path, machine: Machine) -> Iterator[Path]:
    yield from _account(f"{_OURS}a", place, machine)


@pytest.fixture(scope="session")
def second_home(place: Path, machine: Machine) -> Iterator[Path]:
    yield from _account(f"{_OURS}b", place, machine)


@pytest.fixture
def person(cluster: Cluster, install: Path, first_home: Path) -> Person:
    return Person(first_home.name, first_home, cluster, install)


@pytest.fixture
def colleague(cluster: Cluster, install: Path, second_home: Path) -> Person:
    return Person(second_home.name, second_home, cluster, install)


@pytest.fixture
def bare_person(bare_cluster: Cluster, install: Path, first_home: Path) -> Person:
    return Person(first_home.name, first_home, bare_cluster, install)
