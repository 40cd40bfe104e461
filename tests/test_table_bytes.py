"""The status tables byte for byte, as people and other programs find them: new ones, grown ones, and odd ones."""

from __future__ import annotations

import pytest

from reconciler.experiment.markdown_tables import find_tables
from reconciler.status_tables import update_document
from test_status_tables import EVALUATION, TRAINING, evaluation, remembered, training

NEW_TRAINING = (
    "## Fine-tuning Status\n\n"
    "| Run Name | Status | Job ID | Started | Completed | Notes |\n"
    "|----------|--------|--------|---------|-----------|-------|\n"
    "| r8 | PENDING | - | - | - | - |"
)
NEW_EVALUATION = (
    "## Evaluation Status\n\n"
    "| Run Name | Task | Epoch | Status | Job ID | Completed | Notes |\n"
    "|----------|------|-------|--------|--------|-----------|-------|\n"
    "| r8 | cap | 0 | PENDING | - | - | - |"
)


@pytest.mark.parametrize(
    ("text", "gap", "end"),
    [
        ("", "", "\n"),
        ("\ufeff", "", "\n"),
        ("# name", "\n\n", ""),
        ("# name\n", "\n", "\n"),
        ("# name\n\n", "", "\n"),
        ("# name\n\n\n", "", "\n"),
        ("# name\n  ", "\n", ""),
        ("# name\n\n  ", "\n", ""),
        ("\n", "", "\n"),
    ],
)
def test_new_tables_stand_at_the_end_a_blank_line_below_what_was_there(text, gap, end):
    update = update_document(text, [training(), evaluation()], {})
    assert update.text == text + gap + NEW_TRAINING + "\n\n" + NEW_EVALUATION + end
    assert update.conflicts == ()
    assert update_document(update.text, [training(), evaluation()], remembered(update)).text == update.text


def test_what_new_rows_hold_is_remembered_dashes_too():
    update = update_document("# name\n", [training(job="7"), evaluation()], {})
    assert update.written == {
        "r8|||Status": "PENDING",
        "r8|||Job ID": "7",
        "r8|||Started": "-",
        "r8|||Completed": "-",
        "r8|||Notes": "-",
        "r8|cap|0|Status": "PENDING",
        "r8|cap|0|Job ID": "-",
        "r8|cap|0|Completed": "-",
        "r8|cap|0|Notes": "-",
    }


def test_what_a_person_wrote_is_not_remembered_as_ours():
    text = f"{TRAINING}| r8 | ask Ana | 7 | by hand | - | mine |\n"
    update = update_document(text, [training(status="HELD", notes="HeldByPerson")], {})
    assert update.text == text
    assert update.written == {}


def test_a_cell_that_falls_back_to_a_dash_is_remembered_as_one():
    before = f"{TRAINING}| r8 | RUNNING | 7 | - | - | - |\n"
    update = update_document(before, [training()], {"r8|||Job ID": ("7",)})
    assert update.text == f"{TRAINING}| r8 | PENDING | - | - | - | - |\n"
    assert update.written["r8|||Job ID"] == "-"


@pytest.mark.parametrize(
    ("columns", "before", "after"),
    [
        pytest.param("---|---|--:", "| r8 | PENDING |  7|", "| r8 | COMPLETED | 12345|", id="to the right"),
        pytest.param("---|---|--:", "| r8 | PENDING |     7|", "| r8 | COMPLETED | 12345|", id="to the right, wide"),
        pytest.param("---|---|---", "| r8 | PENDING    | 7      |", "| r8 | COMPLETED  | 12345  |", id="to the left, wide"),
        pytest.param("---|---|---", "| r8 | PENDING   | 7  |", "| r8 | COMPLETED | 12345 |", id="to the left, two spaces"),
        pytest.param("---|---|---", "|r8|PENDING|7|", "|r8|COMPLETED|12345|", id="tight"),
        pytest.param("---|---|---", "|r8 |PENDING  |7   |", "|r8 |COMPLETED |12345 |", id="tight to the left"),
    ],
)
def test_a_cell_keeps_its_side_and_its_width_as_far_as_it_can(columns, before, after):
    header = f"| Run Name | Status | Job ID |\n|{columns}|\n"
    ours = {"r8|||Job ID": ("7",)}
    assert update_document(f"{header}{before}\n", [training(status="COMPLETED", job="12345")], ours).text == f"{header}{after}\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("| r8 | PENDING |", "| r8 | PENDING | 7 |  | end |"),
        ("| r8 | PENDING | 7 |", "| r8 | PENDING | 7 |  | end |"),
        ("| r8 | PENDING | 7", "| r8 | PENDING | 7 |  | end"),
        ("| r8 | PENDING", "| r8 | PENDING | 7 |  | end"),
    ],
)
def test_a_row_that_was_cut_short_grows_as_far_as_there_is_something_to_say(before, after):
    assert update_document(f"{TRAINING}{before}\n", [training(job="7", end="end")], {}).text == f"{TRAINING}{after}\n"


