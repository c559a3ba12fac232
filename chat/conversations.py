"""Conversations as their owner reads, renames and deletes them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from django.db import connection, transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from adiuva.accounts.keys import cipher_for
from adiuva.core.crypto import UserCipher
from adiuva.core.errors import Invalid, NotFound, Text
from chat.models import Conversation, Message, Turn
from memory import exchanges, forgetting
from memory.models import SourceKind

MAX_TITLE_CHARS = 200


class ConversationNotFound(NotFound):
    code = "conversation_not_found"

    def __init__(self) -> None:
        super().__init__("there is no such conversation, or it is not yours")


def parse_id(conversation_id: str | uuid.UUID) -> uuid.UUID:
    """Raises ConversationNotFound if it is not a UUID."""
    try:
        return uuid.UUID(str(conversation_id))
    except ValueError:
        raise ConversationNotFound from None


def open_titles(conversations: Iterable[Conversation], cipher: UserCipher) -> dict[uuid.UUID, str]:
    """Return the title of each conversation by its id; "" for one that has none yet."""
    return {
        row.pk: Conversation.title.unseal_from(cipher, row) if row.title is not None else ""
        for row in conversations
    }


def read_messages(conversation: Conversation, *, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
    """Return messages in order, decrypted: `{seq, role, text, mutations, finish?, code?, created_at}`."""
    cipher = cipher_for(conversation.user_id)
    return [
        {
            "seq": row.seq,
            "role": row.role,
            "created_at": row.created_at,
            "mutations": [],
            **Message.sealed.unseal_from(cipher, row),
        }
        for row in conversation.messages.filter(seq__gt=after)[:limit]
    ]


def read_changing_turns(
    conversation: Conversation, *, after: int = 0, limit: int = 100
) -> list[dict[str, Any]]:
    """Return the turns that changed rows on a device, latest first: `{request_id, seq, mutations, undone_at}`.

    These are turns whose request comes after the message `after`, and those that no message began (`seq` is None).
    """
    found = Turn.objects.of(conversation.user_id).filter(conversation=conversation).with_changes()
    rows = found.filter(Q(seq__gt=after) | Q(seq=None)).values(
        "request_id", "seq", "mutations", undone_at=F("changes__undone_at")
    )
    return [dict(row) for row in rows[:limit]]


def rename(*, conversation: Conversation, title: str) -> str:
    """Return the stored title, on one line. Raises Invalid if it is empty or longer than MAX_TITLE_CHARS."""
    title = " ".join(title.split())
    if not title or len(title) > MAX_TITLE_CHARS:
        raise Invalid(
            Text("a title has 1 to {most} characters", most=MAX_TITLE_CHARS),
            fields={"title": [Text("1 to {most} characters.", most=MAX_TITLE_CHARS)]},
        )
    sealed = Conversation.title.seal(cipher_for(conversation.user_id), title, conversation.pk)
    Conversation.objects.filter(pk=conversation.pk).update(title=sealed)
    return title


@transaction.atomic
def set_memory(*, conversation: Conversation, on: bool) -> None:
    """Switch memory on or off for a conversation.

    When it is off, nothing more of it is remembered, and exchanges that were not processed yet are dropped. What is
    already remembered stays.
    """
    lock(conversation.user_id, conversation.pk)
    Conversation.objects.filter(pk=conversation.pk).update(memory=on)
    if not on:
        exchanges.discard(
            user_id=conversation.user_id, kind=SourceKind.CONVERSATION, source_id=conversation.pk
        )


@transaction.atomic
def delete(*, conversation: Conversation) -> None:
    """Delete a conversation, its messages, and memories that come from it alone.

    A turn that is still running ends normally but is not stored; turns that wait do not begin. Raises NoSuchUser if the
    account is gone.
    """
    # The lock ensures that a message being added is either stored before and deleted here, or not stored at all.
    lock(conversation.user_id, conversation.pk)
    Turn.objects.waiting().filter(conversation=conversation.pk).update(
        state=Turn.State.ERROR, code=ConversationNotFound.code, ended_at=Now(), waiting_request=None
    )
    Conversation.objects.filter(pk=conversation.pk).delete()
    forgetting.forget_source(
        user_id=conversation.user_id, kind=SourceKind.CONVERSATION, source_id=conversation.pk
    )


def lock_and_check_memory(*, user_id: uuid.UUID, conversation_id: uuid.UUID) -> bool:
    """Return whether the conversation exists with memory on. The answer holds
    until the surrounding transaction ends."""
    lock(user_id, conversation_id)
    return Conversation.objects.of(user_id).filter(pk=conversation_id, memory=True).exists()


def lock(user_id: uuid.UUID, conversation_id: uuid.UUID) -> bool:
    """Lock the account's row, then the conversation's, in the order of an account's deletion.

    Callers lock rows of turns and the memory's row after both. Returns False if the conversation does not exist.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM accounts_user WHERE id = %s FOR KEY SHARE", [user_id])
    found = Conversation.objects.select_for_update(no_key=True).of(user_id).filter(pk=conversation_id)
    return found.only("pk").first() is not None
