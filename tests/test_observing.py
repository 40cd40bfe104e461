"""What is asked of the cluster and of the disk, and that no answer is never taken for an empty one."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from reconciler.disk import RealDisk
from reconciler.errors import AccountingDisabled, AnotherPass, ClusterUnreachable, DiskUnreadable, LedgerDamaged, TemporaryError
from reconciler.fold import fold
from reconciler.ledger import Ledger
from reconciler.lock import pass_lock
from reconciler.memory import CLOCK_SKEW
from reconciler.model import Edit, Observed, Outputs, OutputState, Phase, Reason, Sign, Step, Unknown
from reconciler.observe import _why_sealed, asks_cluster, doubt_an_empty_queue, observe, roots_seen
from reconciler.ports import Doubt, FileInfo
from worlds import ABSENT, NOW, done, ended, evaluation, event, experiment, finetune, job, name_of, submitted

STEP = finetune()
RESUMES = replace(STEP, resume=Edit(Path("/exp/a/finetune.yaml"), "resume", "False", "True"))
BLOCKED = replace(finetune("z"), blocked=Reason("NotScaffolded", "no script"))


@dataclass
class Asked:
    """A cluster that answers what it is told to, and remembers what it was asked."""

    in_queue: object = ()
    accounted: object = ()
    doubts: list[Doubt] = field(default_factory=list)
    uid: str = "1000"

    def queue(self):
        return self._answer(self.in_queue)

    def accounting(self, doubt):
        self.doubts.append(doubt)
        return self._answer(self.accounted)

    @staticmethod
    def _answer(what):
        if isinstance(what, Exception):
            raise what
        return what


class Judge:
    """A tool that remembers how deeply it was asked to look, and objects where it is told to."""

    signs = (Sign("LaunchFailure", r"^bang", "bang"),)

    def __init__(self, found: Outputs = ABSENT, objection: str | None = None) -> None:
        self.found, self.objection, self.looked = found, objection, []

    def check(self, step: Step, disk, deep: bool = False) -> Outputs:
        self.looked.append((step.key, deep))
        return self.found

    def may_submit(self, step: Step, outputs: Outputs) -> str | None:
        return self.objection if outputs is self.found else None


@dataclass
class Shelf:
    """A disk that has the directories it is told of; ``fails`` is one that cannot be asked for."""

    there: tuple[str, ...] = ("/scratch", "/exp/a")
    fails: str = ""
    is_dir: bool = True
    devices: dict[str, int] = field(default_factory=dict)

    def stat(self, path: Path) -> FileInfo | None:
        if str(path) == self.fails:
            raise DiskUnreadable(f"{path}: Stale file handle")
        return FileInfo(0, 0, self.is_dir, self.devices.get(str(path), 1)) if str(path) in self.there else None


def look(*steps, events=(), cluster=None, disk=None, tool=None, **more) -> Observed:
    tool = tool or Judge()
    tools = {"trainer": tool, "evaluator": tool}
    return observe(experiment(*(steps or (STEP,))), fold(events), cluster or Asked(), disk or Shelf(), tools, **more)


# --- the cluster -------------------------------------------------------------------------------------


def test_a_queue_that_cannot_be_asked_is_unknown_and_the_accounting_is_spared():
    cluster = Asked(ClusterUnreachable("squeue: timed out"))
    seen = look(events=submitted(STEP), cluster=cluster)
    assert seen.queue == Unknown("squeue: timed out")
    assert seen.accounting is None
    assert cluster.doubts == []
    assert seen.outputs == {STEP.key: ABSENT}


def test_the_accounting_is_asked_about_what_the_queue_does_not_show():
    attempts = [*submitted(STEP, 1, NOW - 500), *submitted(STEP, 2, NOW - 900)[:1]]
    cluster = Asked(accounted=(job(STEP, Phase.ENDED),))
    seen = look(events=attempts, cluster=cluster)
    assert seen.accounting == (job(STEP, Phase.ENDED),)
    assert cluster.doubts == [Doubt(NOW - 900 - CLOCK_SKEW, ("101",), has_unnamed=True)]
    known = Asked()
    look(events=submitted(STEP), cluster=known)
    assert known.doubts == [Doubt(NOW - 1000 - CLOCK_SKEW, ("101",), has_unnamed=False)]


@pytest.mark.parametrize(
    ("events", "queue"),
    [
        pytest.param([], (), id="nothing was ever submitted"),
        pytest.param(submitted(STEP), (job(STEP),), id="the queue shows the job"),
        pytest.param(submitted(STEP)[:1], (replace(job(STEP), id="9"),), id="the queue shows it by name"),
        pytest.param(submitted(STEP), (replace(job(STEP), name="short"),), id="the queue shows it by id"),
        pytest.param(ended(STEP, "UserError"), (), id="its end is known"),
        pytest.param([*submitted(STEP)[:1], event("lost", STEP, NOW, attempt=1)], (), id="it was given up"),
    ],
)
def test_an_accounting_that_nothing_needs_is_not_asked(events, queue):
    cluster = Asked(queue)
    assert look(events=events, cluster=cluster).accounting is None
    assert cluster.doubts == []


def test_who_cancelled_a_job_is_asked_of_the_accounting_because_the_queue_does_not_tell():
    cancelled = job(STEP, Phase.ENDED, state="CANCELLED")
    for seen, asked in ((cancelled, 1), (replace(cancelled, cancelled_by="0"), 0), (replace(cancelled, state="FAILED"), 0)):
        cluster = Asked((seen,))
        look(events=submitted(STEP), cluster=cluster)
        assert len(cluster.doubts) == asked
    cluster = Asked((cancelled,))
    look(events=ended(STEP, "UserError"), cluster=cluster)
    assert cluster.doubts == []


def test_before_a_held_replacement_may_start_the_accounting_is_asked_about_what_it_replaces():
    lost = [*submitted(STEP, at=NOW - 2000)[:1], event("lost", STEP, NOW - 300, attempt=1)]
    held = [*lost, *submitted(STEP, 2, NOW - 200, held=True)]
    cluster = Asked((job(STEP, Phase.QUEUED, 2, held=True),))
    assert look(events=held, cluster=cluster).accounting == ()
    assert cluster.doubts == [Doubt(NOW - 2000 - CLOCK_SKEW, (), has_unnamed=True)]
    other = submitted(finetune("b"), at=NOW - 500)
    both = Asked((job(STEP, Phase.QUEUED, 2, held=True),))
    look(STEP, finetune("b"), events=[*held, *other], cluster=both)
    assert both.doubts == [Doubt(NOW - 2000 - CLOCK_SKEW, ("101",), has_unnamed=True)]
    free = Asked((job(STEP, Phase.QUEUED, 2),))
    look(events=[*held, event("unheld", STEP, NOW, attempt=2)], cluster=free)
    assert free.doubts == []


def test_a_site_without_accounting_knows_of_no_job_and_one_that_is_down_is_unknown():
    assert look(events=submitted(STEP), cluster=Asked(accounted=AccountingDisabled("none"))).accounting == ()
    down = look(events=submitted(STEP), cluster=Asked(accounted=ClusterUnreachable("slurmdbd is down")))
    assert down.accounting == Unknown("slurmdbd is down")


def test_an_empty_queue_is_doubted_once_with_all_of_the_last_hour():
    cluster = Asked(accounted=(job(STEP),))
    seen = doubt_an_empty_queue(Observed((), None, {STEP.key: ABSENT}), cluster, NOW)
    assert seen == Observed((), (job(STEP),), {STEP.key: ABSENT})
    assert cluster.doubts == [Doubt(NOW - 3600, (), has_unnamed=True)]
    for told in ((), Unknown("down")):
        before = Observed((), told, {})
        assert doubt_an_empty_queue(before, cluster, NOW) is before
    assert len(cluster.doubts) == 1


def test_a_finished_experiment_needs_no_cluster_and_no_disk():
    silent, tool = Asked(AssertionError("asked"), AssertionError("asked")), Judge()
    events = [*ended(STEP, "UserError"), done(STEP)]
    assert look(events=events, cluster=silent, tool=tool) == Observed(None, None, {})
    assert tool.looked == []
    assert not asks_cluster(experiment(STEP), fold(events))
    assert asks_cluster(experiment(STEP), fold([*submitted(STEP), done(STEP)]))
    assert asks_cluster(experiment(STEP, finetune("b")), fold(events))
    assert asks_cluster(experiment(STEP), fold([*events, *submitted(finetune("gone"))]))


# --- the disk ----------------------------------------------------------------------------------------


def test_the_outputs_of_every_step_that_is_not_done_are_looked_at():
    tool, heard = Judge(), []
    steps = (finetune("a"), BLOCKED, finetune("b"), evaluation("a"))
    seen = look(*steps, events=[done(finetune("b"))], tool=tool, tick=heard.append)
    assert [key for key, _ in tool.looked] == heard == ["a/finetune", "a/eval/cap_epoch0"]
    assert set(seen.outputs) == {"a/finetune", "a/eval/cap_epoch0"}


@pytest.mark.parametrize(
    ("events", "asked", "deep"),
    [
        ([], False, False),
        ([], True, True),
        (ended(STEP, "UserError"), False, False),
        (submitted(STEP), False, False),
        *((ended(STEP, failure), False, True) for failure in ("NodeFailure", "BootFailure", "Vanished")),
        ([*ended(STEP, "NodeFailure"), *ended(STEP, "UserError", 2)], False, False),
    ],
)
def test_what_a_node_failure_left_is_verified_in_full(events, asked, deep):
    tool = Judge()
    look(events=events, tool=tool, **({"deep": True} if asked else {}))
    assert tool.looked == [(STEP.key, deep)]


def test_a_tools_objection_to_a_fresh_start_is_passed_on():
    assert look(tool=Judge(objection="a log verifies")).objections == {STEP.key: "a log verifies"}
    assert look(tool=Judge()).objections == {}


ROOT_SEEN = [{"event": "root", "at": NOW, "path": "/scratch"}]


@pytest.mark.parametrize(
    ("disk", "events", "code"),
    [
        pytest.param(Shelf(("/scratch",)), [], None, id="there"),
        pytest.param(Shelf(("/scratch",)), ROOT_SEEN, None, id="still there"),
        pytest.param(Shelf(("/",)), [], None, id="never there, and may be made"),
        pytest.param(Shelf(("/",)), ROOT_SEEN, "RootGone", id="gone"),
        pytest.param(Shelf(()), [], "RootMissing", id="perhaps not mounted"),
        pytest.param(Shelf(("/",), fails="/scratch"), [], "DiskUnknown", id="cannot be asked"),
        pytest.param(Shelf((), fails="/"), [], "DiskUnknown", id="nor its parent"),
    ],
)
def test_absent_outputs_count_only_under_a_root_that_is_there_or_may_be_made(disk, events, code):
    tool = Judge()
    found = look(events=events, disk=disk, tool=tool).outputs[STEP.key]
    if code is None:
        assert found is ABSENT
    else:
        assert (found.state, found.reason.code) == (OutputState.UNKNOWN, code)
        assert "/scratch" in found.reason.message or "Stale" in found.reason.message
        assert tool.looked == []


def test_one_root_of_many_steps_is_asked_for_once():
    class Counting(Shelf):
        asked = 0

        def stat(self, path):
            Counting.asked += 1
            return super().stat(path)

    look(finetune("a"), finetune("b"), finetune("c"), disk=Counting())
    assert Counting.asked == 1


def test_a_root_is_remembered_from_when_it_was_first_seen_as_a_directory():
    desired = experiment(finetune("a"), finetune("b"), evaluation("a"), replace(BLOCKED, root=Path("/elsewhere")))
    memory = fold([])
    assert roots_seen(desired, memory, Shelf(("/scratch", "/exp/a", "/elsewhere"))) == ("/exp/a", "/scratch")
    assert roots_seen(desired, memory, Shelf(("/exp/a",))) == ("/exp/a",)
    assert roots_seen(desired, memory, Shelf(("/scratch",), is_dir=False)) == ()
    assert roots_seen(desired, memory, Shelf(("/exp/a", "/scratch"), fails="/scratch")) == ("/exp/a",)
    assert roots_seen(desired, fold(ROOT_SEEN), Shelf(("/scratch", "/exp/a"))) == ("/exp/a",)


# --- the logs of jobs ----------------------------------------------------------------------------------

LOGGED = replace(STEP, logs=("/logs/%j.out", "/logs/%x.err"))


@dataclass
class Papers(Shelf):
    """A disk with some logs; it remembers how each was asked for."""

    texts: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)

    def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        self.asked.append((str(path), offset))
        if str(path) == self.fails:
            raise DiskUnreadable(f"{path}: Stale file handle")
        return self.texts.get(str(path))


OUT, ERR = "/logs/101.out", f"/logs/{name_of(STEP)}.err"


@pytest.mark.parametrize(
    ("texts", "fails", "log"),
    [
        ({OUT: b"one", ERR: b"two \xff"}, "", "one\ntwo \ufffd"),
        ({ERR: b"two"}, "", "two"),
        ({OUT: b""}, "", None),
        ({}, "", None),
        ({OUT: b"one"}, ERR, Unknown(f"{ERR}: Stale file handle")),
    ],
)
def test_the_end_of_a_failed_jobs_log_is_read_and_an_unreadable_one_is_unknown(texts, fails, log):
    failed = job(STEP, Phase.ENDED, state="FAILED", exit_code="1:0")
    disk = Papers(texts=texts, fails=fails)
    seen = look(LOGGED, events=submitted(STEP), cluster=Asked((failed,)), disk=disk)
    assert seen.logs == {("101", name_of(STEP)): log}
    assert set(disk.asked) <= {(OUT, -65536), (ERR, -65536)}
    assert (seen.uid, seen.signs) == ("1000", {STEP.key: Judge.signs})


@pytest.mark.parametrize(
    ("events", "ended_as", "is_read"),
    [
        (submitted(STEP), {"state": "FAILED", "exit_code": "1:0"}, True),
        (submitted(STEP), {"state": "COMPLETED", "exit_code": "0:0"}, True),
        (submitted(STEP), {"state": "TIMEOUT", "exit_code": "0:0"}, False),
        (submitted(STEP), {"state": "CANCELLED", "exit_code": "0:15"}, False),
        (submitted(STEP), {"state": "FAILED", "exit_code": "0:53"}, False),
        (submitted(STEP), {"state": "RUNNING", "phase": Phase.RUNNING}, False),
        (ended(STEP, "UserError"), {"state": "FAILED", "exit_code": "1:0"}, False),
        (ended(STEP, "UserError"), {"state": "FAILED", "exit_code": "1:0", "id": "9"}, True),
    ],
)
def test_a_log_is_read_where_only_it_tells_why_and_once(events, ended_as, is_read):
    found = job(STEP, **{"phase": Phase.ENDED, **ended_as})
    disk = Papers()
    seen = look(LOGGED, events=events, cluster=Asked((found,)), disk=disk)
    assert bool(disk.asked) == is_read
    assert set(seen.logs) == ({(found.id, found.name)} if is_read else set())


def test_the_log_of_a_job_that_only_the_accounting_shows_is_read_too():
    failed = job(STEP, Phase.ENDED, state="FAILED", exit_code="1:0")
    disk = Papers(texts={OUT: b"one"})
    seen = look(LOGGED, events=submitted(STEP), cluster=Asked(accounted=(failed,)), disk=disk)
    assert seen.logs == {("101", name_of(STEP)): "one"}


def test_a_log_under_a_name_that_only_the_job_knows_is_not_guessed():
    failed = job(STEP, Phase.ENDED, state="FAILED", exit_code="1:0")
    disk = Papers()
    seen = look(replace(STEP, logs=("/logs/%N.out",)), events=submitted(STEP), cluster=Asked((failed,)), disk=disk)
    assert (disk.asked, seen.logs) == ([], {("101", name_of(STEP)): None})


# --- the ledger --------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path):
    (tmp_path / ".reconcile").mkdir()
    return Ledger(tmp_path, lambda: 5.5)


def test_an_event_is_one_line_of_json_with_its_time(ledger):
    ledger.append("rerun", step="ä/finetune", why="line\nbreak", newest=1.5)
    ledger.append("release")
    content = ledger.path.read_bytes()
    assert (
        content
        == (
            '{"at":5.5,"event":"rerun","step":"ä/finetune","why":"line\\nbreak","newest":1.5}\n{"at":5.5,"event":"release"}\n'
        ).encode()
    )
    assert [e["event"] for e in Ledger(ledger.path.parent.parent, lambda: 0.0).events()] == ["rerun", "release"]


def test_a_path_that_is_no_unicode_comes_back_as_it_was(ledger):
    name = os.fsdecode(b"/data/\xff")
    ledger.append("root", path=name)
    assert [e["path"] for e in Ledger(ledger.path.parent.parent, lambda: 0.0).events()] == [name]


def test_no_ledger_is_an_empty_memory_and_reading_makes_none(tmp_path):
    assert Ledger(tmp_path, lambda: 0.0).events() == []
    assert Ledger(tmp_path / "file" / "in", lambda: 0.0).memory() == fold([])
    (tmp_path / "file").write_text("x")
    assert Ledger(tmp_path / "file", lambda: 0.0).events() == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_ledger_that_cannot_be_read_is_not_taken_for_an_empty_one(ledger):
    ledger.path.mkdir()
    with pytest.raises(DiskUnreadable, match=r"ledger\.jsonl"):
        ledger.memory()


@pytest.mark.parametrize(
    "line",
    ["garbage", "[]", "3", "null", '{"at":1}', '{"event":"x"}', '{"at":"1","event":"x"}', '{"at":1,"event":2}', "", "\xff"],
)
def test_a_line_that_is_no_event_of_ours_is_damage_with_its_number(ledger, line):
    ledger.append("release")
    with ledger.path.open("ab") as file:
        file.write(line.encode("latin-1") + b'\n{"at":1,"event":"release"}\n')
    before = ledger.path.read_bytes()
    with pytest.raises(LedgerDamaged, match=r"ledger\.jsonl:2:"):
        ledger.events()
    assert ledger.path.read_bytes() == before


def test_an_event_at_a_whole_second_counts(ledger):
    ledger.path.write_text('{"at":1,"event":"release"}\n')
    assert ledger.memory().released == 1


def test_a_torn_line_is_cut_off_by_the_next_event_and_only_then(ledger):
    ledger.append("release")
    ledger.append("release")
    whole = ledger.path.read_bytes()
    for torn in (b'{"at":1,"ev', b"x"):
        ledger.path.write_bytes(whole + torn)
        fresh = Ledger(ledger.path.parent.parent, lambda: 6.0)
        assert len(fresh.events()) == 2
        assert ledger.path.read_bytes() == whole + torn
        fresh.append("release")
        assert ledger.path.read_bytes() == whole + b'{"at":6.0,"event":"release"}\n'
    ledger.path.write_bytes(b'{"at":1')
    Ledger(ledger.path.parent.parent, lambda: 6.0).append("release")
    assert ledger.path.read_bytes() == b'{"at":6.0,"event":"release"}\n'


def test_a_ledger_knows_whether_somebody_else_wrote_to_it(ledger):
    home = ledger.path.parent.parent
    assert ledger.is_left_alone()
    ledger.append("release")
    assert ledger.is_left_alone()
    with ledger.path.open("ab") as file:
        file.write(b'{"at":1,"ev')
    assert not ledger.is_left_alone()
    fresh, other = Ledger(home, lambda: 6.0), Ledger(home, lambda: 7.0)
    fresh.memory()
    assert fresh.is_left_alone()
    fresh.append("release")
    fresh.append("release")
    assert fresh.is_left_alone()
    other.append("release")
    assert not fresh.is_left_alone()
    assert not Ledger(home, lambda: 8.0).is_left_alone()
    ledger.path.unlink()
    assert not fresh.is_left_alone()


def test_an_event_that_may_not_have_reached_the_disk_is_none_and_nobody_elses(ledger, monkeypatch):
    ledger.append("release")
    with monkeypatch.context() as failing:
        failing.setattr(os, "fsync", _refuse)
        with pytest.raises(TemporaryError):
            ledger.append("hold", step="a/finetune")
    assert ledger.is_left_alone()
    ledger.append("release")
    assert ledger.is_left_alone()
    assert [e["event"] for e in ledger.events()] == ["release", "release"]


def test_a_part_of_an_event_that_could_not_be_taken_back_is_cut_off_by_the_next_one(ledger, monkeypatch):
    ledger.append("release")
    with monkeypatch.context() as failing:
        failing.setattr(os, "ftruncate", _refuse)
        failing.setattr(os, "write", partial(_write_a_part, os.write))
        with pytest.raises(TemporaryError):
            ledger.append("hold", step="a/finetune")
    assert not ledger.path.read_bytes().endswith(b"\n")
    ledger.append("release")
    assert [e["event"] for e in ledger.events()] == ["release", "release"]
    assert ledger.is_left_alone()


def _refuse(*call):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def _write_a_part(write, descriptor, content):
    if len(content) < 20:
        _refuse()
    return write(descriptor, content[:20])


def test_a_ledger_larger_than_any_experiment_fills_is_damage(ledger, monkeypatch):
    ledger.append("release")
    size = ledger.path.stat().st_size
    monkeypatch.setattr("reconciler.ledger.LARGEST", size)
    assert len(ledger.events()) == 1
    ledger.append("release")
    with pytest.raises(LedgerDamaged, match="is larger than"):
        ledger.events()


# --- the lock ----------------------------------------------------------------------------------------


def test_the_lock_tells_who_holds_it_and_is_free_again_afterwards(tmp_path):
    with pass_lock(tmp_path):
        text = json.loads((tmp_path / ".reconcile" / "lock").read_text())
        assert (text["pid"], text["host"]) == (os.getpid(), os.uname().nodename)
        with pytest.raises(AnotherPass, match=rf"process {os.getpid()} on {os.uname().nodename}"), pass_lock(tmp_path):
            pass
    with pass_lock(tmp_path):
        pass


def test_what_an_earlier_holder_left_in_the_lock_is_replaced(tmp_path):
    (tmp_path / ".reconcile").mkdir()
    lock = tmp_path / ".reconcile" / "lock"
    lock.write_text("x" * 500)
    with pass_lock(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["", "garbage", "{}", '{"pid": 3}', "\x00", "[]", "3", "[" * 990])
def test_a_held_lock_that_does_not_say_by_whom_is_held_all_the_same(tmp_path, text):
    (tmp_path / ".reconcile").mkdir()
    lock = tmp_path / ".reconcile" / "lock"
    lock.write_text(text)
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(AnotherPass, match=r"lock$"), pass_lock(tmp_path):
            pass


def test_the_lock_is_kept_by_a_submission_that_inherited_it_and_by_no_other_process(tmp_path):
    sleep = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with pass_lock(tmp_path) as lock:
        heir = subprocess.Popen(sleep, stdin=subprocess.PIPE, pass_fds=(lock,))
        other = subprocess.Popen(sleep, stdin=subprocess.PIPE, close_fds=False)
    try:
        with pytest.raises(AnotherPass), pass_lock(tmp_path):
            pass
        heir.communicate(b"")
        with pass_lock(tmp_path):
            assert other.poll() is None
    finally:
        heir.kill()
        other.communicate(b"")


def test_where_a_disk_may_be_full_each_step_has_the_filesystem_of_the_nearest_directory_that_is_there():
    below, beside = finetune("a"), replace(finetune("b"), output_dir=Path("/scratch/x/y/b"))
    on_project, out_of_sight = (
        replace(finetune("c"), output_dir=Path("/project/c")),
        replace(finetune("d"), output_dir=Path("/nfs/d")),
    )
    shelf = Shelf(("/scratch", "/project", "/project/c", "/nfs"), "/nfs", devices={"/scratch": 5, "/project/c": 7})
    steps = (below, beside, on_project, out_of_sight)
    seen = look(*steps, events=ended(below, "DiskQuota"), disk=shelf)
    assert seen.filesystems == {below.key: 5, beside.key: 5, on_project.key: 7}
    assert look(*steps, events=ended(below, "Unknown"), disk=shelf).filesystems == {}, "nothing asks"


def test_an_unmounted_filesystem_is_not_taken_for_the_one_beneath_it():
    gone = look(events=[*ended(STEP, "DiskQuota"), {"event": "root", "at": NOW, "path": "/scratch"}], disk=Shelf(("/",)))
    assert gone.outputs[STEP.key].state is OutputState.UNKNOWN
    assert gone.filesystems == {}


def test_a_directory_where_nothing_can_be_locked_stops_with_its_name(tmp_path):
    (tmp_path / ".reconcile").write_text("a file")
    with pytest.raises(DiskUnreadable, match=r"\.reconcile"), pass_lock(tmp_path):
        pass
    with pytest.raises(DiskUnreadable, match="nowhere"), pass_lock(tmp_path / "nowhere"):
        pass


def test_the_lock_may_be_taken_by_whoever_may_write_there(tmp_path):
    before = os.umask(0o002)
    tmp_path.chmod(0o775)
    try:
        with pass_lock(tmp_path):
            assert (tmp_path / ".reconcile" / "lock").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)
    assert RealDisk().stat(tmp_path / ".reconcile" / "lock") is not None


@pytest.mark.parametrize("file", ["/exp/a/finetune.yaml", "/exp/.reconcile/originals/a/finetune.yaml"])
def test_a_configuration_that_cannot_be_written_is_known_before_it_is_to_be(file):
    class Sealed(RealDisk):
        def why_not_writable(self, path):
            return f"{path} is sealed" if str(path) == file or file == "both" else ""

    assert _why_sealed(RESUMES, experiment(RESUMES), Sealed()) == f"{file} is sealed"
    assert _why_sealed(STEP, experiment(STEP), Sealed()) == ""
