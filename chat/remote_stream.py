"""A turn of another process, followed for one socket of this one."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Final

from adiuva.core import db
from chat.stream import Listener, StreamFrame
from chat.stream_replay import find_turn, replay
from chat.turn_registry import registry

_LOOK_S: Final = 5.0  # whether the process is still there
_TRIES: Final = 6  # before it is taken for gone: it may be without Redis for a moment
_AGAIN_S: Final = 0.5


class RemoteStream:
    """`follow()` until the turn has ended. What arrives for it goes through `arrived`."""

    def __init__(
        self, listener: Listener, *, user_id: uuid.UUID, request_id: str, owner: str, after: int, reply: str
    ) -> None:
        self._listener, self._user_id, self._request_id = listener, user_id, request_id
        self._owner, self.after, self._reply = owner, after, reply
        self._told: set[str] = set()  # kinds of frames without a seq: each comes once
        self._anew = True
        self._look = asyncio.Event()
        self._ended = self._over = False
        self._passing_on = asyncio.Lock()

    async def follow(self) -> None:
        tries = 0
        while not self._ended:
            self._look.clear()
            anew, self._anew = self._anew, False
            try:
                if self._over or tries == _TRIES:
                    await self._replay()
                    return
                there = await registry().follow_far(
                    self._owner, self._user_id, self._request_id, self.after, reply=self._reply, anew=anew
                )
                tries = 0 if there else tries + 1
                self._anew = self._anew or not there
            except ConnectionError:
                self._anew = True  # that is about Redis, and says nothing of the process
            try:
                async with asyncio.timeout(_AGAIN_S if self._anew else _LOOK_S):
                    await self._look.wait()
            except TimeoutError:
                pass

    async def arrived(self, texts: Sequence[str]) -> None:
        """Frames from the turn's process; some perhaps for the second time, and some lost on the way."""
        async with self._passing_on:
            entries = []
            for text in texts:
                if self._ended:
                    break
                entry = StreamFrame.read(text)
                if not self._is_next(entry):
                    continue
                entries.append(entry)
                if entry.ends:
                    self.stop()
            if entries:
                await self._listener.hear(self._request_id, entries)

    def _is_next(self, entry: StreamFrame) -> bool:
        if entry.asks:
            return True
        if entry.seq is None:
            is_new = self.after < 0 and entry.kind not in self._told
            self._told.add(entry.kind)
            return is_new
        if entry.seq > self.after + 1 or (self.after < 0 and "stream_start" not in self._told):
            self.interrupted()
            return False
        is_new = entry.seq > self.after
        self.after = max(self.after, entry.seq)
        return is_new or entry.ends

    def interrupted(self) -> None:
        """Something may have been lost on the way."""
        self._anew = True
        self._look.set()

    def over(self) -> None:
        """Its process has it no more, since it has ended."""
        self._over = True
        self._look.set()

    def stop(self) -> None:
        """Nothing more is passed on."""
        self._ended = True
        self._look.set()

    async def _replay(self) -> None:
        row = await db.run(find_turn, self._user_id, self._request_id)
        async with self._passing_on:
            if not self._ended:
                await replay(row, self.after, self._listener)
                self.stop()
