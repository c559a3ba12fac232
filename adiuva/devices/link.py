"""A turn's or run's line to one device. One reply channel a link, and its reader always drains it.

Every call ends in one of three ways, and they are never confused: a result (or the device's own error), DeviceOffline
(nothing was sent, nothing happened), OutcomeUnknown (sent, no answer). The call's id is its idempotency key: to a
device that dedupes, a write whose connection dropped is sent again with the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, cast

from channels.layers import get_channel_layer
from django.conf import settings
from django.db import Error as DatabaseError

from adiuva.core import db
from adiuva.core.channel_layer import INTERRUPTED, ChannelLayerUnavailable
from adiuva.core.errors import AdiuvaError, Unavailable
from adiuva.devices import connections, presence
from adiuva.devices.codec import MAX_FRAME_BYTES, dump, is_in_protocol, parse
from adiuva.devices.consumer import DeviceConsumer
from adiuva.devices.presence import Target
from adiuva.devices.protocol import (
    MAX_BATCH,
    WRITES,
    Action,
    AgentAck,
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
)
from adiuva.devices.run_frame_buffer import RunFrameBuffer

_ATTEMPTS: Final = 3
_LOOK_AGAIN_S: Final = 0.5
_WINDOW: Final = 64
_BATCHES: Final = 4  # under way at once, to a device that dedupes
_BATCH_BYTES: Final = MAX_FRAME_BYTES // 2 // _BATCHES  # of all that are under way, half a frame
_ANSWER_S: Final[float] = settings.SOCKET["tool_answer_timeout_s"]
DEADLINE_MS: Final = int(_ANSWER_S * 1000)


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


class DeviceUnreachable(DeviceOffline):
    """What leads to the device is away. Nothing was sent all the same."""

    code = "device_unreachable"

    def __init__(self) -> None:
        Unavailable.__init__(self, "the server cannot reach the device for now")


class DeviceRefused(AdiuvaError):
    """The device's own error."""

    code, status = "device_refused", 422


class _NotSent(Exception):
    """Nobody listens where the device was last connected, or its connection was ending."""


class _Gone(Exception):
    """The connection, or the way to it, was lost while an answer was owed."""


class _Silent(Exception):
    """No answer came in the time that a device has."""


@dataclass(slots=True)
class _Waiting:
    """A call that an answer is owed for."""

    future: asyncio.Future[ToolResultBody]
    due: float
    epoch: int  # of the connection that it was sent over


