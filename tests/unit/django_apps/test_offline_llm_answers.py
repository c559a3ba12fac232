"""Tests what the offline model answers from many rows: spans of days, charts, the week, groups; and about agents."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adiuva.offline_llm import agent_requests, chat
from adiuva.sanitizer import charts
from tests.unit.django_apps.test_offline_llm import ASKED, Chat

OPEN = {"status": "open"}


def due(first: str, last: str) -> list[tuple[str, Any]]:
    return [("list_tasks", {"status": "open", "due_from": first, "due_to": last})]


@pytest.mark.parametrize(
    ("request_", "calls"),
    [
        ("what is due next month?", due("2026-12-01", "2026-12-31")),
        ("which tasks are due this month?", due("2026-11-01", "2026-11-30")),
        ("due in the next 10 days", due("2026-11-20", "2026-11-30")),
        ("what's due within two weeks", due("2026-11-20", "2026-12-04")),
        ("what is due in February?", due("2027-02-01", "2027-02-28")),
        ("tasks due next week", due("2026-11-23", "2026-11-29")),
        ("what is due this weekend?", due("2026-11-21", "2026-11-22")),
        ("what is due next year?", due("2027-01-01", "2027-12-31")),
        ("what is due by Friday?", due("2026-11-20", "2026-11-27")),
        ("what is due on 5 December?", due("2026-12-05", "2026-12-05")),
        ("what is due?", [("list_tasks", {"status": "due"})]),
    ],
)
def test_a_span_of_days_is_asked_for_as_it_was_said(request_: str, calls: list[tuple[str, Any]]) -> None:
    asked = Chat()
    asked.ask(request_)
    assert asked.calls == calls


def test_days_that_are_not_understood_are_said_and_not_replaced_by_today() -> None:
    asked = Chat()
    assert "which days “spring” is" in asked.ask("what is due in spring?")
    assert asked.calls == []


# ── Many rows ───────────────────────────────────────────────────────────────────────────────────────────


def rows(*facts: str, least: str = "", number: int | None = None) -> str:
    lines = [f"- Task {place} [t{place}], {fact}" for place, fact in enumerate(facts, 1)]
    return "\n".join([f"{least}{number or len(facts)} tasks:", *lines])


MANY = rows(
    *["todo, due Tue 2026-11-10 (overdue)"] * 8,
    "todo, high priority, due Fri 2026-11-20, project Harbour Café [p1]",
    "todo, due Sun 2026-11-22, project [p1]",
    *["todo, due Tue 2027-01-05 09:30"] * 2,
    "in progress",
    "done, due Tue 2026-11-10",
    number=20,
)


def test_many_tasks_are_told_in_groups_of_few() -> None:
    said = Chat(list_tasks=MANY).ask("list my tasks")
    assert said.startswith("20 tasks.\n\n**Overdue** (8)\n- Task 1 (Tue 2026-11-10)\n")
    assert (
        "- Task 6 (Tue 2026-11-10)\n- and 2 more\n\n**Today** (1)\n- Task 9 (high priority, Harbour Café)"
        in said
    )
    assert "**This week** (1)\n- Task 10 (Sun 2026-11-22, Harbour Café)" in said
    assert "**No date** (1)\n- Task 13\n\n**Done** (1)" in said
    assert "6 more are not shown" in said
    assert said.endswith("<task>[t1,t2,t3,t4,t5,t6,t9,t10,t11,t12,t13,t14]</task>")


def test_the_week_is_a_list_by_day() -> None:
    asked = Chat(
        list_tasks=rows(
            "todo, due Tue 2026-11-10 (overdue)",
            "todo, due Mon 2026-11-23",
            "todo, high priority, due Mon 2026-11-23",
        ),
        list_timelines="1 timeline entry:\n- Site live [x1], Tue 2026-11-24, project Harbour Café [p1]",
    )
    said = asked.ask("plan my week")
    assert asked.calls == [
        ("list_tasks", {"status": "open", "due_to": "2026-11-26"}),
        ("list_timelines", {"date_from": "2026-11-20", "date_to": "2026-11-26"}),
    ]
    assert (
        said
        == """Your week from Friday 2026-11-20 to Thursday 2026-11-26:

