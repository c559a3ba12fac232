"""HTTP to a provider's API: one host, a few requests at once, patience where it is asked for, and an end to it."""

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

from adiuva.core.http import BodyTooLarge, backoff_s, is_transient, read_bounded, retry_after_s
from integrations import egress
from integrations.errors import ForbiddenHost, NeedsReauth, ProviderAway
from integrations.mail.documents import Token
from integrations.mail.errors import Garbled, NotThere, ProviderRefused, Throttled, TooLarge, Unsteady
from integrations.mail.mailbox_limiter import LONGEST_WAIT_S, Gate, gate
from integrations.models import Provider

MAX_BYTES: Final = 24 * 1024 * 1024  # of one answer: a text of 16 MB, as Gmail writes it
_MAX_REFUSAL_BYTES: Final = 64 * 1024
_LARGE: Final = 256 * 1024  # an answer that is parsed off the event loop
_TRIES: Final = 5
_BUDGET: Final = 100  # retries in one reading, after which the provider is away
_CONNECT_S: Final = 10.0
_LONGEST_PAUSE_S: Final = 20.0
_FRESH_S: Final = (
    5.0  # that a token is used before it is asked for anew: then a disconnected account is left alone
)
# What Google answers with 403 where others say 429.
_THROTTLES: Final = frozenset(
    {
        "rateLimitExceeded",
        "userRateLimitExceeded",
        "dailyLimitExceeded",
        "quotaExceeded",
        "RATE_LIMIT_EXCEEDED",
    }
)
_REASON: Final = re.compile(r"[A-Za-z0-9_.-]{1,80}")

log = structlog.get_logger("integrations.mail")


@dataclass(frozen=True)
class Account:
    """Whose mailbox is read, and by which connection. `mailbox` is the provider's name of it: all readers of one
    mailbox share its gate."""

    connection: UUID
    mailbox: str
    token: Token


@dataclass(frozen=True)
class Patience:
    """How long an answer may take, and the first pause before a retry; the pauses after it are longer."""

    answer_s: float = 60.0
    pause_s: float = 0.5


class _Failed(Exception):
    """An attempt that may be made again: after a pause, or after `seconds` if the provider named a time."""

    def __init__(self, why: str, seconds: float | None = None, *, throttled: bool = False) -> None:
        super().__init__(why)
        self.why, self.seconds, self.throttled = why, seconds, throttled


def api(provider: Provider) -> str:
    """Where a provider's API is."""
    configured = settings.GOOGLE if provider is Provider.GMAIL else settings.MICROSOFT
    return str(configured["api"]).rstrip("/")


