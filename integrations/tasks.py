"""Celery tasks: each calls one function."""

from __future__ import annotations

from celery import shared_task

from integrations import connections


@shared_task(name="integrations.sweep")
def sweep() -> None:
    """Announce lost connections to users who were not told, and delete old consents."""
    connections.sweep()
