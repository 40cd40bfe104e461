"""One pass killed, failed, interrupted or cut from its power at every system call by which it changes the world.

``make faults`` tries every boundary, ``make test`` a share of them, always the same. A fault that the harness meant to make and that
did not happen is an error of the harness, and told as such.
"""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from half_way import HalfWay
from power import Image, Replay
from syscalls import Call, Traced, can_trace, run_traced

from fake_slurm.faults import Fault, Kind
from reconciler.ledger import Ledger

# ``all`` boundaries, so many of each kind, or ``some`` more than a plain run of the tests tries; in each case they must run.
ASKED_FOR = os.environ.get("RECONCILE_FAULTS", "")
ALL = ASKED_FOR == "all"
_PLACE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

_FULL, _BROKEN = ("ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES", "ESTALE"), ("EIO", "ESTALE")
_ERRORS = {
    "openat": (*_FULL, "EMFILE"),
    "mkdir": _FULL,
    "rename": _FULL,
    "unlink": ("EIO", "EROFS", "EACCES", "ESTALE"),
    "write": ("ENOSPC", "EDQUOT", "EIO", "ESTALE"),
    "pwrite64": ("ENOSPC", "EDQUOT", "EIO", "ESTALE"),
    "ftruncate": _BROKEN,
    "fsync": ("ENOSPC", "EDQUOT", "EIO", "ESTALE"),
    "fchown": ("EPERM", "EIO"),
    "fchmod": ("EPERM", "EIO"),
    "flock": ("EIO", "ENOLCK", "ESTALE", "EINTR"),
    "vfork": ("EAGAIN", "ENOMEM"),
    "clone": ("EAGAIN", "ENOMEM"),
    "clone3": ("EAGAIN", "ENOMEM"),
}  # fmt: skip
_LASTING = ("ENOSPC", "EIO")

pytestmark = pytest.mark.skipif(not ASKED_FOR and not can_trace(), reason="strace is not here, or may not trace")


@pytest.fixture(scope="module", params=[False, True], ids=["half way", "first pass"])
def world(request: pytest.FixtureRequest) -> Iterator[HalfWay]:
    with tempfile.TemporaryDirectory(prefix="reconcile-faults-", dir=_PLACE) as place:
        world = HalfWay(Path(place).resolve(), is_first_pass=request.param)
        yield world
        world.close()


@pytest.fixture(scope="module")
def boundaries(world: HalfWay) -> tuple[Call, ...]:
    """Every boundary of an undisturbed pass: inside the experiment, its outputs or a process begun; what came before main is none."""
    world.reset()
    traced = run(world)
    assert traced.code == 0, traced.errors
    assert not world.settle()
    first = next(
        n for n, call in enumerate(traced.boundaries) if str(world.experiment) in call.arguments and call.name != "execve"
    )
    return traced.boundaries[first:]


def run(world: HalfWay, injection: str | None = None) -> Traced:
    return run_traced(world.command, world.environment, world.place / "trace", injection)


def share(cases: Sequence[object], of: int, seed: int) -> list:
    """All cases, or so many of them, always the same."""
    if ASKED_FOR.isdecimal():
        of = int(ASKED_FOR)
    elif ASKED_FOR == "some":
        of, seed = 4 * of, seed + 100
    return list(cases) if ALL or len(cases) <= of else random.Random(seed).sample(list(cases), of)


def tell(record_property, tried: int, violations: Sequence[str]) -> None:
    record_property("cases", tried)
    record_property("violations", len(violations))
    assert tried, "nothing was tried"
    assert not violations, "\n".join(violations)


def afterwards(world: HalfWay, what: str, *, may_be_twice: bool = False) -> list[str]:
    """The violations of one case, once passes went on."""
    world.wait_for_the_lock()
    return [f"{what}: {broken}" for broken in world.settle(may_be_twice=may_be_twice)]


@pytest.mark.fault("SIGKILL on entering a system call that changes the world")
def test_a_pass_killed_at_any_boundary_submits_nothing_twice_and_loses_nothing(world, boundaries, record_property):
    chosen, violations = share(boundaries, 2, seed=1), []
    for call in chosen:
        world.reset()
        traced = run(world, f"{call.name}:signal=SIGKILL:when={call.number}")
        what = f"killed at {call.name} {call.number} ({call.arguments[:80]})"
        assert traced.code == -signal.SIGKILL, f"{what}: ended with {traced.code}: {traced.errors}"
        violations += afterwards(world, what)
    tell(record_property, len(chosen), violations)


@pytest.mark.fault("a system call fails (ENOSPC, EDQUOT, EIO, EROFS, EACCES, ESTALE, …), once or from then on")
def test_a_call_that_fails_costs_one_clear_error_and_the_next_pass_repairs(world, boundaries, record_property):
    cases = [(call, error, "") for call in boundaries for error in _ERRORS.get(call.name, ())]
    cases += [(call, error, "+") for call in boundaries for error in _LASTING if error in _ERRORS.get(call.name, ())]
    chosen, violations = share(cases, 2, seed=2), []
    for call, error, lasting in chosen:
        world.reset()
        traced = run(world, f"{call.name}:error={error}:when={call.number}{lasting}")
        what = f"{error} {'from' if lasting else 'at'} {call.name} {call.number} ({call.arguments[:80]})"
        if "Traceback" in traced.errors or traced.code not in (0, 2, 3, 4):
            violations.append(f"{what}: exit {traced.code}: {traced.errors[-300:]}")
        elif traced.code in (2, 3) and not (lasting and call.name == "write") and not traced.errors.startswith("reconcile: "):
            violations.append(f"{what}: exit {traced.code} without a sentence: {traced.errors[-300:]}")
        violations += afterwards(world, what)
    tell(record_property, len(chosen), violations)


