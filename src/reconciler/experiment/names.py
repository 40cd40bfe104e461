"""Names of runs and tasks: which are fit to be a directory of the experiment, and when two are the same.

Pure text; never looks at the disk.
"""

from __future__ import annotations

import unicodedata

ACCEPTED = "letters of any script, digits, `._-+=,@` and spaces inside; not beginning with `-` or `.`; at most 255 bytes"
_SIGNS = frozenset("._-+=,@ ")
_LONGEST = 255  # NAME_MAX of every file system that experiments live on


def fault_of(name: str) -> str | None:
    """What keeps ``name`` from being a directory of the experiment, in words; None where nothing does."""
    if not name:
        return "is empty"
    if name[0] in "-.":
        return f"begins with `{name[0]}`"
    if name != name.strip(" "):
        return "begins or ends with a space"
    strange = next((char for char in name if not _is_accepted(char)), None)
    if strange is not None:
        return f"contains {_shown(strange)}"
    if len(name.encode("utf-8")) > _LONGEST:
        return "is too long"
    return None


def same_name(name: str) -> str:
    """The form in which equal-looking names are equal: a name typed and its decomposed twin (NFC, NFD) are one."""
    return unicodedata.normalize("NFC", name)


def shortened(name: str) -> str:
    """The name as it is told to a person: of one that is absurdly long, the beginning."""
    return name if len(name) <= _LONGEST else f"{name[:60]}…"


def _is_accepted(char: str) -> bool:
    """Letters, the marks that belong to them, and digits; every control, bidirectional and invisible character is neither."""
    category = unicodedata.category(char)
    return char in _SIGNS or category[0] in "LM" or category == "Nd"


def _shown(char: str) -> str:
    """A character as a person can find it: control and invisible ones by their code point."""
    code = f"U+{ord(char):04X}"
    return (
        f"`{char}`" if char.isprintable() and not char.isspace() else f"{unicodedata.name(char, 'a control character')} ({code})"
    )
