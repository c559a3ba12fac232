"""Django system checks: what production must have configured, and which PostgreSQL and pgvector Adiuva needs.

Django's commands run the first kind, `migrate` also the second. ASGI servers, workers and beat run no commands, so they
call `refuse_unsafe_start`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register, run_checks
from django.db import DEFAULT_DB_ALIAS, connection

from adiuva.accounts.validators import timezones
from adiuva.core import tracing
from adiuva.llm import prices
from adiuva.local_embeddings import CONFIGURED_NAME, WeightsMissing, find_file

_MIN_SECRET_CHARS = 32
_OFFLINE_MODEL = "adiuva-offline"
_MIN_POSTGRES: Final = (15, 0)  # the first with NULLS NOT DISTINCT
_MIN_PGVECTOR: Final = (0, 7)  # the first with halfvec


@register("adiuva")
def check_production(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """Report settings that would let strangers in or keep Adiuva from working, in production."""
    return list(_configuration_problems()) if settings.PRODUCTION else []


@register("adiuva")
def check_traces(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """Report a traces endpoint that is set while traces cannot be made or sent."""
    if not (endpoint := settings.TRACES_ENDPOINT):
        return []
    if not tracing.is_installed():
        return [
            Error(
                "ADIUVA_TRACES_ENDPOINT is set, but OpenTelemetry is not installed.",
                hint="Run `pip install -r requirements-traces.txt`, or unset it.",
                id="adiuva.E009",
            )
        ]
    if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname:
        return [
            Error(
                "ADIUVA_TRACES_ENDPOINT is no http or https address.",
                hint="Set it to the collector's, such as http://127.0.0.1:4318/v1/traces.",
                id="adiuva.E010",
            )
        ]
    return []


@register("adiuva")
def check_prices(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """Report prices that cannot be read, and models without a price where costs are limited."""
    try:
        prices.configured_prices(settings.MODEL_PRICE)
    except ValueError as error:
        return [
            Error(f"ADIUVA_MODEL_PRICE {error}.", hint="Write 0.4,1.6 or model=0.4,1.6.", id="adiuva.E013")
        ]
    if not (settings.PLANS or settings.INSTALLATION_BUDGET):
        return []
    asked = {name or settings.MODEL["model"] for name in settings.MODELS_BY_PURPOSE.values()}
    unpriced = sorted(
        name for name in (asked | set(settings.MODEL_FALLBACKS)) - {""} if prices.price_of(name) is None
    )
    return [
        Error(
            f"{name} has no price, but what models may cost is limited.",
            hint="Set ADIUVA_MODEL_PRICE to what a million tokens cost, as input,output; 0,0 if they cost nothing.",
            id="adiuva.E012",
        )
        for name in unpriced
    ]


@register(Tags.database)
def check_postgres(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Report a PostgreSQL or pgvector too old for the tables, before `migrate` creates the first of them."""
    return list(_database_problems()) if DEFAULT_DB_ALIAS in (databases or ()) else []


def refuse_unsafe_start() -> None:
    """End the process, with one line per problem, if a check with the tag "adiuva" fails.

    Raises SystemExit.
    """
    found = [problem for problem in run_checks(tags=["adiuva"]) if problem.is_serious()]
    if found:
        raise SystemExit("\n".join(f"{problem.id}: {problem.msg} {problem.hint}" for problem in found))


