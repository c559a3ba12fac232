"""Messages that the user sends while a turn runs, from their arrival until the model has read them.

In a conversation each is a waiting turn of its own (`chat.turn_queue`), so that it outlives every process: the running
turn reads it from there before its next call of the model, and if it ends before, the message gets its own answer. The
turn's process gets only the hint that it may look. A chat without a conversation stores nothing: its messages wait in
memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from adiuva.core import db
from adiuva.core.logging import log_failure
from chat import turn_queue
from chat.claimed_turn import ClaimedTurn, Steered
from chat.request import MAX_MESSAGE_CHARS
from chat.turn_queue import MAX_UNREAD, TooManySteers


@dataclass(frozen=True)
class _Steer:
    said: Steered
    read: asyncio.Future[bool] | None = None  # set for a message that is only in memory

    def settle(self, is_read: bool) -> None:
        if self.read is not None and not self.read.done():
            self.read.set_result(is_read)


class SteerQueue:
    """The user's messages to one running turn. `heard` holds, in order, what the model has read. `spoken` is set while
    other messages wait for its next call: the turn then stops waiting for anything else.
    """

    def __init__(self, joined: Callable[[Sequence[Steered]], None], *, may_wait: bool = False) -> None:
        """`joined` is called with messages that the model has read and that wait as turns of their own. `may_wait`:
        whether there may be such messages already.
        """
        self.read: list[str] = []
        self.spoken = asyncio.Event()
        self.heard: list[Steered] = []
        self._joined = joined
        self._may_wait = may_wait
        self._coming: list[asyncio.Event] = []
        self._waiting: list[_Steer] = []
        self._in_call: list[_Steer] = []  # given to the model in a call that it has not answered yet

    def add(self, message: str) -> asyncio.Future[bool]:
        """Add a message that is only in memory. The future is true once the model has read it, false if the turn ends
        before.

        Raises TooManySteers.
        """
        if len(self._unread()) >= MAX_UNREAD or not self._fits(message):
            raise TooManySteers
        read = asyncio.get_running_loop().create_future()
        self._waiting.append(_Steer(Steered(message), read))
        self.spoken.set()
        return read

    def look_again(self) -> None:
        """Look for messages again: the user has said something in the conversation that may be meant for this turn."""
        self._may_wait = True
        self.spoken.set()

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Announce that a message to this turn is being stored in this process: `look` waits for it."""
        stored = asyncio.Event()
        self._coming.append(stored)
        try:
            yield
        finally:
            self._coming.remove(stored)
            stored.set()
            self.look_again()

    async def look(self, claimed: ClaimedTurn) -> None:
        """Read the messages that wait for the turn in the database, as many as one call of the model takes."""
        while self._coming:
            await self._coming[0].wait()
        if not self._may_wait or claimed.conversation_id is None:
            return
        self._may_wait = False
        try:
            found = await db.run(turn_queue.said_to, claimed=claimed)
        except Exception as error:  # the user's turn goes on, and the messages keep waiting
            log_failure("turn.steers_not_read", error, level="warning", turn=str(claimed.turn_id))
            return
        known = {said.turn_id for said in (*self.heard, *(steer.said for steer in self._unread()))}
        for said in found:
            if said.turn_id in known:
                continue
            if not self._fits(said.text):
                self._may_wait = True
                break
            self._waiting.append(_Steer(said))

    @property
    def given(self) -> list[str]:
        """The messages that the model has read or is reading."""
        return [*self.read, *(steer.said.text for steer in self._in_call)]

    def take(self) -> list[str]:
        """Return the messages for the next call of the model."""
        self._in_call += self._waiting
        self._waiting.clear()
        if not self._may_wait:
            self.spoken.clear()
        return [steer.said.text for steer in self._in_call]

    def mark_read(self, call: int) -> None:
        """Note that the model has answered in its call number `call`, so it has read what that call contained."""
        heard = [steer.said._replace(call=call, at=datetime.now(UTC)) for steer in self._in_call]
        self.read += [said.text for said in heard]
        self.heard += heard
        for steer in self._in_call:
            steer.settle(True)
        self._in_call.clear()
        if joined := [said for said in heard if said.turn_id is not None]:
            self._joined(joined)

    def close(self) -> None:
        """End: the turn is over, and messages that the model has not read come too late."""
        for steer in self._unread():
            steer.settle(False)

    def _fits(self, message: str) -> bool:
        """Return whether it may be read together with the unread messages, which share the bound of one message."""
        unread = sum(len(steer.said.text) for steer in self._unread())
        return not unread or unread + len(message) <= MAX_MESSAGE_CHARS

    def _unread(self) -> Sequence[_Steer]:
        return (*self._in_call, *self._waiting)
