"""The tables of a markdown document, each cell as a person reads it and with its place in the text.

Pure. What stands in a code fence, in indented code or in an HTML comment is no table; it never looks at what a table means, and
never changes a document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from reconciler.experiment.markdown_blocks import BOM, parse_blocks

if TYPE_CHECKING:
    from markdown_it.token import Token

_NEWLINE = re.compile(r"\r\n?|\n")  # what ends a line for CommonMark, and nothing else does
_PIPE = re.compile(r"(?<!\\)\|")  # behind a backslash it is text; any other splits, also inside backticks (GFM, "Tables")
_SPACES = " \t\v\f"
_WORDS = re.compile(
    r"[A-Za-z0-9 .,:;/()+%=-]*(?:(?<=[A-Za-z0-9])_(?=[A-Za-z0-9])[A-Za-z0-9 .,:;/()+%=-]*)*"
)  # nothing is marked up


@dataclass(frozen=True)
class Cell:
    """One cell. ``text`` is what a person reads, ``raw`` all between its pipes, which is ``document[start:end]``.

    Offsets count characters of the document from 0; ``column`` is the character of its line at which it begins, from 1.
    """

    text: str
    raw: str
    start: int
    end: int
    column: int


@dataclass(frozen=True)
class Row:
    """The cells that a line really has: fewer or more than the header's are neither filled up nor dropped."""

    cells: tuple[Cell, ...]
    line: int


@dataclass(frozen=True)
class Table:
    """One table from its header (``line``) to its last row (``end_line``), under ``headings``, outermost first."""

    header: Row
    rows: tuple[Row, ...]
    line: int
    end_line: int
    headings: tuple[str, ...]


@dataclass(frozen=True)
class Heading:
    """A heading as a person reads it, and its first and last line (an underlined one has two)."""

    text: str
    line: int
    end_line: int


@dataclass(frozen=True)
class Line:
    """Where a line stands in the document: ``document[start:end]``, its newline left out."""

    start: int
    end: int


@lru_cache(maxsize=4)  # a pass asks again of the same text when it writes its cells
def find_tables(text: str) -> tuple[Table, ...]:
    """Every table of a document, in its order."""
    return tuple(_Document(text).tables())


def find_headings(text: str) -> tuple[Heading, ...]:
    """Every heading that stands by itself, in no quotation and no list, in the document's order."""
    document = _Document(text)
    tokens = document.tokens
    opened = ((token, tokens[i + 1]) for i, token in enumerate(tokens) if token.type == "heading_open" and token.level == 0)
    return tuple(Heading(document.read(words.content), token.map[0] + 1, token.map[1]) for token, words in opened if token.map)


def find_lines(text: str) -> tuple[Line, ...]:
    """The lines of a document as markdown counts them, LF, CRLF and CR alike; what follows the last newline is one too."""
    breaks = list(_NEWLINE.finditer(text))
    starts = [0, *(match.end() for match in breaks)]
    ends = [*(match.start() for match in breaks), len(text)]
    return tuple(Line(start, end) for start, end in zip(starts, ends, strict=True))


# --- blocks --------------------------------------------------------------------------------------


class _Document:
    """A text and its blocks; what the parser says of places is turned into offsets of the text itself."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.bom = len(text) - len(text.removeprefix(BOM))
        self.lines = find_lines(text)
        self.blocks = parse_blocks(text)
        self.tokens = self.blocks.tokens

    def tables(self) -> Iterator[Table]:
        above: dict[int, str] = {}
        for index, token in enumerate(self.tokens):
            if token.type == "heading_open":
                level = int(token.tag[1])
                above = {other: head for other, head in above.items() if other < level}
                above[level] = self.read(self.tokens[index + 1].content)
            elif token.type == "table_open" and token.map:
                first, after = token.map
                starts = token.meta["starts"]
                header, _, *rows = [self.row(line, start) for line, start in zip(range(first, after), starts, strict=True)]
                yield Table(header, tuple(rows), header.line, after, tuple(above.values()))

    def row(self, number: int, start: int) -> Row:
        """The row that begins ``start`` characters into line ``number`` (from 0); an outer pipe begins no cell."""
        line = self.lines[number]
        start += line.start + (self.bom if number == 0 else 0)
        content = self.text[start : line.end].rstrip(_SPACES)
        pipes = [start + match.start() for match in _PIPE.finditer(content)]
        bounds = pipes if content.startswith("|") else [start - 1, *pipes]
        end = start + len(content)
        if bounds[-1] != end - 1:
            bounds = [*bounds, end]
        return Row(tuple(self.cell(left + 1, right, line) for left, right in pairwise(bounds)), number + 1)

    def cell(self, start: int, end: int, line: Line) -> Cell:
        raw = self.text[start:end]
        bom = self.bom if line.start == 0 else 0
        return Cell(self.read(raw.replace("\\|", "|")), raw, start, end, start - line.start - bom + 1)

    def read(self, raw: str) -> str:
        """What a person reads of inline markdown."""
        if _WORDS.fullmatch(raw):
            return raw.strip()
        return _read(self.blocks.read(raw))


# --- words ---------------------------------------------------------------------------------------


def _read(tokens: Sequence[Token]) -> str:
    """The words of inline markdown: emphasis, code, links and entities without their signs."""
    return "".join(_words(token) for token in tokens).strip()


def _words(token: Token) -> str:
    if token.type in ("softbreak", "hardbreak"):
        return " "
    if token.type == "html_inline":
        return " " if re.match(r"<br\b", token.content, re.IGNORECASE) else ""
    if token.type == "image":
        return _read(token.children or ())
    return token.content
