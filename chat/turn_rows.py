"""A turn's row and messages in the database: its claim, its end, and what happens to turns that were lost."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from django.db import connection, transaction
from django.db.models import Sum
from django.db.models.functions import Now

from adiuva.accounts.keys import NoSuchUser, cipher_for
from adiuva.core.crypto import UserCipher
from adiuva.core.errors import Conflict
from adiuva.devices.protocol import Mutation, Usage
from chat.conversations import ConversationNotFound, parse_id
from chat.foreign_text import ForeignTexts
from chat.models import Conversation, Message, Turn, TurnChanges
from chat.request import ChatRequest
from chat.titles import derive_title
from chat.turn_changes import TurnRecord
from memory import exchanges
from memory.models import SourceKind

TURN_RETENTION = dt.timedelta(days=30)


class AlreadyClaimed(Conflict):
    """A turn with this request id exists: it is running, or it has ended."""

    code = "request_taken"

    def __init__(self, turn: Turn) -> None:
        super().__init__("this request was made before")
        self.turn = turn


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
    `untitled`: whether the conversation still needs a title.
    `memory`: whether memory is on for this user and in this conversation.
    `has_private`: whether an earlier message was not to be remembered.
    `has_foreign`: whether earlier answers may quote texts that the user did not write.
    `seq`: the request's place in its conversation; None if it has none.
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


class NewSummary(NamedTuple):
    """A summary of a conversation up to and including the message `upto`."""

    upto: int
    text: str


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    """How a turn ended. `steered` is what the user said while it ran; `code` says why it did not end with "stop".

    `foreign`: the texts that it read and that the user did not write. `record`: what an undo needs.
    """

    state: str
    text: str
    code: str = ""
    steered: Sequence[str] = ()
    mutations: Sequence[Mutation] = ()
    usage: Usage = field(default_factory=Usage)
    tool_calls: int = 0
    summary: NewSummary | None = None
    foreign: ForeignTexts = field(default_factory=ForeignTexts)
    record: TurnRecord | None = None


# One round trip: who the user is, the claim, and the conversation with its first message (`message`), if the request
# starts one. The lock on the account holds off its deletion until we are done, or waits for it.
_CLAIM_SQL = """
WITH owner AS (SELECT id, timezone, locale FROM accounts_user WHERE id = %(user)s FOR KEY SHARE),
claimed AS (
    INSERT INTO chat_turn (id, user_id, request_id, kind, state, code, owner, prompt_version, conversation_id,
        seq, memory, input_tokens, output_tokens, model_calls, tool_calls, mutations)
    SELECT %(turn)s, id, %(request)s, %(kind)s, 'running', '', %(owner)s, %(prompt)s, %(conversation)s, %(seq)s,
        %(memory)s, 0, 0, 0, 0, 0
    FROM owner ON CONFLICT (user_id, request_id) DO NOTHING RETURNING id, user_id, kind, conversation_id
),
started AS (
    INSERT INTO chat_conversation (id, user_id, kind, summary_upto, message_count, memory, has_private)
    SELECT conversation_id, user_id, kind, 0, 1, %(memory)s, NOT %(memory)s
    FROM claimed WHERE %(message)s::bytea IS NOT NULL
    RETURNING id
),
first_message AS (
    INSERT INTO chat_message (id, conversation_id, seq, role, sealed)
    SELECT %(message_id)s, id, 1, 'user', %(message)s FROM started
)
SELECT owner.timezone, owner.locale, claimed.id, COALESCE(memory.enabled, true)
FROM owner LEFT JOIN claimed ON true LEFT JOIN memory_memory AS memory ON memory.user_id = owner.id
"""

# The account is locked first, as its deletion does, so that no message is added between that and the deletion of its
# conversations.
_ADVANCE_SQL = """
WITH owner AS (SELECT id FROM accounts_user WHERE id = %(user)s FOR KEY SHARE)
UPDATE chat_conversation AS conversation SET message_count = message_count + 1, updated_at = now(),
    has_private = has_private OR NOT %(memory)s, has_foreign = has_foreign OR %(foreign)s,
    title = COALESCE(title, %(title)s),
    summary = CASE WHEN %(upto)s > conversation.summary_upto THEN %(summary)s ELSE conversation.summary END,
    summary_upto = GREATEST(conversation.summary_upto, %(upto)s)
