"""Deletion of rows that are no longer kept, in short transactions: after a day of downtime there may be millions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from django.db import transaction
from django.db.models import CASCADE, ForeignObjectRel, Model, QuerySet

BATCH: Final = 1_000
# Rows that have parts are deleted in batches of this size, because each of the parts' tables is searched for them.
_WHOLES: Final = 100
# The most that one scheduled call deletes; its next call goes on.
MOST: Final = 50_000


def delete_in_batches(rows: QuerySet[Any], *, most: int | None = MOST) -> int:
    """Delete rows and their parts, in the order of `rows`. Returns how many of `rows`; None is all of them."""
    deleted = 0
    while most is None or deleted < most:
        ids = list(rows.values_list("pk", flat=True)[:BATCH])
        if ids:
            rows.model._base_manager.filter(pk__in=ids).delete()
            deleted += len(ids)
        if len(ids) < BATCH:
            break
    return deleted


def delete_with_parts(rows: QuerySet[Any]) -> Iterator[int]:
    """Delete all `rows`, and before them their parts, however many. Each step is a transaction.

    Yields after each step how many rows it took. Nobody can add a part to what is deleted in the same step.
    """
    model, manager = rows.model, rows.model._base_manager
    if not (parts := parts_of(model)):
        batch = manager.filter(pk__in=rows.order_by().values("pk")[:BATCH])
        while deleted := batch.delete()[0]:
            yield deleted
            if deleted < BATCH:
                break
        return
    while ids := list(rows.order_by().values_list("pk", flat=True)[:_WHOLES]):
        for part, whole in parts:
            yield from delete_with_parts(part._base_manager.filter(**{f"{whole}__in": ids}))
        chosen = manager.filter(pk__in=ids)
        with transaction.atomic():
            list(chosen.order_by("pk").select_for_update(of=("self",)).values_list("pk"))
            chosen.delete()
        yield len(ids)
        if len(ids) < _WHOLES:
            break


def parts_of(model: type[Model]) -> list[tuple[type[Model], str]]:
    """Return the models with rows that go with a row of `model`, each with the name of its reference to that row."""
    relations = [field for field in model._meta.get_fields(include_hidden=True) if field.auto_created]
    return [
        (relation.related_model, relation.field.name)
        for relation in relations
        if isinstance(relation, ForeignObjectRel) and relation.on_delete is CASCADE
    ]
