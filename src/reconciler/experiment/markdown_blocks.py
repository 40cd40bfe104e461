"""The blocks of a markdown document, told apart by a real CommonMark parser: what stands in a fence or a comment is no table.

Pure. Only blocks are parsed; the text of a line is read when it is asked for.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.token import Token

BOM = "\ufeff"


@dataclass(frozen=True)
class Blocks:
    """The parser's tokens and what it knows of links; lines count from 0, and a byte order mark is part of none."""

    tokens: list[Token]
    links: MutableMapping[str, Any]

    def read(self, raw: str) -> list[Token]:
        """The inline tokens of one piece of text, which may use the document's links."""
        words: list[Token] = []
        _parser().inline.parse(raw.strip(), _parser(), self.links, words)
        return words


@lru_cache(maxsize=4)  # a pass asks for the title, the fields and the tables of a text, and again when it writes its cells
def parse_blocks(text: str) -> Blocks:
    """The blocks of a document. Each table's token says in ``meta["starts"]`` how far into its line each of its rows begins."""
    links: MutableMapping[str, Any] = {}
    return Blocks(_parser().parse(text.removeprefix(BOM), links), links)


@cache
def _parser() -> MarkdownIt:
    """One for all documents: it keeps nothing of what it parses, and making one takes longer than many a document."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table").disable("inline")
    parser.block.ruler.at("table", _table_with_places, {"alt": ["paragraph", "reference"]})
    return parser


def _table_with_places(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    """The parser's own rule, which also notes how far into its line each row begins, behind any ``>`` and indentation.

    Only while parsing is that known: a quotation moves the marks of its lines and puts them back afterwards.
    """
    from markdown_it.rules_block import table

    opened = len(state.tokens)
    if not table(state, first, end, silent):
        return False
    if not silent:
        places = [state.bMarks[line] + state.tShift[line] for line in range(first, state.line)]
        state.tokens[opened].meta = {"starts": [place - (state.src.rfind("\n", 0, place) + 1) for place in places]}
    return True
