"""inspect-ai's scripts and logs in every spelling: what a command asks for, whose a log is, and what is told of it."""

# ruff: noqa: F811 - the fixtures are another module's
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from reconciler.disk import RealDisk
from reconciler.errors import DiskUnreadable
from reconciler.model import OutputState, RunKind
from reconciler.ports import FileInfo
from reconciler.tools.inspect_ai import _MAX_SCRIPT, _MAX_SETTINGS, TOOL, _files_in
from test_inspect_ai import (  # noqa: F401
    DISK,
    KILLED,
    LIMITED,
    Denied,
    World,
    archive_of,
    header_of,
    sample_log,
    samples,
    state,
    trained_run,
    world,
)

COMPLETE, INCOMPLETE, ABSENT = OutputState.COMPLETE, OutputState.INCOMPLETE, OutputState.ABSENT


def judged(world: World, command: str, model: str = " --model mockllm/model", **log: Any) -> tuple[OutputState, str]:
    """What a log of epoch 0 amounts to for a script with this command."""
    world.script("tiny_epoch0.slurm", f"{command}{model} -M model_path={world.checkpoints[0]}")
    world.log("tiny", model_path=world.checkpoints[0], **log)
    return state(TOOL.check(world.step(), DISK))


# --- what a command asks for -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("inspect eval tasks.py@tiny", COMPLETE),
        ("inspect eval ./some/where/tasks.py@tiny", COMPLETE),
        ("inspect eval package/tiny", COMPLETE),
        ("inspect eval tiny", COMPLETE),
        ("inspect eval tasks.py", COMPLETE),
        ('inspect eval "$TASK"', COMPLETE),
        ("inspect eval --seed 1 tasks.py@tiny", COMPLETE),
        ("inspect eval", COMPLETE),
        ("python -m inspect_ai eval tasks.py@tiny", COMPLETE),
        ("/opt/env/bin/inspect eval tasks.py@tiny", COMPLETE),
        ("inspect eval tasks.py@other", ABSENT),
        ("inspect eval package/other", ABSENT),
        ("inspect eval other", ABSENT),
        ("inspect eval tasks.py@tiny " + " ".join(f"tasks.py@other{n}" for n in range(99)), COMPLETE),
        ("inspect eval a@b/tasks.py@tiny", COMPLETE),
    ],
)
def test_the_task_that_a_command_names_tells_whose_a_log_is(world: World, command: str, expected: OutputState) -> None:
    assert judged(world, command)[0] is expected


@pytest.mark.parametrize(
    ("command", "logs"),
    [
        ("inspect eval t.py --log-dir x; echo done", "x"),
        ("(inspect eval t.py --log-dir x)", "x"),
        ("inspect eval t.py --log-dir x | tee out.txt", "x"),
        ("inspect eval t.py --log-dir=x", "x"),
        ("inspect eval t.py --log-dir y --log-dir x", "x"),
        ("helm eval y --log-dir y\ninspect eval t.py --log-dir x", "x"),
        ("inspect view --log-dir y\ninspect eval t.py --log-dir x", "x"),
        ("inspect eval a.py --log-dir x\ninspect eval b.py --log-dir y", "logs"),
        ("A=x B=y\ninspect eval t.py --log-dir $A", "x"),
        ("A=x inspect eval t.py --log-dir $A", "logs"),
        ("mkdir sub\ncd sub\ninspect eval t.py --log-dir x", "x"),
        ("inspect eval t.py \\\n  --log-dir x", "x"),
        ("inspect eval t.py --log-dir '~/x'", "logs"),
        ("inspect eval t.py --log-dir", "logs"),
        ("export INSPECT_LOG_DIR=x\ninspect eval", "x"),
        ("INSPECT_LOG_DIR=lr=1 inspect eval", "lr=1"),
    ],
)
def test_the_directory_of_the_logs_is_known_in_every_spelling(world: World, command: str, logs: str) -> None:
    world.script("tiny_epoch0.slurm", command)
    assert world.step().output_dir == world.directory / "eval" / logs


