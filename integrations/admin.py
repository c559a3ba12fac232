"""Admin of connections: staff see their health. Addresses and tokens stay sealed."""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin

from adiuva.accounts.admin_base import PeriodFilter, ReadOnlyAdmin
from integrations.models import Connection, Health


@admin.register(Connection)
class ConnectionAdmin(ReadOnlyAdmin):
    list_display = [
        "id",
        "account",
        "provider",
        "health",
        "reason",
        "last_used_at",
        "refreshed_at",
        "created_at",
    ]
    list_filter = ["provider", "health", "reason", ("created_at", PeriodFilter)]
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

    @admin.display(description="link to connect again")
    def reconnect(self, row: Connection) -> str:
        """Return a link to send to the owner: it opens their app, which asks for consent. Staff cannot give it."""
        if row.health == Health.OK:
            return "not needed"
        return f"{settings.APP_LINK}oauth/{row.provider}/connect?connection={row.pk}"
