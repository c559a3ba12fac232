"""Somebody copies a refresh token. Whoever uses it second gives the theft away, and everything of it closes."""

from __future__ import annotations

import httpx
import pytest

from adiuva.core import db
from tests.factories import somebody
from tests.socket_client import Socket


@pytest.mark.parametrize("web_on", ["uvicorn", "daphne"], indirect=True)
async def test_a_reused_refresh_token_ends_the_session_and_its_sockets(web_on: str) -> None:
    person = await db.run(somebody)
    async with httpx.AsyncClient(base_url=f"{web_on}/api/v1/auth") as thief_or_owner:

        async def refresh(token: str) -> httpx.Response:
            return await thief_or_owner.post("/refresh", json={"refresh_token": token})

        stolen = person.refresh_token
        owner = (await refresh(stolen)).json()
        newer = (await refresh(owner["refresh_token"])).json()
        async with Socket(web_on, newer["access_token"]) as socket:
            await socket.hello()
            answer = await refresh(stolen)
            assert (answer.status_code, answer.json()["code"]) == (401, "refresh_reused")
            assert await socket.code() == 4401
        async with Socket(web_on, newer["access_token"]) as socket:
            assert await socket.code() == 4401
        assert (await refresh(newer["refresh_token"])).status_code == 401
