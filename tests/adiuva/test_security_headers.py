"""Security headers of every page and answer."""

from __future__ import annotations

import re

import httpx
import pytest

from adiuva.core.security_headers import SECURITY_HEADERS
from tests.factories import Person

PAGES = [
    "/",
    "/admin/login/",
    "/api-auth/login/",
    "/api/v1/",
    "/api/v1/docs/",
    "/api/v1/schema/",
    "/api/v1/health",
]
HTML = {"Accept": "text/html"}
SCRIPT = re.compile(r"<script(?![^>]*(?:\bsrc=|type=\"application/json\"))[^>]*>", re.IGNORECASE)
HANDLER = re.compile(r"<[^>]*\son(?:click|load|error|submit)=[^>]*>", re.IGNORECASE)


@pytest.mark.parametrize("path", [*PAGES, "/nothing", "/api/v1/nothing", "/api/v1/auth/me"])
def test_every_page_has_a_policy_that_allows_its_own_scripts_alone(web: str, path: str) -> None:
    answer = httpx.get(web + path, headers=HTML)
    # Pages with forms tell their origin: with "no-referrer" browsers send forms as from an unknown one.
    signs_in = path.endswith("/login/")
    expected = SECURITY_HEADERS | ({"Referrer-Policy": "strict-origin"} if signs_in else {})
    assert {name: answer.headers.get(name) for name in SECURITY_HEADERS} == expected
    assert SCRIPT.findall(answer.text) == []
    assert HANDLER.findall(answer.text) == []


def test_pages_of_the_browsable_api_and_their_scripts_are_our_own(web: str, person: Person) -> None:
    with person.rest(web) as rest:
        for path in ("/auth/me", "/agents/local", "/memory/core", "/account/export"):
            page = rest.get(path, headers=HTML)
            assert page.headers["content-type"].startswith("text/html")
            assert SCRIPT.findall(page.text) == []
            assert HANDLER.findall(page.text) == []
            assert "http://" not in "".join(re.findall(r"<(?:script|link)[^>]*>", page.text))


def test_personal_data_is_cached_nowhere(web: str, person: Person) -> None:
    with person.rest(web) as rest:
        for path in (
            "/auth/me",
            "/auth/sessions",
            "/agents/local",
            "/agents/runs",
            "/devices",
            "/memory/core",
        ):
            answer = rest.get(path)
            assert answer.status_code == 200
            assert "no-store" in answer.headers["Cache-Control"]
    assert "no-store" not in httpx.get(f"{web}/static/admin/css/base.css").headers["Cache-Control"]
