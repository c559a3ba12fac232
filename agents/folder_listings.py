"""Compare a device's listing of a folder with the ledger: each file is unchanged, due, renamed, a copy, or gone.

A known content under a new path is the same document if its old path is gone or holds something else, and a copy
otherwise. Neither is read again. Only a complete listing shows which it is, so such files, and those whose content has
changed, wait for the end of the list; new files do not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import F

from agents import claimed_runs, ledger
from agents.claimed_runs import ClaimedRun
from agents.journal import EventKind, JournalEntry
from agents.ledger import Identity
from agents.models import FoundRecord, Source

# A source leaves the ledger after this many listings in a row without it.
MAX_MISSED: Final = 5
# The most entries of one run about copies and renamed files; further ones are only counted.
_MAX_ENTRIES: Final = 200


@dataclass(frozen=True)
class ListedFile:
    """A listed file. `content_hash`: the device's hash of its content; `content_key`: the ledger's."""

    path: str
    key: bytes
    content_hash: bytes
    content_key: bytes
    is_empty: bool = False


@dataclass
class Compared:
    """`due`: files to read. `unchanged`: how many of the others need no reading, with entries on renamed ones."""

    due: list[ListedFile] = field(default_factory=list)
    unchanged: int = 0
    entries: list[JournalEntry] = field(default_factory=list)


class Listing:
    """The files of a folder that one run has seen. Its methods query the database; it holds about 200 bytes a file."""

    def __init__(self, claimed: ClaimedRun) -> None:
        self._claimed = claimed
        self._seen: dict[bytes, bytes] = {}  # content hash by key
        self._is_new = False  # whether anything is listed that the ledger does not hold
        self._of_agent: int | None = None  # sources of the ledger, counted with the end of the list
        self._missed: set[bytes] = set()  # seen again after they were missed
        self._contents: set[bytes] = set()  # being read in this run
        self._changed: list[ListedFile] = []
        self._waiting: list[ListedFile] = []  # files whose contents are known from another path
        self._copies: list[ListedFile] = []

    def saw(self, files: Sequence[tuple[bytes, bytes]]) -> None:
        """Note files that arrived without a list: (key, content hash)."""
        self._seen.update((key, self._claimed.content_key(content)) for key, content in files)
        self._is_new = True

    @property
    def undecided(self) -> int:
        """The number of files that wait for the end of the list."""
        return len(self._waiting) + len(self._changed)

    def first_seen(self, files: Sequence[ListedFile]) -> tuple[list[ListedFile], list[ListedFile]]:
        """Return the files that were not listed before, and those that were, perhaps under a path that looks
        the same.
        """
        new: dict[bytes, ListedFile] = {}
        again = []
        for file in files:
            if file.key in self._seen or file.key in new:
                again.append(file)
            else:
                new[file.key] = file
        return list(new.values()), again

    def compare(self, files: Sequence[ListedFile], *, last: bool) -> Compared:
        """Sort a piece of the list. `last`: nothing follows, so files that waited are sorted too."""
        found = Compared()
        mine = ledger.known_sources(self._claimed, [file.key for file in files], counted=last)
        self._of_agent = mine.of_agent
        self._seen.update((file.key, file.content_key) for file in files)
        self._is_new = self._is_new or len(mine) < len(files)
        self._missed.update(key for key, row in mine.items() if row.missed)
        new = []
        for file in files:
            row = mine.get(file.key)
            if row is not None and row.content != file.content_key:
                self._contents.add(file.content_key)
                self._changed.append(file)
            elif row is not None and row.is_read:
                found.unchanged += 1
            elif row is not None or file.is_empty:
                self._read(file, found)
            else:  # after the known files, because it may be a copy of one that has changed
                new.append(file)
        known = set(
            map(
                bytes,
                Source.objects.filter(
                    agent__user_id=self._claimed.user_id,
                    content_hash__in=[file.content_key for file in new],
                ).values_list("content_hash", flat=True),
            )
            if new
            else ()
        )
        for file in new:
            if file.content_key in known or file.content_key in self._contents:
                self._waiting.append(file)
            else:
                self._read(file, found)
        if last:
            if self._waiting:
                self._sort_waiting(found)
            if self._changed:
                self._take_over_from_gone()
            for file in self._changed:
                self._read(file, found)
            self._changed = []
        return found

    def _read(self, file: ListedFile, found: Compared) -> None:
        if not file.is_empty:
            self._contents.add(file.content_key)
        found.due.append(file)

    @transaction.atomic
    def _sort_waiting(self, found: Compared) -> None:
        """Sort files whose content is known: renamed, a copy, another agent's, or to be read after all."""
        claimed_runs.held_with_agent(self._claimed)
        waiting, self._waiting = self._waiting, []
        rows: defaultdict[bytes, list[Source]] = defaultdict(list)
        for row in Source.objects.filter(
            agent__user_id=self._claimed.user_id, content_hash__in={file.content_key for file in waiting}
        ):
            rows[bytes(row.content_hash)].append(row)
        current = set(
            ledger.read_sources(self._claimed)
            .filter(pk__in=[row.pk for each in rows.values() for row in each])
            .values_list("pk", flat=True)
        )
        written = []
        for file in waiting:
            same = rows[file.content_key]
            gone = next(
                (
                    row
                    for row in same
                    if row.agent_id == self._claimed.agent_id
                    and self._seen.get(bytes(row.key)) != file.content_key
                ),
                None,
            )
            if gone is not None:
                same.remove(gone)
                Source.objects.filter(pk=gone.pk).update(key=file.key, missed=0)
                self._note(found, "source_renamed", file)
                if gone.pk in current:
                    found.unchanged += 1
                else:
                    self._read(file, found)
                continue
            here = next((row for row in same if bytes(row.key) == file.key), None)
            read = next((row for row in same if row.pk in current), None)
            if here is not None and here.pk in current:
                # Another agent with the same instructions has read this very file.
                identity = Identity(here.document, here.copy_of)
                written.append((file.key, file.content_hash, identity, Source.Outcome(here.outcome)))
                found.unchanged += 1
            elif here is None and (read is not None or file.content_key in self._contents):
                self._copies.append(file)
                found.unchanged += 1
            else:
                self._read(file, found)
        if written:
            ledger.record_sources(self._claimed, written)

    def _note(self, found: Compared, code: str, file: ListedFile) -> None:
        if len(found.entries) < _MAX_ENTRIES:
            key = file.content_key.hex()
            found.entries.append(
                JournalEntry(EventKind.NOTE, code, source=file.path, key=f"{key} {file.path}")
            )

    def finish(self) -> list[JournalEntry]:
        """Enter copies into the ledger and count missing sources, once all due files are read. Returns entries."""
        # An empty folder may be a drive that is not connected.
        may_have_gone = bool(self._seen) and self._may_have_gone()
        if not may_have_gone and not self._copies and not self._missed:
            return []
        return self._write_end(may_have_gone=may_have_gone)

    @transaction.atomic
    def _write_end(self, *, may_have_gone: bool) -> list[JournalEntry]:
        claimed_runs.held_with_agent(self._claimed)
        found = Compared()
        self._enter_copies(found)
        if self._missed:
            Source.objects.filter(agent_id=self._claimed.agent_id, key__in=self._missed).update(missed=0)
        if may_have_gone:
            self._count_gone()
        return found.entries

    def _may_have_gone(self) -> bool:
        """Return whether the ledger may hold sources that were not listed. If nothing was new, their number tells."""
        if self._is_new:
            return True
        if self._of_agent is None:
            self._of_agent = Source.objects.filter(agent_id=self._claimed.agent_id).count()
        return self._of_agent > len(self._seen)

    def _enter_copies(self, found: Compared) -> None:
        if not self._copies:
            return
        wanted = {file.content_key for file in self._copies}
        originals: dict[bytes, UUID] = {}
        read = ledger.read_sources(self._claimed).filter(
            agent__user_id=self._claimed.user_id, content_hash__in=wanted
        )
        for content, document in read.order_by("pk").values_list("content_hash", "document"):
            originals.setdefault(bytes(content), document)
        rows = []
        for file in self._copies:
            original = originals.get(file.content_key)
            if original is None:
                continue  # the first of its kind could not be read: the next run tries both
            identity = Identity(ledger.derived_document(file.key, file.content_hash), original)
            rows.append((file.key, file.content_hash, identity, Source.Outcome.DONE))
            self._note(found, "source_copied", file)
        ledger.record_sources(self._claimed, rows)

    def _count_gone(self) -> None:
        """Count sources that are no longer listed. A copy of a missing one takes its place."""
        mine = Source.objects.filter(agent_id=self._claimed.agent_id)
        # Without model instances: this reads all sources of the agent, and mostly none is missing.
        unlisted = [pk for pk, key in mine.values_list("pk", "key") if bytes(key) not in self._seen]
        if not unlisted:
            return
        gone = self._without_those_taken_over(list(mine.filter(pk__in=unlisted)))
        over = [row.pk for row in gone if row.missed + 1 >= MAX_MISSED]
        Source.objects.filter(pk__in=over).delete()
        Source.objects.filter(pk__in=[row.pk for row in gone if row.pk not in over]).update(
            missed=F("missed") + 1
        )

    @transaction.atomic
    def _take_over_from_gone(self) -> None:
        """Let each copy take the place of its missing original, before changed files are read."""
        mine = Source.objects.filter(agent_id=self._claimed.agent_id)
        copied = [each for each in mine.values_list("copy_of", flat=True) if each is not None]
        if copied:
            originals = mine.filter(document__in=copied).only("pk", "key", "document", "missed")
            self._without_those_taken_over([row for row in originals if bytes(row.key) not in self._seen])

    def _without_those_taken_over(self, gone: list[Source]) -> list[Source]:
        by_document = {row.document: row for row in gone}
        copies = Source.objects.filter(agent_id=self._claimed.agent_id, copy_of__in=by_document)
        for copy in copies.exclude(pk__in=[row.pk for row in gone]).order_by("pk"):
            original = by_document.pop(copy.copy_of, None) if copy.copy_of else None
            if original is None:
                continue
            FoundRecord.objects.filter(user_id=self._claimed.user_id, document=copy.document).update(
                document=original.document
            )
            Source.objects.filter(pk=original.pk).delete()
            Source.objects.filter(pk=copy.pk).update(document=original.document, copy_of=None)
        return list(by_document.values())
