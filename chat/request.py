"""A chat request, from the socket or from REST."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from adiuva.devices.protocol import HistoryMessage, Scope
from chat.models import AssistantKind

MAX_MESSAGE_CHARS = 100_000


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a user asks an assistant, and with the data of which device.

    `device_id`: the row id of the device whose data it is about; None for the user's device that was seen last.
    `expects_device`: false if none was connected when it was asked, so that tools need not wait for one.
    `starts_conversation`: whether a request without conversation and history starts a conversation.
    `can_ask_approval`: whether the device can show an approval_request.
    `context`: what else the client knows, as text. The model gets it as data, not as instructions.
    `memory`: whether the request may be remembered, and memories recalled for it.
    """

    user_id: uuid.UUID
    request_id: str
    kind: AssistantKind
    message: str
    device_id: uuid.UUID | None = None
    expects_device: bool = True
    history: tuple[HistoryMessage, ...] = ()
    scope: Scope | None = None
    conversation_id: str | None = None
    starts_conversation: bool = False
    can_ask_approval: bool = False
    context: str = ""
    memory: bool = True

    @property
    def key(self) -> tuple[uuid.UUID, str]:
        return self.user_id, self.request_id
