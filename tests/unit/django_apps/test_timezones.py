"""Names of time zones: those of the IANA database, and not the files that lie beside them."""

from __future__ import annotations

import pytest
from django.core.exceptions import ValidationError

from adiuva.accounts.validators import validate_timezone


@pytest.mark.parametrize(
    "name", ["localtime", "Factory", "posixrules", "Mars/Olympus", "europe/rome", "", "../UTC"]
)
def test_what_is_no_zone_of_the_database_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        validate_timezone(name)


@pytest.mark.parametrize("name", ["Europe/Rome", "UTC", "Asia/Kolkata"])
def test_its_zones_are_accepted(name: str) -> None:
    validate_timezone(name)
