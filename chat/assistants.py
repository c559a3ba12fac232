"""The assistants: the supervisors Home and Floating, and the specialists that they delegate to.

A tool costs some sixty tokens in every request. So a supervisor has only the tools that most requests need, and
Floating those for the row that its user looks at; specialists have the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal, cast, get_args

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, tool

from chat.agent_loop import OutputHooks, run_agent_loop
from chat.models import AssistantKind
from chat.prompts import with_turn_prompt
from chat.tool_calls import Assistant
from chat.tools import (
    AGENT_TOOLS,
    CLIENTS,
    DELETE,
    DEVICE_TOOLS,
    MEMORY_TOOLS,
    NOTES,
    PROJECTS,
    READING_AGENT_TOOLS,
    TASKS,
    TIMELINES,
)
from chat.tools.deleting import delete
from chat.turn_context import TurnContext

Specialist = Literal["tasks", "projects", "timelines", "notes", "agents"]

SPECIALISTS: Final[dict[Specialist, Assistant]] = {
    "tasks": Assistant("tasks", [*TASKS, *PROJECTS[:1]]),
    "projects": Assistant("projects", [*PROJECTS, *CLIENTS]),
    "timelines": Assistant("timelines", [*TIMELINES, *PROJECTS[:1]]),
    "notes": Assistant("notes", [*NOTES, *PROJECTS[:1]]),
    "agents": Assistant("agents", AGENT_TOOLS),
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

TOOLS: Final[tuple[BaseTool, ...]] = (*DEVICE_TOOLS, *MEMORY_TOOLS, *AGENT_TOOLS, delete, delegate)
_SPECIALISTS_OWN: Final = {"get_project", *(tool.name for tool in DELETE.values())}
# The agents' tools cost as much as all tools of tasks, so Home has them itself only where the user may speak of agents.
_OF_AGENTS: Final = {tool.name for tool in AGENT_TOOLS if tool not in AGENT_TOOLS[:1]}


def _home(names: set[str]) -> Assistant:
    """Return Home without listing the tools of these names; calls of them are carried out all the same."""
    return Assistant(
        "home",
        [tool for tool in TOOLS if tool.name not in names],
        unlisted=[tool for tool in TOOLS if tool.name in names],
    )


HOME: Final = _home(_SPECIALISTS_OWN | _OF_AGENTS)
HOME_WITH_AGENTS: Final = _home(_SPECIALISTS_OWN)
_FLOATING_TOOLS: Final[dict[str, tuple[BaseTool, ...]]] = {
    "tasks": (*TASKS, PROJECTS[0]),
    "projects": (*PROJECTS, TASKS[0], TASKS[1]),
    "notes": (*NOTES, PROJECTS[0], TASKS[1]),
    "timelines": (*TIMELINES, PROJECTS[0], TASKS[1]),
}
# For a turn without a user's message: it deletes nothing, and starts and changes no agent.
FOLLOW_UP: Final = Assistant(
    "home",
    [
        tool
        for tool in (*DEVICE_TOOLS, *READING_AGENT_TOOLS)
        if (tool.metadata or {}).get("action") != "delete"
    ],
)
# Offered beside any row; for the workspace as a whole, these are the tools that list and create.
_ANYWHERE: Final = (TASKS[0], TASKS[1], PROJECTS[0], TIMELINES[0], NOTES[0])


def _floating(tools: Sequence[BaseTool]) -> Assistant:
    listed = [tool for tool in tools if tool.name not in _SPECIALISTS_OWN]
    listed += [delete, *MEMORY_TOOLS[:1], *READING_AGENT_TOOLS, delegate]
    names = {tool.name for tool in listed}
    return Assistant("floating", listed, unlisted=[tool for tool in TOOLS if tool.name not in names])


FLOATING: Final[dict[str, Assistant]] = {table: _floating(tools) for table, tools in _FLOATING_TOOLS.items()}
FLOATING_ANYWHERE: Final = _floating(_ANYWHERE)


def supervisor(kind: AssistantKind, table: str | None, *, with_agents: bool = False) -> Assistant:
    """Return the assistant that answers. `table`: that of the row that a floating request is about."""
    if kind == AssistantKind.HOME:
        return HOME_WITH_AGENTS if with_agents else HOME
    return FLOATING.get(table or "", FLOATING_ANYWHERE)


assert set(SPECIALISTS) == set(get_args(Specialist))
