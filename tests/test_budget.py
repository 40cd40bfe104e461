"""The budget: what jobs cost at most, what they cost in the end, and that the sum is never passed."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_slurm.options import all_options
from reconciler.batch_script import parse_batch_script
from reconciler.budget import at_most, told
from reconciler.fold import fold
from reconciler.ledger import Ledger
from reconciler.loop import Pass, preview
from reconciler.model import Ask, Condition, Observed, Phase, Policy, Raise, Reason, Verb
from reconciler.plan import make_plan
from reconciler.published import actions_json
from reconciler.render import Paint, diff_text, status_text
from reconciler.resources import ask_of
from test_pass import lab  # noqa: F401 - a fixture
from worlds import ABSENT, COMPLETE, NOW, done, ended, evaluation, event, experiment, finetune, job, plan_for, submitted

HOUR = 3600


def script(*options: str) -> str:
    return "#!/bin/bash\n" + "".join(f"#SBATCH {option}\n" for option in options) + "train\n"


@pytest.mark.parametrize(
    ("options", "gpus", "seconds"),
    [
        ([], 0, None),
        (["--time=01:00:00"], 0, HOUR),
        (["--gres=gpu:2", "-t 30"], 2, 1800),
        (["--gres=gpu", "--time=00:00:30"], 1, 60),
        (["--gres=gpu:a100:4", "--nodes=2", "--time=1-0"], 8, 24 * HOUR),
        (["--gres=gpu:a100,nvme:1", "--nodes=1-3"], 3, None),
        (["--gres=nvme:100"], 0, None),
        (["--gres=gpu:1", "--ntasks=4"], 4, None),
        (["--gres=gpu:1", "--ntasks=4", "--ntasks-per-node=2"], 2, None),
        (["--gres=gpu:1", "--ntasks=4", "--nodes=1"], 1, None),
        (["-G 3", "-N 2"], 3, None),
        (["--gpus=a100:1,v100:2"], 3, None),
        (["--gpus-per-node=h100:2", "--nodes=4"], 8, None),
        (["--gpus-per-task=1", "--ntasks=8"], 8, None),
        (["--gpus-per-task=1", "--nodes=2", "--ntasks-per-node=4"], 8, None),
        (["--gres=gpu:1", "--time=UNLIMITED"], 1, None),
        (["--gres=gpu:1", "--time=soon"], 1, None),
        (["--exclusive"], None, None),
        (["--exclusive=user", "--gres=gpu:1"], 1, None),
        (["--gpus-per-socket=1"], None, None),
        (["--array=0-3", "--gres=gpu:1"], None, None),
        (["--gres=gpu:8", "hetjob", "--gres=gpu:1"], None, None),
        (["--gres=gpu:8", "packjob", "--gres=gpu:1"], None, None),
        (["--gres=gpu:8", "--comment", "hetjob"], 8, None),
        (["--gres=shard:2"], None, None),
        (["--gres=gpu:many"], 1, None),
        (["--gpus=all"], None, None),
        (["--gpus=1000000"], 10**6, None),
        (["--gpus=9999999999"], None, None),
        (["--gres=gpu:1", "--nodelist=n[1-4]"], None, None),
        (["--gres=gpu:1", "--nodes=1k"], None, None),
        (["--gpus-per-n=2", "--nodes=2", "--gres-=enforce-binding"], 4, None),
        (["--gpus-per-task=1", "--nodes=2", "--tasks-per-node=4"], 8, None),
        (["--gpus=2", "--ntasks-per-tres=1"], None, None),
        (["--gres gpu:1", "--time", "60"], 1, HOUR),
        (["--comment --gpus=9", "--gpus=1"], 1, None),
        (["--plugins-switch --gpus=2"], 2, None),
        (["--plugins-option word --gpus=2"], 2, None),
        (["-p gpu -G2 -t60"], 2, HOUR),
    ],
)
def test_what_a_script_asks_for_is_read_as_slurm_would_or_is_unknown(options, gpus, seconds):
    found = ask_of(parse_batch_script(Path("s"), script(*options)))
    assert (found.gpus, found.seconds) == (gpus, seconds)


@pytest.mark.parametrize(
    "option",
    [
        *["-H", "-k", "-O", "-Q", "-s", "-v", "-W", "-sO", "-koff", "-sJ name", "--contiguous", "--hold", "--ignore-pbs"],
        *["--no-requeue", "--overcommit", "--oversubscribe", "--parsable", "--quiet", "--reboot", "--requeue", "--spread-job"],
        *["--test-only", "--use-min-nodes", "--verbose", "--wait", "--exclusive=user", "--get-user-env", "--nice", "--no-kill"],
        *["--propagate", "--nice=5", "--get-user-env=5L", "--overs", "--get-user", "--ni"],
    ],
)
def test_what_stands_behind_an_option_without_a_value_is_an_option_of_its_own(option):
    """As sbatch -vv of 22.05 shows for each of them."""
    text = script(f"{option} --gres=gpu:4 --time=100:00:00")
    simulated = all_options((), text, {})
    assert (simulated["gres"], simulated["time"]) == ("gpu:4", "100:00:00")
    found = ask_of(parse_batch_script(Path("s"), text))
    assert (found.gpus, found.seconds) == (4, 100 * HOUR)
    assert codes(finetune(ask=found), budget=40.0) == ["BudgetReached"]


def test_the_partition_qos_and_constraint_tell_which_steps_are_alike():
    asked = ask_of(parse_batch_script(Path("s"), script("-p gpu", "--qos=high", "-C a100", "--job-name=x")))
    assert asked.where == "partition=gpu qos=high constraint=a100"


# --- steps -----------------------------------------------------------------------------------------------

ONE = Ask(1, HOUR)
A, B, C = (finetune(run, ask=ONE) for run in "abc")
AFTER = evaluation("a")


def codes(*steps, budget=2.0, **world):
    plan = plan_for(*steps, policy=Policy(budget=budget, backoff=0, **world.pop("policy", {})), **world)
    return [a.reason.code for a in plan.actions]


def over(step, took=HOUR, failure="UserError", **more):
    return ended(step, failure, at=NOW - 900, **{"started": NOW - 900 - took, "ask": vars(ONE), **more})


@pytest.mark.parametrize(
    ("world", "told"),
    [
        pytest.param({}, ["NotStarted", "NotStarted", "BudgetInUse"], id="what is submitted now is spoken for"),
        pytest.param({"budget": None}, ["NotStarted"] * 3, id="no budget"),
        pytest.param({"budget": 3.0}, ["NotStarted"] * 3, id="just enough"),
        pytest.param({"budget": 0.5}, ["BudgetReached"] * 3, id="not enough for one"),
        pytest.param(
            {"events": submitted(A), "queue": (job(A, started=NOW - 60),)},
            ["JobRunning", "NotStarted", "BudgetInUse"],
            id="a running job counts with all its time",
        ),
        pytest.param(
            {"events": submitted(A), "queue": (job(A, started=NOW - 2 * HOUR),)},
            ["JobRunning", "BudgetInUse", "BudgetInUse"],
            id="one that runs beyond its limit counts with what it took",
        ),
        pytest.param(
            {"events": submitted(A)[:1], "accounting": None}, ["Unconfirmed", "NotStarted", "BudgetInUse"], id="one unconfirmed"
        ),
        pytest.param({"queue": (job(A),)}, ["LiveJobFound", "NotStarted", "BudgetInUse"], id="one that nobody wrote down"),
        pytest.param({"events": over(A)}, ["UserError", "NotStarted", "BudgetInUse"], id="a failure is spent"),
        pytest.param({"events": over(A, 360)}, ["UserError", "NotStarted", "BudgetInUse"], id="with what it took"),
        pytest.param({"events": over(A, 360), "budget": 2.1}, ["UserError", "NotStarted", "NotStarted"], id="and no more"),
        pytest.param(
            {"events": over(A, 2 * HOUR)}, ["UserError", "BudgetReached", "BudgetReached"], id="nothing is left: a person decides"
        ),
        pytest.param(
            {"events": ended(A, "Vanished")}, ["Vanished", "NotStarted", "BudgetInUse"], id="an unknown time counts as all of it"
        ),
        pytest.param(
            {"events": ended(A, "CancelledByPerson")}, ["CancelledByPerson", "NotStarted", "NotStarted"], id="never ran"
        ),
        pytest.param(
            {"events": [*submitted(A)[:1], event("refused", A, NOW - 9, attempt=1, message="no")]},
            ["Retry", "NotStarted", "BudgetInUse"],
            id="a refusal cost nothing",
        ),
        pytest.param(
            {"events": [*submitted(A)[:1], event("lost", A, NOW - 300, attempt=1)], "budget": 1.0},
            ["SubmissionLost", "BudgetInUse", "BudgetInUse"],
            id="a lost submission and the one that replaces it are one job",
        ),
        pytest.param(
            {"events": [*submitted(A)[:1], event("lost", A, NOW - 300, attempt=1), event("hold", A, NOW - 9)]},
            ["HeldByPerson", "NotStarted", "BudgetInUse"],
            id="a lost submission that is not replaced may be there",
        ),
    ],
)
def test_what_has_been_and_may_be_used_leaves_room_or_not(world, told):
    assert codes(A, B, C, **world) == told


def test_a_submission_for_more_time_counts_with_all_the_time_that_it_asks_for():
    step = replace(A, asks={"time": "60"})
    raised = {"time": Raise(2, 9000.0), "settle": 0}
    assert codes(step, budget=2.9, events=over(step, failure="TimeLimit"), policy=raised) == ["BudgetReached"]
    assert codes(step, budget=3.1, events=over(step, failure="TimeLimit"), policy=raised) == ["Retry"]


def test_jobs_without_gpus_cost_nothing_and_are_not_kept_back():
    assert codes(finetune("a", ask=Ask(0, HOUR)), finetune("b", requeue=True), budget=0.0) == ["NotStarted", "NotStarted"]


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (finetune(ask=Ask(1, None)), "has no --time"),
        (finetune(ask=Ask(None, HOUR)), "how many GPUs"),
        (finetune(ask=ONE, requeue=True), "--requeue"),
    ],
)
def test_what_has_no_known_bound_is_not_submitted_under_a_budget(step, told):
    action = plan_for(step, policy=Policy(budget=100.0)).of(step.key)
    assert (action.condition, action.reason.code) == (Condition.HELD, "CostUnknown")
    assert told in action.reason.message
    assert plan_for(step).of(step.key).verb is Verb.SUBMIT


def whole_node(step, **more):
    """The facts of an attempt that got all GPUs of its node."""
    return submitted(step, ask={"gpus": None, "seconds": HOUR, "where": ""}, **more)


@pytest.mark.parametrize(
    ("world", "told"),
    [
        pytest.param({"events": whole_node(A), "queue": (job(A),)}, ["JobRunning", "BudgetInUse"], id="in flight"),
        pytest.param({"events": whole_node(A)[:1], "accounting": None}, ["Unconfirmed", "BudgetInUse"], id="one unconfirmed"),
        pytest.param(
            {"events": [*whole_node(A)[:1], event("lost", A, NOW - 300, attempt=1), event("hold", A, NOW - 9)]},
            ["HeldByPerson", "BudgetInUse"], id="a lost submission that may be there",
        ),
        pytest.param(
            {"events": [*whole_node(A)[:1], event("lost", A, NOW - 300, attempt=1)]},
            ["SubmissionLost", "BudgetInUse"], id="the one that replaces it is the same job, and asks for what is known",
        ),
    ],
)  # fmt: skip
def test_a_job_that_got_what_the_site_gave_may_cost_anything_while_it_may_run(world, told):
    assert codes(A, B, budget=1000.0, **world) == told
    assert codes(A, B, budget=None, **world)[1] == "NotStarted"


def test_a_job_of_an_unknown_number_of_gpus_by_hand_may_cost_anything_while_it_runs():
    asks_for_a_node = replace(A, ask=Ask(None, HOUR))
    assert codes(asks_for_a_node, B, budget=1000.0, queue=(job(A),)) == ["LiveJobFound", "BudgetInUse"]


def test_what_has_ended_with_an_unknown_number_of_gpus_is_told_and_stops_nothing():
    def unknown(step, attempt=1, failure="UserError"):
        return [*whole_node(step, attempt=attempt), *over(step, attempt=attempt, failure=failure)[2:]]

    events = [*unknown(A), *over(B), *unknown(B, 2), *unknown(B, 3)]
    assert codes(A, B, C, events=events)[2] == "NotStarted"
    seen = bill(A, B, C, events=events)
    assert (seen.spent, seen.untold) == (1.0, 3)
    assert "1 spent besides 3 jobs of which nobody knows how many GPUs the site gave" in told(seen)
    assert "besides 1 job of" in told(bill(A, B, events=unknown(A)))
    never_ran = [*whole_node(A), *ended(A, "CancelledByPerson")[2:]]
    assert bill(A, B, events=never_ran).untold == 0


def test_nobody_takes_from_under_a_step_what_it_waits_for():
    small, large, last = finetune("a", ask=ONE), finetune("b", ask=Ask(4, HOUR)), finetune("c", ask=ONE)
    assert codes(small, large, last, budget=4.5) == ["NotStarted", "BudgetInUse", "BudgetInUse"]
    assert codes(small, large, last, budget=3.5) == ["NotStarted", "BudgetReached", "NotStarted"]


def test_what_follows_a_step_without_budget_is_not_pending():
    plan = plan_for(A, AFTER, policy=Policy(budget=0.5))
    assert [a.reason.code for a in plan.actions] == ["BudgetReached", "NeedBlocked"]
    assert not any(a.is_pending for a in plan.actions)


def test_steps_that_the_document_has_no_more_have_cost_what_they_cost():
    gone = finetune("gone")
    events = ended(gone, "UserError", started=NOW - 900 - HOUR)
    events = [{**e, "ask": vars(ONE)} if e["event"] == "intent" else e for e in events]
    assert codes(A, events=events, budget=1.5) == ["BudgetReached"]


def test_every_start_of_a_requeued_job_counts():
    first = over(A, HOUR, "Preempted")
    again = [*first, event("reopened", A, NOW - 800, attempt=1)]
    again.append(event("ended", A, NOW, attempt=1, job="101", state="FAILED", failure="UserError", ended=NOW, started=NOW - HOUR))
    assert fold(again).of(A.key).last.worked == HOUR
    assert codes(A, B, events=[*again, event("missing", A, NOW - 500, attempt=1)], budget=2.5)[1] == "BudgetReached"


# --- what is to be expected ------------------------------------------------------------------------------


def bill(*steps, **world):
    return plan_for(*steps, **world).bill


def test_time_limits_tell_what_is_to_come_until_like_runs_have_told_what_they_took():
    assert bill(A, B, C).likely == 3.0
    took = [*over(A, 900, ""), done(A), *over(B, 1800, ""), done(B)]
    known = bill(A, B, C, finetune("d", ask=replace(ONE, where="partition=slow")), events=took)
    assert (known.likely, known.by_experience, known.spent) == (1350 / HOUR + 1.0, 1, 0.75)


def test_the_bill_is_told_in_text_and_json_and_not_at_all_where_nothing_costs():
    steps = (A, B, finetune("c", ask=Ask(1, None)))
    events = [*over(A, 1800, ""), done(A)]
    desired, memory, observed = experiment(*steps), fold(events), Observed((), None, {s.key: ABSENT for s in steps})
    plan = make_plan(desired, observed, memory, Policy(budget=40.0), NOW)
    seen = Pass(desired, observed, memory, plan, NOW)
    line = "about 0.5 GPU hours to come (of 1 step by what like ones took), 1 step of unknown cost, 0.5 spent; the budget is 40"
    assert line in diff_text(seen, Paint())
    assert line in status_text(seen, Paint())
    cost = {
        "unit": "gpu-hours",
        "budget": 40.0,
        "spent": 0.5,
        "untold": 0,
        "in_flight": 0.0,
        "likely": 0.5,
        "unknown": ["c/finetune"],
    }
    assert actions_json(seen)["cost"] == cost
    assert told(bill(finetune(), evaluation())) == ""
    endless = bill(finetune("c", ask=Ask(1, None)), events=submitted(steps[2]), queue=(job(steps[2]),))
    assert "any number of in flight" in told(endless)


def test_variables_that_outrank_the_scripts_stop_submissions_under_a_budget(lab):  # noqa: F811
    lab.policy = replace(lab.policy, budget=5.0)
    lab.environment["SBATCH_TIMELIMIT"] = "10-0"
    assert {a.reason.code for a in preview(lab.scene).actions} == {"CostUnknown", "NeedBlocked"}
    lab.policy = replace(lab.policy, budget=None)
    assert preview(lab.scene).plan.of("a/finetune").verb is Verb.SUBMIT


def test_what_a_job_asked_for_is_in_the_ledger_and_an_older_ledger_is_read_without(lab):  # noqa: F811
    lab.run()
    lines = Ledger(lab.directory, lambda: lab.now).path.read_text().splitlines()
    intents = [e for e in map(json.loads, lines) if e["event"] == "intent"]
    assert all(e["ask"] == {"gpus": 0, "seconds": None, "where": ""} for e in intents)
    assert fold(submitted(A)).of(A.key).last.ask is None


# --- never passed ----------------------------------------------------------------------------------------


class World:
    """A cluster that does anything to jobs but let them run beyond their time limits; it counts what they really use."""

    def __init__(self, chance: random.Random, steps) -> None:
        self.chance, self.steps = chance, {step.key: step for step in steps}
        self.events, self.jobs, self.hidden, self.used = [], {}, set(), 0.0
        self.now = NOW

    def memory(self):
        return fold(self.events)

    def observe(self):
        shown = tuple(j for j in self.jobs.values() if j.id not in self.hidden)
        memory = self.memory()
        return Observed(shown, (), {key: COMPLETE if memory.of(key).done else ABSENT for key in self.steps})

    def write(self, kind, key, **facts):
        self.events.append(event(kind, self.steps[key], self.now, **facts))

    def act(self, plan):
        self.events += [{"at": self.now, **e} for e in plan.learned]
        for action in plan.actions:
            if action.verb is Verb.SUBMIT:
                self.submit(action)
            elif action.verb is Verb.ADOPT:
                self.write("adopted", action.step, attempt=action.attempt, job=action.job, name=self.jobs[action.job].name)
            elif action.verb is Verb.CANCEL:
                self.jobs[action.job] = replace(self.jobs[action.job], phase=Phase.ENDED, state="CANCELLED", held=False)
                self.write("withdrawn", action.step, attempt=action.attempt)
            elif action.release:
                self.jobs[action.job] = replace(self.jobs[action.job], held=False)
                self.write("unheld", action.step, attempt=action.attempt)

    def submit(self, action):
        step, number = self.steps[action.step], action.attempt
        name = job(step, attempt=number).name
        self.write("intent", step.key, attempt=number, name=name, held=action.held, ask=vars(step.ask))
        what = self.chance.choice(["accepted"] * 6 + ["unwritten", "hidden", "nothing", "limited", "refused"])
        if what in ("limited", "refused"):
            self.write(what, step.key, attempt=number, message="no")
        if what in ("accepted", "unwritten", "hidden"):
            new = str(1000 + len(self.jobs))
            self.jobs[new] = job(step, Phase.QUEUED, number, id=new, submitted=self.now, held=action.held, workdir=step.key)
            self.hidden |= {new} if what == "hidden" else set()
        if what == "accepted":
            self.write("submitted", step.key, attempt=number, job=new)

    def go_on(self, seconds):
        """Time passes: jobs start, end in any way, and are forgotten; what was hidden surfaces once it is replaced."""
        self.now += seconds
        for each in list(self.jobs.values()):
            step = self.steps[each.workdir]
            if each.id in self.hidden and any(
                j.workdir == each.workdir and j.id != each.id and j.held for j in self.jobs.values()
            ):
                self.hidden.discard(each.id)
            if each.phase is Phase.QUEUED and not each.held and self.chance.random() < 0.5:
                self.jobs[each.id] = replace(each, phase=Phase.RUNNING, state="RUNNING", started=self.now)
            elif each.phase is Phase.RUNNING and (
                self.now - each.started + seconds > step.ask.seconds or self.chance.random() < 0.3
            ):
                self.end(each, step)

    def end(self, each, step):
        self.used += step.ask.gpus * (self.now - each.started) / HOUR
        state = self.chance.choice(["COMPLETED", "TIMEOUT", "FAILED", "NODE_FAIL", "PREEMPTED", "CANCELLED", "vanished"])
        if state == "vanished":
            del self.jobs[each.id]
            return
        self.jobs[each.id] = replace(each, phase=Phase.ENDED, state=state, ended=self.now)
        if state == "COMPLETED":
            self.events.append(done(step, self.now))
        elif self.chance.random() < 0.5:
            self.events.append(event("release", step, self.now))

    @property
    def running(self):
        live = [j for j in self.jobs.values() if j.phase is Phase.RUNNING]
        return sum(self.steps[j.workdir].ask.gpus * (self.now - j.started) / HOUR for j in live)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30))
def test_whatever_jobs_do_the_budget_is_never_passed(seed, hours):
    chance = random.Random(seed)
    steps = [finetune(run, ask=Ask(chance.randint(0, 4), HOUR * chance.randint(1, 4))) for run in "abcdef"]
    policy = Policy(
        budget=float(hours), backoff=0, settle=0, grace=1200, stop_after_failures=100, retry={"NodeFailure": 9, "Preempted": 9}
    )
    world = World(chance, steps)
    for _ in range(40):
        plan = make_plan(experiment(*steps), world.observe(), world.memory(), policy, world.now)
        assert plan.bill.spent <= hours + 1e-6
        world.act(plan)
        world.go_on(600)
        assert world.used + world.running <= hours + 1e-6
        # What is told as spent and in flight is never less than what was really used.
        after = make_plan(experiment(*steps), world.observe(), world.memory(), policy, world.now).bill
        assert after.spent + after.in_flight >= world.used + world.running - 1e-6


def test_a_budget_that_suffices_is_used(monkeypatch):
    assert at_most(ONE) == 1.0
    plan = plan_for(A, B, C, policy=Policy(budget=3.0))
    assert [a.verb for a in plan.actions] == [Verb.SUBMIT] * 3
    assert Reason("NotStarted", "not started; the next pass submits it") == plan.of(C.key).reason
