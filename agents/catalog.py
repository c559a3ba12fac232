"""The kinds of agents there are, for clients to build their forms from."""

from __future__ import annotations

from typing import Any, Final

from adiuva.devices.tables import TABLES
from agents.models import AgentType

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
    "enabled": {"type": "boolean", "default": True},
}


def _schema(own: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": _COMMON | own, "required": ["name", "data_types", *required]}


CATALOG: Final[list[dict[str, Any]]] = [
    {
        "type": AgentType.LOCAL_DIRECTORY.value,
        "name": "Local folders",
        "description": "Reads files in folders that you granted on one of your devices.",
        "config_schema": _schema(
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
        ),
    },
]
