"""The markdown form of the document, ``experiment_summary.md``.

Pure. Reads what a careful person would read, however tables and headings were dressed up; where a person
would have to guess, it notes a problem with line, column and value, and never guesses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.experiment import marks
from reconciler.experiment.document import (
    DEFAULT_PATTERN,
    LAST_EPOCH,
    TYPES,
    Document,
    Faults,
    Named,
    Plan,
    PlannedTask,
    RunRow,
    check_names,
    check_pattern,
    is_nothing,
    kind_of,
    listed_names,
    listed_run,
)
from reconciler.experiment.fields import Field, find_fields, plain, title_of
from reconciler.experiment.markdown_tables import Cell, Row, Table, find_tables
from reconciler.model import RunKind
from reconciler.spelling import closest

_RUNS, _TASKS, _PLAN, _MATRIX = "all runs", "evaluation tasks", "evaluation plan", "evaluation matrix"
_TABLES = (_RUNS, _TASKS, _PLAN, _MATRIX)
_FIELDS = (*_TABLES, "tools", "configuration", "output", "evaluation", "training")
_NAME, _TYPE, _CHECKPOINT = "run name", "type", "checkpoint path"
_EPOCHS = ("epochs", "epoch", "num epochs", "training epochs")
_REMARKS = ("notes", "note", "comment", "comments", "est. time", "estimated time", "est time")
_NO_TASKS = frozenset({_NAME, _TYPE, "#", "no.", "model", "description", "", *_EPOCHS, *_REMARKS})


def read_markdown(text: str, path: Path) -> Document:
    """The document that ``text`` is; ``path`` is only named in its problems."""
    faults = Faults(path)
    name = title_of(text)
    fields = find_fields(text)
    tables = _by_section(find_tables(text), name)
    if name is None:
        faults.add(1, "has no `# name` on its first line; the directory's name is taken", warning=True)
    _warn_of_headings(tables, faults)
    listed: list[Named] = []
    runs = _read_runs(tables[_RUNS], listed, faults)
    directory, pattern = _read_output(fields, faults)
    return Document(
        name=name or path.parent.name,
        path=path,
        form="markdown",
        tools=_read_tools(fields, faults),
        runs=runs,
        plan=_read_plan(tables, runs, [name.text for name in listed], faults),
        epochs=_configured_epochs(fields, runs, faults),
        checkpoint_dir=directory,
        naming_pattern=pattern,
        problems=tuple(faults.found),
    )


# --- sections and columns ------------------------------------------------------------------------


def _section(headings: Iterable[str], known: tuple[str, ...]) -> str:
    """The innermost heading that is known by its first words, ``all runs`` for ``## 3. All Runs (9 total)``."""
    for heading in reversed(tuple(headings)):
        words = re.sub(r"^[\d.)\s]+", "", plain(heading).casefold())
        if found := next((section for section in known if words.startswith(section)), None):
            return found
    return ""


def _by_section(tables: Iterable[Table], title: str | None) -> dict[str, list[Table]]:
    """The tables of each known section; the document's own name may begin with any word and is no section."""
    found: dict[str, list[Table]] = {section: [] for section in ("", *_TABLES)}
    for table in tables:
        named = table.headings[:1] and plain(table.headings[0]) == title
        found[_section(table.headings[1:] if named else table.headings, _TABLES)].append(table)
    return found


def _warn_of_headings(tables: Mapping[str, list[Table]], faults: Faults) -> None:
    """A table that nothing is read of, under a heading much like that of one that is missing."""
    missing = [section for section in (_RUNS, _PLAN, _TASKS) if not tables[section]]
    missing = [section for section in missing if section != _PLAN or not tables[_MATRIX]]
    for table in tables[""]:
        heading = plain(table.headings[-1]) if table.headings else ""
        hint = (
            ""
            if "status" in _Columns.of(table)
            else closest(re.sub(r"^[\d.)\s]+|\s*\(.*", "", heading.casefold()), missing, likeness=0.85)
        )
        if hint:
            faults.add(table.header.line, f"the table under `{heading:.80}` is not read{hint}", warning=True)


