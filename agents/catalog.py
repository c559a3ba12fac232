"""The kinds of agents there are, for clients to build their forms from."""

from __future__ import annotations

from typing import Any, Final

from adiuva.devices.tables import TABLES
from agents.models import MOST_CATCH_UP_HOURS, AgentType, CatchUp

DATA_TYPES: Final = tuple(TABLES)

_COMMON: Final[dict[str, Any]] = {
    "name": {"type": "string", "maxLength": 200},
    "data_types": {
        "type": "array",
        "items": {"type": "string", "enum": list(DATA_TYPES)},
        "minItems": 1,
        "description": "the tables that records may be made for",
    },
    "prompt_template": {"type": "string", "description": "what to look for, in your own words"},
    "schedule_cron": {
        "type": "string",
        "description": "five cron fields or @daily and friends; empty: by hand",
    },
    "timezone": {"type": "string", "description": "IANA zone of the schedule; empty: your own"},
    "catch_up": {
        "type": "string",
        "enum": [way.value for way in CatchUp],
        "default": CatchUp.ONCE.value,
        "description": "what becomes of times that were missed: one run, none, or one run within catch_up_hours",
    },
    "catch_up_hours": {"type": "integer", "minimum": 1, "maximum": MOST_CATCH_UP_HOURS},
    "enabled": {"type": "boolean", "default": True},
}


def _schema(own: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": _COMMON | own, "required": ["name", "data_types", *required]}


_LOCAL: Final = _schema(
    {
        "device_id": {"type": "string"},
        "directory_paths": {
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
            "description": "absolute paths on the device",
        },
        "file_extensions": {
            "type": "array",
            "items": {"type": "string"},
            "description": 'such as ".md"; empty: all that can be read',
        },
    },
    ["device_id", "directory_paths"],
)
_CLOUD: Final = _schema(
    {
        "filter_config": {
            "type": "object",
            "properties": {
                "labels": {"type": "array", "items": {"type": "string"}},
                "senders": {"type": "array", "items": {"type": "string"}},
                "date_range": {
                    "type": "object",
                    "properties": {"from": {"type": "string"}, "to": {"type": "string"}},
                },
            },
        }
    },
    [],
)


def _kind(
    agent_type: AgentType, description: str, schema: dict[str, Any], *, available: bool
) -> dict[str, Any]:
    return {
        "type": agent_type.value,
        "name": agent_type.label,
        "description": description,
        "config_schema": schema,
        "available": available,
    }


_NOT_YET: Final = "This server cannot connect to it yet."

# `available` says which of them this server can make; clients know all four names.
CATALOG: Final = [
    _kind(
        AgentType.LOCAL_DIRECTORY,
        "Reads files in folders that you granted on one of your devices.",
        _LOCAL,
        available=True,
    ),
    _kind(AgentType.GMAIL, f"Reads mail of a Gmail account. {_NOT_YET}", _CLOUD, available=False),
    _kind(AgentType.TEAMS, f"Reads messages of Teams channels. {_NOT_YET}", _CLOUD, available=False),
    _kind(AgentType.OUTLOOK, f"Reads mail of an Outlook account. {_NOT_YET}", _CLOUD, available=False),
]
