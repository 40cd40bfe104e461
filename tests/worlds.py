"""Whole worlds in a few lines: an experiment of two steps a run, a cluster in memory, a disk that is a dictionary."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reconciler.errors import ClusterUnreachable, DiskUnreadable
from reconciler.events import Event
from reconciler.fold import fold
from reconciler.model import (
    Action,
    Desired,
    FileId,
    Job,
    Observed,
    Outputs,
    OutputState,
    Phase,
    Policy,
    Reading,
    Reason,
    RunInput,
    RunKind,
    Sign,
    Stage,
    Step,
    Token,
    Unknown,
    digest,
)
from reconciler.plan import Gate, Plan, make_plan
from reconciler.ports import Disk, Submission

HERE = Path("/exp")
NOW = 1_000_000.0


def finetune(run: str = "a", **more: Any) -> Step:
    script = HERE / run / "finetune.slurm"
    out = Path("/scratch") / run
    step = Step(
        f"{run}/finetune", run, Stage.FINETUNE, "trainer", script, out, out.parent, "def", "place", workdir=str(script.parent)
    )
    return replace(step, checkpoints={0: out / "epoch_0"}, **more)


def evaluation(run: str = "a", task: str = "cap", **more: Any) -> Step:
    script = HERE / run / "eval" / f"{task}_epoch0.slurm"
    logs = HERE / run / "eval" / "logs"
    step = Step(f"{run}/eval/{task}_epoch0", run, Stage.EVALUATION, "evaluator", script, logs, HERE / run, "def", "place")
    return replace(step, task=task, epoch=0, need=f"{run}/finetune", **more)


def experiment(*steps: Step) -> Desired:
    return Desired("exp", HERE, HERE / "experiment_summary.md", steps)


def outputs(state: OutputState, *, marked: bool = True, torn: tuple[Path, ...] = (), newest: float | None = None) -> Outputs:
    return Outputs(state, Reason("Seen", f"outputs are {state.value}"), marked, newest, torn=torn, has_work=bool(torn))


ABSENT = outputs(OutputState.ABSENT)
COMPLETE = outputs(OutputState.COMPLETE)
TORN = outputs(OutputState.INCOMPLETE, torn=(Path("/scratch/a/epoch_0"),))


def name_of(step: Step, attempt: int = 1) -> str:
    return Token.of(HERE, step.key, attempt).job_name("job")


def job(step: Step, phase: Phase = Phase.RUNNING, attempt: int = 1, **more: Any) -> Job:
    state = {Phase.RUNNING: "RUNNING", Phase.QUEUED: "PENDING", Phase.ENDED: "COMPLETED", Phase.UNKNOWN: "REVOKED"}[phase]
    seen = Job(id=str(100 + attempt), name=name_of(step, attempt), state=state, phase=phase, submitted=NOW - 1000)
    return replace(seen, **{"ended": NOW - 900 if phase is Phase.ENDED else None, **more})


def event(kind: str, step: Step, at: float, **facts: Any) -> Event:
    return {"event": kind, "at": at, "step": step.key, **facts}


def submitted(step: Step, attempt: int = 1, at: float = NOW - 1000, **more: Any) -> list[Event]:
    intent = event("intent", step, at, attempt=attempt, name=name_of(step, attempt), definition=step.definition, **more)
    return [intent, event("submitted", step, at + 1, attempt=attempt, job=str(100 + attempt))]


_STATES = {"NodeFailure": "NODE_FAIL", "BootFailure": "BOOT_FAIL", "Preempted": "PREEMPTED"}


def ended(step: Step, failure: str, attempt: int = 1, at: float = NOW - 900, **more: Any) -> list[Event]:
    """An attempt that ended so, by Slurm's own word where that has one for it; its outputs were seen to be missing."""
    facts = {"state": _STATES.get(failure, "FAILED"), "failure": failure, "ended": at, **more}
    end = event("ended", step, at, attempt=attempt, job=str(100 + attempt), **facts)
    return [*submitted(step, attempt, at - 100), end, event("missing", step, at, attempt=attempt)]


def done(step: Step, at: float = NOW - 500) -> Event:
    return event("done", step, at, definition=step.definition, meaning=dict(step.meaning))


def plan_for(
    *steps: Step,
    queue: tuple[Job, ...] | Unknown = (),
    accounting: tuple[Job, ...] | Unknown | None = None,
    seen: dict[str, Outputs] | None = None,
    events: list[Event] | None = None,
    policy: Policy | None = None,
    gate: Gate | None = None,
    select: str = "*",
    logs: dict[tuple[str, str], str | Unknown | None] | None = None,
    filesystems: dict[str, int] | None = None,
) -> Plan:
    found = {step.key: ABSENT for step in steps} | (seen or {})
    observed = Observed(queue, accounting, found, logs=logs or {}, uid="1000", filesystems=filesystems or {})
    return make_plan(experiment(*steps), observed, fold(events or []), policy or Policy(), NOW, gate, select)


def decide(step: Step, **world: Any) -> Action:
    return plan_for(step, **world).of(step.key)


