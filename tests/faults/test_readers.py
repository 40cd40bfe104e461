"""The share of ``make fuzz-readers`` that every run of the tests tries: for each reader the same cases again, without a fuzzer.

RECONCILE_FAULTS tries ten times as many.
"""

from __future__ import annotations

import os

import pytest

from commands import no_hang
from fuzz.corpus import seeds
from fuzz.mutations import cases
from fuzz.targets import STATUS_ROWS, TARGETS
from reconciler.status_tables import update_document

SECONDS_FOR_A_CASE = 20  # what is called a hang, on a machine that has other things to do
# As many as take a second or so: a document takes longer than an answer of sbatch.
SHARE = {"markdown": 120, "yaml_form": 200, "status_tables": 120, "settings": 120, "finetune_yaml": 120, "ledger": 120}
MORE = 10 if os.environ.get("RECONCILE_FAULTS", "") not in ("", "some") else 1


@pytest.mark.fault(
    "mutated input: each reader answers or says what is wrong, with no crash and no hang", rerun="make fuzz-readers"
)
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_reader_of_mutated_bytes_answers_or_says_what_is_wrong(name, record_property):
    count = SHARE.get(name, 600) * MORE
    for number, case in enumerate(cases(seeds(name), count)):
        with no_hang(SECONDS_FOR_A_CASE):
            try:
                TARGETS[name](case)
            except Exception as error:
                record_property("cases", number + 1)
                raise AssertionError(f"case {number} of {name} broke it: {case[:2000]!r}") from error
    record_property("cases", count)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_seeds_of_a_reader_are_what_it_reads_every_day(name):
    assert seeds(name)
    for case in seeds(name):
        TARGETS[name](case)


def test_the_seeds_of_the_writer_are_written_and_keep_what_a_person_noted():
    for case in seeds("status_tables"):
        text = case.decode()
        update = update_document(text, STATUS_ROWS, {})
        assert update.text != text
        assert update.text.count("ask Ana") == text.count("ask Ana")
