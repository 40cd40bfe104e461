"""torchtune's outputs where it matters by a hair: what a launch can go on from, equal times, and how much is told."""

# ruff: noqa: F811 - the fixtures are another module's
from __future__ import annotations

import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.errors import DiskUnreadable
from reconciler.model import Edit, OutputState, Reason, Step, Written
from reconciler.tools.torchtune import _MAX_CONFIG, TOOL, _config_of, _differing, _some
from test_torchtune import DISK, Sample, Sealed, complete, rewrite, sample, truncate, unpacked  # noqa: F401 - the fixtures

BROKEN = OutputState.INCOMPLETE
STEPS = "gradient_accumulation_steps"
KILLED = "killed9_between_epochs"  # after epoch 0, whose end is recorded
IN_SAVE = "killed_during_save_epoch1_adapter_pt"
EVERYTHING = ["epoch_0", "recipe_state", "torchtune_config.yaml"]


def test_a_training_goes_on_from_the_epochs_whose_end_was_recorded(sample: Callable[[str], Sample]) -> None:
    between, within = sample(KILLED), sample(IN_SAVE)
    outputs = between.check()
    assert (outputs.state, outputs.resumable, outputs.torn_to_resume) == (BROKEN, 1, ())
    assert outputs.torn == tuple(between.output / name for name in EVERYTHING)
    outputs = within.check()
    assert (outputs.resumable, outputs.torn_to_resume) == (1, (within.output / "epoch_1",))


@pytest.mark.parametrize("lost", ["recipe_state", "an epoch that is whole", "its adapter", "the record cannot be read"])
def test_nothing_is_gone_on_from_that_the_trainer_would_not_find_whole(sample: Callable[[str], Sample], lost: str) -> None:
    killed = sample(KILLED)
    epoch, disk = killed.output / "epoch_0", DISK
    names = EVERYTHING
    if lost == "recipe_state":
        shutil.rmtree(killed.output / "recipe_state")
        names = ["epoch_0", "torchtune_config.yaml"]
    elif lost == "an epoch that is whole":
        truncate(epoch / "adapter_model.safetensors", 100)
    elif lost == "its adapter":
        (epoch / "adapter_weights").mkdir()
        (epoch / "adapter_model.pt").rename(epoch / "adapter_weights" / "adapter_model.pt")
    else:
        disk = Sealed(lambda path: path.name == "recipe_state.pt")
    outputs = killed.check(disk)
    assert (outputs.state, outputs.resumable) == (BROKEN, 0)
    assert outputs.torn == outputs.torn_to_resume == tuple(killed.output / name for name in names)


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ("its state", "recipe_state.pt is missing, so epoch_0 would be trained again"),
        ("its state's bytes", "recipe_state.pt counts no epoch (0 bytes), so epoch_0 would be trained again"),
        (
            "its adapter",
            "adapter_model.pt is not where the trainer looks for it (stashed away?), so epoch_0 would be trained again",
        ),
        (
            "what its state counts",
            "recipe_state.pt counts 3 epochs, and epoch_2 is none of those to be saved, so epoch_0 would be trained again",
        ),
        ("its epoch", ""),
    ],
)
def test_why_whole_epochs_cannot_be_gone_on_from_is_said(sample: Callable[[str], Sample], lost: str, told: str) -> None:
    killed = sample(KILLED)
    state, epoch = killed.output / "recipe_state", killed.output / "epoch_0"
    if lost == "its state":
        shutil.rmtree(state)
    elif lost == "its state's bytes":
        truncate(state / "recipe_state.pt", 0)
    elif lost == "its adapter":
        (epoch / "adapter_weights").mkdir()
        (epoch / "adapter_model.pt").rename(epoch / "adapter_weights" / "adapter_model.pt")
    elif lost == "what its state counts":
        count_epochs(killed, 3)
    else:
        truncate(epoch / "adapter_model.safetensors", 100)
    outputs = killed.check()
    assert outputs.resumable == 0
    assert outputs.resume_note.endswith(told)
    assert bool(outputs.resume_note) == bool(told)


def test_an_epoch_that_the_state_does_not_count_is_said_to_be_trained_again(complete: Sample) -> None:
    complete.set(epochs=3)
    outputs = complete.check()
    assert (outputs.resumable, outputs.torn_to_resume) == (1, (complete.output / "epoch_1",))
    assert outputs.resume_note == "recipe_state/recipe_state.pt counts 1 of them, so epoch_1 will be trained again"


