"""A device's data as a backup at the server, sealed with a passphrase that only the user knows.

    backups = Backups(ServerAddress.parse(server), account, folder)
    made = await backups.make(passphrase)           # None: nothing has changed since the last one
    await backups.restore(passphrase)               # into a folder that has no data yet

What goes up is a copy of the data as of one moment. An upload whose line breaks goes on where it was.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Final

import aiohttp

from adiuva.devices.client.account import Account, ServerAddress, ServerUnavailable
from adiuva.devices.client.errors import BadWorkspace, DeviceError
from adiuva.devices.client.sealed_file import FORMAT, DamagedFile, open_sealed, seal
from adiuva.devices.client.store import DATA_FILE, now_ms

_NOTE: Final = "backup.json"
_PIECE: Final = 1024 * 1024
_TRIES: Final = 5
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
_TUS: Final = {"Tus-Resumable": "1.0.0"}
_TRY_AGAIN: Final = {408, 423, 429, 500, 502, 503, 504}


class BackupRefused(DeviceError):
    code = "backup_refused"


@dataclass(frozen=True)
class MadeBackup:
    timestamp_ms: int
    size: int  # sealed, in bytes


class Backups:
    def __init__(self, address: ServerAddress, account: Account, folder: Path) -> None:
        self._address, self._account, self._folder = address, account, folder
        self._data = folder / DATA_FILE

    async def make(self, passphrase: str) -> MadeBackup | None:
        """Seal the data and upload it, unless the server has it as it is. Raises DeviceError or ServerUnavailable."""
        if not self._data.exists():
            raise BadWorkspace("This workspace has no data to back up.")
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".backup-") as place:
            plain, sealed = Path(place) / "plain", Path(place) / "sealed"
            await asyncio.to_thread(_copy, self._data, plain)
            content = await asyncio.to_thread(_sha256, plain)
            async with aiohttp.ClientSession(timeout=_TIMEOUT) as http:
                if await self._is_there(http, content):
                    return None
                chunks = await asyncio.to_thread(_seal, plain, sealed, passphrase)
                made = MadeBackup(now_ms(), sealed.stat().st_size)
                upload = await self._upload(http, sealed, made.size)
                headers = {
                    "X-Upload-Id": upload,
                    "X-Backup-Version": str(FORMAT),
                    "X-Backup-Timestamp": str(made.timestamp_ms),
                    "X-Backup-Checksum": await asyncio.to_thread(_sha256, sealed),
                    "X-Backup-Chunks": str(chunks),
                }
                await self._ask(http, "PUT", "backup", headers=headers)
        note = {"server": self._address.base, "content": content, "timestamp": made.timestamp_ms}
        (self._folder / _NOTE).write_text(json.dumps(note))
        return made

    async def restore(self, passphrase: str) -> int:
        """Bring the newest backup here. Returns when it was made, in ms.

        Raises BadWorkspace if there is data already, WrongPassphrase, DamagedFile, BackupRefused or ServerUnavailable:
        then nothing is restored.
        """
        if self._data.exists():
            raise BadWorkspace("This workspace has data already: restore into a new folder.")
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".restore-") as place:
            sealed, plain = Path(place) / "sealed", Path(place) / "plain"
            async with aiohttp.ClientSession(timeout=_TIMEOUT) as http:
                made_at = await self._download(http, sealed)
            await asyncio.to_thread(_open, sealed, plain, passphrase)
            await asyncio.to_thread(_make_own, plain)
            plain.replace(self._data)
        return made_at

    # ── Requests ────────────────────────────────────────────────────────────────────────────────────────

    async def _ask(
        self, http: aiohttp.ClientSession, method: str, path: str, **given: Any
    ) -> tuple[Any, aiohttp.ClientResponse]:
        """Raises BackupRefused for what will not change, and ServerUnavailable for what may."""
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

    async def _is_there(self, http: aiohttp.ClientSession, content: str) -> bool:
        try:
            note = json.loads((self._folder / _NOTE).read_bytes())
        except (OSError, ValueError):
            return False
        if (note.get("server"), note.get("content")) != (self._address.base, content):
            return False
        history, _ = await self._ask(http, "GET", "backup/history")
        return any(each["timestamp"] == note.get("timestamp") and each["state"] == "ok" for each in history)

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

    async def _download(self, http: aiohttp.ClientSession, file: Path) -> int:
        """The newest backup, compared with its checksum. Raises DamagedFile too."""
        token = await self._account.access_token(http)
        digest = hashlib.sha256()
        try:
            async with http.get(
                self._address.rest("backup"),
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
        return int(response.headers["X-Backup-Timestamp"])


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
    """For its owner alone."""
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")


def _copy(data: Path, target: Path) -> None:
    """The data as of one moment, also while a device writes; equal data makes an equal file."""
    _new_file(target).close()
    try:
        with closing(sqlite3.connect(data, timeout=30)) as source:
            source.execute("VACUUM INTO ?", (str(target),))
    except sqlite3.Error as error:
        raise BadWorkspace(f"The workspace's data cannot be read ({error}).") from error


def _seal(plain: Path, sealed: Path, passphrase: str) -> int:
    with _new_file(sealed) as target:
        return seal(plain, target, passphrase)


def _open(sealed: Path, plain: Path, passphrase: str) -> None:
    with sealed.open("rb") as source, _new_file(plain) as target:
        open_sealed(source, target, passphrase)
        target.flush()
        os.fsync(target.fileno())


def _make_own(plain: Path) -> None:
    """The data is whole, and the restored device is another one than that of the backup, which may still run."""
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
