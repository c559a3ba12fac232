"""All that is remembered of a user, with its history and its sources, for the archive of the account."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from adiuva.accounts.keys import cipher_for
from adiuva.core.archive import ROWS_PER_BATCH, ArchivePart, exported_columns, readable, register
from adiuva.core.crypto import UserCipher
from memory import entries, exchanges, preferences
from memory.models import Entry, Exchange, Receipt


def _memory(user_id: UUID) -> Iterator[dict[str, Any]]:
    memory = preferences.get_memory(user_id)
    yield {"enabled": memory.enabled, "tiers": preferences.providers_by_tier(memory)}


def _entries(user_id: UUID) -> Iterator[dict[str, Any]]:
    cipher = cipher_for(user_id)
    # The vector itself is numbers of its model alone: it can be made again of what the entry says.
    rows = Entry.objects.of(user_id).defer("terms", "fingerprint", "embedding__vector")
    rows = rows.select_related("embedding").prefetch_related("sources").order_by("created_at", "id")
    for entry in rows.iterator(ROWS_PER_BATCH):
        embedding = getattr(entry, "embedding", None)
        yield {
            "id": entry.pk,
            "tier": entry.tier,
            **readable(partial(_said, entry, cipher)),
            "confidence": entry.confidence,
            "derived": entry.derived,
            "began_at": entry.began_at,
            "ended_at": entry.ended_at,
            "valid_from": entry.valid_from,
            "valid_to": entry.valid_to,
            "replaced_by": entry.successor_id,
            "uses": entry.uses,
            "used_at": entry.used_at,
            "created_at": entry.created_at,
            "updated_at": entry.updated_at,
            "embedding_model": embedding.embedding_model if embedding else None,
            "sources": [
                {"kind": source.kind, "id": source.source_id, "seq": source.seq, "at": source.at}
                for source in entry.sources.all()
            ],
        }


def _said(entry: Entry, cipher: UserCipher) -> Mapping[str, Any]:
    said = entries.unseal_entry(entry, cipher)
    return {"key": said.key, "content": said.content}


def _waiting(user_id: UUID) -> Iterator[dict[str, Any]]:
    cipher, names = cipher_for(user_id), exported_columns(Exchange, but=["user"])
    for row in Exchange.objects.filter(user_id=user_id).order_by("said_at", "id").iterator(ROWS_PER_BATCH):
        known = {name: getattr(row, name) for name in names}
        yield {**known, **readable(partial(_heard, row, cipher))}


def _heard(row: Exchange, cipher: UserCipher) -> Mapping[str, Any]:
    heard = exchanges.unseal_exchange(row, cipher)
    return {"said": heard.said, "answer": heard.answer}


def _receipts(user_id: UUID) -> Iterator[dict[str, Any]]:
    rows = Receipt.objects.filter(user_id=user_id).order_by("at", "id")
    yield from rows.values(*exported_columns(Receipt, but=["user"])).iterator(ROWS_PER_BATCH)


register(
    ArchivePart(
        "memory.jsonl", "Whether anything is remembered, and which model providers may read it.", _memory
    ),
    ArchivePart(
        "memory_entries.jsonl",
        "What is remembered, where it is known from, and what was so before (`replaced_by`: what is so instead).",
        _entries,
    ),
    ArchivePart(
        "memory_waiting.jsonl",
        "What was said lately and is still to be read for what is worth keeping.",
        _waiting,
    ),
    ArchivePart("memory_receipts.jsonl", "Which entries left for a model, when, and what for.", _receipts),
)
