"""One turn: a request carried out to its end, by a task of this process, whoever listens.

It goes on when the socket drops, waits for the device inside a tool call, can be cancelled and steered, has a deadline
and a limit on model calls, and ends in exactly one stream_end.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

import orjson
import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.tools import ToolException

from adiuva import llm
from adiuva.accounts.keys import NoSuchUser
from adiuva.core import db
from adiuva.core.errors import AdiuvaError
from adiuva.devices.link import DeviceLink
from adiuva.devices.protocol import (
    ApprovalRequest,
    Domain,
    HistoryMessage,
    Mutation,
    StreamEnd,
    TableName,
    Usage,
)
from chat import conversations, deferred_calls, history
from chat.agent_loop import LimitReached, OutputHooks, ToolInvocation, TurnContext, run_agent_loop
from chat.approvals import Approvals
from chat.assistants import SUPERVISORS
from chat.conversations import ClaimedTurn
from chat.deferred_calls import DeferredCall
from chat.device_session import DeviceSession
from chat.history import FittedHistory
from chat.memory_context import MEMORY, MemoryContext
from chat.models import AssistantKind
from chat.prompts import turn_prompt
from chat.request import MAX_MESSAGE_CHARS, ChatRequest
from chat.stream import Stream
from chat.stream_log import StreamRecording, log_writer
from chat.tools import formatting
from chat.turn_output import TurnOutput

log = structlog.get_logger("adiuva.chat")

Finish = Literal["stop", "cancelled", "error", "limit"]
_MAX_SCOPE_CHARS: Final = 20_000
_SAVE_ATTEMPTS: Final = 120
_SAVE_RETRY_S: Final = 5.0
_MAX_PENDING_STEERS: Final = (
    16  # that the model has not heard yet; together they are as long as one message may be
)
_MAX_EARLIER_CHANGES: Final = 20  # earlier changes that the prompt names

_SCOPE_TABLES: Final[dict[str, TableName]] = {
    "task": "tasks",
    "project": "projects",
    "note": "notes",
    "timeline": "timelines",
}
_DOMAINS: Final[dict[str, Domain]] = {
    "tasks": "tasks",
    "taskComments": "tasks",
    "projects": "projects",
    "clients": "projects",
    "notes": "notes",
    "timelines": "timelines",
}


class TooManySteers(AdiuvaError):
    code, status = "too_many_requests", 429

    def __init__(self) -> None:
        super().__init__("the assistant has yet to hear what was said before")


class Turn:
    """`start()` it, then listen to its `stream`. `ended` is set when all of it is over and kept."""

    def __init__(
        self,
        request: ChatRequest,
        claimed: ClaimedTurn,
        *,
        announce: Callable[[ApprovalRequest], Awaitable[None]],
    ) -> None:
        """`announce` brings a question to the user's other devices."""
        self.request, self.claimed = request, claimed
        self.stream = Stream(request.request_id)
        self.output = TurnOutput(self.stream, request, claimed)
        self.ended = asyncio.Event()
        self.finish: Finish = "stop"
        self.code = ""
        self.mutations: list[Mutation] = []
        self.usage = Usage()
        self._announce = announce
        self._approvals: Approvals | None = None
        self._steers: deque[tuple[str, asyncio.Future[bool]]] = deque()  # not told to the model yet
        self._telling: list[
            tuple[str, asyncio.Future[bool]]
        ] = []  # told in a call that it has not answered yet
        self._steered: list[str] = []
        self._ending = self._cancelled = self._stopped = False
        self._fitted: FittedHistory | None = None
        self._work: TurnContext | None = None
        self._memory: MemoryContext | None = None
        self._recalling: asyncio.Task[str | None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None]
        self._working: asyncio.Task[None]

    def start(self, saved: Callable[[], None]) -> None:
        """`saved` is called once the log holds all of it, so that this process need not."""
        loop = asyncio.get_running_loop()
        head = {
            "message": self.request.message,
            "kind": self.request.kind,
            "history": [said.model_dump() for said in self.request.history],
            "scope": self.request.scope.model_dump() if self.request.scope else None,
            "context": self.request.context,
        }
        log_writer().add(
            StreamRecording(
                self.stream,
                user_id=self.request.user_id,
                cipher=self.claimed.cipher,
                head=head,
                saved=saved,
                mutations=lambda: self.mutations,
            )
        )
        self._working = loop.create_task(self._converse(), name="turn")
        self._task = loop.create_task(self._run(), name="turn keeper")

    # From outside

    def stop(self) -> None:
        """End it in order, because its process is to end."""
        if not self._ending and not self._cancelled:
            self._stopped = True
            self.cancel()

    def cancel(self) -> None:
        # Once: a second one would end the wait for what is happening on the device.
        if not self._ending and not self._cancelled:
            self._cancelled = True
            self._working.cancel()

    async def steer(self, message: str) -> bool:
        """Say something more. True once the model gets to hear it; False when the turn has `ended` without that. Raise
        TooManySteers."""
        if self._ending or self._cancelled:
            await self.ended.wait()
            return False
        unheard = [text for text, _ in (*self._telling, *self._steers)]
        if len(unheard) >= _MAX_PENDING_STEERS or sum(map(len, unheard)) + len(message) > MAX_MESSAGE_CHARS:
            raise TooManySteers
        heard: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._steers.append((message, heard))
        return await heard

    def decide(self, approval: str, approved: bool) -> bool:
        """False: this turn does not ask that, or no more."""
        if self._approvals is None or not self._approvals.decide(approval, approved):
            return False
        self.stream.open.pop(approval, None)
        return True

    def follow_up(self, message: str) -> ChatRequest:
        """The request of a message that came too late for this turn. Ask it when this one has `ended`."""
        request = self.request
        if self.claimed.conversation_id is not None:
            return replace(
                request,
                request_id=uuid.uuid4().hex,
                message=message,
                history=(),
                conversation_id=str(self.claimed.conversation_id),
            )
        said = [HistoryMessage(role="user", content=text) for text in (request.message, *self._steered)]
        answer = HistoryMessage(role="assistant", content=self.output.text)
        return replace(
            request, request_id=uuid.uuid4().hex, message=message, history=(*request.history, *said, answer)
        )

    # Life

    async def _run(self) -> None:
        try:
            await self._working
        except asyncio.CancelledError:
            self.finish, self.code = ("error", "server_restarting") if self._stopped else ("cancelled", "")
        except LimitReached as limit:
            self.finish, self.code = "limit", limit.code
        except AdiuvaError as error:
            self.finish, self.code = "error", error.code
            log.info("chat.turn_failed", code=error.code, **self._ids)
        except Exception as error:
            # No text of it: it could quote the user.
            self.finish, self.code = "error", "internal_error"
            log.error("chat.turn_broke", error=type(error).__name__, **self._ids)
        await self._end()

    @property
    def _ids(self) -> dict[str, str]:
        return {"user_id": str(self.request.user_id), "turn": str(self.claimed.turn_id)}

    async def _converse(self) -> None:
        """The request to its answer, within the deadline."""
        limit = asyncio.timeout(settings.CHAT["turn_deadline_s"])
        try:
            async with limit:
                await self._answer()
        except TimeoutError:
            if not limit.expired():
                raise
            raise LimitReached("deadline") from None

    async def _answer(self) -> None:
        request, claimed = self.request, self.claimed
        model = llm.chat_model()
        if request.kind == AssistantKind.HOME:
            self.output.start()
        elif request.scope is not None and (table := _SCOPE_TABLES.get(request.scope.type)):
            self.output.start(_DOMAINS[table])
        zone = ZoneInfo(claimed.timezone)
        now = datetime.now(zone)
        memory = self._memory = MemoryContext(
            request,
            claimed,
            model,
            zone,
            steered=self._steered,
            said_yes=deferred_calls.is_yes(request.message),
        )
        recalling = self._recalling = asyncio.get_running_loop().create_task(
            memory.recall(now), name="turn recalls"
        )
        wishes = await self._granted(memory)
        async with DeviceLink(
            request.user_id, request.device_id, wait_s=settings.CHAT["device_reconnect_wait_s"]
        ) as link:
            session = DeviceSession(link, zone=zone, now=now)
            self.mutations = session.mutations
            self._approvals = Approvals(
                request_id=request.request_id,
                session=session,
                memory=memory,
                expires_at=int((time.time() + settings.CHAT["turn_deadline_s"]) * 1000),
                ask=self._ask if request.can_ask_approval else None,
                granted=wishes,
            )
            work = self._work = TurnContext(
                model=model,
                max_model_calls=settings.CHAT["max_model_calls"],
                authorize=self._approvals.allow,
                on_tool_start=self._used,
            )
            of_this_turn = partial(turn_prompt, now=session.now, locale=claimed.locale)
            work.tool_config = {"session": session, "work": work, "tail": of_this_turn(), MEMORY: memory}
            if history.needs_summary(claimed):
                self.output.status("Summing up what was said before")
            self._fitted = await history.fit_history(user_id=request.user_id, claimed=claimed, context=work)
            scope = await self._scope(session)
            self.output.set_known_ids(session, self._fitted.summary)
            supervisor = SUPERVISORS[request.kind]
            messages: list[BaseMessage] = [
                SystemMessage(supervisor.prompt.text),
                *self._fitted.messages(),
                SystemMessage(
                    of_this_turn(
                        scope=scope,
                        context=self._context(),
                        memory=await recalling,
                        confirmed=[str(wish) for wish in wishes],
                        changed=self._changed(),
                    )
                ),
                HumanMessage(request.message),
            ]
            memory.start_receipt()
            await run_agent_loop(
                supervisor, messages, work, OutputHooks(self.output.write, self._paused, self._heard)
            )

    async def _end(self) -> None:
        """Keep what happened, then say the end. Nothing here may keep the end from being said."""
        self._ending = True
        work = self._work
        if work is not None:
            self.usage = Usage(
                input_tokens=work.usage.input_tokens,
                output_tokens=work.usage.output_tokens,
                model_calls=work.model_calls,
            )
        try:
            self.output.end_answer()
            if self.finish == "stop":
                await self._ask_in_words()
        except LimitReached as limit:
            self.finish, self.code = "limit", limit.code
        except Exception as error:
            log.error("chat.turn_broke", error=type(error).__name__, **self._ids)
            self.finish, self.code = "error", "internal_error"
        keep = partial(
            conversations.finish_turn,
            request=self.request,
            claimed=self.claimed,
            steered=self._steered,
            text=self.output.text,
            mutations=self.mutations,
            state=self.finish,
            code=self.code,
            usage=self.usage,
            tool_calls=work.tool_calls if work else 0,
            summary=self._summary(),
        )
        await self._recalled()
        try:
            await db.run(keep)
        except NoSuchUser:
            self.finish, self.code = "error", "user_gone"
        except Exception as error:
            log.error("chat.turn_not_saved", error=type(error).__name__, **self._ids)
            self.finish, self.code = "error", "not_saved"
            self._keeping = asyncio.get_running_loop().create_task(
                self._keep_later(keep), name="turn kept later"
            )
        self.output.start()
        self.stream.end(
            StreamEnd(
                request_id=self.request.request_id,
                mutations=self.mutations,
                finish=self.finish,
                code=self.code or None,
                usage=self.usage,
            )
        )
        log_writer().hurry()
        log.info(
            "chat.turn_ended",
            finish=self.finish,
            code=self.code,
            model_calls=self.usage.model_calls,
            mutations=len(self.mutations),
            **self._ids,
        )
        self.ended.set()
        for _, heard in (*self._telling, *self._steers):
            if not heard.done():
                heard.set_result(False)

    async def _ask_in_words(self) -> None:
        """What the model wanted and may not do without a yes is asked here: a yes counts for what was shown."""
        if self._approvals is None or not (wishes := self._approvals.wishes):
            return
        self.output.append_paragraph(deferred_calls.question_text(wishes))
        await deferred_calls.keep(
            user_id=self.request.user_id,
            where=self._where,
            cipher=self.claimed.cipher,
            wishes=wishes,
            answer=self.output.text,
        )

    async def _recalled(self) -> None:
        """Wait for the receipts of what was recalled."""
        if self._memory is None or self._recalling is None:
            return
        if not self._recalling.done():
            self._recalling.cancel()
            await asyncio.wait({self._recalling})
        await self._memory.wait_for_receipts()

    async def _keep_later(self, keep: Callable[[], None]) -> None:
        """The database was away: what was answered is kept once it is back."""
        for _ in range(_SAVE_ATTEMPTS):
            await asyncio.sleep(_SAVE_RETRY_S)
            try:
                await db.run(keep)
                return
            except DatabaseError:
                continue
            except NoSuchUser:
                return
        log.error("chat.turn_never_saved", **self._ids)

    def _summary(self) -> tuple[int, str] | None:
        fitted = self._fitted
        return (self.claimed.summary_upto + fitted.new, fitted.summary) if fitted and fitted.new else None

    # What the model is given

    @property
    def _where(self) -> str:
        """The chat that this is said in, as well as it is known."""
        if self.claimed.conversation_id is not None:
            return str(self.claimed.conversation_id)
        scope = self.request.scope
        return f"{self.request.device_id} {self.request.kind} {scope.type if scope else ''} {scope.id if scope else ''}"

    async def _granted(self, memory: MemoryContext) -> list[DeferredCall]:
        """What the user has said yes to with this message. Any message lets go of what was asked before it."""
        request = self.request
        said = [message.content for message in request.history if message.role == "assistant"]
        kept = await deferred_calls.take(
            user_id=request.user_id,
            where=self._where,
            cipher=self.claimed.cipher,
            answer=said[-1] if said else None,
        )
        if request.can_ask_approval or not memory.said_yes:
            return []
        return [
            replace(wish, arguments=await memory.with_label(wish.arguments))
            if MEMORY in wish.arguments
            else wish
            for wish in kept
        ]

    async def _scope(self, session: DeviceSession) -> str | None:
        """The row that a floating request is about, in words for the model."""
        scope = self.request.scope
        if scope is None:
            return None
        table = _SCOPE_TABLES.get(scope.type)
        if table is None or scope.id is None:
            return f"The user looks at the {scope.type}{'s' if scope.type != 'workspace' else ' as a whole'}."
        try:
            row = (await session.call("get", table, data={"id": scope.id})).row
        except ToolException as failure:
            return f"The user looks at the {scope.type} with the id {scope.id}. {failure}"
        if row is None:
            return f"The user looks at a {scope.type} that is not there any more (id {scope.id})."
        texts = [row.get(column) for column in ("description", "aiSummary", "content")]
        quoted = [
            formatting.quote(text, _MAX_SCOPE_CHARS)
            for text in texts
            if isinstance(text, str) and text.strip()
        ]
        return "\n".join(
            [f"The user looks at this {scope.type}:\n- {formatting.row_text(session, table, row)}", *quoted]
        )

    def _context(self) -> str | None:
        parts = []
        if self._fitted is not None and self._fitted.summary:
            parts.append(f"Summary of what was said before:\n{self._fitted.summary}")
        if self.request.context:
            parts.append(self.request.context)
        return "\n\n".join(parts) or None

    def _changed(self) -> list[str]:
        """What earlier turns of the conversation did, so that "undo that" can be understood."""
        found = [
            f"{mutation.action} in {mutation.table}: {orjson.dumps(_identifying_fields(mutation.data)).decode()}"
            for said in self.claimed.history
            for mutation in said.mutations
        ]
        return found[-_MAX_EARLIER_CHANGES:]

    # Between the user and the loop

    def _used(self, call: ToolInvocation) -> None:
        self.output.start(_DOMAINS.get(call.table) or _DOMAINS.get(str(call.arguments.get("agent"))))
        self.output.status(call.label)

    async def _ask(self, question: ApprovalRequest) -> None:
        self.output.start(_DOMAINS.get(question.table))
        self.stream.ask(question)
        await self._announce(question)

    def _heard(self) -> list[str]:
        self._telling += self._steers
        self._steers.clear()
        return [message for message, _ in self._telling]

    def _paused(self) -> None:
        """The model has answered, and so has heard what it was told before."""
        self.output.end_answer()
        for message, heard in self._telling:
            self._steered.append(message)
            if not heard.done():
                heard.set_result(True)
        self._telling.clear()


def _identifying_fields(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("id", "title", "name") if key in row}
