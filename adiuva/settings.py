"""Django settings. Every value that differs between installations is declared in adiuva/env_variables.py."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

from celery.schedules import schedule
from django.core.exceptions import ImproperlyConfigured
from kombu import Exchange, Queue

from adiuva import __version__
from adiuva import env_variables as env
from adiuva.core import logging
from adiuva.core.crypto import KeyRing
from adiuva.core.env import BASE_DIR, Variable, state_dir
from adiuva.core.mail_url import mail_settings

# ── Kind of installation, secrets, addresses ────────────────────────────────────────────────────────────
EMBEDDED = env.EMBEDDED.read()
# Unless ADIUVA_ENV says otherwise, an installation with a database of its own counts as production; see adiuva.checks.
ENVIRONMENT = env.ENVIRONMENT.read("production" if env.DATABASE_URL.read() and not EMBEDDED else None)
PRODUCTION = ENVIRONMENT == "production"
DEBUG = env.DEBUG.read()

# For commands that touch no user's data (makemigrations, schema). Production refuses to start with either.
DEVELOPMENT_SECRET_KEY = "development-only-secret-key-of-no-worth-at-all"  # noqa: S105
DEVELOPMENT_KEYS = "development:YWRpdXZhLWRldmVsb3BtZW50LW9ubHkta2V5LTAwMSE="
SECRET_KEY = env.SECRET_KEY.read(DEVELOPMENT_SECRET_KEY)
SECRET_KEY_FALLBACKS = env.SECRET_KEY_FALLBACKS.read()
DEVELOPMENT_PLUGIN_KEYS = "development:YWRpdXZhLXBsdWdpbnMtZGV2ZWxvcG1lbnQtMDAxISE="
KEYS = env.KEYS.read([DEVELOPMENT_KEYS])
try:
    KEY_RING = KeyRing.parse(KEYS)
except ValueError as error:
    raise ImproperlyConfigured(f"{env.KEYS.name}: {error}") from None
# The development's own key: what it signs is worth nothing, because our clients do not know it.
PLUGIN_KEYS = env.PLUGIN_KEYS.read([] if PRODUCTION else [DEVELOPMENT_PLUGIN_KEYS])
PLUGIN_SCANNER = env.PLUGIN_SCANNER.read()

HOST = env.HOST.read()
PORT = env.PORT.read()
PUBLIC_URL = env.PUBLIC_URL.read(f"http://localhost:{PORT}").rstrip("/")
SERVER = env.SERVER.read()
ALLOWED_HOSTS = env.ALLOWED_HOSTS.read([] if PRODUCTION else ["localhost", "127.0.0.1", "[::1]"])
ALLOWED_ORIGINS = env.ALLOWED_ORIGINS.read(
    [] if PRODUCTION else ["app://*", "http://localhost:*", "http://127.0.0.1:*"]
)
if any("://" not in origin or origin.startswith("*") for origin in ALLOWED_ORIGINS):
    raise ImproperlyConfigured(f"{env.ALLOWED_ORIGINS.name} must list origins, such as https://app.example")
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]
TRUSTED_PROXIES = env.TRUSTED_PROXIES.read()

# ── Applications ────────────────────────────────────────────────────────────────────────────────────────
INSTALLED_APPS = [
    *(["daphne"] if "runserver" in sys.argv else []),  # imports Twisted, so only where it serves
    "adiuva.accounts",  # before Django's users, whose command changepassword it replaces
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "corsheaders",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_celery_beat",
    "channels",
    "adiuva",
    "adiuva.devices",
    "adiuva.object_store",
    "adiuva.vault",
    "billing",
    "memory",
    "integrations",
    "agents",
    "chat",
    "adiuva.export",
    "adiuva.staff",  # after the apps whose permissions its roles have
]
MIDDLEWARE = [
    "adiuva.core.metrics.RequestCount",
    "adiuva.core.logging.RequestLog",
    "adiuva.core.outages.OutageResponses",
    "adiuva.core.language.ApiLanguage",
    "adiuva.core.security_headers.SecurityHeaders",
    "adiuva.core.origins.CorsMiddleware",
    "adiuva.core.address_guard.AddressGuard",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "adiuva.core.browser_middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "adiuva.core.browser_middleware.AuthenticationMiddleware",
    "adiuva.accounts.browser_sessions.BrowserSessions",
    "adiuva.core.browser_middleware.MessageMiddleware",
]
ROOT_URLCONF = "adiuva.urls"
ASGI_APPLICATION = "adiuva.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "static/"
WHITENOISE_USE_FINDERS = True  # no collectstatic step to forget
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024 * 1024
DATA_UPLOAD_MAX_NUMBER_FILES = 1  # the package of a plugin

# ── PostgreSQL ──────────────────────────────────────────────────────────────────────────────────────────


def _database(
    variable: Variable[str], url: str, *, min_connections: int, max_connections: int
) -> dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme not in {"postgres", "postgresql"} or not parts.path.strip("/"):
        raise ImproperlyConfigured(
            f"{variable.name} must look like postgresql://user:password@host:5432/name"
        )
    return {
        "ENGINE": "adiuva.core.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
        # Under ASGI connections belong to a pool, not to threads.
        "CONN_MAX_AGE": 0,
        "OPTIONS": {
            "pool": {"min_size": min_connections, "max_size": max_connections, "timeout": 10},
            "options": "-c jit=off",  # our queries are short: compiling one takes longer than running it
            "prepare_threshold": 5,  # psycopg's default; only statements that adiuva.core.db marks are prepared
        },
    }


DATABASES = {
    "default": _database(
        env.DATABASE_URL,
        env.DATABASE_URL.read("postgresql://adiuva@127.0.0.1:5432/adiuva"),
        min_connections=1,
        max_connections=env.DB_POOL.read(),
    )
}
# A database for users' data keys and nothing else, so that nobody can read a dump of the main database alone; see
# accounts/keys.py.
if _keys_url := env.KEYS_DATABASE_URL.read():
    DATABASES["keys"] = _database(env.KEYS_DATABASE_URL, _keys_url, min_connections=0, max_connections=4)
KEYS_APART = len({tuple(each[part] for part in ("HOST", "PORT", "NAME")) for each in DATABASES.values()}) == 2
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# ── Redis (or Valkey) ───────────────────────────────────────────────────────────────────────────────────
REDIS_URL = env.REDIS_URL.read()
CHANNEL_LAYERS = {
    "default": {
        # socket_timeout: redis-py's default would end idle subscriptions.
        "BACKEND": "adiuva.core.channel_layer.SealedPubSubLayer",
        "CONFIG": {"hosts": [{"address": REDIS_URL, "socket_timeout": None}]},
    }
}
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "adiuva",
        "OPTIONS": {"serializer": "adiuva.core.cache_serializer.JSONSerializer"},
    }
}

# ── Celery: a task is a hint; the row in PostgreSQL decides ─────────────────────────────────────────────────────────
CELERY_BROKER_URL = REDIS_URL
CELERY_RESULT_BACKEND = None
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
# Two lanes, so that neither delays the other. A worker serves both, unless it starts with `-Q runs` or `-Q short`.
CELERY_TASK_QUEUES = [Queue(name, Exchange(name), routing_key=name) for name in ("runs", "short")]
CELERY_TASK_DEFAULT_QUEUE = "short"
CELERY_TASK_ROUTES = {"agents.start_queued": {"queue": "runs"}}
CELERY_WORKER_POOL = "threads"  # the loop of runs and the shares of threads belong to one process
CELERY_WORKER_CONCURRENCY = env.WORKER_CONCURRENCY.read()
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_SEND_TASK_EVENTS = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None  # a worker outlives any restart of Redis
CELERY_BROKER_CHANNEL_ERROR_RETRY = True  # and its full disk, which it answers with errors (MISCONF)
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 5
CELERY_BEAT_SCHEDULE = {
    "agents: start what is due": {"task": "agents.tick", "schedule": schedule(timedelta(seconds=30))},
    "agents: sweep runs": {"task": "agents.sweep", "schedule": schedule(timedelta(seconds=10))},
    "agents: settle what plans hold": {
        "task": "agents.settle_plans",
        "schedule": schedule(timedelta(minutes=5)),
    },
    "agents: check what plans hold": {"task": "agents.check_plans", "schedule": schedule(timedelta(days=1))},
    "agents: resume what waits for money": {
        "task": "agents.resume_with_budget",
        "schedule": schedule(timedelta(seconds=60)),
    },
    "billing: settle what was lost": {
        "task": "billing.settle_lost",
        "schedule": schedule(timedelta(seconds=15)),
    },
    "billing: end what is over": {"task": "billing.sweep", "schedule": schedule(timedelta(seconds=60))},
    "billing: check plans": {"task": "billing.check_plans", "schedule": schedule(timedelta(days=1))},
    "billing: ask Stripe": {"task": "billing.sync", "schedule": schedule(timedelta(seconds=10))},
    "billing: settle with developers": {
        "task": "billing.settle_developers",
        "schedule": schedule(timedelta(minutes=10)),
    },
    "billing: find missed events": {"task": "billing.catch_up", "schedule": schedule(timedelta(minutes=15))},
    "billing: look at domains": {"task": "billing.recheck_domains", "schedule": schedule(timedelta(hours=1))},
    "billing: compare with Stripe": {"task": "billing.compare", "schedule": schedule(timedelta(days=1))},
    "billing: tend plugins": {"task": "billing.tend_plugins", "schedule": schedule(timedelta(seconds=60))},
    "agents: forget journeys": {
        "task": "agents.forget_journeys",
        "schedule": schedule(timedelta(minutes=10)),
    },
    "agents: forget found records": {
        "task": "agents.forget_found_records",
        "schedule": schedule(timedelta(hours=6)),
    },
    "agents: delete old runs": {"task": "agents.delete_expired", "schedule": schedule(timedelta(hours=1))},
    "chat: end lost turns": {"task": "chat.sweep", "schedule": schedule(timedelta(seconds=10))},
    "chat: follow up runs": {"task": "chat.follow_up", "schedule": schedule(timedelta(seconds=10))},
    "memory: record what was said": {"task": "memory.sweep", "schedule": schedule(timedelta(seconds=60))},
    "memory: consolidate": {"task": "memory.consolidate", "schedule": schedule(timedelta(minutes=5))},
    "exports: sweep archives": {"task": "export.sweep", "schedule": schedule(timedelta(seconds=60))},
    "accounts: go on with deletions": {
        "task": "accounts.sweep_deletions",
        "schedule": schedule(timedelta(seconds=60)),
    },
    "accounts: end old sessions": {"task": "accounts.prune", "schedule": schedule(timedelta(hours=6))},
}

# ── Accounts ────────────────────────────────────────────────────────────────────────────────────────────
AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = ["adiuva.accounts.backends.PasswordBackend"]
# An address is unique among the accounts that confirmed it, as the backend above knows.
SILENCED_SYSTEM_CHECKS = ["auth.W004"]
PASSWORD_HASHERS = ["adiuva.accounts.hashers.Argon2id"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
ACCESS_TOKEN_LIFE = timedelta(seconds=env.ACCESS_TOKEN_S.read())
SESSION_LIFE = timedelta(days=60)  # lifetime of a refresh token that nobody uses
REFRESH_GRACE = timedelta(seconds=30)  # how long a used refresh token is accepted: its answer may be lost
TICKET_LIFE = timedelta(seconds=30)
LOGIN_URL = "sign-in"
LOGIN_REDIRECT_URL = "account"

# ── The store of large objects, and the vault ───────────────────────────────────────────────────────────
STORE: dict[str, Any] = {
    "url": env.STORE.read((state_dir() / "objects").as_uri()),
    "endpoint": env.STORE_ENDPOINT.read(),
    "region": env.STORE_REGION.read(),
    "access_key": env.STORE_ACCESS_KEY.read(),
    "secret_key": env.STORE_SECRET_KEY.read(),
    "most_bytes": env.STORE_MAX_GB.read() * 10**9,
    "least_free_bytes": env.STORE_LEAST_FREE_MB.read() * 2**20,
    "keep_days": env.STORE_KEEP_DAYS.read(),
    "upload_hours": env.UPLOAD_HOURS.read(),
    "keep_backups": env.KEEP_BACKUPS.read(),
    "vectors": env.MAX_VECTORS.read(),
}
if not (STORE["url"].startswith("s3://") and urlsplit(STORE["url"]).netloc) and not STORE["url"].startswith(
    "file:///"
):
    raise ImproperlyConfigured(
        f"{env.STORE.name} must look like file:///var/lib/adiuva or s3://bucket/prefix"
    )
CELERY_BEAT_SCHEDULE |= {
    "vault: end what is over": {"task": "vault.sweep", "schedule": schedule(timedelta(seconds=60))},
    "vault: verify what is stored": {"task": "vault.scrub", "schedule": schedule(timedelta(hours=1))},
    "vault: compare what is counted": {"task": "vault.compare", "schedule": schedule(timedelta(days=1))},
    "store: delete garbage": {"task": "object_store.collect", "schedule": schedule(timedelta(seconds=60))},
    "store: compare with rows": {"task": "object_store.compare", "schedule": schedule(timedelta(hours=1))},
}

# ── Payments ────────────────────────────────────────────────────────────────────────────────────────────
STRIPE: dict[str, Any] = {
    "secret_key": env.STRIPE_SECRET_KEY.read(),
    "webhook_secrets": env.STRIPE_WEBHOOK_SECRETS.read(),
    "api": env.STRIPE_API.read(),
    "portal_configuration": env.STRIPE_PORTAL.read(),
    "automatic_tax": env.STRIPE_TAX.read(),
}

# ── Single sign-on ────────────────────────────────────────────────────────────────────────────────────────
SSO_NETWORKS = env.SSO_NETWORKS.read()
SSO_DNS = env.SSO_DNS.read()
SSO_ASK_AGAIN = timedelta(minutes=env.SSO_ASK_AGAIN_MINUTES.read())
SSO_LIFE = timedelta(hours=env.SSO_SESSION_HOURS.read())

# ── Mail ────────────────────────────────────────────────────────────────────────────────────────────────
MAIL_URL = env.MAIL_URL.read("none://" if PRODUCTION else (state_dir() / "mail").as_uri())
MAIL_ENABLED = not MAIL_URL.startswith("none:")
try:
    globals().update(mail_settings(MAIL_URL))
except ValueError as error:
    raise ImproperlyConfigured(f"{env.MAIL_URL.name} {error}") from None
DEFAULT_FROM_EMAIL = env.MAIL_FROM.read(f"Adiuva <no-reply@{urlsplit(PUBLIC_URL).hostname}>")
CELERY_BEAT_SCHEDULE["accounts: send mails"] = {
    "task": "accounts.sweep_mails",
    "schedule": schedule(timedelta(seconds=30)),
}

# ── REST ────────────────────────────────────────────────────────────────────────────────────────────────
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "adiuva.accounts.authentication.BearerAuthentication",
        "adiuva.accounts.authentication.BrowserAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": [
        "adiuva.core.renderers.JSONRenderer",
        "adiuva.core.browsable_api.BrowsableRenderer",
    ],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "adiuva.core.negotiation.Negotiation",
    "DEFAULT_PARSER_CLASSES": [
        "adiuva.core.parsers.JSONParser",
        "rest_framework.parsers.FormParser",
        "rest_framework.parsers.MultiPartParser",  # what the browsable pages' forms send
    ],
    "VIEW_NAME_FUNCTION": "adiuva.core.browsable_api.name_of",
    "VIEW_DESCRIPTION_FUNCTION": "adiuva.core.browsable_api.description_of",
    "DEFAULT_PAGINATION_CLASS": "adiuva.core.paging.PageLimitPagination",
    "DEFAULT_SCHEMA_CLASS": "adiuva.core.openapi.Schema",
    "DEFAULT_THROTTLE_CLASSES": ["billing.throttles.PerTier"],
    "DEFAULT_THROTTLE_RATES": {
        "login": env.LOGIN_RATE.read(),  # an address and an e-mail
        "login_address": env.LOGIN_ADDRESS_RATE.read(),
        "refresh": env.REFRESH_RATE.read(),
        "second_factor": env.SECOND_FACTOR_RATE.read(),
        "mail": env.MAIL_RATE.read(),
    },
    "DEFAULT_METADATA_CLASS": "adiuva.core.rest.Metadata",
    "EXCEPTION_HANDLER": "adiuva.core.rest.exception_handler",
    "NUM_PROXIES": TRUSTED_PROXIES,
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
CSRF_FAILURE_VIEW = "adiuva.views.csrf_failure"

# core.origins says which origins CORS allows. Clients there sign in with a bearer token, never with a cookie.
CORS_URLS_REGEX = r"^/api/"
CORS_ALLOW_HEADERS = [
    "accept",
    "authorization",
    "content-type",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "last-event-id",
    "range",
    "tus-resumable",
    "upload-checksum",
    "upload-length",
    "upload-metadata",
    "upload-offset",
    "x-backup-checksum",
    "x-backup-chunks",
    "x-backup-timestamp",
    "x-backup-version",
    "x-request-id",
    "x-upload-id",
]
CORS_EXPOSE_HEADERS = [
    "Accept-Ranges",
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "Link",
    "Location",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
    "Retry-After",
    "Tus-Resumable",
    "Upload-Expires",
    "Upload-Length",
    "Upload-Metadata",
    "Upload-Offset",
    "X-Backup-Checksum",
    "X-Backup-Id",
    "X-Backup-Timestamp",
    "X-Backup-Version",
    "X-Checksum",
    "X-Request-ID",
    "X-Total-Count",
    "X-Version",
]
CORS_PREFLIGHT_MAX_AGE = 3600  # seconds

SPECTACULAR_SETTINGS = {
    "TITLE": "Adiuva",
    "DESCRIPTION": "The server that thinks for a freelancer's data and leaves it on the freelancer's device.",
    "VERSION": __version__,
    "SERVE_INCLUDE_SCHEMA": False,
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "SWAGGER_UI_DIST": "SIDECAR",
    # Off, because each button would hold a link to its operation, which screen readers cannot tell apart.
    "SWAGGER_UI_SETTINGS": {"deepLinking": False},
    "COMPONENT_SPLIT_REQUEST": True,
    "OAS_VERSION": "3.1.1",
    "SERVERS": [
        {"url": "/", "description": "The server that this document is from."},
        {
            "url": "{server}",
            "description": "Any other; the default is that of `make run`.",
            "variables": {"server": {"default": "http://127.0.0.1:8000"}},
        },
    ],
    "PARSER_WHITELIST": ["adiuva.core.parsers.JSONParser"],  # forms are for the browsable pages alone
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "adiuva.core.openapi.finish",
    ],
    "ENUM_NAME_OVERRIDES": {
        "TierEnum": "adiuva.accounts.models.PlanName",
        "AgentTypeEnum": "agents.models.AgentFamily",
        "AgentKindEnum": "agents.models.AgentType",
        "JourneyAgentTypeEnum": "agents.journeys.serializers.START_TYPES",
        "KindEnum": "chat.models.AssistantKind",
        "StateEnum": "agents.models.Run.State",
        "PluginStateEnum": "billing.marketplace.models.Plugin.State",
        "PluginVersionStateEnum": "billing.marketplace.models.PluginVersion.State",
        "MemoryTierEnum": "memory.models.Tier",
        "MemorySourceKindEnum": "memory.models.SourceKind",
        "MemoryEntryStateEnum": ["current", "proposed", "history"],
        "StatusEnum": ["running", "success", "partial", "error"],
        "TeamMemberStateEnum": "billing.teams.serializers.MEMBER_STATES",
        "TeamRoleEnum": "billing.teams.serializers.ROLES",
        "SeatStateEnum": "billing.teams.models.Membership.State",
        "SubscriptionStatusEnum": "billing.serializers.SUBSCRIPTION_STATES",
        "ExportStateEnum": "adiuva.export.models.Export.State",
    },
}

# ── Plans ───────────────────────────────────────────────────────────────────────────────────────────────
# Without plans everybody may have everything, and nobody is throttled.
PLANS = env.PLANS.read()

# ── Models ──────────────────────────────────────────────────────────────────────────────────────────────
MODEL = {
    "model": env.MODEL.read(),
    "api_base": env.MODEL_API_BASE.read(),
    "api_key": env.MODEL_API_KEY.read(),
}
MODELS_BY_PURPOSE = {
    "chat": env.MODEL_CHAT.read(),
    "extraction": env.MODEL_EXTRACTION.read(),
    "memory": env.MODEL_MEMORY.read(),
}
MODEL_CONTEXT_WINDOW = env.MODEL_CONTEXT_WINDOW.read()
MODEL_FALLBACKS = env.MODEL_FALLBACKS.read()
MODEL_EXTRAS = env.MODEL_EXTRAS.read()
MODEL_PRICE = env.MODEL_PRICE.read()
BUDGET_CURRENCY = env.BUDGET_CURRENCY.read()
BUDGET_RATE = env.BUDGET_RATE.read()
INSTALLATION_BUDGET = env.INSTALLATION_BUDGET.read()
EMBEDDING_MODEL = {
    "model": env.EMBEDDING_MODEL.read(),
    "api_base": env.EMBEDDING_MODEL_API_BASE.read(),
    "api_key": env.EMBEDDING_MODEL_API_KEY.read(),
}
MODEL_TIMEOUT_S = env.MODEL_TIMEOUT_S.read()
MODEL_CONCURRENCY = env.MODEL_CONCURRENCY.read()  # whole answers, for runs
MODEL_CONCURRENCY_PER_USER = env.MODEL_CONCURRENCY_PER_USER.read()
MODEL_STREAMS = env.MODEL_STREAMS.read()  # streamed ones, for chats

# ── Device socket: seconds, bytes and counts of the protocol ────────────────────────────────────────────
SOCKET = {
    "ping_interval_s": env.PING_S.read(),
    "pong_timeout_s": env.PONG_S.read(),
    "hello_timeout_s": env.HELLO_S.read(),
    "tool_answer_timeout_s": env.ANSWER_S.read(),
    "max_batches_in_flight": 8,  # record batches that a device may send before the first is acknowledged
}

# ── Agent runs ──────────────────────────────────────────────────────────────────────────────────────────
RUNS: dict[str, Any] = {
    "slots": env.RUN_SLOTS.read(),
    "slots_per_user": env.RUN_SLOTS_PER_USER.read(),
    "most_held": env.RUN_MOST_HELD.read(),
    "lease_s": env.RUN_LEASE_S.read(),
    "spill_bytes": env.RUN_SPILL_MB.read() << 20,
    "idle_s": env.RUN_IDLE_S.read(),
    "retries": env.RUN_RETRIES.read(),
    "retry_s": env.RUN_RETRY_S.read(),
    "longest_retry_s": env.RUN_LONGEST_RETRY_S.read(),
    "max_worker_crashes": env.RUN_MAX_WORKER_CRASHES.read(),
    "quarantine_s": env.RUN_QUARANTINE_S.read(),
    "keep_days": env.RUN_KEEP_DAYS.read(),
}

# ── Chat ────────────────────────────────────────────────────────────────────────────────────────────────
CHAT: dict[str, Any] = {
    "turn_deadline_s": env.TURN_DEADLINE_S.read(),
    "turn_lease_s": env.TURN_LEASE_S.read(),
    "max_model_calls": env.TURN_MODEL_CALLS.read(),
    "device_reconnect_wait_s": env.DEVICE_WAIT_S.read(),
    "stop_turns_s": env.STOP_TURNS_S.read(),
    "history_max_chars": env.HISTORY_CHARS.read(),
    "unasked_writes_a_turn": env.UNASKED_WRITES_A_TURN.read(),
    "unasked_writes_an_hour": env.UNASKED_WRITES_AN_HOUR.read(),
}

# ── Memory ───────────────────────────────────────────────────────────────────────────────────────────────
MEMORY: dict[str, Any] = {
    "session_idle_s": env.MEMORY_QUIET_S.read(),
    "condense_after_days": env.MEMORY_CONDENSE_DAYS.read(),
    "keep_condensed_parts_days": env.MEMORY_PARTS_DAYS.read(),
    "forget_unused_after_days": env.MEMORY_UNUSED_DAYS.read(),
    "forget_after_last_use_days": env.MEMORY_USED_DAYS.read(),
    "keep_history_days": env.MEMORY_HISTORY_DAYS.read(),
    "keep_receipts_days": env.MEMORY_RECEIPT_DAYS.read(),
}

# ── Integrations: mailboxes and channels that users connect; see docs/connectors.md ─────────────────────

GOOGLE = {
    "client_id": env.GOOGLE_CLIENT_ID.read(),
    "client_secret": env.GOOGLE_CLIENT_SECRET.read(),
    "auth_uri": env.GOOGLE_AUTH_URI.read(),
    "token_uri": env.GOOGLE_TOKEN_URI.read(),
    "revoke_uri": env.GOOGLE_REVOKE_URI.read(),
    "api": env.GMAIL_API.read(),
}
MICROSOFT = {
    "client_id": env.MICROSOFT_CLIENT_ID.read(),
    "client_secret": env.MICROSOFT_CLIENT_SECRET.read(),
    "tenant": env.MICROSOFT_TENANT.read(),
    "authority": env.MICROSOFT_AUTHORITY.read(),
    "api": env.GRAPH_API.read(),
}
APP_LINK = env.APP_LINK.read()
CELERY_BEAT_SCHEDULE["integrations: sweep connections"] = {
    "task": "integrations.sweep",
    "schedule": schedule(timedelta(seconds=60)),
}

# ── The rest ────────────────────────────────────────────────────────────────────────────────────────────
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = True
# The languages of core.language. Below /api/ its middleware chooses one; views that show translated pages do it
# themselves.
LANGUAGES = [("en", "English"), ("de", "Deutsch"), ("fr", "Français"), ("it", "Italiano"), ("es", "Español")]
LOCALE_PATHS = [BASE_DIR / "locale"]
METRICS_HOST = env.METRICS_HOST.read()
METRICS_PORT = env.METRICS_PORT.read()
TRACES_ENDPOINT = env.TRACES_ENDPOINT.read()
TRACES_RATIO = env.TRACES_RATIO.read()
LOGGING = logging.configure(env.LOG_LEVEL.read(), as_json=env.LOG_JSON.read())

SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if TRUSTED_PROXIES else None
if PRODUCTION:
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
    SECURE_HSTS_SECONDS = env.HSTS_S.read()
