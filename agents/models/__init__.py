"""Models of agents, their runs and journals, watches on runs, the ledger of sources, and journeys."""

from __future__ import annotations

from agents.models.agents import (
    MAX_BUDGET_MICRO,
    MAX_CATCH_UP_HOURS,
    ON_TIME_WINDOW,
    RUN_DEADLINE,
    Agent,
    AgentCursor,
    AgentFamily,
    AgentQuerySet,
    AgentType,
    Announce,
    CatchUp,
    JourneySession,
)
from agents.models.run_watches import Watch, WatchQuerySet
from agents.models.runs import Run, RunChanges, RunEvent, RunManager, RunQuerySet
from agents.models.sources import FoundRecord, Source, SourceInFlight

__all__ = [
    "MAX_BUDGET_MICRO",
    "MAX_CATCH_UP_HOURS",
    "ON_TIME_WINDOW",
    "RUN_DEADLINE",
    "Agent",
    "AgentCursor",
    "AgentFamily",
    "AgentQuerySet",
    "AgentType",
    "Announce",
    "CatchUp",
    "FoundRecord",
    "JourneySession",
    "Run",
    "RunChanges",
    "RunEvent",
    "RunManager",
    "RunQuerySet",
    "Source",
    "SourceInFlight",
    "Watch",
    "WatchQuerySet",
]
