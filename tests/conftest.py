"""Property tests try the same examples every time, so that a change's tests fail for the change alone; ``make fuzz`` tries new ones."""

import os

from hypothesis import settings

settings.register_profile("the same", derandomize=True, deadline=None)
settings.register_profile("new ones", max_examples=2000, deadline=None)
settings.load_profile("new ones" if os.environ.get("RECONCILE_HISTORIES") else "the same")
