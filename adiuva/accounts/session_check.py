"""Checks of sessions: the one that begins every request and every connection, and those of open connections.

They are prepared statements, since building the query through the ORM each time costs several times as much.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Set
from typing import Final
from uuid import UUID

from django.db.models import QuerySet
from django.utils import timezone

from adiuva.accounts.models import Session, SessionChange
from adiuva.core.db import prepared_cursor
from adiuva.core.prepared import PreparedQuery

# A process that was without the database for longer looks at each session again.
_CHANGES_KEPT: Final = dt.timedelta(days=1)

# A change becomes visible when its transaction commits, which may be later than its timestamp.
_CHANGED: Final = """
SELECT statement_timestamp(), ARRAY(
    SELECT DISTINCT session_id FROM accounts_sessionchange
    WHERE changed_at > coalesce(%s::timestamptz, statement_timestamp()) - interval '1 minute'
)
"""
_LIVE: Final = """
SELECT session.id, account.tier FROM unnest(%s::uuid[]) AS asked (id)
JOIN accounts_session AS session ON session.id = asked.id
JOIN accounts_user AS account ON account.id = session.user_id
WHERE session.revoked_at IS NULL AND session.expires_at > %s AND account.is_active
"""


def find_live(*, session_id: UUID, user_id: UUID) -> Session | None:
    """Return a session that still authenticates (see SessionQuerySet.live), with its user; None otherwise."""
    found = _live(session_id, user_id, timezone.now())
    return found[0] if found else None


_live: Final = PreparedQuery(
    lambda session_id, user_id, now: (
        Session.objects.live(now).filter(pk=session_id, user_id=user_id).select_related("user")
    )
)


def live_sessions(ids: Collection[UUID]) -> dict[UUID, str]:
    """Return which of these sessions are live, each with its user's tier, in one query. Sockets of others close."""
    if not ids:
        return {}
    with prepared_cursor() as cursor:
        cursor.execute(_LIVE, [list(ids), timezone.now()])
        return dict(cursor.fetchall())


def recheck(
    *, connected: Set[UUID], share: Set[UUID], since: dt.datetime | None
) -> tuple[dt.datetime, dict[UUID, str | None]]:
    """Check those sessions of `connected` that changed since the last look, and those of `share`.

    Returns when it looked, and for each session its user's tier, or None if the session is over. Mostly nothing has
    changed, so a look costs the same for one connection as for thousands. `share` finds sessions that ended without a
    change, such as by time.
    """
    with prepared_cursor() as cursor:
        cursor.execute(_CHANGED, [since])
        looked_at, changed = cursor.fetchone()
    ids = share | (connected & set(changed))
    return looked_at, dict.fromkeys(ids) | live_sessions(ids)


def old_changes() -> QuerySet[SessionChange]:
    """Return the changes that all processes have seen."""
    return SessionChange.objects.filter(changed_at__lt=timezone.now() - _CHANGES_KEPT).order_by("changed_at")
