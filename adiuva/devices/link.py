"""A turn's or run's line to one device. One reply channel a link, and its reader always drains it.

Every call ends in one of three ways, and they are never confused: a result (or the device's own error), DeviceOffline
(nothing was sent, nothing happened), OutcomeUnknown (sent, no answer). The call's id is its idempotency key: to a
device that dedupes, a write whose connection dropped is sent again with the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self, cast

from channels.layers import get_channel_layer
from django.conf import settings

from adiuva import db
from adiuva.devices import heart, presence
from adiuva.devices.consumer import DeviceConsumer
from adiuva.devices.presence import Target
from adiuva.devices.protocol import (
    MAX_BATCH,
    MAX_FRAME_BYTES,
    WRITES,
    Action,
    AgentComplete,
    AgentData,
    AgentManifest,
    AgentRun,
    ClientFrame,
    Data,
    Sent,
    TableName,
    ToolBatch,
    ToolBatchResult,
    ToolCall,
    ToolCallBody,
    ToolResult,
    ToolResultBody,
    dump,
    is_for,
    parse,
)
from adiuva.errors import AdiuvaError, Unavailable

RunFrame = AgentManifest | AgentData | AgentComplete

_ATTEMPTS: Final = 3
_LOOK_AGAIN_S: Final = 0.5
_WINDOW: Final = 64
_BATCH_BYTES: Final = MAX_FRAME_BYTES // 2
_ANSWER_S: Final[float] = settings.SOCKET["answer_s"]
_DEADLINE_MS: Final = int(_ANSWER_S * 1000)


class DeviceOffline(Unavailable):
    """Nothing was sent, so nothing happened."""

    code = "device_offline"

    def __init__(self) -> None:
        super().__init__("the device is not connected")


class OutcomeUnknown(AdiuvaError):
    """It was sent and no answer came: it may have happened."""

    code, status = "outcome_unknown", 504

    def __init__(self) -> None:
        super().__init__("the device did not answer in time; it may have happened all the same")


class DeviceRefused(AdiuvaError):
    """The device's own error."""

    code, status = "device_refused", 422


class _Gone(Exception):
    """The connection ended while an answer was owed."""


class _Silent(Exception):
    """No answer came in the time that a device has."""


