"""`manage.py chat` against a server that answers by the contract: once as a program, else in this process."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.core.management import execute_from_command_line

from adiuva.devices.client import Store
from adiuva.embedded.demo import DEMO_EMAIL
from adiuva.embedded.state_folder import StateFolder
from tests.server_processes import ROOT

PASSWORD = "a good password"


class Server:
    """Signs in, then gives `answers` one after the other: (status, body). Keeps what it was asked."""

    def __init__(self) -> None:
        self.request_ids: list[str] = []
        self.answers: list[tuple[int, Any]] = []
        self.asked: list[tuple[str, dict[str, Any], str]] = []
        self.password = PASSWORD
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((self.path, body, self.headers.get("Authorization", "")))
                status, answer = outer.answer(self.path, body)
                raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/api/v1/auth/login":
            if body["password"] != self.password:
                return 401, {"code": "not_authenticated", "message": "wrong e-mail address or password"}
            return 200, {"access_token": f"token {len(self.asked)}"}
        if path.endswith("/undo"):
            return 200, {"undone": 1, "kept": [{"title": "Mine", "reason": "edited"}]}
        assert path == "/api/v1/chat"
        return self.answers.pop(0)

    @property
    def chats(self) -> list[dict[str, Any]]:
        found = [dict(body) for path, body, _ in self.asked if path == "/api/v1/chat"]
        self.request_ids = [body.pop("request_id") for body in found]
        return found


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever)
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


Chat = Callable[..., Done]


@pytest.fixture
def chat(
    monkeypatch: pytest.MonkeyPatch, settings: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Chat:
    """Run the command where nothing is configured: a process for each would only be Django's start again."""

    def run(
        *arguments: str, says: str = "", password: str = PASSWORD, state: str = "", port: int = 8000
    ) -> Done:
        settings.PORT = port
        monkeypatch.setenv("ADIUVA_STATE_DIR", state or str(tmp_path / "of the client"))
        monkeypatch.delenv("ADIUVA_DEVICE_PASSWORD", raising=False)
        if password:
            monkeypatch.setenv("ADIUVA_DEVICE_PASSWORD", password)
        monkeypatch.setattr(sys, "stdin", io.StringIO(says))
        code = 0
        try:
            execute_from_command_line(["manage.py", "chat", *arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def to(chat: Chat, server: Server) -> Chat:
    def run(*message: str, **more: str) -> Done:
        return chat("--server", server.url, "--email", "kim@example.com", *message, **more)

    return run


def said(text: str, *mutations: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return 200, {"response": text, "mutations": list(mutations)}


def test_a_message_is_answered_with_the_text_and_what_was_changed(server: Server, to: Chat) -> None:
    rows = [
        {"action": "insert", "table": "tasks", "data": {"id": "t-1", "title": "Call Ada"}},
        {"action": "update", "table": "timelines", "data": {"id": "l-1", "title": "Launch"}},
        {"action": "delete", "table": "notes", "data": {"id": "n-1"}},
    ]
    server.answers = [said("Created it. <task>[t-1]</task>", *rows)]
    done = to("add", "a task")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "Created it.",
        "  created task: Call Ada",
        "  changed timeline entry: Launch",
        "  deleted note: n-1",
    ]
    assert server.chats == [{"message": "add a task", "context": {"conversation_history": []}}]
    assert server.asked[1][2] == "Bearer token 1"


def test_it_is_a_program_that_needs_nothing_but_a_server(server: Server, tmp_path: Path) -> None:
    """No database, no keys: what is configured there is nothing to a client."""
    compiled = {name: value for name, value in os.environ.items() if name == "PYTHONPYCACHEPREFIX"}
    env = compiled | {"ADIUVA_STATE_DIR": str(tmp_path), "ADIUVA_ENV_FILE": os.devnull, "PYTHONUTF8": "1"}
    server.answers = [said("Hello!"), (503, {"code": "unavailable", "message": "away"})]
    done = subprocess.run(
        [sys.executable, "manage.py", "chat", "--server", server.url, "--email", "kim@example.com"],
        cwd=ROOT,
        env=env | {"ADIUVA_DEVICE_PASSWORD": PASSWORD},
        input="hi\nand?\n",
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("Hello!\n", "away (unavailable)\n")


def test_without_a_message_each_line_is_one_and_the_history_goes_along(server: Server, to: Chat) -> None:
    server.answers = [said("Hello!"), said("Two.")]
    done = to(says="hi\n\n  how many?  \n")
    assert (done.returncode, done.stdout.splitlines()) == (0, ["Hello!", "Two."])
    assert server.chats[1] == {
        "message": "how many?",
        "context": {
            "conversation_history": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "Hello!"},
            ]
        },
    }


def test_commands_undo_forget_and_end(server: Server, to: Chat) -> None:
    server.answers = [said("Hello!"), said("Done."), said("Anew.")]
    done = to(says="hi\n/undo\nadd it\n/undo\n/new\nhello\n/dance\n/quit\nnever said\n")
    assert (done.returncode, len(server.chats)) == (0, 3)
    assert server.chats[2] == {"message": "hello", "context": {"conversation_history": []}}
    undone = [path for path, _, _ in server.asked if path.endswith("/undo")]
    assert undone == [f"/api/v1/chat/turns/{key}/undo" for key in server.request_ids[:2]]
    assert done.stdout.count("1 row is as before.\n  kept: Mine (edited)") == 2
    assert "There is no command /dance." in done.stdout and "/quit" in done.stdout


def test_a_chart_is_named_and_nothing_steers_the_terminal(server: Server, to: Chat) -> None:
    chart = json.dumps({"chartType": "bar", "title": "Hours"})
    server.answers = [said(f"See:\n<chart>{chart}</chart>\n\x1b[2Jgone\x07 <note>[a,b]</note>")]
    assert to("x").stdout == "See:\n(a chart: Hours)\n[2Jgone\n"


def test_a_refusal_is_one_line_and_a_failure(server: Server, to: Chat) -> None:
    server.answers = [(503, {"code": "device_offline", "message": "none of your devices\nis connected"})]
    done = to("list my tasks")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "CommandError: none of your devices is connected (device_offline)\n"


def test_what_happened_before_a_failure_is_told(server: Server, to: Chat) -> None:
    row = {"action": "insert", "table": "tasks", "data": {"title": "Call Ada"}}
    problem = {"code": "model_timeout", "message": "the model did not answer", "response": "I"}
    server.answers = [(504, {**problem, "mutations": [row]})]
    done = to("x")
    assert (done.returncode, done.stdout) == (1, "I\n  created task: Call Ada\n")


def test_in_a_conversation_the_next_message_may_be_tried(server: Server, to: Chat) -> None:
    server.answers = [(503, {"code": "unavailable", "message": "away"}), (502, b"<html>"), said("Here.")]
    done = to(says="a\nb\nc\n")
    assert (done.returncode, done.stdout) == (0, "Here.\n")
    assert done.stderr.splitlines() == ["away (unavailable)", "the server answered with HTTP 502 (502)"]


def test_a_token_that_has_run_out_is_renewed(server: Server, to: Chat) -> None:
    server.answers = [(401, {"code": "not_authenticated", "message": "expired"}), said("Here.")]
    assert to("x").stdout == "Here.\n"
    assert [path.rsplit("/", 1)[1] for path, _, _ in server.asked] == ["login", "chat", "login", "chat"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--server", "http://127.0.0.1:9", "--email", "a@example.com", "x"], "gave no answer"),
        (["--server", "http://adiuva.example.com", "--email", "a@example.com", "x"], "must begin with https"),
        (["--server", "nonsense", "--email", "a@example.com", "x"], "must look like"),
        (["x"], "--email"),
    ],
)
def test_what_cannot_work_is_one_line(chat: Chat, arguments: list[str], words: str) -> None:
    done = chat(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert words in done.stderr


def test_a_wrong_password_and_none_are_one_line(server: Server, to: Chat) -> None:
    wrong = to("x", password="another")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1) and "wrong e-mail" in wrong.stderr
    none = to("x", password="")
    assert (none.returncode, none.stderr.count("\n")) == (1, 1) and "ADIUVA_DEVICE_PASSWORD" in none.stderr


