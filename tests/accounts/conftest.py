from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rest_framework.test import APIClient


@pytest.fixture
def rest(db: None) -> APIClient:
    """A client that is not signed in."""
    from rest_framework.test import APIClient

    return APIClient()
