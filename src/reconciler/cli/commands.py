"""The commands and their options, one short function each."""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from reconciler import render, words
from reconciler.backends import choose
from reconciler.disk import RealDisk
from reconciler.errors import AnotherPass, InvalidExperiment, TemporaryError
from reconciler.experiment.load import find_document, load
from reconciler.experiment.settings import read_settings
from reconciler.loop import Pass, Scene, preview, run_pass
from reconciler.model import Unknown
from reconciler.tools import all_tools

F = TypeVar("F", bound=Callable[..., Any])

_EXPERIMENT = click.argument("experiment", type=click.Path(path_type=Path), default=Path())
_OUTPUT = click.option("--output", "form", type=click.Choice(["text", "json"]), default="text", help="Text for people or JSON.")
_BACKEND = click.option(
    "--backend",
    envvar="RECONCILE_BACKEND",
    type=click.Choice(["auto", "pyslurm", "cli", "local"]),
    help="How to reach the cluster; local runs the scripts on this machine.",
)
_SELECT = click.option("--select", metavar="GLOB", help="Only the steps whose key matches.")
_VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Show finished steps too.")
_DEEP = click.option("--deep", is_flag=True, help="Verify outputs in full, not only by structure.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="reconciler", prog_name="reconcile")
def reconcile() -> None:
    """Bring a fine-tuning experiment to the state that its document describes."""


def _scene(experiment: Path, backend: str | None, **more: Any) -> Scene:
    directory = find_document(experiment).parent.resolve()
    policy = read_settings(directory, {"backend": backend} if backend else {}, Path.home())
    chosen = choose(policy.backend, policy.max_in_flight)
    if chosen.name == "local" and policy.max_in_flight is None:
        policy = replace(policy, max_in_flight=1)
    return Scene(
        experiment=experiment,
        policy=policy,
        backend=chosen,
        disk=RealDisk(),
        tools=all_tools(),
        clock=time.time,
        user=getpass.getuser(),
        environment=dict(os.environ),
        tick=_progress(),
        **more,
    )


def _progress() -> Callable[[str], None]:
    """On a terminal, tell which step is being looked at when that takes long; elsewhere nothing."""
    if not sys.stderr.isatty():
        return lambda step: None
    began = time.monotonic()

    def tick(step: str) -> None:
        if time.monotonic() - began > 1:
            print(f"\r\x1b[Klooking at {render.plain(step)}", end="\r\x1b[K", file=sys.stderr, flush=True)

    return tick


def _paint() -> render.Paint:
    return render.Paint(sys.stdout.isatty() and not os.environ.get("NO_COLOR"))


def _warn(seen: Pass) -> None:
    for problem in seen.desired.problems:
        print(f"reconcile: {'warning: ' if problem.warning else ''}{render.plain(str(problem))}", file=sys.stderr)


def _selected(seen: Pass, pattern: str | None) -> Pass:
    if pattern is None:
        return seen
    keys = {step.key for step in words.select(seen.desired, [pattern])}
    plan = replace(seen.plan, actions=tuple(a for a in seen.plan.actions if a.step in keys))
    return replace(seen, plan=plan, outcomes=tuple(o for o in seen.outcomes if o.action.step in keys))


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


# --- looking ---------------------------------------------------------------------------------------------


@reconcile.command()
@_EXPERIMENT
@_BACKEND
@_OUTPUT
@_SELECT
@_VERBOSE
@_DEEP
def diff(experiment: Path, backend: str | None, form: str, select: str | None, verbose: bool, deep: bool) -> int:
    """Preview the pending actions; changes nothing at all."""
    seen = _selected(preview(_scene(experiment, backend, deep=deep)), select)
    _warn(seen)
    if form == "json":
        _print_json(render.actions_json(seen))
    else:
        print(render.diff_text(seen, _paint(), verbose=verbose))
    return diff_exit_code(seen)


def diff_exit_code(seen: Pass) -> int:
    """3 queue unknown, 1 something pending, 4 only a person can go on, 0 converged."""
    if isinstance(seen.observed.queue, Unknown):
        return _unreachable(seen.observed.queue)
    if any(action.is_pending for action in seen.actions):
        return 1
    return 4 if any(action.condition.needs_person for action in seen.actions) else 0


def _unreachable(queue: Unknown) -> int:
    print(f"reconcile: the cluster cannot be observed, nothing was done: {render.plain(queue.why)}", file=sys.stderr)
    return 3


@reconcile.command()
@_EXPERIMENT
@_BACKEND
@_OUTPUT
@_SELECT
def status(experiment: Path, backend: str | None, form: str, select: str | None) -> int:
    """Show each step's condition, progress, and what is next."""
    seen = _selected(preview(_scene(experiment, backend)), select)
    _warn(seen)
    if form == "json":
        _print_json(render.status_json(seen))
    else:
        print(render.status_text(seen, _paint()))
    return _unreachable(seen.observed.queue) if isinstance(seen.observed.queue, Unknown) else 0


@reconcile.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@click.argument("step")
@_BACKEND
@_OUTPUT
@_DEEP
def explain(experiment: Path, step: str, backend: str | None, form: str, deep: bool) -> int:
    """Tell all that is known of one step: facts, the rule that decided, attempts, evidence."""
    seen = preview(_scene(experiment, backend, deep=deep))
    for chosen in words.select(seen.desired, [step]):
        if form == "json":
            _print_json(render.explained(seen, chosen.key))
        else:
            print(render.explain_text(seen, chosen.key))
    return 0


@reconcile.command()
@_EXPERIMENT
@_OUTPUT
def validate(experiment: Path, form: str) -> int:
    """Check the document and the scaffolding alone; asks no cluster."""
    read_settings(find_document(experiment).parent.resolve(), {}, Path.home())
    desired = load(experiment, all_tools(), RealDisk())
    faults = [problem for problem in desired.problems if not problem.warning]
    if form == "json":
        problems = [
            {"file": str(p.file), "line": p.line, "message": p.message, "run": p.run, "warning": p.warning}
            for p in desired.problems
        ]
        _print_json({"experiment": desired.name, "steps": [step.key for step in desired.steps], "problems": problems})
    else:
        for problem in desired.problems:
            print(f"{'warning' if problem.warning else 'error'}: {render.plain(str(problem))}")
        print(f"{render.plain(desired.name)}: {len(desired.steps)} steps, {len(faults)} errors")
    return 2 if faults else 0


# --- acting ----------------------------------------------------------------------------------------------


@reconcile.command()
@_EXPERIMENT
@_BACKEND
@_OUTPUT
@_DEEP
@_SELECT
@click.option("--wait", is_flag=True, help="Go on, a pass every `poll`, until nothing is left to do.")
@click.option("--quiet", is_flag=True, help="Say something only when something changed.")
@click.option("--max-in-flight", type=click.IntRange(min=1), help="Jobs in the queue at most, your other jobs counted.")
def apply(
    experiment: Path,
    backend: str | None,
    form: str,
    deep: bool,
    select: str | None,
    wait: bool,
    quiet: bool,
    max_in_flight: int | None,
) -> int:
    """Do one pass: submit, take over, mark done, and write the status tables."""
    scene = _scene(experiment, backend, deep=deep, select=select or "*")
    if max_in_flight is not None:
        scene = replace(
            scene, policy=replace(scene.policy, max_in_flight=max_in_flight), backend=choose(scene.backend.name, max_in_flight)
        )
    seen = _selected(run_pass(scene), select)
    _warn(seen)
    if form == "text":
        _report(seen, quiet)
    while wait and not _is_over(seen):
        time.sleep(scene.policy.poll)
        seen = _next_pass(scene, seen, form)
    if form == "json":
        _print_json(render.actions_json(seen))
    return apply_exit_code(seen)


def _is_over(seen: Pass) -> bool:
    return not any(action.is_pending for action in seen.actions)


def _next_pass(scene: Scene, before: Pass, form: str) -> Pass:
    """A further pass of ``--wait``; what mends itself, a half-saved document included, is said and waited out."""
    try:
        seen = _selected(run_pass(scene), None if scene.select == "*" else scene.select)
    except (TemporaryError, AnotherPass, InvalidExperiment) as error:
        print(f"reconcile: {render.plain(str(error))}", file=sys.stderr)
        return before
    if form == "text":
        _report(seen, quiet=True, before=before)
    return seen


def _report(seen: Pass, quiet: bool, before: Pass | None = None) -> None:
    for note in seen.notes:
        print(f"reconcile: {render.plain(note)}", file=sys.stderr)
    known = {action.step: action.condition for action in before.actions} if before else {}
    has_changed = any(o.action.changes_something for o in seen.outcomes) or (
        before is not None and any(known.get(a.step) is not a.condition for a in seen.actions)
    )
    if has_changed or not quiet:
        print(render.applied_text(seen, _paint()), flush=True)


def apply_exit_code(seen: Pass) -> int:
    """3 queue unknown, 4 a step needs a person, 0 the pass did its work."""
    if isinstance(seen.observed.queue, Unknown):
        return _unreachable(seen.observed.queue)
    return 4 if any(action.condition.needs_person for action in seen.actions) else 0


# --- a person's word ---------------------------------------------------------------------------------------


def _order_options(command: F) -> F:
    options = (
        click.argument("experiment", type=click.Path(path_type=Path)),
        click.argument("steps", nargs=-1),
        _BACKEND,
        click.option("--reason", "why", default="", help="Kept, and shown by explain."),
        click.option("-y", "--yes", is_flag=True, help="Do not ask."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _give(experiment: Path, backend: str | None, order: words.Order, yes: bool) -> int:
    if not order.steps:
        raise click.UsageError("name at least one step, or a glob such as 'r8_*/finetune'")

    def confirm(prospect: words.Prospect) -> bool:
        for sentence in prospect.sentences:
            print(render.plain(sentence), file=sys.stderr)
        return yes or not prospect.asks or click.confirm("go on?", err=True)

    for sentence in words.carry_out(_scene(experiment, backend), order, confirm):
        print(render.plain(sentence))
    return 0


@reconcile.command()
@_order_options
def release(experiment: Path, steps: tuple[str, ...], backend: str | None, why: str, yes: bool) -> int:
    """Let held or failed steps be decided afresh; without a step, lift the stop after many failures."""
    if steps:
        return _give(experiment, backend, words.Order("release", steps, why), yes)
    for sentence in words.release_experiment(_scene(experiment, backend)):
        print(render.plain(sentence))
    return 0


@reconcile.command()
@_order_options
def hold(experiment: Path, steps: tuple[str, ...], backend: str | None, why: str, yes: bool) -> int:
    """Keep steps from being submitted, and their queued jobs from starting."""
    return _give(experiment, backend, words.Order("hold", steps, why), yes)


@reconcile.command()
@_order_options
def cancel(experiment: Path, steps: tuple[str, ...], backend: str | None, why: str, yes: bool) -> int:
    """Cancel the jobs of steps, and hold the steps."""
    return _give(experiment, backend, words.Order("cancel", steps, why), yes)


@reconcile.command()
@_order_options
@click.option("--now", is_flag=True, help="Replace a running job too.")
@click.option("--with-dependents", is_flag=True, help="Rerun what depends on these steps as well.")
def rerun(
    experiment: Path, steps: tuple[str, ...], backend: str | None, why: str, yes: bool, now: bool, with_dependents: bool
) -> int:
    """Do steps again; their outputs are moved aside first."""
    return _give(experiment, backend, words.Order("rerun", steps, why, now, with_dependents), yes)


@reconcile.command()
@_order_options
@click.option("--moved", "what", flag_value="moved", help="The experiment was moved here.")
@click.option("--copied", "what", flag_value="copied", help="This is a copy; it starts without memory.")
@click.option("--cluster", "what", flag_value="cluster", help="Go on on this cluster.")
@click.option("--user", "what", flag_value="user", help="Take the experiment over from another user.")
@click.option("--environment", "what", flag_value="environment", help="This environment is the right one.")
def accept(experiment: Path, steps: tuple[str, ...], backend: str | None, why: str, yes: bool, what: str | None) -> int:
    """Let a result stand, or say whose experiment this is."""
    if what is None:
        return _give(experiment, backend, words.Order("accept", steps, why), yes)
    if steps:
        raise click.UsageError(f"--{what} concerns the experiment as a whole; name no steps with it")
    for sentence in words.accept_identity(_scene(experiment, backend), what):
        print(render.plain(sentence))
    return 0
