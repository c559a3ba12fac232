"""Typed readers for configuration.

A name is looked up in the process environment, then in `.env` beside manage.py (or the file ADIUVA_ENV_FILE
names), then in `<state folder>/env`, which `make run` writes while its servers are up. The first one wins.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured
from dotenv import dotenv_values

BASE_DIR = Path(__file__).resolve().parents[2]

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}


def _file(path: Path) -> dict[str, str]:
    if not os.access(path, os.R_OK):
        return {}
    return {name: value for name, value in dotenv_values(path).items() if value is not None}


_dotenv = _file(BASE_DIR / os.environ.get("ADIUVA_ENV_FILE", ".env"))


def state_dir() -> Path:
    """The folder for everything `make run` keeps: database, logs, secrets, the demo workspace."""
    chosen = os.environ.get("ADIUVA_STATE_DIR") or _dotenv.get("ADIUVA_STATE_DIR") or ".state"
    return (BASE_DIR / Path(chosen).expanduser()).resolve()


_given: ChainMap[str, str] = ChainMap(dict(os.environ), _dotenv)
_values: Mapping[str, str] = ChainMap(*_given.maps, _file(state_dir() / "env"))


def given(name: str, default: str = "") -> str:
    """Like `text`, without what `make run` has written: that may be left from a time before."""
    return _given.get(name, "").strip() or default


def text(name: str, default: str = "") -> str:
    """The value, stripped; an empty one counts as absent."""
    return _values.get(name, "").strip() or default


def integer(name: str, default: int, *, least: int | None = None) -> int:
    raw = text(name)
    if not raw:
        return default
    try:
        value = int(raw)
    except ValueError:
        raise ImproperlyConfigured(f"{name} must be a whole number, not {raw!r}") from None
    if least is not None and value < least:
        raise ImproperlyConfigured(f"{name} must be at least {least}, not {value}")
    return value


def number(name: str, default: float) -> float:
    raw = text(name)
    try:
        return float(raw) if raw else default
    except ValueError:
        raise ImproperlyConfigured(f"{name} must be a number, not {raw!r}") from None


def flag(name: str, default: bool = False) -> bool:
    raw = text(name).lower()
    if not raw:
        return default
    if raw in _TRUE:
        return True
    if raw in _FALSE:
        return False
    raise ImproperlyConfigured(f"{name} must be 1 or 0, not {raw!r}")


def words(name: str, default: tuple[str, ...] = ()) -> list[str]:
    """A comma-separated list."""
    raw = text(name)
    return [word.strip() for word in raw.split(",") if word.strip()] if raw else list(default)


def choice(name: str, options: tuple[str, ...], default: str) -> str:
    value = text(name, default)
    if value not in options:
        raise ImproperlyConfigured(f"{name} must be one of {', '.join(options)}, not {value!r}")
    return value
