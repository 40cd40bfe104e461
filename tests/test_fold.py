"""What was written down is what is remembered: every kind of event, and all that it says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from reconciler.failures import sentence
from reconciler.fold import MalformedEvent, fold
from reconciler.memory import Attempt, Done, End, Identity, Memory, Rerun, StepMemory, Word
from reconciler.model import Edit

KEY = "a/finetune"
INTENT = {
    "event": "intent", "at": 10.5, "step": KEY, "attempt": 1, "name": "job.rc-1", "begins": 15.0, "held": True,
    "definition": "d", "placement": "p", "output_dir": "/out", "options": {"mem": "8G"}, "from_epoch": 2,
}  # fmt: skip
BEGUN = Attempt(1, "job.rc-1", 10.5, 15.0, 1, "d", "p", "/out", {"mem": "8G"}, 2, held=True)


def step(*events) -> StepMemory:
    return fold([{"at": 20.0, "step": KEY, **event} for event in events]).of(KEY)


def told(*events) -> Memory:
    return fold({"at": 20.0, **event} for event in events)


def attempt(*outcomes) -> Attempt:
    (found,) = step(INTENT, *({"attempt": 1, **outcome} for outcome in outcomes)).attempts
    return found


def test_an_intent_is_remembered_with_everything_that_it_says():
    assert step(INTENT).attempts == (BEGUN,)
    assert step({"event": "intent", "attempt": 3, "name": "n"}).attempts == (Attempt(3, "n", 20.0, 20.0, 1),)


@pytest.mark.parametrize(
    ("outcome", "changes"),
    [
        ({"event": "submitted", "job": "101"}, {"job": "101"}),
        ({"event": "refused", "message": "Invalid account"}, {"refused": "Invalid account"}),
        ({"event": "limited", "message": "QOS"}, {"limited": True, "limit": "QOS"}),
        ({"event": "lost"}, {"lost": True}),
        ({"event": "unseen"}, {"unseen_at": 20.0}),
        ({"event": "withdrawing"}, {"withdrawing": True}),
        ({"event": "withdrawn"}, {"withdrawn": True, "held": False}),
        ({"event": "unheld"}, {"held": False}),
        ({"event": "missing"}, {"missing_at": 20.0}),
        ({"event": "placed", "placement": "other"}, {"placement": "other"}),
        (
            {
                "event": "ended", "job": "7", "state": "FAILED", "failure": "UserError", "ended": 19, "started": 12.0,
                "exit_code": "1:0", "detail": "killed", "nodes": "n1",
            },
            {"job": "7", "end": End("FAILED", "UserError", 19.0, 12.0, "1:0", 2, "killed", "n1")},
        ),
        (
            {"event": "ended", "job": "7", "state": "FAILED", "failure": "UserError", "ended": 19},
            {"job": "7", "end": End("FAILED", "UserError", 19.0, None, "", 2)},
        ),
    ],
)  # fmt: skip
def test_what_became_of_an_attempt_is_remembered_and_the_rest_of_it_stays(outcome, changes):
    assert attempt(outcome) == Attempt(**{**vars(BEGUN), **changes})


def test_a_job_that_is_seen_again_or_requeued_is_as_if_it_had_never_been_gone():
    ended = {"event": "ended", "job": "7", "state": "NODE_FAIL", "failure": "NodeFailure", "ended": 19}
    gone = [{"event": "submitted", "job": "7"}, {"event": "unseen"}]
    back = attempt(*gone, {"event": "seen"})
    assert (back.unseen_at, back.is_open) == (None, True)
    again = attempt(*gone, ended, {"event": "missing"}, {"event": "reopened"})
    assert (again.end, again.missing_at, again.unseen_at, again.is_open) == (None, None, None, True)


def test_an_outcome_concerns_the_attempt_of_its_number_and_no_other():
    second = {**INTENT, "attempt": 2, "name": "job.rc-2"}
    one, two = step(INTENT, second, {"event": "lost", "attempt": 1}, {"event": "submitted", "attempt": 2, "job": "9"}).attempts
    assert (one.lost, one.job, two.lost, two.job) == (True, None, False, "9")


def test_an_adopted_job_confirms_its_attempt_under_the_name_that_the_cluster_shows():
    adopted = {"event": "adopted", "attempt": 1, "job": "55", "name": "site-job.rc-1", "at": 99.0}
    for before in ({"event": "lost"}, {"event": "limited", "message": "m"}, {"event": "refused", "message": "m"}):
        assert attempt(before, adopted) == Attempt(**{**vars(BEGUN), "name": "site-job.rc-1", "job": "55"})


def test_a_job_that_is_adopted_changes_no_other_attempt():
    second = {**INTENT, "attempt": 2, "name": "job.rc-2"}
    one, two = step(INTENT, second, {"event": "adopted", "attempt": 2, "job": "9", "name": "job.rc-2"}).attempts
    assert (one, two.job) == (BEGUN, "9")


def test_a_job_that_nobody_wrote_down_is_an_attempt_of_its_own():
    adopted = {
        "event": "adopted",
        "attempt": 4,
        "job": "55",
        "name": "n",
        "definition": "d",
        "placement": "p",
        "output_dir": "/o",
    }
    assert step(adopted).attempts == (Attempt(4, "n", 20.0, 20.0, 1, "d", "p", "/o", job="55"),)
    by_hand = step({**adopted, "by_hand": True}).attempts
    assert by_hand == (Attempt(4, "n", 20.0, 20.0, 1, "d", "p", "/o", by_hand=True, job="55"),)
    began = step({**adopted, "begun": 12}).attempts
    assert [(a.at, a.begins) for a in began] == [(12.0, 12.0)]
    assert step({**adopted, "begun": None}).attempts == step(adopted).attempts
    both = step(INTENT, {**adopted, "attempt": 1, "by_hand": True}).attempts
    assert [(a.number, a.by_hand, a.job) for a in both] == [(1, True, "55")]


def test_a_result_is_remembered_with_its_evidence_and_who_said_so():
    done = {"event": "done", "definition": "d"}
    files = [{"path": "/out/x", "size": 1, "mtime_ns": 2}]
    assert step(done).done == Done("d", 1, generation="d", at=20.0)
    full = step({**done, "evidence": files, "meaning": {"lr": "1"}, "by_person": True}).done
    assert full == Done("d", 1, True, tuple(files), {"lr": "1"}, Word("accept", 1, at=20.0), generation="d", at=20.0)


def test_a_hold_outlives_the_result_and_a_cancellation_does_not_nor_a_hold_of_what_was_accepted():
    done = {"event": "done", "definition": "d"}
    hold = {"event": "hold", "user": "ana", "why": "the data"}
    assert step(hold).word == step(hold, done).word == Word("hold", 1, "ana", "the data", 20.0)
    assert step({"event": "cancel"}).word == Word("cancel", 1, at=20.0)
    assert step({"event": "cancel"}, done).word is None
    assert step(hold, {**done, "by_person": True}).word is None


def test_a_release_and_a_rerun_take_back_what_was_said_before():
    before = [{"event": "done", "definition": "d"}, {"event": "hold"}]
    released = step(*before, {"event": "release"})
    assert (released.word, released.released, released.done) == (None, 3, Done("d", 1, generation="d", at=20.0))
    assert (
        step(*before, {"event": "release", "hold_only": True}).word,
        step({"event": "release", "hold_only": True}).released,
    ) == (None, 0)
    rerun = step(*before, {"event": "rerun", "newest": 17.0})
    assert (rerun.word, rerun.released, rerun.done, rerun.rerun) == (
        None,
        3,
        None,
        Rerun(20.0, 3, 17.0, Word("rerun", 3, at=20.0), replaced=step(*before)),
    )
    assert step({"event": "rerun"}).rerun == Rerun(20.0, 1, None, Word("rerun", 1, at=20.0), replaced=StepMemory())


def test_edits_of_a_configuration_are_remembered_from_their_first_value_to_their_last():
    def edited(*values, key="batch_size"):
        return [
            {"event": "edited", "path": "/a/finetune.yaml", "key": key, "before": before, "after": after}
            for before, after in pairwise(values)
        ]

    path = Path("/a/finetune.yaml")
    assert step(*edited("8", "4")).edits == (Edit(path, "batch_size", "8", "4", order=1, at=20.0),)
    assert step(*edited("8", "4", "2")).edits == (Edit(path, "batch_size", "8", "2", order=2, via=("4",), at=20.0),)
    assert step(*edited("8", "4", "2", "8")).edits == ()
    both = step(*edited("8", "4"), *edited("1", "2", key="accumulate"), *edited("4", "2")).edits
    assert [(e.key, e.before, e.after) for e in both] == [("accumulate", "1", "2"), ("batch_size", "8", "2")]


def test_what_is_in_writing_of_places_inside_the_experiment_moves_with_it():
    evidence = [{"path": "/p/a/out/x", "size": 1, "mtime_ns": 2}, {"path": "/pp/y", "size": 1, "mtime_ns": 2}]
    opened = {"event": "opened", "cluster": "c", "user": "u", "environment": {}}
    before = [
        opened | {"path": "/p"},
        {"event": "root", "path": "/p/a"},
        {"event": "root", "path": "/r"},
        {**INTENT, "output_dir": "/p/a/out"},
        {"event": "edited", "step": KEY, "path": "/p/a/finetune.yaml", "key": "k", "before": "1", "after": "2"},
        {"event": "done", "step": KEY, "definition": "d", "evidence": evidence},
        {"event": "rerun", "step": KEY},
    ]
    memory = told(*before, opened | {"path": "/q", "by": "u", "what": "moved"})
    assert memory.roots == {"/q/a", "/r"}
    assert memory.former == ("/p",)
    assert told(*before, opened | {"path": "/q", "what": "copied"}).former == ()
    (of_step,) = memory.steps.values()
    assert of_step.attempts[0].output_dir == "/q/a/out"
    assert of_step.edits[0].path == Path("/q/a/finetune.yaml")
    assert of_step.given_up is not None
    assert of_step.given_up.done is not None
    assert [file["path"] for file in of_step.given_up.done.evidence] == ["/q/a/out/x", "/pp/y"]
    assert told(*before, opened | {"path": "/q", "what": "cluster"}).of(KEY).attempts[0].output_dir == "/p/a/out"


def test_what_concerns_the_whole_experiment_is_remembered_as_it_was_last_said():
    memory = told(
        {"event": "opened", "cluster": "c1", "path": "/p", "user": "u", "environment": {"conda": True}},
        {"event": "opened", "cluster": "c2", "path": "/q", "user": "v", "environment": {"conda": False}},
        {"event": "root", "path": "/r"},
        {"event": "root", "path": "/s"},
        {"event": "names", "kept": False},
        {"event": "stands", "states": {KEY: "PENDING", "b": "PENDING"}},
        {"event": "stands", "states": {KEY: "RUNNING"}},
        {"event": "heard", "words": "abc"},
        {"event": "release", "at": 20.0},
    )
    assert memory == Memory(
        identity=Identity("c2", "/q", "v"),
        environment={"conda": False},
        roots=frozenset({"/r", "/s"}),
        names_kept=False,
        released=9,
        states={KEY: "RUNNING", "b": "PENDING"},
        words=(Word("release", 9, at=20.0),),
        heard="abc",
    )
    assert told({"event": "names", "kept": True}).names_kept is True
    assert fold([]) == Memory()


def test_a_cell_is_remembered_with_what_it_holds_and_what_it_ever_held():
    wrote = [{"event": "writing", "cells": {"x": "1", "y": "1"}}, {"event": "writing", "cells": {"x": "2"}}]
    assert told(*wrote).written == {"x": ("2", "1"), "y": ("1",)}
    assert told(*wrote, {"event": "writing", "cells": {"x": "3"}}).written["x"] == ("3", "2", "1")
    assert told(*wrote, {"event": "writing", "cells": {"x": "1"}}).written["x"] == ("1", "2")
    assert told(*wrote, {"event": "unwritten", "cells": {"x": "2"}}).written == {"x": ("1",), "y": ("1",)}
    assert told(*wrote, {"event": "unwritten", "cells": {"x": "1"}}).written == {"x": ("2",), "y": ("1",)}
    assert told(*wrote, {"event": "unwritten", "cells": {"x": "0", "y": "1"}}).written == {"x": ("2", "1")}


def test_events_of_a_later_version_are_passed_over():
    known = [INTENT]
    later = [{"event": "praised", "at": 1.0}, {"event": "praised", "at": 1.0, "step": KEY}]
    assert fold([*known, *later]) == fold(known)
    assert fold([*later, {"event": "release", "step": KEY, "at": 1.0}]).of(KEY).released == 3


@pytest.mark.parametrize(
    "event",
    [
        {"event": "submitted", "at": 1, "step": KEY},
        {"event": "intent", "at": "soon", "step": KEY, "attempt": 1, "name": "n"},
        {"event": "opened", "at": 1},
        {"event": "stands", "at": 1, "states": 3},
        {"event": "writing", "at": 1, "cells": []},
        {"event": "adopted", "at": 1, "step": KEY, "attempt": 1, "name": "n", "job": "1", "begun": "once"},
    ],
)
def test_an_event_that_lacks_what_its_kind_has_is_named_by_its_place(event):
    with pytest.raises(MalformedEvent) as damage:
        fold([INTENT, event])
    assert damage.value.order == 2


def test_a_class_of_failure_that_this_version_does_not_know_is_told_by_its_name():
    assert sentence("GpuOnFire") == "GpuOnFire"
    assert sentence("GpuOnFire", "smoke") == "GpuOnFire (smoke)"


def test_what_a_rerun_gave_up_can_stand_again_until_something_is_submitted():
    before = [{"event": "done", "definition": "d"}, {"event": "hold"}]
    twice = [*before, {"event": "rerun"}, {"event": "rerun"}]
    restored = step(*twice, {"event": "restored", "user": "u"})
    assert (restored.done, restored.word, restored.rerun) == (step(*before).done, step(*before).word, None)
    assert restored.words[-1].verb == "accept"
    followed = step(*twice, {"event": "intent", "attempt": 1, "name": "n"}, {"event": "restored"})
    assert followed.done is None
    assert followed.given_up is None


@pytest.mark.parametrize("verb", ["hold", "cancel"])
def test_a_word_said_again_without_a_reason_keeps_the_reason_given_before(verb):
    said = [{"event": "hold", "user": "ana", "why": "new data"}, {"event": verb, "user": "ben", "why": ""}]
    assert (step(*said).word.user, step(*said).word.why) == ("ben", "new data")
    assert [word.why for word in step(*said).words] == ["new data", ""]
    assert step(*said, {"event": verb, "why": "other"}).word.why == "other"
    assert step(*said, {"event": "release"}, {"event": verb}).word.why == ""


def test_a_second_free_keeps_the_reason_given_before():
    free = {"event": "free", "epochs": [0], "bytes": 1}
    assert step({**free, "why": "the quota"}, free).freed.word.why == "the quota"


def test_a_pause_said_again_keeps_its_reason_while_it_lasts():
    memory = fold([{"event": "pause", "at": 1.0, "why": "maintenance", "until": 5.0}, {"event": "pause", "at": 2.0}])
    assert memory.pause.word.why == "maintenance"
    over = fold([{"event": "pause", "at": 1.0, "why": "maintenance", "until": 5.0}, {"event": "pause", "at": 6.0}])
    assert over.pause.word.why == ""
