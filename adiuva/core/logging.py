"""Logs are JSON events with ids. They never hold content, tokens, e-mail addresses, or what a client put in a URL."""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from itertools import islice
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Literal

import structlog

if TYPE_CHECKING:  # the headless device logs too, and imports no Django
    from django.http import HttpRequest, HttpResponse

log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{8,64}$")
_QUERY = re.compile(r"\?[^\s\"']*")
# Celery may say this of a task besides its error: names of ours, and ids.
_TASK_WORDS: Final = frozenset({"name", "id", "description", "hostname"})
_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>|\(\?P<(\w+)>([^)]*)\)")
_PROJECT_DIR: Final = f"{Path(__file__).resolve().parents[2]}/"
_MAX_FRAMES: Final = 20  # of one error, the innermost frames are kept
_MAX_CAUSES: Final = 5

_failures_lock = threading.Lock()
_failure_count = 0


def log_failure(
    event: str,
    error: BaseException,
    *,
    logger: Any = None,
    level: Literal["warning", "error"] = "error",
    **ids: object,
) -> None:
    """Log an unexpected error so that its place in the code can be found, without anything a user wrote.

    The entry holds the error's type, the types of what it came from (causes, contexts, members of a group), and for
    each the frames as `file:line function`, outermost first. It holds no message and no variable: both may quote a
    document, an answer or a token. Every broad `except Exception` calls this or re-raises.

        except Exception as error:
            log_failure("turn.failed", error, request_id=str(request_id))

    `logger` is the logger of the calling module unless another is given.
    """
    if logger is None:
        logger = structlog.get_logger(sys._getframe(1).f_globals["__name__"])
    getattr(logger, level)(event, **describe_error(error), **ids)
    if level == "error":
        with _failures_lock:
            global _failure_count
            _failure_count += 1


def count_failures() -> int:
    """Return how many unexpected errors this process has logged with `log_failure` at level "error"."""
    return _failure_count


def describe_error(error: BaseException) -> dict[str, Any]:
    """Return the type and frames of an error, and of its causes, as log_failure logs them."""
    causes = [
        {"error": type(cause).__name__, "frames": _frames(cause)}
        for cause in islice(_causes(error), _MAX_CAUSES)
    ]
    found: dict[str, Any] = {"causes": causes} if causes else {}
    # The database's code of an error, since its message quotes the row.
    if sqlstate := getattr(error, "sqlstate", None) or getattr(error.__cause__, "sqlstate", None):
        found["sqlstate"] = sqlstate
    return {"error": type(error).__name__, "frames": _frames(error), **found}


def _frames(error: BaseException) -> list[str]:
    frames = [_frame(frame, line) for frame, line in walk_tb(error.__traceback__)]
    return frames[-_MAX_FRAMES:]


def _frame(frame: FrameType, line: int) -> str:
    code = frame.f_code
    file = code.co_filename.rpartition("/site-packages/")[2].removeprefix(_PROJECT_DIR)
    return f"{file}:{line} {code.co_qualname}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Return the errors that led to an error, nearest first. Each appears once, because contexts can be circular."""
    seen, waiting = {id(error)}, _nearest_causes(error)
    while waiting:
        cause = waiting.pop(0)
        if id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            waiting += _nearest_causes(cause)


def _nearest_causes(error: BaseException) -> list[BaseException]:
    members = list(error.exceptions) if isinstance(error, BaseExceptionGroup) else []
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return [*members, cause] if cause else members


class HideContent(logging.Filter):
    """Filter that takes out of libraries' records what may quote a user: paths, query strings, messages of errors.

    Frameworks log the path of a request and the message of an error; a database's message quotes the row.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not isinstance(record.msg, dict):  # structlog's own messages are dicts
            record.msg, record.args = _QUERY.sub("?…", _safe_message(record)), ()
        return True


def _safe_message(record: logging.LogRecord) -> str:
    if record.name.startswith(("django.request", "django.security")):
        return f"{record.name} {getattr(record, 'status_code', '')}".strip()
    if isinstance(record.args, Mapping):
        hidden = {name: value if name in _TASK_WORDS else "…" for name, value in record.args.items()}
        message = str(record.msg) % hidden
    elif record.exc_info:
        message = str(record.msg)  # without its arguments, which may include the error
    else:
        message = record.getMessage()
    # Further lines are tracebacks, or show a task together with its error.
    return message.partition("\n")[0]


def _describe_exc_info(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Write an error's type and frames in place of its traceback, which ends with its message, for structlog."""
    given = event.pop("exc_info", None)
    error = given[1] if isinstance(given, tuple) else given if isinstance(given, BaseException) else None
    if given is True:
        error = sys.exc_info()[1]
    return {**event, **describe_error(error)} if error is not None else event


