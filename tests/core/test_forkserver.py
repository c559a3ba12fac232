"""Processes that the tests fork behave as new ones: each has the settings of its own environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adiuva.embedded.processes import python
from tests.forkserver import ForkedChild

_SCRIPT = """
import django
django.setup()
from django.conf import settings
from django.core.cache import caches
from django.db import connection
from rest_framework.settings import api_settings
from adiuva import env_variables
print(settings.SECRET_KEY, connection.settings_dict["NAME"], caches["default"]._servers[0])
print(api_settings.DEFAULT_THROTTLE_RATES["login"], env_variables.LOGIN_RATE.read())
"""


@pytest.mark.usefixtures("forkserver")
def test_each_fork_reads_the_settings_of_its_own_environment(tmp_path: Path) -> None:
    for name, rate in [("one", "3/min"), ("two", "7/hour")]:
        env = {
            **os.environ,
            "ADIUVA_SECRET_KEY": f"the secret of {name}",
            "ADIUVA_LOGIN_RATE": rate,
            "DATABASE_URL": f"postgresql://127.0.0.1:9/{name}",
            "REDIS_URL": f"redis://127.0.0.1:9/{name}",
        }
        child = ForkedChild(name, python("-c", _SCRIPT), tmp_path / name, env=env)
        child.start()
        assert child.process is not None
        assert child.process.wait(60) == 0, child.log.read_text()
        assert child.log.read_text().splitlines() == [
            f"the secret of {name} {name} redis://127.0.0.1:9/{name}",
            f"{rate} {rate}",
        ]