**Overdue, to be done first** (1)
- Task 1 (Tue 2026-11-10)

**Friday 2026-11-20**
- nothing is due

**Monday 2026-11-23**
- Task 3 (high priority)
- Task 2

**Tuesday 2026-11-24**
- Site live (date that matters)

**Wednesday 2026-11-25**
- nothing is due

**Thursday 2026-11-26**
- nothing is due
<task>[t1,t3,t2]</task>"""
    )


def chart_of(said: str) -> dict[str, Any]:
    """The chart in an answer, as the sanitizer lets it through."""
    inner = said.partition("<chart>")[2].partition("</chart>")[0]
    checked = charts.validated_json(inner, lambda text: text)
    assert checked is not None
    found: dict[str, Any] = json.loads(checked)
    return found


@pytest.mark.parametrize(
    ("request_", "kind", "data"),
    [
        ("show my tasks by priority as a chart", "bar", {"high": 1, "medium": 13}),
        ("draw a pie chart of tasks by project", "pie", {"Harbour Café": 2, "no project": 12}),
        ("Aufgaben nach Priorität als Diagramm", "bar", {"high": 1, "medium": 13}),
        (
            "tasks per month as a line chart",
            "line",
            {"2026-11": 11, "2027-01": 2, "no date": 1},
        ),
    ],
)
def test_tasks_are_counted_in_a_chart(request_: str, kind: str, data: dict[str, int]) -> None:
    asked = Chat(list_tasks=MANY)
    said = asked.ask(request_)
    assert asked.rounds == 1 and [name for name, _ in asked.calls] == ["list_tasks"] * 2
    chart = chart_of(said)
    assert chart["chartType"] == kind
    assert {row["name"]: row["tasks"] for row in chart["data"]} == data
    assert "Counted are 14 of 20 tasks" in said


def test_states_are_counted_by_the_tool_however_many_tasks_there_are() -> None:
    asked = Chat(list_tasks="1,234 tasks:\n- One [t1], todo")
    said = asked.ask("tasks by status as a chart")
    assert [arguments for _, arguments in asked.calls] == [
        {"status": s} for s in ("todo", "in_progress", "done")
    ]
    assert chart_of(said)["data"][0] == {"name": "to do", "tasks": 1234} and "Counted" not in said


# ── Agents ──────────────────────────────────────────────────────────────────────────────────────────────

ONE = "1 agent:\n- “Sample workspace” [a1]: reads /home/kim/papers on “Desk”; finds tasks; no schedule; has never run."
TWO = (
    "2 agents:\n- “Sample workspace” [a1]: reads /home/kim/papers; last run [x1] is under way.\n"
    "- “Mail” [a2]: reads Gmail; last run [x2] ended well, Fri 2026-11-20 08:00."
)
STARTED = (
    "Started “Sample workspace” (run [x1]); it has not ended yet. The user will be told here when it ends: do not "
    "wait, poll or start it again. Say so and finish your answer."
)


@pytest.mark.parametrize(
    ("request_", "call"),
    [
        ("run my sample agent", ("run_agent", {"agent": "sample"})),
        ("Please start the agent “Clients and mail”.", ("run_agent", {"agent": "Clients and mail"})),
        ("run the mail agent and wait", ("run_agent", {"agent": "mail", "wait_for_result": 60})),
        ("dry-run my sample agent", ("run_agent", {"agent": "sample", "dry_run": True})),
        ("Starte meinen Beispiel-Agenten", ("run_agent", {"agent": "Beispiel"})),
        ("lance mon agent Clients", ("run_agent", {"agent": "Clients"})),
        ("avvia l'agente Clienti e aspetta", ("run_agent", {"agent": "Clienti", "wait_for_result": 60})),
        ("ejecuta mi agente Clientes", ("run_agent", {"agent": "Clientes"})),
        ("what did it find?", ("view_agent_output", {})),
        ("what did my sample agent find today?", ("view_agent_output", {"agent": "sample", "when": "today"})),
        ("Was hat er gefunden?", ("view_agent_output", {})),
        ("qu'est-ce qu'il a trouvé ?", ("view_agent_output", {})),
        ("cosa ha trovato l'agente Clienti?", ("view_agent_output", {"agent": "Clienti"})),
        ("¿Qué ha encontrado?", ("view_agent_output", {})),
        ("stop my sample agent", ("stop_run", {"run_or_agent": "sample"})),
        ("which agents do I have?", ("list_agents", {})),
        ("Welche Agenten habe ich?", ("list_agents", {})),
    ],
)
def test_a_request_about_an_agent_is_one_call(request_: str, call: tuple[str, Any]) -> None:
    asked = Chat()
    asked.ask(request_)
    assert asked.calls == [call]


@pytest.mark.parametrize(
    ("request_", "call"),
    [
        ("run it", ("run_agent", {"agent": "a1"})),
        ("run it and wait", ("run_agent", {"agent": "a1", "wait_for_result": 60})),
        ("run my agent", ("run_agent", {"agent": "a1"})),
        ("starte ihn und warte", ("run_agent", {"agent": "a1", "wait_for_result": 60})),
        ("lance-le", ("run_agent", {"agent": "a1"})),
        ("stop it", ("stop_run", {"run_or_agent": "a1"})),
        ("stop it and undo what it did", ("stop_run", {"run_or_agent": "a1", "undo": True})),
        ("stopp ihn", ("stop_run", {"run_or_agent": "a1"})),
        ("fermalo", ("stop_run", {"run_or_agent": "a1"})),
        ("every weekday at 8", ("set_up_agent", {"agent": "a1", "schedule": "0 8 * * 1-5"})),
        ("run it every Monday at 7:30", ("set_up_agent", {"agent": "a1", "schedule": "30 7 * * 1"})),
        ("jeden Werktag um 8 Uhr", ("set_up_agent", {"agent": "a1", "schedule": "0 8 * * 1-5"})),
    ],
)
def test_it_is_the_only_agent(request_: str, call: tuple[str, Any]) -> None:
    asked = Chat(list_agents=ONE)
    asked.ask(request_)
    assert asked.calls == [("list_agents", {}), call]


def test_the_agent_that_was_looked_up_is_not_listed_as_well() -> None:
    assert Chat(list_agents=ONE, run_agent=STARTED).ask("run it").startswith("Started “Sample workspace”;")


def test_of_several_agents_it_is_the_one_that_runs_or_was_spoken_of_else_it_asks() -> None:
    asked = Chat(list_agents=TWO, run_agent=STARTED)
    assert asked.ask("run it") == "Which agent do you mean? You have “Sample workspace”, “Mail”."
    asked.ask("stop it")
    assert asked.calls[1] == ("stop_run", {"run_or_agent": "a1"})
    asked.before[-1]["content"] = "“Mail” has ended well."
    asked.ask("run it every day at 9 pm")
    assert asked.calls[1] == ("set_up_agent", {"agent": "a2", "schedule": "0 21 * * *"})


@pytest.mark.parametrize(
    ("said", "cron"),
    [
        ("every weekday at 8", "0 8 * * 1-5"),
        ("werktags um 8 Uhr", "0 8 * * 1-5"),
        ("tous les jours ouvrés à 8h30", "30 8 * * 1-5"),
        ("ogni giorno feriale alle 8", "0 8 * * 1-5"),
        ("cada día laborable a las 8", "0 8 * * 1-5"),
        ("daily", "0 8 * * *"),
        ("täglich um 18:15", "15 18 * * *"),
        ("chaque lundi à 9 heures", "0 9 * * 1"),
        ("ogni domenica alle 20", "0 20 * * 0"),
        ("todos los días a las 7", "0 7 * * *"),
        ("hourly", "0 * * * *"),
        ("every day at 12 am", "0 0 * * *"),
        ("every day at 25", None),
        ("tomorrow at 8", None),
    ],
)
def test_a_schedule_in_words_is_a_cron_expression(said: str, cron: str | None) -> None:
    assert agent_requests.schedule_of(said) == cron


@pytest.mark.parametrize(
    "request_",
    [
        "run to the bank",
        "start the fence",
        "add a task to water the plants every weekday at 8",
        "stop by the office",
    ],
)
def test_what_is_about_no_agent_calls_no_tool_of_agents(request_: str) -> None:
    asked = Chat(list_agents=ONE)
    asked.ask(request_)
    assert not [name for name, _ in asked.calls if "agent" in name or name == "stop_run"]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (STARTED, "Started “Sample workspace”; it has not ended yet. You will be told here when it ends."),
        (
            "“Mail” is running (run [x1], 12 of 40 documents read, started 2 min ago). Nothing new was started. The "
            "user will be told here when it ends.",
            "“Mail” is running (12 of 40 documents read, started 2 min ago). Nothing new was started. You will be told "
            "here when it ends.",
        ),
        (
            "“Mail” has ended well (run [x1]): 2 documents read, 2 new.\nThey wait for the user's review:\n"
            "- Call Ada [t1], todo\n- Call Bo [t2], todo",
            "“Mail” has ended well: 2 documents read, 2 new.\nThey wait for your review:\n- Call Ada, todo\n"
            "- Call Bo, todo",
        ),
        (
            "Failed: there are no agents yet. Offer to set one up.",
            "That did not work: there are no agents yet.",
        ),
        (
            "Failed: its device has never said hello. The user has to start Adiuva on it.",
            "That did not work: its device has never said hello. You have to start Adiuva on it.",
        ),
        (ASKED, "That waits for your yes."),
        (
            "The account's time zone is UTC, their device is in Europe/Rome: ask the user which is theirs.",
            "The account's time zone is UTC, your device is in Europe/Rome.",
        ),
    ],
)
def test_what_a_tool_of_agents_says_is_said_to_the_user(result: str, said: str) -> None:
    assert Chat(run_agent=result).ask("run my sample agent") == said


def test_the_rows_that_an_agent_found_are_bounded() -> None:
    found = "\n".join(f"- Task {number} [t{number}], todo" for number in range(1, 51))
    said = Chat(view_agent_output=f"“Mail” has ended well (run [x1]): 50 new.\n{found}\nand 7 more.").ask(
        "what did it find?"
    )
    assert said.count("\n- Task ") == 20 and said.endswith("- and 37 more")


# ── The end of a run ────────────────────────────────────────────────────────────────────────────────────

_SAID = "[From the app, not from the user: a run that the user had started here has ended. What it brought is {}.]"
_FACTS = "The agent “Mail” has ended: Success.\nThe user had said: run Mail\nNew records: 2 tasks\n- tasks: Call Ada"
_NOTE = f"{_SAID.format('below')}\n[begin run data-1]\n{_FACTS}\n[end run data-1]"
_TOLD = "“Mail” has ended (success): new for your review: 2 tasks."


def said(*messages: tuple[str, str]) -> str:
    return chat.answer([{"role": role, "content": text} for role, text in messages], []).text


def test_the_end_of_a_run_is_told_alone_and_beside_an_answer_once() -> None:
    turn = f"[turn app-1]\nNow: Fri 2026-11-20 09:00 (UTC).\n[begin context data-2]\n{_FACTS}\n[end context data-2]"
    assert said(("user", f"{turn}\n[turn ends app-1]\n\n{_SAID.format('above')}")) == _TOLD
    both = said(("user", f"hello\n\n{_NOTE}"))
    assert both.startswith(f"{_TOLD}\n\n") and said(("user", "hello")) in both
    assert said(("user", "hello"), ("assistant", "Hello."), ("user", _NOTE)) == _TOLD
    again = said(("user", f"hello\n\n{_NOTE}"), ("assistant", both), ("user", "hello"))
    assert again == said(("user", "hello"))
    failed = _NOTE.replace("2 tasks", "none").replace("- tasks: Call Ada", "Problem: no such folder.")
    assert said(("user", failed)) == (
        "“Mail” has ended (success): it found nothing new. A problem: no such folder."
    )


def test_an_end_that_the_answer_tells_anyway_is_not_told_beside_it() -> None:
    other = _NOTE.replace("“Mail”", "“Clients”")
    told = Chat(view_agent_output="“Mail” has ended well (run [x1]): 2 new.").ask(
        f"what did the Mail agent find?\n\n{_NOTE}\n\n{other}"
    )
    assert (
        told
        == "“Clients” has ended (success): new for your review: 2 tasks.\n\n“Mail” has ended well: 2 new."
    )
