"""The rows of chats: a turn's claim and its end, what was said, and what a user may do with it."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import orjson
from django.db import connection, transaction
from django.db.models.functions import Now

from adiuva.accounts.keys import NoSuchUser, cipher_for
from adiuva.core.crypto import UserCipher
from adiuva.core.errors import Conflict, Invalid, NotFound
from adiuva.devices.protocol import Mutation, Usage
from chat.models import Conversation, Message, Turn
from chat.request import ChatRequest
from memory import entries, exchanges
from memory.models import SourceKind

MAX_TITLE_CHARS = 200
TURNS_KEPT = dt.timedelta(days=30)
_DERIVED_TITLE_CHARS = 60


class ConversationNotFound(NotFound):
    code = "conversation_not_found"

    def __init__(self) -> None:
        super().__init__("there is no such conversation, or it is not yours")


class AlreadyClaimed(Conflict):
    """The request was made before: it runs, or it has ended."""

    code = "request_taken"

    def __init__(self, turn: Turn) -> None:
        super().__init__("this request was made before")
        self.turn = turn


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """A message as the model gets it. `mutations` is what was changed on the device while it was said."""

    role: str
    text: str
    mutations: Sequence[Mutation] = ()


@dataclass(slots=True)
class ClaimedTurn:
    """A claimed turn with all that its first model call needs. `history` follows the part that `summary` covers,
    whose last message is `summary_upto`. `memory`: whether it is on for this user and in this conversation.
    `has_private`: whether a message before was not to be remembered. `seq`: the place of what was asked in its
    conversation."""

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
    seq: int | None = None


# One round trip: who the user is, the claim, and the conversation that it begins with its first message, if it begins
# one (`said` is that message). The lock keeps the account until we are done, or waits for its end.
_CLAIM_SQL = """
WITH asker AS (SELECT id, timezone, locale FROM accounts_user WHERE id = %(user)s FOR KEY SHARE),
claimed AS (
    INSERT INTO chat_turn (id, user_id, request_id, kind, state, code, owner, prompt_version, conversation_id,
        memory, input_tokens, output_tokens, model_calls, tool_calls, mutations)
    SELECT %(turn)s, id, %(request)s, %(kind)s, 'running', '', %(owner)s, %(prompt)s, %(place)s, %(memory)s,
        0, 0, 0, 0, 0
    FROM asker ON CONFLICT (user_id, request_id) DO NOTHING RETURNING id, user_id, kind, conversation_id
),
place AS (
    INSERT INTO chat_conversation (id, user_id, kind, summary_upto, message_count, memory, has_private)
    SELECT conversation_id, user_id, kind, 0, 1, %(memory)s, NOT %(memory)s
    FROM claimed WHERE %(said)s::bytea IS NOT NULL
    RETURNING id
),
said AS (
    INSERT INTO chat_message (id, conversation_id, seq, role, sealed)
    SELECT %(message)s, id, 1, 'user', %(said)s FROM place
)
SELECT asker.timezone, asker.locale, claimed.id, COALESCE(memory.enabled, true)
FROM asker LEFT JOIN claimed ON true LEFT JOIN memory_memory AS memory ON memory.user_id = asker.id
"""

# The account is locked first, as its deletion does: a message never comes between that and its conversation's end.
_ADVANCE_SQL = """
WITH owner AS (SELECT id FROM accounts_user WHERE id = %(user)s FOR KEY SHARE)
UPDATE chat_conversation AS place SET message_count = message_count + 1, updated_at = now(),
    has_private = has_private OR NOT %(memory)s, title = COALESCE(title, %(title)s),
    summary = CASE WHEN %(upto)s > place.summary_upto THEN %(summary)s ELSE place.summary END,
    summary_upto = GREATEST(place.summary_upto, %(upto)s)
FROM owner WHERE place.id = %(id)s AND place.user_id = owner.id
RETURNING message_count, title, summary, place.summary_upto, place.memory, has_private
"""

_INSERT_MESSAGE_SQL = """
INSERT INTO chat_message (id, conversation_id, seq, role, sealed)
VALUES (%(id)s, %(place)s, %(seq)s, %(role)s, %(sealed)s)
"""

_END_SQL = """
UPDATE chat_turn SET state = %(state)s, code = %(code)s, ended_at = now(), input_tokens = %(input_tokens)s,
    output_tokens = %(output_tokens)s, model_calls = %(model_calls)s, tool_calls = %(tool_calls)s,
    mutations = %(mutations)s
