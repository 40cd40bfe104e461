"""An experiment half way, the same each time, in which one ``reconcile apply`` has everything to do.

One fine-tune has ended with a good result (mark-done) and its evaluation may start (submission 1); one is running, submitted by a pass
that died before it could write down the job's id (adoption); one was lost with its node in the middle of an epoch (moved aside,
submission 2); one was never tried (submission 3), and neither was the base model's evaluation (submission 4). The document's tables are
there. The product is the installed command with its ``cli`` backend; Slurm's commands are the simulation's.
"""

from __future__ import annotations

import copy
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from faces import FIXTURES, USER, CommandsHere
from fake_slurm.cluster import Cluster
from fake_slurm.jobs import Job, State
from fake_slurm.server import Server
from fake_slurm.site import Site
from reconciler.backends import slurm_cli
from reconciler.backends.slurm_cli import SlurmCli
from reconciler.disk import RealDisk
from reconciler.experiment.load import load
from reconciler.experiment.settings import read_settings
from reconciler.ledger import Ledger
from reconciler.loop import Pass, Scene, run_pass
from reconciler.model import Condition, Desired, Stage, Step, Token, digest
from reconciler.tools import all_tools

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = "stagger: 0s\nsettle: 0s\nbackoff: 1s\n"
DONE, ADOPTED, TORN, UNTRIED = "r8_lr1e-5", "r8_lr5e-5", "r16_lr1e-5", "r16_lr5e-5"
_STEPS_BETWEEN = 400.0  # s, from one pass to the next when it settles


