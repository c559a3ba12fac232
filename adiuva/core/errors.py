"""Errors that carry a code. Each edge (REST, socket, page) tells them once, in the language of the person it speaks to.

A message is a literal in English, and the catalogues in `locale/` translate it:

    raise NotFound("there is no such agent")
    raise Invalid(Text("a title has 1 to {most} characters", most=200))

As a string it stays English, for logs and for models. `adiuva.core.language.said` translates it for a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self


class Text(str):
    """Message with values. As a string it is in English; it also keeps what a translation needs.

    `msgid` is a literal with a place in braces for each value. A value that is a Text is translated as well; other
    values are shown as they are.
    """

    msgid: str
    values: dict[str, Any]

    def __new__(cls, msgid: str, /, **values: Any) -> Self:
        made = super().__new__(cls, msgid.format(**values) if values else msgid)
        made.msgid, made.values = msgid, values
        return made

    @classmethod
    def of(cls, message: str) -> Text:
        """Return a message as a value of another one."""
        return message if isinstance(message, Text) else Text(message)

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:
        return (self.msgid,), self.values


def packed(text: str) -> str | list[Any]:
    """Return a message as JSON that keeps what a translation needs."""
    if not isinstance(text, Text):
        return text
    values = {name: packed(value) if isinstance(value, str) else value for name, value in text.values.items()}
    return [text.msgid, values]


def unpacked(found: str | list[Any]) -> str:
    if isinstance(found, str):
        return found
    msgid, values = found
    return Text(
        msgid, **{name: unpacked(each) if isinstance(each, list) else each for name, each in values.items()}
    )


class AdiuvaError(Exception):
    """Error that a caller can be told of: `code` for programs, the message for people, `fields` for forms.

    `status` is the HTTP status a REST edge answers with; `extra` is added to the body. Messages, and the problems of
    fields, are literals or `Text`; they never hold secrets or another user's data.
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
    """Error for something that is away for now; trying again later is right."""

    code, status = "unavailable", 503
