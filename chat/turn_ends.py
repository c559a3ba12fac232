"""A turn's end in the database: its row, its answer, the data for an undo, and the exchange for the memory."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from operator import itemgetter
from typing import Any, Final, NamedTuple

import structlog
from django.db import Error as DatabaseError
from django.db import connection, transaction

from adiuva.core import leases
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.logging import log_failure
from agents import run_watches
from billing import usage
from chat import device_notices
from chat.claimed_turn import CONTENT_FILTER, ClaimedTurn, TurnOutcome, append_message
from chat.conversations import lock
from chat.models import Message, Turn, TurnChanges
from chat.request import ChatRequest
from chat.titles import derive_title
from chat.turn_end_rows import add_late_end, answer_and_end, end_row
from chat.turn_queue import Ended, HandedOver, and_hand_over, close_joined, read_end
from memory import exchanges
from memory.models import SourceKind

log = structlog.get_logger(__name__)


class StoredEnd(NamedTuple):
    """A turn's end as stored.

    `next`: the waiting turn of the conversation that may begin now. `seq`: the answer's place in the conversation; None
    if it has none. `channels`: those of the user's devices that are to hear of it.
    """

    next: HandedOver | None = None
    seq: int | None = None
    channels: Collection[str] = ()


_LOSE_SQL: Final = and_hand_over(f"""
UPDATE chat_turn SET state = 'error', code = %(code)s, ended_at = now(), {leases.REVOKE_SQL},
    waiting_request = NULL
WHERE id = %(turn)s AND fence = %(fence)s AND owner = %(owner)s AND state = 'running'
    AND (lease_until < now() OR NOT %(only_over)s) RETURNING conversation_id
