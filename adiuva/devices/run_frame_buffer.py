"""Buffer for a run's frames from the device until the runner reads them. Memory stays bounded, whatever a device sends.

A device of protocol 2 has to wait for acknowledgements; if it does not, the run fails. A device of protocol 1 knows
none: it sends a folder as fast as the network allows, and its socket must be read meanwhile, since answers to tool
calls come over it too. So frames beyond the first megabytes go to a file of bounded size, sealed with a key that exists
only in this process and only as long as the run.
"""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections import deque
from typing import IO, Final, cast

from django.conf import settings

from adiuva.core.crypto import Cipher, new_key
from adiuva.core.errors import AdiuvaError, Text
from adiuva.devices.codec import parse
from adiuva.devices.protocol import AgentComplete, AgentData, AgentManifest

RunFrame = AgentManifest | AgentData | AgentComplete

# This many frames stay in memory; the rest goes to the file.
MAX_BUFFERED_CHARS: Final = 4 * 1024 * 1024
MAX_BUFFERED_FRAMES: Final = 1_000
_SEALED: Final = b"frame of a run"


class FlowExceeded(AdiuvaError):
    """Error for a device that sends more than it may."""

    code, status = "flow_exceeded", 429


class SpillFile:
    """First-in, first-out queue of texts in a sealed temporary file of bounded size. Close it after use."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._file: IO[bytes] | None = None
        self._places: deque[tuple[int, int]] = deque()  # offset and length of each text
        self._end = 0
        self._wrapped = False  # True if the newest text is before the oldest in the file

    def __len__(self) -> int:
        return len(self._places)

    def put(self, text: str) -> None:
        """Add a text. Raises FlowExceeded if the file may not be longer, and OSError if the disk has no room."""
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
        self._file.seek(at)
        if self._file.write(sealed) < len(sealed):
            raise OSError(errno.ENOSPC, "no room for what the device sends")
        self._places.append((at, len(sealed)))
        self._end = at + len(sealed)

    def _open(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="adiuva-", buffering=0)  # noqa: SIM115  # closed by close()
        self._cipher = Cipher(new_key())

    def get(self) -> str:
        """Remove and return the oldest text."""
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
    """Frames in the order of their arrival, a few in memory and the rest in a file. Counts unacknowledged batches."""

    def __init__(self) -> None:
        self._held: deque[tuple[RunFrame, int]] = deque()
        self._size = 0
        self._spill = SpillFile(settings.RUNS["spill_bytes"])
        self.later = SpillFile(settings.RUNS["spill_bytes"])  # frames that the reader has taken and put off
        self._end: FlowExceeded | OSError | None = None
        self._ended = False
        # True if the device is told to wait for acknowledgements. A device of protocol 1 is not, whatever it sends.
        self.counts_batches = True
        self._batches = 0
        self._arrived = asyncio.Event()

    def put(self, frame: RunFrame, text: str) -> None:
        """Add a frame, without waiting. A frame beyond the limits is dropped, and so are all later ones."""
        if self._ended:
            return
        try:
            if self.counts_batches and isinstance(frame, AgentData) and frame.batch is not None:
                self._batches += 1
                if self._batches > settings.SOCKET["max_batches_in_flight"]:
                    raise FlowExceeded(
                        Text(
                            "the device sent more than {most} batches unacknowledged",
                            most=settings.SOCKET["max_batches_in_flight"],
                        )
                    )
            # A frame that follows one in the file goes there too, to keep the order.
            full = self._size + len(text) > MAX_BUFFERED_CHARS or len(self._held) >= MAX_BUFFERED_FRAMES
            if self._spill or (self._held and full):
                self._spill.put(text)
            else:
                self._held.append((frame, len(text)))
                self._size += len(text)
        except (FlowExceeded, OSError) as error:
            self.end(error)
        self._arrived.set()

    def acknowledged(self) -> None:
        self._batches -= 1

    def end(self, error: FlowExceeded | OSError | None = None) -> None:
        """Accept no more frames: the connection is gone, the device has exceeded its limits, or the disk is full."""
        if not self._ended:
            self._ended, self._end = True, error
            self._arrived.set()

    async def get(self) -> RunFrame | None:
        """Return the next frame; None after the last one of a connection that ended. Raises FlowExceeded at once if the
        device has exceeded its limits, and OSError if the disk had no room for a frame; buffered frames are dropped."""
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