FROM owner WHERE conversation.id = %(id)s AND conversation.user_id = owner.id
RETURNING message_count, title, summary, conversation.summary_upto, conversation.memory, has_private,
    has_foreign
"""

_INSERT_MESSAGE_SQL = """
INSERT INTO chat_message (id, conversation_id, seq, role, sealed)
VALUES (%(id)s, %(conversation)s, %(seq)s, %(role)s, %(sealed)s)
"""
_INSERT_REQUEST_SQL = """
WITH placed AS (UPDATE chat_turn SET seq = %(seq)s WHERE id = %(turn)s)
INSERT INTO chat_message (id, conversation_id, seq, role, sealed)
VALUES (%(id)s, %(conversation)s, %(seq)s, %(role)s, %(sealed)s)
"""

_END_SQL = """
UPDATE chat_turn SET state = %(state)s, code = %(code)s, ended_at = now(), input_tokens = %(input_tokens)s,
    output_tokens = %(output_tokens)s, model_calls = %(model_calls)s, tool_calls = %(tool_calls)s,
    mutations = %(mutations)s, "foreign" = %(foreign)s
WHERE id = %(turn)s AND state = 'running'
"""


# ── Claim ───────────────────────────────────────────────────────────────────────────────────────────────


def claim_turn(*, request: ChatRequest, owner: str, prompt_version: str) -> ClaimedTurn:
    """Claim a request for `owner`, the channel of this process, and store the user's message.

    Raises AlreadyClaimed, ConversationNotFound, or NoSuchUser.
    """
    cipher = cipher_for(request.user_id)
    claim = partial(_insert_claim, request, owner, prompt_version, cipher)
    if request.conversation_id is not None:
        conversation_id = parse_id(request.conversation_id)
        with transaction.atomic():
            claimed = claim(conversation_id)
            _continue_conversation(claimed, request, conversation_id)
    elif request.starts_conversation and not request.history:
        claimed = claim(uuid.uuid4(), starts=True)
        claimed.untitled, claimed.seq = True, 1
    else:
        claimed = claim(None)
        claimed.history = [ChatMessage(message.role, message.content) for message in request.history]
        # What its earlier turns read is not stored.
        claimed.has_foreign = any(message.role == "assistant" for message in request.history)
    return claimed


def _insert_claim(
    request: ChatRequest,
    owner: str,
    prompt_version: str,
    cipher: UserCipher,
    conversation_id: uuid.UUID | None,
    *,
    starts: bool = False,
) -> ClaimedTurn:
    turn_id = uuid.uuid4()
    message = None
    if starts:
        message = Message.sealed.seal(
            cipher, {"text": request.message}, conversation_id, 1, Message.Role.USER
        )
    with connection.cursor() as cursor:
        cursor.execute(
            _CLAIM_SQL,
            {
                "user": request.user_id,
                "turn": turn_id,
                "request": request.request_id,
                "kind": request.kind,
                "owner": owner,
                "prompt": prompt_version,
                "conversation": conversation_id,
                "seq": 1 if starts else None,
                "message": message,
                "message_id": uuid.uuid4(),
                "memory": request.memory,
            },
        )
        row = cursor.fetchone()
    if row is None:
        raise NoSuchUser("this account no longer exists")
    timezone, locale, claimed, memory = row
    if claimed is None:
        raise AlreadyClaimed(Turn.objects.of(request.user_id).get(request_id=request.request_id))
    return ClaimedTurn(
        turn_id,
        timezone,
        locale,
        cipher,
        conversation_id,
        memory=memory and (request.memory or not starts),
    )


def _continue_conversation(claimed: ClaimedTurn, request: ChatRequest, conversation_id: uuid.UUID) -> None:
    """Append the user's message to its conversation, and read the history that the turn needs."""
    state = _append_message(claimed, request, Message.Role.USER, {"text": request.message})
    if state is None:
        raise ConversationNotFound
    claimed.untitled, claimed.summary_upto = state.title is None, state.summary_upto
    claimed.memory, claimed.seq = claimed.memory and state.memory, state.seq
    claimed.has_private, claimed.has_foreign = state.has_private, state.has_foreign
    if state.summary is not None:
        claimed.summary = Conversation.summary.unseal(claimed.cipher, state.summary, conversation_id)
    rows = Message.objects.filter(
        conversation_id=conversation_id, seq__gt=state.summary_upto, seq__lt=state.seq
    )
    claimed.history = [
        _chat_message(role, Message.sealed.unseal(claimed.cipher, sealed, conversation_id, seq, role))
        for seq, role, sealed in rows.values_list("seq", "role", "sealed")
    ]


