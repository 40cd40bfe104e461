"""The words of the product as values: what is desired, what was observed, what will be done and why.

Frozen data only. Nothing here reads a clock, a disk or a cluster. Times are seconds since the epoch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from reconciler.errors import NoSuchStep, Problem
from reconciler.spelling import closest


class Stage(str, Enum):
    """Which part of the pipeline a step belongs to."""

    FINETUNE = "finetune"
    EVALUATION = "evaluation"


class RunKind(str, Enum):
    """What the document's Type column says of a run."""

    FINE_TUNED = "fine-tuned"
    CONTROL = "control"
    EVAL_ONLY = "eval-only"


@dataclass(frozen=True)
class Reason:
    """Why: ``code`` is CamelCase and stable, for machines; ``message`` is one sentence, for people."""

    code: str
    message: str


# Codes that decide something, and are not only told.
NEED_UNMET = "NeedUnmet"
NEED_BLOCKED = "NeedBlocked"
OUTPUTS_MISSING = "OutputsMissing"
DISK_QUOTA = "DiskQuota"
CANARY_FAILED = "CanaryFailed"
CANARY_HELD = "CanaryHeld"
NOT_SELECTED = "NotSelected"


@dataclass(frozen=True)
class Sign:
    """A line of a job's log that tells why the job failed: the class of failure that it stands for, a regular expression (one
    line, not anchored), and a line as it was seen. ``without_gpus`` is the class where the job surely got none, for want of
    asking (empty: the same)."""

    failure: str
    pattern: str
    sample: str
    without_gpus: str = ""


@dataclass(frozen=True)
class Edit:
    """One top-level value of a run's configuration, as it is and as it shall be, in the file's own spelling (None: no such key).

    ``via`` are values that we gave it in between, ``order`` is its place in the ledger (0: it was made in the original of a copy,
    where it is no word on what the copy trains), and ``at`` when (epoch s), once it was made.
    """

    path: Path
    key: str
    before: str | None
    after: str | None
    via: tuple[str | None, ...] = ()
    order: int = 0
    at: float = 0.0

    @property
    def is_made(self) -> bool:
        """True where the value is already what it shall be."""
        return self.before == self.after

    @property
    def words(self) -> str:
        """``batch_size 4 → 2``."""
        before, after = (value or "(none)" for value in (self.before, self.after))
        return f"{self.key} {before} → {after}"


@dataclass(frozen=True)
class Written:
    """How a top-level setting is written in a run's configuration: its text (None: no such key), or ``why_not`` it cannot be
    changed there without a person."""

    text: str | None = None
    why_not: str = ""


# --- desired -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluationInput:
    """One cell of the evaluation plan: ``epoch`` None evaluates the run's model itself."""

    task: str
    epoch: int | None
    line: int


@dataclass(frozen=True)
class RunInput:
    """What the document says about one run, and where its scaffolding stands; what a tool reads its steps from.

    ``checkpoint_dir`` is where the document expects ``epoch_<N>/`` of this run. ``checkpoints`` is
    empty for the preparation tool and holds, for the evaluation tool, what the preparation step will produce.
    ``epochs`` is the document's number of epochs. ``planned`` False: the document has no evaluation plan,
    so the scripts found in the scaffolding are the plan. ``varied`` are the parameters in which the document's runs differ,
    spelled as settings (``batch_size``).
    """

    name: str
    kind: RunKind
    directory: Path
    document: Path
    line: int
    parameters: Mapping[str, str] = field(default_factory=dict)
    epochs: int | None = None
    checkpoint_dir: Path | None = None
    checkpoint_path: Path | None = None
    evaluations: tuple[EvaluationInput, ...] = ()
    planned: bool = True
    checkpoints: Mapping[int, Path] = field(default_factory=dict)
    preparation_key: str | None = None
    varied: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Ask:
    """What one job asks for: so many GPUs, for so many seconds at most; None where only the site knows. ``where`` is the
    partition, QOS and constraint that it names."""

    gpus: int | None = 0
    seconds: float | None = None
    where: str = ""

    def under(self, options: Mapping[str, str]) -> Ask:
        """The same where a submission's own ``--time`` (minutes) outranks the script's."""
        return replace(self, seconds=float(options["time"]) * 60) if "time" in options else self