WHERE id = %(turn)s AND state = 'running'
"""


def claim_turn(*, request: ChatRequest, owner: str, prompt_version: str) -> ClaimedTurn:
    """Claim the request and keep what was asked. Raise Taken, ConversationNotFound, NoSuchUser."""
    cipher = cipher_for(request.user_id)
    claim = partial(_insert_claim, request, owner, prompt_version, cipher)
    if request.conversation_id is not None:
        place = parse_id(request.conversation_id)
        with transaction.atomic():
            claimed = claim(place)
            _continue_conversation(claimed, request, place)
    elif request.starts_conversation and not request.history:
        claimed = claim(uuid.uuid4(), begins=True)
        claimed.untitled, claimed.seq = True, 1
    else:
        claimed = claim(None)
        claimed.history = [ChatMessage(message.role, message.content) for message in request.history]
    return claimed


def _insert_claim(
    request: ChatRequest,
    owner: str,
    prompt_version: str,
    cipher: UserCipher,
    place: uuid.UUID | None,
    *,
    begins: bool = False,
) -> ClaimedTurn:
    turn_id = uuid.uuid4()
    said = None
    if begins:
        assert place is not None
        said = _seal(cipher, _said_at(place, 1, Message.Role.USER), {"text": request.message})
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
                "place": place,
                "said": said,
                "message": uuid.uuid4(),
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
        turn_id, timezone, locale, cipher, place, memory=memory and (request.memory or not begins)
    )


def _continue_conversation(claimed: ClaimedTurn, request: ChatRequest, place: uuid.UUID) -> None:
    """Add what was asked to a conversation, and read what it needs of it."""
    found = _append_message(claimed, request, Message.Role.USER, {"text": request.message})
    if found is None:
        raise ConversationNotFound
    claimed.untitled, claimed.summary_upto = found.title is None, found.summary_upto
    claimed.memory, claimed.seq = claimed.memory and found.memory, found.seq
    claimed.has_private = found.has_private
    if found.summary is not None:
        claimed.summary = claimed.cipher.unseal(found.summary, "conversation", place, "summary")
    rows = Message.objects.filter(conversation_id=place, seq__gt=found.summary_upto, seq__lt=found.seq)
    claimed.history = [
        _chat_message(role, _open(claimed.cipher, _said_at(place, seq, role), sealed))
        for seq, role, sealed in rows.values_list("seq", "role", "sealed")
    ]


class _ConversationState(NamedTuple):
    """A conversation as its newest message found it."""

    seq: int
    title: bytes | None
    summary: bytes | None
    summary_upto: int
    memory: bool
    has_private: bool


def _append_message(
    claimed: ClaimedTurn,
    request: ChatRequest,
    role: Message.Role,
    body: dict[str, Any],
    *,
    title: str | None = None,
    summary: tuple[int, str] | None = None,
) -> _ConversationState | None:
    """Add a message at the end of the turn's conversation. None: it is not there, or not the user's."""
    assert claimed.conversation_id is not None
    cipher, place = claimed.cipher, claimed.conversation_id
    upto, text = summary or (0, "")
    with connection.cursor() as cursor:
        cursor.execute(
            _ADVANCE_SQL,
            {
                "id": place,
                "user": request.user_id,
                "memory": request.memory,
                "title": None if title is None else cipher.seal(title, "conversation", place, "title"),
                "summary": cipher.seal(text, "conversation", place, "summary") if summary else None,
                "upto": upto,
            },
        )
        row = cursor.fetchone()
        if row is None:
            return None
        found = _ConversationState(*row)
        cursor.execute(
            _INSERT_MESSAGE_SQL,
            {
                "id": uuid.uuid4(),
                "place": place,
                "seq": found.seq,
                "role": role,
                "sealed": _seal(cipher, _said_at(place, found.seq, role), body),
            },
        )
    return found


def finish_turn(
    *,
    request: ChatRequest,
    claimed: ClaimedTurn,
    steered: Sequence[str],
    text: str,
    mutations: Sequence[Mutation],
    state: str,
    code: str,
    usage: Usage,
    tool_calls: int,
    summary: tuple[int, str] | None = None,
) -> None:
    """Keep how a turn ended and what was answered; `steered` is what the user said meanwhile. A turn that was given
    up elsewhere keeps that end. What was said is kept for the memory, too, where that is on."""
    keep = partial(
        exchanges.store,
        user_id=request.user_id,
        cipher=claimed.cipher,
        said=[request.message, *steered],
    )
    remembers = request.memory and claimed.memory and bool(text.strip())
    # The messages first: account and conversation are locked before turns, here as in their deletion.
    if claimed.conversation_id is None:
        _end_row(claimed, state, code, usage, tool_calls, len(mutations))
        if remembers:
            keep(kind=SourceKind.REQUEST, source_id=claimed.turn_id, seq=None, answer=text)
        return
    body: dict[str, Any] = {"text": text, "finish": state}
    if code:
        body["code"] = code
    if mutations:
        body["mutations"] = [mutation.model_dump() for mutation in mutations]
    title = (derive_title(request.message, text) or None) if claimed.untitled else None
    with transaction.atomic():
        for words in steered:
            _append_message(claimed, request, Message.Role.USER, {"text": words})
        place = _append_message(claimed, request, Message.Role.ASSISTANT, body, title=title, summary=summary)
        _end_row(claimed, state, code, usage, tool_calls, len(mutations))
        if remembers and place is not None and place.memory:  # it may have been switched off meanwhile
            keep(
                kind=SourceKind.CONVERSATION,
                source_id=claimed.conversation_id,
                seq=claimed.seq,
                answer="" if place.has_private else text,  # it may tell of what was said in private
            )


def _end_row(
    claimed: ClaimedTurn, state: str, code: str, usage: Usage, tool_calls: int, mutations: int
) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            _END_SQL,
            {
                "turn": claimed.turn_id,
                "state": state,
                "code": code,
                "tool_calls": tool_calls,
                "mutations": mutations,
                **usage.model_dump(),
            },
        )


def mark_lost(*, turn: Turn, code: str) -> bool:
    """End a turn whose process is gone. False: it has ended meanwhile, and keeps that end."""
    ours = Turn.objects.filter(pk=turn.pk, owner=turn.owner).running()
    return bool(ours.update(state=Turn.State.ERROR, code=code, ended_at=Now()))


def end_lost_turns(*, older_than: dt.timedelta) -> int:
    """End turns that nobody can be running any more, and forget the oldest. Returns how many were ended."""
    now = dt.datetime.now(dt.UTC)
    ended = (
        Turn.objects.running()
        .filter(started_at__lt=now - older_than)
        .update(state=Turn.State.ERROR, code="turn_lost", ended_at=Now())
    )
    Turn.objects.filter(started_at__lt=now - TURNS_KEPT).exclude(state=Turn.State.RUNNING).delete()
    return ended


# ── What a user sees and does ───────────────────────────────────────────────────────────────────────────


def get_conversation(user_id: uuid.UUID, conversation_id: str | uuid.UUID) -> Conversation:
    """Raise ConversationNotFound, also for another user's."""
    found = Conversation.objects.of(user_id).filter(pk=parse_id(conversation_id)).first()
    if found is None:
        raise ConversationNotFound
    return found