def test_a_directory_that_is_there_is_entered(world: World) -> None:
    (world.directory / "eval" / "sub").mkdir()
    world.script("tiny_epoch0.slurm", "cd sub\ninspect eval t.py --log-dir $PWD/x")
    assert world.step().output_dir == world.directory / "eval" / "sub" / "x"
    (world.directory / "eval" / "file").write_text("")
    world.script("tiny_epoch0.slurm", "cd file\ninspect eval t.py --log-dir x")
    assert world.step().output_dir == world.directory / "eval" / "x"
    world.script("tiny_epoch0.slurm", "cd $PWD/gone\ncd ../../gone\ninspect eval t.py --log-dir x")
    assert world.step().output_dir == world.directory / "eval" / "x"


def test_where_an_experiment_was_moved_from_there_is_surely_nothing(world: World) -> None:
    old = world.directory.parent.with_name("before") / "r8" / "eval"
    world.script("tiny_epoch0.slurm", f"cd {old}\ninspect eval t.py --log-dir x")
    assert world.step().output_dir == world.directory / "eval" / "x"
    old.mkdir(parents=True)
    assert world.step().output_dir == old / "x"


@pytest.mark.parametrize("way", ["{scratch}/evals", "{scratch}\ncd evals", "to-scratch/evals"])
def test_a_directory_on_a_filesystem_that_is_not_mounted_is_where_the_script_goes_all_the_same(world: World, way: str) -> None:
    scratch = world.directory.parent.parent / "scratch"
    scratch.mkdir()  # where it is mounted
    (world.directory / "eval" / "to-scratch").symlink_to(scratch)
    world.script("tiny_epoch0.slurm", f"cd {way.format(scratch=scratch)}\ninspect eval t.py --log-dir x")
    unmounted = world.step()
    (scratch / "evals" / "x").mkdir(parents=True)
    mounted = world.step()
    assert (unmounted.output_dir, unmounted.root) == (mounted.output_dir, mounted.root)
    assert os.path.realpath(mounted.output_dir) == str(scratch / "evals" / "x")


@pytest.mark.parametrize(
    ("options", "logged", "is_ours"),
    [
        ("-T n=3", {"n": 3}, True),
        ("-Tn=3", {"n": 3}, True),
        ("-T n=3.0", {"n": 3}, True),
        ("-T n=4", {"n": 3}, False),
        ("-Tn=4", {"n": 3}, False),
        ("-T n=many", {"n": 3}, False),
        ("-T n=three", {"n": "three"}, True),
        ("-T n=a=b", {"n": "a=b"}, True),
        ("-T n=a=b", {"n": "b"}, False),
        ("-T n=Three", {"n": "three"}, False),
        ("-T n=[1,2]", {"n": [1, 2]}, True),
        *((f"-T n={text}", {"n": True}, True) for text in ("true", "True", "yes", "on")),
        *((f"-T n={text}", {"n": False}, True) for text in ("false", "False", "no", "off")),
        *((f"-T n={text}", {"n": True}, False) for text in ("false", "no", "off", "1")),
        *((f"-T n={text}", {"n": False}, False) for text in ("true", "yes", "on", "0")),
        ("-T n=$N", {"n": 3}, True),
        ("", {"n": 3}, False),
        ("-T m=1", {"n": 3}, False),
        ("--task-config c.yaml", {"n": 3}, True),
        ("--model-config c.yaml", {"n": 3}, True),
        ("-T n=X", {"n": "X"}, True),
        ("-T n=X", {"n": "Y"}, False),
        ("", {"epoch": 1}, False),
        ("-T epoch=0", {"epoch": 0}, True),
        ("-T epoch=1", {"epoch": 0}, False),
        ("", {"epoch": 0}, True),
    ],
)
def test_an_argument_of_the_task_is_part_of_whose_log_it_is(
    world: World,
    options: str,
    logged: dict[str, Any],
    is_ours: bool,
) -> None:
    found = judged(world, f"inspect eval tasks.py@tiny {options}", eval={"task_args": logged, "task_args_passed": logged})
    assert (found[0] is COMPLETE) == is_ours


