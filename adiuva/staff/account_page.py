"""Panels below an account: what belongs to it, the newest of each, with links to the rest. Never content."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

from django.db.models import Count, Sum
from django.db.models.functions import TruncDate
from django.utils import timezone

from adiuva.accounts.admin_base import PeriodFilter
from adiuva.accounts.models import Session, StaffAction, User
from adiuva.devices.models import Device
from adiuva.export.models import Export
from adiuva.staff.panels import Cell, Panel, list_url, may_view, page_url
from adiuva.staff.start_page import model_costs
from agents.models import Agent, Run
from billing.models import Override, Use
from chat.models import Conversation, Turn
from integrations.models import Connection
from memory.models import Memory

_NEWEST: Final = 5
# Model, title, columns (the first is the row's id and leads to its page), and the column to sort by, newest first.
_LISTS: Final[tuple[tuple[Any, str, tuple[str, ...], str], ...]] = (
    (Agent, "Agents", ("type", "enabled", "schedule_cron", "last_run_at", "next_run_at"), "-created_at"),
    (Run, "Runs", ("agent_type", "state", "created_at", "items_created", "problems"), "-created_at"),
    (Device, "Devices", ("platform", "app_version", "is_online", "last_seen"), "-last_seen"),
    (Connection, "Connections", ("provider", "health", "reason", "last_used_at"), "-created_at"),
    (Conversation, "Conversations", ("kind", "message_count", "updated_at"), "-updated_at"),
    (Turn, "Chat turns", ("state", "code", "model_calls", "tool_calls", "started_at"), "-started_at"),
    (Memory, "Memory", ("enabled", "created_at", "consolidated_at"), "-created_at"),
    (Session, "Sessions", ("user_agent", "last_used_at", "expires_at", "revoked_reason"), "-created_at"),
    (Export, "Exports of the account", ("state", "code", "size", "created_at"), "-created_at"),
    (Override, "Plans that staff gave", ("tier", "until", "reason", "created_at"), "-created_at"),
    (StaffAction, "What staff did", ("kind", "object", "staff_id", "at"), "-id"),
)


def panels(account: User, viewer: Any) -> Iterator[Panel]:
    """Return the panels that this member of staff may see."""
    for model, title, columns, order in _LISTS:
        if not may_view(viewer, model):
            continue
        rows = Device.objects.with_online() if model is Device else model.objects.all()
        # One row more than is shown, to learn whether there are more.
        newest = list(
            rows.filter(user_id=account.pk).order_by(order).values_list("pk", *columns)[: _NEWEST + 1]
        )
        head = ("id", *(column.replace("_", " ") for column in columns))
        shown = [
            [Cell(_short(key), page_url(model, key)), *map(_said, values)]
            for key, *values in newest[:_NEWEST]
        ]
        more = list_url(model, q=account.pk) if len(newest) > _NEWEST else ""
        yield Panel(title, head, shown, url=more)
        if model is Turn:
            yield _usage(account)
    if may_view(viewer, Use):
        yield model_costs(account)


def _usage(account: User) -> Panel:
    """Show the usage of the last 7 days, by day."""
    since = timezone.now() - PeriodFilter.PERIODS["week"]
    days = (
        Turn.objects.of(account.pk)
        .filter(started_at__gte=since)
        .annotate(day=TruncDate("started_at"))
        .order_by("-day")
        .values_list("day")
        .annotate(Count("pk"), Sum("model_calls"), Sum("input_tokens"), Sum("output_tokens"))
    )
    head = ("day (UTC)", "turns", "model calls", "tokens in", "tokens out")
    return Panel("Tokens of chats a day, 7 days", head, [[str(day), *figures] for day, *figures in days])


def _short(key: Any) -> str:
    return str(key)[:8]


def _said(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, UUID):
        return _short(value)
    return "–" if value in (None, "") else value