def test_an_epoch_before_the_last_that_does_not_verify_would_never_be_trained_again(complete: Sample) -> None:
    complete.set(epochs=3)
    count_epochs(complete, 2)
    assert (complete.check().resumable, complete.check().resume_note) == (2, "")
    truncate(complete.output / "epoch_0" / "adapter_model.safetensors", 100)
    outputs = complete.check()
    assert outputs.resumable == 0
    assert outputs.resume_note.startswith("epoch_0, which recipe_state/recipe_state.pt counts, does not verify, so epoch_1 would")


def count_epochs(sample: Sample, epochs: int) -> None:
    """A state of the trainer's that counts so many."""
    with zipfile.ZipFile(sample.output / "recipe_state" / "recipe_state.pt", "w") as state:
        state.writestr("state/data.pkl", pickle.dumps({"epochs_run": epochs}, protocol=2))


@pytest.mark.parametrize("name", ["epoch_9_old", "epoch_1.bak", "epoch_01", "epoch_best"])
def test_what_the_trainer_would_take_for_an_epoch_is_in_the_way(sample: Callable[[str], Sample], name: str) -> None:
    killed = sample(KILLED)
    assert killed.check().in_the_way == ""
    (killed.output / name).mkdir()
    outputs = killed.check()
    assert str(killed.output / name) in outputs.in_the_way
    assert killed.output / name not in (*outputs.torn, *outputs.torn_to_resume)


def test_what_was_written_at_the_very_time_of_the_launch_is_the_launchs(complete: Sample) -> None:
    complete.set(epochs_to_save="[0]")
    at = complete.launched.stat().st_mtime_ns
    for path in complete.output.rglob("*"):
        os.utime(path, ns=(at, at))
    assert complete.check().state is OutputState.COMPLETE
    for path in (complete.output / "recipe_state").rglob("*"):
        os.utime(path, ns=(at - 1, at - 1))
    shutil.rmtree(complete.output / "epoch_1")
    assert complete.check().state is BROKEN


def test_three_faults_are_told_and_the_others_counted(complete: Sample) -> None:
    epoch = complete.output / "epoch_1"
    names = ["adapter_model.pt", "adapter_model.safetensors", "adapter_config.json", "config.json", "generation_config.json"]
    (epoch / names[0]).unlink()
    (epoch / names[1]).unlink()
    (epoch / names[2]).unlink()
    message = complete.check().reason.message
    assert message.count(";") == 2
    assert "more" not in message
    (epoch / names[3]).unlink()
    (epoch / names[4]).unlink()
    message = complete.check().reason.message
    assert message.count("is missing") == 3
    assert message.endswith("and 2 more")


def test_a_launch_that_cannot_be_read_is_told_before_what_it_left(complete: Sample) -> None:
    complete.launched.unlink()
    truncate(complete.output / "epoch_1" / "adapter_model.pt", 100)
    message = complete.check().reason.message
    assert message.startswith("torchtune_config.yaml is missing")
    assert "adapter_model.pt" in message


def test_what_cannot_be_read_is_told_with_its_path(complete: Sample) -> None:
    complete.set(epochs_to_save="[0]")
    shutil.rmtree(complete.output / "epoch_1")
    outputs = complete.check(Sealed(lambda path: path.name == "recipe_state.pt"))
    assert outputs.state is OutputState.UNKNOWN
    assert "recipe_state.pt: Permission denied" in outputs.reason.message


def test_a_disk_that_fails_in_the_middle_of_a_look_leaves_everything_unknown(complete: Sample) -> None:
    class Failing(Sealed):
        def names(self, directory):
            raise DiskUnreadable(f"{directory}: Input/output error")

    outputs = complete.check(Failing(lambda path: False))
    assert (outputs.state, outputs.reason.code) == (OutputState.UNKNOWN, "DiskUnreadable")
    assert "Input/output error" in outputs.reason.message


# --- all that is told of outputs ---------------------------------------------------------------------


