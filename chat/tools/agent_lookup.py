"""Finds the agent or run that a model means by a name or a label."""

from __future__ import annotations

import re
import uuid
from typing import Final

from langchain_core.tools import ToolException

from adiuva.core import db
from agents import run_reports
from agents.run_reports import OpenedAgent, RunReport
from chat.agent_tool_context import AgentWork
from chat.device_session import DeviceSession
from chat.tools import agent_texts
from chat.tools.agent_texts import agent_label
from chat.untrusted_text import one_line

MOST_LISTED: Final = 30
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


async def find_agent(
    work: AgentWork, session: DeviceSession, wanted: str
) -> tuple[OpenedAgent, list[OpenedAgent]]:
    """Return the agent that is meant, and all of the user's. Raises ToolException if none or several fit."""
    mine = await db.run(run_reports.agents_of, work.user_id)
    if not mine:
        raise ToolException("Failed: there are no agents yet. Offer to set one up.")
    key, said = _id_of(session, wanted), plain_name(wanted)
    found = [each for each in mine if str(each.id) == key] or [
        each for each in mine if plain_name(each.name) == said
    ]
    found = found or [each for each in mine if said and said in plain_name(each.name)]
    if len(found) > 1:
        listed = ", ".join(f"{agent_label(session, each)} {each.agent.get_type_display()}" for each in found)
        raise ToolException(f"Failed: {len(found)} agents are called so: {listed}. Ask which.")
    if not found:
        listed = agent_texts.names_text(session, mine[:MOST_LISTED])
        there = "There is only" if len(mine) == 1 else "There are"
        raise ToolException(f"Failed: there is no agent “{one_line(wanted)}”. {there} {listed}.")
    return found[0], mine


def _id_of(session: DeviceSession, wanted: str) -> str:
    found = session.aliases.find(wanted)
    return found[1] if found else wanted.strip(" []").lower()


def plain_name(name: str) -> str:
    return " ".join(name.casefold().split()).strip("“”\"'")


def run_id_of(session: DeviceSession, wanted: str) -> uuid.UUID | None:
    key = _id_of(session, wanted)
    return uuid.UUID(key) if _UUID.fullmatch(key) else None


async def read_report(work: AgentWork, run_id: uuid.UUID) -> RunReport:
    report = await db.run(run_reports.read, work.user_id, run_id)
    if report is None:
        raise ToolException("Failed: there is no such run any more.")
    return report
