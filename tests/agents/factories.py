"""Create agents, runs and results in the database, without REST, socket or worker."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django.utils import timezone

from adiuva.devices.models import Device
from adiuva.devices.outbox import PendingRecord
from adiuva.devices.protocol import ToolResultBody
from agents import claimed_runs, result_commits, runs, services
from agents.claimed_runs import ClaimedRun
from agents.extraction import SourceDocument
from agents.models import Agent, Run
from agents.record_validation import Record
from agents.result_commits import DeviceAnswered, Extracted
from tests.factories import Person, somebody

if TYPE_CHECKING:
    from rest_framework.test import APIClient

FOLDER = "/home/ada/documents"


def create_agent(user_id: uuid.UUID | None = None, **fields: Any) -> Agent:
    values = {
        "name": "Desk",
        "device_id": "desk",
        "directory_paths": [FOLDER],
        "data_types": ["tasks"],
        "prompt_template": "Find what is to be done.",
    }
    return services.create_local(user_id=user_id or somebody().id, values=values | fields)


def create_device(agent: Agent) -> Device:
    return Device.objects.create(user_id=agent.user_id, device_id=agent.device_id)


def create_run(agent: Agent, **fields: Any) -> Run:
    """A queued run that no worker finds before its time: it is queued in an hour, unless `enqueued_at` is given."""
    run = runs.build_run(agent, Run.Trigger.MANUAL)
    run.enqueued_at = timezone.now() + dt.timedelta(hours=1)
    for name, value in fields.items():
        setattr(run, name, value)
    run.save(force_insert=True)
    return run


def claim_run(run: Run) -> ClaimedRun:
    claimed = claimed_runs.claim(run.pk)
    assert claimed is not None
    return claimed


def commit_tasks(claimed: ClaimedRun, *titles: str, path: str = f"{FOLDER}/one.md") -> list[uuid.UUID]:
    """Commit tasks found in a document, which then wait for the device. Returns their ids."""
    document = SourceDocument(path, path, "text", claimed.source_key(path), b"hash")
    records = [Record("tasks", {"title": title, "isAiSuggested": 1, "isApproved": 0}) for title in titles]
    claimed_runs.add_counts(claimed, seen=1)
    return [record.id for record in commit_document(claimed, document, records)]


def commit_document(
    claimed: ClaimedRun, document: SourceDocument, records: Sequence[Record] = ()
) -> list[PendingRecord]:
    return result_commits.commit_results(claimed, [Extracted(document, records)])[0]


def commit_answers(claimed: ClaimedRun, outcomes: Mapping[uuid.UUID, Any], path: str = "") -> None:
    result_commits.commit_results(claimed, [DeviceAnswered(outcomes, path)])


def accepted_by_device(*ids: uuid.UUID) -> dict[uuid.UUID, Any]:
    """The answers of a device that inserted these records."""
    return {key: ToolResultBody(id=str(key), row={"id": "a-row"}) for key in ids}


API = "/api/v1/agents"


def rest_client(person: Person) -> APIClient:
    from rest_framework.test import APIClient

    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {person.access_token}")
    return client


def lose_worker(run: Run) -> None:
    """End the lease of a run, as if its worker had stopped renewing it."""
    Run.objects.filter(pk=run.pk).update(lease_until=timezone.now() - dt.timedelta(seconds=1))
