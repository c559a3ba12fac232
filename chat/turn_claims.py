"""The claim on a request: its row, the user's message, and the data for the turn's first model call."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any, Final, NamedTuple

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from adiuva.accounts.keys import NoSuchUser, cipher_for
from adiuva.accounts.models import User
from adiuva.core import leases
from adiuva.core.crypto import UserCipher
from adiuva.core.db import prepared_cursor
from adiuva.core.errors import Conflict
from adiuva.devices.protocol import Mutation
from billing import turn_holds
from chat import conversations, turn_queue
from chat.claimed_turn import (
    FIRST_FENCE,
    ChatMessage,
    ClaimedTurn,
    ConversationState,
    advance,
    insert_message,
    lease_duration,
)
from chat.conversations import ConversationNotFound, parse_id
from chat.models import Conversation, Message, Turn
from chat.request import ChatRequest
from memory.models import Memory


class AlreadyClaimed(Conflict):
    """A turn with this request id exists: it is running, or it has ended."""

    code = "request_taken"

    def __init__(self, turn: Turn) -> None:
        super().__init__("this request was made before")
        self.turn = turn


# One round trip: the user, the claim, and the conversation with its first message (`message`), if the request starts
# one. The lock on the account holds off its deletion until the end, or waits for it. An existing conversation
# (`continued`) is locked before its turns, as whenever the running and waiting ones change. `claimed` has no row if the
# request id is taken, or if another turn of the conversation runs.
_CLAIM_SQL: Final = """
WITH owner AS (SELECT id, timezone, locale, tier FROM accounts_user WHERE id = %(user)s FOR KEY SHARE),
continued AS (
    SELECT conversation.id FROM chat_conversation AS conversation JOIN owner ON conversation.user_id = owner.id
    WHERE conversation.id = %(continued)s FOR NO KEY UPDATE OF conversation
),
claimed AS (
    INSERT INTO chat_turn (id, user_id, request_id, kind, state, code, owner, lease_until, fence, prompt_version,
        conversation_id, seq, memory, input_tokens, output_tokens, model_calls, tool_calls, mutations)
    SELECT %(turn)s, id, %(request)s, %(kind)s, 'running', '', %(owner)s, now() + %(lease)s * interval '1 second',
        %(fence)s, %(prompt)s, %(conversation)s, %(seq)s, %(memory)s, 0, 0, 0, 0, 0
    FROM owner WHERE %(continued)s::uuid IS NULL OR EXISTS (SELECT FROM continued)
    ON CONFLICT DO NOTHING RETURNING id, user_id, kind, conversation_id
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
){held}
SELECT owner.timezone, owner.locale, claimed.id, COALESCE(memory.enabled, true), (SELECT id FROM continued),
    EXISTS (
        SELECT FROM agents_watch AS watch WHERE watch.user_id = owner.id AND watch.state = 'due' AND CASE
            WHEN %(conversation)s::uuid IS NOT NULL THEN watch.conversation_id = %(conversation)s AND watch.attempts = 0
            ELSE watch.conversation_id IS NULL AND watch.device_id = %(device)s AND %(kind)s = 'home' END
    ){columns}
