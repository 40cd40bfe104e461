"""The document's status tables: which of their cells are ours, and the text with those cells brought up to date.

Pure: text in, text out; it never touches a disk. It never changes a byte outside the cells that we own and the rows and tables
that it adds, and never overrules a person: an edited cell is reported and stays.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from reconciler.errors import PermanentError
from reconciler.experiment.markdown_tables import Cell, Row, Table, find_headings, find_lines, find_tables
from reconciler.experiment.names import same_name
from reconciler.model import Stage

STATUS_WORDS = frozenset(
    {"PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY"}  # known to readers of these documents
    | {"WAITING", "UNVERIFIED", "HELD", "DRIFTED"}  # ours
)
Written = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class StatusRow:
    """How a step stands, as the words of its row. An empty text is a thing not known; ``epoch`` None is the run's own model."""

    run: str
    stage: Stage
    task: str | None
    epoch: int | None
    status: str
    job_id: str
    started: str
    completed: str
    notes: str


@dataclass(frozen=True)
class Update:
    """The new text; what each cell of ours now holds, by address; and a sentence for each cell that a person has edited."""

    text: str
    written: Mapping[str, str]
    conflicts: tuple[str, ...]


def update_document(text: str, rows: Sequence[StatusRow], written: Written) -> Update:
    """The document with its status tables telling ``rows``; the identical text where they already do.

    ``written`` maps a cell's address, ``<run>|<task>|<epoch>|<column>``, to the texts that we may have left there. Such a cell
    is ours, and so is an empty one, a dash, and a known status word in a Status cell that we never wrote. Facts about an earlier
    job (Job ID, Started, Completed) give way to those of a job of our own, and notes to nothing. Raises PermanentError where the
    result would not read back as it was meant, as a table in a code fence that was never closed.
    """
    draft = _draft(text, rows, written)
    new = draft.result()
    seen = draft if new == text else _read_back(new, draft)  # lines and columns are those that a person will find
    return Update(new, draft.written, tuple(seen.conflicts))


def title(name: str) -> str:
    """How a document that is there for its status tables alone begins."""
    return f"# {_escape(name)}\n"


# --- columns and kinds ---------------------------------------------------------------------------

_RUN, _TASK, _EPOCH, _STATUS, _NOTES = "Run Name", "Task", "Epoch", "Status", "Notes"
_FACTS = ("Job ID", "Started", "Completed")
_COLUMNS = {column.casefold(): column for column in (_RUN, _TASK, _EPOCH, _STATUS, *_FACTS, _NOTES)} | {
    "run": _RUN,
    "jobid": "Job ID",
    "note": _NOTES,
}
_BLANKS = frozenset({"", "-", "–", "—"})
_CONTROLS = _BLANKS | {"base", "n/a", "none"}


@dataclass(frozen=True)
class _Kind:
    stage: Stage
    heading: str
    columns: tuple[str, ...]


_FINETUNE = _Kind(Stage.FINETUNE, "Fine-tuning Status", (_RUN, _STATUS, *_FACTS, _NOTES))
_EVALUATION = _Kind(Stage.EVALUATION, "Evaluation Status", (_RUN, _TASK, _EPOCH, _STATUS, "Job ID", "Completed", _NOTES))
_KINDS = (_FINETUNE, _EVALUATION)

_Key = tuple[str, str, int | None]


def _key_of(row: StatusRow) -> _Key:
    return same_name(row.run), same_name(row.task or ""), row.epoch


def _values(row: StatusRow) -> dict[str, str]:
    """What a row says under each column."""
    return {
        _RUN: one_line(row.run),
        _TASK: one_line(row.task or ""),
        _EPOCH: "" if row.epoch is None else str(row.epoch),
        _STATUS: one_line(row.status),
        "Job ID": one_line(row.job_id),
        "Started": one_line(row.started),
        "Completed": one_line(row.completed),
        _NOTES: one_line(row.notes),
    }


def _address(row: StatusRow, column: str) -> str:
    return f"{row.run}|{row.task or ''}|{'' if row.epoch is None else row.epoch}|{column}"


@dataclass(frozen=True)
class _StatusTable:
    """A table of the document that tells how steps stand; ``columns`` are the known ones, by name, with their index."""

    table: Table
    kind: _Kind
    columns: Mapping[str, int]
    rows: Mapping[_Key, Row]

    @classmethod
    def of(cls, table: Table) -> _StatusTable | None:
        """The table as a status table, or None where it is something else."""
        names = [_COLUMNS.get(_words(cell.text)) for cell in table.header.cells]
        columns = {name: index for index, name in reversed(list(enumerate(names))) if name}
        kind = _kind_of(table, columns)
        if kind is None:
            return None
        # A line of prose right below a table is a row of one cell to markdown, and to nobody else.
        keyed = ((_key_in(row, kind, columns), row) for row in reversed(table.rows) if len(row.cells) > 1)
        return cls(table, kind, columns, {key: row for key, row in keyed if key})


