"""The commands and their options, one short function each."""

from __future__ import annotations

import os
import pwd
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from reconciler import freeing, handover, orphans, pausing, published, renaming, render, words
from reconciler.backends import choose
from reconciler.disk import RealDisk
from reconciler.errors import InvalidExperiment, TemporaryError, UsageError
from reconciler.experiment.load import DOCUMENTS, find_document, load
from reconciler.experiment.settings import read_settings
from reconciler.files import home
from reconciler.loop import Pass, Scene, go_on, preview, run_pass
from reconciler.model import Condition, Policy, Unknown
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


def _named(context: click.Context, option: click.Parameter, given: Any) -> Any:
    """Names as they are meant: a shell completes a run's to ``r8_lr1e-5/``, because it is a directory."""
    if isinstance(given, tuple):
        return tuple(word.rstrip("/") or word for word in given)
    return given and (given.rstrip("/") or given)


def _named_once(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> str | None:
    """One name or none: click would take the last of several without a word."""
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)}: --select takes one glob, or the name of one run", context)
    name: str | None = _named(context, option, given[0] if given else None)
    return name


def _arguments(usage: str) -> Callable[[F], F]:
    """All words after the options; ``usage`` is how they are shown."""
    return click.argument("arguments", metavar=usage, nargs=-1, callback=_named)


_STEPS = _arguments("[EXPERIMENT] STEP...")
_MAYBE_STEPS = _arguments("[EXPERIMENT] [STEP]...")
_BACKEND = click.option(
    "--backend",
    envvar="RECONCILE_BACKEND",
    type=click.Choice(["auto", "pyslurm", "cli", "local"]),
    help="How to reach the cluster; local runs the scripts on this machine.",
)
_OUTPUT = click.option(
    "--output",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    help="How results are printed: for people, or in a published form (schemas/).",
)
_SELECT = click.option(
    "--select",
    metavar="GLOB",
    multiple=True,
    callback=_named_once,
    help="Only these steps: a glob on keys, or a run's name.",
)
_DEEP = click.option("--deep", is_flag=True, help="Verify outputs in full, not only by structure.")


def _verbose(what: str) -> Callable[[F], F]:
    return click.option("-v", "--verbose", is_flag=True, help=what)


def _quiet(what: str) -> Callable[[F], F]:
    return click.option("--quiet", is_flag=True, help=what)


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


def _settings(asked: Asked, **flags: object) -> Policy:
    directory = find_document(asked.experiment).parent.resolve()
    return read_settings(directory, {"backend": asked.backend or None, **flags}, home(), all_tools())


def _scene(asked: Asked, **flags: object) -> Scene:
    policy = _settings(asked, **flags)
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


def _say_aside(text: str) -> None:
    for line in text.split("\n"):  # several faults are one error
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
    finished = seen.finished_runs
    for problem in seen.desired.problems:
        weight = "warning: " if problem.warning or problem.run in finished else ""
        print(f"reconcile: {weight}{render.plain(str(problem))}", file=sys.stderr)


