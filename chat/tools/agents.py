"""Tools that list, run, read, set up and stop the user's agents.

The services of `agents` do the work. A text that was read must not start, change or schedule anything: a run starts
unasked only if the user's own words ask for it, and whatever changes an agent waits for a yes (chat.approvals).
"""

from __future__ import annotations

import uuid
from typing import Final

from langchain_core.runnables import RunnableConfig

from adiuva.core import db
from agents import run_reports
from agents.models import Run
from agents.run_reports import OpenedAgent
from chat.agent_tool_context import AGENTS, agent_work_of
from chat.device_session import device_session_of
from chat.tools import agent_texts
from chat.tools.agent_lookup import MOST_LISTED, plain_name
from chat.tools.agent_runs import run_agent, stop_run, view_agent_output
from chat.tools.agent_set_up import set_up_agent
from chat.tools.base import OrNull, assistant_tool


@assistant_tool(AGENTS, "select", "Looking at your agents")
async def list_agents(config: RunnableConfig, search: str | OrNull = None) -> str:
    """List the agents that read folders and mailboxes for the user."""
    work, session = agent_work_of(config), device_session_of(config)
    found = await db.run(_listed, work.user_id, plain_name(search or ""))
    if not found:
        return "No agents match." if search else "There are no agents yet. Offer to set one up."
    shown = found[:MOST_LISTED]
    lines = [
        agent_texts.agent_line(session, opened, last, device=device, full=len(found) <= 3)
        for opened, last, device in shown
    ]
    if left := len(found) - len(shown):
        lines.append(f"and {left} more; narrow the list with search.")
    return "\n".join([f"{len(found)} agent{'' if len(found) == 1 else 's'}:", *lines])


def _listed(user_id: uuid.UUID, search: str) -> list[tuple[OpenedAgent, Run | None, str]]:
    mine = [opened for opened in run_reports.agents_of(user_id) if search in plain_name(opened.name)]
    refs = [opened.id for opened in mine]
    last = Run.objects.of(user_id).filter(agent_ref__in=refs).order_by("agent_ref", "-created_at")
    by_agent = {run.agent_ref: run for run in last.distinct("agent_ref")}
    ids = {opened.agent.device_id for opened in mine}
    devices = {device_id: run_reports.device_name(user_id, device_id) for device_id in ids}
    return [(opened, by_agent.get(opened.id), devices[opened.agent.device_id]) for opened in mine]


AGENT_TOOLS: Final = (list_agents, run_agent, view_agent_output, set_up_agent, stop_run)
READING_AGENT_TOOLS: Final = (list_agents, view_agent_output)
