"""Weekly checks of DNS records: are domains still a team's?

A domain whose record is gone stays the team's for two more weeks, so that a mistake in a zone locks nobody out, but
another team may prove it at once. Name servers that do not answer change nothing.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

import structlog
from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Coalesce, Now

from billing.sso import domains, events
from billing.sso.domains import DnsAway, DomainUnproven
from billing.sso.models import Domain, SsoEvent

_LOOKED_AT_EVERY: Final = dt.timedelta(days=7)
# A record that is missing, or could not be read, is looked at sooner.
_AGAIN_AFTER: Final = dt.timedelta(days=1)
_MISSED_FOR: Final = dt.timedelta(days=14)
_MOST: Final = 100

log = structlog.get_logger(__name__)


def recheck() -> int:
    """Look at the records that are due. Returns how many were looked at. Blocks for seconds at each silent server."""
    due = Domain.objects.filter(Q(look_at=None) | Q(look_at__lte=Now()), proven_at__isnull=False)
    rows = list(due.select_related("provider").order_by(F("look_at").asc(nulls_first=True))[:_MOST])
    for domain in rows:
        # Marked first, so that another worker looks at another one, and one that breaks this loop is not first again.
        Domain.objects.filter(pk=domain.pk).update(look_at=Now() + _AGAIN_AFTER)
        try:
            domains.require_proven(domain.name, domain.token)
        except DnsAway:
            continue
        except DomainUnproven:
            _miss(domain)
        else:
            Domain.objects.filter(pk=domain.pk).update(look_at=Now() + _LOOKED_AT_EVERY, missing_since=None)
    return len(rows)


def _miss(domain: Domain) -> None:
    mine = Domain.objects.filter(pk=domain.pk)
    mine.update(missing_since=Coalesce("missing_since", Now()))
    if mine.filter(missing_since__lte=Now() - _MISSED_FOR).exists():
        lose(domain)


@transaction.atomic
def lose(domain: Domain) -> None:
    """Take a domain from its team: its addresses can no longer sign in this way until it is proven anew."""
    if Domain.objects.filter(pk=domain.pk, proven_at__isnull=False).update(
        proven_at=None, missing_since=None, look_at=None
    ):
        events.note(domain.provider.team_id, SsoEvent.Kind.DOMAIN_LOST, code=str(domain.pk))


def lose_if_gone(name: str) -> bool:
    """Take a domain from the team that has proven it, if its record is gone. Blocks. Raises DnsAway."""
    held = Domain.objects.filter(name=name, proven_at__isnull=False).select_related("provider").first()
    if held is None:
        return True
    try:
        domains.require_proven(held.name, held.token)
    except DomainUnproven:
        lose(held)
        return True
    return False
