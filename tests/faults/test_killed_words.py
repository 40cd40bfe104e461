"""Every word of a person's killed at each of its effects: saying it again, at once or after a pass, comes to what it would have come to."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mortality import Killed, Mortality, watched
from reconciler import freeing, orphans, pausing, renaming
from reconciler.errors import ReconcileError
from reconciler.loop import Scene, preview, run_pass
from reconciler.model import Condition, FileId, OutputState, Stage
from reconciler.ports import Submission
from reconciler.words import Order, carry_out
from test_pass import DOCUMENT, Lab
from worlds import MemoryCluster, StandInTool


class Trainer(StandInTool):
    """Its epoch holds three files, all of them evidence."""

    def __init__(self) -> None:
        super().__init__(Stage.FINETUNE)
        self.result = "epoch_0/result"

    def check(self, step, disk, deep=False):
        found = super().check(step, disk, deep)
        if found.state is not OutputState.COMPLETE:
            return found
        more = [step.output_dir / "epoch_0" / name for name in ("shard", "state")]
        facts = [(path, disk.stat(path)) for path in more]
        seen = tuple(FileId(str(path), info.size, info.mtime_ns) for path, info in facts if info is not None)
        return replace(found, evidence=(*found.evidence, *seen))


class Cluster(MemoryCluster):
    """Its changes are effects: the command may die before and after each."""

    mortality: Mortality | None = None

    def submit(self, job: Submission) -> str:
        return self._effect(lambda: MemoryCluster.submit(self, job))

    def cancel(self, job_id: str) -> None:
        self._effect(lambda: MemoryCluster.cancel(self, job_id))

    def hold(self, job_id: str) -> None:
        self._effect(lambda: MemoryCluster.hold(self, job_id))

    def release(self, job_id: str) -> None:
        self._effect(lambda: MemoryCluster.release(self, job_id))

    def _effect(self, do: Callable):
        if self.mortality is not None:
            self.mortality.enter()
        answer = do()
        if self.mortality is not None:
            self.mortality.enter()
        return answer


@dataclass
class World(Lab):
    """An experiment that can be put back to where it was."""

    @property
    def scene(self) -> Scene:
        tools = {"trainer": Trainer(), "evaluator": StandInTool(Stage.EVALUATION)}
        return replace(super().scene, tools=tools)

    def end(self, key: str, content: str | None = "whole", state: str = "COMPLETED") -> None:
        step = preview(self.scene).desired.step(key)
        if content is not None:
            result = step.output_dir / ("epoch_0/result" if step.stage is Stage.FINETUNE else "result")
            result.parent.mkdir(parents=True, exist_ok=True)
            for path in (result, result.with_name("shard"), result.with_name("state")):
                path.write_text(content)
                os.utime(path, (self.now, self.now))
        self.cluster.finish(preview(self.scene).plan.of(key).job, state, self.now)

    def save(self) -> Callable[[], None]:
        """What puts everything back."""
        copy, now = self.directory.with_name("saved"), self.now
        shutil.copytree(self.directory, copy, symlinks=True)
        jobs, submissions = dict(self.cluster.jobs), list(self.cluster.submissions)

        def put_back() -> None:
            shutil.rmtree(self.directory)
            shutil.copytree(copy, self.directory, symlinks=True)
            self.now, self.cluster.jobs, self.cluster.submissions = now, dict(jobs), list(submissions)

        return put_back

    def live(self) -> list[str]:
        """The job names, without the attempt, of all that has not ended."""
        return [job.name.rpartition("-")[0] for job in self.cluster.jobs.values() if job.is_live]


def yes(prospect: object) -> bool:
    return True


def order(verb: str, *steps: str, **more) -> Callable[[Scene], object]:
    return lambda scene: carry_out(scene, Order(verb, steps, **more), yes)


def queued(world: World) -> None:
    world.run()


def held(world: World) -> None:
    world.run()
    order("hold", "*/finetune")(world.scene)


def paused(world: World) -> None:
    world.run()
    pausing.pause(world.scene, None, "", yes)


def all_done(world: World) -> None:
    world.run()
    for key in ("a/finetune", "b/finetune", "base/eval/cap_base"):
        world.end(key)
    world.run()
    for key in ("a/eval/cap_epoch0", "b/eval/cap_epoch0"):
        world.end(key)
    world.run()


def failed(world: World) -> None:
    world.run()
    world.end("a/finetune", "torn", "FAILED")
    for _ in range(3):
        world.run()


def left(world: World) -> None:
    """Of a run that the document does not have any more."""
    world.run()
    world.document.write_text(DOCUMENT.replace("| b | Fine-tuned |\n", "").replace("| b | ✓ epoch 0 |\n", ""))
    world.run()


WORDS = {
    "hold": (queued, order("hold", "*/finetune")),
    "release of held jobs": (held, order("release", "*/finetune")),
    "release of a failed step": (failed, order("release", "a/finetune")),
    "cancel": (queued, order("cancel", "*/finetune")),
    "accept": (failed, order("accept", "a/finetune")),
    "rerun": (all_done, order("rerun", "a/finetune", with_dependents=True)),
    "rerun of a queued step": (queued, order("rerun", "a/finetune")),
    "pause": (queued, lambda scene: pausing.pause(scene, None, "", yes)),
    "resume": (paused, lambda scene: pausing.resume(scene, "", yes)),
    "rename": (all_done, lambda scene: renaming.rename(scene, "a", "c", "", yes)),
    "free": (all_done, lambda scene: freeing.free(scene, ("a/finetune", "b/finetune"), "", yes)),
    "prune": (left, lambda scene: orphans.prune(scene, ("b",), "", yes)),
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    directory = tmp_path / "exp"
    for run, script in (("a", "cap_epoch0"), ("b", "cap_epoch0"), ("base", "cap_base")):
        (directory / run / "eval").mkdir(parents=True)
        (directory / run / "eval" / f"{script}.slurm").write_text("#!/bin/bash\necho eval\n")
        if run != "base":
            (directory / run / "finetune.slurm").write_text("#!/bin/bash\necho train\n")
    (directory / "experiment_summary.md").write_text(DOCUMENT)
    return World(directory, Cluster())


def said(world: World, word: Callable[[Scene], object], dies_at: int | None = None) -> Mortality:
    """The word, killed at an effect if it has so many."""
    mortality = world.cluster.mortality = Mortality(world.directory, dies_at=dies_at)
    try:
        with watched(mortality), suppress(Killed):
            word(world.scene)
    finally:
        world.cluster.mortality = None
    return mortality


def outcome(world: World) -> dict[str, object]:
    """How everything stands two passes later: steps, jobs, the document but for the jobs' numbers, and which files there are. What
    tells when and of which attempt is another matter, and so are a killed write's temporary files."""
    run_pass(world.scene)
    seen = run_pass(world.scene)
    files = {
        str(path.relative_to(world.directory)).split("moved-aside-")[0]
        for path in world.directory.rglob("*")
        if path.is_file() and not path.relative_to(world.directory).parts[0].startswith(".reconcile")
    }
    return {
        "steps": {a.step: (a.condition, a.reason.code) for a in seen.plan.actions},
        "jobs": sorted((job.name.rpartition("-")[0], job.held) for job in world.cluster.jobs.values() if job.is_live),
        "files": files,
        "paused": seen.memory.pause is not None,
        "document": [
            re.sub(r"\|\d+\|", "|n|", re.sub(r"\s*\|\s*", "|", line)) for line in world.document.read_text().split("\n")
        ],
    }


@pytest.mark.fault("SIGKILL of a person's word (hold, cancel, rerun, free, rename, …) at each of its effects")
@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("passes", [0, 1], ids=["at once", "after a pass"])
def test_a_killed_word_said_again_comes_to_what_it_would_have_come_to(world, name, passes, record_property):
    prepare, word = WORDS[name]
    prepare(world)
    put_back = world.save()
    effects = said(world, word).entered
    assert effects > 0
    expected = outcome(world)
    for effect in range(effects):
        put_back()
        assert said(world, word, effect).is_dead
        for _ in range(passes):
            run_pass(world.scene)
            assert len(world.live()) == len(set(world.live())), f"two live jobs after a kill at effect {effect}"
        with suppress(ReconcileError):  # done already, as far as that can be told
            said(world, word)
        assert outcome(world) == expected, f"killed at effect {effect} of {effects}"
        assert len(world.live()) == len(set(world.live())), f"two live jobs after a kill at effect {effect}"
    record_property("cases", effects)
    assert Condition.UNKNOWN not in {condition for condition, _ in expected["steps"].values()}
