"""A pass, told once: read the document, look at the world, plan, act, record.

``preview`` stops before acting and writes nothing; ``run_pass`` does it all under the experiment's lock, ``go_on`` again and
again. All plan with the same function from the same facts, so what a preview shows is what a pass does if nothing changed in
between.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler.act import Outcome, World, act
from reconciler.errors import AnotherPass, ClusterUnreachable, InvalidExperiment, NoSuchStep, TemporaryError, UsageError
from reconciler.experiment.load import load
from reconciler.experiment.strays import left_behind
from reconciler.interrupts import shielded
from reconciler.ledger import Ledger
from reconciler.limits import Gate
from reconciler.lock import pass_lock
from reconciler.memory import Identity, Memory
from reconciler.model import Action, Condition, Desired, Observed, Policy, Reason, Unknown, Verb, names_step
from reconciler.observe import asks_cluster, doubt_an_empty_queue, observe, roots_seen
from reconciler.plan import Plan, make_plan
from reconciler.ports import Backend, Clock, Disk, Environment, Tools
from reconciler.record import record
from reconciler.staleness import with_generations


@dataclass(frozen=True)
class Scene:
    """Everything around one experiment that a pass touches; tests build one from stand-ins in a few lines.

    ``select`` is a glob on step keys, or a run: steps that it does not name are looked at and left alone.
    """

    experiment: Path
    policy: Policy
    backend: Backend
    disk: Disk
    tools: Tools
    clock: Clock
    user: str
    environment: Environment
    deep: bool = False
    select: str = "*"
    say: Callable[[str], None] = field(default=lambda line: None)
    tick: Callable[[str], None] = field(default=lambda step: None)


@dataclass(frozen=True)
class Pass:
    """What one pass saw, decided and did, ``now`` being when it began to look (epoch s). ``outcomes`` is empty for a preview.
    ``is_news``: it differs from the pass before.

    ``select`` names the steps that are to be shown; ``converged`` tells of all of them.
    """

    desired: Desired
    observed: Observed
    memory: Memory
    plan: Plan
    now: float
    outcomes: tuple[Outcome, ...] = ()
    notes: tuple[str, ...] = ()
    is_news: bool = True
    select: str = "*"

    @property
    def shown(self) -> tuple[Outcome, ...]:
        """What became of the steps that are to be shown; in a preview nothing has yet (``result`` is empty)."""
        outcomes = self.outcomes or tuple(Outcome(action, "") for action in self.plan.actions)
        return tuple(outcome for outcome in outcomes if names_step(self.select, outcome.action.step))

    @property
    def actions(self) -> tuple[Action, ...]:
        """The actions to be shown, as they turned out or as planned."""
        return tuple(outcome.action for outcome in self.shown)

    @property
    def converged(self) -> bool:
        """True when every step of the experiment is done, and all of them are known."""
        if self.desired.hidden:
            return False
        return all(o.action.condition is Condition.DONE for o in self.outcomes) if self.outcomes else self.plan.converged

    @property
    def finished_runs(self) -> frozenset[str]:
        """The runs of which every step is done: a fault of theirs keeps back nothing."""
        actions = [outcome.action for outcome in self.outcomes] or self.plan.actions
        waiting = {action.step for action in actions if action.condition is not Condition.DONE}
        unfinished = {step.run for step in self.desired.steps if step.key in waiting} | set(self.desired.hidden)
        return frozenset(step.run for step in self.desired.steps) - unfinished

    @property
    def needs_person(self) -> bool:
        """True where one of the steps to be shown, or a run of which not all steps are known, goes on by a person alone."""
        return bool(self.desired.hidden) or any(action.condition.needs_person for action in self.actions)


def preview(scene: Scene, *, always_ask: bool = False) -> Pass:
    """What a pass would do now. Changes nothing at all. ``always_ask`` asks the cluster also where everything is done."""
    desired = _load(scene)
    memory = Ledger(desired.directory, scene.clock).memory()
    return _look_and_plan(scene, desired, memory, always_ask)


def run_pass(scene: Scene) -> Pass:
    """One pass. Raises AnotherPass when another one is under way; InvalidExperiment, and UsageError for a ``select`` that names
    no step, before anything was touched."""
    desired = _load(scene)
    with pass_lock(desired.directory) as lock:
        ledger = Ledger(desired.directory, scene.clock)
        seen = _look_and_plan(scene, desired, ledger.memory())
        desired = seen.desired
        if seen.memory.identity is None:
            _open(scene, desired, ledger)
        for root in roots_seen(desired, seen.memory, scene.disk):
            ledger.append("root", path=root)
        policy = scene.policy
        world = World(scene.backend, ledger, scene.clock, lock, policy, seen.now, scene.say)
        outcomes = act(seen.plan, desired, seen.observed, seen.memory, world)
        with shielded():
            recorded = record(desired, outcomes, seen.observed, ledger, scene.tools, policy, scene.clock())
    return replace(seen, outcomes=outcomes, notes=recorded.notes, is_news=recorded.is_news)


def go_on(
    look_around: Callable[[], Scene],
    poll: float,
    seen: Pass,
    report: Callable[[Pass], None],
    complain: Callable[[str], None],
    sleep: Callable[[float], None],
) -> Pass:
    """Further passes, the first after ``poll`` (s), then one every ``poll`` of the settings, until nothing is left to do without
    a person; returns the last one. Each reads everything anew, the settings too (``look_around``). What mends itself, a
    half-saved document included, which may lack what was selected, is complained of and waited out."""
    while any(action.is_pending for action in seen.actions):
        sleep(poll)
        try:
            scene = look_around()
            poll = scene.policy.poll
            seen = run_pass(scene)
        except (TemporaryError, AnotherPass, InvalidExperiment, NoSuchStep) as error:
            complain(str(error))
        else:
            report(seen)
    return seen


def _load(scene: Scene) -> Desired:
    desired = load(scene.experiment, scene.tools, scene.disk)
    desired.select(scene.select)
    return desired


def _look_and_plan(scene: Scene, desired: Desired, memory: Memory, always_ask: bool = False) -> Pass:
    desired = with_generations(left_behind(desired, memory.former), memory)
    unreachable = _refuse_strangers(memory, scene, desired, always_ask or asks_cluster(desired, memory))
    edges = scene.backend, scene.disk, scene.tools
    now = scene.clock()  # before the look: it may take hours, on a file server that hangs
    observed = observe(desired, memory, *edges, unreachable=unreachable, deep=scene.deep, always=always_ask, tick=scene.tick)
    gate = _environment_gate(memory, scene.environment) or _budget_gate(scene.policy, scene.environment)
    plan = make_plan(desired, observed, memory, scene.policy, now, gate, scene.select)
    if observed.queue == () and any(action.verb is Verb.SUBMIT for action in plan.actions):
        observed = doubt_an_empty_queue(observed, scene.backend, now)
        plan = make_plan(desired, observed, memory, scene.policy, now, gate, scene.select)
    return Pass(desired, observed, memory, plan, now, select=scene.select)


# --- whose experiment this is, and from where -----------------------------------------------------


def current_identity(scene: Scene, directory: Path) -> Identity:
    """Which cluster, path and user this pass stands for."""
    return Identity(scene.backend.identity(), str(directory), scene.user)


def _open(scene: Scene, desired: Desired, ledger: Ledger) -> None:
    here = current_identity(scene, desired.directory)
    facts = {"cluster": here.cluster, "path": here.path, "user": here.user}
    ledger.append("opened", **facts, environment=environment_facts(scene.environment))


def _refuse_strangers(memory: Memory, scene: Scene, desired: Desired, is_cluster_asked: bool) -> Unknown | None:
    """Raises UsageError for an experiment that is not this user's, here, on this cluster. A cluster that does not even say which
    one it is cannot be asked anything; why is returned."""
    known = memory.identity
    if known is None:
        return None
    if known.path != str(desired.directory):
        raise UsageError(
            f"{desired.directory}: this experiment was reconciled at {known.path}. If it was moved, say "
            f"`reconcile adopt {desired.directory} --moved`; if it is a copy, `--copied`"
        )
    if known.user != scene.user:
        raise UsageError(
            f"{desired.directory}: this experiment is reconciled by {known.user}; their jobs cannot be seen as {scene.user}. "
            f"To take it over, say `reconcile adopt {desired.directory} --user`"
        )
    try:
        cluster = scene.backend.identity() if is_cluster_asked else known.cluster
    except ClusterUnreachable as error:
        return Unknown(f"{error} (this experiment runs on {known.cluster})")
    if known.cluster != cluster:
        raise UsageError(
            f"{desired.directory}: this experiment runs on {known.cluster}, and this is {cluster}. "
            f"To go on here, say `reconcile adopt {desired.directory} --cluster`"
        )
    return None


def environment_facts(environment: Environment) -> dict[str, bool]:
    """Which of the things that batch scripts lean on are there; sbatch hands the submitter's environment to the job."""
    return {
        "module": any(name in environment for name in ("MODULESHOME", "LMOD_CMD", "BASH_FUNC_module%%")),
        "conda": any(name in environment for name in ("CONDA_EXE", "MAMBA_EXE")),
        "HOME": "HOME" in environment,
        "USER": "USER" in environment or "LOGNAME" in environment,
    }


def _environment_gate(memory: Memory, environment: Mapping[str, str]) -> Gate | None:
    now = environment_facts(environment)
    gone = [name for name, was_there in memory.environment.items() if was_there and not now.get(name, False)]
    if not gone:
        return None
    message = (
        f"this environment lacks {', '.join(gone)}, which the first pass had, and jobs would inherit it; "
        "start reconcile from a login shell (`bash -lc`), or say `reconcile adopt EXPERIMENT --environment`"
    )
    return Gate(Reason("EnvironmentChanged", message))


_CHANGES_COST = re.compile(r"SBATCH_(TIMELIMIT|GRES|EXCLUSIVE|GPUS.*|NTASKS_PER_GPU|TRES_PER_TASK)")


def _budget_gate(policy: Policy, environment: Mapping[str, str]) -> Gate | None:
    """Variables that sbatch puts over what scripts say (man sbatch, INPUT ENVIRONMENT VARIABLES), where that must count."""
    named = sorted(name for name in environment if _CHANGES_COST.fullmatch(name))
    if policy.budget is None or not named:
        return None
    message = f"{', '.join(named)} would change what jobs cost, and there is a budget; unset it, and let the scripts say it"
    return Gate(Reason("CostUnknown", message))
