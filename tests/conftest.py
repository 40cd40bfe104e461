"""Property tests try the same examples every time, so that a change's tests fail for the change alone; ``make fuzz`` tries new ones.

What the tests marked as faults tried is counted for docs/reliability.md where RECONCILE_RELIABILITY names a directory.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from reliability import Counting

settings.register_profile("the same", derandomize=True, deadline=None)
settings.register_profile("new ones", max_examples=2000, deadline=None)
settings.load_profile("new ones" if os.environ.get("RECONCILE_HISTORIES") else "the same")


def pytest_configure(config: pytest.Config) -> None:
    directory = os.environ.get("RECONCILE_RELIABILITY")
    if directory:
        config.pluginmanager.register(Counting(Path(directory)))
