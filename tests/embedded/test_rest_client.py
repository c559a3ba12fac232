"""The demo's REST client, at a server that has it wait."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from adiuva.embedded.rest_client import ApiClient, ApiError

THROTTLED = {"code": "throttled", "message": "too many tries", "retry_after_s": 3}


class Server:
    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, object]]] = []
        given = self.answers

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = given.pop(0)
                raw = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


def test_more_requests_than_a_plan_allows_are_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("adiuva.embedded.rest_client.time.sleep", slept.append)
    server.answers += [(429, THROTTLED), (429, THROTTLED), (200, {"state": "success"})]
    assert ApiClient(server.base).get("/agents/runs/1") == {"state": "success"}
    assert slept == [3, 3]


def test_what_would_take_too_long_is_not_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adiuva.embedded.rest_client.time.sleep", pytest.fail)
    server.answers += [(429, {**THROTTLED, "retry_after_s": 3600})]
    with pytest.raises(ApiError, match="too many tries"):
        ApiClient(server.base).get("/agents")
