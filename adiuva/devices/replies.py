"""Replies lead a device's answers back to the link that asked, in this process or another; and the messages that
processes send to each other's connections for it."""

from __future__ import annotations

from typing import Any, Protocol

import structlog
from channels.layers import get_channel_layer

from adiuva.devices.protocol import ClientFrame

log = structlog.get_logger(__name__)


class Reply(Protocol):
    """Where a device's answers go. Returns False if nobody is there any more.

    `kind` is "result" or "frame" (a frame of a run), with the frame; "unsent" (calls that were never sent, one id a
    line in `text`); or "gone" (the connection whose epoch is in `text` has ended).
    """

    async def __call__(self, kind: str, text: str, frame: ClientFrame | None) -> bool: ...


class ChannelReply:
    """Sends answers to another process over the channel layer. Equal to others of the same channel."""

    __slots__ = ("channel",)

    def __init__(self, channel: str) -> None:
        self.channel = channel

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChannelReply) and other.channel == self.channel

    def __hash__(self) -> int:
        return hash(self.channel)

    async def __call__(self, kind: str, text: str, frame: ClientFrame | None) -> bool:
        try:
            return bool(await get_channel_layer().send(self.channel, {"type": kind, "text": text}))
        except ConnectionError:
            # The layer tells the waiting link about the interruption, and the link repeats what it may.
            log.warning("device.reply_lost", kind=kind)
            return False


def frame_message(text: str, *, calls: list[str], run: str | None, reply: str) -> dict[str, Any]:
    """Message that makes a connection send a frame; its answers go to the channel `reply`."""
    return {"type": "frame", "text": text, "calls": calls, "run": run, "reply": reply}


def run_over_message(run: str) -> dict[str, Any]:
    """Message that makes a connection forget who reads the frames of a run."""
    return {"type": "run_over", "run": run}


def close_message(code: int) -> dict[str, Any]:
    """Message that makes a connection close itself."""
    return {"type": "close", "code": code}
