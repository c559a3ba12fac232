"""Production refuses to start on what is for development; real processes show it."""

from __future__ import annotations

import base64
import inspect
import os
import re
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.checks import run_checks
from django.test import override_settings

from adiuva import checks
from adiuva.checks import check_production, refuse_unsafe_start
from adiuva.embedded.processes import python
from tests.forkserver import ForkedChild

SAFE: dict[str, Any] = {
    "PRODUCTION": True,
    "SECRET_KEY": "s" * 40,
    "SECRET_KEY_FALLBACKS": [],
    "KEYS": [f"2026:{base64.b64encode(os.urandom(32)).decode()}"],
    "ALLOWED_HOSTS": ["adiuva.example"],
    "DEBUG": False,
    "EMBEDDED": False,
    "MODEL": {"model": "openai/some-model", "api_base": "", "api_key": ""},
    "PUBLIC_URL": "https://adiuva.example",
    "KEYS_APART": True,
    "MAIL_ENABLED": True,
    "PLUGIN_KEYS": [],
}


def found(**changed: Any) -> list[str]:
    with override_settings(**{**SAFE, **changed}):
        return [str(problem.id) for problem in check_production()]


def test_a_safe_installation_has_nothing_to_complain_about() -> None:
    assert found() == []
    with override_settings(**SAFE):
        refuse_unsafe_start()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"SECRET_KEY": settings.DEVELOPMENT_SECRET_KEY}, "adiuva.E001"),
        ({"SECRET_KEY_FALLBACKS": [settings.DEVELOPMENT_SECRET_KEY]}, "adiuva.E001"),
        ({"SECRET_KEY": "s" * 31}, "adiuva.E002"),
        ({"SECRET_KEY_FALLBACKS": ["short"]}, "adiuva.E002"),
        ({"KEYS": [settings.DEVELOPMENT_KEYS]}, "adiuva.E003"),
        ({"KEYS": [*SAFE["KEYS"], "renamed:" + settings.DEVELOPMENT_KEYS.partition(":")[2]]}, "adiuva.E003"),
        ({"ALLOWED_HOSTS": []}, "adiuva.E004"),
        ({"ALLOWED_HOSTS": ["adiuva.example", "*"]}, "adiuva.E004"),
        ({"DEBUG": True}, "adiuva.E005"),
        ({"EMBEDDED": True}, "adiuva.E006"),
        ({"MODEL": {"model": ""}}, "adiuva.W001"),
        ({"MODEL": {"model": "openai/adiuva-offline"}}, "adiuva.W002"),
        ({"PUBLIC_URL": "http://adiuva.example"}, "adiuva.W003"),
        ({"KEYS_APART": False}, "adiuva.W004"),
        ({"MAIL_ENABLED": False}, "adiuva.W006"),
    ],
)
def test_each_unsafe_setting_is_found_in_production_only(changed: dict[str, Any], expected: str) -> None:
    assert found(**changed) == [expected]
    assert found(**changed, PRODUCTION=False) == []
    with override_settings(**{**SAFE, **changed}):
        if expected.startswith("adiuva.E"):
            with pytest.raises(SystemExit, match=expected):
                refuse_unsafe_start()
        else:
            refuse_unsafe_start()


# ── Real processes ──────────────────────────────────────────────────────────────────────────────────────

COMMANDS = {
    "web": ["-m", "uvicorn", "adiuva.asgi:application", "--port", "0"],
    "worker": ["-m", "celery", "-A", "adiuva", "worker"],
    "beat": ["-m", "celery", "-A", "adiuva", "beat"],
    "check": ["-m", "manage", "check"],
}


