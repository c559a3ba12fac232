"""Exports in the admin. Staff see that and when an account was exported, and its size. The content stays sealed."""

from __future__ import annotations

from django.contrib import admin

from adiuva.accounts.admin_base import PeriodFilter, ReadOnlyAdmin
from adiuva.export.models import Export


@admin.register(Export)
class ExportAdmin(ReadOnlyAdmin):
    list_display = [
        "id",
        "account",
        "state",
        "code",
        "size",
        "attempt",
        "created_at",
        "ended_at",
        "expires_at",
    ]
    list_filter = ["state", ("created_at", PeriodFilter)]
    ordering = ["-created_at", "-id"]
    fields = [
        "id",
        "user",
        "state",
        "code",
        "attempt",
        "size",
        "chunks",
        "created_at",
        "ended_at",
        "expires_at",
    ]
