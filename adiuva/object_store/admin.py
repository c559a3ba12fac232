"""Garbage in the admin. Staff see what waits to be deleted from the store."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from adiuva.accounts.admin_base import ReadOnlyAdmin
from adiuva.object_store.models import Garbage


@admin.register(Garbage)
class GarbageAdmin(ReadOnlyAdmin):
    list_display = ["name", "since", "not_before", "tries"]
    ordering = ["not_before"]
    fields = ["name", "since", "not_before", "tries"]
    search_keys = ("owner",)
    search_owner = "owner"
    list_select_related = []

    def get_queryset(self, request: HttpRequest) -> Any:
        return self.all_rows(request)
