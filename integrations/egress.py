"""Which hosts may be asked, and the one way to ask them.

Providers send us addresses (the next page, a redirect, a token endpoint). One is followed only if its scheme, host
and port are exactly those of a configured endpoint of that provider; all else is refused before a name is looked up.
The check sits in the transport, so no request of these clients gets around it, a redirected one included.
"""

from __future__ import annotations

import math
import ssl
import time
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import httpx
import orjson
from django.conf import settings

from adiuva.core.http import is_transient, retry_after_s
from integrations.errors import ForbiddenHost, ProviderUnavailable
from integrations.models import Provider

TOTAL_TIMEOUT_S: Final = 20.0  # an identity endpoint may take, in all
MAX_RESPONSE_BYTES: Final = 1 << 20  # of its answer
_TIMEOUT: Final = httpx.Timeout(10.0, connect=5.0)
_HEADERS: Final = {"User-Agent": "adiuva", "Accept": "application/json", "Accept-Encoding": "identity"}


def checked_url(url: str | httpx.URL, provider: str) -> httpx.URL:
    """The address, parsed as our HTTP client will, if it is at a configured host. Raise ForbiddenHost."""
    try:
        parsed = httpx.URL(url)
        origin = _origin(parsed)
    except (httpx.InvalidURL, ValueError, TypeError):
        raise ForbiddenHost from None
    if parsed.userinfo or origin not in {
        _origin(httpx.URL(base)) for base in _configured_endpoints(provider)
    }:
        raise ForbiddenHost
    return parsed


def client(provider: str, *, timeout: httpx.Timeout = _TIMEOUT) -> httpx.Client:
    """A blocking client that reaches this provider's hosts alone."""
    return httpx.Client(
        transport=GuardedTransport(provider), timeout=timeout, headers=_HEADERS, trust_env=False
    )


def async_client(
    provider: str, *, timeout: httpx.Timeout = _TIMEOUT, limits: httpx.Limits | None = None
) -> httpx.AsyncClient:
    """The same for an event loop."""
    guard = AsyncGuardedTransport(provider, limits or httpx.Limits(max_connections=10))
    return httpx.AsyncClient(transport=guard, timeout=timeout, headers=_HEADERS, trust_env=False)


@cache
def _ssl_context() -> ssl.SSLContext:
    """One for all clients: to load the certificates takes tens of milliseconds."""
    return httpx.create_ssl_context(trust_env=False)


class GuardedTransport(httpx.BaseTransport):
    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._inner = httpx.HTTPTransport(verify=_ssl_context(), trust_env=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        checked_url(request.url, self._provider)
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


class AsyncGuardedTransport(httpx.AsyncBaseTransport):
    def __init__(self, provider: str, limits: httpx.Limits) -> None:
        self._provider = provider
        self._inner = httpx.AsyncHTTPTransport(verify=_ssl_context(), trust_env=False, limits=limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        checked_url(request.url, self._provider)
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass(frozen=True)
class IdentityResponse:
    """What an identity endpoint said. It may hold tokens: it shows none."""

    status_code: int
    text: str = field(repr=False)
    headers: dict[str, str] = field(repr=False, default_factory=dict)

    def json(self) -> dict[str, Any]:
        found = orjson.loads(self.text)
        assert isinstance(found, dict)  # `ask` has seen it
        return found

    def raise_for_status(self) -> None:
        """For MSAL. `ask` lets nothing through that it would have to raise for."""


def request_json(provider: str, method: str, url: str, **request: Any) -> IdentityResponse:
    """Send one blocking request to an identity endpoint; return its answer, a JSON object with a status below 500.

    Raises ProviderUnavailable (no answer, a redirect, an answer that is not JSON, too long or too late, or a status
    that is worth a retry) and ForbiddenHost.
    """
    name = Provider(provider).label
    until = time.monotonic() + TOTAL_TIMEOUT_S
    try:
        with _shared_client(provider).stream(method, checked_url(url, provider), **request) as response:
            raw = b""
            for piece in response.iter_bytes():
                raw += piece
                if len(raw) > MAX_RESPONSE_BYTES or time.monotonic() > until:
                    raise ProviderUnavailable(f"{name}'s sign-in answers without end")
    except httpx.HTTPError as error:
        # Not `from error`: it holds the request, and so the tokens.
        raise ProviderUnavailable(f"{name}'s sign-in cannot be reached ({type(error).__name__})") from None
    if is_transient(response.status_code):
        wait_s = retry_after_s(response.headers.get("Retry-After"))
        raise ProviderUnavailable(
            f"{name}'s sign-in is not available just now",
            retry_after_s=None if wait_s is None else math.ceil(wait_s),
        )
    if response.status_code >= 300 and response.status_code < 400:
        raise ProviderUnavailable(f"{name}'s sign-in redirects, which is not followed")
    try:
        text = raw.decode()
        if raw and not isinstance(orjson.loads(text), dict):
            raise ValueError("not an object")
    except ValueError:
        raise ProviderUnavailable(f"{name}'s sign-in does not answer in JSON") from None
    return IdentityResponse(response.status_code, text or "{}", dict(response.headers))


@cache
def _shared_client(provider: str) -> httpx.Client:
    """One a process and provider: httpx's clients may be used from many threads, and TLS is slow to set up."""
    return client(provider)


def _configured_endpoints(provider: str) -> list[str]:
    match Provider(provider):
        case Provider.GMAIL:
            return [settings.GOOGLE["token_uri"], settings.GOOGLE["revoke_uri"], settings.GOOGLE["api"]]
        case Provider.OUTLOOK | Provider.TEAMS:
            return [settings.MICROSOFT["authority"], settings.MICROSOFT["api"]]


def _origin(url: httpx.URL) -> tuple[str, bytes, int | None]:
    return url.scheme, url.raw_host, url.port