@pytest.mark.parametrize(
    ("command", "is_asked"),
    [
        ("inspect eval tiny --limit 2", True),
        ("inspect eval tiny --limit=2", True),
        ("inspect eval tiny --limit 9 --limit 2", True),
        ("inspect eval tiny --limit 3", False),
        ("inspect eval tiny --limit \\'2\\'", True),
        ("inspect eval tiny --sample-id $IDS", True),
        ("inspect eval tiny", False),
        ("export INSPECT_EVAL_LIMIT=2\ninspect eval tiny", True),
        ("export INSPECT_EVAL_LIMIT=2\ninspect eval tiny --limit 3", False),
    ],
)
def test_a_limit_counts_where_the_script_asks_for_it(samples: Path, world: World, command: str, is_asked: bool) -> None:
    world.script("tiny_epoch0.slurm", command)
    (world.logs / "log.eval").write_bytes(sample_log(samples, LIMITED).read_bytes())
    outputs = TOOL.check(world.step(), DISK)
    assert state(outputs) == ((COMPLETE, "LogVerified") if is_asked else (INCOMPLETE, "LimitDiffers"))


def test_no_limit_in_eval_yaml_is_the_whole_dataset(samples: Path, world: World) -> None:
    world.script("tiny_epoch0/cell.slurm", "./evaluate.sh")
    cell = world.directory / "eval" / "tiny_epoch0"
    (cell / "logs").mkdir()
    (cell / "logs" / "log.eval").write_bytes(sample_log(samples, LIMITED).read_bytes())
    (cell / "eval.yaml").write_text("limit: null\n")
    outputs = TOOL.check(world.read(("tiny", 0)).steps[0], DISK)
    assert outputs.state is INCOMPLETE
    assert "the whole dataset is asked for" in outputs.reason.message


# --- whose log it is ---------------------------------------------------------------------------------


def test_a_cell_whose_script_tells_nothing_owns_the_logs_beside_it(world: World) -> None:
    world.script("tiny_epoch0/cell.slurm", "./evaluate.sh")
    cell = world.directory / "eval" / "tiny_epoch0"
    world.log("labelled", cell / "logs", world.checkpoints[0], eval={"task": "something else", "task_registry_name": "a/label"})
    assert TOOL.check(world.read(("tiny", 0)).steps[0], DISK).state is COMPLETE


def test_a_checkpoint_under_another_name_is_no_base_model(world: World) -> None:
    store, base = world.checkpoints[0].parent / "store", world.checkpoints[0].parent / "base"
    world.checkpoints[0].rename(store)
    world.checkpoints[0].symlink_to(store)
    world.script("tiny_base.slurm", "inspect eval tasks.py@tiny", epoch=None)
    for path, found in ((store, ABSENT), (base, COMPLETE)):
        world.log("tiny", model_path=path, eval={"task_args": {}, "task_args_passed": {}})
        assert TOOL.check(world.step("tiny", None), DISK).state is found


@pytest.mark.parametrize(("epoch", "expected"), [(0, COMPLETE), (1, ABSENT)])
def test_the_path_of_a_model_may_follow_its_provider(world: World, epoch: int, expected: OutputState) -> None:
    world.script("tiny_epoch0.slurm", "inspect eval tasks.py@tiny")
    world.log("tiny", eval={"model": f"hf/{world.checkpoints[epoch]}", "task_args": {}, "task_args_passed": {}})
    assert TOOL.check(world.step(), DISK).state is expected


@pytest.mark.parametrize(
    ("named", "is_ours"),
    [
        ({"task_registry_name": "a/b/tiny", "task": "x"}, True),
        ({"task_registry_name": "tiny", "task": "x"}, True),
        ({"task_registry_name": "", "task": "a/b/tiny"}, True),
        ({"task_registry_name": "a/b/other", "task": "a/b/tiny"}, True),
        ({"task_registry_name": "tiny/other", "task": "x"}, False),
        ({"task_registry_name": "a/b", "task": "tiny/b"}, False),
    ],
)
def test_a_task_is_known_by_the_last_part_of_its_name(world: World, named: dict[str, str], is_ours: bool) -> None:
    assert (judged(world, "inspect eval tasks.py@tiny", eval=named)[0] is COMPLETE) == is_ours


@pytest.mark.parametrize(
    ("told", "is_base"),
    [
        ({"metadata": {"epoch": 1}}, False),
        ({"task_args": {"epoch": 1}, "task_args_passed": {"epoch": 1}}, False),
        ({"task_args": {"epoch": 1}, "task_args_passed": {}}, True),
        ({"task_args": {}, "task_args_passed": {}}, True),
    ],
)
def test_an_epoch_that_was_passed_along_is_no_base_models_and_a_default_says_nothing(
    world: World,
    told: dict[str, Any],
    is_base: bool,
) -> None:
    world.script("tiny_base.slurm", "inspect eval tasks.py@tiny --model mockllm/model --seed $SEED", epoch=None)
    world.log("tiny", eval=told)
    assert (TOOL.check(world.step("tiny", None), DISK).state is COMPLETE) == is_base


