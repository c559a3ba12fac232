"""Each request is one visit to a thread that is kept."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from functools import cache
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings as django_settings
from django.core import signals
from django.db import connection
from django.dispatch import Signal
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path

from adiuva.http_handler import ThreadedHandler
from tests.factories import somebody

_waiting = threading.Event()
_ended: list[str] = []


def wait_for_ever(request: HttpRequest) -> HttpResponse:
    @async_to_sync
    async def wait() -> None:
        _waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            _ended.append("cancelled")
            raise

    wait()
    return HttpResponse("never")


def thread_of_loop(request: HttpRequest) -> HttpResponse:
    @async_to_sync
    async def name() -> str:
        return threading.current_thread().name

    return HttpResponse(f"{threading.current_thread().name} {name()}")


def stream(request: HttpRequest) -> StreamingHttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")

    async def parts() -> AsyncIterator[bytes]:
        for part in (b"one ", b"two"):
            yield part
            await asyncio.sleep(0)

    return StreamingHttpResponse(parts())


def fail(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("as it may")


urlpatterns = [path(view.__name__, view) for view in (wait_for_ever, thread_of_loop, stream, fail)]


async def ask(where: str, *, leaves: asyncio.Event | None = None, token: str = "") -> tuple[int, bytes]:
    """Status and body; (0, b"") if the client left before there was one."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": where,
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {token}".encode())],
    }
    messages: list[dict[str, Any]] = []
    answered, asked = asyncio.Event(), iter([{"type": "http.request", "body": b""}])

    async def receive() -> dict[str, Any]:
        for message in asked:
            return message
        await (leaves or answered).wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            answered.set()

    await asyncio.wait_for(_handler()(scope, receive, send), 20)
    status = next((each["status"] for each in messages if "status" in each), 0)
    return status, b"".join(each.get("body", b"") for each in messages)


@cache
def _handler() -> ThreadedHandler:
    return ThreadedHandler()


@pytest.fixture
def views_of_tests(settings: Any) -> None:
    settings.ROOT_URLCONF = __name__


async def test_requests_keep_their_thread_and_no_connection(
    committed_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await asyncio.to_thread(lambda: somebody().access_token)
    assert (await ask("/api/v1/auth/me", token=token))[0] == 200
    started: list[str] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: (started.append(self.name), start(self))[1])
    for _ in range(2 * django_settings.DATABASES["default"]["OPTIONS"]["pool"]["max_size"]):
        assert (await ask("/api/v1/auth/me", token=token))[0] == 200
    assert len(started) <= 3  # the pool adds one where the last answer came before its thread was free again


async def test_what_is_asynchronous_in_a_view_runs_on_the_servers_loop(
    committed_db: str, views_of_tests: None
) -> None:
    status, body = await ask("/thread_of_loop")
    thread, loop = body.decode().split(" ", 1)
    assert (status, thread.startswith("http"), loop) == (200, True, threading.current_thread().name)


async def test_a_client_that_leaves_ends_what_its_view_waits_for(
    committed_db: str, views_of_tests: None
) -> None:
    _ended.clear(), _waiting.clear()
    leaves = asyncio.Event()
    asking = asyncio.create_task(ask("/wait_for_ever", leaves=leaves))
    assert await asyncio.to_thread(_waiting.wait, 10)
    leaves.set()
    assert await asking == (0, b"")
    assert _ended == ["cancelled"]


async def test_streams_come_whole_and_hold_no_connection(committed_db: str, views_of_tests: None) -> None:
    for _ in range(2 * django_settings.DATABASES["default"]["OPTIONS"]["pool"]["max_size"]):
        assert await ask("/stream") == (200, b"one two")


async def test_a_view_that_fails_is_answered(committed_db: str, views_of_tests: None) -> None:
    assert (await ask("/fail"))[0] == 500
    assert (await ask("/nowhere"))[0] == 404


async def test_receivers_of_djangos_signals_hear_of_each_request(
    committed_db: str, views_of_tests: None
) -> None:
    heard: list[str] = []

    def hear(signal: Signal, **_: object) -> None:
        heard.append("started" if signal is signals.request_started else "finished")

    for signal in (signals.request_started, signals.request_finished):
        signal.connect(hear)
    try:
        for where in ("/stream", "/fail"):
            await ask(where)
    finally:
        for signal in (signals.request_started, signals.request_finished):
            signal.disconnect(hear)
    assert heard == ["started", "finished"] * 2
