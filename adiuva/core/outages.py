"""Recognition of errors that mean a store is unavailable: PostgreSQL or Redis is away, has no room, or takes no writes.

Such errors pass without a change of ours, so a request is answered with 503, and a worker waits and tries again. A full
disk shows in many ways: PostgreSQL refuses a statement (53100) or restarts, a standby takes no writes (25006), Redis
answers MISCONF or READONLY, and a file of our own cannot be written (ENOSPC).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from typing import Final, Literal

import kombu.exceptions
import redis.exceptions
from django.db import Error as DatabaseError
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse

from adiuva.core.errors import Unavailable
from adiuva.core.language import body_of
from adiuva.core.logging import log_failure

Store = Literal["database", "redis", "disk"]

# Django's InternalError also covers mistakes of ours, so its SQLSTATE decides: read only; resources, among them the
# disk (class 53); an administrator's shutdown (57P0); the server's own faults (class 58).
_DATABASE_STATES: Final = ("25006", "53", "57P0", "58")
# Answers of Redis for which redis-py has no class; within a pipeline, a prefix names the command.
_REDIS_ANSWERS: Final = re.compile(r"(?:^|caused error: )(?:MISCONF|READONLY|OOM|NOREPLICAS) ")
_REDIS_ERRORS: Final = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
    redis.exceptions.ExecAbortError,
)
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


_RETRY_AFTER_S: Final = 5


_WORDS: Final[dict[Store, str]] = {
    "database": "the server cannot use its database just now: try again",
    "redis": "the server cannot use Redis just now: try again",
    "disk": "the server cannot use its disk just now: try again",
}


class StoreUnavailable(Unavailable):
    """Error for an unavailable store. `store` in the body says which: database, redis or disk."""

    def __init__(self, store: Store) -> None:
        super().__init__(
            _WORDS[store],
            store=store,
            retry_after_s=_RETRY_AFTER_S,
        )


def store_of(error: BaseException | None) -> Store | None:
    """Return the store that is unavailable according to the error; None if it says no such thing."""
    for each in _causes(error):
        match each:
            case OperationalError() | InterfaceError():
                return "database"
            case DatabaseError() if (getattr(each.__cause__, "sqlstate", None) or "").startswith(
                _DATABASE_STATES
            ):
                return "database"
            case redis.exceptions.RedisError() if isinstance(each, _REDIS_ERRORS) or _REDIS_ANSWERS.search(
                str(each)
            ):
                return "redis"
            case kombu.exceptions.OperationalError():
                return "redis"
            case OSError() if each.errno in _NO_ROOM:
                return "disk"
    return None


def as_unavailable(error: BaseException) -> Unavailable | None:
    """Return the error to tell a client, if this one says that a store is unavailable."""
    store = store_of(error)
    return StoreUnavailable(store) if store else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, and those it was raised from on purpose."""
    while error is not None:
        yield error
        error = error.__cause__


# ── Django's own views: the admin, signing in to it, and whatever is no endpoint of REST framework ──────


def response_to(error: BaseException | None) -> HttpResponse | None:
    """Return the answer to a request that failed with this error: 503 if a store is unavailable, else None."""
    unavailable = as_unavailable(error) if error is not None else None
    if unavailable is None:
        return None
    return JsonResponse(
        body_of(unavailable), status=unavailable.status, headers={"Retry-After": str(_RETRY_AFTER_S)}
    )


class OutageResponses:
    """Middleware that answers 503 where a view failed because a store is unavailable."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self._get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        response = response_to(error)
        if response is not None:
            log_failure("dependency.unavailable", error)
        return response