FROM owner LEFT JOIN claimed ON true LEFT JOIN memory_memory AS memory ON memory.user_id = owner.id{granted}
"""
_CLAIM_ALONE_SQL: Final = _CLAIM_SQL.format(held="", columns="", granted="")
_CLAIM_AND_HOLD_SQL: Final = _CLAIM_SQL.format(
    held=f", {turn_holds.CLAIM_SQL}",
    columns=f", {turn_holds.CLAIM_COLUMNS}",
    granted=" LEFT JOIN granted ON true",
)


def claim_turn(*, request: ChatRequest, owner: str, prompt_version: str) -> ClaimedTurn:
    """Claim a request for `owner`, the channel of this process, and store the user's message.

    While another turn of its conversation runs, the request waits (`queued`), and its message is stored when it begins.
    Raises AlreadyClaimed, ConversationNotFound, ConversationBusy, QueueFull, or NoSuchUser.
    """
    cipher = cipher_for(request.user_id)
    claim = partial(_insert_claim, request, owner, prompt_version, cipher)
    if request.conversation_id is not None:
        conversation_id = parse_id(request.conversation_id)
        with transaction.atomic():
            claimed = claim(conversation_id)
            if not claimed.queued:
                _continue_conversation(claimed, request, conversation_id)
    elif request.starts_conversation and not request.history:
        claimed = claim(uuid.uuid4(), starts=True)
        claimed.untitled, claimed.seq = True, 1
    else:
        claimed = claim(None)
        claimed.history = [ChatMessage(message.role, message.content) for message in request.history]
        # The history does not tell what the client's earlier turns read.
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
    wish = turn_holds.wish_for_turn()
    to_hold = wish.values(settings.CHAT["turn_deadline_s"]) if wish else {}
    with prepared_cursor() as cursor:
        cursor.execute(
            _CLAIM_AND_HOLD_SQL if wish else _CLAIM_ALONE_SQL,
            {
                **to_hold,
                "user": request.user_id,
                "turn": turn_id,
                "request": request.request_id,
                "kind": request.kind.value,
                "owner": owner,
                "lease": lease_duration().total_seconds(),
                "fence": FIRST_FENCE,
                "prompt": prompt_version,
                "conversation": conversation_id,
                "continued": None if starts else conversation_id,
                "seq": 1 if starts else None,
                "message": message,
                "message_id": uuid.uuid4(),
                "memory": request.memory,
                "device": str(request.device_id or ""),
            },
        )
        row = cursor.fetchone()
    if row is None:
        raise NoSuchUser("this account no longer exists")
    timezone, locale, claimed, memory, continued, ends_are_due, *of_month = row
    if claimed is None:
        taken = Turn.objects.of(request.user_id).filter(request_id=request.request_id).first()
        if taken is not None:
            raise AlreadyClaimed(taken)
        if conversation_id is None or continued is None:
            raise ConversationNotFound
        if request.busy == "reject":
            raise turn_queue.ConversationBusy
        turn_queue.enqueue(
            request=request,
            turn_id=turn_id,
            conversation_id=conversation_id,
            owner=owner,
            prompt_version=prompt_version,
            cipher=cipher,
        )
    return ClaimedTurn(
        turn_id,
        timezone,
        locale,
        cipher,
        conversation_id,
        memory=memory and (request.memory or not starts),
        queued=claimed is None,
        ends_are_due=ends_are_due,
        held=turn_holds.held(wish, of_month, timezone) if wish else None,
    )


class BegunTurn(NamedTuple):
    """A turn that has waited, and that this process runs now."""

    request: ChatRequest
    claimed: ClaimedTurn


@transaction.atomic
def begin_turn(*, turn_id: uuid.UUID, user_id: uuid.UUID, owner: str) -> BegunTurn | None:
    """Begin a turn that was handed over, for `owner`: store its message, and read the data that it needs.

    Returns None if others have begun or ended it. Raises NoSuchUser.
    """
    cipher = cipher_for(user_id)
    to_begin = Turn.objects.to_begin().filter(pk=turn_id, user_id=user_id)
    if (found := to_begin.only("conversation_id").first()) is None:
        return None
    conversation_id = found.conversation_id
    if conversation_id is None or not conversations.lock(user_id, conversation_id):
        leases.revoke(
            to_begin,
            state=Turn.State.ERROR,
            code=ConversationNotFound.code,
            ended_at=Now(),
            waiting_request=None,
        )
        return None
    row = to_begin.select_for_update(no_key=True).first()
    if row is None:
        return None
    request = turn_queue.read_request(cipher, row)
    row.lease(lease_duration()).renew(owner=owner, waiting_request=None, started_at=Now())
    user = User.objects.get(pk=user_id)
    is_on = Memory.objects.filter(pk=user_id).values_list("enabled", flat=True).first()
    claimed = ClaimedTurn(
        turn_id,
        user.timezone,
        user.locale,
        cipher,
        conversation_id,
        memory=is_on is not False,
        fence=row.fence,
        queued=True,
    )
    _continue_conversation(claimed, request, conversation_id)
    return BegunTurn(request, claimed)


def adopt_turn(*, row: Turn, owner: str) -> BegunTurn | None:
    """Care for a waiting turn whose process is gone, without beginning it. Returns None if it no longer waits."""
    if not turn_queue.adopt(row=row, owner=owner):
        return None
    cipher = cipher_for(row.user_id)
    user = User.objects.get(pk=row.user_id)
    claimed = ClaimedTurn(row.pk, user.timezone, user.locale, cipher, row.conversation_id, queued=True)
    return BegunTurn(turn_queue.read_request(cipher, row), claimed)


def _continue_conversation(claimed: ClaimedTurn, request: ChatRequest, conversation_id: uuid.UUID) -> None:
    """Append the user's message to its conversation, and read the history that the turn needs."""
    if request.origin is not None:
        _read_conversation(claimed, conversation_id)
        return
    state = advance(claimed, request)
    if state is not None and state.last_role == Message.Role.USER:
        state = _close_lost_turn(claimed, request, state)
    if state is None:
        raise ConversationNotFound
    insert_message(claimed, state.seq, Message.Role.USER, {"text": request.message}, is_request=True)
    claimed.untitled, claimed.summary_upto = state.title is None, state.summary_upto
    claimed.memory, claimed.seq = claimed.memory and state.memory, state.seq
    claimed.has_private, claimed.has_foreign = state.has_private, state.has_foreign
    if state.summary is not None:
        claimed.summary = Conversation.summary.unseal(claimed.cipher, state.summary, conversation_id)
    _read_history(claimed, conversation_id, state.summary_upto, state.seq)


