"""Guard that refuses request bodies before they are read: too large, from unknown senders, or silent for too long.

Django reads a whole body, to a file if it is large, before it looks at the path or at the credentials. So a request
with a body passes here first. The headers alone decide: a view's bound (`max_body_bytes`) applies to a bearer token of
ours, a small bound to everybody else, and paths that need sign-in take no body from unknown senders. A page with a form
for files has a bound of its own (`max_form_bytes`) for users who are signed in in a browser.

Behind uvicorn, BodyGuard wraps the ASGI application. daphne calls an application only once it has the whole body, so
adiuva.daphne_server asks `check_headers` itself when the headers have arrived; for forms with files, which the headers
alone do not decide, it does not wait for the body (`takes_files`).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final
from urllib.parse import unquote

import orjson
import structlog
from django.conf import settings
from django.contrib.sessions.models import Session as BrowserSession
from django.db import DatabaseError
from django.template.loader import render_to_string
from django.urls import Resolver404, resolve
from django.utils import timezone
from django.utils.translation import gettext
from rest_framework.permissions import AllowAny

from adiuva.accounts import services, tokens
from adiuva.core import db, metrics, origins
from adiuva.core.errors import AdiuvaError, NotAuthenticated, Text
from adiuva.core.language import body_of, sentence, speaking_by_header
from adiuva.core.logging import log_failure
from adiuva.core.rest import TooLarge
from adiuva.core.security_headers import SECURITY_HEADERS

# Bound without a bearer token of ours: sign-in, the forms of the admin and of the browsable API, and whatever strangers
# send.
MAX_STRANGER_BYTES: Final = 64 * 1024
# How long a sender may be silent before its body is complete.
SILENCE_S: Final = 30.0
# How long we read and discard what a refused sender still sends, so that it sees the answer and not a reset.
LINGER_S: Final = 2.0
# We read this much where the credentials are not ours; then nothing more, until the connection is closed.
LINGER_BYTES: Final = 768 * 1024  # at most 2 MiB are read, with what a server process already holds
# We read this much where there are no credentials, as at sign-in, and keep nothing of it. The answer is sent first. But
# clients that send the whole body before they read (urllib, those on asyncio) see a reset if we read less.
LINGER_BYTES_WITHOUT_CREDENTIALS: Final = 32 * 1024 * 1024

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{8,64}")

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

log = structlog.get_logger(__name__)


class BodyTimeout(AdiuvaError):
    code, status = "body_timeout", 408

    def __init__(self) -> None:
        super().__init__(Text("nothing of the body arrived for {seconds} s", seconds=round(SILENCE_S)))


def is_request_id(given: str) -> bool:
    """Return whether a client's X-Request-ID may stand in logs."""
    return _REQUEST_ID.fullmatch(given.encode("latin-1", "replace")) is not None


def has_body(headers: Mapping[bytes, bytes]) -> bool:
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0").strip(b"0 ") != b""


def check_headers(path: str, headers: Mapping[bytes, bytes]) -> int:
    """Return how many bytes this request's body may have. `headers` has lower-case names.

    Raises NotAuthenticated if the path needs sign-in and there is no credential, or a token that is not ours; TooLarge
    if the declared length is above the bound.
    """
    allowed = _bound_of(path)
    bound = allowed.most
    if not allowed.is_open:
        token = bearer_token(headers)
        if token is not None:
            tokens.verify(token, "access")
        elif browser_session_key(headers):
            bound = min(bound, MAX_STRANGER_BYTES)
        else:
            raise NotAuthenticated("sign in first")
    elif allowed.of_form is not None and browser_session_key(headers):
        bound = allowed.of_form
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared[:20]) > bound:
        raise too_large(bound)
    return bound


async def check_session(path: str, headers: Mapping[bytes, bytes]) -> None:
    """Ask the database whether the session of the credentials is live. Raises NotAuthenticated."""
    allowed = _bound_of(path)
    if allowed.is_open and allowed.of_form is None:
        return
    token = None if allowed.is_open else bearer_token(headers)
    key = browser_session_key(headers)
    try:
        if token is not None:
            await db.run(services.authenticate, access_token=token)
        elif not await db.run(_is_live_in_browser, key):
            raise NotAuthenticated("the session is over: sign in again")
    except DatabaseError as error:  # the view reports it, as it does for requests without a body
        log_failure("request.session_unchecked", error, level="warning")


def too_large(bound: int) -> TooLarge:
    return TooLarge(Text("the body of this request may have at most {most} bytes", most=bound))


def takes_files(path: str) -> bool:
    """Return whether the path has a page with a form for files."""
    return _bound_of(path).of_form is not None


@dataclass(frozen=True, slots=True)
class _Bound:
    """Bounds for a path: the largest body, the largest form with files, and whether strangers may send a body."""

    most: int
    is_open: bool
    of_form: int | None = None


def _bound_of(path: str) -> _Bound:
    try:
        match = resolve(path)
    except Resolver404:
        return _Bound(MAX_STRANGER_BYTES, is_open=True)
    view = getattr(match.func, "cls", None) or getattr(match.func, "view_class", None)
    options = getattr(match.func, "initkwargs", {})
    permissions = options.get("permission_classes", getattr(view, "permission_classes", None))
    is_open = permissions is None or AllowAny in permissions  # not a REST view: it checks its callers itself
    default = MAX_STRANGER_BYTES if is_open else settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    most = getattr(view, "max_body_bytes", default)
    return _Bound(most, is_open, getattr(view, "max_form_bytes", None))


