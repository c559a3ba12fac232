"""A user's choices about their memory: its switch, and its policy of which model providers may read which tier."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Final

from django.db import transaction

from adiuva import llm
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.errors import Conflict
from memory.entries import lock_memory
from memory.models import Exchange, Memory, Tier

ALL_TIERS: Final = frozenset(Tier)


class MemoryOff(Conflict):
    code = "memory_off"

    def __init__(self) -> None:
        super().__init__("the memory is switched off: nothing new is kept")


def get_memory(user_id: uuid.UUID) -> Memory:
    """Return the user's choices, or the defaults, unsaved, for a user who never made one."""
    return Memory.objects.filter(pk=user_id).first() or Memory(user_id=user_id)


def refuse_if_off(user_id: uuid.UUID) -> None:
    """Raise MemoryOff if the user has switched the memory off."""
    if Memory.objects.filter(pk=user_id, enabled=False).exists():
        raise MemoryOff


@transaction.atomic
def set_preferences(
    *,
    user_id: uuid.UUID,
    enabled: bool | None = None,
    tiers: Mapping[Tier, Sequence[str] | None] | None = None,
) -> Memory:
    """Set the switch and the policy of the given tiers. Raises NoSuchUser.

    Switching off keeps the entries and deletes the exchanges that wait to be read.
    """
    memory = lock_memory(user_id)
    if enabled is not None:
        memory.enabled = enabled
    for tier, providers in (tiers or {}).items():
        if providers is None:
            memory.policy.pop(str(tier), None)
        else:
            memory.policy[str(tier)] = sorted(set(providers))
    memory.save(update_fields=["enabled", "policy"])
    if not memory.enabled:
        Exchange.objects.filter(user_id=user_id).delete()
    if tiers or enabled:
        enqueue_on_commit(
            "memory.embed", user_id
        )  # the embedding model may read entries now that it could not read before
    return memory


def providers_by_tier(memory: Memory) -> dict[str, list[str] | None]:
    """Return the providers that may read each tier. None: any provider."""
    return {str(tier): memory.policy.get(tier) for tier in Tier}


def configured_providers() -> dict[str, str | None]:
    """Return the providers to which this server sends entries: that of the chat model and that of the embedding model.

    None: no model is configured, or it runs on this server.
    """
    try:
        chat: str | None = llm.chat_model().provider
    except llm.ModelNotConfigured:
        chat = None
    return {"chat": chat, "embedding": llm.embedding_model().provider or None}


def readable_tiers(policy: Mapping[str, object] | None, provider: str) -> frozenset[Tier]:
    """Return the tiers that a provider may read. A model in this process (provider `""`) may read all.

    A policy maps tiers to the providers that may read them; any provider may read a tier that is not in it.
    """
    if not provider or not policy:
        return ALL_TIERS
    return frozenset(tier for tier in Tier if _may_read(policy.get(tier), provider))


def _may_read(providers: object, provider: str) -> bool:
    return providers is None or (isinstance(providers, list) and provider in providers)
