"""Building blocks of the staff pages: small tables with cells that may link to the admin's lists."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.contrib.admin.utils import quote
from django.db import models
from django.urls import reverse
from django.utils import timezone


@dataclass(frozen=True)
class Cell:
    """Value of a table; `bad` marks those that need somebody's attention, in words and not by colour alone."""

    text: Any
    url: str = ""
    bad: bool = False


@dataclass(frozen=True)
class Panel:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    url: str = ""  # the whole list
    note: str = ""
    empty: str = "None."


def list_url(model: type[models.Model], **query: Any) -> str:
    """Return the address of the admin's list of a model, filtered."""
    page = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    return f"{page}?{urlencode(query)}" if query else page


def page_url(model: type[models.Model], key: Any) -> str:
    """Return the address of the admin's page of one row."""
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=[quote(key)])


def may_view(user: Any, model: type[models.Model]) -> bool:
    return bool(user.has_perm(f"{model._meta.app_label}.view_{model._meta.model_name}"))


def age(since: dt.datetime | None) -> str:
    """Return the time up to now, such as 3 h."""
    return duration((timezone.now() - since).total_seconds()) if since else "–"


def duration(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def at_least(count: int, most: int) -> str:
    """Return a count of rows of which at most `most` were counted."""
    return f"{count:,}" if count < most else f"{most:,} or more"
