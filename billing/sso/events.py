"""Events of a team's sign-in, kept for its owner and for staff, and logged."""

from __future__ import annotations

import datetime as dt
from typing import Final
from uuid import UUID

import structlog
from django.db.models.functions import Now

from adiuva.core.pruning import delete_in_batches
from billing.sso.models import SsoEvent

KEPT: Final = dt.timedelta(days=365)

log = structlog.get_logger(__name__)


def note(team_id: UUID, kind: SsoEvent.Kind, *, user_id: UUID | None = None, code: str = "") -> None:
    SsoEvent.objects.create(team_id=team_id, kind=kind, user_id=user_id, code=code[:40])
    log.info("sso.event_noted", team_id=str(team_id), kind=str(kind), user_id=str(user_id or ""), code=code)


def forget_old() -> int:
    """Delete events past their retention. Returns how many."""
    return delete_in_batches(SsoEvent.objects.filter(at__lt=Now() - KEPT).order_by("at"))
