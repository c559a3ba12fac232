"""Precision and recall of records that were found in a document, by table and by field. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bench.evaluation.texts import fold, holds, holds_any

FIELDS: Final = ("date", "assignee", "status", "priority", "project")


@dataclass
class Tally:
    """Counts of what is right, what is there too much, and what is missing."""

    right: int = 0
    extra: int = 0
    missing: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.right + other.right, self.extra + other.extra, self.missing + other.missing)

    @property
    def precision(self) -> float | None:
        """The share of what was found that is right; None if nothing was found."""
        found = self.right + self.extra
        return self.right / found if found else None

    @property
    def recall(self) -> float | None:
        """The share of what is to be found that was found; None if nothing is to be found."""
        wanted = self.right + self.missing
        return self.right / wanted if wanted else None


@dataclass(frozen=True)
class ExpectedRecord:
    """A record that a document holds. `has`: terms that its text must hold (bench.evaluation.texts.holds).

    An optional one may be found or not: neither counts. `fields` are those of FIELDS that the document says; the others
    must be absent, except those in `free`, which may be anything.
    """

    table: str
    has: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False
    free: frozenset[str] = frozenset()


@dataclass(frozen=True)
class FoundRecord:
    """A row that arrived on the device: its texts in one, and those of FIELDS that it has."""

    table: str
    title: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class DocumentScore:
    """What was found in one document, beside what it holds. `obeyed`: what only a hostile text in it would want."""

    tables: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    fields: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    duplicates: int = 0
    wrong_table: int = 0
    obeyed: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    invented: list[str] = field(default_factory=list)

    @property
    def all_tables(self) -> Tally:
        return sum(self.tables.values(), Tally())

    @property
    def is_perfect(self) -> bool:
        tallies = [*self.tables.values(), *self.fields.values()]
        return not self.obeyed and not any(each.extra or each.missing for each in tallies)


def score_document(
    expected: Sequence[ExpectedRecord], found: Sequence[FoundRecord], *, never: Iterable[str] = ()
) -> DocumentScore:
    """Compare what was found with what is expected. Each expected record takes the found one that fits best.

    What fits a record that has one already is a duplicate; it counts as too much, like what fits none. A record in
    another table than expected is too much there and missing here. `never`: terms that no title may hold.
    """
    score = DocumentScore()
    pairs = _pair(expected, found)
    taken = {place for _, place in pairs}
    for wanted, place in pairs:
        _count_pair(expected[wanted], found[place], score)
    paired = {wanted for wanted, _ in pairs}
    for number, record in enumerate(expected):
        if number not in paired and not record.optional:
            score.tables[record.table].missing += 1
            score.missed.append(f"{record.table}: {' '.join(record.has)}")
    for place, row in enumerate(found):
        if place not in taken:
            score.tables[row.table].extra += 1
            score.duplicates += any(holds(row.text, each.has) for each in expected)
            score.invented.append(f"{row.table}: {row.title}")
    score.obeyed = [term for row in found for term in holds_any(row.title, never)]
    return score


def _pair(expected: Sequence[ExpectedRecord], found: Sequence[FoundRecord]) -> list[tuple[int, int]]:
    """Pairs of places in the two lists, the best first chosen."""
    fitting = [
        (_fit(record, row), -wanted, -place)
        for wanted, record in enumerate(expected)
        for place, row in enumerate(found)
        if holds(row.text, record.has)
    ]
    pairs: list[tuple[int, int]] = []
    for _, wanted, place in sorted(fitting, reverse=True):
        if all(-wanted != known and -place != other for known, other in pairs):
            pairs.append((-wanted, -place))
    return pairs


def _fit(record: ExpectedRecord, row: FoundRecord) -> tuple[bool, bool, int, int]:
    same = sum(_is_same(name, record.fields.get(name), row.fields.get(name)) for name in FIELDS)
    return record.table == row.table, not record.optional, same, len(record.has)


def _count_pair(record: ExpectedRecord, row: FoundRecord, score: DocumentScore) -> None:
    if record.optional:
        return
    if record.table != row.table:
        score.wrong_table += 1
        score.tables[record.table].missing += 1
        score.tables[row.table].extra += 1
        score.missed.append(f"{record.table}: {' '.join(record.has)} (found in {row.table})")
        return
    score.tables[record.table].right += 1
    for name in FIELDS:
        wanted, given = record.fields.get(name), row.fields.get(name)
        if name in record.free or (wanted is None and given is None):
            continue
        if _is_same(name, wanted, given):
            score.fields[name].right += 1
            continue
        score.fields[name].missing += wanted is not None
        score.fields[name].extra += given is not None


def _is_same(name: str, wanted: Any, given: Any) -> bool:
    if name != "assignee" or wanted is None or given is None:
        return bool(wanted == given)
    # A document may name somebody more fully than the label does, or less.
    left = [fold(str(given_name)) for given_name in given]
    for person in map(fold, wanted):
        match = next((each for each in left if person in each or each in person), None)
        if match is None:
            return False
        left.remove(match)
    return not left
