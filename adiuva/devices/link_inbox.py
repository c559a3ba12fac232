"""Receiver of a link's answers: from a socket in this process, or over the channel layer from another process's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from channels.layers import get_channel_layer

from adiuva.core.channel_layer import Message
from adiuva.devices import tool_results
from adiuva.devices.codec import BadFrame, parse
from adiuva.devices.link_errors import DeviceUnreachable
from adiuva.devices.pending_calls import ConnectionGone, NotSent
from adiuva.devices.protocol import AgentComplete, AgentData, AgentManifest, ToolBatchResult, ToolResult
from adiuva.devices.reply_routing import ResultFrame, RunFrame, bad_frame_message

if TYPE_CHECKING:
    from adiuva.devices.link import DeviceLink

# The fate of a call whose frame came back, by the layer's reason.
_FATES: dict[str, type[Exception]] = {
    "nobody": NotSent,
    "unavailable": DeviceUnreachable,
    "lost": ConnectionGone,
}


class LinkInbox:
    """Receiving end of one link, which tells the link what has become of its calls and runs. Sockets of this process
    get it as their reply; those of other processes send to its channel, which opens when first needed."""

    is_remote = False

    def __init__(self, link: DeviceLink) -> None:
        self._link: DeviceLink | None = link
        self._layer: Any = None
        self._channel = ""
        self._opening = asyncio.Lock()

    async def open(self) -> str:
        """Return the channel for answers. Raises DeviceUnreachable."""
        if not self._channel:
            async with self._opening:
                if not self._channel:
                    self._layer = get_channel_layer()
                    try:
                        self._channel = await self._layer.new_channel("reply.", self._arrived)
                    except ConnectionError:
                        raise DeviceUnreachable from None
        return self._channel

    def close(self) -> None:
        """Take nothing more. The link, which holds this inbox, need not wait for a garbage collection then."""
        self._link = None
        if self._channel:
            self._layer.end_channel(self._channel)

    # ── As a reply ──────────────────────────────────────────────────────────────────────────────────────

    def result(self, text: str, calls: Sequence[str], frame: ResultFrame | None) -> None:
        if (link := self._link) is None:
            return
        if type(frame) is ToolResult:  # pydantic makes an isinstance with others slow
            link.pending.resolve(frame)
        elif isinstance(frame, ToolBatchResult):
            for result in frame.results:
                link.pending.resolve(result)

    async def run_frame(self, text: str, frame: RunFrame) -> bool:
        if (link := self._link) is None:
            return False
        link.frames.put(frame, text)
        return not link.closed

    def unsent(self, calls: Sequence[str]) -> None:
        if self._link is not None:
            self._link.pending.fail_calls(calls, NotSent)

    def gone(self, epoch: int) -> None:
        if self._link is not None:
            self._link.lost(epoch)

    # ── From other processes ────────────────────────────────────────────────────────────────────────────

    def _arrived(self, message: Message) -> None:
        if (link := self._link) is None:
            return
        match message["type"]:
            case "result":
                self._read_result(link, message["body"].decode(), message["calls"])
            case "run_frame":
                text = message["body"].decode()
                frame = parse(text)
                assert isinstance(frame, AgentManifest | AgentData | AgentComplete)
                link.frames.put(frame, text)
            case "returned":
                returned = message["message"]
                link.pending.fail_calls(returned["calls"], _FATES[message["why"]])
            case "unsent":
                self.unsent(message["calls"])
            case "gone":
                self.gone(message["epoch"])
            case "interrupted":
                link.interrupted()

    def _read_result(self, link: DeviceLink, text: str, calls: Sequence[str]) -> None:
        """Read a result that the socket's process has not read beyond the id of its call."""
        try:
            frame = parse(text)
            if not isinstance(frame, ToolResult | ToolBatchResult):
                raise BadFrame("bad_frame", "this is no result")
        except BadFrame as bad:
            for call in calls:
                link.pending.resolve(tool_results.failed(call, tool_results.MALFORMED))
            if (target := link.current_target) is not None:
                self._layer.post(target.channel, bad_frame_message(bad))
            return
        if isinstance(frame, ToolResult) and frame.id not in calls:  # it names two calls
            frame = tool_results.failed(calls[0], tool_results.MALFORMED)
        self.result(text, calls, frame)
