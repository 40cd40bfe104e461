"""docs/reliability.md names tests that are there."""

from __future__ import annotations

import re

from reliability import PAGE

TESTS = PAGE.parent.parent / "tests"


def test_every_bug_is_held_by_a_test_that_is_there():
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", PAGE.read_text())
    assert len(named) > 20
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (TESTS / file).read_text()]
    assert not missing
