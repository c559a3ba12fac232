"""The shorter ways through middleware end as the longer ones do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from corsheaders.middleware import CorsMiddleware as AnyOrigin
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from django.utils import translation

from adiuva.core.language import ApiLanguage, speak_to
from adiuva.core.origins import CorsMiddleware
from adiuva.core.security_headers import SECURITY_HEADERS, SecurityHeaders


def answer(request: HttpRequest) -> HttpResponse:
    return HttpResponse("{}", content_type="application/json", headers={"Vary": "Accept"})


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", ["/api/v1/auth/me", "/"])
@pytest.mark.parametrize(
    "headers", [{}, {"Access-Control-Request-Method": "GET"}, {"Origin": "app://adiuva"}]
)
def test_requests_without_an_origin_are_answered_as_by_cors_headers(
    method: str, path: str, headers: dict[str, str]
) -> None:
    theirs, ours = (
        kind(answer)(RequestFactory().generic(method, path, headers=headers))
        for kind in (AnyOrigin, CorsMiddleware)
    )
    assert (ours.status_code, dict(ours.headers)) == (theirs.status_code, dict(theirs.headers))


@pytest.mark.parametrize("before", ["en", "de", None])
@pytest.mark.parametrize(
    ("headers", "asked"), [({}, "en"), ({"Accept-Language": "fr"}, "fr"), ({"Cookie": "a=b"}, "en")]
)
def test_what_was_spoken_before_a_request_is_spoken_after_it(
    before: str | None, headers: dict[str, str], asked: str
) -> None:
    spoken: list[str | None] = []

    def view(request: HttpRequest) -> HttpResponse:
        spoken.append(translation.get_language())
        speak_to(SimpleNamespace(locale="it-CH"))
        spoken.append(translation.get_language())
        if request.method == "POST":
            raise RuntimeError
        return HttpResponse(status=404)

    with translation.override(before):
        for method in ("GET", "POST"):
            request = RequestFactory().generic(method, "/api/v1/auth/me", headers=headers)
            if method == "POST":
                with pytest.raises(RuntimeError):
                    ApiLanguage(view)(request)
            else:
                assert ApiLanguage(view)(request).headers["Content-Language"] == "it"
            assert translation.get_language() == before
    assert spoken == [asked, "it"] * 2


def test_an_answer_keeps_the_headers_that_it_names_itself() -> None:
    own = {"cache-control": "private", "Referrer-Policy": "strict-origin", "X-Total-Count": "3"}
    found = SecurityHeaders(lambda request: HttpResponse(headers=own))(RequestFactory().get("/")).headers
    others = {"Cache-Control": "private", "Referrer-Policy": "strict-origin", "X-Total-Count": "3"}
    assert {name: found[name] for name in SECURITY_HEADERS | others} == SECURITY_HEADERS | others
    plain = SecurityHeaders(answer)(RequestFactory().get("/")).headers
    assert (plain["cache-control"], len(plain)) == ("no-store", len(SECURITY_HEADERS) + 3)
