"""A renamed run: what is done stays done, nothing is submitted twice, and what is interrupted is finished by the same words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from reconciler import renaming
from reconciler.errors import ReconcileError, UsageError
from reconciler.experiment.renamed_text import mentions, rename_in_document
from reconciler.loop import preview
from reconciler.model import Condition, Stage
from reconciler.published import explained
from reconciler.render import Paint, explain_text, status_text
from reconciler.schemas import schema
from test_pass import DOCUMENT, lab, order, start  # noqa: F401 - the fixture
from worlds import StandInTool


def say_rename(world, old="a", new="c"):
    return renaming.rename(world.scene, old, new, "a better name", lambda prospect: True)


@pytest.fixture
def done(lab):  # noqa: F811
    """Run ``a`` is trained, and its evaluation failed."""
    lab.run()
    for key in ("a/finetune", "b/finetune", "base/eval/cap_base"):
        lab.finish(key)
    lab.run()
    lab.finish("a/eval/cap_epoch0", None, "FAILED")
    lab.finish("b/eval/cap_epoch0")
    lab.run()
    lab.run()
    return lab


def test_what_is_done_stays_done_and_what_failed_stays_failed(done):
    submitted = len(done.cluster.submissions)
    say_rename(done)
    seen = done.run()
    assert seen.plan.of("c/finetune").condition is Condition.DONE
    assert seen.plan.of("c/eval/cap_epoch0").condition is Condition.FAILED
    assert len(done.cluster.submissions) == submitted
    assert not (done.directory / "a").exists()
    assert seen.notes == ()
    text = done.document.read_text()
    assert text.startswith(DOCUMENT.replace("| a |", "| c |"))
    assert "| a |" not in text
    assert text.count("| c | COMPLETED |") == 1
    order(done, "release", "c/eval/cap_epoch0")
    done.run()
    job = done.cluster.submissions[-1]
    assert (job.script.parent.parent.name, job.name.endswith("-2")) == ("c", True)


def test_what_still_has_the_old_name_is_told_and_what_is_rewritten_is_not(done):
    text = done.document.read_text()
    done.document.write_text(f"{text}\nThe run a is the baseline.\n")
    heard = []
    told = renaming.rename(done.scene, "a", "c", "", lambda prospect: heard.append(prospect) or True)
    line = done.document.read_text().splitlines().index("The run a is the baseline.") + 1
    [about_lines] = [d.message for d in told if "still named" in d.message]
    assert about_lines == f"only tables are rewritten; a is still named in line {line} of experiment_summary.md"
    assert about_lines in heard[0].sentences


def test_a_run_whose_end_is_not_in_writing_yet_tells_the_way_out(lab):  # noqa: F811
    lab.run()
    lab.finish("a/finetune")
    with pytest.raises(UsageError, match="a/finetune: its end is not in writing yet; `reconcile apply` writes it down first"):
        say_rename(lab)
    order(lab, "hold", "a/eval/cap_epoch0")
    lab.run()
    say_rename(lab)
    assert lab.conditions()["c/finetune"] is Condition.DONE


def test_a_renaming_is_told_by_explain_with_both_names(done):
    say_rename(done)
    assert "rename a → c by u: a better name" in explain_text(preview(done.scene), "c/finetune")
    jsonschema.validate(explained(preview(done.scene), "c/finetune"), schema("explanation"))


def test_a_renaming_is_told_of_the_run_by_all_its_names_and_of_no_other_run(done):
    say_rename(done)
    say_rename(done, "c", "d")
    told = explained(preview(done.scene), "d/finetune")["words"]
    assert [word["about"] for word in told if word["verb"] == "rename"] == ["a → c", "c → d"]
    assert "rename" not in explain_text(preview(done.scene), "b/finetune")


def test_a_renaming_is_undone_by_its_opposite(done):
    before = done.document.read_bytes()
    say_rename(done)
    done.run()
    say_rename(done, "c", "a")
    assert done.document.read_bytes() == before
    submitted = len(done.cluster.submissions)
    done.run()
    assert len(done.cluster.submissions) == submitted
    assert done.conditions()["a/finetune"] is Condition.DONE


def test_what_the_ledger_tells_of_files_in_the_runs_directory_moves_with_them(done):
    order(done, "release", "a/eval/cap_epoch0")
    done.run()
    done.finish("a/eval/cap_epoch0")
    done.run()
    say_rename(done)
    memory = preview(done.scene).memory.of("c/finetune")
    assert [Path(file["path"]).is_file() for file in memory.done.evidence] == [True]
    assert memory.attempts[-1].output_dir == str(done.directory / "c" / "out" / "finetune")
    assert say_rename(done, "c", "a")
    assert [Path(file["path"]).is_file() for file in preview(done.scene).memory.of("a/finetune").done.evidence] == [True]


def test_a_configuration_that_puts_outputs_into_the_runs_directory_by_its_full_path_keeps_its_name(done):
    order(done, "release", "a/eval/cap_epoch0")
    done.run()
    done.finish("a/eval/cap_epoch0")
    done.run()
    tools = {name: _Configured(tool.stage) for name, tool in done.scene.tools.items()}
    config = done.directory / "a" / "finetune.yaml"
    config.write_text(f"output_dir: {done.directory / 'a' / 'out' / 'finetune'}\n")
    before = done.tree()
    with pytest.raises(UsageError, match=r"finetune.yaml:1 name the directory of a in full.*relative path there$"):
        renaming.rename(replace(done.scene, tools=tools), "a", "c", "", lambda prospect: True)
    assert done.tree() == before
    config.write_text("output_dir: out/finetune\n")
    assert renaming.rename(replace(done.scene, tools=tools), "a", "c", "", lambda prospect: True)


class _Configured(StandInTool):
    """One whose outputs stand where ``finetune.yaml`` says."""

    def _step(self, run, key, script):
        return replace(super()._step(run, key, script), config="finetune.yaml", files=(script.with_name("finetune.yaml"),))


def test_a_new_run_of_the_old_name_is_another_run(done):
    say_rename(done)
    names = {job.name for job in done.cluster.submissions}
    (done.directory / "a").mkdir()
    (done.directory / "a" / "finetune.slurm").write_text("#!/bin/bash\necho train\n")
    done.document.write_text(done.document.read_text().replace("| base | Control |", "| base | Control |\n| a | Fine-tuned |"))
    done.run()
    assert done.conditions()["a/finetune"] is Condition.QUEUED
    assert done.conditions()["c/finetune"] is Condition.DONE
    assert done.cluster.submissions[-1].name not in names
    done.finish("a/finetune")
    done.run()
    assert done.conditions()["a/finetune"] is Condition.DONE


def test_a_run_with_a_live_job_keeps_its_name(lab):  # noqa: F811
    lab.run()
    before = lab.tree()
    with pytest.raises(UsageError, match="may be live"):
        say_rename(lab)
    start(lab, "a/finetune")
    with pytest.raises(UsageError, match="may be live"):
        say_rename(lab)
    assert {k: v for k, v in lab.tree().items() if "lock" not in k} == {k: v for k, v in before.items() if "lock" not in k}


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("z", "c", "no run"),
        ("a", "b", "already"),
        ("a", "../c", "begins"),
        ("a", "c/d", "contains"),
        ("a", "", "is empty"),
        ("a", "-c", "begins"),
        ("a", "taken", "already"),
    ],
)
def test_a_name_that_is_not_fit_is_refused_and_nothing_is_done(done, old, new, match):
    (done.directory / "taken").mkdir()
    before = done.tree()
    with pytest.raises(UsageError, match=match):
        say_rename(done, old, new)
    assert done.tree() == before


def test_scripts_that_name_their_directory_in_full_are_not_broken(done):
    script = done.directory / "a" / "eval" / "cap_epoch0.slurm"
    script.write_text(f"#!/bin/bash\ncd {done.directory}/a/eval\necho eval\n")
    with pytest.raises(UsageError, match=r"cap_epoch0.slurm:2 name the directory of a in full"):
        say_rename(done)
    script.write_text(f"#!/bin/bash\ncd {done.directory}/ab/eval\necho eval\n")
    say_rename(done)


def with_files(lab, name, *stages):  # noqa: F811
    """Its scene, with tools that scaffold this file beside each script, those of other stages excepted."""

    class Another(StandInTool):
        def _step(self, run, key, script):
            saves = {"checkpoints": {}} if self.stage is Stage.EVALUATION else {}
            return replace(super()._step(run, key, script), files=(run.directory / name,), **saves)

    tools = lab.scene.tools.values()
    return replace(lab.scene, tools={tool.name: Another(tool.stage) if tool.stage in stages else tool for tool in tools})


def test_whatever_a_tool_was_scaffolded_with_is_looked_at_and_nothing_else(done):
    scene = with_files(done, "conf/train.toml", *Stage)
    for name in ("conf/train.toml", "finetune.yaml"):
        path = done.directory / "a" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"data = {done.directory}/a/data\n")
    with pytest.raises(UsageError, match=r"conf/train.toml:1 name the directory of a in full"):
        renaming.rename(scene, "a", "c", "", lambda prospect: True)
    (done.directory / "a" / "conf" / "train.toml").write_text("data = ../data\n")
    assert renaming.rename(scene, "a", "c", "", lambda prospect: True)


def test_the_originals_of_what_was_edited_go_by_the_runs_name(done):
    originals = done.directory / ".reconcile" / "originals"
    for run, text in (("a", "mine"), ("c", "of an earlier run")):
        (originals / run).mkdir(parents=True)
        (originals / run / "finetune.yaml").write_text(text)
    say_rename(done)
    assert (originals / "c" / "finetune.yaml").read_text() == "mine"
    assert not (originals / "a").exists()
    (aside,) = originals.glob("moved-aside-*/c/finetune.yaml")
    assert aside.read_text() == "of an earlier run"


@pytest.mark.parametrize(
    ("line", "is_refused"),
    [
        ("cd {exp}/a/eval", True),
        ('cd "{alias}/a"', True),
        ("inspect eval --model hf/{exp}/a/out", True),
        ("cd ../../../exp/a", True),
        ("cd $ROOT/exp/a", True),
        ("cd $LAB_OF_TEST/exp/a", True),
        ("cd {exp}/ab", False),
        ("cd {lab}/out/exp/a/artifacts", False),
        ("cd ../../../out/exp/a", False),
        ("cd ../../a/eval", False),
        ("cd $LAB_OF_TEST/out/exp/a", False),
    ],
)
def test_only_a_path_through_the_experiments_own_directory_would_miss_a_renamed_run(done, monkeypatch, line, is_refused):
    """Outputs may stand in ``out/exp/a``, which has the same names in it and stays."""
    lab = done.directory.parent  # noqa: F811
    (lab / "alias").symlink_to(done.directory)
    monkeypatch.setenv("LAB_OF_TEST", str(lab))
    monkeypatch.delenv("ROOT", raising=False)
    script = done.directory / "a" / "eval" / "cap_epoch0.slurm"
    script.write_text(f"#!/bin/bash\n{line}\n".format(exp=done.directory, alias=lab / "alias", lab=lab))
    if is_refused:
        with pytest.raises(UsageError, match=r"cap_epoch0.slurm:2 name the directory of a in full"):
            say_rename(done)
    else:
        say_rename(done)
    assert (done.directory / "a").exists() is is_refused


def test_lines_that_name_the_old_directory_are_told_where_they_are_by_then_and_counted(done):
    order(done, "release", "a/eval/cap_epoch0")
    done.run()
    done.finish("a/eval/cap_epoch0")
    done.run()
    (done.directory / "a" / "finetune.yaml").write_text(f"# {done.directory}/a\n" * 5)
    deeds = renaming.rename(with_files(done, "finetune.yaml", Stage.EVALUATION), "a", "c", "", lambda prospect: True)
    told = [deed.message for deed in deeds if "old directory" in deed.message]
    config = done.directory / "c" / "finetune.yaml"
    assert config.is_file()
    assert told == [
        f"{config}:1, {config}:2, {config}:3 and 2 more name the old directory, and would need a change before a rerun"
    ]


STAGES = ("_move", "_move_originals", "append:renamed", "_write", "append:rename-ended")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("passes", [0, 2])
def test_a_kill_at_any_point_submits_nothing_and_the_same_words_finish(done, monkeypatch, stage, passes):
    real_move, real_write, real_append = renaming._move, renaming._write, renaming.Ledger.append

    def killed(*_):
        raise KeyboardInterrupt

    def append(self, event, **facts):
        if stage == f"append:{event}":
            raise KeyboardInterrupt
        real_append(self, event, **facts)

    monkeypatch.setattr(renaming, "_move", killed if stage == "_move" else real_move)
    if stage == "_move_originals":
        monkeypatch.setattr(renaming, "_move_originals", killed)
    monkeypatch.setattr(renaming, "_write", killed if stage == "_write" else real_write)
    monkeypatch.setattr(renaming.Ledger, "append", append)
    original = done.directory / ".reconcile" / "originals" / "a" / "finetune.yaml"
    original.parent.mkdir(parents=True)
    original.write_text("mine")
    submitted = len(done.cluster.submissions)
    with pytest.raises(KeyboardInterrupt):
        say_rename(done)
    monkeypatch.undo()
    for _ in range(passes):
        done.run(1000)
    assert len(done.cluster.submissions) == submitted
    with pytest.raises(UsageError, match="was interrupted"):
        say_rename(done, "b", "d")
    say_rename(done)
    seen = done.run()
    done.run()
    assert len(done.cluster.submissions) == submitted
    assert seen.plan.of("c/finetune").condition is Condition.DONE
    assert seen.plan.of("c/eval/cap_epoch0").condition is Condition.FAILED
    assert (done.directory / "c").is_dir()
    assert (original.parent.with_name("c") / "finetune.yaml").read_text() == "mine"
    assert not original.parent.exists()
    assert "| a |" not in done.document.read_text()
    assert preview(done.scene).memory.renaming is None


def test_the_yaml_form_is_renamed_where_it_names_the_run_and_nowhere_else():
    text = """# a is the run
