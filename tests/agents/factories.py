"""Builders of agents and runs, beside the front door, for tests of the verbs."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from adiuva.devices.models import Device
from adiuva.devices.outbox import PendingRecord
from adiuva.devices.protocol import ToolResultBody
from agents import lease, result_commits, runs, services
from agents.extraction import Document
from agents.lease import Job
from agents.models import Agent, Run
from agents.records import Record
from agents.result_commits import Answered, Read
from tests.factories import somebody

FOLDER = "/home/ada/documents"


def an_agent(user_id: uuid.UUID | None = None, **fields: Any) -> Agent:
    values = {
        "name": "Desk",
        "device_id": "desk",
        "directory_paths": [FOLDER],
        "data_types": ["tasks"],
        "prompt_template": "Find what is to be done.",
    }
    return services.create_local(user_id=user_id or somebody().id, values=values | fields)


def a_device(agent: Agent) -> Device:
    return Device.objects.create(user_id=agent.user_id, device_id=agent.device_id)


def a_run(agent: Agent, **fields: Any) -> Run:
    """A queued run that no worker is told of."""
    run = runs.new(agent, Run.Trigger.MANUAL)
    for name, value in fields.items():
        setattr(run, name, value)
    run.save(force_insert=True)
    return run


def claimed(run: Run) -> Job:
    job = lease.claim(run.pk)
    assert job is not None
    return job


def kept(job: Job, *titles: str, path: str = f"{FOLDER}/one.md") -> list[uuid.UUID]:
    """Tasks that were found in a document and are in line for the device; their ids."""
    document = Document(path, path, "text", job.source_key(path), b"hash")
    records = [Record("tasks", {"title": title, "isAiSuggested": 1, "isApproved": 0}) for title in titles]
    lease.count(job, seen=1)
    return [record.id for record in read(job, document, records)]


def read(job: Job, document: Document, records: Sequence[Record] = ()) -> list[PendingRecord]:
    return result_commits.commit(job, [Read(document, records)])[0]


def settle(job: Job, outcomes: Mapping[uuid.UUID, Any], path: str = "") -> None:
    result_commits.commit(job, [Answered(outcomes, path)])


def answered(*ids: uuid.UUID) -> dict[uuid.UUID, Any]:
    """What a device says that took these records."""
    return {key: ToolResultBody(id=str(key), row={"id": "a-row"}) for key in ids}
