"""YAML text as values that still know their lines, and their check against a published schema.

Pure. Builds no objects beyond maps, lists and scalars, whatever tags a text carries.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from reconciler.errors import InvalidExperiment, Problem
from reconciler.text_limits import is_whole, unfolded

_MOST_VALUES = 1_000_000
_TOO_LARGE = 1e300  # NaN is not less than it either
_LARGEST_WHOLE = 2**256  # longer ones cannot even be printed (Python's limit is 4300 digits)
_LONGEST = 200  # characters of a text in a message
Place = Sequence["str | int"]


def parse_yaml(text: str, file: Path) -> Any:
    """The values of one YAML document. Raises InvalidExperiment naming the line where it is none, or a key stands twice."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they would print the text as it is
            root = YAML(typ="rt", pure=True).load(text)
    except DuplicateKeyError as error:
        key = re.search(r'duplicate key "([^"]*)"', str(error.problem))
        raise _invalid(file, error, f"the key `{key[1] if key else '?'}` stands twice; leave one") from error
    except MarkedYAMLError as error:
        raise _invalid(file, error, f"is not YAML: {error.problem or error.context}") from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        wrong = f"is not YAML: the character U+{error.character:04X} is not allowed"
        raise InvalidExperiment(Problem(file, line, wrong)) from error
    except RecursionError as error:
        raise InvalidExperiment(Problem(file, 0, "is nested too deeply for an experiment's file")) from error
    except TypeError as error:  # CommentedKeyMap.__hash__: keys that hold lists
        raise InvalidExperiment(Problem(file, 0, "has a map with a list in it for a key; accepted: words for keys")) from error
    except (YAMLError, ValueError) as error:
        raise InvalidExperiment(Problem(file, 0, f"is not YAML: {str(error)[:_LONGEST]}")) from error
    _check_values(root, file)
    return root


def line_of(root: Any, place: Place) -> int:
    """The line (from 1) of the value at ``place``: of its key in a map, of its dash in a list; 0 where that is not known."""
    line, node = 1, root
    for step in place:
        line = _child_line(node, step) or line
        node = node[step]
    return line


def schema_faults(root: Any, schema: Mapping[str, Any], file: Path) -> tuple[Problem, ...]:
    """Every way in which the values do not follow the schema, by line."""
    errors = _validator()(schema).iter_errors(root)
    found = (Problem(file, line, message) for error in errors for line, message in _told(root, error))
    return tuple(sorted(set(found), key=lambda problem: problem.line))


@cache
def _validator() -> Any:
    """The class that checks against a schema; making it takes longer than checking a file of settings."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    types = Draft202012Validator.TYPE_CHECKER.redefine("number", lambda _, value: _is_finite(value))
    return extend(Draft202012Validator, type_checker=types)  # type: ignore[no-untyped-call]


def _check_values(root: Any, file: Path) -> None:
    if unfolded(root, {})[0] > _MOST_VALUES:
        raise InvalidExperiment(Problem(file, 0, "its aliases (`*name`) unfold into too many values; write them out"))
    for value in _scalars(root):
        if isinstance(value, int) and abs(value) > _LARGEST_WHOLE:
            raise InvalidExperiment(Problem(file, 0, "holds a number of more than 70 digits; write it in quotes if it is a name"))
        if isinstance(value, str) and ("\0" in value or not is_whole(value)):
            wrong = f"the text {value[:_LONGEST]!r} holds a NUL or half a character, which no name and no path can"
            raise InvalidExperiment(Problem(file, 0, wrong))


def _scalars(node: Any) -> Iterator[Any]:
    """Every value in a node that is neither a map nor a list, keys too."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from (*_scalars(key), *_scalars(value))
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _scalars(value)
    else:
        yield node


def _is_finite(value: object) -> bool:
    """A number as JSON knows it; YAML's ``.nan`` and ``.inf`` are none, and slip through every minimum and maximum."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _TOO_LARGE


def _invalid(file: Path, error: Any, message: str) -> InvalidExperiment:
    mark = error.problem_mark or error.context_mark
    return InvalidExperiment(Problem(file, mark.line + 1 if mark else 0, message))


def _child_line(node: Any, step: str | int) -> int | None:
    position = getattr(node, "lc", None)
    try:
        return (position.key(step)[0] if isinstance(step, str) else position.item(step)[0]) + 1 if position else None
    except (KeyError, TypeError):  # a key that came by a merge (<<) has no place of its own
        return None


def _told(root: Any, error: Any) -> Iterator[tuple[int, str]]:
    """A jsonschema ValidationError in the words of the schema's own descriptions."""
    place = list(error.absolute_path)
    name = _dotted(place)
    properties = error.schema.get("properties", {}) if isinstance(error.schema, Mapping) else {}
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        for key in missing:
            yield line_of(root, place), f"{name} has no `{key}`{_accepts(properties.get(key))}"
    elif error.validator == "additionalProperties":
        for key in (key for key in error.instance if key not in properties):
            yield line_of(root, [*place, key]), f"`{_dotted_key(place, key)}` is no known key; accepted: {_listed(properties)}"
    else:
        yield line_of(root, place), f"{name} is {_shown(error.instance)}{_accepts(error.schema) or f': {error.message}'}"


def _dotted(place: Iterable[str | int]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).lstrip(".")
    return f"`{text}`" if text else "the file"


def _dotted_key(place: Iterable[str | int], key: object) -> str:
    return ".".join(str(step) for step in (*place, key))


def _listed(properties: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}`" for key in properties)


def _accepts(schema: object) -> str:
    described = schema.get("description") if isinstance(schema, Mapping) else None
    return f"; accepted: {described}" if described else ""


def _shown(value: object) -> str:
    """A value in one short piece."""
    if isinstance(value, Mapping):
        return "a map"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "empty"
    shown = repr(str(value)) if isinstance(value, str) else str(value)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"
