"""Tables are found as a careful person finds them, and every cell knows its place in the original text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.experiment import markdown_tables
from reconciler.experiment.markdown_tables import Table, find_headings, find_lines, find_tables

DOCUMENTS = sorted((Path(__file__).parent / "documents").glob("*.md"))


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row.cells] for row in (table.header, *table.rows)]


def only(text: str) -> Table:
    (table,) = find_tables(text)
    return table


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        ("plain", "plain"),
        ("**bold**", "bold"),
        ("*slanted*", "slanted"),
        ("`in_code`", "in_code"),
        ("**`both`**", "both"),
        ("[words](https://example.org/a_b)", "words"),
        ("[words][there]", "words"),
        ("<https://example.org>", "https://example.org"),
        ("![drawing](x.png)", "drawing"),
        (r"a \| b", "a | b"),
        (r"`a \| b`", "a | b"),
        (r"\*not slanted\*", "*not slanted*"),
        ("R&amp;D &#124; x", "R&D | x"),
        ("one<br>two", "one two"),
        ("kept <!-- remark -->", "kept"),
        ("r8_lr1e-5_x", "r8_lr1e-5_x"),
        ("✓ epoch 0,1", "✓ epoch 0,1"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("", ""),
    ],
)
def test_a_cell_reads_as_a_person_reads_it(raw: str, read: str) -> None:
    table = only(f"| A | B |\n|---|---|\n| {raw} | end |\n\n[there]: https://example.org\n")
    assert texts(table)[1] == [read, "end"]


@pytest.mark.parametrize(
    "text",
    [
        "```\n| A |\n|---|\n| 1 |\n```\n",
        "~~~markdown\n| A |\n|---|\n",
        "Prose.\n\n    | A |\n    |---|\n    | 1 |\n",
        "<!--\n\n| A |\n|---|\n| 1 |\n\n-->\n",
        "<pre>\n\n| A |\n|---|\n</pre>\n",
        "- list\n  ```\n  | A |\n  |---|\n  ```\n",
        "| A | B |\n\n|---|---|\n",
        "| A | B |\n|---|\n",
        "A line with a | bar.\n",
    ],
)
def test_what_only_looks_like_a_table_is_none(text: str) -> None:
    assert find_tables(text) == ()


def test_a_pipe_inside_backticks_splits_as_it_does_on_github() -> None:
    assert texts(only("| A | B |\n|---|---|\n| `a|b` |\n"))[1] == ["`a", "b`"]


def test_rows_keep_the_cells_that_they_have() -> None:
    table = only("| A | B |\n|---|---|\n| 1 |\n| 1 | 2 | 3 |\n||\n|\n")
    assert texts(table)[1:] == [["1"], ["1", "2", "3"], [""], []]


def test_outer_pipes_may_be_missing() -> None:
    table = only("A | B\n--|--\n1 | 2  \n| 3 | 4\n5 | 6 |\n")
    assert texts(table) == [["A", "B"], ["1", "2"], ["3", "4"], ["5", "6"]]
    assert [cell.raw for cell in table.rows[0].cells] == ["1 ", " 2"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_lines_columns_and_offsets_are_those_of_the_document(newline: str, bom: str) -> None:
    text = bom + newline.join(["| A | B |", "|---|---|", "| 1 |  two |", "", "after", ""])
    table = only(text)
    two = table.rows[0].cells[1]
    assert (table.line, table.end_line, table.rows[0].line) == (1, 3, 3)
    assert (two.text, two.raw, two.column) == ("two", "  two ", 6)
    assert text[two.start : two.end] == "  two "
    assert table.header.cells[0].column == 2


def test_tables_in_quotations_and_lists_have_their_places_too() -> None:
    text = "> > | A | B |\n> > |---|---|\n>> | 1 | 2 |\n\n- | C | D |\n  |---|---|\n  | 3 | 4 |\n"
    quoted, listed = find_tables(text)
    assert texts(quoted) == [["A", "B"], ["1", "2"]]
    assert texts(listed) == [["C", "D"], ["3", "4"]]
    assert [text[cell.start : cell.end] for cell in quoted.rows[0].cells] == [" 1 ", " 2 "]
    assert [cell.column for cell in listed.rows[0].cells] == [4, 8]


def test_a_table_knows_the_headings_above_it() -> None:
    table = "| A |\n|---|\n\n"
    text = f"# Title\n\n## **One** (9 total)\n\n### Deep\n\n{table}## `Two`\n\n{table}Three\n---\n\n{table}"
    assert [found.headings for found in find_tables(text)] == [
        ("Title", "One (9 total)", "Deep"),
        ("Title", "Two"),
        ("Title", "Three"),
    ]


def test_headings_are_found_where_they_stand_by_themselves() -> None:
    text = "# A *b*\n\n```\n# no\n```\n\n> # quoted\n\nTwo\nlines\n---\n"
    assert [(found.text, found.line, found.end_line) for found in find_headings(text)] == [("A b", 1, 1), ("Two lines", 9, 11)]


def test_only_what_ends_a_line_for_markdown_does() -> None:
    text = "a\x0bb\u2028c\x85d\r\ne\rf\n"
    assert [text[line.start : line.end] for line in find_lines(text)] == ["a\x0bb\u2028c\x85d", "e", "f", ""]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_real_documents_give_all_of_their_tables_and_none_of_their_fences(path: Path) -> None:
    tables = find_tables(path.read_text(encoding="utf-8"))
    runs = next(table for table in tables if table.headings[-1].startswith("All Runs"))
    assert len(runs.rows) in (4, 5)
    assert all(len(row.cells) == len(table.header.cells) for table in tables for row in table.rows)
    assert not any("example_run" in row for table in tables for row in texts(table))


def test_an_escaped_bar_and_backticks_of_a_real_document_are_read_through() -> None:
    document = next(path for path in DOCUMENTS if path.stem == "twins_model_sizes").read_text(encoding="utf-8")
    runs = find_tables(document)[0]
    assert [cell.text for cell in runs.header.cells] == ["#", "Run Name", "Type", "Model", "Epochs", "Notes"]
    assert texts(runs)[2] == [
        "2",
        "Llama-3.2-3B_rank8",
        "Fine-tuned",
        "Llama-3.2-3B-Instruct",
        "2",
        "needs the 80 GB nodes | see wiki",
    ]


_ROWS = (
    "| A | B |",
    "| 1 | `2` |",
    "x | y",
    "> | q | r |",
    "- | l | m |",
    "| \\| | \\",
    "|",
    "||",
    "\t| t | u |",
    "| \u2028 | z |",
    "\\|",
)
_RULES = ("|---|---|", "--|:-:", "> |--|--|", "  |---|---|")
_LINES = st.sampled_from((*_ROWS, *_RULES, "```", "", "  ", "# H", "<!--", "-->", "text"))


@settings(deadline=None)
@given(st.lists(_LINES, max_size=14), st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from(["", "\ufeff"]))
def test_every_cell_is_the_part_of_the_document_that_it_says(lines: list[str], newline: str, bom: str) -> None:
    text = bom + newline.join(lines)
    places = find_lines(text)
    for table in find_tables(text):
        assert len(table.header.cells) >= 1
        for row in (table.header, *table.rows):
            line = places[row.line - 1]
            for cell in row.cells:
                assert text[cell.start : cell.end] == cell.raw
                assert line.start <= cell.start <= cell.end <= line.end
                assert cell.start == line.start + cell.column - 1 + (len(bom) if row.line == 1 else 0)


@settings(deadline=None)
@given(st.from_regex(markdown_tables._WORDS, fullmatch=True))
def test_words_that_nothing_marks_up_read_as_the_parser_reads_them(raw: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(markdown_tables, "_WORDS", re.compile("(?!)"))
        parsed = find_tables.__wrapped__(f"| A | B |\n|---|---|\n| {raw} | end |\n")
    assert parsed == find_tables.__wrapped__(f"| A | B |\n|---|---|\n| {raw} | end |\n")


@given(st.text(alphabet="|-: \\`ab\n>*_&;<[]()!#\t\r", max_size=120))
def test_no_text_breaks_the_reader(text: str) -> None:
    assert all(table.line < table.end_line for table in find_tables(text))
