"""Sending many calls to a device, in batches if it takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Final

from adiuva.core.errors import AdiuvaError
from adiuva.devices import tool_results
from adiuva.devices.calls import MAX_ATTEMPTS, MAX_SAME_SELECTS, batch_item, may_repeat, split_into_batches
from adiuva.devices.codec import MAX_FRAME_BYTES
from adiuva.devices.link_errors import AnswerUnreadable, DeviceOffline, DeviceUnreachable, OutcomeUnknown
from adiuva.devices.pending_calls import ConnectionGone, NotSent, outcome_of
from adiuva.devices.presence import Target
from adiuva.devices.protocol import WRITES, ToolBatch, ToolCall, ToolResultBody

if TYPE_CHECKING:
    from adiuva.devices.link import DeviceLink

# At most this many batches are in flight at once to a device that dedupes.
_MAX_BATCHES_IN_FLIGHT: Final = 4
# All batches in flight together take half a frame's bytes.
_MAX_BATCH_BYTES: Final = MAX_FRAME_BYTES // 2 // _MAX_BATCHES_IN_FLIGHT


class CallBatches:
    """Batches of one `DeviceLink.send_calls`."""

    def __init__(self, link: DeviceLink) -> None:
        self._link = link

    async def send(self, calls: Sequence[ToolCall]) -> list[ToolResultBody | AdiuvaError]:
        """Send calls in order; return an outcome for each. A device that takes batches gets several at once, so that a
        distant device costs one round trip in all and not one per batch.

        Raises DeviceOffline if the device is offline at the start. If it disconnects later, the rest is not sent.
        """
        target = await self._link.target()
        batches = split_into_batches(calls, max_bytes=_MAX_BATCH_BYTES)
        first = next(batches, [])
        if len(first) == len(calls):  # most often one is enough
            return await self._settle(first)
        # A device that does not dedupe gets few calls at once, because their outcome is unknown if the connection
        # drops.
        in_flight = asyncio.Semaphore(_MAX_BATCHES_IN_FLIGHT if target.can("dedupe") else 1)
        gone: DeviceOffline | None = None

        async def settle(batch: Sequence[ToolCall]) -> list[ToolResultBody | AdiuvaError]:
            nonlocal gone
            async with in_flight:
                if gone is not None:
                    return [gone for _ in batch]
                outcomes = await self._settle(batch)
                if isinstance(last := outcomes[-1], DeviceOffline):
                    gone = last
                return outcomes

        settling = []
        async with asyncio.TaskGroup() as group:
            for batch in chain([first], batches):
                settling.append(group.create_task(settle(batch)))
                await asyncio.sleep(0)  # send this batch while the next is prepared
        return [outcome for task in settling for outcome in task.result()]

    async def _settle(self, calls: Sequence[ToolCall]) -> list[ToolResultBody | AdiuvaError]:
        """Send a batch until each call has an outcome. Only calls that may be repeated are sent again."""
        outcomes: dict[str, ToolResultBody | AdiuvaError] = {}
        left, attempt, silent_at = list(calls), 1, list[str]()
        while left:
            try:
                target = self._link.current_target or await self._link.target(not_at=silent_at)
                if target.protocol < 2 or not target.can("batch"):
                    found = await asyncio.gather(*(self._settle_single(call, attempt) for call in left))
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
            except NotSent:
                self._link.forget(target)
                silent_at.append(target.channel)
                continue
            again = []
            for call in left:
                match answers[call.id]:
                    case ToolResultBody() as result if tool_results.is_unreadable(result) or (
                        tool_results.is_large_select(call.action, result)
                    ):
                        outcomes[call.id] = await self._settle_unreadable(target, call, result, attempt + 1)
                    case ToolResultBody(code=tool_results.NOT_SAVED) if attempt > 1 and call.action in WRITES:
                        outcomes[call.id] = OutcomeUnknown()  # an earlier attempt may have been saved
                    case ToolResultBody() as result:
                        outcomes[call.id] = result
                    case ConnectionGone() if attempt == MAX_SAME_SELECTS and call.action == "select":
                        result = tool_results.failed(call.id, tool_results.TOO_LARGE)
                        outcomes[call.id] = await self._settle_unreadable(target, call, result, attempt)
                    case ConnectionGone() if attempt < MAX_ATTEMPTS and may_repeat(call, target):
                        again.append(call)
                    case _:
                        outcomes[call.id] = OutcomeUnknown()
            left, attempt = again, attempt + 1
        return [outcomes[call.id] for call in calls]

    async def _settle_unreadable(
        self, target: Target, call: ToolCall, result: ToolResultBody, attempt: int
    ) -> ToolResultBody | AdiuvaError:
        """Settle a call whose answer in a batch was of no use. The results may have been too large only together, so
        the call is sent once more by itself."""
        if result.code != tool_results.MALFORMED and may_repeat(call, target):
            return await self._settle_single(call, attempt)
        return AnswerUnreadable() if call.action in WRITES else result

    async def _send_batch(
        self, target: Target, calls: Sequence[ToolCall], attempt: int
    ) -> dict[str, ToolResultBody | Exception]:
        """Return each call's answer, or why there is none. Raises NotSent or DeviceUnreachable if nothing was sent."""
        futures = {call.id: self._link.pending.add(call.id, target.epoch) for call in calls}
        frame = ToolBatch.model_construct(calls=[batch_item(call, attempt) for call in calls])
        try:
            await self._link.send(target, frame, calls=list(futures))
            # Awaited one after the other, because the answers arrive together, and a gather would cost a callback for
            # each.
            found = [await outcome_of(future) for future in futures.values()]
        except DeviceUnreachable:
            raise
        except ConnectionError:
            return dict.fromkeys(futures, ConnectionGone())
        finally:
            for call_id in futures:
                self._link.pending.remove(call_id)
        for failure in (NotSent, DeviceUnreachable):  # all calls of a batch are sent, or none is
            if found and all(isinstance(answer, failure) for answer in found):
                raise failure
        return dict(zip(futures, found, strict=True))

    async def _settle_single(self, call: ToolCall, attempt: int) -> ToolResultBody | AdiuvaError:
        async with self._link.call_slots:
            try:
                return await self._link.call(call, attempt)
            except (DeviceOffline, OutcomeUnknown) as error:
                return error
