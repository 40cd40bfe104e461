"""What people do while passes run: they save the document, half of it, rename and remove runs, delete the ledger, move everything."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from lies import ALL, FEW, PHASES, RERUNS, TRAINING, Lab, lab_at, some

from fake_slurm.jobs import State
from mortality import Mortality, watched
from reconciler.errors import ReconcileError, UsageError
from reconciler.handover import accept_identity
from reconciler.loop import run_pass
from reconciler.model import Token

_NOTE = "\nAna: the second batch looks odd, ask Bo.\n"


def replace_in_place(path: Path, text: str) -> None:
    path.write_text(text)


def replace_by_rename(path: Path, text: str) -> None:
    """As vim and most editors save."""
    other = path.with_name("experiment_summary.md~")
    other.write_text(text)
    other.replace(path)


SAVES: dict[str, Callable[[Path, str], None]] = {"in place": replace_in_place, "by rename": replace_by_rename}


def without_note(lab: Lab) -> None:
    """What a person added is there, and is taken away again so that the promises about the rest can be checked."""
    text = lab.document.read_text()
    assert text.count(_NOTE) == 1
    lab.document.write_text(text.replace(_NOTE, ""))


@pytest.mark.fault("a person saves the document at any moment of a pass")
@pytest.mark.parametrize("how", SAVES)
@pytest.mark.parametrize("phase", PHASES if ALL else FEW[:1])
def test_what_a_person_saves_during_a_pass_is_kept(phase, how, record_property):
    with lab_at(phase) as lab:
        count = lab.effects()
    lost = []
    for effect in some(count):
        with lab_at(phase) as lab:
            opened = lab.document.read_text()  # in the editor since before the pass
            saved = []

            def save(lab: Lab = lab, opened: str = opened, saved: list[bool] = saved) -> None:
                if lab.document.read_text() == opened:  # else an editor would ask; see the test after this one
                    SAVES[how](lab.document, opened + _NOTE)
                    saved.append(True)

            lab._mortality = Mortality(lab.directory, intrudes_at=effect, intrusion=save)
            with suppress(ReconcileError):
                _watched_pass(lab)
            if _NOTE in lab.document.read_text():
                without_note(lab)
            elif saved:
                lost.append(effect)
            lab.converges(training=RERUNS.get(phase, 0))
    record_property("cases", len(some(count)))
    assert len(lost) <= 1, "more than the moment between the last look at the document and rename(2), which knows no condition"


def _watched_pass(lab: Lab) -> None:
    assert lab._mortality is not None
    try:
        with watched(lab._mortality):
            run_pass(lab.scene())
    finally:
        lab._mortality = None


@pytest.mark.fault("a person's editor holds the old document and saves it over what a pass wrote")
@pytest.mark.parametrize("how", SAVES)
@pytest.mark.parametrize("phase", PHASES)
def test_an_old_document_saved_over_the_new_one_gets_its_tables_again(phase, how):
    with lab_at("nothing submitted yet") as lab:
        opened = lab.document.read_text()
    with lab_at(phase) as lab:
        lab.apply()
        SAVES[how](lab.document, opened)
        lab.converges(training=RERUNS.get(phase, 0))
        assert lab.document.read_text().count("COMPLETED") == 3


@pytest.mark.fault("the document is empty, half-saved or gone for a moment")
@pytest.mark.parametrize("phase", PHASES if ALL else ["running"])
def test_a_document_caught_in_mid_save_changes_nothing_that_cannot_be_undone(phase, record_property):
    """Cut at every line: no job is cancelled, none is submitted twice, and the rest of the file is there when it comes."""
    with lab_at(phase) as lab:
        lines = lab.document.read_text().splitlines(keepends=True)
    record_property("cases", len(some(len(lines))) + 1)
    for cut in (-1, *some(len(lines))):
        with lab_at(phase) as lab:
            whole = lab.document.read_text()
            lab.document.unlink() if cut < 0 else lab.document.write_text("".join(lines[:cut]))
            live = [job.id for job in lab.live_jobs()]
            with suppress(ReconcileError):
                run_pass(lab.scene())
            assert set(live) <= {job.id for job in lab.live_jobs()}, f"cut at {cut}: a job was cancelled"
            lab.document.write_text(whole)
            lab.converges(training=RERUNS.get(phase, 0))


def live_tokens(lab: Lab) -> Counter[tuple[str, str]]:
    """How many live jobs there are of each step of each experiment, whatever the directories are called by now. A replacement that
    is held does not count."""
    jobs = [job for job in lab.cluster.queue() if not job.state.is_final and not job.hold]
    tokens = [token for job in jobs if (token := Token.parse(job.name))]
    return Counter((token.experiment, token.step) for token in tokens)


@pytest.mark.fault("a run is renamed or removed while its job is at any phase, and comes back")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("runs", [["z"], ["z", "a"], []], ids=["renamed", "beside another", "removed"])
def test_a_run_that_is_renamed_or_removed_keeps_its_job_and_gets_no_second_one(phase, runs):
    with lab_at(phase) as lab:
        jobs = {job.id for job in lab.cluster.queue() if not job.state.is_final}
        if runs:
            lab.edit_runs(runs)
        else:
            text = lab.document.read_text()
            lab.document.write_text(text.replace("| a | Fine-tuned |\n", "").replace("| a | ✓ epoch 0 |\n", ""))
        for _ in range(3):
            with suppress(ReconcileError):
                run_pass(lab.scene())
            assert max(live_tokens(lab).values(), default=0) <= 1
            lab.cluster.advance(60)
        assert jobs <= {job.id for job in lab.cluster.queue()}
        if runs:
            lab.edit_runs(["a"])
        else:
            lab.document.write_text(text)
        shutil.rmtree(lab.directory / "z", ignore_errors=True)
        for job in lab.cluster.queue():
            if Token.parse(job.name) and lab._key(job) is None and not job.state.is_final:
                lab.cluster.cancel(job.id)
        lab.settle_down()
        assert lab.starts[TRAINING] == 1 + RERUNS.get(phase, 0)


@pytest.mark.fault("the ledger's directory is deleted")
@pytest.mark.parametrize("phase", PHASES)
def test_with_the_ledger_deleted_no_live_job_gets_a_second_one(phase):
    with lab_at(phase) as lab:
        shutil.rmtree(lab.directory / ".reconcile", ignore_errors=True)
        lab._failed.clear()
        for _ in range(4):
            lab.apply()
            lab.pass_time(400)
            for job in lab.live_jobs():
                if job.state.has_resources:
                    lab.end_job(job, "whole", State.COMPLETED)
        lab.settle_down()


@pytest.mark.fault("the ledger's directory is deleted at any moment of a pass, and another pass begins")
@pytest.mark.parametrize("phase", PHASES if ALL else FEW[:1])
def test_the_ledger_deleted_under_a_pass_leaves_one_job_a_step(phase, record_property):
    """The lock goes with it, so that another pass is let in."""
    with lab_at(phase) as lab:
        count = lab.effects()
    for effect in some(count):
        with lab_at(phase) as lab:

            def delete(lab: Lab = lab) -> None:
                shutil.rmtree(lab.directory / ".reconcile", ignore_errors=True)
                if not lab.is_handing_over:
                    with suppress(ReconcileError):
                        run_pass(lab.scene())

            lab._failed.clear()
            lab._pass(Mortality(lab.directory, intrudes_at=effect, intrusion=delete))
            lab.settle_down()
    record_property("cases", len(some(count)))


@pytest.mark.fault("the experiment is copied or moved with its ledger")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("how", ["moved", "copied"])
def test_an_experiment_that_was_moved_is_refused_until_a_person_says_so_and_then_goes_on(phase, how):
    with lab_at(phase) as lab:
        old = lab.directory
        new = old.with_name("elsewhere")
        has_ledger = (old / ".reconcile" / "ledger.jsonl").exists()
        shutil.copytree(old, new, symlinks=True)
        if how == "moved":
            shutil.rmtree(old)
        lab.directory = new
        jobs = len(lab.cluster.queue())
        if has_ledger:
            with pytest.raises(UsageError, match="--moved"):
                run_pass(lab.scene())
            assert len(lab.cluster.queue()) == jobs
            accept_identity(lab.scene(), how)
        for _ in range(3):
            run_pass(lab.scene())
            lab.cluster.advance(10)
            assert max(live_tokens(lab).values(), default=0) <= 1
            steps = Counter(step for _, step in live_tokens(lab))
            assert max(steps.values(), default=0) <= (1 if how == "moved" else 2), "a copy is another experiment, a move is none"
        names = [job.name for job in lab.cluster.queue()]
        assert len(names) == len(set(names))


# --- a colleague's permissions; root may do everything, so these run as somebody else


def as_somebody(do: Callable[[], None]) -> None:
    """``do`` in a child process that is nobody of importance; its failure is the caller's."""
    if os.getuid() != 0:
        do()
        return
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(54321)
            os.setuid(54321)
            do()
            code = 0
        except BaseException as error:  # noqa: BLE001 - there is nobody above in this process
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def open_to_all(lab: Lab, *, writable: bool) -> None:
    for path in [lab._place, *lab._place.rglob("*")]:
        path.chmod((0o777 if writable else 0o755) if path.is_dir() else (0o666 if writable else 0o644))


