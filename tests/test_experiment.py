"""What is read from an experiment's document and directory, and what is said where it cannot be read."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.disk import RealDisk
from reconciler.errors import DiskUnreadable, InvalidExperiment, Problem
from reconciler.experiment.document import Document
from reconciler.experiment.links import linked
from reconciler.experiment.load import find_document, load
from reconciler.experiment.markdown_form import read_markdown
from reconciler.experiment.marks import Mark, read_mark
from reconciler.experiment.names import fault_of
from reconciler.experiment.yaml_form import read_yaml
from reconciler.model import Desired, Outputs, OutputState, Reading, Reason, RunInput, RunKind, Stage, Step
from reconciler.ports import Disk

DOCUMENTS = Path(__file__).parent / "documents"


# --- stand-ins: tools of a few lines -------------------------------------------------------------


@dataclass
class _Standing:
    name: str
    stage: Stage
    log_file: str = "run.log"
    is_default: bool = True
    signs: tuple = ()
    seen: dict[str, RunInput] = field(default_factory=dict)

    def may_submit(self, step: Step, outputs: Outputs) -> str | None:
        return None

    def log_label(self, step: Step) -> tuple[str, str]:
        return "SUBMIT", step.run

    def check(self, step: Step, disk: Disk, deep: bool = False) -> Outputs:
        return Outputs(OutputState.UNKNOWN, Reason("Unseen", "never looked"))

    def _step(self, run: RunInput, key: str, output: Path, epoch: int | None = None) -> Step:
        return Step(
            key=f"{run.name}/{key}",
            run=run.name,
            stage=self.stage,
            tool=self.name,
            script=run.directory / f"{key}.slurm",
            output_dir=output,
            root=output.parent,
            definition=f"definition of {run.name}",
            placement="",
            epoch=epoch,
        )


class Trainer(_Standing):
    """Trains into the document's directory; a file ``output_dir`` in the run's directory outranks it, ``broken`` is a fault, and
    ``base`` names what it begins from."""

    def read(self, run: RunInput, disk: Disk) -> Reading:
        self.seen[run.name] = run
        told = disk.read(run.directory / "output_dir")
        output = Path(told.decode()) if told else run.checkpoint_dir or run.directory / "artifacts"
        step = self._step(run, "finetune", output)
        step = replace(step, checkpoints={epoch: output / f"epoch_{epoch}" for epoch in range(run.epochs or 0)})
        base = disk.read(run.directory / "base")
        step = replace(step, reads=(Path(base.decode()),) if base else ())
        broken = disk.stat(run.directory / "broken") is not None
        return Reading((step,), (Problem(run.directory / "broken", 3, "is broken", run.name),) if broken else ())


class Evaluator(_Standing):
    """Finds every planned evaluation, except of a run that it cannot look into; a file ``leads`` tells where its logs go."""

    hides = ""

    def read(self, run: RunInput, disk: Disk) -> Reading:
        self.seen[run.name] = run
        if run.name == self.hides:
            return Reading(problems=(Problem(run.document, run.line, "cannot be read", run.name),))
        return Reading(tuple(self._evaluation(run, e.task, e.epoch) for e in run.evaluations))

    def _evaluation(self, run: RunInput, task: str, epoch: int | None) -> Step:
        name = f"{task}_base" if epoch is None else f"{task}_epoch{epoch}"
        leads = run.directory / "eval" / "leads"
        logs = Path(leads.read_text()) if leads.exists() else run.directory / "eval" / "logs"
        step = self._step(run, f"eval/{name}", logs, epoch)
        reads = (run.checkpoint_path,) if run.checkpoint_path else ()
        return replace(step, task=task, need=run.preparation_key, reads=reads)


@dataclass
class World:
    """An experiment on disk and the tools it is read with."""

    directory: Path
    trainer: Trainer = field(default_factory=lambda: Trainer("torchtune", Stage.FINETUNE))
    evaluator: Evaluator = field(default_factory=lambda: Evaluator("inspect-ai", Stage.EVALUATION))

    def write(self, text: str | bytes, name: str = "experiment_summary.md") -> World:
        content = text if isinstance(text, bytes) else text.encode()
        (self.directory / name).write_bytes(content)
        return self

    def scaffold(self, *runs: str) -> World:
        for run in runs:
            (self.directory / run / "eval").mkdir(parents=True)
            (self.directory / run / "finetune.slurm").touch()
        return self

    def load(self) -> Desired:
        return load(self.directory, {tool.name: tool for tool in (self.trainer, self.evaluator)}, RealDisk())

    def faults(self) -> list[str]:
        with pytest.raises(InvalidExperiment) as raised:
            self.load()
        return [f"{problem.file.name}:{problem.line}: {problem.message}" for problem in raised.value.problems]


@pytest.fixture
def world(tmp_path: Path) -> World:
    directory = tmp_path / "experiment"
    directory.mkdir()
    return World(directory)


def keys(desired: Desired) -> list[str]:
    return [step.key for step in desired.steps]


GOOD = """# small

## All Runs

| Run Name | Type | Rank |
|----------|------|------|
| r8 | Fine-tuned | 8 |
| base | Control | - |

## Evaluation Plan

| Run Name | cap |
|----------|-----|
| r8 | ✓ epoch 0,1 |
| base | ✓ |

## Configuration

