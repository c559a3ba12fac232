from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rest_framework.test import APIClient


@pytest.fixture(autouse=True)
def _no_committed_rows(request: pytest.FixtureRequest) -> None:
    """Hide what other tests have committed from tests that are rolled back: sweeps and lists count everybody's rows."""
    if "db" in request.fixturenames or request.node.get_closest_marker("django_db"):
        request.getfixturevalue("db")
        from django.contrib.admin.models import LogEntry

        from adiuva.accounts.models import Mail, StaffAction

        for model in (Mail, StaffAction, LogEntry):
            model.objects.all().delete()


@pytest.fixture
def rest(db: None) -> APIClient:
    """A client that is not signed in."""
    from rest_framework.test import APIClient

    return APIClient()
