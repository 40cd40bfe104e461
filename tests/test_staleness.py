"""Results of older versions: shown by what changed, done again where a person says so, and never for what nobody knows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.errors import UsageError
from reconciler.loop import preview, run_pass
from reconciler.model import Condition, Phase, Verb
from reconciler.published import status_json
from reconciler.render import Paint, diff_text, explain_text, status_text
from reconciler.staleness import drift
from test_pass import Lab, lab, order  # noqa: F401 - the fixture
from worlds import StandInTool, decide, done, finetune, job, submitted

EVALUATIONS = ("a/eval/cap_epoch0", "b/eval/cap_epoch0", "base/eval/cap_base")


@pytest.fixture
def evaluated(lab):  # noqa: F811
    """Everything is done, by a task file that is in writing."""
    (lab.directory / "task.py").write_text("version 1")
    _converge(lab)
    return lab


def _converge(world: Lab) -> None:
    for _ in range(2):
        world.run()
        for key, condition in world.conditions().items():
            if condition is Condition.QUEUED:
                world.finish(key)
    assert world.run().converged


def test_evaluations_by_an_older_task_file_are_shown_and_done_again_by_rerun_stale(evaluated):
    (evaluated.directory / "task.py").write_text("version 2")
    evaluated.run()
    assert [evaluated.conditions()[key] for key in EVALUATIONS] == [Condition.DRIFTED] * 3
    seen = preview(evaluated.scene)
    assert "used an older version of its task file task.py" in seen.plan.of(EVALUATIONS[0]).reason.message
    for text in (diff_text(seen, Paint()), status_text(seen, Paint())):
        assert "3 evaluations used an older version (task file task.py); `reconcile rerun --stale`" in text
    assert "task file task.py changed since" in explain_text(seen, EVALUATIONS[0])
    assert "task file task.py changed since" in diff_text(seen, Paint())
    assert [step["stale"] for step in status_json(seen)["steps"]].count(["task file task.py"]) == 3
    before = len(evaluated.cluster.submissions)
    order(evaluated, "rerun", "*", stale=True)
    evaluated.run()
    assert len(evaluated.cluster.submissions) == before + 3
    evaluated.now += 100
    for key in EVALUATIONS:
        evaluated.finish(key)
    assert evaluated.run().converged
    assert "no result" in order(evaluated, "rerun", "*", stale=True)[0].message


def test_accept_lets_a_result_of_the_older_task_file_stand(evaluated):
    (evaluated.directory / "task.py").write_text("version 2")
    order(evaluated, "accept", *EVALUATIONS)
    assert evaluated.run().converged
    assert preview(evaluated.scene).memory.of(EVALUATIONS[0]).done.evidence


def test_a_task_file_that_changed_between_submission_and_end_is_the_one_submitted(lab):  # noqa: F811
    (lab.directory / "task.py").write_text("version 1")
    lab.run()
    (lab.directory / "task.py").write_text("version 2")
    lab.finish("base/eval/cap_base")
    lab.run()
    assert lab.conditions()["base/eval/cap_base"] is Condition.DRIFTED


def test_a_task_file_that_cannot_be_read_or_was_never_in_writing_is_no_drift(evaluated):
    (evaluated.directory / "task.py").unlink()
    assert evaluated.run().converged


def test_results_of_a_version_that_did_not_know_of_task_files_do_not_drift(lab):  # noqa: F811
    _converge(lab)
    (lab.directory / "task.py").write_text("version 2")
    assert lab.run().converged


def test_a_fine_tune_that_was_done_again_leaves_its_evaluation_done_and_stale(evaluated):
    order(evaluated, "rerun", "a/finetune")
    evaluated.run()
    assert not status_json(preview(evaluated.scene))["steps"][1]["stale"]
    evaluated.finish("a/finetune")
    evaluated.run()
    seen = preview(evaluated.scene)
    assert seen.plan.of(EVALUATIONS[0]).condition is Condition.DONE
    assert "a/finetune was trained anew since" in seen.plan.of(EVALUATIONS[0]).reason.message
    assert "1 evaluation used an older version (checkpoint)" in status_text(seen, Paint())
    order(evaluated, "rerun", "*", stale=True)
    evaluated.run()
    assert evaluated.conditions()[EVALUATIONS[0]] is Condition.QUEUED
    assert evaluated.conditions()[EVALUATIONS[1]] is Condition.DONE


def test_a_selection_for_rerun_stale_still_has_to_name_steps(evaluated):
    with pytest.raises(UsageError, match="no step matches"):
        order(evaluated, "rerun", "z/*", stale=True)


def test_a_changed_definition_is_told_by_its_file():
    before = replace(finetune(), definition="old", meaning={"lr": "1e-5", "finetune.slurm": "commands ab"})
    now = replace(finetune(), config="finetune.yaml", meaning={"lr": "5e-5", "finetune.slurm": "commands ab"})
    action = decide(now, events=[done(before)])
    assert "finetune.yaml: lr 1e-5 → 5e-5" in action.reason.message
    assert action.changes == ("finetune.yaml: lr 1e-5 → 5e-5",)
    assert drift({"eval.yaml:limit": "1", "x.slurm": "a"}, {"eval.yaml:limit": "2", "x.slurm": "b"}, "f.yaml") == (
        "eval.yaml:limit 1 → 2",
        "x.slurm a → b",
    )


def test_what_was_made_from_a_checkpoint_is_of_its_last_result_and_not_of_what_is_wanted_by_now(lab):  # noqa: F811
    """The fine-tune drifts, its result is left to stand, and is then trained anew; only that makes its evaluation's outdated."""
    _converge(lab)
    script = lab.directory / "a" / "finetune.slurm"
    script.write_text(script.read_text() + "# and more\n")
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.DRIFTED
    assert lab.conditions()[EVALUATIONS[0]] is Condition.DONE
    order(lab, "accept", "a/finetune")
    assert lab.run().converged
    assert "no result" in order(lab, "rerun", "*", stale=True)[0].message
    script.write_text(script.read_text() + "# and more\n")
    order(lab, "rerun", "a/finetune")
    lab.run()
    lab.finish("a/finetune")
    lab.run()
    assert lab.conditions()["a/finetune"] is Condition.DONE
    assert lab.conditions()[EVALUATIONS[0]] is Condition.DRIFTED
    assert "older version of its checkpoint" in preview(lab.scene).plan.of(EVALUATIONS[0]).reason.message


