"""Refusals and request bodies, the same at every endpoint."""

from __future__ import annotations

import json
import logging
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client, override_settings
from django.utils import translation
from rest_framework.test import APIClient

from adiuva.accounts.models import User
from tests.factories import somebody

pytestmark = pytest.mark.urls("tests.core.failing_urls")


@pytest.fixture
def rest(db: None) -> APIClient:
    return APIClient(raise_request_exception=False)


# ── Refusals ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("how", "status", "body"),
    [
        (
            "quota",
            402,
            {"code": "quota_exceeded", "message": "agents are limited to 3 on this plan", "limit": 3},
        ),
        ("conflict", 409, {"code": "conflict", "message": "it runs already", "run_id": "42"}),
        ("not-found", 404, {"code": "not_found", "message": "there is nothing here, or it is not yours"}),
        ("forbidden", 403, {"code": "forbidden", "message": "you may not do this"}),
        (
            "model",
            400,
            {"code": "invalid", "message": "name: Too long.", "fields": {"name": ["Too long."]}},
        ),
        (
            "whole-model",
            400,
            {
                "code": "invalid",
                "message": "Start must be before end.",
                "fields": {"non_field_errors": ["Start must be before end."]},
            },
        ),
        (
            "nested",
            400,
            {
                "code": "invalid",
                "message": "files.1.path: Bad.",
                "fields": {"files.1.path": ["Bad."], "filter.date.from": ["Late."]},
            },
        ),
    ],
)
def test_a_refusal_is_a_code_a_message_and_fields(
    rest: APIClient, how: str, status: int, body: dict[str, Any]
) -> None:
    answer = rest.get(f"/api/v1/fail/{how}")
    assert (answer.status_code, answer.json()) == (status, body)


@pytest.mark.parametrize("how", ["database", "redis", "later"])
def test_a_server_that_is_away_is_a_503_that_says_when_to_come_back(rest: APIClient, how: str) -> None:
    answer = rest.get(f"/api/v1/fail/{how}")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer["Retry-After"] == str(answer.json()["retry_after_s"])
    assert b"10.0.0" not in answer.content


