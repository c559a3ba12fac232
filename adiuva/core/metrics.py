"""Counters for operators, in Prometheus' format, served on a port of their own (ADIUVA_METRICS_PORT).

Each process counts for itself and has its own port. No counting process forks, so Prometheus does all the adding up.
Beat alone reports what the database knows of the whole installation (`at_scrape`).

Labels are names of ours: routes as patterns, states, codes, configured models. Never ids, never what somebody wrote.
Nothing is counted for a streamed word; a turn counts when it ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol

from django.conf import settings
from django.db import connection
from django.http import HttpRequest, HttpResponse
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from adiuva.core import tracing
from adiuva.core.errors import AdiuvaError
from adiuva.core.logging import count_failures, log_failure

_SECONDS: Final = (0.05, 0.25, 1.0, 5.0, 30.0, 300.0)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_MOST_CODES: Final = 300  # we have about a hundred

REQUESTS = Counter("adiuva_requests", "HTTP requests answered.", ("method", "route", "status"))
REQUEST_SECONDS = Histogram(
    "adiuva_request_seconds", "Time to the answer of an HTTP request.", ("method", "route"), buckets=_SECONDS
)
ERRORS = Counter("adiuva_errors", "Refusals and failures said to clients, by code.", ("where", "code"))
SOCKETS = Gauge("adiuva_sockets", "Device sockets that are open in this process.")
TURNS = Counter("adiuva_turns", "Chat turns that have ended, by how.", ("finish",))
RUNS = Counter("adiuva_runs", "Runs of agents that have ended, by state.", ("state",))
MODEL_CALLS = Counter(
    "adiuva_model_calls", "Calls of models, by outcome: ok or a code.", ("model", "outcome")
)
TOKENS = Counter("adiuva_model_tokens", "Tokens that models have counted.", ("model", "direction"))

_codes: set[str] = set()
_codes_guard = threading.Lock()


class RequestCount:
    """Middleware that counts and traces each answer by the pattern of its route."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        started = time.perf_counter()
        method = request.method if request.method in _METHODS else "other"
        with tracing.span("request", http__request__method=method) as span:
            response = self.get_response(request)
            route = request.resolver_match.route if request.resolver_match else "none"
            span.rename(f"{method} {route}")
            span.set(http__route=route, http__response__status_code=response.status_code)
            if response.status_code >= 500:
                span.fail(str(response.status_code))
        seconds = time.perf_counter() - started
        requests, request_seconds = _counters_of(method, route, response.status_code)
        requests.inc()
        request_seconds.observe(seconds)
        return response


@cache
def _counters_of(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """Return the counters, which prometheus_client would look up by their labels each time. They are never dropped."""
    return REQUESTS.labels(method, route, status), REQUEST_SECONDS.labels(method, route)


def count_error(where: str, code: str) -> None:
    """Count an error. `where`: the kind of work, such as "rest", "turn" or "run"."""
    ERRORS.labels(where, _bounded(code)).inc()


class TokenUsage(Protocol):
    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...


@dataclass(slots=True)
class ModelCall:
    usage: TokenUsage | None = None


@contextmanager
def model_call(model: str) -> Iterator[ModelCall]:
    """Count and trace a call with its retries when it ends, and the tokens of the `usage` that it was given. `model` is
    a configured name."""
    call, outcome = ModelCall(), "ok"
    span = tracing.begin(f"model {model}", gen_ai__request__model=model)
    try:
        yield call
    except AdiuvaError as error:
        outcome = error.code
        raise
    except Exception:
        outcome = "unexpected"
        raise
    except BaseException:  # cancelled, or the reader of a stream left
        outcome = "ok" if call.usage else "cancelled"
        raise
    finally:
        _labelled(MODEL_CALLS, model, _bounded(outcome)).inc()
        if call.usage:
            _labelled(TOKENS, model, "input").inc(call.usage.input_tokens)
            _labelled(TOKENS, model, "output").inc(call.usage.output_tokens)
            span.set(
                gen_ai__usage__input_tokens=call.usage.input_tokens,
                gen_ai__usage__output_tokens=call.usage.output_tokens,
            )
        if outcome != "ok":
            span.fail(outcome)
        span.end()


@cache
def _labelled(counter: Counter, *labels: str) -> Counter:
    """Return a counter's time series with these few labels. A counter would look them up under a lock at each call."""
    return counter.labels(*labels)


def _bounded(code: str) -> str:
    """Return the code, or "other" once there are too many, because each makes a time series that stays."""
    if code not in _codes:
        with _codes_guard:
            if len(_codes) >= _MOST_CODES:
                return "other"
            _codes.add(code)
    return code


# ── What is read at each scrape ─────────────────────────────────────────────────────────────────────────

Samples = Iterable[tuple[tuple[str, ...], float]]


@dataclass(frozen=True)
class _Fact:
    name: str
    help: str
    labels: tuple[str, ...]
    read: Callable[[], Samples]


_facts: list[_Fact] = []


def at_scrape(name: str, help_text: str, labels: tuple[str, ...], read: Callable[[], Samples]) -> None:
    """Register a gauge that beat reads from the database at each scrape. `read` gives label values and the value; it
    must be cheap on large tables."""
    _facts.append(_Fact(name, help_text, labels, read))


class _ProcessCounts(Collector):
    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "adiuva_unexpected_errors",
            "Unexpected errors that this process has logged.",
            value=count_failures(),
        )


class StoreFacts(Collector):
    """Collector of gauges from the database. If it does not answer, one gauge says so and the others are absent rather
    than 0."""

    def describe(self) -> Iterator[Metric]:
        return iter(())  # otherwise registering would query the database

    def collect(self) -> Iterator[Metric]:
        found: list[Metric] = []
        is_readable = True
        try:
            for fact in _facts:
                gauge = GaugeMetricFamily(fact.name, fact.help, labels=fact.labels)
                for values, value in fact.read():
                    gauge.add_metric(values, value)
                found.append(gauge)
        except Exception as error:
            log_failure("metrics.not_read", error, level="warning")
            is_readable, found = False, []
        finally:
            connection.close()
        yield GaugeMetricFamily(
            "adiuva_store_readable", "1 if the database answered this scrape.", value=float(is_readable)
        )
        yield from found


REGISTRY.register(_ProcessCounts())
_served: set[tuple[int, CollectorRegistry]] = set()
_with_store_facts: set[CollectorRegistry] = set()


def serve(*, with_store_facts: bool = False, registry: CollectorRegistry = REGISTRY) -> None:
    """Serve this process's counters from a thread, if a port is set. Raises OSError if the port is taken.

    A second call, as by beat in a thread of a worker, only adds what was not served so far.
    """
    if not settings.METRICS_PORT:
        return
    if with_store_facts and registry not in _with_store_facts:
        registry.register(StoreFacts())
        _with_store_facts.add(registry)
    if (settings.METRICS_PORT, registry) not in _served:
        start_http_server(settings.METRICS_PORT, addr=settings.METRICS_HOST, registry=registry)
        _served.add((settings.METRICS_PORT, registry))
