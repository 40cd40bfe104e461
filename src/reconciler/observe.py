"""Look at the cluster and the disk, once a pass; what cannot be asked comes back as unknown.

It asks only what the steps that are not done need, and never changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from reconciler.batch_script import log_paths
from reconciler.config_edit import original_of
from reconciler.copies import jobs_of_copies
from reconciler.errors import AccountingDisabled, ClusterUnreachable, DiskUnreadable
from reconciler.failures import LOG_TAIL, needs_log
from reconciler.memory import CLOCK_SKEW, Memory, StepMemory
from reconciler.model import DISK_QUOTA, Desired, Job, Observed, Outputs, OutputState, Phase, Reason, Step, Unknown
from reconciler.ownership import whose_jobs
from reconciler.ports import Backend, Disk, Doubt, Tools, surely_directory

_RECENT = 3600.0  # s; sacct shows what was live at any time since (man sacct, --starttime)
_ABNORMAL_ENDS = {"NodeFailure", "BootFailure", "Vanished"}


def observe(
    desired: Desired,
    memory: Memory,
    backend: Backend,
    disk: Disk,
    tools: Tools,
    *,
    unreachable: Unknown | None = None,
    deep: bool = False,
    always: bool = False,
    tick: Callable[[str], None] = lambda step: None,
) -> Observed:
    """The facts that a plan needs; ``always`` asks the queue also where everything is done. ``unreachable`` is why the cluster
    cannot be asked, where that is known before. ``tick`` hears of each step whose outputs are about to be examined."""
    open_steps = _open_steps(desired, memory)
    if not always and not asks_cluster(desired, memory):
        return Observed(None, None, {})
    queue = unreachable or _ask_queue(backend)
    accounting = None if isinstance(queue, Unknown) else _ask_accounting(memory, queue, backend)
    roots: dict[Path, Outputs | None] = {}
    outputs: dict[str, Outputs] = {}
    for step in open_steps:
        if step.blocked is not None:
            continue
        tick(step.key)
        if step.root not in roots:
            roots[step.root] = _missing_root(step.root, memory, disk)
        is_suspect = deep or _ended_abnormally(memory.of(step.key))
        outputs[step.key] = roots[step.root] or tools[step.tool].check(step, disk, deep=is_suspect)
    logs = _read_logs(desired, memory, queue, accounting, disk)
    signs = {step.key: tools[step.tool].signs for step in desired.steps}
    filesystems = _filesystems(desired, outputs, disk) if _may_be_full(memory, logs) else {}
    objections = _objections(open_steps, outputs, tools)
    sealed = {step.key: why for step in open_steps if (why := _why_sealed(step, desired, disk))}
    copies = {} if isinstance(queue, Unknown) else jobs_of_copies(desired, open_steps, memory, queue, disk, tools)
    return Observed(queue, accounting, outputs, objections, logs, signs, backend.uid, filesystems, sealed, copies)


def _why_sealed(step: Step, desired: Desired, disk: Disk) -> str:
    """Before anything is submitted: a write that fails later would come after outputs were moved aside for its sake."""
    if step.resume is None:
        return ""
    original = original_of(desired.directory, step.run, step.resume.path)
    return disk.why_not_writable(step.resume.path) or disk.why_not_writable(original)


def _may_be_full(memory: Memory, logs: Mapping[tuple[str, str], str | Unknown | None]) -> bool:
    """True where a job met a full disk, or has a log that may tell so: only then it matters who writes where."""
    ends = (attempt.end for of_step in memory.steps.values() for attempt in of_step.attempts)
    return any(end is not None and end.failure == DISK_QUOTA for end in ends) or any(
        isinstance(log, str) for log in logs.values()
    )


def _filesystems(desired: Desired, outputs: Mapping[str, Outputs], disk: Disk) -> dict[str, int]:
    """The filesystem that each step writes to, where that is known: an unmounted one is out of sight, and so are its outputs."""
    known: dict[Path, int | None] = {}
    unseen = {key for key, found in outputs.items() if found.state is OutputState.UNKNOWN}
    unseen |= {step.key for step in desired.steps if step.blocked is not None}
    told = ((step.key, _device(step.output_dir, disk, known)) for step in desired.steps if step.key not in unseen)
    return {key: device for key, device in told if device is not None}


def _device(path: Path, disk: Disk, known: dict[Path, int | None]) -> int | None:
    """The filesystem of the nearest directory that is there; None where that cannot be told. Each path is asked for once."""
    if path not in known:
        try:
            found = disk.stat(path)
            is_there = found is not None or path == path.parent
            known[path] = _device(path.parent, disk, known) if not is_there else found.device if found is not None else None
        except DiskUnreadable:
            known[path] = None
    return known[path]


def _read_logs(
    desired: Desired,
    memory: Memory,
    queue: tuple[Job, ...] | Unknown,
    accounting: tuple[Job, ...] | Unknown | None,
    disk: Disk,
) -> dict[tuple[str, str], str | Unknown | None]:
    """The tails of the logs of jobs whose end nobody wrote down yet, where Slurm's word does not tell why they ended."""
    ours = whose_jobs(desired, Observed(queue, accounting, {}), memory)
    logs = {}
    for step in desired.steps:
        written = {(a.job, a.name) for a in memory.of(step.key).attempts if a.end is not None}
        news = (job for job in ours.of(step.key) if job.phase is Phase.ENDED and (job.id, job.name) not in written)
        logs.update({(job.id, job.name): _log_of(job, step, disk) for job in news if needs_log(job)})
    return logs


