"""The commands and their options, one short function each."""

from __future__ import annotations

import os
import pwd
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from reconciler import freeing, handover, orphans, pausing, renaming, render, words
from reconciler.backends import choose
from reconciler.disk import RealDisk
from reconciler.errors import AnotherPass, InvalidExperiment, TemporaryError, UsageError
from reconciler.experiment.load import DOCUMENTS, find_document, load
from reconciler.experiment.settings import read_settings
from reconciler.loop import Pass, Scene, preview, run_pass
from reconciler.model import Policy, Unknown
from reconciler.tools import all_tools

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Asked:
    """The options that commands share. ``form`` is ``text`` or ``json``."""

    experiment: Path = Path()
    backend: str | None = None
    form: str = "text"
    select: str | None = None
    verbose: bool = False
    quiet: bool = False
    deep: bool = False

    @classmethod
    def take(cls, given: dict[str, Any]) -> Asked:
        """The shared options out of a command's arguments, which keep the others."""
        return cls(**{field.name: given.pop(field.name) for field in fields(cls) if field.name in given})


_EXPERIMENT = click.argument("experiment", type=click.Path(path_type=Path), default=Path())
_STEPS = click.argument("arguments", metavar="[EXPERIMENT] STEP...", nargs=-1)
_BACKEND = click.option(
    "--backend",
    envvar="RECONCILE_BACKEND",
    type=click.Choice(["auto", "pyslurm", "cli", "local"]),
    help="How to reach the cluster; local runs the scripts on this machine.",
)
_OUTPUT = click.option("--output", "form", type=click.Choice(["text", "json"]), default="text", help="Text for people or JSON.")
_SELECT = click.option("--select", metavar="GLOB", help="Only the steps whose key matches.")
_VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Tell more.")
_QUIET = click.option("--quiet", is_flag=True, help="Say something only where there is something to say.")
_DEEP = click.option("--deep", is_flag=True, help="Verify outputs in full, not only by structure.")


def _takes(*options: Callable[[F], F]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """A command with these options; the shared ones reach it as one ``Asked``."""

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        @wraps(command)
        def called(**given: Any) -> int:
            return command(Asked.take(given), **given)

        for option in reversed(options):
            called = option(called)
        return called

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="reconciler", prog_name="reconcile")
def reconcile() -> None:
    """Bring a fine-tuning experiment to the state that its document describes."""


def _settings(asked: Asked) -> Policy:
    directory = find_document(asked.experiment).parent.resolve()
    return read_settings(directory, {"backend": asked.backend} if asked.backend else {}, Path.home())


def _scene(asked: Asked) -> Scene:
    policy = _settings(asked)
    chosen = choose(policy.backend, policy.max_in_flight, _say_aside)
    if chosen.name == "local" and policy.max_in_flight is None:
        policy = replace(policy, max_in_flight=1)
    return Scene(
        experiment=asked.experiment,
        policy=policy,
        backend=chosen,
        disk=RealDisk(),
        tools=all_tools(),
        clock=time.time,
        user=_user(),
        environment=dict(os.environ),
        deep=asked.deep,
        select=asked.select or "*",
        tick=_progress(),
    )


def _say_aside(line: str) -> None:
    print(f"reconcile: {render.plain(line)}", file=sys.stderr)


