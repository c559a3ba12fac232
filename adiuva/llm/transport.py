"""HTTP to a model's endpoint: connections and concurrency limits per event loop, bounded answers, our errors."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeVar
from uuid import UUID

import aiohttp
import orjson
import structlog
from django.conf import settings
from yarl import URL

from adiuva.core.errors import Text
from adiuva.core.fair_limit import FairLimit
from adiuva.core.http import BodyTooLarge, backoff_s, read_bounded
from adiuva.core.per_loop import PerLoop
from adiuva.llm import errors
from adiuva.llm.concurrency import AdaptiveLimit
from adiuva.llm.http_request import PreparedRequest, Response
from adiuva.llm.openai_format import loads
from adiuva.llm.streamed_body import Body, ReadBody, StreamedBody, StreamingConnector, StreamingProtocol

MAX_ANSWER_BYTES = 32 * 1024 * 1024
MAX_ERROR_BODY_BYTES = 64 * 1024
MAX_LOOK_UP_BYTES = 4 * 1024 * 1024
_LOOK_UP_TIMEOUT_S = 3.0
MAX_ATTEMPTS = 3
FIRST_BACKOFF_S = 0.5
# A longer Retry-After is raised to the caller instead of waited for.
MAX_RETRY_AFTER_S = 60.0

# The user for whom the running task asks, so that one user's calls leave room for the others'. None: for nobody in
# particular.
caller: ContextVar[UUID | None] = ContextVar("caller", default=None)

T = TypeVar("T")
log = structlog.get_logger(__name__)


class _Connections:
    """HTTP connections of one event loop, and its concurrency limits by endpoint."""

    def __init__(self) -> None:
        self.limits: dict[str, AdaptiveLimit] = {}
        self.streams: dict[str, FairLimit] = {}
        self._connector: StreamingConnector | None = None

    @property
    def connector(self) -> StreamingConnector:
        if self._connector is None or self._connector.closed:
            self._connector = StreamingConnector(limit=0, keepalive_timeout=30, ttl_dns_cache=300)
        return self._connector

    async def aclose(self) -> None:
        await asyncio.gather(*(limit.aclose() for limit in self.limits.values()))
        if self._connector is not None:
            await self._connector.close()


_connections = PerLoop(_Connections)


def connector() -> StreamingConnector:
    """Return the running event loop's HTTP connections."""
    return _connections.get().connector


def concurrency_limit(endpoint: str) -> AdaptiveLimit:
    """Return the limit of this event loop's whole answers from an endpoint."""
    limits = _connections.get().limits
    if endpoint not in limits:
        limits[endpoint] = AdaptiveLimit(endpoint)
    return limits[endpoint]


def stream_limit(endpoint: str) -> FairLimit:
    """Return the limit of this loop's streams from an endpoint. People wait for them, so they do not queue behind
    runs."""
    streams = _connections.get().streams
    if endpoint not in streams:
        streams[endpoint] = FairLimit(settings.MODEL_STREAMS)
    return streams[endpoint]


async def aclose() -> None:
    if (connections := _connections.pop()) is not None:
        await connections.aclose()


async def pause_before_retry(error: errors.ModelError, tried: int, model: str) -> None:
    """Wait for Retry-After, or else with backoff and jitter. Raises the error if it must not be retried."""
    waited_long = isinstance(error, (errors.ModelTimeout, errors.ModelUnreachable))
    if not error.transient or waited_long or tried >= MAX_ATTEMPTS:
        raise error
    if error.retry_after is not None and error.retry_after > MAX_RETRY_AFTER_S:
        raise error
    seconds = backoff_s(tried, first_s=FIRST_BACKOFF_S, longest_s=MAX_RETRY_AFTER_S)
    if error.retry_after is not None:
        seconds = error.retry_after + random.uniform(0, 0.1)
    log.info("model.retry", model=model, code=error.code, tried=tried, pause_s=round(seconds, 2))
    await asyncio.sleep(seconds)


async def with_retries(model: str, endpoint: str, attempt: Callable[[Callable[[], None]], Awaitable[T]]) -> T:
    """Return the result of the first successful attempt. An attempt calls its argument when the answer begins.

    The concurrency limit is held during attempts, not during pauses.
    """
    tried = 0
    while True:
        try:
            async with concurrency_limit(endpoint).slot(caller.get()) as began:
                return await attempt(began)
        except errors.ModelError as error:
            failure = error
        tried += 1
        await pause_before_retry(failure, tried, model)


