"""pyslurm for a machine with Slurm 24.11: PyPI's 25.11.2, which is for Slurm 25.11, adapted (edits.py, older_slurm.h) and built there.

PyPI has no pyslurm for the release that Debian 13 ships, and pyslurm has to be compiled against the Slurm that it speaks to.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
from pathlib import Path

from machine import Machine, install_packages, output_of, slurm_release
from wheels import fetch_sdist

from . import edits

_VERSION = "25.11.2"
_BUILD_PACKAGES = (
    "gcc", "libc6-dev", "python3-dev", "libslurm-dev", "cython3", "python3-setuptools", "python3-wheel", "python3-packaging",
    "python3-pip",
)  # fmt: skip
# A root that is kept keeps its wheel, which took a minute of compiling.
_KEPT = "/opt/pyslurm-wheel"
# The warnings are Cython's own C meeting older declarations, in code for steps and nodes that is not used here; gcc 14 would make
# two of them errors. The library is Debian's, in a directory that setup.py looks for below this one.
_BUILD = """\
set -e
export CFLAGS="-include $1/older_slurm.h -O1 -w -Wno-error=implicit-function-declaration -Wno-error=int-conversion"
export SLURM_LIB_DIR="$(dirname "$(dirname "$(find /usr/lib -name libslurmfull.so | head -n 1)")")" PYSLURM_BUILD_JOBS=2
cd "$1/source"
python3 -m pip wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir "$2" .
"""


def pyslurm_wheel(machine: Machine, place: Path) -> Path:
    """The wheel, copied into ``place``, a directory that the machine shares. Raises CalledProcessError, ValueError."""
    if slurm_release(machine) != (24, 11):
        raise ValueError(f"pyslurm is adapted to Slurm 24.11 only, and this is {slurm_release(machine)}")
    place.mkdir(parents=True, exist_ok=True)
    if not output_of(machine, "find", "/opt", "-path", f"{_KEPT}/*.whl"):
        _build(machine, place)
    output_of(machine, "sh", "-c", f'cp {_KEPT}/*.whl "$1"', "copy", place)
    (wheel,) = place.glob("*.whl")
    return wheel


def _build(machine: Machine, place: Path) -> None:
    print(f"building pyslurm {_VERSION} for Slurm 24.11, which takes about a minute", file=sys.stderr)
    install_packages(machine, *_BUILD_PACKAGES)
    sdist = fetch_sdist("pyslurm", _VERSION, place)
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    (place / sdist.name.removesuffix(".tar.gz")).rename(place / "source")
    edits.apply(place / "source")
    shutil.copy(Path(__file__).with_name("older_slurm.h"), place)
    output_of(machine, "sh", "-c", _BUILD, "build", place, _KEPT)
