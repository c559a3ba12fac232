"""Views that belong to no app: the index page, the API's root, and error responses."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils import translation
from django.utils.translation import gettext, gettext_noop
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.utils import extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva import __version__
from adiuva.core.language import in_their_language, speaking
from adiuva.core.outages import response_to

_PREFIX = "api/v1/"
_CHOICE = re.compile(r"\(\?P<\w+>(\w+(?:\|\w+)+)\)")


@in_their_language
def index(request: HttpRequest) -> HttpResponse:
    return render(request, "index.html", {"version": __version__})


class Root(APIView):
    """The endpoints of this API. Sign in with a bearer token, or here in the browser."""

    page_for_people = True
    name = "Adiuva API"
    permission_classes = [AllowAny]

    @extend_schema(exclude=True)
    def get(self, request: Request) -> Response:
        return Response({path: request.build_absolute_uri(f"/{_PREFIX}{path}") for path in _listable_paths()})


def _listable_paths() -> list[str]:
    """Return the paths under the prefix that answer GET without a parameter, in URLconf order.

    A parameter that is one of a few words, such as `(core|episodic)`, gives one path for each word.
    """
    found: dict[str, None] = {}

    def walk(patterns: list[URLPattern | URLResolver], above: str) -> None:
        for pattern in patterns:
            # DRF's routers make regular expressions.
            path = above + str(pattern.pattern).removeprefix("^").removesuffix("$")
            if isinstance(pattern, URLResolver):
                walk(pattern.url_patterns, path)
            elif _has_get(pattern):
                offered = [one for one in _expand_choice(path) if one.startswith(_PREFIX) and one != _PREFIX]
                found.update({one.removeprefix(_PREFIX): None for one in offered if not set("<(") & set(one)})

    walk(get_resolver().url_patterns, "")
    return list(found)


def _expand_choice(path: str) -> list[str]:
    """Return a path with a parameter that is one of a few words, once with each of them."""
    choice = _CHOICE.search(path)
    return [path.replace(choice[0], word) for word in choice[1].split("|")] if choice else [path]


def _has_get(pattern: URLPattern) -> bool:
    actions = getattr(pattern.callback, "actions", None)
    view = getattr(pattern.callback, "cls", None) or getattr(pattern.callback, "view_class", None)
    return "get" in actions if actions is not None else hasattr(view, "get")


_ERRORS = {
    400: ("bad_request", gettext_noop("the server does not understand this request")),
    403: ("forbidden", gettext_noop("you may not do this")),
    404: ("not_found", gettext_noop("there is nothing here")),
    500: ("server_error", gettext_noop("something went wrong on the server, and was logged")),
}


def _error_response(status: int) -> JsonResponse:
    code, message = _ERRORS[status]
    return JsonResponse({"code": code, "message": gettext(message)}, status=status)


@csrf_exempt
def no_endpoint(request: HttpRequest) -> HttpResponse:
    """Answer an unknown path with JSON, also with DEBUG on. It is the last pattern below /api/."""
    return _error_response(404)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Answer a form without its token, as Django's hook."""
    if request.path.startswith("/api/"):
        return _error_response(403)
    return _error_page(request, 403, _OLD_FORM)


_OLD_FORM = (
    gettext_noop("This form is too old"),
    gettext_noop("Go back, load the page again, and send it once more. The browser must keep cookies."),
)
_ERROR_PAGES = {
    400: (
        gettext_noop("This request was not understood"),
        gettext_noop("Go back, load the page again, and try once more."),
    ),
    403: (gettext_noop("This is not allowed"), gettext_noop("Sign in with an account that may do this.")),
    404: (
        gettext_noop("There is nothing here"),
        gettext_noop("The address may be misspelled, or what was here is gone."),
    ),
    500: (gettext_noop("Something went wrong"), gettext_noop("It was noted. Try again in a while.")),
}


def _error_page(request: HttpRequest, status: int, texts: tuple[str, str]) -> HttpResponse:
    """Return an error page in the browser's language. The user's is not looked up, since the database may be what
    fails."""
    with speaking(translation.get_language_from_request(request)):
        title, problem = map(translation.gettext, texts)
        return render(request, "error.html", {"title": title, "problem": problem}, status=status)


def _handler(status: int) -> Callable[..., HttpResponse]:
    """Return an error handler: JSON below /api/, a page elsewhere. Django logs the cause; nobody sees it."""

    def handle(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.path.startswith("/api/"):
            return _error_response(status)
        return _error_page(request, status, _ERROR_PAGES[status])

    return handle


bad_request = _handler(400)
forbidden = _handler(403)
not_found = _handler(404)
_fault = _handler(500)


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer an error of a middleware, which reaches no other handler: the session's and the cache's stores may be
    unavailable."""
    return response_to(sys.exc_info()[1]) or _fault(request)
