"""A Debian release in a directory, with its Slurm: made by debootstrap, entered by chroot, removed afterwards.

Nothing is ever mounted where this machine could see it: every command enters through a mount namespace of its own, and what it
binds there (/proc, /dev, the tests' directory) goes away with the process. So no mount can be left behind, and removing the
directory cannot reach through one. Needs root.

``python3 tests/slurm/debian_root.py SUITE DIRECTORY`` makes one to keep, ``… run DIRECTORY COMMAND`` runs a command in it.
"""

from __future__ import annotations

import contextlib
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from machine import ThisMachine, install_packages, output_of

SLURM_PACKAGES = (
    "slurmctld", "slurmd", "slurmdbd", "slurm-client", "slurm-wlm-basic-plugins",
    "slurm-wlm-mysql-plugin",  # in the daemon's own package on Debian 12; slurmdbd does not start without it
    "munge", "mariadb-server", "python3", "python3-venv",
)  # fmt: skip

# sh, with the root as $1, the shared directory as $2 and the command after them. exec keeps the process id: who ends the
# process ends the command.
_ENTER = """\
set -e
root=$1 shared=$2; shift 2
for bound in /proc /dev "$shared"; do mount --rbind "$bound" "$root$bound"; done
exec chroot "$root" "$@"
"""


@dataclass(frozen=True)
class DebianRoot:
    """A Debian release under ``path``. ``shared`` is the directory that has the same path inside and outside."""

    path: Path
    shared: Path

    def words(self, *command: object) -> list[str]:
        inside = self.path / self.shared.relative_to("/")
        inside.mkdir(parents=True, exist_ok=True)
        return [
            "unshare", "--mount", "--propagation=private", "sh", "-c", _ENTER, "enter",
            str(self.path), str(self.shared), *map(str, command),
        ]  # fmt: skip

    def adopt(self, user: str) -> None:
        known = pwd.getpwnam(user)
        subprocess.run(
            self.words("userdel", "--force", user), capture_output=True, check=False
        )  # a kept root may know an earlier one
        output_of(self, "groupadd", "--force", f"--gid={known.pw_gid}", user)
        ids = [f"--uid={known.pw_uid}", f"--gid={known.pw_gid}"]
        output_of(self, "useradd", "--no-create-home", f"--home-dir={known.pw_dir}", "--shell=/bin/sh", *ids, user)


def make(suite: str, path: Path) -> None:
    """The release at ``path``, with Slurm and no service started. Raises CalledProcessError; what there is then stays."""
    # A namespace for debootstrap too, because it mounts /proc. Debian's releases have shared one script since "sid"; naming it
    # serves a suite that is younger than this machine's debootstrap.
    debootstrap = ["debootstrap", "--variant=minbase", suite, str(path), _mirror(), "/usr/share/debootstrap/scripts/sid"]
    output_of(ThisMachine(), "unshare", "--mount", "--propagation=private", *debootstrap)
    policy = path / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")  # "action forbidden by policy": packages start no services
    policy.chmod(0o755)
    output_of(ThisMachine(), "install", "--mode=644", "/etc/hosts", path / "etc/hosts")  # the machine's name, for munge and Slurm
    with tempfile.TemporaryDirectory() as scratch:
        root = DebianRoot(path, Path(scratch))
        # A mirror may be a snapshot, past the date until which testing's index says it is fresh; its signature is checked anyway.
        output_of(root, "apt-get", "update", "-qq", "-o", "Acquire::Check-Valid-Until=false")
        install_packages(root, *SLURM_PACKAGES)


def remove(path: Path) -> None:
    """The directory and all in it. Refuses, with RuntimeError, where anything is mounted below it."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    inside = [place for place in mounted if Path(place).is_relative_to(path.resolve())]
    if inside:
        raise RuntimeError(f"not removed, because something is mounted in it: {', '.join(inside)}")
    subprocess.run(["rm", "-rf", "--one-file-system", "--", path], check=True)


@contextlib.contextmanager
def debian_root(suite_or_path: str, shared: Path) -> Iterator[DebianRoot]:
    """A root for the time of a ``with`` block: of a suite, made and removed; or one that is kept at a path."""
    if "/" in suite_or_path:
        yield DebianRoot(Path(suite_or_path).resolve(), shared)
        return
    path = Path(tempfile.mkdtemp(prefix=f"reconcile-{suite_or_path}-"))
    try:
        path.chmod(0o755)  # ordinary users work in it
        make(suite_or_path, path)
        yield DebianRoot(path, shared)
    finally:
        remove(path)


def _mirror() -> str:
    """Where this machine's own apt gets Debian from."""
    asked = ["apt-get", "indextargets", "--format", "$(LABEL)|$(REPO_URI)", "Created-By: Packages"]
    rows = [row.partition("|") for row in output_of(ThisMachine(), *asked).splitlines()]
    found = [uri for label, _, uri in rows if label == "Debian"]
    if not found:
        raise RuntimeError("apt knows no Debian mirror on this machine (has apt-get update run?)")
    return found[0]


def main(words: list[str]) -> int:
    if len(words) >= 3 and words[0] == "run":
        with tempfile.TemporaryDirectory() as scratch:
            root = DebianRoot(Path(words[1]).resolve(), Path(scratch))
            return subprocess.run(root.words(*words[2:]), check=False).returncode
    if len(words) == 2:
        path = Path(words[1]).resolve()
        path.mkdir(mode=0o755)
        make(words[0], path)
        return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
