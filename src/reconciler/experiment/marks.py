"""One cell of an evaluation matrix: is the task wanted, and at which epochs.

Pure text. A cell that a person would have to guess at is no mark at all (None), never "not wanted".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ACCEPTED = "`✓`, `✓ epoch 0,1`, `✓ epochs 0-2`, `✓ all`, or `-` or nothing where the evaluation is not wanted"

_LONGEST = 200  # characters of a mark
_UNWANTED = frozenset({"", "-", "–", "—", "no", "n/a", "none", "✗", "✘", "❌"})
_EPOCHS = r"\d{1,4}(?:\s*[-–]\s*\d{1,4})?"
_MARK = re.compile(
    rf"""(?P<tick>✓|✔|✅|☑|x|yes|\[x\])?\s*
         (?P<open>\()?
         (?: epochs?:?\s*(?P<list>{_EPOCHS}(?:\s*(?:,\s*and\b|,|&|\band\b)\s*{_EPOCHS})*)
           | (?P<every>all(?:\s+epochs)?)
           | (?P<last>(?:last|final)(?:\s+epoch)?) )?
         (?(open)\))""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Mark:
    """What a cell asks for. No ``epochs`` and not ``every``: the run's own model, or its last epoch."""

    wanted: bool
    epochs: tuple[int, ...] = ()
    every: bool = False


def read_mark(text: str) -> Mark | None:
    """The mark of a cell's text, or None where it cannot be read."""
    plain = " ".join(text.replace("\ufe0f", "").casefold().split())
    if plain in _UNWANTED:
        return Mark(wanted=False)
    match = _MARK.fullmatch(plain) if len(plain) <= _LONGEST else None
    if match is None or (match["open"] and not match["list"] and not match["every"] and not match["last"]):
        return None
    epochs = _listed(match["list"] or "")
    return None if epochs is None else Mark(True, epochs, match["every"] is not None)


def _listed(text: str) -> tuple[int, ...] | None:
    """``0, 2-4`` as (0, 2, 3, 4); None where a range runs backwards."""
    epochs: dict[int, None] = {}
    for first, last in re.findall(r"(\d+)(?:\s*[-–]\s*(\d+))?", text):
        span = range(int(first), int(last or first) + 1)
        if not span:
            return None
        epochs.update(dict.fromkeys(span))
    return tuple(epochs)
