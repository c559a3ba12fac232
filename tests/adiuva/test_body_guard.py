"""Bodies are refused from the headers, or as soon as they are too large: behind uvicorn and behind daphne."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import pytest

from adiuva import body_guard
from adiuva.accounts import services
from adiuva.core import db
from tests.factories import Person
from tests.sampling import ONE_SERVER

both_servers = pytest.mark.parametrize("web_on", ONE_SERVER, indirect=True)
MIB = 1024 * 1024


async def answer_to_headers(
    base: str, path: str, *headers: str, body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to a request whose declared body never comes, or comes in part."""
    address = urlsplit(base)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {address.netloc}",
        "Content-Type: application/json",
        *headers,
        "",
        "",
    ]
    writer.write("\r\n".join(lines).encode() + body)
    await writer.drain()
    async with asyncio.timeout(20):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        found = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        rest = await reader.readexactly(int(found["content-length"]))
    writer.close()
    return int(head[0].split()[1]), found, rest


@both_servers
async def test_a_body_with_a_length_and_chunks_as_well_is_refused_and_its_connection_closed(
    web_on: str,
) -> None:
    address = urlsplit(web_on)
    for headers in (
        ("Content-Length: 4", "Transfer-Encoding: chunked"),
        (
            "Transfer-Encoding: chunked",
            "Content-Length: 4",
        ),
    ):
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        lines = ["POST /api/v1/auth/login HTTP/1.1", f"Host: {address.netloc}", *headers, "", "0", "", ""]
        writer.write("\r\n".join(lines).encode() + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(20):
            answered = await reader.read()
        assert answered.startswith(b"HTTP/1.1 400 ") and answered.count(b"HTTP/1.1 ") == 1
        writer.close()


@both_servers
async def test_a_large_body_is_refused_from_its_headers(web_on: str, person: Person) -> None:
    for path, most in (
        ("/api/v1/auth/login", 64 * 1024),
        ("/api/v1/agents/local", 2 * MIB),
        ("/nowhere", 64 * 1024),
    ):
        mine = f"Authorization: Bearer {person.access_token}"
        status, headers, body = await answer_to_headers(web_on, path, mine, f"Content-Length: {200 * MIB}")
        assert (status, json.loads(body)["code"]) == (413, "too_large"), path
        assert str(most) in json.loads(body)["message"]
        assert headers["cache-control"] == "no-store"
        assert headers["connection"] == "close"
        assert headers["x-request-id"]


@both_servers
async def test_unknown_credentials_are_answered_before_the_body(web_on: str, person: Person) -> None:
    for credential in ("X-Nothing: here", "Authorization: Bearer no.token.ofours", "Authorization: Bearer "):
        status, headers, body = await answer_to_headers(
            web_on, "/api/v1/agents/local", credential, "Content-Length: 1000"
        )
        assert (status, json.loads(body)["code"]) == (401, "not_authenticated")
        assert headers["www-authenticate"] == "Bearer"


async def test_the_token_of_an_ended_session_is_answered_before_a_large_body(
    web: str, person: Person
) -> None:
    claims = await db.run(services.authenticate, access_token=person.access_token)
    await db.run(services.logout, session=claims)
    mine = f"Authorization: Bearer {person.access_token}"
    status, _, body = await answer_to_headers(web, "/api/v1/agents/local", mine, f"Content-Length: {MIB}")
    assert (status, json.loads(body)["code"]) == (401, "not_authenticated")


async def test_a_cookie_that_nobody_gave_out_is_answered_before_a_large_body(web: str) -> None:
    cookie = "Cookie: sessionid=" + "a" * 32
    length = "Transfer-Encoding: chunked"
    status, _, body = await answer_to_headers(web, "/api/v1/agents/local", cookie, length)
    assert (status, json.loads(body)["code"]) == (401, "not_authenticated")


@both_servers
async def test_chunked_bodies_are_counted(web_on: str, person: Person) -> None:
    async def pieces(count: int) -> AsyncIterator[bytes]:
        yield b'{"message": "'
        for _ in range(count):
            yield b"x" * 16 * 1024
        yield b'"}'

    async with httpx.AsyncClient(base_url=f"{web_on}/api/v1", timeout=20) as client:
        headers = {"Content-Type": "application/json"}
        sent = await client.post("/auth/login", content=pieces(8), headers=headers)
        assert (sent.status_code, sent.json()["code"]) == (413, "too_large")
        sent = await client.post("/auth/login", content=pieces(1), headers=headers)
        assert sent.status_code == 400  # read, and refused for what it says
        headers["Authorization"] = f"Bearer {person.access_token}"
        sent = await client.post("/agents/local", content=pieces(8), headers=headers)
        assert sent.status_code == 400
        sent = await client.post("/agents/local", content=pieces(200), headers=headers)
        assert (sent.status_code, sent.json()["code"]) == (413, "too_large")


@both_servers
async def test_whoever_sends_all_of_a_large_body_sees_why_it_was_refused(web_on: str) -> None:
    async with httpx.AsyncClient(base_url=f"{web_on}/api/v1", timeout=20) as client:
        sent = await client.post(
            "/auth/login", content=b"x" * 30 * MIB, headers={"Content-Type": "application/json"}
        )
        assert sent.status_code == 413


async def test_a_sender_that_falls_silent_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_guard, "SILENCE_S", 0.05)
    monkeypatch.setattr(body_guard, "LINGER_S", 0.05)
    sent: list[dict[str, object]] = []
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}])

    async def receive() -> dict[str, object]:
        if message := next(messages, None):
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    async def application(scope: object, receive: body_guard.Receive, send: body_guard.Send) -> None:
        while (await receive())["more_body"]:
            pass

    scope = {"path": "/api/v1/auth/login", "headers": [(b"Content-Length", b"10")]}
    await body_guard.BodyGuard(application)(scope, receive, send)
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["code"] == "body_timeout"  # type: ignore[arg-type]


@both_servers
async def test_a_hundred_slow_senders_do_not_slow_a_neighbour(web_on: str, person: Person) -> None:
    address = urlsplit(web_on)
    head = (
        f"POST /api/v1/auth/login HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        "Content-Length: 60000\r\n\r\n{"
    )
    slow = []
    for _ in range(100):
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(head.encode())
        slow.append(writer)
    took = []
    async with httpx.AsyncClient(base_url=f"{web_on}/api/v1", timeout=20) as client:
        client.headers["Authorization"] = f"Bearer {person.access_token}"
        for _ in range(100):
            for writer in slow[::10]:
                writer.write(b" ")
            started = time.perf_counter()
            assert (await client.get("/auth/me")).status_code == 200
            took.append(time.perf_counter() - started)
    for writer in slow:
        writer.close()
    # 85 to 130 ms were measured for the slowest of a hundred; other tests use the machine at the same time.
    assert sorted(took)[90] < 1.0
