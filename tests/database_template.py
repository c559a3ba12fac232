"""The migrated test database, made once for all test processes of a run: each copies it into a server of its own.

To migrate takes 5 s of CPU, to copy the data a tenth of one. A process of its own makes it while the others collect
tests. Where DATABASE_URL names another server, or one process runs all tests, there is no template.
"""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from adiuva.embedded.postgres import Postgres
from adiuva.embedded.processes import python
from tests.forkserver import ForkedChild

NAME = "test_adiuva"
_VARIABLE = "TESTS_DATABASE_TEMPLATE"
_PASSWORD, _DATA, _IS_OVER = "password", "data", "over"
_ROOT = Path(__file__).resolve().parent.parent
_PATIENCE_S = 600.0


def start(folder: Path, env: Mapping[str, str]) -> None:
    """Have the template made, for this process and those that it starts. `env` has the settings of tests."""
    folder.mkdir(mode=0o711)  # PostgreSQL runs as another user when we are root
    secret = folder / _PASSWORD
    secret.touch(mode=0o600)
    secret.write_text(secrets.token_hex(16))
    os.environ[_VARIABLE] = str(folder)
    environment = {**env, _VARIABLE: str(folder)}
    child = ForkedChild("template", python("-m", __name__), folder / "log", env=environment, cwd=_ROOT)

    def run() -> None:
        try:
            child.start()  # returns only once the server that forks it has imported its modules
            child.wait(within_s=_PATIENCE_S)
        finally:
            with suppress(FileNotFoundError):  # at the end of the run
                (folder / _IS_OVER).touch()

    threading.Thread(target=run, daemon=True).start()


def password() -> str | None:
    """The password of a server that holds a copy of the template. None if there is none."""
    folder = os.environ.get(_VARIABLE)
    return Path(folder, _PASSWORD).read_text() if folder else None


def copy(home: Path) -> bool:
    """Copy the template into the folder where a server will look for its data. False if there is none."""
    if _VARIABLE not in os.environ:
        return False
    folder = Path(os.environ[_VARIABLE])
    while not (folder / _IS_OVER).exists():
        time.sleep(0.05)
    if not (folder / _DATA).exists():
        return False  # a test process that makes its own database will show why
    home.mkdir(mode=0o700)
    subprocess.run(["cp", "-Rp", folder / _DATA, home / "data"], check=True)
    return True


def _make(folder: Path) -> None:
    gc.disable()  # migrations make thousands of classes
    server = Postgres(
        folder / "postgres", password=password() or "", log=folder / "postgres.log", durable=False
    )
    try:
        os.environ["DATABASE_URL"] = server.start()
        import django

        django.setup()
        from django.db import connections
        from django.test.utils import setup_databases

        setup_databases(verbosity=0, interactive=False, aliases={"default"})
        assert connections["default"].settings_dict["NAME"] == NAME
        connections.close_all()
        server.stop()
        if server.home == folder / "postgres":  # else its user cannot reach copies either
            (server.home / "data").rename(folder / _DATA)
    finally:
        server.stop()
        shutil.rmtree(server.home, ignore_errors=True)


if __name__ == "__main__":
    _make(Path(os.environ[_VARIABLE]))
