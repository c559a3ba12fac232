"""Nothing is set up, and no server starts, before a test needs it.

- Django is set up when the first module that needs it is collected: any but those directly in tests/unit.
- Each test process has its own Valkey, which starts with the first test outside tests/unit, and its own PostgreSQL,
  which starts with the first test that uses the database. DATABASE_URL and REDIS_URL name other servers to use.
- Where several processes share the tests, a migrated database is made once, and each PostgreSQL starts with a copy.
- The server that forks processes for tests starts with the first test that starts one.
- Where several processes share the tests, they are forks of one that has imported the tests (tests/worker_forks.py).

Django is not set up when conftest files are imported. So they import what needs it inside their fixtures, and what
costs much time to import, too.
"""

from __future__ import annotations

import base64
import gc
import os
import secrets
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import pytest

if TYPE_CHECKING:
    from pytest_django.plugin import DjangoDbBlocker

    from tests.factories import Person
    from tests.fakes.provider import Provider
    from tests.lazy_servers import LazyServers
    from tests.server_processes import Stack

_UNIT = Path(__file__).parent / "unit"
_stacks: list[Stack] = []


def pytest_configure(config: pytest.Config) -> None:
    if _is_controller(config):
        # The workers share what these start.
        _start_forkserver()
        _start_worker_forks(config)
        _start_template()
    else:
        gc.disable()  # collecting tests makes objects that stay: walking over them again and again frees nothing


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Prepare what a test module needs when it is imported."""
    if not isinstance(collector, pytest.Module):
        return
    if collector.path.parent != _UNIT:
        _set_up_django(collector.config)
    if b"hypothesis" in collector.path.read_bytes():
        _set_up_hypothesis()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)  # tests make much that stays until they end: a twentieth less CPU
    gc.enable()


def pytest_unconfigure() -> None:
    if _servers.cache_info().currsize:
        _servers().close()


def _is_controller(config: pytest.Config) -> bool:
    """Whether this process hands the tests to workers of pytest-xdist and runs none."""
    return not hasattr(config, "workerinput") and config.getoption("dist", "no") != "no"


@cache
def _servers() -> LazyServers:
    from tests.lazy_servers import LazyServers

    return LazyServers()


def _start_forkserver() -> None:
    from tests import forkserver

    if started := forkserver.start(_servers().folder):
        _servers().at_close(started.stop)


def _start_worker_forks(config: pytest.Config) -> None:
    from tests import worker_forks

    if started := worker_forks.start(_servers().folder, config):
        _servers().at_close(started.stop)


def _start_template() -> None:
    from tests import database_template

    if "DATABASE_URL" not in os.environ:
        database_template.start(_servers().folder / "template", _environment())


def _environment() -> dict[str, str]:
    """What a developer has configured must not reach the tests, nor the processes that they start."""
    # Every test talks to this machine, without TLS. Yet each new HTTP client would load all certificates of
    # authorities, which takes 40 ms.
    authorities = _servers().folder / "authorities"
    authorities.mkdir()
    of_this_machine = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ADIUVA_") and name != "SSL_CERT_FILE"
    }
    return of_this_machine | {
        "DJANGO_SETTINGS_MODULE": "adiuva.settings",
        "ADIUVA_ENV_FILE": os.devnull,
        "ADIUVA_STATE_DIR": str(_servers().folder / "state"),
        "ADIUVA_ENV": "development",
        "ADIUVA_SECRET_KEY": secrets.token_urlsafe(40),
        "ADIUVA_KEYS": f"test:{base64.b64encode(secrets.token_bytes(32)).decode()}",
        "ADIUVA_MODEL": "openai/nowhere",
        "ADIUVA_MODEL_API_BASE": "http://127.0.0.1:9/v1",
        "ADIUVA_LOGIN_ADDRESS_RATE": "100000/min",  # all tests come from one address
        "ADIUVA_LOG_LEVEL": "INFO",
        "DATABASE_URL": _servers().database_url,
        "REDIS_URL": _servers().redis_url,
        "SSL_CERT_DIR": str(authorities),
    }


@cache
def _set_up_django(config: pytest.Config) -> None:
    wanted = _environment()
    for name in [name for name in os.environ if name not in wanted]:
        del os.environ[name]
    os.environ |= wanted
    import django
    from django.conf import settings
    from pytest_django.plugin import blocking_manager_key

    django.setup()
    settings.PASSWORD_HASHERS = ["tests.accounts.hashers.FastArgon2id"]
    # Each test's client would look through all static files at its start.
    settings.WHITENOISE_AUTOREFRESH = True
    config.stash[blocking_manager_key].block()  # as pytest-django does when it sets Django up itself


@cache
def _set_up_hypothesis() -> None:
    """Before the first module that uses it is imported: its decorators read the profile."""
    import hypothesis

    from tests.sampling import fewer

    hypothesis.settings.register_profile("tests", deadline=None, max_examples=fewer(100))
    hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True, scope="session")
def valkey() -> None:
    """Valkey runs. Every test outside tests/unit has it, because much of the code uses it implicitly."""
    _servers().start_valkey()


@pytest.fixture(scope="session")
def postgres() -> None:
    """PostgreSQL runs. Tests ask for `db` or `committed_db` instead, which also make the test database."""
    _servers().start_postgres()


@pytest.fixture(scope="session")
def forkserver() -> None:
    """The server that forks processes runs: they start faster. A `ForkedChild` starts without it, too, but slower."""
    _start_forkserver()


# ── The database ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def django_db_setup(
    postgres: None,
    django_test_environment: None,
    django_db_modify_db_settings: None,
    django_db_blocker: DjangoDbBlocker,
) -> None:
    """Create the test database. pytest-django's own fixture creates it only where a test asks for `db`.

    Nothing tears it down: processes may still be connected to it, and the whole server is removed at the end.
    """
    from django.test.utils import setup_databases

    with django_db_blocker.unblock():
        if _servers().has_test_database:
            _use_copied_database()
        else:
            setup_databases(verbosity=0, interactive=False, aliases={"default"})
        _servers().watch_tables(_url_of_test_database())


def _use_copied_database() -> None:
    """What Django does once it has made a test database."""
    from django.conf import settings
    from django.db import connection

    from tests.database_template import NAME

    settings.DATABASES["default"]["NAME"] = connection.settings_dict["NAME"] = NAME


@pytest.fixture(scope="session")
def committed_db(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[str]:
    """The URL of the test database, for tests that commit rows so that other processes see them.

    Nothing is rolled back, and tables are emptied only after the module: each test makes its own users and counts only
    their rows.
    """
    with django_db_blocker.unblock():
        yield _url_of_test_database()


def _url_of_test_database() -> str:
    from django.db import connection

    given = urlsplit(os.environ["DATABASE_URL"])
    return given._replace(path="/" + quote(connection.settings_dict["NAME"])).geturl()


@pytest.fixture
def transactional_db() -> None:
    """In place of pytest-django's, which empties all tables after each test: running servers use them."""
    pytest.fail("Use the fixture committed_db: transactional_db empties tables that running servers read.")


