from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from adiuva.accounts.admin_base import PeriodFilter, ReadOnlyAdmin
from adiuva.devices.models import Device


class OnlineFilter(admin.SimpleListFilter):
    title = "online"
    parameter_name = "online"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "Online")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(is_online=True) if self.value() else queryset


@admin.register(Device)
class DeviceAdmin(ReadOnlyAdmin):
    list_display = ["id", "account", "online", "protocol", "platform", "app_version", "last_seen"]
    list_filter = [OnlineFilter, ("last_seen", PeriodFilter)]
    search_help_text = f"{ReadOnlyAdmin.search_help_text} Also the id that the device chose."
    ordering = ["-last_seen"]
    fields = [
        "id",
        "user",
        "platform",
        "app_version",
        "timezone",
        "protocol",
        "capabilities",
        "last_seen",
        "created_at",
    ]

    def all_rows(self, request: HttpRequest) -> QuerySet[Device]:
        return Device.objects.with_online()

    @staticmethod
    def by_text(text: str) -> Q:
        return Q(device_id=text)

    @admin.display(boolean=True, description="online")
    def online(self, device: Any) -> bool:
        return bool(device.is_online)
