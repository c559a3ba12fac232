"""uvicorn's HTTP protocol with a limit on the wait for a request's headers, which uvicorn itself lacks.

h11 reads the requests. With httptools 0.9 a request costs 0.10 ms less CPU, of 1.7 to 3.4; but httptools loses the body
and the next request behind an offer of HTTP/2, takes what follows chunks for headers, asks for no Host, and bounds
neither heads nor the extensions of chunks.
"""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

from adiuva.body_guard import SILENCE_S

# A connection is kept this long between requests. Clients and proxies close theirs sooner (nginx after 60 s, and many
# libraries after 5), so that none sends a request just when we close.
KEEP_ALIVE_S: Final = 75


class TimedH11Protocol(H11Protocol):
    """Protocol that closes a connection which is silent before its headers are complete; then BodyGuard watches."""

    _silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        self._unwatch()
        if self.transport.get_protocol() is self:  # unless it is a WebSocket by now
            self._silence = self.loop.call_later(SILENCE_S, self._close_if_idle)

    def _unwatch(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _close_if_idle(self) -> None:
        if (
            self.timeout_keep_alive_task is not None
        ):  # nothing of the next request has come: uvicorn's timer runs
            return
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.transport.get_protocol() is self and not self.transport.is_closing():
            self.transport.close()
