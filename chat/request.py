"""A request to an assistant, wherever it came from."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from adiuva.devices.protocol import HistoryMessage, Scope
from chat.models import AssistantKind

MAX_MESSAGE_CHARS = 100_000


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What somebody wants, and of which device.

    `device_id`: the row id of the device whose data it is about; None takes whichever of the user's was seen last.
    `starts_conversation`: whether a request that names no conversation and brings no history begins one.
    `can_ask_approval`: whether the device can show an approval_request.
    `context`: more that the client knows, as text: data, not instructions.
    `memory`: whether it may be remembered, and what is remembered be recalled for it.
    """

    user_id: uuid.UUID
    request_id: str
    kind: AssistantKind
    message: str
    device_id: uuid.UUID | None = None
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
