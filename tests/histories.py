"""One experiment on a simulated cluster, everything that may happen to it, and what must hold after each of those things.

A history is a series of calls of ``History``'s methods; the state machine makes thousands up, and a test can spell one out. Ground truth
is kept by the world itself: by what the cluster accepted and started, and by the files that the jobs wrote.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from fake_slurm.backend import FakeBackend
from fake_slurm.cluster import Cluster
from fake_slurm.errors import SlurmError
from fake_slurm.faults import Fault, Kind
from fake_slurm.jobs import Job, State
from fake_slurm.site import Site
from fake_slurm.wire import Wire
from mortality import Killed, Mortality, watched
from reconciler.disk import RealDisk
from reconciler.errors import ReconcileError
from reconciler.fold import fold
from reconciler.ledger import Ledger
from reconciler.loop import Pass, Scene, preview, run_pass
from reconciler.memory import Memory
from reconciler.model import Condition, Policy, Stage, Token, Verb, digest
from reconciler.model import Job as SeenJob
from reconciler.pausing import pause, resume
from reconciler.ports import Doubt, Submission
from reconciler.words import Order, carry_out, release_experiment
from worlds import StandInTool

# In memory where the system offers it: ten thousand histories sync a hundred times each.
_PLACE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
_TOOLS = ("trainer", StandInTool(Stage.FINETUNE, marked=False)), ("evaluator", StandInTool(Stage.EVALUATION))
_AFTER = "\n## Afterwords\n\nWritten by hand; *nobody* touches this.\n"
_TABLE = "\n## Training\n\n| Run Name | Status | Job ID | Started | Completed | Notes |\n|---|---|---|---|---|---|\n"


# What the default policy tries again (see Policy.retry).
_RETRIED = (State.NODE_FAIL, State.BOOT_FAIL, State.PREEMPTED)


class Broken(AssertionError):
    """A promise was broken."""


@dataclass(frozen=True)
class Fate:
    """What becomes of a submission in whose midst the pass is killed: ``lost``, ``accepted``, or ``late`` seconds afterwards, sbatch running on."""

    kind: str
    late: float = 0.0


@dataclass
class _Running:
    """An sbatch that outlived its pass: it keeps the lock until it is done."""

    job: Submission
    due: float
    locks: tuple[int, ...]


@dataclass
class History:
    """The world of one history. Every method leaves it checked, or raises Broken."""

    site: Site = field(default_factory=Site)
    has_table: bool = False
    directory: Path = field(init=False)

    def __post_init__(self) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="reconcile-history-", dir=_PLACE)).resolve()
        self.directory = self._place / "exp"
        self.cluster = Cluster(self.site, now=2_000_000_000.0, started=self._job_starts)
        self.wire = Wire(self.cluster)
        self.policy = Policy(stagger=5.0)
        self.runs = ["a", "b"]
        self.notes: dict[str, str] = {}
        self._asked: set[str] = set()
        self._cancelled: set[str] = set()
        self._failed: set[str] = set()
        self._folded = b"", fold([])
        self._done: set[str] = set()
        self._foreign: set[str] = set()
        self._begun: set[str] = set()
        self._held: set[str] = set()
        self._has_lost_ledger = False
        self.ahead = 0.0
        self._submitting: list[_Running] = []
        self._fate = Fate("accepted")
        self._mortality: Mortality | None = None
        self._broken: list[str] = []
        self._pass_saw_no_queue = False
        for run in self.runs:
            self._scaffold(run)
        (self.directory / "base" / "eval").mkdir(parents=True)
        (self.directory / "base" / "eval" / "cap_base.slurm").write_text("#!/bin/bash\necho base\n")
        self.document.write_text(self._head() + (_TABLE if self.has_table else "") + _AFTER)

    def close(self) -> None:
        """Nothing is left."""
        for sbatch in self._submitting:
            for lock in sbatch.locks:
                os.close(lock)
        shutil.rmtree(self._place)

    # --- the experiment

    @property
    def document(self) -> Path:
        """The document."""
        return self.directory / "experiment_summary.md"

    @property
    def keys(self) -> list[str]:
        """The steps that the document asks for now."""
        return [*(key for run in self.runs for key in (f"{run}/finetune", f"{run}/eval/cap_epoch0")), "base/eval/cap_base"]

    def result(self, key: str) -> Path:
        """The file that a step's job writes."""
        run, _, rest = key.partition("/")
        return self.directory / run / "out" / rest.rpartition("/")[2] / "result"

    def _head(self) -> str:
        rows = "".join(f"| {run} | Fine-tuned |\n" for run in self.runs)
        plan = "".join(f"| {run} | ✓ epoch 0 |\n" for run in self.runs)
        return (
            "# a history\n\n## Tools\n\n- **Model Preparation:** trainer\n- **Evaluation:** evaluator\n\n## All Runs\n\n"
            f"| Run Name | Type |\n|---|---|\n{rows}| base | Control |\n\n## Evaluation Plan\n\n| Run Name | cap |\n|---|---|\n{plan}| base | ✓ |\n"
        )

    def _scaffold(self, run: str) -> None:
        (self.directory / run / "eval").mkdir(parents=True, exist_ok=True)
        (self.directory / run / "finetune.slurm").write_text("#!/bin/bash\necho train\n")
        (self.directory / run / "eval" / "cap_epoch0.slurm").write_text("#!/bin/bash\necho evaluate\n")

    # --- passes

    def scene(self) -> Scene:
        """Everything around one pass."""
        return Scene(
            self.directory,
            self.policy,
            _WatchedBackend(self),
            RealDisk(),
            dict(_TOOLS),
            lambda: self.cluster.now + self.ahead,
            "ana",
            {"HOME": "/home/ana", "USER": "ana"},
        )

    def apply(self) -> Pass | None:
        """One pass to its end; None where it said that it could not."""
        return self._pass(Mortality(self.directory))

    def apply_killed_at(self, effect: int, fate: Fate) -> None:
        """A pass that is killed on entering an effect, if it has so many."""
        self._fate = fate
        self._pass(Mortality(self.directory, dies_at=effect))

    def apply_with_another_beside_it(self, effect: int) -> None:
        """A second pass begins while the first one is at an effect: it must be turned away and change nothing."""
        self._pass(Mortality(self.directory, intrudes_at=effect, intrusion=self._intrude))

    def _intrude(self) -> None:
        is_held, of_the_first = self._lock_is_held(), self._pass_saw_no_queue
        self._pass_saw_no_queue = False
        with watched(Mortality(self.directory)) as second:
            with suppress(ReconcileError):
                run_pass(self.scene())
                if is_held:
                    self._break("a second pass ran beside the first")
            # The lock file may be opened, and its directory made.
            if is_held and second.entered > 2:
                self._break(f"a pass that was turned away had {second.entered} effects")
        self._pass_saw_no_queue = of_the_first  # what the second one could not see is no fault of the first

    def _lock_is_held(self) -> bool:
        """A pass has effects before it has the lock: it makes the lock's file."""
        try:
            descriptor = os.open(self.directory / ".reconcile" / "lock", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _pass(self, mortality: Mortality) -> Pass | None:
        self._mortality = mortality
        seen = None
        try:
            with watched(mortality):
                seen = run_pass(self.scene())
        except (Killed, ReconcileError):
            seen = None
        finally:
            self._mortality = None
            self._pass_saw_no_queue = False
        self._check()
        return seen

    def diff_is_what_apply_does(self) -> None:
        """A preview changes nothing at all, and the pass after it does just that."""
        before = self._tree()
        try:
            shown = preview(self.scene())
        except ReconcileError:
            return
        if self._tree() != before:
            self._break("a preview changed something")
        jobs = len(self.cluster.queue())
        seen = self.apply()
        planned = [(a.step, a.verb, a.reason) for a in shown.plan.actions]
        if seen is not None and [(a.step, a.verb, a.reason) for a in seen.plan.actions] != planned:
            self._break("apply did not do what diff had shown")
        submits = [a for a in shown.plan.actions if a.verb is Verb.SUBMIT]
        if not submits and len(self.cluster.queue()) > jobs:
            self._break("apply submitted what diff had not shown")
        self._check()

    def _tree(self) -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in sorted(self.directory.rglob("*")) if p.is_file()}

    # --- what happens on the cluster

    def pass_time(self, seconds: float) -> None:
        """Time passes; an sbatch that outlived its pass does its work when it is due."""
        until = self.cluster.now + seconds
        for sbatch in sorted(self._submitting, key=lambda each: each.due):
            if sbatch.due <= until:
                self.cluster.advance(max(0.0, sbatch.due - self.cluster.now))
                self._submitting.remove(sbatch)
                with suppress(ReconcileError):
                    _WatchedBackend(self).hand_over(sbatch.job)
                for lock in sbatch.locks:
                    os.close(lock)
        self.cluster.advance(until - self.cluster.now)
        self._check()

    def live_jobs(self) -> list[Job]:
        """The jobs of this experiment that have not ended, oldest first."""
        return [job for job in self.cluster.queue() if not job.state.is_final and self._key(job) is not None]

    def end_job(self, job: Job, content: str | None, state: State, exit_code: int = 0) -> None:
        """A running job ends, having written ``content`` (None: nothing)."""
        key = self._key(job)
        if job.state.has_resources and key is not None:
            if content is not None:
                self._write(key, content)
            self.cluster.finish(job.id, exit_code, state=state)
            has_ended_so = job.state is not State.COMPLETING and state not in _RETRIED
            if has_ended_so and not self._is_whole(key) and self._will_be_told(job, key):
                self._failed.add(key)
        self._check()

    def write_half(self, job: Job) -> None:
        """A running job is in the middle of its result."""
        key = self._key(job)
        if job.state.has_resources and key is not None:
            self._write(key, "ha")

    def act_on_job(self, job: Job, verb: str) -> None:
        """A person's ``scancel`` or ``scontrol hold|release|requeue``. Who lets a replacement start by hand, beside the job that it
        replaces or after that one's failure, has it so by their own word: that is nobody's promise."""
        if verb == "release" and job.request.held:
            return
        try:
            getattr(self.cluster, verb)(job.id, 1000)
        except SlurmError:
            return
        key = self._key(job)
        if verb == "cancel" and key is not None and self._will_be_told(job, key):
            self._cancelled.add(key)
        if verb == "requeue" and key is not None:
            self._cancelled.discard(key)
            self._failed.discard(key)
        self._check()

    def _will_be_told(self, job: Job, key: str) -> bool:
        """Without accounting a job that ended and was forgotten by the queue between two passes left no trace anywhere, and none that
        anybody looks for where the ledger was lost before. How a job ends that a rerun replaces does not matter any more."""
        known = self._memory().of(key)
        replaced = known.rerun.order if known.rerun is not None else 0
        return self.site.has_accounting and any(a.name == job.name and a.order > replaced for a in known.attempts)

    def accounting_denied(self, names: set[str]) -> None:
        """How a job ended that was given up for lost is told by the accounting alone: where it denies that job, nobody can know."""
        for key, step in self._memory().steps.items():
            if any(a.name in names and a.lost and a.end is None for a in step.attempts):
                self._failed.discard(key)
                self._cancelled.discard(key)

    def purge(self, key: str) -> None:
        """A file system's cleaning takes the outputs of an evaluation that was done."""
        if "/eval/" in key and key in self._done:
            self.result(key).unlink(missing_ok=True)
            self._check()

    def step_clock(self, ahead: float) -> None:
        """From now on this host's clock is so many seconds ahead of the cluster's; munge allows five minutes."""
        self.ahead = ahead

    def stranger_trains(self, run: str) -> None:
        """Somebody begins a training where a step of ours would write, and no job of ours ever did: the ledger may have lost it."""
        key = f"{run}/finetune"
        has_jobs = self._submitting or key in self._begun or any(self._key(job) == key for job in self.cluster.queue())
        known = self._memory().of(key)
        is_untouched = not known.attempts and known.rerun is None and not self.result(key).exists()
        if run in self.runs and not has_jobs and is_untouched:
            self._write(key, "a stranger's")
            self._foreign.add(key)

    def inject(self, call: str, kind: Kind, seconds: float, times: int) -> None:
        """The next calls of a kind go wrong.

        A ledger that lost its end and a squeue that is empty by mistake are one lie too many where the accounting is silent as well:
        nothing is left then by which a live job could be known.
        """
        if self._has_lost_ledger and kind is Kind.EMPTY:
            kind = Kind.DOWN
        self.wire.faults.inject(Fault(call, kind, seconds=seconds, times=times))

    def _write(self, key: str, content: str) -> None:
        path = self.result(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        os.utime(path, (self.cluster.now, self.cluster.now))

    # --- what people do

    def say(self, verb: str, key: str, *, now: bool = False) -> None:
        """A person's word on a step; refused ones change nothing. One that is in writing holds, also where the cluster then failed."""
        before = len(self._memory().of(key).words)
        try:
            said = bool(carry_out(self.scene(), Order(verb, (key,), now=now), lambda prospect: True))
        except ReconcileError:
            said = len(self._memory().of(key).words) > before
            if not said:
                return
        if said and verb == "rerun":
            self._asked.add(key)
            self._done.discard(key)
            self._foreign.discard(key)
        if verb in ("rerun", "release"):
            self._cancelled.discard(key)
            self._failed.discard(key)
            self._held.discard(key)
        if said and verb in ("hold", "cancel"):
            self._held.add(key)
        self._check()

    def release_experiment(self) -> None:
        """Submissions may go on after a wave of failures."""
        try:
            release_experiment(self.scene())
        except ReconcileError:
            return

    def pause(self, until: str | None) -> None:
        """Nothing is to start until then, or until ``resume``."""
        with suppress(ReconcileError):
            pause(self.scene(), until, "", lambda prospect: True)
        self._check()

    def resume(self) -> None:
        """Submissions go on."""
        with suppress(ReconcileError):
            resume(self.scene(), "", lambda prospect: True)
        self._check()

    def edit_runs(self, runs: list[str]) -> None:
        """The document is saved with other runs; the scaffolding of new ones is there."""
        head, self.runs = self._head(), list(runs)
        for run in runs:
            if not (self.directory / run).exists():
                self._scaffold(run)
        self.document.write_text(self._head() + self.document.read_text()[len(head) :])

    def edit_script(self, run: str, command: str) -> None:
        """What a run does is changed."""
        (self.directory / run / "finetune.slurm").write_text(f"#!/bin/bash\n{command}\n")

    def lose_ledger_tail(self, size: int) -> None:
        """The last bytes of the ledger never reached the disk. What only they told is forgotten, a person's words among it."""
        path = self.directory / ".reconcile" / "ledger.jsonl"
        if path.exists():
            os.truncate(path, max(0, path.stat().st_size - size))
            self._has_lost_ledger = True
            self.wire.faults.pending[:] = [fault for fault in self.wire.faults.pending if fault.kind is not Kind.EMPTY]
            self._cancelled.clear()
            self._failed.clear()
            self._held.clear()
            self._done &= self._recorded_done()

    # --- what must hold

    def _check(self) -> None:
        self._at_most_one_live_job_a_step()
        self._done_only_with_evidence()
        self._document_is_the_persons()
        for key in self._foreign:
            if not self.result(key).exists() or self.result(key).read_text() != "a stranger's":
                self._break(f"{key}: a stranger's outputs were touched")
        if self._broken:
            raise Broken("; ".join(self._broken))

    def _at_most_one_live_job_a_step(self) -> None:
        live: dict[str, list[Job]] = {}
        for job in self.live_jobs():
            live.setdefault(self._key(job) or "", []).append(job)
        for key, jobs in live.items():
            # Replacements that were submitted held beside one thought lost do not start before that is settled.
            free = [job for job in jobs if not (job.request.held and job.hold and job.state is State.PENDING)]
            if len(free) > 1:
                self._break(f"{key} has jobs {[(job.id, job.state.value, job.hold) for job in jobs]} at once")

    def _done_only_with_evidence(self) -> None:
        memory = self._memory()
        for key, step in memory.steps.items():
            if step.done is None or step.done.by_person or key in self._done:
                continue
            if not self._is_whole(key):
                self._break(f"{key} was called done without a result")
            self._done.add(key)
            self._asked.discard(key)

    def _document_is_the_persons(self) -> None:
        text = self.document.read_text()
        if not text.startswith(self._head()) or text.count(_AFTER) != 1:
            self._break("the document was changed outside the status tables")
        ours = text[len(self._head()) :].replace(_AFTER, "\n")
        for line in ours.splitlines():
            if line and not line.startswith(("|", "#")):
                self._break(f"a line appeared in the document: {line!r}")

    def _job_starts(self, job: Job) -> None:
        """Told by the cluster when a job begins to run."""
        key = self._key(job)
        self._begun.add(key or "")
        if key in self._cancelled:
            self._break(f"{key} was cancelled by a person and runs again, unasked")
        if key in self._failed:
            self._break(f"{key} failed in a way that is not tried again, and runs again, unasked")
        if key is None or "/eval/" not in key or key.startswith("base/"):
            return
        if not self._is_whole(f"{key.partition('/')[0]}/finetune"):
            self._break(f"{key} began before its checkpoint")

    def judge_submission(self, job: Submission) -> None:
        """Told before the cluster is asked to accept a job."""
        token = Token.parse(job.name)
        key = self._keys_by_token().get(token.step) if token else None
        if key is None:
            self._break(f"a job was submitted whose name tells nothing: {job.name}")
            return
        if self._pass_saw_no_queue:
            self._break(f"{key} was submitted by a pass that could not see the queue")
        if key not in self._asked and (key in self._done or self._is_whole(key)):
            self._break(f"{key} was verified and is submitted again, unasked")
        standing = self._memory().pause
        if standing is not None and standing.is_on(self.scene().clock()):  # by the clock of the host that passes
            self._break(f"{key} is submitted in a pause")
        if key in self._held:
            self._break(f"{key} is held by a person's word and is submitted")
        if key in self._foreign:
            self._break(f"{key} is submitted over a stranger's outputs")
        if key in self._cancelled and not job.held:  # a held one starts only when nothing has surfaced, see _job_starts
            self._break(f"{key} was cancelled by a person and is submitted again, unasked")

    def queue_was_not_seen(self) -> None:
        """Told when a query of the queue failed; what a person's command could not see concerns no pass."""
        self._pass_saw_no_queue = self._mortality is not None

    def _key(self, job: Job) -> str | None:
        token = Token.parse(job.name)
        return self._keys_by_token().get(token.step) if token else None

    def _is_whole(self, key: str) -> bool:
        path = self.result(key)
        return path.exists() and path.read_text() == "whole"

    def _keys_by_token(self) -> dict[str, str]:
        runs = [p.name for p in self.directory.iterdir() if p.is_dir() and not p.name.startswith(".")]
        keys = [f"{run}/{rest}" for run in runs for rest in ("finetune", "eval/cap_epoch0", "eval/cap_base")]
        return {digest(key)[:10]: key for key in keys}

    def _memory(self) -> Memory:
        """What the ledger says, folded again only where it is another."""
        ledger = Ledger(self.directory, lambda: self.cluster.now)
        content = ledger.path.read_bytes() if ledger.path.exists() else b""
        if self._folded[0] != content:
            self._folded = content, ledger.memory()
        return self._folded[1]

    def _recorded_done(self) -> set[str]:
        return {key for key, step in self._memory().steps.items() if step.done is not None}

    def _break(self, what: str) -> None:
        self._broken.append(what)

    # --- the end

    def settle_down(self, passes: int = 60) -> None:
        """All faults stop, jobs succeed, a person answers what is asked: within so many passes everything is done, and stays so."""
        self.wire.faults.clear()
        self.cluster.accounting.start(self.cluster.now)
        self.cluster.return_node()
        self.policy = replace(self.policy, max_in_flight=None)
        self.resume()
        for _ in range(passes):
            self.pass_time(400)
            for job in self.live_jobs():
                if job.state is State.SUSPENDED:
                    self.cluster.resume(job.id)
                if job.state.has_resources:
                    self.end_job(job, "whole", State.COMPLETED)
            seen = self.apply()
            if seen is not None and seen.converged:
                break
            if seen is not None:
                self._answer(seen)
        else:
            self._break(
                f"not converged after {passes} passes: {[(a.step, a.reason.code) for a in preview(self.scene()).actions]}"
            )
        self._check()
        before = self._tree()
        again = self.apply()
        if again is None or not again.converged or self._tree() != before:
            self._break("a pass after convergence changed something")
        self._check()

    def _answer(self, seen: Pass) -> None:
        """What a person who reads the reasons would say."""
        for action in seen.actions:
            code = action.reason.code
            if code == "ManyFailures":
                self.release_experiment()
            elif action.condition is Condition.DRIFTED:
                self.say("accept", action.step)
            elif code == "NeedHeld":
                self.say("release", f"{action.step.partition('/')[0]}/finetune")
            elif code in ("OutputsNotOurs", "AmbiguousOutputs"):
                self.say("rerun", action.step)
            elif code == "SeveralJobs" and action.job is not None:
                self.cluster.cancel(int(action.job))
            elif action.condition.needs_person:
                self.say("release", action.step)
                if code == "JobHeld" and action.job is not None:
                    self._release_by_force(int(action.job))

    def _release_by_force(self, job_id: int) -> None:
        try:
            self.cluster.release(job_id)
        except SlurmError:
            return


class _WatchedBackend(FakeBackend):
    """The fake's own backend, its effects counted, the submissions judged, and a pass that may die in the midst of one."""

    def __init__(self, history: History) -> None:
        super().__init__(history.wire)
        self._history = history

    def queue(self):  # type: ignore[no-untyped-def]
        try:
            return super().queue()
        except ReconcileError:
            self._history.queue_was_not_seen()
            raise

    def accounting(self, doubt: Doubt) -> tuple[SeenJob, ...]:
        told = super().accounting(doubt)
        truth = FakeBackend(Wire(self._history.cluster)).accounting(doubt)
        self._history.accounting_denied({job.name for job in truth} - {job.name for job in told})
        return told

    def submit(self, job: Submission) -> str:
        mortality, fate = self._history._mortality, self._history._fate
        if mortality is None or mortality.dies_at != mortality.entered:
            self._enter()
            answer = self.hand_over(job)
            self._enter()
            return answer
        if fate.kind == "accepted":
            self.hand_over(job)
        elif fate.kind == "late":
            locks = tuple(os.dup(lock) for lock in job.keep_open)
            self._history._submitting.append(_Running(job, self._history.cluster.now + fate.late, locks))
        self._enter()
        raise AssertionError("unreachable: the pass is dead")

    def hand_over(self, job: Submission) -> str:
        """What sbatch itself does, whoever waits for it."""
        self._history.judge_submission(job)
        return super().submit(job)

    def cancel(self, job_id: str) -> None:
        self._effect(lambda: FakeBackend.cancel(self, job_id))

    def hold(self, job_id: str) -> None:
        self._effect(lambda: FakeBackend.hold(self, job_id))

    def release(self, job_id: str) -> None:
        self._effect(lambda: FakeBackend.release(self, job_id))

    def _effect(self, do: Callable[[], None]) -> None:
        self._enter()
        do()
        self._enter()

    def _enter(self) -> None:
        if self._history._mortality is not None:
            self._history._mortality.enter()