def _words(text: str) -> str:
    """A header or heading in any capitalisation, spacing and hyphenation."""
    return " ".join(re.sub(r"[_:\-\u2010-\u2015]", " ", text).casefold().split())


def _kind_of(table: Table, columns: Mapping[str, int]) -> _Kind | None:
    """By its columns; a Type column belongs to the list of runs, and a heading on evaluations to no table of fine-tuning."""
    heading = _words(table.headings[-1]) if table.headings else ""
    is_listing = any(_words(cell.text) == "type" for cell in table.header.cells)
    if is_listing or _RUN not in columns or _STATUS not in columns:
        return None
    if _TASK in columns or _EPOCH in columns:
        return _EVALUATION if _TASK in columns and _EPOCH in columns else None
    has_facts = any(fact in columns for fact in _FACTS)
    is_named = heading.startswith(_words(_FINETUNE.heading))
    return _FINETUNE if is_named or (has_facts and not heading.startswith("eval")) else None


def _key_in(row: Row, kind: _Kind, columns: Mapping[str, int]) -> _Key | None:
    """Which step a row tells about; None where it does not say."""
    run = same_name(_text_in(row, columns[_RUN]))
    if kind is _FINETUNE:
        return run, "", None
    epoch = _text_in(row, columns[_EPOCH]).casefold()
    number = re.fullmatch(r"(?:epoch[ _]?)?([0-9]{1,6})", epoch)
    if number is None and epoch not in _CONTROLS:
        return None
    return run, same_name(_text_in(row, columns[_TASK])), int(number[1]) if number else None


def _text_in(row: Row, index: int) -> str:
    return row.cells[index].text if index < len(row.cells) else ""


# --- who owns a cell -----------------------------------------------------------------------------


class _Verdict(Enum):
    SAME = "says what it should"
    WRITE = "is ours"
    STAYS = "is a person's, and that is fine"
    EDITED = "is a person's, where ours was expected"


def _judge(column: str, current: str, want: str, ours: Sequence[str], has_job: bool) -> _Verdict:
    """Whose a cell is; ``ours`` is what we may have left in it, ``has_job`` whether its row tells of a job of ours."""
    if current == want or (current in _BLANKS and not want):
        return _Verdict.SAME
    if current in _BLANKS or current in ours:
        return _Verdict.WRITE
    if column == _NOTES:
        return _Verdict.STAYS
    if ours:
        return _Verdict.EDITED
    if column == _STATUS:
        is_known = re.sub(r"[ -]", "_", current.upper()) in STATUS_WORDS
        return _Verdict.WRITE if is_known else _Verdict.EDITED
    # A fact about an earlier job gives way to the same fact about ours, and to nothing less.
    return _Verdict.WRITE if want and has_job else _Verdict.STAYS


# --- the changes ---------------------------------------------------------------------------------


@dataclass
class _Draft:
    """Changes to a text as they are found, each a span and what takes its place."""

    text: str
    rows: Sequence[StatusRow]
    written_before: Written
    changes: list[tuple[int, int, str]] = field(default_factory=list)
    written: dict[str, str] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)
    sections: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lines = find_lines(self.text)
        self.newline = _newline_of(self.text)

    def result(self) -> str:
        """The text with every change made; those at one place in the order in which they were found."""
        parts, done = [], 0
        for start, end, new in sorted(self.changes, key=lambda change: change[0]):
            parts += [self.text[done:start], new]
            done = end
        return "".join([*parts, self.text[done:]])


def _draft(text: str, rows: Sequence[StatusRow], written: Written) -> _Draft:
    draft = _Draft(text, rows, written)
    tables = [status for table in find_tables(text) if (status := _StatusTable.of(table))]
    for kind in _KINDS:
        own = [status for status in tables if status.kind is kind]
        wanted = [row for row in rows if row.stage is kind.stage]
        holders = [next((status for status in own if _key_of(row) in status.rows), None) for row in wanted]
        for row, holder in zip(wanted, holders, strict=True):
            if holder:
                _update_row(draft, holder, row)
        unlisted = [row for row, holder in zip(wanted, holders, strict=True) if not holder]
        if unlisted and own:
            _add_rows(draft, own[-1], unlisted)
        elif unlisted:
            _add_table(draft, kind, unlisted)
    _append_sections(draft)
    return draft


