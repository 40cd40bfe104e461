"""Every word in every condition: what the world looks like afterwards, and after the pass that follows."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace

import jsonschema
import pytest

from reconciler import freeing, renaming
from reconciler.errors import ReconcileError, SubmissionUncertain
from reconciler.handover import accept_identity
from reconciler.loop import Scene, preview, run_pass
from reconciler.model import Job, Phase, Stage
from reconciler.orphans import prune
from reconciler.pausing import pause, resume
from reconciler.published import explained, status_json
from reconciler.render import Paint, explain_text, status_text
from reconciler.schemas import schema
from reconciler.words import Order, Prospect, Skipped, carry_out
from test_pass import Lab, drop_run_a, lab, order, start  # noqa: F401 - the fixture
from worlds import StandInTool

STEP = "a/finetune"


class Trainer(StandInTool):
    """Its result is a checkpoint: what may be freed."""

    workdir = ""

    def _step(self, run, key, script):
        step = super()._step(run, key, script)
        return replace(step, checkpoints={0: step.output_dir}, workdir=self.workdir or step.workdir)


class World(Lab):
    """``name`` is what run ``a`` is called by now; where ``workdir`` is set, nothing tells the fine-tunes' jobs apart."""

    name = "a"
    workdir = ""

    @property
    def scene(self) -> Scene:
        scene = super().scene
        trainer = Trainer(Stage.FINETUNE)
        trainer.workdir = self.workdir
        return replace(scene, tools={**scene.tools, "trainer": trainer})


@pytest.fixture
def world(lab):  # noqa: F811
    return World(lab.directory)


def not_started(world: World) -> None:
    """Nothing was ever done."""


def queued(world: World) -> None:
    world.run()


def running(world: World) -> None:
    world.run()
    start(world, STEP)


def held(world: World) -> None:
    order(world, "hold", STEP, why="ask Ben")


def held_queued(world: World) -> None:
    world.run()
    order(world, "hold", STEP, why="ask Ben")


def failed(world: World) -> None:
    world.run()
    world.finish(STEP, "torn", "FAILED")
    world.run()
    world.run()


def done(world: World) -> None:
    world.run()
    world.finish(STEP)
    world.run()
    world.finish("a/eval/cap_epoch0")
    world.run()


def drifted(world: World) -> None:
    done(world)
    (world.directory / "a" / "finetune.slurm").write_text("#!/bin/bash\necho other\n")


def orphan(world: World) -> None:
    world.run()
    drop_run_a(world)


def unknown(world: World) -> None:
    world.run()
    world.cluster.is_down = True


def paused(world: World) -> None:
    world.run()
    say(world, "pause")


def verifying(world: World) -> None:
    world.run()
    world.finish(STEP, None, "FAILED")
    world.run()


def ended(world: World) -> None:
    """Its result verifies, and no pass has written that down."""
    world.run()
    world.finish(STEP)


def by_hand(world: World) -> None:
    """A person submitted its script, and no pass has taken the job over."""
    step = preview(world.scene).desired.step(STEP)
    world.cluster.jobs["90"] = Job("90", step.job_name, "PENDING", Phase.QUEUED, step.workdir)


def ambiguous(world: World) -> None:
    """A job by hand that may be another step's."""
    world.workdir = str(world.directory / "a")
    by_hand(world)


def several(world: World) -> None:
    world.run()
    first = preview(world.scene).plan.of(STEP).job
    world.cluster.jobs["77"] = replace(world.cluster.jobs[first], id="77")


def unconfirmed(world: World) -> None:
    world.cluster.fails_with = [SubmissionUncertain("timed out")]
    run_pass(replace(world.scene, select=STEP))


def blocked(world: World) -> None:
    (world.directory / "a" / "finetune.slurm").unlink()


CONDITIONS = (
    not_started, queued, running, held, held_queued, failed, done, drifted, orphan, unknown, paused,
    verifying, ended, by_hand, ambiguous, several, unconfirmed, blocked,
)  # fmt: skip


