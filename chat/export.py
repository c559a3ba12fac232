"""Puts a user's conversations, messages and turns into the archive of their account."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from adiuva.accounts.keys import cipher_for
from adiuva.core.crypto import UserCipher
from adiuva.core.export_archive import ROWS_PER_BATCH, ArchivePart, exported_columns, readable, register
from adiuva.core.leases import LEASE_FIELDS
from chat.models import Conversation, Message, Turn, TurnChanges


def _conversations(user_id: UUID) -> Iterator[dict[str, Any]]:
    cipher, names = cipher_for(user_id), exported_columns(Conversation, but=["user"])
    for row in Conversation.objects.of(user_id).order_by("created_at", "id").iterator(ROWS_PER_BATCH):
        known = {name: getattr(row, name) for name in names}
        yield {**known, **readable(partial(_texts, row, cipher))}


def _texts(row: Conversation, cipher: UserCipher) -> Mapping[str, Any]:
    return {
        "title": Conversation.title.unseal_from(cipher, row) if row.title is not None else "",
        "summary": Conversation.summary.unseal_from(cipher, row) if row.summary is not None else "",
    }


def _messages(user_id: UUID) -> Iterator[dict[str, Any]]:
    cipher, names = cipher_for(user_id), exported_columns(Message, but=["id"])
    rows = Message.objects.filter(conversation__user_id=user_id).order_by("conversation_id", "seq")
    for row in rows.iterator(ROWS_PER_BATCH):
        known = {name: getattr(row, name) for name in names}
        yield {**known, **readable(partial(Message.sealed.unseal_from, cipher, row))}


def _turns(user_id: UUID) -> Iterator[dict[str, Any]]:
    cipher, names = cipher_for(user_id), exported_columns(Turn, but=["user", "owner", *LEASE_FIELDS])
    rows = Turn.objects.of(user_id).select_related("changes").order_by("started_at", "id")
    for row in rows.iterator(ROWS_PER_BATCH):
        known = {name: getattr(row, name) for name in names}
        yield {**known, **readable(partial(_sealed_parts, row, cipher))}


def _sealed_parts(row: Turn, cipher: UserCipher) -> Mapping[str, Any]:
    changes = getattr(row, "changes", None)
    return {
        "foreign": [] if row.foreign is None else Turn.foreign.unseal_from(cipher, row),
        "waiting_request": {}
        if row.waiting_request is None
        else Turn.waiting_request.unseal_from(cipher, row),
        "late_answer": {} if row.late_answer is None else Turn.late_answer.unseal_from(cipher, row),
        "changes": [] if changes is None else TurnChanges.sealed.unseal_from(cipher, changes),
    }


register(
    ArchivePart("conversations.jsonl", "The conversations, with their titles and summaries.", _conversations),
    ArchivePart("messages.jsonl", "What was said in them.", _messages),
    ArchivePart("turns.jsonl", "How the assistant's turns went, of the last 30 days.", _turns),
)
