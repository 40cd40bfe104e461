"""Make an experiment to try things on: ``new_experiment.py DEST`` fills the new directory DEST and prints the experiment's path.

DEST becomes a small lab: the experiment itself and, beside it, the base model, the data and tasks that it names, the empty
directory that its checkpoints go to, an environment to ``source`` in which ``tune`` and ``inspect`` are the stand-ins of
``trainers/``, and, once jobs have run, ``jobs.log`` with one line for each. Left as it is, the experiment is a copy of
``cap_4L_lora_lr/``; other runs, epochs or the odd form get the same scripts under a document of their own, and no settings.
Uses the standard library alone.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TEMPLATE = HERE / "cap_4L_lora_lr"
TEMPLATE_RUN = TEMPLATE / "r8_lr1e-5"
TEMPLATE_CONTROL = TEMPLATE / "1B_base"
MODEL = "Llama-3.2-1B-Instruct"
UNQUOTABLE = re.compile(r'["$`\\|\x00-\x1f]')


@dataclass(frozen=True)
class Evaluated:
    """One row of the evaluation plan: for each task the epochs to evaluate; no epochs for a task left out."""

    run: str
    tasks: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Outline:
    """What a made-up experiment consists of."""

    name: str
    task_file: str
    tasks: tuple[str, ...]
    epochs: int
    rows: tuple[Evaluated, ...]
    control: str

    @property
    def runs(self) -> tuple[str, ...]:
        return tuple(row.run for row in self.rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make an experiment for trying things out; prints its path.")
    parser.add_argument("dest", type=Path, metavar="DEST", help="a new or empty directory")
    parser.add_argument("--runs", type=int, help="how many fine-tuned runs, with names made up (beside one control)")
    parser.add_argument(
        "--run", action="append", default=[], metavar="NAME", help="a fine-tuned run of this name; may be repeated"
    )
    parser.add_argument("--epochs", type=int, help="epochs of each fine-tune")
    parser.add_argument(
        "--odd", action="store_true", help="a document as people write them: two tasks, more columns, bold, backticks"
    )
    parser.add_argument("--crlf", action="store_true", help="the document's lines end in CRLF")
    given = parser.parse_args(arguments)

    root = given.dest.resolve()
    if UNQUOTABLE.search(str(root)):
        parser.error(f'{root}: scripts and documents cannot quote " $ ` \\ | in a path: choose another directory')
    if root.exists() and any(root.iterdir()):
        parser.error(f"{root}: is not empty")
    make_lab(root)
    if given.runs or given.run or given.epochs or given.odd:
        names = [*given.run, *made_up_names(given.runs or 0, odd=given.odd)] or made_up_names(4, odd=given.odd)
        outline = outline_twins(names, given.epochs or 2) if given.odd else outline_capitalization(names, given.epochs or 1)
        experiment = make_experiment(root, outline, odd_document(root, outline) if given.odd else plain_document(root, outline))
    else:
        experiment = copy_template(root)
    if given.crlf:
        document = experiment / "experiment_summary.md"
        document.write_bytes(document.read_bytes().replace(b"\n", b"\r\n"))
    print(experiment)


def make_lab(root: Path) -> None:
    """What stands around an experiment: model, data, tasks, and the environment with the stand-ins on its PATH."""
    shutil.copytree(HERE / "trainers" / "seeds" / "base", root / "models" / MODEL)
    shutil.copytree(HERE / "data", root / "data")
    shutil.copytree(HERE / "tasks", root / "tasks")
    path = ":".join(shlex.quote(str(directory)) for directory in (HERE / "trainers", Path(sys.executable).parent))
    activate = root / "venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f"export PATH={path}:$PATH\n", encoding="utf-8")


def copy_template(root: Path) -> Path:
    """The example as it stands in the repository, at home in ``root``."""
    experiment = root / TEMPLATE.name
    for source in sorted(path for path in TEMPLATE.rglob("*") if path.is_file()):
        write(experiment / source.relative_to(TEMPLATE), fill(source, {"@ROOT@": str(root)}))
    (root / "ck-outputs" / experiment.name).mkdir(parents=True)
    return experiment


def make_experiment(root: Path, outline: Outline, document: str) -> Path:
    """The scaffolding of ``outline``, each run's scripts made from the template's, under ``document``."""
    experiment = root / outline.name
    words = {
        "@ROOT@": str(root),
        TEMPLATE.name: outline.name,
        "cap_task": outline.task_file,
        "epochs: 1": f"epochs: {outline.epochs}",
    }
    for row in outline.rows:
        run, named = experiment / row.run, words | {TEMPLATE_RUN.name: row.run}
        for script in ("finetune.slurm", "finetune.yaml"):
            write(run / script, fill(TEMPLATE_RUN / script, named))
        evaluation = TEMPLATE_RUN / "eval" / "capitalization_epoch0.slurm"
        for task, epochs in row.tasks.items():
            for n in epochs:
                numbered = {f"epoch{sign}0": f"epoch{sign}{n}" for sign in ("", "_", "=")}
                write(run / "eval" / f"{task}_epoch{n}.slurm", fill(evaluation, named | numbered | {"capitalization": task}))
    for task in outline.tasks:
        evaluation = TEMPLATE_CONTROL / "eval" / "capitalization_base.slurm"
        named = words | {TEMPLATE_CONTROL.name: outline.control, "capitalization": task}
        write(experiment / outline.control / "eval" / f"{task}_base.slurm", fill(evaluation, named))
    write(experiment / "experiment_summary.md", document)
    (root / "ck-outputs" / outline.name).mkdir(parents=True)
    return experiment


def fill(template: Path, words: Mapping[str, str]) -> str:
    """The template's text with each word replaced, in one go so that no replacement is replaced again."""
    text = template.read_text(encoding="utf-8")
    return re.sub("|".join(map(re.escape, words)), lambda match: words[match[0]], text)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")


