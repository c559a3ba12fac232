"""Messages that the user sends while a turn runs, from their arrival until the model has read them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from adiuva.core.errors import AdiuvaError
from chat.request import MAX_MESSAGE_CHARS

# Of messages that the model has not read yet. Together they are at most as long as one message may be.
_MAX_UNREAD: Final = 16


class TooManySteers(AdiuvaError):
    code, status = "too_many_requests", 429

    def __init__(self) -> None:
        super().__init__("the assistant has not read your earlier messages yet")


@dataclass(frozen=True)
class _Steer:
    message: str
    read: asyncio.Future[bool]


class SteerQueue:
    """`read` holds, in order, the messages that the model has read."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self._waiting: list[_Steer] = []
        self._in_call: list[_Steer] = []  # given to the model in a call that it has not answered yet

    def add(self, message: str) -> asyncio.Future[bool]:
        """True once the model has read the message, False if the turn ends before. Raises TooManySteers."""
        unread = [steer.message for steer in self._unread()]
        if len(unread) >= _MAX_UNREAD or sum(map(len, unread)) + len(message) > MAX_MESSAGE_CHARS:
            raise TooManySteers
        steer = _Steer(message, asyncio.get_running_loop().create_future())
        self._waiting.append(steer)
        return steer.read

    @property
    def given(self) -> list[str]:
        """The messages that the model has read or is reading."""
        return [*self.read, *(steer.message for steer in self._in_call)]

    def take(self) -> list[str]:
        """The messages for the next call of the model."""
        self._in_call += self._waiting
        self._waiting.clear()
        return [steer.message for steer in self._in_call]

    def mark_read(self) -> None:
        """The model has answered, so it has read what that call contained."""
        for steer in self._in_call:
            self.read.append(steer.message)
            if not steer.read.done():
                steer.read.set_result(True)
        self._in_call.clear()

    def close(self) -> None:
        """The turn has ended: whatever was not read comes too late."""
        for steer in self._unread():
            if not steer.read.done():
                steer.read.set_result(False)

    def _unread(self) -> Sequence[_Steer]:
        return (*self._in_call, *self._waiting)