def test_beside_make_run_it_is_the_demos_account(server: Server, tmp_path: Path, chat: Chat) -> None:
    state = StateFolder(tmp_path / "state")
    server.password = state.secrets().demo_password
    state.release()
    server.answers = [said("Hello!")]
    done = chat("hello", password="", state=str(tmp_path / "state"), port=server.port)
    assert done.stdout == "Hello!\n"
    assert server.asked[0][1]["email"] == DEMO_EMAIL


def test_the_demos_password_goes_to_no_other_server(server: Server, tmp_path: Path, chat: Chat) -> None:
    state = StateFolder(tmp_path / "state")
    state.secrets()
    state.release()
    done = chat("--server", server.url, "x", password="", state=str(tmp_path / "state"))
    assert done.returncode == 1 and server.asked == []


def test_a_conversation_goes_on_after_a_restart_until_a_new_one_begins(
    server: Server, to: Chat, tmp_path: Path
) -> None:
    server.answers = [said("Hello!"), said("Two."), said("Anew."), said("Once more.")]
    to(says="hi\n")
    again = to(says="how many?\n/new\nhello\n")
    assert (
        again.stdout.splitlines()[0]
        == "The conversation goes on after 1 of your messages; /new begins another."
    )
    histories = [len(body["context"]["conversation_history"]) for body in server.chats]
    assert histories == [0, 2, 0]
    (kept,) = (tmp_path / "of the client" / "chats").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    to("--new", "hello")
    assert server.chats[3]["context"] == {"conversation_history": []}


def test_suggestions_of_a_device_on_this_machine_are_approved_and_taken_back(
    server: Server, to: Chat, tmp_path: Path
) -> None:
    store = Store(tmp_path / "data.sqlite3")
    store.seed({"tasks": [{"title": "Call Ada", "isAiSuggested": 1}]})
    done = to("--workspace", str(tmp_path), says="/list\n/approve 1\n/list\n/undo\n/list\n/help list\n")
    first, approved, none, undone, again, *_ = done.stdout.splitlines()
    assert first == again == "1. tasks: Call Ada"
    assert (approved, none, undone) == (
        "Approved: Call Ada",
        "No suggestions wait for you.",
        "As before: Call Ada",
    )
    store.close()
    assert "--workspace" in to(says="/list\n").stdout
    assert "no device's data" in to("--workspace", "/nowhere", says="/list\n").stderr