@dataclass(frozen=True)
class Step:
    """One unit of work, and everything that defines it.

    ``key`` is its path, such as ``r8/finetune``. ``output_dir`` is where its outputs appear and ``root``
    the directory that must be there before their absence means anything. ``checkpoints`` maps each epoch that a
    preparation step will save to its directory. ``need`` is the key of the step that must be done before, ``others`` are those of
    the fine-tunes of other runs in whose outputs it reads, ``begins_from`` is the epoch that it reads there.
    ``definition`` hashes what defines the result (``commands`` its script's part), ``placement`` what only defines where it runs.
    ``meaning`` is the definition item by item, in words, so that a drift can be shown. ``job_name`` and ``workdir`` (a real path;
    ``written_workdir``: as the script spells it) are how a person's own submission would show in the queue. ``logs`` are the
    files that its job's output goes to, as Slurm's patterns (``slurm-%j.out``). ``ask`` is what its job asks for, ``asks`` are
    the script's ``#SBATCH`` options by their long names. ``resume`` is the edit by which an attempt goes on from earlier epochs,
    ``smaller_batch`` those by which it needs less of a GPU's memory (or none, and why), ``written`` how the settings that those
    edits concern stand in the file now, whose ``text`` is all of it (None: not known); ``batch`` is what those of
    ``smaller_batch`` come to, references resolved; ``resume`` is one that is made already where the configuration itself asks for
    going on. ``reads`` are models that it begins from or evaluates; ``inputs`` names what else its result is made from, each with
    its version, as far as that can be read (it is no part of ``definition``). ``config`` is the file that the items of
    ``meaning`` stand in where they do not say, ``files`` are what it was scaffolded with beside its script, there or not.
    ``spec`` is the tool's own.
    """

    key: str
    run: str
    stage: Stage
    tool: str
    script: Path
    output_dir: Path
    root: Path
    definition: str
    placement: str
    task: str | None = None
    epoch: int | None = None
    need: str | None = None
    others: tuple[str, ...] = ()
    begins_from: int | None = None
    checkpoints: Mapping[int, Path] = field(default_factory=dict)
    meaning: Mapping[str, str] = field(default_factory=dict)
    spec: Mapping[str, object] = field(default_factory=dict)
    requeue: bool = False
    job_name: str = ""
    workdir: str = ""
    written_workdir: str = ""
    logs: tuple[str, ...] = ()
    asks: Mapping[str, str] = field(default_factory=dict)
    resume: Edit | None = None
    smaller_batch: tuple[Edit, ...] = ()
    why_no_smaller_batch: str = ""
    written: Mapping[str, Written] = field(default_factory=dict)
    text: str | None = field(default=None, repr=False)
    batch: Mapping[str, str] = field(default_factory=dict)
    ask: Ask = Ask()
    reads: tuple[Path, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    config: str = ""
    files: tuple[Path, ...] = ()
    commands: str = ""
    blocked: Reason | None = None

    @property
    def directory(self) -> Path:
        """Where the step is submitted from: its script's own directory."""
        return self.script.parent

    @property
    def sources(self) -> tuple[str, ...]:
        """The keys of all steps whose outputs it reads."""
        return tuple(dict.fromkeys((*((self.need,) if self.need is not None else ()), *self.others)))

    @property
    def epoch_needed(self) -> int | None:
        """Which epoch of the step that it needs it reads, where it reads one alone."""
        return self.epoch if self.epoch is not None else self.begins_from


@dataclass(frozen=True)
class Reading:
    """What a tool found for one run. ``hides_steps``: a fault may keep steps out of sight."""

    steps: tuple[Step, ...] = ()
    problems: tuple[Problem, ...] = ()
    hides_steps: bool = False


@dataclass(frozen=True)
class Desired:
    """The experiment as its author wants it. Steps are in document order, preparation before evaluation of each run.

    ``hidden`` are the runs of which a fault keeps steps out of sight: what is still to be done for them is not known.
    """

    name: str
    directory: Path
    document: Path
    steps: tuple[Step, ...]
    problems: tuple[Problem, ...] = ()
    hidden: tuple[str, ...] = ()

    def step(self, key: str) -> Step | None:
        """The step of this key, or None."""
        return next((step for step in self.steps if step.key == key), None)

    def select(self, *patterns: str) -> tuple[Step, ...]:
        """The steps that keys, globs or runs name, in document order. Raises NoSuchStep for a pattern that names none."""
        for pattern in patterns:
            if not any(names_step(pattern, step.key) for step in self.steps):
                known = ", ".join(step.key for step in self.steps[:5]) + (", …" if len(self.steps) > 5 else "")
                hint = closest(pattern, [name for step in self.steps for name in (step.key, step.run)])
                raise NoSuchStep(f"no step matches {pattern!r}{hint}; the steps are {known}")
        return tuple(step for step in self.steps if any(names_step(pattern, step.key) for pattern in patterns))


def names_step(pattern: str, key: str) -> bool:
    """True where a person means this step: by its key or a glob on it, or by the name of its run."""
    return fnmatchcase(key, pattern) or key.partition("/")[0] == pattern


CHECKPOINT = "checkpoint"
"""The name among a step's ``inputs`` of what the step before it made."""


def of_generation(definition: str) -> str:
    """The version of a checkpoint that was made under this definition."""
    return f"of definition {definition[:8]}"


def defined_by(commands: str, configuration: Mapping[str, str]) -> str:
    """The definition of a fine-tune that these commands make of this configuration."""
    return digest(commands, *(f"{key}={value}" for key, value in sorted(configuration.items())))


def digest(*parts: str) -> str:
    """A short stable hash of some texts (32 hex digits); order matters."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


# --- job names: how a job is recognised without any memory ---------------------------------------

_NAME_LIMIT = 64
_TOKEN = re.compile(r"rc-([0-9a-f]{8})-([0-9a-f]{10})-([0-9]{1,8})$")


@dataclass(frozen=True)
class Token:
    """What our part of a job name says: the experiment, the step and the attempt that a job belongs to.

    It derives from the experiment's real path and the step's key alone, so a job is recognised in squeue
    and in sacct by its name, without the ledger and without comments.
    """

    experiment: str
    step: str
    attempt: int

    @classmethod
    def of(cls, experiment: Path, key: str, attempt: int) -> Token:
        """The token of an attempt; ``experiment`` must be the real path."""
        return cls(digest(str(experiment))[:8], digest(key)[:10], attempt)

    @classmethod
    def parse(cls, job_name: str) -> Token | None:
        """The token at the end of a job name, or None where the job is not ours."""
        match = _TOKEN.search(job_name)
        return cls(match[1], match[2], int(match[3])) if match else None

    def __str__(self) -> str:
        return f"rc-{self.experiment}-{self.step}-{self.attempt}"

    def job_name(self, script_name: str) -> str:
        """``<script's name>.<token>``, at most 64 bytes of ``[A-Za-z0-9._-]``; only the script's part is shortened."""
        token = str(self)
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", script_name).lstrip("-.")[: _NAME_LIMIT - len(token) - 1]
        return f"{stem or 'job'}.{token}"


# --- observed ------------------------------------------------------------------------------------


class Phase(str, Enum):
    """What a job's state amounts to. UNKNOWN is a state that we do not understand, and counts as live.

    UNLISTED is a job that a good queue does not show, and whose end the accounting does not have: its news are late, or its end
    was lost and it is shown as running for ever (sacctmgr, "runaway jobs").
    """

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"
    UNLISTED = "unlisted"


@dataclass(frozen=True)
class Job:
    """One job as the cluster showed it. ``state`` is Slurm's base word (``CANCELLED``, not ``CANCELLED by 7``).

    ``held`` is True where a person or an administrator holds it (or it was submitted held), ``pending_reason`` Slurm's word
    for why it waits. ``exit_code`` is ``code:signal``, ``nodes`` is where it runs or ran, as
    Slurm lists them. Times are epoch seconds or None where not yet known.
    """

    id: str
    name: str
    state: str
    phase: Phase
    workdir: str = ""
    user: str = ""
    pending_reason: str = ""
    held: bool = False
    submitted: float | None = None
    begins: float | None = None
    started: float | None = None
    ended: float | None = None
    exit_code: str = ""
    cancelled_by: str = ""
    nodes: str = ""
    source: str = ""

    @property
    def never_ran(self) -> bool:
        """True of a job that ended before it began: what was cancelled or refused while it waited is shown begun when it ended
        (seen on 22.05 and 24.11)."""
        return self.started is None or self.started == self.ended

    @property
    def is_live(self) -> bool:
        """True while the job may still run or is running; a state not understood counts as live."""
        return self.phase not in (Phase.ENDED, Phase.UNLISTED)


@dataclass(frozen=True)
class Orphan:
    """A live job of this experiment whose step the document does not have any more.

    ``step`` is its key where that is in writing, else empty; ``output_dir`` is where it writes, likewise.
    """

    job: Job
    step: str
    output_dir: str


class OutputState(str, Enum):
    """What a step's outputs on disk amount to.

    COMPLETE verifies. INCOMPLETE is there and does not verify. ABSENT is surely not there. MISMATCH verifies or
    not, but was launched from another definition. AMBIGUOUS may be this step's or another's. UNKNOWN could not be read.
    """

    ABSENT = "absent"
    INCOMPLETE = "incomplete"
    COMPLETE = "complete"
    MISMATCH = "mismatch"
    AMBIGUOUS = "ambiguous"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class FileId:
    """A file's identity when it was verified: path, size in bytes, modification time in ns."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Outputs:
    """A tool's verdict on a step's outputs.

    ``marked`` is True where the outputs themselves prove that nothing more will be written to them; where False, completeness
    must be confirmed by the job's end or by quiet. ``newest`` is the latest modification time among them (epoch s).
    ``resumable`` is how many whole epochs a resumed training would go on from (0: there is nothing sound to resume),
    ``whole`` how many there are, gone on from or not, and ``torn_to_resume`` what a resumed training must not find.
    ``resume_note`` is, in words, why it would go on from nothing, or what it will train again; ``differs`` are the settings in
    which a MISMATCH was launched otherwise; ``in_the_way`` what a person must move before anything goes on. ``evidence``
    identifies the files that were verified; ``torn`` names what must be moved aside before an attempt that begins anew (empty
    for a tool whose attempts overwrite nothing). ``has_work`` is True where a fresh
    attempt would overwrite or build on what is there. ``progress`` is a few words for status. ``lacks`` is set where another
    attempt would not find its input: a Reason where that is surely gone, Unknown where it may only be out of sight.
    """

    state: OutputState
    reason: Reason
    marked: bool = False
    newest: float | None = None
    evidence: tuple[FileId, ...] = ()
    torn: tuple[Path, ...] = ()
    has_work: bool = False
    progress: str = ""
    resumable: int = 0
    torn_to_resume: tuple[Path, ...] = ()
    resume_note: str = ""
    whole: int = 0
    in_the_way: str = ""
    differs: tuple[str, ...] = ()
    lacks: Reason | Unknown | None = None


@dataclass(frozen=True)
class Unknown:
    """A question that got no answer, and why. Never the same as an empty answer."""

    why: str


@dataclass(frozen=True)
class Observed:
    """The world at one moment. ``queue`` and ``accounting`` are jobs of this user, or Unknown.

    Each is None where it was not asked: the queue because everything is done, the accounting because nothing was in doubt.
    ``outputs`` has one entry per step examined;
    ``objections`` are the tools' own sentences against a fresh attempt over them. ``logs`` has the tail of the log of each job
    (by id and name) whose end is news: None where there is none. ``signs`` are the tools' own, by step. ``uid`` is this user's.
    ``filesystems`` tells which steps write to the same one (by a number that means nothing else), where that was asked and is
    known. ``sealed`` tells, by step, why the run's configuration could not be edited: it, or where its original would be kept,
    is write-protected. ``copies`` has, by step, a live job of another experiment that may write to the same directory.
    """

    queue: tuple[Job, ...] | Unknown | None
    accounting: tuple[Job, ...] | Unknown | None
    outputs: Mapping[str, Outputs]
    objections: Mapping[str, str] = field(default_factory=dict)
    logs: Mapping[tuple[str, str], str | Unknown | None] = field(default_factory=dict)
    signs: Mapping[str, tuple[Sign, ...]] = field(default_factory=dict)
    uid: str = ""
    filesystems: Mapping[str, int] = field(default_factory=dict)
    sealed: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, Job] = field(default_factory=dict)


