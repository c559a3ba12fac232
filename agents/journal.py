"""The journal of a run: what happened, in order. What names a user's file, or quotes a device, is sealed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import orjson

from adiuva.accounts.keys import cipher_for
from adiuva.crypto import UserCipher
from agents.models import Run, RunEvent

Kind = RunEvent.Kind
_TABLE, _COLUMN = "agents_runevent", "sealed"


@dataclass(frozen=True)
class Entry:
    """`code` and `count` are for everybody; `source` (a path) and `message` are the user's and get sealed."""

    kind: RunEvent.Kind
    code: str = ""
    count: int | None = None
    source: str = ""
    message: str = ""


def write(run_id: UUID, cipher: UserCipher, entries: Iterable[Entry]) -> None:
    """Append; the database numbers them. Call it in the transaction of what it tells of."""
    rows = []
    for entry in entries:
        nonce = uuid4()
        sealed = None
        if entry.source or entry.message:
            text = orjson.dumps([entry.source, entry.message]).decode()
            sealed = cipher.seal(text, _TABLE, nonce, _COLUMN)
        rows.append(
            RunEvent(
                run_id=run_id, kind=entry.kind, code=entry.code, count=entry.count, nonce=nonce, sealed=sealed
            )
        )
    RunEvent.objects.bulk_create(rows)


def read(run: Run, *, after: int = 0, most: int = 1000) -> list[dict[str, Any]]:
    """A run's events after a seq, opened for their owner."""
    return _open(run.events.filter(seq__gt=after)[:most], cipher_for(run.user_id))


def problems(runs: Sequence[Run], *, most: int = 50) -> dict[UUID, list[dict[str, Any]]]:
    """What went wrong, for several runs of one user in one query."""
    found: dict[UUID, list[dict[str, Any]]] = {run.pk: [] for run in runs}
    troubled = [run for run in runs if run.problems]
    if troubled:
        cipher = cipher_for(troubled[0].user_id)
        for run in troubled:
            found[run.pk] = _open(run.events.filter(kind__in=RunEvent.PROBLEMS)[:most], cipher)
    return found


def _open(events: Iterable[RunEvent], cipher: UserCipher) -> list[dict[str, Any]]:
    opened = []
    for event in events:
        source = message = ""
        if event.sealed is not None:
            source, message = orjson.loads(cipher.unseal(bytes(event.sealed), _TABLE, event.nonce, _COLUMN))
        opened.append(
            {
                "seq": event.seq,
                "at": event.at,
                "kind": event.kind,
                "code": event.code,
                "count": event.count,
                "source": source,
                "message": message,
            }
        )
    return opened
