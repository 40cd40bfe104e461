"""squeue and sacct fail, are silent, or tell what is not so, at each phase of an experiment; and their news are late or gone.

An answer that is recognisably none makes the pass wait. One that looks like an answer and is false must not lead to a second job.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest
from lies import ALL, FEW, KEYS, PHASES, RERUNS, TRAINING, Lab, Lie, Said, commands_at, lab_at

from fake_slurm.faults import Fault, Kind
from fake_slurm.jobs import State
from fake_slurm.site import Site
from reconciler.model import Token

_END = {"squeue": b"\x1e\n", "sacct": b"\n"}


def hang(truth) -> Said:
    raise subprocess.TimeoutExpired("squeue", 60.0)


def rows(text: bytes, command: str) -> list[bytes]:
    return [row + _END[command] for row in text.split(_END[command]) if row]


def spoilt(change) -> Lie:
    """What it says is changed on its way, with exit 0."""

    def lie(truth) -> Said:
        code, output, errors = truth()
        return code, change(output), errors

    return lie


def without_the_newest(command: str) -> Lie:
    return spoilt(lambda output: b"".join(rows(output, command)[:-1]))


def each_twice(command: str) -> Lie:
    return spoilt(lambda output: b"".join(2 * rows(output, command)))


def in_another_order(command: str) -> Lie:
    return spoilt(lambda output: b"".join(reversed(rows(output, command))))


def with_others(command: str, lab: Lab) -> Lie:
    """Jobs of the same script name: by hand elsewhere, of another experiment, and one whose id is that of a job of ours."""

    def change(output: bytes) -> bytes:
        found = rows(output, command)
        more = []
        for row in found:
            fields = row.removesuffix(_END[command]).split(b"\x1f")
            name, workdir = (9, 10) if command == "squeue" else (10, 9)
            token = Token.parse(fields[name].decode().strip())
            assert token is not None
            elsewhere = {**dict(enumerate(fields)), workdir: b"/home/ana/other/a"}
            for other in (b"finetune.slurm", f"finetune.slurm.{replace(token, experiment='0' * 8)}".encode()):
                for number in (fields[0], b"991"):
                    more.append(b"\x1f".join({**elsewhere, 0: number, name: other}.values()) + _END[command])
        return b"".join([*more, *found])

    return spoilt(change)


def errors(text: bytes, code: int = 1) -> Lie:
    return lambda truth: (code, b"", text)


def lies_of(command: str, lab: Lab) -> dict[str, Lie]:
    name = command.encode()
    return {
        "fails": errors(name + b": error: Unable to contact slurm controller (connect failure)\n"),
        "fails without a word": errors(b""),
        "fails and prints rows": lambda truth: (1, truth()[1], name + b": error: something\n"),
        "prints rows and an error, exit 0": lambda truth: (0, truth()[1], name + b": error: slurm_load_jobs error: Zero Bytes\n"),
        "is killed": errors(b"", -9),
        "hangs": hang,
        "is not there": errors(b"", 127),
        "is empty, exit 0": lambda truth: (0, b"", b""),
        "is cut in the middle": spoilt(lambda output: output[: len(output) // 2].rstrip(b"\n")),
        "is cut before its last byte": spoilt(lambda output: output[:-1]),
        "is cut after its first field": spoilt(lambda output: output[: output.find(b"\x1f") + 1]),
        "is garbled": spoilt(lambda output: b"\x00\x7f#&\x1b[?25l%$ \n" * 3),
        "has garbage before it": spoilt(lambda output: b"*** maintenance on Monday ***\n" + output),
        "is without its newest job": without_the_newest(command),
        "has each job twice": each_twice(command),
        "is in another order": in_another_order(command),
        "has others' jobs of the same names and ids": with_others(command, lab),
    }


_LIES = list(lies_of("squeue", None))  # type: ignore[arg-type]


@pytest.mark.fault("squeue or sacct fails, hangs, is empty, cut, garbled, or false, for one pass or three")
@pytest.mark.parametrize("phase", PHASES if ALL else ["running"])
@pytest.mark.parametrize("command", ["squeue", "sacct", "both"] if ALL else ["squeue", "both"])
@pytest.mark.parametrize("what", _LIES)
def test_a_false_answer_leads_to_no_second_job(what, command, phase, monkeypatch, record_property):
    times = (1, 3) if ALL else (3,)
    record_property("cases", len(times))
    for passes in times:
        with commands_at(phase, monkeypatch) as (lab, commands):
            for each in ("squeue", "sacct") if command == "both" else (command,):
                commands.lies[each] = lies_of(each, lab)[what]
            for _ in range(passes):
                lab.apply()
                lab.pass_time(70)
            commands.lies.clear()
            lab.converges(training=RERUNS.get(phase, 0))


@pytest.mark.fault("squeue and sacct tell how things were some time ago")
@pytest.mark.parametrize("phase", FEW)
@pytest.mark.parametrize("call", ["queue", "accounting", "*"])
def test_an_answer_from_the_past_leads_to_no_second_job(call, phase, record_property):
    times = (5.0, 61.0, 305.0, 3000.0) if ALL else (61.0,)
    record_property("cases", len(times))
    for ago in times:
        with lab_at(phase) as lab:
            for seconds in (1, 40, 70):
                lab.wire.faults.inject(Fault(call, Kind.STALE, seconds=ago))
                lab.apply()
                lab.wire.faults.clear()
                lab.pass_time(seconds)
            lab.converges(training=RERUNS.get(phase, 0))


# --- jobs that nobody saw


@pytest.mark.fault("a job comes and goes between two passes")
@pytest.mark.parametrize("min_job_age", [2.0, 300.0])
@pytest.mark.parametrize("lags", [(0.6, 0.0), (0.6, 120.0), (120.0, 0.0)], ids=["prompt", "state before end", "late"])
@pytest.mark.parametrize("content", ["whole", "half", None])
@pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED, State.NODE_FAIL])
def test_a_job_that_came_and_went_unseen_counts_once(state, content, lags, min_job_age):
    """Gone from squeue, and perhaps not yet in sacct, or not all of it."""
    accounting_lag, end_lag = lags
    site = Site(min_job_age=min_job_age, accounting_lag=accounting_lag, end_lag=end_lag)
    with lab_at("nothing submitted yet", site) as lab:
        lab.apply()
        lab.pass_time(6)
        lab.finish(TRAINING, content, state)
        lab.pass_time(5)
        lab.apply()
        lab.pass_time(300)
        lab.apply()
        lab.converges(training=0 if content == "whole" else 1)


@pytest.mark.fault("the accounting is away for days")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("has_accounting", [True, False], ids=["away", "none at all"])
def test_days_without_accounting_cost_no_second_job(has_accounting, phase):
    if not has_accounting and phase == "to be tried again":
        pytest.skip("without accounting the queue has to have shown the failure, as it did here before")
    with lab_at(phase, Site(has_accounting=True)) as lab:
        if has_accounting:
            lab.cluster.accounting.stop()
        else:
            lab.cluster.site = replace(lab.cluster.site, has_accounting=False)
            lab.cluster.accounting._site = lab.cluster.site
        before = lab.starts.copy()
        for _ in range(8):
            lab.apply()
            lab.pass_time(6 * 3600)
        for key in KEYS:
            assert lab.starts[key] <= before[key] + 1
        lab.converges(training=RERUNS.get(phase, 0))
