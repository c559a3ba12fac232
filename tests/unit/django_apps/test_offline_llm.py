"""Tests the offline model with the assistants' own tools and the texts of their results."""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from adiuva import llm
from adiuva.core.prompt_delimiting import delimit_untrusted
from adiuva.offline_llm import chat
from chat import prompts
from chat.assistants import supervisor
from chat.deferred_calls import DeferredCall
from chat.memory_context import MemoryContext
from chat.models import AssistantKind
from chat.user_intent import UserWords
from memory.models import Tier
from memory.recall import RecalledEntry

ZURICH = ZoneInfo("Europe/Zurich")
FRIDAY = datetime(2026, 11, 20, 0, 30, tzinfo=ZURICH)  # in UTC it is still Thursday
TASKS = """3 tasks:
- Call Ada [t1], todo, high priority, due Fri 2026-11-20, project Harbour Café website [p1]
- Send the offer to Bo [t2], in progress, medium priority
  | - Paint the fence [t9], todo
- Call Bo [t3], todo
"""
HARBOUR = "1 project:\n- Harbour Café website [p1], active, client Harbour Café [c1]\n  | A small site"
MADE = "Created the task Call Ada [t5], todo, due Sat 2026-11-21, project Harbour [p1]."
UPDATED = "Updated the task Call Ada [t1], done."
ASKED = (
    "Failed: not done: it needs the user's plain yes (Delete the task “Call Ada (old)”). The user is asked at the end "
    "of your answer: do not ask as well, and do not call it again in this turn."
)


def shown(call: DeferredCall) -> str:
    return call.shown_with(lambda name, arguments: (name, arguments))


class Chat:
    """A conversation as the assistants have it: their tools, and a tail before the last message."""

    def __init__(self, *without: str, **results: str) -> None:
        self.without = without
        self.results, self.before = results, list[dict[str, Any]]()
        self.calls: list[tuple[str, Any]] = []
        self.rounds = 0

    def ask(self, text: str, **tail: Any) -> str:
        said = prompts.turn_prompt(now=FRIDAY, locale="en-GB", **tail)
        messages = [{"role": "system", "content": prompts.system_prompt("home").text}, *self.before]
        messages += [{"role": "user", "content": prompts.with_turn_prompt(said, text)}]
        self.calls, self.rounds = [], 0
        own = [message["content"] for message in self.before if message["role"] == "user"]
        is_about_agents = UserWords([*own, text]).may_be_about_agents
        home = supervisor(AssistantKind.HOME, None, with_agents=is_about_agents)
        every = home.schemas
        schemas = [schema for schema in every if schema["function"]["name"] not in self.without]
        while tool_calls := (answer := chat.answer(messages, schemas)).tool_calls:
            self.rounds += 1
            assert self.rounds < 5, "the model calls tools without end"
            calls = [
                llm.ToolCall(f"c{self.rounds}-{place}", tool_call.name, json.dumps(tool_call.arguments))
                for place, tool_call in enumerate(tool_calls)
            ]
            messages.append({"role": "assistant", "content": None, "tool_calls": [c.wire() for c in calls]})
            for call, tool_call in zip(calls, tool_calls, strict=True):
                assert not home.call_problem(tool_call.name, tool_call.arguments)
                self.calls.append((tool_call.name, tool_call.arguments))
                result = self.results.get(tool_call.name, "No rows match.")
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        self.before += [{"role": "user", "content": text}, {"role": "assistant", "content": answer.text}]
        return answer.text


def looking_at(kind: str, **row: Any) -> str:
    return f"The user looks at this {kind}:\n{delimit_untrusted(kind, json.dumps(row))}"


