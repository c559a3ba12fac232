"""Every path under /api answers every method in the contract's form: `{code, message}`, never a page."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest
from django.urls import URLPattern, URLResolver, get_resolver
from django.urls.resolvers import RegexPattern, RoutePattern

from tests.factories import Person
from tests.sampling import few

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "SOMETHING"]
UNKNOWN = [
    "/api/",
    "/api/x",
    "/api/v1/auth",
    "/api/v1/auth/login/",
    "/api/v1/agents/",
    "/api/v1/schema",
    "/api/v2/chat",
]


def paths() -> Iterator[str]:
    """Each path of the URLconf under /api, with made up ids."""

    def walk(patterns: list[URLPattern | URLResolver], above: str) -> Iterator[str]:
        for pattern in patterns:
            path = above + template(pattern.pattern)
            if isinstance(pattern, URLResolver):
                yield from walk(pattern.url_patterns, path)
            elif path.startswith("api/"):
                yield f"/{path}"

    yield from sorted(set(walk(get_resolver().url_patterns, "")))


def template(pattern: object) -> str:
    assert isinstance(pattern, RoutePattern | RegexPattern)
    from django.utils.regex_helper import normalize

    text, names = normalize(pattern.regex.pattern.replace(r"\Z", ""))[0]
    return text % {name: "core" if name == "tier" else str(uuid4()) for name in names}


def test_every_path_answers_every_method_in_the_contracts_form(web: str, person: Person) -> None:
    known = list(paths())
    assert len(known) > 60
    found = [*few(known, 8), *UNKNOWN]
    wrong = []
    with httpx.Client(base_url=web, timeout=60) as stranger, person.rest(web) as rest:
        for path in found:
            # What would end the account or the session is asked without signing in.
            ends = path.endswith(("logout", "auth/me", "auth/sessions"))
            signed_in = {} if ends else {"Authorization": rest.headers["Authorization"]}
            for method in METHODS:
                answer = stranger.request(method, path, headers=signed_in)
                if not in_form(method, answer):
                    kind = answer.headers.get("Content-Type")
                    wrong.append((method, path, answer.status_code, kind, answer.text[:80]))
    assert not wrong


def in_form(method: str, answer: httpx.Response) -> bool:
    if answer.status_code < 400:
        return answer.status_code < 300 or not answer.content
    if answer.request.url.path.endswith("health/ready"):
        return answer.status_code in {405, 503}  # no worker runs
    if method == "HEAD":
        return answer.status_code < 500
    if "/callback" in answer.request.url.path and method == "GET":
        return answer.status_code in {400, 404}  # a page for people, as the contract says
    body = answer.json() if answer.headers["Content-Type"].startswith("application/json") else {}
    return answer.status_code != 500 and {"code", "message"} <= body.keys()


@pytest.mark.parametrize("path", ["/api/v1/auth/me", "/api/v1/nothing", "/api/v1/oauth/gmail/callback"])
def test_a_form_without_its_token_is_refused_in_the_contracts_form(web: str, path: str) -> None:
    answer = httpx.post(f"{web}{path}", data={"a": "b"}, headers={"Cookie": "sessionid=x; csrftoken=y"})
    assert answer.status_code in {401, 403, 404, 405}
    assert {"code", "message"} <= answer.json().keys()
