"""Beat as a thread of a worker: what fails in it is tried again, and only its own tasks prove that it is alive."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.beat import Scheduler

from adiuva.core import celery_beat_thread, celery_heartbeat
from adiuva.core.celery_beat_thread import BeatThread


class Failing(Scheduler):
    """Fails at its first look at what is due, as where the database does not answer."""

    looks = 0
    looked_again = threading.Event()

    def tick(self, *_: Any, **__: Any) -> float:
        type(self).looks += 1
        if self.looks == 1:
            raise OSError("no database")
        self.looked_again.set()
        return 0.01


def test_beat_goes_on_after_a_failure_and_ends_with_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celery_beat_thread, "_PAUSE_S", 0.01)
    app = Celery("of a test", set_as_current=False, broker="memory://")
    app.conf.beat_scheduler = Failing
    step = BeatThread(SimpleNamespace(app=app), with_beat=True)
    step.start(None)
    assert Failing.looked_again.wait(30)
    step.stop(None)
    assert "beat" not in {thread.name for thread in threading.enumerate()}


def test_what_a_worker_publishes_is_no_sign_of_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    beaten: list[str] = []
    monkeypatch.setattr(celery_heartbeat, "beat", lambda *roles: beaten.extend(roles))
    monkeypatch.setattr(celery_heartbeat, "_beat_thread", threading.get_ident())
    celery_heartbeat._published()
    assert beaten == ["beat"]
    other = threading.Thread(target=celery_heartbeat._published)
    other.start()
    other.join()
    assert beaten == ["beat"]