def _read_back(new: str, draft: _Draft) -> _Draft:
    """The new text seen afresh: a table that landed in a code fence, or a cell that reads otherwise, must not reach the disk."""
    again = _draft(new, draft.rows, {**draft.written_before, **{key: (text,) for key, text in draft.written.items()}})
    if again.sections:
        raise PermanentError(
            f"a status table cannot be added at the end of the document (line {len(draft.lines)}): a code fence, an HTML comment "
            f"or an HTML block is still open there; close it, or set `document: none`"
        )
    if again.changes:
        line = draft.text.count("\n", 0, draft.changes[0][0]) + 1
        raise PermanentError(f"the status tables cannot be written so that they read back as meant (line {line})")
    return again


# --- rows that are there -------------------------------------------------------------------------


def _update_row(draft: _Draft, status: _StatusTable, row: StatusRow) -> None:
    found = status.rows[_key_of(row)]
    values = _values(row)
    missing: dict[int, str] = {}
    for column in (_STATUS, *_FACTS, _NOTES):
        index, want = status.columns.get(column), values[column]
        if index is None:
            continue
        if index < len(found.cells):
            _update_cell(draft, found.cells[index], found.line, row, column)
        elif want:
            missing[index] = want
            draft.written[_address(row, column)] = want
    if missing:
        _extend_row(draft, found, missing)


def _update_cell(draft: _Draft, cell: Cell, line: int, row: StatusRow, column: str) -> None:
    want, address = _values(row)[column], _address(row, column)
    ours = draft.written_before.get(address, ())
    verdict = _judge(column, cell.text, want, ours, has_job=bool(one_line(row.job_id)))
    if verdict is _Verdict.WRITE:
        draft.changes.append((cell.start, cell.end, _dressed(draft.text, cell, _escape(want or "-"))))
    if verdict is _Verdict.WRITE or (verdict is _Verdict.SAME and want):
        draft.written[address] = want or "-"
    if verdict is _Verdict.EDITED:
        draft.conflicts.append(
            f"line {line}, column {cell.column}: {column} of {_subject(row)} is {cell.text!r}, which reconcile did not write; "
            f"it would be {want or '-'!r} and is left alone until the cell is emptied"
        )


def _subject(row: StatusRow) -> str:
    parts = (row.run, row.task, None if row.epoch is None else f"epoch {row.epoch}")
    return " ".join(part for part in parts if part)


def _dressed(document: str, cell: Cell, new: str) -> str:
    """``new`` in the padding of the cell that it replaces, as wide as that one was, so that a table stays aligned."""
    raw, is_first, is_last = cell.raw, document[cell.start - 1 : cell.start] != "|", not document.startswith("|", cell.end)
    if is_first and new[0] in _BEGINS_BLOCK:  # without an outer pipe
        new = f"\\{new}"
    if is_last:
        return raw[: len(raw) - len(raw.lstrip())] + new
    if not raw.strip():
        return f" {new} ".ljust(len(raw))
    lead, trail = raw[: len(raw) - len(raw.lstrip())], raw[len(raw.rstrip()) :]
    spare = len(raw) - len(lead + new + trail)
    if len(lead) > len(trail):  # aligned to the right
        lead = " " * max(len(lead) + spare, 1)
    else:
        trail = " " * max(len(trail) + spare, min(len(trail), 1))
    return lead + new + trail


def _extend_row(draft: _Draft, row: Row, missing: Mapping[int, str]) -> None:
    """Give a row that was cut short the cells up to the last one that has something to say."""
    last = row.cells[-1]
    texts = [_escape(missing.get(index, "")) for index in range(len(row.cells), max(missing) + 1)]
    if draft.text.startswith("|", last.end):
        draft.changes.append((last.end + 1, last.end + 1, "".join(f" {text} |" for text in texts)))
    else:
        draft.changes.append((last.end, last.end, "".join(f" | {text}" for text in texts)))


# --- rows and tables that are not ----------------------------------------------------------------


def _add_rows(draft: _Draft, status: _StatusTable, rows: Sequence[StatusRow]) -> None:
    """New rows below the last one of a table, in its column order and alignment, inside whatever quotation it stands in."""
    header = status.table.header
    last = next((row for row in reversed(status.table.rows) if len(row.cells) > 1), None)
    line, *following = draft.lines[(last.line if last else header.line + 1) - 1 :][:2]
    newline = draft.text[line.end : following[0].start] if following else draft.newline
    prefix = _CONTAINER.match(draft.text, line.start)
    widths = [len(cell.raw) for cell in header.cells]
    is_aligned = last is not None and [len(cell.raw) for cell in last.cells] == widths
    columns = {index: column for column, index in status.columns.items()}
    order = [columns.get(index, "") for index in range(len(header.cells))]
    new = [_new_row(row, order, widths if is_aligned else [0] * len(order)) for row in rows]
    draft.changes.append((line.end, line.end, "".join(f"{newline}{prefix[0] if prefix else ''}{text}" for text in new)))
    _remember(draft, rows, order)


