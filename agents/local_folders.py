"""Local folders as a source of documents: the frames of a run, exchanged with the device that reads the folders."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

from django.conf import settings

from adiuva.core import db
from adiuva.core.errors import Text
from adiuva.devices.calls import new_call
from adiuva.devices.codec import dump, parse
from adiuva.devices.link import DeviceLink, DeviceOffline, DeviceRefused, OutcomeUnknown
from adiuva.devices.protocol import (
    AgentAck,
    AgentComplete,
    AgentData,
    AgentFetch,
    AgentFile,
    AgentManifest,
    AgentRun,
    AgentRunConfig,
    ManifestFile,
)
from adiuva.documents import Document
from agents import claimed_runs, journal, ledger, preview
from agents.extraction import SourceDocument
from agents.folder_listings import ListedFile, Listing
from agents.journal import EventKind, JournalEntry

MAX_DOCUMENT_CHARS: Final = 32 * 1024 * 1024
# With more requested files than this still to come, further manifests wait.
_MAX_REQUESTED: Final = 2_000
# After this long without a frame, the device is assumed to have sent all that it can of the request.
_LULL_S: Final = 0.5
# The most journal entries about files at the end of one run; further ones are only counted.
_MAX_ENTRIES: Final = 1_000
_SUFFIX: Final = re.compile(r"\.[a-z0-9]{1,10}")
_MAX_SUFFIXES: Final = 100
_MAX_COUNT: Final = 100_000_000


class DeviceSilent(Exception):
    """The device is connected but does not answer, or, with another `code`, it answers that it cannot work now."""

    def __init__(self, code: str = "device_silent") -> None:
        super().__init__(code)
        self.code = code


async def list_projects(link: DeviceLink) -> dict[str, str]:
    """Return the user's open projects on a device: id → name. Raises DeviceOffline, DeviceSilent, DeviceRefused."""
    try:
        result = await link.call(new_call("select", "projects", filters={}))
    except OutcomeUnknown:
        raise DeviceSilent from None  # a read that got no answer leaves nothing uncertain
    if result.error is not None or result.rows is None:
        raise DeviceRefused("the device could not list its projects")
    return {
        str(row["id"]): str(row.get("name") or "")
        for row in result.rows
        if row.get("id") and row.get("status") != "archived"
    }


@dataclass
class _Parts:
    parts: int
    got: dict[int, str] = field(default_factory=dict)


