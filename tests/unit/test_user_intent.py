"""The user's intent after a turn has read foreign text: what their words ask for is done, else approval is asked."""

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


@pytest.mark.parametrize(
    ("said", "misled", "is_only", "wanted"),
    [
        ("run Clients", True, False, True),
        ("please start my agent", True, True, True),
        ("please start my agent", True, False, False),  # which?
        ("lass den Agenten Clients laufen", True, False, True),
        ("lance Clients", True, False, True),
        ("what does the note about Clients say?", True, True, False),
        ("what does the note say? Then run Clients.", True, False, True),
        ("can you run Clients?", True, False, True),
        ("run Clients, and what did it find?", True, False, True),
        ("is my agent Clients running", True, True, False),
        ("my agent Clients, did it run today?", True, True, False),
        ("wann lief der Agent Clients zuletzt", True, True, False),
        ("¿qué dice el correo de mi agente Clients?", True, True, False),
        ("run it", True, True, False),
        ("run it", False, False, True),
        ("and Clients?", False, False, True),
        ("what is in my notes?", False, True, False),
    ],
)
def test_an_agent_runs_if_the_users_words_ask_for_it(
    said: str, misled: bool, is_only: bool, wanted: bool
) -> None:
    assert UserWords([said]).want_run("Clients", misled=misled, is_only=is_only) is wanted


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("make an agent that reads my offers", True),
        ("What did it find? Then schedule my agent for 8.", True),
        ("can you create an agent for the inbox?", True),
        ("leg einen Agenten für die Angebote an", True),
        ("crea un agente para mi buzón", True),
        ("what did my agent find?", False),
        ("read what my agent has found", False),
        ("add a task, and tell me what the note says. What is my agent doing?", False),
        ("what does the text say about a new agent?", False),
    ],
)
def test_after_a_text_of_others_an_agent_is_tried_out_only_if_the_user_orders_it(
    said: str, wanted: bool
) -> None:
    assert UserWords([said]).want_set_up(misled=True) is wanted
    assert UserWords([said]).want_set_up(misled=False)


def test_to_stop_it_takes_another_word_than_to_run_it() -> None:
    assert UserWords(["stop Clients"]).want_stop("Clients", misled=True, is_only=True)
    assert not UserWords(["run Clients"]).want_stop("Clients", misled=True, is_only=True)
    assert not UserWords(["stop Clients"]).want_run("Clients", misled=True, is_only=True)
