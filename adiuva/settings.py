"""Django settings. Every value that differs between installations comes from adiuva.core.env; see .env.example."""

from __future__ import annotations

import re
import sys
from datetime import timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

from celery.schedules import schedule
from django.core.exceptions import ImproperlyConfigured

from adiuva import __version__
from adiuva.core import env, logging
from adiuva.core.crypto import KeyRing

BASE_DIR = env.BASE_DIR
STATE_DIR = env.state_dir()

# ── What kind of installation this is ───────────────────────────────────────────────────────────────────
# Without a word on it, an installation with a database of its own is a production one; see adiuva.checks.
ENVIRONMENT = env.choice(
    "ADIUVA_ENV",
    ("development", "production"),
    "production" if env.text("DATABASE_URL") and not env.flag("ADIUVA_EMBEDDED") else "development",
)
PRODUCTION = ENVIRONMENT == "production"
DEBUG = env.flag("ADIUVA_DEBUG")

# For commands that touch no user's data (makemigrations, schema); production refuses both.
DEVELOPMENT_SECRET_KEY = "development-only-secret-key-of-no-worth-at-all"  # noqa: S105
DEVELOPMENT_KEYS = "development:YWRpdXZhLWRldmVsb3BtZW50LW9ubHkta2V5LTAwMSE="
SECRET_KEY = env.text("ADIUVA_SECRET_KEY", DEVELOPMENT_SECRET_KEY)
SECRET_KEY_FALLBACKS = env.words("ADIUVA_SECRET_KEY_FALLBACKS")
KEYS = env.words("ADIUVA_KEYS", (DEVELOPMENT_KEYS,))
try:
    KEY_RING = KeyRing.parse(KEYS)
except ValueError as error:
    raise ImproperlyConfigured(f"ADIUVA_KEYS: {error}") from None

PORT = env.integer("ADIUVA_PORT", 8000, least=1)
HOST = env.text("ADIUVA_HOST", "127.0.0.1")
PUBLIC_URL = env.text("ADIUVA_PUBLIC_URL", f"http://localhost:{PORT}").rstrip("/")
SERVER = env.choice("ADIUVA_SERVER", ("uvicorn", "daphne"), "uvicorn")
ALLOWED_HOSTS = env.words("ADIUVA_ALLOWED_HOSTS", () if PRODUCTION else ("localhost", "127.0.0.1", "[::1]"))
# Origins a browser may open the device socket from; native clients send none.
ALLOWED_ORIGINS = env.words("ADIUVA_ALLOWED_ORIGINS", (PUBLIC_URL,))
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]
TRUSTED_PROXIES = env.integer("ADIUVA_TRUSTED_PROXIES", 0, least=0)

# ── Applications ────────────────────────────────────────────────────────────────────────────────────────
INSTALLED_APPS = [
    *(["daphne"] if "runserver" in sys.argv else []),  # its import brings Twisted: only where it serves
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_celery_beat",
    "channels",
    "adiuva",
    "adiuva.accounts",
    "adiuva.devices",
    "memory",
    "integrations",
    "agents",
    "chat",
    "adiuva.export",
]
MIDDLEWARE = [
    "adiuva.core.logging.RequestLog",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
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
DATA_UPLOAD_MAX_NUMBER_FILES = 0  # forms have fields alone

# ── PostgreSQL ──────────────────────────────────────────────────────────────────────────────────────────


def _database(name: str, url: str, *, connections: tuple[int, int]) -> dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme not in {"postgres", "postgresql"} or not parts.path.strip("/"):
        raise ImproperlyConfigured(f"{name} must look like postgresql://user:password@host:5432/name")
    least, most = connections
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
        # Under ASGI connections belong to a pool, not to threads.
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,  # or each pooled connection would fail once after a restart
        "OPTIONS": {
            "pool": {"min_size": least, "max_size": most, "timeout": 10},
            "options": "-c jit=off",  # what is asked here is short: to compile it would take longer
            "prepare_threshold": 5,  # psycopg's own default; adiuva.core.db asks for it, no other statement is prepared
        },
    }