def _user() -> str:
    """Whose jobs these are: by uid, as Slurm counts them; LOGNAME and USER are anybody's to set."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


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


def _print_json(value: dict[str, Any]) -> None:
    print(render.json_text(value))


# --- looking ---------------------------------------------------------------------------------------------


@reconcile.command()
@_takes(_EXPERIMENT, _BACKEND, _OUTPUT, _SELECT, _VERBOSE, _QUIET, _DEEP)
def diff(asked: Asked) -> int:
    """Preview the pending actions; changes nothing at all.

    -v shows finished steps too; --quiet prints nothing where nothing is pending and nothing needs you.
    """
    seen = preview(_scene(asked))
    code = diff_exit_code(seen)
    if code == 0 and asked.quiet:
        return code
    _warn(seen)
    if asked.form == "json":
        _print_json(render.actions_json(seen))
    else:
        print(render.diff_text(seen, _paint(), verbose=asked.verbose))
    return code


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
@_takes(_EXPERIMENT, _BACKEND, _OUTPUT, _SELECT, _VERBOSE, _QUIET, _DEEP)
def status(asked: Asked) -> int:
    """Show each step's condition, progress, and what is next.

    -v tells of each attempt; --quiet leaves out what is done.
    """
    seen = preview(_scene(asked))
    _warn(seen)
    if asked.form == "json":
        _print_json(render.status_json(seen))
    else:
        print(render.status_text(seen, _paint(), verbose=asked.verbose, quiet=asked.quiet))
    return _unreachable(seen.observed.queue) if isinstance(seen.observed.queue, Unknown) else 0


@reconcile.command()
@_takes(_STEPS, _BACKEND, _OUTPUT, _DEEP)
def explain(asked: Asked, arguments: tuple[str, ...]) -> int:
    """Tell all that is known of steps or orphans: facts, the rule that decided, attempts, evidence. In JSON a document each."""
    asked, patterns = _with_steps(asked, arguments)
    seen, of_orphans, of_steps = orphans.named(_scene(asked), patterns)
    as_json = asked.form == "json"
    for orphan in of_orphans:
        _print_json(render.explained_orphan(seen, orphan)) if as_json else print(render.explain_orphan_text(seen, orphan))
    for step in of_steps:
        _print_json(render.explained(seen, step.key)) if as_json else print(render.explain_text(seen, step.key))
    return 0


@reconcile.command()
@_takes(_EXPERIMENT, _BACKEND, _OUTPUT, _VERBOSE, _QUIET)
def validate(asked: Asked) -> int:
    """Check the document and the scaffolding alone; asks no cluster.

    -v lists the steps too; --quiet prints only what is wrong.
    """
    _settings(asked)
    desired = load(asked.experiment, all_tools(), RealDisk())
    faults = [problem for problem in desired.problems if not problem.warning]
    if asked.form == "json":
        _print_json(render.problems_json(desired))
        return 2 if faults else 0
    for problem in desired.problems:
        print(f"{'warning' if problem.warning else 'error'}: {render.plain(str(problem))}")
    for step in desired.steps if asked.verbose else ():
        print(render.plain(step.key))
    if not asked.quiet:
        warnings = len(desired.problems) - len(faults)
        print(f"{render.plain(desired.name)}: {len(desired.steps)} steps, {len(faults)} errors, {warnings} warnings")
    return 2 if faults else 0


# --- acting ----------------------------------------------------------------------------------------------


@reconcile.command()
@_takes(_EXPERIMENT, _BACKEND, _OUTPUT, _SELECT, _VERBOSE, _QUIET, _DEEP)
@click.option("--wait", is_flag=True, help="Go on, a pass every `poll`, until nothing is left to do.")
@click.option("--max-in-flight", type=click.IntRange(min=1), help="Jobs in the queue at most, your other jobs counted.")
@click.option("--prune", metavar="NAME", multiple=True, help="First cancel the orphans of this run, step or job id; repeatable.")
def apply(asked: Asked, wait: bool, max_in_flight: int | None, prune: tuple[str, ...]) -> int:
    """Do one pass: submit, take over, mark done, and write the status tables.

    -v shows every step; --quiet says something only when something changed.
    """
    scene = _scene(asked)
    if max_in_flight is not None:
        policy = replace(scene.policy, max_in_flight=max_in_flight)
        scene = replace(scene, policy=policy, backend=choose(scene.backend.name, max_in_flight, _say_aside))
    for pruned in orphans.prune(scene, prune, "pruned", lambda prospect: True) if prune else ():
        _say_aside(f"{pruned.step}: {pruned.message}" if pruned.step else pruned.message)
    seen = run_pass(scene)
    _report(seen, asked)
    while wait and not _is_over(seen):
        time.sleep(scene.policy.poll)
        seen = _next_pass(scene, seen, asked)
    if asked.form == "json":
        _print_json(render.actions_json(seen))
    return apply_exit_code(seen)


def _is_over(seen: Pass) -> bool:
    return not any(action.is_pending for action in seen.actions)


def _next_pass(scene: Scene, before: Pass, asked: Asked) -> Pass:
    """A further pass of ``--wait``; what mends itself, a half-saved document included, is said and waited out."""
    try:
        seen = run_pass(scene)
    except (TemporaryError, AnotherPass, InvalidExperiment) as error:
        print(f"reconcile: {render.plain(str(error))}", file=sys.stderr)
        return before
    _report(seen, replace(asked, quiet=True))
    return seen


def _report(seen: Pass, asked: Asked) -> None:
    if asked.quiet and not seen.is_news:
        return
    _warn(seen)
    for note in seen.notes:
        print(f"reconcile: {render.plain(note)}", file=sys.stderr)
    if asked.form == "text":
        print(render.applied_text(seen, _paint(), verbose=asked.verbose), flush=True)


def apply_exit_code(seen: Pass) -> int:
    """3 queue unknown, 4 a step needs a person, 0 the pass did its work."""
    if isinstance(seen.observed.queue, Unknown):
        return _unreachable(seen.observed.queue)
    return 4 if any(action.condition.needs_person for action in seen.actions) else 0


# --- a person's word ---------------------------------------------------------------------------------------

_WHY = click.option("--reason", "why", metavar="TEXT", default="", help="Why; kept, and shown by status and explain.")
_YES = click.option("-y", "--yes", is_flag=True, help="Do not ask; without a terminal nothing that asks is done otherwise.")


def _whose(command: F) -> F:
    """The flags that say what has changed about an experiment."""
    for option in (
        click.option("--jobs-gone", is_flag=True, help="Every job that is not known to have ended is gone: you have looked."),
        click.option("--environment", "what", flag_value="environment", help="This environment is the right one."),
        click.option("--user", "what", flag_value="user", help="Take the experiment over from another user."),
        click.option("--cluster", "what", flag_value="cluster", help="Go on on this cluster."),
        click.option("--copied", "what", flag_value="copied", help="This is a copy; it starts without memory."),
        click.option("--moved", "what", flag_value="moved", help="The experiment was moved here."),
    ):
        command = option(command)
    return command


def _with_steps(asked: Asked, arguments: tuple[str, ...]) -> tuple[Asked, tuple[str, ...]]:
    """The experiment, which may be left out where one stands in it, and the steps, of which there must be one."""
    first, rest = Path(arguments[0]) if arguments else Path(), arguments[1:]
    if arguments and not _is_experiment(first) and _is_experiment(Path()):
        first, rest = Path(), arguments
    if not rest:
        raise click.UsageError("name at least one step, or a glob such as 'r8_*/finetune'")
    return replace(asked, experiment=first), rest


def _is_experiment(path: Path) -> bool:
    """True where there is a document, or a doubt which one it is."""
    try:
        return path.is_file() or any((path / name).exists() for name in DOCUMENTS)
    except OSError:  # a name that is too long, a directory that is closed: no experiment that could be meant
        return False


def _give(asked: Asked, arguments: tuple[str, ...], order: words.Order, yes: bool) -> int:
    asked, steps = _with_steps(asked, arguments)
    return _tell(asked, words.carry_out(_scene(asked), replace(order, steps=steps), _confirm(asked, yes)))


def _confirm(asked: Asked, yes: bool) -> Callable[[words.Prospect], bool]:
    """Shows what will be done, and asks where it should be asked."""

    def confirm(prospect: words.Prospect) -> bool:
        for sentence in prospect.sentences if prospect.asks or not asked.quiet else ():
            print(render.plain(sentence), file=sys.stderr)
        if yes or not prospect.asks:
            return True
        if not sys.stdin.isatty():
            raise UsageError("nothing was done: this asks first, and there is no terminal to ask on; say --yes to have it done")
        return click.confirm("go on?", err=True)

    return confirm


def _whole(asked: Asked, arguments: tuple[str, ...], what: str) -> Asked:
    """A word on the experiment as a whole: no step may be named with it."""
    if len(arguments) > 1:
        raise click.UsageError(f"{what} concerns the experiment as a whole; name no steps with it")
    return replace(asked, experiment=Path(arguments[0]) if arguments else Path())


def _tell(asked: Asked, done: Sequence[words.Done]) -> int:
    if asked.form == "json":
        _print_json(render.words_json(done))
    elif not asked.quiet:
        for each in done:
            print(render.plain(f"{each.step}: {each.message}" if each.step else each.message))
        if not done:
            print("nothing was done")
    return 0


@reconcile.command()
@_takes(_STEPS, _BACKEND, _OUTPUT, _QUIET)
@_WHY
@_YES
def release(asked: Asked, arguments: tuple[str, ...], why: str, yes: bool) -> int:
    """Let held or failed steps be decided afresh; without a step, lift the stop after many failures."""
    if not arguments or (len(arguments) == 1 and _is_experiment(Path(arguments[0]))):
        asked = _whole(asked, arguments, "release")
        return _tell(asked, words.release_experiment(_scene(asked), why))
    return _give(asked, arguments, words.Order("release", why=why), yes)


@reconcile.command()
@_takes(_STEPS, _BACKEND, _OUTPUT, _QUIET)
@_WHY
@_YES
def hold(asked: Asked, arguments: tuple[str, ...], why: str, yes: bool) -> int:
    """Keep steps from being submitted, and their queued jobs from starting."""
    return _give(asked, arguments, words.Order("hold", why=why), yes)


@reconcile.command()
@_takes(_STEPS, _BACKEND, _OUTPUT, _QUIET)
@_WHY
@_YES
def cancel(asked: Asked, arguments: tuple[str, ...], why: str, yes: bool) -> int:
    """Cancel the jobs of steps, and hold the steps; orphans are named by their run, step or job id."""
    asked, steps = _with_steps(asked, arguments)
    scene, confirm = _scene(asked), _confirm(asked, yes)
    seen = words.look_at(scene)
    of_orphans = tuple(name for name in steps if orphans.names_orphans_alone(seen, name))
    of_steps = tuple(name for name in steps if name not in of_orphans)
    seen.desired.select(*of_steps)
    pruned = orphans.prune(scene, of_orphans, why, confirm) if of_orphans else ()
    done = words.carry_out(scene, words.Order("cancel", of_steps, why), confirm) if of_steps else ()
    return _tell(asked, (*pruned, *done))


@reconcile.command()
@_takes(_STEPS, _BACKEND, _OUTPUT, _QUIET)
@_WHY
@_YES
@click.option("--now", is_flag=True, help="Replace a running job too.")
@click.option("--with-dependents", is_flag=True, help="Rerun what depends on these steps as well.")
@click.option("--stale", is_flag=True, help="Of the steps (all, where none is named) those whose results are of older versions.")
def rerun(asked: Asked, arguments: tuple[str, ...], why: str, yes: bool, now: bool, with_dependents: bool, stale: bool) -> int:
    """Do steps again; their outputs are moved aside first."""
    if stale and (not arguments or (len(arguments) == 1 and _is_experiment(Path(arguments[0])))):
        arguments = (*(arguments or (".",)), "*")
    order = words.Order("rerun", why=why, now=now, with_dependents=with_dependents, stale=stale)
    return _give(asked, arguments, order, yes)


@reconcile.command()
@_takes(_STEPS, _BACKEND, _OUTPUT, _QUIET)
@_WHY
@_YES
@_whose
def accept(asked: Asked, arguments: tuple[str, ...], why: str, yes: bool, what: str | None, jobs_gone: bool) -> int:
    """Let a result stand, or a queued job as it is; with a flag of `adopt`, do what that does."""
    if what is None:
        return _give(asked, arguments, words.Order("accept", why=why), yes)
    return _adopt(asked, arguments, why, yes, what, jobs_gone)


@reconcile.command()
@_takes(_STEPS, _BACKEND, _OUTPUT, _QUIET)
@_WHY
@_YES
@_whose
def adopt(asked: Asked, arguments: tuple[str, ...], why: str, yes: bool, what: str | None, jobs_gone: bool) -> int:
    """Say whose experiment this is: moved, copied, on another cluster, taken over from a colleague."""
    if what is None:
        raise click.UsageError("say which it is: --moved, --copied, --cluster, --user or --environment")
    return _adopt(asked, arguments, why, yes, what, jobs_gone)


def _adopt(asked: Asked, arguments: tuple[str, ...], why: str, yes: bool, what: str, jobs_gone: bool) -> int:
    asked = _whole(asked, arguments, f"--{what}")
    confirm = _confirm(asked, yes)
    return _tell(asked, handover.accept_identity(_scene(asked), what, why, jobs_gone=jobs_gone, confirm=confirm))


@reconcile.command()
@_takes(_STEPS, _BACKEND, _OUTPUT, _QUIET)
@_WHY
@_YES
def free(asked: Asked, arguments: tuple[str, ...], why: str, yes: bool) -> int:
    """Delete the checkpoints of fine-tunes that were verified and evaluated; the record stays."""
    asked, steps = _with_steps(asked, arguments)
    return _tell(asked, freeing.free(_scene(asked), steps, why, _confirm(asked, yes)))


@reconcile.command()
@_takes(click.argument("arguments", metavar="[EXPERIMENT] OLD NEW", nargs=-1), _BACKEND, _OUTPUT, _QUIET)
@_WHY
@_YES
def rename(asked: Asked, arguments: tuple[str, ...], why: str, yes: bool) -> int:
    """Give a run another name: directory, document and record; what is done stays done."""
    if len(arguments) not in (2, 3):
        raise click.UsageError("say the run's name and its new one")
    *experiment, old, new = arguments
    asked = replace(asked, experiment=Path(*experiment))
    return _tell(asked, renaming.rename(_scene(asked), old, new, why, _confirm(asked, yes)))


@reconcile.command()
@_takes(_EXPERIMENT, _BACKEND, _OUTPUT, _QUIET)
@_WHY
@_YES
@click.option("--until", metavar="DATE", help="Go on by itself then: 2026-12-01, '2026-12-01 18:00', 18:00, +2d, 10h.")
def pause(asked: Asked, why: str, yes: bool, until: str | None) -> int:
    """Submit nothing for now, and hold our queued jobs; what runs runs on."""
    return _tell(asked, pausing.pause(_scene(asked), until, why, _confirm(asked, yes)))


@reconcile.command()
@_takes(_EXPERIMENT, _BACKEND, _OUTPUT, _QUIET)
@_WHY
@_YES
def resume(asked: Asked, why: str, yes: bool) -> int:
    """Go on after a pause; jobs that a person held stay held."""
    return _tell(asked, pausing.resume(_scene(asked), why, _confirm(asked, yes)))
