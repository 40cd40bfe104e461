"""Cases from seeds, always the same ones for the same number: bytes changed, words that hurt put in, values of JSON exchanged."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from fuzz.corpus import TOKENS

_LONGEST = 1 << 16  # bytes; what is large has tests of its own
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2.5, 10**20, 10**400, -(10**30), float("nan"), float("inf"), 1e300, "", "x", "\0", "a\0b", "\ud800",
    "\x1b[31m", "\u202e", "/", "/" * 500, "..", "0", "-5", "٣", "²", "x" * 3000, [], {}, [[]], [{}], {"": {}}, [None], ["a", 1],
)  # fmt: skip


def cases(seeds: Sequence[bytes], count: int, number: int = 0) -> Iterator[bytes]:
    """``count`` cases, the seeds first."""
    chance = random.Random(number)
    yield from seeds[:count]
    for _ in range(count - len(seeds)):
        yield mutated(chance.choice(seeds), seeds, chance)


def mutated(case: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """A case with a few changes."""
    if chance.random() < 0.4:
        case = _with_other_values(case, chance)
    for _ in range(chance.choice((0, 1, 1, 2, 4))):
        case = chance.choice(_CHANGES)(case, seeds, chance)
    return case[:_LONGEST]


def _flip(case: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    if not case:
        return b"\0"
    at = chance.randrange(len(case))
    return case[:at] + bytes([case[at] ^ (1 << chance.randrange(8))]) + case[at + 1 :]


def _insert(case: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    at = chance.randrange(len(case) + 1)
    return case[:at] + chance.choice(TOKENS) + case[at:]


def _overwrite(case: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    at, token = chance.randrange(len(case) + 1), chance.choice(TOKENS)
    return case[:at] + token + case[at + len(token) :]


def _cut(case: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    begin, end = sorted(chance.randrange(len(case) + 1) for _ in range(2))
    return case[:begin] + case[end:] if chance.random() < 0.5 else case[:end]


def _repeat(case: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    lines = case.split(b"\n")
    at = chance.randrange(len(lines))
    return b"\n".join([*lines[:at], *[lines[at]] * chance.choice((2, 3, 30)), *lines[at + 1 :]])


def _splice(case: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    other = chance.choice(seeds)
    return case[: chance.randrange(len(case) + 1)] + other[chance.randrange(len(other) + 1) :]


def _exchange_lines(case: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    lines = case.split(b"\n")
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"\n".join(lines)


_CHANGES = (_flip, _flip, _insert, _insert, _overwrite, _cut, _repeat, _splice, _exchange_lines)


# --- JSON ------------------------------------------------------------------------------------------


def _with_other_values(case: bytes, chance: random.Random) -> bytes:
    """The case with one value of its JSON exchanged: of the whole, behind a first byte, or of one of its lines."""
    lines = case.split(b"\n")
    at = chance.randrange(len(lines))
    for prefix in (0, 1):
        try:
            value = json.loads(lines[at][prefix:])
        except (ValueError, RecursionError):
            continue
        text = json.dumps(_exchanged(value, chance), ensure_ascii=chance.random() < 0.5)
        return b"\n".join([*lines[:at], lines[at][:prefix] + text.encode("utf-8", "surrogatepass"), *lines[at + 1 :]])
    return case


def _exchanged(value: Any, chance: random.Random) -> Any:
    children = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    if not children or chance.random() < 0.15:
        return chance.choice(_VALUES)
    key, child = chance.choice(children)
    changed = dict(value) if isinstance(value, dict) else list(value)
    if isinstance(changed, dict) and chance.random() < 0.15:
        del changed[key]
    else:
        changed[key] = _exchanged(child, chance)
    return changed
