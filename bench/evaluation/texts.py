"""Comparing texts of models with what is expected: without case, accents, and kinds of blanks and apostrophes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def fold(text: str) -> str:
    """The text in lower case, without accents, its blanks single."""
    plain = "".join(each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))
    return " ".join(plain.casefold().replace("’", "'").split())


def holds(text: str, terms: Iterable[str]) -> bool:
    """Whether all terms occur in the text. A term may give alternatives: `offer|quote`."""
    folded = fold(text)
    return all(any(fold(each) in folded for each in term.split("|")) for term in terms)


def holds_any(text: str, terms: Iterable[str]) -> list[str]:
    """Those of the terms that occur in the text."""
    return [term for term in terms if holds(text, [term])]
