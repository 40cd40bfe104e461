"""Counting what the fault harnesses try, and the table of it in docs/reliability.md.

A test marked ``fault("what goes wrong", rerun="make faults")`` is one case of that fault, or as many as it says with
``record_property("cases", n)``; every one in which a promise was broken is a violation. With RECONCILE_RELIABILITY=DIRECTORY a run
of the tests leaves its counts there, and ``python tests/reliability.py DIRECTORY`` puts what it finds there into the document.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reliability.md"
_BEGIN, _END = "<!-- begin of the generated table -->\n", "<!-- end of the generated table -->\n"


@dataclass(frozen=True)
class Row:
    """What one kind of fault came to: ``cases`` tried, ``violations`` of a promise among them, ``rerun`` the command."""

    fault: str
    cases: int
    violations: int
    rerun: str


class Counting:
    """Plugin of pytest that counts the tests marked as faults."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._rows: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[None]:
        outcome = yield
        report = outcome.get_result()  # type: ignore[attr-defined]
        marker = item.get_closest_marker("fault")
        if marker is None or report.skipped or (report.when != "call" and not report.failed):
            return
        facts = dict(item.user_properties)
        row = self._rows[marker.args[0], marker.kwargs.get("rerun", "make faults")]
        row[0] += int(facts.get("cases", 1))
        row[1] += int(facts.get("violations", 1)) if report.failed else 0

    def pytest_sessionfinish(self) -> None:
        rows = [Row(fault, cases, violations, rerun) for (fault, rerun), (cases, violations) in self._rows.items()]
        save(self._directory, rows)


def save(directory: Path, rows: Iterable[Row]) -> None:
    """Leave counts for the table, under a name of this process's own."""
    listed = [asdict(row) for row in rows]
    if listed:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{os.getpid()}.json").write_text(json.dumps(listed, indent=1))


def table(directory: Path) -> str:
    """The table of all counts in a directory; the same fault counted in several runs is added up."""
    total: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for path in sorted(directory.glob("*.json")):
        for row in (Row(**facts) for facts in json.loads(path.read_text())):
            total[row.fault, row.rerun][0] += row.cases
            total[row.fault, row.rerun][1] += row.violations
    lines = ["| Fault | Cases | Violations | Again with |", "|---|---:|---:|---|"]
    lines += [f"| {fault} | {cases:,} | {bad} | `{rerun}` |" for (fault, rerun), (cases, bad) in sorted(total.items())]
    return "\n".join(lines) + "\n"


def main(directory: str) -> None:
    """Put the table into the document, whose other text is written by hand."""
    text = PAGE.read_text()
    before, rest = text.split(_BEGIN)
    PAGE.write_text(before + _BEGIN + "\n" + table(Path(directory)) + "\n" + _END + rest.split(_END)[1])


if __name__ == "__main__":
    main(sys.argv[1])