def test_a_verdict_tells_all_that_a_plan_needs_of_it(sample: Callable[[str], Sample], complete: Sample) -> None:
    newest = max(path.stat().st_mtime_ns / 1e9 for path in complete.output.rglob("*"))
    whole = complete.check()
    assert (whole.reason.code, whole.newest, whole.has_work, whole.torn) == ("Verified", newest, False, ())
    assert whole.whole == 2
    sealed = complete.check(Sealed(lambda path: path.name == "adapter_model.safetensors"))
    assert (sealed.state, sealed.reason.code, sealed.newest) == (OutputState.UNKNOWN, "DiskUnreadable", newest)
    assert sealed.progress == "epoch 0/2"
    killed = sample(KILLED)
    broken = killed.check()
    assert (broken.reason.code, broken.has_work, broken.marked, broken.evidence) == ("Incomplete", True, False, ())
    assert broken.whole == 1
    assert broken.newest == max(path.stat().st_mtime_ns / 1e9 for path in killed.output.rglob("*"))
    nothing = sample("failed_exception").check()
    assert (nothing.has_work, nothing.resumable, nothing.torn, nothing.torn_to_resume) == (True, 0, (), ())
    complete.edit(("epochs: 2", "epochs: 3"))
    other = complete.check()
    assert (other.state, other.reason.code, other.newest) == (OutputState.MISMATCH, "Drifted", newest)
    assert (other.has_work, other.differs, other.whole, other.evidence) == (True, ("epochs",), 1, ())
    assert other.reason.message.endswith("; rerun it, or put finetune.yaml back as it was")
    assert "epoch_2: is missing" in other.reason.message
    assert other.torn == tuple(complete.output / name for name in ("epoch_0", "epoch_1", "recipe_state", "torchtune_config.yaml"))
    complete.edit(("epochs: 3", "epochs: 2"), ("lr: 3e-4", "lr: 5e-5"))
    all_there = complete.check()
    assert (all_there.state, all_there.whole, all_there.evidence) == (OutputState.MISMATCH, 2, whole.evidence)
    assert all_there.reason.message.endswith("; accept or rerun it")
    shutil.rmtree(complete.output)
    gone = complete.check()
    assert (gone.state, gone.reason.code) == (OutputState.ABSENT, "NoOutputs")
    assert str(complete.output) in gone.reason.message
    complete.output.write_text("a file")
    file = complete.check()
    assert (file.state, file.reason.code) == (OutputState.UNKNOWN, "NotADirectory")


@pytest.mark.parametrize(
    ("launched", "wanted"), [("/data/one", "/data/two"), ("a//b", "a/b"), ("/data", "data"), ("data", "/data")]
)
def test_another_path_or_word_is_another_training(complete: Sample, launched: str, wanted: str) -> None:
    complete.set(data=launched)
    assert complete.check().state is OutputState.COMPLETE
    complete.edit((f"data: {launched}\n", f"data: {wanted}\n"))
    outputs = complete.check()
    assert outputs.state is OutputState.MISMATCH
    assert f"data {launched} → {wanted}" in outputs.reason.message


def test_a_longer_way_to_the_same_path_is_the_same_training(complete: Sample) -> None:
    complete.set(data="/data/one")
    complete.edit(("data: /data/one\n", "data: /data/../data//one\n"))
    assert complete.check().state is OutputState.COMPLETE


# --- the configuration and the script -----------------------------------------------------------------


def settled(sample: Sample, *lines: str) -> Step:
    """The step, with top-level settings given in finetune.yaml alone."""
    names = "|".join(line.partition(":")[0] for line in lines)
    rewrite(sample.config, lambda text: re.sub(rf"^({names}):.*\n", "", text, flags=re.MULTILINE) + "\n".join(lines) + "\n")
    return sample.read()[0]


@pytest.mark.parametrize("value", ["False", "false", "no", "off", "null", "~", ""])
def test_going_on_is_one_value_of_the_configuration_however_it_is_spelled(complete: Sample, value: str) -> None:
    step = settled(complete, f"resume_from_checkpoint: {value}")
    assert step.resume == Edit(complete.config, "resume_from_checkpoint", value, "True")
    assert step.written["resume_from_checkpoint"] == Written(value)


@pytest.mark.parametrize("lines", [["resume_from_checkpoint: yes"], ["go_on: true", "resume_from_checkpoint: ${go_on}"]])
def test_a_configuration_that_goes_on_already_needs_no_edit(complete: Sample, lines: list[str]) -> None:
    step = settled(complete, *lines)
    assert step.resume is not None
    assert step.resume.is_made