""")  # noqa: S608  # built from our own texts


def finish_turn(
    *, request: ChatRequest, claimed: ClaimedTurn, result: TurnOutcome, is_again: bool = False
) -> StoredEnd:
    """Store a turn's end and its answer, and hand the exchange to memory where that is on.

    `is_again`: a former attempt failed, but its writes may have been committed all the same.

    A turn that was lost meanwhile keeps that end. If nothing was said after it in its conversation, its answer goes
    where it belongs; else it would break the order of the history, and the turn's row keeps it.
    """
    if is_again and Turn.objects.filter(pk=claimed.turn_id, is_stored=True).exists():
        if claimed.conversation_id is None:  # its exchange is written after its end
            _remember(request, claimed, result)
        return StoredEnd()
    try:
        return _store_end(request, claimed, result)
    except _ConversationWentOn:
        log.warning("turn.answer_too_late", turn=str(claimed.turn_id), user_id=str(request.user_id))
        _store_late_end(request, claimed, result)
        return StoredEnd()


def _channels_to_tell(request: ChatRequest) -> Collection[str]:
    """Return the channels of the devices that are to hear of an answer: those that were told of a turn without a user's
    message. They find in the conversation what they miss.
    """
    if request.origin is not None:
        return ()
    try:
        return device_notices.channels_of(request.user_id)
    except DatabaseError as error:
        log_failure("followup.notice_failed", error, level="warning", user_id=str(request.user_id))
        return ()


def lose_turn(*, turn: Turn, code: str, only_over: bool = False) -> Ended:
    """End a turn whose process is gone. `only_over`: only if its lease ran out."""
    with transaction.atomic():
        if turn.conversation_id is not None:
            lock(turn.user_id, turn.conversation_id)
        with connection.cursor() as cursor:
            cursor.execute(
                _LOSE_SQL,
                {
                    "turn": turn.pk,
                    "fence": turn.fence,
                    "owner": turn.owner,
                    "code": code,
                    "only_over": only_over,
                },
            )
            end = read_end(cursor.fetchone())
        if end.ended:
            run_watches.settle(turn.pk, told=False)
    return end


class _ConversationWentOn(Exception):
    """The turn was lost, and something was said in its conversation since."""


def _store_late_end(request: ChatRequest, claimed: ClaimedTurn, result: TurnOutcome) -> None:
    """Store an end whose answer stays out of the history, and so out of the memory."""
    with transaction.atomic():
        add_late_end(
            claimed, result, {**_answer_body(result), "steered": [said.text for said in result.steered]}
        )
        close_joined(result.steered)
        if result.meter is not None:
            usage.settle(result.meter, result.uses, is_over=True)
        _store_changes(claimed, result)
        if result.may_hold_runs:
            run_watches.settle(claimed.turn_id, told=False)


def _store_end(request: ChatRequest, claimed: ClaimedTurn, result: TurnOutcome) -> StoredEnd:
    """Store a turn's end and its answer. Raises _ConversationWentOn, with nothing stored."""
    if claimed.conversation_id is None:
        # One statement needs no transaction around it, and most turns change nothing.
        is_more = _has_changes(result) or result.may_hold_runs
        with transaction.atomic() if is_more else nullcontext():
            if not end_row(request.user_id, claimed, result).ended:
                add_late_end(claimed, result)
                _settle_late(claimed, result)
            _store_changes(claimed, result)
            _settle_heard_runs(request, claimed, result)
        _remember(request, claimed, result)
        return StoredEnd()
    title = (derive_title(request.message, result.text) or None) if claimed.untitled else None
    if _is_only_an_answer(request, result):
        exchange = _exchange(request, claimed, result, has_private=claimed.has_private)
        end, channels = answer_and_end(
            request, claimed, result, _answer_body(result), title=title, exchange=exchange
        )
        if end.ended:
            return StoredEnd(end.next, (claimed.seq or 0) + 1, channels)
    # The messages first: account and conversation are locked before turns, here as in their deletion.
    with transaction.atomic():
        if request.origin is not None and not _has_to_tell(request, claimed, result):
            return StoredEnd(_store_untold(request, claimed, result))
        places = []
        after = claimed.seq or 0
        for number, said in enumerate(result.steered, 1):
            placed = append_message(claimed, request, Message.Role.USER, said.body(), expected=after + number)
            places.append(placed.seq if placed is not None else None)
        expected = after + len(result.steered) + 1
        state = append_message(
            claimed,
            request,
            Message.Role.ASSISTANT,
            _answer_body(result, places) | ({"origin": request.origin.body()} if request.origin else {}),
            expected=expected,
            title=title,
            summary=result.summary,
            foreign=bool(result.foreign),
        )
        close_joined(result.steered)
        end = end_row(request.user_id, claimed, result)
        if not end.ended:
            # The lock on the conversation makes this certain: nobody can say something between here and the commit.
            # Another turn tells the ends of runs that a lost one was to tell.
            if state is not None and (state.seq != expected or request.origin is not None):
                raise _ConversationWentOn
            add_late_end(claimed, result)
            _settle_late(claimed, result)
        _store_changes(claimed, result)
        _settle_heard_runs(request, claimed, result)
        # Memory may have been switched off while the turn ran.
        if state is not None and state.memory:
            _remember(request, claimed, result, has_private=state.has_private)
    if state is None:
        return StoredEnd(end.next)
    return StoredEnd(end.next, state.seq, _channels_to_tell(request))


def _is_only_an_answer(request: ChatRequest, result: TurnOutcome) -> bool:
    """Return whether the turn has nothing but its answer to store in the conversation or beside it."""
    is_more = result.steered or result.may_hold_runs or result.notes.is_due or _has_changes(result)
    return request.origin is None and not is_more


def _remember(
    request: ChatRequest, claimed: ClaimedTurn, result: TurnOutcome, *, has_private: bool = False
) -> None:
    """Hand the exchange to memory where that is on."""
    if (kept := _exchange(request, claimed, result, has_private=has_private)) is not None:
        exchanges.store(user_id=request.user_id, **kept)


def _exchange(
    request: ChatRequest, claimed: ClaimedTurn, result: TurnOutcome, *, has_private: bool
) -> dict[str, Any] | None:
    """Return the exchange that memory is to read of the turn; None if memory is off.

    `has_private`: whether anything in the conversation was not to be remembered. The claim knows that, because nothing
    else is said there while the turn runs.
    """
    if not (request.memory and claimed.memory and result.text.strip()):
        return None
    return {
        "cipher": claimed.cipher,
        "said": [*request.words, *(said.text for said in result.steered)],
        "foreign": result.foreign.listed(),
        # After a private message, an answer may tell what was said in it.
        "answer": "" if has_private else _answer_to_keep(claimed, result),
        "kind": SourceKind.REQUEST if claimed.conversation_id is None else SourceKind.CONVERSATION,
        "source_id": claimed.conversation_id or claimed.turn_id,
        "seq": None if claimed.conversation_id is None else claimed.seq,
    }


