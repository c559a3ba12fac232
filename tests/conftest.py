"""Every test process gets a PostgreSQL and a Valkey of its own, unless DATABASE_URL and REDIS_URL are given.

They start before adiuva.core.env and Django's settings are imported, and die with the process that started them. So
conftest files below this one import what needs settings inside their fixtures only.
"""

from __future__ import annotations

import base64
import gc
import os
import secrets
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote, urlsplit

import django
import hypothesis
import pytest
from django.conf import settings
from pytest_django.plugin import DjangoDbBlocker

from adiuva.embedded.postgres import Postgres
from adiuva.embedded.state_folder import is_process
from adiuva.embedded.valkey import Valkey
from tests import forkserver
from tests.fakes.provider import Provider
from tests.server_processes import Stack, model_of

hypothesis.settings.register_profile("no clocks", deadline=None)
hypothesis.settings.load_profile("no clocks")

_FOLDERS = "adiuva-test-"
_servers = ExitStack()
_stacks: list[Stack] = []


def pytest_configure(config: pytest.Config) -> None:
    """Servers first, then Django: pytest-django sees that it is set up, and guards the database."""
    folder = _make_folder()
    if started := forkserver.begin(folder):
        _servers.callback(started.stop)
    if not _is_controller(config):
        gc.disable()  # what collecting tests makes is kept: to look through it again and again frees nothing
        _set_environment(folder)
        django.setup()
        settings.PASSWORD_HASHERS = ["tests.accounts.hashers.Quick"]


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    _servers.close()


def _is_controller(config: pytest.Config) -> bool:
    """Whether this process hands the tests to others and runs none."""
    return not hasattr(config, "workerinput") and config.getoption("dist", "no") != "no"


def _make_folder() -> Path:
    """The folder of this process, named by its id; those of processes that were killed are removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_FOLDERS}*"):
        pid = left.name.removeprefix(_FOLDERS).partition("-")[0]
        if pid.isdigit() and not is_process(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDERS}{os.getpid()}-"))
    folder.chmod(0o711)  # for PostgreSQL's user, where we are root
    _servers.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _set_environment(folder: Path) -> None:
    """What a developer has configured must not reach the tests, nor the processes that they start."""
    given = {name: os.environ.get(name) for name in ("DATABASE_URL", "REDIS_URL")}
    for name in [name for name in os.environ if name.startswith("ADIUVA_")]:
        del os.environ[name]
    password = secrets.token_hex(16)
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "adiuva.settings",
        "ADIUVA_ENV_FILE": os.devnull,
        "ADIUVA_STATE_DIR": str(folder / "state"),
        "ADIUVA_ENV": "development",
        "ADIUVA_SECRET_KEY": secrets.token_urlsafe(40),
        "ADIUVA_KEYS": f"test:{base64.b64encode(secrets.token_bytes(32)).decode()}",
        "ADIUVA_MODEL": "openai/nowhere",
        "ADIUVA_MODEL_API_BASE": "http://127.0.0.1:9/v1",
        "ADIUVA_LOGIN_ADDRESS_RATE": "100000/min",  # all tests come from one address
        "ADIUVA_LOG_LEVEL": "INFO",
        "DATABASE_URL": given["DATABASE_URL"] or _start_postgres(folder, password),
        "REDIS_URL": given["REDIS_URL"] or _start_valkey(folder, password),
    }


def _start_postgres(folder: Path, password: str) -> str:
    server = Postgres(folder / "postgres", password=password, log=folder / "postgres.log", durable=False)
    url = server.start()
    _servers.callback(lambda: shutil.rmtree(server.home, ignore_errors=True))  # not always below our folder
    _servers.callback(server.stop)
    return url


def _start_valkey(folder: Path, password: str) -> str:
    server = Valkey(folder / "valkey", password=password, log=folder / "valkey.log", durable=False)
    _servers.callback(server.stop)
    return server.start()


# ── The database ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def django_db_setup(
    django_test_environment: None, django_db_modify_db_settings: None, django_db_blocker: DjangoDbBlocker
) -> None:
    """The test database, also where no test asks for `db`: pytest-django would leave it out then.

    It is never torn down: the whole server goes in the end, and processes may still be connected to it.
    """
    from django.test.utils import setup_databases

    with django_db_blocker.unblock():
        setup_databases(verbosity=0, interactive=False, aliases={"default"})


@pytest.fixture(scope="session")
def committed_db(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[str]:
    """The test database with its address, for tests whose data other processes are to see.

    Nothing is rolled back or truncated: each test makes users of its own, and counts only what is theirs.
    """
    from django.db import connection

    given = urlsplit(os.environ["DATABASE_URL"])
    with django_db_blocker.unblock():
        yield given._replace(path="/" + quote(connection.settings_dict["NAME"])).geturl()


# ── Processes ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def stack(
    committed_db: str, _provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Starts real server processes when asked, on the committed test database; their model is the provider."""
    started = Stack(committed_db, tmp_path_factory.mktemp("logs"), **model_of(_provider))
    _stacks.append(started)
    yield started
    _stacks.remove(started)
    started.stop()


@pytest.fixture(scope="session")
def web(stack: Stack) -> str:
    """The base URL of a real web process."""
    return stack.web()


@pytest.fixture
def web_on(stack: Stack, request: pytest.FixtureRequest) -> str:
    """The same behind the ASGI server that the test is parametrised with, indirectly."""
    return stack.web(request.param)


@pytest.fixture(scope="session")
def _provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def provider(_provider: Provider) -> Provider:
    """The model that the worker asks, with nothing scripted and nothing counted yet."""
    _provider.reset()
    return _provider


@pytest.fixture(scope="session")
def worker(stack: Stack) -> None:
    """A real Celery worker is up, whose model is the scripted provider."""
    stack.worker(ADIUVA_EMBEDDING_MODEL="")


# What takes longest, most of it waiting: begun first, it does not keep all others waiting in the end.
_LONG = ("agents/test_chaos", "embedded/test_up", "agents/test_flow", "agents/test_faults")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order is random, and the longest modules are the first of it."""
    items.sort(key=lambda item: not any(f"tests/{name}" in item.nodeid for name in _LONG))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the server processes said last."""
    report = yield
    if report.failed:
        report.sections += [(f"log of {name}", text) for stack in _stacks for name, text in stack.tails()]
    return report
