"""Admin of conversations and turns: when somebody chatted and how turns ended; texts and titles stay sealed."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from adiuva.accounts.admin_base import ReadOnlyAdmin
from chat.models import Conversation, Turn


class _ChatAdmin(ReadOnlyAdmin):
    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Conversation)
class ConversationAdmin(_ChatAdmin):
    list_display = ["id", "user", "kind", "message_count", "created_at", "updated_at"]
    search_help_text = "A conversation's id, or the beginning of its owner's e-mail address"
    ordering = ["-updated_at", "-id"]
    fields = ["id", "user", "kind", "message_count", "summary_upto", "created_at", "updated_at"]

    def all_rows(self, request: HttpRequest) -> QuerySet[Conversation]:
        return Conversation.objects.defer("title", "summary")


@admin.register(Turn)
class TurnAdmin(_ChatAdmin):
    list_display = [
        "id",
        "user",
        "kind",
        "state",
        "code",
        "model_calls",
        "tool_calls",
        "input_tokens",
        "output_tokens",
        "mutations",
        "started_at",
        "ended_at",
    ]
    list_filter = ["state", "kind"]
    search_keys = ("id", "conversation_id")
    search_help_text = "A turn's or conversation's id, or the beginning of its owner's e-mail address"
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
        "input_tokens",
        "output_tokens",
        "mutations",
        "started_at",
        "ended_at",
    ]
    readonly_fields = ["conversation_id"]
