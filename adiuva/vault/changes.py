"""Changes since a client's last cursor.

Only a tombstone says that a record was deleted: a record that a part of the list does not name is unchanged, or comes
later.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from adiuva.core.errors import AdiuvaError, Invalid
from adiuva.vault.models import ChangeCounter, Record

MOST = 1_000


class CursorTooOld(AdiuvaError):
    """Error for a cursor older than a restored database: begin without a cursor, and delete nothing because of it."""

    code, status = "cursor_too_old", 410

    def __init__(self) -> None:
        super().__init__("the server was restored from a backup: list everything again")


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes to records. `cursor` is where to go on; `complete`: there are no more."""

    records: Sequence[Record]
    cursor: str
    complete: bool


def since(user_id: uuid.UUID, cursor: str, limit: int) -> Changes:
    """Return the changes after `cursor`, oldest first; all if it is empty. Each record is in it once, as it is now.

    Raises Invalid or CursorTooOld.
    """
    counter = ChangeCounter.objects.filter(pk=user_id).first()
    position = _read(cursor)
    if counter is None:
        if position is not None:
            raise CursorTooOld
        return Changes((), "", complete=True)
    after = _after(position, counter)
    rows = Record.objects.of(user_id).without_bytes().filter(seq__gt=after).order_by("seq")
    found = list(rows[: limit + 1])
    shown = found[:limit]
    # Not the counter's own number, because it may be ahead of what is committed.
    last = shown[-1].seq if shown else after
    return Changes(shown, f"{counter.epoch.hex}-{last}", complete=len(found) <= limit)


def _read(cursor: str) -> tuple[str, int] | None:
    """Return the epoch and the number that a cursor names; None at the beginning. Raises Invalid."""
    if cursor in ("", "0"):
        return None
    epoch, _, seq = cursor.partition("-")
    if not (len(epoch) == 32 and seq.isascii() and seq.isdigit() and len(seq) < 19):
        raise Invalid("this cursor is none of ours", fields={"since": ["A cursor of an earlier answer."]})
    return epoch, int(seq)


def _after(position: tuple[str, int] | None, counter: ChangeCounter) -> int:
    if position is None:
        return 0
    epoch, seq = position
    if epoch != counter.epoch.hex or seq > counter.seq:
        raise CursorTooOld
    return seq


def forget_positions() -> int:
    """Make every client begin again, after a database was restored. Returns how many accounts."""
    counters = list(ChangeCounter.objects.all())
    for counter in counters:
        counter.epoch = uuid.uuid4()
    return ChangeCounter.objects.bulk_update(counters, ["epoch"], batch_size=500)
