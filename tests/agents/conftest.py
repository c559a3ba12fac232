"""Fixtures of the agents' tests: people, claimed runs, and a person with a device for tests from end to end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fakes.provider import Provider

if TYPE_CHECKING:
    from rest_framework.test import APIClient

    from agents.claimed_runs import ClaimedRun
    from tests.agents.device_owner import DeviceOwner
    from tests.factories import Person


@pytest.fixture(autouse=True)
def _no_committed_rows(request: pytest.FixtureRequest) -> None:
    """Hide what other tests have committed from tests that are rolled back: ticks and sweeps count everybody's rows."""
    if "db" in request.fixturenames or request.node.get_closest_marker("django_db"):
        request.getfixturevalue("db")
        from adiuva.devices.models import OutboxRecord
        from agents.models import Agent, Run

        Run.objects.live().update(state=Run.State.CANCELLED)  # a worker may still be writing for one
        OutboxRecord.objects.all().delete()
        Agent.objects.exclude(next_run_at=None).update(next_run_at=None)


@pytest.fixture
def ada(db: None) -> Person:
    from tests.factories import somebody

    return somebody()


@pytest.fixture
def rest(ada: Person) -> APIClient:
    from tests.agents.factories import rest_client

    return rest_client(ada)


@pytest.fixture
def claimed(ada: Person) -> ClaimedRun:
    """A claimed run of an agent whose device is known."""
    from tests.agents.factories import claim_run, create_agent, create_device, create_run

    agent = create_agent(ada.id)
    create_device(agent)
    return claim_run(create_run(agent))


@pytest.fixture
async def desk(web: str, worker: None, provider: Provider, tmp_path: Path) -> AsyncIterator[DeviceOwner]:
    from adiuva.core import db
    from tests.agents.device_owner import DeviceOwner
    from tests.factories import somebody

    folder = tmp_path / "documents"
    folder.mkdir()
    made = DeviceOwner(web, await db.run(somebody, timezone="Europe/Rome"), folder)
    yield made
    await made.rest.aclose()
