"""What the tests of a lying world share: a small experiment brought to each phase of its life, and what must be true in the end.

The promises are checked after every step by ``History`` itself; here each job that begins to run is counted too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from faces import UID, USER, CommandsHere, _Done, _outcome
from fake_slurm.commands import COMMANDS
from fake_slurm.faults import Fault, Kind
from fake_slurm.jobs import Job, State
from fake_slurm.server import Server
from fake_slurm.site import Site
from histories import History, _WatchedBackend
from mortality import Mortality, watched
from reconciler.backends import slurm_cli
from reconciler.backends.slurm_cli import SlurmCli
from reconciler.errors import ReconcileError
from reconciler.loop import Scene, run_pass
from reconciler.ports import Backend, Submission

ALL = os.environ.get("RECONCILE_FAULTS", "") not in ("", "some")
TRAINING = "a/finetune"
KEYS = (TRAINING, "a/eval/cap_epoch0", "base/eval/cap_base")


class Lab(History):
    """One run, its evaluation and a control. ``starts`` counts the jobs that began to run, by step; ``is_handing_over`` is True between
    a pass's last look and sbatch, where nothing can be done any more."""

    def __init__(self, site: Site | None = None) -> None:
        self.starts: Counter[str] = Counter()
        self.is_handing_over = False
        self.has_looked = False
        self.asked_for = 0
        self.cli: Backend | None = None
        super().__init__(site or Site())
        self.wire.user, self.wire.uid = USER, UID
        self.edit_runs(["a"])
        shutil.rmtree(self.directory / "b")

    def _job_starts(self, job: Job) -> None:
        self.starts[self._key(job) or job.name] += 1
        super()._job_starts(job)

    def scene(self) -> Scene:
        return replace(super().scene(), backend=self.cli or _Backend(self))

    def effects(self) -> int:
        """How many effects a pass has now; it is made."""
        self._mortality = Mortality(self.directory)
        with watched(self._mortality) as counted:
            run_pass(self.scene())
        self._mortality = None
        return counted.entered

    def jobs_of(self, key: str) -> list[Job]:
        """The step's jobs that have not ended."""
        return [job for job in self.live_jobs() if self._key(job) == key]

    def finish(self, key: str, content: str | None = "whole", state: State = State.COMPLETED) -> None:
        """The step's running job ends, having written ``content``."""
        (job,) = self.jobs_of(key)
        self.end_job(job, content, state)

    def converges(self, **more_starts: int) -> None:
        """Everything comes right and stays so, and each step ran once; ``more_starts`` of a training are those that were asked for."""
        self.settle_down()
        expected = dict.fromkeys(KEYS, 1)
        expected[TRAINING] += more_starts.get("training", 0) + self.asked_for
        assert dict(self.starts) == expected, f"ran {dict(self.starts)}, should have {expected}"
        assert {key: self.result(key).read_text() for key in KEYS} == dict.fromkeys(KEYS, "whole")


# --- through Slurm's commands

Said = tuple[int, bytes, bytes]
"""A command's exit code, standard output and standard error."""
Lie = Callable[[Callable[[], Said]], Said]
"""What a command says in place of the truth, which it may call for, so that the cluster does what it was asked, or leave."""


class Commands(CommandsHere):
    """Slurm's commands in this process; ``lies`` are told, by the command's name, in place of what it would say."""

    def __init__(self) -> None:
        self.lies: dict[str, Lie] = {}
        self.asked: Counter[str] = Counter()

    def run(self, command, *, env, **_):  # type: ignore[no-untyped-def]
        return subprocess.CompletedProcess(command, *self._say(command, env, str(Path.cwd())))

    def Popen(self, command, *, env, cwd, **_):  # type: ignore[no-untyped-def]
        try:
            return _Done(*self._say(command, env, str(cwd)))
        except subprocess.TimeoutExpired:
            return _Silent(0, b"", b"")

    def _say(self, command: list[str], env: Mapping[str, str], directory: str) -> Said:
        name = next(word for word in command if word in COMMANDS)
        self.asked[name] += 1
        lie = self.lies.get(name)
        truth = lambda: _outcome(command, env, directory)  # noqa: E731
        return lie(truth) if lie else truth()


class _Silent(_Done):
    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        raise subprocess.TimeoutExpired("sbatch", 60.0)