DATABASES = {
    "default": _database(
        "DATABASE_URL",
        env.text("DATABASE_URL", "postgresql://adiuva@127.0.0.1:5432/adiuva"),
        connections=(1, env.integer("ADIUVA_DB_POOL", 16, least=2)),
    )
}
# Users' data keys and nothing else, so that no dump of the main database opens what it holds; see accounts/keys.py.
if _keys_url := env.text("ADIUVA_KEYS_DATABASE_URL"):
    DATABASES["keys"] = _database("ADIUVA_KEYS_DATABASE_URL", _keys_url, connections=(0, 4))
KEYS_APART = len({tuple(each[part] for part in ("HOST", "PORT", "NAME")) for each in DATABASES.values()}) == 2
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# ── Redis (or Valkey) ───────────────────────────────────────────────────────────────────────────────────
REDIS_URL = env.text("REDIS_URL", "redis://127.0.0.1:6379/0")
CHANNEL_LAYERS = {
    "default": {
        # socket_timeout: redis-py's own default would end idle subscriptions.
        "BACKEND": "adiuva.core.channel_layer.Layer",
        "CONFIG": {"hosts": [{"address": REDIS_URL, "socket_timeout": None}]},
    }
}
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "adiuva",
    }
}

# ── Celery: a hint to a worker; the row decides ─────────────────────────────────────────────────────────
CELERY_BROKER_URL = REDIS_URL
CELERY_RESULT_BACKEND = None
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_WORKER_POOL = "threads"
CELERY_WORKER_CONCURRENCY = env.integer("ADIUVA_WORKER_CONCURRENCY", 16, least=1)
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_SEND_TASK_EVENTS = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None  # a worker outlives any restart of Redis
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 5
CELERY_BEAT_SCHEDULE = {
    "agents: start what is due": {"task": "agents.tick", "schedule": schedule(timedelta(seconds=30))},
    "agents: sweep runs": {"task": "agents.sweep", "schedule": schedule(timedelta(seconds=10))},
    "agents: forget journeys": {
        "task": "agents.forget_journeys",
        "schedule": schedule(timedelta(minutes=10)),
    },
    "chat: end lost turns": {"task": "chat.sweep", "schedule": schedule(timedelta(seconds=60))},
    "memory: record what was said": {"task": "memory.sweep", "schedule": schedule(timedelta(seconds=60))},
    "memory: tend indexes": {"task": "memory.tend", "schedule": schedule(timedelta(hours=1))},
    "memory: consolidate": {"task": "memory.consolidate", "schedule": schedule(timedelta(minutes=5))},
    "exports: sweep archives": {"task": "export.sweep", "schedule": schedule(timedelta(seconds=60))},
    "accounts: end old sessions": {"task": "accounts.prune", "schedule": schedule(timedelta(hours=6))},
}

# ── Accounts ────────────────────────────────────────────────────────────────────────────────────────────
AUTH_USER_MODEL = "accounts.User"
PASSWORD_HASHERS = ["adiuva.accounts.hashers.Argon2id"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
ACCESS_TOKEN_LIFE = timedelta(seconds=env.integer("ADIUVA_ACCESS_TOKEN_S", 900, least=5))
SESSION_LIFE = timedelta(days=60)  # of a refresh token that is not used
REFRESH_GRACE = timedelta(seconds=30)  # for an answer that was lost on the way
TICKET_LIFE = timedelta(seconds=30)
LOGIN_URL = "rest_framework:login"
LOGIN_REDIRECT_URL = "/api/v1/"

# ── REST ────────────────────────────────────────────────────────────────────────────────────────────────
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "adiuva.accounts.authentication.BearerAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": [
        "rest_framework.renderers.JSONRenderer",
        "rest_framework.renderers.BrowsableAPIRenderer",
    ],
    "DEFAULT_PARSER_CLASSES": [
        "adiuva.core.parsers.JSONParser",
        "rest_framework.parsers.FormParser",
        "rest_framework.parsers.MultiPartParser",  # what the browsable pages' forms send
    ],
    "DEFAULT_PAGINATION_CLASS": "adiuva.core.rest.PageLimitPagination",
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_THROTTLE_RATES": {
        "login": env.text("ADIUVA_LOGIN_RATE", "10/min"),  # an address and an e-mail
        "login_address": env.text("ADIUVA_LOGIN_ADDRESS_RATE", "60/min"),
        "refresh": env.text("ADIUVA_REFRESH_RATE", "120/min"),
    },
    "EXCEPTION_HANDLER": "adiuva.core.rest.exception_handler",
    "NUM_PROXIES": TRUSTED_PROXIES,
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Adiuva",
    "DESCRIPTION": "The server that thinks for a freelancer's data and leaves it on the freelancer's device.",
    "VERSION": __version__,
    "SERVE_INCLUDE_SCHEMA": False,
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "PARSER_WHITELIST": ["adiuva.core.parsers.JSONParser", "rest_framework.parsers.FormParser"],
    "ENUM_NAME_OVERRIDES": {
        "TierEnum": "adiuva.accounts.models.Tier",
        "KindEnum": "chat.models.Kind",
        "StateEnum": "agents.models.Run.State",
        "MemoryTierEnum": "memory.models.Tier",
        "MemorySourceKindEnum": "memory.models.SourceKind",
        "ExportStateEnum": "adiuva.export.models.Export.State",
    },
}

