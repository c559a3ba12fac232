"""The journal of a run: what happened, in order. Names of files and messages of devices are sealed.

An event that is written twice is one event: a worker that resumes a run repeats what its predecessor wrote. Two events
that should be the same but have different counts are both kept, with a note that they differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID, uuid4

import orjson
from django.utils.translation import gettext, gettext_noop

from adiuva.accounts.keys import cipher_for
from adiuva.core.crypto import UserCipher
from adiuva.core.db import prepared_cursor
from adiuva.core.errors import packed, unpacked
from adiuva.core.language import said
from adiuva.documents import Document
from agents.models import Run, RunEvent

EventKind = RunEvent.Kind
KILLED_WORKERS = "killed_workers"
_ABOUT_SOURCES = (
    EventKind.SOURCE_DONE,
    EventKind.SOURCE_FAILED,
    EventKind.SOURCE_PARTIAL,
    EventKind.RECORD_QUARANTINED,
)


@dataclass(frozen=True)
class JournalEntry:
    """A line to write. `code` and `count` are stored in the clear, `source` (a path) and `message` sealed. A `message`
    that is a literal or a Text is shown in the reader's language.

    Two entries about sources are the same event if kind, code, source, message and `key` are equal. Other entries are
    the same event only if they have a `key`; without one, each is a new event.
    """

    kind: RunEvent.Kind
    code: str = ""
    count: int | None = None
    source: str = ""
    message: str = ""
    key: str = ""


def entries_about(document: Document, source: str) -> list[JournalEntry]:
    """Return entries on how a document was read: parts that could not be, and where its reading was a guess."""
    return [
        *(
            JournalEntry(EventKind.SOURCE_PARTIAL, "partly_read", source=source, message=each)
            for each in document.problems
        ),
        *(
            JournalEntry(EventKind.NOTE, "read_as", source=source, message=each, key=f"{source}\n{each}")
            for each in document.notes
        ),
    ]


def write(run: Run, entries: Iterable[JournalEntry]) -> list[JournalEntry]:
    """Append entries; the database numbers them. Returns those that are new, or that reopen an event.

    Call it in the transaction that makes the change, with the run's row locked: then a reader who has seen a number has
    seen all smaller numbers of that run.
    """
    prepared = prepare(run.pk, cipher_for(run.user_id), entries)
    if not prepared.wanted:
        return []
    with prepared_cursor() as cursor:
        cursor.execute(INSERT_SQL, {"run": run.pk, **prepared.values()})
        inserted = {row[0] for row in cursor.fetchall()}
    return settle(prepared, inserted)


@dataclass(frozen=True)
class Prepared:
    """Entries on their way into the journal of a run, by nonce. `again`: those that occur twice."""

    run_id: UUID
    cipher: UserCipher
    wanted: Mapping[UUID, JournalEntry]
    again: Sequence[tuple[UUID, JournalEntry]] = ()

    def values(self) -> dict[str, Any]:
        """Return the parameters of INSERT_SQL, except `run`."""
        return {
            "nonces": list(self.wanted),
            "kinds": [str(entry.kind) for entry in self.wanted.values()],
            "codes": [entry.code for entry in self.wanted.values()],
            "counts": [entry.count for entry in self.wanted.values()],
            "details": [_seal(self.cipher, nonce, entry) for nonce, entry in self.wanted.items()],
        }


def prepare(run_id: UUID, cipher: UserCipher, entries: Iterable[JournalEntry]) -> Prepared:
    """Return entries for INSERT_SQL. Call `settle` after it."""
    wanted: dict[UUID, JournalEntry] = {}
    again: list[tuple[UUID, JournalEntry]] = []
    for entry in entries:
        nonce = _nonce(run_id, cipher, entry)
        if nonce in wanted:
            again.append((nonce, entry))
        else:
            wanted[nonce] = entry
    return Prepared(run_id, cipher, wanted, again)


def settle(prepared: Prepared, inserted: Collection[UUID]) -> list[JournalEntry]:
    """Write events for entries that were not among the inserted ones, because they exist with another count. Returns
    those that are new.
    """
    new = [entry for nonce, entry in prepared.wanted.items() if nonce in inserted]
    again = list(prepared.again)
    again += [(nonce, entry) for nonce, entry in prepared.wanted.items() if nonce not in inserted]
    if again and (found := _conflicts(prepared.run_id, again)):
        more = prepare(prepared.run_id, prepared.cipher, found)
        with prepared_cursor() as cursor:
            cursor.execute(INSERT_SQL, {"run": more.run_id, **more.values()})
            new += settle(more, {row[0] for row in cursor.fetchall()})
    return new


def _nonce(run_id: UUID, cipher: UserCipher, entry: JournalEntry) -> UUID:
    if not entry.key and not ((entry.source or entry.message) and entry.kind in _ABOUT_SOURCES):
        return uuid4()
    identity = orjson.dumps([entry.kind, entry.code, entry.source, entry.message, entry.key])
    return UUID(bytes=cipher.fingerprint(identity, f"event of {run_id}")[:16])


def _conflicts(run_id: UUID, again: Sequence[tuple[UUID, JournalEntry]]) -> list[JournalEntry]:
    """Return entries for events that exist with another count: each as a new event, with a note that they differ."""
    there = RunEvent.objects.filter(run=run_id, nonce__in=[nonce for nonce, _ in again])
    counts = dict(there.values_list("nonce", "count"))
    found = []
    for nonce, entry in again:
        if counts[nonce] != entry.count:
            key = f"{nonce} {entry.count}"
            found += [replace(entry, key=key), JournalEntry(EventKind.NOTE, "event_conflict", key=key)]
    return found


# ORDER BY, because events are numbered in this order. Takes the values of `Prepared`; also a part of other statements.
INSERT_SQL: Final = """
INSERT INTO agents_runevent AS known (run_id, nonce, kind, code, count, details)
SELECT %(run)s::uuid, nonce, kind, code, count, details
FROM unnest(%(nonces)s::uuid[], %(kinds)s::text[], %(codes)s::text[], %(counts)s::int[], %(details)s::bytea[])
    WITH ORDINALITY AS entry (nonce, kind, code, count, details, place)
