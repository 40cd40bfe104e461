"""The tracebacks in what a program printed, and which of its lines tell how it ended; pure.

Each form that it knows stands in a table beside lines as they were printed. It never tells what an exception means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_HEAD = re.compile(r"(?P<before>.*?)(?P<box>[╭+][─-]+ )?(?:Exception Group )?Traceback \(most recent call last\)")
_LABEL = re.compile(r"\[[A-Za-z]{1,20}\d{1,6}\]: ?|\d{1,6}: ")
_FRAME = re.compile(r"[ \t|+│┃]*")
_BOX_ENDS = re.compile(r"[╰+][─-]{3}")
_JOINS = re.compile(r"During handling of the above|The above exception was the direct cause|\+-+ \d+ -+$")
# What Python tells on the way out, or of a thread that nobody waits for, whatever the program itself died of.
_ASIDE = re.compile(r"Exception ignored|Exception in thread |Error in atexit\._run_exitfuncs|--- Logging error ---")
# What a launcher raises because a process of its own failed: that one's traceback tells more.
_RELAYS = re.compile(r"\S*\b(ChildFailedError|CalledProcessError)\b")


_PYTHON = 'Traceback (most recent call last):\n  File "train.py", line 1, in <module>\n    f()\n'
_RELAYED = f"{_PYTHON}torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n=====\ntrain.py FAILED\n"


def _before_each(label: str, text: str) -> str:
    return "".join(f"{label}{line}\n" for line in text.splitlines())


FORMS: Mapping[str, tuple[str, str]] = {
    "Python": (f"{_PYTHON}ValueError: bad lr\n", "ValueError: bad lr"),
    "chained": (
        f"{_PYTHON}KeyError: 'lr'\n\nDuring handling of the above exception, another exception occurred:\n\n"
        f"{_PYTHON}ValueError: bad lr\n",
        "ValueError: bad lr",
    ),
    "behind a progress bar": (
        f"1|3|Loss: 2.31:  50%|█████     | 5/10{_PYTHON}ValueError: bad lr\n",
        "ValueError: bad lr",
    ),
    "rich": (
        "╭───────────── Traceback (most recent call last) ──────────────╮\n"
        "│ /d/train.py:5 in <module>                                    │\n"
        "│                                                              │\n"
        "│ ❱ 5 f()                                                      │\n"
        "╰──────────────────────────────────────────────────────────────╯\n"
        "ValueError: bad lr\n",
        "ValueError: bad lr",
    ),
    "rich in a panel": (
        "╭────────────────────── capitalization ──────────────────────╮\n"
        "│ ╭────────── Traceback (most recent call last) ───────────╮ │\n"
        "│ │ /d/task.py:7 in <module>                               │ │\n"
        "│ ╰────────────────────────────────────────────────────────╯ │\n"
        "│ ValueError: bad lr                                         │\n"
        "╰────────────────────────────────────────────────────────────╯\n",
        "ValueError: bad lr",
    ),
    "rich without Unicode": (
        "+------------- Traceback (most recent call last) --------------+\n"
        "| /d/train.py:5 in <module>                                    |\n"
        "+--------------------------------------------------------------+\n"
        "ValueError: bad lr\n",
        "ValueError: bad lr",
    ),
    "exception group": (
        '  + Exception Group Traceback (most recent call last):\n  |   File "task.py", line 7, in <module>\n'
        "  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)\n"
        "  +-+---------------- 1 ----------------\n"
        '    | Traceback (most recent call last):\n    |   File "task.py", line 1, in f\n'
        "    | ValueError: bad lr\n"
        "    +------------------------------------\n",
        "ValueError: bad lr",
    ),
    "rank under torchrun": (_before_each("[rank0]: ", f"{_PYTHON}ValueError: bad lr") + _RELAYED, "ValueError: bad lr"),
    "torchrun --tee": (_before_each("[default0]:", f"{_PYTHON}ValueError: bad lr") + _RELAYED, "ValueError: bad lr"),
    "srun --label": (_before_each("0: ", f"{_PYTHON}ValueError: bad lr"), "ValueError: bad lr"),
    "before a thread's, told on the way out": (
        f"{_PYTHON}ValueError: bad lr\nException in thread Thread-3 (_pin_memory_loop):\n{_PYTHON}ConnectionResetError: closed\n"
        f"Exception ignored in: <function f>\n{_PYTHON}OSError: closed\n",
        "ValueError: bad lr",
    ),
    "a thread's alone": (f"Exception in thread Thread-3 (work):\n{_PYTHON}ValueError: bad lr\n", "ValueError: bad lr"),
    "torchrun alone": (_RELAYED, "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:"),
}
"""By form, what was printed (less most of its frames), and the line that tells why."""


@dataclass(frozen=True)
class Ending:
    """How a program's output ends. ``exception`` is the line that ends its last traceback, empty where there is none; ``text``
    are the lines of that exception (and of those it came from) and all that follow, or the whole output where there is none."""

    exception: str
    text: str


@dataclass(frozen=True)
class _Traceback:
    """From line ``begin``; ``exception`` stands at line ``end``, what is between are frames. ``label`` is its rank's, if any;
    ``is_aside``: it is not what the program died of, where there is another."""

    label: str
    begin: int
    end: int
    exception: str
    is_aside: bool


def ending(output: str) -> Ending:
    """How a program's output ends; ``output`` is plain lines, or the tail of such."""
    lines = output.split("\n")
    every = _tracebacks(lines)
    own = [found for found in every if not found.is_aside] or every
    telling = [found for found in own if not _RELAYS.match(found.exception)] or own
    if not telling:
        return Ending("", output)
    # Ranks fail together: the first of them is the likeliest cause.
    last_of_each = {found.label: found for found in telling if bool(found.label) == bool(telling[-1].label)}
    cause = min(last_of_each.values(), key=lambda found: found.begin)
    begin = _first_of_chain(lines, [found for found in telling if found.label == cause.label and found.begin <= cause.begin])
    return Ending(cause.exception, _without_frames(lines, every, begin, cause))


