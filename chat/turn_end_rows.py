"""The statements that end a turn: its row, its cost, its answer, and the exchange for the memory."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from psycopg.types.numeric import Int8

from adiuva.core import leases
from adiuva.core.db import prepared_cursor
from adiuva.core.pipelined import pipelined
from billing import usage
from billing.budgets import BudgetedMeter
from billing.models import Purpose
from chat import device_notices
from chat.claimed_turn import ADVANCED_SQL, ClaimedTurn, PlacedMessage, TurnOutcome, advance_values
from chat.models import Message, Turn
from chat.request import ChatRequest
from chat.turn_queue import Ended, and_hand_over, read_end
from memory import exchanges

# Ends the turn, after its use of models is stored and before the first waiting turn of its conversation is begun.
_ENDED_SQL: Final = f"""
UPDATE chat_turn SET state = %(state)s, code = %(code)s, ended_at = now(), {leases.REVOKE_SQL},
    model = %(model)s, input_tokens = %(input_tokens)s, cached_tokens = %(cached_tokens)s,
    output_tokens = %(output_tokens)s, cost_micro = %(cost_micro)s, model_calls = %(model_calls)s,
    tool_calls = %(tool_calls)s, mutations = %(mutations)s, "foreign" = %(foreign)s, is_stored = true
FROM spender
WHERE chat_turn.id = %(turn)s AND user_id = spender.id AND fence = %(fence)s AND state = 'running'
RETURNING conversation_id
"""  # noqa: S608  # built from our own texts
_END_SQL: Final = and_hand_over(_ENDED_SQL, after=usage.USED_SQL)
_END_AND_SETTLE_SQL: Final = and_hand_over(_ENDED_SQL, after=usage.USED_AND_PAID_SQL)

# Locks a conversation and its account, in the order in which all others lock them.
_LOCK_SQL: Final = """
WITH account AS (SELECT id FROM accounts_user WHERE id = %(user)s FOR KEY SHARE)
SELECT conversation.id FROM chat_conversation AS conversation JOIN account ON conversation.user_id = account.id
WHERE conversation.id = %(id)s FOR NO KEY UPDATE OF conversation
"""

# The same with the answer in its conversation, which is locked, and the exchange for the memory. All of that is stored,
# or nothing, if the turn was lost meanwhile or the answer's place is taken. The turn is locked after the account and
# the conversation, then the sources of its money, in the order of all others.
_ANSWERED_SQL: Final = f"""
account AS (SELECT id, timezone FROM accounts_user WHERE id = %(user)s FOR KEY SHARE),
place AS (
    SELECT conversation.id, account.id AS user_id, account.timezone FROM chat_conversation AS conversation
    JOIN account ON conversation.user_id = account.id
    WHERE conversation.id = %(id)s AND message_count + 1 = %(seq)s FOR NO KEY UPDATE OF conversation
),
owner AS (
    SELECT place.user_id AS id, place.timezone FROM chat_turn AS turn JOIN place ON turn.conversation_id = place.id
    WHERE turn.id = %(turn)s AND fence = %(fence)s AND state = 'running' FOR NO KEY UPDATE OF turn
),
{ADVANCED_SQL},
spender AS (SELECT owner.id, owner.timezone FROM owner, advanced),
{exchanges.KEPT_SQL.format(owner="(SELECT owner.id FROM owner, advanced WHERE advanced.memory)")}
"""  # noqa: S608
_ANSWER_AND_END_SQL: Final = and_hand_over(_ENDED_SQL, after=f"{_ANSWERED_SQL}, {usage.USE_SQL}")
_ANSWER_END_AND_SETTLE_SQL: Final = and_hand_over(
    _ENDED_SQL, after=f"{_ANSWERED_SQL}, {usage.USE_AND_PAY_SQL}"
)

# Adds the cost and changes of a turn that was thought lost. Its end stays.
_ADD_LATE_END_SQL: Final = """
UPDATE chat_turn SET model = %(model)s, input_tokens = %(input_tokens)s, cached_tokens = %(cached_tokens)s,
    output_tokens = %(output_tokens)s, cost_micro = %(cost_micro)s, model_calls = %(model_calls)s,
    tool_calls = %(tool_calls)s, mutations = %(mutations)s, "foreign" = %(foreign)s, late_answer = %(late_answer)s,
    is_stored = true
