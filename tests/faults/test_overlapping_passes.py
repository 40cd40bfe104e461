"""Passes that overlap although there is a lock: one that is always granted, as some shared filesystems do, or freed too early.

One pass is stopped on entering any of its effects; then the world goes on, and so does it. Whatever it had decided, no step
may get a second live job, nothing that was verified is made again, and what another job writes is not moved away.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
from lies import ALL, FEW, RERUNS, TRAINING, Lab, lab_at, some

import mortality
from fake_slurm.jobs import State
from mortality import Mortality, watched
from reconciler import lock
from reconciler.errors import ReconcileError
from reconciler.ledger import Ledger
from reconciler.loop import run_pass


@pytest.fixture
def lying_lock(monkeypatch):
    """Granted to everybody, always."""
    monkeypatch.setattr(lock, "_take", lambda descriptor, path: None)


def another_pass(lab: Lab) -> None:
    with watched(Mortality(lab.directory)), suppress(ReconcileError):
        run_pass(lab.scene())


def another_pass_whose_jobs_write(lab: Lab) -> None:
    another_pass(lab)
    lab.pass_time(30)
    for job in lab.live_jobs():
        lab.write_half(job)


def an_hour_of_passes(lab: Lab) -> None:
    for _ in range(6):
        another_pass(lab)
        lab.pass_time(601)


def an_hour_in_which_everything_ends(lab: Lab) -> None:
    for _ in range(6):
        another_pass(lab)
        lab.pass_time(601)
        for job in lab.live_jobs():
            if job.state.has_resources:
                lab.end_job(job, "whole", State.COMPLETED)


def a_person_who_cancels(lab: Lab) -> None:
    ran = [job for job in lab.jobs_of(TRAINING) if job.state.has_resources]
    lab.say("cancel", TRAINING)
    lab.asked_for += len(ran)


MEANWHILE: dict[str, Callable[[Lab], None]] = {
    each.__name__.replace("_", " "): each
    for each in (
        another_pass,
        another_pass_whose_jobs_write,
        an_hour_of_passes,
        an_hour_in_which_everything_ends,
        a_person_who_cancels,
    )
}
# Between its last look and sbatch a pass can be overtaken: for less than ``grace`` that is harmless, for longer nothing helps.
_BRIEF = ("another pass", "another pass whose jobs write")
_LOCKSTEP = ("nothing submitted yet", "given up for lost", "ended with results", "to be tried again")


def stand_still(lab: Lab, effect: int, meanwhile: str) -> None:
    """A pass is stopped on entering an effect; it goes on, and the world comes right."""

    def intrusion() -> None:
        if meanwhile in _BRIEF or not lab.is_handing_over:
            MEANWHILE[meanwhile](lab)

    lab._pass(Mortality(lab.directory, intrudes_at=effect, intrusion=intrusion))


def every_effect(phase: str, meanwhile: str, record_property: Callable[[str, object], None]) -> None:
    broken = []
    with lab_at(phase) as lab:
        count = lab.effects()
    for effect in some(count):
        with lab_at(phase) as lab:
            try:
                stand_still(lab, effect, meanwhile)
                lab.converges(training=RERUNS.get(phase, 0))
            except AssertionError as error:
                broken.append(f"effect {effect}: {error}")
    record_property("cases", len(some(count)))
    record_property("violations", len(broken))
    assert not broken, "\n".join(broken)


@pytest.mark.fault("a lock that is always granted: a pass stands still at any of its effects while others do their work")
@pytest.mark.parametrize("meanwhile", MEANWHILE if ALL else ["another pass whose jobs write", "a person who cancels"])
@pytest.mark.parametrize("phase", FEW)
def test_a_pass_that_goes_on_after_others_have_acted_leaves_one_job_a_step(phase, meanwhile, record_property, lying_lock):
    every_effect(phase, meanwhile, record_property)


@pytest.mark.fault("a lock that is always granted, and a file server that does not show what another host wrote to the ledger")
@pytest.mark.parametrize("meanwhile", [*_BRIEF, "an hour of passes"] if ALL else _BRIEF[:1])
@pytest.mark.parametrize("phase", FEW)
def test_where_the_ledger_cannot_tell_either_the_claims_do(phase, meanwhile, record_property, lying_lock, monkeypatch):
    monkeypatch.setattr(Ledger, "is_left_alone", lambda ledger: True)
    every_effect(phase, meanwhile, record_property)


class Lockstep:
    """Two passes on two threads of which one runs at a time: the first up to its effect ``first``, then the second up to its effect
    ``second``, then the first to its end, then the second."""

    def __init__(self, lab: Lab, first: int, second: int) -> None:
        self._lab = lab
        self._first, self._second = first, second
        self._turn_of_first, self._turn_of_second = threading.Semaphore(0), threading.Semaphore(0)
        self._errors: list[BaseException] = []

    def run(self) -> None:
        thread = threading.Thread(target=self._other)
        self._lab._mortality = Mortality(self._lab.directory, intrudes_at=self._first, intrusion=self._to_second)
        thread.start()
        try:
            self._pass(self._lab._mortality)
        finally:
            self._turn_of_second.release()
            thread.join()
            self._lab._mortality = None
        if self._errors:
            raise self._errors[0]
        self._lab._check()

    def _pass(self, watch: Mortality) -> None:
        with watched(watch), suppress(ReconcileError):
            run_pass(self._lab.scene())

    def _to_second(self) -> None:
        """The first pass stands at its effect. What the backend counts belongs to whoever runs."""
        own = self._lab._mortality
        self._turn_of_second.release()
        self._turn_of_first.acquire()
        self._lab._mortality = own

    def _other(self) -> None:
        self._turn_of_second.acquire()
        own = Mortality(self._lab.directory, intrudes_at=self._second, intrusion=self._to_first)
        self._lab._mortality = own
        try:
            self._pass(own)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits for it
            self._errors.append(error)
        finally:
            self._turn_of_first.release()

    def _to_first(self) -> None:
        own = self._lab._mortality
        self._turn_of_first.release()
        self._turn_of_second.acquire()
        self._lab._mortality = own


@pytest.mark.fault("a lock that is always granted: two passes in lockstep, each stopped at any of its effects")
@pytest.mark.parametrize("phase", _LOCKSTEP if ALL else _LOCKSTEP[:1])
def test_two_passes_that_interleave_leave_one_job_a_step(phase, record_property, lying_lock):
    with lab_at(phase) as lab:
        count = lab.effects()
    step = 1 if ALL else 12
    broken, cases = [], [(i, k) for i in range(0, count, step) for k in range(0, count, step)]
    for first, second in cases:
        with lab_at(phase) as lab:
            try:
                Lockstep(lab, first, second).run()
                lab.converges(training=RERUNS.get(phase, 0))
            except AssertionError as error:
                broken.append(f"effects {first} and {second}: {error}")
    record_property("cases", len(cases))
    record_property("violations", len(broken))
    assert mortality._current is None
    assert not broken, "\n".join(broken)
