"""Single sign-on in the admin: teams' settings, without any secret, and events."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from adiuva.accounts.admin_base import PeriodFilter, ReadOnlyAdmin
from adiuva.accounts.models import StaffAction, User
from billing.sso import configuration
from billing.sso.models import IdentityProvider, SsoEvent


class _TeamAdmin(ReadOnlyAdmin):
    search_keys = ("id", "team_id", "team__owner_id")
    search_owner = "team__owner_id"
    search_fields = ["team__owner__email"]
    list_select_related = ["team__owner"]
    superuser_path = "team__owner__is_superuser"

    def owner_id(self, obj: Any) -> UUID:
        found: UUID = obj.team.owner_id
        return found

    @admin.display(description="owner")
    def account(self, obj: Any) -> SafeString | str:
        owner = obj.team.owner
        return format_html(
            '<a href="{}">{}</a>', reverse("admin:accounts_user_change", args=[owner.pk]), owner
        )


@admin.register(IdentityProvider)
class IdentityProviderAdmin(_TeamAdmin):
    list_display = ["id", "account", "issuer", "is_required", "worked_at", "created_at"]
    list_filter = ["is_required", ("created_at", PeriodFilter)]
    ordering = ["-created_at"]
    fields = [
        "team",
        "issuer",
        "client_id",
        "is_required",
        "worked_at",
        "domain_names",
        "created_at",
        "updated_at",
    ]
    readonly_fields = ["domain_names"]
    actions = ["stop_requiring"]

    @admin.display(description="domains")
    def domain_names(self, provider: IdentityProvider) -> str:
        names = [f"{each.name}{'' if each.proven_at else ' (not proven)'}" for each in provider.domains.all()]
        return ", ".join(names) or "none"

    def has_stop_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.change_identityprovider")

    @admin.action(description="Require it no longer", permissions=["stop"])
    def stop_requiring(self, request: HttpRequest, chosen: QuerySet[IdentityProvider]) -> None:
        """Stop requiring it for a team whose provider is broken and whose owner is away."""
        rows = list(chosen.filter(is_required=True))
        for provider in rows:
            configuration.set_required(provider, False, by=cast(User, request.user).pk)
        self.audit(request, StaffAction.Kind.CHANGED, *rows)
        self.message_user(request, f"{len(rows)} changed.", messages.SUCCESS)


@admin.register(SsoEvent)
class SsoEventAdmin(_TeamAdmin):
    list_display = ["id", "account", "kind", "user_id", "code", "at"]
    list_filter = ["kind", ("at", PeriodFilter)]
    search_keys = ("team_id", "team__owner_id", "user_id")
    ordering = ["-id"]