# More than 250 lines: listing, choosing, requesting and receiving go on at once, over the same few sets of files.
class LocalFolders:
    """Reads folders on a device: only new or changed files if the device can list them first in a manifest."""

    def __init__(
        self, link: DeviceLink, claimed: claimed_runs.ClaimedRun, counts: claimed_runs.HeldCounts
    ) -> None:
        self._link, self._claimed, self._counts = link, claimed, counts
        self._run_id = str(claimed.run_id)
        # Requested files that have not arrived: path → content hash.
        self._requested: dict[str, bytes] = {}
        self._parts: dict[str, _Parts] = {}
        self._parts_chars = 0
        self._arrived = 0
        self._has_manifest = False
        self._sample = preview.SourceSample(claimed.max_sources) if claimed.dry_run else None
        self._listing = Listing(claimed)
        # Manifests that wait, so that the list of a large folder is not held in memory.
        self._later = link.frames.later

    async def settled(self, document: SourceDocument) -> None:
        """Do nothing: the ledger knows which documents were read."""

    async def finish(self) -> None:
        """Enter copies into the ledger, and count missing sources, once all due files are read."""
        if self._sample is None:
            entries = await db.run(self._listing.finish)
            if entries:
                await self._counts.add(hold=False, entries=entries)

    async def batches(self) -> AsyncGenerator[list[SourceDocument], None]:
        """Yield documents as they arrive.

        A batch is acknowledged once all of it was taken, so a device that sends faster than the model reads has to
        wait. Raises DeviceOffline, DeviceSilent, and FlowExceeded if the device does not wait.
        """
        claimed = self._claimed
        config = AgentRunConfig(
            paths=list(claimed.paths),
            file_extensions=list(claimed.file_extensions),
            prompt_template=claimed.prompt_template,
            data_types=list(claimed.data_types),
        )
        target = await self._link.start_run(
            AgentRun(run_id=self._run_id, agent_id=str(claimed.agent_id), config=config)
        )
        self._has_manifest = target.protocol >= 2 and target.can("manifest")
        while True:
            frame = await self._next()
            match frame:
                case AgentManifest() if self._later or len(self._requested) >= _MAX_REQUESTED:
                    self._later.put(dump(frame))
                case AgentManifest():
                    await self._choose(frame)
                case AgentData():
                    if documents := await self._take(frame.files):
                        yield documents
                    if self._later and len(self._requested) < _MAX_REQUESTED:
                        await self._choose_from_waiting()
                    if frame.batch is not None:
                        await self._link.notify(AgentAck(run_id=self._run_id, batch=frame.batch))
                case AgentComplete():
                    await self._finish(frame)
                    return

    async def _next(self) -> AgentManifest | AgentData | AgentComplete:
        while True:
            try:
                async with asyncio.timeout(_LULL_S if self._later else settings.RUNS["idle_s"]):
                    frame = await self._link.frames.get()
            except TimeoutError:
                if not self._later:
                    raise DeviceSilent from None
                # The device cannot read some of the requested files, and waits for the next request.
                await self._choose_from_waiting()
                continue
            if frame is None:
                raise DeviceOffline
            return frame

    async def _choose_from_waiting(self) -> None:
        await self._choose(cast(AgentManifest, parse(self._later.get())))

    async def _choose(self, manifest: AgentManifest) -> None:
        """Answer a manifest with a request for its new or changed files."""
        if self._sample is not None:
            await self._choose_sample(manifest)
            return
        listed = [self._listed(file) for file in manifest.files]
        files, again = self._listing.first_seen(listed)
        found = await db.run(self._listing.compare, files, last=manifest.last)
        entries = found.entries + [
            JournalEntry(EventKind.NOTE, "listed_twice", source=file.path, key=file.path)
            for file in again[:_MAX_ENTRIES]
        ]
        self._requested |= {file.path: file.content_hash for file in found.due}
        await self._counts.add(
            hold=not found.due,
            seen=len(listed),
            done=found.unchanged + len(again),
            unchanged=found.unchanged + len(again),
            entries=entries,
        )
        await self._link.notify(AgentFetch(run_id=self._run_id, paths=[file.path for file in found.due]))

    def _listed(self, file: ManifestFile) -> ListedFile:
        content, key = bytes.fromhex(file.sha256), self._claimed.source_key(file.path)
        return ListedFile(file.path, key, content, self._claimed.content_key(content), file.size == 0)

    async def _choose_sample(self, manifest: AgentManifest) -> None:
        """Answer a manifest of a dry run with a request for a sample."""
        assert self._sample is not None
        listed = {file.path: bytes.fromhex(file.sha256) for file in manifest.files}
        keyed = [(self._claimed.source_key(path), content) for path, content in listed.items()]
        due = await db.run(ledger.needs_reading, self._claimed, keyed)
        wanted = self._sample.choose(listed, due, last=manifest.last)
        seen = len(wanted.keys() - self._requested.keys())
        self._requested |= wanted
        await db.run(claimed_runs.add_counts, self._claimed, seen=seen, due=sum(due))
        await self._link.notify(AgentFetch(run_id=self._run_id, paths=list(wanted)))

    async def _take(self, files: Sequence[AgentFile]) -> list[SourceDocument]:
        """Return the documents that a batch completes. Unchanged and unusable files are counted and journalled."""
        documents: list[SourceDocument] = []
        entries: list[JournalEntry] = []
        about: list[JournalEntry] = []
        seen = 0
        for file in files:
            requested = file.path in self._requested
            problem, text = self._assemble(file)
            if text is None:
                continue  # not all parts have arrived
            if self._has_manifest and not requested:
                problem = "not_asked_for"
            self._arrived += 1
            seen += not requested
            raw = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
            if not problem and file.sha256 is not None and file.sha256 != raw.hex():
                problem = "damaged_on_the_way"
            content_hash = self._requested.pop(file.path, raw)
            if problem:
                entries.append(JournalEntry(EventKind.SOURCE_FAILED, problem, source=file.path))
                continue
            key = self._claimed.source_key(file.path)
            read = Document.from_wire(text, file.metadata, file.name or file.path)
            about += journal.entries_about(read, file.path)
            documents.append(
                SourceDocument(
                    file.name or file.path, file.path, text, key, content_hash, read.head, read.kind
                )
            )
        unchanged = due_here = 0
        if documents and not self._has_manifest:
            self._listing.saw([(each.key, each.content_hash) for each in documents])
            due = await db.run(
                ledger.needs_reading, self._claimed, [(each.key, each.content_hash) for each in documents]
            )
            if self._sample is not None:  # without a manifest the device sends unchanged files too
                due_here = sum(due)
                due = [self._sample.take(1) == 1 for _ in documents]
            unchanged = len(documents) - sum(due)
            documents = [document for document, is_due in zip(documents, due, strict=True) if is_due]
        if seen or entries or about:
            failed = len(entries)
            await db.run(
                claimed_runs.add_counts,
                self._claimed,
                seen=seen,
                done=unchanged + failed,
                unchanged=unchanged,
                failed=failed,
                due=due_here,
                entries=entries + about,
            )
        return documents

    def _assemble(self, file: AgentFile) -> tuple[str, str | None]:
        """Return a problem with a file ("" if none), and its text once all parts have arrived (None before)."""
        if file.part is None or file.parts is None or file.parts == 1:
            return ("too_large", "") if len(file.content) > MAX_DOCUMENT_CHARS else ("", file.content)
        parts = self._parts.setdefault(file.path, _Parts(file.parts))
        if file.parts != parts.parts or not 1 <= file.part <= parts.parts:
            self._drop(file.path)
            return "damaged_on_the_way", ""
        # One limit for all unfinished files, because a device may begin a file before it finishes another. Of a file
        # that exceeds the limit no more is kept, and the problem is reported with its last part.
        room = self._parts_chars + len(file.content) <= MAX_DOCUMENT_CHARS and -1 not in parts.got
        if not room:
            self._parts_chars -= sum(map(len, parts.got.values()))
            parts.got = {-1: ""}
            if file.part < parts.parts:
                return "", None
            self._drop(file.path)
            return "too_large", ""
        if file.part not in parts.got:
            self._parts_chars += len(file.content)
            parts.got[file.part] = file.content
        if len(parts.got) < parts.parts:
            return "", None
        text = "".join(parts.got[number] for number in sorted(parts.got))
        self._drop(file.path)
        return "", text

    def _drop(self, path: str) -> None:
        self._parts_chars -= sum(map(len, self._parts.pop(path).got.values()))

    async def _finish(self, complete: AgentComplete) -> None:
        """Count and journal the files that the device could not read, never sent, or that were lost on the way."""
        entries = []
        known = 0  # already counted as seen when the manifest arrived
        for error in complete.errors:
            if isinstance(error, str):
                entries.append(JournalEntry(EventKind.SOURCE_FAILED, "unreadable", message=error[:1000]))
                continue
            path, reason = str(error.get("path", "")), str(error.get("reason") or error.get("error") or "")
            entries.append(
                JournalEntry(EventKind.SOURCE_FAILED, "unreadable", source=path[:4096], message=reason[:1000])
            )
            known += self._requested.pop(path, None) is not None
        known += len(self._requested)
        unfinished = [path for path in self._parts if path not in self._requested]
        entries += [
            JournalEntry(EventKind.SOURCE_FAILED, "never_sent", source=path)
            for path in [*self._requested, *unfinished]
        ]
        failed = len(entries)
        if failed > _MAX_ENTRIES:
            entries[_MAX_ENTRIES:] = [
                JournalEntry(EventKind.SOURCE_FAILED, "and_more", count=failed - _MAX_ENTRIES)
            ]
        lost = 0
        if not self._has_manifest:
            # Batches of protocol 1 are not acknowledged, so only the device's own count reveals a lost one.
            lost = max(0, complete.files_read - self._arrived - len(unfinished))
        if lost:
            entries.append(JournalEntry(EventKind.SOURCE_FAILED, "lost_on_the_way", count=lost))
        unasked = 0
        while self._later:  # the device did not wait for a request for these
            unasked += len(cast(AgentManifest, parse(self._later.get())).files)
        undecided = self._listing.undecided  # its list has no end
        known += undecided
        unasked += undecided
        if unasked:
            entries.append(JournalEntry(EventKind.SOURCE_FAILED, "never_sent", count=unasked))
        failed += lost + unasked
        passed_over = _passed_over(complete.passed_over or {})
        if passed_over:
            entries.append(_passed_over_entry(passed_over))
        await self._counts.add(
            hold=True,
            seen=failed - known,
            done=failed,
            failed=failed,
            entries=entries,
            passed_over=passed_over,
        )


def _passed_over(said: Mapping[str, int]) -> dict[str, int]:
    """Return a device's counts by suffix, checked; anything that is no plain suffix counts as "other"."""
    found: Counter[str] = Counter()
    for suffix, count in list(said.items())[:_MAX_SUFFIXES]:
        if count > 0:
            found[suffix if _SUFFIX.fullmatch(suffix) else "other"] += min(count, _MAX_COUNT)
    return dict(found.most_common())


def _passed_over_entry(passed_over: Mapping[str, int]) -> JournalEntry:
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in passed_over.items())
    message = Text("files of kinds that cannot be read were passed over: {kinds}", kinds=kinds[:900])
    return JournalEntry(
        EventKind.NOTE,
        "passed_over",
        count=sum(passed_over.values()),
        message=message,
        key="passed_over",
    )
