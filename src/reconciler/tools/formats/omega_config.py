"""A YAML configuration as OmegaConf reads it: plain scalars by its rules, ``${...}`` resolved, every key with its line.

Two texts that mean the same give the same ``meaning``, whatever their comments, order, quotes and spelling of numbers.
Resolvers (``${oc.env:HOME}``) depend on where the job runs and stay as written. Never reads a file, never runs a tag.
Source of the scalar rules: OmegaConf's loader, which is YAML 1.1 without dates, with ``3e-4`` as a number.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from reconciler.model import Written
from reconciler.plain_values import written
from reconciler.text_limits import is_whole, unfolded

Path = tuple[str, ...]

_MAX_NODES = 100_000  # aliases of aliases multiply; an honest configuration has a few hundred
_MAX_TEXT = 1 << 16
_MAX_DEPTH = 100
_LONGEST = 300  # characters of a message
_REMEMBERED = 64  # configurations; each takes some 200 kB
_REFERENCE = re.compile(r"(?<!\\)\$\{([^${}:]*)\}")  # the innermost ones; a colon marks a resolver
_BOOLS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
_NULLS = {"", "~", "null", "Null", "NULL"}
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?)"
)
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_INTS: tuple[tuple[re.Pattern[str], Callable[[str], int]], ...] = (
    (re.compile(r"[-+]?0b[01]+"), lambda text: int(text, 2)),
    (re.compile(r"[-+]?0x[0-9a-fA-F]+"), lambda text: int(text, 16)),
    (re.compile(r"[-+]?0[0-7]+"), lambda text: int(text, 8)),
    (re.compile(r"[-+]?(?:0|[1-9][0-9]*)"), int),
)


class ConfigFault(Exception):
    """The text is no such configuration; ``line`` counts from 1, 0 where no line is to blame."""

    def __init__(self, line: int, message: str) -> None:
        self.line = line
        super().__init__(message)


@dataclass(frozen=True)
class OmegaConfig:
    """A configuration with every reference resolved. ``lines`` maps each key's path to its line, ``root`` is the text's."""

    tree: Mapping[str, Any]
    lines: Mapping[Path, int]
    root: Any = field(default=None, repr=False, compare=False)

    def written(self, key: str) -> Written:
        """How a top-level setting stands in the text."""
        return written(self.root, key)

    def get(self, key: str) -> Any:
        """The value at a dotted key; None where there is none."""
        value: Any = self.tree
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def line(self, key: str) -> int:
        """The line of a dotted key, 0 where it is not there."""
        return self.lines.get(tuple(key.split(".")), 0)

    @property
    def meaning(self) -> dict[str, str]:
        """Every leaf by its dotted key, as canonical text: equal exactly where the values are."""
        return dict(_leaves(self.tree, ()))


@lru_cache(maxsize=_REMEMBERED)
def read_omega_config(text: str) -> OmegaConfig:
    """Read a configuration; ConfigFault where it is no mapping, no YAML, or refers to what is not there.

    The same text is read once: YAML takes most of the time of a pass, and ``apply --wait`` makes one after the other.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they would print the text as it is
            root = YAML(typ="safe", pure=True).compose(text)
        tree, lines = _Tree().build(root)
        references = _References(tree, lines)
        resolved = references.resolve(tree, (), ())
        references.check_size(resolved, ())
        return OmegaConfig(resolved, lines, root)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigFault(mark.line + 1 if mark else 0, f"not valid YAML: {error.problem or error.context}") from error
    except YAMLError as error:
        raise ConfigFault(0, f"not valid YAML: {str(error).splitlines()[0][:_LONGEST]}") from error
    except RecursionError as error:
        raise ConfigFault(0, "nested too deeply to be a configuration") from error


# --- YAML nodes to values --------------------------------------------------------------------------


class _Tree:
    """Builds the values of one document and notes the line of every key."""

    def __init__(self) -> None:
        self._lines: dict[Path, int] = {}
        self._count = 0

    def build(self, root: Any) -> tuple[dict[str, Any], dict[Path, int]]:
        tree = None if root is None else self._value(root, ())
        if not isinstance(tree, dict):
            raise ConfigFault(1, "expected `key: value` lines")
        return tree, self._lines

    def _value(self, node: Any, path: Path) -> Any:
        self._count += 1
        if self._count > _MAX_NODES:
            raise ConfigFault(node.start_mark.line + 1, "too large to be a configuration")
        if isinstance(node.value, str) and not is_whole(node.value):
            raise ConfigFault(node.start_mark.line + 1, "a text holds half a character (a lone surrogate)")
        if isinstance(node.value, str):
            return _scalar(node.value) if node.style is None else node.value
        if node.id == "sequence":
            return [self._value(item, (*path, str(index))) for index, item in enumerate(node.value)]
        return self._mapping(node, path)

    def _mapping(self, node: Any, path: Path) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, value in node.value:
            line, name = key.start_mark.line + 1, key.value
            if not isinstance(name, str) or not is_whole(name):
                raise ConfigFault(line, "a key must be a word")
            if name == "<<" and key.style is None:
                merged = {**self._merge(value, path), **merged}
            elif name in own:
                raise ConfigFault(line, f"`{name}` is there twice; keep one")
            else:
                inner = (*path, name)
                self._lines[inner] = line
                own[name] = self._value(value, inner)
        return {**merged, **own}

    def _merge(self, node: Any, path: Path) -> dict[str, Any]:
        found = self._value(node, path)
        parts = found if isinstance(found, list) else [found]
        if not all(isinstance(part, dict) for part in parts):
            raise ConfigFault(node.start_mark.line + 1, "`<<` takes a mapping or a list of mappings")
        return {name: value for part in reversed(parts) for name, value in part.items()}


