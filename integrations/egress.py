"""HTTP clients that reach only the configured hosts of a provider.

Providers send us URLs (the next page, a redirect, a token endpoint). A URL is followed only if its scheme, host and
port are exactly those of a configured endpoint of that provider; all others are refused before any DNS lookup. The
check is in the transport, so no request of these clients can bypass it, not even a redirected one.
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

from adiuva.core.errors import Text
from adiuva.core.http import is_transient, retry_after_s
from integrations.errors import ForbiddenHost, ProviderUnavailable
from integrations.models import Provider

# The time limit of one request to an identity endpoint.
TOTAL_TIMEOUT_S: Final = 20.0
MAX_RESPONSE_BYTES: Final = 1 << 20
_TIMEOUT: Final = httpx.Timeout(10.0, connect=5.0)
_HEADERS: Final = {"User-Agent": "adiuva", "Accept": "application/json", "Accept-Encoding": "identity"}


def checked_url(url: str | httpx.URL, provider: str) -> httpx.URL:
    """Parse a URL as our HTTP client will. Raises ForbiddenHost unless it is at a configured host."""
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
    """Return a blocking client that reaches this provider's hosts only."""
    return httpx.Client(
        transport=GuardedTransport(provider), timeout=timeout, headers=_HEADERS, trust_env=False
    )


def async_client(
    provider: str, *, timeout: httpx.Timeout = _TIMEOUT, limits: httpx.Limits | None = None
) -> httpx.AsyncClient:
    """Return an asynchronous client that reaches this provider's hosts only."""
    guard = AsyncGuardedTransport(provider, limits or httpx.Limits(max_connections=10))
    return httpx.AsyncClient(transport=guard, timeout=timeout, headers=_HEADERS, trust_env=False)


@cache
def _ssl_context() -> ssl.SSLContext:
    """Return the context that all clients share: loading the certificates takes tens of milliseconds."""
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
    """The answer of an identity endpoint. It may hold tokens, which its repr does not show."""

    status_code: int
    text: str = field(repr=False)
    headers: dict[str, str] = field(repr=False, default_factory=dict)

    def json(self) -> dict[str, Any]:
        found = orjson.loads(self.text)
        assert isinstance(found, dict)  # request_json has checked it
        return found

    def raise_for_status(self) -> None:
        """Do nothing: MSAL calls this, but `request_json` has already raised for every status that matters."""


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
                    raise ProviderUnavailable(
                        Text("{name}'s sign-in answered with too much, or too slowly", name=name)
                    )
    except httpx.HTTPError as error:
        # Not `from error`: it refers to the request, which holds tokens.
        raise ProviderUnavailable(
            Text("{name}'s sign-in cannot be reached ({reason})", name=name, reason=type(error).__name__)
        ) from None
    if is_transient(response.status_code):
        wait_s = retry_after_s(response.headers.get("Retry-After"))
        raise ProviderUnavailable(
            Text("{name}'s sign-in is unavailable at the moment", name=name),
            retry_after_s=None if wait_s is None else math.ceil(wait_s),
        )
    if response.status_code >= 300 and response.status_code < 400:
        raise ProviderUnavailable(
            Text("{name}'s sign-in answered with a redirect, which is not followed", name=name)
        )
    try:
        text = raw.decode()
        if raw and not isinstance(orjson.loads(text), dict):
            raise ValueError("not an object")
    except ValueError:
        raise ProviderUnavailable(Text("{name}'s sign-in did not answer in JSON", name=name)) from None
    return IdentityResponse(response.status_code, text or "{}", dict(response.headers))


@cache
def _shared_client(provider: str) -> httpx.Client:
    """Return the one client per process and provider: httpx clients are thread-safe, and setting up TLS is slow."""
    return client(provider)


def _configured_endpoints(provider: str) -> list[str]:
    match Provider(provider):
        case Provider.GMAIL:
            return [settings.GOOGLE["token_uri"], settings.GOOGLE["revoke_uri"], settings.GOOGLE["api"]]
        case Provider.OUTLOOK | Provider.TEAMS:
            return [settings.MICROSOFT["authority"], settings.MICROSOFT["api"]]


def _origin(url: httpx.URL) -> tuple[str, bytes, int | None]:
    return url.scheme, url.raw_host, url.port
