"""Use of models: written once, added up, and shown to users and to staff."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connections
from django.db.models import Q
from rest_framework.test import APIClient

from adiuva.llm import Meter, ModelUse
from adiuva.llm.types import Usage
from billing import usage, usage_reports
from billing.models import Purpose, Use
from tests.factories import Person, somebody


def use_of(model: str, calls: int = 1, tokens: int = 10) -> ModelUse:
    return ModelUse(model, calls, tokens, tokens // 2, 1, cost_micro=tokens)


@pytest.fixture
def person(db: None) -> Person:
    return somebody()


def test_use_is_added_up_by_day_purpose_agent_and_model(person: Person) -> None:
    agent = uuid.uuid4()
    for _ in range(2):
        usage.record(person.id, Purpose.CHAT, [use_of("b"), use_of("a", 2, 20)])
        usage.record(person.id, Purpose.AGENTS, [use_of("a")], agent)
    rows = Use.objects.of(person.id).order_by("purpose", "model")
    assert list(rows.values_list("purpose", "agent", "model", "calls", "input_tokens", "cost_micro")) == [
        ("agents", agent, "a", 2, 20, 20),
        ("chat", None, "a", 4, 40, 40),
        ("chat", None, "b", 2, 20, 20),
    ]


def test_recording_is_one_statement(person: Person, django_assert_num_queries: object) -> None:
    with django_assert_num_queries(1):  # type: ignore[operator]
        usage.record(person.id, Purpose.CHAT, [use_of("a"), use_of("b")])
    with django_assert_num_queries(0):  # type: ignore[operator]
        usage.record(person.id, Purpose.CHAT, [])


def test_the_use_of_an_account_that_is_gone_is_nobodys(db: None) -> None:
    gone, model = uuid.uuid4(), uuid.uuid4().hex
    usage.record(gone, Purpose.CHAT, [use_of(model)])
    assert not Use.objects.filter(Q(user=gone) | Q(model=model)).exists()


def test_what_is_recorded_at_once_is_all_counted(committed_db: None) -> None:
    person = somebody()

    def record(number: int) -> None:
        try:
            usage.record(person.id, Purpose.CHAT, [use_of("a"), use_of("b")][:: 1 if number % 2 else -1])
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(record, range(40)))
    assert list(Use.objects.of(person.id).order_by("model").values_list("calls", flat=True)) == [40, 40]


def test_a_meter_that_could_not_be_written_counts_again() -> None:
    meter = Meter(uuid.uuid4(), "chat")
    meter.add("a", Usage(5, 5), None, is_estimated=False, most_micro=None)
    taken = meter.take()
    meter.add("a", Usage(5, 5), None, is_estimated=True, most_micro=None)
    meter.give_back(taken)
    (use,) = meter.uses()
    assert (use.calls, use.input_tokens, use.estimated_calls) == (2, 10, 1)


def test_the_month_is_shown_to_its_user_alone(person: Person) -> None:
    agent = uuid.uuid4()
    usage.record(person.id, Purpose.CHAT, [use_of("a", 3, 30)])
    usage.record(person.id, Purpose.AGENTS, [use_of("b", 1, 50)], agent)
    client = APIClient()
    assert client.get("/api/v1/usage").status_code == 401
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {person.access_token}")
    body = client.get("/api/v1/usage").json()
    assert (body["calls"], body["cost_micro"], body["currency"]) == (4, 80, "EUR")
    assert body["by_purpose"]["chat"]["cost_micro"] == 30 and body["by_purpose"]["memory"]["calls"] == 0
    assert [(each["agent_id"], each["cost_micro"]) for each in body["by_agent"]] == [(str(agent), 50)]
    assert [each["model"] for each in body["by_model"]] == ["b", "a"]
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {somebody().access_token}")
    assert client.get("/api/v1/usage").json()["calls"] == 0


def test_staff_see_the_days_by_model(person: Person) -> None:
    name = uuid.uuid4().hex  # other tests have their own
    usage.record(person.id, Purpose.CHAT, [use_of(name, 3, 30)])
    usage.record(somebody().id, Purpose.MEMORY, [use_of(name, 1, 10)])
    day = Use.objects.of(person.id).get().day
    shown = [row for row in usage_reports.by_day_and_model(day) if row[1] == name]
    assert shown == [(day, name, 4, 40, 20, 2, 40)]
    assert usage_reports.by_day_and_model(day, user_id=person.id) == [(day, name, 3, 30, 15, 1, 30)]
