"""Property tests try the same examples every time, so that a change's tests fail for the change alone; ``make fuzz`` tries new ones.

What the tests marked as faults tried is counted for docs/reliability.md where RECONCILE_RELIABILITY names a directory. With
RECONCILE_SHARE=N every Nth case of each test is run, its first always: for a second Python, where the first has seen them all.
"""

import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from reliability import Counting

settings.register_profile("the same", derandomize=True, deadline=None)
settings.register_profile("new ones", max_examples=2000, deadline=None)
settings.register_profile("a few", settings.get_profile("the same"), max_examples=30, phases=(Phase.explicit, Phase.generate))
IS_MUTANT = "MUTANT_UNDER_TEST" in os.environ
SHARE = int(os.environ.get("RECONCILE_SHARE", "1"))
SLOW = ("test_pass", "test_words", "test_recording")  # whole passes
settings.load_profile("a few" if IS_MUTANT or SHARE > 1 else "new ones" if os.environ.get("RECONCILE_HISTORIES") else "the same")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seen: Counter[str] = Counter()
    left_out = []
    for item in items:
        test = item.nodeid.split("[")[0]
        if seen[test] % SHARE:
            left_out.append(item)
        seen[test] += 1
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    if IS_MUTANT:  # what is quick first
        items.sort(key=lambda item: (hasattr(getattr(item, "obj", None), "hypothesis"), item.path.stem in SLOW))


def pytest_configure(config: pytest.Config) -> None:
    if (
        os.environ.get("RECONCILE_TEST_SLURM") != "1"
    ):  # simulated commands run by this Python: a shim in its place takes longer than they
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:  # in the background, or under nohup: the commands would inherit it
            signal.signal(number, handler)
    directory = os.environ.get("RECONCILE_RELIABILITY")
    if directory:
        config.pluginmanager.register(Counting(Path(directory)))