def parse_id(conversation_id: str | uuid.UUID) -> uuid.UUID:
    try:
        return uuid.UUID(str(conversation_id))
    except ValueError:
        raise ConversationNotFound from None


def open_titles(rows: Iterable[Conversation], cipher: UserCipher) -> dict[uuid.UUID, str]:
    return {
        row.pk: cipher.unseal(row.title, "conversation", row.pk, "title") if row.title is not None else ""
        for row in rows
    }


def read_messages(conversation: Conversation, *, after: int = 0, most: int = 1000) -> list[dict[str, Any]]:
    """Messages in order, opened for their owner: `{seq, role, text, mutations, finish?, code?, created_at}`."""
    cipher = cipher_for(conversation.user_id)
    return [
        {
            "seq": row.seq,
            "role": row.role,
            "created_at": row.created_at,
            "mutations": [],
            **_open(cipher, _place(row), row.sealed),
        }
        for row in conversation.messages.filter(seq__gt=after)[:most]
    ]


def rename(*, conversation: Conversation, title: str) -> str:
    """Returns the title as it is kept, on one line. Raise Invalid for an empty one, or one that is too long."""
    title = " ".join(title.split())
    if not title or len(title) > MAX_TITLE_CHARS:
        raise Invalid(
            f"a title has 1 to {MAX_TITLE_CHARS} characters",
            fields={"title": [f"1 to {MAX_TITLE_CHARS} characters."]},
        )
    sealed = cipher_for(conversation.user_id).seal(title, "conversation", conversation.pk, "title")
    Conversation.objects.filter(pk=conversation.pk).update(title=sealed)
    return title