class DeviceLink:
    """Use as an async context manager.

    `device` names one of the user's devices; None takes whichever was seen last, and stays with it once something was
    sent. A call waits up to `wait_s` for the device to be connected.
    """

    def __init__(self, user_id: uuid.UUID, device: uuid.UUID | None = None, *, wait_s: float = 0.0) -> None:
        self.user_id, self.device, self.wait_s = user_id, device, wait_s
        self.frames = RunFrameBuffer()
        self._answers: dict[str, _Waiting] = {}  # in the order in which they fall due
        self._target: Target | None = None
        self._channel = ""
        self._reader: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._runs: dict[str, int] = {}  # run id → epoch of its connection
        self._window = asyncio.Semaphore(_WINDOW)
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._heart = connections.current()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        self.frames.close()
        if self._target is not None:
            for run in self._runs:
                with contextlib.suppress(ConnectionError):
                    await self._tell_run_over(run, self._target)
        if self._timer is not None:
            self._timer.cancel()
        self._fail(_Silent)  # whoever still waits on a link that closed
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            get_channel_layer().end_channel(self._channel)

    async def target(self, wait_s: float | None = None, *, not_at: Sequence[str] = ()) -> Target:
        """Where the device is connected. Raise DeviceOffline if it is not within the wait."""
        if self._target is not None and self._target.channel not in not_at:
            return self._target
        until = self._loop.time() + (self.wait_s if wait_s is None else wait_s)
        while True:
            try:
                found = await db.run(presence.find, user_id=self.user_id, pk=self.device, not_at=not_at)
            except DatabaseError as error:
                raise DeviceUnreachable from error
            if found is not None:
                self._target = found
                return found
            if self._loop.time() >= until:
                raise DeviceOffline
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def still_there(self) -> bool:
        """Whether the connection that was found is the device's newest. A killed process says no farewell."""
        target = self._target
        if target is None:
            return False
        found = await db.run(presence.find, user_id=self.user_id, pk=target.pk)
        # It may have been lost while we asked.
        return found is not None and found.epoch == target.epoch and self._target is target

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
            deadline_ms=DEADLINE_MS,
        )
        return await self._settle_one(call)

    async def send_calls(self, calls: Sequence[ToolCall]) -> list[ToolResultBody | AdiuvaError]:
        """Many calls, sent in order; an outcome each. In batches to a device that takes them, some of them under way at
        once: a device far away costs one round trip and not one a batch.

        Raise DeviceOffline when it is not there to begin with. When it goes, what follows is not sent either.
        """
        target = await self.target()
        # Of what is under way when the connection drops, a device that does not dedupe leaves the outcome unknown.
        under_way = asyncio.Semaphore(_BATCHES if target.can("dedupe") else 1)
        gone: DeviceOffline | None = None

        async def settle(batch: Sequence[ToolCall]) -> list[ToolResultBody | AdiuvaError]:
            nonlocal gone
            async with under_way:
                if gone is not None:
                    return [gone for _ in batch]
                outcomes = await self._settle_batch(batch)
                if isinstance(last := outcomes[-1], DeviceOffline):
                    gone = last
                return outcomes

        settling = []
        async with asyncio.TaskGroup() as group:
            for batch in _batches(calls):
                settling.append(group.create_task(settle(batch)))
                await asyncio.sleep(0)  # it leaves while the next is made
        return [outcome for task in settling for outcome in task.result()]

    async def _settle_one(self, call: ToolCall, attempt: int = 1) -> ToolResultBody:
        """`attempt` is one more than how often the call was sent before."""
        silent_at: list[str] = []
        while True:
            try:
                target = self._target or await self.target(not_at=silent_at)
            except DeviceOffline:
                if attempt > 1 and call.action in WRITES:
                    raise OutcomeUnknown from None
                raise
            if attempt > 1:
                if not _may_repeat(call, target):
                    raise OutcomeUnknown
                call = call.model_copy(update={"attempt": attempt})
            future = self._await_answer(call.id, target.epoch)
            try:
                await self._post(target, call, calls=[call.id])
                return await future
            except _NotSent:
                self._forget(target)
                silent_at.append(target.channel)
            except DeviceUnreachable:
                if attempt > 1 and call.action in WRITES:
                    raise OutcomeUnknown from None
                raise
            except (_Gone, ConnectionError):
                if attempt == _ATTEMPTS or not _may_repeat(call, target):
                    raise OutcomeUnknown from None
                attempt += 1
            except _Silent:
                raise OutcomeUnknown from None  # connected and silent: once more would not help
            finally:
                self._answers.pop(call.id, None)
                future.cancel()

    async def _outcome(self, call: ToolCall, attempt: int) -> ToolResultBody | AdiuvaError:
        async with self._window:
            try:
                return await self._settle_one(call, attempt)
            except (DeviceOffline, OutcomeUnknown) as error:
                return error

    async def _settle_batch(self, calls: Sequence[ToolCall]) -> list[ToolResultBody | AdiuvaError]:
        """Send a batch until each call has an outcome. What may not be repeated is not."""
        outcomes: dict[str, ToolResultBody | AdiuvaError] = {}
        left, attempt, silent_at = list(calls), 1, list[str]()
        while left:
            try:
                target = self._target or await self.target(not_at=silent_at)
                if target.protocol < 2 or not target.can("batch"):
                    found = await asyncio.gather(*(self._outcome(call, attempt) for call in left))
                    outcomes |= {call.id: outcome for call, outcome in zip(left, found, strict=True)}
                    break
                if attempt > 1:
                    outcomes |= {call.id: OutcomeUnknown() for call in left if not _may_repeat(call, target)}
                    left = [call for call in left if call.id not in outcomes]
                answers = await self._send_batch(target, left, attempt)
            except DeviceOffline as offline:
                for call in left:
                    sent_before = attempt > 1 and call.action in WRITES
                    outcomes[call.id] = OutcomeUnknown() if sent_before else offline
                break
            except _NotSent:
                self._forget(target)
                silent_at.append(target.channel)
                continue
            again = []
            for call in left:
                match answers[call.id]:
                    case ToolResultBody() as result:
                        outcomes[call.id] = result
                    case _Gone() if attempt < _ATTEMPTS and _may_repeat(call, target):
                        again.append(call)
                    case _:
                        outcomes[call.id] = OutcomeUnknown()
            left, attempt = again, attempt + 1
        return [outcomes[call.id] for call in calls]

    async def _send_batch(
        self, target: Target, calls: Sequence[ToolCall], attempt: int
    ) -> dict[str, ToolResultBody | Exception]:
        """The answer to each, or why there is none. Raise _NotSent or DeviceUnreachable when nothing was sent."""
        futures = {call.id: self._await_answer(call.id, target.epoch) for call in calls}
        frame = ToolBatch.model_construct(calls=[_body(call, attempt) for call in calls])
        try:
            await self._post(target, frame, calls=list(futures))
            # One after the other: they come together, and a gather costs a callback for each.
            found = [await _answer(future) for future in futures.values()]
        except DeviceUnreachable:
            raise
        except ConnectionError:
            return dict.fromkeys(futures, _Gone())
        finally:
            for call_id, future in futures.items():
                self._answers.pop(call_id, None)
                future.cancel()
        if found and all(isinstance(answer, _NotSent) for answer in found):
            raise _NotSent
        return dict(zip(futures, found, strict=True))

    def _await_answer(self, call_id: str, epoch: int) -> asyncio.Future[ToolResultBody]:
        """Registered before the call leaves. It fails with _Silent after the time a device has to answer."""
        if call_id in self._answers:
            raise ValueError("a call with this id is under way")
        future: asyncio.Future[ToolResultBody] = self._loop.create_future()
        # All have the same time, so they fall due in order, and one timer serves them all.
        due = self._loop.time() + _ANSWER_S
        self._answers[call_id] = _Waiting(future, due, epoch)
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._give_up)
        return future

    def _give_up(self) -> None:
        now, self._timer = self._loop.time(), None
        for waiting in self._answers.values():
            if waiting.due > now:
                self._timer = self._loop.call_at(waiting.due, self._give_up)
                break
            if not waiting.future.done():
                waiting.future.set_exception(_Silent())

    def _fail(self, reason: type[Exception], *, epoch: int | None = None) -> None:
        """End the waiting of those whose connection it was; of all, when none is named."""
        for waiting in self._answers.values():
            if epoch in (None, waiting.epoch) and not waiting.future.done():
                waiting.future.set_exception(reason())

    def _forget(self, target: Target) -> None:
        if self._target is target:
            self._target = None

    # Frames of a run

    async def start_run(self, frame: AgentRun) -> Target:
        """Ask the device for a run's files; what it answers comes in `frames`. Raise DeviceOffline."""
        silent_at: list[str] = []
        while True:
            target = await self.target(not_at=silent_at)
            self._runs[frame.run_id] = target.epoch
            try:
                await self._post(target, frame, run=frame.run_id)
                return target
            except _NotSent:
                self._forget(target)
                silent_at.append(target.channel)
            except DeviceUnreachable:
                raise
            except ConnectionError:
                raise DeviceUnreachable from None  # should it hear of it: nobody will take its files

    async def tell(self, frame: Sent) -> None:
        """Send a frame that nobody waits for. A device that is gone, or too old for it, hears nothing."""
        if isinstance(frame, AgentAck):
            self.frames.acknowledged()  # first: the next batch may be here before this is said
        target = self._target
        if target is None or not is_in_protocol(type(frame), target.protocol):
            return
        try:
            await self._post(target, frame)
        except _NotSent:
            self._lost(target.epoch)
        except (DeviceUnreachable, ConnectionError):
            self._interrupted()  # the device may wait for this frame for ever

    # The way there and back

    async def _post(
        self, target: Target, frame: Sent, *, calls: list[str] | None = None, run: str | None = None
    ) -> None:
        """Raise _NotSent when it did not leave, DeviceUnreachable when nothing can, ConnectionError if it may have."""
        text = dump(frame, target.protocol)
        near = self._heart.find(target.pk, target.epoch)
        if near is not None:
            consumer = cast(DeviceConsumer, near)
            heard: int = await consumer.deliver(text, self._answered, calls=calls or [], run=run)
        else:
            try:
                if self._reader is None:
                    await self._listen()
                message = {
                    "type": "frame",
                    "text": text,
                    "calls": calls or [],
                    "run": run,
                    "reply": self._channel,
                }
                heard = await get_channel_layer().send(target.channel, message)
            except ChannelLayerUnavailable:
                raise DeviceUnreachable from None
        if not heard:
            raise _NotSent
        self.device = target.pk

    async def _tell_run_over(self, run: str, target: Target) -> None:
        near = self._heart.find(target.pk, target.epoch)
        if near is not None:
            cast(DeviceConsumer, near).run_over(run)
        else:
            await get_channel_layer().send(target.channel, {"type": "run_over", "run": run})

    async def _listen(self) -> None:
        """Take the reply channel before the first frame that may be answered on it."""
        async with self._opening:
            if self._reader is None:
                layer = get_channel_layer()
                try:
                    self._channel = await layer.new_channel("reply.")
                except ConnectionError:
                    raise DeviceUnreachable from None
                self._reader = asyncio.create_task(self._read(layer), name="link reader")

    async def _read(self, layer: Any) -> None:
        while True:
            message = await layer.receive(self._channel)
            if message is INTERRUPTED:
                self._interrupted()
                continue
            kind, text = message["type"], message["text"]
            await self._answered(kind, text, parse(text) if kind in ("result", "frame") else None)

    async def _answered(self, kind: str, text: str, frame: ClientFrame | None) -> bool:
        match frame:
            case ToolResult():
                self._resolve(frame)
            case ToolBatchResult():
                for result in frame.results:
                    self._resolve(result)
            case AgentManifest() | AgentData() | AgentComplete():
                self.frames.put(frame, text)
            case None if kind == "gone":
                self._lost(int(text))
            case None if kind == "unsent":
                for call_id in text.split("\n"):
                    if (waiting := self._answers.get(call_id)) and not waiting.future.done():
                        waiting.future.set_exception(_NotSent())
        return not self._closed

    def _lost(self, epoch: int) -> None:
        """The connection ended. A late word about an older one disturbs nothing on the new one."""
        if self._target is not None and self._target.epoch == epoch:
            self._target = None
        self._fail(_Gone, epoch=epoch)
        if epoch in self._runs.values():
            self.frames.end()

    def _interrupted(self) -> None:
        """Something may have been lost on the way: answers are asked for again, and a run would have holes."""
        self._fail(_Gone)
        if self._runs:
            self.frames.end()

    def _resolve(self, result: ToolResultBody) -> None:
        waiting = self._answers.get(result.id)
        if waiting is not None and not waiting.future.done():
            waiting.future.set_result(result)


def _may_repeat(call: ToolCall, target: Target) -> bool:
    return call.action not in WRITES or target.can("dedupe")


async def _answer(future: asyncio.Future[ToolResultBody]) -> ToolResultBody | Exception:
    try:
        return await future
    except (_NotSent, _Gone, _Silent) as error:
        return error


def _body(call: ToolCall, attempt: int) -> ToolCallBody:
    """In a batch only the fields of the body are written, not the call's own type."""
    if call.attempt == attempt and call.deadline_ms == DEADLINE_MS:
        return call
    return call.model_copy(update={"attempt": attempt, "deadline_ms": DEADLINE_MS})


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
