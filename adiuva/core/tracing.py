"""Traces for operators, as OpenTelemetry spans sent over OTLP/HTTP to ADIUVA_TRACES_ENDPOINT. Without it nothing is
recorded, and a span costs a comparison.

Spans hold names of ours (patterns of routes, tools, configured models), codes, counts, and ids of turns and runs:
never content, a path or an address, nor an error's message. There is none for a streamed word. A run begins a trace
of its own, because a worker claims it from its row and not from a message; its id joins it to what started it.
A client's trace context is not read, and our spans are not in the global provider, so no library adds its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import structlog
from django.conf import settings

from adiuva.core.errors import AdiuvaError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Tracer

log = structlog.get_logger(__name__)

Value = str | int | float | bool

_EXPORT_TIMEOUT_S: Final = 5.0

_tracer: Tracer | None = None
_provider: TracerProvider | None = None


class Span:
    """Span in progress. This one records nothing, because traces are off."""

    def set(self, **attributes: Value) -> None:
        """Set attributes; `__` in a name stands for a dot of OpenTelemetry's names."""

    def rename(self, name: str) -> None: ...

    def fail(self, code: str) -> None:
        """Mark the span as failed, with a code of ours or the name of an error's type."""

    def end(self) -> None: ...

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this span the parent of spans and tasks that begin in the block."""
        yield


class _RecordedSpan(Span):
    def __init__(self, tracer: Tracer, name: str, attributes: dict[str, Value]) -> None:
        self._span = tracer.start_span(name, record_exception=False, set_status_on_exception=False)
        self.set(**attributes)

    def set(self, **attributes: Value) -> None:
        for name, value in attributes.items():
            self._span.set_attribute(name.replace("__", "."), value)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def fail(self, code: str) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_status(StatusCode.ERROR)
        self.set(error__type=code)

    def end(self) -> None:
        self._span.end()

    @contextmanager
    def current(self) -> Iterator[None]:
        from opentelemetry.trace import use_span

        with use_span(self._span, record_exception=False, set_status_on_exception=False):
            yield


_OFF: Final = Span()


def begin(name: str, **attributes: Value) -> Span:
    """Begin a span below the current one, without becoming current. The caller must `end` it."""
    return _OFF if _tracer is None else _RecordedSpan(_tracer, name, attributes)


@contextmanager
def span(name: str, **attributes: Value) -> Iterator[Span]:
    """Begin a span around the block, which is current inside it. An error that leaves the block is named by its code or
    type. In a generator whose block yields to others, use `begin` instead."""
    if _tracer is None:
        yield _OFF
        return
    begun = _RecordedSpan(_tracer, name, attributes)
    try:
        with begun.current():
            yield begun
    except BaseException as error:
        begun.fail(error.code if isinstance(error, AdiuvaError) else type(error).__name__)
        raise
    finally:
        begun.end()


def is_installed() -> bool:
    """Return whether the packages of requirements-traces.txt are installed."""
    try:
        return (
            find_spec("opentelemetry.sdk") is not None
            and find_spec("opentelemetry.exporter.otlp") is not None
        )
    except ModuleNotFoundError:
        return False


def start(process: str) -> None:
    """Send spans from now on, if an endpoint is set. `process`: web, worker or beat."""
    global _tracer, _provider
    if not settings.TRACES_ENDPOINT or _tracer is not None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    _provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.TRACES_RATIO)),
        resource=Resource.create({"service.name": "adiuva", "adiuva.process": process}),
    )
    exporter = OTLPSpanExporter(endpoint=settings.TRACES_ENDPOINT, timeout=_EXPORT_TIMEOUT_S)
    _provider.add_span_processor(BatchSpanProcessor(_logging_outages(exporter)))
    _tracer = _provider.get_tracer("adiuva")


def stop() -> None:
    """Send the spans that are left; for a process that exits without running atexit's functions."""
    if _provider is not None:
        _provider.shutdown()


def _logging_outages(exporter: SpanExporter) -> SpanExporter:
    """Return an exporter that logs once when spans begin to get lost, and once when they arrive again."""
    from opentelemetry.sdk.trace.export import SpanExporter as Base
    from opentelemetry.sdk.trace.export import SpanExportResult as Result

    class Exporter(Base):
        is_failing = False

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = exporter.export(spans)
            has_failed = result is not Result.SUCCESS
            if has_failed and not self.is_failing:
                log.warning("traces.not_sent", spans=len(spans))
            elif self.is_failing and not has_failed:
                log.info("traces.sent_again")
            self.is_failing = has_failed
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return exporter.force_flush(timeout_millis)

    return Exporter()
