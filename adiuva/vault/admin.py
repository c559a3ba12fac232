"""The vault in the admin. Staff see sizes, times and states, but no names of tables and no content."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from adiuva.accounts.admin_base import PeriodFilter, ReadOnlyAdmin
from adiuva.vault.models import Backup, Record, Scrub, Upload, VectorSpace


@admin.register(Record)
class RecordAdmin(ReadOnlyAdmin):
    list_display = [
        "id",
        "account",
        "size",
        "version",
        "updated_at",
        "deleted_at",
        "verified_at",
        "corrupt",
    ]
    list_filter = ["corrupt", ("updated_at", PeriodFilter)]
    ordering = ["-number"]
    fields = [
        "id",
        "user",
        "size",
        "version",
        "created_at",
        "updated_at",
        "deleted_at",
        "verified_at",
        "corrupt",
    ]

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).defer("blob")


@admin.register(Backup)
class BackupAdmin(ReadOnlyAdmin):
    list_display = ["id", "account", "version", "size", "created_at", "verified_at", "corrupt"]
    list_filter = ["corrupt", ("created_at", PeriodFilter)]
    ordering = ["-created_at"]
    fields = [
        "id",
        "user",
        "version",
        "timestamp_ms",
        "base_ms",
        "size",
        "chunk_count",
        "created_at",
        "verified_at",
        "corrupt",
    ]


@admin.register(Upload)
class UploadAdmin(ReadOnlyAdmin):
    list_display = ["id", "account", "purpose", "offset", "length", "created_at", "expires_at"]
    list_filter = ["purpose", "direct"]
    ordering = ["-created_at"]
    fields = ["id", "user", "purpose", "direct", "offset", "length", "created_at", "expires_at"]


@admin.register(VectorSpace)
class VectorSpaceAdmin(ReadOnlyAdmin):
    list_display = ["space", "account", "dimensions", "count", "created_at"]
    ordering = ["-created_at"]
    fields = ["user", "space", "dimensions", "count", "created_at"]


@admin.register(Scrub)
class ScrubAdmin(ReadOnlyAdmin):
    """Objects that were verified, by day."""

    list_display = ["day", "checked", "bytes", "corrupt", "missing"]
    ordering = ["-day"]
    fields = ["day", "checked", "bytes", "corrupt", "missing"]
    search_fields = []
    list_select_related = []

    def get_queryset(self, request: HttpRequest) -> Any:
        return self.all_rows(request)
