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


def write(run: Run, entries: Iterable[Entry]) -> None:
    """Append; the database numbers them. Call it in the transaction of what it tells of."""
    rows = []
    for entry in entries:
        nonce = uuid4()
        sealed = None
        if entry.source or entry.message:
            text = orjson.dumps([entry.source, entry.message]).decode()
            sealed = cipher_for(run.user_id).seal(text, _TABLE, nonce, _COLUMN)
        rows.append(
            RunEvent(
                run_id=run.pk, kind=entry.kind, code=entry.code, count=entry.count, nonce=nonce, sealed=sealed
            )
        )
    RunEvent.objects.bulk_create(rows, batch_size=1000)


def read(run: Run, *, after: int = 0, most: int = 1000) -> list[dict[str, Any]]:
    """A run's events after a seq, opened for their owner."""
    cipher = cipher_for(run.user_id)
    return [_open(event, cipher) for event in run.events.filter(seq__gt=after)[:most]]


def problems(runs: Sequence[Run], *, most: int = 50) -> dict[UUID, list[dict[str, Any]]]:
    """What went wrong, for several runs of one user in one query."""
    found: dict[UUID, list[dict[str, Any]]] = {run.pk: [] for run in runs}
    troubled = [run for run in runs if run.problems]
    if troubled:
        cipher = cipher_for(troubled[0].user_id)
        kinds = [str(kind) for kind in RunEvent.PROBLEMS]
        for event in RunEvent.objects.raw(_PROBLEMS, [[run.pk for run in troubled], kinds, most]):
            found[event.run_id].append(_open(event, cipher))
    return found


# The first of each run, by the index: a window function would read all events of all runs.
_PROBLEMS = """
SELECT problem.* FROM unnest(%s::uuid[]) AS wanted (id) CROSS JOIN LATERAL (
    SELECT * FROM agents_runevent WHERE run_id = wanted.id AND kind = ANY(%s) ORDER BY seq LIMIT %s
) AS problem ORDER BY problem.seq
"""


def _open(event: RunEvent, cipher: UserCipher) -> dict[str, Any]:
    source = message = ""
    if event.sealed is not None:
        source, message = orjson.loads(cipher.unseal(bytes(event.sealed), _TABLE, event.nonce, _COLUMN))
    return {
        "seq": event.seq,
        "at": event.at,
        "kind": event.kind,
        "code": event.code,
        "count": event.count,
        "source": source,
        "message": message,
    }
