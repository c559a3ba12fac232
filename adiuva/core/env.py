"""Declaration of environment variables (name, type, default, unit, bounds and meaning), and where values come from.

A name is looked up in the process environment, then in `.env` beside manage.py (or the file that ADIUVA_ENV_FILE
names), then in `<state folder>/env`, which `make run` writes while its servers are up. The first one wins, and an
empty value counts as absent. The variables themselves are declared in adiuva/env_variables.py.
"""

from __future__ import annotations

import json
import os
import re
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured
from dotenv import dotenv_values

BASE_DIR = Path(__file__).resolve().parents[2]

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}

T = TypeVar("T")
N = TypeVar("N", int, float)


# ── Where values come from ──────────────────────────────────────────────────────────────────────────────


def state_dir() -> Path:
    """Return the folder for everything that `make run` keeps: database, logs, secrets, the demo workspace."""
    chosen = os.environ.get("ADIUVA_STATE_DIR") or _dotenv().get("ADIUVA_STATE_DIR") or ".state"
    return (BASE_DIR / Path(chosen).expanduser()).resolve()


@cache
def _dotenv() -> dict[str, str]:
    return _file(BASE_DIR / os.environ.get("ADIUVA_ENV_FILE", ".env"))


@cache
def _configured() -> Mapping[str, str]:
    return ChainMap(dict(os.environ), _dotenv())


@cache
def _all_values() -> Mapping[str, str]:
    return ChainMap(dict(os.environ), _dotenv(), _file(state_dir() / "env"))


def forget() -> None:
    """Forget cached values, so that the next read sees this process's new environment."""
    for looked_up in (_dotenv, _configured, _all_values):
        looked_up.cache_clear()


def _file(path: Path) -> dict[str, str]:
    if not os.access(path, os.R_OK):
        return {}
    return {name: value for name, value in dotenv_values(path).items() if value is not None}


# ── How a variable is declared ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Variable(Generic[T]):
    """Environment variable. `parse` raises a ValueError whose text continues the variable's name."""

    name: str
    type: str
    default: T
    meaning: str
    parse: Callable[[str], T]
    unit: str = ""
    bounds: str = ""
    computed_default: str = ""  # what the documentation shows if the default depends on other variables

    def read(self, default: T | None = None) -> T:
        """Return the value, or else `default`, or else the declared default.

        Raises ImproperlyConfigured with the variable's name if the value does not have the declared form.
        """
        return self._read(_all_values(), default)

    def read_configured(self, default: T | None = None) -> T:
        """Return the value as `read` does, without the state folder's file, perhaps left by an earlier `make run`."""
        return self._read(_configured(), default)

    def _read(self, values: Mapping[str, str], default: T | None) -> T:
        raw = values.get(self.name, "").strip()
        if not raw:
            return self.default if default is None else default
        try:
            return self.parse(raw)
        except ValueError as error:
            raise ImproperlyConfigured(f"{self.name} {error}") from None