@pytest.fixture
def person(committed_db: str) -> Person:
    """A new user, who is signed in."""
    from tests.factories import somebody

    return somebody()


@pytest.fixture(autouse=True, scope="module")
def _nothing_left() -> Iterator[None]:
    """When the module is over, and the processes that it started have ended: remove what it left in our servers.

    Else the processes and the tests of other modules would find work that is due, and do it.
    """
    yield
    if _servers.cache_info().currsize:
        _servers().empty()


# ── Processes ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def stack(
    committed_db: str, forkserver: None, _provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Starts real server processes on request. They use the test database, and the fake provider as their model.

    They end with the module: they look for work all the time, and would take what tests of other modules do themselves.
    """
    from tests.server_processes import Stack, model_of

    started = Stack(committed_db, tmp_path_factory.mktemp("logs"), **model_of(_provider))
    _stacks.append(started)
    yield started
    _stacks.remove(started)
    started.stop()


@pytest.fixture(scope="module")
def web(stack: Stack) -> str:
    """The base URL of a real web process."""
    return stack.web()


@pytest.fixture
def web_on(stack: Stack, request: pytest.FixtureRequest) -> str:
    """The base URL of a web process behind the ASGI server named by the test's (indirect) parameter."""
    return stack.web(request.param)


@pytest.fixture(scope="session")
def _provider() -> Iterator[Provider]:
    from tests.fakes.provider import Provider

    with Provider() as provider:
        yield provider


@pytest.fixture
def unlearnt_limits() -> None:
    """Forget how many calls at once each endpoint takes, which the faults of earlier tests may have lowered."""
    from adiuva.core.redis import sync_redis

    redis = sync_redis("heartbeat")
    if keys := list(redis.scan_iter("adiuva:model_limit:*", count=1_000)):
        redis.delete(*keys)


@pytest.fixture
def provider(_provider: Provider, unlearnt_limits: None) -> Iterator[Provider]:
    """The fake model provider that server processes use. Its script and its counts are empty.

    No server takes up a turn that an earlier test has left: it would take a step of this test's script.
    """
    from chat.models import Turn
    from tests.llm.learnt import know_that_it_shows_no_thoughts, know_that_it_takes_everything

    if _stacks:
        Turn.objects.filter(state__in=[Turn.State.WAITING, Turn.State.RUNNING]).delete()
    _provider.reset()
    know_that_it_shows_no_thoughts(_provider.url, "openai/scripted")
    know_that_it_takes_everything(_provider.url, "openai/scripted")
    yield _provider
    _provider.reset()  # tests that do not ask for it get plain answers


@pytest.fixture(scope="module")
def worker(stack: Stack) -> None:
    """A real Celery worker runs, with the fake provider as its model."""
    stack.worker(ADIUVA_EMBEDDING_MODEL="")


# These take longest, and mostly wait. They start first, so that no worker is left alone with one at the end.
_LONG = ("agents/test_chaos", "embedded/test_up", "agents/test_end_to_end", "agents/test_faults")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules come first. pytest-randomly has shuffled the rest."""
    items.sort(key=lambda item: not any(f"tests/{name}" in item.nodeid for name in _LONG))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the last log lines of the server processes, and what the model was asked, beside a test that failed."""
    report = yield
    if report.failed:
        asked = getattr(item, "funcargs", {}).get("provider")
        if hasattr(asked, "story"):
            report.sections.append(("requests at the model provider", asked.story()))
        report.sections += [(f"log of {name}", text) for stack in _stacks for name, text in stack.tails()]
    return report