class Wire:
    """Requests to one provider for one account. `answered` counts the answers that could be used."""

    def __init__(self, provider: Provider, account: Account, patience: Patience) -> None:
        self.provider, self.base = provider.label, api(provider)
        self.answered = 0
        self._origin = _origin(httpx.URL(self.base))
        self._account, self._patience = account, patience
        self._gate: Gate = gate(provider.label, account.mailbox)
        self._retries = 0
        self._access, self._access_until = "", 0.0
        self._signing_in = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(cls, provider: Provider, account: Account, patience: Patience) -> AsyncIterator[Self]:
        wire = cls(provider, account, patience)
        timeout = httpx.Timeout(patience.answer_s, connect=min(_CONNECT_S, patience.answer_s))
        async with egress.async_client(provider.value, timeout=timeout) as wire._client:
            yield wire

    _client: httpx.AsyncClient

    async def json(self, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The object at an address, which may be relative to the base. Raise NotThere, ProviderRefused, NeedsReauth,
        ProviderAway, Throttled, TooLarge, Garbled or ForbiddenHost."""
        tried = 0
        while True:
            raw = await self.read(url, headers)
            try:
                value = await asyncio.to_thread(orjson.loads, raw) if len(raw) > _LARGE else orjson.loads(raw)
            except ValueError:
                value = None
            if isinstance(value, dict):
                return value
            tried += 1
            if tried >= _TRIES:
                raise Garbled(f"{self.provider} answered with something that is not a JSON object")
            await self._pause(_Failed("no JSON object"), tried)  # it may be an answer that was cut

    async def read(self, url: str, headers: Mapping[str, str] | None = None) -> bytes:
        """The bytes at an address; raises as `json` does."""
        whole = self.checked(url)
        tried, rejected = 0, False
        while True:
            access = await self._token()
            try:
                raw = await self._once(whole, {**(headers or {}), "Authorization": f"Bearer {access}"})
            except _Failed as failed:
                tried += 1
                await self._pause(failed, tried)
            else:
                if raw is not None:
                    self.answered += 1
                    return raw
                if rejected:
                    raise NeedsReauth(
                        f"{self.provider} does not accept the connection any more",
                        connection_id=self._account.connection,
                    )
                rejected = True
                await self._token(access)

    def checked(self, url: str) -> httpx.URL:
        """The whole address. Raise ForbiddenHost.

        Links come from answers, and cursors from where they were stored. None may lead elsewhere: not even to the
        provider's other hosts, which are not to see this token.
        """
        try:
            whole = httpx.URL(url if "://" in url else f"{self.base}/{url.lstrip('/')}")
        except (httpx.InvalidURL, ValueError):
            raise ForbiddenHost from None
        if _origin(whole) != self._origin or whole.userinfo:
            raise ForbiddenHost
        return whole

    async def _token(self, rejected: str | None = None) -> str:
        async with self._signing_in:  # whoever comes later finds the new one
            if self._access == rejected or time.monotonic() >= self._access_until:
                self._access = await self._account.token(rejected)
                self._access_until = time.monotonic() + _FRESH_S
            return self._access

    async def _once(self, url: httpx.URL, headers: dict[str, str]) -> bytes | None:
        """One request: what it answers, or None if it wants another token."""
        async with self._gate.place():
            try:
                async with asyncio.timeout(self._patience.answer_s):
                    async with self._client.stream(
                        "GET", url, headers=headers, extensions={"trace": self._at_last}
                    ) as response:
                        if response.status_code == 200:
                            return await self._body(response, MAX_BYTES)
                        if response.status_code == 401:
                            return None
                        # While the place is held: nobody may go in between.
                        raise await self._refusal(response)
            except (httpx.TransportError, httpx.DecodingError, TimeoutError) as error:
                raise _Failed(type(error).__name__) from None

    async def _at_last(self, event: str, _: object) -> None:
        """Since it got its place, a request may have waited for a connection, and the provider may have asked to be
        left alone: this is right before it is sent."""
        if event == "http11.send_request_headers.started":
            await self._gate.wait()

    async def _body(self, response: httpx.Response, most: int) -> bytes:
        try:
            return await read_bounded(response.aiter_bytes(), most)
        except BodyTooLarge:
            raise TooLarge(
                f"an answer of {self.provider} is larger than {MAX_BYTES // 1024 // 1024} MB"
            ) from None

    async def _refusal(self, response: httpx.Response) -> Exception:
        status = response.status_code
        seconds = retry_after_s(response.headers.get("Retry-After"))
        try:
            reason = _reason(await self._body(response, _MAX_REFUSAL_BYTES))
        except (TooLarge, httpx.HTTPError):
            reason = ""
        throttled = status == 429 or (status == 403 and reason in _THROTTLES)
        if throttled or is_transient(status):
            if seconds:
                self._gate.hold(seconds)
            return _Failed(f"status {status}", seconds, throttled=throttled)
        if status in (404, 410):
            return NotThere(self.provider, status, reason)
        return ProviderRefused(self.provider, status, reason)

    async def _pause(self, failed: _Failed, tried: int) -> None:
        """Wait before the next try, or say that there is none."""
        self._retries += 1
        asked = failed.seconds
        if asked is not None and asked > LONGEST_WAIT_S:
            raise Throttled(self.provider, asked)
        if self._retries > _BUDGET:
            raise Unsteady(f"{self.provider} fails too often ({failed.why})")
        if tried >= _TRIES:
            if failed.throttled:
                raise Throttled(self.provider, asked)
            raise ProviderAway(f"{self.provider} does not answer ({failed.why})")
        log.info("mail.retry", provider=self.provider, why=failed.why, tried=tried, asked_s=asked)
        if not asked:  # else the gate makes us wait
            pause_s = backoff_s(tried, first_s=self._patience.pause_s, longest_s=_LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _reason(raw: bytes) -> str:
    """The provider's one word for it: never its message, which may quote what was asked for."""
    try:
        error = orjson.loads(raw)["error"]
        found = [each.get("reason") for name in ("errors", "details") for each in error.get(name) or ()]
        found.append(error.get("code"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    words = (word for word in found if isinstance(word, str) and _REASON.fullmatch(word))
    return next(words, "")
