"""Errors that carry a code. Each edge (REST, socket, run journal) maps them once."""

from __future__ import annotations

from collections.abc import Mapping


class AdiuvaError(Exception):
    """Something a caller can be told: `code` for programs, the message for people, `fields` for forms.

    `status` is the HTTP status a REST edge answers with. Messages never hold secrets or another user's data.
    """

    code = "error"
    status = 400

    def __init__(
        self, message: str, *, fields: Mapping[str, list[str]] | None = None, **extra: object
    ) -> None:
        super().__init__(message)
        self.message = message
        self.fields = dict(fields) if fields else None
        self.extra = extra

    def body(self) -> dict[str, object]:
        """The wire form: `{code, message, fields?}` and whatever the error adds."""
        found: dict[str, object] = {"code": self.code, "message": self.message, **self.extra}
        if self.fields:
            found["fields"] = self.fields
        return found


class Invalid(AdiuvaError):
    code, status = "invalid", 400


class NotAuthenticated(AdiuvaError):
    code, status = "not_authenticated", 401


class Forbidden(AdiuvaError):
    code, status = "forbidden", 403


class NotFound(AdiuvaError):
    code, status = "not_found", 404


class Conflict(AdiuvaError):
    code, status = "conflict", 409


class Unavailable(AdiuvaError):
    """Something the server needs is away for now; trying again later is right."""

    code, status = "unavailable", 503
