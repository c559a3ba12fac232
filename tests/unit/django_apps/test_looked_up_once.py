"""What is looked up once for many requests is what Django and DRF find each time."""

from __future__ import annotations

import pytest
from django.test import RequestFactory
from django.urls import Resolver404, resolve
from rest_framework.exceptions import NotAcceptable
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Request

from adiuva.core.browsable_api import BrowsableRenderer
from adiuva.core.negotiation import Negotiation
from adiuva.core.renderers import JSONRenderer
from adiuva.http_handler import ThreadedHandler

RENDERERS = (JSONRenderer, BrowsableRenderer)


def chosen(negotiation: DefaultContentNegotiation, path: str, accept: str | None) -> tuple[str, str] | None:
    """None if it is refused."""
    headers = {} if accept is None else {"Accept": accept}
    request = Request(RequestFactory().get(path, headers=headers))
    try:
        renderer, media_type = negotiation.select_renderer(request, [kind() for kind in RENDERERS])
    except NotAcceptable:
        return None
    return type(renderer).__name__, media_type


@pytest.mark.parametrize("path", ["/", "/?format=api"])
@pytest.mark.parametrize(
    "accept",
    [
        None,
        "",
        "*/*",
        "image/png",
        "application/json",
        "application/json; indent=4",
        "text/html,application/xml;q=0.9,*/*;q=0.8",
    ],
)
def test_a_media_type_is_chosen_as_by_drf(path: str, accept: str | None) -> None:
    expected = chosen(DefaultContentNegotiation(), path, accept)
    assert [chosen(Negotiation(), path, accept) for _ in range(3)] == [expected] * 3


def test_a_path_leads_where_it_led() -> None:
    handler = ThreadedHandler()
    for _ in range(2):
        for path in (
            "/api/v1/agents/runs",
            "/api/v1/memory/core",
            "/api/v1/memory/episodic",
            "/api/nothing",
            "/",
        ):
            request, expected = RequestFactory().get(path), resolve(path)
            found = handler.resolve_request(request)
            assert (found.route, found.kwargs) == (expected.route, expected.kwargs)
            assert request.resolver_match is found
        with pytest.raises(Resolver404):
            handler.resolve_request(RequestFactory().get("/nothing-here"))
