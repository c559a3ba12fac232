"""A person with a folder and a device, for tests from end to end, and a scripted model that makes tasks of lines."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx

from adiuva.core import db
from adiuva.devices.client import Device, DeviceConfig, FrameReceived
from adiuva.devices.protocol import AgentFetch, AgentProgress
from adiuva.offline_llm.messages import delimited_text
from agents.models import Run
from tests.factories import Person
from tests.fakes.provider import Request

TIMEOUT_S = 60
ASK_AGAIN_S = 0.5

END_STATES = {"success", "partial", "error", "cancelled", "timeout"}


class DeviceOwner:
    """A person with a folder, a device that reads it, and a REST client."""

    def __init__(self, web: str, person: Person, folder: Path) -> None:
        self.web, self.person, self.folder = web, person, folder
        self.rest = httpx.AsyncClient(
            base_url=f"{web}/api/v1", headers={"Authorization": f"Bearer {person.access_token}"}, timeout=60
        )
        self.progress: list[AgentProgress] = []
        self.fetched: list[str] = []  # names of the files that the device was asked to upload
        self.device = self.new_device()

    def new_device(self, **options: Any) -> Device:
        config = DeviceConfig(
            server=self.web,
            workspace=self.folder.parent / "device",
            grants=[self.folder],
            email=self.person.email,
            password=self.person.password,
            access_token=self.person.access_token,
            refresh_token=self.person.refresh_token,
            device_id="desk",
            **options,
        )
        return Device(config, on_event=self._notice)

    def _notice(self, event: object) -> None:
        if isinstance(event, FrameReceived) and isinstance(event.frame, AgentProgress):
            self.progress.append(event.frame)
        if isinstance(event, FrameReceived) and isinstance(event.frame, AgentFetch):
            self.fetched += [Path(path).name for path in event.frame.paths]

    async def agent(self, **fields: Any) -> str:
        body = {
            "name": "Desk",
            "device_id": "desk",
            "directory_paths": [str(self.folder)],
            "data_types": ["tasks", "notes", "timelines", "projects"],
            "prompt_template": "Find what is to be done.",
            "file_extensions": [".md", ".txt"],
            "schedule_cron": "",
        }
        answer = await self.rest.post("/agents/local", json=body | fields)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def start(self, agent: str) -> str:
        answer = await self.rest.post(f"/agents/{agent}/run")
        assert answer.status_code == 202, answer.text
        return str(answer.json()["run_id"])

    async def see(self, run: str) -> dict[str, Any]:
        answer = await self.rest.get(f"/agents/runs/{run}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def until(self, run: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The run as REST shows it, once this holds.

        REST is asked when the row of the run has changed, or after a while: a request costs much more than a look
        at the row, and many of them take the processor from the run that they ask about.
        """
        row, asked = None, 0.0
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                now, time = await db.run(_row_of, run), asyncio.get_running_loop().time()
                if now != row or time > asked + ASK_AGAIN_S:
                    row, asked = now, time
                    if holds(seen := await self.see(run)):
                        return seen
                await asyncio.sleep(0.03)

    async def run(self, agent: str) -> dict[str, Any]:
        """Start a run and wait for its end."""
        return await self.until(await self.start(agent), lambda seen: seen["state"] in END_STATES)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """The rows of a table of the device, even while it is not running."""
        file = self.folder.parent / "device" / "data.sqlite3"
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store:
            store.row_factory = sqlite3.Row
            return [dict(row) for row in store.execute(f'SELECT * FROM "{table}"')]

    def change(self, statement: str, *values: Any) -> None:
        """Change the rows of the device, as its user does."""
        with closing(sqlite3.connect(self.folder.parent / "device" / "data.sqlite3")) as store:
            store.execute(statement, values)
            store.commit()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, "utf-8")


@asynccontextmanager
async def connected(desk: DeviceOwner) -> AsyncIterator[DeviceOwner]:
    async with desk.device:
        await desk.device.connected()
        yield desk


def _row_of(run: str) -> dict[str, Any] | None:
    return Run.objects.filter(pk=run).values().first()


def document_text(request: Request) -> str:
    """The text of the document in a request to the model."""
    asked = delimited_text(str(request.body["messages"][1]["content"]), "document")
    return asked.partition("\n\n")[2]


def tasks_from_lines(request: Request) -> dict[str, Any]:
    """A model that makes a task of each line that starts with "do"."""
    lines = re.findall(r"^do (.+)$", document_text(request), re.MULTILINE)
    return {"records": [{"table": "tasks", "data": {"title": line}} for line in lines]}


def counts_add_up(seen: dict[str, Any]) -> bool:
    """Whether the counts of a finished run account for every file."""
    parts = seen["items_processed"] + seen["files_unchanged"] + seen["files_failed"]
    return bool(seen["files_seen"] == seen["files_done"] == parts)
