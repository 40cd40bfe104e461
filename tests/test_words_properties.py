"""Whatever persons say, in whatever order: a held or paused step is not submitted, and no finished or foreign work is lost."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler import freeing
from reconciler.errors import ReconcileError
from reconciler.ledger import Ledger
from reconciler.loop import Scene, preview, run_pass
from reconciler.model import Phase, Stage
from reconciler.pausing import pause, resume
from reconciler.words import Order, carry_out
from test_pass import Lab
from worlds import MemoryCluster, StandInTool

DOCUMENT = """# one run

## Tools

- **Model Preparation:** trainer
- **Evaluation:** evaluator

## All Runs

| Run Name | Type |
|----------|------|
| a | Fine-tuned |
| b | Fine-tuned |

## Evaluation Plan

| Run Name | cap |
|----------|-----|
| a | ✓ epoch 0 |
"""
STEPS = ("a/finetune", "a/eval/cap_epoch0", "b/finetune")


class Trainer(StandInTool):
    """Its result is a checkpoint: what may be freed."""

    def _step(self, run, key, script):
        step = super()._step(run, key, script)
        return replace(step, checkpoints={0: step.output_dir})


class Watched(MemoryCluster):
    """Looks, at each submission, at what would be trained over."""

    def submit(self, job):
        result = job.script.parent / "out" / job.script.stem / "result"
        if job.script.name == "finetune.slurm":
            assert not result.exists(), f"{job.script} would train over {result.read_text()!r}"
        return super().submit(job)


class World(Lab):
    """Counts what trainers wrote: it is where it was written, or moved aside, or freed by a person."""

    written = 0
    freed = 0

    @property
    def scene(self) -> Scene:
        scene = super().scene
        return replace(scene, tools={**scene.tools, "trainer": Trainer(Stage.FINETUNE)})

    def say(self, verb: str, step: str) -> None:
        with suppress(ReconcileError):
            if verb == "pause":
                pause(self.scene, None, "", lambda prospect: True)
            elif verb == "pause --until":
                pause(self.scene, "90s", "", lambda prospect: True)
            elif verb == "resume":
                resume(self.scene, "", lambda prospect: True)
            elif verb == "free":
                before = self.results()
                freeing.free(self.scene, [step], "", lambda prospect: True)
                self.freed += before - self.results()
            else:
                order = Order(verb.split()[0], (step,), now="--now" in verb, with_dependents="--with" in verb)
                carry_out(self.scene, order, lambda prospect: True)

    def happen(self, what: str, step: str) -> None:
        job = preview(self.scene).plan.of(step).job
        shown = self.cluster.jobs.get(job or "")
        if what == "edit":
            script = preview(self.scene).desired.step(step).script
            script.write_text(script.read_text() + "echo more\n")
        elif shown is None or not shown.is_live or shown.held:
            return
        elif what == "start":
            self.cluster.jobs[job] = replace(shown, state="RUNNING", phase=Phase.RUNNING)
        else:
            self.end(step, job, what)

    def end(self, step: str, job: str, what: str) -> None:
        if what != "nothing":
            result = preview(self.scene).desired.step(step).output_dir / "result"
            result.parent.mkdir(parents=True, exist_ok=True)
            self.written += step.endswith("finetune") and not result.exists()
            result.write_text(what)
            os.utime(result, (self.now, self.now))
        self.cluster.finish(job, "COMPLETED" if what == "whole" else "FAILED", self.now)

    def pass_by(self) -> None:
        """One pass: what is held or paused is not submitted by it, and no held job is let go."""
        self.now += 60
        memory = Ledger(self.directory.resolve(), lambda: 0.0).memory()
        held = {key for key, of_step in memory.steps.items() if of_step.word is not None}
        is_paused = memory.pause is not None and memory.pause.is_on(self.now)
        before = len(self.cluster.submissions)
        held_jobs = {job.id for job in self.cluster.jobs.values() if job.held and self.key_of(job.name) in held}
        run_pass(self.scene)
        new = [self.key_of(job.name) for job in self.cluster.submissions[before:]]
        assert not (is_paused and new)
        assert not held & set(new)
        assert all(self.cluster.jobs[job].held or not self.cluster.jobs[job].is_live for job in held_jobs)
        if is_paused:
            assert not any(job.phase is Phase.QUEUED and not job.held for job in self.cluster.jobs.values())

    def key_of(self, name: str) -> str:
        memory = Ledger(self.directory.resolve(), lambda: 0.0).memory()
        return next(key for key, of_step in memory.steps.items() if any(a.name == name for a in of_step.attempts))

    def results(self) -> int:
        """Files that trainers wrote, where they were written or moved aside from there."""
        return sum("cap_epoch0" not in path.parts for path in self.directory.rglob("result") if path.is_file())

    def is_sound(self) -> None:
        assert self.results() + self.freed == self.written, "a trainer's work is lost"
        live = [self.key_of(job.name) for job in self.cluster.jobs.values() if job.is_live]
        assert len(live) == len(set(live)), "two live jobs of one step"


def new_world(directory: Path, foreign: str) -> World:
    for run in "ab":
        (directory / run / "eval").mkdir(parents=True)
        (directory / run / "finetune.slurm").write_text("#!/bin/bash\necho train\n")
    (directory / "a" / "eval" / "cap_epoch0.slurm").write_text("#!/bin/bash\necho eval\n")
    (directory / "experiment_summary.md").write_text(DOCUMENT)
    world = World(directory, cluster=Watched())
    if foreign:
        result = directory / "b" / "out" / "finetune" / "result"
        result.parent.mkdir(parents=True)
        result.write_text(foreign)
        os.utime(result, (world.now - 5000, world.now - 5000))
        world.written += 1
    return world


WORDS = (
    "hold", "release", "cancel", "rerun", "rerun --now", "rerun --with-dependents", "accept", "free", "pause", "pause --until", "resume",
)  # fmt: skip
EVENTS = ("start", "whole", "whole", "torn", "nothing", "edit")
MOMENTS = st.one_of(
    st.tuples(st.just("say"), st.sampled_from(WORDS), st.sampled_from(STEPS)),
    st.tuples(st.just("happen"), st.sampled_from(EVENTS), st.sampled_from(STEPS)),
    st.tuples(st.just("pass"), st.just(""), st.just("")),
    st.tuples(st.just("pass"), st.just(""), st.just("")),
)


@settings(max_examples=2000 if os.environ.get("RECONCILE_HISTORIES") else 40)
@given(st.lists(MOMENTS, min_size=4, max_size=16), st.sampled_from(["", "", "by somebody", "whole"]))
def test_whatever_is_said_nothing_held_starts_and_nothing_finished_is_lost(moments, foreign):
    with tempfile.TemporaryDirectory() as directory:
        world = new_world(Path(directory) / "exp", foreign)
        reruns_b = False
        for kind, what, step in moments:
            if kind == "say":
                reruns_b |= what.startswith(("rerun", "free")) and step == "b/finetune"
                world.say(what, step)
            elif kind == "happen":
                world.happen(what, step)
            else:
                world.pass_by()
            world.is_sound()
        if foreign and not reruns_b:
            assert (world.directory / "b" / "out" / "finetune" / "result").read_text() == foreign
