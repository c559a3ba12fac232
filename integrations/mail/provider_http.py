"""HTTP client of a provider's API: one host, limited concurrency, bounded answers, and retries that end."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self
from uuid import UUID

import httpx
import orjson
import structlog
from django.conf import settings

from adiuva.core.errors import Text
from adiuva.core.http import BodyTooLarge, backoff_s, is_transient, read_bounded, retry_after_s
from integrations import egress
from integrations.errors import ForbiddenHost, NeedsReauth, ProviderUnavailable
from integrations.mail.errors import (
    InvalidResponse,
    ProviderRefused,
    ProviderThrottled,
    ProviderUnstable,
    ResourceGone,
    ResponseTooLarge,
)
from integrations.mail.mailbox_limiter import MAX_WAIT_S, MailboxLimiter, limiter_of
from integrations.mail.mailbox_types import TokenSource
from integrations.models import Provider

# Room for a text of 16 MB in Gmail's encoding.
MAX_ANSWER_BYTES: Final = 24 * 1024 * 1024
_MAX_ERROR_BODY_BYTES: Final = 64 * 1024
# Larger answers are parsed in a thread, off the event loop.
_LARGE_BYTES: Final = 256 * 1024
_MAX_ATTEMPTS: Final = 5
# After this many retries in one sync the provider counts as unstable.
_MAX_RETRIES_PER_SYNC: Final = 100
_CONNECT_TIMEOUT_S: Final = 10.0
_MAX_BACKOFF_S: Final = 20.0
# A token is requested again after this time, so that reading stops soon after the account is disconnected.
_TOKEN_REUSE_S: Final = 5.0
# Reasons with which Google answers 403 where others answer 429.
_THROTTLING_REASONS: Final = frozenset(
    {
        "rateLimitExceeded",
        "userRateLimitExceeded",
        "dailyLimitExceeded",
        "quotaExceeded",
        "RATE_LIMIT_EXCEEDED",
    }
)
_REASON: Final = re.compile(r"[A-Za-z0-9_.-]{1,80}")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class MailboxAccount:
    """The mailbox to read and the connection to read it with. Clients of the same `mailbox` share its limiter."""

    connection: UUID
    mailbox: str
    token: TokenSource


@dataclass(frozen=True)
class Timeouts:
    """The time that an answer may take, and the pause before the first retry; later pauses are longer."""

    response_s: float = 60.0
    first_backoff_s: float = 0.5


class _AttemptFailed(Exception):
    """A failed attempt that may be retried: after a pause, or after `seconds` if the provider named a time."""

    def __init__(self, why: str, seconds: float | None = None, *, throttled: bool = False) -> None:
        super().__init__(why)
        self.why, self.seconds, self.throttled = why, seconds, throttled


def api_base(provider: Provider) -> str:
    """Return the base URL of a provider's API."""
    configured = settings.GOOGLE if provider is Provider.GMAIL else settings.MICROSOFT
    return str(configured["api"]).rstrip("/")


