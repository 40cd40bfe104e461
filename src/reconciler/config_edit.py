"""Change single values of a YAML configuration in place: every other byte stays, comments and layout with them.

The original is kept beside the ledger. A value that is neither what we found nor what we wrote is a person's, and is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reconciler.errors import DiskUnreadable, PermanentError
from reconciler.files import make_directory, read_file, replace_file
from reconciler.model import Edit

_SCALAR = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*"|[^\s#][^#\r\n]*?(?=\s*(?:\s#|\r?$))""", re.MULTILINE)


def open_edits(path: Path, edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """Those that are not made yet, each from what is in the file.

    Raises DiskUnreadable, and PermanentError for a file that is no map of values.
    """
    values = _parse(path, _text(path))
    found = []
    for edit in edits:
        now = _shown(values, edit.key)
        if now != edit.after and now in (edit.before, *edit.via):
            found.append(Edit(path, edit.key, now, edit.after))
    return tuple(found)


def make_edits(path: Path, edits: Sequence[Edit], original: Path) -> None:
    """Write them, each from what ``open_edits`` found. ``original`` gets what was there, unless it is kept already. Raises
    PermanentError where that takes a person, TemporaryError and DiskUnreadable, and has changed nothing then."""
    before = _text(path)
    after = before
    for edit in edits:
        after = _with(path, after, edit)
    values, expected = _parse(path, after), _parse(path, before)
    for edit in edits:
        if _shown(values, edit.key) != edit.after:
            raise PermanentError(f"{path}: `{edit.key}` cannot be changed to {edit.after} without changing more; edit it by hand")
        values.pop(edit.key, None)
        expected.pop(edit.key, None)
    if values != expected:
        raise PermanentError(f"{path}: cannot be edited without changing more than that; edit it by hand")
    if not original.exists():
        make_directory(original.parent, parents=True)
        replace_file(original, before.encode("utf-8", "surrogateescape"), expected=None)
    replace_file(path, after.encode("utf-8", "surrogateescape"), expected=before.encode("utf-8", "surrogateescape"))


def _with(path: Path, text: str, edit: Edit) -> str:
    """The text with one value changed, added at its end, or taken out with its line."""
    values = _parse(path, text)
    lines = text.split("\n")
    if edit.key not in values:
        end = "" if not text or text.endswith("\n") else "\n"
        return f"{text}{end}{edit.key}: {edit.after}\n"
    number, column = values.lc.value(edit.key)
    if edit.after is None:
        return "\n".join(lines[:number] + lines[number + 1 :])
    found = _SCALAR.match(lines[number], column)
    if found is None:
        raise PermanentError(f"{path}:{number + 1}: `{edit.key}` is not one plain value; edit it by hand")
    lines[number] = lines[number][:column] + edit.after + lines[number][found.end() :]
    return "\n".join(lines)


def _text(path: Path) -> str:
    try:
        return read_file(path).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise DiskUnreadable(f"{path}: {error.strerror}") from error


def _parse(path: Path, text: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        values = YAML(typ="rt", pure=True).load(text.encode("utf-8", "replace").decode())
    except (YAMLError, ValueError, TypeError) as error:  # TypeError: a key that holds a list
        raise PermanentError(f"{path}: is not YAML any more, so it cannot be edited") from error
    if not isinstance(values, dict):
        raise PermanentError(f"{path}: is no map of values, so it cannot be edited")
    return values


def _shown(values: Any, key: str) -> str | None:
    """A value as Edit spells it; None where the key is not there."""
    return str(values[key]) if key in values else None
