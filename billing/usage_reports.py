"""Reports of the use of models, added up for the user and for staff."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final
from uuid import UUID

from django.db.models import Sum
from django.utils.translation import gettext, gettext_lazy, gettext_noop

from adiuva.core import number_formats
from billing import entitlements
from billing.models import Purpose, Use
from billing.months import Window

FIGURES: Final = (
    "calls", "input_tokens", "cached_tokens", "output_tokens", "cost_micro", "estimated_micro", "unpriced_calls",
)  # fmt: skip

_STORED: Final[Mapping[entitlements.Feature, str]] = {
    "storage_bytes": gettext_noop("Storage"),
    "backup_bytes": gettext_noop("Backups"),
    "vectors": gettext_noop("Vectors"),
}
PURPOSE_NAMES: Final = {
    Purpose.CHAT: gettext_lazy("Chat"),
    Purpose.FOLLOWUPS: gettext_lazy("Following up runs"),
    Purpose.AGENTS: gettext_lazy("Agents"),
    Purpose.JOURNEYS: gettext_lazy("Setting up agents"),
    Purpose.MEMORY: gettext_lazy("Memory"),
    Purpose.VECTORS: gettext_lazy("Vectors of texts"),
}
_names: list[Callable[[UUID, Collection[UUID]], Mapping[UUID, str]]] = []


def name_agents_with(names: Callable[[UUID, Collection[UUID]], Mapping[UUID, str]]) -> None:
    """Register the function that names a user's agents. The app that owns them calls this when it is ready."""
    _names.append(names)


def names_of_agents(user_id: UUID, ids: Collection[UUID]) -> dict[UUID, str]:
    """Return the names of those of a user's agents that still exist."""
    return {agent: name for names in _names for agent, name in names(user_id, ids).items()} if ids else {}


def of_user(user_id: UUID, window: Window) -> dict[str, Any]:
    """Return, in one query, the use of models by a user's work in a window, in all and by purpose, agent and model."""
    rows = (
        Use.objects.of(user_id)
        .filter(day__gte=window.first_day, day__lte=window.last_day)
        .order_by()
        .values("purpose", "agent", "model")
        .annotate(**{name: Sum(name) for name in FIGURES})
    )
    found = list(rows)
    purposes = _added(found, "purpose")
    agents = _added((row for row in found if row["agent"] is not None), "agent")
    return {
        **_sum(found),
        "by_purpose": {str(purpose): purposes.get(purpose, _sum(())) for purpose in Purpose.values},
        "by_agent": [{"agent_id": agent, **used} for agent, used in _dearest(agents)],
        "by_model": [{"model": model, **used} for model, used in _dearest(_added(found, "model"))],
    }


def stored(user_id: UUID, tier: str) -> list[dict[str, Any]]:
    """Return what a user stores on the server, with the limits, for people: sizes in the current language."""
    used, limits = entitlements.usage_of(user_id), entitlements.limits_of(tier)
    return [
        {
            "name": gettext(name),
            "used": amount(feature, used[feature]),
            "limit": amount(feature, limits[feature]),
            "none": limits[feature] == 0,
        }
        for feature, name in _STORED.items()
    ]


def stored_figures(user_id: UUID, tier: str) -> list[tuple[str, str]]:
    """Return the same as labels and texts, for the browsable API."""
    return [(each["name"], out_of(each["used"], each["limit"])) for each in stored(user_id, tier)]


def out_of(used: str, limit: str | None) -> str:
    return gettext("%(used)s of %(limit)s") % {"used": used, "limit": limit} if limit else used


def amount(feature: str, number: int | None) -> str | None:
    """Return an amount of a plan's feature as people read it; None is no limit."""
    if number is None:
        return None
    return number_formats.size(number) if feature.endswith("_bytes") else number_formats.count(number)


def by_day_and_model(
    since: dt.date, *, user_id: UUID | None = None, most: int = 100_000
) -> list[tuple[Any, ...]]:
    """Return rows of (day, model, calls, input tokens, cached ones of these, output tokens, cost in micro-units),
    newest first.

    At most the newest `most` rows of the table are read.
    """
    rows = Use.objects.filter(day__gte=since)
    if user_id is not None:
        rows = rows.filter(user_id=user_id)
    newest = rows.order_by("-day", "-id").values("pk")[:most]
    names = ("calls", "input_tokens", "cached_tokens", "output_tokens", "cost_micro")
    return list(
        Use.objects.filter(pk__in=newest)
        .order_by("-day", "model")
        .values_list("day", "model")
        .annotate(**{f"sum_{name}": Sum(name) for name in names})
    )


def _added(rows: Iterable[Mapping[str, Any]], key: str) -> dict[Any, dict[str, int]]:
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return {value: _sum(group) for value, group in groups.items()}


def _sum(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    rows = list(rows)
    return {name: sum(int(row[name]) for row in rows) for name in FIGURES}


def _dearest(groups: Mapping[Any, dict[str, int]]) -> list[tuple[Any, dict[str, int]]]:
    return sorted(groups.items(), key=lambda each: (-each[1]["cost_micro"], str(each[0])))
