"""Controls a running turn from any process: cancel it, send it a message, or answer its question."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

from adiuva.core import db
from chat import approval_routing
from chat.models import Turn
from chat.request import ChatRequest
from chat.stream_replay import NotRunning, find_turn, follow_up_request
from chat.turn import LiveTurn
from chat.turn_errors import ApprovalOver
from chat.turn_registry import check_length

if TYPE_CHECKING:
    from chat.turn_registry import TurnRegistry


async def cancel(turns: TurnRegistry, user_id: uuid.UUID, request_id: str) -> None:
    """Cancel a turn. Raises NotRunning."""
    turn = await turns.find((user_id, request_id))
    if turn is not None and not turn.waits:
        if turn.ended.is_set():  # it is only here until its log is written
            raise NotRunning
        turn.cancel()
        return
    row = await db.run(find_turn, user_id, request_id)
    if row.state == Turn.State.WAITING and await turns.waiting.cancel(row):
        return
    if turn is not None:  # its time has just come
        turn.cancel()
        return
    if row.ended_at is not None or not await turns.tell(row.owner, "cancel", user_id, request=request_id):
        raise NotRunning


async def steer(
    turns: TurnRegistry, user_id: uuid.UUID, request_id: str, message: str, *, reply: str
) -> ChatRequest | None:
    """Return the request that a message to a turn becomes, for the caller to open: it joins the turn if that runs.

    Without a conversation nothing is stored, so a running turn of this process gets the message itself, and None is
    returned. A turn of another process answers on the channel `reply` if it has ended or takes no more.

    Raises NotRunning, Invalid or TooManySteers.
    """
    check_length(message)
    turn = await turns.find((user_id, request_id))
    if turn is not None and turn.claimed.conversation_id is not None:
        return turn.follow_up(message)
    if turn is not None:
        is_early = not turn.ended.is_set()
        steering = asyncio.get_running_loop().create_task(turn.steer(message), name="steer")
        try:
            return None if await asyncio.shield(steering) else turn.follow_up(message, is_early=is_early)
        except asyncio.CancelledError:
            # The client is gone, but the user's message still counts.
            turns.spawn(_finish_steering(turns, turn, message, steering), "finish steering")
            raise
    row = await db.run(find_turn, user_id, request_id)
    is_kept = row.conversation_id is not None
    sent = (
        not is_kept
        and row.ended_at is None
        and await turns.tell(row.owner, "steer", user_id, request=request_id, message=message, reply=reply)
    )
    return None if sent else await follow_up_request(user_id, request_id, message)


async def _finish_steering(
    turns: TurnRegistry, turn: LiveTurn, message: str, steering: asyncio.Task[bool]
) -> None:
    if not await steering:
        await turns.start(turn.follow_up(message, is_early=True))


async def decide(
    turns: TurnRegistry, user_id: uuid.UUID, approval: str, approved: bool, *, reply: str
) -> None:
    """Answer an approval_request of any of the user's turns.

    If a turn of another process no longer waits for it, that process says so on the channel `reply`. Raises
    ApprovalOver.
    """
    if turns.decide_here(user_id, approval, approved):
        return
    owner = await approval_routing.find_owner(user_id, approval)
    if not await turns.tell(owner, "decide", user_id, approval=approval, approved=approved, reply=reply):
        raise ApprovalOver
