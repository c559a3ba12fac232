"""Conversations with all that was said, for the archive of an account."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from adiuva.accounts.keys import cipher_for
from adiuva.core.archive import ROWS_PER_BATCH, ArchivePart, exported_columns, readable, register
from adiuva.core.crypto import UserCipher
from chat import conversations
from chat.models import Conversation, Message, Turn


def _conversations(user_id: UUID) -> Iterator[dict[str, Any]]:
    cipher, names = cipher_for(user_id), exported_columns(Conversation, but=["user"])
    for row in Conversation.objects.of(user_id).order_by("created_at", "id").iterator(ROWS_PER_BATCH):
        known = {name: getattr(row, name) for name in names}
        yield {**known, **readable(partial(_open_texts, row, cipher))}


def _open_texts(row: Conversation, cipher: UserCipher) -> Mapping[str, Any]:
    def unseal(column: str) -> str:
        sealed = getattr(row, column)
        return cipher.unseal(sealed, "conversation", row.pk, column) if sealed is not None else ""

    return {"title": unseal("title"), "summary": unseal("summary")}


def _messages(user_id: UUID) -> Iterator[dict[str, Any]]:
    cipher, names = cipher_for(user_id), exported_columns(Message, but=["id"])
    rows = Message.objects.filter(conversation__user_id=user_id).order_by("conversation_id", "seq")
    for row in rows.iterator(ROWS_PER_BATCH):
        known = {name: getattr(row, name) for name in names}
        body = partial(conversations._open, cipher, conversations._place(row), row.sealed)
        yield {**known, **readable(body)}


def _turns(user_id: UUID) -> Iterator[dict[str, Any]]:
    rows = Turn.objects.of(user_id).order_by("started_at", "id")
    yield from rows.values(*exported_columns(Turn, but=["user", "owner"])).iterator(ROWS_PER_BATCH)


register(
    ArchivePart("conversations.jsonl", "The conversations, with their titles and summaries.", _conversations),
    ArchivePart("messages.jsonl", "What was said in them.", _messages),
    ArchivePart("turns.jsonl", "How the assistant's turns went, of the last 30 days.", _turns),
)