class ProviderClient:
    """Requests to one provider for one account. `answered` counts usable answers."""

    def __init__(self, provider: Provider, account: MailboxAccount, timeouts: Timeouts) -> None:
        self.provider, self.base = provider.label, api_base(provider)
        self.answered = 0
        self._origin = _origin(httpx.URL(self.base))
        self._account, self._timeouts = account, timeouts
        self._limiter: MailboxLimiter = limiter_of(provider.label, account.mailbox)
        self._retries = 0
        self._access, self._access_until = "", 0.0
        self._token_lock = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, provider: Provider, account: MailboxAccount, timeouts: Timeouts
    ) -> AsyncIterator[Self]:
        client = cls(provider, account, timeouts)
        timeout = httpx.Timeout(timeouts.response_s, connect=min(_CONNECT_TIMEOUT_S, timeouts.response_s))
        async with egress.async_client(provider.value, timeout=timeout) as client._client:
            yield client

    _client: httpx.AsyncClient

    async def get_json(self, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return the JSON object at a URL, which may be relative to the API's base.

        Raises ResourceGone, ProviderRefused, NeedsReauth, ProviderUnavailable, ProviderThrottled, ResponseTooLarge,
        InvalidResponse or ForbiddenHost.
        """
        tried = 0
        while True:
            raw = await self.get_bytes(url, headers)
            try:
                value = (
                    await asyncio.to_thread(orjson.loads, raw)
                    if len(raw) > _LARGE_BYTES
                    else orjson.loads(raw)
                )
            except ValueError:
                value = None
            if isinstance(value, dict):
                return value
            tried += 1
            if tried >= _MAX_ATTEMPTS:
                raise InvalidResponse(
                    Text(
                        "{provider} answered with something that is not a JSON object", provider=self.provider
                    )
                )
            await self._pause_before_retry(
                _AttemptFailed("no JSON object"), tried
            )  # the answer may have been cut off

    async def get_bytes(self, url: str, headers: Mapping[str, str] | None = None) -> bytes:
        """Return the bytes at a URL. Raises what `get_json` raises."""
        whole = self.checked_url(url)
        tried, rejected = 0, False
        while True:
            access = await self._token()
            try:
                raw = await self._attempt(whole, {**(headers or {}), "Authorization": f"Bearer {access}"})
            except _AttemptFailed as failed:
                tried += 1
                await self._pause_before_retry(failed, tried)
            else:
                if raw is not None:
                    self.answered += 1
                    return raw
                if rejected:
                    raise NeedsReauth(
                        Text("{provider} no longer accepts the connection", provider=self.provider),
                        connection_id=self._account.connection,
                    )
                rejected = True
                await self._token(access)

    def checked_url(self, url: str) -> httpx.URL:
        """Return the absolute URL. Raises ForbiddenHost.

        Links come from answers and from stored cursors. None may lead to another host, not even to another one of the
        provider's, because that would see this token.
        """
        try:
            whole = httpx.URL(url if "://" in url else f"{self.base}/{url.lstrip('/')}")
        except (httpx.InvalidURL, ValueError):
            raise ForbiddenHost from None
        if _origin(whole) != self._origin or whole.userinfo:
            raise ForbiddenHost
        return whole

    async def _token(self, rejected: str | None = None) -> str:
        async with self._token_lock:  # requests that waited here find the new token
            if self._access == rejected or time.monotonic() >= self._access_until:
                self._access = await self._account.token(rejected)
                self._access_until = time.monotonic() + _TOKEN_REUSE_S
            return self._access

    async def _attempt(self, url: httpx.URL, headers: dict[str, str]) -> bytes | None:
        """Send one request; return its answer, or None if the provider rejects the token."""
        async with self._limiter.permit():
            try:
                async with asyncio.timeout(self._timeouts.response_s):
                    async with self._client.stream(
                        "GET", url, headers=headers, extensions={"trace": self._wait_before_sending}
                    ) as response:
                        if response.status_code == 200:
                            return await self._body(response, MAX_ANSWER_BYTES)
                        if response.status_code == 401:
                            return None
                        # Read while the permit is held, so that no other request is sent before a Retry-After counts.
                        raise await self._error(response)
            except (httpx.TransportError, httpx.DecodingError, TimeoutError) as error:
                raise _AttemptFailed(type(error).__name__) from None

    async def _wait_before_sending(self, event: str, _: object) -> None:
        """Wait once more right before a request is sent.

        Since it got its permit, the request may have waited for a connection, and the provider may have sent a
        Retry-After to another one.
        """
        if event == "http11.send_request_headers.started":
            await self._limiter.wait()

    async def _body(self, response: httpx.Response, most: int) -> bytes:
        try:
            return await read_bounded(response.aiter_bytes(), most)
        except BodyTooLarge:
            raise ResponseTooLarge(
                Text(
                    "an answer of {provider} is larger than {most} MB",
                    provider=self.provider,
                    most=MAX_ANSWER_BYTES // 1024 // 1024,
                )
            ) from None

    async def _error(self, response: httpx.Response) -> Exception:
        status = response.status_code
        seconds = retry_after_s(response.headers.get("Retry-After"))
        try:
            reason = _error_reason(await self._body(response, _MAX_ERROR_BODY_BYTES))
        except (ResponseTooLarge, httpx.HTTPError):
            reason = ""
        throttled = status == 429 or (status == 403 and reason in _THROTTLING_REASONS)
        if throttled or is_transient(status):
            if seconds:
                await self._limiter.block(seconds)
            return _AttemptFailed(f"status {status}", seconds, throttled=throttled)
        if status in (404, 410):
            return ResourceGone(self.provider, status, reason)
        return ProviderRefused(self.provider, status, reason)

    async def _pause_before_retry(self, failed: _AttemptFailed, tried: int) -> None:
        """Wait before the next attempt. If there is none, raise an error for the caller."""
        self._retries += 1
        wait_s = failed.seconds
        if wait_s is not None and wait_s > MAX_WAIT_S:
            raise ProviderThrottled(self.provider, wait_s)
        if self._retries > _MAX_RETRIES_PER_SYNC:
            raise ProviderUnstable(
                Text("{provider} fails too often ({why})", provider=self.provider, why=failed.why)
            )
        if tried >= _MAX_ATTEMPTS:
            if failed.throttled:
                raise ProviderThrottled(self.provider, wait_s)
            raise ProviderUnavailable(
                Text("{provider} does not answer ({why})", provider=self.provider, why=failed.why)
            )
        log.info("mail.retry", provider=self.provider, why=failed.why, tried=tried, asked_s=wait_s)
        if not wait_s:  # otherwise the limiter makes us wait
            pause_s = backoff_s(tried, first_s=self._timeouts.first_backoff_s, longest_s=_MAX_BACKOFF_S)
            await asyncio.sleep(pause_s)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _error_reason(raw: bytes) -> str:
    """Return the provider's code for an error, never its message, which may quote the request."""
    try:
        error = orjson.loads(raw)["error"]
        found = [each.get("reason") for name in ("errors", "details") for each in error.get(name) or ()]
        found.append(error.get("code"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    words = (word for word in found if isinstance(word, str) and _REASON.fullmatch(word))
    return next(words, "")
