"""Tasks are sent by a thread of their own, which outlives whatever goes wrong with one."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from celery import current_app
from redis.exceptions import ResponseError

from adiuva.core import enqueue
from tests.socket_client import PATIENCE_S


@pytest.mark.parametrize(
    "error", [AttributeError("'NoneType' object has no attribute 'client'"), ResponseError("MISCONF")]
)
def test_after_any_failure_the_next_task_is_sent_over_a_new_connection(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    connections: list[Any] = []
    sent = threading.Event()

    def send(task: str, ids: list[str], *, producer: Any, **_: Any) -> None:
        connections.append(producer.connection)
        if ids == ["fails"]:
            raise error
        sent.set()

    monkeypatch.setattr(current_app, "send_task", send)
    for name in ("fails", "works"):
        enqueue._put("memory.record", [name], 0.0)
    assert sent.wait(PATIENCE_S)
    assert connections[0] is not connections[1]