@pytest.mark.parametrize(
    ("request_", "calls"),
    [
        ("list my tasks", [("list_tasks", {})]),
        ("show me the open tasks", [("list_tasks", {"status": "open"})]),
        ("which tasks are in progress?", [("list_tasks", {"status": "in_progress"})]),
        ("list my tasks and projects", [("list_tasks", {}), ("list_projects", {})]),
        ("show all my projects", [("list_projects", {"archived": True})]),
        ("what is due today?", [("list_tasks", {"status": "due"})]),
        ("what is overdue?", [("list_tasks", {"status": "open", "due_to": "2026-11-19"})]),
        (
            "tasks due this week",
            [("list_tasks", {"status": "open", "due_from": "2026-11-16", "due_to": "2026-11-22"})],
        ),
        (
            "what is due tomorrow?",
            [("list_tasks", {"status": "open", "due_from": "2026-11-21", "due_to": "2026-11-21"})],
        ),
        ("search my notes for the harbour", [("list_notes", {"search": "the harbour"})]),
        (
            "remember that I bill monthly",
            [("remember", {"content": "I bill monthly"})],
        ),
        (
            "add a task to call Ada tomorrow at 2pm, high priority",
            [
                (
                    "create_task",
                    {
                        "title": "Call Ada",
                        "status": "todo",
                        "priority": "high",
                        "due_date": "2026-11-21T14:00:00",
                    },
                )
            ],
        ),
        (
            "create an urgent task: pay the rent by Monday",
            [
                (
                    "create_task",
                    {"title": "Pay the rent", "status": "todo", "priority": "high", "due_date": "2026-11-23"},
                )
            ],
        ),
        ("create a note Ideas: paint it", [("create_note", {"title": "Ideas", "content": "paint it"})]),
        ("create a project Harbour map", [("create_project", {"name": "Harbour map"})]),
    ],
)
def test_a_plain_request_is_one_round_of_the_right_calls(request_: str, calls: list[tuple[str, Any]]) -> None:
    asked = Chat()
    asked.ask(request_)
    assert (asked.calls, asked.rounds) == (calls, 1)


def test_a_list_is_told_with_tags_in_place_of_ids_and_with_what_was_left_out() -> None:
    left = "27 more tasks are not shown; narrow the list with project_id, status or search."
    said = Chat(list_tasks=TASKS + left).ask("list my tasks")
    assert said == (
        "3 tasks:\n- Call Ada, todo, high priority, due Fri 2026-11-20, project Harbour Café website\n"
        "- Send the offer to Bo, in progress, medium priority\n- Call Bo, todo\n27 more tasks are not shown.\n"
        "<task>[t1,t2,t3]</task>"
    )


def test_two_lists_have_a_tag_each() -> None:
    said = Chat(list_tasks=TASKS, list_projects=HARBOUR).ask("list my tasks and projects")
    assert "<task>[t1,t2,t3]</task>\n\n1 project:" in said and said.endswith("<project>[p1]</project>")


@pytest.mark.parametrize(
    ("request_", "results", "said"),
    [
        ("how many tasks do I have?", {"list_tasks": TASKS}, "You have 3 tasks."),
        ("how many open tasks?", {"list_tasks": "1 task:\n- A [t1]"}, "You have 1 open task."),
        ("count my projects", {"list_projects": "No projects match."}, "You have no projects."),
        (
            "how many tasks and milestones do I have?",
            {
                "list_tasks": "At least 1,200 tasks:\n- A [t1]",
                "list_timelines": "2 timeline entries:\n- B [e1]",
            },
            "You have at least 1,200 tasks and 2 timeline entries.",
        ),
    ],
)
def test_a_count_is_a_sentence(request_: str, results: dict[str, str], said: str) -> None:
    assert Chat(**results).ask(request_) == said


def test_an_empty_list_is_said_in_words() -> None:
    assert Chat(list_tasks="No tasks match.").ask("list my tasks") == "I found no tasks."


def test_what_was_made_is_told_as_the_device_has_it() -> None:
    asked = Chat(create_task=MADE)
    assert asked.ask("add a task to call Ada tomorrow") == (
        "Created the task Call Ada, todo, due Sat 2026-11-21, project Harbour. <task>[t5]</task>"
    )
    assert asked.rounds == 1