def _configuration_problems() -> Iterator[CheckMessage]:
    if settings.STRIPE["api"]:
        yield Error(
            "ADIUVA_STRIPE_API leads payments to a double of Stripe, which takes no money.",
            hint="Unset it.",
            id="adiuva.E011",
        )
    secrets = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    if settings.DEVELOPMENT_SECRET_KEY in secrets:
        yield Error(
            "ADIUVA_SECRET_KEY is missing, or the development one.",
            hint="Set it to a random text that is kept secret, such as `openssl rand -base64 48` makes.",
            id="adiuva.E001",
        )
    elif any(len(secret) < _MIN_SECRET_CHARS for secret in secrets):
        yield Error(
            f"ADIUVA_SECRET_KEY or a fallback is shorter than {_MIN_SECRET_CHARS} characters.",
            hint="Tokens could be forged: use a longer random text.",
            id="adiuva.E002",
        )
    _, _, development = settings.DEVELOPMENT_KEYS.partition(":")
    if any(entry.partition(":")[2] == development for entry in settings.KEYS):
        yield Error(
            "ADIUVA_KEYS is missing, or holds the development key.",
            hint="Set it to `name:key`, where key is what `openssl rand -base64 32` makes.",
            id="adiuva.E003",
        )
    if not settings.ALLOWED_HOSTS or "*" in settings.ALLOWED_HOSTS:
        yield Error(
            "ADIUVA_ALLOWED_HOSTS is empty or allows every host.",
            hint="List the host names that clients use for this server.",
            id="adiuva.E004",
        )
    if settings.DEBUG:
        yield Error(
            "ADIUVA_DEBUG is on.",
            hint="Its error pages show settings and data: turn it off.",
            id="adiuva.E005",
        )
    if settings.EMBEDDED:
        yield Error(
            "ADIUVA_EMBEDDED is on.",
            hint="The servers of `make run` are for development: set DATABASE_URL and REDIS_URL to your own.",
            id="adiuva.E006",
        )
    if not settings.MODEL["model"]:
        yield Warning(
            "ADIUVA_MODEL is not set.",
            hint="Chat and agents need a model.",
            id="adiuva.W001",
        )
    elif _OFFLINE_MODEL in settings.MODEL["model"]:
        yield Warning(
            "ADIUVA_MODEL is the offline model.",
            hint="It answers by fixed rules and is meant for trying Adiuva out.",
            id="adiuva.W002",
        )
    if settings.EMBEDDING_MODEL["model"] == CONFIGURED_NAME and not settings.EMBEDDING_MODEL["api_base"]:
        try:
            find_file()
        except WeightsMissing as error:
            yield Warning(
                f"ADIUVA_EMBEDDING_MODEL is {CONFIGURED_NAME}, but {error}.",
                hint="Install it, or name another model: until then the memory is searched by words alone.",
                id="adiuva.W005",
            )
    if urlsplit(settings.PUBLIC_URL).scheme != "https":
        yield Warning(
            "ADIUVA_PUBLIC_URL does not begin with https.",
            hint="Sign-in cookies are sent over TLS only, so the admin will not work without.",
            id="adiuva.W003",
        )
    if not settings.MAIL_ENABLED:
        yield Warning(
            "ADIUVA_MAIL_URL is not set.",
            hint="Nobody can set a forgotten password anew, and registering tells which addresses have an account.",
            id="adiuva.W006",
        )
    if not settings.KEYS_APART:
        yield Warning(
            "ADIUVA_KEYS_DATABASE_URL is not set, or names the main database.",
            hint="Dumps of the data hold the users' keys: an old dump still opens the data of deleted accounts.",
            id="adiuva.W004",
        )


def _database_problems() -> Iterator[CheckMessage]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT default_version FROM pg_available_extensions WHERE name = 'vector'")
        found = cursor.fetchone()
        cursor.execute("SELECT name FROM pg_timezone_names")
        known = {name for (name,) in cursor.fetchall()}
    if (version := connection.get_database_version()) < _MIN_POSTGRES:
        yield Error(
            f"PostgreSQL is {'.'.join(map(str, version))}.",
            hint=f"Adiuva needs PostgreSQL {_MIN_POSTGRES[0]} or newer.",
            id="adiuva.E007",
        )
    if found is None or tuple(map(int, found[0].split(".")[:2])) < _MIN_PGVECTOR:
        yield Error(
            f"pgvector is {found[0]}." if found else "PostgreSQL has no pgvector.",
            hint=f"Install pgvector {'.'.join(map(str, _MIN_PGVECTOR))} or newer on the database's server.",
            id="adiuva.E008",
        )
    if unknown := sorted(timezones() - known):
        yield Warning(
            f"PostgreSQL does not know time zones that users may choose: {', '.join(unknown)}.",
            hint="Chats of such users fail: update the time zone data on the database's server.",
            id="adiuva.W007",
        )