def _log_of(job: Job, step: Step, disk: Disk) -> str | Unknown | None:
    """The end of what a job wrote to its output and error files; None where there is nothing."""
    texts = []
    for path in log_paths(step.logs, job.id, job.name, job.user):
        try:
            content = disk.read(path, offset=-LOG_TAIL)
        except DiskUnreadable as error:
            return Unknown(str(error))
        if content:
            texts.append(content.decode("utf-8", "replace"))
    return "\n".join(texts) or None


def asks_cluster(desired: Desired, memory: Memory) -> bool:
    """False where every step is done and no attempt's end is missing: such an experiment needs no cluster."""
    has_open_attempt = any(m.open for m in memory.steps.values())
    return has_open_attempt or bool(_open_steps(desired, memory))


def _open_steps(desired: Desired, memory: Memory) -> list[Step]:
    return [step for step in desired.steps if memory.of(step.key).done is None]


def _objections(steps: Sequence[Step], outputs: Mapping[str, Outputs], tools: Tools) -> dict[str, str]:
    said = {step.key: tools[step.tool].may_submit(step, outputs[step.key]) for step in steps if step.key in outputs}
    return {key: objection for key, objection in said.items() if objection is not None}


def roots_seen(desired: Desired, memory: Memory, disk: Disk) -> tuple[str, ...]:
    """Output roots that are there now and that nothing in writing says were; once seen, their absence is unknown."""
    unwritten = {str(step.root) for step in desired.steps if step.blocked is None} - memory.roots
    return tuple(sorted(root for root in unwritten if surely_directory(Path(root), disk)))


def _ask_queue(backend: Backend) -> tuple[Job, ...] | Unknown:
    try:
        return backend.queue()
    except ClusterUnreachable as error:
        return Unknown(str(error))


def _ask_accounting(memory: Memory, queue: tuple[Job, ...], backend: Backend) -> tuple[Job, ...] | Unknown | None:
    """Jobs from the accounting; None where nothing needs it.

    It is asked about open attempts whose job the queue does not show, before a held replacement may start about the submission
    that it replaces, and who cancelled a job: the queue does not tell.
    """
    shown = {job.id for job in queue} | {job.name for job in queue}
    attempts = [attempt for m in memory.steps.values() for attempt in m.attempts]
    unseen = [attempt for attempt in attempts if attempt.job not in shown and attempt.name not in shown]
    cancelled = {job.name for job in queue if job.state == "CANCELLED" and not job.cancelled_by}
    doubtful = [attempt for attempt in attempts if attempt.is_open and (attempt in unseen or attempt.name in cancelled)]
    if any(attempt.held and attempt.name in shown for attempt in attempts):
        doubtful += [attempt for attempt in unseen if attempt.lost]
    if not doubtful:
        return None
    ids = tuple(attempt.job for attempt in doubtful if attempt.job is not None)
    since = min(attempt.at for attempt in doubtful) - CLOCK_SKEW
    return _accounted(backend, Doubt(since, ids, has_unnamed=len(ids) < len(doubtful)))


def doubt_an_empty_queue(observed: Observed, backend: Backend, now: float) -> Observed:
    """What the accounting has of the last hour, where the queue showed nothing at all and something is about to be submitted: a
    squeue may be empty by mistake, and a ledger may have been lost. An accounting that cannot be asked changes nothing."""
    if observed.accounting is not None:
        return observed
    return replace(observed, accounting=_accounted(backend, Doubt(now - _RECENT, has_unnamed=True)))


def _accounted(backend: Backend, doubt: Doubt) -> tuple[Job, ...] | Unknown:
    try:
        return backend.accounting(doubt)
    except AccountingDisabled:
        return ()
    except ClusterUnreachable as error:
        return Unknown(str(error))


def _missing_root(root: Path, memory: Memory, disk: Disk) -> Outputs | None:
    """Unknown where the directory above the outputs is gone, or never was and may be an absent mount; None where absence
    counts."""
    try:
        if disk.stat(root) is not None:
            return None
        if str(root) in memory.roots:
            return _unknown("RootGone", f"{root} was there before and is gone; is its filesystem mounted?")
        if disk.stat(root.parent) is not None:
            return None
    except DiskUnreadable as error:
        return _unknown("DiskUnknown", str(error))
    return _unknown("RootMissing", f"neither {root} nor {root.parent} is there; is its filesystem mounted? If so, create it")


def _unknown(code: str, message: str) -> Outputs:
    return Outputs(OutputState.UNKNOWN, Reason(code, message))


def _ended_abnormally(memory: StepMemory) -> bool:
    """After a node failure sizes may be right and contents lost: what the last attempt left is verified in full."""
    last = memory.last_begun
    return last is not None and last.end is not None and last.end.failure in _ABNORMAL_ENDS
