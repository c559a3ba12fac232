"""One turn: a request carried out to its end, by a task of this process, whoever listens.

It goes on when the socket drops, waits for the device inside a tool call, can be cancelled and steered, has a deadline
and a limit on model calls, and ends in exactly one stream_end.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.tools import ToolException

from adiuva import db, llm
from adiuva.accounts.keys import NoSuchUser
from adiuva.devices.link import DeviceLink
from adiuva.devices.protocol import (
    MAX_FRAME_BYTES,
    ApprovalRequest,
    Domain,
    HistoryMessage,
    Mutation,
    StreamEnd,
    TableName,
    Usage,
    dump,
)
from adiuva.errors import AdiuvaError
from chat import approvals, conversations, history
from chat.approvals import Approvals, Wish
from chat.asked import Asked
from chat.assistants import SUPERVISORS
from chat.conversations import Begun
from chat.desk import Desk
from chat.history import Fitted
from chat.log import Recording, recorder
from chat.loop import Call, Limit, Voice, Work, converse
from chat.models import Kind
from chat.prompts import tail
from chat.speech import Speech
from chat.stream import Stream
from chat.tools import prose

log = structlog.get_logger("adiuva.chat")

Finish = Literal["stop", "cancelled", "error", "limit"]
_MAX_SCOPE_CHARS: Final = 20_000
_MAX_CHANGED: Final = 20  # earlier changes that the prompt names

_TABLES: Final[dict[str, TableName]] = {
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


class Turn:
    """`start()` it, then listen to its `stream`. `ended` is set when all of it is over and kept."""

    def __init__(
        self, asked: Asked, begun: Begun, *, announce: Callable[[ApprovalRequest], Awaitable[None]]
    ) -> None:
        """`announce` brings a question to the user's other devices."""
        self.asked, self.begun = asked, begun
        self.stream = Stream(asked.request_id)
        self.speech = Speech(self.stream, asked, begun)
        self.ended = asyncio.Event()
        self.finish: Finish = "stop"
        self.code = ""
        self.mutations: list[Mutation] = []
        self.usage = Usage()
        self._announce = announce
        self._approvals: Approvals | None = None
        self._steers: deque[tuple[str, asyncio.Future[bool]]] = deque()
        self._steered: list[str] = []
        self._ending = self._cancelled = False
        self._fitted: Fitted | None = None
        self._work: Work | None = None
        self._task: asyncio.Task[None]
        self._working: asyncio.Task[None]

    def start(self, saved: Callable[[], None]) -> None:
        """`saved` is called once the log holds all of it, so that this process need not."""
        loop = asyncio.get_running_loop()
        head = {
            "message": self.asked.message,
            "kind": self.asked.kind,
            "history": [said.model_dump() for said in self.asked.history],
            "scope": self.asked.scope.model_dump() if self.asked.scope else None,
            "context": self.asked.context,
        }
        recorder().add(
            Recording(
                self.stream, user_id=self.asked.user_id, cipher=self.begun.cipher, head=head, saved=saved
            )
        )
        self._working = loop.create_task(self._converse(), name="turn")
        self._task = loop.create_task(self._run(), name="turn keeper")

    # From outside

    def cancel(self) -> None:
        # Once: a second one would end the wait for what is happening on the device.
        if not self._ending and not self._cancelled:
            self._cancelled = True
            self._working.cancel()

    async def steer(self, message: str) -> bool:
        """Say something more. True once the model gets to hear it; False when the turn has `ended` without that."""
        if self._ending or self._cancelled:
            await self.ended.wait()
            return False
        heard: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._steers.append((message, heard))
        return await heard

    def decide(self, approval: str, approved: bool) -> bool:
        """False: this turn does not ask that, or no more."""
        if self._approvals is None or not self._approvals.decide(approval, approved):
            return False
        self.stream.open.pop(approval, None)
        return True

    def follow_up(self, message: str) -> Asked:
        """The request of a message that came too late for this turn. Ask it when this one has `ended`."""
        asked = self.asked
        if self.begun.conversation_id is not None:
            return replace(
                asked,
                request_id=uuid.uuid4().hex,
                message=message,
                history=(),
                conversation_id=str(self.begun.conversation_id),
            )
        said = [HistoryMessage(role="user", content=text) for text in (asked.message, *self._steered)]
        answer = HistoryMessage(role="assistant", content=self.speech.text)
        return replace(
            asked, request_id=uuid.uuid4().hex, message=message, history=(*asked.history, *said, answer)
        )

    # Life

    async def _run(self) -> None:
        try:
            await self._working
        except asyncio.CancelledError:
            if not self._cancelled:
                self._working.cancel()
            self.finish, self.code = ("cancelled", "") if self._cancelled else ("error", "server_restarting")
        except Limit as limit:
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
        return {"user_id": str(self.asked.user_id), "turn": str(self.begun.turn_id)}

    async def _converse(self) -> None:
        """The request to its answer, within the deadline."""
        limit = asyncio.timeout(settings.CHAT["deadline_s"])
        try:
            async with limit:
                await self._answer()
        except TimeoutError:
            if not limit.expired():
                raise
            raise Limit("deadline") from None

    async def _answer(self) -> None:
        asked, begun = self.asked, self.begun
        model = llm.chat_model()
        if asked.kind == Kind.HOME:
            self.speech.begin()
        elif asked.scope is not None and (table := _TABLES.get(asked.scope.type)):
            self.speech.begin(_DOMAINS[table])
        wishes = await self._granted()
        async with DeviceLink(asked.user_id, asked.device, wait_s=settings.CHAT["device_wait_s"]) as link:
            zone = ZoneInfo(begun.timezone)
            desk = Desk(link, zone=zone, now=datetime.now(zone))
            self.mutations = desk.mutations
            self._approvals = Approvals(
                request_id=asked.request_id,
                desk=desk,
                expires_at=int((time.time() + settings.CHAT["deadline_s"]) * 1000),
                ask=self._ask if asked.approves else None,
                granted=wishes,
            )
            work = self._work = Work(
                model=model,
                max_model_calls=settings.CHAT["max_model_calls"],
                allow=self._approvals.allow,
                used=self._used,
            )
            of_this_turn = partial(tail, now=desk.now, locale=begun.locale)
            work.config = {"desk": desk, "work": work, "tail": of_this_turn()}
            if history.needs_summary(begun):
                self.speech.status("Summing up what was said before")
            self._fitted = await history.fit(user_id=asked.user_id, begun=begun, work=work)
            scope = await self._scope(desk)
            self.speech.listen_to(desk)
            supervisor = SUPERVISORS[asked.kind]
            messages: list[BaseMessage] = [
                SystemMessage(supervisor.prompt.text),
                *self._fitted.messages(),
                SystemMessage(
                    of_this_turn(
                        scope=scope,
                        context=self._context(),
                        confirmed=[str(wish) for wish in wishes],
                        changed=self._changed(),
                    )
                ),
                HumanMessage(asked.message),
            ]
            await converse(supervisor, messages, work, Voice(self.speech.say, self.speech.pause, self._heard))

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
        with contextlib.suppress(Limit):
            self.speech.pause()
        try:
            await self._keep(work.tool_calls if work else 0)
        except NoSuchUser:
            self.finish, self.code = "error", "user_gone"
        except Exception:
            log.exception("chat.turn_not_saved", **self._ids)
            self.finish, self.code = "error", "not_saved"
        self.speech.begin()
        self.stream.end(
            _within_a_frame(
                StreamEnd(
                    request_id=self.asked.request_id,
                    mutations=self.mutations,
                    finish=self.finish,
                    code=self.code or None,
                    usage=self.usage,
                )
            )
        )
        recorder().hurry()
        log.info(
            "chat.turn_ended",
            finish=self.finish,
            code=self.code,
            model_calls=self.usage.model_calls,
            mutations=len(self.mutations),
            **self._ids,
        )
        self.ended.set()
        for _, heard in self._steers:
            if not heard.done():
                heard.set_result(False)

    async def _keep(self, tool_calls: int) -> None:
        fitted = self._fitted
        summary = (self.begun.summary_upto + fitted.new, fitted.summary) if fitted and fitted.new else None
        if self._approvals is not None and self._approvals.wishes:
            await approvals.keep(
                user_id=self.asked.user_id,
                where=self._where,
                cipher=self.begun.cipher,
                wishes=self._approvals.wishes,
            )
        await db.run(
            conversations.finish,
            asked=self.asked,
            begun=self.begun,
            steered=self._steered,
            text=self.speech.text,
            mutations=self.mutations,
            state=self.finish,
            code=self.code,
            usage=self.usage,
            tool_calls=tool_calls,
            summary=summary,
        )

    # What the model is given

    @property
    def _where(self) -> str:
        return str(self.begun.conversation_id or self.asked.device or "any")

    async def _granted(self) -> list[Wish]:
        """What the user has said yes to with this message."""
        if self.asked.approves:
            return []
        kept = await approvals.take(user_id=self.asked.user_id, where=self._where, cipher=self.begun.cipher)
        return kept if approvals.is_yes(self.asked.message) else []

    async def _scope(self, desk: Desk) -> str | None:
        """The row that a floating request is about, in words for the model."""
        scope = self.asked.scope
        if scope is None:
            return None
        table = _TABLES.get(scope.type)
        if table is None or scope.id is None:
            return f"The user looks at the {scope.type}{'s' if scope.type != 'workspace' else ' as a whole'}."
        try:
            row = (await desk.call("get", table, data={"id": scope.id})).row
        except ToolException as failure:
            return f"The user looks at the {scope.type} with the id {scope.id}. {failure}"
        if row is None:
            return f"The user looks at a {scope.type} that is not there any more (id {scope.id})."
        texts = [row.get(column) for column in ("description", "aiSummary", "content")]
        quoted = [
            prose.quoted(text, _MAX_SCOPE_CHARS) for text in texts if isinstance(text, str) and text.strip()
        ]
        return "\n".join([f"The user looks at this {scope.type}:\n- {prose.row(desk, table, row)}", *quoted])

    def _context(self) -> str | None:
        parts = []
        if self._fitted is not None and self._fitted.summary:
            parts.append(f"Summary of what was said before:\n{self._fitted.summary}")
        if self.asked.context:
            parts.append(self.asked.context)
        return "\n\n".join(parts) or None

    def _changed(self) -> list[str]:
        """What earlier turns of the conversation did, so that "undo that" can be understood."""
        found = [
            f"{mutation.action} in {mutation.table}: {orjson.dumps(_brief(mutation.data)).decode()}"
            for said in self.begun.history
            for mutation in said.mutations
        ]
        return found[-_MAX_CHANGED:]

    # Between the user and the loop

    def _used(self, call: Call) -> None:
        self.speech.begin(_DOMAINS.get(call.table) or _DOMAINS.get(str(call.arguments.get("agent"))))
        self.speech.status(call.label)

    async def _ask(self, question: ApprovalRequest) -> None:
        self.speech.begin(_DOMAINS.get(question.table))
        self.stream.ask(question)
        await self._announce(question)

    def _heard(self) -> list[str]:
        said = [message for message, _ in self._steers]
        for _, heard in self._steers:
            if not heard.done():
                heard.set_result(True)
        self._steers.clear()
        self._steered += said
        return said


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("id", "title", "name") if key in row}


def _within_a_frame(frame: StreamEnd) -> StreamEnd:
    """Rows that would burst the frame are named by their ids, largest first; the device has them anyway."""
    mutations = list(frame.mutations)
    room = MAX_FRAME_BYTES - 2048
    sizes = [len(dump(mutation).encode()) for mutation in mutations]
    for place in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        if sum(sizes) <= room:
            break
        mutations[place] = mutations[place].model_copy(
            update={"data": {"id": mutations[place].data.get("id")}}
        )
        sizes[place] = len(dump(mutations[place]).encode())
    return frame.model_copy(update={"mutations": mutations})
