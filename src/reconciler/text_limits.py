"""What a text or a value must be before anything is done with it; pure.

Documents, configurations and logs come from people, models and trainers that were killed: any text may hold a NUL, and a short
one may unfold into gigabytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

_LONGEST_PATH = 4096  # bytes; PATH_MAX


def can_be_path(text: str) -> bool:
    """True for what Linux can take for a path: no NUL, nothing that has no bytes, not too long."""
    try:
        return "\0" not in text and len(os.fsencode(text)) < _LONGEST_PATH
    except UnicodeEncodeError:  # half a character
        return False


def is_whole(text: str) -> bool:
    """True where the text has no lone surrogate, half a character that cannot be written down."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def unfolded(value: Any, known: dict[int, tuple[float, float]]) -> tuple[float, float]:
    """How many values there are in a tree of maps and lists, and how deep, once what it shares is written out in each place.

    Both are without end where it holds itself. ``known`` remembers by id, so the tree must outlive it.
    """
    if not isinstance(value, (Mapping, list)):
        return 1, 1
    if id(value) not in known:
        known[id(value)] = math.inf, math.inf  # holds while its own children are counted
        inner = [unfolded(child, known) for child in (value.values() if isinstance(value, Mapping) else value)]
        known[id(value)] = 1 + sum(count for count, _ in inner), 1 + max((depth for _, depth in inner), default=0)
    return known[id(value)]
