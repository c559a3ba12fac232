"""Compare the records of a new reading of a document with those found before: which are new, and what became of the
others.

A model that is shown the earlier records says so itself (`Verdict`). Records that it does not account for are matched
by words, date and people, because a model may also rephrase an item without saying that it is the same. This module is
pure: `agents.found_records` reads and writes the database.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from uuid import UUID

from adiuva.devices.tables import TABLES
from agents.record_validation import ENTITIES, Record, Verdict, date_of, people_of

# The document decides about an agent's own records and another agent's. Records of another document, whose copy this
# one is, only tell what is a repeat.
Relation = Literal["own", "other_agent", "other_document"]
# The fields of a record that are kept, to recognise it and to see a change.
KEPT_FIELDS: Final = ("title", "name", "dueDate", "date", "assignee", "status", "priority")
# Two titles are the same in other words from this share of common words, and from the second if the date changed too.
_SAME_WORDS: Final = 0.55
_SAME_WORDS_OTHER_DATE: Final = 0.8
_WORD: Final = re.compile(r"\w+")
_GRAMMAR: Final = re.compile(
    "the|and|for|with|from|into|this|that|these|those|are|was|were|has|have|had|will|shall|must|should|needs?|gets?"
    "|der|die|das|den|dem|des|ein|eine|einen|und|für|mit|von|zu|zum|zur|ist|wird|les|une|pour|avec|est|del|della|per"
    "|con|che|los|las|una|por"
)
# "Do it" and "do not do it" must never count as the same item in other words.
_NEGATION: Final = re.compile(
    "no|not|never|don|dont|cannot|kein|keine|keinen|nicht|nie|non|ne|pas|jamais|mai|sin|sans|ohne|senza|without"
)
_STEM_CHARS: Final = 5


@dataclass(frozen=True)
class KnownRecord:
    """A record that stands in the document, as it was last found.

    `lost`: it expired before any device had it. `leaving`: a reading missed it, and its device has not been told yet.
    """

    id: UUID
    record: Record
    relation: Relation = "own"
    lost: bool = False
    leaving: bool = False


@dataclass(frozen=True)
class Change:
    """A change of a known record. `updates`: the fields that changed, none if one that was leaving is there after all;
    None: it is gone.
    """

    known: KnownRecord
    updates: dict[str, Any] | None


@dataclass(frozen=True)
class Repeat:
    """A record that was left out, because it is known already or the answer has it twice."""

    record: Record


@dataclass
class Reconciled:
    """The result: `new` holds each new record, with the id of the lost record that it is, if any."""

    new: list[tuple[Record, UUID | None]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    repeats: list[Repeat] = field(default_factory=list)


def reconcile(
    records: Sequence[Record],
    verdicts: Mapping[UUID, Verdict],
    known: Sequence[KnownRecord],
    occurrences: Callable[[str], int],
) -> Reconciled:
    """Compare records and verdicts with known records.

    `occurrences(title)`: how often the document's text holds these words, 0 if it says them otherwise.
    """
    result = Reconciled()
    open_ = {each.id: each for each in known}
    claimed: Counter[str] = Counter()
    extra: list[Record] = []
    for each in known:
        verdict = verdicts.get(each.id)
        if verdict is None or each.lost:
            continue
        del open_[each.id]
        if verdict.now != "gone":
            claimed[each.record.identity] += 1
        extra += _apply(each, verdict, result)
    left = _match(records, list(open_.values()), result)
    for record in left:
        if record.table in ENTITIES and any(each.record.words == record.words for each in known):
            result.repeats.append(Repeat(record))
        else:
            extra.append(record)
    _keep_counted(extra, claimed, occurrences, result)
    return result


def _apply(known: KnownRecord, verdict: Verdict, result: Reconciled) -> list[Record]:
    """Note an answer's verdict on a known record. Returns the new records that it makes of it."""
    record = known.record
    if verdict.now == "gone":
        if known.relation == "own":
            result.changes.append(Change(known, None))
    elif verdict.now == "done":
        is_new = record.table == "tasks" and record.data.get("status") != "done"
        _change(known, {"status": "done"} if is_new else {}, result)
    elif verdict.now == "changed":
        updates = {
            name: value
            for name, value in verdict.data.items()
            if name not in KEPT_FIELDS or record.data.get(name) != value
        }
        _change(known, updates, result)
        if updates and known.relation == "other_document":
            flags = {"isAiSuggested": 1, "isApproved": 0} if TABLES[record.table].reviewed else {}
            whole = Record(record.table, record.data | updates | flags)
            if all(column.name in whole.data for column in TABLES[record.table].columns if column.required):
                return [whole]
    else:
        _change(known, {}, result)
    return []


def _change(known: KnownRecord, updates: dict[str, Any], result: Reconciled) -> None:
    """Note that an agent's own record is there, with these fields changed."""
    if known.relation == "own" and (updates or known.leaving):
        result.changes.append(Change(known, updates))