def _chat_message(role: str, body: dict[str, Any]) -> ChatMessage:
    mutations = tuple(Mutation.model_validate(mutation) for mutation in body.get("mutations", ()))
    return ChatMessage(role, body["text"], mutations)


# ── End ─────────────────────────────────────────────────────────────────────────────────────────────────


def finish_turn(*, request: ChatRequest, claimed: ClaimedTurn, result: TurnOutcome) -> None:
    """Store a turn's end and its answer, and hand the exchange to memory where that is on.

    A turn that was marked lost meanwhile keeps that end; its answer is stored all the same.
    """
    store_exchange = partial(
        exchanges.store,
        user_id=request.user_id,
        cipher=claimed.cipher,
        said=[request.message, *result.steered],
        foreign=result.foreign.listed(),
    )
    answer = _answer_to_keep(claimed, result)
    remembers = request.memory and claimed.memory and bool(result.text.strip())
    if claimed.conversation_id is None:
        # One statement needs no transaction around it, and most turns change nothing.
        with transaction.atomic() if _has_changes(result) else nullcontext():
            _end_row(claimed, result)
            _store_changes(claimed, result)
        if remembers:
            store_exchange(kind=SourceKind.REQUEST, source_id=claimed.turn_id, seq=None, answer=answer)
        return
    title = (derive_title(request.message, result.text) or None) if claimed.untitled else None
    # The messages first: account and conversation are locked before turns, here as in their deletion.
    with transaction.atomic():
        for message in result.steered:
            _append_message(claimed, request, Message.Role.USER, {"text": message})
        state = _append_message(
            claimed,
            request,
            Message.Role.ASSISTANT,
            _answer_body(result),
            title=title,
            summary=result.summary,
            foreign=bool(result.foreign),
        )
        _end_row(claimed, result)
        _store_changes(claimed, result)
        # Memory may have been switched off while the turn ran.
        if remembers and state is not None and state.memory:
            store_exchange(
                kind=SourceKind.CONVERSATION,
                source_id=claimed.conversation_id,
                seq=claimed.seq,
                # After a private message, an answer may tell what was said in it.
                answer="" if state.has_private else answer,
            )


def _answer_to_keep(claimed: ClaimedTurn, result: TurnOutcome) -> str:
    """What the memory reads of an answer: not one that may quote texts that the user did not write."""
    if not result.foreign and not claimed.has_foreign:
        return result.text
    changes = Counter(f"{mutation.action} in {mutation.table}" for mutation in result.mutations)
    done = "; ".join(f"{change}: {count}" for change, count in changes.items())
    return (
        f"(left out, since it may quote texts that the user did not write{f'. Done: {done}' if done else ''})"
    )


def _answer_body(result: TurnOutcome) -> dict[str, Any]:
    body: dict[str, Any] = {"text": result.text, "finish": result.state}
    if result.code:
        body["code"] = result.code
    if result.mutations:
        body["mutations"] = [mutation.model_dump() for mutation in result.mutations]
    return body


class _ConversationState(NamedTuple):
    """A conversation's row right after a message was added to it."""

    seq: int
    title: bytes | None
    summary: bytes | None
    summary_upto: int
    memory: bool
    has_private: bool
    has_foreign: bool


