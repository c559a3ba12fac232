"""`manage.py chat`, run as a program against a server that answers by the contract."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from adiuva.embedded.demo import EMAIL
from adiuva.embedded.state import State
from tests.stack import ROOT

PASSWORD = "a good password"


class Server:
    """Signs in, then gives `answers` one after the other: (status, body). Keeps what it was asked."""

    def __init__(self) -> None:
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
        assert path == "/api/v1/chat"
        return self.answers.pop(0)

    @property
    def chats(self) -> list[dict[str, Any]]:
        return [body for path, body, _ in self.asked if path == "/api/v1/chat"]


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever)
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


def chat(
    *arguments: str, says: str = "", password: str = PASSWORD, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command with an environment in which nothing is configured."""
    env = {"ADIUVA_STATE_DIR": "/nowhere", "ADIUVA_ENV_FILE": "/dev/null", "PYTHONUTF8": "1"} | environment
    if password:
        env["ADIUVA_DEVICE_PASSWORD"] = password
    return subprocess.run(
        [sys.executable, "manage.py", "chat", *arguments],
        cwd=ROOT,
        env=env,
        input=says,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def to(server: Server, *message: str, **more: str) -> subprocess.CompletedProcess[str]:
    return chat("--server", server.url, "--email", "kim@example.com", *message, **more)


def said(text: str, *mutations: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return 200, {"response": text, "mutations": list(mutations)}


def test_a_message_is_answered_with_the_text_and_what_was_changed(server: Server) -> None:
    rows = [
        {"action": "insert", "table": "tasks", "data": {"id": "t-1", "title": "Call Ada"}},
        {"action": "update", "table": "timelines", "data": {"id": "l-1", "title": "Launch"}},
        {"action": "delete", "table": "notes", "data": {"id": "n-1"}},
    ]
    server.answers = [said("Created it. <task>[t-1]</task>", *rows)]
    done = to(server, "add", "a task")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "Created it.",
        "  created task: Call Ada",
        "  changed timeline entry: Launch",
        "  deleted note: n-1",
    ]
    assert server.chats == [{"message": "add a task", "context": {"conversation_history": []}}]
    assert server.asked[1][2] == "Bearer token 1"


def test_without_a_message_each_line_is_one_and_the_history_goes_along(server: Server) -> None:
    server.answers = [said("Hello!"), said("Two.")]
    done = to(server, says="hi\n\n  how many?  \n")
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


def test_a_chart_is_named_and_nothing_steers_the_terminal(server: Server) -> None:
    chart = json.dumps({"chartType": "bar", "title": "Hours"})
    server.answers = [said(f"See:\n<chart>{chart}</chart>\n\x1b[2Jgone\x07 <note>[a,b]</note>")]
    assert to(server, "x").stdout == "See:\n(a chart: Hours)\n[2Jgone\n"


def test_a_refusal_is_one_line_and_a_failure(server: Server) -> None:
    server.answers = [(503, {"code": "device_offline", "message": "none of your devices\nis connected"})]
    done = to(server, "list my tasks")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "CommandError: none of your devices is connected (device_offline)\n"


def test_what_happened_before_a_failure_is_told(server: Server) -> None:
    row = {"action": "insert", "table": "tasks", "data": {"title": "Call Ada"}}
    problem = {"code": "model_timeout", "message": "the model did not answer", "response": "I"}
    server.answers = [(504, {**problem, "mutations": [row]})]
    done = to(server, "x")
    assert (done.returncode, done.stdout) == (1, "I\n  created task: Call Ada\n")


def test_in_a_conversation_the_next_message_may_be_tried(server: Server) -> None:
    server.answers = [(503, {"code": "unavailable", "message": "away"}), (502, b"<html>"), said("Here.")]
    done = to(server, says="a\nb\nc\n")
    assert (done.returncode, done.stdout) == (0, "Here.\n")
    assert done.stderr.splitlines() == ["away (unavailable)", "the server answered with HTTP 502 (502)"]


def test_a_token_that_has_run_out_is_renewed(server: Server) -> None:
    server.answers = [(401, {"code": "not_authenticated", "message": "expired"}), said("Here.")]
    assert to(server, "x").stdout == "Here.\n"
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
def test_what_cannot_work_is_one_line(arguments: list[str], words: str) -> None:
    done = chat(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert words in done.stderr


def test_a_wrong_password_and_none_are_one_line(server: Server) -> None:
    wrong = to(server, "x", password="another")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1) and "wrong e-mail" in wrong.stderr
    none = to(server, "x", password="")
    assert (none.returncode, none.stderr.count("\n")) == (1, 1) and "ADIUVA_DEVICE_PASSWORD" in none.stderr


def test_beside_make_run_it_is_the_demos_account(server: Server, tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    server.password = state.secrets().demo_password
    state.release()
    server.answers = [said("Hello!")]
    env = {"ADIUVA_STATE_DIR": str(tmp_path / "state"), "ADIUVA_PORT": str(server.port)}
    assert chat("hello", password="", **env).stdout == "Hello!\n"
    assert server.asked[0][1]["email"] == EMAIL


def test_the_demos_password_goes_to_no_other_server(server: Server, tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    state.secrets()
    state.release()
    done = chat("--server", server.url, "x", password="", ADIUVA_STATE_DIR=str(tmp_path / "state"))
    assert done.returncode == 1 and server.asked == []
