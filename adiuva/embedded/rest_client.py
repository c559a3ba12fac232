"""Small REST client for the demo."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from typing import Any

from adiuva.embedded.processes import StackError

_TIMEOUT_S = 30.0
_PATIENCE_S = 60.0  # a plan's requests are counted by the minute


class ApiError(StackError):
    """Error that the API answered with: `status` and `answer`."""

    def __init__(self, what: str, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{what}: {body.get('message') or status}")
        self.status = status
        self.answer = body


class ApiClient:
    """Client that calls the API as one account.

    It signs in again when the access token has expired, and waits when it has made as many requests as the account's
    plan allows.
    """

    def __init__(self, base: str) -> None:
        self.base = base
        self._credentials: dict[str, str] = {}
        self._token = ""

    def sign_in(self, email: str, password: str) -> None:
        self._credentials = {"email": email, "password": password}
        self._token = self._patiently("POST", "/auth/login", self._credentials)["access_token"]

    def get(self, path: str) -> Any:
        return self._retry_unauthorized("GET", path, None)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._retry_unauthorized("POST", path, body)

    def _retry_unauthorized(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        try:
            return self._patiently(method, path, body)
        except ApiError as error:
            if error.status != 401:
                raise
        self.sign_in(**self._credentials)
        return self._patiently(method, path, body)

    def _patiently(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self._call(method, path, body)
            except ApiError as error:
                pause = error.answer.get("retry_after_s")
                if error.status != 429 or not pause or time.monotonic() + pause > until:
                    raise
            time.sleep(pause)

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310  # always our own server
            f"{self.base}/api/v1{path}", data=data, headers=headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise ApiError(f"{method} {path}", error.code, _json(error.read())) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise StackError(f"{method} {path} got no answer ({error})") from None


def _json(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def is_up(base: str) -> bool:
    """Return whether the web server answers."""
    try:
        with urllib.request.urlopen(f"{base}/api/v1/health", timeout=_TIMEOUT_S):  # noqa: S310
            return True
    except (OSError, http.client.HTTPException):
        return False


def failing_checks(base: str) -> str:
    """Return the names of the health checks that fail, comma-separated; empty when all pass."""
    try:
        with urllib.request.urlopen(f"{base}/api/v1/health/ready", timeout=_TIMEOUT_S):  # noqa: S310
            return ""
    except urllib.error.HTTPError as error:
        checks = _json(error.read()).get("checks", {})
        return ", ".join(name for name, check in checks.items() if not check["ok"]) or f"HTTP {error.code}"
    except (OSError, http.client.HTTPException) as error:
        return str(error)
