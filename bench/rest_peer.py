"""The same answers by FastAPI: what an application would be that does nothing but what a request needs.

For each path it sends the statements that ours sent, prepared by psycopg on a pool's connection that commits by itself
as ours does, checks the token, opens the sealed values that ours opened, and gives the same body through pydantic
models, whose times and ids it has from their rows, as ours. It has no middleware, no ORM and no serializers, builds its
models from values that it knows already, and checks no parameter.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from fastapi import Depends, FastAPI, Header
from psycopg_pool import ConnectionPool
from pydantic import BaseModel, create_model

if TYPE_CHECKING:
    from adiuva.core.crypto import Cipher


@dataclass
class Recording:
    """What ours did for a path: its statements, what it opened, and its answer."""

    statements: list[tuple[str, Any]] = field(default_factory=list)
    opened: list[tuple[Cipher, bytes, bytes]] = field(default_factory=list)
    body: Any = None

    @property
    def is_list(self) -> bool:
        return isinstance(self.body, list)


def record_request(path: str, token: str) -> Recording:
    """Ask ours, and write down what it does."""
    from django.db import connection
    from django.test import Client

    from adiuva.core.crypto import Cipher

    found, unseal = Recording(), Cipher.unseal

    def noted(cipher: Cipher, sealed: bytes, where: bytes) -> bytes:
        found.opened.append((cipher, sealed, where))
        return unseal(cipher, sealed, where)

    def sent(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        found.statements.append((sql, params))
        return execute(sql, params, many, context)

    client = Client(headers={"authorization": f"Bearer {token}", "host": "localhost"})
    client.get(path)  # what it keeps in memory from now on
    Cipher.unseal = noted  # type: ignore[assignment, method-assign]
    try:
        with connection.execute_wrapper(sent):
            answer = client.get(path)
    finally:
        Cipher.unseal = unseal  # type: ignore[method-assign]
    assert answer.status_code == 200, answer
    found.body = answer.json()
    return found


def fastapi_application(recordings: dict[str, Recording], database_url: str) -> FastAPI:
    from adiuva.accounts import tokens

    application = FastAPI()
    pool = ConnectionPool(database_url, min_size=1, max_size=4, open=True, kwargs={"autocommit": True})

    def signed_in(authorization: Annotated[str, Header()]) -> None:
        tokens.verify(authorization.removeprefix("Bearer "), "access")

    for path, recording in recordings.items():
        rows = [_values(each) for each in (recording.body if recording.is_list else [recording.body])]
        model = _model_of(path, rows[0])
        application.get(
            path,
            response_model=list[model] if recording.is_list else model,  # type: ignore[valid-type]
            dependencies=[Depends(signed_in)],
        )(partial(_answer, recording, model, rows, pool))
    return application


def _answer(
    recording: Recording, model: Callable[..., BaseModel], rows: list[dict[str, Any]], pool: ConnectionPool
) -> Any:
    with pool.connection() as connection:
        for statement, parameters in recording.statements:
            connection.execute(statement, parameters, prepare=True, binary=True).fetchall()
    for cipher, sealed, where in recording.opened:
        cipher.unseal(sealed, where)
    found = [model(**values) for values in rows]
    return found if recording.is_list else found[0]


def _values(body: dict[str, Any]) -> dict[str, Any]:
    """With times and ids as rows have them."""
    return {name: _as_stored(name, value) for name, value in body.items()}


def _as_stored(name: str, value: Any) -> Any:
    if isinstance(value, str) and name.endswith(("_at", "_from", "_to")):
        return dt.datetime.fromisoformat(value)
    return UUID(value) if name in {"id", "agent_id"} else value


def _model_of(name: str, values: dict[str, Any]) -> type[BaseModel]:
    plain = (str, int, bool, dt.datetime, UUID)
    kinds = {key: type(value) if isinstance(value, plain) else Any for key, value in values.items()}
    return create_model(name.rsplit("/", 1)[1], **{key: (kind | None, ...) for key, kind in kinds.items()})  # type: ignore[call-overload, no-any-return]
