"""Allowed browser origins: one list for the API and the socket."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import httpx
import pytest
import websockets
from django.test import override_settings

from adiuva.core.origins import is_allowed
from tests.factories import Person

ALLOWED = [
    "app://.", "app://adiuva", "app://-", "http://localhost", "http://localhost:5173", "http://127.0.0.1:3000"
]  # fmt: skip
REFUSED = [
    "https://evil.example", "http://localhost.evil.example", "http://localhost:5173.evil.example", "null", "",
    "http://localhost:5173/path", "xapp://adiuva", "https://app", "http://127.0.0.1.evil.example:80", "file://",
]  # fmt: skip


@pytest.mark.parametrize("origin", [*ALLOWED, *REFUSED])
def test_a_preflight_and_the_answers_name_an_allowed_origin_only(web: str, origin: str) -> None:
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    answers = [
        httpx.options(f"{web}/api/v1/auth/me", headers={"Origin": origin, **asked}),
        httpx.get(f"{web}/api/v1/auth/me", headers={"Origin": origin}),
        httpx.post(f"{web}/api/v1/nothing", headers={"Origin": origin}),
    ]
    wanted = [200, 401, 404]
    assert [answer.headers.get("Access-Control-Allow-Origin") for answer in answers] == (
        [origin] * 3 if origin in ALLOWED else [None] * 3
    )
    assert [answer.status_code for answer in answers] == wanted
    assert all("origin" in answer.headers["Vary"] for answer in answers[:2])
    assert "Access-Control-Allow-Credentials" not in answers[0].headers
    if origin in ALLOWED:
        assert "authorization" in answers[0].headers["Access-Control-Allow-Headers"]
        assert "X-Total-Count" in answers[1].headers["Access-Control-Expose-Headers"]


def test_a_page_can_read_a_refusal_that_comes_before_the_body_is_read(web: str) -> None:
    for origin, allowed in ((ALLOWED[0], ALLOWED[0]), (REFUSED[0], None)):
        headers = {"Origin": origin, "Authorization": "Bearer x.y.z"}
        answer = httpx.patch(f"{web}/api/v1/auth/me", json={"locale": "de"}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")
        assert answer.headers.get("Access-Control-Allow-Origin") == allowed


def test_pages_outside_the_api_are_for_no_other_origin(web: str) -> None:
    answer = httpx.get(f"{web}/account/forgotten-password", headers={"Origin": "app://adiuva"})
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("origin", [ALLOWED[0], ALLOWED[3], REFUSED[0], REFUSED[1], REFUSED[3]])
async def test_the_socket_goes_by_the_same_list(web: str, person: Person, origin: str) -> None:
    url = f"ws://{urlsplit(web).netloc}/api/v1/ws/device"
    headers = {"Authorization": f"Bearer {person.access_token}"}
    async with websockets.connect(url, origin=origin, additional_headers=headers) as socket:  # type: ignore[arg-type]
        try:
            await asyncio.wait_for(socket.recv(), 1)
        except TimeoutError:
            code = None
        except websockets.ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else 0
        else:
            code = None
    assert (code is None) == (origin in ALLOWED)


@override_settings(
    PUBLIC_URL="https://adiuva.example", ALLOWED_HOSTS=["adiuva.example", ".adiuva.test"], ALLOWED_ORIGINS=[]
)
def test_a_servers_own_origins_are_allowed_by_whatever_name_it_is_reached() -> None:
    assert is_allowed("https://adiuva.example", "inner.adiuva.test:8000")
    assert is_allowed("https://eu.adiuva.test", "eu.adiuva.test")
    assert is_allowed("https://eu.adiuva.test:8443", "eu.adiuva.test:8443")
    assert not is_allowed(
        "http://eu.adiuva.test", "eu.adiuva.test"
    )  # plain, where the server is behind https
    assert not is_allowed("https://eu.adiuva.test", "us.adiuva.test")
    assert not is_allowed("https://evil.example", "evil.example")
    assert not is_allowed("app://adiuva", "adiuva.example")


@override_settings(PUBLIC_URL="https://adiuva.example", ALLOWED_ORIGINS=["https://*.web.example", "app://*"])
def test_a_wildcard_stands_for_a_part_of_a_name() -> None:
    assert is_allowed("https://a.web.example", "adiuva.example")
    assert not is_allowed("https://web.example", "adiuva.example")
    assert not is_allowed("https://evil.example/.web.example", "adiuva.example")
    assert not is_allowed("https://evil.example#.web.example", "adiuva.example")
