"""Requests to addresses that users name."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest

from adiuva.core import public_http
from adiuva.core.public_http import AddressRefused, NotReached, networks_of

OWN = networks_of(["10.0.0.0/8"])


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "2002:7f00:1::", "64:ff9b::a9fe:a9fe", "2001:0:7f00:1::",
    ],
)  # fmt: skip
def test_what_is_not_public_is_not_reached(text: str) -> None:
    assert not public_http.may_reach(ipaddress.ip_address(text))


def test_what_is_public_is_and_what_the_operator_allows() -> None:
    assert public_http.may_reach(ipaddress.ip_address("93.184.216.34"))
    assert public_http.may_reach(ipaddress.ip_address("2606:2800:220:1::1"))
    assert public_http.may_reach(ipaddress.ip_address("10.1.2.3"), OWN)
    assert public_http.may_reach(ipaddress.ip_address("::ffff:10.1.2.3"), OWN)
    assert not public_http.may_reach(ipaddress.ip_address("127.0.0.1"), OWN)


@pytest.mark.parametrize(
    "url",
    [
        "", "idp.example", "http://idp.example", "ftp://idp.example", "file:///etc/passwd", "https://", "https:///x",
        "https://user@idp.example", "https://user:pw@idp.example", "https://idp.example/#x", "https://idp.example\\@evil",
        "https://idp.example /", "https://idp.example\n/", "javascript:alert(1)", "https://[::1",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_before_anything_is_looked_up(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    with pytest.raises(AddressRefused):
        public_http.request("GET", url, max_bytes=10, total_s=1)


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::1"], ["fe80::1%eth0"]], ids=str
)
def test_a_name_that_leads_inside_is_refused_also_beside_a_public_one(
    addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 443)) for each in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(AddressRefused):
        public_http.request("GET", "https://idp.example/", max_bytes=10, total_s=1)


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[Any] = []

    def look_up(host: str, port: int, **_: Any) -> Any:
        looked_up.append(host)  # a second look would get another answer
        address = "93.184.216.34" if len(looked_up) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    connected: list[Any] = []

    def connect(address: Any, *_: Any, **__: Any) -> Any:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(NotReached):
        public_http.request("GET", "https://idp.example:8443/", max_bytes=10, total_s=1)
    assert looked_up == ["idp.example"] and connected == [("93.184.216.34", 8443)]


def test_plain_http_is_for_networks_of_ones_own_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(AddressRefused):
        public_http.request("GET", "http://idp.example/", allowed=OWN, max_bytes=10, total_s=1)
