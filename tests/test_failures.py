"""Why an attempt failed: Slurm's word first, then what its log tells."""

from __future__ import annotations

import json
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from reconciler.batch_script import log_path, log_paths, parse_batch_script
from reconciler.failures import CLASSES, INFRASTRUCTURE, SIGNS, classify, plain_log
from reconciler.loop import preview
from reconciler.model import Ask, Condition, Job, Phase, Policy, Sign, Unknown, Verb
from reconciler.published import explained
from reconciler.render import Paint, status_text
from reconciler.schemas import schema
from reconciler.tracebacks import FORMS
from test_pass import lab, order  # noqa: F401 - a fixture
from worlds import COMPLETE, NOW, done, ended, evaluation, finetune, job, plan_for, submitted

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
    told = classify(FAILED, said, gpus=1)
    assert (told.code, told.detail) == (sign.failure, sign.sample)


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
        "Traceback (most recent call last):\n  a\nOSError: [Errno 28] No space left on device\n\nDuring handling of the above "
        "exception, another exception occurred:\n\nTraceback (most recent call last):\n  a\ntorch.OutOfMemoryError: CUDA out\n"
    )
    assert classify(FAILED, log).code == "DiskQuota"


TRACE = "Traceback (most recent call last):\n  File x\n    raise E('CUDA out of memory')\nKeyError: 'lr'\n"


@pytest.mark.parametrize(
    "before",
    [
        "wandb: WARNING Failed to sync: [Errno 28] No space left on device\n",
        "CUDA out of memory, skipped\n",
        "Traceback (most recent call last):\n  a\ntorch.OutOfMemoryError: CUDA out of memory. Tried\nskipped this batch\n",
    ],
)
def test_what_a_program_went_on_after_does_not_outrank_the_exception_that_it_ended_in(before: str):
    why = classify(FAILED, before + TRACE)
    assert (why.code, why.detail) == ("UserError", "KeyError: 'lr'")
    assert classify(FAILED, before + TRACE + "slurmstepd: error: Detected 1 oom_kill event in x\n").code == "OutOfMemoryHost"


def test_a_sign_counts_wherever_it_stands_where_there_is_no_traceback():
    assert classify(FAILED, "CUDA out of memory\nsrun: error: n1: task 0: Exited with exit code 1\n").code == "OutOfMemoryGpu"


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_traceback_tells_its_exception(form: str):
    sample, exception = FORMS[form]
    why = classify(FAILED, f"INFO: training\n{sample}srun: error: n1: task 0: Exited with exit code 1\n")
    assert (why.code, why.detail) == ("UserError", exception)


@pytest.mark.parametrize("form", [form for form, (sample, _) in FORMS.items() if "ValueError: bad lr" in sample])
def test_an_exception_that_is_a_sign_is_one_in_each_form_of_a_traceback(form: str):
    sample = FORMS[form][0].replace("ValueError: bad lr", "torch.OutOfMemoryError: CUDA out of memory. Tried")
    why = classify(FAILED, sample)
    assert why.code == "OutOfMemoryGpu"
    assert why.detail.startswith("torch.OutOfMemoryError: CUDA out of memory. Tried")


def test_of_ranks_that_fail_together_the_first_tells_why():
    def said(rank: int, exception: str) -> str:
        lines = ["Traceback (most recent call last):", "  File x", exception]
        return "".join(f"[rank{rank}]: {line}\n" for line in lines)

    late = said(0, "RuntimeError: NCCL connection closed by remote peer")
    assert classify(FAILED, said(1, "ValueError: bad batch") + late).detail == "ValueError: bad batch"
    mixed = "".join(a + b for a, b in zip(said(0, "A: 1").splitlines(True), said(1, "B: 2").splitlines(True), strict=True))
    assert classify(FAILED, mixed).detail == "A: 1"


