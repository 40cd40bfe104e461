"""Why an attempt failed: Slurm's word first, then what its log tells."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.batch_script import log_path, log_paths, parse_batch_script
from reconciler.failures import CLASSES, INFRASTRUCTURE, SIGNS, classify, plain_log
from reconciler.model import Condition, Job, Phase, Policy, Sign, Unknown, Verb
from reconciler.schemas import schema
from worlds import COMPLETE, ended, finetune, job, plan_for, submitted

SAMPLES = Path(__file__).parent / "samples" / "torchtune.tar.gz"
FAILED = Job("117", "x", "FAILED", Phase.ENDED, exit_code="1:0")


@pytest.fixture(scope="module")
def logs() -> dict[str, str]:
    """The jobs' logs of the real samples, by the sample's name."""
    with tarfile.open(SAMPLES) as archive:
        members = [member for member in archive.getmembers() if member.name.split("/")[-1].startswith("slurm")]
        texts = {member.name: archive.extractfile(member).read().decode() for member in members}
    return {name.split("/")[-3]: text for name, text in texts.items()}


@pytest.mark.parametrize("sign", SIGNS, ids=lambda sign: sign.pattern)
def test_each_line_of_the_table_is_told_by_its_own_sign(sign: Sign):
    said = f"INFO: training\n{sign.sample}\nsrun: done\n"
    assert (classify(FAILED, said).code, classify(FAILED, said).detail) == (sign.failure, sign.sample)


@pytest.mark.parametrize(
    ("sample", "code", "detail"),
    [
        ("failed_exception", "UserError", "FileNotFoundError: Unable to find '/scratch/lab/data/nonexistent.json'"),
        ("killed9_between_epochs", "Unknown", "exit code 1:0"),
    ],
)
def test_what_the_real_trainer_printed_tells_why(logs: dict[str, str], sample: str, code: str, detail: str):
    why = classify(FAILED, logs[sample])
    assert (why.code, why.detail) == (code, detail)


def test_a_script_that_went_on_after_its_trainer_failed_is_told_by_the_log(logs: dict[str, str]):
    completed = replace(FAILED, state="COMPLETED", exit_code="0:0")
    assert classify(completed, logs["failed_but_job_COMPLETED"]).code == "UserError"
    assert classify(completed, logs["complete"]).code == "CompletedWithoutEvidence"


@pytest.mark.parametrize(
    ("state", "code"),
    [("TIMEOUT", "TimeLimit"), ("OUT_OF_MEMORY", "OutOfMemoryHost"), ("NODE_FAIL", "NodeFailure"), ("PREEMPTED", "Preempted")],
)
def test_slurms_own_word_outranks_the_log(state: str, code: str):
    assert classify(replace(FAILED, state=state), "Traceback (most recent call last):\n  x\nKeyError: 1\n").code == code


def test_a_full_disk_outranks_the_traceback_and_the_memory_that_it_ends_in():
    log = (
        "OSError: [Errno 28] No space left on device\nTraceback (most recent call last):\n  a\ntorch.OutOfMemoryError: CUDA out\n"
    )
    assert classify(FAILED, log).code == "DiskQuota"


def test_the_last_line_of_the_last_traceback_is_shown():
    one = 'Traceback (most recent call last):\n  File "a", line 1\n\n    f()\n'
    assert classify(FAILED, f"{one}KeyError: 'first'\n{one}ValueError: second\nbye\n").detail == "ValueError: second"


def test_a_tools_own_signs_come_first():
    own = Sign("UserError", r"^recipe: bad seed", "recipe: bad seed")
    assert classify(FAILED, "recipe: bad seed\nCUDA out of memory\n", (own,)).code == "UserError"


@pytest.mark.parametrize(
    ("by", "asked", "code"),
    [
        ("1000", False, "CancelledByPerson"),
        ("", False, "CancelledByPerson"),
        ("0", False, "CancelledByAdmin"),
        ("1000", True, "CancelledByUs"),
    ],
)
def test_it_matters_who_cancelled(by: str, asked: bool, code: str):
    assert classify(replace(FAILED, state="CANCELLED", cancelled_by=by), None, (), "1000", was_asked=asked).code == code


def test_progress_bars_and_terminal_escapes_do_not_hide_what_a_log_says():
    assert plain_log("1%|#\r2%|##\r\x1b[31mKeyError\x1b[0m: 1\r\nend") == "KeyError: 1\nend"


def test_every_class_that_may_be_retried_is_in_the_settings_and_the_other_way_round():
    settings = set(schema("reconcile")["$defs"]["retry"]["properties"])
    assert settings == {name for name in CLASSES if not name.startswith("Cancelled")}


def test_log_files_are_named_as_slurm_names_them():
    script = parse_batch_script(Path("/e/r/finetune.slurm"), "#!/bin/bash\n#SBATCH --output=o-%j-%x.txt\n#SBATCH -e %u.err\n")
    assert [str(log_path(p, "7", "n", "ana")) for p in script.log_patterns] == ["/e/r/o-7-n.txt", "/e/r/ana.err"]
    plain = parse_batch_script(Path("/e/r/finetune.slurm"), "#!/bin/bash\n")
    assert [str(log_path(p, "7", "n", "ana")) for p in plain.log_patterns] == ["/e/r/slurm-7.out"]
    assert log_path("/e/%N-%j", "7", "n", "ana") is None
    assert log_path("/e/%u-%j", "7", "n", "") is None
    assert log_paths(("/e/%N", "/e/%j", "/e/%x"), "7", "n", "") == (Path("/e/7"), Path("/e/n"))
    assert str(log_path("/e/100%%", "7", "n", "ana")) == "/e/100%"


STEP = finetune()
OVER = job(STEP, Phase.ENDED, state="FAILED", exit_code="1:0")
LOG = "Traceback (most recent call last):\n  x\nKeyError: 'lr'\n"


def test_a_failed_step_shows_the_last_line_of_its_traceback():
    seen = plan_for(STEP, events=submitted(STEP), queue=(OVER,), logs={(OVER.id, OVER.name): LOG})
    (end,) = [e for e in seen.learned if e["event"] == "ended"]
    assert (end["failure"], end["detail"]) == ("UserError", "KeyError: 'lr'")
    later = plan_for(STEP, events=[*ended(STEP, "UserError", detail="KeyError: 'lr'")]).of(STEP.key)
    assert (later.verb, later.condition, later.reason.code) == (Verb.HOLD, Condition.FAILED, "UserError")
    assert "KeyError: 'lr'" in later.reason.message


def test_while_the_log_that_tells_why_cannot_be_read_nothing_is_decided_and_nothing_is_written():
    seen = plan_for(STEP, events=submitted(STEP), queue=(OVER,), logs={(OVER.id, OVER.name): Unknown("Stale file handle")})
    action = seen.of(STEP.key)
    assert (action.verb, action.condition, action.reason.code) == (Verb.WAIT, Condition.UNKNOWN, "DiskUnknown")
    assert not [e for e in seen.learned if e["event"] in ("ended", "lost", "unseen")]


def test_a_job_whose_id_was_never_known_waits_for_its_log_too():
    seen = plan_for(STEP, events=submitted(STEP)[:1], queue=(OVER,), logs={(OVER.id, OVER.name): Unknown("EIO")})
    assert (seen.of(STEP.key).reason.code, seen.of(STEP.key).job) == ("DiskUnknown", OVER.id)
    assert not [e for e in seen.learned if e["event"] in ("ended", "lost")]


def test_a_full_disk_holds_every_submission_that_writes_there_until_its_step_is_released():
    a, b, elsewhere = finetune("a"), finetune("b"), replace(finetune("c"), root=Path("/other"))
    failed = [*ended(a, "DiskQuota")]
    plan = plan_for(a, b, elsewhere, events=failed)
    assert [x.reason.code for x in plan.actions] == ["DiskQuota", "DiskQuota", "NotStarted"]
    assert (plan.of("a/finetune").condition, plan.of("b/finetune").condition) == (Condition.FAILED, Condition.WAITING)
    released = plan_for(a, b, elsewhere, events=[*failed, {"event": "release", "at": 1.0, "step": a.key}])
    assert {x.verb for x in released.actions} == {Verb.SUBMIT}


def test_failures_that_are_to_be_retried_are_no_wave_and_those_that_were_are_one():
    steps = [finetune(run) for run in ("a", "b", "c", "d")]
    failed = [e for step in steps[:3] for e in ended(step, "UserError")]
    policy = Policy(retry={"UserError": 1}, backoff=0)
    assert {plan_for(*steps, events=failed, policy=policy).of(step.key).verb for step in steps} == {Verb.SUBMIT}
    assert plan_for(*steps, events=failed).of("d/finetune").reason.code == "ManyFailures"


def test_infrastructure_is_no_fault_of_the_work():
    steps = [finetune(run) for run in ("a", "b", "c", "d")]
    for failure in INFRASTRUCTURE:
        failed = [e for step in steps[:3] for e in ended(step, failure)]
        assert plan_for(*steps, events=failed, policy=Policy(retry={})).of("d/finetune").verb is Verb.SUBMIT


def test_a_good_result_needs_no_log():
    seen = plan_for(STEP, events=ended(STEP, "Unknown"), seen={STEP.key: COMPLETE})
    assert seen.of(STEP.key).verb is Verb.MARK_DONE


def test_who_cancelled_a_job_is_asked_of_the_accounting_and_the_queue_is_believed_for_the_rest():
    shown = job(STEP, Phase.ENDED, state="CANCELLED")
    told = replace(shown, cancelled_by="0", ended=1.0)
    seen = plan_for(STEP, events=submitted(STEP), queue=(shown,), accounting=(told,))
    (end,) = [e for e in seen.learned if e["event"] == "ended"]
    assert (end["failure"], end["ended"]) == ("CancelledByAdmin", shown.ended)
