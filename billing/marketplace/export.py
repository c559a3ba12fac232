"""The plugins in a user's data export: those that they publish, and those that they use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

from django.db import models

from adiuva.core.export_archive import ROWS_PER_BATCH, ArchivePart, exported_columns, register
from adiuva.core.leases import LEASE_FIELDS
from billing.marketplace.models import (
    Developer,
    Plugin,
    PluginCheck,
    PluginReview,
    PluginVersion,
    Revocation,
)
from billing.marketplace.money_models import DeveloperPayment, PluginPurchase
from billing.marketplace.user_models import (
    PluginInstall,
    PluginRating,
    PluginReport,
    PluginTransfer,
)
from billing.payments.copies import COPY_FIELDS

Rows = Iterator[dict[str, Any]]
# The columns of a purchase that are its developer's.
_OF_DEVELOPER: Final = (
    "developer",
    "due_cents",
    "settled_cents",
    "debt_since",
    "transfer_after",
    *COPY_FIELDS,
)


def _rows(model: type[models.Model], but: list[str], *more: str, **of_user: UUID) -> Rows:
    shown = exported_columns(model, but=but)
    rows = model._default_manager.filter(**of_user).order_by("pk").values(*shown, *more)
    yield from rows.iterator(ROWS_PER_BATCH)


def _published(user_id: UUID) -> Rows:
    of_developer = ["user", *COPY_FIELDS]
    for row in _rows(Developer, of_developer, user_id=user_id):
        yield {"row": "developer", **row}
    of_plugin = ["words", "current_version"]
    for row in _rows(Plugin, of_plugin, "current_version__version", developer__user_id=user_id):
        yield {"row": "plugin", **row}
    of_version = ["author", "tries", "not_before", "object", *LEASE_FIELDS]
    for row in _rows(PluginVersion, of_version, plugin__developer__user_id=user_id):
        yield {"row": "version", **row}
    # Which member of the staff did it is not the user's data.
    for name, model, but in (
        ("check", PluginCheck, []),
        ("review", PluginReview, ["reviewer"]),
        ("revocation", Revocation, ["by", "restored_by"]),
    ):
        for row in _rows(model, but, version__plugin__developer__user_id=user_id):
            yield {"row": name, **row}
    for row in _rows(PluginTransfer, ["receiver"], giver__user_id=user_id):
        yield {"row": "transfer", **row}
    for row in _rows(PluginTransfer, ["giver"], receiver__user_id=user_id):
        yield {"row": "transfer", **row}


def _sold(user_id: UUID) -> Rows:
    """List a developer's sales and payments. Buyers are left out: they are not the developer's data."""
    but = ["user", "developer", "session", "payment_intent", "charge", *COPY_FIELDS]
    for row in _rows(PluginPurchase, but, "plugin__slug", developer__user_id=user_id):
        yield {"row": "sale", **row}
    for row in _rows(DeveloperPayment, ["developer"], developer__user_id=user_id):
        yield {"row": "payment", **row}


def _used(user_id: UUID) -> Rows:
    for name, model, but in (
        ("install", PluginInstall, ["user", "counted"]),
        ("rating", PluginRating, ["user"]),
        ("report", PluginReport, ["user", "closed_by"]),
        ("purchase", PluginPurchase, ["user", *_OF_DEVELOPER]),
    ):
        for row in _rows(model, but, "plugin__slug", user_id=user_id):
            yield {"row": name, **row}


register(ArchivePart("plugins_published.jsonl", "Plugins of yours, with what was said of them.", _published))
register(ArchivePart("plugins_used.jsonl", "Plugins that you installed, rated, reported or bought.", _used))
register(ArchivePart("plugins_sold.jsonl", "What was sold of your plugins, and what you were sent.", _sold))
