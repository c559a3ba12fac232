"""The cache holds JSON: what somebody plants in Redis is read, and never run."""

from __future__ import annotations

import ast
import pickle
import uuid
from pathlib import Path
from typing import Any

import pytest
import redis
from django.conf import settings
from django.core.cache import cache, caches

ROOT = Path(__file__).resolve().parents[2]
ran: list[str] = []


class _Bomb:
    def __reduce__(self) -> Any:
        return ran.append, ("boom",)


@pytest.mark.parametrize("value", ["text", 7, -1, True, None, 1.5, ["a", {"b": "ü"}], "12"])
def test_cached_values_are_returned_unchanged(value: object) -> None:
    key = uuid.uuid4().hex
    cache.set(key, value, 10)
    assert cache.get(key, "absent") == value
    assert type(cache.get(key)) is type(value)


def test_counters_are_incremented() -> None:
    key = uuid.uuid4().hex
    assert cache.add(key, 1, 10)
    assert cache.incr(key) == 2
    assert cache.get(key) == 2


def test_a_pickle_planted_in_the_cache_is_not_executed() -> None:
    key = uuid.uuid4().hex
    with redis.Redis.from_url(settings.REDIS_URL) as server:
        server.set(caches["default"].make_and_validate_key(key), pickle.dumps(_Bomb()))
    with pytest.raises(ValueError):
        cache.get(key)
    assert ran == []


def test_no_module_unpickles() -> None:
    """Neither our code nor the parts that are configured to write into Redis or the database."""
    readers = {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib", "jsonpickle"}
    found = [
        str(path)
        for app in ("adiuva", "agents", "billing", "chat", "integrations", "memory")
        for path in (ROOT / app).rglob("*.py")
        if any(name in path.read_text("utf-8") for name in readers)  # parsing them all takes 3 s
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and readers & {getattr(node, "module", None), *(name.name for name in node.names)}
    ]
    assert found == []
    assert settings.CELERY_ACCEPT_CONTENT == ["json"]
    assert settings.CELERY_TASK_SERIALIZER == "json"
    assert settings.CELERY_RESULT_BACKEND is None
    assert settings.SESSION_SERIALIZER.endswith("JSONSerializer")
