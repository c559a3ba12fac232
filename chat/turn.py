"""One turn: carries out a request to its end in a task of this process, whether or not anybody listens.

A turn continues when the socket drops, waits for the device inside tool calls, can be cancelled and steered, has a
deadline and a limit on model calls, and ends in exactly one stream_end.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import structlog
from django.conf import settings
from django.utils import translation
from django.utils.translation import gettext

from adiuva import llm
from adiuva.core import metrics, tracing
from adiuva.core.errors import AdiuvaError
from adiuva.core.language import language_of, speaking
from adiuva.core.logging import log_failure
from adiuva.core.outages import as_unavailable
from adiuva.devices.protocol import (
    ApprovalRequest,
    ConversationChanged,
    HistoryMessage,
    Mutation,
    Notice,
    RunEnded,
    StreamEnd,
    Usage,
)
from chat import turn_saving
from chat.claimed_turn import ClaimedTurn, Steered, TurnOutcome
from chat.request import ChatRequest
from chat.run_notes import RunNotes
from chat.steering import SteerQueue
from chat.stream import Listener, Stream
from chat.stream_log import StreamRecording, log_writer
from chat.turn_context import LimitReached
from chat.turn_ends import StoredEnd
from chat.turn_errors import ServerRestarting
from chat.turn_generation import TurnAnswer, domain_of
from chat.turn_output import TurnOutput
from chat.turn_queue import HandedOver

log = structlog.get_logger(__name__)

Finish = Literal["stop", "cancelled", "error", "limit"]

# A turn that has not ended this long after its deadline hangs: its lease is no longer renewed.
_END_WITHIN_S: Final = 60.0


@dataclass(frozen=True)
class TurnHooks:
    """Callbacks of a turn into its registry.

    `announce` brings an approval request to the user's other devices. `saved` is called once the stream log holds all
    of the turn, so that this process need not. `joined` is called with messages of waiting turns that this turn's model
    has read. `hand_over` begins the next turn in the conversation. `send_notices` sends frames to the user's devices
    with certain channels, or else to all.
    """

    announce: Callable[[ApprovalRequest], Awaitable[None]]
    saved: Callable[[], None]
    joined: Callable[[Sequence[Steered]], None]
    hand_over: Callable[[HandedOver], None]
    send_notices: Callable[[Sequence[RunEnded | ConversationChanged], Collection[str] | None], None]


# More than 15 methods: one of a few lines for each thing that the registry, tools and other processes ask of a turn.
class LiveTurn:
    """A running turn: `start()` it, then listen to its `stream`. `ended` is set once the turn is over and stored.

    A turn that has to wait (`claimed.queued`) says so in its stream at once, and is started with `begin()`.
    `has_come_up` is set once it no longer waits here: it was begun, has ended, or another process cares for it.
    """

    def __init__(self, request: ChatRequest, claimed: ClaimedTurn, hooks: TurnHooks) -> None:
        self.request, self.claimed = request, claimed
        self.stream = Stream(request.request_id)
        self.output = TurnOutput(self.stream, request, claimed)
        self.ended = asyncio.Event()
        self.has_come_up = asyncio.Event()
        self.finish: Finish = "stop"
        self.code = ""
        self.usage = Usage()
        self._hooks = hooks
        self._steers = SteerQueue(hooks.joined, may_wait=claimed.queued)
        self._notes = RunNotes(is_due=claimed.ends_are_due)
        self._answer = self._new_answer()
        self._started_at: float | None = None
        self._retry_after_s: float | None = None
        self._ending = self._cancelled = self._stopped = False
        self._span: tracing.Span
        self._work: asyncio.Task[None]
        self._task: asyncio.Task[None]
        self._record()
        if claimed.queued:
            with speaking(claimed.locale):
                self.output.start(domain_of(request))
                self.output.status(gettext("After the answer before this one"))

    def _new_answer(self) -> TurnAnswer:
        hooks = self._hooks
        return TurnAnswer(
            self.request,
            self.claimed,
            stream=self.stream,
            output=self.output,
            steers=self._steers,
            notes=self._notes,
            announce=hooks.announce,
            send_notices=lambda frames: hooks.send_notices(frames, None),
        )

    def _record(self) -> None:
        request = self.request
        head = {
            "message": request.message,
            "kind": request.kind,
            "history": [message.model_dump() for message in request.history],
            "scope": request.scope.model_dump() if request.scope else None,
            "context": request.context,
        }
        recording = StreamRecording(
            self.stream,
            user_id=request.user_id,
            cipher=self.claimed.cipher,
            head=head,
            saved=self._hooks.saved,
            mutations=lambda: self.mutations,
        )
        log_writer().add(recording)

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._started_at = loop.time()
        self.has_come_up.set()
        self._span = tracing.begin("turn", adiuva__turn_id=str(self.claimed.turn_id))
        with self._span.current():
            self._work = loop.create_task(self._answer.work(), name="turn")
            self._task = loop.create_task(self._run(), name="turn keeper")
        if self._cancelled:
            self._work.cancel()

    # ── While it waits ──────────────────────────────────────────────────────────────────────────────────

    @property
    def waits(self) -> bool:
        """True if the turn waits for its time, or for being begun."""
        return self._started_at is None and not self.ended.is_set()

    def begin(self, claimed: ClaimedTurn) -> None:
        """Begin, because the turn's time has come. `claimed` has the messages that came meanwhile."""
        self.claimed = self.output.claimed = claimed
        self._answer = self._new_answer()
        self.start()

    def end_waiting(self, finish: Finish, code: str) -> None:
        """End without having begun: the turn was cancelled, or has joined the turn before it."""
        self.finish, self.code = finish, code
        self._send_end()
        self.has_come_up.set()

    def give_away(self) -> list[Listener]:
        """Stop caring for the turn, because another process does. Returns the former listeners."""
        log_writer().discard(self.stream)
        self.finish, self.code = (
            "error",
            ServerRestarting.code,
        )  # a caller may wait for it in this process
        self.ended.set()
        self.has_come_up.set()
        self._steers.close()
        return self.stream.release()

    # ── Requests of clients and the registry to a running turn ──────────────────────────────────────────

    def stop(self) -> None:
        """End the turn in order because its process is about to exit."""
        if not self._ending and not self._cancelled:
            self._stopped = True
            self.cancel()

    def cancel(self) -> None:
        # Only once: a second cancellation would end the wait for a write that is under way on the device.
        if not self._ending and not self._cancelled:
            self._cancelled = True
            if self._started_at is not None:
                self._work.cancel()

    @property
    def hangs(self) -> bool:
        """True if the turn should have ended long ago."""
        if self._started_at is None or self.ended.is_set():
            return False
        most = float(settings.CHAT["turn_deadline_s"]) + _END_WITHIN_S
        return asyncio.get_running_loop().time() > self._started_at + most

    def end_unsaved(self) -> None:
        """Send the end although the result is not stored yet, because the process exits now."""
        if not self.ended.is_set():
            self._task.cancel()
            self.finish, self.code = "error", ServerRestarting.code
            self._send_end()

    async def steer(self, message: str) -> bool:
        """Add a message for the model of a turn without a conversation.

        Returns True once the model has read it; False if the turn `ended` before. Raises TooManySteers.
        """
        if self._ending or self._cancelled:
            await self.ended.wait()
            return False
        return await self._steers.add(message)

    def runs_have_ended(self) -> None:
        """Note that ends of runs are due in the turn's chat: it tells them, unless it follows up others."""
        if self.request.origin is None:
            self._notes.is_due = True

    def message_coming(self) -> AbstractContextManager[None]:
        """Announce that a message to this turn is being stored: the model's next call waits for it."""
        return self._steers.coming()

    def user_has_spoken(self) -> None:
        """Note that a message waits in the conversation: the turn reads it if it is addressed to it, and stops waiting
        for runs of agents.
        """
        self._steers.look_again()

    def decide(self, approval_id: str, approved: bool) -> bool:
        """Answer an approval request. Returns False if this turn does not wait for it."""
        return self._answer.decide(approval_id, approved)

    def follow_up(self, message: str, *, is_early: bool = False) -> ChatRequest:
        """Return the request that a message to this turn becomes, which waits and joins the turn unless it has ended.

        Without a conversation, use it only once the turn has ended. `is_early`: the message came before.
        """
        request = replace(self.request, is_early=is_early)
        if request.origin is not None:  # the app's words are not the user's
            request = replace(request, origin=None, context="")
        if self.claimed.conversation_id is not None:
            joins = None if self.ended.is_set() else self.claimed.turn_id
            return replace(
                request,
                request_id=uuid.uuid4().hex,
                message=message,
                history=(),
                conversation_id=str(self.claimed.conversation_id),
                busy="enqueue" if joins is None else "steer",
                joins=joins,
            )
        said = [HistoryMessage(role="user", content=text) for text in (request.message, *self._steers.read)]
        answer = HistoryMessage(role="assistant", content=self.output.text)
        return replace(
            request,
            request_id=uuid.uuid4().hex,
            message=message,
            history=(*request.history, *said, answer),
        )

    # ── Run ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _run(self) -> None:
        translation.activate(language_of(self.claimed.locale))
        try:
            await self._work
        except asyncio.CancelledError:
            self.finish, self.code = ("error", ServerRestarting.code) if self._stopped else ("cancelled", "")
        except LimitReached as limit:
            self.finish, self.code = "limit", limit.code
        except AdiuvaError as error:
            self.finish, self.code = "error", error.code
            self._retry_after_s = getattr(error, "retry_after", None)
            log.info("turn.failed", code=error.code, **self._ids)
        except Exception as error:
            log_failure("turn.broke", error, **self._ids)
            self._fail(error)
        await self._end()

    # ── End ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _end(self) -> None:
        """Store what happened, then send the end. No failure in here may keep the end from being sent."""
        if self.ended.is_set():  # by `end_unsaved`
            return
        self._ending = True
        self.usage = self._answer.usage
        try:
            await self._answer.conclude(self.finish, self.code)
        except LimitReached as limit:
            self.finish, self.code = "limit", limit.code
        except Exception as error:
            log_failure("turn.broke", error, **self._ids)
            self._fail(error)
        result = TurnOutcome(
            state=self.finish,
            text=self.output.text,
            code=self.code,
            steered=self._steers.heard,
            mutations=self.mutations,
            usage=self.usage,
            uses=self._answer.meter.uses(),
            meter=self._answer.meter,
            tool_calls=self._answer.tool_calls,
            steps=self._answer.steps(),
            summary=self._answer.new_summary(),
            foreign=self._answer.foreign,
            heard_runs=self._answer.heard_runs,
            may_hold_runs=self._answer.may_hold_runs,
            notes=self._notes,
            retry_after_s=self._retry_after_s,
            has_answered=self._answer.has_answered,
            record=self._answer.record(),
        )
        await self._answer.wait_for_receipts()
        saved = await turn_saving.save(self.request, self.claimed, result, later=self._is_stored)
        if saved.code:
            self.finish, self.code = "error", saved.code
        followers = self.stream.channels
        self._send_end()
        self._is_stored(saved.end, followers)
        self._answer.let_go()

    def _is_stored(self, end: StoredEnd, told: Collection[str] = ()) -> None:
        """Begin the next turn, and tell devices that lack the answer. `told`: the channels that had it as a stream."""
        if end.next is not None:
            self._hooks.hand_over(end.next)
        if end.seq is not None and (channels := frozenset(end.channels).difference(told)):
            changed = ConversationChanged(conversation_id=str(self.claimed.conversation_id), seq=end.seq)
            self._hooks.send_notices([changed], channels)

    def _send_end(self) -> None:
        self.output.start()
        self.stream.end(
            StreamEnd(
                request_id=self.request.request_id,
                mutations=self.mutations,
                finish=self.finish,
                code=self.code or None,
                usage=self.usage,
                device_id=self.device_id,
                notices=self.notices or None,
                retry_at=int(self.retry_at.timestamp() * 1000) if self.retry_at else None,
            )
        )
        log_writer().hurry()
        metrics.TURNS.labels(self.finish).inc()
        if self.code:
            metrics.count_error("turn", self.code)
        if self._started_at is not None:
            self._end_span()
        log.info(
            "turn.ended",
            finish=self.finish,
            code=self.code,
            model_calls=self.usage.model_calls,
            mutations=len(self.mutations),
            **self._ids,
        )
        self.ended.set()
        self._steers.close()

    def _end_span(self) -> None:
        usage = self.usage
        self._span.set(
            adiuva__finish=self.finish,
            adiuva__model_calls=usage.model_calls,
            adiuva__mutations=len(self.mutations),
            gen_ai__usage__input_tokens=usage.input_tokens,
            gen_ai__usage__output_tokens=usage.output_tokens,
        )
        if self.code:
            self._span.fail(self.code)
        self._span.end()

    def _fail(self, error: Exception) -> None:
        unavailable = as_unavailable(error)
        self.finish, self.code = "error", unavailable.code if unavailable else "internal_error"

    @property
    def mutations(self) -> list[Mutation]:
        """The changes that the turn has made on the device so far."""
        return self._answer.mutations

    @property
    def notices(self) -> list[Notice]:
        return self._answer.notices

    @property
    def retry_at(self) -> dt.datetime | None:
        """The time when there is money for models again, if the turn ended for lack of it."""
        return self._answer.renews_at if self.code == llm.BudgetSpent.code else None

    @property
    def device_id(self) -> str | None:
        """The device whose data was read or changed; None if no call was sent to one."""
        return self._answer.device_id

    @property
    def _ids(self) -> dict[str, Any]:
        return {"user_id": str(self.request.user_id), "turn": str(self.claimed.turn_id)}
