"""The sign-in of an organisation that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.dns import NameServer
from tests.fakes.oidc import Oidc

if TYPE_CHECKING:
    from tests.billing.sso.teams import TeamOf


@pytest.fixture(scope="package")
def _provider() -> Iterator[Oidc]:
    with Oidc() as running:
        yield running


@pytest.fixture
def idp(_provider: Oidc, settings: Any) -> Oidc:
    from billing.sso import oidc

    settings.SSO_NETWORKS = ["127.0.0.0/8"]
    oidc.forget()
    _provider.reset()
    return _provider


@pytest.fixture(scope="package")
def _name_server() -> Iterator[NameServer]:
    with NameServer() as running:
        yield running


@pytest.fixture
def name_server(_name_server: NameServer, settings: Any) -> NameServer:
    settings.SSO_DNS = [_name_server.address]
    _name_server.records, _name_server.is_silent = {}, False
    return _name_server


@pytest.fixture
def team(db: None, idp: Oidc, name_server: NameServer, settings: Any) -> TeamOf:
    """A team that signs in through the fake provider, with one proven domain."""
    from tests.billing.sso.teams import TeamOf

    settings.PLANS = True
    return TeamOf(idp, name_server)
