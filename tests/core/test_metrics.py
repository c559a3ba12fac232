"""Prometheus metrics: counts of work, in bounded labels, never content."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import uuid

import httpx
import pytest
import yaml
from django.db import connections
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from pytest_django import Settings
from rest_framework.test import APIClient

from adiuva import llm
from adiuva.core import metrics
from adiuva.core.env import BASE_DIR
from adiuva.embedded.ports import free_port
from tests.fakes.provider import Provider


def scrape(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").raise_for_status().text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture
def port(settings: Settings) -> int:
    settings.METRICS_PORT, settings.METRICS_HOST = free_port(), "127.0.0.1"
    metrics.serve()
    return int(settings.METRICS_PORT)


def test_requests_are_counted_by_the_pattern_of_their_route_and_refusals_by_code(db: None, port: int) -> None:
    client, word = APIClient(), uuid.uuid4().hex
    before = scrape(port)
    client.get("/api/v1/health")
    client.get(f"/api/v1/devices/{uuid.uuid4()}")
    client.get(f"/api/v1/{word}?q={word}")
    client.generic(word, "/api/v1/health")
    after = scrape(port)

    def gained(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    route = "api/v1/health"
    assert gained("adiuva_requests_total", method="GET", route=route, status="200") == 1
    assert gained("adiuva_requests_total", method="other", route=route, status="405") == 1
    assert gained("adiuva_request_seconds_count", method="GET", route=route) == 1
    assert gained("adiuva_errors_total", where="rest", code="not_authenticated") >= 1
    assert not any(word in str(key) for key in after)


async def test_a_call_of_a_model_counts_once_with_its_tokens_and_its_outcome(port: int) -> None:
    name = f"openai/{uuid.uuid4().hex}"
    with Provider() as provider:
        model = llm.chat_model({**provider.settings(uuid.uuid4().hex), "model": name})
        ask = [{"role": "user", "content": "a private word"}]
        await model.complete(ask)
        async for _ in model.stream(ask):
            pass
        await llm.aclose()
    after = await asyncio.to_thread(scrape, port)
    assert value(after, "adiuva_model_calls_total", model=model.name, outcome="ok") == 2
    assert value(after, "adiuva_model_tokens_total", model=model.name, direction="output") > 0
    assert not any("private" in str(key) for key in after)


def test_a_label_never_gets_more_codes_than_there_are_meant_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_codes", set())
    told = {metrics._bounded(f"code_{number}") for number in range(1000)}
    assert len(told) == metrics._MOST_CODES + 1 and "other" in told
    assert metrics._bounded("code_1") == "code_1"


def test_the_database_is_asked_by_beat_alone_and_its_silence_is_no_zero(
    committed_db: str, port: int, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(name == "adiuva_store_readable" for name, _ in scrape(port))  # a web process's port
    settings.METRICS_PORT = free_port()
    served = CollectorRegistry()
    metrics.serve(registry=served)
    for _ in range(2):  # beat in a worker, which serves its own counters already, and beat that started again
        metrics.serve(with_store_facts=True, registry=served)
    found = scrape(settings.METRICS_PORT)
    assert value(found, "adiuva_store_readable") == 1
    for name in ("adiuva_runs_queued", "adiuva_run_queue_age_seconds", "adiuva_devices_online"):
        assert (name, frozenset()) in found
    assert ("adiuva_outbox_records", frozenset({("state", "waiting")})) in found

    def broken() -> metrics.Samples:
        raise connections["default"].Database.OperationalError("a row")

    metrics.at_scrape("adiuva_broken", "A gauge that cannot be read.", (), broken)
    try:
        found = scrape(settings.METRICS_PORT)
    finally:
        metrics._facts.pop()
    assert value(found, "adiuva_store_readable") == 0
    assert ("adiuva_runs_queued", frozenset()) not in found


def test_alerts_ask_for_metrics_that_exist() -> None:
    names = {sample.name for family in REGISTRY.collect() for sample in family.samples}
    names |= {f"{family.name}_total" for family in REGISTRY.collect() if family.type == "counter"}
    names |= {fact.name for fact in metrics._facts} | {"adiuva_store_readable"}
    file = BASE_DIR / "deploy" / "prometheus-rules.yaml"
    rules = yaml.safe_load(file.read_text())["groups"][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["annotations"]["summary"]
        assert set(re.findall(r"\badiuva_\w+", rule["expr"])) <= names
    if program := shutil.which("promtool"):
        subprocess.run([program, "check", "rules", file], check=True)
