"""Data classes of a turn and its conversation's messages, shared by the code that claims, runs and ends the turn."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from django.conf import settings
from django.db.models import Sum

from adiuva.core.crypto import UserCipher
from adiuva.core.db import prepared_cursor
from adiuva.core.leases import Lease
from adiuva.devices.protocol import Mutation, Usage
from adiuva.llm import Meter, ModelUse
from billing.turn_holds import Held
from chat.foreign_text import ForeignTexts
from chat.models import Conversation, Message, Turn
from chat.request import ChatRequest
from chat.run_notes import RunNotes
from chat.turn_changes import TurnRecord
from memory.recall import RecallResult

FIRST_FENCE: Final = 1
# The code of a turn for which the model's provider has cut the answer off.
CONTENT_FILTER: Final = "content_filter"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """An earlier message as the model gets it. `mutations` are the changes that its turn made on the device."""

    role: str
    text: str
    mutations: Sequence[Mutation] = ()


@dataclass(slots=True)
class ClaimedTurn:
    """A claimed turn with all that its first model call needs from the database.

    `history`: the messages after the part that `summary` covers; `summary_upto` is the last `seq` it covers.
    `untitled`: whether the conversation still needs a title. `memory`: whether memory is on for this user and in this
    conversation. `has_private`: whether an earlier message was not to be remembered. `has_foreign`: whether earlier
    answers may quote texts that the user did not write. `seq`: the request's place in its conversation; None if it has
    none, or not yet. `fence`: that of the turn's lease. `queued`: whether it waits for the turn before it, or has
    waited. `ends_are_due`: whether the turn is to tell ends of runs in its chat. `held`: the money that its claim has
    reserved. `recalled`: what the memory returned; None if it was not asked yet.
    """

    turn_id: uuid.UUID
    timezone: str
    locale: str
    cipher: UserCipher
    conversation_id: uuid.UUID | None = None
    history: list[ChatMessage] = field(default_factory=list)
    summary: str = ""
    summary_upto: int = 0
    untitled: bool = False
    memory: bool = True
    has_private: bool = False
    has_foreign: bool = False
    seq: int | None = None
    fence: int = FIRST_FENCE
    queued: bool = False
    ends_are_due: bool = False
    held: Held | None = None
    recalled: RecallResult | None = None

    @property
    def lease(self) -> Lease[Turn]:
        return Lease(Turn, self.turn_id, self.fence, lease_duration())


def lease_duration() -> dt.timedelta:
    """Return how long a process may be silent before its turns are lost."""
    return dt.timedelta(seconds=settings.CHAT["turn_lease_s"])


class NewSummary(NamedTuple):
    """A summary of a conversation up to and including the message `upto`."""

    upto: int
    text: str


class Steered(NamedTuple):
    """A message that the user sent while a turn ran, and when the model read it.

    `call`: the number of the turn's model call that read it, from 1. `turn_id`: that of the message's own request.
    """

    text: str
    call: int = 0
    at: dt.datetime | None = None
    turn_id: uuid.UUID | None = None

    def body(self) -> dict[str, Any]:
        """Return the message as it is stored."""
        heard = self.heard()
        return {"text": self.text, "steered": heard} if heard else {"text": self.text}

    def heard(self) -> dict[str, Any] | None:
        """Return when the model read it, as stored; None if that is not known."""
        return {"at": self.at.isoformat(), "call": self.call} if self.at is not None else None

    @classmethod
    def read(cls, text: str, heard: Mapping[str, Any] | None) -> Steered:
        """Build one from its stored form."""
        return cls(text, heard["call"], dt.datetime.fromisoformat(heard["at"])) if heard else cls(text)


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    """The end of a turn. `steered` is what the user said while it ran; `code` says why it did not end with "stop".

    `usage` is the use of models that clients are told, `uses` the same by model, and `meter` holds the money for it.
    `foreign`: the texts that it read and that the user did not write. `steps`: its steps, for people. `record`: what an
    undo needs. `heard_runs`: the runs whose end its model was told; the user has heard of them if the model has
    answered since (`has_answered`). `notes`: the ends of runs that it was given to tell; `may_hold_runs`: whether it
    has looked for any, so that it may hold more than it knows. `retry_after_s`: how long the provider asks callers to
    wait.
    """

    state: str
    text: str
    code: str = ""
    steered: Sequence[Steered] = ()
    mutations: Sequence[Mutation] = ()
    usage: Usage = field(default_factory=Usage)
    uses: Sequence[ModelUse] = ()
    meter: Meter | None = None
    tool_calls: int = 0
    steps: Sequence[dict[str, Any]] = ()
    summary: NewSummary | None = None
    foreign: ForeignTexts = field(default_factory=ForeignTexts)
    record: TurnRecord | None = None
    heard_runs: Collection[uuid.UUID] = ()
    may_hold_runs: bool = False
    notes: RunNotes = field(default_factory=RunNotes)
    retry_after_s: float | None = None
    has_answered: bool = False

    @property
    def tells_runs(self) -> bool:
        """True if the user now knows of the runs that the turn was to tell of."""
        return self.state == Turn.State.STOP or (self.has_answered and self.code != CONTENT_FILTER)


# Common table expressions behind the conversation's `owner`. A message sealed for a certain place is added only if that
# place is the next one.
ADVANCED_SQL: Final = """
advanced AS (
    UPDATE chat_conversation AS conversation SET message_count = message_count + 1, updated_at = now(),
        has_private = has_private OR NOT %(memory)s, has_foreign = has_foreign OR %(is_foreign)s,
        title = COALESCE(title, %(title)s),
        summary = CASE WHEN %(upto)s > conversation.summary_upto THEN %(summary)s ELSE conversation.summary END,
        summary_upto = GREATEST(conversation.summary_upto, %(upto)s)
    FROM owner WHERE conversation.id = %(id)s AND conversation.user_id = owner.id
    RETURNING conversation.id, message_count, title, summary, conversation.summary_upto, conversation.memory,
        has_private, has_foreign
),
added AS (
    INSERT INTO chat_message (id, conversation_id, seq, role, sealed)
    SELECT %(message)s::uuid, id, message_count, %(role)s, %(sealed)s::bytea FROM advanced WHERE message_count = %(seq)s
)
"""
# The account is locked first, as in its deletion, so that no message can be added while that deletes the conversations.
_ADVANCE_SQL: Final = f"""
WITH owner AS (SELECT id FROM accounts_user WHERE id = %(user)s FOR KEY SHARE), {ADVANCED_SQL}
SELECT message_count, title, summary, summary_upto, memory, has_private, has_foreign,
    (SELECT role FROM chat_message AS last WHERE last.conversation_id = advanced.id AND last.seq = message_count - 1)
