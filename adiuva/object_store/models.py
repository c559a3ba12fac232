"""Objects that nothing refers to any more, until the store has deleted them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Self

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now


class GarbageQuerySet(models.QuerySet["Garbage"]):
    def due(self, keep: dt.timedelta) -> Self:
        """Select objects that may be deleted now: at once if they belong to nobody, else after `keep`. Failed tries
        wait longer each time."""
        over = Q(owner=None) | Q(since__lt=Now() - keep)
        return self.filter(over, not_before__lte=Now()).order_by("not_before", "name")


class Garbage(models.Model):
    """Object that is to be deleted.

    Objects that a user replaced or deleted wait, so that a database restored from a backup still finds them. Objects
    that were never finished, and those of a deleted account, do not wait.
    """

    name = models.CharField(primary_key=True, max_length=100)
    owner = models.UUIDField(null=True, db_index=True, help_text="no reference; empty: it is nobody's by now")
    since = models.DateTimeField(db_default=Now(), editable=False)
    not_before = models.DateTimeField(db_default=Now(), editable=False)
    tries = models.PositiveIntegerField(default=0, db_default=0)

    objects = GarbageQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "garbage"
        indexes = [models.Index(fields=["not_before", "name"], name="garbage_due")]

    def __str__(self) -> str:
        return self.name


def queue(names: Iterable[str]) -> None:
    """Queue the deletion of objects that no row ever referred to."""
    Garbage.objects.bulk_create((Garbage(name=name) for name in names), ignore_conflicts=True)
