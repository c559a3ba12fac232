"""The assistants: the supervisors Home and Floating, and the specialists that they delegate to.

A tool costs some sixty tokens in every request, so a supervisor has those that most requests need, Floating those of
what its user looks at. What is rare is a specialist's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal, cast, get_args

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, tool

from chat.agent_loop import Assistant, OutputHooks, TurnContext, run_agent_loop
from chat.models import AssistantKind
from chat.prompts import system_prompt, with_turn_prompt
from chat.tools import CLIENTS, DELETE, DEVICE_TOOLS, MEMORY_TOOLS, NOTES, PROJECTS, TASKS, TIMELINES
from chat.tools.deleting import delete

Specialist = Literal["tasks", "projects", "timelines", "notes"]

SPECIALISTS: Final[dict[Specialist, Assistant]] = {
    "tasks": Assistant(system_prompt("tasks"), [*TASKS, *PROJECTS[:1]]),
    "projects": Assistant(system_prompt("projects"), [*PROJECTS, *CLIENTS]),
    "timelines": Assistant(system_prompt("timelines"), [*TIMELINES, *PROJECTS[:1]]),
    "notes": Assistant(system_prompt("notes"), [*NOTES, *PROJECTS[:1]]),
}


@tool("ask_specialist")
async def delegate(
    agent: Specialist,
    request: Annotated[str, "what to do, with all names, labels and dates"],
    config: RunnableConfig,
) -> str:
    """Hand long work, or what you have no tool for, to a specialist."""
    shared = config["configurable"]
    messages: list[BaseMessage] = [
        SystemMessage(SPECIALISTS[agent].prompt.text),
        HumanMessage(with_turn_prompt(shared["turn_prompt"], request)),
    ]
    return await run_agent_loop(
        SPECIALISTS[agent], messages, cast(TurnContext, shared["context"]), OutputHooks()
    )


delegate.metadata = {"action": "task", "label": "Working through it"}

TOOLS: Final[tuple[BaseTool, ...]] = (*DEVICE_TOOLS, *MEMORY_TOOLS, delete, delegate)
_SPECIALISTS_OWN: Final = {"get_project", *(tool.name for tool in DELETE.values())}
_OF_HOME: Final = [tool for tool in TOOLS if tool.name not in _SPECIALISTS_OWN]
HOME: Final = Assistant(
    system_prompt("home"), _OF_HOME, unlisted=[tool for tool in TOOLS if tool.name in _SPECIALISTS_OWN]
)
_FLOATING_TOOLS: Final[dict[str, tuple[BaseTool, ...]]] = {
    "tasks": (*TASKS, PROJECTS[0]),
    "projects": (*PROJECTS, TASKS[0], TASKS[1]),
    "notes": (*NOTES, PROJECTS[0], TASKS[1]),
    "timelines": (*TIMELINES, PROJECTS[0], TASKS[1]),
}
# Beside any row; and for the workspace as a whole, what lists and what creates.
_ANYWHERE: Final = (TASKS[0], TASKS[1], PROJECTS[0], TIMELINES[0], NOTES[0])


def _floating(tools: Sequence[BaseTool]) -> Assistant:
    listed = [tool for tool in tools if tool.name not in _SPECIALISTS_OWN]
    listed += [delete, *MEMORY_TOOLS[:1], delegate]
    names = {tool.name for tool in listed}
    return Assistant(
        system_prompt("floating"), listed, unlisted=[tool for tool in TOOLS if tool.name not in names]
    )


FLOATING: Final[dict[str, Assistant]] = {table: _floating(tools) for table, tools in _FLOATING_TOOLS.items()}
FLOATING_ANYWHERE: Final = _floating(_ANYWHERE)


def supervisor(kind: AssistantKind, table: str | None) -> Assistant:
    """The assistant that answers; `table`: of the row that a floating request is about."""
    return HOME if kind == AssistantKind.HOME else FLOATING.get(table or "", FLOATING_ANYWHERE)


assert set(SPECIALISTS) == set(get_args(Specialist))