@transaction.atomic
def set_memory(*, conversation: Conversation, on: bool) -> None:
    """Off: from now on nothing of it is remembered, and what was not read yet never is. What is remembered stays."""
    _lock(conversation)
    Conversation.objects.filter(pk=conversation.pk).update(memory=on)
    if not on:
        exchanges.discard(
            user_id=conversation.user_id, kind=SourceKind.CONVERSATION, source_id=conversation.pk
        )


@transaction.atomic
def delete(*, conversation: Conversation) -> None:
    """The messages go with it, and what is remembered from it alone. A turn that is running ends as it would; nothing
    of it is kept. Raise NoSuchUser."""
    # Locked first: a message that is being added comes before, and goes with the rest, or not at all.
    _lock(conversation)
    Conversation.objects.filter(pk=conversation.pk).delete()
    entries.forget_source(
        user_id=conversation.user_id, kind=SourceKind.CONVERSATION, source_id=conversation.pk
    )


def lock_and_check_memory(*, user_id: uuid.UUID, conversation_id: uuid.UUID) -> bool:
    """Whether a conversation is there and its memory on. That stays so until the transaction around it ends."""
    _lock(Conversation(pk=conversation_id, user_id=user_id))
    return Conversation.objects.of(user_id).filter(pk=conversation_id, memory=True).exists()


def _lock(conversation: Conversation) -> None:
    """The account's row before the conversation's, as its deletion does; the memory's comes after both."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM accounts_user WHERE id = %s FOR KEY SHARE", [conversation.user_id])
    Conversation.objects.select_for_update().filter(pk=conversation.pk).only("pk").first()


_MAX_TEXT_READ_CHARS = 2_000  # characters of a text
_GREETING = re.compile(
    r"^(?:(?:hi|hello|hey|please|can you|could you|would you|i(?:'d| would) like (?:you )?to|bitte|per favore)"
    r"\b(?!['’-])[\s,!.]*)+",
    re.IGNORECASE,
)
_TAGS = re.compile(r"<(task|project|note|timeline|chart)>.*?</\1>|</?[a-z][^<>]*>", re.IGNORECASE | re.DOTALL)
_MARKUP = re.compile(r"[*_#`<>|]")


def derive_title(message: str, answer: str) -> str:
    """A title from the first exchange: what was asked, in short; a mere greeting takes the answer's words."""
    message = message.strip()
    for text in (_GREETING.sub("", message[:_MAX_TEXT_READ_CHARS]), answer, message):
        if line := _first_sentence(text.strip()[:_MAX_TEXT_READ_CHARS]):
            return line[:1].upper() + line[1:]
    return _without_markup(message[:_DERIVED_TITLE_CHARS]).capitalize()


def _first_sentence(text: str) -> str:
    """The first sentence that has at least three letters or digits, without tags and marks; else nothing."""
    for line in _TAGS.sub(" ", text).splitlines():
        words = _without_markup(line).lstrip(" .,:;!?…-–—•)")
        if sum(map(str.isalnum, words)) < 3:
            continue
        end = next(
            (end for end in _sentence_ends(words) if sum(map(str.isalnum, words[:end])) >= 3), len(words)
        )
        short = words[:end].rstrip(" .,:;")
        if len(short) <= _DERIVED_TITLE_CHARS:
            return short
        return short[:_DERIVED_TITLE_CHARS].rsplit(" ", 1)[0].rstrip(" .,:;") + "…"
    return ""


def _without_markup(text: str) -> str:
    return " ".join(_MARKUP.sub(" ", _TAGS.sub(" ", text)).split())


def _sentence_ends(line: str) -> Iterable[int]:
    return (found.start() for found in re.finditer(r"(?<=[.!?:;]) ", line))


def _chat_message(role: str, body: dict[str, Any]) -> ChatMessage:
    changed = tuple(Mutation.model_validate(mutation) for mutation in body.get("mutations", ()))
    return ChatMessage(role, body["text"], changed)


def _said_at(conversation: uuid.UUID, seq: int, role: str) -> str:
    """What a message is bound to: where it was said, and by whom."""
    return f"{conversation} {seq} {role}"


def _place(row: Message) -> str:
    return _said_at(row.conversation_id, row.seq, row.role)


def _seal(cipher: UserCipher, place: str, body: dict[str, Any]) -> bytes:
    return cipher.seal(orjson.dumps(body).decode(), "message", place, "sealed")


def _open(cipher: UserCipher, place: str, sealed: bytes | memoryview) -> dict[str, Any]:
    return cast(dict[str, Any], orjson.loads(cipher.unseal(sealed, "message", place, "sealed")))