ORDER BY place
ON CONFLICT (run_id, nonce) DO UPDATE SET is_over = false
    WHERE known.is_over AND known.count IS NOT DISTINCT FROM excluded.count
RETURNING nonce, kind, count
"""


def _seal(cipher: UserCipher, nonce: UUID, entry: JournalEntry) -> bytes | None:
    if not entry.source and not entry.message:
        return None
    return RunEvent.details.seal(cipher, [entry.source, packed(entry.message)], nonce)


def resolve_failures(run: Run) -> int:
    """Mark the failures of earlier attempts as over, because a new attempt reads their sources again. Returns how many
    are over.

    One that fails again in the same way is reopened. Quarantined sources and problems with records stay.
    """
    if not run.problems:
        return 0
    events = RunEvent.objects.filter(run=run, kind=EventKind.SOURCE_FAILED, is_over=False).exclude(
        code=KILLED_WORKERS
    )
    counts = list(events.values_list("count", flat=True))
    events.update(is_over=True)
    return sum(count or 1 for count in counts)


def read(run: Run, *, after: int = 0, most: int = 1000) -> list[dict[str, Any]]:
    """Return a run's events after a `seq`, unsealed for their owner."""
    cipher = cipher_for(run.user_id)
    return [event_body(event, cipher) for event in run.events.filter(seq__gt=after)[:most]]


