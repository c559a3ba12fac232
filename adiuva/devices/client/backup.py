"""Backups of a device's data at the server, sealed with a passphrase that only the user knows.

    backups = Backups(ServerAddress.parse(server), account, folder)
    made = await backups.make(passphrase)           # None: nothing has changed since the last one
    await backups.restore(passphrase)               # into a folder that has no data yet

A backup is a copy of the data as of one moment: whole, or the blocks that differ from an earlier whole one
(`backup_delta`), which the server keeps as long as others build on it. An interrupted upload goes on where it was.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Final

import aiohttp

from adiuva.devices.client import backup_delta
from adiuva.devices.client.account import Account, ServerAddress, ServerUnavailable
from adiuva.devices.client.backup_delta import Base
from adiuva.devices.client.errors import BadWorkspace, DeviceError
from adiuva.devices.client.sealed_file import BEGINNING, FORMAT, DamagedFile, open_sealed, opens, seal
from adiuva.devices.client.store import DATA_FILE, now_ms

_NOTE: Final = "backup.json"
_PIECE: Final = 1024 * 1024
# Differences are sent alone up to a third of the whole (1 / _WORTH), and until all of them together are as much as it.
_WORTH: Final = 3
_PAGE: Final = 100
_TRIES: Final = 5
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
_TUS: Final = {"Tus-Resumable": "1.0.0"}
_TRY_AGAIN: Final = {408, 423, 429, 500, 502, 503, 504}


class BackupRefused(DeviceError):
    code = "backup_refused"


@dataclass(frozen=True)
class MadeBackup:
    timestamp_ms: int
    size: int  # sealed bytes that were sent
    is_whole: bool


@dataclass(frozen=True)
class _Note:
    """Note on this workspace's backup at the server: the SHA-256 of the data, when it was backed up, and on what base.

    `built`: the bytes of all differences from that base so far.
    """

    content: str
    timestamp_ms: int
    base: Base
    built: int

    def write(self, file: Path, server: str) -> None:
        base = {
            "timestamp": self.base.timestamp_ms,
            "checksum": self.base.checksum.hex(),
            "blocks": base64.b64encode(self.base.blocks).decode(),
        }
        note = {
            "server": server,
            "content": self.content,
            "timestamp": self.timestamp_ms,
            "base": base,
            "built": self.built,
        }
        file.unlink(missing_ok=True)
        with _new_file(file) as target:
            target.write(json.dumps(note).encode())


def _read_note(file: Path, server: str) -> _Note | None:
    """Return the note; None if there is none of this server. Then the data goes up whole."""
    try:
        note = json.loads(file.read_bytes())
        base = note["base"]
        found = Base(base["timestamp"], bytes.fromhex(base["checksum"]), base64.b64decode(base["blocks"]))
        return (
            _Note(note["content"], note["timestamp"], found, note["built"])
            if note["server"] == server
            else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Backups:
    def __init__(self, address: ServerAddress, account: Account, folder: Path) -> None:
        self._address, self._account, self._folder = address, account, folder
        self._data = folder / DATA_FILE

    async def make(self, passphrase: str) -> MadeBackup | None:
        """Seal the data and upload it, unless the server has it already. Raises DeviceError or ServerUnavailable."""
        if not self._data.exists():
            raise BadWorkspace("This workspace has no data to back up.")
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".backup-") as place:
            plain, changes, sealed = (Path(place) / name for name in ("plain", "changes", "sealed"))
            await asyncio.to_thread(_copy, self._data, plain)
            content = await asyncio.to_thread(_sha256, plain)
            async with aiohttp.ClientSession(timeout=_TIMEOUT) as http:
                note = _read_note(self._folder / _NOTE, self._address.base)
                stored = await self._history(http) if note is not None else {}
                if note is not None and note.content == content and note.timestamp_ms in stored:
                    return None
                base, built = await self._base(http, note, stored, passphrase), 0
                if base is not None and note is not None:
                    size = await asyncio.to_thread(_write_changes, plain, content, base, changes)
                    built, whole = note.built + size, plain.stat().st_size
                    if size > whole // _WORTH or built > whole:
                        base, built = None, 0
                chunks = await asyncio.to_thread(_seal, changes if base else plain, sealed, passphrase)
                made = MadeBackup(now_ms(), sealed.stat().st_size, base is None)
                upload = await self._upload(http, sealed, made.size)
                checksum = await asyncio.to_thread(_sha256, sealed)
                headers = {
                    "X-Upload-Id": upload,
                    "X-Backup-Version": str(backup_delta.FORMAT if base else FORMAT),
                    "X-Backup-Timestamp": str(made.timestamp_ms),
                    "X-Backup-Checksum": checksum,
                    "X-Backup-Chunks": str(chunks),
                    **({"X-Backup-Base": str(base.timestamp_ms)} if base else {}),
                }
                await self._ask(http, "PUT", "backup", headers=headers)
            if base is None:
                blocks = await asyncio.to_thread(backup_delta.digests, plain)
                base = Base(made.timestamp_ms, bytes.fromhex(checksum), blocks)
        _Note(content, made.timestamp_ms, base, built).write(self._folder / _NOTE, self._address.base)
        return made

    async def restore(self, passphrase: str) -> int:
        """Bring the newest backup here. Returns when it was made, in ms.

        Raises BadWorkspace if there is data already, WrongPassphrase, DamagedFile, BackupRefused or ServerUnavailable:
        then nothing is restored.
        """
        if self._data.exists():
            raise BadWorkspace("This workspace has data already: restore into a new folder.")
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".restore-") as place:
            sealed, plain, changes = (Path(place) / name for name in ("sealed", "plain", "changes"))
            async with aiohttp.ClientSession(timeout=_TIMEOUT) as http:
                newest = await self._download(http, "backup", sealed)
                made_at = int(newest["X-Backup-Timestamp"])
                if newest["X-Backup-Version"] == str(backup_delta.FORMAT):
                    await asyncio.to_thread(_open, sealed, changes, passphrase)
                    await self._restore_on_base(http, changes, Path(place), plain, passphrase)
                else:
                    await asyncio.to_thread(_open, sealed, plain, passphrase)
            await asyncio.to_thread(_make_own, plain)
            plain.replace(self._data)
        return made_at

    # ── Requests ────────────────────────────────────────────────────────────────────────────────────────

    async def _ask(
        self, http: aiohttp.ClientSession, method: str, path: str, **given: Any
    ) -> tuple[Any, aiohttp.ClientResponse]:
        """Send a request. Raises BackupRefused for final refusals, and ServerUnavailable for failures that may pass."""
        token = await self._account.access_token(http)
        headers = {"Authorization": f"Bearer {token}", **given.pop("headers", {})}
        try:
            async with http.request(
                method, self._address.rest(path), headers=headers, allow_redirects=False, **given
            ) as response:
                body = await response.json() if response.content_type == "application/json" else None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ServerUnavailable(f"the server cannot be reached ({type(error).__name__})") from error
        if response.status in _TRY_AGAIN:
            raise ServerUnavailable(f"the server answered {response.status}")
        if not response.ok:
            raise BackupRefused(_refusal(response.status, body))
        return body, response

    async def _history(self, http: aiohttp.ClientSession) -> dict[int, dict[str, Any]]:
        """Return the server's undamaged backups, by the time when each was made."""
        found: dict[int, dict[str, Any]] = {}
        page = 1
        while rows := (await self._ask(http, "GET", f"backup/history?limit={_PAGE}&page={page}"))[0]:
            found |= {row["timestamp"]: row for row in rows if row["state"] == "ok"}
            if len(rows) < _PAGE:
                break
            page += 1
        return found

    async def _base(
        self,
        http: aiohttp.ClientSession,
        note: _Note | None,
        stored: dict[int, dict[str, Any]],
        passphrase: str,
    ) -> Base | None:
        """Return the last whole backup of this workspace, if it is still there and has the same passphrase."""
        base = note.base if note is not None else None
        row = stored.get(base.timestamp_ms) if base is not None else None
        if base is None or row is None or row["checksum"] != base.checksum.hex():
            return None
        beginning = await self._beginning(http, row["id"])
        try:
            return base if await asyncio.to_thread(opens, beginning, passphrase) else None
        except DamagedFile:  # and the server has not found it yet
            return None

    async def _beginning(self, http: aiohttp.ClientSession, backup_id: str) -> bytes:
        token = await self._account.access_token(http)
        headers = {"Authorization": f"Bearer {token}", "Range": f"bytes=0-{BEGINNING - 1}"}
        try:
            async with http.get(
                self._address.rest(f"backup/{backup_id}"), headers=headers, allow_redirects=False
            ) as response:
                if response.status != HTTPStatus.PARTIAL_CONTENT:
                    raise ServerUnavailable(f"the server answered {response.status}")
                return await response.content.readexactly(BEGINNING)
        except (aiohttp.ClientError, asyncio.IncompleteReadError, OSError, TimeoutError) as error:
            raise ServerUnavailable(f"the server cannot be reached ({type(error).__name__})") from error

    async def _restore_on_base(
        self, http: aiohttp.ClientSession, changes: Path, place: Path, plain: Path, passphrase: str
    ) -> None:
        """Put changes together with their base. Raises BackupRefused if the base is gone, and DamagedFile."""
        with changes.open("rb") as file:
            difference = backup_delta.read(file)
            row = (await self._history(http)).get(difference.base_ms)
            if row is None:
                raise BackupRefused("The backup that the newest one builds on is gone, or damaged.")
            sealed, whole = place / "sealed base", place / "base"
            got = await self._download(http, f"backup/{row['id']}", sealed)
            if got["X-Backup-Checksum"] != difference.base_checksum.hex():
                raise DamagedFile
            await asyncio.to_thread(_open, sealed, whole, passphrase)
            with whole.open("rb") as base, _new_file(plain) as target:
                await asyncio.to_thread(backup_delta.put_together, difference, file, base, target)
                target.flush()
                os.fsync(target.fileno())

    async def _upload(self, http: aiohttp.ClientSession, file: Path, size: int) -> str:
        begin = {**_TUS, "Upload-Length": str(size), "Upload-Metadata": "purpose YmFja3Vw"}
        _, begun = await self._ask(http, "POST", "storage/uploads", headers=begin)
        upload = begun.headers["Location"].rpartition("/")[2]
        for tries in range(1, _TRIES + 1):
            try:
                _, known = await self._ask(http, "HEAD", f"storage/uploads/{upload}", headers=_TUS)
                offset = int(known.headers["Upload-Offset"])
                headers = {
                    **_TUS,
                    "Upload-Offset": str(offset),
                    "Content-Type": "application/offset+octet-stream",
                    "Content-Length": str(size - offset),
                }
                if offset < size:
                    body = _pieces(file, offset)
                    await self._ask(http, "PATCH", f"storage/uploads/{upload}", headers=headers, data=body)
                break
            except ServerUnavailable:
                if tries == _TRIES:
                    raise
                await asyncio.sleep(2.0**tries)
        return upload

    async def _download(self, http: aiohttp.ClientSession, path: str, file: Path) -> Mapping[str, str]:
        """Download a backup and compare it with its checksum. Returns its headers. Raises DamagedFile too."""
        token = await self._account.access_token(http)
        digest = hashlib.sha256()
        try:
            async with http.get(
                self._address.rest(path),
                headers={"Authorization": f"Bearer {token}"},
                allow_redirects=False,
            ) as response:
                if response.status != HTTPStatus.OK:
                    body = await response.json() if response.content_type == "application/json" else None
                    raise BackupRefused(_refusal(response.status, body))
                with _new_file(file) as target:
                    async for piece in response.content.iter_chunked(_PIECE):
                        digest.update(piece)
                        target.write(piece)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ServerUnavailable(f"the download broke off ({type(error).__name__})") from error
        if digest.hexdigest() != response.headers.get("X-Backup-Checksum"):
            raise DamagedFile
        return response.headers


