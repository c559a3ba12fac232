"""Agents that read a mailbox: with which connection, and which of its messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from adiuva.core.errors import Invalid
from integrations.mail.filters import Filters
from integrations.models import Connection, Health, Provider

_FILTERS: Final = ("labels", "channels", "senders", "date_range")
_SPAN: Final = ("from", "to")


def connection_of(user_id: UUID, provider: str, connection_id: UUID | None) -> Connection:
    """A user's connection to a provider; if none is named, the only one that works. Raise Invalid, with the field."""
    mine, label = Connection.objects.of(user_id), Provider(provider).label
    if connection_id is not None:
        found = mine.filter(pk=connection_id).first()
        if found is None:
            raise _no_connection("There is no such connection.")
        if found.provider != provider:
            raise _no_connection(f"It is a connection to {found.get_provider_display()}, not to {label}.")
        return found
    healthy = list(mine.filter(provider=provider, health=Health.OK)[:2])
    if not healthy:
        where = f"/api/v1/oauth/{provider}/authorize"
        raise _no_connection(f"No {label} account is connected: begin with {where}.")
    if len(healthy) > 1:
        raise _no_connection(f"Several {label} accounts are connected: the id of one is needed.")
    return healthy[0]


def _no_connection(why: str) -> Invalid:
    return Invalid("The connection cannot be used.", fields={"connection": [why]})


def clean_filters(given: Any) -> dict[str, Any]:
    """A filter_config as it is kept: what says something, with channels as labels. Raise Invalid, with the fields."""
    if not isinstance(given, Mapping):
        raise _bad_filter("", "Not an object.")
    span = given.get("date_range") or {}
    unknown = [str(name) for name in given if name not in _FILTERS]
    if isinstance(span, Mapping):
        unknown += [f"date_range.{name}" for name in span if name not in _SPAN]
    if unknown:
        raise _bad_filter(f".{unknown[0][:50]}", f"Unknown; there are {', '.join(_FILTERS)}.")
    channels = given.get("channels") or []
    try:
        found = Filters.parse({"labels": channels})
    except Invalid as error:
        raise _bad_filter(".channels", *(error.fields or {"": []}).popitem()[1]) from None
    labels = given.get("labels") or []
    both = [*labels, *found.labels] if isinstance(labels, list) else labels
    found = Filters.parse({**given, "labels": both})
    kept: dict[str, Any] = {"labels": list(found.labels), "senders": list(found.senders)}
    kept["date_range"] = {name: span[name] for name in _SPAN if span.get(name)}
    return {name: value for name, value in kept.items() if value}


def _bad_filter(place: str, *why: str) -> Invalid:
    return Invalid("The filters are not valid.", fields={f"filter_config{place}": list(why)})
