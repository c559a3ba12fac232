"""Celery tasks of agents: each takes ids and calls one function."""

from __future__ import annotations

import asyncio
from uuid import UUID

from celery import shared_task

from agents import delivery, reauth_notices, runner, runs, schedules
from agents.journeys import services as journeys


@shared_task(name="agents.execute")
def execute(run_id: str) -> None:
    """Execute one run on its own event loop. Claiming it decides whether this worker gets it."""
    asyncio.run(runner.execute(UUID(run_id)))


@shared_task(name="agents.deliver")
def deliver(user_id: str) -> None:
    """Deliver the waiting records of a user's cloud agents to the devices that are online."""
    asyncio.run(delivery.deliver_waiting(UUID(user_id)))


@shared_task(name="agents.tell_needs_reauth")
def tell_needs_reauth(connection_id: str) -> None:
    asyncio.run(reauth_notices.send_reauth_notice(UUID(connection_id)))


@shared_task(name="agents.sweep")
def sweep() -> None:
    runs.sweep()


@shared_task(name="agents.tick")
def tick() -> None:
    schedules.tick()


@shared_task(name="agents.forget_journeys")
def forget_journeys() -> None:
    journeys.delete_expired()
