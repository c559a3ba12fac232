"""The user's profile: core entries that name the user, for models that read their documents.

The user writes them like any entry of that tier (in a chat, or by REST under these keys), and the memory proposes them
from the user's words.
"""

from __future__ import annotations

import uuid
from typing import Final

import structlog

from adiuva import llm
from adiuva.accounts.keys import cipher_for
from adiuva.core.crypto import SealBroken
from memory import entry_content
from memory.models import Entry, Memory, Receipt, Tier
from memory.preferences import readable_tiers
from memory.receipts import write_receipt

KEYS: Final = ("name", "other names", "company", "email addresses", "address", "profession")
_MAX_CHARS: Final = 300

log = structlog.get_logger(__name__)


def read_profile(user_id: uuid.UUID, model: llm.ChatModel) -> str:
    """Return a line for each known entry, and write their receipt; "" if there is none, or the model may not
    read any.
    """
    memory = Memory.objects.filter(pk=user_id).first()
    if memory is not None and (
        not memory.enabled or Tier.CORE not in readable_tiers(memory.policy, model.provider)
    ):
        return ""
    cipher = cipher_for(user_id)
    by_hash = {entry_content.hash_key(cipher, key): key for key in KEYS}
    found: dict[str, tuple[uuid.UUID, str]] = {}
    for entry in Entry.objects.of(user_id).current().filter(tier=Tier.CORE, key_hash__in=list(by_hash)):
        try:
            content = entry_content.unseal_entry(entry, cipher).content
        except SealBroken:
            log.error("memory.seal_broken", user_id=str(user_id), entry_id=str(entry.pk))
            continue
        found[by_hash[bytes(entry.key_hash or b"")]] = entry.pk, " ".join(content.split())[:_MAX_CHARS]
    write_receipt(
        user_id=user_id,
        purpose=Receipt.Purpose.EXTRACT,
        model=model,
        entries=[key for key, _ in found.values()],
    )
    return "\n".join(f"{key}: {found[key][1]}" for key in KEYS if key in found)
