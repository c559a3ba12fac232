"""Collect a few of a user's documents for a trial of a proposed configuration.

There is no run, no row and no ledger: the device gets the frames of a run, and the files that it sends are read once
and dropped.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Final
from zoneinfo import ZoneInfo

from adiuva.accounts.models import User
from adiuva.core import db
from adiuva.core.errors import AdiuvaError, Invalid, Text
from adiuva.devices.link import DeviceLink, DeviceOffline, DeviceRefused
from adiuva.devices.models import Device
from adiuva.devices.protocol import (
    AgentAck,
    AgentCancel,
    AgentComplete,
    AgentData,
    AgentFetch,
    AgentFile,
    AgentManifest,
    AgentRun,
    AgentRunConfig,
    ManifestFile,
)
from agents import mailbox
from agents.extraction import PART_CHARS, SourceDocument
from agents.journeys.interview import AgentProposal
from agents.local_folders import list_projects
from agents.models import Agent, AgentType
from integrations.models import Provider

MAX_DOCUMENTS: Final = 3
# Only the beginning of each document is read; it shows well enough what would be found.
_DOCUMENT_CHARS: Final = 2 * PART_CHARS
# Smaller files are preferred.
_LARGE_BYTES: Final = 256 * 1024
# The most characters held of files whose parts have not all arrived.
_MAX_UNFINISHED_CHARS: Final = 8 * 1024 * 1024
_MAX_PATHS: Final = 100


class NothingToSample(AdiuvaError):
    """There is no document to try the configuration on. The message says why, for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class DocumentSample:
    """Documents, and the user's projects by id."""

    documents: list[SourceDocument]
    projects: dict[str, str]


@dataclass(frozen=True)
class SampleRequest:
    """The user whose documents are needed, and the configuration to try. `agent_id`: the agent that is being changed,
    if any.

    `paths` on `device`, its row id, are read if they are known; else those of agents.
    """

    user_id: uuid.UUID
    session_id: uuid.UUID
    agent_type: AgentType
    agent_id: uuid.UUID | None
    proposal: AgentProposal
    connection_id: uuid.UUID | None = None
    device: uuid.UUID | None = None
    paths: tuple[str, ...] = ()


async def collect(request: SampleRequest) -> DocumentSample:
    """Return up to MAX_DOCUMENTS documents that the configuration would read. The caller limits the time.

    Raises NothingToSample, DeviceOffline, DeviceSilent, FlowExceeded, and errors of mail providers.
    """
    if request.agent_type == AgentType.LOCAL_DIRECTORY:
        return await _from_folders(request)
    return await _from_mailbox(request)


# ── Mailboxes ───────────────────────────────────────────────────────────────────────────────────────────


async def _from_mailbox(request: SampleRequest) -> DocumentSample:
    """Return the newest messages that pass the filters, without projects: no device is involved."""
    try:
        documents = await mailbox.sample_messages(
            user_id=request.user_id,
            provider=Provider(request.agent_type.value),
            connection_id=await db.run(_connection, request),
            filter_config=request.proposal.filter_config,
            zone=ZoneInfo(await db.run(_zone, request.user_id)),
            most=MAX_DOCUMENTS,
        )
    except Invalid:  # no account is connected, or several are
        words = Text(
            "Nothing was tried out yet: connect a {provider} account, or choose one if there are several.",
            provider=request.agent_type.label,
        )
        raise NothingToSample("no_mailbox", words) from None
    if not documents:
        raise NothingToSample("nothing_to_read", "There are no such messages, so nothing was tried out.")
    return DocumentSample([replace(each, content=each.content[:_DOCUMENT_CHARS]) for each in documents], {})


def _connection(request: SampleRequest) -> uuid.UUID | None:
    if request.agent_id is None or request.connection_id is not None:
        return request.connection_id
    mine = Agent.objects.of(request.user_id).cloud().filter(pk=request.agent_id)
    return mine.values_list("connection_id", flat=True).first()


def _zone(user_id: uuid.UUID) -> str:
    return str(User.objects.values_list("timezone", flat=True).get(pk=user_id))


# ── Folders on a device ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Folders:
    device: uuid.UUID
    paths: list[str]
    file_extensions: list[str]


