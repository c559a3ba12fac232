"""Renderer of JSON. DRF loads it with its first view class, so this module must not import views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson
from rest_framework import renderers
from rest_framework.utils.encoders import JSONEncoder

_as_plain: Final = JSONEncoder().default  # makes plain values of those that orjson does not know


class JSONRenderer(renderers.JSONRenderer):
    """Renderer that writes what DRF's renderer writes, in a tenth of the time. It takes times and ids as they are.

    DRF's own renderer handles what orjson refuses (large integers, lone surrogates) and indented output.
    """

    def render(
        self,
        data: Any,
        accepted_media_type: str | None = None,
        renderer_context: Mapping[str, Any] | None = None,
    ) -> bytes:
        if data is not None and self.get_indent(accepted_media_type or "", renderer_context or {}) is None:
            try:
                written = orjson.dumps(data, _as_plain, orjson.OPT_UTC_Z)
            except orjson.JSONEncodeError:
                pass
            else:
                # These characters end lines in JavaScript, and some readers take JSON for JavaScript.
                return written.replace(b"\xe2\x80\xa8", rb"\u2028").replace(b"\xe2\x80\xa9", rb"\u2029")
        found: bytes = super().render(data, accepted_media_type, renderer_context)
        return found
