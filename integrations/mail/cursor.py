"""Cursors: where the next sync of a mailbox continues.

A cursor is opaque to its keeper. One that does not fit is ignored: the sync starts over, and the ledger of sources
already read prevents duplicates.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import orjson
from django.utils import timezone

from integrations.mail.filters import Filters

# How far back the first sync reads, if the filters name no start.
BACKFILL: Final = dt.timedelta(days=90)
# When a position has expired, reading starts this long before the last sync: for late mail and providers' clocks.
OVERLAP: Final = dt.timedelta(days=2)


@dataclass(frozen=True)
class Cursor:
    """A position. `owner`: its mailbox and filters (see cursor_owner). `at`: when the sync that made it began."""

    owner: str
    at: dt.datetime
    state: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, stored: str | None, owner: str, now: dt.datetime) -> Cursor:
        """Return a stored cursor, or a new one with an empty state."""
        try:
            found = orjson.loads(stored or "")
            cursor = cls(str(found["owner"]), dt.datetime.fromisoformat(found["at"]), found["state"])
            if cursor.owner == owner and isinstance(cursor.state, dict) and cursor.at.tzinfo:
                return cursor
        except (ValueError, KeyError, TypeError):
            pass
        return cls(owner, now)

    def dump(self) -> str:
        return orjson.dumps({"owner": self.owner, "at": self.at.isoformat(), "state": self.state}).decode()


def sync_start(filters: Filters, read_at: dt.datetime | None) -> dt.datetime:
    """Return where listing starts without a valid position. `read_at`: up to when the mailbox was read, if it was."""
    if read_at is None:
        now = timezone.now()
        return filters.start or min(filters.end or now, now) - BACKFILL
    return max(read_at - OVERLAP, filters.start) if filters.start else read_at - OVERLAP


def cursor_owner(provider: str, mailbox: str, filters: Filters) -> str:
    """Return a hash of mailbox and filters. With others, messages that were skipped before may now be wanted."""
    whole = json.dumps([provider, mailbox, asdict(filters)], default=str, sort_keys=True)
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:32]
