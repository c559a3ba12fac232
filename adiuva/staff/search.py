"""One box for everything: an id of any kind, a part of an address, or a code."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from django.db.models import CharField, QuerySet, Value

from adiuva.accounts.models import Session, User
from adiuva.devices.models import Device, OutboxRecord
from adiuva.export.models import Export
from adiuva.staff.panels import Cell, Panel, list_url, may_view, page_url
from agents.models import Agent, Run, RunEvent
from chat.models import Conversation, Turn
from integrations.models import Connection

_BY_ID: Final = (User, Session, Device, Agent, Run, Conversation, Turn, Connection, Export)
_MAX_FOUND: Final = 20


def find(term: str, viewer: Any) -> list[Panel]:
    """Find the rows that the term names, as far as this member of staff may see them, except superusers' rows."""
    return [*_by_id(term, viewer), *_by_text(term, viewer)]


def _by_id(term: str, viewer: Any) -> list[Panel]:
    """Return at most one row of each kind, in one statement."""
    try:
        wanted = UUID(term)
    except ValueError:
        return []
    statements: list[QuerySet[Any, Any]] = []
    for model in _BY_ID:
        if may_view(viewer, model):
            rows: QuerySet[Any] = model._default_manager.filter(pk=wanted).order_by()
            statements.append(_named(_visible(rows, model, viewer), model))
    if may_view(viewer, Run):
        records = OutboxRecord.objects.filter(pk=wanted).order_by()
        statements.append(records.values_list(Value("record of run", CharField()), "source_run"))
    if not statements:
        return []
    pages: dict[str, type[Any]] = {str(model._meta.verbose_name): model for model in _BY_ID} | {
        "record of run": Run
    }
    found = [
        [name, Cell(str(key), page_url(pages[name], key))]
        for name, key in statements[0].union(*statements[1:], all=True)
    ]
    return [Panel("By id", ("what", "id"), found)] if found else []


def _named(rows: QuerySet[Any], model: type[Any]) -> QuerySet[Any, Any]:
    return rows.values_list(Value(str(model._meta.verbose_name), CharField()), "pk")


def _visible(rows: QuerySet[Any], model: type[Any], viewer: Any) -> QuerySet[Any]:
    """Return the rows that this member of staff may see: only superusers see the rows of superusers."""
    if viewer.is_superuser:
        return rows
    return rows.exclude(**{"is_superuser" if model is User else "user__is_superuser": True})


def _by_text(term: str, viewer: Any) -> list[Panel]:
    panels = []
    if may_view(viewer, User):
        people = _visible(User.objects.with_address_part(term).order_by(), User, viewer)
        rows = [
            [Cell(email, page_url(User, key)), tier, "yes" if active else "no"]
            for key, email, tier, active in people.values_list("pk", "email", "tier", "is_active")[
                :_MAX_FOUND
            ]
        ]
        if rows:
            more = list_url(User, q=term) if len(rows) == _MAX_FOUND else ""
            panels.append(Panel("Accounts", ("address", "plan", "active"), rows, url=more))
    named = [
        (Device, "Devices that chose this id", Device.objects.filter(device_id=term)),
        (Turn, "Turns with this code", Turn.objects.filter(code=term)),
        (Turn, "Turns of this request", Turn.objects.filter(request_id=term)),
        (Run, "Runs with this code in their journal", RunEvent.objects.filter(code=term)),
    ]
    for model, title, exact in named:
        if may_view(viewer, model) and exact.order_by()[:1]:
            panels.append(Panel(title, (), [[Cell("Show them", list_url(model, q=term))]]))
    return panels
