"""Agents and runs over REST: what is asked for comes, and whatever else is said is refused in words."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adiuva.accounts.keys import cipher_for
from agents import claimed_runs, run_release, runs
from agents.journal import EventKind, JournalEntry
from agents.models import Agent, Run, Watch
from chat import run_ends
from tests.agents.factories import API, claim_run, create_agent, create_run, rest_client
from tests.chat.factories import make_conversation
from tests.factories import Person, somebody
from tests.sampling import few, fewer

if TYPE_CHECKING:
    from rest_framework.test import APIClient

NOBODY = "0b8f1d7e-0f5c-4a57-9f7b-3f6d3b0f6c11"
GOOD: dict[str, Any] = {
    "name": "Desk",
    "device_id": "desk",
    "directory_paths": ["/home/ada/documents"],
    "data_types": ["tasks"],
    "prompt_template": "Find what is to be done.",
    "file_extensions": [".md", "EML"],
    "schedule_cron": "0 8 * * 1-5",
}


@pytest.fixture
def ada(db: None) -> Person:
    return somebody(timezone="Europe/Rome")


def test_what_deserves_attention_is_said_in_the_account_s_language(db: None) -> None:
    mara = rest_client(somebody(locale="de"))
    (warning,) = mara.post(f"{API}/local", GOOD).json()["warnings"]
    assert warning.startswith(f"Noch keines Ihrer Geräte hat sich „{GOOD['device_id']}“ genannt")


def test_an_agent_is_made_read_changed_and_deleted(rest: APIClient) -> None:
    made = rest.post(f"{API}/local", GOOD)
    assert made.status_code == 201
    agent = made.json()
    assert agent["file_extensions"] == [".md", ".eml"]
    assert (agent["enabled"], agent["last_run_at"]) == (True, None)
    assert agent["next_run_at"].endswith("Z")
    assert {"created_at", "updated_at"} <= agent.keys()
    place = f"{API}/local/{agent['id']}"
    (warning,) = agent.pop("warnings")
    assert f"“{GOOD['device_id']}”" in warning  # no such device has connected
    assert rest.get(place).json() == agent | {"warnings": []}
    assert rest.get(f"{API}/local").json() == [agent | {"warnings": []}]
    assert rest.patch(place, {"name": "New"}).json()["name"] == "New"
    assert (
        rest.put(place, {"prompt_template": "Dates"}).json()["name"] == "New"
    )  # what it does not name stays
    replaced = rest.put(place, {**GOOD, "schedule_cron": None, "enabled": False})
    assert (replaced.status_code, replaced.json()["schedule_cron"], replaced.json()["next_run_at"]) == (
        200,
        "",
        None,
    )
    assert rest.delete(place).json() == {"ok": True}
    assert rest.get(place).status_code == rest.delete(place).status_code == 404


BAD = [
    ("name", ""), ("name", "x" * 201), ("name", None), ("name", ["a"]), ("name", {"a": 1}),
    ("device_id", ""), ("device_id", None), ("device_id", "x" * 201),
    ("directory_paths", []), ("directory_paths", None), ("directory_paths", "/home"), ("directory_paths", [""]),
    ("directory_paths", ["  "]), ("directory_paths", ["documents"]), ("directory_paths", ["./documents"]),
    ("directory_paths", ["~/documents"]), ("directory_paths", ["/home/../etc"]), ("directory_paths", ["C:documents"]),
    ("directory_paths", [None]), ("directory_paths", [["/home"]]), ("directory_paths", ["/x" * 2049]),
    ("directory_paths", ["/x"] * 101), ("directory_paths", {"0": "/home"}),
    ("data_types", []), ("data_types", ["users"]), ("data_types", ["tasks", "Tasks"]), ("data_types", "tasks"),
    ("data_types", [{}]), ("data_types", None), ("data_types", [7]),
    ("file_extensions", ["*.md"]), ("file_extensions", [""]), ("file_extensions", ["a/b"]), ("file_extensions", 7),
    ("schedule_cron", "every day"), ("schedule_cron", "* * * *"), ("schedule_cron", "61 * * * *"),
    ("schedule_cron", "0 0 31 2 *"), ("schedule_cron", "@reboot"), ("schedule_cron", ["0 8 * * *"]),
    ("schedule_cron", "*" * 300),
    ("timezone", "Rome"), ("timezone", "../../etc/passwd"), ("timezone", 5),
    ("enabled", "perhaps"), ("enabled", None), ("enabled", []),
    ("prompt_template", "x" * 20_001), ("prompt_template", []),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), few(BAD, 15))
def test_a_wrong_value_is_refused_by_its_name(rest: APIClient, ada: Person, field: str, value: Any) -> None:
    agent = create_agent(ada.id)
    place = f"{API}/local/{agent.pk}"
    before = rest.get(place).json()
    for answer in (
        rest.post(f"{API}/local", {**GOOD, field: value}),
        rest.put(place, {**GOOD, field: value}),
        rest.patch(place, {field: value}),
    ):
        assert answer.status_code == 400
        body = answer.json()
        assert (body["code"], bool(body["message"])) == ("invalid", True)
        assert [name.partition(".")[0] for name in body["fields"]] == [field]
    assert rest.get(place).json() == before
    assert Agent.objects.of(ada.id).count() == 1


@pytest.mark.parametrize("missing", ["name", "device_id", "directory_paths", "data_types"])
def test_a_missing_value_is_named(rest: APIClient, missing: str) -> None:
    answer = rest.post(f"{API}/local", {name: value for name, value in GOOD.items() if name != missing})
    assert (answer.status_code, list(answer.json()["fields"])) == (400, [missing])


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b'"agent"', b"7", b"\xff", b'{"name": NaN}', b'{"a": "\\u0000"}']
)
@pytest.mark.parametrize("method", ["post", "put", "patch"])
def test_a_body_of_the_wrong_type_is_refused(rest: APIClient, ada: Person, method: str, raw: bytes) -> None:
    place = f"{API}/local" if method == "post" else f"{API}/local/{create_agent(ada.id).pk}"
    answer = rest.generic(method.upper(), place, raw, content_type="application/json")
    if raw == b"" and method != "post":
        return  # nothing to change
    assert answer.status_code == 400
    assert {"code", "message"} <= answer.json().keys()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)) | st.text(max_size=5), json_values, max_size=4))
@settings(max_examples=fewer(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_is_too_strange(rest: APIClient, changes: dict[str, Any]) -> None:
    raw = json.dumps({**GOOD, **changes}).encode()
    answer = rest.generic("POST", f"{API}/local", raw, content_type="application/json")
    assert answer.status_code in (201, 400)
    assert answer.status_code == 201 or {"code", "message"} <= answer.json().keys()


def test_lists_in_json_are_taken_as_they_are(rest: APIClient) -> None:
    paths = ["/home/ada/two\nlines "]
    assert rest.post(f"{API}/local", {**GOOD, "directory_paths": paths}).json()["directory_paths"] == paths
    for field in ("directory_paths", "data_types", "file_extensions"):
        answer = rest.post(f"{API}/local", {**GOOD, field: [[]]})
        assert (answer.status_code, list(answer.json()["fields"])) == (400, [f"{field}.0"])


def test_what_the_server_decides_cannot_be_set(rest: APIClient, ada: Person) -> None:
    other = somebody()
    sent = {**GOOD, "id": str(uuid.uuid4()), "user": str(other.id), "user_id": str(other.id), "type": "gmail",
            "next_run_at": "2000-01-01T00:00:00Z", "last_run_at": "2000-01-01T00:00:00Z"}  # fmt: skip
    made = rest.post(f"{API}/local", sent).json()
    assert made["id"] != sent["id"] and made["last_run_at"] is None and made["next_run_at"] > "2026"
    found = Agent.objects.get(pk=made["id"])
    assert (found.user_id, found.type) == (ada.id, "local_directory")


def test_another_users_is_answered_like_none(rest: APIClient, ada: Person) -> None:
    theirs = create_agent()
    their_run = create_run(theirs)
    nothing = uuid.uuid4()
    for method, place, body in [
        ("get", "local/{agent}", None), ("put", "local/{agent}", GOOD), ("put", "local/{agent}", {}),
        ("patch", "local/{agent}", {"name": "x"}), ("patch", "local/{agent}", {"name": 5}),
        ("delete", "local/{agent}", None), ("post", "{agent}/run", None), ("get", "runs/{run}", None),
        ("post", "runs/{run}/cancel", None), ("post", "runs/{run}/undo", None), ("get", "runs/{run}/events", None),
        ("post", "{agent}/run?dry_run=true", None), ("post", "{agent}/run?dry_run=perhaps", None),
    ]:  # fmt: skip
        answers = [
            getattr(rest, method)(f"{API}/{place.format(agent=agent, run=run)}", body)
            for agent, run in ((theirs.pk, their_run.pk), (nothing, nothing), ("no-id", "no-id"))
        ]
        assert [answer.status_code for answer in answers] == [404] * 3, place
        assert answers[0].json() == answers[1].json(), place
        assert {"code", "message"} <= answers[0].json().keys()
    assert rest.get(f"{API}/runs", {"agent_id": str(theirs.pk)}).json() == []
    theirs.refresh_from_db(), their_run.refresh_from_db()
    assert (theirs.name, their_run.state) == ("Desk", "queued")


@pytest.mark.parametrize("place", ["catalog", "local", f"local/{NOBODY}", "runs", f"runs/{NOBODY}"])
def test_who_is_not_signed_in_sees_nothing(db: None, place: str) -> None:
    from rest_framework.test import APIClient

    answer = APIClient().get(f"{API}/{place}")
    assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")


def test_the_catalog_says_how_each_kind_is_configured(rest: APIClient) -> None:
    (local,) = [kind for kind in rest.get(f"{API}/catalog").json() if kind["type"] == "local_directory"]
    assert local["name"] and local["description"]
    assert set(local["config_schema"]["required"]) <= set(GOOD) <= set(local["config_schema"]["properties"])


def test_runs_come_in_pages_newest_first_for_few_queries(rest: APIClient, ada: Person) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    agent = create_agent(ada.id)
    made = [str(create_run(agent, state=Run.State.ERROR, problems=1).pk) for _ in range(7)]
    elsewhere = create_run(create_agent(ada.id))
    with CaptureQueriesContext(connection) as queries:
        first = rest.get(f"{API}/runs", {"agent_id": str(agent.pk), "limit": 5})
    assert (
        len([query for query in queries if "agents_" in query["sql"]]) == 3
    )  # how many, the page, its problems
    second = rest.get(f"{API}/runs", {"agent_id": str(agent.pk), "limit": 5, "page": 2})
    assert first.headers["X-Total-Count"] == "7"
    listed = [run["id"] for run in [*first.json(), *second.json()]]
    assert (sorted(listed), len(first.json())) == (sorted(made), 5)
    assert str(elsewhere.pk) in [run["id"] for run in rest.get(f"{API}/runs").json()]
    assert rest.get(f"{API}/runs", {"page": 99}).json() == []
    for bad in ({"agent_id": "x"}, {"page": "0"}, {"page": "x"}, {"limit": "-1"}):
        assert rest.get(f"{API}/runs", bad).status_code == 400


def test_a_run_shows_what_the_contract_names(rest: APIClient, ada: Person) -> None:
    claimed = claim_run(create_run(create_agent(ada.id)))
    entries = [
        JournalEntry(
            EventKind.SOURCE_FAILED, "unreadable", source="/home/ada/a.md", message="it is a picture"
        )
    ]
    claimed_runs.add_counts(claimed, seen=1, done=1, failed=1, entries=entries)
    run_release.finish(claimed)
    (run,) = rest.get(f"{API}/runs").json()
    assert (run["agent_id"], run["agent_type"]) == (str(claimed.agent_id), "local")
    assert run["agent_kind"] == "local_directory"
    assert (run["status"], run["state"], run["items_processed"], run["items_created"]) == (
        "error",
        "error",
        0,
        0,
    )
    assert run["errors"] == ["/home/ada/a.md: it is a picture"]
    assert run["started_at"] and run["completed_at"]
    detail = rest.get(f"{API}/runs/{run['id']}").json()
    assert [event["kind"] for event in detail["journal"]] == ["started", "source_failed", "finished"]
    rest_of_it = rest.get(f"{API}/runs/{run['id']}", {"after": detail["journal"][1]["seq"]}).json()["journal"]
    assert [event["kind"] for event in rest_of_it] == ["finished"]
    assert rest.get(f"{API}/runs/{run['id']}", {"after": "x"}).status_code == 400


def test_an_agent_runs_once_at_a_time_and_its_run_can_be_cancelled(rest: APIClient, ada: Person) -> None:
    agent = create_agent(ada.id, enabled=False)  # by hand it can always be run
    started = rest.post(f"{API}/{agent.pk}/run")
    assert (started.status_code, started.json()["ok"]) == (202, True)
    again = rest.post(f"{API}/{agent.pk}/run")
    assert (again.status_code, again.json()["code"]) == (409, "run_is_live")
    assert again.json()["run_id"] == started.json()["run_id"]
    place = f"{API}/runs/{started.json()['run_id']}/cancel"
    assert [rest.post(place).json()["state"] for _ in range(2)] == ["cancelled", "cancelled"]
    assert rest.post(f"{API}/{agent.pk}/run").status_code == 202


def test_a_run_is_started_from_a_conversation_and_tells_its_end_there(rest: APIClient, ada: Person) -> None:
    agent = create_agent(ada.id)
    place, others = make_conversation(ada.id), make_conversation(somebody().id)
    for wrong in (others.pk, NOBODY):
        refused = rest.post(f"{API}/{agent.pk}/run?conversation_id={wrong}")
        assert (refused.status_code, refused.json()["code"]) == (404, "conversation_not_found")
    for follow_up in (True, False):
        query = f"conversation_id={place.pk}" + ("" if follow_up else "&follow_up=false")
        started = rest.post(f"{API}/{agent.pk}/run?{query}")
        assert started.status_code == 202
        run = rest.get(f"{API}/runs/{started.json()['run_id']}").json()
        assert (run["conversation_id"], run["found"]) == (str(place.pk), {})
        watch = Watch.objects.get(run=run["id"])
        assert watch.state == (Watch.State.WAITING if follow_up else Watch.State.TOLD)
        runs.end(Run.objects.get(pk=run["id"]), Run.State.SUCCESS, "completed")
    watch = Watch.objects.get(user_id=ada.id, state=Watch.State.DUE)
    assert "started it by hand" in run_ends.facts(cipher_for(ada.id), run_ends.read([watch])[0])


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("follow_up=true", "conversation_id"),
        ("conversation_id=here", "conversation_id"),
        ("dry_run=perhaps", "dry_run"),
        ("dry_run=", "dry_run"),
        ("max_sources=3", "max_sources"),
        ("dry_run=false&max_sources=3", "max_sources"),
    ]
    + [
        (f"dry_run=true&max_sources={value}", "max_sources") for value in ("0", "-1", "x", "10001", "1.5", "")
    ],
)
def test_a_run_is_not_started_with_a_wrong_query(
    rest: APIClient, ada: Person, query: str, field: str
) -> None:
    answer = rest.post(f"{API}/{create_agent(ada.id).pk}/run?{query}")
    assert (answer.status_code, list(answer.json()["fields"])) == (400, [field])
    assert not Run.objects.of(ada.id).exists()


def test_a_dry_run_is_started_as_one(rest: APIClient, ada: Person) -> None:
    started = rest.post(f"{API}/{create_agent(ada.id).pk}/run?dry_run=true&max_sources=3")
    assert started.status_code == 202
    seen = rest.get(f"{API}/runs/{started.json()['run_id']}").json()
    assert (seen["dry_run"], seen["max_sources"], seen["records"], seen["status"]) == (True, 3, [], "running")
    (listed,) = rest.get(f"{API}/runs").json()
    assert listed["dry_run"] and "records" not in listed


def test_history_stays_when_its_agent_goes(rest: APIClient, ada: Person) -> None:
    agent = create_agent(ada.id)
    run = create_run(agent)
    rest.delete(f"{API}/local/{agent.pk}")
    (listed,) = rest.get(f"{API}/runs", {"agent_id": str(agent.pk)}).json()
    assert (listed["id"], listed["agent_name"], listed["state"]) == (str(run.pk), "Desk", "cancelled")


def test_moving_to_another_zone_moves_the_schedules_that_follow(rest: APIClient) -> None:
    place = f"{API}/local/{rest.post(f'{API}/local', GOOD).json()['id']}"
    before = rest.get(place).json()["next_run_at"]
    assert rest.patch("/api/v1/auth/me", {"timezone": "Asia/Tokyo"}).status_code == 200
    after = rest.get(place).json()["next_run_at"]
    assert after != before and after[11:16] == "23:00"


def test_the_openapi_document_knows_all_of_it(rest: APIClient) -> None:
    paths = rest.get("/api/v1/schema/", HTTP_ACCEPT="application/vnd.oai.openapi+json").json()["paths"]
    wanted = {
        f"{API}/catalog": {"get"},
        f"{API}/local": {"get", "post"},
        f"{API}/local/{{id}}": {"get", "put", "patch", "delete"},
        f"{API}/{{agent_id}}/run": {"post"},
        f"{API}/runs": {"get"},
        f"{API}/runs/{{id}}": {"get"},
        f"{API}/runs/{{id}}/cancel": {"post"},
        f"{API}/runs/{{id}}/undo": {"post"},
        f"{API}/runs/{{id}}/events": {"get"},
    }
    assert {
        place: set(paths[place]) & {"get", "post", "put", "patch", "delete"} for place in wanted
    } == wanted