def _key(text: str) -> str:
    return " ".join(text.replace("_", " ").casefold().strip(" :").split())


@dataclass(frozen=True)
class _Columns:
    """A table's header, by name in any capitalisation."""

    keys: tuple[str, ...]

    @classmethod
    def of(cls, table: Table) -> _Columns:
        return cls(tuple(_key(cell.text) for cell in table.header.cells))

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    def text(self, row: Row, key: str) -> str:
        """The text under a column, empty where the column or the cell is missing."""
        cell = self.cell(row, key)
        return cell.text.strip() if cell else ""

    def cell(self, row: Row, key: str) -> Cell | None:
        index = self.keys.index(key) if key in self.keys else len(row.cells)
        return row.cells[index] if index < len(row.cells) else None


def _full_rows(table: Table, columns: _Columns, faults: Faults) -> Iterator[Row]:
    """The rows with something in them that have a cell for every column; only remarks at the end may be left out."""
    expected = len(columns.keys)
    for row in table.rows:
        if not any(cell.text.strip() for cell in row.cells):
            continue
        missing = [key for key in columns.keys[len(row.cells) :] if key not in _REMARKS]
        if missing:
            faults.add(
                row.line, f"the row has too few cells, {len(row.cells)} of {expected}; `{missing[0]}` is the first one missing"
            )
        elif len(row.cells) > expected:
            faults.add(
                row.line, f"the row has too many cells, {len(row.cells)} of {expected}; write `\\|` for a bar inside a cell"
            )
        else:
            yield row


def _has_unique(columns: _Columns, needed: Iterable[str], table: Table, faults: Faults) -> bool:
    """Notes a column that stands twice where only one can be meant."""
    twice = [key for key in needed if columns.keys.count(key) > 1]
    for key in twice:
        faults.add(table.header.line, f"the column `{key}` stands twice; leave one")
    return not twice


# --- runs ----------------------------------------------------------------------------------------


def _read_runs(found: list[Table], seen: list[Named], faults: Faults) -> tuple[RunRow, ...]:
    """The runs that can be read; ``seen`` gets the names of all that are listed."""
    listing = [table for table in found if _is_run_table(_Columns.of(table))]
    if not listing:
        _explain_no_runs(found, faults)
        return ()
    rows = tuple(row for table in listing for row in _rows_of(table, seen, faults))
    check_names(seen, faults)
    if not seen and not faults.found:
        faults.add(listing[0].line, "the `All Runs` table has no rows")
    return rows


def _is_run_table(columns: _Columns) -> bool:
    return _NAME in columns and (_TYPE in columns or "status" not in columns)


def _explain_no_runs(found: list[Table], faults: Faults) -> None:
    if not found:
        faults.add(0, "has no table under a heading `## All Runs`; it lists the runs, with the columns `Run Name` and `Type`")
    for table in found[:1]:
        headers = ", ".join(f"`{cell.text}`" for cell in table.header.cells)
        faults.add(table.header.line, f"the `All Runs` table has no column `Run Name`; its columns are {headers}")


def _rows_of(table: Table, seen: list[Named], faults: Faults) -> Iterator[RunRow]:
    columns = _Columns.of(table)
    if _TYPE not in columns:
        faults.add(table.header.line, f"the `All Runs` table has no column `Type`; it says of each run {TYPES}")
    epochs = next((key for key in _EPOCHS if key in columns), "epochs")
    if not _has_unique(columns, (_NAME, _TYPE, epochs), table, faults):
        return
    for row in _full_rows(table, columns, faults):
        seen.append(Named(columns.text(row, _NAME), row.line))
        if _TYPE in columns and (run := _run(row, columns, epochs, table, faults)):
            yield run


def _run(row: Row, columns: _Columns, epochs: str, table: Table, faults: Faults) -> RunRow | None:
    written = columns.text(row, _TYPE)
    kind = kind_of(written)
    if kind is None:
        faults.add(row.line, f"the `Type` of run `{columns.text(row, _NAME)}` is {written!r}; accepted: {TYPES}")
        return None
    checkpoint = columns.text(row, _CHECKPOINT)
    if kind is RunKind.EVAL_ONLY and is_nothing(checkpoint):
        name = columns.text(row, _NAME)
        faults.add(row.line, f"the eval-only run `{name}` needs its checkpoint in a column `Checkpoint Path`", name)
    return RunRow(
        name=columns.text(row, _NAME),
        kind=kind,
        line=row.line,
        parameters=_parameters(row, columns, table),
        epochs=_own_epochs(row, columns, epochs, kind, faults),
        checkpoint_path=None if is_nothing(checkpoint) else Path(checkpoint),
    )


