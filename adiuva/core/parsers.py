"""Parser of request bodies. DRF loads it with its first view class, so this module must not import views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from django.utils.translation import gettext
from rest_framework import exceptions, parsers


class JSONParser(parsers.JSONParser):
    """Parser of JSON objects that PostgreSQL can store: no NaN, no lone surrogates, no NUL, at most 1,024 levels deep.

    DRF passes it at most settings.DATA_UPLOAD_MAX_MEMORY_SIZE bytes.
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
            raise exceptions.ValidationError(gettext("The body must be a JSON object."))
        if b"\\u0000" in raw and _has_nul(body):
            raise exceptions.ValidationError(gettext("NUL characters are not allowed."))
        return body


def _has_nul(value: Any) -> bool:
    # Not recursive, because orjson parses up to 1,024 levels, too deep for Python's stack.
    pending = [value]
    while pending:
        match pending.pop():
            case str() as text if "\0" in text:
                return True
            case dict() as inner:
                pending += [*inner.keys(), *inner.values()]
            case list() as inner:
                pending += inner
    return False
