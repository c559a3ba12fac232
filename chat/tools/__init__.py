"""The tools: what an assistant can do with the user's rows, their agents, and the memory. Static LangChain tools, built
at import.

A tool finds its device session in the config it is called with (chat.device_session). Its metadata describes it:
`table`, `action`, `key` (the argument that names the row), `label` (shown to people).
"""

from __future__ import annotations

import os

# A user's rows must not leave for a tracing service because a variable is set on the machine. Our own tools call no
# callbacks, but others may join them; LangChain looks at these once, when it first calls one.
os.environ |= dict.fromkeys(
    (
        "LANGSMITH_TRACING",
        "LANGSMITH_TRACING_V2",
        "LANGCHAIN_TRACING",
        "LANGCHAIN_TRACING_V2",
        "LANGCHAIN_HANDLER",
    ),
    "false",
)

from chat.tools.agents import AGENT_TOOLS, READING_AGENT_TOOLS
from chat.tools.clients import CLIENTS
from chat.tools.deleting import DELETE, present_call, resolve_call
from chat.tools.memory import MEMORY_TOOLS
from chat.tools.notes import NOTES
from chat.tools.projects import PROJECTS
from chat.tools.tasks import TASKS
from chat.tools.timelines import TIMELINES

__all__ = [
    "AGENT_TOOLS",
    "CLIENTS",
    "DELETE",
    "DEVICE_TOOLS",
    "MEMORY_TOOLS",
    "NOTES",
    "PROJECTS",
    "READING_AGENT_TOOLS",
    "TASKS",
    "TIMELINES",
    "present_call",
    "resolve_call",
]

DEVICE_TOOLS = (*TASKS, *PROJECTS, *TIMELINES, *NOTES, *CLIENTS)
