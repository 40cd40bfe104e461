"""The ``**Key:** value`` lines of a markdown document, each with the headings that it stands under.

Pure. Reads what a person sees: nothing inside code fences or comments counts, and a line that is bold as a
whole heads what follows it, as a heading would.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from reconciler.experiment.markdown_blocks import parse_blocks

# Every repetition before the value has a bound: a line of ten thousand spaces must not take minutes.
_FIELD = re.compile(r"(?P<mark>\*\*|__|\*|_|)(?P<key>[^*:`|]{1,60}?)\s{0,9}(?::(?P=mark)|(?P=mark)\s{0,9}:)(?P<value>.*)")
_BOLD = re.compile(r"(\*\*|__)(?P<title>[^*`]{1,60}?)\s{0,9}:?\s{0,9}\1\s{0,9}:?")
_COMMENT = re.compile(r"<!--.*?(-->|$)")
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")


@dataclass(frozen=True)
class Field:
    """One key with its value as a person reads it; ``headings`` are outermost first, the document's own name left out."""

    key: str
    value: str
    line: int
    headings: tuple[str, ...]


def find_fields(text: str) -> tuple[Field, ...]:
    """Every field of a document, in its order."""
    return tuple(field for line, content, headings in _lines(text) if (field := _field(line, content, headings)))


def title_of(text: str) -> str | None:
    """The text of the first top-level heading, or None."""
    tokens = parse_blocks(text).tokens
    heads = (tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h1")
    return next((plain(head) for head in heads), None)


def plain(text: str) -> str:
    """A heading or a key without its emphasis."""
    return _ESCAPED.sub(r"\1", text.strip().strip("*_`").strip())


def _lines(text: str) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Every line of prose with its number and the headings above it; table cells are no prose."""
    headings: dict[int, str] = {}
    level = 0  # of the heading whose text comes next; 0: prose comes next
    in_table = False
    for token in parse_blocks(text).tokens:
        if token.type in ("table_open", "table_close"):
            in_table = token.type == "table_open"
        elif token.type == "heading_open":
            level = int(token.tag[1])
        elif token.type == "inline" and level:
            headings = {above: head for above, head in headings.items() if above < level} | {level: plain(token.content)}
            level = 0
        elif token.type == "inline" and token.map and not in_table:
            for offset, content in enumerate(token.content.split("\n")):
                yield token.map[0] + offset + 1, content.strip(), tuple(head for above, head in headings.items() if above > 1)
                if title := _BOLD.fullmatch(content.strip()):
                    headings = {above: head for above, head in headings.items() if above < _BOLD_LEVEL}
                    headings[_BOLD_LEVEL] = plain(title["title"])


_BOLD_LEVEL = 7  # below every real heading


def _field(line: int, content: str, headings: tuple[str, ...]) -> Field | None:
    match = _FIELD.fullmatch(content)
    return Field(plain(match["key"]), _value(match["value"]), line, headings) if match else None


def _value(text: str) -> str:
    """A value without its backticks, emphasis, comment and the remark in parentheses behind it."""
    text = _COMMENT.sub("", text).strip()
    ticks = text[: len(text) - len(text.lstrip("`"))]
    if ticks and (end := text.find(ticks, len(ticks) + 1)) > 0:
        return text[len(ticks) : end].strip()
    return plain(_without_remark(text)).strip("\"'")


def _without_remark(text: str) -> str:
    before, bracket, remark = text.rpartition("(")
    is_remark = bracket and remark.endswith(")") and ")" not in remark[:-1] and before != before.rstrip()
    return before.rstrip() if is_remark else text
