"""What may stand in the ledger: every kind of event that is written is in the table with what it holds, in a form that is read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reconciler
from reconciler.events import FORMS, KINDS, check, check_own
from reconciler.fold import MalformedEvent, fold
from reconciler.ledger import Ledger

SOURCES = Path(reconciler.__file__).parent
EXAMPLES = {
    **dict.fromkeys(FORMS, "text"), "after": None, "ask": {"gpus": 1, "seconds": 60.0, "where": ""}, "at": 5.0, "attempt": 1,
    "batch": {"batch_size": "4"},
    "before": "4", "begins": 6, "begun": None, "by_hand": True, "by_person": False, "bytes": 10, "cells": {"a|||Status": "HELD"},
    "copied": True,
    "ended": 9.5, "environment": {"HOME": True}, "epochs": [0, 1], "evidence": [{"path": "/x", "size": 1, "mtime_ns": 2}],
    "from_epoch": 1, "held": False, "hold_only": True, "inputs": {"checkpoint": "a"}, "job": "101", "kept": True, "meaning": {"lr": "1"},
    "newest": 7.0, "options": {"mem": "8G"}, "started": 5, "states": {"a/finetune": "HELD"}, "step": "a/finetune", "until": 99.0,
}  # fmt: skip


def example(kind: str) -> dict:
    return {name: EXAMPLES[name] for name in sorted(KINDS[kind].names)} | {"event": kind}


# --- what is written -----------------------------------------------------------------------------------


def writings() -> Iterator[tuple[str, str, frozenset[str], frozenset[str]]]:
    """Every place that writes an event: where, its kind, what it surely holds, and what it may hold."""
    for path in sorted(SOURCES.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call) and is_writing(node)):
                names = {keyword.arg for keyword in call.keywords if keyword.arg}
                spread = [keyword.value for keyword in call.keywords if keyword.arg is None]
                more = set().union(*(keys_of(value, function, tree) for value in spread)) if spread else set()
                yield f"{path.name}:{call.lineno}", call.args[0].value, frozenset(names | implied(call)), frozenset(more)


def is_writing(call: ast.Call) -> bool:
    """``ledger.append("…", …)``, ``court.write("…", key, …)`` or ``situation.learn("…", …)``."""
    if not isinstance(call.func, ast.Attribute) or not (call.args and isinstance(call.args[0], ast.Constant)):
        return False
    of = ast.unparse(call.func.value)
    return (call.func.attr == "append" and "ledger" in of.lower()) or (call.func.attr, of) in OTHERS


OTHERS = {("write", "court"), ("learn", "situation"), ("learn", "s")}


def implied(call: ast.Call) -> set[str]:
    return {"append": set(), "write": {"step", "user", "why"}, "learn": {"step"}}[call.func.attr]


def keys_of(value: ast.expr, function: ast.FunctionDef, tree: ast.Module) -> set[str]:
    """The keys of the dictionaries that a name is given in a function, or that a function of the same file returns."""
    within: ast.AST = function
    if isinstance(value, ast.Call):
        called = ast.unparse(value.func)
        within = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == called)
        found = [node.value for node in ast.walk(within) if isinstance(node, ast.Return)]
    else:
        named = (node for node in ast.walk(within) if isinstance(node, ast.Assign))
        found = [node.value for node in named if ast.unparse(node.targets[0]) == ast.unparse(value)]
    literals = [node for each in found for node in ast.walk(each) if isinstance(node, ast.Dict)]
    return {key.value for literal in literals for key in literal.keys if isinstance(key, ast.Constant)}


WRITINGS = list(writings())


@pytest.mark.parametrize(("place", "kind", "surely", "perhaps"), WRITINGS, ids=[place for place, *_ in WRITINGS])
def test_what_is_written_has_all_that_its_kind_requires_and_nothing_that_it_has_not(place, kind, surely, perhaps):
    assert KINDS[kind].required <= surely | perhaps
    assert surely | perhaps <= KINDS[kind].names


def test_every_kind_is_written_somewhere_and_so_is_everything_that_it_may_hold():
    written = {kind: set() for kind in KINDS}
    for _, kind, surely, perhaps in WRITINGS:
        written[kind] |= surely | perhaps | {"at", "event"}
    assert written == {kind: set(KINDS[kind].names) for kind in KINDS}
    assert set().union(*written.values()) == FORMS.keys()


# --- what is read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_with_everything_that_it_holds_is_read_and_may_be_written(kind):
    check_own(example(kind))
    fold([example(kind)])


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_that_lacks_what_its_kind_has_or_has_it_otherwise_is_damage(kind):
    whole = example(kind)
    for name in KINDS[kind].required:
        with pytest.raises(MalformedEvent):
            fold([{key: value for key, value in whole.items() if key != name}])
    for name in KINDS[kind].names - {"event"}:
        with pytest.raises(MalformedEvent):
            fold([{**whole, name: [None]}])


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("pause", {"at": 1e300}),
        ("pause", {"user": 5}),
        ("pause", {"until": float("nan")}),
        ("pause", {"until_text": None}),
        ("free", {"epochs": "012"}),
        ("free", {"epochs": [True]}),
        ("free", {"bytes": -1e9}),
        ("renaming", {"old": 5}),
        ("opened", {"by": None}),
        ("done", {"inputs": {"checkpoint": 1}}),
        ("done", {"evidence": [{"path": "/x"}]}),
        ("done", {"evidence": [{"path": "/x", "size": 1, "mtime": 2}]}),
        ("intent", {"attempt": True}),
        ("intent", {"ask": {"gpus": None, "seconds": float("inf"), "where": ""}}),
        ("submitted", {"job": "--help"}),
    ],
)
def test_a_thing_in_another_form_is_damage(kind, change):
    with pytest.raises(ValueError, match=f"{kind}' has another form of {next(iter(change))}"):
        check({**example(kind), **change})


def test_what_a_later_version_adds_is_neither_looked_at_nor_written_by_this_one():
    praised, holding = {"event": "praised", "at": 1.0, "step": ["x"]}, {**example("hold"), "colour": 7}
    assert fold([praised, holding]) == fold([praised, example("hold")])
    for event in (praised, holding):
        with pytest.raises(ValueError, match=r"praised|colour"):
            check_own(event)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
NAMES = st.sampled_from(["path", "size", "mtime_ns", "gpus", "seconds", "where", "x"])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4))


@given(VALUES)
def test_every_form_has_an_answer_for_whatever_json_holds(value):
    assert {form(value) for form in FORMS.values()} <= {True, False}


@given(st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(FORMS)), VALUES | st.just(...)), max_size=6))
def test_whatever_has_the_forms_can_be_folded(changes):
    events = [{**example(kind), **({} if value is ... else {name: value}), "event": kind} for kind, name, value in changes]
    try:
        for event in events:
            check(event)
    except ValueError:
        return
    fold(events)


# --- the ledger ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("placed", {"step": "a/finetune", "attempt": None, "placement": "p"}),
        ("submitted", {"step": "a/finetune", "attempt": 1}),
        ("praised", {}),
        ("release", {"colour": "red"}),
    ],
)
def test_an_event_that_no_pass_could_read_is_never_written(tmp_path, kind, facts):
    (tmp_path / ".reconcile").mkdir()
    ledger = Ledger(tmp_path, lambda: 5.0)
    ledger.append("release")
    before = ledger.path.read_bytes()
    with pytest.raises(ValueError, match=kind):
        ledger.append(kind, **facts)
    assert ledger.path.read_bytes() == before
    assert ledger.is_left_alone()
    assert ledger.memory().released == 1
