"""What may stand in the ledger: the kinds of events, what each holds, and in which form; pure.

Every event is a flat JSON object with ``at`` (epoch seconds) and ``event``, its kind. One of a kind that this version does not
know is a later version's, and so is what stands in an event beside what its kind has here: neither is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Event = Mapping[str, Any]
Form = Callable[[object], bool]


@dataclass(frozen=True)
class Kind:
    """What every event of a kind holds beside ``at`` and ``event``, and what it may hold."""

    required: frozenset[str]
    optional: frozenset[str]

    @property
    def names(self) -> frozenset[str]:
        """Everything that an event of the kind may hold."""
        return self.required | self.optional | {"at", "event"}


def is_of_step(event: Event) -> bool:
    """True for an event of a known kind that concerns one step; others concern the experiment as a whole."""
    kind = KINDS.get(event["event"])
    return kind is not None and "step" in kind.names & event.keys()


def check(event: Event) -> None:
    """Raises ValueError where an event of a known kind lacks something, or has it in another form."""
    fault = _fault(event)
    if fault:
        raise ValueError(f"the event {event.get('event')!r} {fault}")


def check_own(event: Event) -> None:
    """Raises ValueError for an event that this version does not write: of another form or kind, or with more than that has."""
    check(event)
    kind = KINDS.get(event["event"])
    if kind is None:
        raise ValueError(f"there is no kind of event {event['event']!r}")
    more = event.keys() - kind.names
    if more:
        raise ValueError(f"the event {event['event']!r} has no {', '.join(sorted(more))}")


def _fault(event: Event) -> str:
    kind = KINDS.get(event["event"])
    if kind is None:
        return ""
    lacking = {"at", *kind.required} - event.keys()
    if lacking:
        return f"lacks its {', '.join(sorted(lacking))}"
    wrong = [name for name in sorted(kind.names & event.keys()) if not FORMS[name](event[name])]
    return f"has another form of {', '.join(wrong)}" if wrong else ""


# --- forms -------------------------------------------------------------------------------------------

_LATEST_TIME = 253402300800.0  # epoch seconds: the year 10000
_LARGEST = 1 << 63


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_time(value: object) -> bool:
    """Epoch seconds that a calendar has."""
    return _is_number(value) and abs(value) < _LATEST_TIME  # type: ignore[arg-type]  # NaN is less than nothing


def _is_seconds(value: object) -> bool:
    """A time or a duration that is only compared: a file server may have any."""
    return _is_number(value) and abs(value) < _LARGEST  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9


def _is_size(value: object) -> bool:
    """Bytes, or nanoseconds."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_job(value: object) -> bool:
    """An id as clusters give them: it goes on a command line, where it must not be an option."""
    return isinstance(value, str) and value[:1] in tuple("0123456789") and value.isprintable()


def _is_ask(value: object) -> bool:
    """GPUs, seconds and where, as ``Ask`` has them."""
    if not isinstance(value, dict) or value.keys() != {"gpus", "seconds", "where"}:
        return False
    return _or_none(_is_count)(value["gpus"]) and _or_none(_is_seconds)(value["seconds"]) and _is_text(value["where"])


def _is_file(value: object) -> bool:
    """A file's identity, as ``FileId`` has it."""
    if not isinstance(value, dict) or not {"path", "size", "mtime_ns"} <= value.keys():
        return False
    return _is_text(value["path"]) and _is_size(value["size"]) and _is_size(value["mtime_ns"])


def _or_none(form: Form) -> Form:
    return lambda value: value is None or form(value)


def _list_of(form: Form) -> Form:
    return lambda value: isinstance(value, list) and all(map(form, value))


def _map_of(form: Form) -> Form:
    return lambda value: isinstance(value, dict) and all(map(form, value.values()))


_THINGS: Mapping[Form, str] = {
    _is_text: "by cluster commands definition detail event exit_code failure key message name new nodes old output_dir path "
    "placement state step to until_text user what why words",
    _or_none(_is_text): "before after",
    _is_time: "at begins ended",
    _or_none(_is_time): "begun started until",
    _or_none(_is_seconds): "newest",
    _is_count: "attempt from_epoch",
    _is_size: "bytes",
    _is_flag: "by_hand by_person copied held hold_only kept",
    _is_job: "job",
    _is_ask: "ask",
    _list_of(_is_count): "epochs",
    _list_of(_is_file): "evidence",
    _map_of(_is_flag): "environment",
    _map_of(_is_text): "batch cells inputs meaning options states",
}
FORMS: Mapping[str, Form] = {name: form for form, names in _THINGS.items() for name in names.split()}
"""The form of each thing that events hold: it is the same in all of them."""


# --- kinds -------------------------------------------------------------------------------------------


def _kind(required: str = "", optional: str = "") -> Kind:
    return Kind(frozenset(required.split()), frozenset(optional.split()))


_DEFINED = "definition commands placement output_dir ask meaning inputs batch"

KINDS: Mapping[str, Kind] = {
    # of the experiment as a whole
    "opened": _kind("cluster path user environment", "by why what"),
    "root": _kind("path"),
    "names": _kind("kept"),
    "writing": _kind("cells"),
    "unwritten": _kind("cells"),
    "stands": _kind("states"),
    "heard": _kind("words"),
    "pause": _kind("", "user why until until_text"),
    "resume": _kind("", "user why"),
    "renaming": _kind("old new", "user why"),
    "renamed": _kind("old new", "path to"),
    "rename-ended": _kind("old new"),
    "pruned": _kind("job", "user why"),
    # of the one or of a step
    "release": _kind("", "step hold_only user why"),
    # of one attempt of a step
    "intent": _kind("step attempt name", f"begins held options from_epoch {_DEFINED}"),
    "adopted": _kind("step attempt name job", f"begun by_hand {_DEFINED}"),
    "submitted": _kind("step attempt job"),
    "refused": _kind("step attempt message"),
    "limited": _kind("step attempt message"),
    "lost": _kind("step attempt"),
    "unseen": _kind("step attempt"),
    "seen": _kind("step attempt"),
    "reopened": _kind("step attempt"),
    "withdrawing": _kind("step attempt"),
    "withdrawn": _kind("step attempt"),
    "queue-holding": _kind("step attempt"),
    "queue-held": _kind("step attempt"),
    "unheld": _kind("step attempt"),
    "ended": _kind("step attempt job state failure ended", "started exit_code detail nodes"),
    "missing": _kind("step attempt"),
    "placed": _kind("step attempt placement", "user why"),
    # of a step
    "done": _kind("step definition", "meaning inputs evidence by_person user why"),
    "edited": _kind("step path key before after", "copied"),
    "unedited": _kind("step key after"),
    "moved": _kind("step path to"),
    "hold": _kind("step", "user why"),
    "cancel": _kind("step", "user why"),
    "rerun": _kind("step", "newest user why"),
    "free": _kind("step epochs bytes", "user why"),
    "freed": _kind("step"),
    "restored": _kind("step", "user why"),
}