@pytest.mark.parametrize(
    "bar",
    [
        "1|3|Loss: 2.31:  30%|███       | 3/10",
        "1|3|Loss: 2.31:  30%|###       | 3/10 [00:05<00:12,  1.72s/it]",
        "3it [00:01, 2.9it/s]",
    ],
)
def test_a_progress_bar_that_had_not_ended_its_line_is_no_part_of_what_is_told(bar: str):
    said = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert classify(FAILED, f"{bar}{said}\n").detail == said
    assert plain_log(f"{bar}\nnext") == f"{bar}\nnext"


@pytest.mark.parametrize(
    "line",
    [
        "%|" * 30000,
        "Traceback (most recent call last):\n" * 1800,
        "| " * 30000,
        "%||" + "1/" * 30000,
        "| " * 400 + "step Traceback (most recent call last):\nx",
    ],
)
def test_a_log_that_looks_like_much_and_is_nothing_takes_no_time(line: str):
    begun = time.process_time()
    classify(FAILED, line)
    assert time.process_time() - begun < 2.0


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
    assert str(log_path("/e/%4j-%03A-%12J-%9x%%", "7", "n", "ana")) == "/e/0007-007-0000000007-n%"
    assert log_path("/e/%3a-%j", "7", "n", "ana") is None


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


# --- a full disk -------------------------------------------------------------------------------------

FULL, BESIDE, ELSEWHERE = (
    replace(finetune(run), root=Path("/x") / run) for run in "abc"
)  # the newer form: each has its own root
RUNS = (FULL, BESIDE, ELSEWHERE)
DISKS = {FULL.key: 1, BESIDE.key: 1, ELSEWHERE.key: 2}
MET = ended(FULL, "DiskQuota")


def waiting(events, filesystems=None, **world) -> list[str]:
    """The runs that a full disk keeps from being submitted."""
    plan = plan_for(*RUNS, events=events, filesystems=DISKS if filesystems is None else filesystems, **world)
    return [step.run for step in RUNS if plan.of(step.key).reason.code == "DiskQuota" and plan.of(step.key).verb is Verb.WAIT]


def test_a_full_disk_holds_every_submission_to_that_filesystem_wherever_its_run_has_its_outputs():
    plan = plan_for(*RUNS, events=MET, filesystems=DISKS)
    assert [(x.condition, x.reason.code) for x in plan.actions] == [
        (Condition.FAILED, "DiskQuota"), (Condition.WAITING, "DiskQuota"), (Condition.WAITING, "NotStarted"),
    ]  # fmt: skip
    assert "release a/finetune" in plan.of(BESIDE.key).reason.message


def test_where_only_a_person_can_make_room_nothing_is_pending_and_what_follows_waits_for_that_person():
    follows = evaluation("b")
    plan = plan_for(FULL, BESIDE, follows, events=MET, filesystems={**DISKS, follows.key: 1})
    assert not any(action.is_pending for action in plan.actions)
    assert plan.of(follows.key).reason.code == "NeedBlocked"
    retried = plan_for(FULL, BESIDE, events=MET, filesystems=DISKS, policy=Policy(retry={"DiskQuota": 1}, backoff=3600.0))
    assert retried.of(FULL.key).is_pending


def test_the_disk_counts_as_full_as_soon_as_the_job_has_ended_and_not_only_once_its_outputs_have_settled():
    full = "OSError: [Errno 28] No space left on device\n"
    world = {"events": submitted(FULL), "queue": (OVER,), "logs": {(OVER.id, OVER.name): full}}
    assert plan_for(*RUNS, filesystems=DISKS, **world).of(FULL.key).reason.code == "OutputsMissing"
    assert waiting(world.pop("events"), **world) == ["b"]


@pytest.mark.parametrize("unknown", RUNS, ids=lambda step: step.run)
def test_filesystems_that_cannot_be_told_apart_wait_together(unknown):
    told = {key: device for key, device in DISKS.items() if key != unknown.key}
    assert waiting(MET, told) == (["b"] if unknown is BESIDE else ["b", "c"])


