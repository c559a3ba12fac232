"""LiteLLM's list of models, read as data: importing LiteLLM for it would take seconds and 200 MB."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson


def listed_entry(model: str) -> Mapping[str, Any]:
    """Return the list's entry for a model by its LiteLLM name, with or without the provider; empty if there is none.

    It reads 3 MB: call it in a thread, and keep the result.
    """
    spec = importlib.util.find_spec("litellm")  # found, not imported
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, "model_prices_and_context_window_backup.json")
        if path.is_file():
            listed: Mapping[str, Any] = orjson.loads(path.read_bytes())
            for name in (model, model.partition("/")[2]):
                if isinstance(entry := listed.get(name), dict):
                    return entry
    return {}