def _match(records: Sequence[Record], known: list[KnownRecord], result: Reconciled) -> list[Record]:
    """Match records with known ones that the answer did not account for. Returns those that match none."""
    left = list(records)
    for rule in (_is_equal, _is_moved, _is_reworded):
        pairs = sorted(
            (
                (-score, place, number)
                for place, record in enumerate(left)
                for number, each in enumerate(known)
                if record.table == each.record.table and (score := rule(record, each))
            )
        )
        places: set[int] = set()
        numbers: set[int] = set()
        for _, place, number in pairs:
            if place not in places and number not in numbers:
                places.add(place)
                numbers.add(number)
                _same(left[place], known[number], result)
        left = [record for place, record in enumerate(left) if place not in places]
        known = [each for number, each in enumerate(known) if number not in numbers]
        if not left or not known:
            break
    return left


def _same(record: Record, known: KnownRecord, result: Reconciled) -> None:
    """Treat a record as a known one: differences in its date, people or status are changes in the document."""
    if known.lost:
        result.new.append((record, known.id))
        return
    before = known.record.data
    updates = {
        name: value
        for name in ("dueDate", "date", "assignee", "status")
        if (value := record.data.get(name)) is not None and before.get(name) not in (value, None)
    }
    updates |= {
        name: record.data[name]
        for name in ("dueDate", "assignee")
        if name in record.data and name not in before
    }
    _change(known, updates, result)
    if updates and known.relation == "other_document":
        result.new.append((record, None))
        return
    result.repeats.append(Repeat(record))


def _is_equal(record: Record, known: KnownRecord) -> float:
    return float(record.identity == known.record.identity)


def _is_moved(record: Record, known: KnownRecord) -> float:
    """Return how surely a record with the same words is the known one, with another date or newly named people."""
    if record.words != known.record.words or not _may_be_same(record, known):
        return 0.0
    return 1.0 if date_of(record.data) == date_of(known.record.data) else 0.9


def _is_reworded(record: Record, known: KnownRecord) -> float:
    if not _may_be_same(record, known):
        return 0.0
    score = _likeness(record.title, known.record.title)
    one, other = date_of(record.data), date_of(known.record.data)
    least = _SAME_WORDS if one == other or None in (one, other) else _SAME_WORDS_OTHER_DATE
    return score if score >= least else 0.0


def _may_be_same(record: Record, known: KnownRecord) -> bool:
    """Return False if they name other people, or the known one was done: a recurring item comes with a new date."""
    people, before = people_of(record.data), people_of(known.record.data)
    if people and before and people != before:
        return False
    was_done, is_done = (each.data.get("status") == "done" for each in (known.record, record))
    return is_done or not was_done


def _likeness(one: str, other: str) -> float:
    """Return how many of their words two titles share, from 0 to 1; 0 if each names
    somebody or a number that the other does not."""
    first, second = _words(one), _words(other)
    # A name or a number that only one of them has does not matter, as long as the other has none of its own.
    if all(
        any(is_name and word not in others for word, is_name in own.items())
        for own, others in ((first, second), (second, first))
    ):
        return 0.0
    if len({any(_NEGATION.fullmatch(word) for word in words) for words in (first, second)}) > 1:
        return 0.0
    stems, other_stems = ({word[:_STEM_CHARS] for word in words} for words in (first, second))
    if not stems or not other_stems:
        return 0.0
    return 2 * len(stems & other_stems) / (len(stems) + len(other_stems))


def _words(title: str) -> dict[str, bool]:
    """Return the words of a title, folded; whether each is a name (in capitals, not in front) or holds a digit."""
    found: dict[str, bool] = {}
    for place, word in enumerate(_WORD.findall(title)):
        folded = word.casefold()
        if len(folded) < 2 or _GRAMMAR.fullmatch(folded):
            continue
        is_name = any(character.isdigit() for character in word) or (place > 0 and word[0].isupper())
        found[folded] = found.get(folded, False) or is_name
    return found


def _keep_counted(
    records: Sequence[Record], claimed: Counter[str], occurrences: Callable[[str], int], result: Reconciled
) -> None:
    """Keep as many equal records as the document holds. One that the answer accounts for is not new as well."""
    groups: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.identity].append(record)
    places: dict[int, int] = {id(record): place for place, record in enumerate(records)}
    new: list[Record] = []
    for identity, equal in groups.items():
        there = claimed[identity]
        if there or len(equal) > 1:
            held = occurrences(equal[0].title)
            # In other words than the document's: each part knows its document's head, so several may tell of it.
            held = held or max(Counter(record.part for record in equal).values())
            most = max(held - there, 0)
        else:
            most = 1
        new += equal[:most]
        result.repeats += [Repeat(record) for record in equal[most:]]
    result.new += [(record, None) for record in sorted(new, key=lambda record: places[id(record)])]
