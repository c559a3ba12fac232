"""Proof that a domain is a team's: a TXT record in its DNS, which only the domain's operator can write.

A file on a web server would prove less: people who may publish a page of a domain need not control its addresses.
"""

from __future__ import annotations

from typing import Final

import structlog

from adiuva.core.errors import Conflict, Unavailable

_TOTAL_S: Final = 6.0
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
    """Return the name that the record must have, and its content."""
    return f"{_LABEL}.{name}", f"{_KEY}={token}"


def require_proven(name: str, token: str) -> None:
    """Ask the DNS. Blocks. Raises DomainUnproven, DnsAway."""
    from billing.sso.dns_texts import NotAnswered, texts_at

    place, wanted = record_of(name, token)
    try:
        texts = texts_at(place, within_s=_TOTAL_S)
    except NotAnswered as error:
        log.warning("domain.not_looked_up", reason=str(error))
        raise DnsAway from None
    if wanted.encode() not in texts:
        raise DomainUnproven
