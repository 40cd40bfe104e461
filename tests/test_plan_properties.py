"""What holds of every plan, whatever the facts: worlds made up from everything that a step can have behind it."""

from __future__ import annotations

import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from reconciler.fold import fold
from reconciler.loop import Pass
from reconciler.model import Observed, OutputState, Phase, Policy, Reason, Unknown, Verb
from reconciler.ownership import whose_jobs
from reconciler.plan import Gate, make_plan
from reconciler.published import actions_json, explained, status_json
from reconciler.render import Paint, applied_text, diff_text, explain_text, status_text
from reconciler.schemas import schema
from reconciler.situation import Situation, remember_ends
from worlds import NOW, done, ended, evaluation, event, experiment, finetune, job, outputs, submitted

PUBLISHED = {name: Draft202012Validator(schema(name)) for name in ("actions", "status", "explanation")}
STEPS = [step for run in "abc" for step in (finetune(run), evaluation(run))]
FAILURES = ["UserError", "NodeFailure", "CancelledByPerson", "CompletedWithoutEvidence", "TimeLimit", "Vanished"]


def pasts(step):
    """What may be in writing of a step."""
    words = [event(verb, step, NOW - 1) for verb in ("hold", "cancel", "release", "rerun")]
    return st.sampled_from(
        [
            [],
            [done(step)],
            [{**done(step), "definition": "older"}],
            submitted(step),
            submitted(step)[:1],
            submitted(step, at=NOW - 5)[:1],
            [*submitted(step)[:1], event("lost", step, NOW - 300, attempt=1)],
            [
                *submitted(step)[:1],
                event("lost", step, NOW - 300, attempt=1),
                *submitted(step, 2, NOW - 300, held=True),
            ],
            [*submitted(step)[:1], event("refused", step, NOW - 9, attempt=1, message="Invalid account")],
            [*submitted(step)[:1], event("limited", step, NOW - 9, attempt=1, message="QOS")],
            *(ended(step, failure) for failure in FAILURES),
            *([*submitted(step), word] for word in words),
            *([*ended(step, "UserError"), word] for word in words),
            *([word] for word in words),
        ]
    )


def jobs_of(step):
    """What the cluster may show of a step."""
    phases = st.sampled_from(list(Phase)[:4])
    return st.lists(
        st.builds(lambda phase, attempt, held: job(step, phase, attempt, held=held), phases, st.integers(1, 3), st.booleans()),
        max_size=2,
    )


@st.composite
def worlds(draw):
    events = [e for step in STEPS for e in draw(pasts(step))]
    jobs = tuple(
        {j.id + step.key: replace(j, id=f"{j.id}{n}") for n, step in enumerate(STEPS) for j in draw(jobs_of(step))}.values()
    )
    queue = draw(st.sampled_from([jobs, jobs, jobs, Unknown("down")]))
    accounting = draw(st.sampled_from([None, (), jobs, Unknown("slurmdbd is down")]))
    states = st.sampled_from(list(OutputState))
    seen = {
        step.key: outputs(draw(states), marked=draw(st.booleans()), newest=NOW - draw(st.sampled_from([1, 4000])))
        for step in STEPS
    }
    gate = draw(st.sampled_from([None, None, Gate(Reason("EnvironmentChanged", "no conda"))]))
    return events, Observed(queue, accounting, seen), gate


@given(worlds())
def test_a_plan_has_one_action_a_step_each_with_a_reason_and_an_unknown_queue_submits_nothing(world):
    events, observed, gate = world
    plan = make_plan(experiment(*STEPS), observed, fold(events), Policy(), NOW, gate)
    assert [action.step for action in plan.actions] == [step.key for step in STEPS]
    for action in plan.actions:
        assert re.fullmatch(r"[A-Z][A-Za-z]*", action.reason.code)
        assert action.reason.message
        assert action.rule
    if isinstance(observed.queue, Unknown):
        assert not any(action.verb in (Verb.SUBMIT, Verb.CANCEL) or action.release for action in plan.actions)


@given(worlds(), st.permutations(STEPS), st.randoms(use_true_random=False))
def test_a_plan_depends_on_neither_the_order_of_rows_nor_that_of_jobs(world, rows, random):
    events, observed, gate = world
    memory = fold(events)
    before = {a.step: a for a in make_plan(experiment(*STEPS), observed, memory, Policy(), NOW, gate).actions}
    if isinstance(observed.queue, tuple):
        shuffled = list(observed.queue)
        random.shuffle(shuffled)
        observed = replace(observed, queue=tuple(shuffled))
    after = {a.step: a for a in make_plan(experiment(*rows), observed, memory, Policy(), NOW, gate).actions}
    assert {k: (a.verb, a.condition, a.job, a.attempt, a.reason.code) for k, a in after.items()} == {
        k: (a.verb, a.condition, a.job, a.attempt, a.reason.code) for k, a in before.items()
    }


@given(worlds())
def test_what_a_plan_has_learned_is_remembered_once_written_down(world):
    """The next pass, in the same world, decides the same and learns nothing more."""
    events, observed, gate = world
    plan = make_plan(experiment(*STEPS), observed, fold(events), Policy(), NOW, gate)
    written = fold([*events, *({"at": NOW, **event} for event in plan.learned)])
    again = make_plan(experiment(*STEPS), observed, written, Policy(), NOW, gate)
    assert again.actions == plan.actions
    assert again.learned == ()


@given(worlds())
def test_what_a_pass_goes_on_with_is_what_the_next_one_reads(world):
    events, observed, _ = world
    memory = fold(events)
    ours = whose_jobs(experiment(*STEPS), observed, memory)
    for step in STEPS:
        situation = Situation(step, memory.of(step.key), ours.of(step.key), None, observed, Policy(), NOW, None)
        known = remember_ends(situation)
        written = fold([*events, *({"at": NOW, **event} for event in situation.learned)]).of(step.key)
        assert _in_no_order(known) == _in_no_order(written)


def _in_no_order(memory):
    return [
        replace(a, order=0, end=a.end and replace(a.end, order=0))
        for a in sorted(memory.attempts, key=lambda attempt: attempt.number)
    ]


def _done(text):
    return re.findall(r"[0-9]+ of [0-9]+ done", text.splitlines()[-1])


@given(worlds())
def test_every_plan_prints_and_its_json_is_as_published(world):
    events, observed, gate = world
    desired, memory = experiment(*STEPS), fold(events)
    seen = Pass(desired, observed, memory, make_plan(desired, observed, memory, Policy(), NOW, gate), NOW)
    PUBLISHED["actions"].validate(actions_json(seen))
    PUBLISHED["status"].validate(status_json(seen))
    assert all(step.key in diff_text(seen, Paint(), verbose=True) for step in STEPS)
    assert all(step.key in status_text(seen, Paint(), verbose=True) for step in STEPS)
    assert applied_text(seen, Paint())
    assert _done(diff_text(seen, Paint())) == _done(status_text(seen, Paint())) == _done(applied_text(seen, Paint()))
    for step in STEPS:
        PUBLISHED["explanation"].validate(explained(seen, step.key))
        assert step.key in explain_text(seen, step.key)
