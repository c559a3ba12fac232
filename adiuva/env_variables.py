"""Every environment variable that Adiuva reads, declared once: type, default, unit, bounds, meaning.

adiuva/settings.py reads them. `.env.example` and `docs/settings.md` are generated from this table by
`manage.py settings_docs --write`, and a test fails when they differ. A new variable needs its line here, its use in
adiuva/settings.py, and that command.
"""

from __future__ import annotations

from typing import Final

from adiuva.core.env import Section

_RATE: Final = r"\d+/(s|m|h|d)[a-z]*"
_RATE_FORM: Final = "a number per s, min, hour or day, such as 10/min"
# The desktop app's own scheme; none that a browser would run or open itself.
_APP_SCHEME: Final = r"(?!(?:javascript|data|vbscript|file|https?):)[a-z][a-z0-9+.-]*://"

# ── Servers ─────────────────────────────────────────────────────────────────────────────────────────────
_servers = Section("Servers", "Without them, `make run` starts its own.")
DATABASE_URL = _servers.text(
    "DATABASE_URL",
    "",
    "The PostgreSQL database, as postgresql://user:password@host:5432/name. It needs pgvector, which a superuser adds "
    "with CREATE EXTENSION vector.",
    computed="postgresql://adiuva@127.0.0.1:5432/adiuva",
)
REDIS_URL = _servers.text("REDIS_URL", "redis://127.0.0.1:6379/0", "The Redis or Valkey server.")
KEYS_DATABASE_URL = _servers.text(
    "ADIUVA_KEYS_DATABASE_URL",
    "",
    "A second database, for the users' data keys and nothing else: a dump of the main database can then be read only "
    "together with this one, and data of deleted accounts in old dumps never again. `make run` makes one on its own "
    "PostgreSQL. Once set, it must stay set.",
)
DB_POOL = _servers.integer(
    "ADIUVA_DB_POOL", 16, "Database connections of each process.", minimum=2, unit="connections"
)

# ── make run ────────────────────────────────────────────────────────────────────────────────────────────
_make_run = Section("`make run`")
STATE_DIR = _make_run.text(
    "ADIUVA_STATE_DIR",
    ".state",
    "The folder in which it keeps database, secrets, logs and the demo workspace, relative to manage.py.",
)
DEMO = _make_run.flag(
    "ADIUVA_DEMO", True, "Whether to make a demo account with a device; 0 starts only the servers."
)

# ── Web ─────────────────────────────────────────────────────────────────────────────────────────────────
_web = Section("Web")
HOST = _web.text("ADIUVA_HOST", "127.0.0.1", "The address that the web server listens on.")
PORT = _web.integer("ADIUVA_PORT", 8000, "The port that it listens on.", minimum=1, maximum=65535)
SERVER = _web.choice("ADIUVA_SERVER", ("uvicorn", "daphne"), "uvicorn", "The program that serves.")
PUBLIC_URL = _web.text(
    "ADIUVA_PUBLIC_URL",
    "",
    "The address that people and clients use; https behind a proxy.",
    computed="http://localhost:ADIUVA_PORT",
)
TRUSTED_PROXIES = _web.integer(
    "ADIUVA_TRUSTED_PROXIES",
    0,
    "How many proxies are in front of the server; their X-Forwarded-For and X-Forwarded-Proto headers are trusted.",
    minimum=0,
    unit="proxies",
)
ALLOWED_HOSTS = _web.words(
    "ADIUVA_ALLOWED_HOSTS",
    (),
    "The host names under which the server is reached. Production refuses to start without.",
    computed="localhost,127.0.0.1,[::1] in development",
)
ALLOWED_ORIGINS = _web.words(
    "ADIUVA_ALLOWED_ORIGINS",
    (),
    "Origins of pages that may use the API (CORS) and open the device socket; native clients send none. `:*` is any "
    "port, another `*` any part of a name: http://localhost:*, app://*. The server's own origins are always allowed.",
    computed="app://*,http://localhost:*,http://127.0.0.1:* in development",
)
HSTS_S = _web.integer(
    "ADIUVA_HSTS_S",
    0,
    "How long browsers remember to use only https (Strict-Transport-Security); production only.",
    minimum=0,
    unit="seconds",
)