def test_a_question_names_the_evaluations_that_could_claim_a_log(world: World) -> None:
    for epoch in (0, 1):
        world.script(f"tiny_epoch{epoch}.slurm", "./evaluate.sh")
    world.script("tiny_base.slurm", "./evaluate.sh", epoch=None)
    world.log("tiny", eval={"task_args": {}, "task_args_passed": {}})
    reading = world.read(("tiny", 0), ("tiny", 1), ("tiny", None))
    outputs = TOOL.check(reading.steps[0], DISK)
    assert state(outputs) == (OutputState.AMBIGUOUS, "LogAmbiguous")
    assert "tiny at epoch 0 or to tiny at epoch 1, tiny of the base model" in outputs.reason.message


def test_a_verdict_tells_when_its_log_was_written_and_how_far_it_came(world: World) -> None:
    log = world.log("tiny", model_path=world.checkpoints[0])
    outputs = TOOL.check(world.step(), DISK)
    assert outputs.newest == log.stat().st_mtime_ns / 1e9
    assert outputs.progress == "5 of 5 samples"
    hidden = TOOL.check(world.step(), Denied("tiny.eval"))
    assert (state(hidden), hidden.newest) == ((OutputState.UNKNOWN, "DiskUnreadable"), None)
    assert "Permission denied" in hidden.reason.message


# --- what is told of the scaffolding ------------------------------------------------------------------


def test_a_missing_script_is_expected_where_the_form_of_the_document_has_it(world: World) -> None:
    (flat,) = world.read(("tiny", 0)).steps
    assert flat.script == world.directory / "eval" / "tiny_epoch0.slurm"
    (cell,) = world.read(("tiny", 0), document=world.directory.parent / "experiment_summary.yaml").steps
    assert cell.script == world.directory / "eval" / "tiny_epoch0" / "cell.slurm"


def test_what_is_missing_is_told_with_its_task_and_its_epoch(world: World) -> None:
    (with_epoch,) = world.read(("tiny", 0)).problems
    (of_base,) = world.read(("tiny", None), kind=RunKind.CONTROL).problems
    assert "tiny of r8 at epoch 0 has no script" in with_epoch.message
    assert "tiny of r8 has no script" in of_base.message


def test_every_fault_says_where_and_of_which_run(world: World) -> None:
    script = world.script("tiny_epoch0.slurm", epoch=1)
    (other,) = (p for p in world.read(("tiny", 0)).problems if "it evaluates" in p.message)
    assert (other.file, other.line, other.run, other.warning) == (script, 0, "r8", True)
    unreadable = TOOL.read(world.run(("tiny", 0)), Denied("tiny_epoch0"))
    assert unreadable.steps[0].blocked is not None
    assert unreadable.steps[0].blocked.code == "ScaffoldingUnreadable"
    assert "Permission denied" in unreadable.problems[0].message
    world.script("tiny_epoch7.slurm", "true")
    (epoch,) = (p for p in world.read(("tiny", 7)).problems if "no epoch 7" in p.message)
    assert (epoch.file.name, epoch.line, epoch.run, epoch.warning) == ("experiment_summary.md", 20, "r8", True)
    hidden = TOOL.read(world.run(("tiny", 0)), Denied("eval"))
    assert [(p.file.name, p.line, p.run) for p in hidden.problems] == [("experiment_summary.md", 7, "r8")]


def test_what_a_step_is_made_of_is_told_item_by_item(world: World) -> None:
    step = world.step()
    assert set(step.meaning) == {"task", "script"}
    assert step.meaning["task"] == "tiny"
    assert step.job_name == "eval"
    assert step.asks["time"] == "10:00"
    assert step.workdir == step.written_workdir == str(world.directory / "eval")
    assert step.reads == (world.checkpoints[0], world.checkpoints[0])
    assert step.ask is not None
    assert step.ask.seconds == 600
    assert [str(log) for log in step.logs] == [str(world.directory / "eval" / "slurm-%j.out")]
    base = world.step("tiny", None, kind=RunKind.CONTROL)
    assert set(base.meaning) == {"task", "script"}


