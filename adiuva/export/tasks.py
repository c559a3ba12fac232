"""Celery tasks: each takes ids and calls one function."""

from __future__ import annotations

from uuid import UUID

from celery import shared_task

from adiuva.core.celery_thread_shares import Share, within
from adiuva.export import build, services


@shared_task(name="export.make")
@within(Share.EXPORTS)
def make(export_id: str) -> None:
    build.build_export(UUID(export_id))


@shared_task(name="export.sweep")
def sweep() -> None:
    services.sweep_exports()
