"""Staff see that and when an account was exported, and how large it was. What is in it stays sealed."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from adiuva.accounts.admin_base import ReadOnlyAdmin
from adiuva.export.models import Export


@admin.register(Export)
class ExportAdmin(ReadOnlyAdmin):
    list_display = ["id", "user", "state", "code", "size", "attempt", "created_at", "ended_at", "expires_at"]
    search_help_text = "An export's id, or the beginning of its owner's e-mail address"
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

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