# ── Models ──────────────────────────────────────────────────────────────────────────────────────────────
MODEL = {
    "model": env.text("ADIUVA_MODEL"),
    "api_base": env.text("ADIUVA_MODEL_API_BASE"),
    "api_key": env.text("ADIUVA_MODEL_API_KEY"),
}
EMBEDDING_MODEL = {
    "model": env.text("ADIUVA_EMBEDDING_MODEL"),
    "api_base": env.text("ADIUVA_EMBEDDING_MODEL_API_BASE"),
    "api_key": env.text("ADIUVA_EMBEDDING_MODEL_API_KEY"),
}
MODEL_TIMEOUT_S = env.number("ADIUVA_MODEL_TIMEOUT_S", 120.0)
MODEL_CONCURRENCY = env.integer("ADIUVA_MODEL_CONCURRENCY", 24, least=1)  # whole answers, for runs
MODEL_STREAMS = env.integer("ADIUVA_MODEL_STREAMS", 256, least=1)  # streamed ones, for chats

# ── Device socket: seconds, bytes and counts of the protocol ────────────────────────────────────────────
SOCKET = {
    "ping_s": env.number("ADIUVA_PING_S", 30.0),
    "pong_s": env.number("ADIUVA_PONG_S", 10.0),
    "hello_s": env.number("ADIUVA_HELLO_S", 10.0),
    "answer_s": env.number("ADIUVA_ANSWER_S", 30.0),  # of a device, to a tool call
    "max_inflight": 8,
}

# ── Agent runs ──────────────────────────────────────────────────────────────────────────────────────────
RUNS: dict[str, Any] = {
    "lease_s": env.number("ADIUVA_RUN_LEASE_S", 60.0),  # of a worker that says nothing
    "spill_bytes": env.integer("ADIUVA_RUN_SPILL_MB", 512, least=1) << 20,  # of frames that wait in a file
    "idle_s": env.number("ADIUVA_RUN_IDLE_S", 120.0),  # of a device that is connected and sends nothing
    "retries": env.integer("ADIUVA_RUN_RETRIES", 5, least=0),  # after faults that pass, a run
    "retry_s": env.number("ADIUVA_RUN_RETRY_S", 30.0),  # at most before the first; it doubles each time
    "longest_retry_s": env.number("ADIUVA_RUN_LONGEST_RETRY_S", 900.0),
    "deadly": env.integer("ADIUVA_RUN_DEADLY", 3, least=2),  # workers that a source killed: it is set aside
    "deadly_s": env.integer("ADIUVA_RUN_DEADLY_S", 86_400, least=1),  # for so long
}

# ── Chat ────────────────────────────────────────────────────────────────────────────────────────────────
CHAT: dict[str, Any] = {
    "deadline_s": env.number("ADIUVA_TURN_DEADLINE_S", 300.0),  # of a turn, its tools and approvals included
    "max_model_calls": env.integer("ADIUVA_TURN_MODEL_CALLS", 16, least=1),  # of a turn
    "device_wait_s": env.number("ADIUVA_DEVICE_WAIT_S", 60.0),  # for a device that dropped, in a tool call
    "history_chars": env.integer("ADIUVA_HISTORY_CHARS", 48_000, least=1_000),  # beyond which it is summed up
}