def problems_of(runs: Sequence[Run], *, most: int = 50) -> dict[UUID, list[dict[str, Any]]]:
    """Return, in one query, why each of several runs of one user ended without success, and its first problems.

    Empty for runs without any.
    """
    found: defaultdict[UUID, list[dict[str, Any]]] = defaultdict(list)
    troubled = [run for run in runs if run.problems or not (run.is_live or run.state == Run.State.SUCCESS)]
    if troubled:
        cipher = cipher_for(troubled[0].user_id)
        kinds = [str(kind) for kind in RunEvent.PROBLEMS]
        wanted = [run.pk for run in troubled]
        for event in RunEvent.objects.raw(_PROBLEMS, [wanted, kinds, _REGULAR_ENDS, most]):
            found[event.run_id].append(event_body(event, cipher))
    return found


# LATERAL, because a window function would read all events of all runs.
_PROBLEMS = """
SELECT problem.* FROM unnest(%s::uuid[]) AS wanted (id) CROSS JOIN LATERAL (
    SELECT * FROM agents_runevent
    WHERE run_id = wanted.id AND (kind = ANY(%s) OR kind = 'finished' AND code <> ALL(%s)) AND NOT is_over
    ORDER BY kind <> 'finished', seq LIMIT %s
) AS problem ORDER BY problem.kind <> 'finished', problem.seq
"""
# Ends that say nothing beyond the run's problems.
_REGULAR_ENDS = ["completed", "empty", "completed_with_failures", "nothing_could_be_read"]


def event_body(event: RunEvent, cipher: UserCipher) -> dict[str, Any]:
    """Return an event as REST shows it, its message in the active language. Raises SealBroken."""
    source = message = ""
    if event.details is not None:
        source, kept = RunEvent.details.unseal_from(cipher, event)
        message = said(unpacked(kept))
    return {
        "seq": event.seq,
        "at": event.at,
        "kind": event.kind,
        "code": event.code,
        "count": event.count,
        "source": source,
        "message": message,
    }


_PROBLEM_TEXTS = {
    "unreadable": gettext_noop("the device could not read it"),
    "never_sent": gettext_noop("the device was asked for it and did not send it"),
    "not_asked_for": gettext_noop("the device sent it without being asked"),
    "too_large": gettext_noop("it is too large"),
    "damaged_on_the_way": gettext_noop("it arrived damaged"),
    "device_refused": gettext_noop("the device refused a record"),
    "outcome_unknown": gettext_noop("it is not known whether the device has a record"),
    "lost_on_the_way": gettext_noop("the device sent more files than arrived"),
    "never_read": gettext_noop("it was not read"),
    "and_more": gettext_noop("more files could not be read"),
    "killed_workers": gettext_noop("reading it broke off several times, so it is skipped for a day"),
    # The reasons why runs end.
    "cancelled": gettext_noop("the run was cancelled"),
    "agent_deleted": gettext_noop("its agent was deleted"),
    "held_by_plan": gettext_noop(
        "the plan has no room for this agent: choose which agents run, or take a larger plan"
    ),
    "device_changed": gettext_noop("its agent reads another device now"),
    "no_connection": gettext_noop("its account is not connected any more"),
    "deadline": gettext_noop("it took longer than a run may take"),
    "device_silent": gettext_noop("the device is connected and does not answer"),
    "device_cannot_save": gettext_noop("the device could not save it; its disk may be full"),
    "device_never_came": gettext_noop("its device did not connect in time"),
    "slot_missed": gettext_noop("its device connected too late for it"),
    "never_connected_again": gettext_noop("its account was not connected again in time"),
    "budget_never_came": gettext_noop("there was no money for its models in time"),
    "workers_lost": gettext_noop("the server lost it several times while it worked"),
    "internal_error": gettext_noop("the server made a mistake; its operator can find it in the log"),
}


def problem_text(event: dict[str, Any]) -> str:
    """Return a problem as a sentence in the active language: which source, what happened, how often."""
    known = _PROBLEM_TEXTS.get(event["code"])
    words = event["message"] or (gettext(known) if known else event["code"])
    counted = (
        f" ({gettext('{count} times').format(count=event['count'])})" if (event["count"] or 0) > 1 else ""
    )
    return f"{event['source']}: {words}{counted}" if event["source"] else f"{words}{counted}"
