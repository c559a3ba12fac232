"""Tools for the user's clients."""

from __future__ import annotations

from typing import Final

from langchain_core.runnables import RunnableConfig

from chat.device_session import device_session_of
from chat.tools import base, formatting
from chat.tools.base import SearchWords, assistant_tool

_MAX_ROWS: Final = 500


@assistant_tool("clients", "select", "Looking at your clients")
async def list_clients(config: RunnableConfig, search: SearchWords = None) -> str:
    """List the user's clients."""
    session = device_session_of(config)
    given = base.given_filters(search=search, orderBy="name")
    found = await session.select("clients", given, limit=_MAX_ROWS)
    return formatting.list_text(session, "clients", found, narrow="search")


CLIENTS = (list_clients,)
