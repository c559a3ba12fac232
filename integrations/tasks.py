"""Celery tasks: each calls one function."""

from __future__ import annotations

from celery import shared_task

from integrations import connections


@shared_task(name="integrations.sweep")
def sweep() -> None:
    """Tell of lost connections whose news got lost, and forget old consents."""
    connections.sweep()
