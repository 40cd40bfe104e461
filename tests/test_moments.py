"""Moments as people write them, in local time."""

from __future__ import annotations

import time

import pytest

from reconciler.errors import UsageError
from reconciler.moments import moment, shown

NOW = time.mktime((2026, 11, 24, 12, 0, 0, 0, 0, -1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-12-01", "2026-12-01 00:00:00"),
        ("2026-12-01 18:00", "2026-12-01 18:00:00"),
        ("2026-12-01T18:00:30", "2026-12-01 18:00:30"),
        ("2026-12-01 18", "2026-12-01 18:00:00"),
        ("18:00", "2026-11-24 18:00:00"),
        ("09:00", "2026-11-25 09:00:00"),
        ("+2d", "2026-11-26 12:00:00"),
        ("10h", "2026-11-24 22:00:00"),
        ("90m", "2026-11-24 13:30:00"),
        ("+1d12h", "2026-11-26 00:00:00"),
        (" 1w ", "2026-12-01 12:00:00"),
    ],
)
def test_a_moment_is_read_as_people_write_it(text, expected):
    assert shown(moment(text, NOW)) == expected


def test_a_moment_with_a_zone_is_that_zones():
    assert moment("2026-12-01T18:00:00+02:00", NOW) == moment("2026-12-01T16:00:00Z", NOW)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "2026-13-01",
        "2026-11-23",
        "2026-11-24 11:59",
        "+0h",
        "25:00",
        "99999999d",
        "9" * 400 + "w",
        "-2h",
        "10",
        "1.5h",
    ],
)
def test_what_is_no_moment_to_come_is_refused_with_what_is_accepted(text):
    with pytest.raises(UsageError, match="accepted: a date"):
        moment(text, NOW)
