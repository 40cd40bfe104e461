"""What a person's word has the cluster do at once, after all that was said is in writing.

A call that the cluster does not carry out keeps no other back: the word stands, and what was left undone is told at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reconciler.errors import ClusterUnreachable


@dataclass(frozen=True)
class Errand:
    """One job, and what is to be ``done`` to it (``cancelled``, ``held``). ``is_taken_up``: where the cluster fails, the next
    pass does it; else a person must say the word again."""

    job: str
    done: str
    call: Callable[[], None]
    is_taken_up: bool


def run(errands: Sequence[Errand], said: str) -> None:
    """Do them all. Raises ClusterUnreachable at the end where any was left undone: what was ``said`` all the same, and who does
    the rest."""
    undone: dict[tuple[str, str, bool], list[str]] = {}
    for errand in errands:
        try:
            errand.call()
        except ClusterUnreachable as error:
            undone.setdefault((errand.done, str(error), errand.is_taken_up), []).append(errand.job)
    if undone:
        raise ClusterUnreachable("; ".join([said, *(_told(jobs, *what) for what, jobs in undone.items())]))


def said_of(steps: Sequence[str]) -> str:
    """What a person reads before the rest, of a word that is in writing."""
    several = list(dict.fromkeys(steps))
    return f"said of {several[0]}" if len(several) == 1 else f"said of all {len(several)} steps"


def _told(jobs: Sequence[str], done: str, why: str, is_taken_up: bool) -> str:
    named = f"job{'s' if len(jobs) > 1 else ''} {', '.join(jobs)}"
    return f"{named} could not be {done}: {why}; {'the next pass does it' if is_taken_up else 'say it again'}"