FROM advanced
"""  # noqa: S608

_INSERT_MESSAGE_SQL = """
INSERT INTO chat_message (id, conversation_id, seq, role, sealed)
VALUES (%(id)s, %(conversation)s, %(seq)s, %(role)s, %(sealed)s)
"""
_INSERT_REQUEST_SQL = """
WITH placed AS (UPDATE chat_turn SET seq = %(seq)s WHERE id = %(turn)s)
INSERT INTO chat_message (id, conversation_id, seq, role, sealed)
VALUES (%(id)s, %(conversation)s, %(seq)s, %(role)s, %(sealed)s)
"""


class ConversationState(NamedTuple):
    """A conversation's row once there is room for a message, at `seq`. `last_role`: of the message before it."""

    seq: int
    title: bytes | None
    summary: bytes | None
    summary_upto: int
    memory: bool
    has_private: bool
    has_foreign: bool
    last_role: str | None


class PlacedMessage(NamedTuple):
    """A message for a certain place in its conversation."""

    seq: int
    role: Message.Role
    body: dict[str, Any]


def append_message(
    claimed: ClaimedTurn,
    request: ChatRequest,
    role: Message.Role,
    body: dict[str, Any],
    *,
    expected: int | None = None,
    title: str | None = None,
    summary: NewSummary | None = None,
    foreign: bool = False,
) -> ConversationState | None:
    """Append a message to the turn's conversation. Returns None if that does not exist or is not the user's.

    This takes one statement if the message gets the place that is `expected`, else two.
    """
    message = None if expected is None else PlacedMessage(expected, role, body)
    state = advance(claimed, request, message=message, title=title, summary=summary, foreign=foreign)
    if state is not None and state.seq != expected:
        insert_message(claimed, state.seq, role, body)
    return state


def advance(
    claimed: ClaimedTurn,
    request: ChatRequest,
    *,
    message: PlacedMessage | None = None,
    title: str | None = None,
    summary: NewSummary | None = None,
    foreign: bool = False,
) -> ConversationState | None:
    """Make room for one more message, and lock the conversation.

    `message` is written if its place is the one that there is room for. Returns None if the conversation does not exist
    or is not the user's.
    """
    values = advance_values(claimed, request, message=message, title=title, summary=summary, foreign=foreign)
    with prepared_cursor() as cursor:
        cursor.execute(_ADVANCE_SQL, values)
        row = cursor.fetchone()
    return None if row is None else ConversationState(*row)


def advance_values(
    claimed: ClaimedTurn,
    request: ChatRequest,
    *,
    message: PlacedMessage | None,
    title: str | None,
    summary: NewSummary | None,
    foreign: bool,
) -> dict[str, Any]:
    """Return the parameters of ADVANCED_SQL, and the user."""
    cipher, conversation_id = claimed.cipher, claimed.conversation_id
    sealed = None
    if message is not None:
        place = (conversation_id, message.seq, message.role)
        sealed = Message.sealed.seal(cipher, message.body, *place)
    return {
        "id": conversation_id,
        "user": request.user_id,
        "memory": request.memory,
        "title": None if title is None else Conversation.title.seal(cipher, title, conversation_id),
        "summary": Conversation.summary.seal(cipher, summary.text, conversation_id) if summary else None,
        "upto": summary.upto if summary else 0,
        "is_foreign": foreign,
        "message": uuid.uuid4(),
        "seq": message.seq if message else None,
        "role": message.role.value if message else None,
        "sealed": sealed,
    }


def insert_message(
    claimed: ClaimedTurn, seq: int, role: Message.Role, body: dict[str, Any], *, is_request: bool = False
) -> None:
    """Write a message where `advance` has made room. `is_request`: whether it is the message that the turn answers."""
    with prepared_cursor() as cursor:
        cursor.execute(
            _INSERT_REQUEST_SQL if is_request else _INSERT_MESSAGE_SQL,
            {
                "id": uuid.uuid4(),
                "turn": claimed.turn_id,
                "conversation": claimed.conversation_id,
                "seq": seq,
                "role": role.value,
                "sealed": Message.sealed.seal(claimed.cipher, body, claimed.conversation_id, seq, role),
            },
        )


def count_recent_writes(*, user_id: uuid.UUID, conversation_id: uuid.UUID | None) -> int:
    """Return how many rows turns have changed within the last hour: those of the conversation, or those without any."""
    since = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    turns = Turn.objects.of(user_id).filter(started_at__gt=since)
    turns = (
        turns.filter(conversation_id=conversation_id) if conversation_id else turns.filter(conversation=None)
    )
    found: int | None = turns.aggregate(total=Sum("mutations"))["total"]
    return found or 0
