"""What may stand in the ledger: the kinds of events, and the form of each thing that they hold; pure.

Every event is a flat JSON object with ``at`` (epoch seconds) and ``event``, its kind. One of a kind that this version does not
know is a later version's, and in whatever form that gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Event = Mapping[str, Any]

_LATEST_TIME = 253402300800.0  # epoch seconds: the year 10000


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and abs(value) < _LATEST_TIME  # NaN is less than nothing


def _is_time_or_unknown(value: object) -> bool:
    return value is None or _is_time(value)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_job(value: object) -> bool:
    """An id as clusters give them: it goes on a command line, where it must not be an option."""
    return isinstance(value, str) and value[:1] in tuple("0123456789") and value.isprintable()


def _is_text_or_none(value: object) -> bool:
    return value is None or _is_text(value)


def _is_ask(value: object) -> bool:
    """GPUs, seconds and where, as ``Ask`` has them."""
    if not isinstance(value, dict) or value.keys() != {"gpus", "seconds", "where"} or not _is_text(value["where"]):
        return False
    return (value["gpus"] is None or _is_number(value["gpus"])) and _is_time_or_unknown(value["seconds"])


def _are_texts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _are_flags(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_flag, value.values()))


def _are_cells(value: object) -> bool:
    return _are_texts(value) or (isinstance(value, list) and all(map(_is_text, value)))


def _are_files(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(file, dict) and _is_file(file) for file in value)


def _is_file(value: Mapping[str, object]) -> bool:
    return isinstance(value["path"], str) and isinstance(value["size"], int) and isinstance(value["mtime_ns"], int)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 10**9


_FORMS = {
    "at": _is_time, "begins": _is_time, "ended": _is_time, "started": _is_time_or_unknown, "begun": _is_time_or_unknown,
    "newest": _is_time_or_unknown,
    "attempt": _is_number, "job": _is_job, "held": _is_flag, "by_hand": _is_flag, "by_person": _is_flag, "kept": _is_flag,
    "step": _is_text, "name": _is_text, "definition": _is_text, "placement": _is_text, "output_dir": _is_text,
    "message": _is_text,
    "state": _is_text, "failure": _is_text, "exit_code": _is_text, "user": _is_text, "why": _is_text, "words": _is_text,
    "cluster": _is_text, "path": _is_text, "environment": _are_flags, "cells": _are_cells, "states": _are_texts,
    "meaning": _are_texts, "evidence": _are_files, "options": _are_texts, "from_epoch": _is_number, "detail": _is_text,
    "nodes": _is_text, "key": _is_text, "before": _is_text_or_none, "after": _is_text_or_none, "ask": _is_ask,
    "what": _is_text,
}  # fmt: skip


_KINDS = frozenset(
    {"opened", "root", "names", "writing", "unwritten", "stands", "heard", "intent", "adopted", "done", "hold", "cancel"}
    | {"release", "rerun", "moved", "edited", "reopened", "submitted", "refused", "limited", "lost", "unseen", "seen"}
    | {"withdrawing", "withdrawn", "queue-holding", "queue-held", "unheld", "missing", "ended", "placed", "restored"}
)


def check(event: Event) -> None:
    """Raises ValueError where something of a known kind of event is not in its form; what later versions add is theirs."""
    if event["event"] in _KINDS and not all(_FORMS[key](value) for key, value in event.items() if key in _FORMS):
        raise ValueError(event)