# ── Kind of installation ────────────────────────────────────────────────────────────────────────────────
_installation = Section("Kind of installation")
ENVIRONMENT = _installation.choice(
    "ADIUVA_ENV",
    ("development", "production"),
    "development",
    "Production refuses to start with secrets or options made for development.",
    computed="production if DATABASE_URL is set, except in `make run`",
)
DEBUG = _installation.flag(
    "ADIUVA_DEBUG", False, "Django's debug mode: error pages show settings and data. Refused in production."
)

# ── Secrets ─────────────────────────────────────────────────────────────────────────────────────────────
_secrets = Section("Secrets", "Production refuses to start without them; `make run` makes its own.")
SECRET_KEY = _secrets.text(
    "ADIUVA_SECRET_KEY",
    "",
    "Signs tokens and sessions: at least 32 random characters, such as `openssl rand -base64 48` makes.",
)
SECRET_KEY_FALLBACKS = _secrets.words(
    "ADIUVA_SECRET_KEY_FALLBACKS", (), "Earlier secret keys. Their sessions stay valid."
)
KEYS = _secrets.words(
    "ADIUVA_KEYS",
    (),
    "The ring of keys that wrap users' data keys, newest first, as name:key,name:key. Make a key with "
    "`openssl rand -base64 32`. If they are lost, everything they seal is lost. `manage.py rotate_keys --help` "
    "says how to change them while everything runs.",
)
PLUGIN_KEYS = _secrets.words(
    "ADIUVA_PLUGIN_KEYS",
    (),
    "The ring of keys that sign plugins and the list of revoked ones, oldest first, as id:key,id:key; the last one "
    "signs. Make a key with `openssl rand -base64 32`. Without one no plugin can be approved.",
)
PLUGIN_SCANNER = _secrets.text(
    "ADIUVA_PLUGIN_SCANNER",
    "",
    "A scanner that every submitted plugin must pass: clamd at tcp://host:3310 or unix:///run/clamav/clamd.ctl. While "
    "it cannot be asked, no plugin passes.",
)