@dataclass
class MemoryCluster:
    """A cluster in memory: accepts jobs, and does what a test tells it to do with them."""

    jobs: dict[str, Job] = field(default_factory=dict)
    is_down: bool = False
    fails_with: list[Exception] = field(default_factory=list)
    loses_answer: bool = False
    submissions: list[Submission] = field(default_factory=list)
    name: str = "memory"
    uid: str = "1000"

    def identity(self) -> str:
        return "memory:test"

    def queue(self) -> tuple[Job, ...]:
        if self.is_down:
            raise ClusterUnreachable("squeue: Unable to contact slurm controller")
        return tuple(self.jobs.values())

    def accounting(self, doubt: object) -> tuple[Job, ...]:
        return self.queue()

    def submit(self, job: Submission) -> str:
        if self.fails_with:
            raise self.fails_with.pop(0)
        self.submissions.append(job)
        job_id = str(len(self.submissions))
        self.jobs[job_id] = Job(job_id, job.name, "PENDING", Phase.QUEUED, str(job.directory), held=job.held)
        if self.loses_answer:
            self.loses_answer = False
            raise KeyboardInterrupt
        return job_id

    def finish(self, job_id: str, state: str = "COMPLETED", at: float = NOW) -> None:
        self.jobs[job_id] = replace(self.jobs[job_id], state=state, phase=Phase.ENDED, held=False, ended=at)

    def cancel(self, job_id: str) -> None:
        self.finish(job_id, "CANCELLED")

    def hold(self, job_id: str) -> None:
        self.jobs[job_id] = replace(self.jobs[job_id], held=True)

    def release(self, job_id: str) -> None:
        self.jobs[job_id] = replace(self.jobs[job_id], held=False)


class StandInTool:
    """A tool whose result is one file that says so: ``whole`` verifies, anything else does not."""

    def __init__(self, stage: Stage, *, marked: bool = True) -> None:
        self.stage = stage
        self.marked = marked
        self.name = "trainer" if stage is Stage.FINETUNE else "evaluator"
        self.log_file = f"run-{self.name}.log"
        self.is_default = False
        self.signs: tuple[Sign, ...] = ()
        self.settings: tuple[str, ...] = ("retry", "resume", "time", "mem", "shrink_batch")
        self.root: Path | None = None
        self.result = "result"

    def read(self, run: RunInput, disk: Disk) -> Reading:
        if self.stage is Stage.FINETUNE:
            return Reading((self._step(run, f"{run.name}/finetune", run.directory / "finetune.slurm"),))
        steps = []
        for wanted in run.evaluations:
            cell = f"{wanted.task}_base" if wanted.epoch is None else f"{wanted.task}_epoch{wanted.epoch}"
            step = self._step(run, f"{run.name}/eval/{cell}", run.directory / "eval" / f"{cell}.slurm")
            need = run.preparation_key if run.kind is RunKind.FINE_TUNED else None
            steps.append(replace(step, task=wanted.task, epoch=wanted.epoch, need=need))
        return Reading(tuple(steps))

    def _step(self, run: RunInput, key: str, script: Path) -> Step:
        out = run.directory / "out" / script.stem
        definition = digest(script.read_text()) if script.is_file() else ""
        return Step(
            key,
            run.name,
            self.stage,
            self.name,
            script,
            out,
            self.root or run.directory,
            definition,
            "p",
            checkpoints={0: out},
            job_name=script.stem.partition("_")[0],
            workdir=str(script.parent),
            inputs=self._inputs(run),
            blocked=None if definition else Reason("NotScaffolded", f"{script} is missing"),
        )

    def _inputs(self, run: RunInput) -> dict[str, str]:
        """An evaluation is of the version of ``task.py``, where that can be read."""
        task = run.document.parent / "task.py"
        is_read = self.stage is Stage.EVALUATION and task.is_file()
        return {"task file task.py": digest(task.read_text())} if is_read else {}

    def may_submit(self, step: Step, outputs: Outputs) -> str | None:
        return None

    def log_label(self, step: Step) -> tuple[str, str]:
        return ("SUBMIT_JOB" if self.stage is Stage.FINETUNE else "SUBMIT_EVAL", step.key)

    def check(self, step: Step, disk: Disk, deep: bool = False) -> Outputs:
        try:
            return self._verdict(step, disk)
        except DiskUnreadable as error:
            return Outputs(OutputState.UNKNOWN, Reason("DiskUnknown", str(error)))

    def _verdict(self, step: Step, disk: Disk) -> Outputs:
        file = step.output_dir / self.result
        content = disk.read(file)
        if content is None:
            return Outputs(OutputState.ABSENT, Reason("NoOutputs", "nothing is there"))
        found = disk.stat(file)
        assert found is not None
        newest = found.mtime_ns / 1e9
        if content != b"whole":
            return Outputs(
                OutputState.INCOMPLETE, Reason("Torn", "the result is torn"), torn=(file,), has_work=True, newest=newest
            )
        evidence = (FileId(str(file), found.size, found.mtime_ns),)
        return Outputs(OutputState.COMPLETE, Reason("Whole", "the result is whole"), self.marked, newest, evidence)
