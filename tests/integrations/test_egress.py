"""Only the configured hosts are ever asked, whatever a provider, a user or a mail says."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adiuva import env_variables
from integrations import egress, oauth_clients
from integrations.errors import ForbiddenHost, ProviderUnavailable
from tests.fakes.identity import Identity
from tests.fakes.provider import Raw

GRAPH = "https://graph.microsoft.com"
ALLOWED = [
    f"{GRAPH}/v1.0/me/messages?$skiptoken=x",
    f"{GRAPH}:443/v1.0/me",
    "HTTPS://GRAPH.MICROSOFT.COM/v1.0/me",
    "https://login.microsoftonline.com/common/oauth2/v2.0/token",
    f"{GRAPH}/v1.0/me?next=https://evil.example.com/",
    f"{GRAPH}/v1.0/me#@evil.example.com/",
]
FORBIDDEN = [
    "https://evil.example.com/v1.0/me",
    "http://graph.microsoft.com/v1.0/me",
    f"{GRAPH}:8443/v1.0/me",
    f"{GRAPH}:80/",
    "https://graph.microsoft.com./v1.0/me",
    "https://.graph.microsoft.com/",
    "https://graph.microsoft.com.evil.example.com/",
    "https://graph.microsoft.com@evil.example.com/",
    "https://graph.microsoft.com:443@evil.example.com/",
    "https://user@graph.microsoft.com/",
    "https://user:password@graph.microsoft.com/",
    "https://@evil.example.com/",
    "https://graph.microsoft.com\\@evil.example.com/",
    "https://graph.microsoft.com\\.evil.example.com/",
    "https://evil.example.com\\graph.microsoft.com/",
    "https://evil.example.com#graph.microsoft.com",
    "https://evil.example.com?graph.microsoft.com",
    "https://graph.microsoft.com%2f@evil.example.com/",
    "https://graph.microsoft.com%00.evil.example.com/",
    "https://graph.microsoft.com\t.evil.example.com/",
    "https://graph.microsoft.com\n/",
    " https://graph.microsoft.com/",
    "//graph.microsoft.com/v1.0/me",
    "/v1.0/me",
    "graph.microsoft.com/v1.0/me",
    "",
    "https://",
    "https:///v1.0",
    "file:///etc/passwd",
    "gopher://graph.microsoft.com/",
    "ftp://graph.microsoft.com/",
    "unix:///tmp/socket",
    "data:application/json,{}",
    "https://169.254.169.254/latest/meta-data",
    "http://127.0.0.1:6379/",
    "http://localhost/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://0/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "https://[::ffff:169.254.169.254]/",
    "https://gmail.googleapis.com/",  # Google's, and not this provider's
    "https://graph.microsoft.com:99999/",
    "https://graph.microsoft.com:x/",
    "https://gráph.microsoft.com/",
    "https://xn--grph-5na.microsoft.com/",
    "https://graph.micros\u043eft.com/",
    "https://graph.microsoft.com\u2024evil.example.com/",
    "https://[graph.microsoft.com]/",
    "https://graph.microsoft.com" + "a" * 70_000,
]


@pytest.mark.parametrize("url", ALLOWED)
def test_a_providers_own_addresses_are_followed(url: str) -> None:
    assert egress.checked_url(url, "outlook").host in {"graph.microsoft.com", "login.microsoftonline.com"}


def test_no_other_address_is_and_no_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)

    for url in FORBIDDEN:
        with pytest.raises(ForbiddenHost):
            egress.checked_url(url, "outlook")
        with pytest.raises(ForbiddenHost):
            egress.request_json("outlook", "GET", url)

    with egress.client("outlook") as client:
        for url in FORBIDDEN:
            with pytest.raises((ForbiddenHost, httpx.InvalidURL)):
                client.get(url)

    async def all_of_them() -> None:
        async with egress.async_client("outlook") as client:
            for url in FORBIDDEN:
                with pytest.raises((ForbiddenHost, httpx.InvalidURL)):
                    await client.get(url)

    with asyncio.Runner() as runner:
        runner.run(all_of_them())


@given(st.text(max_size=40), st.sampled_from(["", ".", "@", ":", "/", "\\", "#", "?", "%2e", "%40", "%00"]))
def test_whatever_stands_around_a_host_the_one_reached_is_it(text: str, mark: str) -> None:
    for url in (
        f"https://{text}{mark}graph.microsoft.com/",
        f"https://graph.microsoft.com{mark}{text}",
        text,
    ):
        try:
            parsed = egress.checked_url(url, "outlook")
        except ForbiddenHost:
            continue
        assert (parsed.scheme, parsed.raw_host, parsed.port) == ("https", b"graph.microsoft.com", None)
        sent = httpx.Request("GET", parsed)  # what goes out: the same host, by name and by header
        assert sent.headers["Host"] == "graph.microsoft.com"
        assert sent.url.raw_host == b"graph.microsoft.com"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(identity: Identity, status: int) -> None:
    with Identity() as elsewhere:
        for target in (f"{elsewhere.url}/google/token", f"{identity.url}/google/token"):
            identity.script(Raw(b"", status=status, headers={"Location": target}))
            with pytest.raises(ProviderUnavailable, match="redirect"):
                identity_refresh()
        assert elsewhere.requests == []
    assert len(identity.requests) == 2


def identity_refresh() -> None:
    oauth_clients.refresh("gmail", "a refresh token")


def test_a_discovery_that_names_another_token_endpoint_is_refused(settings: Any) -> None:
    """MSAL believes what the authority says of itself; the transport does not."""
    with Identity() as elsewhere, _Liar(elsewhere.url) as liar:
        settings.MICROSOFT = liar.microsoft()
        with pytest.raises((ForbiddenHost, ProviderUnavailable)):
            oauth_clients.refresh("outlook", "a refresh token")
        assert elsewhere.requests == [] and liar.requests


class _Liar(Identity):
    """An authority that sends its clients elsewhere."""

    def __init__(self, elsewhere: str) -> None:
        super().__init__()
        self._elsewhere = elsewhere.replace("http://", "https://")

    async def _discover(self, http: Any) -> Any:
        from aiohttp import web

        await super()._discover(http)
        at = f"{self._elsewhere}/common"
        return web.json_response(
            {"issuer": at, "authorization_endpoint": f"{at}/authorize", "token_endpoint": f"{at}/token"}
        )


def test_proxies_and_passwords_of_the_environment_are_not_used(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Identity() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        with egress.client("gmail") as client:
            client.get(f"{identity.url}/x")
        assert proxy.requests == [] and len(identity.requests) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://graph.microsoft.com",
        "https://user:password@graph.microsoft.com",
        "https://graph.microsoft.com?x=1",
        "ftp://127.0.0.1",
        "graph.microsoft.com",
        "https://",
    ],
)
def test_an_endpoint_without_tls_or_with_more_than_an_address_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ValueError, match="plain https address"):
        env_variables.GRAPH_API.parse(url)
    assert env_variables.GRAPH_API.parse("http://127.0.0.1:8080/v1.0/") == "http://127.0.0.1:8080/v1.0"
