"""The edges, as the few questions the rest of the program asks of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from reconciler.errors import DiskUnreadable
from reconciler.model import Job, Outputs, Reading, RunInput, Sign, Stage, Step


@dataclass(frozen=True)
class FileInfo:
    """What one stat told. ``size`` in bytes, ``mtime_ns`` in nanoseconds since the epoch, ``device`` the filesystem that it is on
    (st_dev; None where that is not known)."""

    size: int
    mtime_ns: int
    is_dir: bool
    device: int | None = None


class Disk(Protocol):
    """Reads files in three values: an answer, None for surely absent, DiskUnreadable for unknown."""

    def stat(self, path: Path) -> FileInfo | None:
        """What is at ``path`` (symlinks followed); None where there is surely nothing."""

    def names(self, directory: Path) -> tuple[str, ...] | None:
        """The sorted entries of a directory; None where there is surely no such directory."""

    def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        """``length`` bytes from ``offset`` (negative: from the end), or all; None where there is surely no file."""

    def why_not_writable(self, path: Path) -> str:
        """Why the file at ``path`` could not be replaced, or made; empty where nothing is in the way. Writes nothing."""


def surely_directory(path: Path, disk: Disk) -> bool:
    """True where a directory is there to be seen."""
    try:
        found = disk.stat(path)
    except DiskUnreadable:
        return False
    return found is not None and found.is_dir


class Tool(Protocol):
    """One tool in four parts, one file each; no other module knows its name.

    ``is_default`` is True for the tool that a document means by naming none of its stage. ``signs`` are lines that its jobs' logs
    may hold, and what they mean; they come before those that every log may hold (failures.py). ``settings`` are those that can be
    set for its steps alone (``tools`` in reconcile.yaml).
    """

    name: str
    stage: Stage
    log_file: str
    is_default: bool
    signs: tuple[Sign, ...]
    settings: tuple[str, ...]

    def read(self, run: RunInput, disk: Disk) -> Reading:
        """1, input: the steps of a run, from the document's row and the scaffolding; every fault found is a Problem. A step that
        cannot be looked at is blocked and not left out; a fault without a step means that nobody knows which there are."""

    def may_submit(self, step: Step, outputs: Outputs) -> str | None:
        """2, selection: None where a fresh attempt may start over these outputs, else why a person must look."""

    def log_label(self, step: Step) -> tuple[str, str]:
        """3, execution: the operation and the subject by which existing tools know a submission in ``log_file``."""

    def check(self, step: Step, disk: Disk, deep: bool = False) -> Outputs:
        """4, verification: what the step's outputs amount to. Never raises for unreadable files: that is UNKNOWN."""


@dataclass(frozen=True)
class Submission:
    """One job to submit. ``begin_in`` seconds from now is when it becomes eligible (0: at once, or when its
    script says).

    ``options`` are further options of sbatch by their long names, which outrank the script's. ``keep_open`` are file descriptors
    that the submitting process must inherit (the pass's lock).
    """

    script: Path
    name: str
    begin_in: int = 0
    held: bool = False
    requeue: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    keep_open: tuple[int, ...] = ()

    @property
    def directory(self) -> Path:
        """Where the job is submitted from, as a person would."""
        return self.script.parent


@dataclass(frozen=True)
class Doubt:
    """What a good queue leaves open: attempts made since ``since`` (epoch s), whose jobs are ``ids``. ``has_unnamed`` is True
    where a submission's id was never known: its job can be recognised by name alone."""

    since: float
    ids: tuple[str, ...] = ()
    has_unnamed: bool = False


class Backend(Protocol):
    """A cluster. Every method either answers in full or raises ClusterUnreachable; silence is never an answer.

    ``uid`` is this user's, as ``Job.cancelled_by`` has it.
    """

    name: str
    uid: str

    def identity(self) -> str:
        """Which cluster this is, stable between passes, such as ``slurm:mini`` or ``local:<host>``."""

    def queue(self) -> tuple[Job, ...]:
        """Every job of this user that is live or recently ended, as the queue shows it."""

    def accounting(self, doubt: Doubt) -> tuple[Job, ...]:
        """What the accounting knows of the jobs in doubt, among others of this user's. Raises AccountingDisabled where a site
        keeps none at all."""

    def submit(self, job: Submission) -> str:
        """The id of the accepted job.

        Raises SubmissionRefused (surely not accepted), LimitReached (not now), NotSubmitted (not now, and not for the cluster's
        sake), SubmissionUncertain (nobody knows yet).
        """

    def cancel(self, job_id: str) -> None:
        """End a job; a job already ended is no error."""

    def hold(self, job_id: str) -> None:
        """Keep a queued job from starting."""

    def release(self, job_id: str) -> None:
        """Let a held job start."""


Clock = Callable[[], float]
Environment = Mapping[str, str]
Tools = Mapping[str, Tool]


def by_stage(tools: Iterable[Tool], stage: Stage) -> tuple[Tool, ...]:
    """The tools of one stage, in the order given."""
    return tuple(tool for tool in tools if tool.stage is stage)
