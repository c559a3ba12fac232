"""Link that sends a turn's or run's calls to one device and collects the answers.

Every call has exactly one of three outcomes: a result (or the device's own error), DeviceOffline (nothing was sent, so
nothing happened) or OutcomeUnknown (it was sent and no answer came). A call's id is its idempotency key: if the
connection drops, a write is repeated with the same id on devices that dedupe.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from channels.layers import get_channel_layer
from django.db import Error as DatabaseError

from adiuva.core import db
from adiuva.core.channel_layer import ChannelLayerUnavailable
from adiuva.core.errors import AdiuvaError
from adiuva.devices import connections, presence, tool_results
from adiuva.devices.call_batches import CallBatches
from adiuva.devices.calls import MAX_ATTEMPTS, MAX_SAME_SELECTS, may_repeat
from adiuva.devices.codec import dump_bytes, is_in_protocol
from adiuva.devices.large_selects import select_in_pieces
from adiuva.devices.link_errors import (
    AnswerUnreadable,
    DeviceOffline,
    DeviceRefused,
    DeviceUnreachable,
    OutcomeUnknown,
)
from adiuva.devices.link_inbox import LinkInbox
from adiuva.devices.pending_calls import (
    ConnectionGone,
    NoAnswer,
    NotSent,
    PendingCalls,
)
from adiuva.devices.presence import Target
from adiuva.devices.protocol import (
    WRITES,
    AgentAck,
    AgentRun,
    Sent,
    ToolCall,
    ToolResultBody,
)
from adiuva.devices.reply_routing import frame_message, run_over_message
from adiuva.devices.run_frame_buffer import RunFrameBuffer

# How often a link looks whether the device that it waits for has connected.
_POLL_S: Final = 0.5
# Single calls in flight at once to a device that takes no batches.
_MAX_CALLS_IN_FLIGHT: Final = 64


__all__ = [
    "AnswerUnreadable",
    "DeviceLink",
    "DeviceOffline",
    "DeviceRefused",
    "DeviceUnreachable",
    "OutcomeUnknown",
]


# More than 15 methods: calls, runs and replies share one connection, and each must know when it is lost.
class DeviceLink:
    """Link to a device, to be used as an async context manager.

    `device` is the row id of one of the user's devices; None chooses the device seen last, and the link stays with it
    once something was sent. A call waits up to `wait_s` seconds for the device to connect.
    """

    def __init__(self, user_id: uuid.UUID, device: uuid.UUID | None = None, *, wait_s: float = 0.0) -> None:
        self.user_id, self.device, self.wait_s = user_id, device, wait_s
        self.frames = RunFrameBuffer()
        self.pending = PendingCalls()
        # The connection in use; None until one is found, and after it was lost.
        self.current_target: Target | None = None
        # The id that the device gave itself; None until a call was sent to it.
        self.device_id: str | None = None
        self.closed = False
        self._inbox = LinkInbox(self)
        self._connections = connections.current()
        # Run id → epoch of the connection that it was started over.
        self._runs: dict[str, int] = {}
        self.call_slots = asyncio.Semaphore(_MAX_CALLS_IN_FLIGHT)
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closed = True
        self.frames.close()
        if self.current_target is not None:
            for run in self._runs:
                with contextlib.suppress(ConnectionError):
                    await self._end_run(run, self.current_target)
        self.pending.close()
        self._inbox.close()

    async def target(self, wait_s: float | None = None, *, not_at: Sequence[str] = ()) -> Target:
        """Return where the device is connected, ignoring the channels `not_at`. Raises DeviceOffline after the wait."""
        if self.current_target is not None and self.current_target.channel not in not_at:
            return self.current_target
        if (here := self._target_here()) is not None and here.channel not in not_at:
            self.current_target = here
            return here
        until = self._loop.time() + (self.wait_s if wait_s is None else wait_s)
        while True:
            try:
                found = await db.run(presence.find, user_id=self.user_id, pk=self.device, not_at=not_at)
            except DatabaseError as error:
                raise DeviceUnreachable from error
            if found is not None:
                self.current_target = found
                return found
            if self._loop.time() >= until:
                raise DeviceOffline
            await asyncio.sleep(_POLL_S)

    def _target_here(self) -> Target | None:
        """Return the device's connection in this process. If the device has a newer one elsewhere, this one is about to
        close, as if the device had come back a moment later."""
        found = self._connections.newest(self.device) if self.device is not None else None
        return found.target() if found is not None and found.user_id == self.user_id else None

    async def is_current(self) -> bool:
        """Return whether the connection in use is the device's newest. A killed process never sends a disconnect."""
        target = self.current_target
        if target is None:
            return False
        found = await db.run(presence.find, user_id=self.user_id, pk=target.pk)
        # The target may have changed during the query.
        return found is not None and found.epoch == target.epoch and self.current_target is target

    # Calls

    async def call(self, call: ToolCall, attempt: int = 1, *, retries_large: bool = True) -> ToolResultBody:
        """Send a call until it has an outcome. `attempt` is higher if it was sent before.

        A select whose result is too large for a frame is asked for again in pieces, if `retries_large`: the result may
        be a PartialSelect. Raises DeviceOffline or OutcomeUnknown; an error of the device's own is in the result.
        """
        silent_at: tuple[str, ...] = ()
        while True:
            try:
                target = self.current_target or await self.target(not_at=silent_at)
            except DeviceOffline:
                if attempt > 1 and call.action in WRITES:
                    raise OutcomeUnknown from None
                raise
            if attempt > 1:
                if not may_repeat(call, target):
                    raise OutcomeUnknown
                call = call.model_copy(update={"attempt": attempt})
            future = self.pending.add(call.id, target.epoch)
            try:
                await self.send(target, call, calls=[call.id])
                result = await future
                break
            except NotSent:
                self.forget(target)
                silent_at += (target.channel,)
            except DeviceUnreachable:
                if attempt > 1 and call.action in WRITES:
                    raise OutcomeUnknown from None
                raise
            except (ConnectionGone, ConnectionError):
                if attempt == MAX_SAME_SELECTS and call.action == "select":
                    result = tool_results.failed(call.id, tool_results.TOO_LARGE)
                    break
                if attempt == MAX_ATTEMPTS or not may_repeat(call, target):
                    raise OutcomeUnknown from None
                attempt += 1
            except NoAnswer:
                raise OutcomeUnknown from None  # the device is connected but silent: repeating would not help
            finally:
                self.pending.remove(call.id)
        if result.error is None:
            return result
        if tool_results.is_large_select(call.action, result):
            return await select_in_pieces(self, call) if retries_large else result
        if call.action in WRITES and tool_results.is_unreadable(result):
            raise AnswerUnreadable
        if attempt > 1 and call.action in WRITES and result.code == tool_results.NOT_SAVED:
            raise OutcomeUnknown  # that holds for this attempt; an earlier one may have been saved
        return result

    async def send_calls(self, calls: Sequence[ToolCall]) -> list[ToolResultBody | AdiuvaError]:
        """Send calls in order; return an outcome for each. See CallBatches.

        Raises DeviceOffline if the device is offline at the start. If it disconnects later, the rest is not sent.
        """
        return await CallBatches(self).send(calls)

    def forget(self, target: Target) -> None:
        """Look for the device again before the next frame, because nobody listens at `target`."""
        if self.current_target is target:
            self.current_target = None

    # Frames of a run

    async def start_run(self, frame: AgentRun) -> Target:
        """Ask the device for a run's files; its answers arrive in `frames`. Raises DeviceOffline."""
        silent_at: list[str] = []
        while True:
            target = await self.target(not_at=silent_at)
            self._runs[frame.run_id] = target.epoch
            self.frames.counts_batches = target.protocol >= 2
            try:
                await self.send(target, frame, run=frame.run_id)
                return target
            except NotSent:
                self.forget(target)
                silent_at.append(target.channel)
            except DeviceUnreachable:
                raise
            except ConnectionError:
                raise DeviceUnreachable from None  # if the device got the frame after all, its files are refused

    async def notify(self, frame: Sent) -> None:
        """Send a frame that has no answer. Does nothing if the device is gone, or too old for the frame."""
        if isinstance(frame, AgentAck):
            self.frames.acknowledged()  # before sending, because the next batch may arrive meanwhile
        target = self.current_target
        if target is None or not is_in_protocol(type(frame), target.protocol):
            return
        try:
            await self.send(target, frame)
        except NotSent:
            self.lost(target.epoch)
        except (DeviceUnreachable, ConnectionError):
            self.interrupted()  # the device may wait for this frame forever

    async def _end_run(self, run: str, target: Target) -> None:
        local = self._connections.find(target.pk, target.epoch)
        if local is not None:
            local.run_over(run)
        else:
            await get_channel_layer().send(target.channel, run_over_message(run))

    # Sending and replies

    async def send(
        self, target: Target, frame: Sent, *, calls: Sequence[str] = (), run: str | None = None
    ) -> None:
        """Send a frame; `calls` and `run` name the calls that it makes and the run that it starts.

        Raises NotSent if nobody took it, DeviceUnreachable if it cannot be sent, ConnectionError if it may have been.
        Pending calls may be failed with these reasons later, too.
        """
        text = dump_bytes(frame, target.protocol)
        local = self._connections.find(target.pk, target.epoch)
        if local is not None:
            sent: int = await local.deliver(text, self._inbox, calls=calls, run=run)
        else:
            layer, reply = get_channel_layer(), await self._inbox.open()
            message = frame_message(calls=calls, run=run, reply=reply)
            if calls and self.device is not None:
                layer.post(target.channel, message, text)
                sent = True
            else:  # the link chooses the device by its first frame, so it must know that it arrived
                try:
                    sent = await layer.send(target.channel, message, text)
                except ChannelLayerUnavailable:
                    raise DeviceUnreachable from None
        if not sent:
            raise NotSent
        self.device, self.device_id = target.pk, target.device_id

    def lost(self, epoch: int) -> None:
        """Fail the calls of a connection that ended. Ignores late notices about a superseded connection."""
        if self.current_target is not None and self.current_target.epoch == epoch:
            self.current_target = None
        self.pending.fail(ConnectionGone, epoch=epoch)
        if epoch in self._runs.values():
            self.frames.end()

    def interrupted(self) -> None:
        """Repeat the pending calls that may be repeated, since messages may have been lost, and end runs, which may
        miss frames."""
        self.pending.fail(ConnectionGone)
        if self._runs:
            self.frames.end()
