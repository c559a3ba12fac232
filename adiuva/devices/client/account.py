"""Account of the device at the server: sign-in, tokens, and the session that is kept in the workspace."""

from __future__ import annotations

import ipaddress
import json
import os
import tempfile
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from adiuva.core.http import retry_after_s
from adiuva.devices.client.errors import BadAddress, BadWorkspace, SignInRefused

_REST_TIMEOUT: Final = aiohttp.ClientTimeout(total=30)
_EXPIRY_MARGIN_S: Final = 30
_REFUSALS: Final = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}


class ServerUnavailable(Exception):
    """Error for a server that did not answer, or asked to try later after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class ServerAddress:
    """Address of the server, checked to be safe for credentials."""

    base: str

    @classmethod
    def parse(cls, server: str) -> ServerAddress:
        """Parse `https://host[:port][/path]`. Raises BadAddress, also for plain http beyond loopback."""
        parts = urlsplit(server.strip().rstrip("/"))
        try:
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if parts.scheme not in {"http", "https"} or not host or parts.query or parts.fragment:
            raise BadAddress("The server's address must look like https://adiuva.example.com.")
        if parts.username or parts.password:
            raise BadAddress("The server's address must not hold a password.")
        if parts.scheme == "http" and not _is_loopback(host):
            raise BadAddress(
                "The server's address must begin with https://; http:// shows your password to all."
            )
        return cls(f"{parts.scheme}://{parts.netloc}{parts.path}")

    def rest(self, path: str) -> str:
        return f"{self.base}/api/v1/{path}"

    @property
    def socket(self) -> str:
        return "ws" + self.rest("ws/device").removeprefix("http")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Account:
    """Account that gives out a valid access token, and signs in or refreshes as needed.

    Each refresh replaces the refresh token and makes the old one useless, so the new one is written to disk before
    anything else happens. Access tokens are kept in memory only.
    """

    def __init__(
        self,
        address: ServerAddress,
        *,
        email: str | None = None,
        password: str | None = None,
        code: str | None = None,
        access_token: str | None = None,
        refresh_token: str | None = None,
        file: Path | None = None,
    ) -> None:
        self._address = address
        self._email, self._password, self._code, self._file = email, password, code, file
        self._access, self._access_until = access_token, float("inf") if access_token else 0.0
        self._refresh = refresh_token or self._load()
        if not (self._access or self._refresh or (email and password)):
            raise SignInRefused("There is no password and no session to sign in with.")

    @property
    def has_session(self) -> bool:
        return self._refresh is not None

    def reject_access_token(self) -> None:
        """Drop the access token, which the server did not accept."""
        self._access = None

    async def access_token(self, http: aiohttp.ClientSession) -> str:
        """Return a token to connect with. Raises SignInRefused (final) or ServerUnavailable (try again)."""
        if self._access and time.time() < self._access_until - _EXPIRY_MARGIN_S:
            return self._access
        if self._refresh and await self._post(http, "auth/refresh", {"refresh_token": self._refresh}):
            return str(self._access)
        self._refresh = None
        if not (self._email and self._password):
            raise SignInRefused("The session has ended; sign in again with your password.")
        if not await self._post(http, "auth/login", {"email": self._email, "password": self._password}):
            raise SignInRefused("The server does not accept this e-mail and password.")
        return str(self._access)

    async def _post(self, http: aiohttp.ClientSession, path: str, body: dict[str, str]) -> bool:
        """Send credentials and keep the tokens of the answer. Returns False if the server refuses them."""
        try:
            async with http.post(
                self._address.rest(path), json=body, timeout=_REST_TIMEOUT, allow_redirects=False
            ) as response:
                if response.status in _REFUSALS:
                    refusal = await response.json()
                    if refusal.get("code") == "second_factor_required":
                        return await self._second_step(http, str(refusal["ticket"]))
                    return False
                if response.status != HTTPStatus.OK:
                    raise ServerUnavailable(
                        f"the server answered {response.status}",
                        retry_after_s(response.headers.get("Retry-After")),
                    )
                answer = await response.json()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise ServerUnavailable(f"the server cannot be reached ({type(error).__name__})") from error
        self._take(answer)
        return True

    async def _second_step(self, http: aiohttp.ClientSession, ticket: str) -> bool:
        code, self._code = self._code, None  # each code works once
        if not code:
            raise SignInRefused(
                "This account asks for a second factor. Set ADIUVA_DEVICE_CODE to a code of your authenticator app or "
                "to a recovery code; once is enough, since the workspace keeps the session."
            )
        field = "code" if code.replace(" ", "").isdigit() else "recovery_code"
        if not await self._post(http, "auth/login/second-factor", {"ticket": ticket, field: code}):
            raise SignInRefused("The server does not accept this code.")
        return True

    def _take(self, answer: Any) -> None:
        try:
            access, refresh = answer["access_token"], answer["refresh_token"]
            until = float(answer["expires_at"])
        except (KeyError, TypeError, ValueError) as error:
            raise ServerUnavailable("the server answered something else than tokens") from error
        self._access, self._access_until, self._refresh = access, until, refresh
        self._save()

    # ── The session in the workspace ────────────────────────────────────────────────────────────────────

    def _load(self) -> str | None:
        if self._file is None or not self._file.exists():
            return None
        try:
            kept = json.loads(self._file.read_bytes())
            is_ours = kept["server"] == self._address.base and self._email in (None, kept["email"])
            return str(kept["refresh_token"]) if is_ours else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # a broken or foreign file counts as none, so the password is used

    def _save(self) -> None:
        if self._file is None:
            return
        kept = {"server": self._address.base, "email": self._email, "refresh_token": self._refresh}
        try:
            # mkstemp makes the file for its owner alone.
            descriptor, temporary = tempfile.mkstemp(dir=self._file.parent, prefix=f".{self._file.name}.")
            with os.fdopen(descriptor, "w") as file:
                json.dump(kept, file)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self._file)
        except OSError as error:
            raise BadWorkspace(f"The session cannot be kept in the workspace ({error.strerror}).") from error