def _tracebacks(lines: Sequence[str]) -> list[_Traceback]:
    """Every traceback, by its first line; a frame whose code speaks of tracebacks begins none."""
    found: list[_Traceback] = []
    ends: dict[str, int] = {}
    for number in range(len(lines)):
        traceback = _traceback_at(lines, number)
        if traceback is not None and number > ends.get(traceback.label, -1):
            found.append(traceback)
            ends[traceback.label] = traceback.end
    return found


def _traceback_at(lines: Sequence[str], begin: int) -> _Traceback | None:
    """The traceback whose first line is that; None where there is none, or no exception ends it."""
    head = _HEAD.match(lines[begin]) if "Traceback (" in lines[begin] else None
    if head is None:
        return None
    label = _LABEL.match(head["before"])
    frame = head["before"][label.end() if label else 0 :]
    if not _FRAME.fullmatch(frame):
        label, frame = None, ""  # text or a progress bar that had not ended its line
    outer = (label[0] if label else "") + frame
    end = _end(lines, begin + 1, outer, is_boxed=head["box"] is not None, is_labelled=label is not None)
    if end is None:
        return None
    is_aside = begin > 0 and _ASIDE.search(lines[begin - 1]) is not None
    return _Traceback(label[0] if label else "", begin, end, lines[end][len(outer) :].strip(" \t│┃|"), is_aside)


def _end(lines: Sequence[str], begin: int, outer: str, *, is_boxed: bool, is_labelled: bool) -> int | None:
    """The number of the line at which an exception ends a traceback; other ranks' lines may stand between."""
    is_inside = is_boxed
    for number in range(begin, len(lines)):
        line = lines[number]
        if _bare(line[: len(outer)]) != _bare(outer):
            if is_labelled or not line.strip():
                continue
            return None
        rest = line[len(outer) :]
        if is_inside:
            is_inside = _BOX_ENDS.match(rest) is None
        elif rest.strip(" \t│┃|") and not rest[0].isspace():
            return None if _HEAD.match(rest) else number
    return None


def _bare(frame: str) -> str:
    """The frame of a group's first line is as good as that of its others."""
    return frame.replace("+", "|")


def _first_of_chain(lines: Sequence[str], found: Sequence[_Traceback]) -> int:
    """The line where the chain (or group) of tracebacks begins that the last of those found belongs to."""
    begin = found[-1].begin
    for before in reversed(found[:-1]):
        between = [line for line in lines[before.begin + 1 : begin] if line.strip()]
        if not _JOINS.search(between[-1]):
            break
        begin = before.begin
    return begin


def _without_frames(lines: Sequence[str], found: Sequence[_Traceback], begin: int, cause: _Traceback) -> str:
    """The lines from there on, less the frames of tracebacks (code that speaks of an error is none), what was told aside, and the
    ranks' labels."""
    exceptions = {each.end: each.exception for each in found if each.is_aside <= cause.is_aside}
    frames = {number for each in found for number in range(each.begin, each.end + 1)} - exceptions.keys()
    kept = (number for number in range(begin, len(lines)) if number not in frames)
    return "\n".join(exceptions.get(number) or _unlabelled(lines[number], cause.label) for number in kept)


def _unlabelled(line: str, label: str) -> str:
    found = _LABEL.match(line) if label else None
    return line[found.end() :] if found else line
