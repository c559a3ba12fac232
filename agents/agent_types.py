"""The catalog of agent types, from which clients build their forms."""

from __future__ import annotations

from typing import Any, Final

from adiuva.devices.tables import TABLES
from agents.models import MAX_BUDGET_MICRO, MAX_CATCH_UP_HOURS, AgentType, Announce, CatchUp
from integrations import oauth_clients
from integrations.models import Provider

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
    "catch_up_hours": {"type": "integer", "minimum": 1, "maximum": MAX_CATCH_UP_HOURS},
    "announce": {
        "type": "string",
        "enum": [which.value for which in Announce],
        "default": Announce.PROBLEMS.value,
        "description": "which ends of its scheduled runs are told in the conversation for agents",
    },
    "budget_micro": {
        "type": "integer",
        "minimum": 0,
        "maximum": MAX_BUDGET_MICRO,
        "description": "what its runs may cost a month, in millionths of the currency; without it: no limit of its own",
    },
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


def _cloud(provider: Provider, labels: str) -> dict[str, Any]:
    names = {"type": "array", "items": {"type": "string"}, "maxItems": 50}
    day = {"type": "string", "format": "date"}
    return _schema(
        {
            "provider": {"type": "string", "const": provider.value},
            "connection": {
                "type": "string",
                "format": "uuid",
                "description": "the account; not needed where only one is connected",
            },
            "filter_config": {
                "type": "object",
                "properties": {
                    "labels": names | {"description": labels},
                    "senders": names | {"description": "addresses, domains or parts of a name; empty: all"},
                    "date_range": {"type": "object", "properties": {"from": day, "to": day}},
                },
                "additionalProperties": False,
            },
        },
        ["provider"],
    )


def _entry(
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
_CLOUD: Final = (
    (Provider.GMAIL, "Reads mail of a Gmail account.", "labels by name; empty: all mail"),
    (Provider.TEAMS, "Reads messages of Teams channels.", "channels, as Team/Channel; empty: all"),
    (Provider.OUTLOOK, "Reads mail of an Outlook account.", "folders by name; empty: the inbox and others"),
)


def catalog() -> list[dict[str, Any]]:
    """Return all agent types; `available` says whether this server can create one."""
    local = _entry(
        AgentType.LOCAL_DIRECTORY,
        "Reads files in folders that you granted on one of your devices.",
        _LOCAL,
        available=True,
    )
    kinds = [local]
    for provider, words, labels in _CLOUD:
        available = oauth_clients.is_configured(provider)
        said = words if available else f"{words} {_NOT_YET}"
        kinds.append(_entry(AgentType(provider.value), said, _cloud(provider, labels), available=available))
    return kinds
