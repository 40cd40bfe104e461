"""Only our cells of the status tables change, and a person's word in them stands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.errors import PermanentError
from reconciler.experiment.markdown_tables import find_tables
from reconciler.model import Stage
from reconciler.status_tables import StatusRow, Update, title, update_document

DOCUMENTS = sorted((Path(__file__).parent / "documents").glob("*.md"))
TRAINING = "| Run Name | Status | Job ID | Started | Completed | Notes |\n|---|---|---|---|---|---|\n"
EVALUATION = "| Run Name | Task | Epoch | Status | Job ID | Completed | Notes |\n|---|---|---|---|---|---|---|\n"
START, END = "2025-11-01 10:00:00", "2025-11-01 10:08:03"


def training(
    run: str = "r8", status: str = "PENDING", job: str = "", start: str = "", end: str = "", notes: str = ""
) -> StatusRow:
    return StatusRow(run, Stage.FINETUNE, None, None, status, job, start, end, notes)


def evaluation(
    run: str = "r8",
    task: str = "cap",
    epoch: int | None = 0,
    status: str = "PENDING",
    job: str = "",
    end: str = "",
    notes: str = "",
) -> StatusRow:
    return StatusRow(run, Stage.EVALUATION, task, epoch, status, job, "", end, notes)


def remembered(*updates: Update) -> dict[str, tuple[str, ...]]:
    return {key: (text,) for update in updates for key, text in update.written.items()}


def row_of(text: str, run: str, table: int = -1) -> list[str]:
    rows = [[cell.text for cell in row.cells] for row in find_tables(text)[table].rows]
    return next(row for row in rows if run in row)


def changed_lines(before: str, after: str) -> list[str]:
    return [new for old, new in zip(before.split("\n"), after.split("\n"), strict=True) if old != new]


# --- what is written -----------------------------------------------------------------------------


def test_a_row_follows_its_step() -> None:
    text = TRAINING + "| r8 | PENDING | - | - | - | |\n"
    first = update_document(text, [training(status="RUNNING", job="7", start=START)], {})
    assert row_of(first.text, "r8") == ["r8", "RUNNING", "7", START, "-", ""]
    done = training(status="COMPLETED", job="7", start=START, end=END, notes="8m 3s")
    second = update_document(first.text, [done], remembered(first))
    assert row_of(second.text, "r8") == ["r8", "COMPLETED", "7", START, END, "8m 3s"]
    assert second.conflicts == ()


def test_what_a_new_attempt_has_not_reached_yet_is_a_dash_again() -> None:
    first = update_document(TRAINING, [training(status="FAILED", job="7", start=START, end=END, notes="NonZeroExit")], {})
    second = update_document(first.text, [training(status="PENDING", job="8")], remembered(first))
    assert row_of(second.text, "r8") == ["r8", "PENDING", "8", "-", "-", "-"]


def test_a_document_that_says_it_all_already_is_the_identical_text() -> None:
    text = TRAINING + "| r8 |  **COMPLETED** | `7` | – |  | fine |\n"
    update = update_document(text, [training(status="COMPLETED", job="7")], {})
    assert update.text == text


def test_an_empty_table_is_filled_and_an_unlisted_step_gets_a_row_in_the_columns_of_the_table() -> None:
    table = "| Notes | # | **Status** | `Run Name` | GPU | Job ID |\n|---|--:|---|---|---|---|\n"
    text = f"## Status of trainings\n\n{table}\n{EVALUATION}\nend"
    update = update_document(text, [training(status="HELD", job="7", notes="why"), evaluation(epoch=None)], {})
    assert "| why |  | HELD | r8 |  | 7 |\n" in update.text
    assert "| r8 | cap | - | PENDING | - | - | - |\n\nend" in update.text


def test_evaluations_are_told_apart_by_run_task_and_epoch() -> None:
    keys = ("r8 | cap | 0", "r8 | cap | 1", "b | cap | base", "b | x | ")
    rows = "".join(f"| {key} | PENDING | | | |\n" for key in keys)
    steps = [
        evaluation(epoch=1, status="RUNNING"),
        evaluation("b", epoch=None, status="FAILED"),
        evaluation("b", "x", None, "HELD"),
    ]
    update = update_document(EVALUATION + rows, steps, {})
    assert [row.cells[3].text for row in find_tables(update.text)[0].rows] == ["PENDING", "RUNNING", "FAILED", "HELD"]


def test_epoch_0_and_the_base_model_of_one_run_are_two_steps() -> None:
    first = update_document(EVALUATION, [evaluation(epoch=0, notes="a"), evaluation(epoch=None, notes="b")], {})
    assert len(first.written) == 8
    assert len(find_tables(first.text)[0].rows) == 2


def test_the_first_table_with_the_row_has_it_and_new_rows_go_to_the_last() -> None:
    one, two = "| r8 | PENDING | | | | |\n", "| r16 | PENDING | | | | |\n| r8 | PENDING | | | | |\n"
    update = update_document(f"{TRAINING}{one}\nMore:\n\n{TRAINING}{two}", [training(status="HELD"), training("r32")], {})
    first, second = find_tables(update.text)
    assert [row.cells[1].text for row in first.rows] == ["HELD"]
    assert [(row.cells[0].text, row.cells[1].text) for row in second.rows] == [
        ("r16", "PENDING"),
        ("r8", "PENDING"),
        ("r32", "PENDING"),
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("| r8 | PENDING   |  7 |", "| r8 | HELD      |  7 |"),
        ("| r8 | PENDING |  7 |", "| r8 | HELD    |  7 |"),
        ("|r8|HELD|7|", "|r8|HELD|7|"),
        ("|r8|PENDING|7|", "|r8|HELD   |7|"),
        ("|r8||7|", "|r8| HELD |7|"),
        ("| r8 |          |  7 |", "| r8 | HELD     |  7 |"),
        ("| r8 |   PENDING |  7 |", "| r8 |      HELD |  7 |"),
        ("r8 | PENDING | 7", "r8 | HELD    | 7"),
        ("| r8 | |", "| r8 | HELD | 7 |"),
        ("| r8 | PENDING", "| r8 | HELD | 7"),
    ],
)
def test_cells_keep_their_padding_and_short_rows_grow(before: str, after: str) -> None:
    header = "| Run Name | Status | Job ID |\n|---|---|--:|\n"
    update = update_document(header + before + "\n", [training(status="HELD", job="7")], {})
    assert update.text == header + after + "\n"


def test_a_row_in_an_aligned_table_is_aligned_too() -> None:
    text = "| Run Name | Status    | Job ID |\n|----------|-----------|--------|\n| r8       | COMPLETED | 7      |\n"
    update = update_document(text, [training("r16", job="8")], {})
    assert update.text == text + "| r16      | PENDING   | 8      |\n"


def test_a_status_that_begins_a_line_without_a_pipe_does_not_end_the_table() -> None:
    text = "Job ID | Run Name | Status\n---|---|---\n7 | r8 | FAILED\n"
    first = update_document(text, [training(status="FAILED", job="7")], {})
    second = update_document(first.text, [training()], remembered(first))
    assert row_of(second.text, "r8") == ["-", "r8", "PENDING"]


def test_a_table_in_a_quotation_grows_inside_it() -> None:
    text = "> | Run Name | Status | Job ID |\n> |---|---|---|\n\nafter\n"
    assert "\n> | r8 | PENDING | 7 |\n\nafter" in update_document(text, [training(job="7")], {}).text


def test_prose_that_follows_a_table_at_once_stays_below_its_rows() -> None:
    text = TRAINING + "| r8 | PENDING | | | | |\nThat is all.\n"
    assert update_document(text, [training(), training("r16")], {}).text.endswith(
        "| r16 | PENDING | - | - | - | - |\nThat is all.\n"
    )


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("ending", ["", "N", "NN", "N  ", "\ufeff"])
def test_absent_tables_come_at_the_end_in_the_newlines_of_the_document(newline: str, ending: str) -> None:
    text = f"# name{newline}{newline}words{ending}".replace("N", newline)
    update = update_document(text, [training(), evaluation()], {})
    assert update.text.startswith(text)
    lines = update.text.split(newline)
    assert lines.index("## Fine-tuning Status") < lines.index("## Evaluation Status")
    assert all(lines[lines.index(heading) - 1].strip() == "" for heading in ("## Fine-tuning Status", "## Evaluation Status"))
    assert update.text.endswith(newline) == text.endswith(newline)
    assert [table.headings[-1] for table in find_tables(update.text)] == ["Fine-tuning Status", "Evaluation Status"]
    assert "\n" not in update.text.replace(newline, "")


def test_a_heading_that_waits_for_its_table_gets_it() -> None:
    text = "# name\n\n## Evaluation status (by reconcile)\nNothing yet.\n\n## End\n"
    update = update_document(text, [evaluation()], {})
    head, tail = update.text.split("\n\n| Run Name | Task |")
    assert head == "# name\n\n## Evaluation status (by reconcile)"
    assert tail.endswith("| r8 | cap | 0 | PENDING | - | - | - |\n\nNothing yet.\n\n## End\n")


@pytest.mark.parametrize("ending", ["```\ncode\n", "~~~", "<!-- remark\n", "<pre>\n", f"```\n{TRAINING}"])
def test_nothing_is_written_into_a_fence_or_comment_that_is_still_open(ending: str) -> None:
    with pytest.raises(PermanentError, match=r"line \d+.*still open"):
        update_document(f"# name\n\n{ending}", [training()], {})


@pytest.mark.parametrize(
    "table",
    [
        "| Run Name | Type | Status | Job ID |\n|---|---|---|---|\n| r8 | Fine-tuned | PENDING | 1 |\n",
        "| Status | Job ID |\n|---|---|\n| PENDING | 1 |\n",
        "| Run Name | Task | Status |\n|---|---|---|\n| r8 | cap | PENDING |\n",
        "## Evaluation progress\n\n| Run Name | Status | Job ID |\n|---|---|---|\n| r8 | PENDING | 1 |\n",
        f"```\n{TRAINING}| r8 | PENDING | | | | |\n```\n",
        f"<!--\n{TRAINING}| r8 | PENDING | | | | |\n-->\n",
    ],
)
def test_other_tables_are_none_of_ours(table: str) -> None:
    update = update_document(table, [training(status="HELD")], {})
    assert update.text.startswith(table)
    assert row_of(update.text, "r8")[1] == "HELD"


@pytest.mark.parametrize(
    "name", ["_x_", "__x__", "a_b", "a*b*c", "a  b", "R&amp;D", "~~x~~", "é", "x@y=1,2+3", "[x](y)", r"a\\", "<b>"]
)
def test_any_name_and_note_reads_back_and_is_found_again(name: str) -> None:
    first = update_document("", [training(name, notes=name)], {})
    assert row_of(first.text, name)[-1] == name
    assert update_document(first.text, [training(name, notes=name)], remembered(first)).text == first.text


def test_a_backslash_at_the_end_of_a_tight_cell_leaves_its_pipe_alone() -> None:
    text = "|Run Name|Status|Notes|Job ID|\n|---|---|---|---|\n|r8|PENDING|old|7|\n"
    update = update_document(text, [training(job="7", notes="a\\")], {"r8|||Notes": ("old",)})
    assert row_of(update.text, "r8") == ["r8", "PENDING", "a\\", "7"]


def test_ordinary_words_are_written_as_they_are() -> None:
    update = update_document("", [training("r8_lr1e-5", "COMPLETED", "7_1", START, END, "8m 3s (~10 x_y)")], {})
    assert f"| r8_lr1e-5 | COMPLETED | 7_1 | {START} | {END} | 8m 3s (~10 x_y) |\n" in update.text


def test_line_breaks_and_control_characters_never_reach_the_table() -> None:
    update = update_document("", [training(notes="a\r\nb\x00c\u202ed\u2028e\udcff| f")], {})
    assert row_of(update.text, "r8")[-1] == "a  b c d e | f"
    assert update.text.encode("utf-8")


# --- whose a cell is -----------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["PENDING", "Completed", "out of memory", "**FAILED**", "-", "—", ""])
def test_a_known_status_word_that_we_never_wrote_is_ours(word: str) -> None:
    update = update_document(f"{TRAINING}| r8 | {word} | | | | |\n", [training(status="HELD")], {})
    assert row_of(update.text, "r8")[1] == "HELD"
    assert update.conflicts == ()


def test_a_status_in_a_persons_own_words_is_reported_and_stays() -> None:
    text = f"{TRAINING}| r8 | ask Ana | | | | |\n"
    update = update_document(text, [training(status="HELD")], {})
    assert update.text == text
    (sentence,) = update.conflicts
    assert all(part in sentence for part in ("line 3", "column 7", "Status of r8", "'ask Ana'", "'HELD'"))


def test_facts_about_an_earlier_job_stay_until_a_job_of_ours_has_the_same_fact() -> None:
    text = f"{TRAINING}| r8 | COMPLETED | 1482231 | by hand | {END} | 26m |\n"
    without = update_document(text, [training(status="COMPLETED", end="2026-01-01 00:00:00")], {})
    assert without.text == text
    ours = update_document(text, [training(status="RUNNING", job="7", start=START)], {})
    assert row_of(ours.text, "r8") == ["r8", "RUNNING", "7", START, END, "26m"]
    assert without.conflicts == ours.conflicts == ()


def test_a_persons_note_stays_without_a_word() -> None:
    first = update_document(TRAINING, [training(notes="OutputsNotOurs")], {})
    edited = first.text.replace("OutputsNotOurs", "ask Ana")
    update = update_document(edited, [training(status="HELD", notes="TimeLimit")], remembered(first))
    assert row_of(update.text, "r8")[-1] == "ask Ana"
    assert update.conflicts == ()


@pytest.mark.parametrize(("ours", "theirs"), [("COMPLETED", "FAILED"), ("7", "8"), (START, "yesterday"), (END, "noon")])
def test_an_edit_of_what_we_wrote_is_reported_and_stays(ours: str, theirs: str) -> None:
    first = update_document(TRAINING, [training("r8", "COMPLETED", "7", START, END)], {})
    edited = first.text.replace(f" {ours} ", f" {theirs} ")
    update = update_document(edited, [training("r8", "RUNNING", "9", END, START)], remembered(first))
    assert theirs in row_of(update.text, "r8")
    (sentence,) = update.conflicts
    assert repr(theirs) in sentence


def test_what_a_person_puts_in_the_place_of_our_dash_is_an_edit_too() -> None:
    first = update_document(TRAINING, [training()], {})
    edited = first.text.replace("| PENDING | - |", "| PENDING | ask Ana |")
    update = update_document(edited, [training(job="7")], remembered(first))
    assert update.text == edited
    assert len(update.conflicts) == 1


def test_a_cell_that_a_person_empties_is_ours_again() -> None:
    first = update_document(TRAINING, [training(status="COMPLETED")], {})
    emptied = first.text.replace("COMPLETED", "")
    assert row_of(update_document(emptied, [training(status="HELD")], remembered(first)).text, "r8")[1] == "HELD"


def test_either_of_two_texts_that_a_crash_may_have_left_is_ours() -> None:
    text = f"{TRAINING}| r8 | waiting for GPU | | | | |\n"
    update = update_document(text, [training(status="HELD")], {"r8|||Status": ("RUNNING", "waiting for GPU")})
    assert row_of(update.text, "r8")[1] == "HELD"


def test_a_deleted_row_comes_back_and_its_step_is_not_forgotten() -> None:
    first = update_document(TRAINING, [training(status="COMPLETED", job="7")], {})
    update = update_document(TRAINING, [training(status="COMPLETED", job="7")], remembered(first))
    assert update.text == first.text


# --- real documents ------------------------------------------------------------------------------


def test_a_real_document_changes_in_the_cells_of_its_tables_alone() -> None:
    text = next(path for path in DOCUMENTS if path.stem == "twins_model_sizes").read_text(encoding="utf-8")
    rows = [training("Llama-3.2-1B_rank8", "COMPLETED"), training("Llama-3.2-3B_rank8", "RUNNING", "1482240", START)]
    update = update_document(text, rows, {})
    assert changed_lines(text, update.text) == [
        f"| Llama-3.2-3B_rank8 | RUNNING | 1482240 | {START} | - | ask Ana before cancelling |"
    ]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_a_real_document_keeps_every_line_when_rows_and_tables_are_added(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    update = update_document(text, [evaluation("Llama-3.2-1B_rank8", "twins_task", 1), evaluation("1B_base", "cap", None)], {})
    old, new = text.split("\n"), iter(update.text.split("\n"))
    assert all(line in new for line in old), "the old lines are no longer there in their order"
    rows = find_tables(update.text)[-1].rows
    assert [row.cells[0].text for row in rows] == ["Llama-3.2-1B_rank8", "1B_base"]


def test_the_tables_stand_alone_for_a_document_in_yaml() -> None:
    text = update_document(title("words_5L"), [training(job="7"), evaluation(epoch=None)], {}).text
    assert text.startswith("# words_5L\n")
    assert [table.headings for table in find_tables(text)] == [
        ("words_5L", "Fine-tuning Status"),
        ("words_5L", "Evaluation Status"),
    ]
    assert row_of(text, "r8", 0) == ["r8", "PENDING", "7", "-", "-", "-"]
    assert "Evaluation" not in update_document(title("words_5L"), [training()], {}).text


# --- generated documents -------------------------------------------------------------------------

_RUNS = ("r8", "r16_lr1e-5", "Llama 3.2", "ü_base", "_odd_")
_OURS = ("Status", "Job ID", "Started", "Completed", "Notes")
_HELD_BY = ("", "-", "PENDING", "**FAILED**", "ask Ana", "`7`", START, r"a \| b", "&amp;")
Segment = tuple[bool, str]  # is the text in a cell that we may own?


@st.composite
def _status_tables(draw: st.DrawFn) -> list[Segment]:
    """A status table, line by line, with whatever columns and whatever in its cells."""
    is_evaluation = draw(st.booleans())
    needed = ["Run Name", "Status", "Job ID", *(["Task", "Epoch"] if is_evaluation else [])]
    columns = draw(
        st.permutations([*needed, *sorted(draw(st.sets(st.sampled_from(["Started", "Completed", "Notes", "GPU", "#"]))))])
    )
    dress = draw(st.sampled_from(["{}", "**{}**", "`{}`"]))
    segments: list[Segment] = [(False, "| " + " | ".join(dress.format(name) for name in columns) + " |\n")]
    segments.append((False, "|" + "|".join(draw(st.sampled_from(["---", ":-:", " --: "])) for _ in columns) + "|\n"))
    for run in draw(st.lists(st.sampled_from(_RUNS), max_size=3)):
        pad = draw(st.sampled_from(["", " ", "   "]))
        fixed = {
            "Run Name": run.replace("_odd_", r"\_odd\_"),
            "Task": "cap",
            "Epoch": draw(st.sampled_from(["0", "1", "-", "base"])),
        }
        for name in columns:
            cell = fixed[name] if name in fixed else draw(st.sampled_from(_HELD_BY))
            segments += [(False, "|"), (name in _OURS, f"{pad}{cell}{pad}")]
        segments.append((False, "|\n"))
    return [*segments, (False, "\n")]


_FENCED = f"```\n{TRAINING}| r8 | PENDING | | | | |\n```\n"
_LISTING = "| Run Name | Type | Status |\n|---|---|---|\n| r8 | Control | PENDING |\n"
_LINES = ("# name\n", "Words | and bars.\n", "- item\n", "\n", "<!-- | Run Name | -->\n", "trailing  \n", "* * *\n", "> quoted\n")
_PROSE = st.sampled_from((_FENCED, _LISTING, "## Fine-tuning Status\n", "## All Runs\n", "    code\n", *_LINES)).map(
    lambda text: [(False, text), (False, "\n")]
)


@st.composite
def _documents(draw: st.DrawFn) -> list[Segment]:
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    parts = draw(st.lists(st.one_of(_PROSE, _status_tables()), max_size=5))
    segments = [(False, draw(st.sampled_from(["", "\ufeff"]))), *(segment for part in parts for segment in part)]
    return [(is_ours, text.replace("\n", newline)) for is_ours, text in segments]


_words = st.text(alphabet="ab_*`|\\[]<>&;#- é\n\r", max_size=8)
_trainings = st.builds(
    StatusRow,
    run=st.sampled_from(_RUNS),
    stage=st.just(Stage.FINETUNE),
    task=st.none(),
    epoch=st.none(),
    status=st.sampled_from(["PENDING", "RUNNING", "COMPLETED", "HELD"]),
    job_id=st.sampled_from(["", "7", "12345"]),
    started=st.sampled_from(["", START]),
    completed=st.sampled_from(["", END]),
    notes=st.one_of(st.sampled_from(["", "8m 3s", "OutputsNotOurs"]), _words),
)
_evaluations = st.builds(
    lambda row, epoch: replace(row, stage=Stage.EVALUATION, task="cap", epoch=epoch), _trainings, st.sampled_from([None, 0, 1])
)
_steps = st.lists(st.one_of(_trainings, _evaluations), max_size=5, unique_by=lambda row: (row.run, row.task, row.epoch))


def _text(segments: Sequence[Segment]) -> str:
    return "".join(text for _, text in segments)


def _is_kept(document: Sequence[Segment], new: str) -> bool:
    """True where every line is there, in order, different in our cells at most, and all others are new rows or headings."""
    marked = "".join("\0" if is_ours else text for is_ours, text in document).removeprefix("\ufeff")
    patterns = [re.escape(line).replace("\0", r"(?:[^|]|\\\|)*") for line in marked.split("\n")]
    for line in new.removeprefix("\ufeff").split("\n"):
        if patterns and re.fullmatch(patterns[0], line):
            patterns.pop(0)
        elif not re.fullmatch(r"(\|.*\||## (Fine-tuning|Evaluation) Status|)\r?", line):
            return False
    return not patterns


@settings(deadline=None)
@given(_documents(), _steps)
def test_every_byte_outside_our_cells_stays_and_twice_is_once(document: list[Segment], steps: list[StatusRow]) -> None:
    text = _text(document)
    first = update_document(text, steps, {})
    assert _is_kept(document, first.text)
    assert first.text.startswith("\ufeff") == text.startswith("\ufeff")
    second = update_document(first.text, steps, remembered(first))
    assert second.text == first.text
    assert second.conflicts == first.conflicts


@settings(deadline=None)
@given(st.lists(_PROSE, max_size=3), _steps, _steps, st.data())
def test_a_persons_edit_survives_whatever_comes_after(
    prose: list[list[Segment]], before: list[StatusRow], after: list[StatusRow], data: st.DataObject
) -> None:
    text = "".join(_text(part) for part in prose)
    first = update_document(text, before, {})
    tables = [table for table in find_tables(first.text) if table.line > text.count("\n") and table.rows]
    if not tables:
        return
    table = data.draw(st.sampled_from(tables))
    column = data.draw(st.sampled_from([i for i, cell in enumerate(table.header.cells) if cell.text in _OURS]))
    cell = data.draw(st.sampled_from(table.rows)).cells[column]
    edited = first.text[: cell.start] + " by Ana " + first.text[cell.end :]
    second = update_document(edited, after, remembered(first))
    assert second.text.count(" by Ana ") == 1


def test_memory_of_other_documents_does_no_harm() -> None:
    written: Mapping[str, tuple[str, ...]] = {"gone|||Status": ("RUNNING",)}
    assert update_document(TRAINING, [], written) == Update(TRAINING, {}, ())
