"""Receipts: which entries were sent to a model provider, when, and for what purpose.

A model in this process has no provider (`""`): entries that it reads do not leave the server and need no receipt.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from django.db import connection

from adiuva.llm import ChatModel, EmbeddingModel
from memory.models import Receipt


def write_receipt(
    *,
    user_id: uuid.UUID,
    purpose: Receipt.Purpose,
    model: ChatModel | EmbeddingModel,
    entries: Sequence[uuid.UUID],
    withheld: Collection[str] = (),
    conversation_id: uuid.UUID | None = None,
) -> None:
    """Record that entries are sent to a model. Does nothing if there is nothing to record."""
    if model.provider and (entries or withheld):
        Receipt.objects.create(
            user_id=user_id,
            purpose=purpose,
            conversation_id=conversation_id,
            provider=model.provider,
            model=model.name,
            entries=list(entries),
            withheld=sorted(withheld),
        )


@dataclass(frozen=True, slots=True)
class TurnReader:
    """The model that reads recalled entries, and the turn in which it does."""

    user_id: uuid.UUID
    provider: str
    model: str
    turn_id: uuid.UUID
    conversation_id: uuid.UUID | None


def write_turn_receipt(reader: TurnReader, entries: Sequence[uuid.UUID], withheld: Collection[str]) -> None:
    """Record that entries are sent to a turn's model, and count one more use of each. One statement."""
    if not entries and not withheld:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            _TURN_RECEIPT,
            {
                "user": reader.user_id,
                "ids": list(entries),
                "receipt": uuid.uuid4(),
                "turn": reader.turn_id,
                "conversation": reader.conversation_id,
                "provider": reader.provider,
                "model": reader.model,
                "withheld": sorted(withheld),
            },
        )


# The account is locked before its entries, as its deletion does, and entries in the order of their ids. Entries that
# another transaction has locked are skipped: counting a use is not worth waiting for.
_TURN_RECEIPT: Final = """
WITH reader AS (SELECT id FROM accounts_user WHERE id = %(user)s FOR KEY SHARE),
used AS (
    SELECT entry.id FROM reader JOIN memory_entry AS entry ON entry.user_id = reader.id
    WHERE entry.id = ANY(%(ids)s::uuid[])
    ORDER BY entry.id FOR NO KEY UPDATE OF entry SKIP LOCKED
),
counted AS (
    UPDATE memory_entry SET uses = uses + 1, used_at = now() FROM used WHERE memory_entry.id = used.id
)
INSERT INTO memory_receipt (id, user_id, purpose, turn_id, conversation_id, provider, model, entries, withheld)
SELECT %(receipt)s, id, 'turn', %(turn)s, %(conversation)s, %(provider)s, %(model)s, %(ids)s::uuid[],
    %(withheld)s::varchar[]
FROM reader WHERE %(provider)s <> ''
"""
