"""The ASGI application behind both servers."""

from __future__ import annotations

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

both_servers = pytest.mark.parametrize("web_on", ["uvicorn", "daphne"], indirect=True)


@both_servers
@pytest.mark.parametrize("path", ["/", "/api/v1/ws/", "/api/v1/ws/device/more"])
async def test_there_is_one_socket_and_other_paths_are_refused(web_on: str, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(web_on.replace("http", "ws", 1) + path):
            pass
    assert refused.value.response.status_code == 403


@both_servers
async def test_pages_static_files_and_the_api_are_served(web_on: str) -> None:
    async with httpx.AsyncClient(base_url=web_on) as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/static/admin/css/base.css")).status_code == 200
        assert (await client.get("/api/v1/health")).json()["status"] == "ok"
        answer = await client.post("/api/v1/auth/login", content=b"[")
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