def say(world: World, verb: str) -> None:
    if verb == "pause":
        pause(world.scene, None, "", lambda prospect: True)
    elif verb == "resume":
        resume(world.scene, "", lambda prospect: True)
    elif verb == "free":
        freeing.free(world.scene, [STEP], "", lambda prospect: True)
    elif verb == "prune":
        prune(world.scene, ["a"], "", lambda prospect: True)
    elif verb == "rename":
        renaming.rename(world.scene, "a", "c", "", lambda prospect: True)
        world.name = "c"
    elif verb == "adopt":
        accept_identity(world.scene, "moved")
    else:
        name, *flags = verb.split()
        order(world, name, STEP, **{flag.strip("-").replace("-", "_"): True for flag in flags})


def jobs_of(world: World) -> str:
    """The step's jobs, oldest first, as a person would see them in squeue."""
    places = {str(world.directory / name) for name in ("a", world.name)}
    jobs = [job for job in world.cluster.jobs.values() if job.workdir in places]
    return ", ".join(f"{job.state}{' held' if job.held else ''}" for job in jobs) or "-"


def stands(world: World) -> str:
    seen = preview(world.scene)
    key = STEP.replace("a", world.name, 1)
    return seen.plan.of(key).condition.value if seen.desired.step(key) else "gone"


def result_of(world: World) -> str:
    """What is where the step's result goes, and what was moved aside from there."""
    out = world.directory / world.name / "out"
    result = out / "finetune" / "result"
    aside = [p.read_text() for p in out.rglob("result") if "moved-aside" in str(p)]
    return (result.read_text() if result.exists() else "-") + "".join(f", {text} aside" for text in aside)


def files(world: World) -> dict[str, bytes]:
    return {name: content for name, content in world.tree().items() if name != ".reconcile/lock"}


def told(world: World, verb: str) -> str:
    before, jobs = files(world), dict(world.cluster.jobs)
    try:
        say(world, verb)
    except ReconcileError as error:
        assert (files(world), world.cluster.jobs) == (before, jobs), "what refuses does nothing"
        return f"refused: {error}"
    world.cluster.is_down = False
    at_once = jobs_of(world)
    world.run()
    return f"{at_once} | {jobs_of(world)} | {stands(world)} | {result_of(world)}"


