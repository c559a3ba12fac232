"""Reads text files of a package and finds the lines of positions in them."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Final

from billing.marketplace.package import PackageFile

CODE: Final = frozenset({".js", ".mjs", ".ts"})
# They can hold code as well.
MARKUP: Final = frozenset({".html", ".svg", ".xml", ".css"})
PROSE: Final = frozenset({".md", ".txt", ""})
DATA: Final = frozenset({".json", ".yaml", ".yml", ".toml", ".csv", ".tsv"})
TEXT: Final = CODE | MARKUP | PROSE | DATA
# Files without an extension that people expect in a package.
PLAIN_NAMES: Final = frozenset({"LICENSE", "LICENCE", "COPYING", "NOTICE", "AUTHORS", "README", "CHANGELOG"})


def suffix_of(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def text_of(file: PackageFile) -> str:
    """Return a file as text; "" if it is none. The check of kinds finds bytes that are no UTF-8."""
    if suffix_of(file.path) not in TEXT:
        return ""
    return file.content.decode("utf-8-sig", "replace")


def line_of(text: str, at: int) -> int:
    """Return the line, from 1, of the character at index `at`."""
    return text.count("\n", 0, at) + 1
