"""Memory's files in the archive of an account: entries with history and sources, exchanges, receipts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from adiuva.accounts.keys import cipher_for
from adiuva.core.crypto import UserCipher
from adiuva.core.export_archive import ROWS_PER_BATCH, ArchivePart, exported_columns, readable, register
from memory import entry_content, exchanges, preferences
from memory.models import Entry, Exchange, Receipt


def _memory(user_id: UUID) -> Iterator[dict[str, Any]]:
    memory = preferences.get_memory(user_id)
    yield {"enabled": memory.enabled, "tiers": preferences.providers_by_tier(memory)}


def _entries(user_id: UUID) -> Iterator[dict[str, Any]]:
    cipher = cipher_for(user_id)
    # Not the vector: it means something only to its model, and can be computed again from the content.
    rows = Entry.objects.of(user_id).defer("terms", "fingerprint", "embedding__vector")
    rows = rows.select_related("embedding").prefetch_related("sources").order_by("created_at", "id")
    for entry in rows.iterator(ROWS_PER_BATCH):
        embedding = getattr(entry, "embedding", None)
        yield {
            "id": entry.pk,
            "tier": entry.tier,
            "state": entry.state,
            **readable(partial(_content, entry, cipher)),
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
                {
                    "kind": source.kind,
                    "id": source.source_id,
                    "seq": source.seq,
                    "at": source.at,
                    "ended": source.ended,
                    "opened": entry_content.opened_at(source, cipher),
                }
                for source in entry.sources.all()
            ],
        }


def _content(entry: Entry, cipher: UserCipher) -> Mapping[str, Any]:
    content = entry_content.unseal_entry(entry, cipher)
    return {"key": content.key, "content": content.content, "replaces": content.replaces}


def _exchanges(user_id: UUID) -> Iterator[dict[str, Any]]:
    cipher, names = cipher_for(user_id), exported_columns(Exchange, but=["user"])
    for row in Exchange.objects.filter(user_id=user_id).order_by("said_at", "id").iterator(ROWS_PER_BATCH):
        yield {
            **{name: getattr(row, name) for name in names},
            **readable(partial(_exchange_texts, row, cipher)),
        }


def _exchange_texts(row: Exchange, cipher: UserCipher) -> Mapping[str, Any]:
    exchange = exchanges.unseal_exchange(row, cipher)
    return {"said": exchange.said, "answer": exchange.answer, "opened": list(exchange.foreign)}


def _receipts(user_id: UUID) -> Iterator[dict[str, Any]]:
    rows = Receipt.objects.filter(user_id=user_id).order_by("at", "id")
    yield from rows.values(*exported_columns(Receipt, but=["user"])).iterator(ROWS_PER_BATCH)


register(
    ArchivePart("memory.jsonl", "Whether your memory is on, and which model providers may read it.", _memory),
    ArchivePart(
        "memory_entries.jsonl",
        "What is remembered, its sources, and its history (`replaced_by` names the entry that replaced it).",
        _entries,
    ),
    ArchivePart(
        "memory_waiting.jsonl",
        "Recent messages and answers from which facts or an episode are still to be extracted.",
        _exchanges,
    ),
    ArchivePart(
        "memory_receipts.jsonl",
        "Which entries were sent to a model provider, when, and for what purpose.",
        _receipts,
    ),
)
