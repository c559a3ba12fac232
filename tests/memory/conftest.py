"""Here the tests are the worker: a real one, that other tests have started, would be faster at times."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.provider import AFTER_TURNS, Provider


@pytest.fixture(autouse=True)
def _nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from adiuva.celery import app
    from adiuva.core import enqueue

    # Not only what it calls: its thread may send a hint when the test is over.
    monkeypatch.setattr(enqueue, "_put", lambda *_: None)
    monkeypatch.setattr(app, "send_task", lambda *_, **__: None)


@pytest.fixture(scope="session")
def _provider_of_these() -> Iterator[Provider]:
    with Provider(apart=AFTER_TURNS) as provider:
        yield provider


@pytest.fixture
def provider(_provider_of_these: Provider, unlearnt_limits: None) -> Provider:
    """One that no worker asks: what is counted here is what the test has asked."""
    _provider_of_these.reset()
    return _provider_of_these