@pytest.mark.parametrize("value", ["${go_on}", "*no", "&other no", '!!bool "no"'])
def test_a_value_that_is_not_plainly_there_is_not_ours_to_edit(complete: Sample, value: str) -> None:
    step = settled(complete, "first: &no false", "go_on: false", f"resume_from_checkpoint: {value}")
    if step.blocked is None:
        assert step.resume is not None
        assert not step.resume.is_made
        assert step.written["resume_from_checkpoint"].why_not


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (("bs: 4", "batch_size: ${bs}", f"{STEPS}: 1"), "`${bs}`"),
        (("bs: 1", "batch_size: 4", f"{STEPS}: ${{bs}}"), "`${bs}`"),
        (("batch_size: &b 4", f"{STEPS}: 1"), "shared"),
        (("batch_size: 1", f"{STEPS}: 8"), "1, no even number"),
    ],
)
def test_a_batch_that_cannot_be_edited_whole_is_not_offered_and_the_edit_is_printed(
    complete: Sample, lines: tuple[str, ...], told: str
) -> None:
    step = settled(complete, *lines)
    assert step.smaller_batch == ()
    assert told in step.why_no_smaller_batch
    if "even" not in told:
        assert "`batch_size: 2` and `gradient_accumulation_steps: 2`" in step.why_no_smaller_batch


@pytest.mark.parametrize(
    ("lines", "edits"),
    [
        (("batch_size: 4", f"{STEPS}: 8"), [("batch_size", "4", "2"), (STEPS, "8", "16")]),
        (("batch_size: 2", f"{STEPS}: 1"), [("batch_size", "2", "1"), (STEPS, "1", "2")]),
        (("batch_size: 2", f"{STEPS}: null"), [("batch_size", "2", "1"), (STEPS, "null", "2")]),
        (("batch_size: 2",), [("batch_size", "2", "1"), (STEPS, "1", "2")]),
        (("batch_size: 1",), []),
        (("batch_size: 3",), []),
        (("batch_size: 0",), []),
        (("batch_size: many",), []),
        (("batch_size: 4", "gradient_accumulation_steps: many"), []),
        (("batch_size: 4", "gradient_accumulation_steps: 0"), []),
    ],
)  # fmt: skip
def test_half_the_batch_is_accumulated_over_twice_the_steps(
    complete: Sample,
    lines: tuple[str, ...],
    edits: list[tuple[str, str | None, str]],
) -> None:
    step = settled(complete, *lines)
    assert step.smaller_batch == tuple(Edit(complete.config, *edit) for edit in edits)
    assert bool(step.why_no_smaller_batch) == (not edits)


def test_what_the_document_varies_is_not_ours_to_halve(complete: Sample) -> None:
    settled(complete, "batch_size: 4", "gradient_accumulation_steps: 1")
    ours = ("lr", "jobs", "absolute_bias", "rank")
    theirs = ("batch_size", "gradient_accumulation_steps", "batch", "bs", "batch_size_per_device", "effective_batch_size")
    more = ("grad_accum", "bs_per_gpu", "train_bs", "microbatch")
    cases = [*(({name}, True) for name in ours), *(({name, "lr"}, False) for name in (*theirs, *more))]
    for varied, is_ours in cases:
        (step,) = TOOL.read(replace(complete.run, parameters=dict.fromkeys(varied, "1"), varied=frozenset(varied)), DISK).steps
        assert bool(step.smaller_batch) == is_ours
        assert any(f"`{key}`" in step.why_no_smaller_batch for key in varied) == (not is_ours)


@pytest.mark.parametrize("value", ["''", "'  '", "$SCRATCH/out", "/scratch/$USER", "~/out", "'~ana/out'", "3", "[a]"])
def test_an_output_directory_must_be_written_out(complete: Sample, value: str) -> None:
    complete.edit((f"output_dir: {complete.output}", f"output_dir: {value}"))
    step, (problem,) = complete.read()
    assert step.blocked is not None
    assert step.blocked.code == "ConfigInvalid"
    assert "written out" in problem.message


