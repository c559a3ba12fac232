"""Secrets of `make run`: only the server's programs get them."""

from __future__ import annotations

from pathlib import Path

import pytest

from adiuva.embedded.processes import Supervisor
from adiuva.embedded.python_programs import Programs
from adiuva.embedded.state_folder import StateFolder


def test_secrets_go_to_programs_of_the_server_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADIUVA_MODEL_API_KEY", "a-key")
    programs = Programs(StateFolder(tmp_path), Supervisor(say=print))
    programs.env = {"ADIUVA_KEYS": "k1:AAAA", "ADIUVA_PORT": "8000"}

    def knows(name: str) -> set[str]:
        given = programs.child(name, "-c", "pass").env or {}
        assert given["ADIUVA_PORT"] == "8000"
        return {"ADIUVA_KEYS", "ADIUVA_MODEL_API_KEY"} & set(given)

    for name in ("web", "worker-runs", "worker-short", "migrate", "publish-examples", "check-models"):
        assert knows(name) == {"ADIUVA_KEYS", "ADIUVA_MODEL_API_KEY"}, name
    for name in ("device", "offline-model", "local-embeddings", "stripe-double", "another"):
        assert knows(name) == set(), name


def test_where_forks_are_not_safe_each_program_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adiuva.embedded.forks.ARE_SAFE", False)
    supervisor = Supervisor(say=print)
    programs = Programs(StateFolder(tmp_path), supervisor)
    programs.preload_libraries()
    programs.preload_application()
    assert supervisor.children == []
    assert programs.child("web", "-c", "pass").forked_by is None