def _has_to_tell(request: ChatRequest, claimed: ClaimedTurn, result: TurnOutcome) -> bool:
    """Return whether a turn that follows up runs has an answer, and no other has told the same meanwhile."""
    assert claimed.conversation_id is not None
    lock(request.user_id, claimed.conversation_id)
    return _follows_up(result) and run_watches.holds(claimed.turn_id)


def _store_untold(request: ChatRequest, claimed: ClaimedTurn, result: TurnOutcome) -> HandedOver | None:
    """Store the end of a follow-up that has nothing to tell; the conversation is locked.

    Nobody has asked for the turn, so the conversation need not show that it failed. It is tried again if there is still
    something to tell.
    """
    end = end_row(request.user_id, claimed, result)
    if not end.ended:
        add_late_end(claimed, result)
    _store_changes(claimed, result)
    if result.retry_after_s is not None:
        run_watches.postpone(claimed.turn_id, result.retry_after_s)
    _settle_heard_runs(request, claimed, result)
    return end.next


def _answer_to_keep(claimed: ClaimedTurn, result: TurnOutcome) -> str:
    """Return what the memory reads of an answer: not one that may quote texts that the user did not write."""
    if not result.foreign and not claimed.has_foreign:
        return result.text
    changes = Counter(f"{mutation.action} in {mutation.table}" for mutation in result.mutations)
    done = "; ".join(f"{change}: {count}" for change, count in changes.items())
    return (
        f"(left out, since it may quote texts that the user did not write{f'. Done: {done}' if done else ''})"
    )


def _answer_body(result: TurnOutcome, places: Sequence[int | None] = ()) -> dict[str, Any]:
    """Return the answer's message. `places`: the places in the conversation of what the user said meanwhile."""
    body: dict[str, Any] = {"text": result.text, "finish": result.state}
    said = [
        {"kind": "said", "call": each.call, "seq": seq, "at": each.at.isoformat()}
        for each, seq in zip(result.steered, places, strict=False)
        if seq is not None and each.at is not None
    ]
    if steps := sorted([*said, *result.steps], key=itemgetter("call")):
        body["steps"] = steps
    if result.usage.model_calls:
        body["model_calls"] = result.usage.model_calls
    if result.code:
        body["code"] = result.code
    if result.mutations:
        body["mutations"] = [mutation.model_dump() for mutation in result.mutations]
    return body


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


def _follows_up(result: TurnOutcome) -> bool:
    """Return whether a turn that follows up runs needs no successor: it tells of them, or the user has cancelled it."""
    return result.tells_runs or result.state == Turn.State.CANCELLED


def _told(result: TurnOutcome) -> dict[str, Collection[uuid.UUID]]:
    """Return the watches that a turn was given and told, and the runs that its tools told it of."""
    return {
        "told": result.notes.told if result.code != CONTENT_FILTER else (),
        "runs": result.heard_runs if result.tells_runs else (),
    }


def _settle_late(claimed: ClaimedTurn, result: TurnOutcome) -> None:
    """Mark the ends that a turn thought lost has told, so that no other turn tells them."""
    if any((told := _told(result)).values()):
        run_watches.settle_late(claimed.turn_id, claimed.conversation_id, **told)


def _settle_heard_runs(request: ChatRequest, claimed: ClaimedTurn, result: TurnOutcome) -> None:
    if request.origin is not None:
        run_watches.settle(claimed.turn_id, told=_follows_up(result))
        return
    if result.may_hold_runs:
        run_watches.settle_told(claimed.turn_id, **_told(result))
    if result.notes.is_due:  # the hint came too late for this turn
        enqueue_on_commit("chat.follow_up")
