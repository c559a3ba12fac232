"""Builders of memories with a past, and answers of a scripted model that condenses and finds patterns."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import uuid
from typing import Any

from django.db import connection
from django.db.models.functions import Now

from adiuva import llm
from adiuva.accounts.keys import cipher_for
from memory import consolidation, entries, entry_content
from memory.entries import EntryDetails, SourceRef
from memory.models import Entry, Memory, SourceKind, Tier
from tests.fakes.provider import Request

_TIMES = {
    "memory_entry": "valid_from valid_to created_at updated_at used_at began_at ended_at",
    "memory_memory": "consolidate_at consolidated_at lease_until",
    "memory_receipt": "at",
}


def place(name: str) -> uuid.UUID:
    """The id of the conversation with this name."""
    return uuid.uuid5(uuid.NAMESPACE_OID, name)


def said(where: str, seq: int = 1, at: dt.datetime | None = None) -> SourceRef:
    return SourceRef(SourceKind.CONVERSATION, place(where), seq, at)


def seen(user: uuid.UUID, content: str, where: str, seq: int = 1) -> Entry:
    return entries.remember(
        user_id=user, tier=Tier.ASSOCIATIVE, content=content, source=said(where, seq)
    ).entry


def episode(user: uuid.UUID, content: str, where: str, at: dt.datetime | None = None) -> Entry:
    """An episode of one hour."""
    at = at or dt.datetime.now(dt.UTC)
    return entries.remember(
        user_id=user,
        tier=Tier.EPISODIC,
        content=content,
        source=said(where, at=at),
        details=EntryDetails(began_at=at, ended_at=at + dt.timedelta(hours=1)),
    ).entry


def says(entry: Entry) -> str:
    return entry_content.unseal_entry(entry, cipher_for(entry.user_id)).content


def holding(user: uuid.UUID, tier: Tier) -> dict[str, Entry]:
    return {says(entry): entry for entry in Entry.objects.of(user).current().filter(tier=tier)}


def days_pass(user: uuid.UUID, days: float) -> None:
    """Make everything that is remembered of a user older."""
    ago = dt.timedelta(days=days)
    with connection.cursor() as cursor:
        for table, columns in _TIMES.items():
            changes = ", ".join(f"{name} = {name} - %(ago)s" for name in columns.split())
            cursor.execute(
                f"UPDATE {table} SET {changes} WHERE user_id = %(user)s", {"ago": ago, "user": user}
            )
        cursor.execute(
            "UPDATE memory_entrysource SET at = at - %(ago)s FROM memory_entry"
            " WHERE memory_entry.id = entry_id AND user_id = %(user)s",
            {"ago": ago, "user": user},
        )


def consolidate() -> int:
    """Consolidate due memories, as a worker does."""

    async def work() -> int:
        try:
            return await consolidation.consolidate_due()
        finally:
            await llm.aclose()

    return asyncio.run(work())


def visit(user: uuid.UUID) -> None:
    """Make the user's memory due and free, and consolidate it."""
    Memory.objects.filter(pk=user).update(consolidate_at=Now(), lease_until=None)
    assert consolidate() == 1


def asked_for(request: Request) -> str:
    name: str = request.body["response_format"]["json_schema"]["name"]
    return name


def lines(request: Request, name: str) -> list[str]:
    """The lines between the delimiters with this name in the first user message."""
    found = re.search(
        rf"\[begin {name} (data-\w+)\]\n(.*?)\n?\[end {name} \1\]",
        request.body["messages"][1]["content"],
        re.S,
    )
    assert found
    return found[2].split("\n") if found[2] else []


def labelled(request: Request, name: str) -> dict[str, str]:
    """Those lines, by label."""
    found = (line.partition(": ") for line in lines(request, name))
    return {label.split()[0]: text for label, _, text in found}


def condensed(request: Request) -> dict[str, Any]:
    return {"summary": "In all: " + " | ".join(line.partition(": ")[2] for line in lines(request, "notes"))}


def nothing_found() -> dict[str, Any]:
    return {"new": [], "confirmed": [], "contradicted": []}


def snapshot(user: uuid.UUID) -> list[Any]:
    """All entries of a user in a form that compares."""
    return sorted(
        (
            entry.tier,
            says(entry),
            entry.derived,
            round(entry.confidence or 0, 6),
            entry.valid_to is None,
            says(entry.successor) if entry.successor else "",
            sorted((str(it.source_id), it.seq or 0) for it in entry.sources.all()),
        )
        for entry in Entry.objects.of(user)
    )
