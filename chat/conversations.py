"""Conversations as their owner reads, renames and deletes them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from django.db import connection, transaction

from adiuva.accounts.keys import cipher_for
from adiuva.core.crypto import UserCipher
from adiuva.core.errors import Invalid, NotFound
from chat.models import Conversation, Message
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
    """The title of each conversation by its id; "" for one that has none yet."""
    return {
        row.pk: Conversation.title.unseal_from(cipher, row) if row.title is not None else ""
        for row in conversations
    }


def read_messages(conversation: Conversation, *, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
    """Messages in order, decrypted: `{seq, role, text, mutations, finish?, code?, created_at}`."""
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


def rename(*, conversation: Conversation, title: str) -> str:
    """Return the stored title, on one line. Raises Invalid if it is empty or longer than MAX_TITLE_CHARS."""
    title = " ".join(title.split())
    if not title or len(title) > MAX_TITLE_CHARS:
        raise Invalid(
            f"a title has 1 to {MAX_TITLE_CHARS} characters",
            fields={"title": [f"1 to {MAX_TITLE_CHARS} characters."]},
        )
    sealed = Conversation.title.seal(cipher_for(conversation.user_id), title, conversation.pk)
    Conversation.objects.filter(pk=conversation.pk).update(title=sealed)
    return title


@transaction.atomic
def set_memory(*, conversation: Conversation, on: bool) -> None:
    """Switch memory on or off for a conversation.

    Off: nothing more of it is remembered, and exchanges that were not processed yet are dropped. What is already
    remembered stays.
    """
    _lock(conversation)
    Conversation.objects.filter(pk=conversation.pk).update(memory=on)
    if not on:
        exchanges.discard(
            user_id=conversation.user_id, kind=SourceKind.CONVERSATION, source_id=conversation.pk
        )


@transaction.atomic
def delete(*, conversation: Conversation) -> None:
    """Delete a conversation, its messages, and what is remembered from it alone.

    A turn that is still running ends normally, but nothing of it is stored. Raises NoSuchUser if the account is gone.
    """
    # With the lock, a message that is being added is either stored before and deleted here, or not stored at all.
    _lock(conversation)
    Conversation.objects.filter(pk=conversation.pk).delete()
    forgetting.forget_source(
        user_id=conversation.user_id, kind=SourceKind.CONVERSATION, source_id=conversation.pk
    )


def lock_and_check_memory(*, user_id: uuid.UUID, conversation_id: uuid.UUID) -> bool:
    """Whether the conversation exists with memory on. The answer holds until the surrounding transaction ends."""
    _lock(Conversation(pk=conversation_id, user_id=user_id))
    return Conversation.objects.of(user_id).filter(pk=conversation_id, memory=True).exists()


def _lock(conversation: Conversation) -> None:
    """Lock the account's row, then the conversation's: the order in which an account's deletion locks them.

    The memory's row is locked after both.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM accounts_user WHERE id = %s FOR KEY SHARE", [conversation.user_id])
    Conversation.objects.select_for_update().filter(pk=conversation.pk).only("pk").first()
