"""A chat client for tests: a socket that answers tool calls from rows in memory, and collects its streams."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from django.conf import settings
from redis.asyncio import Redis

from tests.factories import Person
from tests.fakes.provider import Call, Provider, Raw, Request, Say
from tests.fakes.provider import stream_events as answer_events
from tests.server_processes import Stack
from tests.socket_client import PATIENCE_S, Socket

Frame = dict[str, Any]
CAPABILITIES = ["dedupe", "batch", "manifest"]


class DeviceRows:
    """A device's tables, as far as chats need them. `calls` holds all tool calls, in order."""

    def __init__(self, **tables: list[Frame]) -> None:
        self.tables = tables
        self.calls: list[Frame] = []
        self.applied: dict[str, Frame] = {}

    def answer(self, call: Frame) -> Frame:
        self.calls.append(call)
        if (known := self.applied.get(call["id"])) is not None:
            return known
        result = {"id": call["id"], **self._do(call)}
        if call["action"] not in {"select", "get", "vector_search"}:
            self.applied[call["id"]] = result
        return result

    def _do(self, call: Frame) -> Frame:
        rows = self.tables.setdefault(call.get("table") or "", [])
        data = call.get("data") or {}
        found = next((row for row in rows if row["id"] == data.get("id")), None)
        match call["action"]:
            case "select":
                return {"rows": rows}
            case "get":
                return {"row": found} if found else {}
            case "insert":
                rows.append({"id": uuid4().hex, **data})
                return {"row": rows[-1]}
            case "update" if found is not None:
                found.update(data["updates"])
                return {"row": found}
            case "delete":
                self.tables[call["table"]] = [row for row in rows if row is not found]
                return {"deleted": found is not None}
            case "vector_upsert":
                return {"ok": True}
            case "vector_search":
                return {"results": []}
        return {"error": "there is no such row"}

    def count(self, action: str) -> int:
        return sum(1 for call in self.calls if call["action"] == action)


@dataclass
class ClientStream:
    """The frames of one request."""

    frames: list[Frame] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def text(self) -> str:
        return "".join(frame["chunk"] for frame in self.frames if frame["type"] == "stream_text")

    @property
    def end(self) -> Frame | None:
        return next((frame for frame in self.frames if frame["type"] == "stream_end"), None)

    @property
    def seq(self) -> int:
        return max((frame["seq"] for frame in self.frames if "seq" in frame), default=-1)

    def kinds(self) -> list[str]:
        return [frame["type"] for frame in self.frames]


class ChatClient:
    """One connection of a device that chats. `answer` None leaves tool calls unanswered (they are in `unanswered`)."""

    def __init__(self, socket: Socket, rows: DeviceRows) -> None:
        self.socket, self.rows = socket, rows
        self.streams: dict[str, ClientStream] = {}
        self.errors: list[Frame] = []
        self.others: list[Frame] = []
        self.silent = False
        self.unanswered: list[Frame] = []
        self._news = asyncio.Event()

    async def ask(self, message: str, request_id: str | None = None, **fields: Any) -> str:
        """Send a home_request, or a floating_request if a scope is given; returns its request id."""
        key = request_id or uuid4().hex
        kind = "floating_request" if "scope" in fields else "home_request"
        await self.socket.send({"type": kind, "message": message, "request_id": key, **fields})
        return key

    async def ended(self, key: str) -> ClientStream:
        await self.until(lambda: key in self.streams and self.streams[key].end is not None)
        return self.streams[key]

    async def say(self, message: str, **fields: Any) -> ClientStream:
        """Ask and wait for the end."""
        return await self.ended(await self.ask(message, **fields))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                self._news.clear()
                await self._news.wait()

    async def catch_up(self) -> None:
        """Answer the calls left unanswered, and all later ones."""
        self.silent = False
        left, self.unanswered = self.unanswered, []
        for frame in left:
            await self._answer(frame)

    async def _answer(self, frame: Frame) -> None:
        if frame["type"] == "tool_call":
            await self.socket.send({"type": "tool_result", **self.rows.answer(frame)})
        else:
            results = [self.rows.answer(call) for call in frame["calls"]]
            await self.socket.send({"type": "tool_batch_result", "results": results})

    async def settled(self) -> None:
        """Wait until what was sent before has reached its turn: the error about one that is not there comes after."""
        ref = uuid4().hex
        await self.socket.send({"type": "request_cancel", "request_id": ref})
        await self.until(lambda: any(error.get("ref") == ref for error in self.errors))
        self.errors = [error for error in self.errors if error.get("ref") != ref]

    async def cancel(self, key: str) -> None:
        await self.socket.send({"type": "request_cancel", "request_id": key})

    async def steer(self, key: str, message: str) -> None:
        await self.socket.send({"type": "request_steer", "request_id": key, "message": message})

    async def decide(self, approval: str, approved: bool) -> None:
        await self.socket.send({"type": "approval_response", "id": approval, "approved": approved})

    async def asked_for(self, key: str, place: int = 0) -> Frame:
        """The approval_request of a turn, the first one if not said otherwise."""

        def asked() -> list[Frame]:
            stream = self.streams.get(key, ClientStream())
            return [frame for frame in stream.frames if frame["type"] == "approval_request"]

        await self.until(lambda: len(asked()) > place)
        return asked()[place]

    async def serve(self) -> None:
        while True:
            frame = await self.socket.receive()
            match frame["type"]:
                case "tool_call" | "tool_batch" if not self.silent:
                    await self._answer(frame)
                case "tool_call" | "tool_batch":
                    self.unanswered.append(frame)
                case "error":
                    self.errors.append(frame)
                case _ if "request_id" in frame:
                    self.streams.setdefault(frame["request_id"], ClientStream()).frames.append(frame)
                case _:
                    self.others.append(frame)
            self._news.set()