# --- what made-up experiments consist of ---------------------------------------------------------


def made_up_names(count: int, *, odd: bool) -> list[str]:
    if odd:
        return [f"Llama-3.2-{'1B' if n % 2 == 0 else '3B'}_rank{4 * (n // 2 + 1)}" for n in range(count)]
    return [f"r{8 * (n // 2 + 1)}_lr{'1e-5' if n % 2 == 0 else '5e-5'}" for n in range(count)]


def outline_capitalization(names: Sequence[str], epochs: int) -> Outline:
    """One task, evaluated after the last epoch."""
    rows = tuple(Evaluated(name, {"capitalization": [epochs - 1]}) for name in names)
    return Outline("cap_4L_lora_lr", "cap_task", ("capitalization",), epochs, rows, "1B_base")


def outline_twins(names: Sequence[str], epochs: int) -> Outline:
    """Two tasks: one evaluated after every epoch, the other after the last and for every second run only."""
    rows = tuple(
        Evaluated(name, {"twins_task": range(epochs), "twins_unseen": [epochs - 1] if n % 2 == 0 else []})
        for n, name in enumerate(names)
    )
    return Outline("twins_model_sizes", "twins_task", ("twins_task", "twins_unseen"), epochs, rows, "Llama-3.2-1B_base")


# --- documents -----------------------------------------------------------------------------------


def table(*rows: Sequence[object]) -> str:
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def cell(epochs: Sequence[int]) -> str:
    return f"✓ epoch {','.join(map(str, epochs))}" if epochs else "-"


def plain_document(root: Path, outline: Outline) -> str:
    """A document in the form of the template's."""
    runs = [(name, MODEL, "Fine-tuned") for name in outline.runs]
    matrix = [(row.run, *(cell(row.tasks[task]) for task in outline.tasks), "") for row in outline.rows]
    return f"""# {outline.name}

## Tools

- **Model Preparation:** torchtune
- **Evaluation:** inspect-ai

## All Runs

{table(("Run Name", "Model", "Type"), *runs, (outline.control, MODEL, "Control"))}

## Evaluation Plan

{table(("Run Name", *outline.tasks, "Notes"), *matrix, (outline.control, *("✓" for _ in outline.tasks), "Base control"))}

## Configuration

### Training
- **Recipe:** lora_finetune_single_device
- **Epochs:** {outline.epochs}

### Output
- **Checkpoint directory**: `{root}/ck-outputs/{outline.name}`
- **Naming pattern**: `ck-out-{{run_name}}/epoch_{{N}}`
"""


def odd_document(root: Path, outline: Outline) -> str:
    """The same content as somebody in a hurry writes it, with a table that means nothing and status tables begun by hand."""
    runs = [
        (n, f"`{name}`", "Fine-tuned", MODEL, outline.epochs, "80 GB nodes \\| see wiki")
        for n, name in enumerate(outline.runs, 1)
    ]
    matrix = [(row.run, "", *(cell(row.tasks[task]) for task in reversed(outline.tasks))) for row in outline.rows]
    matrix.append((outline.control, "base control", *("✓" for _ in outline.tasks)))
    control = (len(runs) + 1, f"`{outline.control}`", "Control", MODEL, "-", "")
    return f"""# {outline.name}

## Overview
Synthetic twins: does a larger model need fewer epochs?

## All Runs ({len(runs) + 1} total)

{table(("#", "**Run Name**", "Type", "Model", "Epochs", "Notes"), *runs, control)}

## Evaluation Plan

### Evaluation Matrix
{table(("Run Name", "Notes", *reversed(outline.tasks)), *matrix)}

A run table looks like this (do not copy it as is):

```markdown
{table(("Run Name", "Type"), ("example_run", "Fine-tuned"))}
```

## Configuration

**Training**
- **Recipe:** lora_finetune_single_device
- **Epochs:** {outline.epochs}

**Output**
- **Checkpoint directory:** `{root}/ck-outputs/{outline.name}/`
- **Naming pattern:** `ck-out-{{run_name}}/epoch_{{N}}`

## Fine-tuning Status

{table(FINETUNE_STATUS, (outline.runs[0], "PENDING", "-", "-", "-", "ask Ana before cancelling"))}

## Evaluation Status

{table(EVALUATION_STATUS)}

## Quick Reference

**Next Steps:** write the analysis once all runs are in.
"""


FINETUNE_STATUS = ("Run Name", "Status", "Job ID", "Started", "Completed", "Notes")
EVALUATION_STATUS = ("Run Name", "Task", "Epoch", "Status", "Job ID", "Completed", "Notes")


if __name__ == "__main__":
    main()
