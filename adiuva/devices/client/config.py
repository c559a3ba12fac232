"""Configuration of a headless device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

CAPABILITIES: Final = ("dedupe", "batch", "manifest", "offset", "origin")
IN_MEMORY: Final = ":memory:"


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Identity of a device, and what it may do. It signs in with e-mail and password, or with tokens."""

    server: str  # address, as https://host[:port][/path]
    workspace: Path | str  # the folder of its data and session; IN_MEMORY keeps both in memory
    grants: Sequence[Path | str] = ()  # the folders with files that the user's agents may read
    email: str | None = None
    password: str | None = field(default=None, repr=False)
    # The code of an authenticator app, or a recovery code, if the account asks for one.
    code: str | None = field(default=None, repr=False)
    access_token: str | None = field(default=None, repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    protocol: int = 2  # version of the socket's protocol
    capabilities: Sequence[str] = CAPABILITIES
    device_id: str | None = None  # default: the one stored in the workspace, or a new one
    name: str | None = None  # shown in lists of devices; default: this machine's name
    agent_ids: Sequence[str] = ()  # sent with the hello