def _append_message(
    claimed: ClaimedTurn,
    request: ChatRequest,
    role: Message.Role,
    body: dict[str, Any],
    *,
    title: str | None = None,
    summary: NewSummary | None = None,
    foreign: bool = False,
) -> _ConversationState | None:
    """Append a message to the turn's conversation. None if that does not exist, or is not the user's."""
    cipher, conversation_id = claimed.cipher, claimed.conversation_id
    with connection.cursor() as cursor:
        cursor.execute(
            _ADVANCE_SQL,
            {
                "id": conversation_id,
                "user": request.user_id,
                "memory": request.memory,
                "title": None if title is None else Conversation.title.seal(cipher, title, conversation_id),
                "summary": Conversation.summary.seal(cipher, summary.text, conversation_id)
                if summary
                else None,
                "upto": summary.upto if summary else 0,
                "foreign": foreign,
            },
        )
        row = cursor.fetchone()
        if row is None:
            return None
        state = _ConversationState(*row)
        is_request = role == Message.Role.USER and claimed.seq is None
        cursor.execute(
            _INSERT_REQUEST_SQL if is_request else _INSERT_MESSAGE_SQL,
            {
                "id": uuid.uuid4(),
                "turn": claimed.turn_id,
                "conversation": conversation_id,
                "seq": state.seq,
                "role": role,
                "sealed": Message.sealed.seal(cipher, body, conversation_id, state.seq, role),
            },
        )
    return state


def _has_changes(result: TurnOutcome) -> bool:
    return result.record is not None and bool(result.record.changes)


def _store_changes(claimed: ClaimedTurn, result: TurnOutcome) -> None:
    """Store what an undo of the turn needs, unless the turn was deleted with its account."""
    if result.record is None or not _has_changes(result):
        return
    if Turn.objects.filter(pk=claimed.turn_id).exists():
        body = [change.body() for change in result.record.by_row(claimed.cipher)]
        sealed = TurnChanges.sealed.seal(claimed.cipher, body, claimed.turn_id)
        TurnChanges.objects.create(turn_id=claimed.turn_id, device=result.record.device, sealed=sealed)


def count_recent_writes(*, user_id: uuid.UUID, conversation_id: uuid.UUID | None) -> int:
    """How many rows the turns of a conversation changed within the last hour; without one, all turns that had none."""
    since = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    turns = Turn.objects.of(user_id).filter(started_at__gt=since)
    turns = (
        turns.filter(conversation_id=conversation_id) if conversation_id else turns.filter(conversation=None)
    )
    found: int | None = turns.aggregate(total=Sum("mutations"))["total"]
    return found or 0


def _end_row(claimed: ClaimedTurn, result: TurnOutcome) -> None:
    listed = result.foreign.listed()
    with connection.cursor() as cursor:
        cursor.execute(
            _END_SQL,
            {
                "turn": claimed.turn_id,
                "state": result.state,
                "code": result.code,
                "tool_calls": result.tool_calls,
                "mutations": len(result.mutations),
                "foreign": Turn.foreign.seal(claimed.cipher, listed, claimed.turn_id) if listed else None,
                **result.usage.model_dump(),
            },
        )


# ── Lost turns ──────────────────────────────────────────────────────────────────────────────────────────


def mark_lost(*, turn: Turn, code: str) -> bool:
    """End a turn whose process is gone. False if it has ended meanwhile: then it keeps that end."""
    unchanged = Turn.objects.filter(pk=turn.pk, owner=turn.owner).running()
    return bool(unchanged.update(state=Turn.State.ERROR, code=code, ended_at=Now()))


def end_lost_turns(*, older_than: dt.timedelta) -> int:
    """End turns that no process can still be running, and delete old ones. Returns how many were ended."""
    now = dt.datetime.now(dt.UTC)
    ended = (
        Turn.objects.running()
        .filter(started_at__lt=now - older_than)
        .update(state=Turn.State.ERROR, code="turn_lost", ended_at=Now())
    )
    Turn.objects.filter(started_at__lt=now - TURN_RETENTION).exclude(state=Turn.State.RUNNING).delete()
    return ended
