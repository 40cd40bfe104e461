"""What is told of a step: how each attempt was submitted, where its log is, what was edited and altered besides, what was said."""

# ruff: noqa: F811 - the fixture is another module's
from __future__ import annotations

from dataclasses import replace

import jsonschema

from reconciler.fold import fold
from reconciler.loop import Pass, preview
from reconciler.model import Observed, Policy
from reconciler.pausing import pause
from reconciler.plan import make_plan
from reconciler.published import explained
from reconciler.render import Paint, applied_text, diff_text, explain_text
from reconciler.schemas import schema
from test_pass import lab  # noqa: F401 - the fixture
from worlds import ABSENT, NOW, ended, event, experiment, finetune, name_of, submitted

STEP = replace(finetune(), logs=("/exp/a/slurm-%j.out", "/exp/a/%x.%u.err"))
OPENED = {"event": "opened", "at": NOW - 2000, "cluster": "c", "path": "/exp", "user": "ana", "environment": {}}


def look(*events) -> Pass:
    desired, memory = experiment(STEP), fold(events)
    observed = Observed((), (), {STEP.key: ABSENT})
    return Pass(desired, observed, memory, make_plan(desired, observed, memory, Policy(), NOW), NOW)


def told(seen: Pass) -> tuple[dict, str]:
    facts = explained(seen, STEP.key)
    jsonschema.validate(facts, schema("explanation"))
    return facts, explain_text(seen, STEP.key)


def test_an_attempt_is_told_with_what_it_was_submitted_with_and_where_its_log_is():
    options = {"time": "90", "exclude": "n1"}
    facts, text = told(look(OPENED, *submitted(STEP, options=options, from_epoch=2), event("lost", STEP, NOW, attempt=2)))
    (attempt,) = facts["attempts"]
    assert (attempt["options"], attempt["from_epoch"]) == (options, 2)
    assert attempt["logs"] == ["/exp/a/slurm-101.out", f"/exp/a/{name_of(STEP)}.ana.err"]
    assert "submitted with --time=90 --exclude=n1, going on from 2 whole epochs" in text
    assert "log: /exp/a/slurm-101.out" in text


def test_an_attempt_without_a_job_has_no_log():
    facts, text = told(look(OPENED, *submitted(STEP)[:1]))
    assert [a["logs"] for a in facts["attempts"]] == [[]]
    assert "log:" not in text


def test_edits_are_told_while_they_are_in_force():
    edited = event("edited", STEP, NOW, path="/exp/a/finetune.yaml", key="batch_size", before="8", after="4")
    facts, text = told(look(*ended(STEP, "OutOfMemoryGpu"), edited))
    assert facts["edits"] == [{"file": "/exp/a/finetune.yaml", "key": "batch_size", "before": "8", "after": "4", "at": NOW}]
    assert "edited /exp/a/finetune.yaml: batch_size 8 → 4, " in text
    facts, text = told(look(edited, {**edited, "before": "4", "after": "8"}))
    assert facts["edits"] == []
    assert "edited" not in text


def test_what_a_submission_alters_besides_is_told_by_the_pass_that_did_it_as_by_the_preview(lab):
    lab.run()
    lab.finish("a/finetune", "half", "NODE_FAIL")
    lab.run()
    lab.now += 3600
    shown = preview(lab.scene)
    (change,) = shown.plan.of("a/finetune").changes
    assert "moves" in change
    assert change in diff_text(shown, Paint())
    assert change in explain_text(shown, "a/finetune")
    assert change in applied_text(lab.run(0), Paint())


def test_a_pass_says_that_the_experiment_is_paused(lab):
    pause(lab.scene, None, "", lambda prospect: True)
    assert "paused" in applied_text(lab.run(), Paint())
