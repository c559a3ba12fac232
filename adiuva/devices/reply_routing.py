"""Routing of a device's answers to the link that made the call, in this process or another, and the messages that
processes send to each other's connections for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import structlog
from channels.layers import get_channel_layer

from adiuva.devices.codec import BadFrame
from adiuva.devices.protocol import (
    AgentComplete,
    AgentData,
    AgentManifest,
    ToolBatchResult,
    ToolResult,
)

log = structlog.get_logger(__name__)

ResultFrame = ToolResult | ToolBatchResult
RunFrame = AgentManifest | AgentData | AgentComplete


class Reply(Protocol):
    """Destination of a device's answers."""

    # True if it reads the text of a result itself, which then need not be parsed before.
    is_remote: bool

    def result(self, text: str, calls: Sequence[str], frame: ResultFrame | None) -> None:
        """Hand over the answer to `calls`. `frame` is None only if the reply is remote."""
        ...

    async def run_frame(self, text: str, frame: RunFrame) -> bool:
        """Hand over a frame of a run. Returns False if nobody reads it any more."""
        ...

    def unsent(self, calls: Sequence[str]) -> None:
        """Say that calls were never sent."""
        ...

    def gone(self, epoch: int) -> None:
        """Say that the connection of this epoch has ended."""
        ...


class ChannelReply:
    """Reply that sends answers to another process over the channel layer. Equal to others of the same channel.

    It does not report losses on the way: the layer tells the waiting link that it was interrupted, and the link repeats
    what it may.
    """

    __slots__ = ("channel",)

    is_remote = True

    def __init__(self, channel: str) -> None:
        self.channel = channel

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChannelReply) and other.channel == self.channel

    def __hash__(self) -> int:
        return hash(self.channel)

    def result(self, text: str, calls: Sequence[str], frame: ResultFrame | None) -> None:
        get_channel_layer().post(self.channel, {"type": "result", "calls": calls}, text.encode())

    async def run_frame(self, text: str, frame: RunFrame) -> bool:
        try:
            return bool(await get_channel_layer().send(self.channel, {"type": "run_frame"}, text.encode()))
        except ConnectionError:
            log.warning("device.reply_lost", kind=frame.type)
            return False

    def unsent(self, calls: Sequence[str]) -> None:
        get_channel_layer().post(self.channel, {"type": "unsent", "calls": calls})

    def gone(self, epoch: int) -> None:
        get_channel_layer().post(self.channel, {"type": "gone", "epoch": epoch})


def frame_message(*, calls: Sequence[str], run: str | None, reply: str) -> dict[str, Any]:
    """Return a message that makes a connection send the frame in its body; the answers go to the channel `reply`."""
    return {"type": "frame", "calls": calls, "run": run, "reply": reply}


def run_over_message(run: str) -> dict[str, Any]:
    """Return a message that makes a connection forget who reads the frames of a run."""
    return {"type": "run_over", "run": run}


def close_message(code: int) -> dict[str, Any]:
    """Return a message that makes a connection close itself."""
    return {"type": "close", "code": code}


def bad_frame_message(bad: BadFrame) -> dict[str, Any]:
    """Return a message that makes a connection refuse a frame that it had passed on unread."""
    return {"type": "bad_frame", "code": bad.code, "message": str(bad), "ref": bad.ref}
