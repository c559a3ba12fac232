"""Tests that need no server: they run in seconds. A test that tries to reach one fails here and says why.

Modules directly in this folder run without Django; those in `django_apps` may use its settings and models.
"""

from __future__ import annotations

import socket
from typing import NoReturn

import pytest


def _refuse(what: str) -> NoReturn:
    pytest.fail(f"A test in tests/unit must not {what}: move it to the folder of its package in tests/.")


@pytest.fixture(autouse=True, scope="session")
def valkey() -> None:
    """Not started here."""


@pytest.fixture(scope="session")
def postgres() -> None:
    _refuse("use the database")


@pytest.fixture(scope="session")
def django_db_setup() -> None:
    _refuse("use the database")


@pytest.fixture(scope="session")
def forkserver() -> None:
    _refuse("start server processes")


@pytest.fixture(autouse=True)
def _no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(self: socket.socket, address: object) -> NoReturn:
        _refuse(f"connect to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket.socket, "connect_ex", connect)
