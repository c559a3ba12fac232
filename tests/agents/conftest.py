"""A person at a desk, for tests of runs from end to end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fakes.provider import Provider

if TYPE_CHECKING:
    from tests.agents.test_runs import Desk


@pytest.fixture
async def desk(web: str, worker: None, provider: Provider, tmp_path: Path) -> AsyncIterator[Desk]:
    from adiuva import db
    from tests.agents.test_runs import Desk
    from tests.people import somebody

    folder = tmp_path / "documents"
    folder.mkdir()
    made = Desk(web, await db.run(somebody, timezone="Europe/Rome"), folder)
    yield made
    await made.rest.aclose()
