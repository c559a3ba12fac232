"""Builders of turns and conversations, beside the front door, for tests of their verbs."""

from __future__ import annotations

import uuid
from typing import Any

from adiuva.devices.protocol import Mutation, Usage
from chat import conversations
from chat.conversations import Begun
from chat.models import Conversation, Kind
from chat.request import Asked

A_ROW = {"id": "t1", "title": "Call the harbour office", "status": "todo"}
CHANGED = Mutation(action="insert", table="tasks", data=A_ROW)


def asked(user_id: uuid.UUID, message: str = "Which tasks are open?", **fields: Any) -> Asked:
    values = {"request_id": uuid.uuid4().hex, "kind": Kind.HOME, "keeps": True}
    return Asked(user_id=user_id, message=message, **(values | fields))


def begun(request: Asked, owner: str = "a-process") -> Begun:
    return conversations.begin(asked=request, owner=owner, prompt_version="home-1")


def finish(request: Asked, begun: Begun, text: str = "Three tasks are open.", **fields: Any) -> None:
    values = {
        "steered": [],
        "mutations": [],
        "state": "stop",
        "code": "",
        "usage": Usage(input_tokens=70, output_tokens=9, model_calls=2),
        "tool_calls": 1,
    }
    conversations.finish(asked=request, begun=begun, text=text, **(values | fields))


def a_turn(
    user_id: uuid.UUID, message: str = "Which tasks are open?", answer: str = "Three.", **more: Any
) -> Begun:
    """A whole turn, from its claim to its end."""
    request = asked(user_id, message, **more)
    turn = begun(request)
    finish(request, turn, answer)
    return turn


def a_conversation(user_id: uuid.UUID, *exchanges: tuple[str, str]) -> Conversation:
    """With what was asked and answered in it."""
    place: uuid.UUID | None = None
    for message, answer in exchanges or (("Which tasks are open?", "Three tasks are open."),):
        turn = a_turn(user_id, message, answer, conversation_id=str(place) if place else None)
        place = turn.conversation_id
    return Conversation.objects.get(pk=place)
