"""Calls that were sent to a device and wait for their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from django.conf import settings

from adiuva.devices.link_errors import DeviceUnreachable
from adiuva.devices.protocol import ToolResultBody


class NotSent(Exception):
    """Error for a frame that nobody took: nobody listens on the device's last known channel, or its connection was
    closing."""


class ConnectionGone(Exception):
    """Error for a connection, or a channel layer, that was lost while an answer was pending."""


class NoAnswer(Exception):
    """Error for a device that did not answer in time."""


class PendingCalls:
    """Pending calls of one link, in the order in which they fall due."""

    def __init__(self) -> None:
        # By id: the future, its due time on the loop's clock, and the epoch of the connection that the call was sent
        # over.
        self._calls: dict[str, tuple[asyncio.Future[ToolResultBody], float, int]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        # Read once per link, because looking a setting up costs a tenth of a call.
        self._timeout_s: float = settings.SOCKET["tool_answer_timeout_s"]

    def add(self, call_id: str, epoch: int) -> asyncio.Future[ToolResultBody]:
        """Register a call before it is sent. The future fails with NoAnswer if the answer takes too long.

        Raises ValueError if a call with this id is pending.
        """
        if call_id in self._calls:
            raise ValueError("a call with this id is in flight")
        future: asyncio.Future[ToolResultBody] = self._loop.create_future()
        # All calls have the same time to answer, so they fall due in order and one timer serves all.
        due = self._loop.time() + self._timeout_s
        self._calls[call_id] = future, due, epoch
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._expire)
        return future

    def _expire(self) -> None:
        now, self._timer = self._loop.time(), None
        for future, due, _ in self._calls.values():
            if due > now:
                self._timer = self._loop.call_at(due, self._expire)
                break
            if not future.done():
                future.set_exception(NoAnswer())

    def remove(self, call_id: str) -> None:
        """Forget a call; its future is cancelled unless it is done."""
        if (call := self._calls.pop(call_id, None)) is not None:
            call[0].cancel()

    def resolve(self, result: ToolResultBody) -> None:
        """Hand an answer to its call. Does nothing if the call is no longer pending."""
        call = self._calls.get(result.id)
        if call is not None and not call[0].done():
            call[0].set_result(result)

    def fail_calls(self, call_ids: Iterable[str], reason: type[Exception]) -> None:
        for call_id in call_ids:
            if (call := self._calls.get(call_id)) is not None and not call[0].done():
                call[0].set_exception(reason())

    def fail(self, reason: type[Exception], *, epoch: int | None = None) -> None:
        """Fail the calls that were sent over the connection `epoch`, or all calls without it."""
        for future, _, sent_over in self._calls.values():
            if epoch in (None, sent_over) and not future.done():
                future.set_exception(reason())

    def close(self) -> None:
        """Fail what is still pending, and stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self.fail(NoAnswer)


async def outcome_of(future: asyncio.Future[ToolResultBody]) -> ToolResultBody | Exception:
    """Wait for an answer; return it, or the reason why there is none."""
    try:
        return await future
    except (NotSent, ConnectionGone, NoAnswer, DeviceUnreachable) as error:
        return error