class EventFormatter(structlog.stdlib.ProcessorFormatter):
    """Formatter that renders our own records as they are. structlog would copy each, and take out what it put in."""

    def __init__(self, renderer: Any, **options: Any) -> None:
        chain = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        super().__init__(processors=chain, **options)
        self._render = renderer

    def format(self, record: logging.LogRecord) -> str:
        if type(record.msg) is dict and not record.exc_info and not record.stack_info:
            return str(self._render(None, record.levelname.lower(), record.msg.copy()))
        return super().format(record)


_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _describe_exc_info,
]


def configure(level: str, *, as_json: bool) -> dict[str, Any]:
    """Set structlog up and return Django's LOGGING, so that libraries' records look like ours."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    renderer: Any = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    threading.excepthook = _log_thread_failure
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"hide_content": {"()": HideContent}},
        "formatters": {
            "event": {
                "()": EventFormatter,
                "foreign_pre_chain": _SHARED,
                "renderer": renderer,
            }
        },
        "handlers": {
            "out": {"class": "logging.StreamHandler", "formatter": "event", "filters": ["hide_content"]}
        },
        "root": {"handlers": ["out"], "level": level},
        "loggers": {
            name: {"level": quiet, "handlers": ["out"], "propagate": False}
            for name, quiet in {
                "uvicorn": "WARNING",
                "uvicorn.access": "ERROR",
                "daphne": "WARNING",
                "django.request": "ERROR",  # RequestLog logs the others
                "django.server": "WARNING",
                "django.channels.server": "WARNING",
                # It logs each failed batch with the collector's address and answer; core.tracing logs an outage once
                # instead.
                "opentelemetry": "CRITICAL",
                "celery": "INFO",
                "celery.worker.strategy": "WARNING",
                "celery.app.trace": "WARNING",
                "celery.beat": "WARNING",
                "django_celery_beat": "WARNING",
                "stripe": "WARNING",  # it would log each request's address
                # They log the address of each request, which holds senders and positions.
                "httpx": "WARNING",
                "httpcore": "WARNING",
                "fido2": "WARNING",  # it logs the ids of passkeys
            }.items()
        },
    }


def _log_thread_failure(failure: threading.ExceptHookArgs) -> None:
    """Log a thread's failure in place of Python's own hook, which prints the error's message."""
    if failure.exc_value is not None and not isinstance(failure.exc_value, SystemExit):
        log_failure("thread.failed", failure.exc_value, thread=failure.thread and failure.thread.name)


def _loggable_path(request: HttpRequest) -> str:
    """Return the path's pattern, with ids and words that the pattern names, and without other words of a client."""
    match = request.resolver_match
    if match is None:
        return "/static/…" if request.path.startswith("/static/") else "…"

    def show(parameter: re.Match[str]) -> str:
        value = str(match.kwargs.get(parameter[1] or parameter[2]))
        words = (parameter[3] or "").split("|")
        return value if value in words or _is_id(value) else "…"

    return "/" + _PARAMETER.sub(show, match.route).replace("^", "").replace("$", "")


def _is_id(value: str) -> bool:
    try:
        uuid.UUID(value)
    except ValueError:
        return value.isdecimal()
    return True


class RequestLog:
    """Middleware that gives each request an id, returns it in `X-Request-ID`, and logs one event for each answer."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        given = request.META.get("HTTP_X_REQUEST_ID", "")
        request_id = given if _REQUEST_ID.match(given) else uuid.uuid4().hex
        started = time.perf_counter()
        bound = structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            response = self.get_response(request)
            user = getattr(request, "api_user_id", None) or getattr(
                getattr(request, "user", None), "pk", None
            )
            log.info(
                "request.answered",
                method=request.method,
                path=_loggable_path(request),
                status=response.status_code,
                ms=round((time.perf_counter() - started) * 1000, 1),
                user_id=str(user) if user else None,
            )
        finally:
            structlog.contextvars.reset_contextvars(**bound)
        response["X-Request-ID"] = request_id
        return response
