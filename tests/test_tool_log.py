"""The blocks of the tools' logs, in the form that their readers parse."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.errors import TemporaryError
from reconciler.tool_log import append_block, block

_BLOCK = re.compile(
    r"\[(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\] (?P<operation>[A-Z_]+): (?P<subject>[^\n]*)\n"
    r"Details: (?P<details>[^\n]*)\n(?:Job ID: (?P<job>[^\n]*)\n)?Result: (?P<result>[^\n]*)\n\n"
)


@pytest.fixture
def _in_central_europe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_in_central_europe")
def test_a_block_has_the_form_that_existing_tools_parse() -> None:
    assert block(1761136522.9, "SUBMIT_JOB", "r8_lr1e-5", "sbatch finetune.slurm", "1482231", "success") == (
        "[2025-10-22 14:35:22] SUBMIT_JOB: r8_lr1e-5\nDetails: sbatch finetune.slurm\nJob ID: 1482231\nResult: success\n\n"
    )


def test_a_block_without_a_job_has_no_job_id_line() -> None:
    text = block(0.0, "ALL_COMPLETE", "experiment", "all 9 steps are verified", None, "success")
    assert text.splitlines()[1:] == ["Details: all 9 steps are verified", "Result: success", ""]


def test_blocks_follow_one_another_in_a_directory_made_for_them(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "run-inspect.log"
    append_block(path, 0.0, "SUBMIT_EVAL", "r8/cap/epoch0", "sbatch cap_epoch0.slurm", "7", "success")
    append_block(path, 1.0, "STATE_CHANGE", "r8/cap/epoch0", "PENDING -> RUNNING", "7", "success")
    found = list(_BLOCK.finditer(path.read_text(encoding="utf-8")))
    assert [match["operation"] for match in found] == ["SUBMIT_EVAL", "STATE_CHANGE"]
    assert "".join(match[0] for match in found) == path.read_text(encoding="utf-8")


def test_a_block_begins_on_a_line_of_its_own_below_what_another_left_unfinished(tmp_path: Path) -> None:
    path = tmp_path / "run-torchtune.log"
    path.write_bytes(b"a person's remark")
    append_block(path, 0.0, "SUBMIT_JOB", "r8", "sbatch finetune.slurm", "7", "success")
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    assert first == "a person's remark"
    assert any(line.endswith("SUBMIT_JOB: r8") for line in rest)


def test_a_log_that_cannot_be_written_is_an_error_for_later(tmp_path: Path) -> None:
    (tmp_path / "logs").write_bytes(b"a file where the directory belongs")
    with pytest.raises(TemporaryError):
        append_block(tmp_path / "logs" / "run-inspect.log", 0.0, "SUBMIT_EVAL", "r8", "", None, "success")


@given(*[st.text(max_size=30)] * 4)
def test_no_field_can_forge_a_line(subject: str, details: str, job: str, result: str) -> None:
    text = block(0.0, "SUBMIT_JOB", subject, details, job, result)
    assert _BLOCK.fullmatch(text)
    assert len(text.splitlines()) == 5
    assert text.encode("utf-8")
