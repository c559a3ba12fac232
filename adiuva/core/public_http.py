"""HTTP requests to addresses that users name: they reach public hosts only, and end in time.

We resolve a name, check every address of it, and connect to an address that we checked, so a name that leads elsewhere
a moment later changes nothing. We follow no redirects. An operator can allow networks of their own, and only there we
speak plain HTTP.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import httpcore
import httpx
import orjson

_CONNECT_S: Final = 5.0
_HEADERS: Final = {"User-Agent": "adiuva", "Accept": "application/json", "Accept-Encoding": "identity"}
# Networks whose addresses contain, and so hide, an IPv4 address: 6to4, Teredo, NAT64.
_PACKED: Final = tuple(map(ipaddress.ip_network, ("2002::/16", "2001::/32", "64:ff9b::/96")))

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class AddressRefused(ValueError):
    """Error for an address that the server must not reach. The message is in English, for logs and staff."""


class NotReached(Exception):
    """Error for an answer that did not come whole and in time. The message names only the kind of failure."""


@dataclass(frozen=True)
class Response:
    """Whole answer. It may hold secrets, which its repr does not show."""

    status: int
    body: bytes = field(repr=False)

    def json(self) -> dict[str, Any]:
        """Return the JSON object of the body. Raises ValueError unless it is one."""
        found = orjson.loads(self.body)
        if not isinstance(found, dict):
            raise ValueError("not an object")
        return found


def networks_of(words: Iterable[str]) -> tuple[Network, ...]:
    """Return the networks of a setting. Raises ValueError."""
    return tuple(ipaddress.ip_network(word) for word in words)


def may_reach(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """Return whether an address is public, or in a network that the operator allowed."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if any(address in network for network in allowed):
        return True
    packed = any(address in network for network in _PACKED)
    return address.is_global and not address.is_multicast and not packed


def checked(url: str, allowed: Sequence[Network] = ()) -> httpx.URL:
    """Return an address as our HTTP client reads it. Raises AddressRefused. Its target is checked when we connect."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError, TypeError):
        raise AddressRefused("this is no address") from None
    if parsed.scheme != "https" and not (parsed.scheme == "http" and allowed):
        raise AddressRefused("the address must begin with https")
    if not parsed.host or parsed.userinfo or parsed.fragment:
        raise AddressRefused("the address must name a host, no user and no part of a page")
    if "@" in url or "\\" in url or any(character.isspace() for character in url):
        raise AddressRefused("the address holds signs that programs read differently")
    return parsed


def request(
    method: str,
    url: str,
    *,
    allowed: Sequence[Network] = (),
    data: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    max_bytes: int,
    total_s: float,
) -> Response:
    """Send one blocking request. Raises AddressRefused; NotReached, also for a redirect or a body that is too large."""
    address, until = checked(url, allowed), time.monotonic() + total_s
    try:
        with (
            httpx.Client(
                transport=_Transport(allowed, until, is_plain=address.scheme == "http"),
                timeout=httpx.Timeout(total_s, connect=min(_CONNECT_S, total_s)),
                headers=_HEADERS,
                trust_env=False,
            ) as client,
            client.stream(method, address, data=data, headers=headers) as response,
        ):
            body = bytearray()
            for piece in response.iter_raw():
                body += piece
                if len(body) > max_bytes:
                    raise NotReached("too much")
    except httpx.HTTPError as error:
        # Not `from error`, because that refers to the request, which may hold secrets.
        raise NotReached(type(error).__name__) from None
    if 300 <= response.status_code < 400:
        raise NotReached("a redirect, which is not followed")
    return Response(response.status_code, bytes(body))


@cache
def _ssl_context() -> ssl.SSLContext:
    """Return the shared context: loading the certificates takes tens of milliseconds."""
    return httpx.create_ssl_context(trust_env=False)


class _Transport(httpx.HTTPTransport):
    """Transport for one request. Its connections go where `_Backend` lets them."""

    def __init__(self, allowed: Sequence[Network], until: float, *, is_plain: bool) -> None:
        super().__init__(verify=_ssl_context(), trust_env=False)
        self._pool = httpcore.ConnectionPool(
            ssl_context=_ssl_context(), network_backend=_Backend(allowed, until, is_plain)
        )


class _Backend(httpcore.NetworkBackend):
    def __init__(self, allowed: Sequence[Network], until: float, is_plain: bool) -> None:
        self._allowed, self._until, self._is_plain = allowed, until, is_plain
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *args: Any, **kwargs: Any
    ) -> httpcore.NetworkStream:
        addresses = self._resolve(host, port)
        last: Exception = httpcore.ConnectError("no address")
        for address in addresses[:3]:
            try:
                stream = self._inner.connect_tcp(address, port, _left(self._until, timeout), *args, **kwargs)
                return _Stream(stream, self._until)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        raise last

    def _resolve(self, host: str, port: int) -> list[str]:
        try:
            found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise httpcore.ConnectError("no such host") from None
        addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
        for text in addresses:
            address = ipaddress.ip_address(text.partition("%")[0])
            is_own = any(address in network for network in self._allowed)
            if not may_reach(address, self._allowed) or (self._is_plain and not is_own):
                raise AddressRefused("the address leads to a host that is not public")
        return addresses


class _Stream(httpcore.NetworkStream):
    """Connection that allows no read or write after the request's time is over."""

    def __init__(self, inner: httpcore.NetworkStream, until: float) -> None:
        self._inner, self._until = inner, until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(self._until, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(self._until, timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        inner = self._inner.start_tls(ssl_context, server_hostname, _left(self._until, timeout))
        return _Stream(inner, self._until)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _left(until: float, timeout: float | None) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time of the request is over")
    return left if timeout is None else min(left, timeout)
