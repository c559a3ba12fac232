"""Cloud agents over REST: made over a connection of one's own, and refused in words that name the field."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from agents.models import Agent
from integrations.models import Connection, Health
from tests.agents.factories import create_agent as a_local_agent
from tests.agents.mailbox_scenario import connect_account, create_mail_agent
from tests.factories import Person, somebody
from tests.fakes.mailboxes import Box

if TYPE_CHECKING:
    from rest_framework.test import APIClient

API = "/api/v1/agents"
GOOD: dict[str, Any] = {
    "provider": "gmail",
    "name": "Mail",
    "data_types": ["tasks"],
    "prompt_template": "Find what is to be done.",
    "schedule_cron": "0 8 * * 1-5",
    "filter_config": {
        "labels": ["Clients"],
        "senders": ["@example.com"],
        "date_range": {"from": "2026-01-01"},
    },
}


@pytest.fixture
def ada(db: None) -> Person:
    return somebody(timezone="Europe/Rome")


def test_a_cloud_agent_is_made_read_changed_and_deleted(rest: APIClient, ada: Person) -> None:
    connection = connect_account(ada, Box("ada"))
    made = rest.post(f"{API}/cloud", GOOD)
    assert made.status_code == 201, made.content
    agent = made.json()
    assert agent["connection"] == str(connection.pk)
    assert agent["filter_config"] == GOOD["filter_config"]
    assert (agent["provider"], agent["paused"], len(agent["next_runs"])) == ("gmail", "", 5)
    assert not {"device_id", "directory_paths", "file_extensions"} & agent.keys()
    place = f"{API}/cloud/{agent['id']}"
    assert rest.get(place).json() == agent
    assert rest.get(f"{API}/cloud").json() == [agent]
    assert rest.get(f"{API}/local").json() == []
    assert rest.patch(place, {"name": "New"}).json()["name"] == "New"
    replaced = rest.put(place, {**GOOD, "schedule_cron": None, "filter_config": {}}).json()
    assert (replaced["connection"], replaced["filter_config"]) == (str(connection.pk), {})
    assert replaced["next_run_at"] is None
    run = rest.post(f"{API}/{agent['id']}/run")
    assert run.status_code == 202
    shown = rest.get(f"{API}/runs/{run.json()['run_id']}").json()
    assert (shown["agent_type"], shown["agent_kind"]) == ("cloud", "gmail")
    assert (agent["agent_type"], agent["agent_kind"]) == ("cloud", "gmail")
    assert rest.delete(place).json() == {"ok": True}
    assert rest.get(place).status_code == 404
    assert rest.get(f"{API}/runs/{run.json()['run_id']}").json()["state"] == "cancelled"


def test_put_changes_what_it_names_and_leaves_the_rest(rest: APIClient, ada: Person) -> None:
    connect_account(ada, Box("ada"))
    made = rest.post(f"{API}/cloud", GOOD).json()
    put = rest.put(f"{API}/cloud/{made['id']}", {"name": "Post"}).json()
    assert put | {"name": "Mail", "updated_at": ""} == made | {"updated_at": ""}


def test_channels_are_labels_to_teams(rest: APIClient, ada: Person) -> None:
    connect_account(ada, Box("ada"), "teams")
    body = {**GOOD, "provider": "teams", "filter_config": {"channels": ["Sales/General"], "labels": ["Ops"]}}
    made = rest.post(f"{API}/cloud", body)
    assert made.json()["filter_config"] == {"labels": ["Ops", "Sales/General"]}


BAD = [
    ("provider", "local_directory"), ("provider", "imap"), ("provider", None), ("provider", ""),
    ("name", ""), ("data_types", []), ("data_types", ["users"]), ("schedule_cron", "every day"), ("timezone", "Rome"),
    ("connection", "not-a-uuid"), ("connection", str(uuid.uuid4())), ("connection", 7),
    ("filter_config", []), ("filter_config", "labels"), ("filter_config", None), ("filter_config", {"lables": []}),
    ("filter_config", {"labels": "Clients"}), ("filter_config", {"labels": [7]}), ("filter_config", {"labels": [""]}),
    ("filter_config", {"labels": ["a\nb"]}), ("filter_config", {"labels": ["x"] * 51}),
    ("filter_config", {"labels": ["x"] * 30, "channels": [f"y{n}" for n in range(50)]}),
    ("filter_config", {"channels": "General"}), ("filter_config", {"channels": {"a": 1}}),
    ("filter_config", {"senders": ["x" * 201]}), ("filter_config", {"senders": {"a": 1}}),
    ("filter_config", {"date_range": ["2026-01-01"]}), ("filter_config", {"date_range": {"since": "2026-01-01"}}),
    ("filter_config", {"date_range": {"from": "yesterday"}}), ("filter_config", {"date_range": {"from": 7}}),
    ("filter_config", {"date_range": {"from": "2026-02-01", "to": "2026-01-01"}}),
]  # fmt: skip


def test_a_wrong_value_is_refused_by_its_name(rest: APIClient, ada: Person) -> None:
    connect_account(ada, Box("ada"))
    place = f"{API}/cloud/{create_mail_agent(ada).pk}"
    before = rest.get(place).json()
    for field, value in BAD:
        for answer in (
            rest.post(f"{API}/cloud", {**GOOD, field: value}),
            rest.put(place, {**GOOD, field: value}),
            rest.patch(place, {field: value}),
        ):
            assert answer.status_code == 400, (field, value, answer.content)
            body = answer.json()
            assert (body["code"], bool(body["message"])) == ("invalid", True)
            assert {name.partition(".")[0] for name in body["fields"]} == {field}, (field, value, body)
    assert rest.get(place).json() == before
    assert Agent.objects.of(ada.id).count() == 1


def test_a_connection_has_to_be_ones_own_of_the_same_provider_and_the_only_one(
    rest: APIClient, ada: Person
) -> None:
    def refused(**fields: Any) -> str:
        answer = rest.post(f"{API}/cloud", GOOD | fields)
        assert answer.status_code == 400, answer.content
        (problem,) = answer.json()["fields"]["connection"]
        return str(problem)

    assert "/api/v1/oauth/gmail/authorize" in refused()
    assert (
        refused(connection=str(connect_account(somebody(), Box("bea")).pk)) == "There is no such connection."
    )
    teams = connect_account(ada, Box("ada"), "teams")
    assert "Teams" in refused(connection=str(teams.pk))
    first = connect_account(ada, Box("ada"))
    second = connect_account(ada, Box("second"))
    assert "Several" in refused()
    Connection.objects.filter(pk=first.pk).update(health=Health.NEEDS_REAUTH, reason="refused")
    agent = rest.post(f"{API}/cloud", GOOD).json()
    assert agent["connection"] == str(second.pk)
    place = f"{API}/cloud/{agent['id']}"
    moved = rest.patch(place, {"connection": str(first.pk)}).json()
    assert (moved["connection"], moved["paused"]) == (str(first.pk), "needs_reauth")
    assert rest.patch(place, {"connection": str(teams.pk)}).status_code == 400
    changed = rest.put(place, {**GOOD, "provider": "outlook"})
    assert (changed.status_code, list(changed.json()["fields"])) == (400, ["provider"])
    first.delete()
    assert rest.get(place).json()["paused"] == "no_connection"
    started = rest.post(f"{API}/{agent['id']}/run")
    assert (started.status_code, started.json()["code"]) == (409, "no_connection")


@pytest.mark.parametrize("method", ["post", "put", "patch"])
def test_a_client_that_sends_a_token_is_told_of_connections(
    rest: APIClient, ada: Person, method: str
) -> None:
    connect_account(ada, Box("ada"))
    place = f"{API}/cloud" if method == "post" else f"{API}/cloud/{create_mail_agent(ada).pk}"
    secret = "ya29.a-token"
    answer = getattr(rest, method)(place, {**GOOD, "oauth_token_encrypted": secret})
    assert answer.status_code == 400
    assert {"oauth_token_encrypted", "connection"} <= answer.json()["fields"].keys()
    assert secret not in answer.content.decode()


def test_anothers_agent_and_one_of_the_other_kind_are_not_there(rest: APIClient, ada: Person) -> None:
    bea = somebody()
    connect_account(bea, Box("bea"))
    connect_account(ada, Box("ada"))
    for agent in (create_mail_agent(bea), a_local_agent(ada.id)):
        place = f"{API}/cloud/{agent.pk}"
        for answer in (
            rest.get(place),
            rest.patch(place, {"name": "x"}),
            rest.put(place, GOOD),
            rest.delete(place),
        ):
            assert answer.status_code == 404
    assert rest.get(f"{API}/local/{create_mail_agent(ada).pk}").status_code == 404


def test_the_catalog_offers_what_this_server_is_registered_for(rest: APIClient, settings: Any) -> None:
    settings.GOOGLE = {**settings.GOOGLE, "client_id": "id", "client_secret": "secret"}
    settings.MICROSOFT = {**settings.MICROSOFT, "client_id": "", "client_secret": ""}
    kinds = {kind["type"]: kind for kind in rest.get(f"{API}/catalog").json()}
    assert {name: kind["available"] for name, kind in kinds.items()} == {
        "local_directory": True,
        "gmail": True,
        "teams": False,
        "outlook": False,
    }
    assert {"filter_config", "connection", "provider"} <= kinds["gmail"]["config_schema"]["properties"].keys()
