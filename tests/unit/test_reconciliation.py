"""Reconciliation of a second reading of a document with the records found before, whatever the model says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.reconciliation import KnownRecord, Reconciled, Relation, reconcile
from agents.record_validation import Record, Verdict

DAY = 86_400_000


def task(title: str, day: int | None = None, **fields: Any) -> Record:
    return Record("tasks", {"title": title, **({} if day is None else {"dueDate": day * DAY}), **fields})


def known(record: Record, relation: Relation = "own", *, lost: bool = False) -> KnownRecord:
    return KnownRecord(uuid4(), record, relation, lost)


def compared(
    records: list[Record], before: list[KnownRecord], *verdicts: tuple[KnownRecord, Verdict], text: str = ""
) -> Reconciled:
    said: dict[UUID, Verdict] = {each.id: verdict for each, verdict in verdicts}
    return reconcile(records, said, before, lambda title: text.count(title))


def new(found: Reconciled) -> list[str]:
    return [record.title for record, _ in found.new]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("send the offer to Rossi", "Offer for Rossi: send it"),
        ("send the offer to Rossi", "Rossi needs the offer"),
        ("Angebot an Rossi schicken", "Das Angebot an Rossi verschicken"),
        ("Send Anna the contract", "Contract to Anna"),
        ("Pay the invoice 2026-17", "Invoice 2026-17: pay"),
    ],
)
def test_the_same_thing_in_other_words_is_no_second_record(before: str, now: str) -> None:
    found = compared([task(now)], [known(task(before))])
    assert (new(found), found.changes, len(found.repeats)) == ([], [], 1)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (task("call Ada"), task("call Ben")),
        (task("Please call Ada today"), task("Please call Ben today")),
        (task("pay invoice 17"), task("pay invoice 18")),
        (task("sign the form", assignee='["Ana"]'), task("sign the form", assignee='["Ben"]')),
        (task("send the report", 1, status="done"), task("send the report", 8)),
        (task("write the offer"), task("water the plants")),
        (task("send the offer to Rossi"), task("Do not send the offer to Rossi")),
    ],
)
def test_another_thing_is_new_though_it_reads_alike(before: Record, now: Record) -> None:
    assert new(compared([now], [known(before)])) == [now.title]


def test_the_same_words_with_another_date_have_moved_unless_both_are_there() -> None:
    before = known(task("water the plants", 1))
    found = compared([task("water the plants", 2)], [before])
    assert (new(found), found.changes[0].updates) == ([], {"dueDate": 2 * DAY})
    found = compared([task("water the plants", 1), task("water the plants", 2)], [before])
    assert (len(found.new), found.changes) == (1, [])


def test_equal_items_are_as_many_as_the_text_holds() -> None:
    twice = [task("stretch"), task("stretch"), task("stretch")]
    assert len(compared(twice, [], text="- stretch\n- stretch").new) == 2
    # In words of the model's own there is nothing to count: what one part says three times is three, what three parts
    # say once each may come from what is above all of them.
    assert len(compared(twice, []).new) == 3
    assert len(compared([replace(each, part=part) for part, each in enumerate(twice)], []).new) == 1
    found = compared([task("stretch")], [known(task("stretch"))], text="- stretch\n- stretch")
    assert (new(found), len(found.repeats)) == ([], 1)


def test_what_the_answer_accounts_for_and_says_again_is_new_only_if_the_text_holds_it_twice() -> None:
    before = known(task("stretch"))
    there = (before, Verdict(1, "there"))
    assert new(compared([task("stretch")], [before], there, text="stretch")) == []
    assert new(compared([task("stretch")], [before], there, text="stretch, stretch")) == ["stretch"]


def test_verdicts_change_only_what_is_the_agents_own() -> None:
    verdicts = [Verdict(1, "gone"), Verdict(1, "done"), Verdict(1, "changed", {"dueDate": DAY})]
    for verdict, changes in zip(verdicts, (None, {"status": "done"}, {"dueDate": DAY}), strict=True):
        own = known(task("call Ada"))
        assert [each.updates for each in compared([], [own], (own, verdict)).changes] == [changes]
        others = known(task("call Ada"), "other_agent")
        assert compared([], [others], (others, verdict)) == Reconciled()


def test_what_a_copy_says_otherwise_than_its_original_is_new() -> None:
    original = known(task("call Ada", 1), "other_document")
    found = compared([], [original], (original, Verdict(1, "changed", {"dueDate": 2 * DAY})))
    assert [(record.data["dueDate"], record.data["isApproved"]) for record, _ in found.new] == [(2 * DAY, 0)]
    assert found.changes == []
    assert len(compared([task("call Ada", 3)], [original]).new) == 1


def test_a_record_that_expired_is_sent_again_under_its_id() -> None:
    lost = known(task("call Ada"), lost=True)
    assert compared([task("call Ada")], [lost]).new == [(task("call Ada"), lost.id)]


WORDS = ["call", "send", "pay", "Ada", "Rossi", "offer", "bill", "17", "room", "now"]
words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5)
tasks = st.builds(
    lambda said, day, status: task(" ".join(said), day, status=status),
    words,
    st.none() | st.integers(1, 3),
    st.sampled_from(["todo", "done"]),
)


@given(st.lists(tasks, max_size=6), st.lists(tasks, max_size=6))
@settings(deadline=None)
def test_nothing_that_a_reading_gives_is_lost_unsaid(records: list[Record], before: list[Record]) -> None:
    found = reconcile(records, {}, [known(each) for each in before], lambda _: 0)
    assert len(found.new) + len(found.repeats) == len(records)
    assert all(change.updates for change in found.changes)


@given(st.lists(tasks, max_size=6))
@settings(deadline=None)
def test_the_same_reading_again_gives_nothing_new(records: list[Record]) -> None:
    first = reconcile(records, {}, [], lambda _: 0)
    there = [known(record) for record, _ in first.new]
    again = reconcile(records, {}, there, lambda _: 0)
    assert (again.new, again.changes) == ([], [])