# ── Models ──────────────────────────────────────────────────────────────────────────────────────────────
_models = Section("Models")
MODEL = _models.text(
    "ADIUVA_MODEL",
    "",
    "The language model as LiteLLM names it, such as openai/gpt-4.1-mini or anthropic/claude-sonnet-4-5. openai/… with "
    "an API base reaches any OpenAI-compatible server. Without it, `make run` starts the offline model, which answers "
    "by rules.",
)
MODEL_CHAT = _models.text(
    "ADIUVA_MODEL_CHAT", "", "The model for chats, at the same address. Default: ADIUVA_MODEL."
)
MODEL_EXTRACTION = _models.text(
    "ADIUVA_MODEL_EXTRACTION",
    "",
    "The model that reads documents, at the same address. Default: ADIUVA_MODEL.",
)
MODEL_MEMORY = _models.text(
    "ADIUVA_MODEL_MEMORY", "", "The model that keeps the memory, at the same address. Default: ADIUVA_MODEL."
)
MODEL_FALLBACKS = _models.words(
    "ADIUVA_MODEL_FALLBACKS",
    (),
    "Models that are asked in this order when one cannot answer: it is not reachable, limits our requests, has no "
    "quota left, or is not there. All are at the same address, or of the same provider.",
)
MODEL_CONTEXT_WINDOW = _models.integer(
    "ADIUVA_MODEL_CONTEXT_WINDOW",
    0,
    "How much the model reads at once, its answer included. 0: as its endpoint says, or as it turns out.",
    minimum=0,
    unit="tokens",
)
MODEL_EXTRAS = _models.json_object(
    "ADIUVA_MODEL_EXTRAS",
    "More fields for a provider, as a JSON object that is added to each request, such as "
    '{"reasoning_effort": "low"} or {"keep_alive": "1h"}.',
)
MODEL_PRICE = _models.text(
    "ADIUVA_MODEL_PRICE",
    "",
    "Prices of models that LiteLLM's list does not have, or not at your price: input,output[,cached] a million tokens, "
    "such as 0.4,1.6,0.1, in the currency below; or for several, model=0.4,1.6; other/model=0,0. Default: as LiteLLM "
    "lists them.",
)
BUDGET_CURRENCY = _models.text(
    "ADIUVA_BUDGET_CURRENCY",
    "EUR",
    "The currency of costs.",
    pattern="[A-Z]{3}",
    bounds="three letters",
)
BUDGET_RATE = _models.text(
    "ADIUVA_BUDGET_RATE",
    "1",
    "The value of a dollar in that currency. LiteLLM lists prices in dollars.",
    pattern=r"\d{1,6}(\.\d{1,6})?",
    bounds="a number such as 0.92",
)
INSTALLATION_BUDGET = _models.number(
    "ADIUVA_INSTALLATION_BUDGET",
    0.0,
    "What all models together may cost in a calendar month (UTC), in that currency. 0: no limit.",
    minimum=0,
)
MODEL_API_BASE = _models.text("ADIUVA_MODEL_API_BASE", "", "Base address of the model's API.")
MODEL_API_KEY = _models.text("ADIUVA_MODEL_API_KEY", "", "API key for the model.")
MODEL_TIMEOUT_S = _models.number(
    "ADIUVA_MODEL_TIMEOUT_S",
    120.0,
    "How long a model may be silent: before its answer begins, and within it.",
    minimum=0.1,
    unit="seconds",
)
MODEL_CONCURRENCY = _models.integer(
    "ADIUVA_MODEL_CONCURRENCY",
    96,
    "Whole answers in progress at once at one endpoint, in each process. There are fewer while it is slow or refuses.",
    minimum=1,
    unit="calls",
)
MODEL_CONCURRENCY_PER_USER = _models.integer(
    "ADIUVA_MODEL_CONCURRENCY_PER_USER",
    24,
    "How many of them may be for the runs of one user.",
    minimum=1,
    unit="calls",
)
MODEL_STREAMS = _models.integer(
    "ADIUVA_MODEL_STREAMS",
    256,
    "Streamed answers, which people wait for, under way at once at one endpoint, in each process.",
    minimum=1,
    unit="calls",
)
EMBEDDING_MODEL = _models.text(
    "ADIUVA_EMBEDDING_MODEL",
    "",
    "The embedding model as LiteLLM names it; `local` is a small multilingual one on this machine, which `make run` "
    "starts and uses unless told otherwise. `lexical`, or nothing, compares words and letters instead of meaning.",
)
EMBEDDING_MODEL_API_BASE = _models.text(
    "ADIUVA_EMBEDDING_MODEL_API_BASE",
    "",
    "Base address of the embedding model's API. That of the local one is http://127.0.0.1:8767/v1 unless given.",
)
EMBEDDING_MODEL_API_KEY = _models.text(
    "ADIUVA_EMBEDDING_MODEL_API_KEY", "", "API key for the embedding model."
)

# ── Accounts ────────────────────────────────────────────────────────────────────────────────────────────
_accounts = Section("Accounts")
ACCESS_TOKEN_S = _accounts.integer(
    "ADIUVA_ACCESS_TOKEN_S", 900, "How long an access token is valid.", minimum=5, unit="seconds"
)
LOGIN_RATE = _accounts.text(
    "ADIUVA_LOGIN_RATE",
    "10/min",
    "Sign-in attempts for one e-mail address from one network address.",
    pattern=_RATE,
    bounds=_RATE_FORM,
)
LOGIN_ADDRESS_RATE = _accounts.text(
    "ADIUVA_LOGIN_ADDRESS_RATE",
    "60/min",
    "Sign-in attempts from one network address.",
    pattern=_RATE,
    bounds=_RATE_FORM,
)
REFRESH_RATE = _accounts.text(
    "ADIUVA_REFRESH_RATE",
    "120/min",
    "Refreshes of access tokens from one network address.",
    pattern=_RATE,
    bounds=_RATE_FORM,
)

