"""Errors of requests and turns, and how clients are told of them."""

from __future__ import annotations

from typing import Final

import structlog
from django.db import Error as DatabaseError

from adiuva.core.errors import AdiuvaError, Conflict, Text, Unavailable
from adiuva.core.logging import log_failure
from adiuva.core.outages import as_unavailable
from chat.models import AssistantKind
from chat.request import ChatRequest
from chat.stream import FROM_START, StreamFrame, refusal_frames

MAX_TURNS: Final = 8  # running turns of one user in one process

log = structlog.get_logger(__name__)


class ApprovalOver(Conflict):
    code = "approval_over"

    def __init__(self) -> None:
        super().__init__("nothing waits for this approval any more")


class TooManyTurns(AdiuvaError):
    code, status = "too_many_requests", 429

    def __init__(self) -> None:
        super().__init__(Text("at most {most} requests run at once", most=MAX_TURNS))


class ServerRestarting(Unavailable):
    code = "server_restarting"

    def __init__(self) -> None:
        super().__init__("the server is restarting; try again in a moment")


class ServerFault(AdiuvaError):
    code, status = "internal_error", 500

    def __init__(self) -> None:
        super().__init__("the server failed on this request")


def refusal_of(request: ChatRequest, code: str, after: int = FROM_START) -> list[StreamFrame]:
    """Return the frames that end a request with an error code, for a client that has seen frames up to `after`."""
    return refusal_frames(
        request.request_id, code, floating=request.kind == AssistantKind.FLOATING, after=after
    )


def as_client_error(error: Exception) -> AdiuvaError:
    """Return the error for the client. An unexpected one is logged with its frames and reported as ServerFault."""
    if (unavailable := as_unavailable(error)) is not None:
        log_failure("request.failed", error, logger=log, level="warning")
        return unavailable
    if isinstance(error, DatabaseError | OSError):  # the channel layer raises them too
        log_failure("request.failed", error, logger=log, level="warning")
        return Unavailable("try again in a moment")
    if isinstance(error, AdiuvaError):
        return error
    log_failure("request.failed", error, logger=log)
    return ServerFault()
