"""A user of the evaluation: an account, a headless device with real rows, chats over its socket, and REST."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx

from adiuva.core import db
from adiuva.devices.client import Device, DeviceConfig, FrameReceived
from adiuva.devices.client.config import CAPABILITIES, IN_MEMORY
from adiuva.devices.protocol import (
    ApprovalRequest,
    ApprovalResponse,
    Error,
    FloatingRequest,
    HomeRequest,
    Scope,
    StreamEnd,
    StreamStart,
    StreamText,
)
from adiuva.devices.tables import TABLES
from bench.evaluation.cases import FREELANCER, ZONE
from bench.evaluation.row_changes import Rows

DEVICE_ID: Final = "desk"
_SCOPES: Final = {"tasks": "task", "projects": "project", "notes": "note", "timelines": "timeline"}


@dataclass
class Told:
    """The answer to one request. `asked`: what the server wanted a yes for. `code`: why there is no whole answer."""

    text: str = ""
    asked: list[str] = field(default_factory=list)
    conversation_id: str = ""
    code: str = ""
    model_calls: int = 0


class Participant:
    """`confirms`: whether they say yes to what the server asks before it changes something."""

    def __init__(self, web: str, person: Any, grants: tuple[Path, ...], answer_s: float) -> None:
        self.person = person
        self.confirms = True
        self.rest = httpx.AsyncClient(
            base_url=f"{web}/api/v1", headers={"Authorization": f"Bearer {person.access_token}"}, timeout=60
        )
        self._answer_s = answer_s
        self._told: defaultdict[str, Told] = defaultdict(Told)
        self._ended: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._answering: set[asyncio.Task[None]] = set()
        self.device = Device(
            DeviceConfig(
                server=web,
                workspace=IN_MEMORY,
                grants=grants,
                device_id=DEVICE_ID,
                access_token=person.access_token,
                refresh_token=person.refresh_token,
                email=person.email,
                password=person.password,
                capabilities=(*CAPABILITIES, "approval"),
            ),
            on_event=self._notice,
        )

    def rows(self) -> Rows:
        """All rows of the device, by table and id."""
        return {
            name: {row["id"]: row for row in self.device.store.select(table, {"includeArchived": True})}
            for name, table in TABLES.items()
        }

    async def ask(self, message: str, *, conversation_id: str | None = None, looking_at: str = "") -> Told:
        """Send a request to the assistant and wait for its end; `looking_at` is the title of the open row."""
        key = uuid4().hex
        request: HomeRequest | FloatingRequest
        if looking_at:
            request = FloatingRequest(
                message=message,
                scope=self._scope(looking_at),
                request_id=key,
                conversation_id=conversation_id,
            )
        else:
            request = HomeRequest(message=message, request_id=key, conversation_id=conversation_id)
        await self.device.send(request)
        try:
            async with asyncio.timeout(self._answer_s):
                await self._ended[key].wait()
        except TimeoutError:
            self._told[key].code = "no_answer_in_time"
        return self._told[key]

    def _scope(self, title: str) -> Scope:
        for name, kind in _SCOPES.items():
            for row in self.rows()[name].values():
                if row[TABLES[name].title] == title:
                    return Scope(type=kind, id=row["id"])
        raise LookupError(f"there is no row {title!r}")

    def _notice(self, event: object) -> None:
        frame = event.frame if isinstance(event, FrameReceived) else None
        match frame:
            case StreamStart(request_id=key, conversation_id=place):
                self._told[key].conversation_id = place or ""
            case StreamText(request_id=key, chunk=chunk):
                self._told[key].text += chunk
            case ApprovalRequest(id=approval, request_id=key, summary=summary):
                self._told[key].asked.append(summary)
                answer = self.device.send(ApprovalResponse(id=approval, approved=self.confirms))
                task = asyncio.ensure_future(answer)
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            case StreamEnd(request_id=key, code=code, finish=finish, usage=usage):
                told = self._told[key]
                told.code = code or ("" if finish in (None, "stop") else str(finish))
                told.model_calls = usage.model_calls if usage else 0
                self._ended[key].set()
            case Error(code=code, ref=key) if key is not None:
                self._told[key].code = code
                self._ended[key].set()


@asynccontextmanager
async def participant(
    web: str,
    *,
    rows: Mapping[str, Any] | None = None,
    grants: tuple[Path, ...] = (),
    is_known: bool = True,
    answer_s: float = 600,
) -> AsyncIterator[Participant]:
    """A new user with a connected device that holds `rows`. `is_known`: the memory holds who they are."""
    from tests.factories import somebody

    person = await db.run(lambda: somebody(timezone=str(ZONE)))
    one = Participant(web, person, grants, answer_s)
    if rows:
        one.device.store.seed(rows)
    try:
        if is_known:
            for key, content in FREELANCER.items():
                answer = await one.rest.post("/memory/core", json={"key": key, "content": content})
                answer.raise_for_status()
        async with one.device:
            await one.device.connected()
            yield one
    finally:
        await one.rest.aclose()
