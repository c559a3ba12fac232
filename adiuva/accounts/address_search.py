"""Search for addresses by a part of them: an index holds an address's words, such as its name and domain."""

from __future__ import annotations

import re
from typing import Final

from django.contrib.postgres.search import SearchQuery, SearchVector
from django.db.models import F, Func, TextField, Value

_BETWEEN_WORDS: Final = "@._+-"
# PostgreSQL would take a whole address for one word.
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
    """Return a query for EMAIL_WORDS: each word of `part` is the beginning of a word. None if `part` has no word."""
    words = [word for word in re.split(r"[\W_]+", part.lower()) if word]
    if not words:
        return None
    return SearchQuery(" & ".join(f"{word}:*" for word in words), search_type="raw", config="simple")
