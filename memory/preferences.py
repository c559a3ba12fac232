"""What users choose about their memory: whether anything is remembered, and which model providers may read what."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from django.db import transaction

from adiuva import llm
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.errors import Conflict
from memory import entries
from memory.models import Exchange, Memory, Tier


class MemoryOff(Conflict):
    code = "memory_off"

    def __init__(self) -> None:
        super().__init__("the memory is switched off: nothing new is kept")


def get_memory(user_id: uuid.UUID) -> Memory:
    """What the user chose, or, where they never did, what holds then."""
    return Memory.objects.filter(pk=user_id).first() or Memory(user_id=user_id)


def refuse_if_off(user_id: uuid.UUID) -> None:
    """Raise MemoryOff."""
    if Memory.objects.filter(pk=user_id, enabled=False).exists():
        raise MemoryOff


def providers_by_tier(memory: Memory) -> dict[str, list[str] | None]:
    """By tier, the providers that may read it; None: any."""
    return {str(tier): memory.policy.get(tier) for tier in Tier}


@transaction.atomic
def set_preferences(
    *,
    user_id: uuid.UUID,
    enabled: bool | None = None,
    tiers: Mapping[Tier, Sequence[str] | None] | None = None,
) -> Memory:
    """Change the switch, and the policy of the tiers that are named. Raise NoSuchUser.

    Switched off, what is remembered stays; what was said and waits to be read is dropped.
    """
    memory = entries.lock_memory(user_id)
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
        enqueue_on_commit("memory.embed", user_id)  # for what may be read now and was not before
    return memory


def configured_providers() -> dict[str, str | None]:
    """Who gets to read, as things are configured: of a chat and of what is looked for. None: nobody outside."""
    try:
        chat: str | None = llm.chat_model().provider
    except llm.ModelNotConfigured:
        chat = None
    return {"chat": chat, "embedding": llm.embedding_model().provider or None}
