"""Alive, and ready to work; workers and beat are heard while they live."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from rest_framework.test import APIClient

from adiuva import __version__
from adiuva.core import celery_heartbeat
from adiuva.core.logging import count_failures
from adiuva.embedded.ports import free_port
from adiuva.embedded.processes import python
from tests.server_processes import Stack, answers

HEALTH, READY = "/api/v1/health", "/api/v1/health/ready"


def ready() -> dict[str, Any]:
    answer = APIClient().get(READY)
    found: dict[str, Any] = answer.json()
    ok = all(check["ok"] for check in found["checks"].values())
    assert (answer.status_code, found["status"]) == ((200, "ok") if ok else (503, "degraded"))
    return found


def test_alive_needs_nothing(django_assert_num_queries: pytest.FixtureRequest, db: None) -> None:
    with django_assert_num_queries(0):  # type: ignore[operator]
        answer = APIClient().get(HEALTH, headers={"Authorization": "Bearer nonsense", "Accept": "image/png"})
        page = APIClient().get(HEALTH, headers={"Accept": "text/html,*/*;q=0.8", "Accept-Language": "de"})
    body = {"status": "ok", "version": __version__, "unexpected_errors": count_failures()}
    assert (answer.status_code, answer.json()) == (200, body)
    assert (page.status_code, page["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "<h1>Health</h1>" in page.content.decode()


def test_worker_and_beat_are_heard_while_they_live(stack: Stack) -> None:
    before = celery_heartbeat.count_alive("worker")  # other tests' worker, perhaps
    assert not ready()["checks"]["beat"]["ok"]

    # Each lane needs its worker: this one serves a queue of its own, and no lane.
    other = stack.run("worker-of-no-lane", python("-m", "celery", "-A", "adiuva", "worker", "-Q", "health"))
    other.wait_until(lambda: celery_heartbeat.count_alive("worker") > before, within_s=60)
    if not before:
        assert ready()["checks"]["worker"]["reason"].startswith("no worker of runs and short was heard")
    other.stop()
    assert celery_heartbeat.count_alive("worker") == before

    worker = stack.run("worker-of-health", python("-m", "celery", "-A", "adiuva", "worker"))
    beat = stack.run("beat-of-health", python("-m", "celery", "-A", "adiuva", "beat"))
    worker.wait_until(lambda: celery_heartbeat.count_alive("worker") > before, within_s=60)
    beat.wait_until(lambda: celery_heartbeat.count_alive("beat") == 1, within_s=60)
    assert ready()["status"] == "ok"

    # Who ends in order says so; nobody waits for a heartbeat to be missed.
    worker.stop()
    beat.stop()
    assert (celery_heartbeat.count_alive("worker"), celery_heartbeat.count_alive("beat")) == (before, 0)


def test_who_died_without_a_word_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    redis, key = celery_heartbeat._redis(), celery_heartbeat._key("beat")
    redis.delete(key)
    celery_heartbeat.beat("beat")
    assert celery_heartbeat.count_alive("beat") == 1
    redis.zincrby(key, -(celery_heartbeat.ALIVE_FOR_S + 1), celery_heartbeat._node())
    assert celery_heartbeat.count_alive("beat") == 0
    monkeypatch.setattr(celery_heartbeat, "_node", lambda: "another")
    celery_heartbeat.beat("beat")
    assert redis.zcard(key) == 1  # and the dead one's entry is gone
    celery_heartbeat.sign_off("beat")
    assert celery_heartbeat.count_alive("beat") == 0


def test_what_is_away_is_named_without_an_address(stack: Stack) -> None:
    port = free_port()
    web = f"http://127.0.0.1:{port}"
    server = stack.run(
        "web-with-nothing",
        python("-m", "adiuva.server"),
        ADIUVA_PORT=str(port),
        DATABASE_URL="postgresql://someone:secret@127.0.0.1:9/x",
        REDIS_URL="redis://:secret@127.0.0.1:9/0",
    )
    server.wait_until(lambda: answers(web + HEALTH), within_s=60, every_s=0.1)
    answer = httpx.get(web + READY, timeout=60)
    assert answer.status_code == 503
    assert [check["ok"] for check in answer.json()["checks"].values()] == [False] * 6
    assert all(check["reason"] for check in answer.json()["checks"].values())
    assert "secret" not in answer.text
    assert "127.0.0.1" not in answer.text
    assert httpx.get(web + HEALTH).json()["status"] == "ok"
    body = {"email": "a@example.com", "password": "b"}
    login = httpx.post(f"{web}/api/v1/auth/login", json=body, timeout=60)
    assert (login.status_code, login.json()["code"]) == (503, "unavailable")
    server.stop()