TABLE = """
hold                     not_started  - | - | Held | -
hold                     queued       PENDING held | PENDING held | Held | -
hold                     running      RUNNING | RUNNING | Running | -
hold                     held         - | - | Held | -
hold                     held_queued  PENDING held | PENDING held | Held | -
hold                     failed       FAILED | FAILED | Held | torn
hold                     done         refused: there is nothing to hold
hold                     drifted      refused: there is nothing to hold
hold                     orphan       refused: no step matches
hold                     unknown      refused: the queue cannot be asked, and nothing was done
hold                     paused       PENDING held | PENDING held | Held | -
hold                     verifying    FAILED | FAILED | Held | -
hold                     ended        refused: is done; there is nothing to hold
hold                     by_hand      PENDING held | PENDING held | Held | -
hold                     ambiguous    PENDING held | PENDING held | Held | -
hold                     several      PENDING held, PENDING held | PENDING held, PENDING held | Held | -
hold                     unconfirmed  - | - | Unknown | -
hold                     blocked      - | - | Blocked | -

release                  not_started  - | PENDING | Queued | -
release                  queued       PENDING | PENDING | Queued | -
release                  running      RUNNING | RUNNING | Running | -
release                  held         - | PENDING | Queued | -
release                  held_queued  PENDING | PENDING | Queued | -
release                  failed       FAILED | FAILED, PENDING | Queued | -, torn aside
release                  done         COMPLETED | COMPLETED | Done | whole
release                  drifted      COMPLETED | COMPLETED | Drifted | whole
release                  orphan       refused: no step matches
release                  unknown      refused: the queue cannot be asked, and nothing was done
release                  paused       PENDING held | PENDING held | Waiting | -
release                  verifying    FAILED | FAILED, PENDING | Queued | -
release                  ended        COMPLETED | COMPLETED | Done | whole
release                  by_hand      PENDING | PENDING | Queued | -
release                  ambiguous    PENDING | PENDING | Held | -
release                  several      PENDING, PENDING | PENDING, PENDING | Held | -
release                  unconfirmed  - | - | Unknown | -
release                  blocked      - | - | Blocked | -

cancel                   not_started  - | - | Held | -
cancel                   queued       CANCELLED | CANCELLED | Verifying | -
cancel                   running      CANCELLED | CANCELLED | Verifying | -
cancel                   held         - | - | Held | -
cancel                   held_queued  CANCELLED | CANCELLED | Verifying | -
cancel                   failed       FAILED | FAILED | Held | torn
cancel                   done         refused: there is nothing to cancel
cancel                   drifted      refused: there is nothing to cancel
cancel                   orphan       refused: no step matches
cancel                   unknown      refused: the queue cannot be asked, and nothing was done
cancel                   paused       CANCELLED | CANCELLED | Verifying | -
cancel                   verifying    FAILED | FAILED | Held | -
cancel                   ended        refused: is done; there is nothing to cancel
cancel                   by_hand      CANCELLED | CANCELLED | Held | -
cancel                   ambiguous    CANCELLED | CANCELLED | Held | -
cancel                   several      CANCELLED, CANCELLED | CANCELLED, CANCELLED | Verifying | -
cancel                   unconfirmed  - | - | Unknown | -
cancel                   blocked      - | - | Blocked | -

rerun                    not_started  - | PENDING | Queued | -
rerun                    queued       CANCELLED | CANCELLED, PENDING | Queued | -
rerun                    running      refused: say --now to cancel it and start again
rerun                    held         - | PENDING | Queued | -
rerun                    held_queued  CANCELLED | CANCELLED, PENDING | Queued | -
rerun                    failed       FAILED | FAILED, PENDING | Queued | -, torn aside
rerun                    done         COMPLETED | COMPLETED, PENDING | Queued | -, whole aside
rerun                    drifted      COMPLETED | COMPLETED, PENDING | Queued | -, whole aside
rerun                    orphan       refused: no step matches
rerun                    unknown      refused: the queue cannot be asked, and nothing was done
rerun                    paused       CANCELLED | CANCELLED | Waiting | -
rerun                    verifying    FAILED | FAILED, PENDING | Queued | -
rerun                    ended        COMPLETED | COMPLETED, PENDING | Queued | -, whole aside
rerun                    by_hand      CANCELLED | CANCELLED, PENDING | Queued | -
rerun                    ambiguous    refused: nothing may be replaced before that is known
rerun                    several      CANCELLED, CANCELLED | CANCELLED, CANCELLED, PENDING | Queued | -
rerun                    unconfirmed  refused: nothing may be replaced before that is known
rerun                    blocked      refused: finetune.slurm is missing

rerun --now              not_started  - | PENDING | Queued | -
rerun --now              queued       CANCELLED | CANCELLED, PENDING | Queued | -
rerun --now              running      CANCELLED | CANCELLED, PENDING | Queued | -
rerun --now              held         - | PENDING | Queued | -
rerun --now              held_queued  CANCELLED | CANCELLED, PENDING | Queued | -
rerun --now              failed       FAILED | FAILED, PENDING | Queued | -, torn aside
rerun --now              done         COMPLETED | COMPLETED, PENDING | Queued | -, whole aside
rerun --now              drifted      COMPLETED | COMPLETED, PENDING | Queued | -, whole aside
rerun --now              orphan       refused: no step matches
rerun --now              unknown      refused: the queue cannot be asked, and nothing was done
rerun --now              paused       CANCELLED | CANCELLED | Waiting | -
rerun --now              verifying    FAILED | FAILED, PENDING | Queued | -
rerun --now              ended        COMPLETED | COMPLETED, PENDING | Queued | -, whole aside
rerun --now              by_hand      CANCELLED | CANCELLED, PENDING | Queued | -
rerun --now              ambiguous    refused: nothing may be replaced before that is known
rerun --now              several      CANCELLED, CANCELLED | CANCELLED, CANCELLED, PENDING | Queued | -
rerun --now              unconfirmed  refused: nothing may be replaced before that is known
rerun --now              blocked      refused: finetune.slurm is missing

rerun --with-dependents  not_started  - | PENDING | Queued | -
rerun --with-dependents  queued       CANCELLED | CANCELLED, PENDING | Queued | -
rerun --with-dependents  running      refused: say --now to cancel it and start again
rerun --with-dependents  held         - | PENDING | Queued | -
rerun --with-dependents  held_queued  CANCELLED | CANCELLED, PENDING | Queued | -
rerun --with-dependents  failed       FAILED | FAILED, PENDING | Queued | -, torn aside
rerun --with-dependents  done         COMPLETED | COMPLETED, PENDING | Queued | -, whole aside
rerun --with-dependents  drifted      COMPLETED | COMPLETED, PENDING | Queued | -, whole aside
rerun --with-dependents  orphan       refused: no step matches
rerun --with-dependents  unknown      refused: the queue cannot be asked, and nothing was done
rerun --with-dependents  paused       CANCELLED | CANCELLED | Waiting | -
rerun --with-dependents  verifying    FAILED | FAILED, PENDING | Queued | -
rerun --with-dependents  ended        COMPLETED | COMPLETED, PENDING | Queued | -, whole aside
rerun --with-dependents  by_hand      CANCELLED | CANCELLED, PENDING | Queued | -
rerun --with-dependents  ambiguous    refused: nothing may be replaced before that is known
rerun --with-dependents  several      CANCELLED, CANCELLED | CANCELLED, CANCELLED, PENDING | Queued | -
rerun --with-dependents  unconfirmed  refused: nothing may be replaced before that is known
rerun --with-dependents  blocked      refused: finetune.slurm is missing

rerun --stale            not_started  - | PENDING | Queued | -
rerun --stale            queued       PENDING | PENDING | Queued | -
rerun --stale            running      RUNNING | RUNNING | Running | -
rerun --stale            held         - | - | Held | -
rerun --stale            held_queued  PENDING held | PENDING held | Held | -
rerun --stale            failed       FAILED | FAILED | Failed | torn
rerun --stale            done         COMPLETED | COMPLETED | Done | whole
rerun --stale            drifted      COMPLETED | COMPLETED | Drifted | whole
rerun --stale            orphan       refused: no step matches
rerun --stale            unknown      refused: the queue cannot be asked, and nothing was done
rerun --stale            paused       PENDING held | PENDING held | Waiting | -
rerun --stale            verifying    FAILED | FAILED | Failed | -
rerun --stale            ended        COMPLETED | COMPLETED | Done | whole
rerun --stale            by_hand      PENDING | PENDING | Queued | -
rerun --stale            ambiguous    PENDING | PENDING | Held | -
rerun --stale            several      PENDING, PENDING | PENDING, PENDING | Held | -
rerun --stale            unconfirmed  - | - | Unknown | -
rerun --stale            blocked      - | - | Blocked | -

accept                   not_started  refused: there is no result to accept
accept                   queued       PENDING | PENDING | Queued | -
accept                   running      refused: there is no result to accept
accept                   held         refused: there are no outputs to accept
accept                   held_queued  PENDING held | PENDING held | Held | -
accept                   failed       FAILED | FAILED | Done | torn
accept                   done         COMPLETED | COMPLETED | Done | whole
accept                   drifted      COMPLETED | COMPLETED | Done | whole
accept                   orphan       refused: no step matches
accept                   unknown      refused: the queue cannot be asked, and nothing was done
accept                   paused       PENDING held | PENDING held | Waiting | -
accept                   verifying    refused: there are no outputs to accept (nothing is there)
accept                   ended        COMPLETED | COMPLETED | Done | whole
accept                   by_hand      refused: job 90 is not in writing yet; `reconcile apply` takes it over as it is
accept                   ambiguous    refused: there is nothing to accept before that is known
accept                   several      refused: jobs 2, 77 all belong to it; cancel all but one before one is accepted
accept                   unconfirmed  refused: there is no result to accept
accept                   blocked      refused: finetune.slurm is missing

free                     not_started  refused: only checkpoints in writing as done are freed
free                     queued       refused: only checkpoints in writing as done are freed
free                     running      refused: only checkpoints in writing as done are freed
free                     held         refused: only checkpoints in writing as done are freed
free                     held_queued  refused: only checkpoints in writing as done are freed
free                     failed       refused: only checkpoints in writing as done are freed
free                     done         COMPLETED | COMPLETED | Done | -
free                     drifted      refused: only checkpoints in writing as done are freed
free                     orphan       refused: no step matches
free                     unknown      refused: the queue cannot be asked, and nothing was done
free                     paused       refused: only checkpoints in writing as done are freed
free                     verifying    refused: only checkpoints in writing as done are freed
free                     ended        refused: only checkpoints in writing as done are freed; it verifies
free                     by_hand      refused: only checkpoints in writing as done are freed
free                     ambiguous    refused: only checkpoints in writing as done are freed
free                     several      refused: only checkpoints in writing as done are freed
free                     unconfirmed  refused: only checkpoints in writing as done are freed
free                     blocked      refused: finetune.slurm is missing

prune                    not_started  refused: its jobs are no orphans
prune                    queued       refused: its jobs are no orphans
prune                    running      refused: its jobs are no orphans
prune                    held         refused: its jobs are no orphans
prune                    held_queued  refused: its jobs are no orphans
prune                    failed       refused: its jobs are no orphans
prune                    done         refused: its jobs are no orphans
prune                    drifted      refused: its jobs are no orphans
prune                    orphan       CANCELLED | CANCELLED | gone | -
prune                    unknown      refused: the queue cannot be asked, and nothing was done
prune                    paused       refused: its jobs are no orphans
prune                    verifying    refused: its jobs are no orphans
prune                    ended        refused: its jobs are no orphans
prune                    by_hand      refused: its jobs are no orphans
prune                    ambiguous    refused: its jobs are no orphans
prune                    several      refused: its jobs are no orphans
prune                    unconfirmed  refused: its jobs are no orphans
prune                    blocked      refused: its jobs are no orphans

pause                    not_started  - | - | Waiting | -
pause                    queued       PENDING held | PENDING held | Waiting | -
pause                    running      RUNNING | RUNNING | Running | -
pause                    held         - | - | Held | -
pause                    held_queued  PENDING held | PENDING held | Held | -
pause                    failed       FAILED | FAILED | Failed | torn
pause                    done         COMPLETED | COMPLETED | Done | whole
pause                    drifted      COMPLETED | COMPLETED | Drifted | whole
pause                    orphan       PENDING | PENDING | gone | -
pause                    unknown      refused: the queue cannot be asked, and nothing was done
pause                    paused       PENDING held | PENDING held | Waiting | -
pause                    verifying    FAILED | FAILED | Failed | -
pause                    ended        COMPLETED | COMPLETED | Done | whole
pause                    by_hand      PENDING | PENDING | Queued | -
pause                    ambiguous    PENDING | PENDING | Held | -
pause                    several      PENDING held, PENDING | PENDING held, PENDING | Held | -
pause                    unconfirmed  - | - | Unknown | -
pause                    blocked      - | - | Blocked | -

resume                   not_started  - | PENDING | Queued | -
resume                   queued       PENDING | PENDING | Queued | -
resume                   running      RUNNING | RUNNING | Running | -
resume                   held         - | - | Held | -
resume                   held_queued  PENDING held | PENDING held | Held | -
resume                   failed       FAILED | FAILED | Failed | torn
resume                   done         COMPLETED | COMPLETED | Done | whole
resume                   drifted      COMPLETED | COMPLETED | Drifted | whole
resume                   orphan       PENDING | PENDING | gone | -
resume                   unknown      refused: the queue cannot be asked, and nothing was done
resume                   paused       PENDING | PENDING | Queued | -
resume                   verifying    FAILED | FAILED | Failed | -
resume                   ended        COMPLETED | COMPLETED | Done | whole
resume                   by_hand      PENDING | PENDING | Queued | -
resume                   ambiguous    PENDING | PENDING | Held | -
resume                   several      PENDING, PENDING | PENDING, PENDING | Held | -
resume                   unconfirmed  - | - | Unknown | -
resume                   blocked      - | - | Blocked | -

rename                   not_started  - | PENDING | Queued | -
rename                   queued       refused: may be live; rename
rename                   running      refused: may be live; rename
rename                   held         - | - | Held | -
rename                   held_queued  refused: may be live; rename
rename                   failed       FAILED | FAILED | Failed | torn
rename                   done         COMPLETED | COMPLETED | Done | whole
rename                   drifted      COMPLETED | COMPLETED | Drifted | whole
rename                   orphan       refused: is no run of this experiment
rename                   unknown      refused: the queue cannot be asked, and nothing was done
rename                   paused       refused: may be live; rename
rename                   verifying    FAILED | FAILED | Failed | -
rename                   ended        refused: its end is not in writing yet
rename                   by_hand      refused: may be live; rename
rename                   ambiguous    refused: may be live; rename
rename                   several      refused: may be live; rename
rename                   unconfirmed  refused: may be live; rename
rename                   blocked      - | - | Blocked | -

adopt                    not_started  refused: nothing is known of this experiment
adopt                    queued       refused: there is nothing to accept with --moved
adopt                    running      refused: there is nothing to accept with --moved
adopt                    held         refused: nothing is known of this experiment
adopt                    held_queued  refused: there is nothing to accept with --moved
adopt                    failed       refused: there is nothing to accept with --moved
adopt                    done         refused: there is nothing to accept with --moved
adopt                    drifted      refused: there is nothing to accept with --moved
adopt                    orphan       refused: there is nothing to accept with --moved
adopt                    unknown      refused: there is nothing to accept with --moved
adopt                    paused       refused: there is nothing to accept with --moved
adopt                    verifying    refused: there is nothing to accept with --moved
adopt                    ended        refused: there is nothing to accept with --moved
adopt                    by_hand      refused: nothing is known of this experiment
adopt                    ambiguous    refused: nothing is known of this experiment
adopt                    several      refused: there is nothing to accept with --moved
adopt                    unconfirmed  refused: there is nothing to accept with --moved
adopt                    blocked      refused: nothing is known of this experiment
"""
"""The word, the condition it is said in, and then: the step's jobs at once | after the next pass | how it stands | its result."""