class _JudgedCli(SlurmCli):
    def __init__(self, lab: Lab, path: Path) -> None:
        super().__init__({"FAKE_SLURM": str(path), "PATH": "/usr/bin"})
        self._lab = lab

    def queue(self):  # type: ignore[no-untyped-def]
        try:
            return super().queue()
        except ReconcileError:
            self._lab.queue_was_not_seen()
            raise

    def submit(self, job: Submission) -> str:
        self._lab.judge_submission(job)
        return super().submit(job)


@contextmanager
def commands_at(phase: str, monkeypatch: pytest.MonkeyPatch, site: Site | None = None) -> Iterator[tuple[Lab, Commands]]:
    """A world whose training is in this phase, seen through the commands from now on."""
    commands = Commands()
    monkeypatch.setattr(slurm_cli, "subprocess", commands)
    with lab_at(phase, replace(site or Site(), admins=frozenset())) as lab, tempfile.TemporaryDirectory(prefix="fs-") as place:
        server = Server(lab.cluster, Path(place) / "socket")
        server.faults = lab.wire.faults
        server.start()
        lab.cli = _JudgedCli(lab, server.path)
        try:
            yield lab, commands
        finally:
            server.stop()


class _Backend(_WatchedBackend):
    def queue(self):  # type: ignore[no-untyped-def]
        self._history.has_looked = True  # type: ignore[attr-defined]
        return super().queue()

    def submit(self, job: Submission) -> str:
        self._history.is_handing_over = True  # type: ignore[attr-defined]
        return super().submit(job)

    def hand_over(self, job: Submission) -> str:
        self._history.is_handing_over = False  # type: ignore[attr-defined]
        return super().hand_over(job)


def _first_pass(lab: Lab) -> None:
    """It submits the training alone."""
    run_pass(replace(lab.scene(), select=TRAINING))


def _unconfirmed(lab: Lab) -> None:
    """The first submission timed out after it was accepted."""
    lab.wire.faults.inject(Fault("submit", Kind.LOST_AFTER))
    _first_pass(lab)


def _never_arrived(lab: Lab) -> None:
    """The first submission timed out and was never accepted."""
    lab.wire.faults.inject(Fault("submit", Kind.LOST_BEFORE))
    _first_pass(lab)


def _given_up(lab: Lab) -> None:
    """It is to be made again, held."""
    _never_arrived(lab)
    lab.pass_time(700)


def _replaced(lab: Lab) -> None:
    """It was made again, held, and is to be freed."""
    _given_up(lab)
    lab.apply()
    lab.pass_time(10)


def _queued(lab: Lab) -> None:
    lab.cluster.fail_node()
    lab.apply()
    lab.pass_time(60)
    lab.apply()


def _running(lab: Lab) -> None:
    lab.apply()
    lab.pass_time(60)
    lab.apply()


def _ended_whole(lab: Lab) -> None:
    """Its result is there and quiet, and no pass has seen it."""
    _running(lab)
    lab.finish(TRAINING)
    lab.pass_time(310)


def _ended_torn(lab: Lab) -> None:
    """Its node died under it, half a result is there, and it is to be tried again."""
    _running(lab)
    lab.finish(TRAINING, "half", State.NODE_FAIL)
    lab.apply()
    lab.pass_time(310)


def _ended_without(lab: Lab) -> None:
    _running(lab)
    lab.finish(TRAINING, None, State.FAILED)
    lab.apply()
    lab.pass_time(310)


def _done(lab: Lab) -> None:
    _ended_whole(lab)
    lab.apply()


PHASES: dict[str, Callable[[Lab], None]] = {
    "nothing submitted yet": lambda lab: None,
    "submitted unconfirmed": _unconfirmed,
    "never arrived": _never_arrived,
    "given up for lost": _given_up,
    "replaced, held": _replaced,
    "queued": _queued,
    "running": _running,
    "ended with results": _ended_whole,
    "to be tried again": _ended_torn,
    "ended without results": _ended_without,
    "done": _done,
}
FEW = tuple(PHASES) if ALL else ("nothing submitted yet", "to be tried again")
"""The phases in which a pass has most to do, where every one would take too long."""

RERUNS = {"to be tried again": 1, "ended without results": 1}
"""How often more than once a training runs that begins in this phase: its first job failed."""


def some(count: int) -> range:
    """Every one of so many effects, or every third where that would take too long."""
    return range(0, count, 1 if ALL else 3)


@contextmanager
def lab_at(phase: str, site: Site | None = None) -> Iterator[Lab]:
    """A world whose training is in this phase."""
    lab = Lab(site)
    try:
        PHASES[phase](lab)
        lab.has_looked = False
        yield lab
    finally:
        lab.close()
