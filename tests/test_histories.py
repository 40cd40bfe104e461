"""Whatever happens, in whatever order: thousands of histories of one experiment, each step of them checked (see histories.py).

Two hundred run with the other tests, always the same ones; ``make fuzz`` runs ten thousand new ones.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from fake_slurm.faults import Fault, Kind
from fake_slurm.jobs import State
from fake_slurm.site import Partition, Site
from histories import Fate, History

_FUZZ = int(os.environ.get("RECONCILE_HISTORIES", "0"))
SETTINGS = settings(
    max_examples=_FUZZ or 200,
    derandomize=not _FUZZ,
    stateful_step_count=40 if _FUZZ else 25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    print_blob=bool(_FUZZ),
)

SITES = st.builds(
    Site,
    partitions=st.sampled_from([(Partition("main", cpus=64),), (Partition("main", cpus=2),)]),
    has_accounting=st.sampled_from([True, True, True, False]),
    accounting_lag=st.sampled_from([0.6, 30.0]),
    end_lag=st.sampled_from([0.0, 0.0, 90.0]),
    shows_waiting=st.booleans(),
    min_job_age=st.sampled_from([2.0, 300.0]),
    max_submit_jobs=st.sampled_from([None, None, 2]),
    boot_time=st.sampled_from([0.0, 0.0, 120.0]),
    epilog_time=st.sampled_from([0.0, 20.0]),
    last_id=st.sampled_from([67_043_328, 4]),
)
TIMES = st.sampled_from([1.0, 10.0, 61.0, 305.0, 601.0, 4000.0])
ENDS = st.sampled_from(
    [
        ("whole", State.COMPLETED, 0),
        ("whole", State.FAILED, 15),
        ("half", State.FAILED, 1),
        ("half", State.TIMEOUT, 0),
        ("half", State.NODE_FAIL, 0),
        ("half", State.PREEMPTED, 0),
        (None, State.COMPLETED, 0),
        (None, State.FAILED, 1),
        (None, State.OUT_OF_MEMORY, 0),
        (None, State.BOOT_FAIL, 0),
    ]
)
CALLS = st.sampled_from(["submit", "queue", "accounting", "cancel", "hold", "release", "config", "*"])
HIDING = [("queue",), ("*",), ("queue", "accounting")]
FATES = st.one_of(
    st.just(Fate("accepted")), st.just(Fate("lost")), st.builds(Fate, st.just("late"), st.sampled_from([1.0, 30.0, 59.0]))
)
KEYS = st.integers(0, 10)
EFFECTS = st.integers(0, 45)


class Histories(RuleBasedStateMachine):
    """Rules are what may happen; what must hold is checked by every one of them."""

    @initialize(site=SITES, has_table=st.booleans())
    def begin(self, site: Site, has_table: bool) -> None:
        self.history = History(site, has_table)

    def teardown(self) -> None:
        if hasattr(self, "history"):
            try:
                self.history.settle_down()
            finally:
                self.history.close()

    def _key(self, number: int) -> str:
        return self.history.keys[number % len(self.history.keys)]

    # --- passes

    @rule()
    def apply(self) -> None:
        self.history.apply()

    @rule(seconds=TIMES)
    def apply_after(self, seconds: float) -> None:
        self.history.pass_time(seconds)
        self.history.apply()

    @rule(effect=EFFECTS, fate=FATES)
    def a_pass_is_killed(self, effect: int, fate: Fate) -> None:
        self.history.apply_killed_at(effect, fate)

    @rule(effect=EFFECTS)
    def two_passes_overlap(self, effect: int) -> None:
        self.history.apply_with_another_beside_it(effect)

    @precondition(lambda self: not self.history.wire.faults.pending)
    @rule()
    def diff_then_apply(self) -> None:
        self.history.diff_is_what_apply_does()

    # --- the cluster

    @rule(seconds=TIMES)
    def time_passes(self, seconds: float) -> None:
        self.history.pass_time(seconds)

    @precondition(lambda self: self.history.live_jobs())
    @rule(number=KEYS, end=ENDS)
    def a_job_ends(self, number: int, end: tuple[str | None, State, int]) -> None:
        jobs = self.history.live_jobs()
        self.history.end_job(jobs[number % len(jobs)], *end)

    @precondition(lambda self: self.history.live_jobs())
    @rule(number=KEYS)
    def a_job_is_in_the_middle_of_writing(self, number: int) -> None:
        jobs = self.history.live_jobs()
        self.history.write_half(jobs[number % len(jobs)])

    @precondition(lambda self: self.history.live_jobs())
    @rule(number=KEYS, verb=st.sampled_from(["cancel", "hold", "release", "requeue"]))
    def a_person_acts_on_a_job(self, number: int, verb: str) -> None:
        jobs = self.history.live_jobs()
        self.history.act_on_job(jobs[number % len(jobs)], verb)

    @rule(call=CALLS, kind=st.sampled_from(Kind), seconds=st.sampled_from([5.0, 120.0]), times=st.integers(1, 3))
    def something_will_go_wrong(self, call: str, kind: Kind, seconds: float, times: int) -> None:
        self.history.inject(call, kind, seconds, times)

    @rule(times=st.integers(1, 2), calls=st.sampled_from(HIDING), database=st.booleans(), fails=st.booleans())
    def a_submission_hides_until_it_is_given_up(self, times: int, calls: tuple[str, ...], database: bool, fails: bool) -> None:
        """Accepted without an answer, and beyond ``grace`` in no answer of the cluster's either; it may be over and forgotten by
        the queue before the next one."""
        self.history.inject("submit", Kind.LOST_AFTER, 0.0, 1)
        self.history.apply()
        self.history.pass_time(601.0)
        hidden = self.history.live_jobs()
        if not database:
            self.history.cluster.accounting.stop()
        for call in calls:
            self.history.inject(call, Kind.EMPTY, 0.0, times)
        self.history.apply()
        if fails:
            self.history.cluster.accounting.stop()
            for job in hidden:
                self.history.end_job(job, "half", State.FAILED, 1)
            self.history.pass_time(305.0)
            self.history.apply()

    @rule(ahead=st.sampled_from([-280.0, 0.0, 280.0]))
    def a_release_is_used_up(self, ahead: float) -> None:
        """A job fails, a person releases its step on a host with another clock, and it fails again."""
        self._jobs_fail_for_good()
        self.history.step_clock(ahead)
        for key in self.history.keys:
            self.history.say("release", key)
        self.history.apply()
        self.history.step_clock(0.0)
        self._jobs_fail_for_good()

    def _jobs_fail_for_good(self) -> None:
        for job in self.history.live_jobs():
            self.history.end_job(job, "half", State.FAILED, 1)
        for seconds in (10.0, 305.0):
            self.history.pass_time(seconds)
            self.history.apply()

    @rule()
    def the_database_stops(self) -> None:
        self.history.cluster.accounting.stop()

    @rule()
    def the_database_is_back(self) -> None:
        self.history.cluster.accounting.start(self.history.cluster.now)

    @rule()
    def the_node_dies(self) -> None:
        self.history.cluster.fail_node()

    @rule()
    def the_node_is_back(self) -> None:
        self.history.cluster.return_node()

    @rule(ahead=st.sampled_from([-280.0, 0.0, 280.0]))
    def the_clock_of_this_host_steps(self, ahead: float) -> None:
        self.history.step_clock(ahead)

    @rule(number=KEYS)
    def outputs_are_purged(self, number: int) -> None:
        self.history.purge(self._key(number))

    # --- people

    @rule(run=st.sampled_from(["a", "b", "c"]))
    def a_stranger_begins_a_training(self, run: str) -> None:
        self.history.stranger_trains(run)

    @rule(number=KEYS, verb=st.sampled_from(["hold", "release", "cancel", "rerun"]), now=st.booleans())
    def a_person_says(self, number: int, verb: str, now: bool) -> None:
        self.history.say(verb, self._key(number), now=now)

    @rule(runs=st.sampled_from([["a", "b"], ["a"], ["b", "a"], ["a", "b", "c"], ["c", "b"]]))
    def the_document_is_edited(self, runs: list[str]) -> None:
        self.history.edit_runs(runs)

    @rule(run=st.sampled_from(["a", "b"]), command=st.sampled_from(["echo train", "echo other"]))
    def a_script_is_edited(self, run: str, command: str) -> None:
        self.history.edit_script(run, command)

    @rule(until=st.sampled_from([None, "+10m", "+2h"]))
    def a_person_pauses(self, until: str | None) -> None:
        self.history.pause(until)

    @rule()
    def a_person_resumes(self) -> None:
        self.history.resume()

    @rule(size=st.integers(1, 900))
    def the_end_of_the_ledger_is_lost(self, size: int) -> None:
        self.history.lose_ledger_tail(size)

    @invariant()
    def tell(self) -> None:
        if hasattr(self, "history"):
            note(
                f"{self.history.cluster.now - 2e9:.0f} s: "
                + ", ".join(f"{j.id} {j.state.value}" for j in self.history.live_jobs())
            )


def test_a_lost_ledger_and_an_empty_squeue_submit_nothing_beside_what_the_accounting_has_as_live():
    history = History(Site(has_accounting=True))
    history.apply()
    history.pass_time(60)
    (history.directory / ".reconcile" / "ledger.jsonl").unlink()
    history.wire.faults.inject(Fault("queue", Kind.EMPTY))
    before = len(history.live_jobs())
    history.apply()
    assert len(history.live_jobs()) == before
    history.settle_down()
    history.close()


def test_a_submission_that_surfaces_after_it_was_given_up_never_runs_beside_its_replacement():
    """It was accepted without an answer, waits for its begin time, and neither squeue nor sacct shows it when it is asked for."""
    history = History(Site(shows_waiting=False))
    history.policy = replace(history.policy, stagger=5000.0, max_in_flight=1)
    history.apply()
    history.policy = replace(history.policy, max_in_flight=2)
    history.inject("submit", Kind.LOST_AFTER, 0.0, 1)
    history.apply()
    _, hidden = history.live_jobs()
    history.pass_time(601)
    history.inject("queue", Kind.EMPTY, 0.0, 1)
    history.apply()
    (replacement,) = [job for job in history.live_jobs() if job.name[:-1] == hidden.name[:-1] and job.id != hidden.id]
    assert (replacement.request.held, replacement.hold) == (True, "user")
    history.policy = replace(history.policy, stagger=5.0)
    history.pass_time(20_000)
    history.settle_down()
    history.close()


def test_a_replacement_stays_held_while_nobody_tells_how_what_it_replaces_has_ended():
    history = History(Site(min_job_age=2.0))
    history.inject("submit", Kind.LOST_AFTER, 0.0, 1)
    history.apply()
    history.pass_time(601)
    hidden = history.live_jobs()
    for call in ("queue", "accounting"):
        history.inject(call, Kind.EMPTY, 0.0, 2)
    history.apply()
    assert len(history.live_jobs()) > len(hidden)
    history.cluster.accounting.stop()
    for job in hidden:
        history.end_job(job, "half", State.FAILED, 1)
    history.pass_time(305)
    history.apply()
    history.settle_down()
    history.close()


def test_a_release_said_on_a_host_whose_clock_is_ahead_is_used_up_by_the_next_failure():
    history = History(Site())

    def all_fail() -> None:
        for job in history.live_jobs():
            history.end_job(job, "half", State.FAILED, 1)
        for seconds in (10.0, 305.0):
            history.pass_time(seconds)
            history.apply()

    history.apply()
    all_fail()
    history.step_clock(280)
    for key in history.keys:
        history.say("release", key)
    history.apply()
    history.step_clock(0)
    all_fail()
    history.settle_down()
    history.close()


def test_a_job_that_surfaced_is_not_forgotten_when_its_replacement_was_not_taken():
    """Nothing is submitted beside it, although a later answer of the queue misses it and the newest attempt came to nothing."""
    history = History(Site(has_accounting=False, max_submit_jobs=2))
    history.edit_runs(["a"])
    history.policy = replace(history.policy, max_in_flight=1)
    history.apply()
    (other,) = history.live_jobs()
    history.policy = replace(history.policy, max_in_flight=None)
    history.inject("submit", Kind.LOST_AFTER, 0.0, 1)
    history.apply()
    history.pass_time(601)
    history.inject("queue", Kind.EMPTY, 0.0, 1)
    history.apply()
    history.end_job(other, "whole", State.COMPLETED)
    history.apply()
    history.pass_time(601)
    history.inject("queue", Kind.EMPTY, 0.0, 1)
    history.apply()
    history.settle_down()
    history.close()


def test_a_checkpoint_is_not_made_anew_under_an_evaluation_that_comes_to_light_after_the_rerun():
    """Nothing shows the evaluation's job while the person says ``rerun``; it starts later, and must find its checkpoint."""
    history = History(Site(shows_waiting=False))
    history.edit_runs(["a"])
    history.apply()
    history.pass_time(60)
    for job in history.live_jobs():
        history.end_job(job, "whole", State.COMPLETED)
    history.pass_time(400)
    history.policy = replace(history.policy, stagger=5000.0)
    history.inject("submit", Kind.LOST_AFTER, 0.0, 1)
    history.apply()
    history.pass_time(601)
    history.inject("queue", Kind.EMPTY, 0.0, 2)
    history.apply()
    assert {job.name.partition(".")[0] for job in history.live_jobs()} == {"cap_epoch0"}
    history.say("rerun", "a/finetune")
    history.apply()
    history.pass_time(20_000)
    history.settle_down()
    history.close()