def _parameters(row: Row, columns: _Columns, table: Table) -> dict[str, str]:
    """The row's other columns, under their headers."""
    left_out = {_NAME, _TYPE, _CHECKPOINT, "#", "no.", *_REMARKS}
    cells = zip(table.header.cells, columns.keys, row.cells, strict=False)
    return {header.text.strip(): cell.text.strip() for header, key, cell in cells if key not in left_out}


def _own_epochs(row: Row, columns: _Columns, key: str, kind: RunKind, faults: Faults) -> int | None:
    written = columns.text(row, key)
    if kind is not RunKind.FINE_TUNED or is_nothing(written):
        return None
    number = _positive(written)
    if number is None:
        name = columns.text(row, _NAME)
        faults.add(row.line, f"the `Epochs` of run `{name}` is {written!r}; accepted: a whole number from 1 to {LAST_EPOCH}")
    return number


def _positive(text: str) -> int | None:
    match = re.fullmatch(r"(0*[1-9][0-9]{0,3})( epochs?)?", text.casefold())
    return int(match[1]) if match else None


# --- evaluation plan -----------------------------------------------------------------------------


def _read_plan(
    tables: dict[str, list[Table]], runs: tuple[RunRow, ...], listed: Sequence[str], faults: Faults
) -> dict[str, tuple[PlannedTask, ...]] | None:
    """The evaluations of each run, from every matrix of the plan; None where there is no matrix."""
    matrices = [table for table in (*tables[_PLAN], *tables[_MATRIX]) if _is_matrix(table, faults)]
    if not matrices or not runs:
        return None
    known = _listed_tasks(tables[_TASKS])
    names = listed_names(listed)
    plan = Plan(faults.file)
    for table in matrices:
        columns = _Columns.of(table)
        tasks = _task_columns(table, columns, known, runs, faults)
        if not _has_unique(columns, (_NAME,), table, faults):
            continue
        for name, row in _rows_of_runs(table, columns, names, faults):
            plan.add(name, _wanted(row, tasks, faults))
    return plan.tasks


def _is_matrix(table: Table, faults: Faults) -> bool:
    columns = _Columns.of(table)
    if "status" in columns:
        return False
    if _NAME not in columns and any(_has_ticks(table, index) for index in range(len(columns.keys))):
        faults.add(table.header.line, "this table of the evaluation plan has no column `Run Name`; its marks belong to no run")
    return _NAME in columns


def _rows_of_runs(table: Table, columns: _Columns, names: Mapping[str, str], faults: Faults) -> Iterator[tuple[str, Row]]:
    """Each row of a matrix with the listed run that it is about; a run has one row."""
    seen: dict[str, int] = {}
    for row in _full_rows(table, columns, faults):
        name = listed_run(Named(columns.text(row, _NAME), row.line), names, faults)
        if name is None:
            continue
        if seen.setdefault(name, row.line) != row.line:
            faults.add(row.line, f"the evaluation plan names the run `{name}` twice (first on line {seen[name]}); leave one row")
        else:
            yield name, row


def _listed_tasks(tables: list[Table]) -> dict[str, str]:
    """The tasks of the `Evaluation Tasks` table, by header key; empty where there is none."""
    found: dict[str, str] = {}
    for table in tables:
        columns = _Columns.of(table)
        key = next((key for key in ("task name", "task") if key in columns), "task name")
        found.update({_key(text): text for row in table.rows if (text := columns.text(row, key))})
    return found