- **Epochs:** 2
- **Checkpoint directory:** `/scratch/small`
"""


# --- the samples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cap_4L_lora_lr.md", "twins_model_sizes.md", "words_5L.yaml"])
def test_a_real_document_loads_without_a_problem(world: World, name: str) -> None:
    shutil.copy(DOCUMENTS / name, world.directory / f"experiment_summary{Path(name).suffix}")
    assert world.load().problems == ()


def test_steps_stand_in_document_order_with_the_training_of_a_run_before_its_evaluations(world: World) -> None:
    shutil.copy(DOCUMENTS / "twins_model_sizes.md", world.directory / "experiment_summary.md")
    desired = world.load()
    assert desired.name == "twins_model_sizes_2025-10-22"
    assert keys(desired) == [
        "Llama-3.2-1B_rank8/finetune",
        "Llama-3.2-1B_rank8/eval/twins_task_epoch0",
        "Llama-3.2-1B_rank8/eval/twins_task_epoch1",
        "Llama-3.2-1B_rank8/eval/twins_unseen_epoch1",
        "Llama-3.2-3B_rank8/finetune",
        "Llama-3.2-3B_rank8/eval/twins_task_epoch0",
        "Llama-3.2-3B_rank8/eval/twins_task_epoch1",
        "Llama-3.2-1B_base/eval/twins_task_base",
        "Llama-3.2-1B_base/eval/twins_unseen_base",
        "Llama-3.2-3B_base/eval/twins_task_base",
    ]


def test_the_tools_learn_where_checkpoints_go_and_what_the_evaluation_needs(world: World) -> None:
    shutil.copy(DOCUMENTS / "twins_model_sizes.md", world.directory / "experiment_summary.md")
    world.load()
    output = Path("/scratch/lab/ck-outputs/twins_model_sizes_2025-10-22/ck-out-Llama-3.2-1B_rank8")
    assert world.trainer.seen["Llama-3.2-1B_rank8"].checkpoint_dir == output
    assert set(world.trainer.seen) == {"Llama-3.2-1B_rank8", "Llama-3.2-3B_rank8"}, "controls are not trained"
    run = world.evaluator.seen["Llama-3.2-1B_rank8"]
    assert run.checkpoints == {0: output / "epoch_0", 1: output / "epoch_1"}
    assert run.preparation_key == "Llama-3.2-1B_rank8/finetune"
    base = world.evaluator.seen["Llama-3.2-1B_base"]
    assert (base.checkpoints, base.preparation_key, base.checkpoint_dir) == ({}, None, None)


def test_the_yaml_form_places_checkpoints_in_the_artifacts_of_each_run(world: World) -> None:
    shutil.copy(DOCUMENTS / "words_5L.yaml", world.directory / "experiment_summary.yaml")
    desired = world.load()
    run = world.trainer.seen["Llama-3.2-1B-Instruct_rank4"]
    place = "/scratch/lab/ck-projects/capitalization/words_5L_2026-03-16/Llama-3.2-1B-Instruct_rank4/artifacts"
    assert (run.checkpoint_dir, run.epochs, run.parameters) == (Path(place), 1, {"lora_rank": "4"})
    assert keys(desired)[-1] == "Llama-3.2-1B-Instruct_base/eval/capitalization_base"


# --- finding the document ------------------------------------------------------------------------


def test_the_experiment_is_named_by_its_directory_or_by_its_document(world: World) -> None:
    document = world.write(GOOD).directory / "experiment_summary.md"
    assert find_document(world.directory) == document
    assert find_document(document) == document


def test_two_documents_are_both_named(world: World) -> None:
    world.write(GOOD).write("experiment: {name: x}", "experiment_summary.yaml")
    (fault,) = world.faults()
    assert "experiment_summary.md and experiment_summary.yaml" in fault


def test_a_directory_without_a_document_and_a_missing_directory_each_say_so(world: World) -> None:
    (fault,) = world.faults()
    assert "has no experiment_summary.md and no experiment_summary.yaml" in fault
    with pytest.raises(InvalidExperiment, match="does not exist"):
        find_document(world.directory / "nowhere")


def test_a_directory_that_cannot_be_examined_is_unknown_and_not_absent(world: World) -> None:
    looped = world.directory / "loop"
    looped.symlink_to(looped)
    with pytest.raises(DiskUnreadable):
        find_document(looped / "x")


def test_a_percent_sign_in_the_path_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "50%x").mkdir()
    desired = World(tmp_path / "50%x").write(GOOD).scaffold("r8", "base").load()
    assert [p.warning for p in desired.problems if "50%x" in p.message] == [True]
    assert not any(step.blocked for step in desired.steps)


def test_the_experiment_is_its_real_directory(world: World, tmp_path: Path) -> None:
    world.write(GOOD)
    (tmp_path / "link").symlink_to(world.directory)
    assert World(tmp_path / "link").load().directory == world.directory.resolve()


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["experiment_summary.md", "experiment_summary.yaml"])
def test_an_empty_document_may_be_one_that_an_editor_is_saving(world: World, content: bytes, name: str) -> None:
    assert "is empty" in world.write(content, name).faults()[0]


def test_bytes_that_are_not_utf8_are_named_by_their_line(world: World) -> None:
    assert world.write(GOOD.encode().replace(b"small\n", b"sm\xe4ll\n", 1)).faults() == [
        "experiment_summary.md:1: byte 0xE4 is not UTF-8; save the document as UTF-8"
    ]


# --- faults of the document as a whole -----------------------------------------------------------

FAULTS: list[tuple[str, str, int, str]] = [
    ("| r8 | Fine-tuned | 8 |", "| r8 | Fine-tuned | 8 |\n| r8 | Control | - |", 8, "`r8` is already used on line 7"),
    ("## All Runs", "## Some Runs", 0, "no table under a heading `## All Runs`"),
    ("| Run Name | Type | Rank |", "| Name | Type | Rank |", 5, "no column `Run Name`; its columns are `Name`, `Type`, `Rank`"),
    ("| Run Name | Type | Rank |", "| Run Name | Kind | Rank |", 5, "no column `Type`"),
    ("| Run Name | Type | Rank |", "| Run Name | Type | Type |", 5, "the column `type` stands twice"),
    ("| r8 | Fine-tuned | 8 |", "| r8 | Tuned | 8 |", 7, "'Tuned'; accepted: `Fine-tuned`, `Control` or `eval-only`"),
    ("| r8 | Fine-tuned | 8 |", "|  | Fine-tuned | 8 |", 7, "the run name is empty"),
    ("| r8 | Fine-tuned | 8 |", "| r8 | Fine-tuned |", 7, "too few cells, 2 of 3; `rank` is the first one missing"),
    ("| r8 | Fine-tuned | 8 |", "| r8 | Fine-tuned | 8 | 9 |", 7, "too many cells, 4 of 3"),
    ("# small", "# small\n\n## Tools\n- **Evaluation:** inspect-a1", 4, "(did you mean `inspect-ai`?); accepted: `inspect-ai`"),
    ("# small", "# small\n\n## Tools\n- **Model Preparation:** inspect-ai", 4, "accepted: `torchtune`"),
    ("| r8 | ✓ epoch 0,1 |", "| r9 | ✓ epoch 0,1 |", 14, "names the run `r9`, which is not listed"),
    ("| r8 | ✓ epoch 0,1 |", "| r8 | ✓ |\n| r8 | - |", 15, "names the run `r8` twice"),
    ("| r8 | ✓ epoch 0,1 |", "| r8 | maybe |", 14, "column 7: `cap` says 'maybe'; accepted: `✓`, `✓ epoch 0,1`"),
    ("| r8 | ✓ epoch 0,1 |", "| r8 |", 14, "too few cells"),
    ("| Run Name | cap |", "| Run Name | ../cap |", 12, "the task '../cap' begins with `.`"),
    ("| Run Name | cap |", "| Run | cap |", 12, "no column `Run Name`; its marks belong to no run"),
    ("- **Epochs:** 2", "- **Epochs:** two", 19, "`Epochs` is 'two'; accepted: a whole number from 1"),
    ("- **Epochs:** 2", "- **Epochs:** 0", 19, "`Epochs` is '0'"),
    ("- **Epochs:** 2", "- **Epochs:** 2\n- **Epochs:** 3", 20, "'3' here and '2' on line 19"),
    ("`/scratch/small`", "`/scratch/small`\n- **Naming pattern:** `ck-{date}`", 21, "'ck-{date}' cannot be followed"),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), FAULTS, ids=[fault[3] for fault in FAULTS])
def test_a_fault_of_the_document_is_told_with_its_line(world: World, old: str, new: str, line: int, message: str) -> None:
    assert old in GOOD
    faults = world.write(GOOD.replace(old, new, 1)).faults()
    assert any(fault.startswith(f"experiment_summary.md:{line}: ") and message in fault for fault in faults), faults


def test_a_run_whose_row_is_at_fault_is_listed_all_the_same(world: World) -> None:
    (fault,) = world.write(GOOD.replace("Fine-tuned", "Fintuned")).faults()
    assert "the `Type` of run `r8` is 'Fintuned'" in fault


@pytest.mark.parametrize(
    ("heading", "hint"),
    [
        ("## Evaluation Pan", "the table under `Evaluation Pan` is not read (did you mean `evaluation plan`?)"),
        ("## Evaluaton plan (8)", "the table under `Evaluaton plan (8)` is not read (did you mean `evaluation plan`?)"),
        ("## Results", ""),
    ],
)
def test_a_table_under_a_mistyped_heading_is_not_left_out_without_a_word(world: World, heading: str, hint: str) -> None:
    desired = world.write(GOOD.replace("## Evaluation Plan", heading)).load()
    told = [(problem.line, problem.message) for problem in desired.problems if "is not read" in problem.message]
    assert told == ([(12, hint)] if hint else [])


def test_a_table_of_states_is_no_mistyped_list(world: World) -> None:
    status = "\n## Evaluation Status\n\n| Run Name | Status |\n|---|---|\n| base | COMPLETED |\n"
    assert not world.write(GOOD + status).load().problems


def test_all_faults_are_told_at_once(world: World) -> None:
    text = GOOD.replace("Fine-tuned", "Tuned").replace("**Epochs:** 2", "**Epochs:** x").replace("| base | ✓ |", "| base | ? |")
    lines = [int(fault.split(":")[1]) for fault in world.write(text).faults()]
    assert {7, 15} <= set(lines)
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    "name",
    [
        "../r8",
        "..",
        "a/b",
        "-r8",
        ".hidden",
        "r8\u202eexe",
        "r\u200b8",
        "r\x07",
        "r8:1",
        "r8#",
        "r\u00a08",
        "/",
        "r" * 256,
        "\ud800"[:0],
    ],
)
def test_a_name_that_is_no_safe_directory_of_the_experiment_is_refused(name: str) -> None:
    assert fault_of(name)


@pytest.mark.parametrize(
    "name", ["r8", "r 8", "_r", "r8_lr1e-5", "größe=8", "モデル_8", "हिन्दी", "a+b,c@d", unicodedata.normalize("NFD", "é8"), "ñ"]
)
def test_letters_of_any_script_make_a_name(name: str) -> None:
    assert fault_of(name) is None


def test_an_unsafe_name_stops_the_whole_document(world: World) -> None:
    (fault,) = [f for f in world.write(GOOD.replace("| r8 | F", "| ../r8 | F")).faults() if ":7:" in f]
    assert "begins with `.`; accepted: letters of any script" in fault


def test_one_name_in_two_unicode_forms_is_a_duplicate(world: World) -> None:
    twins = "".join(f"| {unicodedata.normalize(form, 'é')} | Control | - |\n" for form in ("NFC", "NFD"))
    faults = world.write(GOOD.replace("| base | Control | - |\n", "| base | Control | - |\n" + twins)).faults()
    assert "another Unicode form" in faults[0]


def test_names_that_differ_only_in_case_are_two_runs(world: World) -> None:
    desired = world.write(GOOD.replace("| base | Control | - |", "| base | Control | - |\n| R8 | Fine-tuned | 8 |")).load()
    assert {step.run for step in desired.steps} == {"r8", "R8", "base"}


def test_a_column_of_marks_that_is_no_listed_task_is_not_passed_over(world: World) -> None:
    tasks = "### Evaluation Tasks\n| Task Name | Script |\n|---|---|\n| capitalization | x |\n\n## Evaluation Plan"
    faults = world.write(GOOD.replace("## Evaluation Plan", tasks).replace("| cap |", "| capitalisation |")).faults()
    assert "(did you mean `capitalization`?)" in faults[0]


# --- what a careful person reads -----------------------------------------------------------------

SAME: list[tuple[str, Callable[[str], str]]] = [
    ("a byte order mark", lambda text: "\ufeff" + text),
    ("CRLF", lambda text: text.replace("\n", "\r\n")),
    ("no final newline", lambda text: text.rstrip("\n")),
    ("trailing spaces", lambda text: text.replace("\n", "  \n")),
    ("more words in the headings", lambda text: text.replace("All Runs", "All Runs (2 total)").replace("Plan", "Plan (draft)")),
    ("capitals", lambda text: text.replace("All Runs", "ALL RUNS").replace("Run Name", "run name").replace("Control", "CONTROL")),
    ("headings one level down", lambda text: text.replace("## ", "### ")),
    ("numbered headings", lambda text: text.replace("## All", "## 3. All")),
    ("bold and backticks", lambda text: text.replace("| r8 |", "| **`r8`** |").replace("| Type |", "| **Type** |")),
    ("fenced table", lambda text: text + "\n## All Runs\n```\n| Run Name | Type |\n|---|---|\n| z | Control |\n```\n"),
    ("commented table", lambda text: text + "\n## All Runs\n<!--\n| Run Name | Type |\n|---|---|\n| z | Control |\n-->\n"),
    ("colon behind the bold", lambda text: text.replace("**Epochs:**", "**Epochs**:")),
    ("a remark behind the value", lambda text: text.replace("**Epochs:** 2", "**Epochs:** `2` (0-indexed)")),
    ("a bold paragraph as heading", lambda text: text.replace("- **Checkpoint", "\n**Output**\n- **Checkpoint")),
    ("epochs of the evaluation", lambda text: text + "\n### Evaluation\n- **Epochs:** 0, 1\n"),
    ("an hyphen that does not break", lambda text: text.replace("Fine-tuned", "Fine\u2011tuned")),
    ("status tables", lambda text: text + "\n## Evaluation Plan Status\n\n| Run Name | Status |\n|---|---|\n| zz | ✓ |\n"),
    ("plan under a sub-heading", lambda text: text.replace("| Run Name | cap", "### Evaluations of all runs\n| Run Name | cap")),
    ("empty row", lambda text: text.replace("| base | Control | - |", "| base | Control | - |\n|  |  |  |")),
    ("notes left out", lambda text: text.replace("| cap |\n|-", "| cap | Notes |\n|---|-")),
    ("default tools", lambda text: text + "\n## Tools\n- **Model Preparation:** `Torchtune` (LoRA)\n  - *Purpose:* x\n"),
]  # fmt: skip


@pytest.mark.parametrize("dress", [change for _, change in SAME], ids=[name for name, _ in SAME])
def test_a_document_dressed_up_means_the_same(world: World, dress: Callable[[str], str]) -> None:
    assert dress(GOOD) != GOOD
    desired = world.write(dress(GOOD)).load()
    assert keys(desired) == ["r8/finetune", "r8/eval/cap_epoch0", "r8/eval/cap_epoch1", "base/eval/cap_base"]
    assert world.trainer.seen["r8"].checkpoint_dir == Path("/scratch/small/ck-out-r8")
    assert (desired.name, desired.problems) == ("small", ())


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("", Mark(False)), ("-", Mark(False)), ("–", Mark(False)), ("no", Mark(False)),
        ("✓", Mark(True)), ("✔️", Mark(True)), ("x", Mark(True)), ("X", Mark(True)), ("Yes", Mark(True)),
        ("✓ epoch 0", Mark(True, (0,))), ("epoch 0", Mark(True, (0,))), ("epochs 0, 1", Mark(True, (0, 1))),
        ("✓ epoch 0,1", Mark(True, (0, 1))), ("✓ epoch 0 and 1", Mark(True, (0, 1))), ("✓ epochs 0-2", Mark(True, (0, 1, 2))),
        ("✓ epochs 0, 2–3", Mark(True, (0, 2, 3))), ("✓ (epoch 1)", Mark(True, (1,))),
        ("✓ epochs 0, 1, and 2", Mark(True, (0, 1, 2))),
        ("✓ all", Mark(True, every=True)), ("✓ all epochs", Mark(True, every=True)), ("✓ last epoch", Mark(True)),
        ("maybe", None), ("✓ epoch", None), ("✓ epoch -1", None), ("✓ epochs 2-0", None), ("0", None), ("✓ 0,1", None),
        ("?", None), ("✓ epoch 1.5", None), ("✓ epoch 0 1", None), ("✓ ✓", None), ("(", None), ("✓ ()", None),
    ],
)  # fmt: skip
def test_a_cell_of_the_plan_is_read_or_refused_but_never_guessed(text: str, mark: Mark | None) -> None:
    assert read_mark(text) == mark


def test_a_mark_without_an_epoch_means_the_last_one_and_all_means_each(world: World) -> None:
    assert keys(world.write(GOOD.replace("✓ epoch 0,1", "✓")).load())[1:2] == ["r8/eval/cap_epoch1"]
    assert keys(world.write(GOOD.replace("✓ epoch 0,1", "✓ all")).load())[1:3] == ["r8/eval/cap_epoch0", "r8/eval/cap_epoch1"]


def test_the_epochs_of_a_run_outrank_those_of_the_configuration(world: World) -> None:
    text = GOOD.replace("| Rank |", "| Epochs |").replace("| 8 |", "| 3 |").replace("✓ epoch 0,1", "✓")
    assert "r8/eval/cap_epoch2" in keys(world.write(text.replace("**Epochs:** 2", "**Epochs:** see table")).load())


@pytest.mark.parametrize("plan", ["", "## Evaluation Plan\n\nEverything, twice.\n"])
def test_without_a_matrix_nothing_is_planned_and_the_scripts_decide(world: World, plan: str) -> None:
    start, end = GOOD.index("## Evaluation Plan"), GOOD.index("## Configuration")
    world.write(GOOD[:start] + plan + GOOD[end:]).load()
    assert not world.evaluator.seen["r8"].planned


def test_a_document_that_names_no_tools_means_the_usual_ones_however_many_there_are(world: World) -> None:
    another = Trainer("another", Stage.FINETUNE, is_default=False)
    tools = {tool.name: tool for tool in (another, world.trainer, world.evaluator)}
    desired = load(world.write(GOOD).directory, tools, RealDisk())
    assert {step.tool for step in desired.steps} == {"torchtune", "inspect-ai"}


def test_a_run_left_out_of_the_matrix_is_not_evaluated(world: World) -> None:
    desired = world.write(GOOD.replace("| base | ✓ |\n", "")).load()
    assert keys(desired) == ["r8/finetune", "r8/eval/cap_epoch0", "r8/eval/cap_epoch1"]
    assert world.evaluator.seen["base"].planned


def test_a_task_is_called_as_its_table_calls_it_and_other_columns_of_a_matrix_are_no_tasks(world: World) -> None:
    tasks = "### Evaluation Tasks\n| Task Name | Script |\n|---|---|\n| **cap** | x |\n\n## Evaluation Plan"
    text = GOOD.replace("## Evaluation Plan", tasks).replace("| cap |\n|-", "| CAP | Why |\n|---|-")
    text = text.replace("| ✓ epoch 0,1 |", "| ✓ epoch 0,1 | size |").replace("| ✓ |", "| ✓ | reference |")
    assert keys(world.write(text).load())[1:] == ["r8/eval/cap_epoch0", "r8/eval/cap_epoch1", "base/eval/cap_base"]


@pytest.mark.parametrize("name", ["Output of ranks", "All Runs study", "Evaluation Plan"])
def test_an_experiment_may_be_called_like_a_section(world: World, name: str) -> None:
    overview = f"# {name}\n\n## Overview\n- **Epochs:** many\n\n| Run Name | Mood |\n|---|---|\n| r8 | ✓ good |\n"
    desired = world.write(GOOD.replace("# small\n", overview, 1)).load()
    assert (desired.name, len(desired.steps)) == (name, 4)


def test_columns_that_say_something_else_are_no_tasks(world: World) -> None:
    wide = GOOD.replace(
        "| Run Name | cap |\n|----------|-----|", "| # | Run Name | Model | Rank | cap | Notes |\n|---|---|---|---|---|---|"
    )
    wide = wide.replace("| r8 | ✓ epoch 0,1 |", "| 1 | r8 | 1B | 8 | ✓ epoch 0 | why |").replace(
        "| base | ✓ |", "| 2 | base | 1B | - | ✓ | |"
    )
    assert keys(world.write(wide).load()) == ["r8/finetune", "r8/eval/cap_epoch0", "base/eval/cap_base"]


def test_an_eval_only_run_has_the_checkpoint_that_it_names(world: World) -> None:
    text = GOOD.replace("| Rank |", "| Checkpoint Path |").replace(
        "| base | Control | - |", "| base | eval-only | `/ck/epoch_3` |"
    )
    desired = world.write(text).load()
    assert world.evaluator.seen["base"].checkpoint_path == Path("/ck/epoch_3")
    assert "base/finetune" not in keys(desired)


@pytest.mark.parametrize("named", ["{place}/model", "model", "../experiment/model"])
def test_an_eval_only_run_whose_checkpoint_is_not_there_is_at_fault_wherever_one_stands(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    text = GOOD.replace("| Rank |", "| Checkpoint Path |").replace(
        "| base | Control | - |", f"| base | eval-only | {named.format(place=world.directory)} |"
    )
    world.write(text).scaffold("r8", "base")
    (tmp_path / "model").touch()
    monkeypatch.chdir(tmp_path)  # a path is as the document has it, whoever asks from where
    missing = world.load()
    assert blocked(missing) == {"base/eval/cap_base": "NoCheckpoint"}
    (problem,) = missing.problems
    assert (problem.file.name, problem.line, problem.run, problem.warning) == ("experiment_summary.md", 8, "base", False)
    assert str(world.directory) in problem.message
    (world.directory / "model").mkdir()
    there = world.load()
    assert (blocked(there), there.problems) == ({}, ())
    assert world.evaluator.seen["base"].checkpoint_path == world.directory / named.format(place=world.directory)


def test_a_checkpoint_that_cannot_be_looked_at_is_not_missing(world: World, tmp_path: Path) -> None:
    text = GOOD.replace("| Rank |", "| Checkpoint Path |").replace(
        "| base | Control | - |", f"| base | eval-only | {tmp_path / 'file' / 'model'} |"
    )
    world.write(text).scaffold("r8", "base")
    loop = tmp_path / "file"
    loop.symlink_to(loop)
    assert not blocked(world.load())


# --- faults of one run ---------------------------------------------------------------------------


def blocked(desired: Desired) -> dict[str, str]:
    return {step.key: step.blocked.code for step in desired.steps if step.blocked}


def test_a_control_run_with_an_epoch_is_at_fault_alone(world: World) -> None:
    desired = world.write(GOOD.replace("| base | ✓ |", "| base | ✓ epoch 0 |")).load()
    (problem,) = desired.problems
    assert (problem.run, problem.line) == ("base", 15)
    assert "names an epoch" in problem.message
    assert blocked(desired) == {"base/eval/cap_base": "Blocked"}


def test_a_fault_that_the_tool_finds_blocks_the_steps_of_its_run(world: World) -> None:
    (world.write(GOOD).scaffold("r8").directory / "r8" / "broken").touch()
    desired = world.load()
    assert blocked(desired) == {"r8/finetune": "Blocked"}
    step = desired.step("r8/finetune")
    assert step is not None
    assert step.blocked is not None
    assert "is broken" in step.blocked.message


def test_a_last_epoch_that_nobody_knows_blocks_the_run(world: World) -> None:
    desired = world.write(GOOD.replace("- **Epochs:** 2\n", "").replace("✓ epoch 0,1", "✓")).load()
    assert blocked(desired) == {"r8/finetune": "Blocked"}
    assert "accepted: `✓ epoch 0`" in desired.problems[0].message
    assert desired.hidden == ("r8",)


def test_a_fault_that_leaves_no_step_of_its_run_hides_what_there_is_to_do(world: World) -> None:
    world.write(GOOD)
    assert world.load().hidden == ()
    world.evaluator.hides = "base"
    desired = world.load()
    assert keys(desired) == ["r8/finetune", "r8/eval/cap_epoch0", "r8/eval/cap_epoch1"]
    assert desired.hidden == ("base",)


def test_a_run_that_trains_inside_the_directory_of_another_blocks_both(world: World) -> None:
    three = GOOD.replace("| base |", "| r9 | Fine-tuned | 9 |\n| r10 | Fine-tuned | 10 |\n| base |", 1)
    world.write(three).scaffold("r8", "r9", "r10")
    for run, output in (("r8", "/scratch/same"), ("r9", "/scratch/same/deeper/still"), ("r10", "/scratch/samest")):
        (world.directory / run / "output_dir").write_text(output)
    assert {step.run for step in world.load().steps if step.blocked} == {"r8", "r9"}


def test_two_runs_that_train_into_one_directory_are_both_blocked(world: World) -> None:
    three = GOOD.replace("| base |", "| r9 | Fine-tuned | 9 |\n| r10 | Fine-tuned | 10 |\n| base |", 1)
    world.write(three).scaffold("r8", "r9", "r10")
    for run, output in (("r8", "/scratch/same"), ("r9", "/scratch/x/../same/"), ("r10", "/scratch/other")):
        (world.directory / run / "output_dir").write_text(output)
    desired = world.load()
    codes = blocked(desired)
    assert codes.pop("r8/finetune") == codes.pop("r9/finetune") == "OutputsShared"
    assert not any(key.startswith("r10/") for key in codes)
    assert {problem.run for problem in desired.problems} == {"r8", "r9"}


THREE = GOOD.replace("| base |", "| r9 | Fine-tuned | 9 |\n| r10 | Fine-tuned | 10 |\n| base |", 1)


def test_what_reads_an_epoch_of_another_run_needs_that_ones_fine_tune(world: World, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    (tmp_path / "link").symlink_to(scratch)
    rows = THREE.replace("| Rank |", "| Checkpoint Path |")
    rows = rows.replace("| base | Control | - |", f"| base | eval-only | {scratch}/r8/epoch_0 |")
    world.write(rows).scaffold("r8", "r9", "r10")
    (world.directory / "r8" / "output_dir").write_text(str(scratch / "r8"))
    (world.directory / "r9" / "base").write_text(str(tmp_path / "link" / "r8" / "epoch_1"))
    (world.directory / "r10" / "base").write_text(str(scratch / "r8" / "epoch_9"))
    desired = world.load()
    found = {step.key: (step.need, step.sources, step.epoch_needed) for step in desired.steps}
    assert found["r8/finetune"] == (None, (), None)
    assert found["r9/finetune"] == ("r8/finetune", ("r8/finetune",), 1)
    assert found["r10/finetune"] == (None, ("r8/finetune",), None)
    assert found["base/eval/cap_base"] == ("r8/finetune", ("r8/finetune",), 0)
    assert not blocked(desired)


def test_what_can_be_no_path_is_no_ones_output(world: World) -> None:
    world.write(GOOD).scaffold("r8", "base")
    step = replace(world.load().step("base/eval/cap_base"), reads=(Path("/a\0b"), Path("/" + "x" * 5000)))
    assert linked((step,), Document("e", world.directory / "experiment_summary.md", "md", {}, ())) == ((step,), ())


def test_evaluations_that_log_into_another_experiment_are_blocked(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tmp_path / "original"
    (original / "base" / "eval").mkdir(parents=True)
    (original / "experiment_summary.yaml").touch()
    (tmp_path / "link").symlink_to(original)
    monkeypatch.chdir(original)
    world.write(GOOD).scaffold("r8", "base")
    leads = world.directory / "base" / "eval" / "leads"
    for place, is_blocked in (
        (tmp_path / "link" / "base" / "eval" / "logs", True),
        (tmp_path / "logs", False),
        (world.directory / "logs", False),
        (Path("/a\0b"), False),
    ):
        leads.write_text(str(place))
        desired = world.load()
        assert blocked(desired) == ({"base/eval/cap_base": "ScriptLeadsAway"} if is_blocked else {})
        told = [problem.message for problem in desired.problems if "another experiment" in problem.message]
        assert len(told) == is_blocked
    (tmp_path / "experiment_summary.md").touch()  # around both: no other one
    leads.write_text(str(tmp_path / "logs"))
    assert not blocked(world.load())


def test_runs_that_begin_from_one_another_are_blocked_and_what_begins_from_them_only_waits(world: World) -> None:
    world.write(THREE).scaffold("r8", "r9", "r10")
    for run, base in (("r8", "r9"), ("r9", "r8"), ("r10", "r8")):
        (world.directory / run / "output_dir").write_text(f"/scratch/{run}")
        (world.directory / run / "base").write_text(f"/scratch/{base}/epoch_0")
    desired = world.load()
    assert {key: code for key, code in blocked(desired).items() if "finetune" in key} == {
        "r8/finetune": "Circle",
        "r9/finetune": "Circle",
    }
    assert "begins from its own outputs, by way of r9/finetune, r8/finetune" in desired.problems[0].message
    assert [(problem.run, problem.line) for problem in desired.problems] == [("r8", 7), ("r9", 8)]
    assert desired.step("r10/finetune").need == "r8/finetune"


def test_a_run_whose_directory_leads_out_of_the_experiment_is_blocked(world: World, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (world.write(GOOD).directory / "r8").symlink_to(tmp_path / "elsewhere")
    desired = world.load()
    assert set(blocked(desired)) == {"r8/finetune", "r8/eval/cap_epoch0", "r8/eval/cap_epoch1"}
    assert "leads out of the experiment" in desired.problems[0].message


def test_a_scaffolded_directory_that_is_not_listed_is_only_a_warning(world: World) -> None:
    world.write(GOOD).scaffold("r8", "base", "r77", ".hidden")
    (world.directory / "notes").mkdir()
    (problem,) = world.load().problems
    assert problem.warning
    assert "`r77` is scaffolded but not listed" in problem.message


@pytest.mark.parametrize(
    ("name", "is_scaffolded"), [("eval", True), ("train.slurm", True), ("notes.txt", False), ("data", False)]
)
def test_a_directory_is_scaffolded_where_it_has_a_script_or_what_runs_of_this_experiment_have(
    world: World, name: str, is_scaffolded: bool
) -> None:
    world.write(GOOD).scaffold("r8", "base")
    (world.directory / "r77" / name).mkdir(parents=True)
    assert [problem.warning for problem in world.load().problems] == [True] * is_scaffolded


def test_a_directory_that_spells_the_name_in_another_unicode_form_is_the_runs(world: World) -> None:
    composed, apart = unicodedata.normalize("NFC", "é8"), unicodedata.normalize("NFD", "é8")
    desired = world.write(GOOD.replace("r8", composed)).scaffold(apart).load()
    assert world.trainer.seen[composed].directory.name == apart
    assert desired.problems == ()


# --- the YAML form -------------------------------------------------------------------------------

YAML = """experiment: {name: small}
controls: {epochs: 2}
runs:
  - name: r8
    type: fine-tuned
  - name: base
    type: control
  - name: old
    type: eval-only
    checkpoint_path: /ck/old