ROWS = [tuple(part for part in line.split("  ") if part.strip()) for line in TABLE.splitlines() if line.strip()]


@pytest.mark.parametrize(("verb", "condition", "expected"), [[part.strip() for part in row] for row in ROWS])
def test_every_word_in_every_condition(world, verb, condition, expected):
    by_name = {made.__name__: made for made in CONDITIONS}
    by_name[condition](world)
    found = told(world, verb)
    if expected.startswith("refused: "):
        assert found.startswith("refused: ")
        assert expected.removeprefix("refused: ") in found
    else:
        assert found == expected


def test_the_table_is_whole():
    verbs = {row[0].strip() for row in ROWS}
    assert {(row[0].strip(), row[1].strip()) for row in ROWS} == {(verb, made.__name__) for verb in verbs for made in CONDITIONS}


OPPOSITES = [
    *(("hold", "release", made) for made in (not_started, queued, running, by_hand, ambiguous, several, unconfirmed, blocked)),
    *(("rerun", "accept", made) for made in (not_started, held, failed, verifying, ended, done, drifted)),
    *(("pause", "resume", made) for made in CONDITIONS if made not in (orphan, unknown, paused)),
]


@pytest.mark.parametrize(("verb", "opposite", "condition"), OPPOSITES)
def test_a_word_and_its_opposite_leave_jobs_and_results_as_they_were(world, verb, opposite, condition):
    """Between them no pass is made. ``release`` also lifts an earlier hold, and has a failed step decided afresh."""
    condition(world)
    before = jobs_of(world), stands(world), result_of(world)
    say(world, verb)
    say(world, opposite)
    assert (jobs_of(world), stands(world), result_of(world)) == before