@asynccontextmanager
async def connect(
    base: str,
    person: Person,
    rows: DeviceRows | None = None,
    *,
    protocol: int = 2,
    device_id: str = "desk",
    capabilities: list[str] | None = None,
    **hello: Any,
) -> AsyncIterator[ChatClient]:
    """A connected device that chats."""
    async with Socket(base, person.access_token) as socket:
        if protocol >= 2:
            hello["capabilities"] = CAPABILITIES if capabilities is None else capabilities
        await socket.hello(protocol, device_id, **hello)
        client = ChatClient(socket, rows or DeviceRows())
        serving = asyncio.create_task(client.serve())
        try:
            yield client
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


async def wait_for(event: threading.Event) -> None:
    """Wait for what happens in the provider's thread."""
    assert await asyncio.to_thread(event.wait, PATIENCE_S)


async def told_from(client: ChatClient, send: Callable[[], Awaitable[None]]) -> None:
    """Send something that one process tells another; wait until it is on its way."""
    async with Redis.from_url(settings.REDIS_URL) as redis, asyncio.timeout(PATIENCE_S):

        async def told() -> int:
            stats = await redis.info("commandstats")
            return int(stats.get("cmdstat_publish", {}).get("calls", 0))

        before = await told()
        await send()
        while await told() == before:
            await client.settled()


def prompt_messages(body: Frame) -> list[str]:
    """The tool answers in a request to the model."""
    return [message["content"] for message in body["messages"] if message["role"] == "tool"]


def said_words(message: Frame) -> str:
    """A message without what the server puts before a user's words."""
    return re.sub(
        r"\A\[turn (app-\w+)\]\n.*?\n\[turn ends \1\]\n\n", "", message["content"] or "", flags=re.DOTALL
    )


def conversation_words(body: Frame) -> list[str]:
    """What was said, in a request to the model."""
    return [said_words(message) for message in body["messages"] if message["role"] != "system"]


def end_frame(stream: ClientStream) -> Frame:
    """The stream_end of a request; asserts that it is the only one, is last, and that no seq is missing."""
    assert stream.kinds().count("stream_end") == 1
    assert stream.kinds()[-1] == "stream_end"
    counted = [frame["seq"] for frame in stream.frames if "seq" in frame]
    assert counted == list(range(len(counted)))
    return stream.frames[-1]


def small_limits_web(stack: Stack, provider: Provider) -> str:
    """A web process with short timeouts, small limits, and plans, for tests that reach them."""
    return stack.web(
        ADIUVA_ANSWER_S="0.5",
        ADIUVA_DEVICE_WAIT_S="0.3",
        ADIUVA_HISTORY_CHARS="1000",
        ADIUVA_TURN_MODEL_CALLS="4",
        ADIUVA_TURN_DEADLINE_S="5",
        ADIUVA_PLANS="1",
        ADIUVA_MODEL_PRICE="1,2",
    )


async def stored_messages(base: str, person: Person, conversation_id: str) -> list[Frame]:
    """The messages of a conversation, as its user reads them."""

    def read() -> list[Frame]:
        with person.rest(base) as rest:
            found: list[Frame] = rest.get(f"/chat/conversations/{conversation_id}").json()["messages"]
            return found

    return await asyncio.to_thread(read)


def conversation_of(stream: ClientStream) -> str:
    return next(str(frame["conversation_id"]) for frame in stream.frames if frame["type"] == "stream_start")


class FrameTap:
    """A step of the provider: an answer in these pieces that flows as far as the test opens it. What was open when
    the provider looked comes in one write."""

    def __init__(self, pieces: Sequence[str], calls: Sequence[Call] = ()) -> None:
        self.pieces = list(pieces)
        self.calls = calls
        self.asked = 0  # times
        self.reached = threading.Event()
        self.gone = threading.Event()
        self._open = 0

    def open(self, pieces: int | None = None) -> None:
        """Let so many more pieces through; all of them, and the end, if not said how many."""
        self._open = len(self.pieces) + 1 if pieces is None else self._open + pieces

    def __call__(self, request: Request) -> Raw:
        self.asked += 1
        self.reached.set()
        return Raw(self._flow(), content_type="text/event-stream")  # type: ignore[arg-type]  # what aiohttp takes

    async def _flow(self) -> AsyncIterator[bytes]:
        first, *events = answer_events(Say(pieces=self.pieces, calls=self.calls))
        yield first
        passed = 0
        try:
            while passed < len(self.pieces):
                until = min(self._open, len(self.pieces))
                if until > passed:
                    yield b"".join(events[passed:until])
                    passed = until
                else:
                    await asyncio.sleep(0.002)
            while self._open <= len(self.pieces):
                await asyncio.sleep(0.002)
        except (asyncio.CancelledError, GeneratorExit):
            self.gone.set()
            raise
        yield b"".join(events[passed:])


async def dump_redis(redis: Redis) -> bytes:
    """All keys and values of Redis, as it keeps them."""
    found = []
    async for key in redis.scan_iter():
        match await redis.type(key):
            case b"string":
                found += [key, await redis.get(key) or b""]
            case b"list":
                found += [key, *await redis.lrange(key, 0, -1)]
            case b"hash":
                found += [key, *[part for pair in (await redis.hgetall(key)).items() for part in pair]]
            case b"set":
                found += [key, *await redis.smembers(key)]
            case b"zset":
                found += [key, *await redis.zrange(key, 0, -1)]
            case b"none":  # it has just expired
                found.append(key)
            case kind:
                raise AssertionError(f"what is a {kind!r}?")
    return b"\n".join(found)
