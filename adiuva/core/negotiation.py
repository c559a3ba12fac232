"""Choice of a request's renderer. DRF loads this with its first view class, so it must not import views."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

_MOST_KNOWN: Final = 500


class Negotiation(DefaultContentNegotiation):
    """Negotiation of DRF that looks at each `Accept` once, because clients send the same with every request."""

    # The chosen renderer's position and the media type, by the header and the renderers' classes.
    _known: Final[dict[tuple[Any, ...], tuple[int, str]]] = {}

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        offered = list(renderers)
        if format_suffix or self.settings.URL_FORMAT_OVERRIDE in request.query_params:
            return self._select(request, offered, format_suffix)
        asked = request.META.get("HTTP_ACCEPT"), *map(type, offered)
        if (known := self._known.get(asked)) is not None:
            return offered[known[0]], known[1]
        renderer, media_type = self._select(request, offered)
        if len(self._known) < _MOST_KNOWN:
            self._known[asked] = offered.index(renderer), media_type
        return renderer, media_type

    def _select(
        self, request: Request, renderers: list[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        found: tuple[BaseRenderer, str] = super().select_renderer(request, renderers, format_suffix)
        return found
