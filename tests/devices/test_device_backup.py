"""The headless device's data, backed up at the server and restored on another machine."""

from __future__ import annotations

import asyncio
import hashlib
import io
import secrets
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from adiuva.devices.client import BadWorkspace, Store, backup
from adiuva.devices.client.account import Account, ServerAddress, ServerUnavailable
from adiuva.devices.client.backup import BackupRefused, Backups
from adiuva.devices.client.backup_delta import BLOCK
from adiuva.devices.client.sealed_file import DamagedFile, WrongPassphrase, seal
from adiuva.vault.models import Backup
from tests.factories import Person, somebody

PASSPHRASE = "correct horse battery"


@pytest.fixture
def quick_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A passphrase becomes a key in an eighth of the time, which is most of what these tests would take."""
    monkeypatch.setattr(backup, "seal", partial(seal, log_n=14))


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


def dump_of(folder: Path) -> list[str]:
    """All rows but the device's id."""
    with closing(sqlite3.connect(folder / "data.sqlite3")) as data:
        return [line for line in data.iterdump() if "device_id" not in line]


def large(folder: Path) -> Store:
    """The data of a device, of some megabytes."""
    store = Store(folder / "data.sqlite3")
    for number in range(300):
        store.set_property(f"note {number}", f"{number} {secrets.token_hex(5_000)}")
    return store


@pytest.mark.usefixtures("quick_seals")
def test_what_changed_is_sent_alone_and_restored_with_what_it_builds_on(web: str, tmp_path: Path) -> None:
    mara, here = somebody(tier="pro"), tmp_path / "here"
    mine = backups_of(mara, web, here)
    store = large(here)
    whole = asyncio.run(mine.make(PASSPHRASE))
    assert whole is not None and whole.is_whole and whole.size > 3_000_000
    for number in range(3):
        store.set_property("note 150", f"changed {number}")
        made = asyncio.run(mine.make(PASSPHRASE))
        assert made is not None and not made.is_whole and made.size <= 6 * BLOCK
        assert asyncio.run(mine.make(PASSPHRASE)) is None
    with mara.rest(web) as rest:
        history = rest.get("/backup/history").json()
        assert [each["base"] for each in history] == [whole.timestamp_ms] * 3 + [None]
        refused = rest.delete(f"/backup/{history[-1]['id']}")
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    theirs = backups_of(mara, web, tmp_path / "there")
    with pytest.raises(WrongPassphrase):
        asyncio.run(theirs.restore("another passphrase"))
    assert list((tmp_path / "there").iterdir()) == []
    asyncio.run(theirs.restore(PASSPHRASE))
    assert dump_of(tmp_path / "there") == dump_of(here)
    again = asyncio.run(mine.make("another passphrase"))
    assert again is None  # nothing has changed
    store.set_property("note 150", "changed again")
    again = asyncio.run(mine.make("another passphrase"))
    assert again is not None and again.is_whole  # one passphrase opens all that a backup consists of
    store.close()


@pytest.mark.usefixtures("quick_seals")
def test_differences_end_with_a_new_whole_when_they_are_as_much(web: str, tmp_path: Path) -> None:
    mara, here = somebody(tier="pro"), tmp_path / "here"
    mine, store, wholes = backups_of(mara, web, here), large(here), 0
    for round_ in range(8):
        for number in range(round_ * 10, round_ * 10 + 40):
            store.set_property(f"note {number}", secrets.token_hex(5_000))
        made = asyncio.run(mine.make(PASSPHRASE))
        assert made is not None
        wholes += made.is_whole
    assert 2 <= wholes <= 4
    store.close()


@pytest.mark.parametrize("harm", ["gone", "flipped", "another"])
@pytest.mark.usefixtures("quick_seals")
def test_a_difference_whose_base_is_harmed_is_not_restored_and_the_next_is_whole(
    web: str, tmp_path: Path, harm: str
) -> None:
    mara, here = somebody(tier="pro"), tmp_path / "here"
    mine, store = backups_of(mara, web, here), large(here)
    whole = asyncio.run(mine.make(PASSPHRASE))
    store.set_property("note 7", "changed")
    changed = asyncio.run(mine.make(PASSPHRASE))
    assert whole is not None and changed is not None and not changed.is_whole
    base = Backup.objects.of(mara.id).get(timestamp_ms=whole.timestamp_ms)
    place = Path(urlsplit(settings.STORE["url"]).path) / base.object
    if harm == "gone":
        Backup.objects.filter(pk=base.pk).delete()
    elif harm == "flipped":
        data = bytearray(place.read_bytes())
        data[len(data) // 2] ^= 1
        place.write_bytes(data)
    else:  # sealed with the same passphrase, and not what the difference was made from
        other = io.BytesIO()
        (tmp_path / "other").write_bytes(b"other data" * 400_000)
        seal(tmp_path / "other", other, PASSPHRASE)
        place.write_bytes(other.getvalue())
        Backup.objects.filter(pk=base.pk).update(
            checksum=hashlib.sha256(other.getvalue()).digest(), size=len(other.getvalue())
        )
    theirs = backups_of(mara, web, tmp_path / "there")
    with pytest.raises((DamagedFile, BackupRefused, ServerUnavailable)):
        asyncio.run(theirs.restore(PASSPHRASE))
    assert list((tmp_path / "there").iterdir()) == []
    store.set_property("note 8", "changed")
    again = asyncio.run(mine.make(PASSPHRASE))
    assert again is not None and again.is_whole
    asyncio.run(theirs.restore(PASSPHRASE))
    assert dump_of(tmp_path / "there") == dump_of(here)
    store.close()


@pytest.mark.usefixtures("quick_seals")
def test_nothing_is_built_on_what_cannot_be_read(web: str, tmp_path: Path) -> None:
    mara, here = somebody(tier="pro"), tmp_path / "here"
    mine, store = backups_of(mara, web, here), large(here)
    assert asyncio.run(mine.make(PASSPHRASE)) is not None
    place = Path(urlsplit(settings.STORE["url"]).path) / Backup.objects.of(mara.id).get().object
    data = place.read_bytes()
    place.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    store.set_property("note 7", "changed")
    made = asyncio.run(mine.make(PASSPHRASE))
    assert made is not None and made.is_whole
    store.close()


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