def _add_table(draft: _Draft, kind: _Kind, rows: Sequence[StatusRow]) -> None:
    """A new table under the heading that waits for it, else with its own heading at the end of the document."""
    table = draft.newline.join(_new_table(kind, rows))
    _remember(draft, rows, kind.columns)
    heading = next((head for head in find_headings(draft.text) if _words(head.text).startswith(_words(kind.heading))), None)
    if heading is None:
        draft.sections.append(f"## {kind.heading}{draft.newline * 2}{table}")
        return
    at = draft.lines[heading.end_line - 1].end
    is_followed = any(draft.text[line.start : line.end].strip() for line in draft.lines[heading.end_line :][:1])
    draft.changes.append((at, at, draft.newline * 2 + table + draft.newline * is_followed))


def _append_sections(draft: _Draft) -> None:
    """What is new at the end, a blank line above it; a document without a final newline stays one without."""
    if not draft.sections:
        return
    *before, last = (draft.text[line.start : line.end] for line in draft.lines)
    is_begun = bool(draft.text.removeprefix("\ufeff"))
    newlines = 2 if last.strip() else 1 if last or (before and before[-1].strip()) else 0
    gap = draft.newline * newlines if is_begun else ""
    final = "" if last and is_begun else draft.newline
    addition = gap + (draft.newline * 2).join(draft.sections) + final
    draft.changes.append((len(draft.text), len(draft.text), addition))


def _remember(draft: _Draft, rows: Sequence[StatusRow], columns: Iterable[str]) -> None:
    """What new rows hold, dashes too: whatever a person puts in their place is an edit."""
    ours = [column for column in columns if column in (_STATUS, *_FACTS, _NOTES)]
    for row in rows:
        values = _values(row)
        draft.written |= {_address(row, column): values[column] or "-" for column in ours}


def _new_table(kind: _Kind, rows: Sequence[StatusRow]) -> list[str]:
    """The lines of a whole table."""
    header = f"| {' | '.join(kind.columns)} |"
    rule = f"|{'|'.join('-' * (len(column) + 2) for column in kind.columns)}|"
    return [header, rule, *(_new_row(row, kind.columns, [0] * len(kind.columns)) for row in rows)]


def _new_row(row: StatusRow, columns: Sequence[str], widths: Sequence[int]) -> str:
    """A row with its cells under ``columns``, a dash for what is not known and nothing under a column that we do not know."""
    values = _values(row)
    cells = (
        f" {_escape(values[column] or '-') if column else ''} ".ljust(width)
        for column, width in zip(columns, widths, strict=True)
    )
    return f"|{'|'.join(cells)}|"


# --- text ----------------------------------------------------------------------------------------

_CONTAINER = re.compile(r"[ \t>]*")  # what stands before a row in a quotation or a list
_BEGINS_BLOCK = "-+#>=~:"  # at the start of a line these may end the table
_SPECIAL = re.compile(
    r"""[`*<\[\]|]            # emphasis, code, HTML, links, and the end of a cell
      | (?<![^\W_])_+ | _+(?![^\W_])   # emphasis, but not inside a word, where run names have it
      | ~~+                  # struck out, on GitHub
      | &(?=\#?\w+;)         # an entity
    """,
    re.VERBOSE,
)


def _escape(text: str) -> str:
    """Markdown that reads as ``text``, and is ``text`` wherever that will do, for those who read the table without a parser."""
    # An entity for the backslash: written as two, the second would escape a pipe that follows the cell.
    escaped = _SPECIAL.sub(lambda match: "".join(f"\\{char}" for char in match[0]), one_line(text).replace("\\", "\0"))
    return escaped.replace("\0", "&#92;")


def one_line(text: str) -> str:
    """The text without control, bidirectional or lone surrogate characters, each a space instead."""
    if not text.isprintable():
        text = "".join(" " if unicodedata.category(char) in _INVISIBLE else char for char in text)
    return text.strip()


_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def _newline_of(text: str) -> str:
    """The newline that the document uses most."""
    counts = Counter(re.findall(r"\r\n?|\n", text))
    return counts.most_common(1)[0][0] if counts else "\n"
