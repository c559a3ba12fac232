"""A chat request, from the socket or from REST."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Final, Literal

from adiuva.devices.protocol import HistoryMessage, Scope
from chat.models import AssistantKind

MAX_MESSAGE_CHARS: Final = 100_000

# Wait for the running turn and those that wait already; join it at its next model call (and wait, in case it ends
# before); or be refused.
Busy = Literal["enqueue", "steer", "reject"]


@dataclass(frozen=True, slots=True)
class RunEnds:
    """The runs whose ends a message tells, and the names of their agents."""

    run_ids: tuple[str, ...]
    agent_names: tuple[str, ...]

    def body(self) -> dict[str, Any]:
        """Return them in the form that messages and frames have."""
        return {"type": "agent_run", "run_ids": list(self.run_ids), "agent_names": list(self.agent_names)}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A user's question to an assistant, and the device whose data answers it.

    `device_id`: the row id of that device; None for the user's device that was seen last. `expects_device`: false if
    none was connected at the time of the request, so that tools need not wait for one. `starts_conversation`: whether a
    request without conversation and history starts a conversation. `can_ask_approval`: whether the device can show an
    approval_request. `context`: what else the client knows, as text. The model gets it as data, not as instructions.
    `memory`: whether the request may be remembered, and memories recalled for it. `busy`: what becomes of it while
    another request of its conversation is answered. `joins`: with `steer`, the turn that it is addressed to; None for
    the running one. `is_early`: whether it was sent before the answer that it follows had ended, so that it can be no
    yes to that. `origin`: the ended runs that it follows up; then `message` is the app's, not a user's.
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
    busy: Busy = "enqueue"
    joins: uuid.UUID | None = None
    is_early: bool = False
    origin: RunEnds | None = None

    @property
    def words(self) -> list[str]:
        """The user's words in the request."""
        return [] if self.origin is not None else [self.message]

    @property
    def key(self) -> tuple[uuid.UUID, str]:
        return self.user_id, self.request_id
