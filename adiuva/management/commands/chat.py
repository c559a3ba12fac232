"""`manage.py chat`: talk to the assistant from a terminal."""

from __future__ import annotations

import getpass
import hashlib
import http.client
import json
import os
import re
import sys
import urllib.error
import urllib.request
import uuid
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from adiuva.core.env import state_dir
from adiuva.devices.client import Console, Store
from adiuva.devices.client.account import ServerAddress
from adiuva.devices.client.errors import BadAddress
from adiuva.devices.client.store import DATA_FILE
from adiuva.embedded.demo import DEMO_EMAIL
from adiuva.embedded.state_folder import Secrets

_TIMEOUT_S = 900.0  # a turn may take minutes
_HISTORY_MESSAGES = 40
_TAG = re.compile(r"\s?<(task|project|note|timeline)>\[[^\]<>]*\]</\1>")
_CHART = re.compile(r"<chart>(.*?)</chart>", re.DOTALL)
_HELP = """\
/undo   take back what the last message changed, or the last /approve, /edit or /reject
/new    begin a new conversation
/list, /show 2, /approve 2, /edit 2 title="…", /reject 2, /search words
        suggestions of your agents, where the device's workspace is on this machine; /help list says more
/help   this
/quit   end; so does Ctrl-D"""
_SUGGESTIONS = ("/list", "/show", "/approve", "/edit", "/reject", "/search")
_DONE = {"insert": "created", "update": "changed", "delete": "deleted"}
_ONE = {"timelines": "timeline entry", "taskComments": "comment"}


class ChatFailed(Exception):
    """Error for a missing answer; the message says why. `body` is the server's error body."""

    def __init__(self, why: str, status: int = 0, body: Mapping[str, Any] | None = None) -> None:
        super().__init__(" ".join(_plain(why).split()))
        self.status, self.body = status, body or {}


class Command(BaseCommand):
    help = (
        "Talk to the assistant: send one message from the command line, or one a line until /quit. /help names the "
        "other commands. Without --server and --email it uses the server of `make run` and the demo's account. For "
        "other accounts the password comes from ADIUVA_DEVICE_PASSWORD, or is asked for."
    )
    # The command is only a client of some server, so it need not check this installation.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("message", nargs="*", help="what to say; without it, you are asked")
        parser.add_argument("--server", metavar="URL", help="https://adiuva.example.com")
        parser.add_argument("--email", help="e-mail address of the account")
        parser.add_argument(
            "--device", metavar="ID", help="the device whose data it is about (the one seen last)"
        )
        parser.add_argument(
            "--workspace",
            type=Path,
            metavar="FOLDER",
            help="a headless device's workspace on this machine, for its suggestions (that of the demo)",
        )
        parser.add_argument("--new", action="store_true", help="begin a new conversation")

    def handle(self, *_: object, **options: Any) -> None:
        try:
            client = _client(options["server"], options["email"])
            client.device = options["device"] or ""
            if options["new"]:
                client.forget()
            if options["message"]:
                self._show(client.ask(" ".join(options["message"])))
            else:
                self._talk(client, _console(options["workspace"], client))
        except ChatFailed as error:
            self._show(error.body)  # shows what was written and changed before it failed
            raise CommandError(str(error), returncode=1) from None
        except KeyboardInterrupt:
            self.stdout.write("")

    def _talk(self, client: Client, suggestions: Console | None) -> None:
        """Send each line as a message. After a failure, the next line is tried."""
        if client.said:
            count = len(client.said) // 2
            self.stdout.write(
                f"The conversation goes on after {count} of your messages; /new begins another."
            )
        for message in _lines():
            if message == "/quit":
                return
            try:
                if message.startswith("/"):
                    self.stdout.write(_command(client, message, suggestions))
                    continue
                self._show(client.ask(message))
            except ChatFailed as error:
                self._show(error.body)
                self.stderr.write(str(error))

    def _show(self, answer: Mapping[str, Any]) -> None:
        if text := _for_people(str(answer.get("response") or "")):
            self.stdout.write(text)
        for mutation in answer.get("mutations") or ():
            self.stdout.write(f"  {_change(mutation)}")
        self.stdout.flush()