@pytest.mark.parametrize("condition", [queued, held_queued])
def test_of_a_rerun_that_is_taken_back_the_cancelled_job_is_all_that_is_left(world, condition):
    condition(world)
    say(world, "rerun")
    say(world, "accept")
    for _ in range(3):
        world.run()
    expected = {queued: ("CANCELLED, PENDING", "Queued"), held_queued: ("CANCELLED", "Held")}
    assert (jobs_of(world), stands(world)) == expected[condition]


@pytest.mark.parametrize(("verb", "expected"), [("hold", "Held"), ("cancel", "Held"), ("release", "Waiting")])
def test_what_is_said_after_a_rerun_stands_when_that_is_taken_back_and_makes_no_result(world, verb, expected):
    failed(world)
    say(world, "rerun")
    say(world, verb)
    say(world, "accept")
    assert (jobs_of(world), stands(world), result_of(world)) == ("FAILED", expected, "torn")


@pytest.mark.parametrize("passes", [0, 1, 4])
@pytest.mark.parametrize("condition", [not_started, queued, running, failed, verifying, by_hand, several])
def test_a_cancelled_step_is_submitted_again_once_it_is_released(world, condition, passes):
    condition(world)
    say(world, "cancel")
    for _ in range(passes):
        world.run(1000)
    assert stands(world) == "Held" or passes < 4
    say(world, "release")
    for _ in range(3):
        world.run()
    assert jobs_of(world).endswith("PENDING")
    assert stands(world) == "Queued"


