"""Scenarios that every face of Slurm must tell in the same facts: the simulated cluster's, and the real one's.

A scenario is a function of a ``World``. It does things through a ``ports.Backend`` and as a person, and what it sees on its way is the
world's ``story``; two faces agree where their stories are equal. Where real and simulated differ, the simulation is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from reconciler.errors import ReconcileError
from reconciler.model import Job, Phase
from reconciler.ports import Backend, Doubt, Submission

_ALL_NEWS = 7.0  # s; of jobs that wait, slurmdbd hears every 5 s
NEVER = "which never showed what was waited for"


class Face(Protocol):
    """One way to a cluster that nobody else uses at the time, but for other scenarios of this suite."""

    backend: Backend
    directory: Path
    patience: float

    def person(self, verb: str, job: str) -> bool:
        """The user's own ``scancel`` or ``scontrol VERB``; whether it was obeyed."""
        ...

    def admin(self, verb: str, job: str) -> None:
        """The same as the administrator."""
        ...

    def now(self) -> float:
        """The cluster's clock."""
        ...

    def let(self, seconds: float) -> None:
        """Time passes."""
        ...

    def stop(self, what: str) -> None:
        """``database`` or ``controller`` goes away."""
        ...


@dataclass
class World:
    """A face, and what was seen through it."""

    face: Face
    story: list[tuple[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._begun = self.face.now() - 60

    def submit(self, body: str = "true", name: str = "job", options: str = "", directory: str = "plain", **more: Any) -> str:
        """The id of a job with this script; what became of a submission that failed is told, and its id is empty."""
        place = self.face.directory / directory
        place.mkdir(exist_ok=True)
        place.chmod(0o777)
        script = place / f"{len(self.story)}-{time.monotonic_ns()}.slurm"
        script.write_text(f"#!/bin/bash\n#SBATCH --ntasks=1 --time=60 --output=out-%j\n{options}\n{body}\n")
        try:
            job = self.face.backend.submit(Submission(script, name, **more))
        except ReconcileError as error:
            self.story.append(("submission", type(error).__name__))
            return ""
        self.story.append(("submission", "accepted"))
        return job

    def tell(self, verb: str, job: str) -> None:
        """The backend's ``cancel``, ``hold`` or ``release``, and how it went."""
        try:
            getattr(self.face.backend, verb)(job)
        except ReconcileError as error:
            self.story.append((verb, type(error).__name__))
        else:
            self.story.append((verb, "done"))

    def person(self, verb: str, job: str) -> None:
        """What the user does by hand, and whether Slurm obeyed."""
        self.story.append((f"by hand: {verb}", self.face.person(verb, job)))

    def until(self, job: str, what: Callable[[Job | None], bool], label: str, patience: float = 0.0) -> None:
        """The queue, once it shows of the job what is waited for; ``patience`` (s) is the face's where it is not given."""
        self._wait(lambda: self._queued(job), what, label, patience)

    def until_state(self, job: str, state: str) -> None:
        """The queue, once the job has this state."""
        self.until(job, lambda seen: seen is not None and seen.state == state, "queue")

    def see(self, job: str) -> None:
        """The queue as it is now."""
        self.story.append(("queue", self.facts(self._queued(job))))

    def account_window(self, job: str) -> None:
        """What the accounting tells where no id is known, after time for all news to have arrived."""
        self.face.let(_ALL_NEWS)
        self.story.append(("accounting, no id known", self.facts(self._accounted(job, is_unnamed=True))))

    def account(self, job: str, state: str) -> None:
        """The accounting, once it shows the job in this state, and its end where that is one (a slurmdbd that is behind tells the
        state first); asked by its id, and by what is known of jobs whose ids are not."""
        for unnamed in (False, True):
            label = "accounting, no id known" if unnamed else "accounting"
            look = partial(self._accounted, job, unnamed)
            self._wait(look, lambda seen: seen is not None and seen.state == state and _is_whole(seen), label)

    def ask(self, what: str) -> None:
        """Whether a query is answered at all."""
        doubt = Doubt(self._begun, ("1",), has_unnamed=True)
        questions: dict[str, Callable[[], Any]] = {
            "queue": self.face.backend.queue,
            "accounting": lambda: self.face.backend.accounting(doubt),
            "identity": self.face.backend.identity,
        }
        try:
            questions[what]()
        except ReconcileError as error:
            self.story.append((what, type(error).__name__))
        else:
            self.story.append((what, "answered"))

    def _queued(self, job: str) -> Job | None:
        return next((seen for seen in self.face.backend.queue() if seen.id == job), None)

    def _accounted(self, job: str, is_unnamed: bool) -> Job | None:
        doubt = Doubt(self._begun, (job,), has_unnamed=is_unnamed)
        return next((seen for seen in self.face.backend.accounting(doubt) if seen.id == job), None)

    def _wait(
        self, look: Callable[[], Job | None], what: Callable[[Job | None], bool], label: str, patience: float = 0.0
    ) -> None:
        end = self.face.now() + (patience or self.face.patience)
        seen = look()
        while not what(seen) and self.face.now() < end:
            self.face.let(0.5)
            seen = look()
        self.story.append((label if what(seen) else f"{label}, {NEVER}", self.facts(seen)))

    def facts(self, job: Job | None) -> dict[str, Any] | None:
        """What faces have to agree on of a job; None where it is not shown."""
        if job is None:
            return None
        begins_in = None if job.begins is None or job.submitted is None else job.begins - job.submitted
        return {
            "name": job.name,
            "state": job.state,
            "phase": job.phase.value,
            "held": job.held,
            "reason": job.pending_reason,
            # Of a job that was cancelled while it ran the queue tells 0:15 or 143:0, by which process heard of it first.
            "exit": job.exit_code if job.state != "CANCELLED" or job.source == "sacct" else "",
            "workdir": job.workdir.replace(str(self.face.directory), "…"),
            "begins": None if begins_in is None else "at once" if begins_in < 60 else "soon" if begins_in < 600 else "later",
            "has started": job.started is not None,
            "has ended": job.ended is not None,
            "was cancelled by somebody": bool(job.cancelled_by),
            "has nodes": bool(job.nodes),
            "source": job.source,
        }


def _is_whole(job: Job) -> bool:
    return job.phase is not Phase.ENDED or job.ended is not None


# --- scenarios ---------------------------------------------------------------------------------------


def a_job_completes(w: World) -> None:
    job = w.submit("sleep 1")
    w.until_state(job, "COMPLETED")
    w.account(job, "COMPLETED")


def a_job_fails_with_an_exit_code(w: World) -> None:
    job = w.submit("exit 3")
    w.until_state(job, "FAILED")
    w.account(job, "FAILED")


def a_job_is_killed_by_a_signal(w: World) -> None:
    job = w.submit("kill -9 $$")
    w.until_state(job, "FAILED")
    w.account(job, "FAILED")


def a_job_runs_and_is_cancelled(w: World) -> None:
    job = w.submit("sleep 600")
    w.until_state(job, "RUNNING")
    w.account(job, "RUNNING")
    w.tell("cancel", job)
    w.until_state(job, "CANCELLED")
    w.account(job, "CANCELLED")
    for verb in ("cancel", "hold", "release"):
        w.tell(verb, job)


def a_job_submitted_held_is_cancelled(w: World) -> None:
    job = w.submit(held=True)
    w.until_state(job, "PENDING")
    w.account_window(job)
    w.tell("cancel", job)
    w.until_state(job, "CANCELLED")
    w.account(job, "CANCELLED")


def a_job_submitted_held_is_released_and_completes(w: World) -> None:
    job = w.submit("sleep 1", held=True)
    w.until(job, lambda seen: seen is not None and seen.held, "queue")
    w.tell("release", job)
    w.until_state(job, "COMPLETED")
    w.account(job, "COMPLETED")


def a_job_that_waits_for_its_time_is_held_and_released_by_a_person(w: World) -> None:
    job = w.submit(begin_in=3600)
    w.until(job, lambda seen: seen is not None and seen.pending_reason == "BeginTime", "queue")
    w.person("hold", job)
    w.until(job, lambda seen: seen is not None and seen.held, "queue")
    w.account_window(job)
    w.person("release", job)
    w.until(job, lambda seen: seen is not None and seen.pending_reason == "BeginTime", "queue")
    w.tell("hold", job)
    w.until(job, lambda seen: seen is not None and seen.held, "queue")
    w.person("cancel", job)
    w.until_state(job, "CANCELLED")


def a_job_that_waits_for_its_time_is_cancelled(w: World) -> None:
    job = w.submit(begin_in=3600)
    w.until(job, lambda seen: seen is not None and seen.pending_reason == "BeginTime", "queue")
    w.account_window(job)
    w.tell("cancel", job)
    w.until_state(job, "CANCELLED")
    w.account(job, "CANCELLED")


def a_job_begins_when_its_time_has_come(w: World) -> None:
    job = w.submit("sleep 1", begin_in=5)
    w.until(job, lambda seen: seen is not None and seen.pending_reason == "BeginTime", "queue")
    w.until_state(job, "COMPLETED")
    w.account(job, "COMPLETED")


def an_administrators_hold_is_not_the_users_to_undo(w: World) -> None:
    job = w.submit(begin_in=3600)
    w.until(job, lambda seen: seen is not None and seen.pending_reason == "BeginTime", "queue")
    w.face.admin("hold", job)
    w.until(job, lambda seen: seen is not None and seen.held, "queue")
    w.tell("release", job)
    w.see(job)
    w.tell("cancel", job)
    w.until_state(job, "CANCELLED")


def an_administrator_cancels(w: World) -> None:
    job = w.submit("sleep 600")
    w.until_state(job, "RUNNING")
    w.face.admin("cancel", job)
    w.until_state(job, "CANCELLED")
    w.account(job, "CANCELLED")


def a_running_job_is_requeued_by_a_person(w: World) -> None:
    job = w.submit("sleep 600", requeue=True)
    w.until_state(job, "RUNNING")
    w.face.let(2)  # or the new submission would be of the same second as the first
    w.person("requeue", job)
    w.until(job, lambda seen: seen is not None and seen.pending_reason == "BeginTime", "queue")
    w.account_window(job)  # REQUEUED; asked by id, it is PENDING again once slurmdbd has heard so
    w.person("requeue", job)  # it is pending: refused
    w.tell("cancel", job)
    w.until_state(job, "CANCELLED")
    w.account(job, "CANCELLED")


def a_running_job_is_requeued_and_held_by_a_person(w: World) -> None:
    job = w.submit("sleep 600", requeue=True)
    w.until_state(job, "RUNNING")
    w.person("requeuehold", job)
    w.until(job, lambda seen: seen is not None and seen.held, "queue")
    w.tell("release", job)
    w.until(job, lambda seen: seen is not None and not seen.held and seen.pending_reason == "BeginTime", "queue")
    w.tell("cancel", job)
    w.until_state(job, "CANCELLED")


def a_job_held_while_it_runs_stays_in_the_queue_once_requeued(w: World) -> None:
    job = w.submit("sleep 600", requeue=True)
    w.until_state(job, "RUNNING")
    w.tell("hold", job)
    w.see(job)
    w.person("requeue", job)
    w.until(job, lambda seen: seen is not None and seen.held, "queue")
    w.tell("cancel", job)
    w.until_state(job, "CANCELLED")


def a_job_that_may_not_be_requeued_runs_on(w: World) -> None:
    job = w.submit("sleep 600", requeue=False)
    w.until_state(job, "RUNNING")
    w.person("requeue", job)
    w.see(job)
    w.tell("cancel", job)
    w.until_state(job, "CANCELLED")


def an_ended_job_is_requeued_by_a_person(w: World) -> None:
    job = w.submit("exit 3", requeue=True)
    w.until_state(job, "FAILED")
    w.account(job, "FAILED")
    w.person("requeue", job)
    w.until(job, lambda seen: seen is not None and seen.pending_reason == "BeginTime", "queue")
    w.tell("cancel", job)
    w.until_state(job, "CANCELLED")


def bad_submissions_are_refused(w: World) -> None:
    w.submit(options="#SBATCH --partition=nosuch")
    w.submit(options="#SBATCH --no-such-option")
    w.submit(options="#SBATCH --time=soon")
    w.submit(options="#SBATCH --dependency=bad")
    w.submit(name="n" * 1200)
    name = f"too-much-{time.monotonic_ns()}"
    w.submit(name=name, options="#SBATCH --mem=1000G")
    left = next((job for job in w.face.backend.queue() if job.name == name), None)
    w.story.append(("what a refused job leaves", left and {**w.facts(left), "name": ""}))


def a_job_waits_for_one_that_failed(w: World) -> None:
    first = w.submit("exit 1")
    w.until_state(first, "FAILED")
    job = w.submit(options=f"#SBATCH --dependency=afterok:{first}")
    w.until(job, lambda seen: seen is not None and seen.pending_reason == "DependencyNeverSatisfied", "queue")
    w.account_window(job)
    w.tell("cancel", job)
    w.until_state(job, "CANCELLED")
    w.account(job, "CANCELLED")


def a_job_waits_for_one_that_runs(w: World) -> None:
    first = w.submit("sleep 600")
    w.until_state(first, "RUNNING")
    job = w.submit("sleep 1", options=f"#SBATCH --dependency=afterany:{first}")
    w.until(job, lambda seen: seen is not None and seen.pending_reason == "Dependency", "queue")
    w.tell("cancel", first)
    w.until_state(job, "COMPLETED")


def a_job_whose_output_directory_is_missing_fails(w: World) -> None:
    job = w.submit(options="#SBATCH --output=/proc/nosuch/out")  # a place that nobody can make, as 24.11 would
    w.until_state(job, "FAILED")
    w.account(job, "FAILED")


def a_directory_may_have_any_name(w: World) -> None:
    job = w.submit("sleep 1", directory="mit Leerzeichen, ü|=")
    w.until_state(job, "COMPLETED")
    w.account(job, "COMPLETED")


def a_percent_sign_in_a_directory_is_taken_for_a_pattern(w: World) -> None:
    """On 22.05; 24.11 makes the directory that the pattern leads to, and writes there."""
    job = w.submit("sleep 1", directory="100%x")
    w.until_state(job, "FAILED")
    w.account(job, "FAILED")


def an_ended_job_leaves_the_queue_and_stays_in_the_accounting(w: World) -> None:
    job = w.submit("exit 2")
    w.until_state(job, "FAILED")
    w.until(job, lambda seen: seen is None, "queue, later", patience=120.0)
    w.account(job, "FAILED")


def unknown_ids_are_no_error(w: World) -> None:
    for verb in ("cancel", "hold", "release"):
        w.tell(verb, "66000000")
    w.ask("identity")
    w.ask("queue")


NAMES = {
    "spaces": "two words",
    "equals and plus": "lr=1e-5 +x",
    "umlauts": "größe-ü",
    "a bar": "a|b",
    "a line break": "one\ntwo",
    "a comma and a hash": "a,b#c",
    "quotes": 'it\'s "so"',
    "255 characters": "n" * 255,
}


def jobs_may_have_any_name(w: World) -> None:
    jobs = [w.submit(name=name, held=True) for name in NAMES.values()]
    w.face.let(_ALL_NEWS)
    for job in jobs:
        w.see(job)
        w.tell("cancel", job)
    for job in jobs:
        w.until_state(job, "CANCELLED")
        w.account(job, "CANCELLED")


SCENARIOS = (
    a_job_completes, a_job_fails_with_an_exit_code, a_job_is_killed_by_a_signal, a_job_runs_and_is_cancelled,
    a_job_submitted_held_is_cancelled, a_job_submitted_held_is_released_and_completes,
    a_job_that_waits_for_its_time_is_held_and_released_by_a_person, a_job_that_waits_for_its_time_is_cancelled,
    a_job_begins_when_its_time_has_come, an_administrators_hold_is_not_the_users_to_undo, an_administrator_cancels,
    a_running_job_is_requeued_by_a_person, a_running_job_is_requeued_and_held_by_a_person,
    a_job_held_while_it_runs_stays_in_the_queue_once_requeued, a_job_that_may_not_be_requeued_runs_on,
    an_ended_job_is_requeued_by_a_person, bad_submissions_are_refused, a_job_waits_for_one_that_failed,
    a_job_waits_for_one_that_runs, a_job_whose_output_directory_is_missing_fails, a_directory_may_have_any_name,
    an_ended_job_leaves_the_queue_and_stays_in_the_accounting, unknown_ids_are_no_error, jobs_may_have_any_name,
)  # fmt: skip


OF_22_05 = (a_percent_sign_in_a_directory_is_taken_for_a_pattern,)


# Those that nothing else may run beside, or that need a cluster of their own.


def a_job_reaches_its_time_limit(w: World) -> None:
    job = w.submit("sleep 600", options="#SBATCH --time=1")
    w.until_state(job, "TIMEOUT")
    w.account(job, "TIMEOUT")


def the_database_is_down(w: World) -> None:
    job = w.submit("sleep 600")
    w.until_state(job, "RUNNING")
    w.face.stop("database")
    for what in ("accounting", "queue"):
        w.ask(what)
    w.tell("cancel", job)
    w.until_state(job, "CANCELLED")


def the_controller_is_down(w: World) -> None:
    job = w.submit("sleep 600")
    w.until_state(job, "RUNNING")
    w.account(job, "RUNNING")
    w.face.stop("controller")
    w.ask("queue")
    w.ask("accounting")
    w.submit()


def there_is_no_accounting(w: World) -> None:
    job = w.submit("exit 1")
    w.until_state(job, "FAILED")
    w.ask("accounting")
    w.ask("identity")


ALONE = (a_job_reaches_its_time_limit, the_database_is_down, the_controller_is_down)
WITHOUT_ACCOUNTING = (there_is_no_accounting,)

Scenario = Callable[[World], None]


def words(scenario: Scenario) -> str:
    """A scenario's name as a sentence."""
    return scenario.__name__.replace("_", " ")


def story(scenario: Scenario, face: Face) -> list[tuple[str, Any]]:
    """What is seen of a scenario through a face."""
    world = World(face)
    scenario(world)
    return world.story


def differences(mine: list[tuple[str, Any]], theirs: list[tuple[str, Any]]) -> list[str]:
    """Where two stories differ, one line each; empty where they agree."""
    found = []
    for number in range(max(len(mine), len(theirs))):
        one, other = (story[number] if number < len(story) else ("nothing", None) for story in (mine, theirs))
        if one == other:
            continue
        if isinstance(one[1], dict) and isinstance(other[1], dict) and one[0] == other[0]:
            keys = [key for key in {**one[1], **other[1]} if one[1].get(key) != other[1].get(key)]
            found += [f"{number}, {one[0]}: {key} is {one[1].get(key)!r} and {other[1].get(key)!r}" for key in keys]
        else:
            found.append(f"{number}: {one!r} and {other!r}")
    return found


def table(results: dict[str, dict[str, str]]) -> str:
    """Scenario by face."""
    faces = list(dict.fromkeys(face for row in results.values() for face in row))
    width = max(len(name) for name in results)
    lines = [" | ".join([f"{'':{width}}", *faces])]
    lines += [" | ".join([f"{n:{width}}", *(f"{row.get(f, '-'):{len(f)}}" for f in faces)]) for n, row in results.items()]
    return "\n".join(lines)