@pytest.mark.fault("SIGINT, SIGTERM or SIGHUP on entering a system call that changes the world")
def test_an_interrupted_pass_ends_with_130_and_leaves_nothing_half_done(world, boundaries, record_property):
    cases = [(call, name) for call in boundaries for name in ("SIGINT", "SIGTERM", "SIGHUP")]
    chosen, violations = share(cases, 2, seed=3), []
    for call, name in chosen:
        world.reset()
        traced = run(world, f"{call.name}:signal={name}:when={call.number}")
        what = f"{name} at {call.name} {call.number} ({call.arguments[:80]})"
        if traced.code != 130 or "Traceback" in traced.errors:
            violations.append(f"{what}: exit {traced.code}: {traced.errors[-300:]}")
        violations += [f"{what}: {each}" for each in half_done(world)]
        violations += afterwards(world, what)
    tell(record_property, len(chosen), violations)


def half_done(world: HalfWay) -> list[str]:
    """What an orderly end must not leave: a submission that nothing is known of, a temporary file."""
    steps = Ledger(world.experiment, time.time).memory().steps
    # The one that the world begins with was begun by another pass.
    known = {job.name for jobs in world.jobs().values() for job in jobs}
    left = [f"{key}: attempt {a.number} is unconfirmed" for key, s in steps.items() for a in s.attempts if a.is_unconfirmed]
    left = [each for each in left if "r8_lr5e-5/finetune" not in each or world.is_first_pass]
    unknown = [name for name in known if not any(name == a.name for s in steps.values() for a in s.attempts)]
    return left + [f"{name} is not in the ledger" for name in unknown] + [str(p) for p in world.lab.rglob("*.tmp")]


@pytest.mark.fault("power cut at a system call: what was not synced is gone, torn, zeroed or there")
def test_a_power_cut_at_any_boundary_submits_nothing_twice_and_loses_nothing(world, boundaries, record_property):
    chosen, violations = share(boundaries, 1, seed=4), []
    images = tuple(Image)
    for call in chosen:
        world.reset()
        disk = Replay(world.lab)
        traced = run(world, f"{call.name}:signal=SIGKILL:when={call.number}")
        assert traced.code == -signal.SIGKILL
        world.wait_for_the_lock()
        disk.play(traced.calls)
        cluster = copy.deepcopy(world.cluster)
        for image in images:
            world.reset()
            world.reset_cluster(cluster)
            disk.write(image)
            what = f"power cut at {call.name} {call.number} ({call.arguments[:80]}), {image.value}"
            violations += afterwards(world, what, may_be_twice=image is Image.NOTHING)
    tell(record_property, len(chosen) * len(images), violations)


@pytest.mark.fault("a write(2) that takes fewer bytes than it was given")
def test_a_short_write_is_gone_on_with(world, record_property, monkeypatch):
    """strace cannot shorten a call, so here the pass runs in this process."""
    really, count = os.write, 0
    violations: list[str] = []

    def short(number: int, descriptor: int, data: bytes) -> int:
        nonlocal count
        count += 1
        return really(descriptor, bytes(data)[: max(1, len(data) // 2)] if count == number else data)

    tried = 0
    for number in range(1, 200):
        world.reset()
        count = 0
        monkeypatch.setattr(os, "write", lambda descriptor, data, n=number: short(n, descriptor, data))
        world.apply()
        monkeypatch.setattr(os, "write", really)
        if count < number:
            break
        if not ALL and number % 7:
            continue
        tried += 1
        violations += afterwards(world, f"short write {number}")
    tell(record_property, tried, violations)


@pytest.mark.fault("a second signal while the pass waits for an sbatch that hangs")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_second_signal_ends_the_command_at_once(world, name):
    world.reset()
    world._server.faults.inject(Fault("submit", Kind.HANGS_AFTER, times=1))
    apply = subprocess.Popen(
        world.command, env=dict(world.environment), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    ledger, end = world.experiment / ".reconcile/ledger.jsonl", time.monotonic() + 30
    before = len(ledger.read_bytes()) if ledger.exists() else 0
    while not (ledger.exists() and b'"intent"' in ledger.read_bytes()[before:]):
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.3)
    number = getattr(signal, name)
    apply.send_signal(number)
    time.sleep(0.2)
    apply.send_signal(number)
    sent = time.monotonic()
    code = apply.wait(timeout=30)
    assert (code, time.monotonic() - sent < 2) == (130, True)
    for pid in hanging(world):
        os.kill(pid, signal.SIGKILL)
    world._server.faults.clear()
    assert not afterwards(world, "two signals")


def hanging(world: HalfWay) -> list[int]:
    """The processes that still know this world's cluster: the sbatch that hangs, and timeout(1) above it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(world.place).encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]