@pytest.mark.parametrize("path", ["/api/v1/fail/bug", "/api/v1/plain-bug"])
def test_an_unexpected_error_is_logged_with_its_request_id_and_answered_without_detail(
    rest: APIClient, path: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = rest.get(path, headers={"X-Request-ID": "request-under-test"})
    assert (answer.status_code, sorted(answer.json())) == (500, ["code", "message"])
    assert b"secret" not in answer.content
    assert answer["X-Request-ID"] == "request-under-test"
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "a secret value" in str(record.exc_info[1])  # type: ignore[index]
    written = capfd.readouterr().err
    assert "a secret value" not in written
    lines = [json.loads(line) for line in written.splitlines() if "frames" in line]
    assert [line["request_id"] for line in lines] == ["request-under-test"]


def test_pages_for_people_keep_djangos_error_pages(db: None) -> None:
    browser = Client(raise_request_exception=False)
    for path, status in [("/page-with-a-bug", 500), ("/nothing-here", 404)]:
        answer = browser.get(path)
        assert (answer.status_code, answer["Content-Type"].split(";")[0]) == (status, "text/html")


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize(
    "path",
    [
        "/api/",
        "/api/v2/",
        "/api/v1/nothing",
        "/api/v1/auth/me/",
        "/api/v1/auth/sessions/x",
        "/api/v1/auth/sessions/7d9f3c1e-0f4b-4f0e-9d43-1d1d3b2f5a10/more",
    ],
)
def test_an_unknown_path_is_json_and_404(rest: APIClient, path: str, debug: bool) -> None:
    with override_settings(DEBUG=debug):
        answer = rest.delete(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize("address", ["users?of=a%00b", "users?%00", "fail/quota%00", "nothing/%00?a=%2500"])
def test_an_address_with_a_nul_character_is_refused(rest: APIClient, address: str, debug: bool) -> None:
    with override_settings(DEBUG=debug):
        answer = rest.get(f"/api/v1/{address}")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    page = Client(raise_request_exception=False).get("/page-with-a-bug?a=%00")
    assert (page.status_code, page["Content-Type"].split(";")[0]) == (400, "text/html")


def test_what_an_address_cannot_say_is_looked_for_and_not_found(rest: APIClient) -> None:
    for text in ("%ED%A0%80", "%FF", "%2500"):  # half of a surrogate pair, no UTF-8, and a percent sign
        answer = rest.get(f"/api/v1/users?of={text}")
        assert (answer.status_code, answer.json()) == (200, [])


def test_refusals_of_the_framework_itself_are_json_too(rest: APIClient) -> None:
    login = "/api/v1/auth/login"
    answers = {
        "method_not_allowed": (405, rest.get(login)),
        "unsupported_media_type": (415, rest.post(login, "<a/>", content_type="application/xml")),
        "not_acceptable": (406, rest.get("/api/v1/auth/me", headers={"Accept": "image/png"})),
        "not_authenticated": (401, rest.get("/api/v1/auth/me")),
        "bad_request": (400, rest.get("/api/v1/fail/suspicious")),
    }
    for code, (status, answer) in answers.items():
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    host = rest.get("/api/v1/auth/me", headers={"Host": "evil.example"})
    assert (host.status_code, host.json()["code"]) == (400, "bad_request")


def test_a_refusal_is_a_page_for_a_browser(rest: APIClient) -> None:
    for path, status in [("/api/v1/auth/me", 401), ("/api/v1/auth/login", 405), ("/api/v1/fail/nested", 400)]:
        for headers in ({}, {"Authorization": "Bearer nonsense"}):
            answer = rest.get(path, headers={"Accept": "text/html", **headers})
            assert (
                answer.status_code == status if path.endswith(("me", "login")) else answer.status_code >= 400
            )
            assert answer["Content-Type"].startswith("text/html")


# ── Bodies ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("raw", ["[]", '"text"', "7", "null", "true", "[{}]", '["a", "b"]'])
@pytest.mark.parametrize("path", ["/api/v1/echo", "/api/v1/auth/login", "/api/v1/auth/refresh"])
def test_a_body_that_is_no_object_is_refused(rest: APIClient, path: str, raw: str) -> None:
    answer = rest.post(path, raw, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 100_000,
        b"\x00",
    ],
)
def test_a_body_that_is_no_json_is_refused(rest: APIClient, raw: bytes) -> None:
    answer = rest.post("/api/v1/echo", raw, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_json")


@pytest.mark.parametrize("raw", ['{"a": "\\u0000"}', '{"a": [{"b": ["x\\u0000y"]}]}', '{"a\\u0000": 1}'])
def test_a_nul_character_anywhere_in_the_input_is_refused(rest: APIClient, raw: str) -> None:
    answer = rest.post("/api/v1/echo", raw, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")


def test_a_backslash_before_u0000_is_text(rest: APIClient) -> None:
    answer = rest.post("/api/v1/echo", '{"a": "\\\\u0000"}', content_type="application/json")
    assert answer.json() == {"keys": ["a"]}


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded"])
def test_a_body_that_is_too_large_is_refused(rest: APIClient, kind: str) -> None:
    body = b" " * (2 * 1024 * 1024 + 1)
    answer = rest.post("/api/v1/echo", body, content_type=kind)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    page = rest.post("/api/v1/echo", body, content_type=kind, headers={"Accept": "text/html"})
    assert page.status_code == 413


def test_another_users_object_is_answered_like_a_missing_one(rest: APIClient) -> None:
    mine, theirs = somebody(), somebody()
    rest.credentials(HTTP_AUTHORIZATION=f"Bearer {mine.access_token}")
    session = User.objects.get(pk=theirs.id).sessions.get()
    other, none = (rest.delete(f"/api/v1/auth/sessions/{each}") for each in (session.pk, uuid4()))
    assert other.status_code == none.status_code == 404
    assert other.content == none.content


# ── Languages ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("locale", "accepted", "language", "message"),
    [
        (None, None, "en", "there is nothing here, or it is not yours"),
        (None, "de-CH, en;q=0.5", "de", "hier ist nichts, oder es gehört Ihnen nicht"),
        (None, "pt-BR", "en", "there is nothing here, or it is not yours"),
        ("fr-CA", "de", "fr", "il n'y a rien ici, ou ce n'est pas à vous"),
        ("en", "de", "en", "there is nothing here, or it is not yours"),
    ],
)
def test_a_refusal_is_in_the_account_s_language_else_in_the_one_that_is_accepted(
    rest: APIClient, locale: str | None, accepted: str | None, language: str, message: str
) -> None:
    if locale is not None:
        rest.credentials(HTTP_AUTHORIZATION=f"Bearer {somebody(locale=locale).access_token}")
    headers = {"Accept-Language": accepted} if accepted else {}
    answer = rest.get("/api/v1/fail/not-found", headers=headers)
    assert answer.json() == {"code": "not_found", "message": message}
    assert answer["Content-Language"] == language
    assert "Accept-Language" in answer["Vary"]
    assert translation.get_language() == "en"  # of the thread, for what it does next


@pytest.mark.urls("adiuva.urls")
@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("/api/v1/none-such", "not_found", "aquí no hay nada"),
        ("/api/v1/auth/login", "invalid", "email: Este campo es requerido."),
        ("/api/v1/auth/password", "not_authenticated", "Las credenciales de autenticación no se proveyeron."),
    ],
)
def test_what_the_frameworks_refuse_is_said_in_the_language_too(
    rest: APIClient, path: str, code: str, message: str
) -> None:
    answer = rest.post(path, {}, headers={"Accept-Language": "es"})
    assert (answer.json()["code"], answer.json()["message"]) == (code, message)
