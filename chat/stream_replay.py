"""Replays the streams of turns that no process has in memory any more, from the stream log."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import structlog

from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from adiuva.core.crypto import UserCipher
from adiuva.core.errors import Conflict, NotFound
from adiuva.devices.codec import INT64_MAX
from adiuva.devices.protocol import HistoryMessage, Scope, StreamEnd, StreamText
from chat import lost_turns, stream_log
from chat.models import AssistantKind, Turn
from chat.request import ChatRequest
from chat.stream import Listener, StreamFrame, fit_into_frame
from chat.turn_queue import JOINED

log = structlog.get_logger(__name__)

_POLL_S: Final = 0.25
# The log of a turn that ended longer ago than this is complete, unless Redis was away.
_LOG_COMPLETE_AFTER: Final = timedelta(seconds=5)


class NotRunning(NotFound):
    code = "not_running"

    def __init__(self) -> None:
        super().__init__("there is no such request, or it has ended")


class StillWaiting(Exception):
    """The turn waits for its time in the conversation, so there is nothing to replay."""


class StreamExpired(NotFound):
    code = "stream_expired"

    def __init__(self) -> None:
        super().__init__(
            "the stream is no longer kept; if the request belongs to a conversation, read the answer there"
        )


class RequestIdReused(Conflict):
    code = "request_id_reused"

    def __init__(self) -> None:
        super().__init__("another request was made under this id")


def find_turn(user_id: uuid.UUID, request_id: str) -> Turn:
    """Return the row of a user's turn. Raises NotRunning if there is none."""
    found = Turn.objects.of(user_id).filter(request_id=request_id).first()
    if found is None:
        raise NotRunning
    return found


async def replay(row: Turn, after: int, listener: Listener) -> None:
    """Send a listener a turn's frames after seq `after` from the log.

    If the row still says that the turn runs, the turn has lost its process, and is ended. Raises StreamExpired if the
    log is gone, StillWaiting if the turn has not begun.
    """
    if row.ended_at is None and row.waiting_request is not None:
        raise StillWaiting
    cipher = await db.run(cipher_for, row.user_id)
    kept = await _read(row, cipher)
    entries = [StreamFrame.from_text(text) for text in kept.frames] if kept else []
    end = entries.pop() if entries and entries[-1].is_end else None
    code = (getattr(end.frame, "code", None) if end else row.code) or "turn_lost"
    if row.state == Turn.State.RUNNING:
        if not (await db.run(lost_turns.mark_lost, turn=row, code=code)).ended:
            # It has ended after all, or another process has ended it: there is only one end.
            await replay(await db.run(find_turn, row.user_id, row.request_id), after, listener)
            return
        log.warning("turn.lost", turn=str(row.pk), user_id=str(row.user_id))
    elif kept is None:
        raise StreamExpired
    if end is None:
        last = max((entry.seq for entry in entries if entry.seq is not None), default=-1)
        end = StreamFrame.from_frame(
            fit_into_frame(
                StreamEnd(
                    request_id=row.request_id,
                    mutations=kept.mutations if kept else [],
                    seq=last + 1,
                    finish=_finish_without_words(row),
                    code=None if row.state == Turn.State.CANCELLED else code,
                )
            )
        )
        await stream_log.append(
            user_id=row.user_id,
            request_id=row.request_id,
            cipher=cipher,
            frames=len(entries),
            frame=end.text,
        )
    missed = [entry for entry in entries if (after < 0 if entry.seq is None else entry.seq > after)]
    await listener.send_frames(row.request_id, [*missed, _put_after(after, end)])


def _finish_without_words(row: Turn) -> Literal["stop", "cancelled", "error"]:
    """Return how a turn has ended if its log lacks the end: it lost its process, or never began."""
    if row.code == JOINED:
        return "stop"
    return "cancelled" if row.state == Turn.State.CANCELLED else "error"


def _put_after(after: int, end: StreamFrame) -> StreamFrame:
    """Return the end of a lost turn, numbered after all that the client has seen: that may be more than the log has."""
    frame = end.frame
    if not isinstance(frame, StreamEnd) or frame.finish != "error" or end.seq is None or end.seq > after:
        return end
    return StreamFrame.from_frame(frame.model_copy(update={"seq": min(after + 1, INT64_MAX)}))


async def ensure_same_request(request: ChatRequest, row: Turn) -> None:
    """Raise RequestIdReused if this id was used for another message, if the log still has it."""
    kept = await stream_log.read(
        user_id=row.user_id, request_id=row.request_id, cipher=await db.run(cipher_for, row.user_id)
    )
    if kept is not None and kept.head.get("message", request.message) != request.message:
        raise RequestIdReused


async def follow_up_request(
    user_id: uuid.UUID, request_id: str, message: str, *, is_early: bool = False
) -> ChatRequest:
    """Return the request that a message to a turn becomes: it joins the turn unless that has ended.

    Without a conversation, use it only once the turn has ended. `is_early`: the message came before. Raises NotRunning.
    """
    row = await db.run(find_turn, user_id, request_id)
    if row.conversation_id is None:
        kept = await _read(row, await db.run(cipher_for, user_id))
        if kept is None or not kept.head:
            raise NotRunning
        return replace(_continue_without_conversation(row, kept, message), is_early=is_early)
    return ChatRequest(
        user_id=user_id,
        request_id=uuid.uuid4().hex,
        kind=AssistantKind(row.kind),
        message=message,
        conversation_id=str(row.conversation_id),
        memory=row.memory,
        busy="enqueue" if row.ended_at is not None else "steer",
        joins=None if row.ended_at is not None else row.pk,
    )


async def _read(row: Turn, cipher: UserCipher) -> stream_log.LoggedStream | None:
    """Return a turn's log. If the turn has just ended, wait for the part that may still be on its way."""
    while True:
        kept = await stream_log.read(user_id=row.user_id, request_id=row.request_id, cipher=cipher)
        if kept is not None and kept.frames and stream_log.is_end(kept.frames[-1]):
            return kept
        if row.ended_at is None or datetime.now(UTC) - row.ended_at > _LOG_COMPLETE_AFTER:
            return kept
        await asyncio.sleep(_POLL_S)


def _continue_without_conversation(row: Turn, kept: stream_log.LoggedStream, message: str) -> ChatRequest:
    head = kept.head
    frames = [StreamFrame.from_text(text).frame for text in kept.frames]
    answer = "".join(frame.chunk for frame in frames if isinstance(frame, StreamText))
    before = [HistoryMessage.model_validate(said) for said in head["history"]]
    return ChatRequest(
        user_id=row.user_id,
        request_id=uuid.uuid4().hex,
        kind=AssistantKind(head["kind"]),
        message=message,
        history=(
            *before,
            HistoryMessage(role="user", content=head["message"]),
            HistoryMessage(role="assistant", content=answer),
        ),
        scope=Scope.model_validate(head["scope"]) if head["scope"] else None,
        context=head["context"],
        memory=row.memory,
    )