def test_a_short_last_row_grows_before_the_rows_that_come_below_it():
    header = "| Run Name | Status | Job ID |\n|---|---|---|\n"
    update = update_document(f"{header}| r8 | PENDING", [training(job="7"), training("r16"), training("r32")], {})
    assert update.text == f"{header}| r8 | PENDING | 7\n| r16 | PENDING | - |\n| r32 | PENDING | - |"


def test_a_new_row_ends_as_the_row_above_it_whatever_the_document_does():
    table = TRAINING.replace("\n", "\r\n")
    text = f"# name\n\nmany\n\nlines\n\nof\n\ntext\n\n{table}| r8 | PENDING | - | - | - | - |\r\n\nmore\n"
    update = update_document(text, [training(), training("r16")], {})
    assert update.text == text.replace("- |\r\n\nmore", "- |\r\n| r16 | PENDING | - | - | - | - |\r\n\nmore")


def test_a_table_of_two_columns_under_its_heading_is_one_of_ours_and_grows_at_its_end():
    text = "## Fine-tuning Status\n\n| Run Name | Status |\n|---|---|\n| r4 | COMPLETED |\n| r8 | ? |\n"
    update = update_document(text, [training("r4", "COMPLETED"), training("r16")], {})
    assert update.text == text + "| r16 | PENDING |\n"


@pytest.mark.parametrize(
    "heading", ["## fine_tuning: status", "## Fine-Tuning Status (by reconcile)", "## Fine\u2010tuning status"]
)
def test_headings_and_columns_are_known_in_any_dress(heading):
    text = f"{heading}\n\n| Run_Name | STATUS | job-id |\n|---|---|---|\n| r8 | | |\n"
    update = update_document(text, [training(job="7")], {})
    assert [cell.text for cell in find_tables(update.text)[0].rows[0].cells] == ["r8", "PENDING", "7"]


def test_a_table_with_a_task_and_no_epoch_tells_of_no_fine_tune():
    text = "| Run Name | Task | Status | Job ID |\n|---|---|---|---|\n| r8 | cap | PENDING | 1 |\n"
    update = update_document(text, [training(status="HELD")], {})
    assert update.text.startswith(f"{text}\n## Fine-tuning Status")


def test_a_line_of_prose_that_is_a_runs_name_is_no_row():
    text = f"{TRAINING}r8\n"
    update = update_document(text, [training()], {})
    assert update.text == f"{TRAINING}| r8 | PENDING | - | - | - | - |\nr8\n"


def test_a_row_too_short_to_name_its_epoch_is_the_base_models_and_nobody_elses():
    text = f"{EVALUATION}| base | cap |\n"
    base = update_document(text, [evaluation("base", epoch=None)], {})
    assert base.text == f"{EVALUATION}| base | cap |  | PENDING |\n"
    other = update_document(text, [evaluation("base", epoch=0)], {})
    assert other.text == f"{text}| base | cap | 0 | PENDING | - | - | - |\n"


@pytest.mark.parametrize(
    ("row", "table", "subject"),
    [
        (training(status="HELD"), f"{TRAINING}| r8 | ask Ana | | | | |\n", "Status of r8 is"),
        (evaluation(status="HELD"), f"{EVALUATION}| r8 | cap | 0 | ask Ana | | | |\n", "Status of r8 cap epoch 0 is"),
        (evaluation(epoch=None, status="HELD"), f"{EVALUATION}| r8 | cap | | ask Ana | | | |\n", "Status of r8 cap is"),
    ],
)
def test_an_edit_is_reported_with_the_step_that_it_is_about(row, table, subject):
    (sentence,) = update_document(table, [row], {}).conflicts
    assert subject in sentence


@pytest.mark.parametrize(
    ("below", "gap"), [("Nothing yet.\n", "\n"), ("\nNothing yet.\n", ""), ("\n\nNothing yet.\n", ""), ("", "")]
)
def test_a_table_comes_right_below_the_heading_that_waits_for_it(below, gap):
    heading, table = NEW_TRAINING.split("\n\n")
    text = f"# name\n\n{heading}\n{below}"
    update = update_document(text, [training()], {})
    assert update.text == f"# name\n\n{heading}\n\n{table}\n{gap}{below}"
