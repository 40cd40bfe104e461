"""sbatch says one thing and does another: at each phase in which something is submitted, with the job accepted and without.

The real backend runs sbatch, squeue, sacct and scontrol of the simulated cluster; what sbatch then tells is the test's.
"""

from __future__ import annotations

import subprocess

import pytest
from lies import ALL, RERUNS, TRAINING, Said, commands_at

from reconciler.backends.slurm_cli import _SIGNS
from reconciler.model import Condition

_FAILED = b"sbatch: error: Batch job submission failed: "
_RETRYING = b"sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
_TIMED_OUT = _FAILED + b"Socket timed out on send/recv operation\n"

# By what goes wrong: exit code, standard output, standard error. ID stands for what sbatch would have printed.
SAID: dict[str, Said] = {
    **{f"fails: {sign.sample[:50]}": (1, b"", f"sbatch: error: {sign.sample}\n".encode()) for sign in _SIGNS},
    "fails without a word": (1, b"", b""),
    "fails in words nobody knows": (1, b"", b"sbatch: error: the moon is full\n"),
    "fails after retries": (1, b"", 3 * _RETRYING + _FAILED + b"Resource temporarily unavailable\n"),
    "times out after retries": (1, b"", 3 * _RETRYING + _TIMED_OUT),
    "times out after a warning about its limits": (
        1,
        b"",
        b"sbatch: warning: accounting/QOS policy is being reloaded\n" + _TIMED_OUT,
    ),
    "is ended by timeout(1)": (124, b"", b""),
    "is killed by timeout(1)": (137, b"", b""),
    "is ended by timeout(1) while it retries": (124, b"", 2 * _RETRYING),
    "is killed by timeout(1) after a refusal": (137, b"", _FAILED + b"Resource temporarily unavailable\n"),
    "is killed with half an id told": (137, b"1", b""),
    "prints nothing, exit 0": (0, b"", b""),
    "prints an empty line, exit 0": (0, b"\n", b""),
    "prints a garbled id": (0, b"1\x00\x7f#&\n", b""),
    "prints an id in words": (0, b"Submitted batch job ID\n", b""),
    "prints a negative id": (0, b"-1\n", b""),
    "prints two numbers": (0, b"12 13\n", b""),
    "prints an id that is cut off": (0, b"ID", b""),
    "prints its id and fails": (1, b"ID\n", b""),
}
HARMLESS: dict[str, Said] = {
    "warns": (0, b"ID\n", b"sbatch: warning: can't honor --ntasks-per-node set to 4\n"),
    "tells of errors that it overcame": (0, b"ID\n", 2 * _RETRYING),
    "tells of a timeout that it overcame": (0, b"ID\n", _TIMED_OUT),
    "has a banner of the site": (0, b"*** maintenance on Monday ***\nID\n", b""),
    "names its cluster": (0, b"ID;fake\n", b""),
    "has spaces around": (0, b"  ID  \n", b""),
}
_IN_DOUBT = [what for what, (_, _, errors) in SAID.items() if not what.startswith("fails") or b"timed out" in errors]
_SUBMITTING = ("nothing submitted yet", "given up for lost", "ended with results", "to be tried again")


def say(said: Said, *, accepts: bool):
    """The next sbatch says so; those after it tell the truth."""
    told = []

    def lie(truth):
        if told:
            return truth()
        told.append(True)
        code, output, errors = said
        job = truth()[1].strip() if accepts else b"7777"
        return code, output.replace(b"ID", job[:-1] if output == b"ID" and len(job) > 1 else job), errors

    return lie


@pytest.mark.fault("sbatch fails, or says what cannot be understood, before or after the job was accepted")
@pytest.mark.parametrize("phase", _SUBMITTING if ALL else _SUBMITTING[:1])
@pytest.mark.parametrize("accepts", [True, False], ids=["accepted", "not accepted"])
@pytest.mark.parametrize("what", SAID)
def test_whatever_sbatch_says_of_a_submission_there_is_one_job(what, accepts, phase, monkeypatch):
    with commands_at(phase, monkeypatch) as (lab, commands):
        commands.lies["sbatch"] = say(SAID[what], accepts=accepts)
        lab.apply()
        assert commands.asked["sbatch"] >= 1
        lab.converges(training=RERUNS.get(phase, 0))


@pytest.mark.fault("sbatch fails in doubt or was silent, the job was accepted, and squeue does not show it in the next pass")
@pytest.mark.parametrize("what", _IN_DOUBT)
def test_what_is_in_doubt_is_not_submitted_again_when_squeue_is_wrongly_empty(what, monkeypatch):
    """Nor the accounting yet. What sbatch said must be taken for what it is: uncertain."""
    with commands_at("nothing submitted yet", monkeypatch) as (lab, commands):
        commands.lies["sbatch"] = say(SAID[what], accepts=True)
        lab.apply()
        commands.lies["squeue"] = commands.lies["sacct"] = lambda truth: (0, b"", b"")
        for _ in range(3):
            lab.pass_time(20)
            lab.apply()
        commands.lies.clear()
        lab.converges()


@pytest.mark.fault("sbatch never answers")
@pytest.mark.parametrize("phase", _SUBMITTING)
@pytest.mark.parametrize("accepts", [True, False], ids=["accepted", "not accepted"])
def test_an_sbatch_that_never_answers_leaves_one_job(accepts, phase, monkeypatch):
    with commands_at(phase, monkeypatch) as (lab, commands):

        def hang(truth):
            commands.lies.clear()
            if accepts:
                truth()
            raise subprocess.TimeoutExpired("sbatch", 60.0)

        commands.lies["sbatch"] = hang
        lab.apply()
        assert not commands.lies
        lab.converges(training=RERUNS.get(phase, 0))


@pytest.mark.fault("sbatch says more than the id, and the job was accepted")
@pytest.mark.parametrize("phase", _SUBMITTING if ALL else _SUBMITTING[:1])
@pytest.mark.parametrize("what", HARMLESS)
def test_an_accepted_job_is_known_by_its_id_whatever_else_is_said(what, phase, monkeypatch):
    with commands_at(phase, monkeypatch) as (lab, commands):
        commands.lies["sbatch"] = say(HARMLESS[what], accepts=True)
        seen = lab.apply()
        assert seen is not None
        assert "Unconfirmed" not in {action.reason.code for action in seen.actions}
        lab.converges(training=RERUNS.get(phase, 0))


@pytest.mark.fault("sbatch hands the job to another cluster")
def test_a_job_of_another_cluster_is_never_submitted_a_second_time_unasked(monkeypatch):
    """It cannot be seen from here, and a person has to look."""
    with commands_at("nothing submitted yet", monkeypatch) as (lab, commands):
        commands.lies["sbatch"] = lambda truth: (0, b"123;other\n", b"")
        for _ in range(12):
            seen = lab.apply()
            lab.pass_time(400)
        assert seen is not None
        assert not lab.live_jobs()
        stands = {action.step: action.condition for action in seen.actions}
        assert {stands[TRAINING], stands["base/eval/cap_base"]} == {Condition.FAILED}
        assert {len(lab._memory().of(key).attempts) for key in (TRAINING, "base/eval/cap_base")} == {1}