@dataclass(frozen=True)
class Section:
    """Group of variables under one heading of the documentation. Its methods declare them, one method for each type."""

    title: str
    note: str = ""
    internal: bool = False  # our own programs set these: documented, but not offered in .env.example
    variables: list[Variable[Any]] = field(default_factory=list)

    def text(
        self,
        name: str,
        default: str,
        meaning: str,
        *,
        pattern: str = "",
        bounds: str = "",
        computed: str = "",
    ) -> Variable[str]:
        """Declare a text. `pattern` must match all of it, and `bounds` says in words what it allows."""

        def parse(raw: str) -> str:
            if pattern and not re.fullmatch(pattern, raw):
                raise ValueError(f"must be {bounds}, not {raw!r}")
            return raw

        return self._add("text", name, default, meaning, parse, bounds=bounds, computed=computed)

    def integer(
        self,
        name: str,
        default: int,
        meaning: str,
        *,
        minimum: int,
        maximum: int | None = None,
        unit: str = "",
    ) -> Variable[int]:
        def parse(raw: str) -> int:
            try:
                value = int(raw)
            except ValueError:
                raise ValueError(f"must be a whole number, not {raw!r}") from None
            return _bounded(value, minimum, maximum)

        return self._add(
            "whole number", name, default, meaning, parse, unit=unit, bounds=_range(minimum, maximum)
        )

    def number(
        self,
        name: str,
        default: float,
        meaning: str,
        *,
        minimum: float,
        maximum: float | None = None,
        unit: str = "",
    ) -> Variable[float]:
        def parse(raw: str) -> float:
            try:
                value = float(raw)
            except ValueError:
                raise ValueError(f"must be a number, not {raw!r}") from None
            return _bounded(value, minimum, maximum)

        return self._add("number", name, default, meaning, parse, unit=unit, bounds=_range(minimum, maximum))

    def flag(self, name: str, default: bool, meaning: str) -> Variable[bool]:
        def parse(raw: str) -> bool:
            if raw.lower() in _TRUE | _FALSE:
                return raw.lower() in _TRUE
            raise ValueError(f"must be 1 or 0, not {raw!r}")

        return self._add("flag", name, default, meaning, parse, bounds="1 or 0")

    def words(
        self, name: str, default: tuple[str, ...], meaning: str, *, computed: str = ""
    ) -> Variable[list[str]]:
        """Declare a comma-separated list."""

        def parse(raw: str) -> list[str]:
            return [word.strip() for word in raw.split(",") if word.strip()]

        return self._add(
            "list", name, list(default), meaning, parse, bounds="comma-separated", computed=computed
        )

    def json_object(self, name: str, meaning: str) -> Variable[dict[str, Any]]:
        def parse(raw: str) -> dict[str, Any]:
            try:
                value = json.loads(raw)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                raise ValueError('must be a JSON object, such as {"name": "value"}')
            return value

        return self._add("JSON object", name, {}, meaning, parse)

    def choice(
        self, name: str, options: tuple[str, ...], default: str, meaning: str, *, computed: str = ""
    ) -> Variable[str]:
        listed = ", ".join(options)

        def parse(raw: str) -> str:
            if raw not in options:
                raise ValueError(f"must be one of {listed}, not {raw!r}")
            return raw

        return self._add("choice", name, default, meaning, parse, bounds=listed, computed=computed)

    def endpoint(self, name: str, default: str, meaning: str) -> Variable[str]:
        """Declare a base address of a provider: https, or plain http on loopback, where tests put theirs."""

        def parse(raw: str) -> str:
            url = raw.rstrip("/")
            parts = urlsplit(url)
            plain = not (parts.username or parts.password or parts.query or parts.fragment)
            schemes = {"https", "http"} if parts.hostname in _LOOPBACK else {"https"}
            if not plain or not parts.hostname or parts.scheme not in schemes:
                raise ValueError("must be a plain https address")
            return url

        return self._add("address", name, default, meaning, parse, bounds="https, or http on loopback")

    def _add(
        self,
        type: str,
        name: str,
        default: T,
        meaning: str,
        parse: Callable[[str], T],
        *,
        unit: str = "",
        bounds: str = "",
        computed: str = "",
    ) -> Variable[T]:
        variable = Variable(
            name=name,
            type=type,
            default=default,
            meaning=meaning,
            parse=parse,
            unit=unit,
            bounds=bounds,
            computed_default=computed,
        )
        self.variables.append(variable)
        return variable


def _bounded(value: N, minimum: N, maximum: N | None) -> N:
    if not value >= minimum:  # also true of NaN
        raise ValueError(f"must be at least {minimum}, not {value}")
    if maximum is not None and value > maximum:
        raise ValueError(f"must be at most {maximum}, not {value}")
    return value


def _range(minimum: float, maximum: float | None) -> str:
    return f"at least {minimum:g}" if maximum is None else f"{minimum:g} to {maximum:g}"
