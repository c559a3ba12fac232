"""Celery tasks of the chat."""

from __future__ import annotations

import asyncio
from uuid import UUID

from celery import shared_task

from agents import run_watches
from chat import device_notices, lost_turns, run_announcements, run_followups, run_notes, turn_queue
from chat.run_notes import TurnToTell


@shared_task(name="chat.follow_up")
def follow_up() -> None:
    """Have due ends of runs told: in the conversations that they were started from, and those of scheduled runs."""
    told = [*run_followups.follow_up_due(), *run_announcements.announce_due()]
    asyncio.run(_tell(run_notes.turns_to_tell(), told))


async def _tell(running: list[TurnToTell], told: list[tuple[UUID, run_followups.Frames]]) -> None:
    await run_notes.tell(running)
    for user_id, frames in told:
        if frames:
            await device_notices.send(user_id, frames)


@shared_task(name="chat.sweep")
def sweep() -> None:
    """End turns that have lost their process, let others follow and tell their ends of runs; delete old turns."""
    lost_turns.end_lost_turns()
    turn_queue.hand_over_stuck()
    run_notes.release_lost()
    run_watches.expire()
    lost_turns.delete_old_turns()
