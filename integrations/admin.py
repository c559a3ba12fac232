"""Admin of connections: staff see their health. Addresses and tokens stay sealed."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import admin
from django.http import HttpRequest

from adiuva.accounts.admin_base import ReadOnlyAdmin
from integrations.models import Connection, Health


@admin.register(Connection)
class ConnectionAdmin(ReadOnlyAdmin):
    list_display = [
        "id",
        "user",
        "provider",
        "health",
        "reason",
        "last_used_at",
        "refreshed_at",
        "created_at",
    ]
    list_filter = ["provider", "health", "reason"]
    search_keys = ("id", "user_id")
    search_help_text = "A connection's or user's id, or the beginning of its owner's e-mail address"
    ordering = ["-created_at"]
    readonly_fields = ["reconnect"]
    fields = [
        "id",
        "user",
        "provider",
        "health",
        "reason",
        "reconnect",
        "scopes",
        "refreshes",
        "last_used_at",
        "refreshed_at",
        "renew_at",
        "expires_at",
        "retry_at",
        "told_at",
        "connected_at",
        "created_at",
    ]

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @admin.display(description="link to connect again")
    def reconnect(self, row: Connection) -> str:
        """A link to send to the owner: it opens their app, which asks for consent. Staff cannot give it."""
        if row.health == Health.OK:
            return "not needed"
        return f"{settings.APP_LINK}oauth/{row.provider}/connect?connection={row.pk}"
