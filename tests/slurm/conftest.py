"""What the tests on a real cluster share: the cluster, two ordinary users, and the package as they would install it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import Cluster, running_cluster

REPOSITORY = Path(__file__).resolve().parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"  # one that ordinary users may run


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """These tests run only where they were asked for; then they must run."""
    return True if os.environ.get("RECONCILE_TEST_SLURM") != "1" and collection_path.name.startswith("test_") else None


@dataclass(frozen=True)
class Person:
    """An ordinary user at a login node of the cluster."""

    name: str
    home: Path
    cluster: Cluster
    install: Path

    def run(self, *command: object, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {
            "HOME": str(self.home), "USER": self.name, "LOGNAME": self.name, "LANG": "C.UTF-8",
            **self.cluster.environment, **environment,
        }  # fmt: skip
        variables["PATH"] = f"{self.install / 'venv/bin'}:{variables['PATH']}"
        drop = [
            "setpriv",
            f"--reuid={self.name}",
            f"--regid={pwd.getpwnam(self.name).pw_gid}",
            "--init-groups",
            "--inh-caps=-all",
        ]
        words = [*drop, *map(str, command)]
        return subprocess.run(
            words,
            env=variables,
            cwd=self.home,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )

    def reconcile(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.install / "venv/bin/reconcile", *arguments, RECONCILE_BACKEND="cli", **environment)

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
def cluster(place: Path) -> Iterator[Cluster]:
    with running_cluster(place / "cluster") as started:
        yield started


@pytest.fixture(scope="session")
def bare_cluster(place: Path, cluster: Cluster) -> Iterator[Cluster]:
    """A cluster without any accounting; it shares the first one's munge."""
    with running_cluster(place / "bare", has_accounting=False) as started:
        yield started


@pytest.fixture(scope="session")
def install(place: Path) -> Path:
    """The package in a virtual environment that ordinary users can run, and the examples beside it."""
    target = place / "install"
    subprocess.run([SYSTEM_PYTHON, "-m", "venv", target / "venv"], check=True)
    pip = [target / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, str(REPOSITORY)], check=True)
    shutil.copytree(REPOSITORY / "examples", target / "examples")
    subprocess.run(["chmod", "-R", "a+rX", target], check=True)
    return target


def _account(name: str, place: Path) -> Iterator[Path]:
    home = place / name
    home.mkdir()
    made = subprocess.run(["useradd", "--no-create-home", f"--home-dir={home}", name], capture_output=True, check=False)
    shutil.chown(home, name, name)
    yield home
    if made.returncode == 0:
        subprocess.run(["userdel", name], capture_output=True, check=False)


@pytest.fixture(scope="session")
def first_home(place: Path) -> Iterator[Path]:
    yield from _account("rec1", place)


@pytest.fixture(scope="session")
def second_home(place: Path) -> Iterator[Path]:
    yield from _account("rec2", place)


@pytest.fixture
def person(cluster: Cluster, install: Path, first_home: Path) -> Person:
    return Person("rec1", first_home, cluster, install)


@pytest.fixture
def colleague(cluster: Cluster, install: Path, second_home: Path) -> Person:
    return Person("rec2", second_home, cluster, install)


@pytest.fixture
def bare_person(bare_cluster: Cluster, install: Path, first_home: Path) -> Person:
    return Person("rec1", first_home, bare_cluster, install)
