"""A command stopped, failed or interrupted on entering one chosen system call, and all those that it makes, by strace(1).

Only calls that can change the world count: files opened for writing, written, synced, renamed, linked, removed or cut, directories
made, processes begun, connections opened. Its children are not followed: an sbatch lives on when its pass is killed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STRACE = shutil.which("strace")

_CALLS = (
    "open", "openat", "creat", "write", "pwrite64", "writev", "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat",
    "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "fsync", "fdatasync", "truncate", "ftruncate", "fallocate", "fchmod", "fchmodat",
    "chmod", "fchown", "fchownat", "chown", "clone", "clone3", "fork", "vfork", "execve", "connect", "flock",
)  # fmt: skip
_OPENS = ("open", "openat", "creat")
_FOR_WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")
_LINE = re.compile(r"(?P<name>\w+)\((?P<arguments>.*?)(?:\)\s+= (?P<result>-?\d+|\?).*|\s*<unfinished.*)?$", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """One system call as strace told it. ``number`` counts the calls of its name from 1; ``result`` None where it never returned."""

    name: str
    number: int
    arguments: str
    result: int | None

    @property
    def is_boundary(self) -> bool:
        """True where it may change the world."""
        return self.name not in _OPENS or bool(_FOR_WRITING.search(self.arguments))


@dataclass(frozen=True)
class Traced:
    """How a traced command went. ``code`` is negative for the signal that ended it."""

    code: int
    output: str
    errors: str
    calls: tuple[Call, ...]

    @property
    def boundaries(self) -> tuple[Call, ...]:
        """The calls that may change the world, in order."""
        return tuple(call for call in self.calls if call.is_boundary)


def run_traced(
    command: Sequence[str], environment: Mapping[str, str], log: Path, injection: str | None = None, seconds: float = 120
) -> Traced:
    """Run a command under strace. ``injection`` is what ``-e inject=`` takes: ``write:signal=SIGKILL:when=3``."""
    assert STRACE is not None
    options = ["-qq", "-y", "-s", "1048576", "-o", str(log), "-e", f"trace={','.join('?' + name for name in _CALLS)}"]
    if injection is not None:
        options += ["-e", f"inject={injection}"]
    # In a session of its own, and its output in files: a child that lives on must not keep the harness waiting.
    out, err = log.with_suffix(".out"), log.with_suffix(".err")
    with out.open("wb") as output, err.open("wb") as errors:
        done = subprocess.run(
            [STRACE, *options, "--", *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            timeout=seconds,
            start_new_session=True,
            check=False,
        )
    code = 128 - done.returncode if done.returncode > 128 and done.returncode != 130 else done.returncode
    return Traced(code, out.read_text("utf-8", "replace"), err.read_text("utf-8", "replace"), read_log(log))


def read_log(log: Path) -> tuple[Call, ...]:
    """The calls of a strace log, oldest first."""
    counts: Counter[str] = Counter()
    calls = []
    for line in log.read_bytes().decode("utf-8", "surrogateescape").split("\n"):
        found = _LINE.match(line)
        if found and found["name"] in _CALLS:
            counts[found["name"]] += 1
            result = found["result"]
            told = int(result) if result not in (None, "?") else None
            calls.append(Call(found["name"], counts[found["name"]], found["arguments"], told))
    return tuple(calls)


def can_trace() -> bool:
    """True where strace is there and the system lets it work."""
    if STRACE is None:
        return False
    done = subprocess.run([STRACE, "-qq", "-o", os.devnull, "true"], capture_output=True, check=False)
    return done.returncode == 0
