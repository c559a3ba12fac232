"""The turns that wait for those before them in their conversation, in the database.

One turn of a conversation runs at a time, as a partial unique index on chat_turn ensures. A request that comes
meanwhile waits in its row, sealed, so that it outlives the process that took it. The statement that ends a turn also
hands over to the first that waits (`and_hand_over`), so that none overtakes it and there is never a time when some wait
and none runs. A turn that was handed over is begun by its process within five seconds (chat.turn_claims.begin_turn);
after that, any process may begin it. Its message joins the conversation when it begins.

Whatever changes who waits and who runs holds the lock of the conversation's row.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from typing import Any, Final, NamedTuple

from django.db import connection, transaction
from django.db.models import Exists, OuterRef
from django.db.models.functions import Now

from adiuva.accounts.keys import cipher_for
from adiuva.core import leases
from adiuva.core.crypto import UserCipher
from adiuva.core.errors import AdiuvaError, Conflict, Text
from adiuva.devices.protocol import Scope
from agents import run_watches
from chat.claimed_turn import ClaimedTurn, Steered
from chat.conversations import lock
from chat.models import AssistantKind, Turn
from chat.request import ChatRequest, RunEnds

MAX_WAITING: Final = 8
# The most messages to a running turn that its model has not read yet. They do not count as waiting turns.
MAX_UNREAD: Final = 16
# The code of a request that ended because the running turn has read it.
JOINED: Final = "joined"
# A turn that nobody could begin for this long is given up.
GIVE_UP: Final = dt.timedelta(minutes=10)
_NOT_SEALED: Final = frozenset(
    {"user_id", "request_id", "kind", "conversation_id", "scope", "history", "device_id", "origin", "joins"}
)


class ConversationBusy(Conflict):
    code = "conversation_busy"

    def __init__(self) -> None:
        super().__init__("another request of this conversation is being answered")


class QueueFull(AdiuvaError):
    code, status = "too_many_requests", 429

    def __init__(self) -> None:
        super().__init__(Text("at most {most} requests wait in a conversation", most=MAX_WAITING))


class TooManySteers(AdiuvaError):
    code, status = "too_many_requests", 429

    def __init__(self) -> None:
        super().__init__("the assistant has not read your earlier messages yet")


class HandedOver(NamedTuple):
    """A turn whose time has come: its process is to begin it."""

    turn_id: uuid.UUID
    user_id: uuid.UUID
    request_id: str
    owner: str


class Ended(NamedTuple):
    """The result of ending a turn: whether it ended just now; and the next turn in its conversation."""

    ended: bool
    next: HandedOver | None


class RunningTurn(NamedTuple):
    """The turn that runs in a conversation, and the channel of its process."""

    request_id: str
    owner: str


_HAND_OVER_SQL: Final = """
handed_over AS (
    UPDATE chat_turn SET state = 'running', fence = fence + 1, queue_no = NULL,
        lease_until = now() + CASE owner WHEN '' THEN interval '0' ELSE interval '5 seconds' END
    WHERE id = (
        SELECT waiting.id FROM chat_turn AS waiting JOIN ended ON waiting.conversation_id = ended.conversation_id
        WHERE waiting.state = 'waiting' ORDER BY waiting.queue_no LIMIT 1
    )
    RETURNING id, user_id, request_id, owner
)
SELECT EXISTS (SELECT FROM ended), handed_over.*
FROM (VALUES (true)) AS once LEFT JOIN handed_over ON true
"""


def and_hand_over(ended: str, *, after: str = "") -> str:
    """Return a statement that ends turns, with RETURNING conversation_id, and hands over to the first that waits there.

    The second part reads what the first returns, so they run in this order: the index that allows one running turn
    finds the ended one gone. `after`: common table expressions before it. Read its row with `read_end`.
    """
    return f"WITH {after}{', ' if after else ''}ended AS ({ended}), {_HAND_OVER_SQL}"


# One statement decides and inserts: the conversation is locked, so nobody else can.
_ENQUEUE_SQL: Final = """
INSERT INTO chat_turn (id, user_id, request_id, kind, state, code, owner, fence, prompt_version, conversation_id,
    memory, queue_no, waiting_request, joins, input_tokens, output_tokens, model_calls, tool_calls, mutations)