# --- decided -------------------------------------------------------------------------------------


class Verb(str, Enum):
    """What one pass does for one step."""

    KEEP = "keep"
    WAIT = "wait"
    SUBMIT = "submit"
    ADOPT = "adopt"
    MARK_DONE = "mark-done"
    HOLD = "hold"
    CANCEL = "cancel"


class Condition(str, Enum):
    """Where a step stands, for people and for ``status``."""

    WAITING = "Waiting"
    QUEUED = "Queued"
    RUNNING = "Running"
    VERIFYING = "Verifying"
    DONE = "Done"
    FAILED = "Failed"
    HELD = "Held"
    DRIFTED = "Drifted"
    BLOCKED = "Blocked"
    UNKNOWN = "Unknown"

    @property
    def needs_person(self) -> bool:
        """True where only a person can move the step on."""
        return self in (Condition.FAILED, Condition.HELD, Condition.DRIFTED, Condition.BLOCKED)


@dataclass(frozen=True)
class Action:
    """The one thing a pass does for a step, and why.

    ``job`` is the job concerned, where there is one. ``changes`` tells, in words, what else the action will alter
    (torn outputs moved aside, and so on). ``held`` submits the job held; ``release`` frees a job that we held ourselves, and
    ``hold_job`` holds a queued one as a person's word has it. ``options`` are sbatch's, over the script's own, ``edits`` are
    made in the run's configuration before the job is submitted, and ``reverts`` take such edits back; ``from_epoch`` is how many
    whole epochs it goes on from.
    ``rule`` names the rung of the ladder that decided.
    """

    step: str
    verb: Verb
    reason: Reason
    condition: Condition
    job: str | None = None
    attempt: int | None = None
    changes: tuple[str, ...] = ()
    held: bool = False
    release: bool = False
    hold_job: bool = False
    move_aside: tuple[Path, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    reverts: tuple[Edit, ...] = ()
    from_epoch: int = 0
    rule: str = ""

    @property
    def changes_something(self) -> bool:
        """True where ``apply`` does more than look."""
        return self.verb in (Verb.ADOPT, Verb.MARK_DONE) or self.tells_cluster

    @property
    def tells_cluster(self) -> bool:
        """True where ``apply`` submits a job, or changes one."""
        return self.verb in (Verb.SUBMIT, Verb.CANCEL) or self.release or self.hold_job

    @property
    def is_pending(self) -> bool:
        """True where something will still happen without a person: an act, a job in flight, or a wait that ends by itself."""
        if self.changes_something:
            return True
        is_waiting = self.condition is not Condition.DONE and not self.condition.needs_person
        return is_waiting and self.reason.code not in _ENDED_BY_OTHERS


_ENDED_BY_OTHERS = frozenset({NEED_BLOCKED, DISK_QUOTA, NOT_SELECTED})
"""Reasons for a wait that ends once another step, or a pass that may do more, goes on: where none will, a person has to."""


@dataclass(frozen=True)
class Raise:
    """More of something after each failure for want of it: times ``factor``, at most ``max`` (seconds of time, MB of memory)."""

    factor: float
    max: float


@dataclass(frozen=True)
class Policy:
    """The settings that decide. Durations are seconds, ``budget`` is GPU hours; the sources are reconcile.yaml's keys of the same
    names. ``canary`` None: no step goes first alone."""

    backend: str = "auto"
    stagger: float = 5.0
    max_in_flight: int | None = None
    poll: float = 60.0
    grace: float = 600.0
    settle: float = 300.0
    backoff: float = 60.0
    retry: Mapping[str, int] = field(default_factory=lambda: {"NodeFailure": 10, "BootFailure": 10, "Preempted": 100})
    stop_after_failures: int = 3
    document: str = "tables"
    requeue: bool = False
    resume: bool = False
    time: Raise | None = None
    mem: Raise | None = None
    shrink_batch: bool = False
    exclude_after: int = 2
    canary: float | None = None
    budget: float | None = None
    tools: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @property
    def look_lasts(self) -> float:
        """How long after it asked the cluster a pass may tell it anything (s): long before another pass may give up what this one
        is about to submit."""
        return self.grace / 2

    def of(self, tool: str) -> Policy:
        """The policy for one tool's steps: what is set for it, over what is set for all."""
        own: dict[str, Any] = dict(self.tools.get(tool, {}))
        if "retry" in own:
            own["retry"] = {**self.retry, **own["retry"]}
        return replace(self, **own) if own else self
