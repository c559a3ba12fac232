"""Exchanges: the words said in turns, kept sealed until facts were extracted from them and an episode was written."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.db import transaction

from adiuva.core.crypto import UserCipher
from adiuva.core.db import prepared_cursor
from memory import intent
from memory.entries import SourceRef, lock_memory
from memory.models import EntrySource, Exchange, SourceKind

# A common table expression that stores the exchange of `exchange_values`, if there is one. `owner`: its account, locked
# against its deletion; none if nothing is to be stored.
KEPT_SQL: Final = """
kept AS (
    INSERT INTO memory_exchange (id, user_id, kind, source_id, seq, sealed, attempts, fence)
    SELECT %(exchange)s, owner.id, %(exchange_kind)s, %(exchange_source)s, %(exchange_seq)s, %(exchange_sealed)s, 0, 0
    FROM {owner} AS owner
    WHERE %(exchange)s::uuid IS NOT NULL
        AND NOT EXISTS (SELECT FROM memory_memory WHERE memory_memory.user_id = owner.id AND NOT enabled)
    ON CONFLICT DO NOTHING
)
"""
_STORE: Final = f"""
WITH account AS (SELECT id FROM accounts_user WHERE id = %(user)s FOR KEY SHARE), {KEPT_SQL.format(owner="account")}
SELECT
"""  # noqa: S608
NO_EXCHANGE: Final = dict.fromkeys(f"exchange{part}" for part in ("", "_kind", "_source", "_seq", "_sealed"))


def store(*, user_id: uuid.UUID, **exchange: Any) -> None:
    """Store the user's words in a turn and the answer. One statement; does nothing while the memory is off.

    `exchange`: the parameters of `exchange_values`. Facts are extracted once the user has been quiet for a while
    (fact_extraction.enqueue_due).
    """
    with prepared_cursor() as cursor:
        cursor.execute(_STORE, {"user": user_id, **exchange_values(**exchange)})


def exchange_values(
    *,
    cipher: UserCipher,
    kind: SourceKind,
    source_id: uuid.UUID,
    seq: int | None,
    said: Sequence[str],
    answer: str,
    foreign: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """Return a turn's exchange as the parameters of KEPT_SQL.

    `foreign`: `{table, id}` of the texts that the turn read and that the user did not write.
    """
    key = uuid.uuid4()
    body = {"said": list(said), "answer": answer, "foreign": list(foreign)}
    return {
        "exchange": key,
        "exchange_kind": kind.value,
        "exchange_source": source_id,
        "exchange_seq": seq,
        "exchange_sealed": Exchange.sealed.seal(cipher, body, key),
    }


@transaction.atomic
def discard(*, user_id: uuid.UUID, kind: SourceKind, source_id: uuid.UUID) -> None:
    """Delete the exchanges of one conversation or request that were not read, or are not part of an episode yet."""
    lock_memory(user_id)
    Exchange.objects.filter(user_id=user_id, kind=kind, source_id=source_id).delete()


@dataclass(frozen=True, slots=True)
class UnsealedExchange:
    """An exchange, unsealed. `attempts` counts the claims until its row was read.

    `foreign`: `{table, id}` of the texts that its turn read and that the user did not write.
    """

    id: uuid.UUID
    kind: SourceKind
    source_id: uuid.UUID
    seq: int | None
    at: dt.datetime
    attempts: int
    said: str
    answer: str
    foreign: Sequence[Mapping[str, str]] = ()
    sealed_foreign: bytes | None = None

    @property
    def source(self) -> SourceRef:
        return SourceRef(self.kind, self.source_id, self.seq, self.at, self.sealed_foreign)

    @property
    def own_words(self) -> str:
        """The user's words, without the texts that they quoted."""
        return intent.own_words(self.said)


def unseal_exchange(row: Exchange, cipher: UserCipher) -> UnsealedExchange:
    """Return an exchange. Raises SealBroken if the row was altered or moved."""
    value = Exchange.sealed.unseal_from(cipher, row)
    return UnsealedExchange(
        id=row.pk,
        kind=SourceKind(row.kind),
        source_id=row.source_id,
        seq=row.seq,
        at=row.said_at,
        attempts=row.attempts,
        said="\n\n".join(value["said"]),
        answer=value["answer"],
        foreign=value.get("foreign", ()),
        sealed_foreign=seal_foreign(cipher, value.get("foreign", ()), row.source_id),
    )


def seal_foreign(
    cipher: UserCipher, foreign: Sequence[Mapping[str, str]], source_id: uuid.UUID
) -> bytes | None:
    """Seal the list of the texts that were read at a source, in the form that the sources of entries have."""
    return EntrySource.foreign.seal(cipher, list(foreign), source_id) if foreign else None


def shorten(text: str, max_chars: int) -> str:
    """Keep the beginning and the end of a text that is too long."""
    if len(text) <= max_chars:
        return text
    return f"{text[: max_chars * 2 // 3]}\n[…]\n{text[-(max_chars // 3) :]}"