@pytest.mark.parametrize(
    ("model", "has_adapters"),
    [
        ("{_component_: torchtune.models.llama3_2.lora_llama3_2_1b}", True),
        ("{_component_: torchtune.models.llama3_2.dora_llama3_2_1b}", True),
        ("{_component_: mine.model, lora_rank: 8}", True),
        ("{lora_rank: 8}", True),
        ("{_component_: torchtune.models.llama3_2.llama3_2_1b}", False),
        ("{_component_: mine.explorer, rank: 8}", False),
        ("{}", False),
        ("null", False),
    ],
)
def test_a_model_with_adapters_is_known_by_its_name_or_its_settings(complete: Sample, model: str, has_adapters: bool) -> None:
    drop = re.compile(r"^model:.*\n(?:[ \t]+.*\n|\n)*", re.MULTILINE)
    for path in (complete.config, complete.launched):
        rewrite(path, lambda text: drop.sub("", text) + f"model: {model}\n")
    assert complete.check().state is OutputState.COMPLETE
    for epoch in ("epoch_0", "epoch_1"):
        for name in ("adapter_model.pt", "adapter_model.safetensors", "adapter_config.json"):
            (complete.output / epoch / name).unlink()
    assert (complete.check().state is BROKEN) == has_adapters


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("tune run \\\n  recipe \\\n  --config finetune.yaml \\\n  lr=1", "lr=1"),
        ("tune run recipe --config finetune.yaml a.b=1 ~c=2 d", "a.b=1 ~c=2"),
        ("tune run recipe --config finetune.yaml", None),
        ("LR=1 tune run recipe --config finetune.yaml", None),
        ("echo --config x=1", None),
        ("echo 'tune run recipe --config finetune.yaml lr=1'", None),
        ("srun tune run recipe --config=finetune.yaml lr='1e-5'", "lr=1e-5"),
    ],
)
def test_settings_on_the_command_line_are_found_wherever_it_is_broken(complete: Sample, command: str, found: str | None) -> None:
    (complete.run.directory / "finetune.slurm").write_text(f"#!/bin/bash\n{command}\n")
    problems = complete.read()[1]
    assert [p.message.split("`")[1] for p in problems] == ([found] if found else [])
    assert all((p.file.name, p.line, p.run, p.warning) == ("finetune.slurm", 2, "complete", True) for p in problems)


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("srun --config=a tune run r --config b x=1 y", ("b", ("x=1", "y"))),
        ("tune run r --config=b x=1", ("b", ("x=1",))),
        ("tune run r --config", ("", ())),
        ("tune run", (None, ())),
        ("tune cp r --config b", (None, ())),
        ("tuner run r --config b", (None, ())),
    ],
)
def test_the_configuration_of_a_launch_and_what_follows_it(command: str, found: tuple[str | None, tuple[str, ...]]) -> None:
    assert _config_of(tuple(command.split())) == found


OTHER = "/r/complete/other"  # as the tests below write where the samples are


@pytest.fixture
def beside(complete: Sample) -> Sample:
    """A run with another one beside it, from which its script was copied."""
    home = complete.run.directory.parent
    shutil.copytree(complete.run.directory, home / "other")
    rewrite(home / "other" / "finetune.yaml", lambda text: text.replace(str(complete.output), str(home / "ck-out-other")))
    variant = complete.config.read_text().replace("seed: 14", "seed: 15")
    (complete.run.directory / "variant.yaml").write_text(variant)
    shutil.copy(complete.config, complete.run.directory / "same.yaml")
    return complete


def write_script(sample: Sample, commands: str) -> None:
    text = commands.replace("/r/complete", str(sample.run.directory.parent))
    (sample.run.directory / "finetune.slurm").write_text(f"#!/bin/bash\n#SBATCH --time=1\n\n{text}\n")


@pytest.mark.parametrize(
    ("commands", "line", "words"),
    [
        (f"cd {OTHER}\ntune run r --config finetune.yaml", 5, "which trains into /r/complete/ck-out-other"),
        (f"cd {OTHER} || exit 1  # home\n\ntune run r --config=finetune.yaml", 6, "trains into /r/complete/ck-out-other"),
        (
            f"tune run r \\\n  --config {OTHER}/finetune.yaml",
            4,
            f"launches {OTHER}/finetune.yaml, which trains into /r/complete/",
        ),
        (f'D={OTHER}\ncd "$D" && srun tune run r --config finetune.yaml', 5, "trains into /r/complete/ck-out-other"),
        ('cd "$SLURM_SUBMIT_DIR/../other"\ntune run r --config finetune.yaml', 5, "trains into /r/complete/ck-out-other"),
        (f"(cd {OTHER} && tune run r --config finetune.yaml) | tee log", 4, "trains into /r/complete/ck-out-other"),
    ],
)
def test_a_script_that_launches_another_training_than_its_runs_blocks_it_with_its_line(
    beside: Sample, commands: str, line: int, words: str
) -> None:
    write_script(beside, commands)
    step, (problem,) = beside.read()
    assert step.blocked is not None
    assert step.blocked.code == "ScriptLeadsAway"
    assert (problem.file, problem.line, problem.run, problem.warning) == (step.script, line, "complete", False)
    assert words.replace("/r/complete", str(beside.run.directory.parent)) in problem.message
    assert f"accepted: a launch of this run's finetune.yaml, as after `cd {beside.run.directory}`" in problem.message


