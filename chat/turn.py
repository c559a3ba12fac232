"""One turn: carries out a request to its end in a task of this process, whether or not anybody listens.

A turn continues when the socket drops, waits for the device inside tool calls, can be cancelled and steered, has a
deadline and a limit on model calls, and ends in exactly one stream_end.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

import structlog
from django.conf import settings
from django.utils import translation
from django.utils.translation import gettext

from adiuva import llm
from adiuva.core import db
from adiuva.core.errors import AdiuvaError
from adiuva.core.language import language_of
from adiuva.core.logging import log_failure
from adiuva.core.outages import as_unavailable
from adiuva.devices.link import DeviceLink
from adiuva.devices.protocol import ApprovalRequest, Domain, HistoryMessage, Mutation, StreamEnd, Usage
from chat import approvals, deferred_calls, history, turn_rows, turn_saving
from chat.agent_loop import LimitReached, OutputHooks, ToolInvocation, TurnContext, run_agent_loop
from chat.approvals import Approvals
from chat.assistants import supervisor
from chat.deferred_calls import DeferredCall
from chat.device_session import DeviceSession
from chat.end_messages import SAID_IN_ANSWER, message_of
from chat.foreign_text import CONTEXT, ForeignTexts
from chat.history import FittedHistory
from chat.memory_context import MEMORY, MemoryContext
from chat.models import AssistantKind
from chat.prompts import turn_prompt
from chat.request import ChatRequest
from chat.steering import SteerQueue
from chat.stream import Stream
from chat.stream_log import StreamRecording, log_writer
from chat.tools import present_call, resolve_call
from chat.turn_changes import TurnRecord
from chat.turn_errors import ServerRestarting
from chat.turn_messages import SCOPE_TABLES, describe_scope, first_messages
from chat.turn_output import TurnOutput
from chat.turn_rows import ClaimedTurn, NewSummary, TurnOutcome
from chat.user_intent import UserWords

log = structlog.get_logger(__name__)

Finish = Literal["stop", "cancelled", "error", "limit"]

_DOMAINS: Final[dict[str, Domain]] = {
    "tasks": "tasks",
    "taskComments": "tasks",
    "projects": "projects",
    "clients": "projects",
    "notes": "notes",
    "timelines": "timelines",
}


class Turn:
    """`start()` it, then listen to its `stream`. `ended` is set once the turn is over and stored.

    It has more than 15 methods because a client's four ways to reach a running turn and the hooks of the agent loop all
    act on the same state.
    """

    def __init__(
        self,
        request: ChatRequest,
        claimed: ClaimedTurn,
        *,
        announce: Callable[[ApprovalRequest], Awaitable[None]],
    ) -> None:
        """`announce` brings an approval request to the user's other devices."""
        self.request, self.claimed = request, claimed
        self.stream = Stream(request.request_id)
        self.output = TurnOutput(self.stream, request, claimed)
        self.ended = asyncio.Event()
        self.finish: Finish = "stop"
        self.code = ""
        self.mutations: list[Mutation] = []
        self.usage = Usage()
        self.foreign = ForeignTexts(earlier=claimed.has_foreign)
        if request.context:
            self.foreign.add(CONTEXT)
        self._announce = announce
        self._steers = SteerQueue()
        self._ending = self._cancelled = self._stopped = False
        # Set as the turn proceeds; None if it ended before.
        self._approvals: Approvals | None = None
        self._session: DeviceSession | None = None
        self._history: FittedHistory | None = None
        self._context: TurnContext | None = None
        self._memory: MemoryContext | None = None
        self._recall: asyncio.Task[str | None] | None = None
        self._work: asyncio.Task[None]
        self._task: asyncio.Task[None]

    def start(self, saved: Callable[[], None]) -> None:
        """`saved` is called once the stream log holds all of the turn, so that this process need not."""
        request, loop = self.request, asyncio.get_running_loop()
        head = {
            "message": request.message,
            "kind": request.kind,
            "history": [message.model_dump() for message in request.history],
            "scope": request.scope.model_dump() if request.scope else None,
            "context": request.context,
        }
        log_writer().add(
            StreamRecording(
                self.stream,
                user_id=request.user_id,
                cipher=self.claimed.cipher,
                head=head,
                saved=saved,
                mutations=lambda: self.mutations,
            )
        )
        self._work = loop.create_task(self._answer_within_deadline(), name="turn")
        self._task = loop.create_task(self._run(), name="turn keeper")

    # ── What clients and the registry ask of a running turn ─────────────────────────────────────────────

    def stop(self) -> None:
        """End the turn in order because its process is about to exit."""
        if not self._ending and not self._cancelled:
            self._stopped = True
            self.cancel()

    def cancel(self) -> None:
        # Only once: a second cancellation would end the wait for a write that is under way on the device.
        if not self._ending and not self._cancelled:
            self._cancelled = True
            self._work.cancel()

    def end_unsaved(self) -> None:
        """Send the end although the result is not stored yet, because the process exits now."""
        if not self.ended.is_set():
            self._task.cancel()
            self.finish, self.code = "error", ServerRestarting.code
            self._send_end()

    async def steer(self, message: str) -> bool:
        """Add a message for the model. True once it has read it; False if the turn `ended` before.

        Raises TooManySteers.
        """
        if self._ending or self._cancelled:
            await self.ended.wait()
            return False
        return await self._steers.add(message)

    def decide(self, approval_id: str, approved: bool) -> bool:
        """Answer an approval request. False if this turn does not wait for it."""
        if self._approvals is None or not self._approvals.decide(approval_id, approved):
            return False
        self.stream.open.pop(approval_id, None)
        return True

    def follow_up(self, message: str) -> ChatRequest:
        """The request that a message becomes if it came too late for this turn. For use once this turn has `ended`."""
        request = self.request
        if self.claimed.conversation_id is not None:
            return replace(
                request,
                request_id=uuid.uuid4().hex,
                message=message,
                history=(),
                conversation_id=str(self.claimed.conversation_id),
            )
        asked = [HistoryMessage(role="user", content=text) for text in (request.message, *self._steers.read)]
        answer = HistoryMessage(role="assistant", content=self.output.text)
        return replace(
            request,
            request_id=uuid.uuid4().hex,
            message=message,
            history=(*request.history, *asked, answer),
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
            log.info("turn.failed", code=error.code, **self._ids)
        except Exception as error:
            log_failure("turn.broke", error, **self._ids)
            self._fail(error)
        await self._end()

    async def _answer_within_deadline(self) -> None:
        translation.activate(language_of(self.claimed.locale))  # of this task, and of those it starts
        deadline = asyncio.timeout(settings.CHAT["turn_deadline_s"])
        try:
            async with deadline:
                await self._answer()
        except TimeoutError:
            if not deadline.expired():
                raise
            raise LimitReached("deadline") from None

    async def _answer(self) -> None:
        request, claimed = self.request, self.claimed
        model = llm.chat_model()
        if request.kind == AssistantKind.HOME:
            self.output.start()
        elif request.scope is not None and (table := SCOPE_TABLES.get(request.scope.type)):
            self.output.start(_DOMAINS[table])
        zone = ZoneInfo(claimed.timezone)
        now = datetime.now(zone)
        memory = self._memory = MemoryContext(
            request,
            claimed,
            model,
            zone,
            steered=self._steers.read,
            said_yes=deferred_calls.is_yes(request.message),
            foreign=self.foreign,
        )
        recall = self._recall = asyncio.get_running_loop().create_task(memory.recall(now), name="turn recall")
        granted = await self._take_granted_calls(memory)
        wait_s = settings.CHAT["device_reconnect_wait_s"] if request.expects_device else 0.0
        async with DeviceLink(request.user_id, request.device_id, wait_s=wait_s) as link:
            session = DeviceSession(link, zone=zone, now=now, foreign=self.foreign)
            self.mutations = session.mutations
            self._session = session
            self._approvals = Approvals(
                request_id=request.request_id,
                session=session,
                memory=memory,
                user_words=partial(self._user_words, memory),
                count_recent_writes=self._count_recent_writes,
                looked_at=request.scope.id if request.scope else None,
                expires_at=int((time.time() + settings.CHAT["turn_deadline_s"]) * 1000),
                ask=self._ask if request.can_ask_approval else None,
                granted=granted,
            )
            context = self._context = TurnContext(
                model=model,
                max_model_calls=settings.CHAT["max_model_calls"],
                authorize=self._approvals.allow,
                on_tool_start=self._show_tool,
                resolve=partial(resolve_call, session.aliases),
            )
            context.tool_config = {
                "session": session,
                "context": context,
                "turn_prompt": turn_prompt(now=now, locale=claimed.locale),
                MEMORY: memory,
            }
            if history.needs_summary(claimed):
                self.output.status(gettext("Summing up what was said before"))
            fitted = self._history = await history.fit_history(
                user_id=request.user_id, claimed=claimed, context=context
            )
            scope = await describe_scope(request.scope, session)
            self.output.set_known_ids(session, fitted.summary)
            assistant = supervisor(
                request.kind, SCOPE_TABLES.get(request.scope.type) if request.scope else None
            )
            messages = first_messages(
                assistant,
                request,
                claimed,
                session=session,
                history=fitted,
                scope=scope,
                memory=await recall,
                confirmed=[call.shown_with(partial(present_call, session.aliases)) for call in granted],
            )
            memory.start_receipt()
            hooks = OutputHooks(self.output.write, self._end_model_answer, self._steers.take)
            await run_agent_loop(assistant, messages, context, hooks)

    def _user_words(self, memory: MemoryContext) -> UserWords:
        """What the user has said in this turn; if it has read nothing foreign itself, in this conversation."""
        said = [self.request.message, *self._steers.given]
        history = [] if self.foreign else self.claimed.history
        said += [message.text for message in history if message.role == "user"]
        agreed = memory.said_yes and bool(history) and history[-1].role == "assistant"
        return UserWords([*said, history[-1].text] if agreed else said, agreed=agreed)

    async def _count_recent_writes(self) -> int:
        request, claimed = self.request, self.claimed
        return await db.run(
            turn_rows.count_recent_writes, user_id=request.user_id, conversation_id=claimed.conversation_id
        )

    async def _take_granted_calls(self, memory: MemoryContext) -> list[DeferredCall]:
        """The deferred calls that this message says yes to. Any message discards what was deferred before it."""
        request = self.request
        answers = [message.content for message in request.history if message.role == "assistant"]
        deferred = await deferred_calls.take(
            user_id=request.user_id,
            where=self._chat_key,
            cipher=self.claimed.cipher,
            answer=answers[-1] if answers else None,
        )
        if request.can_ask_approval or not memory.said_yes:
            return []
        return [
            replace(call, arguments=await memory.with_label(call.arguments))
            if MEMORY in call.arguments
            else call
            for call in deferred
        ]

    @property
    def _chat_key(self) -> str:
        """Names the chat as well as the server knows it: the conversation, else the device and what it shows."""
        if self.claimed.conversation_id is not None:
            return str(self.claimed.conversation_id)
        request, scope = self.request, self.request.scope
        return f"{request.device_id} {request.kind} {scope.type if scope else ''} {scope.id if scope else ''}"

    async def _ask(self, question: ApprovalRequest) -> None:
        self.output.start(_DOMAINS.get(question.table))
        self.stream.ask(question)
        await self._announce(question)

    def _show_tool(self, call: ToolInvocation) -> None:
        self.output.start(_DOMAINS.get(call.table) or _DOMAINS.get(str(call.arguments.get("agent"))))
        self.output.status(gettext(call.label))

    def _end_model_answer(self, text: str) -> bool:
        self._steers.mark_read()
        return self.output.end_answer()

    # ── End ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _end(self) -> None:
        """Store what happened, then send the end. No failure in here may keep the end from being sent."""
        if self.ended.is_set():  # by `end_unsaved`
            return
        self._ending = True
        context = self._context
        if context is not None:
            self.usage = Usage(
                input_tokens=context.usage.input_tokens,
                output_tokens=context.usage.output_tokens,
                model_calls=context.model_calls,
            )
        try:
            self.output.end_answer()
            if self.code in SAID_IN_ANSWER:
                self.output.append_paragraph(message_of(self.code))
            self._say_what_was_refused()
            if self.finish == "stop":
                await self._ask_for_deferred_calls()
        except LimitReached as limit:
            self.finish, self.code = "limit", limit.code
        except Exception as error:
            log_failure("turn.broke", error, **self._ids)
            self._fail(error)
        result = TurnOutcome(
            state=self.finish,
            text=self.output.text,
            code=self.code,
            steered=self._steers.read,
            mutations=self.mutations,
            usage=self.usage,
            tool_calls=context.tool_calls if context else 0,
            summary=self._new_summary(),
            foreign=self.foreign,
            record=self._record(),
        )
        await self._wait_for_receipts()
        if code := await turn_saving.save(self.request, self.claimed, result):
            self.finish, self.code = "error", code
        self._send_end()

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
            )
        )
        log_writer().hurry()
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

    def _say_what_was_refused(self) -> None:
        """Put right, below the answer, what the model may have claimed in spite of a no."""
        if self._approvals is not None and (refused := self._approvals.refused):
            self.output.append_paragraph(approvals.refusal_text(refused))

    async def _ask_for_deferred_calls(self) -> None:
        """Ask, below the answer, for the yes that the model's calls need. A yes counts for exactly what was shown."""
        if self._approvals is None or not (deferred := self._approvals.deferred):
            return
        self.output.append_paragraph(deferred_calls.question_text(deferred, self._approvals.left_out))
        await deferred_calls.keep(
            user_id=self.request.user_id,
            where=self._chat_key,
            cipher=self.claimed.cipher,
            calls=deferred,
            answer=self.output.text,
        )

    def _record(self) -> TurnRecord | None:
        session = self._session
        return TurnRecord(session.link.device, session.changes) if session is not None else None

    def _new_summary(self) -> NewSummary | None:
        fitted = self._history
        if fitted is None or not fitted.new:
            return None
        return NewSummary(self.claimed.summary_upto + fitted.new, fitted.summary)

    async def _wait_for_receipts(self) -> None:
        if self._memory is None or self._recall is None:
            return
        if not self._recall.done():
            self._recall.cancel()
            await asyncio.wait({self._recall})
        await self._memory.wait_for_receipts()

    def _fail(self, error: Exception) -> None:
        unavailable = as_unavailable(error)
        self.finish, self.code = "error", unavailable.code if unavailable else "internal_error"

    @property
    def device_id(self) -> str | None:
        """The device whose data was read or changed; None if no call was sent to one."""
        return self._session.link.device_id if self._session is not None else None

    @property
    def _ids(self) -> dict[str, Any]:
        return {"user_id": str(self.request.user_id), "turn": str(self.claimed.turn_id)}