def test_what_was_made_from_a_checkpoint_stays_done_until_there_is_a_newer_one(lab):  # noqa: F811
    _converge(lab)
    script = lab.directory / "a" / "finetune.slurm"
    script.write_text(script.read_text() + "# and more\n")
    lab.run()
    order(lab, "rerun", "a/finetune")
    for _ in range(2):
        assert lab.conditions()[EVALUATIONS[0]] is Condition.DONE
        lab.run()
    order(lab, "rerun", "a/finetune", now=True)
    lab.run()
    assert lab.conditions()[EVALUATIONS[0]] is Condition.DONE
    lab.finish("a/finetune")
    lab.run()
    assert lab.conditions()[EVALUATIONS[0]] is Condition.DRIFTED


@pytest.mark.parametrize(("key", "file"), [("a/finetune", "a/finetune.slurm"), (EVALUATIONS[0], "task.py")])
def test_what_was_accepted_by_mistake_is_done_once_it_is_put_back(evaluated, key, file):
    path = evaluated.directory / file
    before = path.read_text()
    path.write_text(before + "# and more\n")
    order(evaluated, "accept", key)
    assert evaluated.conditions()[key] is Condition.DONE
    path.write_text(before)
    assert evaluated.conditions()[key] is Condition.DONE
    path.write_text(before + "# and other things\n")
    assert evaluated.conditions()[key] is Condition.DRIFTED


def test_a_fine_tune_that_drifted_while_it_ran_is_never_done_for_a_pass_and_nothing_follows_it(lab):  # noqa: F811
    key, script = "a/finetune", lab.directory / "a" / "finetune.slurm"
    tools = {name: _WithScript(tool.stage) for name, tool in lab.scene.tools.items()}
    scene = lambda: replace(lab.scene, tools=tools, clock=lambda: lab.now)  # noqa: E731
    run_pass(scene())
    script.write_text(script.read_text() + "# and more\n")
    lab.finish(key)
    before = preview(scene())
    assert (before.plan.of(key).verb, before.plan.of(key).condition) == (Verb.MARK_DONE, Condition.DRIFTED)
    assert before.plan.of(EVALUATIONS[0]).reason.code == "NeedBlocked"
    run_pass(scene())
    assert preview(scene()).plan.of(key).condition is Condition.DRIFTED
    assert [s.script.name for s in lab.cluster.submissions].count("cap_epoch0.slurm") == 0
    order(replace(lab), "accept", key)
    lab.run()
    assert lab.conditions()[EVALUATIONS[0]] is Condition.QUEUED
    lab.finish(EVALUATIONS[0])
    assert lab.run().plan.of(EVALUATIONS[0]).condition is Condition.DONE
    assert lab.conditions()[EVALUATIONS[0]] is Condition.DONE


class _WithScript(StandInTool):
    """One that tells the script's commands among what defines a step, as the tools do."""

    def _step(self, run, key, script):
        step = super()._step(run, key, script)
        return replace(step, meaning={script.name: f"commands {step.definition[:8]}"})


def test_a_job_whose_script_has_changed_since_is_shown_with_what_changed():
    step = replace(finetune(), meaning={"lr": "2", "finetune.slurm": "commands new"}, config="finetune.yaml")
    begun = submitted(step, meaning={"finetune.slurm": "commands old"})
    for phase, condition in ((Phase.QUEUED, Condition.QUEUED), (Phase.RUNNING, Condition.RUNNING)):
        action = decide(step, events=begun, queue=(job(step, phase),))
        assert (action.verb, action.condition) == (Verb.WAIT, condition)
        assert "changed since it was submitted: finetune.slurm commands old → commands new" in action.reason.message
    assert "changed" not in decide(step, events=submitted(step), queue=(job(step),)).reason.message


def test_more_changes_than_a_line_takes_are_counted():
    before = replace(finetune(), definition="old", meaning=dict.fromkeys("abcde", "1"))
    action = decide(replace(before, definition="new", meaning=dict.fromkeys("abcde", "2")), events=[done(before)])
    assert "a 1 → 2; b 1 → 2; c 1 → 2 and 2 more" in action.reason.message
    assert len(action.changes) == 5
