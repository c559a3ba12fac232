"""A person at a desk, for tests of runs from end to end; nobody, for those that count what there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fakes.provider import Provider

if TYPE_CHECKING:
    from tests.agents.device_owner import DeviceOwner


@pytest.fixture(autouse=True)
def _nobody_else(request: pytest.FixtureRequest) -> None:
    """Where all is rolled back, what others have committed is gone as well: ticks and sweeps count everybody's."""
    if "db" in request.fixturenames or request.node.get_closest_marker("django_db"):
        request.getfixturevalue("db")
        from adiuva.devices.models import OutboxRecord
        from agents.models import Agent, Run

        Run.objects.live().update(state=Run.State.CANCELLED)  # a worker may still be writing for one
        OutboxRecord.objects.all().delete()
        Agent.objects.exclude(next_run_at=None).update(next_run_at=None)


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