def _refusal(status: int, body: Any) -> str:
    if status == HTTPStatus.NOT_FOUND:
        return "There is no backup of this account at the server."
    said = body.get("message") if isinstance(body, dict) else None
    return f"The server refuses it: {said or status}."


async def _pieces(file: Path, offset: int) -> AsyncIterator[bytes]:
    with file.open("rb") as opened:
        opened.seek(offset)
        while piece := await asyncio.to_thread(opened.read, _PIECE):
            yield piece


# ── Files ───────────────────────────────────────────────────────────────────────────────────────────────


def _new_file(path: Path) -> BinaryIO:
    """Open a new file for its owner alone."""
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")


def _copy(data: Path, target: Path) -> None:
    """Copy the data as of one moment, also while a device writes. The copy is page by page, so unchanged data stays in
    its place."""
    _new_file(target).close()
    try:
        with closing(sqlite3.connect(data, timeout=30)) as source, closing(sqlite3.connect(target)) as copy:
            source.backup(copy)
    except sqlite3.Error as error:
        raise BadWorkspace(f"The workspace's data cannot be read ({error}).") from error


def _seal(plain: Path, sealed: Path, passphrase: str) -> int:
    with _new_file(sealed) as target:
        return seal(plain, target, passphrase)


def _write_changes(plain: Path, digest: str, base: Base, target: Path) -> int:
    """Write the data's differences from its base. Returns how many bytes they are."""
    with _new_file(target) as file:
        backup_delta.write(plain, bytes.fromhex(digest), base, file)
        return file.tell()


def _open(sealed: Path, plain: Path, passphrase: str) -> None:
    with sealed.open("rb") as source, _new_file(plain) as target:
        open_sealed(source, target, passphrase)
        target.flush()
        os.fsync(target.fileno())


def _make_own(plain: Path) -> None:
    """Make the restored data that of a new device, because the backup's own device may still run."""
    try:
        with closing(sqlite3.connect(plain)) as data:
            [whole] = data.execute("PRAGMA integrity_check(1)").fetchone()
            if whole != "ok":
                raise DamagedFile
            data.execute("DELETE FROM adiuva_about WHERE name = 'device_id'")
            data.commit()
    except sqlite3.Error:
        raise DamagedFile from None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