def test_another_configuration_in_the_runs_own_directory_is_warned_of_since_the_job_may_make_it(beside: Sample) -> None:
    write_script(beside, "cp finetune.yaml variant.yaml\ntune run r --config variant.yaml")
    step, (problem,) = beside.read()
    assert step.blocked is None
    assert (problem.file, problem.line, problem.run, problem.warning) == (step.script, 5, "complete", True)
    assert f"variant.yaml, which is not {beside.config}: seed 15 → 14; unless the job makes it anew" in problem.message


def test_where_outputs_go_from_the_directory_of_the_launch_counts_from_there(beside: Sample) -> None:
    beside.edit((f"output_dir: {beside.output}", "output_dir: artifacts"))
    write_script(beside, f"cd {OTHER}\ntune run r --config /r/complete/run/finetune.yaml")
    _, (problem,) = beside.read()
    other = beside.run.directory.parent / "other"
    launched = f"launches {beside.run.directory.parent / 'run' / 'finetune.yaml'} in {other}, which trains into {other}/artifacts"
    assert launched in problem.message


def test_another_runs_configuration_that_trains_into_this_runs_outputs_blocks_it(beside: Sample) -> None:
    shutil.copy(beside.run.directory / "variant.yaml", beside.run.directory.parent / "other" / "finetune.yaml")
    write_script(beside, f"tune run r --config {OTHER}/finetune.yaml")
    step, (problem,) = beside.read()
    assert step.blocked is not None
    assert f"other/finetune.yaml, which is not {beside.config}: seed 15 → 14; accepted" in problem.message


class Bounded(Sealed):
    """The real disk, where nothing is read without a limit."""

    def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        assert length is not None, f"all of {path} is read, whatever its size"
        return super().read(path, offset, length)


def test_nothing_is_read_without_a_limit(beside: Sample) -> None:
    write_script(beside, "tune run r --config variant.yaml")
    disk = Bounded(lambda path: False)
    (step,) = TOOL.read(beside.run, disk).steps
    assert TOOL.check(step, disk).state is OutputState.COMPLETE


@pytest.mark.parametrize(
    "commands",
    [
        "cd /r/complete/run\ntune run r --config finetune.yaml",
        f"cd {OTHER}\ncd ../run\ntune run r --config finetune.yaml",
        f"cd {OTHER}\ntune run r --config /r/complete/run/finetune.yaml",
        f"cd {OTHER}\ncd $WORK\ntune run r --config finetune.yaml",
        f"cd {OTHER}\ncd -\ntune run r --config finetune.yaml",
        f"if true; then\ncd {OTHER}\nfi\ntune run r --config finetune.yaml",
        f"(cd {OTHER}; ls)\ntune run r --config finetune.yaml",
        f"cat > x.sh <<EOF\ncd {OTHER}\nEOF\ntune run r --config finetune.yaml",
        f"cd {OTHER}\ntune run r --config llama3_2/1B_lora",
        f"cd {OTHER}\ntune run r --config $CONFIG",
        f"cd {OTHER}\necho 'not closed",
        "cd /node/local/scratch\ntune run r --config finetune.yaml",
        "mkdir -p /r/complete/made\ncd /r/complete/made",
        "cd /r/complete/gone\ntune run r --config finetune.yaml",
        f"(\n  cd {OTHER}\n  ls\n)\ntune run r --config finetune.yaml",
        f"[ -d {OTHER} ] && cd {OTHER}\ntune run r --config finetune.yaml",
        f"cd {OTHER} && ls &\ntune run r --config finetune.yaml",
        f"cd {OTHER} | true\ntune run r --config finetune.yaml",
        f'echo "\ncd {OTHER}\n"\ntune run r --config finetune.yaml',
        f"D={OTHER}\nunset D\ncd $D\ntune run r --config finetune.yaml",
        f"if false; then tune run r --config {OTHER}/finetune.yaml; fi\ntune run r --config finetune.yaml",
        f"prepare() (\n  cd {OTHER}\n  tune run r --config finetune.yaml\n)\ntune run r --config finetune.yaml",
        f"exit 0\ncd {OTHER}\ntune run r --config finetune.yaml",
        "cd sub\ntune run r --config finetune.yaml",
        "tune run r --config",
        "cp finetune.yaml variant.yml; tune run r --config variant.yml",
        "tune run r --config same.yaml",
        f"sweep run --config {OTHER}/finetune.yaml",
        "tune run r --config 'a\0b.yaml'",
    ],
)
def test_a_script_of_which_only_the_job_knows_where_it_leads_blocks_nothing(beside: Sample, commands: str) -> None:
    write_script(beside, commands)
    step, problems = beside.read()
    assert (step.blocked, problems) == (None, ())