def _task_columns(
    table: Table, columns: _Columns, known: dict[str, str], runs: tuple[RunRow, ...], faults: Faults
) -> list[tuple[int, str]]:
    """Which columns are tasks: those that are listed as such, or else all that are not known to be something else."""
    other = _NO_TASKS | {_key(name) for run in runs for name in run.parameters}
    found: list[tuple[int, str]] = []
    for index, (key, header) in enumerate(zip(columns.keys, table.header.cells, strict=True)):
        if key in known:
            found.append((index, known[key]))
        elif known and key not in other and _has_ticks(table, index):
            hint = closest(header.text, known.values())
            faults.add(
                table.header.line, f"the column `{header.text}` has marks but is no task of the `Evaluation Tasks` table{hint}"
            )
        elif not known and key not in other:
            found.append((index, header.text.strip()))
    check_names((Named(task, table.header.line) for _, task in found), faults, "task")
    return found


def _has_ticks(table: Table, index: int) -> bool:
    return any(row.cells[index].text.strip().startswith(("✓", "✔", "✅")) for row in table.rows if index < len(row.cells))


def _wanted(row: Row, tasks: list[tuple[int, str]], faults: Faults) -> Iterator[PlannedTask]:
    for index, task in tasks:
        cell = row.cells[index]
        mark = marks.read_mark(cell.text)
        if mark is None:
            faults.add(row.line, f"column {cell.column}: `{task}` says {cell.text!r}; accepted: {marks.ACCEPTED}")
        elif mark.wanted:
            yield PlannedTask(task, row.line, mark.epochs, mark.every)


# --- tools and configuration ---------------------------------------------------------------------


def _read_tools(fields: tuple[Field, ...], faults: Faults) -> dict[str, Named]:
    """The tools that the document names; a stage that it leaves out is missing."""
    under = [field for field in fields if _section(field.headings, _FIELDS) == "tools"]
    stages = {"preparation": ("model preparation", "preparation"), "evaluation": ("evaluation", "model evaluation")}
    found = {stage: _one([f for f in under if _key(f.key) in keys], faults) for stage, keys in stages.items()}
    return {stage: Named(field.value, field.line) for stage, field in found.items() if field}


def _configured_epochs(fields: tuple[Field, ...], runs: tuple[RunRow, ...], faults: Faults) -> int | None:
    """``**Epochs:**`` of the configuration; what it says under Evaluation is not the training's."""
    field = _one([f for f in fields if _is_configured(f) and _key(f.key) in _EPOCHS and not _is_evaluations(f)], faults)
    needed = any(run.kind is RunKind.FINE_TUNED and run.epochs is None for run in runs)
    if field is None or not needed:
        return _positive(field.value) if field else None
    number = _positive(field.value)
    if number is None:
        faults.add(field.line, f"`{field.key}` is {field.value!r}; accepted: a whole number from 1 to {LAST_EPOCH}")
    return number


def _read_output(fields: tuple[Field, ...], faults: Faults) -> tuple[Path | None, str | None]:
    """Where the checkpoints go: the root, and the pattern below it."""
    configured = [field for field in fields if _is_configured(field)]
    directory = _one([field for field in configured if _key(field.key) == "checkpoint directory"], faults)
    pattern = _one([field for field in configured if _key(field.key) == "naming pattern"], faults)
    return _root(directory, faults), check_pattern(pattern.value, pattern.line, faults) if pattern else DEFAULT_PATTERN


def _root(field: Field | None, faults: Faults) -> Path | None:
    if field is None or is_nothing(field.value):
        return None
    if re.search(r"[$<{~]", field.value):
        faults.add(field.line, f"`{field.key}` is {field.value!r}, which is no plain path; it is not compared", warning=True)
        return None
    return Path(field.value)


def _is_configured(field: Field) -> bool:
    return any(_section([heading], _FIELDS) in ("configuration", "output") for heading in field.headings)


def _is_evaluations(field: Field) -> bool:
    return _section(field.headings, _FIELDS).startswith("evaluation")


def _one(found: list[Field], faults: Faults) -> Field | None:
    """The only field, or the first of several that say the same; different ones are noted."""
    for other in found[1:]:
        if other.value != found[0].value:
            faults.add(
                other.line, f"`{other.key}` is {other.value!r} here and {found[0].value!r} on line {found[0].line}; leave one"
            )
    return found[0] if found else None