SELECT %(turn)s, %(user)s, %(request)s, %(kind)s, 'waiting', '', %(owner)s, 0, %(prompt)s, %(conversation)s,
    %(memory)s, COALESCE(max(queue_no), 0) + 1, %(sealed)s,
    CASE WHEN %(steers)s THEN COALESCE(%(joins)s::uuid, (
        SELECT id FROM chat_turn AS running WHERE conversation_id = %(conversation)s AND state = 'running'
    )) END,
    0, 0, 0, 0, 0
FROM chat_turn WHERE conversation_id = %(conversation)s AND state = 'waiting'
HAVING count(*) FILTER (WHERE (joins IS NOT NULL) = %(steers)s) < %(most)s
ON CONFLICT DO NOTHING
"""


def enqueue(
    *,
    request: ChatRequest,
    turn_id: uuid.UUID,
    conversation_id: uuid.UUID,
    owner: str,
    prompt_version: str,
    cipher: UserCipher,
) -> None:
    """Let a request wait. The conversation is locked, and a turn runs in it. Raises QueueFull or TooManySteers."""
    steers = request.busy == "steer"
    with connection.cursor() as cursor:
        cursor.execute(
            _ENQUEUE_SQL,
            {
                "turn": turn_id,
                "user": request.user_id,
                "request": request.request_id,
                "kind": request.kind,
                "owner": owner,
                "prompt": prompt_version,
                "conversation": conversation_id,
                "memory": request.memory,
                "sealed": Turn.waiting_request.seal(cipher, _body_of(request), turn_id),
                "steers": steers,
                "joins": request.joins,
                "most": MAX_UNREAD if steers else MAX_WAITING,
            },
        )
        if not cursor.rowcount:
            raise TooManySteers if steers else QueueFull


def running_in(conversation_id: uuid.UUID) -> RunningTurn | None:
    found = Turn.objects.running().filter(conversation_id=conversation_id)
    row = found.values_list("request_id", "owner").first()
    return None if row is None else RunningTurn(*row)


def read_request(cipher: UserCipher, row: Turn) -> ChatRequest:
    """Return the request of a turn that waits, or that is to begin."""
    body = Turn.waiting_request.unseal_from(cipher, row)
    scope, device, origin = body.pop("scope"), body.pop("device_id"), body.pop("origin", None)
    body.pop("heard", None)
    return ChatRequest(
        user_id=row.user_id,
        request_id=row.request_id,
        kind=AssistantKind(row.kind),
        conversation_id=str(row.conversation_id),
        scope=Scope.model_validate(scope) if scope else None,
        device_id=uuid.UUID(device) if device else None,
        origin=RunEnds(tuple(origin["run_ids"]), tuple(origin["agent_names"])) if origin else None,
        **body,
    )


def _body_of(request: ChatRequest) -> dict[str, Any]:
    plain = {one.name: getattr(request, one.name) for one in fields(request) if one.name not in _NOT_SEALED}
    return {
        **plain,
        "scope": request.scope.model_dump() if request.scope else None,
        "device_id": str(request.device_id) if request.device_id else None,
        "origin": request.origin.body() if request.origin else None,
    }


@transaction.atomic
def cancel(*, turn: Turn) -> bool:
    """Take a waiting turn out of the queue. Returns False if it no longer waits."""
    if turn.conversation_id is None or not lock(turn.user_id, turn.conversation_id):
        return False
    ended = {"state": Turn.State.CANCELLED, "ended_at": Now(), "queue_no": None, "waiting_request": None}
    if not Turn.objects.waiting().filter(pk=turn.pk).update(**ended):
        return False
    run_watches.settle(turn.pk, told=True)  # the user does not want to hear of its runs either
    return True


# ── Messages to a running turn ──────────────────────────────────────────────────────────────────────────


def said_to(*, claimed: ClaimedTurn) -> list[Steered]:
    """Return the messages that wait to be read by a turn, in the order in which the user sent them."""
    assert claimed.conversation_id is not None
    rows = Turn.objects.waiting().filter(conversation_id=claimed.conversation_id, joins=claimed.turn_id)
    rows = rows.order_by("queue_no")
    return [Steered(read_request(claimed.cipher, row).message, turn_id=row.pk) for row in rows]


@transaction.atomic
def join(*, steered: Sequence[Steered]) -> list[Turn]:
    """End the waiting turns of one conversation whose messages the model of another turn has read.

    Returns the rows of those that were still waiting. They keep the message, when and in which call it was read, until
    the other turn stores it: a message that was read must not be lost with the process.
    """
    heard = {said.turn_id: said for said in steered}
    waiting = Turn.objects.waiting().filter(pk__in=[key for key in heard if key is not None])
    if (first := waiting.first()) is None or first.conversation_id is None:
        return []
    if not lock(first.user_id, first.conversation_id):
        return []
    cipher, rows = cipher_for(first.user_id), list(waiting)
    for row in rows:
        body = Turn.waiting_request.unseal_from(cipher, row) | {"heard": heard[row.pk].heard()}
        sealed = Turn.waiting_request.seal(cipher, body, row.pk)
        ended = {"state": Turn.State.STOP, "code": JOINED, "ended_at": Now(), "queue_no": None}
        waiting.filter(pk=row.pk).update(waiting_request=sealed, **ended)
    return rows


def close_joined(steered: Iterable[Steered]) -> None:
    """End, with a turn, the requests that it has read: their messages are stored now. The conversation is locked."""
    turns = [said.turn_id for said in steered if said.turn_id is not None]
    if not turns:
        return
    Turn.objects.waiting().filter(pk__in=turns).update(
        state=Turn.State.STOP, code=JOINED, ended_at=Now(), queue_no=None, waiting_request=None
    )
    Turn.objects.filter(pk__in=turns, code=JOINED).update(waiting_request=None)


def take_joined(*, user_id: uuid.UUID, conversation_id: uuid.UUID, cipher: UserCipher) -> list[Steered]:
    """Take the messages to a turn that was lost before it could store them. The conversation is locked; none runs."""
    rows = Turn.objects.of(user_id).filter(conversation_id=conversation_id, code=JOINED)
    rows = rows.exclude(waiting_request=None).order_by("ended_at", "started_at")
    bodies = [Turn.waiting_request.unseal_from(cipher, row) for row in rows]
    rows.update(waiting_request=None)
    return [Steered.read(body["message"], body.get("heard")) for body in bodies]


# ── Turns whose process is gone ─────────────────────────────────────────────────────────────────────────


def adopt(*, row: Turn, owner: str) -> bool:
    """Let another process care for a waiting turn whose own is gone. Returns False if it no longer waits there."""
    return bool(Turn.objects.waiting().filter(pk=row.pk, owner=row.owner).update(owner=owner))


def rows_of(turn_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Turn]:
    """Return the rows of turns by their ids, without their sealed texts."""
    found = Turn.objects.filter(pk__in=turn_ids).defer("foreign", "late_answer")
    return {row.pk: row for row in found}


def find_abandoned(most: int) -> list[HandedOver]:
    """Return turns that were handed over and that no process has begun in time."""
    rows = Turn.objects.to_begin().filter(leases.is_over()).order_by("lease_until")
    return [HandedOver(*row) for row in rows.values_list("pk", "user_id", "request_id", "owner")[:most]]


_NONE_RUNS_SQL: Final = """
SELECT id AS conversation_id FROM chat_conversation
WHERE id = %(id)s AND NOT EXISTS (SELECT FROM chat_turn WHERE conversation_id = %(id)s AND state = 'running')
"""


def hand_over_idle(conversation_id: uuid.UUID) -> HandedOver | None:
    """Hand over to the first that waits, if none runs. The conversation is locked."""
    with connection.cursor() as cursor:
        cursor.execute(and_hand_over(_NONE_RUNS_SQL), {"id": conversation_id})
        return read_end(cursor.fetchone()).next


def hand_over_stuck() -> list[HandedOver]:
    """Hand over where some wait and none runs. That happens if a row was deleted by hand, or with another's account."""
    running = Turn.objects.running().filter(conversation_id=OuterRef("conversation_id"))
    stuck = (
        Turn.objects.waiting().exclude(Exists(running)).values_list("user_id", "conversation_id").distinct()
    )
    handed_over: list[HandedOver] = []
    for user_id, conversation_id in stuck[:100]:
        with transaction.atomic():
            lock(user_id, conversation_id)
            handed_over += filter(None, [hand_over_idle(conversation_id)])
    return handed_over


def read_end(row: tuple[Any, ...]) -> Ended:
    """Read the row that a statement made by `and_hand_over` has returned."""
    return Ended(row[0], HandedOver(*row[1:]) if row[1] is not None else None)
