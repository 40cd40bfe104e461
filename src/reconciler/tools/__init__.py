"""The tools, found by looking: every module of this package exposes one as ``TOOL``. Names none of them.

Packages inside this one (such as ``formats``) hold what tools share, and no tool.
"""

from __future__ import annotations

import importlib
import pkgutil

from reconciler.ports import Tool


def all_tools() -> dict[str, Tool]:
    """Every tool by the name that documents give it, in the alphabetical order of their files."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    tools: list[Tool] = [importlib.import_module(f"{__name__}.{module}").TOOL for module in modules]
    return {tool.name: tool for tool in tools}