def test_the_task_is_part_of_what_is_evaluated_whatever_the_script_says(world: World) -> None:
    for name in ("tiny_epoch0.slurm", "other_epoch0.slurm"):
        world.script(name, "./evaluate.sh")
    one, other = world.read(("tiny", 0), ("other", 0)).steps
    assert one.definition != other.definition


def test_what_lies_in_eval_and_is_no_script_of_either_layout_is_none(world: World) -> None:
    world.script("tiny_epoch0.slurm")
    for name in ("logs", "kept.slurm"):
        world.script(f"{name}/cell.slurm")
    (warning,) = world.read(("tiny", 0)).problems
    assert (warning.file, warning.line, warning.run, warning.warning) == (
        world.directory / "eval" / "kept.slurm",
        0,
        "r8",
        True,
    )


class Bounded(RealDisk):
    """The real disk, where nothing is read without a limit."""

    def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        assert length is not None, f"all of {path} is read, whatever its size"
        return super().read(path, offset, length)


def test_files_are_read_up_to_a_limit_and_what_is_larger_is_no_script(world: World) -> None:
    script = world.script("tiny_epoch0/cell.slurm", "inspect eval task.py@tiny")
    settings = script.with_name("eval.yaml")
    (script.with_name("task.py")).write_text("def tiny(): ...\n")

    def blocked() -> str:
        (step,) = TOOL.read(world.run(("tiny", 0)), Bounded()).steps
        return step.blocked.message if step.blocked is not None else ""

    for file, most, comment, told in (
        (script, _MAX_SCRIPT, b"\n", f"{_MAX_SCRIPT >> 20} MiB"),
        (settings, _MAX_SETTINGS, b"#", f"{_MAX_SETTINGS >> 10} KiB"),
    ):
        start = file.read_bytes() if file.exists() else b""
        file.write_bytes(start + comment * (most - len(start)))
        assert blocked() == ""
        file.write_bytes(start + comment * (most - len(start) + 1))
        assert blocked() == f"{file}: is larger than {told}; is it the right file?"
        file.write_bytes(start)


def test_a_script_need_be_no_utf8(world: World) -> None:
    script = world.script("tiny_epoch0.slurm", "inspect eval task.py@tiny")
    script.write_bytes(script.read_bytes() + b"# Gr\xfc\xdfe\n")
    assert world.step().job_name == "eval"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("day: 2026-11-27\n", ""),
        ("a: &a [" + "1, " * 400 + "]\nb: [" + "*a, " * 400 + "]\n", "unfold into too many values"),
    ],
)
def test_an_eval_yaml_holds_dates_and_no_bombs(world: World, text: str, told: str) -> None:
    world.script("tiny_epoch0/cell.slurm").with_name("eval.yaml").write_text(text)
    (step,) = world.read(("tiny", 0)).steps
    assert (step.blocked is not None) is bool(told)
    assert told in (step.blocked.message if step.blocked is not None else "")
    assert told or step.meaning["eval.yaml:day"] == '"2026-11-27"'


def test_the_order_in_which_settings_are_written_is_their_layout(world: World) -> None:
    settings = world.script("tiny_epoch0/cell.slurm").with_name("eval.yaml")
    definitions = set()
    for text in ("a: 1\nb: 2\n", "b: 2\na: 1\n"):
        settings.write_text(text)
        definitions.add(world.read(("tiny", 0)).steps[0].definition)
    assert len(definitions) == 1


def test_of_two_words_on_requeueing_the_last_counts(world: World) -> None:
    script = world.script("tiny_epoch0.slurm")
    script.write_text("#!/bin/bash\n#SBATCH --no-requeue\n#SBATCH --requeue\ntrue\n")
    assert world.step().requeue


def test_an_epoch_of_a_model_that_was_not_trained_here_is_the_model(world: World) -> None:
    model = world.checkpoints[0].parent
    run = world.run(("tiny", 3), kind=RunKind.EVAL_ONLY, checkpoints={}, checkpoint_path=model)
    world.script("tiny_epoch3.slurm", "./evaluate.sh")
    (step,) = TOOL.read(run, DISK).steps
    assert step.reads == (model,)