SECOND_FACTOR_RATE = _accounts.text(
    "ADIUVA_SECOND_FACTOR_RATE",
    "20/h",
    "Tries of the second step of signing in, for one account.",
    pattern=_RATE,
    bounds=_RATE_FORM,
)

# ── Plans ───────────────────────────────────────────────────────────────────────────────────────────────
_plans = Section("Plans")
PLANS = _plans.flag(
    "ADIUVA_PLANS",
    False,
    "Whether plans limit what accounts may have, how many requests they make, and what their models may cost. 0 limits "
    "nothing.",
)

# ── Payments ────────────────────────────────────────────────────────────────────────────────────────────
_payments = Section("Payments", "Without a key, nothing can be bought.")
STRIPE_SECRET_KEY = _payments.text("STRIPE_SECRET_KEY", "", "The secret key of the Stripe account.")
STRIPE_WEBHOOK_SECRETS = _payments.words(
    "STRIPE_WEBHOOK_SECRETS",
    (),
    "The secrets that Stripe signs its events with; several while one is replaced.",
)
STRIPE_API = _payments.text(
    "ADIUVA_STRIPE_API", "", "Address of Stripe's API, for a double in tests. Production refuses it."
)
STRIPE_PORTAL = _payments.text(
    "ADIUVA_STRIPE_PORTAL",
    "",
    "Id of the configuration of Stripe's portal, as `manage.py set_up_stripe` makes it.",
)
STRIPE_TAX = _payments.flag(
    "ADIUVA_STRIPE_TAX", False, "Whether Stripe computes taxes and asks for a tax number in a checkout."
)

# ── Single sign-on ──────────────────────────────────────────────────────────────────────────────────────
_sso = Section("Single sign-on", "How members of a team sign in through their organisation.")
SSO_NETWORKS = _sso.words(
    "ADIUVA_SSO_NETWORKS",
    (),
    "Networks of your own, such as 10.0.0.0/8, that organisations' sign-ins may be in. Without them the server "
    "reaches public addresses alone, by https. Owners of teams can make the server ask addresses in these networks.",
)
SSO_DNS = _sso.words(
    "ADIUVA_SSO_DNS",
    (),
    "The name servers that say whether a domain is a team's: address or address:port. Without them, those of the "
    "machine.",
)
SSO_ASK_AGAIN_MINUTES = _sso.integer(
    "ADIUVA_SSO_ASK_AGAIN_MINUTES",
    15,
    "How long a session goes on before the organisation is asked whether it still vouches for its person.",
    minimum=1,
    unit="minutes",
)
SSO_SESSION_HOURS = _sso.integer(
    "ADIUVA_SSO_SESSION_HOURS",
    24,
    "How long a person's sessions go on after the organisation vouched for them, if it cannot be asked again without "
    "them or does not answer. Then they sign in once more.",
    minimum=1,
    unit="hours",
)

# ── Mail ────────────────────────────────────────────────────────────────────────────────────────────────
_mail = Section("Mail", "The server's mails to users: confirmations of addresses, new passwords, notices.")
MAIL_URL = _mail.text(
    "ADIUVA_MAIL_URL",
    "",
    "Where mails go: smtp://user:password@host:587 (with STARTTLS), smtps://user:password@host:465, file:///folder, or "
    "none:// for none at all. Special characters in user and password are percent-encoded. Without mails nobody "
    "can confirm an address or reset a password, and registering tells whether an address has an account.",
    computed="file:// with the folder mail of ADIUVA_STATE_DIR in development, none:// in production",
    pattern=r"(smtp|smtps|file|none)://.*",
    bounds="smtp://, smtps://, file:// or none://",
)
MAIL_FROM = _mail.text(
    "ADIUVA_MAIL_FROM",
    "",
    "The sender of mails, such as Adiuva <no-reply@adiuva.example>.",
    computed="Adiuva <no-reply@ the host of ADIUVA_PUBLIC_URL>",
)
MAIL_RATE = _mail.text(
    "ADIUVA_MAIL_RATE",
    "5/h",
    "Mails that may be requested for one e-mail address.",
    pattern=_RATE,
    bounds=_RATE_FORM,
)

