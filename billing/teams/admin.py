"""Teams and their members in the admin. Staff may give seats; members are invited by their owner alone."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from adiuva.accounts.admin_base import PeriodFilter, ReadOnlyAdmin
from adiuva.accounts.models import StaffAction
from billing.teams import seats
from billing.teams.models import Membership, Team


@admin.register(Team)
class TeamAdmin(ReadOnlyAdmin):
    list_display = ["id", "owner", "seats_given", "created_at"]
    list_filter = [("created_at", PeriodFilter)]
    list_select_related = ["owner"]
    search_keys = ("id", "owner_id")
    search_owner = "owner_id"
    superuser_path = "owner__is_superuser"
    ordering = ["-created_at"]
    readonly_fields = ["id", "owner", "created_at"]

    def owner_id(self, obj: Team) -> Any:
        return obj.owner_id

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return admin.ModelAdmin.has_change_permission(self, request, obj)

    def save_model(self, request: HttpRequest, obj: Team, form: Any, change: bool) -> None:
        Team.objects.filter(pk=obj.pk).update(seats_given=obj.seats_given)
        seats.settle(obj.owner_id)
        self.audit(request, StaffAction.Kind.CHANGED, obj)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Log nothing: the change is logged when it is made."""


@admin.register(Membership)
class MembershipAdmin(ReadOnlyAdmin):
    list_display = ["id", "account", "team", "state", "invited_at", "joined_at"]
    list_filter = ["state"]
    list_select_related = ["user", "team"]
    search_keys = ("id", "user_id", "team_id")
    ordering = ["-invited_at"]
    fields = ["team", "user", "address", "state", "invited_at", "joined_at"]
