"""Change single values of a YAML configuration in place: every other byte stays, comments and layout with them.

All edits of a file are made in one step, or none is. The original is kept beside the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.errors import DiskUnreadable, PermanentError
from reconciler.files import make_directory, read_file, replace_file, why_not_writable
from reconciler.ledger import DIRECTORY
from reconciler.model import Edit
from reconciler.plain_values import sealed, with_edits


@dataclass(frozen=True)
class Draft:
    """A configuration as it is, and as it will be once ``make_edits`` has written it."""

    path: Path
    before: str
    after: str


def draft_edits(path: Path, edits: Sequence[Edit]) -> Draft:
    """The configuration in which all these edits hold; nothing is written.

    Raises DiskUnreadable, and PermanentError where an edit neither holds nor can be made.
    """
    before = _text(path)
    return Draft(path, before, with_edits(before, edits))


def make_edits(draft: Draft, original: Path) -> None:
    """Write it, if the file still is what it was drafted from. ``original`` gets what was there, unless it is kept already.
    Raises TemporaryError, and has changed nothing then."""
    if draft.after == draft.before:
        return
    before, after = _bytes(draft.before), _bytes(draft.after)
    if not original.exists():
        make_directory(original.parent, parents=True)
        replace_file(original, before, expected=None)
    replace_file(draft.path, after, expected=before)


def original_of(experiment: Path, run: str, path: Path) -> Path:
    """Where a run's configuration is kept as it was before the first edit of ours."""
    return originals_of(experiment, run) / path.name


def originals_of(experiment: Path, run: str) -> Path:
    """The directory of a run's originals, which goes by its name."""
    return experiment / DIRECTORY / "originals" / run


def require_writable(draft: Draft, original: Path, edits: Sequence[Edit]) -> None:
    """Raises PermanentError where ``make_edits`` would not get to write; nothing is written."""
    why = why_not_writable(draft.path) or why_not_writable(original)
    if why and draft.after != draft.before:
        raise PermanentError(sealed(why, edits))


def _text(path: Path) -> str:
    try:
        return read_file(path).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise DiskUnreadable(f"{path}: {error.strerror}") from error


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
