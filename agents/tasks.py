"""Celery tasks of agents: each takes ids and calls one function."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Final
from uuid import UUID

from celery import shared_task, signals

from adiuva.core.celery_thread_shares import Share, within
from agents import delivery, found_records, plan_limits, reauth_notices, retention, runs, schedules
from agents.journeys import services as journeys
from agents.run_loop import run_loop

RUNS_QUEUE: Final = "runs"
# The most records forgotten at a time, of documents that no agent reads any more.
_MOST_FORGOTTEN: Final = 5_000


@shared_task(name="agents.start_queued")
def start_queued() -> None:
    """Make this process claim queued runs. This holds no thread: runs live on a loop of their own."""
    run_loop.wake()


@shared_task(name="agents.deliver")
@within(Share.DEVICES)
def deliver(user_id: str) -> None:
    """Deliver the waiting records of a user's cloud agents to the devices that are online."""
    asyncio.run(delivery.deliver_waiting(UUID(user_id)))


@shared_task(name="agents.tell_needs_reauth")
@within(Share.DEVICES)
def tell_needs_reauth(connection_id: str) -> None:
    asyncio.run(reauth_notices.send_reauth_notice(UUID(connection_id)))


@shared_task(name="agents.sweep")
def sweep() -> None:
    runs.sweep()


@shared_task(name="agents.resume_with_budget")
def resume_with_budget() -> None:
    runs.resume_with_budget()


@shared_task(name="agents.tick")
def tick() -> None:
    schedules.tick()


@shared_task(name="agents.settle_plans")
def settle_plans() -> None:
    plan_limits.sweep()


@shared_task(name="agents.check_plans")
def check_plans() -> None:
    plan_limits.check()


@shared_task(name="agents.forget_journeys")
def forget_journeys() -> None:
    journeys.delete_expired()


@shared_task(name="agents.forget_found_records")
def forget_found_records() -> None:
    found_records.forget_orphans(_MOST_FORGOTTEN)


@shared_task(name="agents.delete_expired")
def delete_expired() -> None:
    retention.delete_expired()


# ── The worker process's loop of runs ───────────────────────────────────────────────────────────────────


@signals.worker_ready.connect
def _start_run_loop(sender: Any, **_: Any) -> None:
    """Start a worker's loop of runs: it claims those that were queued while it was away, without a message."""
    if RUNS_QUEUE in sender.app.amqp.queues.consume_from:
        run_loop.start()
        run_loop.wake()


@signals.worker_shutting_down.connect
def _begin_to_stop_run_loop(**_: Any) -> None:
    # In a thread, because a signal handler must not wait; the worker's other tasks end meanwhile.
    threading.Thread(target=run_loop.stop, name="stop runs", daemon=True).start()


@signals.worker_shutdown.connect
def _stop_run_loop(**_: Any) -> None:
    run_loop.stop()