def _print(text: str = "") -> None:
    """A line of the answer. Raises TemporaryError where it cannot be written, which is no fault of the experiment's disk."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise TemporaryError(f"the output cannot be written: {error.strerror}") from error


def _print_json(value: dict[str, Any]) -> None:
    _print(render.json_text(value))


# --- looking ---------------------------------------------------------------------------------------------


@reconcile.command()
@_takes(_EXPERIMENT, _BACKEND, _OUTPUT, _SELECT, _DEEP)
@_verbose("Show finished steps too.")
@_quiet("Print nothing where nothing is pending and nothing needs you.")
def diff(asked: Asked) -> int:
    """Preview the pending actions; changes nothing at all."""
    seen = preview(_scene(asked))
    code = diff_exit_code(seen)
    if code == 0 and asked.quiet:
        return code
    _warn(seen)
    if asked.form == "json":
        _print_json(published.actions_json(seen))
    else:
        _print(render.diff_text(seen, _paint(), verbose=asked.verbose))
    _blindness(seen)
    return code


def diff_exit_code(seen: Pass) -> int:
    """3 queue unknown, 1 something pending, 4 only a person can go on, 0 all that was selected is done."""
    if isinstance(seen.observed.queue, Unknown):
        return 3
    if any(action.is_pending for action in seen.actions):
        return 1
    is_done = all(action.condition is Condition.DONE for action in seen.actions)
    return 0 if is_done and not seen.needs_person else 4


def _blindness(seen: Pass) -> int:
    """3, and said why, where the queue is unknown; else 0."""
    queue = seen.observed.queue
    if not isinstance(queue, Unknown):
        return 0
    print(f"reconcile: the cluster cannot be observed, nothing was done: {render.plain(queue.why)}", file=sys.stderr)
    return 3


@reconcile.command()
@_takes(_EXPERIMENT, _BACKEND, _OUTPUT, _SELECT, _DEEP)
@_verbose("Tell of each attempt.")
@_quiet("Leave out what is done.")
def status(asked: Asked) -> int:
    """Show each step's condition, progress, and what is next."""
    seen = preview(_scene(asked))
    _warn(seen)
    if asked.form == "json":
        _print_json(published.status_json(seen))
    else:
        _print(render.status_text(seen, _paint(), verbose=asked.verbose, quiet=asked.quiet))
    return _blindness(seen)


@reconcile.command()
@_takes(_STEPS, _BACKEND, _OUTPUT, _DEEP)
@_verbose("Show what defines the result too, item by item.")
@_quiet("Show the condition and the reason alone.")
def explain(asked: Asked, arguments: tuple[str, ...]) -> int:
    """Tell all that is known of steps or orphans: facts, the rule that decided, attempts, evidence. In JSON a document each."""
    asked, patterns = _with_steps(asked, arguments)
    seen, of_orphans, of_steps = orphans.named(_scene(asked), patterns)
    as_json = asked.form == "json"
    for orphan in of_orphans:
        _print_json(published.explained_orphan(seen, orphan)) if as_json else _print(render.explain_orphan_text(seen, orphan))
    for step in of_steps:
        if as_json:
            _print_json(published.explained(seen, step.key))
        else:
            _print(render.explain_text(seen, step.key, verbose=asked.verbose, quiet=asked.quiet))
    return _blindness(seen)


@reconcile.command()
@_takes(_EXPERIMENT, _BACKEND, _OUTPUT)
@_verbose("List the steps too.")
@_quiet("Print only what is wrong.")
def validate(asked: Asked) -> int:
    """Check the document and the scaffolding alone; asks no cluster."""
    try:
        _settings(asked)
        desired = load(asked.experiment, all_tools(), RealDisk())
    except InvalidExperiment as error:
        if asked.form != "json":
            raise
        here = asked.experiment.resolve()
        _print_json(published.problems_json((here if here.is_dir() else here.parent).name, (), error.problems))
        return 2
    faults = [problem for problem in desired.problems if not problem.warning]
    if asked.form == "json":
        _print_json(published.problems_json(desired.name, desired.steps, desired.problems))
        return 2 if faults else 0
    for problem in desired.problems:
        _print(f"{'warning' if problem.warning else 'error'}: {render.plain(str(problem))}")
    for step in desired.steps if asked.verbose else ():
        _print(render.plain(step.key))
    if not asked.quiet:
        warnings = len(desired.problems) - len(faults)
        _print(f"{render.plain(desired.name)}: {len(desired.steps)} steps, {len(faults)} errors, {warnings} warnings")
    return 2 if faults else 0


# --- acting ----------------------------------------------------------------------------------------------


