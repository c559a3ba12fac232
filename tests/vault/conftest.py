from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from tests.factories import Person


@pytest.fixture
def mara(committed_db: str) -> Person:
    from tests.vault.helpers import payer

    return payer()


@pytest.fixture
def rest(web: str, mara: Person) -> Iterator[httpx.Client]:
    with mara.rest(web) as client:
        yield client