@dataclass
class HalfWay:
    """The experiment and its cluster. ``reset`` puts both back to where every case begins; ``close`` leaves no server."""

    place: Path
    is_first_pass: bool = False

    def __post_init__(self) -> None:
        self.lab = self.place / "lab"
        self._template, self._finished = self.place / "template", self.place / "finished"
        # Ended jobs stay in the queue, so that the jobs themselves can be counted at the end.
        site = Site(min_job_age=1e9, accounting_lag=0.0)
        self._server = Server(Cluster(site, time.time() - 3600.0), self.place / "socket")
        self._server.start()
        self._prepare()
        self._at_first = copy.deepcopy(self._server.cluster)

    def close(self) -> None:
        self._server.stop()

    @property
    def cluster(self) -> Cluster:
        return self._server.cluster

    @property
    def experiment(self) -> Path:
        return self.lab / "cap_4L_lora_lr"

    @property
    def document(self) -> Path:
        return self.experiment / "experiment_summary.md"

    @property
    def environment(self) -> Mapping[str, str]:
        """What the command gets: no home of anybody's, no Slurm but the simulation."""
        foreign = ("SLURM", "SBATCH", "SQUEUE", "SACCT", "RECONCILE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        path = f"{FIXTURES / 'fake_slurm/bin'}:{os.environ['PATH']}"
        own = {"HOME": str(self.place), "PATH": path, "FAKE_SLURM": str(self._server.path)}
        return {**kept, **own, "PYTHONDONTWRITEBYTECODE": "1", "RECONCILE_BACKEND": "cli"}

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "reconciler", "apply", str(self.experiment)]

    # --- where every case begins

    def _prepare(self) -> None:
        self._new_lab()
        quick = {**os.environ, "STANDIN_SECONDS": "0"}
        for script in [*sorted(self.experiment.glob("*/finetune.slurm")), *sorted(self.experiment.glob("*/eval/*.slurm"))]:
            subprocess.run(["bash", script.name], cwd=script.parent, env=quick, check=True, capture_output=True)
        self.lab.rename(self._finished)
        self._new_lab()
        (self.experiment / "reconcile.yaml").write_text(SETTINGS)
        for script in self.experiment.rglob("*.slurm"):
            script.write_text(re.sub(r"--time=\S+", "--time=30-00:00:00", script.read_text()))
        self._text = self.document.read_text()
        if not self.is_first_pass:
            self._go_half_way()
        shutil.copytree(self.lab, self._template, symlinks=True)

    def _new_lab(self) -> None:
        maker = [sys.executable, str(REPOSITORY / "examples/new_experiment.py"), str(self.lab)]
        subprocess.run(maker, check=True, capture_output=True)

    def _go_half_way(self) -> None:
        steps = {step.run: step for step in self.desired().steps if step.stage is Stage.FINETUNE}
        self.apply(f"{DONE}/finetune")
        self.apply(f"{TORN}/finetune")
        (done,), (torn,) = self.live()[f"{DONE}/finetune"], self.live()[f"{TORN}/finetune"]
        self.finish(done, steps[DONE])
        self.write_outputs(steps[TORN])
        for weights in steps[TORN].output_dir.rglob("*.safetensors"):
            os.truncate(weights, weights.stat().st_size // 2)
        self.cluster.finish(torn.id, state=State.NODE_FAIL)
        self.cluster.advance(60.0)
        self.apply(f"{TORN}/finetune")  # looks a first time
        ledger = self.experiment / ".reconcile/ledger.jsonl"
        before, text = ledger.read_text(), self.document.read_text()
        self.apply(f"{ADOPTED}/finetune")
        intent = next(line for line in ledger.read_text()[len(before) :].splitlines() if '"event":"intent"' in line)
        ledger.write_text(f"{before}{intent}\n")
        self.document.write_text(text)

    def reset(self) -> None:
        """Everything as at the beginning, but that the cluster's clock tells what it is now."""
        shutil.rmtree(self.lab, ignore_errors=True)
        shutil.copytree(self._template, self.lab, symlinks=True)
        self.reset_cluster(self._at_first)

    def reset_cluster(self, cluster: Cluster) -> None:
        self._server.cluster = copy.deepcopy(cluster)
        self._server.faults.clear()
        self.cluster.advance(max(0.0, time.time() - self.cluster.now))

    # --- passes in this process, by the cluster's clock

    def apply(self, select: str = "*") -> Pass:
        """One pass with the real ``cli`` backend. Raises what a pass raises."""
        with _commands_here():
            return run_pass(self._scene(select))

    def _scene(self, select: str) -> Scene:
        return Scene(
            self.experiment,
            read_settings(self.experiment, {}, self.place),
            SlurmCli(self.environment),
            RealDisk(),
            all_tools(),
            lambda: self.cluster.now,
            USER,
            self.environment,
            select=select,
        )

    def desired(self) -> Desired:
        return load(self.experiment, all_tools(), RealDisk())

    # --- what the cluster and its jobs do

    def jobs(self) -> dict[str, list[Job]]:
        """Every job that the cluster ever accepted, by step."""
        found: dict[str, list[Job]] = defaultdict(list)
        for job in self.cluster.queue():
            token = Token.parse(job.name)
            found[self._keys.get(token.step, "?") if token else "?"].append(job)
        return found

    @cached_property
    def _keys(self) -> dict[str, str]:
        """Each step's key by what names it in a job's name; no case changes which steps there are."""
        return {digest(step.key)[:10]: step.key for step in self.desired().steps}

    def live(self) -> dict[str, list[Job]]:
        return {key: [job for job in jobs if not job.state.is_final] for key, jobs in self.jobs().items()}

    def write_outputs(self, step: Step) -> None:
        """What a step's job leaves, as its real script left it in another copy of this experiment."""
        done = self._finished / step.output_dir.relative_to(self.lab)
        shutil.copytree(done, step.output_dir, symlinks=True, dirs_exist_ok=True)

    def finish(self, job: Job, step: Step) -> None:
        self.write_outputs(step)
        self.cluster.finish(job.id)

    # --- afterwards

    def wait_for_the_lock(self, seconds: float = 20.0) -> None:
        """An sbatch that outlived its pass keeps the lock until it has its answer."""
        path, end = self.experiment / ".reconcile/lock", time.monotonic() + seconds
        while path.exists():
            with path.open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    assert time.monotonic() < end, "the lock is never freed"
                    time.sleep(0.01)
                else:
                    return

    def settle(self, passes: int = 30, *, may_be_twice: bool = False) -> list[str]:
        """Passes, while jobs succeed, until everything is done; every promise that was broken on the way.

        ``may_be_twice``: a power cut between the syncs of both directories of a rename leaves, without a journal, both names.
        What was moved aside is then moved aside again, and lost is nothing.
        """
        broken: list[str] = []
        steps = {step.key: step for step in self.desired().steps}
        for _ in range(passes):
            broken += self._two_live()
            try:
                seen = self.apply()
            except Exception as error:  # noqa: BLE001 - whatever it is, the harness goes on to the next case
                broken.append(f"a pass after the fault: {error!r}")
                return broken
            if seen.converged:
                break
            self.cluster.advance(_STEPS_BETWEEN)
            broken += self._two_live()
            for key, jobs in self.live().items():
                for job in jobs:
                    if job.state.has_resources:
                        broken += self._begun_too_early(steps[key], seen)
                        self.finish(job, steps[key])
        else:
            stands = [(o.action.step, o.action.reason.code) for o in seen.outcomes if o.action.condition is not Condition.DONE]
            broken.append(f"not converged after {passes} passes: {stands}")
        return broken + self._what_is_wrong_at_the_end(steps, may_be_twice=may_be_twice)

    def _two_live(self) -> list[str]:
        held = [job.id for jobs in self.live().values() for job in jobs if job.request.held and job.state is State.PENDING]
        free = {key: [job.id for job in jobs if job.id not in held] for key, jobs in self.live().items()}
        return [f"{key} has jobs {ids} at once" for key, ids in free.items() if len(ids) > 1]

    def _begun_too_early(self, step: Step, seen: Pass) -> list[str]:
        is_done = step.need is None or seen.plan.of(step.need).condition is Condition.DONE
        return [] if is_done else [f"{step.key} runs before {step.need} is done"]

    def _what_is_wrong_at_the_end(self, steps: Mapping[str, Step], *, may_be_twice: bool) -> list[str]:
        wrong = []
        for key, jobs in self.jobs().items():
            ran = [job for job in jobs if job.state in (State.COMPLETED, State.NODE_FAIL)]
            wanted = 2 if key == f"{TORN}/finetune" and not self.is_first_pass else 1
            if key not in steps or len(ran) != wanted:
                wrong.append(f"{key} ran {len(ran)} times: {[(job.id, job.state.value) for job in jobs]}")
        text = self.document.read_text()
        if not text.startswith(self._text.rstrip("\n")):
            wrong.append("the document was changed outside the status tables")
        if text.count("COMPLETED") != len(steps):
            wrong.append(f"the document calls {text.count('COMPLETED')} of {len(steps)} steps completed")
        done = {key for key, step in Ledger(self.experiment, time.time).memory().steps.items() if step.done is not None}
        if done != steps.keys():
            wrong.append(f"not in the ledger as done: {sorted(steps.keys() - done)}")
        kept = list(self.lab.glob("ck-outputs/*/*/moved-aside-*/epoch_0")) if not self.is_first_pass else [self.lab]
        is_kept = bool(kept) if may_be_twice else len(kept) == 1
        return wrong if is_kept else [*wrong, f"the torn epoch was moved aside {len(kept)} times"]


@contextmanager
def _commands_here() -> Iterator[None]:
    before = slurm_cli.subprocess
    slurm_cli.subprocess = CommandsHere()  # type: ignore[assignment]
    try:
        yield
    finally:
        slurm_cli.subprocess = before
