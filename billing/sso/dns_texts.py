"""Looks up TXT records. A module of its own, imported at the first lookup, since dnspython takes 8 MB."""

from __future__ import annotations

import ipaddress
from typing import Final

import dns.exception
import dns.nameserver
import dns.rdatatype
import dns.resolver
from django.conf import settings

_PORT: Final = 53


class NotAnswered(Exception):
    """The name servers gave no answer. The message is the kind of the error."""


def texts_at(place: str, *, within_s: float) -> list[bytes]:
    """Return the texts of the TXT records there. Blocks. Raises NotAnswered."""
    try:
        answer = _resolver().resolve(place, dns.rdatatype.TXT, search=False, lifetime=within_s)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []
    except dns.exception.DNSException as error:
        raise NotAnswered(type(error).__name__) from None
    return [b"".join(record.strings) for record in answer]


def _resolver() -> dns.resolver.Resolver:
    servers = settings.SSO_DNS
    resolver = dns.resolver.Resolver(configure=not servers)
    if servers:
        resolver.nameservers = [_server(each) for each in servers]
    resolver.cache = None
    return resolver


def _server(text: str) -> dns.nameserver.Nameserver:
    """Parse `address`, `address:port` or `[address]:port`."""
    try:
        return dns.nameserver.Do53Nameserver(str(ipaddress.ip_address(text)), _PORT)
    except ValueError:
        address, _, port = text.rpartition(":")
        return dns.nameserver.Do53Nameserver(str(ipaddress.ip_address(address.strip("[]"))), int(port))
