"""Many passes at once, in processes of their own; locks whose owner is gone; a pass that was suspended and goes on much later."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lies import FEW, KEYS, PHASES, RERUNS, TRAINING, Lab, lab_at, some

from faces import UID, USER
from fake_slurm.backend import FakeBackend
from fake_slurm.client import RemoteWire
from fake_slurm.jobs import State
from fake_slurm.server import Server
from mortality import Mortality
from reconciler import act, lock
from reconciler.act import move_aside
from reconciler.errors import AnotherPass, ReconcileError
from reconciler.ledger import Ledger
from reconciler.loop import preview, run_pass
from reconciler.model import Condition, Token, Verb

_SPAWN = multiprocessing.get_context("fork")
_PASSES = 10


def all_at_once(lab: Lab, path: Path) -> Counter[str]:
    """Ten processes make a pass each, all beginning at the same moment. How they ended."""
    together = _SPAWN.Barrier(_PASSES)
    told = _SPAWN.SimpleQueue()

    def one() -> None:
        scene = replace(lab.scene(), backend=FakeBackend(RemoteWire(str(path), USER, UID)))
        try:
            together.wait(300)
            run_pass(scene)
        except AnotherPass:
            told.put("turned away")
        except ReconcileError as error:
            told.put(type(error).__name__)
        except BaseException as error:  # noqa: BLE001 - told to the parent, who fails for it
            told.put(f"died: {error!r}")
        else:
            told.put("ran")

    passes = [_SPAWN.Process(target=one) for _ in range(_PASSES)]
    for each in passes:
        each.start()
    ended = Counter(told.get() for _ in passes)
    for each in passes:
        each.join()
    return ended


@pytest.mark.fault("ten passes begin at the same moment")
@pytest.mark.parametrize("is_lying", [False, True], ids=["honest lock", "lock granted to all"])
@pytest.mark.parametrize("phase", FEW)
def test_ten_passes_at_once_leave_one_job_a_step(phase, is_lying, monkeypatch, record_property):
    if is_lying:
        monkeypatch.setattr(lock, "_take", lambda descriptor, path: None)
    record_property("cases", _PASSES)
    with lab_at(phase) as lab, tempfile.TemporaryDirectory(prefix="fs-") as place:
        server = Server(lab.cluster, Path(place) / "socket")
        server.start()
        try:
            ended = all_at_once(lab, server.path)
        finally:
            server.stop()
        assert not [how for how in ended if how.startswith("died")], ended
        assert ended["ran"] >= 1 or is_lying
        lab._check()
        names = Counter(job.name for job in lab.cluster.queue())
        assert max(names.values(), default=1) == 1, "an attempt was submitted twice"
        lab.converges(training=RERUNS.get(phase, 0))


# --- locks whose owner is gone


def lock_file(lab: Lab) -> Path:
    return lab.directory / ".reconcile" / "lock"


def a_killed_pass(lab: Lab) -> None:
    """It held the lock when it was killed."""
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print(); time.sleep(600)",
            lock_file(lab),
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(AnotherPass):
        run_pass(lab.scene())
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()


def a_pid_that_is_somebody_elses_by_now(lab: Lab) -> None:
    lock_file(lab).write_text(json.dumps({"host": os.uname().nodename, "pid": 1}))


def a_host_that_is_gone(lab: Lab) -> None:
    lock_file(lab).write_text(json.dumps({"host": "node-that-was-scrapped", "pid": 12345}))


def a_text_that_nobody_wrote(lab: Lab) -> None:
    lock_file(lab).write_bytes(b"\x00\xff not json")


def a_long_text(lab: Lab) -> None:
    lock_file(lab).write_text("x" * 100_000)


OWNERS: dict[str, Callable[[Lab], None]] = {
    each.__name__.replace("_", " "): each
    for each in (a_killed_pass, a_pid_that_is_somebody_elses_by_now, a_host_that_is_gone, a_text_that_nobody_wrote, a_long_text)
}


@pytest.mark.fault("a lock file left by a pass that is gone")
@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("phase", ["queued", "to be tried again", "done"])
def test_a_lock_whose_owner_is_gone_keeps_nobody_out(phase, owner):
    with lab_at(phase) as lab:
        OWNERS[owner](lab)
        assert lab.apply() is not None
        lab.converges(training=RERUNS.get(phase, 0))


@pytest.mark.fault("a lock that is released late")
@pytest.mark.parametrize("phase", PHASES)
def test_while_the_lock_is_held_nothing_at_all_is_done_and_afterwards_everything(phase):
    with lab_at(phase) as lab:
        lock_file(lab).parent.mkdir(exist_ok=True)
        with lock_file(lab).open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            before, jobs = lab._tree(), len(lab.cluster.queue())
            for _ in range(3):
                lab.pass_time(300)
                with pytest.raises(AnotherPass):
                    run_pass(lab.scene())
            assert lab._tree() == before
            assert len(lab.cluster.queue()) <= jobs
        lab.converges(training=RERUNS.get(phase, 0))


# --- a pass that stands still while the world goes on; it has the lock


def jobs_end(lab: Lab) -> None:
    for job in lab.live_jobs():
        if job.state.has_resources:
            lab.end_job(job, "whole", State.COMPLETED)


def jobs_ever(lab: Lab) -> int:
    return len(lab.cluster.accounting._records)


@pytest.mark.fault("a pass is suspended for an hour at any of its effects")
@pytest.mark.parametrize("phase", FEW)
def test_a_pass_that_was_suspended_for_an_hour_submits_nothing_on_what_it_saw_before(phase, record_property):
    with lab_at(phase) as lab:
        count = lab.effects()
    for effect in some(count):
        with lab_at(phase) as lab:
            may_have = []

            def sleep(lab: Lab = lab, may_have: list[int] = may_have) -> None:
                lab.pass_time(3600)
                jobs_end(lab)
                if lab.has_looked:  # else it looks when it wakes
                    may_have.append(jobs_ever(lab) + lab.is_handing_over)

            lab._pass(Mortality(lab.directory, intrudes_at=effect, intrusion=sleep))
            assert not may_have or jobs_ever(lab) <= may_have[0], f"effect {effect}"
            lab.converges(training=RERUNS.get(phase, 0))
    record_property("cases", len(some(count)))


@pytest.mark.fault("a pass plans, and acts when its look at the world is old")
@pytest.mark.parametrize("clock", [301.0, 3600.0, 40 * 86400.0, -301.0, -3600.0])
def test_an_old_look_is_looked_again(clock):
    """A clock that steps looks the same from inside, and costs a pass."""
    with lab_at("nothing submitted yet") as lab:
        times = iter([lab.cluster.now])
        scene = replace(lab.scene(), clock=lambda: next(times, lab.cluster.now + clock))
        seen = run_pass(scene)
        assert {action.reason.code for action in seen.actions if action.verb is not Verb.WAIT} == set()
        assert "LookedTooLongAgo" in {action.reason.code for action in seen.actions}
        assert not lab.live_jobs()
        lab.converges()


def test_what_a_pass_may_still_do_after_a_short_pause():
    with lab_at("nothing submitted yet") as lab:
        times = iter([lab.cluster.now])
        run_pass(replace(lab.scene(), clock=lambda: next(times, lab.cluster.now + 299)))
        assert len(lab.live_jobs()) == 2


def test_what_was_claimed_by_a_pass_that_died_before_its_intent_reached_the_disk_is_made_again_held():
    """The ledger lost its end, or never had it: the claim stands for an attempt that nobody knows more of."""
    with lab_at("nothing submitted yet") as lab:
        shown = preview(lab.scene())

        ledger = Ledger(lab.directory, lambda: lab.cluster.now)
        ledger.path.parent.mkdir()
        assert ledger.claim(str(Token.of(lab.directory, TRAINING, 1)))
        assert not ledger.claim(str(Token.of(lab.directory, TRAINING, 1)))
        seen = lab.apply()
        assert seen is not None
        assert shown.plan.of(TRAINING).verb is Verb.SUBMIT
        assert not lab.jobs_of(TRAINING)
        assert {a.step: a.condition for a in seen.actions}[TRAINING] is Condition.UNKNOWN
        lab.pass_time(601)
        lab.apply()
        (job,) = lab.jobs_of(TRAINING)
        assert (bool(job.hold), job.name[-2:]) == (True, "-2")
        lab.converges()
        assert set(lab.starts) == set(KEYS)


@pytest.mark.fault("a pass is suspended for an hour at any of its effects, and outputs that it saw torn surface whole")
def test_a_pass_that_was_suspended_moves_nothing_aside_that_became_whole_meanwhile(record_property, monkeypatch):
    """But for the moment of the renaming itself, which loses nothing."""
    begun: list[Path] = []

    def move(path: Path, now: float) -> Path:
        begun.append(path)
        return move_aside(path, now)

    monkeypatch.setattr(act, "move_aside", move)
    with lab_at("to be tried again") as lab:
        count = lab.effects()
    for effect in range(count):
        begun.clear()
        with lab_at("to be tried again") as lab:

            def surface(lab: Lab = lab) -> None:
                lab.pass_time(3600)
                if not begun:
                    lab._write(TRAINING, "whole")

            lab._pass(Mortality(lab.directory, intrudes_at=effect, intrusion=surface))
            moved = [path.read_text() for path in lab.result(TRAINING).parent.glob("moved-aside-*/*")]
            assert "whole" not in moved, f"effect {effect}"
            lab.settle_down()
    record_property("cases", count)


@pytest.mark.fault("an intent that another pass wrote for an attempt whose outcome is known")
def test_the_first_intent_of_an_attempt_counts_whatever_another_pass_writes_after_its_outcome():
    with lab_at("ended without results") as lab:
        lab.apply()
        before = lab._memory().of(TRAINING)
        event = next(e for e in Ledger(lab.directory, lambda: 0.0).events() if e["event"] == "intent" and e["step"] == TRAINING)
        Ledger(lab.directory, lambda: lab.cluster.now).append(**{k: v for k, v in event.items() if k != "at"})
        assert lab._memory().of(TRAINING) == before
        seen = lab.apply()
        assert seen is not None
        assert {a.step: a.condition for a in seen.actions}[TRAINING] is Condition.FAILED
        lab.converges(training=1)