# ── Device socket ───────────────────────────────────────────────────────────────────────────────────────
_socket = Section("Device socket")
PING_S = _socket.number(
    "ADIUVA_PING_S", 30.0, "How often the server pings a device.", minimum=0.1, unit="seconds"
)
PONG_S = _socket.number(
    "ADIUVA_PONG_S", 10.0, "How long a device may take to answer a ping.", minimum=0.1, unit="seconds"
)
HELLO_S = _socket.number(
    "ADIUVA_HELLO_S",
    10.0,
    "How long a new connection may take to identify itself.",
    minimum=0.1,
    unit="seconds",
)
ANSWER_S = _socket.number(
    "ADIUVA_ANSWER_S",
    30.0,
    "How long a device may take to answer a tool call.",
    minimum=0.1,
    unit="seconds",
)

# ── Agent runs ──────────────────────────────────────────────────────────────────────────────────────────
_runs = Section("Agent runs")
WORKER_CONCURRENCY = _runs.integer(
    "ADIUVA_WORKER_CONCURRENCY",
    16,
    "Short tasks that one worker process does at once: exports, deliveries, memory, sweeps.",
    minimum=1,
    unit="threads",
)
RUN_SLOTS = _runs.integer(
    "ADIUVA_RUN_SLOTS",
    16,
    "Runs that work at once in one worker process. One that waits for its device or for the model takes no slot.",
    minimum=1,
    unit="runs",
)
RUN_SLOTS_PER_USER = _runs.integer(
    "ADIUVA_RUN_SLOTS_PER_USER",
    4,
    "Runs of one user that are started at once, in all worker processes together; the others stay queued.",
    minimum=1,
    unit="runs",
)
RUN_MOST_HELD = _runs.integer(
    "ADIUVA_RUN_MOST_HELD",
    256,
    "Runs in one worker process at once, including those that wait.",
    minimum=1,
    unit="runs",
)
RUN_LEASE_S = _runs.number(
    "ADIUVA_RUN_LEASE_S",
    60.0,
    "How long a worker may go without renewing its lease on a run before another worker takes the run over.",
    minimum=0.1,
    unit="seconds",
)
RUN_IDLE_S = _runs.number(
    "ADIUVA_RUN_IDLE_S",
    120.0,
    "How long a connected device may send nothing before its run is put off.",
    minimum=0.1,
    unit="seconds",
)
RUN_RETRIES = _runs.integer(
    "ADIUVA_RUN_RETRIES", 5, "Retries of a run after temporary failures.", minimum=0, unit="retries"
)
RUN_RETRY_S = _runs.number(
    "ADIUVA_RUN_RETRY_S",
    30.0,
    "Upper bound of the delay before the first retry; it doubles with each further one.",
    minimum=0,
    unit="seconds",
)
RUN_LONGEST_RETRY_S = _runs.number(
    "ADIUVA_RUN_LONGEST_RETRY_S",
    900.0,
    "Upper bound of the delay before any retry.",
    minimum=0,
    unit="seconds",
)
RUN_MAX_WORKER_CRASHES = _runs.integer(
    "ADIUVA_RUN_MAX_WORKER_CRASHES",
    3,
    "Worker crashes while reading one source after which the source is quarantined.",
    minimum=2,
    unit="crashes",
)
RUN_QUARANTINE_S = _runs.integer(
    "ADIUVA_RUN_QUARANTINE_S",
    86_400,
    "How long a quarantined source is skipped before it is tried again.",
    minimum=1,
    unit="seconds",
)
RUN_SPILL_MB = _runs.integer(
    "ADIUVA_RUN_SPILL_MB",
    512,
    "How far a device may be ahead of its run; the rest waits in an encrypted file of the worker.",
    minimum=1,
    unit="megabytes",
)
RUN_KEEP_DAYS = _runs.integer(
    "ADIUVA_RUN_KEEP_DAYS",
    365,
    "How long runs and their journals are kept; they let users see and undo what agents did. 0 keeps all of them.",
    minimum=0,
    unit="days",
)