class Endpoint:
    """OpenAI-compatible address and its key, which is put into one header and nowhere else."""

    def __init__(self, api_base: str, api_key: str) -> None:
        try:
            url = URL(api_base)
        except ValueError:
            url = URL()
        if url.scheme not in {"http", "https"} or not url.host or url.user or url.password:
            raise errors.ModelNotConfigured("the model's api_base is not a plain http or https address")
        self._base = url
        self.name = str(url.with_query(None)).rstrip("/")
        self._prepared: dict[str, PreparedRequest] = {}
        self._headers = {"User-Agent": "adiuva", "Accept": "*/*", "Accept-Encoding": "identity"}
        self._headers["Content-Type"] = "application/json"
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        try:
            PreparedRequest("GET", url, self._headers)
        except ValueError:
            raise errors.ModelNotConfigured("the model's api_key holds control characters") from None

    @property
    def host(self) -> str:
        return self._base.host or ""

    async def post_json(self, path: str, body: dict[str, Any]) -> Any:
        """POST a body; return the JSON of the answer."""
        try:
            async with asyncio.timeout(settings.MODEL_TIMEOUT_S), self.post(path, body) as response:
                return await _json(response)
        except TimeoutError as error:
            raise _model_error(error) from None

    async def look_up(self, path: str) -> Any:
        """GET a path beside the model's. Returns its JSON, or None if the endpoint lacks it or answers slowly."""
        url = self._base.joinpath("") / path if not path.startswith("../") else self._base.parent / path[3:]
        try:
            async with asyncio.timeout(_LOOK_UP_TIMEOUT_S):
                response = await PreparedRequest("GET", url, self._headers).send(connector())
                try:
                    if response.status != 200:
                        return None
                    return loads(await read_bounded(chunks(response), MAX_LOOK_UP_BYTES))
                finally:
                    response.release()
        except (aiohttp.ClientError, errors.ModelGarbled, TimeoutError, ValueError, BodyTooLarge) as error:
            log.info("model.look_up_failed", endpoint=self.name, path=path, error=type(error).__name__)
            return None

    @asynccontextmanager
    async def post(
        self, path: str, body: dict[str, Any], *, silence_s: float | None = None
    ) -> AsyncIterator[Response]:
        """POST a body; the context is a successful answer with its body unread. Raises ModelTimeout after `silence_s`
        without a byte.

        Leaving the context early closes the connection at once.
        """
        if (request := self._prepared.get(path)) is None:
            url = self._base.joinpath(path).with_query(self._base.query)
            request = self._prepared[path] = PreparedRequest("POST", url, self._headers)
        try:
            response = await request.send(connector(), orjson.dumps(body), silence_s=silence_s)
            try:
                if response.status != 200:
                    raise await _error_of(response)
                yield response
            finally:
                response.release()
        except (aiohttp.ClientError, TimeoutError) as error:
            # Not `from error`, because the errors of aiohttp can hold more than may be logged.
            raise _model_error(error) from None


async def chunks(response: Response, silence_s: float | None = None) -> AsyncGenerator[bytes, None]:
    """Yield the body as it is read from the socket. Raises TimeoutError when nothing arrives for `silence_s`."""
    # A short answer is there as a whole.
    is_whole = response.content.is_eof()
    watch = None if silence_s is None or is_whole else _SilenceTimer(response, silence_s)
    size = 0
    try:
        while piece := await (watch or response.content).readany():
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise errors.ModelGarbled("the model's answer is too long")
            yield piece
    finally:
        if watch is not None:
            watch.end()


@asynccontextmanager
async def streamed_body(response: Response, silence_s: float) -> AsyncIterator[Body]:
    """Return the body of an answer that is shown as it comes.

    Its readers get TimeoutError when nothing arrives for `silence_s`.
    """
    protocol, headers = response.protocol, response.headers
    is_plain = headers.get("Transfer-Encoding", "").lower() == "chunked" and "Content-Encoding" not in headers
    if is_plain and isinstance(protocol, StreamingProtocol):
        body = StreamedBody(protocol, response.content, silence_s=silence_s, max_bytes=MAX_ANSWER_BYTES)
        try:
            if body.begin():
                yield body
                return
        finally:
            body.close()
    async with aclosing(chunks(response, silence_s)) as pieces:
        yield ReadBody(pieces, response.content)


class _SilenceTimer:
    """Timer that ends the wait for a silent stream. aiohttp's sock_read would start one timer per read."""

    def __init__(self, response: Response, silence_s: float) -> None:
        self._content, self._quiet_s = response.content, silence_s
        response.protocol.read_timeout = None
        self._loop = asyncio.get_running_loop()
        self._waiting_since: float | None = None
        self._timer = self._loop.call_later(silence_s, self._check)

    async def readany(self) -> bytes:
        self._waiting_since = self._loop.time()
        try:
            return await self._content.readany()
        finally:
            self._waiting_since = None

    def _check(self) -> None:
        now = self._loop.time()
        due = (self._waiting_since or now) + self._quiet_s
        if due > now:
            self._timer = self._loop.call_at(due, self._check)
        else:
            self._content.set_exception(aiohttp.SocketTimeoutError("the model has stopped sending"))

    def end(self) -> None:
        self._timer.cancel()


async def _json(response: Response) -> Any:
    try:
        return loads(b"".join([piece async for piece in chunks(response)]))
    except ValueError:
        raise errors.ModelGarbled(
            "the model's address answers, but not with JSON: check the api_base"
        ) from None


async def _error_of(response: Response) -> errors.ModelError:
    raw, body = b"", None
    try:
        raw = await read_bounded(chunks(response), MAX_ERROR_BODY_BYTES)
        body = loads(raw)
    except BodyTooLarge as large:
        raw = large.head
    except (aiohttp.ClientError, TimeoutError, ValueError):
        pass  # the status is sufficient
    return errors.from_status(response.status, body, response.headers, text=raw.decode("utf-8", "replace"))


def _model_error(error: Exception) -> errors.ModelError:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return errors.ModelUnreachable("the model cannot be reached: no connection to its address")
    if isinstance(error, TimeoutError):
        return errors.ModelTimeout("the model did not answer in time")
    if isinstance(error, aiohttp.ClientPayloadError):
        return errors.ModelInterrupted("the model's answer broke off")
    if isinstance(error, aiohttp.ClientSSLError):
        return errors.ModelRejected("no secure connection to the model: its certificate is not trusted")
    if isinstance(error, aiohttp.ClientConnectorError):
        return errors.ModelUnavailable("the model cannot be reached: no connection to its address")
    return errors.ModelUnavailable(
        Text("the connection to the model broke ({reason})", reason=type(error).__name__)
    )
