"""The assistants: the supervisors Home and Floating, and the specialists that they delegate to."""

from __future__ import annotations

from typing import Annotated, Final, Literal, cast, get_args

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, tool

from chat.agent_loop import Assistant, OutputHooks, TurnContext, run_agent_loop
from chat.models import AssistantKind
from chat.prompts import system_prompt, with_turn_prompt
from chat.tools import CLIENTS, DEVICE_TOOLS, MEMORY_TOOLS, NOTES, PROJECTS, TASKS, TIMELINES

Specialist = Literal["tasks", "projects", "timelines", "notes"]

SPECIALISTS: Final[dict[Specialist, Assistant]] = {
    "tasks": Assistant(system_prompt("tasks"), [*TASKS, *PROJECTS[:1]]),
    "projects": Assistant(system_prompt("projects"), [*PROJECTS, *CLIENTS]),
    "timelines": Assistant(system_prompt("timelines"), [*TIMELINES, *PROJECTS[:1]]),
    "notes": Assistant(system_prompt("notes"), [*NOTES, *PROJECTS[:1]]),
}


@tool("task")
async def delegate(
    agent: Annotated[Specialist, "who is to do it"],
    request: Annotated[str, "what is to be done, with all that one must know to do it: names, ids, dates"],
    config: RunnableConfig,
) -> str:
    """Hand long or wide work to a specialist, who works through it alone and reports. For one or two calls use the
    tools yourself."""
    shared = config["configurable"]
    messages: list[BaseMessage] = [
        SystemMessage(SPECIALISTS[agent].prompt.text),
        HumanMessage(with_turn_prompt(shared["turn_prompt"], request)),
    ]
    return await run_agent_loop(
        SPECIALISTS[agent], messages, cast(TurnContext, shared["context"]), OutputHooks()
    )


delegate.metadata = {"action": "task", "label": "Working through it"}

TOOLS: Final[tuple[BaseTool, ...]] = (*DEVICE_TOOLS, *MEMORY_TOOLS, delegate)
SUPERVISORS: Final[dict[AssistantKind, Assistant]] = {
    AssistantKind.HOME: Assistant(system_prompt("home"), TOOLS),
    AssistantKind.FLOATING: Assistant(system_prompt("floating"), TOOLS),
}

assert set(SPECIALISTS) == set(get_args(Specialist))
