"""A schedule through the front door: what it means is answered, and a device that says hello gets what is due."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest
from django.utils import timezone

from adiuva.core import db
from agents.models import Agent, Run
from tests.agents.factories import create_agent
from tests.factories import Person, somebody
from tests.socket_client import Socket

if TYPE_CHECKING:
    from rest_framework.test import APIClient

API = "/api/v1/agents/local"
GOOD: dict[str, Any] = {
    "name": "Desk",
    "device_id": "desk",
    "directory_paths": ["/home/ada/documents"],
    "data_types": ["tasks"],
    "schedule_cron": "30 8 * * *",
}


@pytest.fixture
def ada(db: None) -> Person:
    return somebody(timezone="Asia/Kolkata")


def test_the_next_five_times_come_with_their_zones_offset(rest: APIClient) -> None:
    made = rest.post(API, GOOD).json()
    times = [dt.datetime.fromisoformat(text) for text in made["next_runs"]]
    assert [text[10:] for text in made["next_runs"]] == ["T08:30:00+05:30"] * 5  # the user's own zone
    assert times == [times[0] + dt.timedelta(days=number) for number in range(5)]
    assert times[0] == dt.datetime.fromisoformat(made["next_run_at"])
    place = f"{API}/{made['id']}"
    assert rest.get(place).json()["next_runs"] == made["next_runs"]
    moved = rest.patch(place, {"timezone": "America/Phoenix"}).json()
    assert [text[10:] for text in moved["next_runs"]] == ["T08:30:00-07:00"] * 5
    replaced = rest.put(place, {**GOOD, "schedule_cron": "@hourly", "timezone": "UTC"}).json()
    assert [text[13:] for text in replaced["next_runs"]] == [":00:00+00:00"] * 5


def test_an_agent_that_is_off_shows_its_times_and_runs_at_none(rest: APIClient) -> None:
    made = rest.post(API, {**GOOD, "enabled": False}).json()
    assert (len(made["next_runs"]), made["next_run_at"]) == (5, None)


def test_an_agent_that_runs_by_hand_has_no_next_times(rest: APIClient) -> None:
    assert rest.post(API, {**GOOD, "schedule_cron": ""}).json()["next_runs"] == []


def test_an_agent_has_a_budget_of_its_own_where_its_user_says_so(rest: APIClient) -> None:
    made = rest.post(API, GOOD).json()
    place = f"{API}/{made['id']}"
    assert made["budget_micro"] is None
    assert rest.patch(place, {"budget_micro": 250_000}).json()["budget_micro"] == 250_000
    assert rest.put(place, GOOD).json()["budget_micro"] == 250_000  # an older client does not know of it
    for wrong in (-1, 2**53, "much"):
        assert "budget_micro" in rest.patch(place, {"budget_micro": wrong}).json()["fields"]
    assert rest.patch(place, {"budget_micro": None}).json()["budget_micro"] is None


def test_catching_up_is_once_unless_said_otherwise(rest: APIClient) -> None:
    made = rest.post(API, GOOD).json()
    assert (made["catch_up"], made["catch_up_hours"]) == ("once", None)
    place = f"{API}/{made['id']}"
    within = rest.patch(place, {"catch_up": "within", "catch_up_hours": 6}).json()
    assert (within["catch_up"], within["catch_up_hours"]) == ("within", 6)
    assert rest.patch(place, {"catch_up_hours": 720}).json()["catch_up_hours"] == 720
    assert rest.put(place, GOOD).json()["catch_up"] == "within"  # an older client does not know of it
    assert made["announce"] == "problems"
    assert rest.patch(place, {"announce": "always"}).json()["announce"] == "always"
    assert "announce" in rest.patch(place, {"announce": "sometimes"}).json()["fields"]
    skip = rest.patch(place, {"catch_up": "skip"}).json()
    assert (skip["catch_up"], skip["catch_up_hours"]) == ("skip", None)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"catch_up": "always"}, "catch_up"),
        ({"catch_up": None}, "catch_up"),
        ({"catch_up": "within"}, "catch_up_hours"),
        ({"catch_up": "within", "catch_up_hours": None}, "catch_up_hours"),
        ({"catch_up": "within", "catch_up_hours": 0}, "catch_up_hours"),
        ({"catch_up": "within", "catch_up_hours": 721}, "catch_up_hours"),
        ({"catch_up": "within", "catch_up_hours": "soon"}, "catch_up_hours"),
        ({"catch_up": "once", "catch_up_hours": 5}, "catch_up_hours"),
        ({"catch_up_hours": 5}, "catch_up_hours"),
    ],
)
def test_a_wrong_way_of_catching_up_is_refused_by_its_name(
    rest: APIClient, ada: Person, values: dict[str, Any], field: str
) -> None:
    agent = create_agent(ada.id)
    for answer in (rest.post(API, {**GOOD, **values}), rest.patch(f"{API}/{agent.pk}", values)):
        assert (answer.status_code, list(answer.json()["fields"])) == (400, [field])
    (left,) = Agent.objects.of(ada.id)
    assert (left.catch_up, left.catch_up_hours) == ("once", None)


def test_the_openapi_document_names_what_a_schedule_takes_and_gives(rest: APIClient) -> None:
    document = rest.get("/api/v1/schema/", HTTP_ACCEPT="application/vnd.oai.openapi+json").json()
    fields = document["components"]["schemas"]["LocalAgent"]["properties"]
    assert fields["next_runs"]["items"] == {"type": "string", "format": "date-time"}
    assert (fields["catch_up_hours"]["minimum"], fields["catch_up_hours"]["maximum"]) == (1, 720)
    assert {"catch_up", "catch_up_hours", "next_runs"} <= fields.keys()


async def test_a_device_that_says_hello_gets_at_once_what_fell_due_while_it_was_away(web: str) -> None:
    def prepare() -> tuple[Person, list[Agent]]:
        person = somebody()
        agents = [
            create_agent(person.id, schedule_cron="@hourly", device_id=name) for name in ("desk", "other")
        ]
        long_ago = timezone.now().replace(minute=0, second=0, microsecond=0) - dt.timedelta(hours=2)
        Agent.objects.of(person.id).update(next_run_at=long_ago)
        return person, agents

    person, agents = await db.run(prepare)
    async with Socket(web, person.access_token) as socket:
        await socket.hello(device_id="desk")
        assert await socket.is_alive()  # frames are handled in turn

    def made() -> list[Run]:
        return list(Run.objects.of(person.id))

    (run,) = await db.run(made)
    assert (run.agent_id, run.trigger) == (agents[0].pk, "schedule")
    assert run.slots >= 3