@pytest.mark.parametrize("verb", ["hold", "release", "cancel", "rerun", "accept", "free"])
def test_the_reason_is_kept_and_shown_by_explain(world, verb):
    {"free": done, "accept": drifted, "rerun": failed}.get(verb, queued)(world)
    if verb == "free":
        freeing.free(world.scene, [STEP], "waiting for Ana", lambda prospect: True)
    else:
        order(world, verb, STEP, why="waiting for Ana")
    seen = preview(world.scene)
    assert f"{verb} by u: waiting for Ana" in explain_text(seen, STEP)
    assert explained(seen, STEP)["words"][-1]["why"] == "waiting for Ana"
    jsonschema.validate(explained(seen, STEP), schema("explanation"))
    jsonschema.validate(status_json(seen), schema("status"))


def test_the_reason_of_a_hold_a_pause_and_a_rerun_is_what_status_shows(world):
    world.run()
    order(world, "hold", STEP, why="waiting for new data")
    assert "held by u: waiting for new data" in status_text(preview(world.scene), Paint())
    order(world, "rerun", STEP, why="the data came")
    assert "asked for again by u: the data came" in status_text(preview(world.scene), Paint())
    pause(world.scene, "+2d", "maintenance", lambda prospect: True)
    assert re.match(r"paused by u until \d{4}-.*: maintenance\n", status_text(preview(world.scene), Paint()))


@pytest.mark.parametrize("verb", ["hold", "release", "cancel", "rerun", "accept"])
@pytest.mark.parametrize("condition", [queued, failed, done, drifted])
def test_what_a_word_will_do_is_told_before_and_nothing_is_done_where_a_person_says_no(world, verb, condition):
    condition(world)
    before, jobs = files(world), dict(world.cluster.jobs)
    told: list[Prospect] = []
    with suppress(ReconcileError):
        answer = carry_out(world.scene, Order(verb, (STEP,)), lambda prospect: told.append(prospect) or False)
        if (verb, condition) == ("accept", done):
            assert isinstance(answer[0], Skipped)
            return
        assert answer == ()
        [sentence] = told[0].sentences
        assert sentence.startswith(f"{verb} {STEP} (")
        assert told[0].asks is (verb == "rerun" and condition in (done, drifted))
    assert (files(world), world.cluster.jobs) == (before, jobs)