evaluation:
  tasks:
    - name: cap
  matrix:
    - run: r8
      tasks: [cap]
    - run: base
      tasks: [cap]
      epochs: null
    - {run: old, tasks: [cap], epochs: null}
"""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (GOOD.replace("| base | Control |", "| base | eval-only |"), "experiment_summary.md"),
        (YAML.replace("    checkpoint_path: /ck/old\n", ""), "experiment_summary.yaml"),
    ],
)
def test_an_eval_only_run_that_names_no_checkpoint_is_at_fault_alone(world: World, text: str, name: str) -> None:
    desired = world.write(text, name).load()
    assert [p.run for p in desired.problems if not p.warning] == ["old" if name.endswith("yaml") else "base"]
    assert {step.run for step in desired.steps if step.blocked} == {"old" if name.endswith("yaml") else "base"}


YAML_FAULTS: list[tuple[str, str, int, str]] = [
    ("type: control", "type: base", 7, "`runs[1].type` is 'base'; accepted: `fine-tuned`, `control` or `eval-only`"),
    ("    type: control\n", "", 6, "`runs[1]` has no `type`; accepted: `fine-tuned`"),
    ("name: base", "name: r8", 6, "`r8` is already used on line 4"),
    ("name: r8", "name: 8", 4, "`runs[0].name` is 8; accepted: the name of the run's directory, in quotes"),
    ("name: r8", "name: ../r8", 4, "begins with `.`"),
    ("    type: control", "    type: control\n    type: control", 8, "the key `type` stands twice"),
    ("epochs: 2", "epochs: 0", 2, "`controls.epochs` is 0; accepted: a whole number from 1"),
    ("run: r8", "run: r9", 15, "`r9`, which is not listed"),
    ("tasks: [cap]", "tasks: [cop]", 16, "`cop` is not listed in `evaluation.tasks` (did you mean `cap`?)"),
    ("      epochs: null", "      epochs: [one]", 19, "accepted: an epoch, counted from 0"),
    ("runs:", "runs: [", 4, "is not YAML"),
    ("experiment: {name: small}", "tools: {preparation: dspy}\nexperiment: {name: small}", 1, "`dspy` is not known"),
    ("experiment: {name: small}", "", 1, "has no `experiment`; accepted: a map with at least a `name`"),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), YAML_FAULTS, ids=[fault[3] for fault in YAML_FAULTS])
def test_a_fault_of_the_yaml_form_is_told_with_its_line(world: World, old: str, new: str, line: int, message: str) -> None:
    assert old in YAML
    faults = world.write(YAML.replace(old, new, 1), "experiment_summary.yaml").faults()
    assert any(fault.startswith(f"experiment_summary.yaml:{line}: ") and message in fault for fault in faults), faults


def test_the_yaml_form_reads_every_type_of_run(world: World) -> None:
    desired = world.write(YAML, "experiment_summary.yaml").load()
    assert keys(desired) == ["r8/finetune", "r8/eval/cap_epoch1", "base/eval/cap_base", "old/eval/cap_base"]
    assert world.trainer.seen["r8"].checkpoint_dir == world.directory.resolve() / "r8" / "artifacts"
    assert world.evaluator.seen["old"].checkpoint_path == Path("/ck/old")
    assert world.evaluator.seen["old"].kind is RunKind.EVAL_ONLY


def test_a_yaml_document_builds_no_objects(world: World) -> None:
    marker = world.directory / "made"
    world.write(YAML + f"notes: !!python/object/apply:os.mkdir ['{marker}']\n", "experiment_summary.yaml")
    world.load()
    assert not marker.exists()


def test_aliases_that_unfold_without_bound_are_refused(world: World) -> None:
    laughs = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    text = "a0: &a0 [x]\n" + laughs + YAML.replace("[cap]", "*a11", 1)
    (fault,) = world.write(text, "experiment_summary.yaml").faults()
    assert "aliases (`*name`) unfold into too many values" in fault


def test_older_yaml_documents_name_their_output_directory(world: World) -> None:
    output = "output: {base_directory: /out/small, checkpoint_pattern: 'ck-out-{run_name}/epoch_{N}'}\n"
    world.write(YAML + output, "experiment_summary.yaml").load()
    assert world.trainer.seen["r8"].checkpoint_dir == Path("/out/small/ck-out-r8")


@pytest.mark.parametrize("text", ["just words", "- a\n- b\n", "a: b: c", "\x01", "--- \na: 1\n---\nb: 2\n", "runs: !!int abc"])
def test_yaml_that_is_no_experiment_is_a_fault_and_not_a_crash(text: str) -> None:
    with pytest.raises(InvalidExperiment):
        read_yaml(text, Path("experiment_summary.yaml"))


# --- any document --------------------------------------------------------------------------------

# An underscore that is not inside a word is emphasis to markdown, and to whoever reads it rendered: `_0_` is a slanted 0.
NAMES = st.from_regex(r"[A-Za-z0-9é模][A-Za-z0-9._+=@,é模-]{0,12}", fullmatch=True).filter(
    lambda name: not re.search(r"(?<![^\W_])_|_(?![^\W_])", name)
)
RUNS = st.lists(
    st.tuples(NAMES, st.sampled_from(["Fine-tuned", "Control"])), min_size=1, max_size=6, unique_by=lambda run: run[0]
)
DRESS = st.sampled_from(["{}", "**{}**", "`{}`", "  {}  ", "**`{}`**"])


@st.composite
def dressed_documents(draw: st.DrawFn) -> tuple[str, list[tuple[str, str]]]:
    runs = draw(RUNS)
    noise = draw(st.lists(st.sampled_from(["Model", "Rank", "Learning Rate", "Notes", "#"]), unique=True))
    columns = draw(st.permutations(["Run Name", "Type", *noise]))
    note = draw(st.sampled_from(["x", "", "a \\| b", "✓", "Control"]))
    dress = draw(DRESS)
    rows = [[{"Run Name": dress.format(name), "Type": kind}.get(column, note) for column in columns] for name, kind in runs]
    lines = [columns, ["---"] * len(columns), *rows]
    extra = draw(st.sampled_from(["", "\n", "\nSome words.\n", "\n```\n| Run Name | Type |\n|---|---|\n| no | Control |\n```\n"]))
    heading = draw(st.sampled_from(["## All Runs", "### all runs (many)", "## **All Runs**"]))
    text = f"# any\n{extra}\n{heading}\n{extra}\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
    ending = draw(st.sampled_from(["\n", "\r\n"]))
    return draw(st.sampled_from(["", "\n"])).join([text, ""]).replace("\n", ending), runs


@given(dressed_documents())
def test_noise_order_and_dress_change_nothing_about_the_runs(document: tuple[str, list[tuple[str, str]]]) -> None:
    text, runs = document
    found = read_markdown(text, Path("experiment_summary.md"))
    assert [(run.name, run.kind.value) for run in found.runs] == [(name, kind.casefold()) for name, kind in runs]
    assert found.problems == ()


@given(st.text())
def test_any_text_is_a_document_or_a_fault_but_never_a_crash(text: str) -> None:
    read_markdown(text, Path("experiment_summary.md"))
    with pytest.raises(InvalidExperiment):
        read_yaml(text, Path("experiment_summary.yaml"))
