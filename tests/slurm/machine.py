"""Where a cluster's programs run: on this machine as it is, or inside a Debian root on it (debian_root.py).

Either way they share this machine's processes, network and clock, and the tests' directory under one path.
"""

from __future__ import annotations

import re
import subprocess
from typing import Protocol

PYTHON = "/usr/bin/python3"  # one that ordinary users may run


class Machine(Protocol):
    """Something that runs programs of one Debian release."""

    def words(self, *command: object) -> list[str]:
        """The command line, for this machine, that runs ``command`` there; the process it starts becomes the command."""
        ...

    def adopt(self, user: str) -> None:
        """Make a user of this machine known there, under the same id."""
        ...


class ThisMachine:
    """The machine that the tests run on, with the Slurm that is installed on it."""

    def words(self, *command: object) -> list[str]:
        return [str(word) for word in command]

    def adopt(self, user: str) -> None:
        """Known already."""


def output_of(machine: Machine, *command: object) -> str:
    """What a command prints there. Raises CalledProcessError."""
    words = machine.words(*command)
    return subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True).stdout


def slurm_release(machine: Machine) -> tuple[int, int]:
    """(24, 11) for Slurm 24.11.5."""
    found = re.search(r"(\d+)\.(\d+)", output_of(machine, "/usr/sbin/slurmctld", "-V"))
    assert found
    return int(found[1]), int(found[2])


def python_release(machine: Machine) -> str:
    """``3.13`` for the Python that the machine's users have."""
    return output_of(machine, PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()


def install_packages(machine: Machine, *names: str) -> None:
    """Debian packages, by apt-get; no service is started where policy-rc.d forbids it. Raises CalledProcessError."""
    options = ["-y", "-qq", "-o", "Dpkg::Use-Pty=0", "--no-install-recommends"]
    output_of(machine, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", *options, *names)
