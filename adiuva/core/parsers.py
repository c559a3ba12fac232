"""What a body may be. DRF loads this with its first view class, so this module imports none of those."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from rest_framework import exceptions, parsers


class JSONParser(parsers.JSONParser):
    """A JSON object as PostgreSQL can keep it: no NaN, no lone surrogates, no NUL, not endlessly deep.

    DRF hands it at most settings.DATA_UPLOAD_MAX_MEMORY_SIZE bytes.
    """

    def parse(
        self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        raw = stream.read()
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise exceptions.ParseError(f"the body is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise exceptions.ValidationError("The body must be a JSON object.")
        if b"\\u0000" in raw and _has_nul(body):
            raise exceptions.ValidationError("NUL characters are not allowed.")
        return body


def _has_nul(value: Any) -> bool:
    # Up to 1,024 levels come from orjson: a list of our own is safer than Python's stack.
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str() as text if "\0" in text:
                return True
            case dict() as inner:
                waiting += [*inner.keys(), *inner.values()]
            case list() as inner:
                waiting += inner
    return False
