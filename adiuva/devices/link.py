"""A link sends a turn's or run's calls to one device and collects the answers.

Every call has one of three outcomes, which are never confused: a result (or the device's own error), DeviceOffline
(nothing was sent, so nothing happened) or OutcomeUnknown (it was sent and no answer came). A call's id is its
idempotency key: if the connection drops, a write is repeated with the same id on devices that dedupe.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from channels.layers import get_channel_layer
from django.conf import settings
from django.db import Error as DatabaseError

from adiuva.core import db
from adiuva.core.channel_layer import INTERRUPTED, ChannelLayerUnavailable
from adiuva.core.errors import AdiuvaError, Unavailable
from adiuva.devices import connections, presence
from adiuva.devices.calls import batch_item, may_repeat, split_into_batches
from adiuva.devices.codec import MAX_FRAME_BYTES, dump, is_in_protocol, parse
from adiuva.devices.presence import Target
from adiuva.devices.protocol import (
    WRITES,
    AgentAck,
    AgentComplete,
    AgentData,
    AgentManifest,
    AgentRun,
    ClientFrame,
    Sent,
    ToolBatch,
    ToolBatchResult,
    ToolCall,
    ToolResult,
    ToolResultBody,
)
from adiuva.devices.replies import frame_message, run_over_message
from adiuva.devices.run_frame_buffer import RunFrameBuffer

# How often a call is sent before its outcome is unknown.
_MAX_ATTEMPTS: Final = 3
# How often a link looks whether a device that it waits for has connected.
_POLL_S: Final = 0.5
# Single calls in flight at once to a device that takes no batches.
_MAX_CALLS_IN_FLIGHT: Final = 64
# Batches in flight at once to a device that dedupes.
_MAX_BATCHES_IN_FLIGHT: Final = 4
# All batches in flight together take half a frame's bytes.
_MAX_BATCH_BYTES: Final = MAX_FRAME_BYTES // 2 // _MAX_BATCHES_IN_FLIGHT


class DeviceOffline(Unavailable):
    """The device is not connected: nothing was sent, so nothing happened."""

    code = "device_offline"

    def __init__(self) -> None:
        super().__init__("the device is not connected")


class OutcomeUnknown(AdiuvaError):
    """A write was sent and no answer came: it may have happened."""

    code, status = "outcome_unknown", 504

    def __init__(self) -> None:
        super().__init__("the device did not answer in time; it may have happened all the same")


class DeviceUnreachable(DeviceOffline):
    """The channel layer or the database is unavailable. Nothing was sent."""

    code = "device_unreachable"

    def __init__(self) -> None:
        Unavailable.__init__(self, "the server cannot reach the device for now")


class DeviceRefused(AdiuvaError):
    """The device answered a call with an error of its own."""

    code, status = "device_refused", 422


class _NotSent(Exception):
    """Nobody listens on the device's last known channel, or its connection was closing."""


class _Gone(Exception):
    """The connection, or the channel layer between us and it, was lost while an answer was pending."""


class _Silent(Exception):
    """The device did not answer in time."""


@dataclass(slots=True)
class _PendingCall:
    """A call whose answer is pending. `due` is on the loop's clock, `epoch` that of the connection used."""

    future: asyncio.Future[ToolResultBody]
    due: float
    epoch: int


