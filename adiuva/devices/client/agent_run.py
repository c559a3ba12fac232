"""Agent run on the device: finds files, offers them, sends those that are requested, reports unreadable ones."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

import orjson

from adiuva.devices.client.file_access import FoundFile, Problem, ReadableArea, unreadable_file
from adiuva.devices.client.store import Store
from adiuva.devices.codec import MAX_FRAME_BYTES, PART_BYTES
from adiuva.devices.protocol import (
    AgentAck,
    AgentComplete,
    AgentData,
    AgentFetch,
    AgentFile,
    AgentManifest,
    AgentRun,
    ManifestFile,
    Received,
)
from adiuva.documents import Document, Unreadable
from adiuva.documents.kinds import READABLE
from adiuva.documents.reading import read_document

_FILES_A_MANIFEST: Final = 500
# At most this many kinds of files are named as passed over.
_MAX_KINDS: Final = 100
_BATCH_BYTES: Final = 256 * 1024
# Bytes that the contents of a frame may use; the rest is for what surrounds them, including a path.
_FRAME_ROOM: Final = MAX_FRAME_BYTES - 128 * 1024
# A file that changed this recently may change again with the same mtime, so its hash is not remembered.
_FRESH_S: Final = 2.0

T = TypeVar("T")
Send = Callable[[Received], Awaitable[None]]


class Upload:
    """Upload of a run's files. `run()` does it; meanwhile `fetch()` and `acknowledge()` receive the server's frames.

    Threads list, hash and read the files, one step at a time; memory holds one file at a time.
    """

    def __init__(
        self,
        frame: AgentRun,
        area: ReadableArea,
        store: Store,
        send: Send,
        *,
        with_manifest: bool,
        max_inflight: int | None,
    ) -> None:
        """Prepare an upload. `max_inflight` is None for protocol 1: batches have no number and no acknowledgement."""
        self.run_id, self._config = frame.run_id, frame.config
        self._area, self._store, self._send = area, store, send
        self._with_manifest, self._numbered = with_manifest, max_inflight is not None
        self._room = asyncio.Semaphore(max_inflight or 1)
        self._unacknowledged: set[int] = set()
        self._all_acknowledged = asyncio.Event()
        self._fetches: asyncio.Queue[list[str]] = asyncio.Queue()
        self._batch: list[AgentFile] = []
        self._batch_bytes = 0
        self._batches = 0
        self._hashes: dict[str, str] = {}
        self.found: dict[str, FoundFile] = {}
        self.sent: set[str] = set()
        self.problems: list[Problem] = []
        self.completed = False

    def fetch(self, frame: AgentFetch) -> None:
        self._fetches.put_nowait(frame.paths)

    def acknowledge(self, frame: AgentAck) -> None:
        if frame.batch in self._unacknowledged:
            self._unacknowledged.remove(frame.batch)
            self._room.release()
        if not self._unacknowledged:
            self._all_acknowledged.set()

    async def run(self) -> None:
        """Send all files that the server asks for, and `agent_complete` at the end."""
        listing = await asyncio.to_thread(self._area.list_files, self._config.file_extensions, READABLE)
        self.problems += listing.problems
        self.found = {file.path: file for file in listing.files}
        if self._with_manifest:
            groups = _grouped(listing.files, _FILES_A_MANIFEST, _FRAME_ROOM, _manifest_bytes) or [[]]
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._offer(groups))
                for _ in groups:
                    await self._send_files(await self._fetches.get())
        else:
            await self._send_files(self.found)
        while self._unacknowledged:
            self._all_acknowledged.clear()
            await self._all_acknowledged.wait()
        await self._send(
            AgentComplete(
                run_id=self.run_id,
                files_read=len(self.sent),
                errors=list(_fitting(self.problems)),
                batches=self._batches if self._numbered else None,
                passed_over=dict(listing.passed_over.most_common(_MAX_KINDS)) if self._numbered else None,
            )
        )
        self.completed = True

    # ── Offering ────────────────────────────────────────────────────────────────────────────────────────

    async def _offer(self, groups: list[list[FoundFile]]) -> None:
        for place, group in enumerate(groups):
            files = await asyncio.to_thread(self._hashed, group)
            await self._send(AgentManifest(run_id=self.run_id, files=files, last=place == len(groups) - 1))

    def _hashed(self, group: list[FoundFile]) -> list[ManifestFile]:
        """Return the entries of a manifest. A file that was hashed before and looks unchanged is not read again."""
        entries, fresh = [], []
        for file in group:
            known = file.sha256 or self._store.known_hash(file.path, file.size, file.mtime_ns)
            try:
                sha256 = known or self._area.sha256(file)
            except Unreadable as refused:
                self.problems.append(unreadable_file(file.path, refused.message))
                continue
            if not known and time.time() - file.mtime_ns / 1e9 > _FRESH_S:
                fresh.append((file.path, file.size, file.mtime_ns, sha256))
            self._hashes[file.path] = sha256
            entries.append(ManifestFile(path=file.path, sha256=sha256, size=file.size, mtime=file.mtime_ms))
        if fresh:
            self._store.remember_hashes(fresh)
        return entries

    # ── Sending ─────────────────────────────────────────────────────────────────────────────────────────

    async def _send_files(self, paths: Iterable[str]) -> None:
        for path in paths:
            file = self.found.get(path)
            if file is None:
                self.problems.append(
                    unreadable_file(path, "the server asked for it, but it had not been offered")
                )
            elif path not in self.sent:
                await self._send_file(file)
        await self._flush()

    async def _send_file(self, file: FoundFile) -> None:
        try:
            document = await asyncio.to_thread(self._read, file)
            pieces = _pieces(document.text) if self._numbered else [document.text]
            if not self._numbered and _json_bytes(document.text) > _FRAME_ROOM:
                raise Unreadable("it is too large for one frame of protocol 1")
        except Unreadable as refused:
            self.problems.append(unreadable_file(file.path, refused.message))
            return
        metadata = {**document.metadata(), "size": file.size, "mtime": file.mtime_ms}
        if len(pieces) == 1:
            await self._add(AgentFile(path=file.path, name=file.name, content=pieces[0], metadata=metadata))
        else:
            whole = hashlib.sha256(document.text.encode()).hexdigest()
            for part, piece in enumerate(pieces, 1):
                await self._add(
                    AgentFile(
                        path=file.path,
                        name=file.name,
                        content=piece,
                        metadata=metadata,
                        part=part,
                        parts=len(pieces),
                        sha256=whole,
                    )
                )
        self.sent.add(file.path)

    def _read(self, file: FoundFile) -> Document:
        raw = self._area.read(file)
        offered = self._hashes.get(file.path)
        if offered is not None and hashlib.sha256(raw).hexdigest() != offered:
            # Otherwise the server would store this text under the hash of another one.
            self._store.forget_hash(file.path)
            raise Unreadable("it changed while it was being read; the next run will read it")
        return read_document(file.path, raw)

    async def _add(self, file: AgentFile) -> None:
        size = _json_bytes(file.content) + _json_bytes(file.metadata) + 2 * _json_bytes(file.path) + 256
        if self._batch and self._batch_bytes + size > _BATCH_BYTES:
            await self._flush()
        self._batch.append(file)
        self._batch_bytes += size

    async def _flush(self) -> None:
        if not self._batch:
            return
        number = None
        if self._numbered:
            await self._room.acquire()
            number = self._batches
            self._unacknowledged.add(number)
        self._batches += 1
        files, self._batch, self._batch_bytes = self._batch, [], 0
        await self._send(AgentData(run_id=self.run_id, files=files, batch=number))


def _json_bytes(value: Any) -> int:
    return len(orjson.dumps(value))


def _manifest_bytes(file: FoundFile) -> int:
    return _json_bytes(file.path) + 200


def _grouped(items: Iterable[T], most: int, room: int, size_of: Callable[[T], int]) -> list[list[T]]:
    """Yield items in order, in groups of at most `most` items and `room` bytes."""
    groups: list[list[T]] = []
    used = room
    for item in items:
        size = size_of(item)
        if not groups or used + size > room or len(groups[-1]) == most:
            groups.append([])
            used = 0
        groups[-1].append(item)
        used += size
    return groups


def _pieces(text: str) -> list[str]:
    """Yield a text in pieces that fit frames: whole, or cut between characters, of at most PART_BYTES of UTF-8.

    It cuts a text that JSON makes much longer (quotes, newlines) further, so that its frame stays within bounds.
    """
    raw = text.encode()
    whole = [text] if len(raw) <= PART_BYTES else list(_cut(raw, PART_BYTES))
    return [piece for part in whole for piece in _fit(part)]


def _cut(raw: bytes, most: int) -> Iterator[str]:
    start = 0
    while start < len(raw):
        end = min(start + most, len(raw))
        while end < len(raw) and raw[end] & 0xC0 == 0x80:  # in the middle of a character
            end -= 1
        yield raw[start:end].decode()
        start = end


def _fit(piece: str) -> list[str]:
    if _json_bytes(piece) <= _FRAME_ROOM:
        return [piece]
    middle = len(piece) // 2
    return _fit(piece[:middle]) + _fit(piece[middle:])


def _fitting(problems: list[Problem]) -> Iterator[Problem | str]:
    """Return as many problems as a frame holds, then how many more there are."""
    room = _FRAME_ROOM
    for place, found in enumerate(problems):
        room -= _json_bytes(found) + 1
        if room < 0:
            yield f"{len(problems) - place} more files could not be read"
            return
        yield found
