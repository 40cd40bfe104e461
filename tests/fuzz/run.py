"""The fuzzer: ``python tests/fuzz/run.py [TARGET...]``, guided by atheris by the coverage of our own code, from ``fuzz.corpus``.

RECONCILE_FUZZ_CASES (a million) for each reader, RECONCILE_FUZZ_SECONDS (none) at most. Each reader runs in a process of its own
under a limit of memory and of time for a case; what broke it is left in ``build/fuzz/TARGET``. Prints cases a second, counts for
docs/reliability.md where RECONCILE_RELIABILITY names a directory, and ends with 1 where a promise was broken.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent / "fixtures")]

CASES = int(os.environ.get("RECONCILE_FUZZ_CASES", "1000000"))
SECONDS = int(os.environ.get("RECONCILE_FUZZ_SECONDS", "0"))
FINDINGS = TESTS.parent / "build" / "fuzz"
SECONDS_FOR_A_CASE, MIB = 30, 2048
LONGEST = 1 << 11  # bytes of a case; what only length does to a reader is in tests/faults/test_attacks.py
FAULT = "fuzzed input: {} answers or says what is wrong, with no crash, no hang, bounded memory"


@dataclass(frozen=True)
class Ran:
    """What became of one reader's fuzzing."""

    cases: int
    seconds: float
    code: int


def fuzz(target: str, options: list[str]) -> None:
    """In a process of its own: cases without end, until libFuzzer's options stop it."""
    import atheris

    with atheris.instrument_imports(include=["reconciler"]):  # libraries are imported when a case needs them, and not followed
        from fuzz.targets import TARGETS

    atheris.Setup([sys.argv[0], *options], TARGETS[target])
    atheris.Fuzz()


def prepare(target: str) -> tuple[Path, Path]:
    """The directory of a target's cases, its seeds in it, and a file of words that hurt."""
    from fuzz.corpus import TOKENS, seeds

    directory = FINDINGS / target
    corpus = directory / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = directory / "words"
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in token[:60]) + '"\n' for token in TOKENS))
    return corpus, words


def run(target: str) -> Ran:
    """All cases of one reader."""
    corpus, words = prepare(target)
    limits = [f"-runs={CASES}", f"-timeout={SECONDS_FOR_A_CASE}", f"-rss_limit_mb={MIB}", f"-max_len={LONGEST}"]
    if SECONDS:
        limits.append(f"-max_total_time={SECONDS}")
    places = [f"-dict={words}", f"-artifact_prefix={FINDINGS / target}/", "-print_final_stats=1", "-verbosity=1", str(corpus)]
    began = time.monotonic()
    command = [sys.executable, __file__, "--one", target, *limits, *places]
    log = FINDINGS / target / "log"
    from fuzz.targets import in_memory

    with log.open("wb") as file, tempfile.TemporaryDirectory(dir=in_memory()) as scratch:  # libFuzzer ends without cleaning up
        environment = {**os.environ, "RECONCILE_FUZZ_SCRATCH": scratch}
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False, env=environment).returncode
    counted = re.findall(rb"number_of_executed_units:\s*(\d+)|^#(\d+)\s", log.read_bytes(), re.MULTILINE)
    cases = max((int(one or other) for one, other in counted), default=0)
    return Ran(cases, time.monotonic() - began, code)


def main(targets: list[str]) -> int:
    from fuzz.targets import TARGETS
    from reliability import Row, save

    rows = []
    for target in targets or list(TARGETS):
        ran = run(target)
        result = "nothing found" if ran.code == 0 else f"BROKEN, see {FINDINGS / target}/log"
        rate = ran.cases / max(ran.seconds, 1e-9)
        print(f"{target:16} {ran.cases:>9,} cases {ran.seconds:>7.0f} s {rate:>7.0f} a second  {result}", flush=True)
        rows.append(Row(FAULT.format(f"the reader `{target}`"), ran.cases, int(ran.code != 0), "make fuzz-readers"))
    directory = os.environ.get("RECONCILE_RELIABILITY")
    if directory:
        save(Path(directory), rows)
    return int(any(row.violations for row in rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        fuzz(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main(sys.argv[1:]))
