"""A person with a mailbox, an agent that reads it, and devices. Runs are executed in the test's process."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from adiuva.core import db
from adiuva.devices.client import Device, DeviceConfig, FrameReceived
from adiuva.devices.protocol import Error
from agents import journal, runner, runs, services
from agents.models import Agent, AgentCursor, Run
from integrations import connections
from integrations.models import Connection
from integrations.oauth_clients import SCOPES, Grant
from tests.agents.factories import create_run
from tests.factories import Person, somebody
from tests.fakes.google import GmailBox, Google
from tests.fakes.provider import Request

TIMEOUT_S = 60


def connect_account(
    person: Person, box: Any, provider: Any = "gmail", refresh: str = "refresh"
) -> Connection:
    """A connection as a consent creates it, with a token that the mailbox accepts."""
    grant = Grant(box.access, refresh, 3600, SCOPES[provider], f"{box.name}@example.com")
    return connections.connect(user_id=person.id, provider=provider, grant=grant)


def create_mail_agent(person: Person, provider: Any = "gmail", **fields: Any) -> Agent:
    values = {
        "type": provider,
        "name": "Mail",
        "data_types": ["tasks"],
        "prompt_template": "Find what is to be done.",
    }
    return services.create_cloud(user_id=person.id, values=values | fields)


def raw_mail(number: int | str) -> bytes:
    sender = f"From: Bea <bea@example.com>\nTo: ann@example.com\nSubject: Mail {number}\n\n"
    return f"{sender}Hello,\n\ndo step {number}\n\nBea\n".encode()


def tasks_from_lines(request: Request) -> dict[str, Any]:
    """A model that makes a task of each line that starts with "do"."""
    lines = re.findall(r"^do (.+)$", str(request.body["messages"][1]["content"]), re.MULTILINE)
    return {"records": [{"table": "tasks", "data": {"title": line}} for line in lines]}


def listed_projects(request: Request) -> Any:
    context = str(request.body["messages"][1]["content"])
    return json.loads(context.partition("Projects: ")[2].partition("\n")[0])


class Inbox:
    """The person, their mailbox and the agent that reads it."""

    def __init__(self, web: str, person: Person, box: GmailBox, agent: Agent, folder: Path) -> None:
        self.web, self.person, self.box, self.agent, self.folder = web, person, box, agent, folder
        self.errors: list[Error] = []

    async def run(self, **fields: Any) -> Run:
        """Execute one run in this process, as far as it gets."""
        made = await db.run(lambda: create_run(self.agent, **fields))
        await runner.execute(made.pk)
        return await self.see(made)

    async def see(self, run: Run) -> Run:
        return await db.run(Run.objects.get, pk=run.pk)

    def end(self) -> None:
        """End what is left of its runs, so that workers of other tests do not try them."""
        for run in Run.objects.of(self.person.id).live():
            runs.cancel(run=run)

    async def delivered(self, run: Run) -> Run:
        """The run, once none of its records waits any more, whichever worker delivers them."""
        async with asyncio.timeout(TIMEOUT_S):
            while (seen := await self.see(run)).undelivered or seen.lease_until:
                await asyncio.sleep(0.02)
        return seen

    async def codes(self, run: Run) -> list[str]:
        return [event["code"] for event in await db.run(journal.read, run)]

    async def cursor(self) -> bool:
        return bool(await db.run(AgentCursor.objects.filter(agent=self.agent).exists))

    @asynccontextmanager
    async def device(self, name: str = "desk", **options: Any) -> AsyncIterator[Device]:
        config = DeviceConfig(
            server=self.web,
            workspace=self.folder / name,
            email=self.person.email,
            password=self.person.password,
            device_id=name,
            **options,
        )
        async with Device(config, on_event=self._notice) as made:
            await made.connected()
            yield made

    def _notice(self, event: object) -> None:
        if isinstance(event, FrameReceived) and isinstance(event.frame, Error):
            self.errors.append(event.frame)

    def titles(self, name: str = "desk") -> list[str]:
        """The titles of the tasks on a device, in the order in which it got them."""
        with closing(
            sqlite3.connect(f"file:{self.folder / name / 'data.sqlite3'}?mode=ro", uri=True)
        ) as store:
            return [row[0] for row in store.execute("SELECT title FROM tasks ORDER BY rowid")]


async def create_inbox(web: str, google: Google, folder: Path, mails: int = 0, **fields: Any) -> Inbox:
    box = google.mailbox(uuid.uuid4().hex)
    for number in range(mails):
        box.add(raw_mail(number))
    person = await db.run(somebody, timezone="Europe/Rome")
    await db.run(connect_account, person, box)
    return Inbox(web, person, box, await db.run(lambda: create_mail_agent(person, **fields)), folder)
