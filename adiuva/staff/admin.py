"""Tables of the platform that staff can look at. The code and `migrate` decide their content."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.auth.models import Group
from django.http import HttpRequest
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)

admin.site.enable_nav_sidebar = False  # its room is the lists'; the start page leads everywhere
for _schedule in (ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule):
    admin.site.unregister(_schedule)


class _LookOnly(admin.ModelAdmin):  # type: ignore[type-arg]  # not generic at run time
    sortable_by = ()

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(_LookOnly):
    """Periodic tasks, with the time when beat last started each: a late one is a sign that beat is down."""

    list_display = ["name", "task", "every", "enabled", "last_run_at", "total_run_count"]
    list_select_related = ["interval", "crontab", "solar", "clocked"]
    ordering = ["name"]
    fields = ["name", "task", "every", "enabled", "last_run_at", "total_run_count", "date_changed"]
    readonly_fields = ["every"]

    @admin.display(description="when")
    def every(self, row: PeriodicTask) -> str:
        return str(row.scheduler)


@admin.register(Group)
class RoleAdmin(_LookOnly):
    """Roles, which have exactly the permissions that the code gives them (staff.roles)."""

    list_display = ["name"]
    ordering = ["name"]
    fields = ["name", "may"]
    readonly_fields = ["may"]

    @admin.display(description="may")
    def may(self, role: Group) -> str:
        names = role.permissions.order_by("content_type__app_label", "codename").values_list(
            "name", flat=True
        )
        return "; ".join(names)