def test_of_several_failed_logs_the_one_written_last_is_told(world: World) -> None:
    for name, created in (("b", "2026-11-23T16:00:00+00:00"), ("a", "2026-11-24T16:00:00+00:00")):
        world.log(name, model_path=world.checkpoints[0], status="error", eval={"created": created})
    assert "_a.eval" in TOOL.check(world.step(), DISK).reason.message


def test_a_path_that_can_be_none_is_no_crash_and_only_itself(world: World) -> None:
    world.script("tiny_base.slurm", "inspect eval tasks.py@tiny -M 'model_path=/x\0a'", epoch=None)
    for path, found in (("/x\0b", ABSENT), ("/x\0a", COMPLETE)):
        world.log("tiny", eval={"model_args": {"model_path": path}, "task_args": {}, "task_args_passed": {}})
        log = next(world.logs.iterdir())
        header = header_of(log)
        header["eval"]["model_args"] = {"model_path": path}
        log.write_bytes(archive_of({"header.json": json.dumps(header).encode()}))
        assert TOOL.check(world.step("tiny", None, kind=RunKind.CONTROL), DISK).state is found


def test_an_eval_yaml_beside_scripts_of_the_older_layout_is_none_of_theirs(world: World) -> None:
    before = world.step()
    (world.directory / "eval" / "eval.yaml").write_text("limit: 2\n")
    assert world.step().definition == before.definition


def test_a_checkpoint_whose_path_holds_an_equals_sign_is_known_whole(world: World) -> None:
    odd = world.checkpoints[0].parent / "lr=1e-5" / "epoch_0"
    odd.parent.mkdir()
    world.checkpoints[0].rename(odd)
    world.checkpoints[0] = odd
    assert judged(world, "inspect eval tasks.py@tiny")[0] is COMPLETE


def test_a_model_path_is_read_from_where_the_command_runs(world: World) -> None:
    world.script("tiny_epoch0.slurm", "inspect eval tasks.py@tiny -M model_path=../../../out/epoch_0")
    world.log("tiny", model_path=Path("../../../../out/epoch_0"))
    world.log("tiny2", model_path=Path("../../../out/epoch_0"))
    outputs = TOOL.check(world.step(), DISK)
    assert outputs.state is COMPLETE
    assert Path(outputs.evidence[0].path).name.endswith("_tiny2.eval")


@pytest.mark.parametrize("kept_as", ["baseline.eval", "2026 before.eval", "0.eval"])
def test_a_good_log_that_a_person_gave_a_name_does_not_hide_a_newer_one(world: World, kept_as: str) -> None:
    kept = world.log("old", model_path=world.checkpoints[0], eval={"created": "2026-11-23T16:00:00+00:00"})
    new = world.log("new", model_path=world.checkpoints[0], eval={"created": "2026-11-24T16:00:00+00:00"})
    kept = kept.rename(kept.with_name(kept_as))
    os.utime(kept)
    assert [file.path for file in TOOL.check(world.step(), DISK).evidence] == [str(new)]
    new.unlink()
    assert [file.path for file in TOOL.check(world.step(), DISK).evidence] == [str(kept)]


def test_where_no_log_is_this_evaluations_the_reason_tells_of_what_one_is(world: World) -> None:
    assert TOOL.check(world.step(), DISK).reason.message == f"no log of this evaluation is in {world.logs}"
    log = world.log("other", model_path=world.checkpoints[1])
    other = f" and {world.checkpoints[1]}, not of tiny at epoch 0"
    assert TOOL.check(world.step(), DISK).reason.message.endswith(f"; {log.name} is of the task tiny{other}")
    world.log("other", model_path=world.checkpoints[1], eval={"task_registry_name": "lib/large", "task": "large"})
    assert TOOL.check(world.step(), DISK).reason.message.endswith(f" is of the task lib/large{other}")
    world.log("other", model_path=world.checkpoints[1], eval={"task_registry_name": None, "task": "large"})
    assert TOOL.check(world.step(), DISK).reason.message.endswith(f" is of the task large{other}")
    denied = TOOL.check(world.step(), Denied("logs")).reason
    assert (denied.code, "Permission denied" in denied.message) == ("DiskUnreadable", True)
    log.write_bytes(b"torn")
    assert TOOL.check(world.step(), DISK).reason.code == "LogDamaged"


