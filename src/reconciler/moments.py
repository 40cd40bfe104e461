"""Moments as people write them: ``2026-12-01``, ``2026-12-01 18:00``, ``18:00``, ``+2d``, ``10h``.

Pure but for the local time zone: text and ``now`` in, epoch seconds out.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from reconciler.errors import UsageError

ACCEPTED = "a date (2026-12-01), a date and time (2026-12-01 18:00), a time (18:00), or a span (+2d, 10h, 90m, 1d12h)"
_UNITS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "min": 60, "s": 1}
_SPAN = re.compile(r"\+?((?:[0-9]{1,9}(?:w|d|h|min|m|s))+)")
_PART = re.compile(r"([0-9]+)(w|d|h|min|m|s)")
_FARTHEST = 3660 * 86400  # s


def moment(text: str, now: float) -> float:
    """Epoch seconds of a moment to come, in local time. Raises UsageError for anything else, with what is accepted."""
    at = _spanned(text.strip(), now)
    if at is None:
        at = _dated(text.strip(), now)
    if at is None:
        raise UsageError(f"{text!r} is no moment; accepted: {ACCEPTED}")
    if at > now + _FARTHEST:
        raise UsageError(f"{text!r} is more than ten years ahead; accepted: {ACCEPTED}")
    if at <= now:
        raise UsageError(f"{text!r} is {shown(at)}, which is over; accepted: {ACCEPTED}, to come")
    return at


def shown(at: float) -> str:
    """A moment as it is shown, in local time."""
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")


def _spanned(text: str, now: float) -> float | None:
    match = _SPAN.fullmatch(text.replace(" ", "").lower())
    return None if match is None else now + sum(int(n) * _UNITS[unit] for n, unit in _PART.findall(match[1]))


def _dated(text: str, now: float) -> float | None:
    """A time alone is the next one of its kind: today's, or tomorrow's where that is over."""
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        pass
    today = datetime.fromtimestamp(now)
    for form in ("%Y-%m-%d %H", "%H:%M", "%H:%M:%S"):
        try:
            found = datetime.strptime(text, form)
        except ValueError:
            continue
        if form.startswith("%Y"):
            return found.timestamp()
        at = datetime.combine(today.date(), found.time())
        return (at if at > today else at + timedelta(days=1)).timestamp()
    return None
