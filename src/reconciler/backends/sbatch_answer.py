"""What sbatch says, whole; and the one moment at which it may be stopped without leaving a doubt.

Where the controller takes no more jobs (MaxJobCount, or it is just starting), sbatch says so and tries again by itself for two
minutes, sleeping 1 s, 2 s, 3 s … in between (sbatch.c, main; 120.1 s seen on 22.05). Stopped within that first second it surely
has no request under way: the job was not accepted. It never stops sbatch at any other moment.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass

_RETRIES = b"sleeping and retrying"  # "Slurm temporarily unable to accept job, sleeping and retrying"; "Slurm job queue full, …"
_FIRST_SLEEP = 1.0
_GLANCE = 0.05  # s
# timeout(1) hands the signal on and ends as its command did. Signalled before it knows its child it ends the same way and the
# child goes on (seen with coreutils 9.1): that sbatch is gone too is told by its output's end alone.
_BY_OUR_SIGNAL = (-signal.SIGTERM, 128 + signal.SIGTERM)


@dataclass(frozen=True)
class Answer:
    """``was_asleep``: stopped between two tries, of which the last one surely was not accepted."""

    code: int
    output: bytes
    errors: bytes
    was_asleep: bool = False


def whole_answer(sbatch: subprocess.Popen[bytes], since: float, seconds: float) -> Answer:
    """The answer of an sbatch that was not running yet at ``since`` (monotonic s).

    Raises TimeoutExpired where there is none after ``seconds``; sbatch is left alone then.
    """
    assert sbatch.stdout is not None
    assert sbatch.stderr is not None
    said = {sbatch.stdout.fileno(): b"", sbatch.stderr.fileno(): b""}
    out, err = said
    end = time.monotonic() + seconds
    not_asleep_before = since
    has_slept = is_stopped = False
    with selectors.DefaultSelector() as selector:
        for fd in said:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            before = time.monotonic()
            if before > end:
                raise subprocess.TimeoutExpired(sbatch.args, seconds)
            for key, _ in selector.select(_GLANCE):
                read = os.read(key.fd, 65536)
                said[key.fd] += read
                if not read:
                    selector.unregister(key.fd)
            if _RETRIES not in said[err]:
                not_asleep_before = before
            elif not has_slept:
                has_slept = True
                # One that is over by now has said all that it will, whatever this process was doing meanwhile.
                is_stopped = time.monotonic() < not_asleep_before + _FIRST_SLEEP / 2 and sbatch.poll() is None
                if is_stopped:
                    sbatch.terminate()
    code = sbatch.wait(max(1.0, end - time.monotonic()))
    was_asleep = is_stopped and code in _BY_OUR_SIGNAL and time.monotonic() < not_asleep_before + _FIRST_SLEEP
    return Answer(code, said[out], said[err], was_asleep)