def test_room_is_there_again_once_somebody_says_so_or_a_later_job_has_left_a_result_there():
    def with_result(step, first):
        return [*ended(step, "Unknown", at=NOW - 950), *MET, done(step)] if first else [*MET, *ended(step, "Unknown"), done(step)]

    third, small = replace(finetune("d"), root=Path("/x/d")), replace(evaluation("e"), need=None)
    disks = {**DISKS, third.key: 1, small.key: 1}
    for step, first, code in (
        (third, False, "NotStarted"), (third, True, "DiskQuota"), (ELSEWHERE, False, "DiskQuota"), (small, False, "DiskQuota"),
    ):  # fmt: skip
        plan = plan_for(*RUNS, third, small, events=with_result(step, first), filesystems=disks)
        assert plan.of(BESIDE.key).reason.code == code
    for release in ({"event": "release", "at": 1.0, "step": FULL.key}, {"event": "release", "at": 1.0}):
        assert waiting([*MET, release]) == []
    assert waiting([*MET, {"event": "release", "at": 1.0, "step": BESIDE.key}]) == ["b"]


def test_a_retry_that_the_settings_ask_for_tries_the_disk_for_all():
    policy = Policy(retry={"DiskQuota": 1}, backoff=0)
    plan = plan_for(*RUNS, events=MET, filesystems=DISKS, policy=policy)
    assert [x.verb for x in plan.actions] == [Verb.SUBMIT, Verb.WAIT, Verb.SUBMIT]
    under_way = [*MET, *submitted(FULL, 2)]
    assert waiting(under_way, queue=(job(FULL, attempt=2),), policy=policy) == ["b"]


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


NO_GPU = "Traceback (most recent call last):\n  x\nRuntimeError: No CUDA GPUs are available\n"


@pytest.mark.parametrize(("gpus", "code"), [(1, "NodeFailure"), (0, "LaunchFailure"), (None, "LaunchFailure")])
def test_a_job_without_a_gpu_is_its_nodes_fault_only_where_it_asked_for_one(gpus: int | None, code: str):
    seen = plan_for(
        replace(STEP, ask=Ask(gpus)), events=submitted(STEP), queue=(OVER,), logs={(OVER.id, OVER.name): NO_GPU}, policy=Policy()
    )
    (end,) = [e for e in seen.learned if e["event"] == "ended"]
    assert end["failure"] == code
    assert "RuntimeError: No CUDA GPUs are available" in end["detail"]
    assert ("--gres=gpu:1" in end["detail"]) == (gpus == 0)


def test_what_the_job_asked_for_counts_and_not_what_its_script_asks_for_since():
    asked = {"gpus": 0, "seconds": None, "where": ""}
    told = plan_for(
        replace(STEP, ask=Ask(1)), events=submitted(STEP, ask=asked), queue=(OVER,), logs={(OVER.id, OVER.name): NO_GPU}
    )
    assert [e["failure"] for e in told.learned if e["event"] == "ended"] == ["LaunchFailure"]


def test_a_node_that_the_log_alone_blames_is_retried_and_counts_for_a_wave():
    steps = [finetune(run) for run in ("a", "b", "c", "d")]
    two = [e for step in steps[:2] for e in ended(step, "NodeFailure", state="FAILED")]
    assert plan_for(*steps, events=two).of("a/finetune").verb is Verb.SUBMIT
    three = [*two, *ended(steps[2], "NodeFailure", state="FAILED")]
    assert {a.reason.code for a in plan_for(*steps, events=three).actions} == {"ManyFailures"}
    again = [*three, *submitted(steps[0], 2)]
    retried = plan_for(*steps, events=again, queue=(job(steps[0], attempt=2),))
    assert retried.of("d/finetune").reason.code == "ManyFailures", "its retry is under way, and nothing has succeeded"
    for release in ({"event": "release", "at": 1.0}, {"event": "release", "at": 1.0, "step": steps[0].key}):
        assert plan_for(*steps, events=[*three, release]).of("d/finetune").verb is Verb.SUBMIT


