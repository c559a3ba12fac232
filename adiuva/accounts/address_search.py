"""Addresses by a part of them: the words of an address, such as its name and domain, are in an index."""

from __future__ import annotations

import re
from typing import Final

from django.contrib.postgres.search import SearchQuery, SearchVector
from django.db.models import F, Func, TextField, Value

_BETWEEN_WORDS: Final = "@._+-"
# In PostgreSQL, an address as it is would be one word.
EMAIL_WORDS: Final = SearchVector(
    Func(
        F("email"),
        Value(_BETWEEN_WORDS),
        Value(" " * len(_BETWEEN_WORDS)),
        function="translate",
        output_field=TextField(),
    ),
    config="simple",
)


def address_query(part: str) -> SearchQuery | None:
    """A query for EMAIL_WORDS: all words of `part`, each as the beginning of one. None if there is no word in it."""
    words = [word for word in re.split(r"[\W_]+", part.lower()) if word]
    if not words:
        return None
    return SearchQuery(" & ".join(f"{word}:*" for word in words), search_type="raw", config="simple")
