"""Top-level values of a YAML text as they are written there, and the text with some of them changed; pure.

Only a value that stands plainly on its key's line is changed: no reference (``${batch}``), anchor or alias, no quotes, no block.
Every other byte stays, comments and layout with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from reconciler.errors import PermanentError
from reconciler.model import Edit, Written


def compose(text: str) -> Any:
    """The text's root node, None where it has none. Raises YAMLError."""
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).compose(_printable(text))


def written(root: Any, key: str) -> Written:
    """How a setting is written in a text of this root."""
    pairs = _pairs(root)
    found = [(name, value) for name, value in pairs if name.value == key]
    if len(found) > 1:
        return Written(why_not=f"`{key}` is there twice")
    if found:
        return _as_written(key, *found[0])
    if root is not None and (root.id != "mapping" or root.flow_style):
        return Written(why_not=f"`{key}` is not there, and the settings do not stand line by line")
    if any(name.value == "<<" for name, _ in pairs):
        return Written(why_not=f"`{key}` is not there by itself; `<<` may bring it in")
    return Written()


def with_edits(text: str, edits: Sequence[Edit]) -> str:
    """The text in which every edit holds. Raises PermanentError, which says what to write by hand instead of all of them, where
    one neither holds nor can be made from what it was to be made from."""
    told = by_hand(*edits)
    for edit in edits:
        text = _with(text, edit, told)
    return text


@lru_cache(maxsize=4096)  # asked several times a pass, of texts that hardly ever change, and parsing is slow
def refusal(text: str, edits: tuple[Edit, ...]) -> str:
    """Why ``with_edits`` would raise; empty where it would not."""
    try:
        with_edits(text, edits)
    except PermanentError as error:
        return str(error)
    return ""


def by_hand(*edits: Edit) -> str:
    """What a person would do."""
    lines = [f"`{edit.key}: {edit.after}`" for edit in edits if edit.after is not None]
    gone = [f"`{edit.key}`" for edit in edits if edit.after is None]
    ways = [*([f"write {' and '.join(lines)}"] if lines else []), *([f"take {' and '.join(gone)} out"] if gone else [])]
    return f"{' and '.join(ways)} by hand"


def sealed(why: str, edits: Sequence[Edit]) -> str:
    """What keeps these edits from being written, and what a person would do."""
    return f"{why}; make that writable, or {by_hand(*edits)}"


def _with(text: str, edit: Edit, told: str) -> str:
    root = _root(text, edit)
    now = written(root, edit.key)
    if now.why_not:
        raise PermanentError(f"{edit.path}: {now.why_not}; {told}")
    if now.text == edit.after:
        return text
    if now.text != edit.before:
        message = f"`{edit.key}` is {_shown(now.text)} by now, and was to be changed from {_shown(edit.before)} to {edit.after}"
        raise PermanentError(f"{edit.path}: {message}; the next pass looks again")
    changed = _spliced(text, root, edit)
    if not _differs_in_one(text, root, changed, edit):
        raise PermanentError(f"{edit.path}: `{edit.key}` cannot be changed without changing more; {told}")
    return changed


def _root(text: str, edit: Edit) -> Any:
    from ruamel.yaml.error import YAMLError

    try:
        root = compose(text)
    except YAMLError as error:
        raise PermanentError(f"{edit.path}: is not valid YAML, so it cannot be edited") from error
    if root is not None and root.id != "mapping":
        raise PermanentError(f"{edit.path}: holds no `key: value` lines, so it cannot be edited")
    return root


def _pairs(root: Any) -> list[tuple[Any, Any]]:
    return list(root.value) if root is not None and root.id == "mapping" else []


def _as_written(key: str, name: Any, value: Any) -> Written:
    where = f"`{key}` (line {name.start_mark.line + 1})"
    if value.anchor is not None:
        return Written(why_not=f"{where} is shared with another setting (`&`, `*`)")
    if value.id != "scalar" or value.style is not None or not _is_on_one_line(value):
        return Written(why_not=f"{where} is not one plain value")
    if "${" in value.value:
        return Written(why_not=f"{where} is `{value.value:.100}`, which refers to another setting")
    return Written(value.value)


def _is_on_one_line(value: Any) -> bool:
    """True where the mark's characters are the value's own, with no tag before them and no break within."""
    start, end = value.start_mark, value.end_mark
    return bool(start.line == end.line and end.index - start.index == len(value.value))


# --- the text --------------------------------------------------------------------------------------


def _spliced(text: str, root: Any, edit: Edit) -> str:
    """The text with one value replaced, added at its end, or taken out with its key."""
    if edit.before is None:
        newline = "\r\n" if "\r\n" in text else "\n"
        gap = "" if not text or text.endswith("\n") else newline
        indent = " " * (root.start_mark.column if root is not None else 0)
        return f"{text}{gap}{indent}{edit.key}: {edit.after}{newline}"
    name, value = next((name, value) for name, value in _pairs(root) if name.value == edit.key)
    start, end = int(value.start_mark.index), int(value.end_mark.index)
    if edit.after is None:
        return _without(text, int(name.start_mark.index), end)
    if edit.before == "":  # its mark is that of what comes next
        start = text.find(":", name.end_mark.index) + 1  # 0 for a last line that is `? key`
        return f"{text[:start]} {edit.after}{text[start:]}" if start else text
    if edit.after == "" and text[start - 1] == " ":
        start -= 1
    return text[:start] + edit.after + text[end:]


def _differs_in_one(text: str, root: Any, changed: str, edit: Edit) -> bool:
    from ruamel.yaml.error import YAMLError

    try:
        after = compose(changed)
    except YAMLError:
        return False
    now = written(after, edit.key)
    return now == Written(edit.after) and _others(changed, after, edit.key) == _others(text, root, edit.key)


def _without(text: str, start: int, end: int) -> str:
    """The text less what stands there, and less its line where nothing else is on it."""
    first = text.rfind("\n", 0, start) + 1
    last = text.find("\n", end) + 1 or len(text)
    is_alone = not text[first:start].strip() and not text[end:last].strip()
    return text[:first] + text[last:] if is_alone else text[:start] + text[end:].lstrip(" ")


def _others(text: str, root: Any, key: str) -> list[tuple[object, ...]]:
    """What the text says, without one key and its value; flat, so that aliases of aliases cost nothing."""
    from ruamel.yaml import YAML

    told = []
    names = {(name.start_mark.index, key) for name, _ in _pairs(root) if name.value == key}
    skipped = 0
    for event in YAML(typ="safe", pure=True).parse(_printable(text)):
        # By its text too: the mark of an empty value is that of the key that comes next.
        if not skipped and (event.start_mark.index, getattr(event, "value", None)) in names:
            skipped = 2
        if skipped:
            skipped -= 1
            continue
        told.append((type(event).__name__, *(getattr(event, part, None) for part in ("anchor", "tag", "value", "style"))))
    return told


def _printable(text: str) -> str:
    """The text with a mark for each character that no YAML holds; just as long."""
    return text.encode("utf-8", "replace").decode()


def _shown(value: str | None) -> str:
    return "not there" if value is None else value or "empty"