def _scalar(text: str) -> Any:
    """What a scalar without quotes means."""
    if text in _NULLS:
        return None
    if text.lower() in _BOOLS and text in (text.lower(), text.upper(), text.capitalize()):
        return _BOOLS[text.lower()]
    digits = text.replace("_", "") if text[:1] != "_" else text
    for pattern, convert in _INTS:
        if pattern.fullmatch(digits) and len(digits) < 1000:
            return convert(digits)
    if _FLOAT.fullmatch(text):
        return float(digits)
    if _SPECIAL_FLOAT.fullmatch(text):
        return float(text.replace(".", ""))
    return text


# --- references --------------------------------------------------------------------------------------


class _References:
    """Resolves ``${a.b}``, ``${.sibling}`` and ``${a[0]}``, nested and through each other."""

    def __init__(self, tree: dict[str, Any], lines: Mapping[Path, int]) -> None:
        self._tree = tree
        self._lines = lines
        self._known: dict[Path, Any] = {}
        self._sizes: dict[int, tuple[float, float]] = {}
        self._kept: list[Any] = []

    def resolve(self, value: Any, path: Path, trail: tuple[Path, ...]) -> Any:
        """The value at ``path`` with its references replaced; ``trail`` are the keys whose values wait for this one."""
        if isinstance(value, dict):
            return {name: self.resolve(inner, (*path, name), trail) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.resolve(inner, (*path, str(index)), trail) for index, inner in enumerate(value)]
        return self._text(value, path, trail) if isinstance(value, str) else value

    def _text(self, text: str, path: Path, trail: tuple[Path, ...]) -> Any:
        while match := _REFERENCE.search(text):
            value = self._target(match[1], path, trail)
            if match[0] == text:
                return value
            self.check_size(value, path)
            text = text[: match.start()] + str(value) + text[match.end() :]
            if len(text) > _MAX_TEXT:
                raise ConfigFault(self._line(path), f"`{'.'.join(path)}` grows without end")
        return text

    def _target(self, reference: str, path: Path, trail: tuple[Path, ...]) -> Any:
        target = _absolute(reference, path)
        if target in (*trail, path):
            raise ConfigFault(self._line(path), f"`${{{reference}}}` refers to itself in a circle; write the value out once")
        if target not in self._known:
            value = self._find(target, (*trail, path, target))
            if value is _NOTHING:
                raise ConfigFault(
                    self._line(path), f"`${{{reference}}}` names no key of this file; accepted: the dotted name of one"
                )
            self._known[target] = self.resolve(value, target, (*trail, path, target))
            self.check_size(self._known[target], path)
        return self._known[target]

    def check_size(self, value: Any, path: Path) -> None:
        """Refuse what unfolds too far: references to references share their values, and whoever walks them does not."""
        self._kept.append(value)  # so that nothing else gets its id
        count, depth = unfolded(value, self._sizes)
        if count > _MAX_NODES or depth > _MAX_DEPTH:
            raise ConfigFault(self._line(path), "its references unfold into too many values; write them out")

    def _find(self, target: Path, trail: tuple[Path, ...]) -> Any:
        value: Any = self._tree
        for depth, name in enumerate(target):
            if isinstance(value, str):  # the way itself leads through a reference
                value = self._text(value, target[:depth], trail)
            if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            elif isinstance(value, dict) and name in value:
                value = value[name]
            else:
                return _NOTHING
        return value

    def _line(self, path: Path) -> int:
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 0)


_NOTHING = object()


def _absolute(reference: str, path: Path) -> Path:
    """The path that a reference written at ``path`` means; each leading dot is one level up."""
    name = reference.strip()
    dots = len(name) - len(name.lstrip("."))
    start = path[: len(path) - dots] if dots else ()
    return (*start, *(part for part in re.split(r"[.\[\]]+", name[dots:]) if part))


# --- meaning -----------------------------------------------------------------------------------------


def _leaves(value: Any, path: Path) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, (*path, name))
    else:
        yield ".".join(path), _canonical(value)


def _canonical(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_canonical(inner)}" for name, inner in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_canonical(inner) for inner in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _number(value) if isinstance(value, (int, float)) else _string(value)


def _number(value: int | float) -> str:
    """The shortest text: ``2.0`` is ``2``, ``1e-05`` is ``1e-5``."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return re.sub(r"e([-+])0*", lambda exponent: "e-" if exponent[1] == "-" else "e", repr(value))


def _string(value: str) -> str:
    """The text itself, in quotes where it would otherwise read as something else."""
    is_plain = value.isprintable() and value == value.strip() and not re.search(r"[\[\]{},\"']", value)
    return value if is_plain and isinstance(_scalar(value), str) else json.dumps(value, ensure_ascii=False)
