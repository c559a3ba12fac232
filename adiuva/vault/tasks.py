"""Celery tasks: each calls one function."""

from __future__ import annotations

from celery import shared_task

from adiuva.core.celery_thread_shares import Share, within
from adiuva.vault import recount
from adiuva.vault import scrub as scrubbing
from adiuva.vault import sweep as sweeping


@shared_task(name="vault.sweep")
def sweep() -> None:
    sweeping.run()


@shared_task(name="vault.compare")
@within(Share.EXPORTS)
def compare() -> None:
    recount.compare()


@shared_task(name="vault.scrub")
@within(Share.EXPORTS)
def scrub() -> None:
    scrubbing.run()