# ── Memory ───────────────────────────────────────────────────────────────────────────────────────────────
MEMORY: dict[str, Any] = {
    "quiet_s": env.number("ADIUVA_MEMORY_QUIET_S", 1800.0),  # after which a session is over, and an episode
    "condense_days": env.integer("ADIUVA_MEMORY_CONDENSE_DAYS", 14, least=1),  # from the end of a week
    "parts_days": env.integer("ADIUVA_MEMORY_PARTS_DAYS", 90, least=1),  # of what was condensed
    "unused_days": env.integer("ADIUVA_MEMORY_UNUSED_DAYS", 180, least=1),  # neither needed nor repeated
    "used_days": env.integer("ADIUVA_MEMORY_USED_DAYS", 365, least=1),  # from its last use
    "history_days": env.integer("ADIUVA_MEMORY_HISTORY_DAYS", 365, least=1),
    "receipt_days": env.integer("ADIUVA_MEMORY_RECEIPT_DAYS", 90, least=1),
}

# ── Integrations: mailboxes and channels that users connect; see docs/connectors.md ─────────────────────


def _endpoint(name: str, default: str) -> str:
    """A base address of a provider: https, or plain http on loopback, where tests put theirs."""
    url = env.text(name, default).rstrip("/")
    parts = urlsplit(url)
    loopback = parts.hostname in {"127.0.0.1", "::1", "localhost"}
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if not plain or not parts.hostname or parts.scheme not in ({"https", "http"} if loopback else {"https"}):
        raise ImproperlyConfigured(f"{name} must be a plain https address")
    return url


GOOGLE = {
    "client_id": env.text("ADIUVA_GOOGLE_CLIENT_ID"),
    "client_secret": env.text("ADIUVA_GOOGLE_CLIENT_SECRET"),
    "auth_uri": _endpoint("ADIUVA_GOOGLE_AUTH_URI", "https://accounts.google.com/o/oauth2/v2/auth"),
    "token_uri": _endpoint("ADIUVA_GOOGLE_TOKEN_URI", "https://oauth2.googleapis.com/token"),
    "revoke_uri": _endpoint("ADIUVA_GOOGLE_REVOKE_URI", "https://oauth2.googleapis.com/revoke"),
    "api": _endpoint("ADIUVA_GMAIL_API", "https://gmail.googleapis.com"),
}
MICROSOFT = {
    "client_id": env.text("ADIUVA_MICROSOFT_CLIENT_ID"),
    "client_secret": env.text("ADIUVA_MICROSOFT_CLIENT_SECRET"),
    "tenant": env.text("ADIUVA_MICROSOFT_TENANT", "common"),
    "authority": _endpoint("ADIUVA_MICROSOFT_AUTHORITY", "https://login.microsoftonline.com"),
    "api": _endpoint("ADIUVA_GRAPH_API", "https://graph.microsoft.com/v1.0"),
}
# Where the desktop app is reached from a page in the browser.
APP_LINK = env.text("ADIUVA_APP_LINK", "adiuva://")
if not re.fullmatch(r"(?!(?:javascript|data|vbscript|file|https?):)[a-z][a-z0-9+.-]*://", APP_LINK):
    raise ImproperlyConfigured("ADIUVA_APP_LINK must be a scheme of the app's own, such as adiuva://")
CELERY_BEAT_SCHEDULE["integrations: sweep connections"] = {
    "task": "integrations.sweep",
    "schedule": schedule(timedelta(seconds=60)),
}

# ── The rest ────────────────────────────────────────────────────────────────────────────────────────────
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False
LOGGING = logging.configure(env.text("ADIUVA_LOG_LEVEL", "INFO"), as_json=env.flag("ADIUVA_LOG_JSON", True))

SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if TRUSTED_PROXIES else None
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
if PRODUCTION:
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
    SECURE_HSTS_SECONDS = env.integer("ADIUVA_HSTS_S", 0, least=0)
X_FRAME_OPTIONS = "DENY"