# ── Chat ────────────────────────────────────────────────────────────────────────────────────────────────
_chat = Section("Chat")
TURN_DEADLINE_S = _chat.number(
    "ADIUVA_TURN_DEADLINE_S",
    300.0,
    "How long a turn may take in all, its tools and approvals included.",
    minimum=0.1,
    unit="seconds",
)
TURN_LEASE_S = _chat.number(
    "ADIUVA_TURN_LEASE_S",
    30.0,
    "How long a web process may go without renewing its lease on its turns before they are ended as lost.",
    minimum=0.1,
    unit="seconds",
)
TURN_MODEL_CALLS = _chat.integer(
    "ADIUVA_TURN_MODEL_CALLS", 16, "Calls of the model in one turn.", minimum=1, unit="calls"
)
DEVICE_WAIT_S = _chat.number(
    "ADIUVA_DEVICE_WAIT_S",
    60.0,
    "How long a tool call waits for a device that lost its connection.",
    minimum=0,
    unit="seconds",
)
STOP_TURNS_S = _chat.number(
    "ADIUVA_STOP_TURNS_S",
    5.0,
    "How long a web process that is told to stop waits until its turns are stored. Then it tells their clients anyway.",
    minimum=0,
    unit="seconds",
)
UNASKED_WRITES_A_TURN = _chat.integer(
    "ADIUVA_UNASKED_WRITES_A_TURN",
    20,
    "Rows that one turn may create or change without asking the user.",
    minimum=0,
    unit="rows",
)
UNASKED_WRITES_AN_HOUR = _chat.integer(
    "ADIUVA_UNASKED_WRITES_AN_HOUR",
    100,
    "Rows that the turns of one conversation may create or change within an hour without asking the user.",
    minimum=0,
    unit="rows",
)
HISTORY_CHARS = _chat.integer(
    "ADIUVA_HISTORY_CHARS",
    48_000,
    "How much of a conversation the model gets word for word; the part before it is summarised.",
    minimum=1_000,
    unit="characters",
)

# ── Memory ──────────────────────────────────────────────────────────────────────────────────────────────
_memory = Section("Memory")
MEMORY_QUIET_S = _memory.number(
    "ADIUVA_MEMORY_QUIET_S",
    1800.0,
    "Pause in a conversation after which the chat session is over and its episode is written.",
    minimum=0.1,
    unit="seconds",
)
MEMORY_CONDENSE_DAYS = _memory.integer(
    "ADIUVA_MEMORY_CONDENSE_DAYS",
    14,
    "Time from the end of a week until its episodes are condensed into one.",
    minimum=1,
    unit="days",
)
MEMORY_PARTS_DAYS = _memory.integer(
    "ADIUVA_MEMORY_PARTS_DAYS",
    90,
    "How long the episodes that were condensed are kept beside the result.",
    minimum=1,
    unit="days",
)
MEMORY_UNUSED_DAYS = _memory.integer(
    "ADIUVA_MEMORY_UNUSED_DAYS",
    180,
    "An entry that was never used nor repeated is forgotten after this time, unless the user wrote it.",
    minimum=1,
    unit="days",
)
MEMORY_USED_DAYS = _memory.integer(
    "ADIUVA_MEMORY_USED_DAYS",
    365,
    "A used entry is forgotten this long after its last use, unless the user wrote it.",
    minimum=1,
    unit="days",
)
MEMORY_HISTORY_DAYS = _memory.integer(
    "ADIUVA_MEMORY_HISTORY_DAYS",
    365,
    "How long entries that no longer hold are kept as history.",
    minimum=1,
    unit="days",
)
MEMORY_RECEIPT_DAYS = _memory.integer(
    "ADIUVA_MEMORY_RECEIPT_DAYS",
    90,
    "How long receipts are kept, which say which entries were sent to a model.",
    minimum=1,
    unit="days",
)