def test_a_named_project_is_looked_up_first() -> None:
    asked = Chat(
        list_projects=HARBOUR, create_task=MADE, create_timeline="Created the timeline entry X [e1]."
    )
    asked.ask("add a task to review the copy for the Harbour Café project by 3 December")
    assert asked.calls == [
        ("list_projects", {"search": "Harbour Café"}),
        (
            "create_task",
            {"project_id": "p1", "status": "todo", "title": "Review the copy", "due_date": "2026-12-03"},
        ),
    ]
    asked.ask("add a milestone Launch on 3 April to the project Harbour Café")
    assert asked.calls[1] == (
        "create_timeline",
        {"project_id": "p1", "title": "Launch", "date": "2027-04-03"},
    )


def test_nothing_is_made_in_a_project_that_is_not_there() -> None:
    asked = Chat(list_projects="No projects match.")
    assert "added nothing" in asked.ask("add a task to paint to the Fence project")
    assert [name for name, _ in asked.calls] == ["list_projects"]


@pytest.mark.parametrize(
    ("request_", "search", "call", "said"),
    [
        ("mark call Ada as done", "call Ada", {"status": "done"}, "Marked “Call Ada” as done."),
        ("Call Ada is done", "Call Ada", {"status": "done"}, "Marked “Call Ada” as done."),
        (
            "rename the task call Ada to Phone Ada",
            "call Ada",
            {"title": "Phone Ada"},
            "“Call Ada” is now called",
        ),
        (
            "move call Ada to Monday",
            "call Ada",
            {"due_date": "2026-11-23"},
            "“Call Ada” is now due Mon 2026-11-23.",
        ),
        (
            "set the priority of call Ada to low",
            "call Ada",
            {"priority": "low"},
            "“Call Ada” has low priority now.",
        ),
    ],
)
def test_a_change_finds_the_row_then_changes_it(
    request_: str, search: str, call: dict[str, str], said: str
) -> None:
    asked = Chat(list_tasks=TASKS, update_task=UPDATED)
    told = asked.ask(request_)
    assert asked.calls == [("list_tasks", {"search": search}), ("update_task", {"task_id": "t1", **call})]
    assert told.startswith(said) and told.endswith("<task>[t1]</task>")


def test_where_several_rows_fit_it_asks_which_one() -> None:
    asked = Chat(list_tasks=TASKS)
    assert asked.ask("delete the task call") == (
        "Which one do you mean: “Call Ada”, “Call Bo”? <task>[t1,t3]</task>"
    )
    assert asked.rounds == 1


def test_a_row_that_stands_in_the_text_of_another_is_no_row() -> None:
    asked = Chat(list_tasks=TASKS)
    assert "changed nothing" in asked.ask("delete the task paint the fence")


def test_all_are_changed_in_one_round() -> None:
    asked = Chat(list_tasks=TASKS, update_task=UPDATED)
    said = asked.ask("mark all my tasks as done")
    assert asked.calls[0] == ("list_tasks", {"status": "open"}) and asked.rounds == 2
    assert [given["task_id"] for _, given in asked.calls[1:]] == ["t1", "t2", "t3"]
    assert said == "Marked 3 tasks as done. <task>[t1,t2,t3]</task>"


def test_a_delete_that_needs_a_yes_is_asked_for_and_then_made_with_exactly_these_arguments() -> None:
    asked = Chat(list_tasks=TASKS, delete=ASKED)
    assert asked.ask("delete the task call Ada") == "That waits for your yes."
    wish = shown(DeferredCall("delete", {"id": "t1"}, "Delete the task “x: delete {”"))
    asked.results["delete"] = "Deleted the task Call Ada [t1]."
    assert asked.ask("yes", confirmed=[wish]) == "Deleted the task Call Ada."
    assert (asked.calls, asked.rounds) == ([("delete", {"id": "t1"})], 1)


