"""What a mistyped name may have meant; pure."""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST = 255  # characters; comparing takes time that grows with them


def closest(name: str, names: Iterable[str], likeness: float = 0.6) -> str:
    """`` (did you mean `…`?)`` where one of ``names`` is much like ``name``, else nothing. ``likeness`` is difflib's ratio."""
    from difflib import get_close_matches  # seldom needed, and slow to import

    found = get_close_matches(name, list(names), n=1, cutoff=likeness) if len(name) <= _LONGEST else []
    return f" (did you mean `{found[0]}`?)" if found else ""