def running(history: History) -> set[int]:
    return {job.id for job in history.live_jobs() if job.state is State.RUNNING and job.name.startswith("cap_base")}


@pytest.mark.parametrize(("lies", "runs_again"), [(2, False), (3, True)])
def test_a_failure_that_the_accounting_denies_is_believed_unless_it_denies_it_settle_apart(lies: int, runs_again: bool) -> None:
    """Nobody heard that the job was accepted, squeue missed it once, and sacct denies that it ran and failed."""
    history = History(Site(min_job_age=2.0))
    history.inject("submit", Kind.LOST_AFTER, 0.0, 1)
    history.apply()
    history.pass_time(601)
    history.inject("queue", Kind.EMPTY, 0.0, 2)  # a pass that submits reads a name back
    history.inject("accounting", Kind.EMPTY, 0.0, lies)
    history.apply()
    (first, replacement) = history.live_jobs()
    assert replacement.hold
    history.end_job(first, "half", State.FAILED, 1)
    for seconds in (10, 300):
        assert not running(history)
        history.pass_time(seconds)
        history.apply()
    history.pass_time(1)
    assert (replacement.id in running(history)) is runs_again
    history.settle_down()
    history.close()


def test_every_promise_holds_in_every_history():
    run_state_machine_as_test(Histories, settings=SETTINGS)
