"""Health checks for load balancers and operators: `/health` (alive) and `/health/ready` (able to work)."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import psycopg
import redis
import structlog
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections
from django.db import Error as DatabaseError
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.permissions import AllowAny
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva import __version__
from adiuva.core import celery_heartbeat, readiness
from adiuva.core.browsable_api import BrowsableRenderer
from adiuva.core.logging import count_failures
from adiuva.core.postgresql.base import live_connection
from adiuva.core.readiness import Facts

# A check waits this long for a database connection.
_CONNECT_TIMEOUT_S = 2.0
# Write half a megabyte to a temporary file, because a database with a full disk still answers reads. It leaves nothing
# behind.
_WRITE_A_FILE = "SELECT count(*) FROM generate_series(1, 20000)"

log = structlog.get_logger(__name__)


class HealthSerializer(serializers.Serializer[Any]):
    status = serializers.CharField(default="ok")
    version = serializers.CharField(default=__version__)
    unexpected_errors = serializers.IntegerField(help_text="Logged by this process since it started.")


class CheckSerializer(serializers.Serializer[Any]):
    ok = serializers.BooleanField()
    ms = serializers.FloatField(help_text="How long the check took.")
    reason = serializers.CharField(required=False, help_text="Why it is not ok, for people.")
    queued = serializers.IntegerField(required=False, help_text="For `runs`: how many wait for a worker.")
    oldest_queued_s = serializers.FloatField(
        required=False, help_text="For `runs`: for how many seconds the first of them has waited."
    )
    due = serializers.IntegerField(
        required=False, help_text="For `followups`: ends of runs that chats are to be told."
    )
    dead = serializers.IntegerField(
        required=False, help_text="For `followups`: ends that no turn could tell, only a notice."
    )


class ReadySerializer(serializers.Serializer[Any]):
    status = serializers.CharField(help_text="ok or degraded.")
    checks = serializers.DictField(child=CheckSerializer())


class _NeverRefused(BaseContentNegotiation):
    """Negotiation that gives browsers a page and others JSON: a probe must not be refused over its headers."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        return parsers[0]

    def select_renderer(self, request: Request, renderers: Any, format_suffix: Any = None) -> Any:
        asks_for_page = "text/html" in request.headers.get("Accept", "").lower()
        chosen = next(each for each in renderers if (each.format == "api") is asks_for_page)
        return chosen, chosen.media_type


class _PublicView(APIView):
    authentication_classes = []
    permission_classes = [AllowAny]
    throttle_classes = []
    renderer_classes = [JSONRenderer, BrowsableRenderer]
    content_negotiation_class = _NeverRefused


class Health(_PublicView):
    """This process is alive. Touches neither the database nor Redis."""

    @extend_schema(operation_id="health", responses=HealthSerializer, auth=[])
    def get(self, request: Request) -> Response:
        return Response({"status": "ok", "version": __version__, "unexpected_errors": count_failures()})


class Ready(_PublicView):
    """Everything that users need works: database, Redis, workers of both lanes and beat. 503 if something does not.

    Both stores are written to, since one whose disk is full still answers reads.
    """

    @extend_schema(operation_id="ready", responses={200: ReadySerializer, 503: ReadySerializer}, auth=[])
    def get(self, request: Request) -> Response:
        checks = run_checks()
        ok = all(check["ok"] for check in checks.values())
        return Response({"status": "ok" if ok else "degraded", "checks": checks}, status=200 if ok else 503)


def run_checks() -> dict[str, dict[str, Any]]:
    """Return every check by its name: `ok`, how long it took, why it is not ok, and facts."""
    return {name: _timed(name, check) for name, check in _checks().items()}


def _timed(name: str, check: Callable[[], str | Facts]) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        found = check()
    except (DatabaseError, psycopg.Error, redis.RedisError) as error:
        # Only the error's class, because its message may hold the server's address and user name.
        found = f"unknown: {type(error).__name__}"
    reason, facts = (found, {}) if isinstance(found, str) else ("", found)
    ms = round((time.perf_counter() - started) * 1000, 1)
    result: dict[str, Any] = {"ok": not reason, "ms": ms, **facts}
    if reason:
        result["reason"] = reason
        log.warning("readiness.check_failed", check=name, reason=reason)
    return result


def _database(alias: str = DEFAULT_DB_ALIAS) -> str:
    pool = cast(Any, connections[alias]).pool
    try:
        pool.open()
        # Shorter than the wait of requests for a connection, because a probe wants an answer now.
        database = live_connection(pool, partial(pool.getconn, _CONNECT_TIMEOUT_S))
        try:
            with database.transaction():
                database.execute("SET LOCAL work_mem = '64kB'")
                database.execute(_WRITE_A_FILE)
                read_only = database.execute("SHOW transaction_read_only").fetchone() == ("on",)
        finally:
            pool.putconn(database)
        if read_only:
            return "the database takes no writes (it is read only)"
    except psycopg.errors.DiskFull as error:
        return f"the database takes no writes ({type(error).__name__})"
    except psycopg.Error as error:
        # Only the error's class, because its message may hold the server's address and user name.
        return f"the database does not answer ({type(error).__name__})"
    return ""


def _keys() -> str:
    return _database("keys")


def _redis() -> str:
    try:
        celery_heartbeat.write_something()
    except redis.ConnectionError as error:
        return f"Redis does not answer ({type(error).__name__})"
    except redis.ResponseError as error:
        # If an answer has no class of its own, its first word is its code.
        code = str(error).partition(" ")[0] if type(error) is redis.ResponseError else type(error).__name__
        return f"Redis takes no writes ({code})"
    except redis.RedisError as error:
        return f"Redis does not answer ({type(error).__name__})"
    return ""


def _worker() -> str:
    try:
        missing = [
            lane for lane, role in celery_heartbeat.LANES.items() if not celery_heartbeat.count_alive(role)
        ]
    except redis.RedisError:
        return "unknown while Redis does not answer"
    lanes = " and ".join(missing)
    return f"no worker of {lanes} was heard in the last {celery_heartbeat.ALIVE_FOR_S} s" if missing else ""


def _beat() -> str:
    try:
        if celery_heartbeat.count_alive("beat"):
            return ""
    except redis.RedisError:
        return "unknown while Redis does not answer"
    return f"no beat was heard in the last {celery_heartbeat.ALIVE_FOR_S} s"


def _checks() -> dict[str, Callable[[], str | Facts]]:
    """Return the checks. Each returns why it failed, or an empty string, or facts."""
    return {
        "database": _database,
        **({"keys": _keys} if settings.KEYS_APART else {}),
        "redis": _redis,
        "worker": _worker,
        "beat": _beat,
        **readiness.registered(),
    }