def bearer_token(headers: Mapping[bytes, bytes]) -> str | None:
    scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def browser_session_key(headers: Mapping[bytes, bytes]) -> str:
    """Return the key of the session cookie; empty if there is none."""
    with contextlib.suppress(CookieError):
        cookies = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1"))
        if found := cookies.get(settings.SESSION_COOKIE_NAME):
            return found.value[:100]
    return ""


def _is_live_in_browser(key: str) -> bool:
    return BrowserSession.objects.filter(session_key=key, expire_date__gt=timezone.now()).exists()


def refusal(
    error: AdiuvaError, headers: Mapping[bytes, bytes]
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers and body of the answer, which closes the connection. Logs it, as no middleware does."""
    given = headers.get(b"x-request-id", b"")
    request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()
    metrics.count_error("rest", error.code)
    log.info("request.refused", request_id=request_id.decode(), status=error.status, code=error.code)
    is_browser = b"text/html" in headers.get(b"accept", b"")
    with speaking_by_header(headers.get(b"accept-language", b"").decode("latin-1")):
        body = _page(error) if is_browser else orjson.dumps(body_of(error))
    extra = [(b"www-authenticate", b"Bearer")] if error.status == 401 else []
    if "retry_after_s" in error.extra:
        extra.append((b"retry-after", str(error.extra["retry_after_s"]).encode()))
    origin, host = (headers.get(name, b"").decode("latin-1") for name in (b"origin", b"host"))
    to_page = origins.cors_headers(origin, host)
    return (
        error.status,
        [
            (b"content-type", b"text/html; charset=utf-8" if is_browser else b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),
            (b"x-request-id", request_id),
            *(
                (name.lower().encode(), value.encode())
                for name, value in (SECURITY_HEADERS | to_page).items()
            ),
            *extra,
        ],
        body,
    )


def _page(error: AdiuvaError) -> bytes:
    again = gettext("Go back, load the page again, and try once more.")
    problem = gettext("Go back and choose something smaller.") if isinstance(error, TooLarge) else again
    title = sentence(error.message).rstrip(".")
    return render_to_string("error.html", {"title": title, "problem": problem}).encode()


class BodyGuard:
    """ASGI middleware that guards bodies. Requests without a body pass untouched."""

    def __init__(self, application: Callable[[Any, Receive, Send], Awaitable[None]]) -> None:
        self._application = application

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        headers = header_map(scope["headers"])
        if not has_body(headers):
            await self._application(scope, receive, send)
            return
        if b"transfer-encoding" in headers and b"content-length" in headers:
            await _refuse_unclear_end(send)
            return
        started = False

        async def send_and_see(message: dict[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            bound = check_headers(scope["path"], headers)
            length = headers.get(b"content-length", b"")
            if not length.isdigit() or int(length[:20]) > MAX_STRANGER_BYTES:
                await check_session(scope["path"], headers)
            await self._application(scope, _bounded(receive, bound), send_and_see)
        except _REFUSALS as error:
            if started:
                raise
            await refuse(error, headers, receive, send)


async def _refuse_unclear_end(send: Send) -> None:
    """Refuse a body with both a length and chunks, in the way the server refuses a malformed request. A proxy that goes
    by the length would see other requests on this connection than we do (RFC 9112, 6.1)."""
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": b"Invalid HTTP request received."})


_REFUSALS: Final = (NotAuthenticated, TooLarge, BodyTimeout)


def _bounded(receive: Receive, bound: int) -> Receive:
    """Return a `receive` that counts the body's bytes, and does not wait for ever for the next ones."""
    read, complete = 0, False

    async def receive_bounded() -> Any:
        nonlocal read, complete
        if complete:
            return await receive()  # the sender's disconnection, which may take as long as the answer
        try:
            async with asyncio.timeout(SILENCE_S):
                message = await receive()
        except TimeoutError:
            raise BodyTimeout from None
        if message["type"] == "http.request":
            read += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if read > bound:
                raise too_large(bound)
        return message

    return receive_bounded


async def refuse(error: AdiuvaError, headers: Mapping[bytes, bytes], receive: Receive, send: Send) -> None:
    """Answer before the body was read, and close. A client that reads while it sends sees the reason."""
    status, answer_headers, body = refusal(error, headers)
    most = most_lingering(error, headers)
    await send({"type": "http.response.start", "status": status, "headers": answer_headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            read = 0
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                read += len(message.get("body", b""))
                if most is not None and read >= most:
                    await asyncio.sleep(LINGER_S)
    await send({"type": "http.response.body"})


def most_lingering(error: AdiuvaError, headers: Mapping[bytes, bytes]) -> int | None:
    """Return how many bytes of a refused body are read after the answer; None for as many as come in time."""
    if isinstance(error, NotAuthenticated):
        return LINGER_BYTES
    if (token := bearer_token(headers)) is None:
        return LINGER_BYTES_WITHOUT_CREDENTIALS
    try:
        tokens.verify(token, "access")
    except NotAuthenticated:
        return LINGER_BYTES
    return None


def decoded_path(target: bytes) -> str:
    """Return the path of a request line's target, as ASGI's scope has it."""
    return unquote(target.partition(b"?")[0].decode("latin-1"))


def header_map(pairs: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return headers by lower-case name. If a header occurs twice, the first counts."""
    found: dict[bytes, bytes] = {}
    for name, value in pairs:
        found.setdefault(name.lower(), value)
    return found