def test_a_yes_to_many_changes_makes_them_at_once_and_tells_how_many() -> None:
    asked = Chat(update_task="Updated the task Call Ada [t1], done, project [p1].")
    wishes = [
        shown(DeferredCall("update_task", {"task_id": f"t-{n}", "status": "done"}, "Update the task “x”"))
        for n in range(8)
    ]
    assert asked.ask("yes", confirmed=wishes) == "Changed 8 tasks."
    assert (len(asked.calls), asked.rounds) == (8, 1)
    assert asked.ask("yes", confirmed=wishes[:1]) == "Updated the task Call Ada, done. <task>[t1]</task>"


def test_a_yes_to_nothing_does_nothing() -> None:
    asked = Chat()
    assert "nothing that waits for your yes" in asked.ask("yes") and asked.calls == []


def test_a_no_on_the_device_is_taken() -> None:
    asked = Chat(
        list_tasks=TASKS, delete="Failed: the user said no. Do not try it again, nor in another way."
    )
    assert asked.ask("delete the task call Ada") == "As you wish: nothing was changed."


@pytest.mark.parametrize("request_", ["list my tasks", "mark call Ada as done", "how many tasks do I have?"])
def test_a_device_that_is_away_is_said_to_be_that(request_: str) -> None:
    asked = Chat(list_tasks="Failed: the device is offline, so nothing was read or changed.")
    assert asked.ask(request_) == (
        "That did not work: the device is offline, so nothing was read or changed."
    )
    assert asked.rounds == 1


def test_this_is_the_row_before_the_user() -> None:
    scope = looking_at("task", id="t7", title="Send [t8] it", status="todo", dueDate=1795129200000)
    asked = Chat(update_task=UPDATED, add_task_comment="Added the comment [k1], by Adiuva.")
    said = asked.ask("mark this as done", scope=scope)
    assert asked.calls == [("update_task", {"task_id": "t7", "status": "done"})]
    assert said.endswith("<task>[t7]</task>")
    # Midnight of the 20th in Zurich is the 19th in UTC.
    assert "todo, due 2026-11-20" in asked.ask("what is this?", scope=scope) and asked.calls == []
    asked.ask("add a comment: she is away", scope=scope)
    assert asked.calls == [("add_task_comment", {"task_id": "t7", "content": "she is away"})]


def test_what_is_added_beside_a_project_belongs_to_it() -> None:
    scope = looking_at("project", id="p1", name="Harbour Café website")
    asked = Chat(create_task=MADE, list_tasks=TASKS)
    asked.ask("add a task to call Bo", scope=scope)
    assert asked.calls[0][1]["project_id"] == "p1"
    asked.ask("list the tasks of this project", scope=scope)
    assert asked.calls == [("list_tasks", {"project_id": "p1"})]


def test_another_kind_than_the_one_before_the_user_is_not_meant_by_the() -> None:
    asked = Chat()
    said = asked.ask("delete the task", scope=looking_at("note", id="n1", title="Ideas"))
    assert said == "Which task do you mean?" and asked.calls == []


def test_it_is_the_row_that_the_last_answer_showed() -> None:
    asked = Chat(create_task=MADE, update_task=UPDATED)
    asked.ask("add a task to call Ada")
    assert asked.ask("mark it as done") == "Marked “Call Ada” as done. <task>[t5]</task>"
    assert asked.calls == [("update_task", {"task_id": "t5", "status": "done"})]


def test_a_kept_note_is_said_to_be_one_where_there_is_no_memory() -> None:
    asked = Chat("remember", create_note="Created the note I bill monthly [n1], 14 characters.")
    said = asked.ask("remember that I bill monthly")
    assert "as a note" in said and said.endswith("<note>[n1]</note>")


