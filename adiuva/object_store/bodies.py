"""Requests with large bodies, which are taken piece by piece as they come, and never stored on the way.

A view class names them by method:

    class BackupView(StreamedBodies):
        body_streams = {"PUT": begin_backup}

`adiuva.body_streams`, an ASGI application in front of Django, feeds them from the network.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from adiuva.core.errors import AdiuvaError, Text

WRITE_BYTES: Final = 1024 * 1024  # handed on at once, about this much


class TooSlow(AdiuvaError):
    """Error for a body that came too slowly. The bytes so far are kept, if the request can be resumed."""

    code, status = "too_slow", 408

    def __init__(self, seconds: int) -> None:
        super().__init__(Text("nothing of the body arrived for {seconds} s", seconds=seconds))


@dataclass(frozen=True, slots=True)
class BodyResponse:
    status: int
    body: dict[str, Any] | None
    headers: dict[str, str]


class Body(Protocol):
    """Body of a request. All methods block, and are called one at a time."""

    def write(self, data: bytes) -> None: ...

    def end(self) -> BodyResponse:
        """Finish, because all of the body came."""

    def break_off(self, error: BaseException | None) -> None:
        """Free what the request held, because the body did not come whole or was refused, also by `end`."""


@dataclass(frozen=True, slots=True)
class Request:
    """Request: its user, the values of its path, and its headers (a mapping that ignores case)."""

    user_id: uuid.UUID
    tier: str
    parameters: Mapping[str, Any]
    headers: Mapping[str, str]


Begin = Callable[[Request], Body]
"""Begins a body. Raises what refuses it by its headers, before any byte is read."""
