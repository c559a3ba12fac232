"""Handles messages of other processes about turns of this one: follow, cancel, steer, decide an approval, ..."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from channels.layers import get_channel_layer

from adiuva.core.channel_layer import Message
from chat.stream_replay import follow_up_request
from chat.turn_bus import (
    ChannelListener,
    refused_message,
    steer_late_message,
    stream_over_message,
)
from chat.turn_errors import ApprovalOver
from chat.turn_queue import TooManySteers

if TYPE_CHECKING:
    from chat.turn_registry import TurnRegistry


async def handle(turns: TurnRegistry, message: Message) -> None:
    """Carry out one message of another process."""
    user_id = uuid.UUID(message["user"])
    match message["type"]:
        case "follow":
            await _follow(turns, user_id, message)
        case "cancel":
            if (turn := await turns.find((user_id, message["request"]))) is not None:
                turn.cancel()
        case "steer":
            await _steer(turns, user_id, message)
        case "runs_ended":
            if (turn := await turns.find((user_id, message["request"]))) is not None:
                turn.runs_have_ended()
        case "spoken":
            if (turn := await turns.find((user_id, message["request"]))) is not None:
                turn.user_has_spoken()
        case "look":
            await turns.find(
                (user_id, message["request"])
            )  # it may be on its way to the waiting turns of this process
            turns.waiting.look()
        case "decide":
            if not turns.decide_here(user_id, message["approval"], message["approved"]):
                refused = refused_message(ApprovalOver(), message["approval"])
                await get_channel_layer().send(message["reply"], refused)


async def _follow(turns: TurnRegistry, user_id: uuid.UUID, message: Message) -> None:
    listener = ChannelListener(message["reply"])
    turn = await turns.find((user_id, message["request"]))
    if turn is None:
        await get_channel_layer().send(listener.channel, stream_over_message(message["request"]))
    elif not turn.stream.is_followed_by(listener) or message["anew"]:
        turn.stream.follow(listener, message["after"])


async def _steer(turns: TurnRegistry, user_id: uuid.UUID, message: Message) -> None:
    request_id, text = message["request"], message["message"]
    turn = await turns.find((user_id, request_id))
    try:
        accepted = turn is not None and await turn.steer(text)
    except TooManySteers as error:
        await get_channel_layer().send(message["reply"], refused_message(error, request_id))
        return
    if not accepted and not await get_channel_layer().send(
        message["reply"], steer_late_message(request_id, text)
    ):
        # The socket that sent it is gone; the user's message becomes a turn all the same.
        await turns.start(
            turn.follow_up(text, is_early=True)
            if turn is not None
            else await follow_up_request(user_id, request_id, text, is_early=True)
        )
