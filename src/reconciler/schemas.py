"""Where the published JSON Schemas are found: in the installed package, or in the repository it runs from."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any


def schema(name: str) -> dict[str, Any]:
    """The schema of this name, such as ``experiment`` for ``experiment.schema.json``. Raises KeyError where there is none."""
    file = f"{name}.schema.json"
    installed = resources.files("reconciler") / "schemas" / file
    checkout = Path(__file__).parents[2] / "schemas" / file
    for place in (installed, checkout):
        if place.is_file():
            found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
            return found
    raise KeyError(name)