class Client:
    """Account at a server, with the conversation so far, which is kept for the next time."""

    def __init__(self, address: ServerAddress, email: str, password: str) -> None:
        self._address = address
        name = hashlib.sha256(f"{address.base} {email}".encode()).hexdigest()[:32]
        self._file = state_dir() / "chats" / f"{name}.json"
        self.is_demo = False
        # False once a suggestion was approved or changed since the message: that is undone first.
        self.undoes_message = True
        self._credentials = {"email": email, "password": password}
        self._token = ""
        self.said = self._read()
        self._last_request = ""
        self.device = ""
        self._sign_in()

    def ask(self, message: str) -> dict[str, Any]:
        """Return the answer, `{response, mutations, …}`. Raises ChatFailed."""
        body: dict[str, Any] = {
            "message": message,
            "context": {"conversation_history": self.said[-_HISTORY_MESSAGES:]},
            "request_id": uuid.uuid4().hex,
        }
        if self.device:
            body["device_id"] = self.device
        self.undoes_message = True
        self._last_request = body["request_id"]  # its changes before it failed can be undone as well
        answer = self._signed_in_post("chat", body)
        said = str(answer.get("response") or "")
        self.said += [{"role": "user", "content": message}, {"role": "assistant", "content": said}]
        self._keep()
        return answer

    def forget(self) -> None:
        """Begin anew: the conversation so far is not sent along any more."""
        self.said = []
        self._file.unlink(missing_ok=True)

    def _read(self) -> list[dict[str, str]]:
        try:
            kept = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return []
        return [{"role": str(one["role"]), "content": str(one["content"])} for one in kept]

    def _keep(self) -> None:
        """Keep what is sent along with the next message, readable by this machine's user alone."""
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = self._file.with_suffix(".new")
            new.touch(mode=0o600)
            new.write_text(json.dumps(self.said[-_HISTORY_MESSAGES:]))
            new.replace(self._file)
        except OSError as error:
            sys.stderr.write(f"The conversation cannot be kept for the next time ({error.strerror}).\n")

    def undo(self) -> dict[str, Any]:
        """Take back on the device what the last message changed. Raises ChatFailed."""
        if not self._last_request:
            raise ChatFailed("nothing was said yet")
        return self._signed_in_post(f"chat/turns/{self._last_request}/undo", {})

    def _signed_in_post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._post(path, body)
        except ChatFailed as error:
            if error.status != 401:
                raise
            self._sign_in()  # the token has run out
            return self._post(path, body)

    def _sign_in(self) -> None:
        self._token = ""
        self._token = str(self._post("auth/login", self._credentials).get("access_token") or "")

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(  # noqa: S310  # an http(s) address, as Address checks
            self._address.rest(path), data=json.dumps(body).encode(), headers=headers, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
                return _object(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                found = _object(error.read())
            why = found.get("message") or f"the server answered with HTTP {error.code}"
            raise ChatFailed(f"{why} ({found.get('code', error.code)})", error.code, found) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise ChatFailed(f"{self._address.base} gave no answer: {reason}") from None


def _console(workspace: Path | None, client: Client) -> Console | None:
    """Return the suggestions of a device on this machine, whose process may be running meanwhile."""
    folder = workspace or (state_dir() / "demo" / "device" if client.is_demo else None)
    if folder is None:
        return None
    if not (folder / DATA_FILE).exists():
        if workspace:
            raise ChatFailed(f"there is no device's data in {folder}")
        return None
    return Console(Store(folder / DATA_FILE))


def _command(client: Client, typed: str, suggestions: Console | None) -> str:
    """Carry out a command of the terminal and return its answer. Raises ChatFailed."""
    if typed.split()[0] in _SUGGESTIONS or typed == "/help list":
        if suggestions is None:
            return (
                "Say with --workspace where a device keeps its data on this machine, or use its own terminal."
            )
        if typed.split()[0] in {"/approve", "/edit", "/reject"}:
            client.undoes_message = False
        return (suggestions.answer("help" if typed == "/help list" else typed[1:]) or "").rstrip()
    if typed == "/undo" and suggestions and not client.undoes_message:
        return suggestions.answer("undo") or ""
    if typed == "/new":
        client.forget()
        return "What was said is forgotten here. Begin anew."
    if typed == "/undo":
        done = client.undo()
        kept = [f"  kept: {one.get('title')} ({one.get('reason')})" for one in done.get("kept") or ()]
        count = int(done.get("undone") or 0)
        rows = "1 row is" if count == 1 else f"{count} rows are"
        return _plain("\n".join([f"{rows} as before." if count else "Nothing was changed.", *kept]))
    if typed == "/help":
        return _HELP
    return f"There is no command {typed.split()[0]}.\n{_HELP}"


def _client(server: str | None, email: str | None) -> Client:
    """Return a client that is signed in as the options say, or to the demo of this machine."""
    host = "127.0.0.1" if settings.HOST in {"0.0.0.0", "::"} else settings.HOST  # noqa: S104
    here = f"http://{host}:{settings.PORT}"
    try:
        address = ServerAddress.parse(server or here)
    except BadAddress as error:
        raise ChatFailed(error.message) from None
    password = os.environ.get("ADIUVA_DEVICE_PASSWORD")
    # Only this machine's own server gets the demo's password.
    if address.base == here and email in {None, DEMO_EMAIL} and (demo := _demo_password()):
        client = Client(address, DEMO_EMAIL, demo)
        client.is_demo = True
        return client
    if email is None:
        raise ChatFailed("say whose account it is with --email, and where with --server")
    if not password and sys.stdin.isatty():
        password = getpass.getpass("Password: ")
    if not password:
        raise ChatFailed("there is no password: set ADIUVA_DEVICE_PASSWORD")
    return Client(address, email, password)


def _demo_password() -> str:
    try:
        return Secrets.parse((state_dir() / "secrets.json").read_text()).demo_password
    except (OSError, ValueError):
        return ""  # `make run` never ran here, or the folder is another user's


def _lines() -> Iterator[str]:
    """Yield lines that are typed or piped in."""
    asked = "› " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(asked).strip()
        except EOFError:
            if asked:
                sys.stdout.write("\n")
            return
        if line:
            yield line


def _object(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _for_people(text: str) -> str:
    """Return the answer without tags that only the app can draw and without control characters."""
    return _plain(_CHART.sub(_named_chart, _TAG.sub("", text))).strip()


def _named_chart(match: re.Match[str]) -> str:
    return f"(a chart: {_object(match[1].encode()).get('title', 'untitled')})"


def _change(mutation: Mapping[str, Any]) -> str:
    table, data = str(mutation.get("table")), mutation.get("data")
    row = data if isinstance(data, Mapping) else {}
    name = next((row[key] for key in ("title", "name", "content", "id") if row.get(key)), "")
    verb = _DONE.get(str(mutation.get("action")), str(mutation.get("action")))
    return " ".join(_plain(f"{verb} {_ONE.get(table, table.removesuffix('s'))}: {name}").split())[:120]


def _plain(text: str) -> str:
    return "".join(char for char in text if char.isprintable() or char in "\n\t")