class DeviceLink:
    """An async context manager. Each link has one reply channel, and a task that always drains it.

    `device` is the row id of one of the user's devices; None chooses the one seen last, and the link stays with it once
    something was sent. A call waits up to `wait_s` seconds for the device to connect.
    """

    def __init__(self, user_id: uuid.UUID, device: uuid.UUID | None = None, *, wait_s: float = 0.0) -> None:
        self.user_id, self.device, self.wait_s = user_id, device, wait_s
        self.frames = RunFrameBuffer()
        # Call id → pending call, in the order in which they fall due.
        self._pending: dict[str, _PendingCall] = {}
        self._target: Target | None = None
        self._channel = ""
        self._reader: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        # Run id → epoch of the connection that it was started over.
        self._runs: dict[str, int] = {}
        self._window = asyncio.Semaphore(_MAX_CALLS_IN_FLIGHT)
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._connections = connections.current()

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
                    await self._end_run(run, self._target)
        if self._timer is not None:
            self._timer.cancel()
        self._fail(_Silent)  # calls that are still pending on the closed link
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            get_channel_layer().end_channel(self._channel)

    async def target(self, wait_s: float | None = None, *, not_at: Sequence[str] = ()) -> Target:
        """Where the device is connected, except on the channels `not_at`. Raises DeviceOffline after the wait."""
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
            await asyncio.sleep(_POLL_S)

    async def is_current(self) -> bool:
        """Whether the connection in use is the device's newest. A killed process never sends a disconnect."""
        target = self._target
        if target is None:
            return False
        found = await db.run(presence.find, user_id=self.user_id, pk=target.pk)
        # The target may have changed during the query.
        return found is not None and found.epoch == target.epoch and self._target is target

    # Calls

    async def call(self, call: ToolCall) -> ToolResultBody:
        """Send one call. Raises DeviceOffline or OutcomeUnknown; an error of the device's own is in the result."""
        return await self._settle_one(call)

    async def send_calls(self, calls: Sequence[ToolCall]) -> list[ToolResultBody | AdiuvaError]:
        """Send calls in order; returns an outcome for each. A device that takes batches gets several at once, so that a
        distant device costs one round trip in all and not one per batch.

        Raises DeviceOffline if the device is offline at the start. If it disconnects later, the rest is not sent.
        """
        target = await self.target()
        # A device that does not dedupe gets few at once: if the connection drops, their outcome is unknown.
        in_flight = asyncio.Semaphore(_MAX_BATCHES_IN_FLIGHT if target.can("dedupe") else 1)
        gone: DeviceOffline | None = None

        async def settle(batch: Sequence[ToolCall]) -> list[ToolResultBody | AdiuvaError]:
            nonlocal gone
            async with in_flight:
                if gone is not None:
                    return [gone for _ in batch]
                outcomes = await self._settle_batch(batch)
                if isinstance(last := outcomes[-1], DeviceOffline):
                    gone = last
                return outcomes

        settling = []
        async with asyncio.TaskGroup() as group:
            for batch in split_into_batches(calls, max_bytes=_MAX_BATCH_BYTES):
                settling.append(group.create_task(settle(batch)))
                await asyncio.sleep(0)  # send this batch while the next is prepared
        return [outcome for task in settling for outcome in task.result()]

    async def _settle_one(self, call: ToolCall, attempt: int = 1) -> ToolResultBody:
        """Send a call until it has an outcome. `attempt` is 1 for a call that was never sent."""
        silent_at: list[str] = []
        while True:
            try:
                target = self._target or await self.target(not_at=silent_at)
            except DeviceOffline:
                if attempt > 1 and call.action in WRITES:
                    raise OutcomeUnknown from None
                raise
            if attempt > 1:
                if not may_repeat(call, target):
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
                if attempt == _MAX_ATTEMPTS or not may_repeat(call, target):
                    raise OutcomeUnknown from None
                attempt += 1
            except _Silent:
                raise OutcomeUnknown from None  # the device is connected but silent: repeating would not help
            finally:
                self._pending.pop(call.id, None)
                future.cancel()

    async def _outcome(self, call: ToolCall, attempt: int) -> ToolResultBody | AdiuvaError:
        async with self._window:
            try:
                return await self._settle_one(call, attempt)
            except (DeviceOffline, OutcomeUnknown) as error:
                return error

    async def _settle_batch(self, calls: Sequence[ToolCall]) -> list[ToolResultBody | AdiuvaError]:
        """Send a batch until each call has an outcome. Only calls that may be repeated are."""
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
                    outcomes |= {call.id: OutcomeUnknown() for call in left if not may_repeat(call, target)}
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
                    case _Gone() if attempt < _MAX_ATTEMPTS and may_repeat(call, target):
                        again.append(call)
                    case _:
                        outcomes[call.id] = OutcomeUnknown()
            left, attempt = again, attempt + 1
        return [outcomes[call.id] for call in calls]

    async def _send_batch(
        self, target: Target, calls: Sequence[ToolCall], attempt: int
    ) -> dict[str, ToolResultBody | Exception]:
        """Each call's answer, or why there is none. Raises _NotSent or DeviceUnreachable if nothing was sent."""
        futures = {call.id: self._await_answer(call.id, target.epoch) for call in calls}
        frame = ToolBatch.model_construct(calls=[batch_item(call, attempt) for call in calls])
        try:
            await self._post(target, frame, calls=list(futures))
            # One after the other: the answers arrive together, and a gather would cost a callback for each.
            found = [await _answer(future) for future in futures.values()]
        except DeviceUnreachable:
            raise
        except ConnectionError:
            return dict.fromkeys(futures, _Gone())
        finally:
            for call_id, future in futures.items():
                self._pending.pop(call_id, None)
                future.cancel()
        if found and all(isinstance(answer, _NotSent) for answer in found):
            raise _NotSent
        return dict(zip(futures, found, strict=True))

    def _await_answer(self, call_id: str, epoch: int) -> asyncio.Future[ToolResultBody]:
        """Register a call before it is sent. The future fails with _Silent if the answer takes too long."""
        if call_id in self._pending:
            raise ValueError("a call with this id is in flight")
        future: asyncio.Future[ToolResultBody] = self._loop.create_future()
        # All calls have the same time to answer, so they fall due in order and one timer serves them all.
        due = self._loop.time() + settings.SOCKET["tool_answer_timeout_s"]
        self._pending[call_id] = _PendingCall(future, due, epoch)
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._expire_calls)
        return future

    def _expire_calls(self) -> None:
        now, self._timer = self._loop.time(), None
        for pending in self._pending.values():
            if pending.due > now:
                self._timer = self._loop.call_at(pending.due, self._expire_calls)
                break
            if not pending.future.done():
                pending.future.set_exception(_Silent())

    def _fail(self, reason: type[Exception], *, epoch: int | None = None) -> None:
        """Fail the calls that were sent over the connection `epoch`; without it, all pending calls."""
        for pending in self._pending.values():
            if epoch in (None, pending.epoch) and not pending.future.done():
                pending.future.set_exception(reason())

    def _forget(self, target: Target) -> None:
        if self._target is target:
            self._target = None

    # Frames of a run

    async def start_run(self, frame: AgentRun) -> Target:
        """Ask the device for a run's files; its answers arrive in `frames`. Raises DeviceOffline."""
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
                raise DeviceUnreachable from None  # if the device got the frame after all, its files are refused

    async def notify(self, frame: Sent) -> None:
        """Send a frame that has no answer. Does nothing if the device is gone, or too old for the frame."""
        if isinstance(frame, AgentAck):
            self.frames.acknowledged()  # before sending: the next batch may arrive during it
        target = self._target
        if target is None or not is_in_protocol(type(frame), target.protocol):
            return
        try:
            await self._post(target, frame)
        except _NotSent:
            self._lost(target.epoch)
        except (DeviceUnreachable, ConnectionError):
            self._interrupted()  # the device may wait for this frame forever

    # The way there and back

    async def _post(
        self, target: Target, frame: Sent, *, calls: list[str] | None = None, run: str | None = None
    ) -> None:
        """Send a frame. Raises _NotSent if nobody took it, DeviceUnreachable if it cannot be sent, ConnectionError if
        it may have been sent."""
        text = dump(frame, target.protocol)
        local = self._connections.find(target.pk, target.epoch)
        if local is not None:
            sent: int = await local.deliver(text, self._on_reply, calls=calls or [], run=run)
        else:
            try:
                if self._reader is None:
                    await self._open_reply_channel()
                message = frame_message(text, calls=calls or [], run=run, reply=self._channel)
                sent = await get_channel_layer().send(target.channel, message)
            except ChannelLayerUnavailable:
                raise DeviceUnreachable from None
        if not sent:
            raise _NotSent
        self.device = target.pk

    async def _end_run(self, run: str, target: Target) -> None:
        local = self._connections.find(target.pk, target.epoch)
        if local is not None:
            local.run_over(run)
        else:
            await get_channel_layer().send(target.channel, run_over_message(run))

    async def _open_reply_channel(self) -> None:
        """Open the reply channel before the first frame that may be answered on it."""
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
            await self._on_reply(kind, text, parse(text) if kind in ("result", "frame") else None)

    async def _on_reply(self, kind: str, text: str, frame: ClientFrame | None) -> bool:
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
                    if (pending := self._pending.get(call_id)) and not pending.future.done():
                        pending.future.set_exception(_NotSent())
        return not self._closed

    def _lost(self, epoch: int) -> None:
        """The connection ended. Ignores late notices about a superseded connection."""
        if self._target is not None and self._target.epoch == epoch:
            self._target = None
        self._fail(_Gone, epoch=epoch)
        if epoch in self._runs.values():
            self.frames.end()

    def _interrupted(self) -> None:
        """Messages may have been lost: repeat the pending calls that may be, and end runs, as frames may be missing."""
        self._fail(_Gone)
        if self._runs:
            self.frames.end()

    def _resolve(self, result: ToolResultBody) -> None:
        pending = self._pending.get(result.id)
        if pending is not None and not pending.future.done():
            pending.future.set_result(result)


async def _answer(future: asyncio.Future[ToolResultBody]) -> ToolResultBody | Exception:
    try:
        return await future
    except (_NotSent, _Gone, _Silent) as error:
        return error