def run(name: str, folder: Path) -> tuple[int, str]:
    """Run a command to its end with a database of its own, where nobody answers, and nothing else: its exit code, and
    all that it said."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ADIUVA_")}
    environment |= {
        "ADIUVA_ENV_FILE": os.devnull,
        "ADIUVA_STATE_DIR": str(folder),
        "DATABASE_URL": "postgresql://adiuva@127.0.0.1:9/adiuva",
    }
    process = ForkedChild(
        name, python(*COMMANDS[name]), folder / "log", env=environment, cwd=settings.BASE_DIR
    )
    process.start()
    try:
        return process.wait(within_s=60), process.log.read_text()
    finally:
        process.kill()


@pytest.mark.usefixtures("forkserver")
@pytest.mark.parametrize("name", COMMANDS)
def test_without_secrets_no_process_starts_in_production(name: str, tmp_path: Path) -> None:
    code, said = run(name, tmp_path)
    assert code != 0
    for problem in ("adiuva.E001", "adiuva.E003", "adiuva.E004"):
        assert problem in said
    assert "Traceback" not in said
    assert settings.DEVELOPMENT_SECRET_KEY not in said


@pytest.mark.django_db(transaction=False)
@pytest.mark.parametrize(
    ("least", "expected"),
    [({}, []), ({"_MIN_POSTGRES": (99, 0)}, ["adiuva.E007"]), ({"_MIN_PGVECTOR": (0, 99)}, ["adiuva.E008"])],
)
def test_postgresql_is_new_enough_before_it_gets_tables(
    monkeypatch: pytest.MonkeyPatch, least: dict[str, tuple[int, int]], expected: list[str]
) -> None:
    for name, version in least.items():
        monkeypatch.setattr(checks, name, version)
    found = run_checks(tags=["database"], databases=["default"])
    assert [problem.id for problem in found] == expected


@pytest.mark.django_db(transaction=False)
def test_postgresql_knows_every_time_zone_that_users_may_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements that begin and end turns ask it for the user's day and month."""
    monkeypatch.setattr(checks, "timezones", lambda: {"Europe/Rome", "UTC", "Mars/Olympus"})
    (problem,) = run_checks(tags=["database"], databases=["default"])
    assert problem.id == "adiuva.W007" and "choose: Mars/Olympus." in problem.msg


def test_each_check_has_an_id_of_its_own() -> None:
    ids = re.findall(r'id="(adiuva\.\w+)"', inspect.getsource(checks))
    assert len(ids) == len(set(ids)) > 15


@pytest.mark.parametrize(
    ("endpoint", "installed", "expected"),
    [
        ("", False, []),
        ("http://127.0.0.1:4318/v1/traces", True, []),
        ("http://127.0.0.1:4318/v1/traces", False, ["adiuva.E009"]),
        ("127.0.0.1:4318", True, ["adiuva.E010"]),
        ("https:///v1/traces", True, ["adiuva.E010"]),
    ],
)
def test_traces_that_cannot_be_made_or_sent_are_reported(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, installed: bool, expected: list[str]
) -> None:
    monkeypatch.setattr(settings, "TRACES_ENDPOINT", endpoint)
    monkeypatch.setattr(checks.tracing, "is_installed", lambda: installed)
    assert [problem.id for problem in checks.check_traces()] == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, []),
        ({"PLANS": True}, ["adiuva.E012"]),
        ({"INSTALLATION_BUDGET": 10}, ["adiuva.E012"]),
        ({"PLANS": True, "MODEL_FALLBACKS": ("openai/another",)}, ["adiuva.E012", "adiuva.E012"]),
        ({"PLANS": True, "MODEL_PRICE": "0.4,1.6"}, []),
        ({"PLANS": True, "MODEL_PRICE": "openai/another=0.4,1.6"}, ["adiuva.E012"]),
        ({"MODEL_PRICE": "cheap"}, ["adiuva.E013"]),
    ],
)
def test_a_model_without_a_price_is_reported_where_its_cost_is_limited(
    given: dict[str, Any], expected: list[str]
) -> None:
    ours = {"model": "openai/ours", "api_base": "", "api_key": ""}
    alone = {"PLANS": False, "INSTALLATION_BUDGET": None, "MODEL_PRICE": "", "MODEL_FALLBACKS": ()}
    with override_settings(**{**alone, "MODEL": ours, "MODELS_BY_PURPOSE": {"chat": ""}, **given}):
        assert [problem.id for problem in checks.check_prices()] == expected


_PLUGIN_KEY = base64.b64encode(os.urandom(32)).decode()


@pytest.mark.parametrize(
    ("keys", "production", "said"),
    [
        ([], True, None),
        ([f"2026:{_PLUGIN_KEY}"], True, None),
        ([f"2026:{_PLUGIN_KEY}", f"2026:{_PLUGIN_KEY}"], False, "cannot be read"),
        (["2026:c2hvcnQ="], False, "cannot be read"),
        ([settings.DEVELOPMENT_PLUGIN_KEYS], False, None),
        (["mine:" + settings.DEVELOPMENT_PLUGIN_KEYS.partition(":")[2]], True, "development key"),
    ],
)
def test_keys_that_plugins_cannot_be_signed_with_are_refused(
    keys: list[str], production: bool, said: str | None
) -> None:
    with override_settings(**{**SAFE, "PRODUCTION": production, "PLUGIN_KEYS": keys}):
        if said is None:
            refuse_unsafe_start()
            return
        with pytest.raises(SystemExit, match=f"adiuva.E014: ADIUVA_PLUGIN_KEYS .*{said}") as refused:
            refuse_unsafe_start()
    assert not any(entry.partition(":")[2] in str(refused.value) for entry in keys)