def test_a_model_path_may_hold_the_sign_that_ends_its_name_and_an_option_is_no_task_file(world: World) -> None:
    world.script("tiny_epoch0.slurm", "inspect eval tasks.py@tiny -M model_path=/m/lr=1")
    assert world.step().spec["wanted"].script_path == Path("/m/lr=1")
    assert list(_files_in(("tasks.py@tiny", "-x.py@tiny", "other.py@tiny"))) == ["tasks.py", "other.py"]


def test_a_script_that_tells_nothing_logs_where_scripts_of_its_layout_do(world: World) -> None:
    world.script("tiny_epoch0.slurm", "./evaluate.sh")
    assert world.step().output_dir == world.directory / "eval" / "logs"


@pytest.mark.parametrize("kind", [RunKind.FINE_TUNED, RunKind.CONTROL])
def test_a_cell_found_without_a_plan_is_of_the_only_epoch_that_a_training_saves(world: World, kind: RunKind) -> None:
    world.script("tiny/cell.slurm", "true")
    one = {1: world.checkpoints[1]}
    (step,) = world.read(kind=kind, planned=False, checkpoints=one).steps
    assert step.epoch == (1 if kind is RunKind.FINE_TUNED else None)
    if kind is RunKind.FINE_TUNED:
        (step,) = world.read(kind=kind, planned=False).steps
        assert step.epoch is None
        assert step.blocked is not None
        assert step.blocked.code == "EpochUnknown"
        assert "0, 1" in step.blocked.message


@pytest.mark.parametrize("document", ["experiment_summary.md", "experiment_summary.yaml"])
def test_evaluations_whose_scripts_nobody_can_see_are_blocked_where_they_are_expected(world: World, document: str) -> None:
    run = world.run(("tiny", 0), ("other", None), document=world.directory.parent / document)
    hidden, base = TOOL.read(run, Denied("eval")).steps
    assert (hidden.key, hidden.need, hidden.epoch) == ("r8/eval/tiny_epoch0", "r8/finetune", 0)
    assert (base.task, base.epoch, base.need) == ("other", None, None)
    for step in (hidden, base):
        assert step.blocked is not None
        assert (step.blocked.code, step.blocked.message) == (
            "ScaffoldingUnreadable",
            f"{world.directory / 'eval'}: Permission denied",
        )


@pytest.mark.parametrize("planned", [True, False])
def test_a_cell_that_cannot_be_looked_at_hides_no_other_and_is_blocked_itself(world: World, planned: bool) -> None:
    world.script("tiny_epoch0/cell.slurm")
    world.script("tiny_epoch1/cell.slurm", epoch=1)
    disk = DeniedUnder("tiny_epoch1")
    blocked = {step.key: step.blocked for step in TOOL.read(world.run(("tiny", 0), ("tiny", 1), planned=planned), disk).steps}
    assert set(blocked) == {"r8/eval/tiny_epoch0", "r8/eval/tiny_epoch1"}
    assert blocked["r8/eval/tiny_epoch0"] is None
    assert blocked["r8/eval/tiny_epoch1"] is not None
    assert blocked["r8/eval/tiny_epoch1"].code == "ScaffoldingUnreadable"


def test_a_cell_of_a_training_that_cannot_be_read_waits_for_its_epoch_to_be_known(world: World) -> None:
    world.script("tiny/cell.slurm", "true")
    (step,) = world.read(planned=False, checkpoints={}).steps
    assert step.blocked is not None
    assert step.blocked.code == "EpochUnknown"


