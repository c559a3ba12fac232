"""Whether a domain is a team's: a TXT record in its DNS says so, which only who runs the domain can write.

A file on a web server would show less: who may publish a page of a domain need not be who answers for its addresses.
"""

from __future__ import annotations

import ipaddress
from typing import Final

import dns.exception
import dns.nameserver
import dns.rdatatype
import dns.resolver
import structlog
from django.conf import settings

from adiuva.core.errors import Conflict, Unavailable

_TOTAL_S: Final = 6.0
_PORT: Final = 53
_LABEL: Final = "_adiuva"
_KEY: Final = "adiuva-domain"

log = structlog.get_logger(__name__)


class DomainUnproven(Conflict):
    code = "domain_unproven"

    def __init__(self) -> None:
        super().__init__(
            "the DNS of this domain does not hold the record yet: after a change it may take some hours to be seen"
        )


class DnsAway(Unavailable):
    code = "dns_away"

    def __init__(self) -> None:
        super().__init__("the name servers of this domain do not answer at the moment: try again later")


def record_of(name: str, token: str) -> tuple[str, str]:
    """Where the record is to be, and what it is to hold."""
    return f"{_LABEL}.{name}", f"{_KEY}={token}"


def require_proven(name: str, token: str) -> None:
    """Ask the DNS. Blocks. Raises DomainUnproven, DnsAway."""
    place, wanted = record_of(name, token)
    try:
        answer = _resolver().resolve(place, dns.rdatatype.TXT, search=False, lifetime=_TOTAL_S)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        raise DomainUnproven from None
    except dns.exception.DNSException as error:
        log.warning("domain.not_looked_up", reason=type(error).__name__)
        raise DnsAway from None
    if not any(b"".join(record.strings) == wanted.encode() for record in answer):
        raise DomainUnproven


def _resolver() -> dns.resolver.Resolver:
    servers = settings.SSO_DNS
    resolver = dns.resolver.Resolver(configure=not servers)
    if servers:
        resolver.nameservers = [_server(each) for each in servers]
    resolver.cache = None
    return resolver


def _server(text: str) -> dns.nameserver.Nameserver:
    """Of `address`, `address:port` or `[address]:port`."""
    try:
        return dns.nameserver.Do53Nameserver(str(ipaddress.ip_address(text)), _PORT)
    except ValueError:
        address, _, port = text.rpartition(":")
        return dns.nameserver.Do53Nameserver(str(ipaddress.ip_address(address.strip("[]"))), int(port))