def _read_conversation(claimed: ClaimedTurn, conversation_id: uuid.UUID) -> None:
    """Read the history for a turn that no user's message began, and store none. The conversation is locked."""
    row = Conversation.objects.get(pk=conversation_id)
    claimed.seq, claimed.summary_upto, claimed.memory = row.message_count, row.summary_upto, False
    claimed.has_private, claimed.has_foreign = row.has_private, row.has_foreign
    if row.summary is not None:
        claimed.summary = Conversation.summary.unseal_from(claimed.cipher, row)
    _read_history(claimed, conversation_id, row.summary_upto, row.message_count + 1)


def _read_history(claimed: ClaimedTurn, conversation_id: uuid.UUID, after: int, before: int) -> None:
    rows = Message.objects.filter(conversation_id=conversation_id, seq__gt=after, seq__lt=before)
    claimed.history = [
        _chat_message(role, Message.sealed.unseal(claimed.cipher, sealed, conversation_id, seq, role))
        for seq, role, sealed in rows.values_list("seq", "role", "sealed")
    ]


def _close_lost_turn(
    claimed: ClaimedTurn, request: ChatRequest, state: ConversationState
) -> ConversationState | None:
    """Add an answer to the message of a turn that was lost without one, so that the roles alternate."""
    assert claimed.conversation_id is not None
    said = turn_queue.take_joined(
        user_id=request.user_id, conversation_id=claimed.conversation_id, cipher=claimed.cipher
    )
    lost = {"text": "", "finish": Turn.State.ERROR, "code": "turn_lost"}
    at: ConversationState | None = state
    for role, body in [
        *((Message.Role.USER, each.body()) for each in said),
        (Message.Role.ASSISTANT, lost),
    ]:
        if at is not None:
            insert_message(claimed, at.seq, role, body)
            at = advance(claimed, request)
    return at


def _chat_message(role: str, body: dict[str, Any]) -> ChatMessage:
    mutations = tuple(Mutation.model_validate(mutation) for mutation in body.get("mutations", ()))
    return ChatMessage(role, body["text"], mutations)