WHERE id = %(turn)s
"""


class AnsweredEnd(NamedTuple):
    """A turn's end with its answer, and the channels of the devices that are to hear of it."""

    end: Ended
    channels: frozenset[str]


def end_row(user_id: uuid.UUID, claimed: ClaimedTurn, result: TurnOutcome) -> Ended:
    """End the turn's row and settle its cost, unless the turn was lost meanwhile, or deleted with its account."""
    statement, values = _end_values(user_id, claimed, result)
    with prepared_cursor() as cursor:
        cursor.execute(statement, values)
        return read_end(cursor.fetchone())


def answer_and_end(
    request: ChatRequest,
    claimed: ClaimedTurn,
    result: TurnOutcome,
    body: dict[str, Any],
    *,
    title: str | None,
    exchange: Mapping[str, Any] | None,
) -> AnsweredEnd:
    """End the turn's row and store its answer, whose place is the next one in its conversation. Then read which of the
    user's devices are to hear of it.

    If the turn was lost or its place is taken, nothing is stored, and it is not ended. `exchange`: what the memory is
    to read, as the parameters of exchanges.exchange_values.
    """
    message = PlacedMessage((claimed.seq or 0) + 1, Message.Role.ASSISTANT, body)
    statement, ended = _end_values(request.user_id, claimed, result, with_answer=True)
    values = {
        **advance_values(
            claimed,
            request,
            message=message,
            title=title,
            summary=result.summary,
            foreign=bool(result.foreign),
        ),
        **(exchanges.exchange_values(**exchange) if exchange is not None else exchanges.NO_EXCHANGE),
        **ended,
    }
    # A statement sees what was committed before it began. If it waited for the lock itself, it would overlook turns
    # that came to wait in the conversation meanwhile.
    with pipelined() as pipeline:
        pipeline.add(_LOCK_SQL, values)
        stored = pipeline.add(statement, values)
        pipeline.commit()
        # A device that comes later finds the answer in the conversation.
        channels = device_notices.add_channels(pipeline, request.user_id)
    (row,) = stored.fetchall()
    return AnsweredEnd(read_end(row), channels())


def _end_values(
    user_id: uuid.UUID, claimed: ClaimedTurn, result: TurnOutcome, *, with_answer: bool = False
) -> tuple[str, dict[str, Any]]:
    """Return the statement that ends the turn's row, and its parameters."""
    if isinstance(meter := result.meter, BudgetedMeter):
        statement = _ANSWER_END_AND_SETTLE_SQL if with_answer else _END_AND_SETTLE_SQL
        used = usage.settled_values(meter, result.uses, is_over=True)
    else:
        statement = _ANSWER_AND_END_SQL if with_answer else _END_SQL
        purpose = meter.purpose if meter is not None else Purpose.CHAT
        used = usage.used_values(user_id, purpose, result.uses)
    row = {"state": result.state, "code": result.code, "fence": claimed.fence}
    return statement, {**_row_of(claimed, result), **used, **row}


def add_late_end(
    claimed: ClaimedTurn, result: TurnOutcome, late_answer: dict[str, Any] | None = None
) -> None:
    sealed = None
    if late_answer is not None:
        sealed = Turn.late_answer.seal(claimed.cipher, late_answer, claimed.turn_id)
    with prepared_cursor() as cursor:
        cursor.execute(_ADD_LATE_END_SQL, {**_row_of(claimed, result), "late_answer": sealed})


def _row_of(claimed: ClaimedTurn, result: TurnOutcome) -> dict[str, uuid.UUID | int | bytes | str | None]:
    listed, used = result.foreign.listed(), result.usage
    return {
        "turn": claimed.turn_id,
        "tool_calls": Int8(
            result.tool_calls
        ),  # all numbers have one width: a statement is prepared for each width
        "mutations": Int8(len(result.mutations)),
        "foreign": Turn.foreign.seal(claimed.cipher, listed, claimed.turn_id) if listed else None,
        "model": used.model or "",
        "input_tokens": Int8(used.input_tokens),
        "cached_tokens": Int8(used.cached_tokens or 0),
        "output_tokens": Int8(used.output_tokens),
        "cost_micro": Int8(used.cost_micro or 0),
        "model_calls": Int8(used.model_calls),
    }
