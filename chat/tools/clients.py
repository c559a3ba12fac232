"""The user's clients."""

from __future__ import annotations

from typing import Final

from langchain_core.runnables import RunnableConfig

from chat.device_session import desk_of
from chat.tools import base, formatting
from chat.tools.base import Search, device_tool

_MOST: Final = 500


@device_tool("clients", "select", "Looking at your clients")
async def list_clients(config: RunnableConfig, search: Search = None) -> str:
    """List the user's clients."""
    desk = desk_of(config)
    rows = await desk.select("clients", base.filters(search=search, orderBy="name"), limit=_MOST)
    return formatting.listed(desk, "clients", rows, bound=_MOST, narrow="search")


CLIENTS = (list_clients,)