@reconcile.command()
@_takes(_EXPERIMENT, _BACKEND, _OUTPUT, _SELECT, _DEEP)
@_verbose("Show every step, not only those that the pass did something for or that need you.")
@_quiet("Say something only when something changed.")
@click.option("--wait", is_flag=True, help="Go on, a pass every `poll`, until nothing is left to do.")
@click.option("--max-in-flight", type=click.IntRange(min=1), help="Jobs in the queue at most, your other jobs counted.")
@click.option(
    "--prune",
    metavar="NAME",
    multiple=True,
    callback=_named,
    help="First cancel the orphans of this run, step or job id; repeatable.",
)
@click.option("--reason", "why", metavar="TEXT", help="Why, for --prune; kept, and shown by status and explain.")
def apply(asked: Asked, wait: bool, max_in_flight: int | None, prune: tuple[str, ...], why: str | None) -> int:
    """Do one pass: submit, take over, mark done, and write the status tables."""
    if why is not None and not prune:
        raise click.UsageError("--reason tells why --prune cancels; there is nothing else to tell it of")
    look_around = partial(_scene, asked, max_in_flight=max_in_flight)
    scene = look_around()
    if prune:
        orphans.prune(scene, prune, why or "pruned", _show)
    seen = run_pass(scene)
    _report(seen, asked)
    if wait:
        report = partial(_report, asked=replace(asked, quiet=True))
        seen = go_on(look_around, scene.policy.poll, seen, report, _say_aside, time.sleep)
    if asked.form == "json":
        _print_json(published.actions_json(seen))
    code = apply_exit_code(seen)
    if seen.is_news or not asked.quiet:
        _blindness(seen)
    return code


def _report(seen: Pass, asked: Asked) -> None:
    if asked.quiet and not seen.is_news:
        return
    _warn(seen)
    for note in seen.notes:
        print(f"reconcile: {render.plain(note)}", file=sys.stderr)
    if asked.form == "text":
        _print(render.applied_text(seen, _paint(), verbose=asked.verbose))


def apply_exit_code(seen: Pass) -> int:
    """3 queue unknown, 4 a step needs a person, 0 the pass did its work."""
    if isinstance(seen.observed.queue, Unknown):
        return 3
    return 4 if seen.needs_person else 0


# --- a person's word ---------------------------------------------------------------------------------------

_WHY = click.option("--reason", "why", metavar="TEXT", default="", help="Why; kept, and shown by status and explain.")
_YES = click.option("-y", "--yes", is_flag=True, help="Do not ask; without a terminal nothing that asks is done otherwise.")


