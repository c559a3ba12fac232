"""A backup is taken while people come and go, and brings back all that may come back into empty databases."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from adiuva.accounts import keys, services
from adiuva.accounts.models import User
from adiuva.core.crypto import KeyRing
from adiuva.management import pg_programs
from tests.accounts.installation import dump, in_use, new_database, restore, turn_off
from tests.factories import seal_text, unseal_text

RING = f"ring:{base64.b64encode(os.urandom(32)).decode()}"


@dataclass
class Files:
    main: Path
    keys: Path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "main.dump", tmp_path / "keys.dump")


@pytest.fixture(scope="module")
def databases(committed_db: str) -> tuple[str, str]:
    main, apart = new_database(committed_db), new_database(committed_db)
    restore(main, dump(committed_db, "--schema-only"))
    restore(main, dump(committed_db, "--data-only", "--table=django_migrations"))
    return main, apart


@pytest.fixture
def filled(committed_db: str, databases: tuple[str, str]) -> Iterator[str]:
    """An installation in use, with its keys apart; gives its server's address."""
    with in_use(*databases), override_settings(KEY_RING=KeyRing.parse([RING]), KEYS=[RING]):
        yield committed_db


def person(text: str) -> tuple[UUID, bytes]:
    user = User.objects.create(email=f"{uuid4().hex}@example.com", password="!")
    return user.pk, seal_text(keys.cipher_for(user.pk), text)


def test_a_backup_that_fails_leaves_what_was_there(
    filled: str, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.keys.write_text("the older dump")
    real = pg_programs.dump

    def fail(alias: str, into: Path) -> None:
        if alias != "default":
            raise CommandError("pg_dump failed: out of luck")
        real(alias, into)

    monkeypatch.setattr(pg_programs, "dump", fail)
    with pytest.raises(CommandError, match="out of luck"):
        call_command("backup", str(files.main), str(files.keys))
    assert [path.name for path in files.main.parent.iterdir()] == ["keys.dump"]
    assert files.keys.read_text() == "the older dump"


def test_it_refuses_what_would_be_half_a_backup(filled: str, files: Files) -> None:
    with pytest.raises(CommandError, match="name a second file"):
        call_command("backup", str(files.main))
    files.main.write_text("a dump")
    with pytest.raises(CommandError, match="exists already"):
        call_command("backup", str(files.main), str(files.keys))
    with pytest.raises(CommandError, match="pg_restore failed"):
        call_command("restore", str(files.main), str(files.keys))


def test_people_come_and_go_during_a_backup(
    filled: str, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays, sealed = person("what stays")
    goes, _ = person("what goes")
    comes: list[UUID] = []
    real = pg_programs.dump

    def dump_and_go_on(alias: str, into: Path) -> None:
        real(alias, into)
        if alias == "default":  # between the two dumps
            services.delete_account(user=User.objects.get(pk=goes))
            comes.append(person("what comes")[0])

    monkeypatch.setattr(pg_programs, "dump", dump_and_go_on)
    call_command("backup", str(files.main), str(files.keys), stdout=StringIO())
    assert comes and not User.objects.filter(pk=goes).exists()
    assert {oct(file.stat().st_mode & 0o777) for file in (files.main, files.keys)} == {"0o600"}
    assert sorted(path.name for path in files.main.parent.iterdir()) == ["keys.dump", "main.dump"]

    main, apart = new_database(filled), new_database(filled)
    turn_off()
    with in_use(main, apart):
        call_command("restore", str(files.main), str(files.keys), stdout=StringIO())
        call_command("migrate", check_unapplied=True, verbosity=0)  # nothing is left to do
        assert unseal_text(keys.cipher_for(stays), sealed) == "what stays"
        said = StringIO()
        with pytest.raises(CommandError, match="1 accounts have lost their key"):
            call_command("rotate_keys", stdout=said)
        assert f"without its key: account {goes}" in said.getvalue()
        assert not User.objects.filter(pk=comes[0]).exists()
        services.delete_account(user=User.objects.get(pk=goes))
        call_command("rotate_keys", stdout=StringIO())
        with pytest.raises(CommandError, match=f"{urlsplit(main).path[1:]} is not empty"):
            call_command("restore", str(files.main), str(files.keys))
