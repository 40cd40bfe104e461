"""The package and what it needs, as wheels for the Python of another machine.

They are fetched by this machine's own pip, which knows where the packages come from here; nothing of its configuration has to be
known inside a Debian root.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def gather(project: Path, python: str, into: Path) -> None:
    """The project's wheel and those of its dependencies, for a Python such as ``3.13``. Raises CalledProcessError."""
    subprocess.run([*_PIP, "wheel", "--no-deps", "--wheel-dir", into, project], check=True)
    # For another Python than its own, pip takes wheels only.
    options = ["--only-binary=:all:", f"--python-version={python}", "--dest", into]
    subprocess.run([*_PIP, "download", *options, *into.glob("*.whl")], check=True)


def fetch_sdist(project: str, version: str, into: Path) -> Path:
    """A release's source distribution. Raises CalledProcessError."""
    into.mkdir(parents=True, exist_ok=True)
    # Of this project alone: with ":all:" pip would compile what it needs to ask the sdist for its metadata, Cython among it.
    options = ["--no-deps", f"--no-binary={project}", "--dest", into]
    subprocess.run([*_PIP, "download", *options, f"{project}=={version}"], check=True)
    (archive,) = into.glob("*.tar.gz")
    return archive