@pytest.mark.fault("the experiment may be read and not written")
@pytest.mark.parametrize("phase", PHASES)
def test_in_a_read_only_experiment_nothing_is_submitted(phase):
    with lab_at(phase) as lab:
        open_to_all(lab, writable=False)
        jobs = len(lab.cluster.queue())
        before = lab._tree()

        def attempt() -> None:
            with pytest.raises(ReconcileError):
                run_pass(lab.scene())
            assert len(lab.cluster.queue()) == jobs

        as_somebody(attempt)
        assert lab._tree() == before
        lab.converges(training=RERUNS.get(phase, 0))


@pytest.mark.fault("outputs that only their owner may read")
@pytest.mark.parametrize("phase", ["ended with results", "to be tried again", "ended without results"])
@pytest.mark.parametrize("what", ["file", "directory"])
def test_outputs_that_may_not_be_read_are_unknown_and_nothing_is_trained_over_them(phase, what):
    with lab_at(phase) as lab:
        open_to_all(lab, writable=True)
        result = lab.result(TRAINING)
        result.parent.mkdir(parents=True, exist_ok=True)
        if not result.exists():
            result.write_text("whole")
        closed = result if what == "file" else result.parent
        closed.chmod(0)

        def attempt() -> None:
            jobs = len(lab.jobs_of(TRAINING))
            seen = run_pass(lab.scene())
            (action,) = [action for action in seen.actions if action.step == TRAINING]
            assert action.condition.value == "Unknown", action
            assert len(lab.jobs_of(TRAINING)) == jobs

        as_somebody(attempt)
        closed.chmod(0o777)


@pytest.mark.fault("the document may not be written, or not even be read")
@pytest.mark.parametrize("mode", [0o444, 0o000])
@pytest.mark.parametrize("phase", PHASES)
def test_a_document_without_permission_is_left_and_the_jobs_go_on(phase, mode):
    with lab_at(phase) as lab:
        open_to_all(lab, writable=True)
        before = lab.document.read_bytes()
        lab.document.chmod(mode)

        def attempt() -> None:
            with suppress(ReconcileError):
                run_pass(lab.scene())

        as_somebody(attempt)
        lab.document.chmod(0o644)
        assert lab.document.read_bytes() == before