def _says(arguments: Callable[[F], F]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """A command that takes a person's word."""
    verbose = _verbose("Show what it will do before it does it, also where it does not ask.")
    quiet = _quiet("Print nothing where it is done.")
    return _takes(arguments, _BACKEND, _OUTPUT, verbose, quiet, _WHY, _YES)


def _whose(command: F) -> F:
    """The flags that say what has changed about an experiment."""
    for option in (
        click.option("--jobs-gone", is_flag=True, help="Every job that is not known to have ended is gone: you have looked."),
        click.option("--environment", "what", flag_value="environment", multiple=True, help="This environment is the right one."),
        click.option("--user", "what", flag_value="user", multiple=True, help="Take the experiment over from another user."),
        click.option("--cluster", "what", flag_value="cluster", multiple=True, help="Go on on this cluster."),
        click.option("--copied", "what", flag_value="copied", multiple=True, help="This is a copy; it starts without memory."),
        click.option("--moved", "what", flag_value="moved", multiple=True, help="The experiment was moved here."),
    ):
        command = option(command)
    return command


def _with_steps(asked: Asked, arguments: tuple[str, ...]) -> tuple[Asked, tuple[str, ...]]:
    """The experiment, which may be left out where one stands in it, and the steps, of which there must be one."""
    asked, steps = _split(asked, arguments)
    if not steps:
        raise click.UsageError("name at least one step, a run, or a glob such as 'r8_*/finetune'")
    return asked, steps


def _split(asked: Asked, arguments: tuple[str, ...]) -> tuple[Asked, tuple[str, ...]]:
    """The experiment, which may be left out where one stands in it, and the steps, of which there may be none."""
    if arguments and _is_experiment(Path(arguments[0])):
        return replace(asked, experiment=Path(arguments[0])), arguments[1:]
    if _is_experiment(Path()):
        return replace(asked, experiment=Path()), arguments
    neither = (
        f"{arguments[0]!r} is no experiment, and this directory is none either"
        if arguments
        else "this directory is no experiment"
    )
    raise click.UsageError(f"{neither}; name one first: its directory, which has {' or '.join(DOCUMENTS[:2])}, or that document")


def _is_experiment(path: Path) -> bool:
    """True where there is a document, or a doubt which one it is."""
    try:
        return path.is_file() or any((path / name).exists() for name in DOCUMENTS)
    except OSError:  # a name that is too long, a directory that is closed: no experiment that could be meant
        return False


def _give(asked: Asked, order: words.Order, yes: bool) -> int:
    return _say(asked, yes, partial(words.carry_out, _scene(asked), order))


class _Asks(Exception):
    """A person is to be asked first."""

    def __init__(self, prospect: words.Prospect) -> None:
        self.prospect = prospect


def _say(asked: Asked, yes: bool, word: Callable[[Callable[[words.Prospect], bool]], Sequence[words.Deed]]) -> int:
    """Give a person's word. They are asked between two looks and without the lock: passes go on meanwhile, and where things are
    otherwise by then, they are asked again."""
    agreed: words.Prospect | None = None

    def confirm(prospect: words.Prospect) -> bool:
        if prospect == agreed:
            return True
        if prospect.asks and not yes:
            raise _Asks(prospect)
        return _show(prospect) if prospect.asks or asked.verbose else True

    while True:
        try:
            return _tell(asked, word(confirm))
        except _Asks as question:
            if agreed is not None:
                print("reconcile: nothing was done yet, and by now it would be", file=sys.stderr)
            agreed = question.prospect
            _show(agreed)
            if not sys.stdin.isatty():
                message = "nothing was done: this asks first, and there is no terminal to ask on; say --yes to have it done"
                raise UsageError(message) from None
            if not click.confirm("go on?", err=True):
                return _tell(asked, ())


def _show(prospect: words.Prospect) -> bool:
    """What will be done, on stderr; that is no question."""
    for sentence in prospect.sentences:
        print(render.plain(sentence), file=sys.stderr)
    return True


def _tell(asked: Asked, done: Sequence[words.Deed]) -> int:
    if asked.form == "json":
        _print_json(published.words_json(done))
    elif not asked.quiet:
        for each in done:
            _print(render.plain(f"{each.step}: {each.message}" if each.step else each.message))
        if not done:
            _print("nothing was done")
    return 0


@reconcile.command()
@_says(_MAYBE_STEPS)
def release(asked: Asked, arguments: tuple[str, ...], why: str, yes: bool) -> int:
    """Let held or failed steps be decided afresh; without a step, lift the stop after many failures."""
    asked, steps = _split(asked, arguments)
    if not steps:
        return _say(asked, yes, partial(words.release_experiment, _scene(asked), why))
    return _give(asked, words.Order("release", steps, why=why), yes)


@reconcile.command()
@_says(_STEPS)
def hold(asked: Asked, arguments: tuple[str, ...], why: str, yes: bool) -> int:
    """Keep steps from being submitted, and their queued jobs from starting."""
    asked, steps = _with_steps(asked, arguments)
    return _give(asked, words.Order("hold", steps, why=why), yes)


@reconcile.command()
@_says(_STEPS)
def cancel(asked: Asked, arguments: tuple[str, ...], why: str, yes: bool) -> int:
    """Cancel the jobs of steps, and hold the steps; orphans are named by their run, step or job id."""
    asked, names = _with_steps(asked, arguments)
    return _say(asked, yes, partial(orphans.cancel, _scene(asked), names, why))


@reconcile.command()
@_says(_MAYBE_STEPS)
@click.option("--now", is_flag=True, help="Replace a running job too.")
@click.option("--with-dependents", is_flag=True, help="Rerun what depends on these steps as well.")
@click.option("--stale", is_flag=True, help="Of the steps (all, where none is named) those whose results are of older versions.")
def rerun(asked: Asked, arguments: tuple[str, ...], why: str, yes: bool, now: bool, with_dependents: bool, stale: bool) -> int:
    """Do steps again; their outputs are moved aside first."""
    asked, steps = _split(asked, arguments) if stale else _with_steps(asked, arguments)
    order = words.Order("rerun", steps or ("*",), why=why, now=now, with_dependents=with_dependents, stale=stale)
    return _give(asked, order, yes)


@reconcile.command()
@_says(_MAYBE_STEPS)
@_whose
def accept(asked: Asked, arguments: tuple[str, ...], why: str, yes: bool, what: tuple[str, ...], jobs_gone: bool) -> int:
    """Let a result stand, or a queued job as it is; with a flag of `adopt`, do what that does."""
    if not what:
        asked, steps = _with_steps(asked, arguments)
        return _give(asked, words.Order("accept", steps, why=why), yes)
    asked, steps = _split(asked, arguments)
    if steps:
        raise click.UsageError(f"--{what[0]} concerns the experiment as a whole; name no steps with it")
    return _adopt(asked, why, yes, what, jobs_gone)


@reconcile.command()
@_says(_EXPERIMENT)
@_whose
def adopt(asked: Asked, why: str, yes: bool, what: tuple[str, ...], jobs_gone: bool) -> int:
    """Say whose experiment this is: moved, copied, on another cluster, taken over from a colleague."""
    if not what:
        raise click.UsageError("say which it is: --moved, --copied, --cluster, --user or --environment")
    return _adopt(asked, why, yes, what, jobs_gone)


def _adopt(asked: Asked, why: str, yes: bool, what: tuple[str, ...], jobs_gone: bool) -> int:
    if len(what) > 1:
        raise click.UsageError(f"--{' and --'.join(what)}: say one thing at a time, the first that has changed first")
    scene = _scene(asked)
    return _say(asked, yes, lambda confirm: handover.accept_identity(scene, what[0], why, jobs_gone=jobs_gone, confirm=confirm))


@reconcile.command()
@_says(_STEPS)
def free(asked: Asked, arguments: tuple[str, ...], why: str, yes: bool) -> int:
    """Delete the checkpoints of fine-tunes that were verified and evaluated; the record stays."""
    asked, steps = _with_steps(asked, arguments)
    return _say(asked, yes, partial(freeing.free, _scene(asked), steps, why))


@reconcile.command()
@_says(_arguments("[EXPERIMENT] OLD NEW"))
def rename(asked: Asked, arguments: tuple[str, ...], why: str, yes: bool) -> int:
    """Give a run another name: directory, document and record; what is done stays done."""
    asked, names = _split(asked, arguments)
    if len(names) != 2:
        raise click.UsageError("say the run's name and its new one")
    old, new = names
    return _say(asked, yes, partial(renaming.rename, _scene(asked), old, new, why))


@reconcile.command()
@_says(_EXPERIMENT)
@click.option("--until", metavar="DATE", help="Go on by itself then: 2026-12-01, '2026-12-01 18:00', 18:00, +2d, 10h.")
def pause(asked: Asked, why: str, yes: bool, until: str | None) -> int:
    """Submit nothing for now, and hold our queued jobs; what runs runs on."""
    return _say(asked, yes, partial(pausing.pause, _scene(asked), until, why))


@reconcile.command()
@_says(_EXPERIMENT)
def resume(asked: Asked, why: str, yes: bool) -> int:
    """Go on after a pause; jobs that a person held stay held."""
    return _say(asked, yes, partial(pausing.resume, _scene(asked), why))