def test_a_disagreement_names_both_and_where_it_stands(complete: Sample, tmp_path: Path) -> None:
    run = replace(complete.run, epochs=5, checkpoint_dir=tmp_path / "elsewhere")
    where, how_many = TOOL.read(run, DISK).problems
    assert (where.file, where.run, how_many.file, how_many.run) == (complete.config, "complete", complete.config, "complete")
    assert str(complete.output) in where.message
    assert str(tmp_path / "elsewhere") in where.message
    assert "2" in how_many.message
    assert "5" in how_many.message


def test_what_is_told_of_several_things_is_told_one_by_one() -> None:
    assert _some(["epoch_0: is missing", "epoch_1: is torn"]) == "epoch_0: is missing; epoch_1: is torn"
    assert _differing({"lr": ("1", "2"), "seed": ("3", "4")}) == "lr 1 → 2, seed 3 → 4"


def test_outputs_in_the_runs_own_directory_are_there_to_be_seen_with_it(complete: Sample) -> None:
    assert complete.read()[0].root == complete.output.parent
    complete.edit((str(complete.output), str(complete.run.directory / "out" / "deeper")))
    assert complete.read()[0].root == complete.run.directory


def test_all_the_files_that_a_training_would_begin_from_and_that_are_not_there_are_named(complete: Sample) -> None:
    complete.edit(("model.safetensors", "one.safetensors, two.safetensors"))
    step = replace(complete.read()[0], others=("a/finetune",))
    lacks = TOOL.check(step, DISK).lacks
    assert isinstance(lacks, Reason)
    assert f"it begins from {complete.base / 'one.safetensors'}, {complete.base / 'two.safetensors'}, which" in lacks.message


def test_a_step_tells_all_of_its_script_and_its_configuration(complete: Sample) -> None:
    script = complete.run.directory / "finetune.slurm"
    script.write_text(
        "#SBATCH --job-name=train\n#SBATCH --time=10:00\n#SBATCH --output=x-%j.out\ntune run r --config finetune.yaml\n"
    )
    step, problems = complete.read()
    assert problems == ()
    assert (step.job_name, step.asks["time"], step.ask.seconds) == ("train", "10:00", 600)
    assert [str(log) for log in step.logs] == [str(complete.run.directory / "x-%j.out")]
    assert step.meaning["finetune.slurm"] == f"commands {step.commands[:8]}"
    assert len(step.commands) > 8
    assert (step.config, step.text) == ("finetune.yaml", complete.config.read_text())


@pytest.mark.parametrize(
    ("lines", "batch"),
    [
        (("batch_size: 4", f"{STEPS}: 8"), {"batch_size": "4", STEPS: "8"}),
        (("batch_size: 4", f"{STEPS}: null"), {"batch_size": "4", STEPS: "1"}),
    ],
)
def test_a_step_tells_its_batch_and_over_how_many_steps_it_is_accumulated(
    complete: Sample, lines: tuple[str, ...], batch: dict[str, str]
) -> None:
    assert settled(complete, *lines).batch == batch
    complete.edit(("batch_size: 4\n", ""))
    assert complete.read()[0].batch == {**batch, "batch_size": "null"}


def test_where_the_training_will_make_the_directory_of_its_logs_there_is_nothing_to_warn_of(complete: Sample) -> None:
    shutil.rmtree(complete.output)
    script = complete.run.directory / "finetune.slurm"
    script.write_text(f"#SBATCH --output={complete.output}/%j.out\ntune run r --config finetune.yaml\n")
    assert complete.read()[1] == ()


@pytest.mark.parametrize("lost", ["missing", "unreadable"])
@pytest.mark.parametrize("name", ["finetune.slurm", "finetune.yaml"])
def test_scaffolding_that_is_not_there_to_be_read_is_told_with_its_path(complete: Sample, name: str, lost: str) -> None:
    path, disk = complete.run.directory / name, Sealed(lambda seen: lost == "unreadable" and seen == path)
    if lost == "missing":
        path.unlink()
    (problem,) = (reading := TOOL.read(complete.run, disk)).problems
    assert (problem.file, problem.line, problem.run) == (path, 0, "complete")
    assert ("Permission denied" if lost == "unreadable" else "is missing; run `complete`") in problem.message
    (step,) = reading.steps
    assert step.blocked is not None
    assert step.blocked.message == str(problem)


