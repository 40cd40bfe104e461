"""Mutation testing: what a change of the code would break unseen. ``make mutants`` runs mutmut and then this, which counts.

A mutant counts as caught where a test, or the type checker, fails on it, or where it never ends. One that only changes the
words of a sentence is not counted. A survivor is a fault of the tests unless docs/decisions/0010-mutants.md says why it is none:
the blocks of that page marked ``mutants`` name survivors by function and by the line as it was changed, with ``*`` for anything.

    python tests/mutants.py [NAME...]    the survivors of these modules (all: none named) that nothing explains, and the counts
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import ndiff
from fnmatch import fnmatchcase
from pathlib import Path

from mutmut.configuration import config
from mutmut.mutation.data import MutantLineSpans, SourceFileMutationData
from mutmut.mutation.diff_apply import generated_function_names
from mutmut.stats import status_by_exit_code

from reliability import Row, save

PAGE = Path(__file__).resolve().parent.parent / "docs" / "decisions" / "0010-mutants.md"
_BLOCK = re.compile(r"^```mutants\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TEXT = re.compile(r"""(f?)"((?:[^"\\]|\\.)*)\"""")
_CAUGHT = {"killed", "caught by type check", "timeout"}


@dataclass(frozen=True)
class Mutant:
    """One change of one function: the lines that are other than they were, and what became of it."""

    module: str
    function: str
    before: str
    after: str
    outcome: str

    @property
    def is_wording(self) -> bool:
        """True where nothing but a text of several words is changed."""
        was, now = _TEXT.findall(self.before), _TEXT.findall(self.after)
        if len(was) != len(now) or _without_texts(self.before) != _without_texts(self.after):
            return False
        return all(" " in one[1].strip() for one, other in zip(was, now, strict=True) if one != other)

    def __str__(self) -> str:
        return f"{self.module}.{self.function}\n  - {self.before}\n  + {self.after}"


def _without_texts(line: str) -> str:
    return _TEXT.sub(lambda text: text[0] if text[1] else '""', line)


def mutants_of(path: str) -> Iterator[Mutant]:
    """Every mutant of a module that was tried."""
    data = SourceFileMutationData(path=path)
    data.load()
    spans = MutantLineSpans.load(path)
    for name, code in data.exit_code_by_key.items():
        if code is None or spans is None:
            continue
        original, mutated = spans.read_function_sources(list(generated_function_names(name)))
        changed = [line for line in ndiff(_body(original), _body(mutated)) if line[0] in "+-"]
        before, after = (" ".join(line[2:].strip() for line in changed if line[0] == sign) for sign in "-+")
        function = re.sub(r"^x_?", "", name.rpartition(".")[2].partition("__mutmut")[0]).strip("ǁ").replace("ǁ", ".")
        yield Mutant(Path(path).stem, function, before, after, status_by_exit_code[code])


def _body(source: str) -> list[str]:
    return re.sub(r"def \S+?\(", "def (", source, count=1).splitlines()


def explanations() -> list[str]:
    """The patterns of survivors that the page explains, each ``module.function line``."""
    text = PAGE.read_text() if PAGE.exists() else ""
    return [line for block in _BLOCK.findall(text) for line in block.splitlines() if line.strip()]


def is_explained(mutant: Mutant, pattern: str) -> bool:
    where, _, line = pattern.partition(" ")
    return fnmatchcase(f"{mutant.module}.{mutant.function}", where) and fnmatchcase(mutant.after, _glob(line.strip()))


def _glob(line: str) -> str:
    """Brackets mean themselves."""
    return line.replace("[", "[[]").replace("?", "[?]")


def main(names: list[str]) -> int:
    """Print the survivors and the counts; leave a row for docs/reliability.md where RECONCILE_RELIABILITY names a directory."""
    patterns, used = explanations(), set()
    total: Counter[str] = Counter()
    table = [f"{'module':<16} {'mutants':>8} {'caught':>8} {'survived':>9} {'timeouts':>9} {'explained':>10} {'caught, %':>10}"]
    for path in config().only_mutate:
        if names and Path(path).stem not in names:
            continue
        tried = [mutant for mutant in mutants_of(path) if not mutant.is_wording]
        alive = [mutant for mutant in tried if mutant.outcome not in _CAUGHT]
        unexplained = []
        for mutant in alive:
            fitting = {pattern for pattern in patterns if is_explained(mutant, pattern)}
            used |= fitting
            if not fitting:
                unexplained.append(mutant)
        for mutant in unexplained:
            print(mutant if mutant.outcome == "survived" else f"{mutant}\n  ({mutant.outcome})")
        row = Counter(
            mutants=len(tried),
            caught=len(tried) - len(alive),
            survived=len(alive),
            timeouts=sum(mutant.outcome == "timeout" for mutant in tried),
            explained=len(alive) - len(unexplained),
        )
        total += row
        table.append(_line(Path(path).stem, row))
    print("\n".join([*table, _line("all", total)]))
    stale = [pattern for pattern in patterns if pattern not in used]
    if stale and not names:
        print("\nexplained, and not among the survivors (any more):", *stale, sep="\n  ")
    violations = total["survived"] - total["explained"]
    directory = os.environ.get("RECONCILE_RELIABILITY")
    if directory:
        save(
            Path(directory),
            [Row("mutant of the code (one operator, value or argument is other)", total["mutants"], violations, "make mutants")],
        )
    return 1 if violations else 0


def _line(name: str, row: Counter[str]) -> str:
    share = 100 * row["caught"] / row["mutants"] if row["mutants"] else 100.0
    counts = f"{row['mutants']:>8} {row['caught']:>8} {row['survived']:>9} {row['timeouts']:>9} {row['explained']:>10}"
    return f"{name:<16} {counts} {share:>10.1f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
