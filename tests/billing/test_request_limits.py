"""Request limits of plans, over REST and over the socket."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from adiuva.core.redis import sync_redis
from billing import plans, request_limits
from tests.agents.factories import rest_client
from tests.factories import somebody

pytestmark = pytest.mark.django_db
CATALOG = "/api/v1/agents/catalog"


@pytest.fixture(autouse=True)
def plans_on(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.PLANS = True
    monkeypatch.setattr(request_limits, "_redis_away_until", 0.0)
    plans.forget()
    plans.by_tier()


def until_refused(client: APIClient) -> list[Any]:
    """Answers until the first 429. On a slow machine some more come back while twenty are made."""
    began, answers = time.monotonic(), [client.get(CATALOG)]
    while answers[-1].status_code == 200:
        answers.append(client.get(CATALOG))
    more = (time.monotonic() - began) * plans.plan_of("free").requests_per_minute / 60
    assert answers[-1].status_code == 429 and 20 <= len(answers) - 1 <= 20 + more
    return answers


def test_the_free_plan_lets_twenty_through_at_once_and_says_what_is_left() -> None:
    client = rest_client(somebody())
    answers = until_refused(client)
    assert [answers[0][f"RateLimit-{name}"] for name in ("Limit", "Remaining")] == ["20", "19"]
    refused = answers[-1]
    assert (refused.json()["code"], refused["RateLimit-Remaining"]) == ("throttled", "0")
    assert refused["Retry-After"] == str(refused.json()["retry_after_s"]) in {"1", "2", "3"}
    assert (
        50 <= int(refused["RateLimit-Reset"]) <= 60
    )  # as of that moment, however long it took to come to it
    assert rest_client(somebody()).get(CATALOG).status_code == 200
    assert rest_client(somebody(tier="power")).get(CATALOG)["RateLimit-Limit"] == "120"


def test_a_tier_costs_a_request_no_query_and_one_round_trip() -> None:
    client, redis = rest_client(somebody(tier="pro")), sync_redis("request_limits")
    client.get(CATALOG)
    redis.config_resetstat()
    with CaptureQueriesContext(connection) as queries:
        assert client.get(CATALOG).status_code == 200
    assert len(queries) == 1  # the session with its user
    calls = {name: stat["calls"] for name, stat in redis.info("commandstats").items()}
    assert calls["cmdstat_evalsha"] == 1


def test_what_comes_at_once_gets_exactly_what_the_plan_allows() -> None:
    user_id = uuid4()
    with ThreadPoolExecutor(20) as threads:
        verdicts = list(threads.map(lambda _: request_limits.take(user_id, "free")[1], range(100)))
    assert sum(not verdict.wait_s for verdict in verdicts) == 20


def test_without_redis_this_process_counts_alone(settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    until_refused(rest_client(somebody()))


def test_without_plans_nobody_is_counted(settings: Any) -> None:
    settings.PLANS = False
    assert "RateLimit-Limit" not in rest_client(somebody()).get(CATALOG)