# ── Integrations ────────────────────────────────────────────────────────────────────────────────────────
_integrations = Section(
    "Integrations",
    "Mailboxes and channels that users connect; docs/connectors.md says how to get the credentials. Without a client "
    "id and secret, nobody can connect to that provider. The server asks only the hosts below.",
)
GOOGLE_CLIENT_ID = _integrations.text("ADIUVA_GOOGLE_CLIENT_ID", "", "OAuth client id at Google.")
GOOGLE_CLIENT_SECRET = _integrations.text("ADIUVA_GOOGLE_CLIENT_SECRET", "", "OAuth client secret at Google.")
MICROSOFT_CLIENT_ID = _integrations.text(
    "ADIUVA_MICROSOFT_CLIENT_ID", "", "Application (client) id at Microsoft."
)
MICROSOFT_CLIENT_SECRET = _integrations.text(
    "ADIUVA_MICROSOFT_CLIENT_SECRET", "", "Client secret at Microsoft: its value, not its id."
)
MICROSOFT_TENANT = _integrations.text(
    "ADIUVA_MICROSOFT_TENANT",
    "common",
    "Whose accounts may be connected: common, organizations, consumers, or the id of one tenant.",
)
APP_LINK = _integrations.text(
    "ADIUVA_APP_LINK",
    "adiuva://",
    "The scheme of the desktop app, for the link back to it from a page in the browser.",
    pattern=_APP_SCHEME,
    bounds="a scheme of the app's own, such as adiuva://",
)
GOOGLE_AUTH_URI = _integrations.endpoint(
    "ADIUVA_GOOGLE_AUTH_URI", "https://accounts.google.com/o/oauth2/v2/auth", "Google's page to sign in."
)
GOOGLE_TOKEN_URI = _integrations.endpoint(
    "ADIUVA_GOOGLE_TOKEN_URI", "https://oauth2.googleapis.com/token", "Google's token endpoint."
)
GOOGLE_REVOKE_URI = _integrations.endpoint(
    "ADIUVA_GOOGLE_REVOKE_URI", "https://oauth2.googleapis.com/revoke", "Google's endpoint to revoke tokens."
)
GMAIL_API = _integrations.endpoint("ADIUVA_GMAIL_API", "https://gmail.googleapis.com", "The Gmail API.")
MICROSOFT_AUTHORITY = _integrations.endpoint(
    "ADIUVA_MICROSOFT_AUTHORITY", "https://login.microsoftonline.com", "Microsoft's sign-in."
)
GRAPH_API = _integrations.endpoint(
    "ADIUVA_GRAPH_API", "https://graph.microsoft.com/v1.0", "The Microsoft Graph API."
)

# ── Vault ───────────────────────────────────────────────────────────────────────────────────────────────
_vault = Section("Vault", "The store of clients' backups and large records, which they have sealed.")
STORE = _vault.text(
    "ADIUVA_STORE",
    "",
    "The store: a folder, as file:///var/lib/adiuva/objects, which all processes must share; or a bucket, as "
    "s3://bucket/prefix.",
    computed="the folder objects in ADIUVA_STATE_DIR",
)
STORE_ENDPOINT = _vault.text(
    "ADIUVA_STORE_ENDPOINT", "", "The address of a service that speaks like S3, if it is not Amazon's."
)
STORE_REGION = _vault.text("ADIUVA_STORE_REGION", "", "The bucket's region.")
STORE_ACCESS_KEY = _vault.text(
    "ADIUVA_STORE_ACCESS_KEY", "", "The key for the bucket; without it boto3 looks where it always does."
)
STORE_SECRET_KEY = _vault.text("ADIUVA_STORE_SECRET_KEY", "", "Its secret.")
STORE_MAX_GB = _vault.integer(
    "ADIUVA_STORE_MAX_GB",
    0,
    "How much all accounts together may store, whatever their plans allow; more is refused (507). What is replaced or "
    "deleted does not count, though it stays for a while. 0 for any.",
    minimum=0,
    unit="gigabytes",
)
STORE_LEAST_FREE_MB = _vault.integer(
    "ADIUVA_STORE_LEAST_FREE_MB",
    1024,
    "How much of the disk stays free if the store is a folder; uploads that would need it are refused (507).",
    minimum=0,
    unit="megabytes",
)
STORE_KEEP_DAYS = _vault.integer(
    "ADIUVA_STORE_KEEP_DAYS",
    30,
    "How long replaced and deleted objects stay in the store, so that a database that is restored from a backup of "
    "that age still finds all it refers to. Those of deleted accounts go at once.",
    minimum=0,
    unit="days",
)
UPLOAD_HOURS = _vault.integer(
    "ADIUVA_UPLOAD_HOURS", 24, "How long an upload that nobody continues is kept.", minimum=1, unit="hours"
)
KEEP_BACKUPS = _vault.integer(
    "ADIUVA_KEEP_BACKUPS",
    30,
    "How many backups of an account are kept. A new one deletes those beyond that which arrived first, but none that a "
    "kept one builds on. 0 keeps all.",
    minimum=0,
    unit="backups",
)
MAX_VECTORS = _vault.integer(
    "ADIUVA_MAX_VECTORS",
    1_000_000,
    "How many vectors of an account are kept, whatever its plan allows: a search compares all of a space. 0 for any.",
    minimum=0,
    unit="vectors",
)

