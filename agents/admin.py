"""Staff see configurations, runs and their journal. What is sealed stays sealed: no path, no text, no record."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from adiuva.accounts.staff import ReadingAdmin
from agents import runs
from agents.models import Agent, Run, RunEvent


@admin.register(Agent)
class AgentAdmin(ReadingAdmin):
    list_display = ["name", "user", "type", "enabled", "schedule_cron", "last_run_at", "next_run_at"]
    list_filter = ["type", "enabled"]
    search_help_text = "An agent's id, or the beginning of its owner's e-mail address"
    ordering = ["-created_at"]
    actions = ["run_now"]
    fields = [
        "id",
        "user",
        "type",
        "name",
        "device_id",
        "data_types",
        "file_extensions",
        "schedule_cron",
        "timezone",
        "enabled",
        "last_run_at",
        "next_run_at",
        "created_at",
        "updated_at",
    ]

    @admin.action(description="Run now", permissions=["view"])
    def run_now(self, request: HttpRequest, agents: QuerySet[Agent]) -> None:
        started = 0
        for agent in agents.select_related("user"):
            try:
                runs.start(agent=agent)
                started += 1
            except runs.RunIsLive:
                self.message_user(request, f"{agent} has a run under way.", messages.WARNING)
        self.message_user(request, f"{started} started.")


class JournalInline(admin.TabularInline):  # type: ignore[type-arg]  # not generic at run time
    model = RunEvent
    verbose_name_plural = "journal"
    fields = ["seq", "at", "kind", "code", "count"]
    extra = 0
    max_num = 0
    can_delete = False
    show_change_link = False
    ordering = ["seq"]

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[RunEvent]:
        return super().get_queryset(request).defer("sealed")


@admin.register(Run)
class RunAdmin(ReadingAdmin):
    list_display = [
        "id",
        "agent_name",
        "user",
        "state",
        "trigger",
        "files_done",
        "items_created",
        "problems",
        "created_at",
        "completed_at",
    ]
    list_filter = ["state", "trigger", "agent_type"]
    search_keys = ("id", "agent_ref")
    search_help_text = "A run's or agent's id, or the beginning of its owner's e-mail address"
    ordering = ["-created_at"]
    actions = ["cancel"]
    inlines = [JournalInline]
    fields = [
        "id",
        "user",
        "agent",
        "agent_ref",
        "agent_type",
        "trigger",
        "slot",
        "slots",
        "state",
        "phase",
        "attempt",
        "files_seen",
        "files_done",
        "files_unchanged",
        "files_failed",
        "items_created",
        "problems",
        "model_calls",
        "created_at",
        "started_at",
        "completed_at",
    ]

    @admin.action(description="Cancel", permissions=["view"])
    def cancel(self, request: HttpRequest, chosen: QuerySet[Run]) -> None:
        for run in chosen:
            runs.cancel(run=run)
        self.message_user(request, "Asked to end.")
