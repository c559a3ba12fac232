"""Celery tasks: each takes ids and calls one function."""

from __future__ import annotations

import asyncio
from uuid import UUID

from celery import shared_task

from agents import runner, runs, schedules


@shared_task(name="agents.execute")
def execute(run_id: str) -> None:
    """One run on one event loop. The run's lease decides whether this worker may have it."""
    asyncio.run(runner.execute(UUID(run_id)))


@shared_task(name="agents.sweep")
def sweep() -> None:
    runs.sweep()


@shared_task(name="agents.tick")
def tick() -> None:
    schedules.tick()
