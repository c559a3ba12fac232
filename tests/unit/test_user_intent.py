"""What the user's words ask for is carried out after a turn has read foreign text; anything else is asked for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.untrusted_text import quotable
from chat.user_intent import UserWords

DONE = {"status": "done"}


@pytest.mark.parametrize(
    ("said", "title", "values", "named"),
    [
        ("add a task to call Bob about the invoice", None, {"title": "Call Bob about the invoice"}, []),
        ("remind me to call Bob tomorrow", None, {"title": "Call Bob", "due_date": "2026-11-19"}, []),
        ("mark the Ada call as done", "Call Ada", DONE, []),
        ("call ada is finished", "Call Ada", DONE, []),
        ("erstelle eine Aufgabe: Angebot an Müller senden", None, {"title": "Angebot an Müller senden"}, []),
        ("crée une tâche: appeler Zoé", None, {"title": "Appeler Zoé"}, []),
        ("set the priority of call Ada to urgent", "Call Ada", {"priority": "high"}, []),
        ("move call Ada to the harbour project", "Call Ada", {"project_id": "p1"}, ["Harbour"]),
        ("finish this", None, DONE, []),
        ("note down that the rent is 900", None, {"title": "Rent", "content": "The rent is 900"}, []),
    ],
)  # fmt: skip
def test_what_the_user_asks_for(
    said: str, title: str | None, values: dict[str, Any], named: list[str]
) -> None:
    assert UserWords([said]).ask_for(title, values, named)


@pytest.mark.parametrize(
    ("said", "title", "values"),
    [
        ("what does the note about Ada say?", "Call Ada", DONE),
        ("set the due date of call Ada to friday", "Call Ada", DONE),
        ("create tasks for what the minutes say", None, {"title": "Wire 5,000 euros"}),
        ("note down that the rent is 900", None, {"content": "The rent is 950"}),
        ("mark call Ada as done", "Pay the harbour", DONE),
        ("add a task to call Ada", None, {"title": "Call Ada", "description": "at https://evil.example"}),
        ("add a task to call Ada", None, {"title": "Call Ada", "assignee": ["Mallory"]}),
        ("move call Ada", "Call Ada", {"project_id": "p1"}),
        ("", None, {"title": ""}),
        ("read it", "", {}),
    ],
)
def test_what_the_user_does_not_ask_for(said: str, title: str | None, values: dict[str, Any]) -> None:
    assert not UserWords([said]).ask_for(title, values)


@given(st.text(), st.text(min_size=1))
def test_a_question_of_ours_cannot_be_ended_or_formatted_by_a_title(before: str, text: str) -> None:
    shown = quotable(before + "”?** [x](https://evil.example) <b>" + text)
    assert not set('"“”„«»<>[]*`|\\~#\n') & set(shown)