def test_a_configuration_of_the_largest_size_is_read(complete: Sample) -> None:
    size = _MAX_CONFIG - len(complete.config.read_bytes())
    rewrite(complete.config, lambda text: text + "#" * (size - 1) + "\n")
    assert complete.read()[0].blocked is None
    rewrite(complete.config, lambda text: text + "\n")
    (problem,) = complete.read()[1]
    assert f"is larger than {_MAX_CONFIG // 1024} KiB" in problem.message


@pytest.mark.parametrize("value", ["3", "{a: 1}", "''"])
def test_epochs_to_save_that_are_no_list_are_a_fault_with_a_line(complete: Sample, value: str) -> None:
    complete.set(epochs_to_save=value)
    (problem,) = complete.read()[1]
    assert "`epochs_to_save` is" in problem.message
    assert problem.line > 0


@pytest.mark.parametrize(
    ("options", "requeue"), [(["--requeue"], True), (["--requeue", "--no-requeue"], False), (["--no-requeue", "--requeue"], True)]
)
def test_the_last_word_on_requeueing_counts(complete: Sample, options: list[str], requeue: bool) -> None:
    lines = "".join(f"#SBATCH {option}\n" for option in options)
    (complete.run.directory / "finetune.slurm").write_text(f"#!/bin/bash\n{lines}true\n")
    assert complete.read()[0].requeue is requeue


def test_a_launch_that_left_nothing_but_its_log_was_one(complete: Sample) -> None:
    for name in ("epoch_0", "epoch_1", "recipe_state"):
        shutil.rmtree(complete.output / name)
    complete.launched.unlink()
    outputs = complete.check()
    assert (outputs.state, outputs.has_work) == (BROKEN, True)
    for log in (complete.output / "logs").iterdir():
        log.unlink()
    assert complete.check().state is OutputState.ABSENT


def test_epochs_of_which_nothing_else_is_left_are_a_trainings(complete: Sample) -> None:
    for name in ("recipe_state", "logs"):
        shutil.rmtree(complete.output / name)
    complete.launched.unlink()
    outputs = complete.check()
    assert (outputs.state, outputs.has_work) == (BROKEN, True)
    shutil.rmtree(complete.output / "epoch_1")
    (complete.output / "epoch_0").rename(complete.output / "recipe_state")
    assert complete.check().has_work


@pytest.mark.parametrize("where", ["config", "launched"])
def test_a_setting_that_is_null_is_the_same_as_none(complete: Sample, where: str) -> None:
    rewrite(getattr(complete, where), lambda text: text + "extra: null\n")
    assert complete.check().state is OutputState.COMPLETE
    rewrite(getattr(complete, where), lambda text: text.replace("extra: null", "extra: 1"))
    assert complete.check().state is OutputState.MISMATCH


def test_without_the_trainers_record_nothing_is_gone_on_from_though_an_epoch_is_whole(complete: Sample) -> None:
    complete.edit(("epochs: 2", "epochs: 3"), launched=True)
    assert complete.check().resumable == 1
    shutil.rmtree(complete.output / "recipe_state")
    assert complete.check().resumable == 0


def test_a_run_that_cannot_be_looked_at_is_not_called_missing(complete: Sample) -> None:
    class Stale(Sealed):
        def stat(self, path):
            if path == complete.run.directory:
                raise DiskUnreadable(f"{path}: Stale file handle")
            return super().stat(path)

    (problem,) = (reading := TOOL.read(complete.run, Stale(lambda path: False))).problems
    assert (problem.file, problem.line, problem.run) == (complete.run.document, 7, "complete")
    assert "Stale file handle" in problem.message
    assert reading.steps[0].blocked is not None
    assert reading.steps[0].blocked.code == "ScaffoldingUnreadable"
    assert reading.steps[0].files == (complete.config,)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"seed: 1\n", "`output_dir` is missing"),
        (b"output_dir: \xff\n", "is not text"),
        (b"#" * (32 << 20), "is larger than"),
    ],
)
def test_what_is_no_configuration_is_told_without_a_line(complete: Sample, content: bytes, words: str) -> None:
    complete.config.write_bytes(content)
    step, (problem,) = complete.read()
    assert words in problem.message
    assert (problem.file, problem.line, problem.run) == (complete.config, 0, "complete")
    assert step.blocked is not None
    assert step.blocked.code == "ConfigInvalid"


def test_as_many_epochs_as_are_allowed_are_allowed(complete: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    for most, is_fault in ((2, False), (1, True)):
        monkeypatch.setattr("reconciler.tools.torchtune._MOST_EPOCHS", most)
        assert (complete.read()[0].blocked is not None) == is_fault
