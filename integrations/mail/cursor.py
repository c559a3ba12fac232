"""Where a reading may go on. Opaque to whoever stores it; one that does not fit begins anew, and the ledger dedupes."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import orjson
from django.utils import timezone

from integrations.mail.filters import Filters

BACKFILL: Final = dt.timedelta(days=90)  # how far back a first reading goes, if the filters name no day
OVERLAP: Final = dt.timedelta(days=2)  # of overlap, when a position has expired: providers' clocks, late mail


@dataclass(frozen=True)
class Cursor:
    """`of`: whose cursor it is, and with which filters. `at`: when the reading began that made it."""

    of: str
    at: dt.datetime
    state: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, stored: str | None, of: str, now: dt.datetime) -> Cursor:
        """A stored cursor, or a new one with an empty state."""
        try:
            found = orjson.loads(stored or "")
            cursor = cls(str(found["of"]), dt.datetime.fromisoformat(found["at"]), found["state"])
            if cursor.of == of and isinstance(cursor.state, dict) and cursor.at.tzinfo:
                return cursor
        except (ValueError, KeyError, TypeError):
            pass
        return cls(of, now)

    def dump(self) -> str:
        return orjson.dumps({"of": self.of, "at": self.at.isoformat(), "state": self.state}).decode()


def sync_start(filters: Filters, read_at: dt.datetime | None) -> dt.datetime:
    """From when on to list what there is where no position tells: since it was last read, if it ever was."""
    if read_at is None:
        now = timezone.now()
        return filters.start or min(filters.end or now, now) - BACKFILL
    return max(read_at - OVERLAP, filters.start) if filters.start else read_at - OVERLAP


def cursor_owner(provider: str, mailbox: str, filters: Filters) -> str:
    """What a cursor belongs to: with another account or other filters, what was passed over may be wanted now."""
    whole = json.dumps([provider, mailbox, asdict(filters)], default=str, sort_keys=True)
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:32]
