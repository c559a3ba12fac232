"""A run's frames from the device, between their arrival and their turn. Memory stays bounded, whatever a device sends.

A device of protocol 2 waits for acknowledgements; one that does not is told so. One of protocol 1 knows none and sends
a folder as fast as the line takes it, and its socket cannot be left unread meanwhile: the answers to tool calls come
over it too. So what is beyond a few frames goes to a file, sealed with a key that nobody else has and that ends with
the run. The file is bounded as well.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from typing import IO, Final, cast

from django.conf import settings

from adiuva.core.crypto import Cipher, new_key
from adiuva.core.errors import AdiuvaError
from adiuva.devices.codec import parse
from adiuva.devices.protocol import AgentComplete, AgentData, AgentManifest

RunFrame = AgentManifest | AgentData | AgentComplete

MAX_BUFFERED_CHARS: Final = 4 * 1024 * 1024  # characters of frames in memory
MAX_BUFFERED_FRAMES: Final = 1_000
_NO_ROOM: Final = "the server has no room for what the device sends"
_SEALED: Final = b"frame of a run"


class FlowExceeded(AdiuvaError):
    """The device sends more than it may."""

    code, status = "flow_exceeded", 429

    def __init__(self, message: str) -> None:
        super().__init__(message)


class SpillFile:
    """Texts that wait in a file of bounded size, first in, first out. Whoever makes one closes it."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._file: IO[bytes] | None = None
        self._places: deque[tuple[int, int]] = deque()  # offset and length
        self._end = 0
        self._wrapped = False  # what was written last is before what is read next

    def __len__(self) -> int:
        return len(self._places)

    def put(self, text: str) -> None:
        """Raise FlowExceeded when there is no room for it."""
        if self._file is None:
            self._open()
        assert self._file is not None
        sealed = self._cipher.seal(text.encode(), _SEALED)
        if not self._places:
            self._end, self._wrapped = 0, False
        at, room = self._end, self._places[0][0] if self._wrapped else self._most
        if at + len(sealed) > room and self._places and not self._wrapped:
            at, room, self._wrapped = 0, self._places[0][0], True
        if at + len(sealed) > room:
            raise FlowExceeded("the device sends faster than its files can be read")
        try:
            self._file.seek(at)
            if self._file.write(sealed) < len(sealed):
                raise FlowExceeded(_NO_ROOM)
        except OSError:
            raise FlowExceeded(_NO_ROOM) from None
        self._places.append((at, len(sealed)))
        self._end = at + len(sealed)

    def _open(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="adiuva-", buffering=0)  # noqa: SIM115  # closed by close()
        except OSError:
            raise FlowExceeded(_NO_ROOM) from None
        self._cipher = Cipher(new_key())

    def get(self) -> str:
        """The text that has waited longest."""
        assert self._file is not None
        at, length = self._places.popleft()
        if self._places and self._places[0][0] < at:
            self._wrapped = False
        self._file.seek(at)
        return self._cipher.unseal(self._file.read(length), _SEALED).decode()

    def close(self) -> None:
        self._places.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


class RunFrameBuffer:
    """Frames in the order in which they came. `unacknowledged` batches may be as many as a device was told."""

    def __init__(self) -> None:
        self._held: deque[tuple[RunFrame, int]] = deque()
        self._size = 0
        self._spill = SpillFile(settings.RUNS["spill_bytes"])
        self.later = SpillFile(settings.RUNS["spill_bytes"])  # what was taken out and put off
        self._end: FlowExceeded | None = None
        self._ended = False
        self._batches = 0
        self._arrived = asyncio.Event()

    def put(self, frame: RunFrame, text: str) -> None:
        """Never waits. What is beyond the bounds is dropped, and with it all that follows."""
        if self._ended:
            return
        try:
            if isinstance(frame, AgentData) and frame.batch is not None:
                self._batches += 1
                if self._batches > settings.SOCKET["max_batches_in_flight"]:
                    raise FlowExceeded(
                        f"the device sent more than {settings.SOCKET['max_batches_in_flight']} batches unacknowledged"
                    )
            # Whoever follows one in the file waits behind it there.
            full = self._size + len(text) > MAX_BUFFERED_CHARS or len(self._held) >= MAX_BUFFERED_FRAMES
            if self._spill or (self._held and full):
                self._spill.put(text)
            else:
                self._held.append((frame, len(text)))
                self._size += len(text)
        except FlowExceeded as error:
            self.end(error)
        self._arrived.set()

    def acknowledged(self) -> None:
        self._batches -= 1

    def end(self, error: FlowExceeded | None = None) -> None:
        """No more will come: the connection is gone, or the device is to send no more."""
        if not self._ended:
            self._ended, self._end = True, error
            self._arrived.set()

    async def get(self) -> RunFrame | None:
        """The next frame; None when the connection ended. Raise FlowExceeded, at once: what waits is dropped."""
        while True:
            if self._end is not None:
                raise self._end
            if self._held:
                frame, size = self._held.popleft()
                self._size -= size
                return frame
            if self._spill:
                return cast(RunFrame, parse(self._spill.get()))
            if self._ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()

    def close(self) -> None:
        self._ended = True
        self._held.clear()
        self._spill.close()
        self.later.close()
