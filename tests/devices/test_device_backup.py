"""The headless device's data, backed up at the server and restored on another machine."""

from __future__ import annotations

import asyncio
import hashlib
import io
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from adiuva.devices.client import BadWorkspace, Store
from adiuva.devices.client.account import Account, ServerAddress
from adiuva.devices.client.backup import BackupRefused, Backups
from adiuva.devices.client.sealed_file import DamagedFile, WrongPassphrase
from adiuva.vault.models import Backup
from tests.factories import Person, somebody

PASSPHRASE = "correct horse battery"


def backups_of(person: Person, web: str, folder: Path) -> Backups:
    folder.mkdir(exist_ok=True)
    address = ServerAddress.parse(web)
    return Backups(address, Account(address, access_token=person.access_token), folder)


def test_data_comes_back_on_another_machine_and_only_with_its_passphrase(web: str, tmp_path: Path) -> None:
    mara, here, there = somebody(tier="pro"), tmp_path / "here", tmp_path / "there"
    with pytest.raises(BackupRefused, match="no backup"):
        asyncio.run(backups_of(mara, web, there).restore(PASSPHRASE))
    mine = backups_of(mara, web, here)
    with pytest.raises(BadWorkspace):
        asyncio.run(mine.make(PASSPHRASE))
    store = Store(here / "data.sqlite3")
    store.set_property("device_id", "first")
    store.set_property("note", "harbour café")
    made = asyncio.run(mine.make(PASSPHRASE))  # while it is open
    assert made is not None and asyncio.run(mine.make(PASSPHRASE)) is None  # nothing has changed
    store.set_property("note", "harbour bar")
    assert asyncio.run(mine.make(PASSPHRASE)) is not None
    store.close()
    assert Backup.objects.of(mara.id).count() == 2
    theirs = backups_of(mara, web, there)
    with pytest.raises(WrongPassphrase):
        asyncio.run(theirs.restore("another passphrase"))
    assert list(there.iterdir()) == []  # nothing is left of it
    asyncio.run(theirs.restore(PASSPHRASE))
    restored = Store(there / "data.sqlite3")
    assert (restored.property("note"), restored.property("device_id")) == ("harbour bar", None)
    restored.close()
    assert (there / "data.sqlite3").stat().st_mode & 0o77 == 0
    with pytest.raises(BadWorkspace, match="already"):
        asyncio.run(theirs.restore(PASSPHRASE))


def test_what_is_no_backup_of_this_program_is_not_restored(web: str, tmp_path: Path) -> None:
    mara, data = somebody(tier="pro"), b"of the app, in its own format" * 10
    headers = {
        "X-Backup-Version": "7",
        "X-Backup-Timestamp": "1",
        "X-Backup-Checksum": hashlib.sha256(data).hexdigest(),
    }
    with mara.rest(web) as rest:
        assert rest.put("/backup", content=data, headers=headers).status_code == 200
    with pytest.raises(DamagedFile):
        asyncio.run(backups_of(mara, web, tmp_path / "new").restore(PASSPHRASE))
    assert list((tmp_path / "new").iterdir()) == []


def test_the_command_backs_up_and_restores(web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mara, here, there = somebody(tier="pro"), tmp_path / "here", tmp_path / "there"
    monkeypatch.setenv("ADIUVA_DEVICE_PASSWORD", mara.password)
    monkeypatch.setenv("ADIUVA_DEVICE_PASSPHRASE", PASSPHRASE)
    here.mkdir()
    Store(here / "data.sqlite3").close()

    def said(*arguments: str | Path) -> str:
        out = io.StringIO()
        call_command("device", "--server", web, "--email", mara.email, "--workspace", *arguments, stdout=out)
        return out.getvalue()

    assert "Backed up" in said(here, "--backup")
    assert "Nothing has changed" in said(here, "--backup")
    assert "Restored the backup of 20" in said(there, "--restore")
    with pytest.raises(CommandError, match="data already"):
        said(there, "--restore")
    monkeypatch.setenv("ADIUVA_DEVICE_PASSPHRASE", "short")
    with pytest.raises(CommandError, match="12 characters"):
        said(here, "--backup")
