from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from adiuva.accounts.admin_base import ReadOnlyAdmin
from adiuva.devices.models import Device


@admin.register(Device)
class DeviceAdmin(ReadOnlyAdmin):
    list_display = ["__str__", "user", "online", "protocol", "platform", "app_version", "last_seen"]
    list_filter = ["protocol", "platform"]
    search_help_text = "A device's id, or the beginning of its owner's e-mail address"
    ordering = ["-last_seen"]
    fields = [
        "id",
        "user",
        "platform",
        "app_version",
        "protocol",
        "capabilities",
        "last_seen",
        "created_at",
    ]

    def all_rows(self, request: HttpRequest) -> QuerySet[Device]:
        return Device.objects.with_online()

    @admin.display(boolean=True, description="online")
    def online(self, device: Any) -> bool:
        return bool(device.is_online)
