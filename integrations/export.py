"""Connections in a user's data export, without their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from adiuva.core.export_archive import ROWS_PER_BATCH, ArchivePart, exported_columns, readable, register
from integrations.models import Connection


def _connections(user_id: UUID) -> Iterator[dict[str, Any]]:
    shown = exported_columns(Connection, but=["user"])
    for row in Connection.objects.of(user_id).order_by("created_at", "id").iterator(ROWS_PER_BATCH):
        yield {**{name: getattr(row, name) for name in shown}, **readable(partial(_account, row))}


def _account(row: Connection) -> Mapping[str, Any]:
    return {"account": row.address}


register(ArchivePart("connections.jsonl", "The mailboxes that are connected.", _connections))