class DeviceLink:
    """Use as an async context manager.

    `device` names one of the user's devices; None takes whichever was seen last. A call waits up to `wait_s` for
    the device to be connected.
    """

    def __init__(self, user_id: uuid.UUID, device: uuid.UUID | None = None, *, wait_s: float = 0.0) -> None:
        self.user_id, self.device, self.wait_s = user_id, device, wait_s
        self.frames: asyncio.Queue[RunFrame | None] = asyncio.Queue()  # None: the connection ended
        self._answers: dict[str, asyncio.Future[ToolResultBody]] = {}
        self._target: Target | None = None
        self._channel = ""
        self._reader: asyncio.Task[None] | None = None
        self._runs: set[str] = set()
        self._window = asyncio.Semaphore(_WINDOW)
        self._due: deque[tuple[float, asyncio.Future[ToolResultBody]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._heart = heart.of_this_loop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._target is not None:
            for run in self._runs:
                with contextlib.suppress(OSError):
                    await self._tell_run_over(run, self._target)
        if self._timer is not None:
            self._timer.cancel()
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader

    async def target(self, wait_s: float | None = None) -> Target:
        """Where the device is connected. Raise DeviceOffline if it is not within the wait."""
        if self._target is not None:
            return self._target
        loop = asyncio.get_running_loop()
        until = loop.time() + (self.wait_s if wait_s is None else wait_s)
        while True:
            found = await db.run(presence.find, user_id=self.user_id, pk=self.device)
            if found is not None:
                self._target = found
                return found
            if loop.time() >= until:
                raise DeviceOffline
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def still_there(self) -> bool:
        """Whether the connection that was found is the device's newest. A killed process says no farewell."""
        if self._target is None:
            return False
        found = await db.run(presence.find, user_id=self.user_id, pk=self._target.pk)
        return found is not None and found.epoch == self._target.epoch

    # Calls

    async def call(
        self,
        action: Action,
        table: TableName | None = None,
        *,
        data: Data | None = None,
        filters: Data | None = None,
        vector: list[float] | None = None,
        limit: int | None = None,
        call_id: str | None = None,
    ) -> ToolResultBody:
        """One tool call. Raise DeviceOffline or OutcomeUnknown; the device's own error is in the result."""
        call = ToolCall(
            id=call_id or uuid.uuid4().hex,
            action=action,
            table=table,
            data=data,
            filters=filters,
            vector=vector,
            limit=limit,
            attempt=1,
            deadline_ms=_DEADLINE_MS,
        )
        return await self._settle_one(call)

    async def send_calls(self, calls: Sequence[ToolCall]) -> list[ToolResultBody | AdiuvaError]:
        """Many calls, applied in order; an outcome each. In batches to a device that takes them."""
        target = await self.target()
        if target.can("batch") and target.protocol >= 2:
            outcomes: list[ToolResultBody | AdiuvaError] = []
            for batch in _batches(calls):
                outcomes += await self._settle_batch(batch)
            return outcomes
        return await asyncio.gather(*(self._windowed(call) for call in calls))

    async def _windowed(self, call: ToolCall) -> ToolResultBody | AdiuvaError:
        async with self._window:
            try:
                return await self._settle_one(call)
            except (DeviceOffline, OutcomeUnknown) as error:
                return error

    async def _settle_one(self, call: ToolCall) -> ToolResultBody:
        attempt = 1
        while True:
            try:
                target = self._target or await self.target()
            except DeviceOffline:
                if attempt > 1 and call.action in WRITES:
                    raise OutcomeUnknown from None
                raise
            future = self._await_answer(call.id)
            try:
                await self._post(target, call, calls=[call.id])
                return await future
            except _Gone:
                if attempt == _ATTEMPTS or not _may_repeat(call, target):
                    raise OutcomeUnknown from None
            except _Silent:
                raise OutcomeUnknown from None  # connected and silent: once more would not help
            finally:
                self._answers.pop(call.id, None)
            attempt += 1
            call = call.model_copy(update={"attempt": attempt})

    async def _settle_batch(self, calls: Sequence[ToolCall]) -> list[ToolResultBody | AdiuvaError]:
        """Send a batch until each call has an outcome. What may not be repeated is not."""
        outcomes: dict[str, ToolResultBody | AdiuvaError] = {}
        left = list(calls)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                target = await self.target()
            except DeviceOffline as offline:
                for call in left:
                    sent_before = attempt > 1 and call.action in WRITES
                    outcomes[call.id] = OutcomeUnknown() if sent_before else offline
                break
            futures = {call.id: self._await_answer(call.id) for call in left}
            bodies = [_body(call, attempt) for call in left]
            try:
                await self._post(target, ToolBatch.model_construct(calls=bodies), calls=list(futures))
                await asyncio.wait(futures.values())
            finally:
                for call_id in futures:
                    self._answers.pop(call_id, None)
            again = []
            for call in left:
                match futures[call.id].exception():
                    case None:
                        outcomes[call.id] = futures[call.id].result()
                    case _Gone() if attempt < _ATTEMPTS and _may_repeat(call, target):
                        again.append(call)
                    case _:
                        outcomes[call.id] = OutcomeUnknown()
            if not (left := again):
                break
        return [outcomes[call.id] for call in calls]

    def _await_answer(self, call_id: str) -> asyncio.Future[ToolResultBody]:
        """Registered before the call leaves. It fails with _Silent after the time a device has to answer."""
        future: asyncio.Future[ToolResultBody] = self._loop.create_future()
        self._answers[call_id] = future
        # All have the same time, so they fall due in order, and one timer serves them all.
        due = self._loop.time() + _ANSWER_S
        while self._due and self._due[0][1].done():
            self._due.popleft()
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._give_up)
        self._due.append((due, future))
        return future

    def _give_up(self) -> None:
        now = self._loop.time()
        while self._due and (self._due[0][1].done() or self._due[0][0] <= now):
            _, future = self._due.popleft()
            if not future.done():
                future.set_exception(_Silent())
        self._timer = self._loop.call_at(self._due[0][0], self._give_up) if self._due else None

    # Frames of a run

    async def start_run(self, frame: AgentRun) -> Target:
        """Ask the device for a run's files; what it answers comes in `frames`."""
        target = await self.target()
        self._runs.add(frame.run_id)
        await self._post(target, frame, run=frame.run_id)
        return target

    async def tell(self, frame: Sent) -> None:
        """Send a frame that nobody waits for. A device that is gone, or too old for it, hears nothing."""
        if self._target is not None and is_for(type(frame), self._target.protocol):
            await self._post(self._target, frame)

    # The way there and back

    async def _post(
        self, target: Target, frame: Sent, *, calls: list[str] | None = None, run: str | None = None
    ) -> None:
        text = dump(frame, target.protocol)
        near = self._heart.find(target.pk, target.epoch)
        if near is not None:
            await cast(DeviceConsumer, near).deliver(text, self._answered, calls=calls or [], run=run)
            return
        await self._listen()
        message = {"type": "frame", "text": text, "calls": calls or [], "run": run, "reply": self._channel}
        await get_channel_layer().send(target.channel, message)

    async def _tell_run_over(self, run: str, target: Target) -> None:
        near = self._heart.find(target.pk, target.epoch)
        if near is not None:
            cast(DeviceConsumer, near).run_over(run)
        else:
            await get_channel_layer().send(target.channel, {"type": "run_over", "run": run})

    async def _listen(self) -> None:
        """Take the reply channel before the first frame that may be answered on it."""
        if self._reader is None:
            layer = get_channel_layer()
            self._channel = await layer.new_channel("reply.")
            self._reader = asyncio.create_task(self._read(layer), name="link reader")

    async def _read(self, layer: Any) -> None:
        while True:
            message = await layer.receive(self._channel)
            frame = parse(message["text"]) if message["text"] else None
            await self._answered(message["type"], "", frame)

    async def _answered(self, kind: str, text: str, frame: ClientFrame | None) -> None:
        match frame:
            case ToolResult():
                self._resolve(frame)
            case ToolBatchResult():
                for result in frame.results:
                    self._resolve(result)
            case AgentManifest() | AgentData() | AgentComplete():
                self.frames.put_nowait(frame)
            case None if kind == "gone":
                self._target = None
                for future in self._answers.values():
                    if not future.done():
                        future.set_exception(_Gone())
                if self._runs:
                    self.frames.put_nowait(None)

    def _resolve(self, result: ToolResultBody) -> None:
        future = self._answers.get(result.id)
        if future is not None and not future.done():
            future.set_result(result)


def _may_repeat(call: ToolCall, target: Target) -> bool:
    return call.action not in WRITES or target.can("dedupe")


def _body(call: ToolCall, attempt: int) -> ToolCallBody:
    fields = {name: getattr(call, name) for name in ToolCallBody.model_fields}
    return ToolCallBody.model_construct(**fields | {"attempt": attempt, "deadline_ms": _DEADLINE_MS})


def _batches(calls: Sequence[ToolCall]) -> Iterator[list[ToolCall]]:
    """In order, each small enough for a frame."""
    batch: list[ToolCall] = []
    size = 0
    for call in calls:
        weight = len(dump(call).encode())
        if batch and (len(batch) == MAX_BATCH or size + weight > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(call)
        size += weight
    if batch:
        yield batch
