"""What an agent reads. A source yields documents and says what could not be read; the runner does not know its kind."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from adiuva import db
from adiuva.devices.link import DeviceLink, DeviceOffline
from adiuva.devices.protocol import (
    AgentAck,
    AgentComplete,
    AgentData,
    AgentFetch,
    AgentFile,
    AgentManifest,
    AgentRun,
    AgentRunConfig,
)
from agents import runs
from agents.extraction import Document
from agents.journal import Entry, Kind

MAX_DOCUMENT: Final = 32 * 1024 * 1024
IDLE_S: Final = 120.0


class DeviceSilent(Exception):
    """The device is connected and sends nothing of what it was asked for."""


@dataclass
class _Parts:
    parts: int
    got: dict[int, str] = field(default_factory=dict)
    size: int = 0


class LocalFolders:
    """Folders on a device: a manifest first where the device can, then only what is new or changed."""

    def __init__(self, link: DeviceLink, job: runs.Job, *, idle_s: float = IDLE_S) -> None:
        self._link, self._job, self._idle_s = link, job, idle_s
        self._run_id = str(job.run_id)
        self._asked: dict[str, bytes] = {}  # path → content hash, of what was fetched
        self._parts: dict[str, _Parts] = {}
        self._has_manifest = False

    async def documents(self) -> AsyncIterator[Document]:
        """Documents as they arrive. A batch is acknowledged when all of it was taken, so that a device that sends
        faster than the model reads has to wait. Raise DeviceOffline when it goes, DeviceSilent when it sleeps."""
        job = self._job
        config = AgentRunConfig(
            paths=list(job.paths),
            file_extensions=list(job.file_extensions),
            prompt_template=job.prompt_template,
            data_types=list(job.data_types),
        )
        target = await self._link.start_run(
            AgentRun(run_id=self._run_id, agent_id=str(job.agent_id), config=config)
        )
        self._has_manifest = target.protocol >= 2 and target.can("manifest")
        while True:
            frame = await self._next()
            match frame:
                case AgentManifest():
                    await self._choose(frame)
                case AgentData():
                    for file in frame.files:
                        if (document := await self._take(file)) is not None:
                            yield document
                    if frame.batch is not None:
                        await self._link.tell(AgentAck(run_id=self._run_id, batch=frame.batch))
                case AgentComplete():
                    await self._finish(frame)
                    return

    async def _next(self) -> AgentManifest | AgentData | AgentComplete:
        try:
            async with asyncio.timeout(self._idle_s):
                frame = await self._link.frames.get()
        except TimeoutError:
            raise DeviceSilent from None
        if frame is None:
            raise DeviceOffline
        return frame

    async def _choose(self, manifest: AgentManifest) -> None:
        """Answer a manifest with what of it is new or changed."""
        files = {file.path: bytes.fromhex(file.sha256) for file in manifest.files}
        keyed = [(self._job.source_key(path), content) for path, content in files.items()]
        due = await db.run(runs.due, self._job, keyed)
        wanted = {path: content for (path, content), is_due in zip(files.items(), due, strict=True) if is_due}
        unchanged = len(files) - len(wanted)
        self._asked |= wanted
        await db.run(runs.count, self._job, seen=len(files), done=unchanged, unchanged=unchanged)
        await self._link.tell(AgentFetch(run_id=self._run_id, paths=list(wanted)))

    async def _take(self, file: AgentFile) -> Document | None:
        if self._has_manifest and file.path not in self._asked:
            await self._problem("not_asked_for", file.path, seen=1)
            return None
        text = self._assemble(file)
        if text is None:
            return None
        if len(text) > MAX_DOCUMENT:
            await self._problem("too_large", file.path, seen=0 if self._has_manifest else 1)
            return None
        raw = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        if file.sha256 is not None and file.sha256 != raw.hex():
            await self._problem("damaged_on_the_way", file.path, seen=0 if self._has_manifest else 1)
            return None
        document = Document(
            name=file.name or file.path,
            path=file.path,
            content=text,
            key=self._job.source_key(file.path),
            content_hash=self._asked.pop(file.path, raw),
        )
        if not self._has_manifest:
            (is_due,) = await db.run(runs.due, self._job, [(document.key, document.content_hash)])
            unchanged = int(not is_due)
            await db.run(runs.count, self._job, seen=1, done=unchanged, unchanged=unchanged)
            if unchanged:
                return None
        return document

    def _assemble(self, file: AgentFile) -> str | None:
        """The whole text, once all of its parts are here."""
        if file.part is None or file.parts is None or file.parts == 1:
            return file.content
        parts = self._parts.setdefault(file.path, _Parts(file.parts))
        parts.size += len(file.content)
        # Beyond the limit nothing more is kept; what there is goes on and is refused for its size.
        if parts.size <= MAX_DOCUMENT:
            parts.got[file.part] = file.content
        elif file.part == file.parts:
            del self._parts[file.path]
            return " " * (MAX_DOCUMENT + 1)
        if len(parts.got) < parts.parts:
            return None
        del self._parts[file.path]
        return "".join(parts.got[number] for number in sorted(parts.got))

    async def _finish(self, complete: AgentComplete) -> None:
        """What the device could not read, and what it was asked for and never sent, is said."""
        entries = []
        for error in complete.errors:
            if isinstance(error, str):
                entries.append(Entry(Kind.SOURCE_FAILED, "unreadable", message=error[:1000]))
                continue
            path, reason = str(error.get("path", "")), str(error.get("reason") or error.get("error") or "")
            entries.append(Entry(Kind.SOURCE_FAILED, "unreadable", source=path[:4096], message=reason[:1000]))
            if self._asked.pop(path, None) is not None:
                await db.run(runs.count, self._job, seen=-1)  # counted in the manifest already
        new = len(entries)
        entries += [Entry(Kind.SOURCE_FAILED, "never_sent", source=path) for path in self._asked]
        await db.run(runs.count, self._job, seen=new, done=len(entries), failed=len(entries), entries=entries)

    async def _problem(self, code: str, path: str, *, seen: int) -> None:
        self._asked.pop(path, None)
        entry = Entry(Kind.SOURCE_FAILED, code, source=path)
        await db.run(runs.count, self._job, seen=seen, done=1, failed=1, entries=[entry])