def _folders(request: SampleRequest) -> _Folders:
    """Return the folders of the agent itself; for a new one, those of the user's agents on the device seen last."""
    online = Device.objects.of(request.user_id).online().seen_last_first()
    if request.paths:
        if request.device is None or (device := online.filter(pk=request.device).first()) is None:
            raise _device_offline()
        return _Folders(device.pk, list(request.paths), request.proposal.file_extensions)
    mine = Agent.objects.of(request.user_id).local()
    own = mine.filter(pk=request.agent_id).first() if request.agent_id else None
    if own is not None:
        device = online.filter(device_id=own.device_id).first()
        agents = [own]
    else:
        device = online.filter(device_id__in=mine.values("device_id")).first() or online.first()
        agents = list(mine.filter(device_id=device.device_id)) if device else []
    if device is None:
        raise _device_offline()
    paths = list(dict.fromkeys(path for agent in agents for path in agent.directory_paths))[:_MAX_PATHS]
    if not paths:
        raise NothingToSample("no_folder", "No folder is known yet, so nothing was tried out.")
    extensions = request.proposal.file_extensions or (own.file_extensions if own else [])
    return _Folders(device.pk, paths, extensions)


def _device_offline() -> NothingToSample:
    return NothingToSample("device_offline", "Your device is not connected, so nothing was tried out yet.")


async def _from_folders(request: SampleRequest) -> DocumentSample:
    place = await db.run(_folders, request)
    async with DeviceLink(request.user_id, place.device) as link:
        documents = await _Fetch(link).documents(
            AgentRun(
                run_id=str(uuid.uuid4()),
                agent_id=str(request.agent_id or request.session_id),
                config=AgentRunConfig(
                    paths=place.paths,
                    file_extensions=place.file_extensions,
                    prompt_template=request.proposal.prompt_template,
                    data_types=request.proposal.data_types,
                ),
            )
        )
        if not documents:
            raise NothingToSample("nothing_to_read", "There is nothing in the folders that could be read.")
        return DocumentSample(documents, await _projects(link))


async def _projects(link: DeviceLink) -> dict[str, str]:
    try:
        return await list_projects(link)
    except DeviceRefused:
        return {}


class _Fetch:
    """The exchange of a run's frames with a device, to get a few files."""

    def __init__(self, link: DeviceLink) -> None:
        self._link = link
        self._requested: set[str] | None = None  # None: the device has no manifest and sends everything
        self._parts: dict[str, dict[int, str]] = {}
        self._documents: list[SourceDocument] = []

    async def documents(self, run: AgentRun) -> list[SourceDocument]:
        """Fetch the documents, and cancel the device's run as soon as they are here."""
        target = await self._link.start_run(run)
        if target.protocol >= 2 and target.can("manifest"):
            self._requested = set()
        while True:
            frame = await self._link.frames.get()
            match frame:
                case None:
                    raise DeviceOffline
                case AgentManifest():
                    await self._choose(run.run_id, frame)
                case AgentData():
                    self._take(frame.files)
                    if frame.batch is not None:
                        await self._link.notify(AgentAck(run_id=run.run_id, batch=frame.batch))
                case AgentComplete():
                    return self._documents
            if self._documents and len(self._documents) == (
                MAX_DOCUMENTS if self._requested is None else len(self._requested)
            ):
                await self._link.notify(AgentCancel(run_id=run.run_id))
                return self._documents

    async def _choose(self, run_id: str, manifest: AgentManifest) -> None:
        """Choose files from the first manifest that has any. Every manifest gets an answer, even an empty one."""
        paths = [] if self._requested else choose_paths(manifest.files)
        self._requested = (self._requested or set()) | set(paths)
        await self._link.notify(AgentFetch(run_id=run_id, paths=paths))

    def _take(self, files: Sequence[AgentFile]) -> None:
        for file in files:
            if self._requested is not None and file.path not in self._requested:
                continue
            if len(self._documents) < MAX_DOCUMENTS and (text := self._whole(file)) is not None:
                name = file.name or file.path
                self._documents.append(SourceDocument(name, file.path, text[:_DOCUMENT_CHARS], b"", b""))

    def _whole(self, file: AgentFile) -> str | None:
        """Return the file's text once all of its parts have arrived."""
        if file.part is None or file.parts is None:
            return file.content
        parts = self._parts.setdefault(file.path, {})
        held = sum(len(part) for got in self._parts.values() for part in got.values())
        if held + len(file.content) <= _MAX_UNFINISHED_CHARS:
            parts[file.part] = file.content
        if len(parts) < file.parts and file.part < file.parts:
            return None
        del self._parts[file.path]
        return "".join(parts[number] for number in sorted(parts))


def choose_paths(files: Sequence[ManifestFile]) -> list[str]:
    """Return the newest file of each type, then the newest of all; large or empty files only if there are no others."""
    newest = sorted(files, key=lambda file: (not 0 < file.size <= _LARGE_BYTES, -file.mtime, file.path))
    kinds: dict[str, ManifestFile] = {}
    for file in newest:
        if 0 < file.size <= _LARGE_BYTES:
            kinds.setdefault(PurePath(file.path.replace("\\", "/")).suffix.lower(), file)
    first = list(kinds.values())[:MAX_DOCUMENTS]
    return [file.path for file in [*first, *(file for file in newest if file not in first)][:MAX_DOCUMENTS]]
