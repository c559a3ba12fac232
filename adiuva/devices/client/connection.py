"""Open socket of a device: the hello, pings, tool calls one after the other, agent runs concurrently.

The reader never waits for a send or for the disk, so that the two sides cannot deadlock. One task applies the calls, in
the order they came. If the store is a file, it works in a thread, since a commit waits for the disk and a vector search
takes milliseconds; a store in memory answers faster than a thread starts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
import structlog
from pydantic import ValidationError

from adiuva.core.logging import log_failure
from adiuva.devices.client import events
from adiuva.devices.client.agent_run import Upload
from adiuva.devices.client.errors import DeviceError
from adiuva.devices.client.file_access import ReadableArea
from adiuva.devices.client.store import Call, Row, Store
from adiuva.devices.codec import MAX_FRAME_BYTES, BadFrame, decode, dump, server_frames
from adiuva.devices.protocol import (
    WRITES,
    AgentAck,
    AgentCancel,
    AgentComplete,
    AgentFetch,
    AgentRun,
    DeviceHello,
    Error,
    HelloAck,
    Ping,
    Pong,
    Received,
    Sent,
)
from adiuva.devices.tool_results import TOO_LARGE

log = structlog.get_logger(__name__)

HELLO_ACK_TIMEOUT_S: Final = 15.0
DEFAULT_SILENCE_S: Final = 75.0  # until the server says how often it pings
_PINGS_MISSED: Final = 2.5
_RESULT_ROOM: Final = MAX_FRAME_BYTES - 1024

Emit = Callable[[events.Event], None]


class FrameTooLong(DeviceError):
    code = "frame_too_large"


class Connection:
    def __init__(
        self,
        socket: aiohttp.ClientWebSocketResponse,
        hello: DeviceHello,
        store: Store,
        grants: Sequence[Path],
        emit: Emit,
    ) -> None:
        self._socket, self._hello, self._store, self._grants, self._emit = socket, hello, store, grants, emit
        self._protocol = hello.protocol
        self._max_inflight = 1
        self._silence_s = DEFAULT_SILENCE_S if self._protocol == 1 else HELLO_ACK_TIMEOUT_S
        self._calls: asyncio.Queue[tuple[bool, Sequence[Call]]] = asyncio.Queue()
        self._uploads: dict[str, tuple[Upload, asyncio.Task[None]]] = {}
        self._tasks = asyncio.TaskGroup()

    async def serve(self) -> str:
        """Serve until the socket closes or falls silent. Returns in words how it ended."""
        await self.send(self._hello)
        if self._protocol == 1:
            self._emit(events.Connected(1, None))
        async with self._tasks:
            applier = self._tasks.create_task(self._apply_calls())
            try:
                return await self._read()
            finally:
                applier.cancel()
                for _, task in self._uploads.values():
                    task.cancel()

    async def send(self, frame: Received) -> None:
        """Send a frame. Raises FrameTooLong, or ConnectionError once the socket is closed."""
        await self._send_text(dump(frame, self._protocol))

    async def _send_text(self, text: str) -> None:
        if len(text) * 4 > MAX_FRAME_BYTES and len(text.encode()) > MAX_FRAME_BYTES:
            raise FrameTooLong(f"A frame is at most {MAX_FRAME_BYTES} bytes.")
        await self._socket.send_str(text)

    # ── Reading ─────────────────────────────────────────────────────────────────────────────────────────

    async def _read(self) -> str:
        while True:
            try:
                message = await self._socket.receive(timeout=self._silence_s)
            except TimeoutError:
                return "the server fell silent"
            if message.type is aiohttp.WSMsgType.TEXT:
                self._take(message.data)
            elif message.type is not aiohttp.WSMsgType.BINARY:
                return "the connection was lost"

    def _take(self, text: str) -> None:
        """Handle one frame. Frames that this device does not understand are ignored, unless an answer is expected."""
        try:
            content = decode(text)
            match content.get("type"):
                case "tool_call":
                    self._take_calls(False, [content])
                case "tool_batch":
                    self._take_calls(True, content.get("calls"))
                case _:
                    self._handle(server_frames.validate_python(content))
        except (BadFrame, ValidationError) as bad:
            log.debug("frame.not_understood", error=type(bad).__name__)

    def _take_calls(self, is_batch: bool, calls: Any) -> None:
        """Queue the calls. The store checks them, so that a wrong call gets an answer if it has an id."""
        if isinstance(calls, list):
            named = [call for call in calls if isinstance(call, dict) and isinstance(call.get("id"), str)]
            self._calls.put_nowait((is_batch, named))

    def _handle(self, frame: Sent) -> None:
        match frame:
            case Ping():
                self._tasks.create_task(self._pong())
                return
            case HelloAck():
                self._max_inflight = max(1, frame.max_inflight)
                self._silence_s = frame.ping_s * _PINGS_MISSED
                self._protocol = frame.protocol
                self._emit(events.Connected(frame.protocol, frame.session_id))
            case AgentRun():
                self._start(frame)
            case AgentCancel() if running := self._uploads.get(frame.run_id):
                running[1].cancel()
            case Error(code="run_not_active") if running := self._uploads.get(frame.ref or ""):
                running[1].cancel()  # the server gave the run up
            case AgentFetch() if running := self._uploads.get(frame.run_id):
                running[0].fetch(frame)
            case AgentAck() if running := self._uploads.get(frame.run_id):
                running[0].acknowledge(frame)
        self._emit(events.FrameReceived(frame))

    async def _pong(self) -> None:
        try:
            await self.send(Pong())
        except ConnectionError:
            return  # the reader notices the lost connection too

    # ── Tool calls ──────────────────────────────────────────────────────────────────────────────────────

    async def _apply_calls(self) -> None:
        while True:
            is_batch, calls = await self._calls.get()
            if self._store.on_disk:
                results = await asyncio.to_thread(self._store.apply, calls)
            else:
                results = self._store.apply(calls)
            writes = [
                result for call, result in zip(calls, results, strict=True) if call.get("action") in WRITES
            ]
            refused = sum("error" in result for result in writes)
            self._emit(events.Applied(tuple(call["id"] for call in calls), len(writes), refused))
            try:
                for text in _answers(is_batch, results):
                    await self._send_text(text)
            except ConnectionError:
                return  # the store remembers what it applied: the server asks again

    # ── Agent runs ──────────────────────────────────────────────────────────────────────────────────────

    def _start(self, frame: AgentRun) -> None:
        if running := self._uploads.get(frame.run_id):
            running[1].cancel()  # the server starts the run again
        upload = Upload(
            frame,
            ReadableArea(self._grants, frame.config.paths),
            self._store,
            self.send,
            with_manifest=self._protocol > 1 and "manifest" in self._hello.capabilities,
            max_inflight=self._max_inflight if self._protocol > 1 else None,
        )
        task = self._tasks.create_task(self._upload(upload))
        task.add_done_callback(lambda _: self._run_ended(upload))
        self._uploads[frame.run_id] = upload, task
        self._emit(events.RunStarted(frame.run_id, frame.agent_id, len(frame.config.paths)))

    async def _upload(self, upload: Upload) -> None:
        try:
            await upload.run()
        except* ConnectionError:
            log.debug("run.connection_lost", run_id=upload.run_id)
        except* Exception as error:
            log_failure("run.failed", error, logger=log, run_id=upload.run_id)
            reason = "the device failed while it read the files"
            with contextlib.suppress(ConnectionError):
                await self.send(AgentComplete(run_id=upload.run_id, errors=[reason]))

    def _run_ended(self, upload: Upload) -> None:
        if self._uploads.get(upload.run_id, (None,))[0] is upload:
            del self._uploads[upload.run_id]
        problems = tuple(upload.problems)
        self._emit(
            events.RunEnded(upload.run_id, upload.completed, len(upload.found), len(upload.sent), problems)
        )


def _answers(is_batch: bool, results: Sequence[Row]) -> list[str]:
    """Return the frames that carry these results: one, unless together they are too long for it."""
    dumped = [_dumped(result) for result in results]
    if not is_batch:
        return [f'{{"type":"tool_result",{result[1:]}' for result in dumped]
    groups: list[list[str]] = [[]]
    used = 0
    for result in dumped:
        size = len(result.encode()) + 1
        if groups[-1] and used + size > _RESULT_ROOM:
            groups.append([])
            used = 0
        groups[-1].append(result)
        used += size
    return [f'{{"type":"tool_batch_result","results":[{",".join(group)}]}}' for group in groups]


def _dumped(result: Row) -> str:
    dumped = orjson.dumps(result)
    if len(dumped) > _RESULT_ROOM:
        error = {"error": "the result is too large for one frame", "code": TOO_LARGE}
        dumped = orjson.dumps({"id": result["id"], **error})
    return dumped.decode()
