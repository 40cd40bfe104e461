"""What can go wrong, by who has to act on it.

``InvalidExperiment`` is the user's to mend, ``TemporaryError`` mends itself (ask again later),
``PermanentError`` never will. Edges translate what they catch into one of these, with ``from``.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Problem:
    """One fault of the input: where it stands, what is wrong, and what would be accepted.

    ``line`` counts from 1; 0 means the file as a whole. ``run`` names the only run that the fault
    blocks; None is a fault of the document itself. A warning blocks nothing.
    """

    file: Path
    line: int
    message: str
    run: str | None = None
    warning: bool = False

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else str(self.file)
        return f"{where}: {self.message}"


class ReconcileError(Exception):
    """The root of every error that has a sentence for the user; anything else is a bug (exit 70)."""


class InvalidExperiment(ReconcileError):
    """The experiment cannot be read as it stands; carries every problem found, not only the first. Exit 2."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))


class UsageError(ReconcileError):
    """The command line asks for something that does not exist or may not be done. Exit 2."""


class NoSuchStep(UsageError):
    """No step has this name, in the document as it stands."""


class TemporaryError(ReconcileError):
    """The answer could not be had now; never evidence that a thing is absent."""


class ClusterUnreachable(TemporaryError):
    """The queue or the accounting gave no answer that can be believed."""


class DiskUnreadable(TemporaryError):
    """A path could not be examined, for a reason other than that it does not exist."""


class NotAFile(DiskUnreadable):
    """A directory, a FIFO or a device stands where a file should; it was not opened."""


class SubmissionUncertain(TemporaryError):
    """The submission may or may not have been accepted; only a later look at the queue can tell."""


class LimitReached(TemporaryError):
    """The site accepts no more jobs like this one for now (its QOS, account or partition); waiting is the remedy."""


class ControllerFull(LimitReached):
    """The controller accepts no job of anybody for now (MaxJobCount)."""


class NotSubmitted(TemporaryError):
    """The job was surely not submitted, because this machine is short of something for now (processes, memory, disk)."""


_SHORTAGES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT)


def could_not_submit(what: str, error: OSError) -> NotSubmitted | SubmissionRefused:
    """What it means that the system refused something before the cluster was asked: a shortage passes, anything else is a
    person's to mend."""
    kind = NotSubmitted if error.errno in _SHORTAGES else SubmissionRefused
    return kind(f"{what}: {error}")


class PermanentError(ReconcileError):
    """Trying again unchanged cannot help."""


class SubmissionRefused(PermanentError):
    """The cluster refused this job and surely did not accept it; the message is the cluster's own."""


class LedgerDamaged(PermanentError):
    """The ledger has damage other than a torn last line; nothing was changed."""


class AnotherPass(ReconcileError):
    """Another pass holds the experiment's lock. Exit 5."""


class AccountingDisabled(ClusterUnreachable):
    """The site keeps no accounting at all: what left the queue has ended, and nobody can say how."""
