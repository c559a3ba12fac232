"""Refusal of addresses with NUL characters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from django.urls import get_resolver

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse


class AddressGuard:
    """Middleware that answers 400 if the path or the query has a NUL character.

    PostgreSQL's text has none, so a view that looks for a part of the address would fail. Other characters that it does
    not take cannot come: Django replaces what is not UTF-8.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if "\0" in request.path_info or "%00" in request.META.get("QUERY_STRING", ""):
            refusal: HttpResponse = get_resolver().resolve_error_handler(400)(request)
            return refusal
        return self._get_response(request)
