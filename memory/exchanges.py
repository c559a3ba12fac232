"""What was said in turns, kept sealed until it has been read for facts and told of in an episode."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from django.db import connection, transaction

from adiuva.core.crypto import UserCipher
from adiuva.core.enqueue import enqueue_on_commit
from memory import entries
from memory.entries import SourceRef
from memory.models import Exchange, SourceKind

_KEEP: Final = """
INSERT INTO memory_exchange (id, user_id, kind, source_id, seq, sealed, attempts)
SELECT %(id)s, asker.id, %(kind)s, %(source)s, %(seq)s, %(sealed)s, 0 FROM accounts_user AS asker
WHERE asker.id = %(user)s
    AND NOT EXISTS (SELECT FROM memory_memory WHERE memory_memory.user_id = asker.id AND NOT enabled)
FOR KEY SHARE OF asker
ON CONFLICT DO NOTHING
"""


def store(
    *,
    user_id: uuid.UUID,
    cipher: UserCipher,
    kind: SourceKind,
    source_id: uuid.UUID,
    seq: int | None,
    said: Sequence[str],
    answer: str,
) -> None:
    """Keep what a user said in a turn, and what was answered, until it has been read. One statement; nothing where the
    user's memory is off."""
    key = uuid.uuid4()
    body = orjson.dumps({"said": list(said), "answer": answer}).decode()
    with connection.cursor() as cursor:
        cursor.execute(
            _KEEP,
            {
                "id": key,
                "user": user_id,
                "kind": kind,
                "source": source_id,
                "seq": seq,
                "sealed": cipher.seal(body, "memory_exchange", key, "sealed"),
            },
        )
        if cursor.rowcount:
            enqueue_on_commit("memory.record", user_id)


@transaction.atomic
def discard(*, user_id: uuid.UUID, kind: SourceKind, source_id: uuid.UUID) -> None:
    """Let go of what was said somewhere and has not been read, or not been told of in an episode yet."""
    entries.lock_memory(user_id)
    Exchange.objects.filter(user_id=user_id, kind=kind, source_id=source_id).delete()


@dataclass(frozen=True, slots=True)
class UnsealedExchange:
    """An exchange, opened. `tries`: with the one that it was claimed for."""

    id: uuid.UUID
    kind: SourceKind
    source_id: uuid.UUID
    seq: int | None
    at: dt.datetime
    tries: int
    said: str
    answer: str

    @property
    def origin(self) -> SourceRef:
        return SourceRef(self.kind, self.source_id, self.seq, self.at)


def unseal_exchange(row: Exchange, cipher: UserCipher) -> UnsealedExchange:
    """Raise SealBroken for a row that was altered or moved."""
    body: dict[str, Any] = orjson.loads(cipher.unseal(row.sealed, "memory_exchange", row.pk, "sealed"))
    said, kind = "\n\n".join(body["said"]), SourceKind(row.kind)
    return UnsealedExchange(
        row.pk, kind, row.source_id, row.seq, row.said_at, row.attempts, said, body["answer"]
    )


def shorten(text: str, most: int) -> str:
    """A text's beginning and its end, where it is too long."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]}\n[…]\n{text[-(most // 3) :]}"
