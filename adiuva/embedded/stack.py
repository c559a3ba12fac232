"""Stack of Adiuva on one machine: it starts, supervises and stops what `make run` needs."""

from __future__ import annotations

import hashlib
import secrets
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn
from urllib.parse import unquote, urlsplit

from adiuva import env_variables as env
from adiuva.core.env import BASE_DIR, state_dir
from adiuva.embedded.demo import DEMO_EMAIL, Demo
from adiuva.embedded.ports import free_port, why_unavailable
from adiuva.embedded.postgres import Postgres
from adiuva.embedded.processes import Child, StackError, Supervisor, tail
from adiuva.embedded.python_programs import Programs
from adiuva.embedded.rest_client import ApiClient, failing_checks, is_up
from adiuva.embedded.state_folder import StateFolder
from adiuva.embedded.terminal import Terminal
from adiuva.embedded.valkey import Valkey
from adiuva.local_embeddings import CONFIGURED_NAME, WeightsMissing, find_file

_POLL_INTERVAL_S = 0.25
_CODE = ("adiuva", "agents", "billing", "chat", "integrations", "memory")
_EXAMPLES = BASE_DIR / "examples" / "plugins"
# One of the examples costs something, so that buying can be tried out.
_EXAMPLE_PRICE = "calendar-importer=300"
_STEP_TIMEOUT_S = 120.0
_READY_TIMEOUT_S = 60.0
_MODEL = "openai/adiuva-offline"
_LEXICAL = "lexical"
_MODELS = (env.MODEL, env.MODEL_CHAT, env.MODEL_EXTRACTION, env.MODEL_MEMORY, env.MODEL_FALLBACKS)
_MODEL_VARIABLES = (env.MODEL, env.MODEL_API_BASE, env.EMBEDDING_MODEL, env.EMBEDDING_MODEL_API_BASE)
_SINGLE_WORKER = (
    "--without-mingle",
    "--without-gossip",
)  # skips a search for other workers, which takes a second
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(BaseException):
    """Request of a signal to stop the stack. Not an Exception, so that no handler on the way treats it as a failure."""


def with_offline_price(prices: str) -> str:
    """Return `prices`, in the form of ADIUVA_MODEL_PRICE, with the offline model's, which costs nothing.

    No list has its price, and where plans limit spending, a model without a price is never asked.
    """
    given = [part.strip() for part in prices.split(";") if part.strip()]
    if any(part.rpartition("=")[0].strip() in ("", _MODEL) for part in given):
        return prices
    return ";".join([*given, f"{_MODEL}=0,0"])


