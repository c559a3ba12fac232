"""Versions of plugins and ranges of the client's version, by Semantic Versioning 2.0.0 (semver.org)."""

from __future__ import annotations

import re
from typing import Final

from adiuva.core.errors import Text

_NUMBER: Final = r"(?:0|[1-9]\d{0,8})"
_PART: Final = r"(?:0|[1-9]\d{0,8}|\d*[a-zA-Z-][0-9a-zA-Z-]*)"
_VERSION: Final = re.compile(
    rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})(?:-({_PART}(?:\.{_PART})*))?(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?",
    re.ASCII,
)
_COMPARISON: Final = re.compile(r"(>=|<=|>|<|=|\^|~)?(\S+)")
MAX_LENGTH: Final = 64

Key = tuple[int, int, int, bool, tuple[tuple[bool, int, str], ...]]


def version_key(version: str) -> Key:
    """Return a key that orders versions; build metadata does not count. Raises ValueError if it is no version."""
    found = _VERSION.fullmatch(version) if len(version) <= MAX_LENGTH else None
    if found is None:
        raise ValueError(Text("a version is three numbers, such as 1.4.0, as Semantic Versioning says"))
    major, minor, patch, pre = found.groups()
    parts = tuple(
        (False, int(part), "") if part.isdigit() else (True, 0, part)
        for part in (pre.split(".") if pre else ())
    )
    # Without a pre-release part a version comes after those with one.
    return int(major), int(minor), int(patch), pre is None, parts


def parse_range(text: str) -> tuple[tuple[str, Key], ...]:
    """Return the comparisons of a range such as ">=1.2.0 <2.0.0", "^1.2.0" or "~1.2.0". Raises ValueError."""
    comparisons: list[tuple[str, Key]] = []
    for part in text.split():
        found = _COMPARISON.fullmatch(part)
        assert found is not None
        sign, key = found.group(1) or "=", version_key(found.group(2))
        if sign in "^~":
            comparisons += [(">=", key), ("<", _next(key, minor=sign == "~"))]
        else:
            comparisons.append((sign, key))
    if not 1 <= len(comparisons) <= 4:
        raise ValueError(Text("a range is one or two comparisons, such as >=1.2.0 <2.0.0"))
    return tuple(comparisons)


def in_range(version: str, text: str) -> bool:
    """Return whether a version is in a range. Raises ValueError if either cannot be read."""
    key = version_key(version)
    return all(
        {">=": key >= bound, "<=": key <= bound, ">": key > bound, "<": key < bound, "=": key == bound}[sign]
        for sign, bound in parse_range(text)
    )


def _next(key: Key, *, minor: bool) -> Key:
    """Return the first version that ^ or ~ leaves out. Before 1.0.0, each minor version may be incompatible."""
    major, minor_number, _patch, _final, _parts = key
    if minor or major == 0:
        return major, minor_number + 1, 0, False, ()
    return major + 1, 0, 0, False, ()
