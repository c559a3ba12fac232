"""Middleware that takes large bodies from the network before Django, which would store them first.

A view class names those of its methods that take bodies so (`body_streams`, see adiuva.object_store.bodies). The
headers of such a request authenticate it, or refuse it. Then its body is read as fast as it can be stored: while a
piece is written nothing is received, so the server's own buffer fills, and the sender waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
import structlog
from django.http.request import HttpHeaders
from django.urls import Resolver404, resolve

from adiuva import body_guard
from adiuva.accounts import services
from adiuva.body_guard import Receive, Send
from adiuva.core import origins
from adiuva.core.errors import AdiuvaError, NotAuthenticated
from adiuva.core.logging import log_failure
from adiuva.core.outages import as_unavailable
from adiuva.core.security_headers import SECURITY_HEADERS
from adiuva.object_store import threads
from adiuva.object_store.bodies import WRITE_BYTES, Begin, Body, BodyResponse, Request, TooSlow

IDLE_S: Final = 60.0

log = structlog.get_logger(__name__)


class Failed(AdiuvaError):
    code, status = "internal", 500

    def __init__(self) -> None:
        super().__init__("something went wrong on the server; it was logged")


class Disconnected(Exception):
    """Error for a client that went away while its body came."""


def stream_of(method: str, path: str) -> tuple[Begin, dict[str, Any]] | None:
    """Return what takes the body of such a request, and the values of its path; None if Django takes it."""
    if method not in ("PUT", "PATCH", "POST"):
        return None
    try:
        match = resolve(path)
    except Resolver404:
        return None
    streams = getattr(getattr(match.func, "cls", None), "body_streams", {})
    begin = streams.get(method)
    return (begin, match.kwargs) if begin is not None else None


class BodyStreams:
    """ASGI middleware for streamed bodies. Others pass untouched, also those of a browser's session."""

    def __init__(self, application: Callable[[Any, Receive, Send], Awaitable[None]]) -> None:
        self._application = application

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        found = stream_of(scope["method"], scope["path"])
        headers = body_guard.header_map(scope["headers"])
        if found is None or not _is_ours(headers):
            await self._application(scope, receive, send)
            return
        began = time.perf_counter()
        status, user_id = 500, None
        try:
            request = await threads.run(_authenticated, headers, found[1])
            user_id = request.user_id
            answer = await _take(found[0], request, receive)
            status = answer.status
            await _answer(answer, headers, send)
        except Disconnected:
            status = 499  # as nginx logs it
        except AdiuvaError as error:
            status = error.status
            await body_guard.refuse(error, headers, receive, send)
        except Exception as error:
            log_failure("body.failed", error)
            told = as_unavailable(error) or Failed()
            status = told.status
            await body_guard.refuse(told, headers, receive, send)
        finally:
            log.info(
                "body.received",
                method=scope["method"],
                status=status,
                ms=round((time.perf_counter() - began) * 1000, 1),
                user_id=str(user_id) if user_id else None,
            )


def _is_ours(headers: dict[bytes, bytes]) -> bool:
    """Return whether we take this request. Django checks a browser's session, with its CSRF token."""
    is_browser = b"authorization" not in headers and body_guard.browser_session_key(headers)
    return body_guard.has_body(headers) and not is_browser


def _authenticated(headers: dict[bytes, bytes], parameters: dict[str, Any]) -> Request:
    """Return the user of the request. Raises NotAuthenticated."""
    token = body_guard.bearer_token(headers)
    if token is None:
        raise NotAuthenticated("sign in first")
    session = services.authenticate(access_token=token)
    environment = {
        _wsgi_name(name): value.decode("latin-1").strip()
        for name, value in headers.items()
        if b"_" not in name
    }
    return Request(session.user_id, session.user.tier, parameters, HttpHeaders(environment))


def _wsgi_name(name: bytes) -> str:
    found = name.decode("latin-1").upper().replace("-", "_")
    return found if found in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{found}"


async def _take(begin: Begin, request: Request, receive: Receive) -> BodyResponse:
    body = await threads.run(begin, request)
    try:
        await _feed(body, receive)
        return await threads.run(body.end)
    except BaseException as error:
        # Shielded, because a server that stops cancels this, and the bytes that came should be kept.
        given = None if isinstance(error, Disconnected | asyncio.CancelledError) else error
        await asyncio.shield(threads.run(_break_off, body, given))
        raise


def _break_off(body: Body, error: BaseException | None) -> None:
    try:
        body.break_off(error)
    except Exception as failure:  # the client is told the first error
        log_failure("body.not_broken_off", failure, level="warning")


async def _feed(body: Body, receive: Receive) -> None:
    """Feed the body to its stream. Raises TooSlow, Disconnected, or the error of a stream that refuses the bytes."""
    pending: list[bytes] = []
    size, more = 0, True
    while more:
        try:
            async with asyncio.timeout(IDLE_S):
                message = await receive()
        except TimeoutError:
            message = None
        if message is not None and message["type"] == "http.request":
            if data := message.get("body", b""):
                pending.append(data)
                size += len(data)
            more = message.get("more_body", False)
        ended = message is None or message["type"] != "http.request"
        if size >= WRITE_BYTES or (size and (ended or not more)):
            await threads.run(body.write, b"".join(pending))
            pending.clear()
            size = 0
        if message is None:
            raise TooSlow(round(IDLE_S))
        if ended:
            raise Disconnected


async def _answer(answer: BodyResponse, headers: dict[bytes, bytes], send: Send) -> None:
    body = orjson.dumps(answer.body) if answer.body is not None else b""
    origin, host = (headers.get(name, b"").decode("latin-1") for name in (b"origin", b"host"))
    request_id = headers.get(b"x-request-id", b"").decode("latin-1")
    given = {
        **SECURITY_HEADERS,
        **origins.cors_headers(origin, host),
        **answer.headers,
        "Cache-Control": "no-store",
        "X-Request-ID": request_id if body_guard.is_request_id(request_id) else uuid.uuid4().hex,
    }
    if body:
        given |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    pairs = [(name.lower().encode(), value.encode()) for name, value in given.items()]
    with contextlib.suppress(OSError):
        await send({"type": "http.response.start", "status": answer.status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})
