"""Somebody who connects accounts at providers on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.identity import Identity

if TYPE_CHECKING:
    from tests.integrations.browser_user import Owner


@pytest.fixture(scope="session")
def _identity() -> Iterator[Identity]:
    with Identity() as identity:
        yield identity


@pytest.fixture
def identity(_identity: Identity, settings: Any) -> Identity:
    """Google's and Microsoft's sign-in, with nothing scripted and nothing granted yet; the settings point there."""
    _identity.reset()
    settings.GOOGLE, settings.MICROSOFT = _identity.google(), _identity.microsoft()
    return _identity


@pytest.fixture
def owner(committed_db: str, identity: Identity) -> Owner:
    from tests.integrations.browser_user import Owner

    return Owner(identity)
