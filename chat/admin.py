"""Admin of conversations and turns: when somebody chatted and how turns ended; texts and titles stay sealed."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from adiuva.accounts.admin_base import PeriodFilter, ReadOnlyAdmin
from adiuva.accounts.models import StaffAction
from agents import run_watches
from agents.models import Watch
from chat.models import Conversation, Turn


@admin.register(Conversation)
class ConversationAdmin(ReadOnlyAdmin):
    list_display = ["id", "account", "kind", "message_count", "created_at", "updated_at"]
    list_filter = ["kind", ("updated_at", PeriodFilter)]
    ordering = ["-updated_at", "-id"]
    fields = ["id", "user", "kind", "message_count", "summary_upto", "created_at", "updated_at"]

    def all_rows(self, request: HttpRequest) -> QuerySet[Conversation]:
        return Conversation.objects.defer("title", "summary")


@admin.register(Turn)
class TurnAdmin(ReadOnlyAdmin):
    is_large = True
    list_display = [
        "id",
        "account",
        "kind",
        "state",
        "code",
        "model_calls",
        "tool_calls",
        "input_tokens",
        "output_tokens",
        "cost_micro",
        "mutations",
        "started_at",
        "ended_at",
    ]
    list_filter = ["state", "kind", ("started_at", PeriodFilter)]
    search_keys = ("id", "conversation_id", "user_id")
    search_help_text = (
        f"{ReadOnlyAdmin.search_help_text} Also the id of a conversation or request, or a code."
    )
    ordering = ["-started_at", "-id"]
    fields = [
        "id",
        "user",
        "conversation_id",
        "request_id",
        "kind",
        "state",
        "code",
        "owner",
        "prompt_version",
        "model_calls",
        "tool_calls",
        "model",
        "input_tokens",
        "cached_tokens",
        "output_tokens",
        "cost_micro",
        "mutations",
        "started_at",
        "ended_at",
    ]
    readonly_fields = ["conversation_id"]

    @staticmethod
    def by_text(text: str) -> Q:
        return Q(code=text) | Q(request_id=text)


@admin.register(Watch)
class WatchAdmin(ReadOnlyAdmin):
    """Ends of runs that a chat wants to hear of: how far telling them has got, never their content."""

    list_display = ["id", "account", "run_id", "state", "attempts", "last_code", "due_at", "not_before"]
    list_filter = ["state", ("created_at", PeriodFilter)]
    search_keys = ("id", "run_id", "conversation_id", "user_id")
    search_help_text = f"{ReadOnlyAdmin.search_help_text} Also the id of a run or conversation."
    ordering = ["-created_at", "-id"]
    actions = ["try_again"]
    fields = [
        "id",
        "user",
        "run",
        "conversation_id",
        "turn",
        "state",
        "attempts",
        "last_code",
        "due_at",
        "not_before",
        "created_at",
    ]
    readonly_fields = ["conversation_id", "last_code"]

    def all_rows(self, request: HttpRequest) -> QuerySet[Watch]:
        return Watch.objects.defer("asked")

    @admin.display(description="last code")
    def last_code(self, watch: Watch) -> str:
        """Return the code with which the last turn that tried to tell it failed."""
        return Turn.objects.filter(pk=watch.turn).values_list("code", flat=True).first() or ""

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("agents.change_run")

    @admin.action(description="Try again", permissions=["retry"])
    def try_again(self, request: HttpRequest, chosen: QuerySet[Watch]) -> None:
        given_up = list(chosen.filter(state__in=(Watch.State.DEAD, Watch.State.EXPIRED)))
        count = run_watches.try_again(Watch.objects.filter(pk__in=[watch.pk for watch in given_up]))
        self.audit(request, StaffAction.Kind.RETRIED, *given_up)
        self.message_user(request, f"{count} to be told again.")
