"""Celery tasks: each calls one function."""

from __future__ import annotations

from celery import shared_task
from django.utils import timezone

from adiuva.object_store import garbage


@shared_task(name="object_store.collect")
def collect() -> None:
    garbage.collect()


@shared_task(name="object_store.compare")
def compare() -> None:
    garbage.compare(garbage.shards_of_hour(timezone.now().hour))