# More than 15 methods: one for each step of a start and an end, in their order.
class Stack:
    """Servers, processes and demo of `make run`. `run` starts them, waits for a signal and stops them."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.supervisor = Supervisor(say=terminal.say)
        self.state = StateFolder(state_dir())
        self.host = env.HOST.read_configured()
        self.port = env.PORT.read_configured()
        # A server that listens on all addresses can be reached at the loopback address.
        self.base = f"http://{'127.0.0.1' if self.host in {'0.0.0.0', '::'} else self.host}:{self.port}"  # noqa: S104
        self.programs = Programs(self.state, self.supervisor)
        self.postgres: Postgres | None = None
        self.valkey: Valkey | None = None
        self.demo: Demo | None = None
        self.migration: Child | None = None
        self.examples: Child | None = None
        self.stripe_double = ""

    def run(self) -> int:
        for number in _STOP_SIGNALS:
            signal.signal(number, _end)
        try:
            self._start()
            self._supervise_forever()
        except StopRequested:
            self.terminal.end_bar()
            self.terminal.say("Stopping …")
            return 0
        finally:
            for number in _STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            self._end()

    def _start(self) -> None:
        self.state.acquire(self.base)
        if reason := why_unavailable(self.host, self.port):
            raise StackError(
                f"port {self.port} on {self.host} cannot be used ({reason}): choose another, such as "
                f"`make run ADIUVA_PORT={self.port + 1}`"
            )
        self._start_servers()
        self.state.publish(self.programs.env)
        self.programs.preload_application()
        if folder := self._mail_folder():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check_models()
        # On most starts the database has all migrations, and nothing waits for what is left to prepare.
        is_schema_current = self._is_remembered("schema", schema_fingerprint())
        is_prepared = is_schema_current and self._is_remembered("code", code_fingerprint())
        self.migration = self._start_migration(*(["--same-code"] if is_prepared else []))
        if not is_schema_current:
            self._finish_migration(self.migration)
        self.terminal.say("Web and workers …")
        for lane in ("runs", "short"):  # a process for each, so that work in one takes no CPU from the other
            self.programs.start(
                f"worker-{lane}",
                *("-m", "celery", "-A", "adiuva", "worker", f"-Q{lane}"),
                *(*_SINGLE_WORKER, f"-n{lane}-{self.port}@%h"),
                *(("--with-beat",) if lane == "short" else ()),
                CELERY_SKIP_CHECKS="1",  # Django's: they look at all models, for those who write them
            )
        web = self.programs.start("web", "-m", "adiuva.server")
        web.wait_until(lambda: is_up(self.base), within_s=_STEP_TIMEOUT_S, every_s=0.1)
        self._start_device()
        self._wait_until_ready(web)
        threading.Thread(target=self._show, name="show", daemon=True).start()
        if is_schema_current:
            self._finish_migration(self.migration)

    def _start_servers(self) -> None:
        """Start PostgreSQL, Valkey and the offline model, except those that are configured elsewhere."""
        made, keeps = self.state.secrets(), (self.state.lock,)
        database, redis = env.DATABASE_URL.read_configured(), env.REDIS_URL.read_configured("")
        keys = env.KEYS_DATABASE_URL.read_configured()
        self.programs.preload_libraries()
        if not database:
            self.terminal.say("PostgreSQL …")
            self.postgres = Postgres(
                self.state.folder / "postgres",
                password=made.database_password,
                log=self.state.log("postgres"),
                say=self.terminal.say,
                keeps=keeps,
            )
            database = self.postgres.start()
            keys = keys or self.postgres.database("adiuva_keys")
            self._supervise(self.postgres.child)
        if not redis:
            self.terminal.say("Valkey …")
            self.valkey = Valkey(
                self.state.folder / "valkey",
                password=made.redis_password,
                log=self.state.log("valkey"),
                keeps=keeps,
            )
            redis = self.valkey.start()
            self._supervise(self.valkey.child)
        self.programs.env = {
            "ADIUVA_EMBEDDED": "1",
            "ADIUVA_HOST": self.host,
            "ADIUVA_PORT": str(self.port),
            "ADIUVA_SECRET_KEY": env.SECRET_KEY.read_configured(made.secret_key),
            "ADIUVA_KEYS": ",".join(env.KEYS.read_configured([made.keys])),
            "ADIUVA_PLUGIN_KEYS": ",".join(env.PLUGIN_KEYS.read_configured([self.state.plugin_key()])),
            "DATABASE_URL": database,
            "REDIS_URL": redis,
            **({env.KEYS_DATABASE_URL.name: keys} if keys else {}),
            **{each.name: value for each in _MODEL_VARIABLES if (value := each.read_configured())},
        }
        if not env.MODEL.read_configured():
            self._start_offline_llm()
        if env.EMBEDDING_MODEL.read_configured(CONFIGURED_NAME) == CONFIGURED_NAME:
            self._start_local_embeddings()
        if not env.STRIPE_SECRET_KEY.read_configured():
            self._start_stripe_double()
        if env.DEMO.read_configured():
            self.demo = Demo(ApiClient(self.base), self.state, self.terminal, made.demo_password)

    def _start_offline_llm(self) -> None:
        port = free_port()
        api = f"http://127.0.0.1:{port}/v1"
        self.programs.env |= {"ADIUVA_MODEL": _MODEL, "ADIUVA_MODEL_API_BASE": api}
        self.programs.env[env.MODEL_PRICE.name] = with_offline_price(env.MODEL_PRICE.read_configured())
        self.programs.start("offline-model", "-m", "adiuva.offline_llm", "--port", str(port))

    def _start_stripe_double(self) -> None:
        """Let plans be bought without Stripe: a double, which takes no money, takes its place."""
        if not (BASE_DIR / "tests" / "fakes" / "stripe").is_dir():
            return  # not a checkout of the repository
        port, secret = free_port(), f"whsec_{secrets.token_hex(16)}"
        self.stripe_double = f"http://127.0.0.1:{port}"
        self.programs.has_stripe_double = True
        self.programs.env |= {
            env.STRIPE_SECRET_KEY.name: "sk_test_double",
            env.STRIPE_WEBHOOK_SECRETS.name: secret,
            env.STRIPE_API.name: self.stripe_double,
        }
        self.programs.start(
            "stripe-double",
            *("-m", "tests.fakes.stripe", "--port", str(port)),
            *("--webhook", f"{self.base}/api/v1/billing/webhook"),
            *("--state", str(self.state.folder / "stripe-double.json")),
            vital=False,
            STRIPE_WEBHOOK_SECRET=secret,
        )

    def _start_local_embeddings(self) -> None:
        """Serve the local embedding model. If its weights are missing, say so; words are compared instead."""
        if env.EMBEDDING_MODEL_API_BASE.read_configured():
            return  # it runs elsewhere
        try:
            find_file()
        except WeightsMissing as error:
            self.terminal.say(f"Memory and notes are searched by words, not by meaning: {error}.")
            self.programs.env[env.EMBEDDING_MODEL.name] = _LEXICAL
            return
        port = free_port()
        self.programs.env |= {
            env.EMBEDDING_MODEL.name: CONFIGURED_NAME,
            env.EMBEDDING_MODEL_API_BASE.name: f"http://127.0.0.1:{port}/v1",
        }
        self.programs.start(
            "local-embeddings", "-m", "adiuva.local_embeddings", "--port", str(port), vital=False
        )

    def _check_models(self) -> None:
        """Say at once if a model that is configured elsewhere does not work, and what to do; the start goes on."""
        if not any(each.read_configured() for each in (*_MODELS, env.EMBEDDING_MODEL)):
            return  # those of this machine are ours
        log = self.state.log("check-models")
        log.unlink(missing_ok=True)
        child = self.programs.child(
            "check-models", "manage.py", "check_models", **{env.LOG_LEVEL.name: "CRITICAL"}
        )
        child.start()
        threading.Thread(target=self._say_checked, args=(child,), name="check-models", daemon=True).start()

    def _say_checked(self, child: Child) -> None:
        try:
            failed = child.wait(within_s=_STEP_TIMEOUT_S * 2) != 0
        except StackError as error:
            self.terminal.say(f"It is not known whether the models work: {error}")
            return
        for line in tail(child.log, 20).splitlines():
            if line.startswith("Model "):
                bad = failed and " does not work" in line
                self.terminal.say(self.terminal.styled(line, "red") if bad else line)

    def _start_device(self) -> None:
        """Start the demo's device. If that fails, say so and continue without the demo."""
        if not self.demo:
            return
        try:
            arguments, password = self.demo.device(), self.demo.password
            self.programs.start("device", *arguments, vital=False, ADIUVA_DEVICE_PASSWORD=password)
        except (StackError, OSError) as error:
            self.terminal.say(self.terminal.styled(f"There will be no demo: {error}", "red"))
            self.demo = None

    def _supervise(self, child: Child | None) -> None:
        if child:
            self.supervisor.start(child)

    def _start_migration(self, *arguments: str) -> Child:
        self.terminal.say("Database …")
        account = {}
        if self.demo:
            account = {env.DEMO_EMAIL.name: DEMO_EMAIL, env.DEMO_PASSWORD.name: self.demo.password}
        child = self.programs.child("migrate", "-m", "adiuva.embedded.migrate", *arguments, **account)
        child.start()
        return child

    def _finish_migration(self, child: Child) -> None:
        try:
            if child.wait(within_s=_STEP_TIMEOUT_S) != 0:
                raise StackError(f"the database could not be prepared: {tail(child.log)} (see {child.log})")
            self.state.remember("schema", schema_fingerprint())
            self.state.remember("code", code_fingerprint())
        finally:
            child.kill()

    def _is_remembered(self, name: str, fingerprint: str) -> bool:
        """Return whether an earlier start has prepared our own database with this schema or code."""
        if self.postgres is None or self.postgres.is_new or env.KEYS_DATABASE_URL.read_configured():
            return False
        return self.state.remembered(name) == fingerprint

    def _wait_until_ready(self, web: Child) -> None:
        """Wait until every health check passes; after the timeout, say which fail and continue."""
        missing = ""

        def nothing_missing() -> bool:
            nonlocal missing
            self.supervisor.restart_ended()
            missing = failing_checks(self.base)
            return not missing

        try:
            web.wait_until(nothing_missing, within_s=_READY_TIMEOUT_S, every_s=0.1)
        except StackError:
            if not web.alive:
                raise
            self.terminal.say(
                f"Not ready after {_READY_TIMEOUT_S:.0f} s: {missing}; logs are in {self._logs}."
            )

    def _supervise_forever(self) -> NoReturn:
        while True:
            self.supervisor.restart_ended()
            time.sleep(_POLL_INTERVAL_S)

    def _mail_folder(self) -> Path | None:
        """Return the folder in which mails are written as files, unless a mail server is configured."""
        url = env.MAIL_URL.read_configured()
        if not url:
            return self.state.folder / "mail"
        return Path(unquote(urlsplit(url).path)) if url.startswith("file:") else None

    @property
    def _logs(self) -> Path:
        return self.state.folder / "logs"

    def _show(self) -> None:
        examples = self._start_examples()
        if self.demo and not self.demo.show():
            return
        if examples:
            self._finish_examples(examples)
        say, password = self.terminal.say, self.demo.password if self.demo else ""
        say()
        say(self.terminal.styled("Adiuva is up.", "bold") + " Ctrl-C ends it; `make run` brings it back.")
        # The same address as in mails' links, so that a browser is signed in at both; and passkeys need a name.
        address = (env.PUBLIC_URL.read_configured() or f"http://localhost:{self.port}").rstrip("/")
        rows = {
            "Web": f"{address}/",
            "Admin": f"{address}/admin/",
            "Plugins": f"{address}/plugins",
            "API": f"{address}/api/v1/",
            "API docs": f"{address}/api/v1/docs/",
            "Logs": str(self._logs),
        }
        if folder := self._mail_folder():
            rows["Mails"] = str(folder)
        if self.stripe_double:
            rows["Payments"] = f"{self.stripe_double}/ in Stripe's place; no money moves"
        if self.demo:
            rows["Sign in as"] = f"{DEMO_EMAIL} with the password {password}"
            rows["Try this"] = (
                f"write a task into a file in {self.demo.documents}, then run the agent in the admin"
            )
        for name, value in rows.items():
            say(f"  {self.terminal.styled(f'{name:<11}', 'cyan')} {value}")
        say()
        say("To let it read a folder of your own, in another terminal:")
        say("  " + self._device_command(password))

    def _device_command(self, password: str) -> str:
        program = Path(sys.executable)
        if program.is_relative_to(BASE_DIR):
            program = program.relative_to(BASE_DIR)
        command = [str(program), "manage.py", "device", "--server", self.base, "--email"]
        command += [
            DEMO_EMAIL if password else "YOU@EXAMPLE",
            "--workspace",
            "WORKSPACE",
            "--grant",
            "FOLDER",
        ]
        return f"ADIUVA_DEVICE_PASSWORD={shlex.quote(password or 'PASSWORD')} {shlex.join(command)}"

    def _start_examples(self) -> Child | None:
        """List the example plugins of the repository, unless an earlier start did."""
        if (
            not self.demo
            or not _EXAMPLES.is_dir()
            or self.state.remembered("examples") == _fingerprint_of_examples()
        ):
            return None
        child = self.programs.child(
            "publish-examples", "manage.py", "publish_examples", DEMO_EMAIL, "--price", _EXAMPLE_PRICE
        )
        child.vital = False
        child.start()
        self.examples = child
        return child

    def _finish_examples(self, child: Child) -> None:
        try:
            if child.wait(within_s=_STEP_TIMEOUT_S) == 0:
                self.state.remember("examples", _fingerprint_of_examples())
                return
            problem = tail(child.log)
        except StackError as error:
            problem = str(error)
        if not (self.demo and self.demo.stopping.is_set()):
            self.terminal.say(f"The catalogue lacks the example plugins: {problem} (see {child.log})")

    def _end(self) -> None:
        if self.demo:
            self.demo.stopping.set()
        if self.programs.env:  # only after we have published it
            self.state.withdraw()
        for child in (self.migration, self.examples):
            if child:
                child.kill()
        self.supervisor.stop()
        for server in (self.valkey, self.postgres):  # they may have been starting when the signal came
            if server:
                server.stop()
        self.state.release()


def _fingerprint_of_examples() -> str:
    found = hashlib.sha256()
    for file in sorted(each for each in _EXAMPLES.rglob("*") if each.is_file()):
        found.update(file.read_bytes())
    return found.hexdigest()


def schema_fingerprint() -> str:
    """Return a text that changes with our migrations, and with the packages that bring some."""
    return _fingerprint("migrations/*.py")


def code_fingerprint() -> str:
    """Return a text that changes with our code and its packages, on which roles and plans depend as well."""
    return _fingerprint("*.py")


def _fingerprint(pattern: str) -> str:
    files = [file for part in _CODE for file in sorted((BASE_DIR / part).rglob(pattern))]
    found = hashlib.sha256()
    for file in [*files, BASE_DIR / "requirements.txt"]:
        found.update(file.read_bytes())
    return found.hexdigest()


def _end(number: int, _: FrameType | None) -> None:
    raise StopRequested(number)