class DeniedUnder(RealDisk):
    """The real disk, on which nothing in a directory of one name can be examined."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _refuse(self, path: Path) -> None:
        if path.parent.name == self.name:
            raise DiskUnreadable(f"{path}: Permission denied")

    def stat(self, path: Path) -> FileInfo | None:
        self._refuse(path)
        return super().stat(path)

    def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        self._refuse(path)
        return super().read(path, offset, length)


class Sealed(Denied):
    """A disk on which some files are there and cannot be read."""

    stat = RealDisk.stat


def test_a_cell_is_scaffolded_with_its_settings_and_a_lone_script_with_nothing_else(world: World) -> None:
    cell = world.script("tiny_epoch0/cell.slurm")
    assert world.read(("tiny", 0)).steps[0].files == (cell.with_name("eval.yaml"),)
    assert world.step(epoch=1).files == ()


def test_a_cell_that_cannot_be_read_names_the_file_that_is_at_fault(world: World) -> None:
    script = world.script("tiny_epoch0/cell.slurm", "true")
    (problem,) = TOOL.read(world.run(("tiny", 0)), Sealed("cell.slurm")).problems
    assert (problem.file, problem.line) == (script, 0)
    settings = script.with_name("eval.yaml")
    settings.write_text("a: 1\nb: [\n")
    (problem,) = world.read(("tiny", 0)).problems
    assert problem.file == settings
    assert "not valid YAML" in problem.message


def test_a_failing_disk_leaves_an_evaluation_unknown(world: World) -> None:
    step = world.step()
    outputs = TOOL.check(step, Denied("logs"))
    assert state(outputs) == (OutputState.UNKNOWN, "DiskUnreadable")
    assert outputs.reason.message == f"{world.logs}: Permission denied"


def test_where_two_scripts_could_be_meant_every_accepted_place_is_named(world: World) -> None:
    (step,) = world.read(("tiny", 1), document=world.directory.parent / "experiment_summary.yaml").steps
    assert step.blocked is not None
    places = ["tiny_epoch1/cell.slurm", "tiny/cell.slurm", "tiny_epoch1.slurm"]
    assert step.blocked.message.endswith("accepted: " + " or ".join(str(world.directory / "eval" / place) for place in places))


@pytest.mark.parametrize(("model", "is_ours"), [("", True), (" --model mockllm/model", True), (" --model openai/gpt-4o", False)])
def test_a_model_that_is_no_directory_is_known_by_its_name(world: World, model: str, is_ours: bool) -> None:
    world.script("tiny_base.slurm", f"inspect eval tasks.py@tiny{model}", epoch=None)
    world.log("tiny", eval={"task_args": {}, "task_args_passed": {}})
    assert (TOOL.check(world.step("tiny", None), DISK).state is COMPLETE) == is_ours


# --- what a log proves ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "changes", "code", "words"),
    [
        ("", {"results": None}, "SamplesMissing", "0 of 0 samples"),
        ("", {"eval": {"config": {"epochs": 2}}}, "SamplesMissing", "5 samples were run of the 10 expected"),
        (
            " --limit 2",
            {"eval": {"config": {"limit": 2}}, "results": {"total_samples": 1, "completed_samples": 1}},
            "SamplesMissing",
            "1 samples were run of the 2 expected",
        ),
        (
            " --limit 9",
            {"eval": {"config": {"limit": 9}}, "results": {"total_samples": 5, "completed_samples": 5}},
            "LogVerified",
            "5 of 5",
        ),
        ("", {"status": "error", "error": {"message": "one\ntwo"}}, "EvaluationFailed", "status error: one ("),
        ("", {"status": "error", "error": {"message": ""}}, "EvaluationFailed", "status error ("),
    ],
)
def test_what_a_log_lacks_is_told_in_numbers_and_its_own_words(
    world: World,
    options: str,
    changes: dict[str, Any],
    code: str,
    words: str,
) -> None:
    world.script("tiny_epoch0.slurm", f"inspect eval tasks.py@tiny{options}")
    world.log("tiny", model_path=world.checkpoints[0], **changes)
    outputs = TOOL.check(world.step(), DISK)
    assert outputs.reason.code == code
    assert words in outputs.reason.message


def test_a_damaged_and_an_unfinished_log_are_told_by_their_names(samples: Path, world: World) -> None:
    (world.logs / "torn.eval").write_bytes(b"PK")
    outputs = TOOL.check(world.step(), DISK)
    assert state(outputs) == (INCOMPLETE, "LogDamaged")
    assert "torn.eval" in outputs.reason.message
    world.script("tiny_epoch0.slurm", "./evaluate.sh")
    (world.logs / "killed.eval").write_bytes(sample_log(samples, KILLED).read_bytes())
    outputs = TOOL.check(world.step(), DISK)
    assert (outputs.reason.code, outputs.progress) == ("LogUnfinished", "")
