"""Admin of memory: how large it is and which providers read it. Content is sealed and never shown."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any, Final

from django.contrib import admin
from django.db import connection
from django.db.models import Count, Q, QuerySet, Sum
from django.db.models.functions import Length
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from adiuva.accounts.admin_base import PeriodFilter, ReadOnlyAdmin
from memory.models import Embedding, Entry, Exchange, Memory, Receipt

# A page that shows many users counts the entries of each up to this number.
_MAX_COUNTED: Final = 10_000


@admin.register(Memory)
class MemoryAdmin(ReadOnlyAdmin):
    list_display = ["user_id", "account", "enabled", "entries", "created_at", "consolidated_at"]
    search_keys = ("user_id",)
    ordering = ["-created_at"]
    readonly_fields = ["tiers", "vectors", "waiting"]
    fields = [
        "user",
        "enabled",
        "policy",
        "tiers",
        "vectors",
        "waiting",
        "created_at",
        "consolidate_at",
        "consolidated_at",
    ]

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        page = super().get_changelist_instance(request)
        counts = _counts([row.pk for row in page.result_list])
        for row in page.result_list:
            row.entry_count = counts[row.pk]
        return page

    @admin.display(description="entries")
    def entries(self, memory: Any) -> str:
        """Count entries, including history."""
        count: int = memory.entry_count
        return str(count) if count < _MAX_COUNTED else f"{_MAX_COUNTED} or more"

    @admin.display(description="entries by tier")
    def tiers(self, memory: Memory) -> SafeString:
        rows = (
            Entry.objects.of(memory.pk)
            .order_by("tier")
            .values_list("tier")
            .annotate(
                current=Count("pk", filter=Q(valid_to=None)), total=Count("pk"), size=Sum(Length("sealed"))
            )
        )
        lines = [
            (tier, current, total - current, filesizeformat(size)) for tier, current, total, size in rows
        ]
        head = "<tr><th>tier</th><th>current</th><th>history</th><th>sealed</th></tr>"
        cells = "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>"
        return format_html("<table>{}{}</table>", SafeString(head), format_html_join("", cells, lines))

    @admin.display(description="vectors by model")
    def vectors(self, memory: Memory) -> str:
        rows = Embedding.objects.filter(user_id=memory.pk).order_by("embedding_model")
        counts = rows.values_list("embedding_model").annotate(Count("pk"))
        return ", ".join(f"{count} of {model}" for model, count in counts) or "none"

    @admin.display(description="waiting to be read")
    def waiting(self, memory: Memory) -> int:
        return Exchange.objects.filter(user_id=memory.pk, recorded_at=None).count()


def _counts(user_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, int]:
    with connection.cursor() as cursor:
        cursor.execute(_COUNT, [_MAX_COUNTED, list(user_ids)])
        return dict(cursor.fetchall())


_COUNT: Final = """
SELECT wanted.id, (SELECT count(*) FROM (SELECT FROM memory_entry WHERE user_id = wanted.id LIMIT %s) AS first)
FROM unnest(%s::uuid[]) AS wanted (id)
"""


@admin.register(Entry)
class EntryAdmin(ReadOnlyAdmin):
    list_display = ["id", "account", "tier", "bytes", "valid_from", "valid_to", "uses", "used_at"]
    list_filter = ["tier"]
    ordering = ["id"]  # the order has no meaning, but there is an index for it
    fields = [
        "id",
        "user",
        "tier",
        "bytes",
        "confidence",
        "derived",
        "proposed",
        "successor_id",
        "began_at",
        "ended_at",
        "valid_from",
        "valid_to",
        "uses",
        "used_at",
        "created_at",
        "updated_at",
        "sources",
    ]
    readonly_fields = ["bytes", "sources", "successor_id"]

    def all_rows(self, request: HttpRequest) -> QuerySet[Any]:
        rows = Entry.objects.defer("sealed", "key_hash", "fingerprint", "terms")
        return rows.annotate(sealed_bytes=Length("sealed"))

    @admin.display(description="sealed bytes")
    def bytes(self, entry: Any) -> int:
        count: int = entry.sealed_bytes
        return count

    @admin.display(description="sources by kind")
    def sources(self, entry: Entry) -> str:
        counts = entry.sources.order_by("kind").values_list("kind").annotate(Count("pk"))
        return ", ".join(f"{count} {kind}" for kind, count in counts) or "none"


@admin.register(Receipt)
class ReceiptAdmin(ReadOnlyAdmin):
    is_large = True
    list_display = ["id", "account", "purpose", "provider", "model", "count", "withheld", "at"]
    list_filter = ["purpose", ("at", PeriodFilter)]
    ordering = ["-at"]
    fields = [
        "id",
        "user",
        "purpose",
        "turn_id",
        "conversation_id",
        "provider",
        "model",
        "count",
        "withheld",
        "at",
    ]
    readonly_fields = ["count", "turn_id", "conversation_id"]

    @admin.display(description="entries")
    def count(self, receipt: Receipt) -> int:
        return len(receipt.entries)
