"""Tells scenarios on a real cluster, as the ordinary user who runs this; prints their stories as JSON.

    agreement_child.py BACKEND DIRECTORY SCENARIO…

What only the administrator can do is asked for in a file of DIRECTORY, and waited for (test_agreement_on_real.py does it).
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import agreement
from reconciler.backends.slurm_cli import SlurmCli
from reconciler.ports import Backend

_AT_A_TIME = 8
_numbers = itertools.count()


@dataclass
class RealFace:
    """The cluster that the environment leads to."""

    backend: Backend
    directory: Path
    patience: float = 20.0
    requests: Path = field(default=Path())

    def person(self, verb: str, job: str) -> bool:
        words = ["scancel", job] if verb == "cancel" else ["scontrol", verb, job]
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0

    def admin(self, verb: str, job: str) -> None:
        self._request("scancel" if verb == "cancel" else f"scontrol {verb}", job)

    def now(self) -> float:
        return time.time()

    def let(self, seconds: float) -> None:
        time.sleep(seconds)

    def stop(self, what: str) -> None:
        self._request("stop", what)

    def _request(self, *words: str) -> None:
        asked = self.requests / f"request-{next(_numbers)}"
        draft = asked.with_name(f"draft-{asked.name}")
        draft.write_text(" ".join(words))
        draft.rename(asked)
        while asked.exists():
            time.sleep(0.05)


def backend(name: str) -> Backend:
    if name == "pyslurm":
        from reconciler.backends.slurm_api import SlurmApi

        return SlurmApi(SlurmCli(), lambda text: sys.exit(text))
    return SlurmCli()


def main() -> None:
    name, place, *wanted = sys.argv[1:]
    known = {
        each.__name__: each
        for each in (*agreement.SCENARIOS, *agreement.OF_22_05, *agreement.ALONE, *agreement.WITHOUT_ACCOUNTING)
    }

    def tell(scenario: str) -> object:
        directory = Path(place) / scenario
        directory.mkdir()
        try:
            return agreement.story(known[scenario], RealFace(backend(name), directory, requests=Path(place)))
        except Exception as error:  # noqa: BLE001 - one scenario's trouble is no other's
            return [("it broke", repr(error))]

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        print(json.dumps(dict(zip(wanted, pool.map(tell, wanted), strict=True))))


main()