def remembered() -> str:
    """The lines as a turn writes them."""
    nothing: Any = None
    turn = MemoryContext(request=nothing, claimed=nothing, model=nothing, zone=ZURICH)
    entries = [
        (Tier.CORE, "Kim", "name"),
        (Tier.CORE, "90 francs (plus tax)", "rate"),
        (Tier.ASSOCIATIVE, "I bill monthly", None),
        (Tier.ASSOCIATIVE, "My accountant (since 2020) is Ada", None),
        (Tier.ASSOCIATIVE, "My tasks due today are in the red book", None),
        (Tier.EPISODIC, "how do I bill, and how do I paint a fence?", None),
    ]
    known = [
        RecalledEntry(uuid.uuid4(), tier, said, key, FRIDAY, began_at=FRIDAY) for tier, said, key in entries
    ]
    return "\n".join(f"- {turn.entry_line(one)}" for one in known)


KNOWN = """This is what I know about you:
- Name: Kim
- Rate: 90 francs (plus tax)
- You told me: I bill monthly
- You told me: My accountant (since 2020) is Ada
- You told me: My tasks due today are in the red book"""


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ("how do I bill?", "Rate: 90 francs (plus tax)\nYou told me: I bill monthly"),
        ("Can you tell me my rate?", "Rate: 90 francs (plus tax)"),
        ("who is my accountant?", "You told me: My accountant (since 2020) is Ada"),
        ("what do you know about me?", KNOWN),
        ("Was weißt du über mich?", KNOWN),
        ("¿Qué sabes de mí?", KNOWN),
        ("Wie heiße ich?", "Name: Kim"),
        ("come mi chiamo?", "Name: Kim"),
    ],
)
def test_what_the_user_asks_about_themself_is_told_from_what_is_remembered(request_: str, said: str) -> None:
    asked = Chat()
    assert (asked.ask(request_, memory=remembered()), asked.calls) == (said, [])


@pytest.mark.parametrize(
    "request_", ["how do I paint a fence?", "how do I add a task?", "who bills monthly?"]
)
def test_what_nothing_remembered_answers_is_not_understood(request_: str) -> None:
    assert chat.WHAT_IT_IS in Chat().ask(request_, memory=remembered())


@pytest.mark.parametrize(
    "request_", ["what are my tasks?", "which of my tasks do I bill?", "what is due today?"]
)
def test_the_rows_of_the_device_come_before_what_is_remembered(request_: str) -> None:
    asked = Chat(list_tasks=TASKS)
    said = asked.ask(request_, memory=remembered())
    assert asked.rounds == 1 and said.startswith("3 tasks:")


def test_that_nothing_is_known_of_the_user_is_said() -> None:
    assert Chat().ask("what do you know about me?").startswith("I know nothing about you yet.")


def test_a_note_is_found_and_read() -> None:
    asked = Chat(
        list_notes="1 note:\n- Harbour colours [n1], 12 characters",
        get_note="The note Harbour colours [n1]. Its content, each line behind a bar:\n| # Blue\n| and white",
    )
    assert asked.ask("read the note about harbour colours") == (
        "The note Harbour colours. It says:\n  # Blue\n  and white\n<note>[n1]</note>"
    )


def test_a_conversation_is_summed_up_below_what_was_known() -> None:
    known = delimit_untrusted("summary so far", "- The user said: I bill monthly")
    said = delimit_untrusted("conversation", "user: call me Kim\n\nassistant: Gladly.\n\n")
    messages = [
        {"role": "system", "content": prompts.system_prompt("summary").text},
        {"role": "user", "content": f"{known}\n\n{said}"},
    ]
    assert chat.answer(messages, []).text == "- The user said: I bill monthly\n- The user said: call me Kim"


@pytest.mark.parametrize(
    "unit",
    [
        "mark ",
        "move to ",
        "all of my ",
        "[t",
        "add task in the ",
        "is done ",
        "list tasks ",
        "\n| ",
        "how i ",
    ],
)
def test_a_long_hostile_request_is_answered(unit: str) -> None:
    Chat(list_tasks=TASKS).ask(unit * 2_000, memory=remembered())