# ── Logs ────────────────────────────────────────────────────────────────────────────────────────────────
_logs = Section("Logs")
LOG_LEVEL = _logs.choice(
    "ADIUVA_LOG_LEVEL",
    ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    "INFO",
    "The lowest level that is logged.",
)
LOG_JSON = _logs.flag("ADIUVA_LOG_JSON", True, "Whether logs are JSON; 0 gives lines for people.")
METRICS_PORT = _logs.integer(
    "ADIUVA_METRICS_PORT",
    0,
    "The port on which this process serves counters for Prometheus; 0 serves none. Each process of a machine needs its "
    "own.",
    minimum=0,
    maximum=65535,
)
METRICS_HOST = _logs.text(
    "ADIUVA_METRICS_HOST",
    "127.0.0.1",
    "The address of that port. There is no sign-in: let only your network reach it.",
)
TRACES_ENDPOINT = _logs.text(
    "ADIUVA_TRACES_ENDPOINT",
    "",
    "Where OpenTelemetry traces go by OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; without it there are "
    "none. It needs the packages of `requirements-traces.txt`. Traces hold ids, codes and counts, never content.",
)
TRACES_RATIO = _logs.number(
    "ADIUVA_TRACES_RATIO",
    1.0,
    "The share of traces that is recorded.",
    minimum=0.0,
    maximum=1.0,
)

# ── For one process ─────────────────────────────────────────────────────────────────────────────────────
_process = Section(
    "For one process",
    "The first two are read from the process environment only, not from `.env`. The others are set by `make run` for "
    "the processes that it starts; do not set them yourself.",
    internal=True,
)
ENV_FILE = _process.text("ADIUVA_ENV_FILE", ".env", "The file to read in place of `.env`.")
DEVICE_PASSWORD = _process.text(
    "ADIUVA_DEVICE_PASSWORD",
    "",
    "The account's password for `manage.py device` and `manage.py chat`, which otherwise ask for it.",
)
DEVICE_CODE = _process.text(
    "ADIUVA_DEVICE_CODE",
    "",
    "A code of the account's authenticator app, or a recovery code, for the first sign-in of `manage.py device`.",
)
DEVICE_PASSPHRASE = _process.text(
    "ADIUVA_DEVICE_PASSPHRASE",
    "",
    "The passphrase of `manage.py device --backup` and `--restore`, which otherwise ask for it.",
)
EMBEDDED = _process.flag(
    "ADIUVA_EMBEDDED", False, "Whether the servers were started by `make run`. Refused in production."
)
DEMO_EMAIL = _process.text(
    "ADIUVA_DEMO_EMAIL", "", "E-mail address of the demo account to make when the database is migrated."
)
DEMO_PASSWORD = _process.text("ADIUVA_DEMO_PASSWORD", "", "Password of that account.")

SECTIONS: Final = (
    _servers,
    _make_run,
    _web,
    _installation,
    _secrets,
    _models,
    _accounts,
    _plans,
    _payments,
    _sso,
    _mail,
    _socket,
    _runs,
    _chat,
    _memory,
    _integrations,
    _vault,
    _logs,
    _process,
)
