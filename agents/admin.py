"""Admin pages of agents and runs. Sealed fields stay sealed: no path, text or record is shown."""

from __future__ import annotations

from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from adiuva.accounts.admin_base import PeriodFilter, ReadOnlyAdmin
from adiuva.accounts.models import StaffAction
from adiuva.core.errors import AdiuvaError
from adiuva.devices import outbox
from adiuva.devices.models import OutboxRecord
from agents import runs
from agents.models import Agent, Run, RunEvent

_MAX_EVENTS = 200


@admin.register(Agent)
class AgentAdmin(ReadOnlyAdmin):
    list_display = [
        "id",
        "account",
        "type",
        "connection_is",
        "enabled",
        "held_by_plan",
        "schedule_cron",
        "last_run_at",
        "next_run_at",
    ]
    list_filter = ["type", "enabled", "held_by_plan", "connection__health", ("created_at", PeriodFilter)]
    list_select_related = ["user", "connection"]
    ordering = ["-created_at"]
    actions = ["run_now"]
    readonly_fields = ["connection_is"]
    fields = [
        "id",
        "user",
        "type",
        "connection",
        "connection_is",
        "data_types",
        "schedule_cron",
        "timezone",
        "catch_up",
        "catch_up_hours",
        "announce",
        "budget_micro",
        "enabled",
        "held_by_plan",
        "last_run_at",
        "next_run_at",
        "created_at",
        "updated_at",
    ]

    @admin.display(description="connection", ordering="connection__health")
    def connection_is(self, agent: Agent) -> str:
        """Return whether a cloud agent can read its account: "ok", or why it is paused."""
        return "" if agent.is_local else agent.paused or "ok"

    def has_run_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("agents.change_agent")

    @admin.action(description="Run now", permissions=["run"])
    def run_now(self, request: HttpRequest, agents: QuerySet[Agent]) -> None:
        started = 0
        for agent in agents.select_related("user"):
            try:
                run = runs.start(agent=agent)
                self.audit(request, StaffAction.Kind.STARTED, run)
                started += 1
            except AdiuvaError as error:
                self.message_user(request, f"{agent}: {error.message}", messages.WARNING)
        self.message_user(request, f"{started} started.")


@admin.register(Run)
class RunAdmin(ReadOnlyAdmin):
    is_large = True
    list_display = [
        "id",
        "account",
        "agent_type",
        "created_at",
        "state",
        "verdict",
        "dry_run",
        "files_done",
        "items_created",
        "problems",
        "completed_at",
    ]
    list_filter = ["state", "trigger", "agent_type", ("created_at", PeriodFilter)]
    search_keys = ("id", "agent_ref", "user_id")
    search_help_text = f"{ReadOnlyAdmin.search_help_text} Also the id of an agent, or a code of the journal."
    ordering = ["-created_at"]
    actions = ["cancel"]
    readonly_fields = ["records", "journal"]
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
        "verdict",
        "dry_run",
        "max_sources",
        "attempt",
        "retries",
        "not_before",
        "files_seen",
        "files_done",
        "files_unchanged",
        "files_failed",
        "items_created",
        "problems",
        "model_calls",
        "input_tokens",
        "cached_tokens",
        "output_tokens",
        "cost_micro",
        "created_at",
        "started_at",
        "completed_at",
        "undone_at",
        "announcement",
        "records",
        "journal",
    ]

    def has_end_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("agents.change_run")

    @staticmethod
    def by_text(code: str) -> Q:
        """Return the newest runs whose journals have this code."""
        newest = RunEvent.objects.filter(code=code).order_by("-seq").values_list("run_id", flat=True)
        return Q(pk__in=set(newest[:_MAX_EVENTS]))

    @admin.display(description="records by state")
    def records(self, run: Run) -> str:
        """Return how many records of the run are in the outbox, by state, without their content."""
        counts = outbox.count_by_state(run.pk)
        return (
            ", ".join(f"{count} {OutboxRecord.State(state).value}" for state, count in counts.items())
            or "none"
        )

    @admin.display(description="journal")
    def journal(self, run: Run) -> SafeString:
        """The first lines of the journal, without their sealed details."""
        events = run.events.defer("details")[: _MAX_EVENTS + 1]
        lines = [
            (f"{event.at:%Y-%m-%d %H:%M:%S}", event.get_kind_display(), event.code, event.count or "")
            for event in events
        ]
        cells = "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>"
        more = "<tr><td>… and more</td></tr>" if len(lines) > _MAX_EVENTS else ""
        rows = format_html_join("", cells, lines[:_MAX_EVENTS])
        return format_html("<table>{}{}</table>", rows, SafeString(more))

    @admin.action(description="Cancel", permissions=["end"])
    def cancel(self, request: HttpRequest, chosen: QuerySet[Run]) -> None:
        for run in chosen:
            runs.cancel(run=run)
        self.audit(request, StaffAction.Kind.CANCELLED, *chosen)
        self.message_user(request, "Cancelling.")
