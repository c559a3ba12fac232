"""Factories of turns and conversations that call the services directly, without a socket."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from django.db import connections, transaction

from adiuva.core import db
from adiuva.devices.models import Device
from adiuva.devices.protocol import Mutation, Usage
from chat import turn_claims, turn_ends
from chat.claimed_turn import ClaimedTurn, TurnOutcome
from chat.models import AssistantKind, Conversation, Turn
from chat.request import ChatRequest
from tests.socket_client import PATIENCE_S

TASK_ROW = {"id": "t1", "title": "Call the harbour office", "status": "todo"}
TASK_INSERTED = Mutation(action="insert", table="tasks", data=TASK_ROW)


def make_request(user_id: uuid.UUID, message: str = "Which tasks are open?", **fields: Any) -> ChatRequest:
    values = {"request_id": uuid.uuid4().hex, "kind": AssistantKind.HOME, "starts_conversation": True}
    return ChatRequest(user_id=user_id, message=message, **(values | fields))


def claim(request: ChatRequest, owner: str = "a-process") -> ClaimedTurn:
    return turn_claims.claim_turn(request=request, owner=owner, prompt_version="home-1")


def finish_turn(
    request: ChatRequest,
    claimed: ClaimedTurn,
    text: str = "Three tasks are open.",
    *,
    is_again: bool = False,
    **fields: Any,
) -> None:
    values = {
        "state": "stop",
        "usage": Usage(input_tokens=70, output_tokens=9, model_calls=2),
        "tool_calls": 1,
    }
    result = TurnOutcome(text=text, **(values | fields))
    turn_ends.finish_turn(request=request, claimed=claimed, result=result, is_again=is_again)


def make_turn(
    user_id: uuid.UUID, message: str = "Which tasks are open?", answer: str = "Three.", **more: Any
) -> ClaimedTurn:
    """A whole turn, from its claim to its end."""
    request = make_request(user_id, message, **more)
    turn = claim(request)
    finish_turn(request, turn, answer)
    return turn


def make_conversation(user_id: uuid.UUID, *exchanges: tuple[str, str]) -> Conversation:
    """A conversation with these messages and answers."""
    place: uuid.UUID | None = None
    for message, answer in exchanges or (("Which tasks are open?", "Three tasks are open."),):
        turn = make_turn(user_id, message, answer, conversation_id=str(place) if place else None)
        place = turn.conversation_id
    return Conversation.objects.get(pk=place)


async def no_device_connected(user_id: uuid.UUID) -> None:
    """Wait until the server has seen that this user's devices are gone, which is a moment after they went."""
    async with asyncio.timeout(PATIENCE_S):
        while await db.run(Device.objects.of(user_id).online().exists):
            await asyncio.sleep(0.02)


@contextmanager
def locked_turn(key: str) -> Iterator[None]:
    """Keep the row of a turn locked, so that no process can store its end."""
    locked, release = threading.Event(), threading.Event()

    def lock() -> None:
        try:
            with transaction.atomic():
                Turn.objects.select_for_update().get(request_id=key)
                locked.set()
                release.wait(PATIENCE_S)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as threads:
        locking = threads.submit(lock)
        try:
            assert locked.wait(PATIENCE_S)
            yield
        finally:
            release.set()
            locking.result()
