"""The state folder of `make run`: locked, complete or told, and never repaired by deleting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from dotenv import dotenv_values

from adiuva.core.crypto import KeyRing
from adiuva.embedded import stack
from adiuva.embedded.processes import StackError
from adiuva.embedded.state_folder import StateFolder


def test_secrets_are_made_once_and_for_our_eyes_only(tmp_path: Path) -> None:
    made = StateFolder(tmp_path / "state").secrets()
    assert StateFolder(tmp_path / "state").secrets() == made
    assert KeyRing.parse([made.keys]).newest == "k1"
    assert (tmp_path / "state" / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert made.demo_password not in repr(made)


@pytest.mark.parametrize("left", ["", "{", '{"secret_key": "only this"}', "[]"])
def test_half_written_secrets_are_told_and_left_alone(tmp_path: Path, left: str) -> None:
    (tmp_path / "secrets.json").write_text(left)
    with pytest.raises(StackError, match="nothing was changed"):
        StateFolder(tmp_path).secrets()
    assert (tmp_path / "secrets.json").read_text() == left


def test_data_without_its_secrets_gets_no_new_ones(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    with pytest.raises(StackError, match="is missing"):
        StateFolder(tmp_path).secrets()
    assert not (tmp_path / "secrets.json").exists()


def test_a_second_stack_learns_who_has_the_folder(tmp_path: Path) -> None:
    first, second = StateFolder(tmp_path), StateFolder(tmp_path)
    first.acquire("http://127.0.0.1:8000")
    with pytest.raises(StackError) as refused:
        second.acquire("http://127.0.0.1:8001")
    assert f"process {os.getpid()}" in refused.value.message
    assert "http://127.0.0.1:8000" in refused.value.message
    first.release()
    second.acquire("http://127.0.0.1:8001")
    second.release()


def test_what_is_published_reads_as_it_was_written(tmp_path: Path) -> None:
    values = {
        "DATABASE_URL": "postgresql://a:b@127.0.0.1:1/c",
        "ODD": "a 'quoted' \\ # \"value\" =",
        "EMPTY": "",
    }
    StateFolder(tmp_path).publish(values)
    assert dotenv_values(tmp_path / "env") == values
    assert (tmp_path / "env").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_be_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StackError, match="ADIUVA_STATE_DIR"):
        StateFolder(tmp_path / "file")


def test_a_schema_and_code_that_are_remembered_are_told_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the schema hangs whether processes start before `migrate` has ended, on the code whether it runs."""
    files = {
        "requirements.txt": "django==5.2.1",
        "chat/migrations/0001_initial.py": "a table",
        "adiuva/staff/roles.py": "a role",
    }
    changes = {
        "requirements.txt": (True, True),
        "chat/migrations/0002_more.py": (True, True),
        "adiuva/staff/roles.py": (False, True),
        "README.md": (False, False),
    }
    monkeypatch.setattr(stack, "BASE_DIR", tmp_path / "code")
    for name, text in files.items():
        _write(tmp_path / "code" / name, text)
    state = StateFolder(tmp_path / "state")
    assert state.remembered("schema") == state.remembered("code") == ""
    for name, expected in changes.items():
        state.remember("schema", stack.schema_fingerprint())
        state.remember("code", stack.code_fingerprint())
        _write(tmp_path / "code" / name, "something else")
        assert expected == (
            state.remembered("schema") != stack.schema_fingerprint(),
            state.remembered("code") != stack.code_fingerprint(),
        )
    (tmp_path / "state" / "schema").write_bytes(b"\xff")
    assert state.remembered("schema") == ""


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
