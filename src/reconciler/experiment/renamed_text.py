"""A document's text with one run under another name, every other byte as it was; pure.

Only the cells and values that name the run are touched. The result is read again and has to say the same of every run but for
that name; where it would not, nothing is renamed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from reconciler.errors import InvalidExperiment, UsageError
from reconciler.experiment.document import Document
from reconciler.experiment.markdown_form import read_markdown
from reconciler.experiment.markdown_tables import Table, find_tables
from reconciler.experiment.names import same_name
from reconciler.experiment.yaml_form import read_yaml
from reconciler.experiment.yaml_text import parse_yaml

_COLUMNS = ("run name", "run")
_PLAIN = re.compile(r"[A-Za-z][\w.+=-]*")
_NOT_TEXT = frozenset({"y", "n", "yes", "no", "true", "false", "on", "off", "null", "inf", "nan"})
_Edit = tuple[int, int, str]  # the characters from the first to the second give way to the text


def rename_in_document(text: str, path: Path, old: str, new: str) -> str:
    """The document with the run's new name wherever a table or key names it. Raises UsageError where that cannot be done."""
    is_markdown = path.suffix == ".md"
    after = rename_in_tables(text, path, old, new) if is_markdown else _edited(text, _yaml_edits(text, path, old, new))
    read = read_markdown if is_markdown else read_yaml
    try:
        is_right = _meaning(read(after, path)) == _meaning(_renamed(read(text, path), old, new))
    except InvalidExperiment as error:
        raise UsageError(f"{path}: with the new name it would not be read any more ({error}); nothing was renamed") from error
    if not is_right:
        raise UsageError(f"{path}: the run is named in a way that cannot be rewritten safely; nothing was renamed")
    return after


def rename_in_tables(text: str, path: Path, old: str, new: str) -> str:
    """The text of a markdown document with the name changed in every table's column of runs."""
    return _edited(text, [edit for table in find_tables(text) for edit in _table_edits(table, path, old, new)])


def mentions(text: str, word: str) -> list[int]:
    """The lines (from 1) that have the word, standing by itself."""
    found = re.compile(rf"(?<![\w.+=@-]){re.escape(word)}(?![\w.+=@-])")
    return [number for number, line in enumerate(text.splitlines(), start=1) if found.search(line)]


def _table_edits(table: Table, path: Path, old: str, new: str) -> Iterator[_Edit]:
    for index, header in enumerate(table.header.cells):
        if " ".join(header.text.replace("_", " ").casefold().split()).strip(" :") not in _COLUMNS:
            continue
        for row in table.rows:
            cell = row.cells[index] if index < len(row.cells) else None
            if cell is None or same_name(cell.text.strip()) != same_name(old):
                continue
            spelled = cell.text.strip()
            if cell.raw.count(spelled) != 1:
                raise UsageError(f"{path}:{row.line}: the cell {cell.raw.strip()!r} cannot be rewritten; nothing was renamed")
            at = cell.start + cell.raw.index(spelled)
            yield at, at + len(spelled), new


def _yaml_edits(text: str, path: Path, old: str, new: str) -> Iterator[_Edit]:
    root = parse_yaml(text, path)
    places = [(entry, "name") for entry in root.get("runs") or ()]
    places += [(entry, "run") for entry in (root.get("evaluation") or {}).get("matrix") or ()]
    starts = [0, *(match.end() for match in re.finditer(r"\r\n?|\n", text))]
    for entry, key in places:
        if same_name(str(entry.get(key))) != same_name(old):
            continue
        line, column = entry.lc.value(key)
        at, spelled = starts[line] + column, str(entry[key])
        for quote in ("", '"', "'"):
            if text.startswith(f"{quote}{spelled}{quote}", at):
                yield at, at + len(spelled) + 2 * len(quote), _yaml_name(new, quote)
                break
        else:
            raise UsageError(f"{path}:{line + 1}: the name {spelled!r} cannot be rewritten; nothing was renamed")


def _yaml_name(name: str, quote: str) -> str:
    is_plain = not quote and _PLAIN.fullmatch(name) is not None and name.casefold() not in _NOT_TEXT
    return name if is_plain else json.dumps(name, ensure_ascii=False)


def _edited(text: str, edits: Iterator[_Edit] | list[_Edit]) -> str:
    for start, end, words in sorted(edits, reverse=True):
        text = text[:start] + words + text[end:]
    return text


def _renamed(document: Document, old: str, new: str) -> Document:
    def name(run: str) -> str:
        return new if same_name(run) == same_name(old) else run

    plan = None if document.plan is None else {name(run): tasks for run, tasks in document.plan.items()}
    return replace(document, runs=tuple(replace(run, name=name(run.name)) for run in document.runs), plan=plan)


def _meaning(document: Document) -> Document:
    """A document but for what is wrong with it, which may name a run."""
    return replace(document, problems=())
