"""Commands at the console of a headless device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from adiuva.devices.client.console import Console
from adiuva.devices.client.store import Store
from adiuva.devices.tables import TABLES


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    made.seed(
        {
            "projects": [{"id": "p", "name": "Boathouse"}],
            "tasks": [
                {"title": "Call Ada", "projectId": "p", "isAiSuggested": 1, "description": "about the lease"},
                {"title": "Pay the bill", "isAiSuggested": 1},
                {"title": "Mine"},
                {"title": "Approved", "isAiSuggested": 1, "isApproved": 1},
            ],
            "notes": [{"title": "Minutes", "content": "The lease ends in May"}],
        }
    )
    yield made
    made.close()


def say(console: Console, line: str) -> str:
    answer = console.answer(line)
    assert answer is not None
    return answer


def tasks(store: Store) -> dict[str, dict[str, object]]:
    return {row["title"]: row for row in store.select(TABLES["tasks"])}


def test_suggestions_are_listed_shown_approved_edited_and_rejected(store: Store) -> None:
    console = Console(store)
    listed = say(console, "list")
    assert "Call Ada (Boathouse)" in listed and "Pay the bill" in listed
    assert "Mine" not in listed and "Approved" not in listed
    numbers = {line.split(": ")[1].split(" (")[0]: line.split(".")[0].strip() for line in listed.splitlines()}
    shown = say(console, f"show {numbers['Call Ada']}")
    assert "description: about the lease" in shown and "projectId: Boathouse" in shown
    assert say(console, f"approve {numbers['Call Ada']}") == "Approved: Call Ada"
    assert tasks(store)["Call Ada"]["isApproved"] == 1
    assert "Pay it" in say(
        console, f'edit {numbers["Pay the bill"]} title="Pay it" priority=high dueDate=2026-11-20'
    )
    paid = tasks(store)["Pay it"]
    assert (paid["isApproved"], paid["priority"], paid["dueDate"] is not None) == (1, "high", True)
    assert say(console, "list") == "No suggestions wait for you."


def test_all_are_rejected_at_once(store: Store) -> None:
    console = Console(store)
    assert "no list yet" in say(console, "reject all")
    say(console, "list")
    assert say(console, "reject all").count("Rejected") == 2
    assert tasks(store).keys() == {"Mine", "Approved"}
    assert "not there any more" in say(console, "show 1")


def test_what_was_done_is_taken_back_step_by_step_unless_it_was_changed_again(store: Store) -> None:
    console, before = Console(store), tasks(store)
    assert say(console, "undo") == "Nothing was changed here."
    say(console, "list")
    say(console, "approve 1")
    say(console, "edit 2 title=Paid priority=high")
    say(console, "reject all")
    assert say(console, "undo").count("As before") == 2 and "Paid" in tasks(store)
    assert "As before" in say(console, "undo") and "As before" in say(console, "undo")
    assert tasks(store) == before
    say(console, "approve 1")
    key = before["Call Ada"]["id"]
    store.apply(
        [{"id": "c", "action": "update", "table": "tasks", "data": {"id": key, "updates": {"title": "New"}}}]
    )
    assert say(console, "undo") == "Kept, since it was changed again: Call Ada"
    assert tasks(store)["New"]["isApproved"] == 1


def test_the_source_of_a_suggestion_is_shown_and_all_of_a_run_are_approved_at_once(store: Store) -> None:
    calls = [
        {
            "id": title,
            "action": "insert",
            "table": "tasks",
            "data": {"title": title, "isAiSuggested": 1},
            "origin": {"run_id": run, "source": f"/home/kim/{source}"},
        }
        for title, run, source in (("A", "1", "a.md"), ("B", "1", "b.md"), ("C", "2", "a.md"))
    ]
    store.apply(calls)
    console = Console(store)
    listed = say(console, "list")
    numbers = {line.split(": ")[1].split(" (")[0]: line.split(".")[0].strip() for line in listed.splitlines()}
    assert "tasks: B (from b.md)" in listed
    assert "  found in: /home/kim/a.md" in say(console, f"show {numbers['A']}").splitlines()
    assert "not known which run" in say(console, f"approve run {numbers['Call Ada']}")
    assert say(console, f"approve run {numbers['B']}").splitlines() == ["Approved: A", "Approved: B"]
    assert [title for title, row in tasks(store).items() if row["isApproved"]] == ["Approved", "A", "B"]
    assert say(console, "undo").count("As before") == 2
    assert say(console, f"reject run {numbers['C']}") == "Rejected: C"
    assert "As before: C" in say(console, "undo") and "from a.md" in say(console, "list").split("C (")[1]


def test_all_tables_are_searched(store: Store) -> None:
    found = say(Console(store), "search LEASE")
    assert "tasks: Call Ada" in found and "notes: Minutes" in found
    assert say(Console(store), "search nowhere") == "Nothing is found."


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("approve", "Say which"),
        ("approve 9", "no number of the last list"),
        ("edit 1", "Say what to change"),
        ("edit 1 colour=red", "colour is none of"),
        ("edit 1 status=gone", "status is one of"),
        ("edit 1 dueDate=soon", "dueDate is a time"),
        ("edit 1 title=", "title cannot be empty"),
        ('edit 1 title="', "cannot be read"),
        ("dance", "There is no command dance"),
        ("help", "approve all"),
    ],
)
def test_what_cannot_be_done_says_why_and_changes_nothing(store: Store, line: str, why: str) -> None:
    console, before = Console(store), tasks(store)
    say(console, "list")
    assert why in say(console, line)
    assert tasks(store) == before


def test_quit_ends_it_and_an_empty_line_does_nothing(store: Store) -> None:
    assert Console(store).answer("quit") is None
    assert Console(store).answer("  ") == ""