def test_a_good_result_needs_no_log():
    seen = plan_for(STEP, events=ended(STEP, "Unknown"), seen={STEP.key: COMPLETE})
    assert seen.of(STEP.key).verb is Verb.MARK_DONE


def test_who_cancelled_a_job_is_asked_of_the_accounting_and_the_queue_is_believed_for_the_rest():
    shown = job(STEP, Phase.ENDED, state="CANCELLED")
    told = replace(shown, cancelled_by="0", ended=1.0)
    seen = plan_for(STEP, events=submitted(STEP), queue=(shown,), accounting=(told,))
    (end,) = [e for e in seen.learned if e["event"] == "ended"]
    assert (end["failure"], end["ended"]) == ("CancelledByAdmin", shown.ended)


# --- a job that COMPLETED ----------------------------------------------------------------------------


def outcome(lab, key: str = "a/finetune") -> str:  # noqa: F811
    """What is told of a step's last attempt, in writing and for people alike."""
    facts = explained(preview(lab.scene), key)
    jsonschema.validate(facts, schema("explanation"))
    told = facts["attempts"][-1]["outcome"]
    assert told in status_text(preview(lab.scene), Paint(), verbose=True)
    return told


def recorded(lab) -> dict[str, str]:  # noqa: F811
    (end,) = [
        e for e in map(json.loads, (lab.directory / ".reconcile/ledger.jsonl").read_text().splitlines()) if e["event"] == "ended"
    ]
    return end


def test_a_job_that_completed_and_left_its_outputs_is_called_no_failure_anywhere(lab):  # noqa: F811
    lab.run()
    lab.finish("a/finetune")
    lab.run()
    assert outcome(lab) == "ended COMPLETED"
    assert (recorded(lab)["state"], recorded(lab)["failure"]) == ("COMPLETED", "")


def test_a_job_that_completed_is_without_evidence_once_its_outputs_have_settled_and_are_missing(lab):  # noqa: F811
    lab.run()
    lab.finish("a/finetune", None)
    lab.run()
    assert outcome(lab) == "ended COMPLETED"
    lab.now += 60
    assert outcome(lab) == "ended COMPLETED (CompletedWithoutEvidence)"
    action = preview(lab.scene).plan.of("a/finetune")
    assert (action.condition, action.reason.code) == (Condition.FAILED, "CompletedWithoutEvidence")


def test_outputs_that_a_file_server_showed_late_clear_the_job_that_made_them(lab):  # noqa: F811
    alone = "base/eval/cap_base"
    lab.run()
    lab.finish(alone, None)
    lab.run(1)
    lab.finish(alone)
    lab.run(60)
    assert outcome(lab, alone) == "ended COMPLETED"
    order(lab, "rerun", alone)
    assert outcome(lab, alone) == "ended COMPLETED"


def test_a_ledger_of_earlier_versions_reads_as_before_and_a_completed_job_can_be_retried():
    for failure in ("CompletedWithoutEvidence", ""):
        events = [{**e, "state": "COMPLETED"} if e["event"] == "ended" else e for e in ended(STEP, failure)]
        held = plan_for(STEP, events=events).of(STEP.key)
        assert (held.condition, held.reason.code) == (Condition.FAILED, "CompletedWithoutEvidence")
        policy = Policy(retry={"CompletedWithoutEvidence": 1}, backoff=0)
        assert plan_for(STEP, events=events, policy=policy).of(STEP.key).verb is Verb.SUBMIT
        again = [{**e, "state": "COMPLETED"} if e["event"] == "ended" else e for e in ended(STEP, failure, 2)]
        assert plan_for(STEP, events=[*events, *again], policy=policy).of(STEP.key).condition is Condition.FAILED