experiment: {name: "two", dir: "/nowhere", date: "2026-01-01"}
tools: {preparation: torchtune, evaluation: inspect-ai}
models: {base: [{name: "a", path: "/m"}]}
runs:
  - {name: a, type: fine-tuned, model: a, parameters: {}}  # a
  - name: 'a b'
    type: control
    model: a
    parameters: {}
evaluation:
  tasks: [{name: cap, script: "/t.py"}]
  matrix:
    - {run: a, tasks: [cap], epochs: [0]}
    - run:   "a"
      tasks: [cap]
"""
    path = Path("experiment_summary.yaml")
    expected = (
        text.replace("{name: a, type", '{name: "1", type').replace("{run: a,", '{run: "1",').replace('run:   "a"', 'run:   "1"')
    )
    assert rename_in_document(text, path, "a", "1") == expected
    assert "name: c, type" in rename_in_document(text, path, "a", "c")
    assert 'name: "c b"\n' in rename_in_document(text, path, "a b", "c b")


def test_the_markdown_form_keeps_bold_cells_code_and_line_ends_as_they_are():
    text = (
        DOCUMENT.replace("| a | Fine-tuned |", "|  **`a`** | Fine-tuned |").replace("\n", "\r\n") + "\r\nSee a, and not ab.\r\n"
    )
    after = rename_in_document(text, Path("experiment_summary.md"), "a", "c")
    assert after == text.replace("**`a`**", "**`c`**").replace("| a | ✓", "| c | ✓")
    assert len(mentions(after, "a")) == 1


def test_a_document_that_cannot_be_rewritten_safely_stops_before_anything_is_done(done):
    done.document.write_text(done.document.read_text().replace("| a | Fine-tuned |", "| &#97; | Fine-tuned |"))
    before = done.tree()
    with pytest.raises(ReconcileError, match="nothing was renamed"):
        say_rename(done)
    assert done.tree() == before


def test_an_interrupted_renaming_is_shown_and_a_directory_spelled_in_another_form_is_found(done, monkeypatch):
    text = done.document.read_text().replace("| a |", "| \u00e9 |")
    done.document.write_text(text)
    (done.directory / "a").rename(done.directory / "e\u0301")
    done.run()
    done.finish("\u00e9/eval/cap_epoch0")
    done.run()
    monkeypatch.setattr(renaming, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        say_rename(done, "\u00e9", "c")
    monkeypatch.undo()
    assert "was interrupted; `reconcile rename \u00e9 c` finishes it" in status_text(preview(done.scene), Paint())
    say_rename(done, "\u00e9", "c")
    assert (done.directory / "c" / "finetune.slurm").is_file()
    assert "was interrupted" not in status_text(preview(done.scene), Paint())
