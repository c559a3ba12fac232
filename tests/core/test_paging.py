"""Pagination by number and by cursor: no page of a long list reads the rows before it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from adiuva.accounts.models import User
from adiuva.core import paging
from agents.models import Run
from chat.models import Conversation
from tests.agents.factories import create_agent
from tests.factories import Person, somebody

USERS = "/api/v1/users"


@pytest.fixture
def rest(db: None) -> APIClient:
    return APIClient(raise_request_exception=False)


@pytest.fixture
def ada(rest: APIClient) -> Person:
    person = somebody()
    rest.credentials(HTTP_AUTHORIZATION=f"Bearer {person.access_token}")
    return person


def links(answer: Any) -> dict[str, str]:
    return {rel: url for url, rel in re.findall(r'<([^>]*)>; rel="(\w+)"', answer.get("Link", ""))}


def pages(rest: APIClient, url: str) -> Iterator[Any]:
    """The answers from this one on, as their links lead."""
    while url:
        answer = rest.get(url)
        assert answer.status_code == 200, answer.content
        yield answer
        url = links(answer).get("next", "")


# ── By number ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def five(db: None) -> str:
    """The beginning of the addresses of five users."""
    name = uuid4().hex
    User.objects.bulk_create(User(email=f"{name}-{number}@example.com") for number in range(5))
    return name


def numbers(answer: Any) -> list[int]:
    return [int(row["email"].split("-")[1][0]) for row in answer.json()]


def page(rest: APIClient, of: str, query: str) -> tuple[list[int], Any]:
    answer = rest.get(f"{USERS}?of={of}&{query}")
    assert answer.status_code == 200
    return numbers(answer), answer


@pytest.mark.urls("tests.core.failing_urls")
def test_a_list_is_cut_by_page_and_limit_and_counted_in_a_header(rest: APIClient, five: str) -> None:
    for query, expected in [
        ("", [0, 1, 2, 3, 4]),
        ("limit=2", [0, 1]),
        ("limit=2&page=2", [2, 3]),
        ("limit=2&page=3", [4]),
        ("limit=2&page=4", []),
        ("page=999999999", []),
        ("limit=1000", [0, 1, 2, 3, 4]),
        ("page=&limit=", [0, 1, 2, 3, 4]),
    ]:
        rows, answer = page(rest, five, query)
        assert (rows, answer["X-Total-Count"]) == (expected, "5"), query


@pytest.mark.urls("tests.core.failing_urls")
def test_a_list_links_to_its_other_pages(rest: APIClient, five: str) -> None:
    _, answer = page(rest, five, "limit=2&page=2")
    url = f"http://testserver{USERS}?limit=2&of={five}&page="
    found = links(answer)
    assert numbers(rest.get(found.pop("next"))) == [4]
    assert found == {"first": f"{url}1", "prev": f"{url}1", "last": f"{url}3"}
    assert "Link" not in page(rest, five, "")[1]


@pytest.mark.urls("tests.core.failing_urls")
def test_a_list_that_ends_on_its_page_is_not_counted(rest: APIClient, five: str) -> None:
    for query, total in [("", 1), ("limit=2", 2), ("limit=2&page=3", 2), ("limit=2&page=4", 2)]:
        with CaptureQueriesContext(connection) as queries:
            page(rest, five, query)
        assert len([each for each in queries if "accounts_user" in each["sql"]]) == total, query


@pytest.mark.urls("tests.core.failing_urls")
def test_of_a_very_long_list_only_so_many_rows_are_counted_and_all_are_reached(
    rest: APIClient, five: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "MOST_COUNTED", 3)
    rows, answer = page(rest, five, "limit=1")
    assert (rows, answer["X-Total-Count"], sorted(links(answer))) == ([0], "3", ["next"])
    assert page(rest, five, "limit=1&page=3")[0] == [2]
    assert [numbers(each) for each in pages(rest, f"{USERS}?of={five}&limit=2")] == [[0, 1], [2, 3], [4]]


@pytest.mark.urls("tests.core.failing_urls")
def test_by_number_no_more_rows_are_passed_over_than_are_counted(
    rest: APIClient, five: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "MOST_COUNTED", 3)
    for query in ("limit=1&page=4", "limit=2&page=9", "page=999999999"):
        answer = rest.get(f"{USERS}?of={five}&{query}")
        assert (answer.status_code, list(answer.json()["fields"])) == (400, ["page"])
        assert "3" in answer.json()["fields"]["page"][0]
    monkeypatch.setattr(paging, "MOST_COUNTED", 6)
    assert page(rest, five, "page=999999999")[0] == []


@pytest.mark.urls("tests.core.failing_urls")
@pytest.mark.parametrize(
    "query", ["page=0", "page=abc", "page=-1", "limit=0", "limit=x", "page=1e3", "page=٣"]
)
def test_a_page_that_is_no_number_from_1_is_refused(rest: APIClient, five: str, query: str) -> None:
    answer = rest.get(f"{USERS}?of={five}&{query}")
    assert (answer.status_code, list(answer.json()["fields"])) == (400, [query.split("=")[0]])


@pytest.mark.urls("tests.core.failing_urls")
def test_a_list_in_the_browser_has_page_controls(rest: APIClient, five: str) -> None:
    for number, controls in [(1, True), (3, True), (9, False)]:
        answer = rest.get(f"{USERS}?of={five}&limit=2&page={number}", headers={"Accept": "text/html"})
        assert answer.status_code == 200
        assert (b"pagination" in answer.content) == controls
    following = links(rest.get(f"{USERS}?of={five}&limit=2"))["next"]
    assert rest.get(following, headers={"Accept": "text/html"}).status_code == 200


# ── By cursor ───────────────────────────────────────────────────────────────────────────────────────────


def converse(person: Person, count: int) -> list[str]:
    rows = [Conversation(user_id=person.id) for _ in range(count)]
    return [str(row.pk) for row in Conversation.objects.bulk_create(rows)]


def test_pages_by_cursor_neither_repeat_nor_hide_rows_while_others_come_and_go(
    rest: APIClient, ada: Person
) -> None:
    made = converse(ada, 7)  # all at the same time
    converse(somebody(), 3)
    seen: list[str] = []
    for number, answer in enumerate(pages(rest, "/api/v1/chat/conversations?limit=2")):
        assert ("X-Total-Count" in answer) == (number == 0)
        assert number == 0 or links(answer)["first"] == "http://testserver/api/v1/chat/conversations?limit=2"
        seen += [row["id"] for row in answer.json()]
        converse(ada, 1)
        Conversation.objects.filter(pk=seen[-1]).delete()
    assert (len(seen), sorted(seen)) == (7, sorted(made))


@pytest.mark.parametrize(
    "cursor",
    ["x", "bnVsbA", "W10", "WzFd", "WzEsMl0", "W251bGwsbnVsbF0", "W1tdLFtdXQ", "e30", "é", "A" * 10_000],
)
def test_a_cursor_that_is_of_no_list_is_refused(rest: APIClient, ada: Person, cursor: str) -> None:
    for path in ("chat/conversations", "agents/runs", "storage/records", "devices", "auth/staff-actions"):
        answer = rest.get(f"/api/v1/{path}", {"cursor": cursor})
        if (path, cursor) not in {("storage/records", "WzFd"), ("auth/staff-actions", "WzFd")}:  # [1]
            assert (answer.status_code, list(answer.json()["fields"])) == (400, ["cursor"]), path


def test_a_number_that_no_column_holds_is_no_cursor(rest: APIClient, ada: Person) -> None:
    answer = rest.get("/api/v1/storage/records", {"cursor": "Wzk5OTk5OTk5OTk5OTk5OTk5OTldCg"})
    assert answer.status_code == 400, answer.content


# ── At size ─────────────────────────────────────────────────────────────────────────────────────────────

# Lists that grow with use. Devices, agents, connections, sessions, backups and the sources of one entry are few.
GROWING = (
    "agents/runs",
    f"agents/runs?agent_id={UUID(int=1)}",
    "chat/conversations",
    "memory/episodic",
    "memory/receipts",
    "account/export",
    "auth/staff-actions",
    "storage/records",
    "storage/records?table=notes",
    "storage/vectors",
)


def leave_no_way_but_indexes() -> None:
    """Until the end of the transaction."""
    with connection.cursor() as cursor:
        for way in ("seqscan", "bitmapscan", "sort", "incremental_sort"):
            cursor.execute(f"SET LOCAL enable_{way} = off")


Statement = tuple[str, Any]


@contextmanager
def statements_noted() -> Iterator[list[Statement]]:
    """Statements with their parameters, which Django's own capture lacks of prepared ones."""
    found: list[Statement] = []

    def note(execute: Any, sql: str, parameters: Any, *more: Any) -> Any:
        found.append((sql, parameters))
        return execute(sql, parameters, *more)

    with connection.execute_wrapper(note):
        yield found


def plan(statement: Statement) -> str:
    sql, parameters = statement
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {sql}", parameters)
        return "\n".join(row[0] for row in cursor.fetchall())


@pytest.mark.parametrize("path", GROWING)
def test_a_page_of_each_list_that_grows_is_read_in_the_order_of_an_index(
    rest: APIClient, ada: Person, path: str
) -> None:
    """Whatever its size: with sorts and sequential scans switched off, a plan has one where there is no other way."""
    from adiuva.vault.models import VectorSpace

    VectorSpace.objects.create(user_id=ada.id, space=0, dimensions=3)
    key = "5" if path.startswith(("storage", "auth")) else f'"2026-01-02T03:04:05+00:00","{uuid4()}"'
    cursor = paging.base64.urlsafe_b64encode(f"[{key}]".encode()).decode().rstrip("=")
    url = f"/api/v1/{path}{'&' if '?' in path else '?'}"
    leave_no_way_but_indexes()
    with statements_noted() as noted:
        for query in ("limit=10", f"limit=10&cursor={cursor}"):
            answer = rest.get(f"{url}{query}")
            assert answer.status_code == 200, answer.content
    read = [each for each in noted if "LIMIT 11" in each[0]]
    assert len(read) == 2
    for statement in read:
        assert "Sort" not in (found := plan(statement)), found
        assert "Index" in found and "Seq Scan" not in found, found
    assert "Index Cond" in found and (") < ROW(" in found or "number >" in found or "id <" in found), found


_RUNS = """
INSERT INTO agents_run (id, user_id, agent_id, agent_ref, device_id, agent_type, agent_name_sealed, trigger, attempt,
    state, phase, slots, files_seen, files_done, files_unchanged, files_failed, problems, items_created, fence,
    model_calls, verdict, dry_run, retries, workers_lost, passed_over, created_at, enqueued_at)
SELECT gen_random_uuid(), %s, %s, %s, '', 'local_directory', %s, 'schedule', 1, 'success',
    '', 1, 1, 1, 1, 0, 0, 0, 1, 1, '', false, 0, 0, '{}', now() - number * interval '1 minute', now()
FROM generate_series(1, 15000) AS series (number)
"""


def test_a_page_far_down_a_list_reads_as_many_pages_of_the_database_as_the_first(
    rest: APIClient, ada: Person
) -> None:
    agent = create_agent(ada.id)
    with connection.cursor() as cursor:
        for each in (agent, create_agent(ada.id), create_agent(somebody().id)):
            cursor.execute(_RUNS, [each.user_id, each.pk, each.pk, bytes(each.name_sealed)])
        cursor.execute("ANALYZE agents_run")
    row = Run.objects.filter(user_id=ada.id).order_by("created_at")[100]
    at = paging.total_order(Run.objects.all()).cursor(row)
    for query in ("", f"agent_id={agent.pk}&"):
        first, deep = (touched(rest, f"/api/v1/agents/runs?{query}{more}") for more in ("", f"cursor={at}"))
        assert deep <= first + 10 and deep < 120, (query, first, deep)
    leave_no_way_but_indexes()  # they are not vacuumed here, so that PostgreSQL would not read them by an index alone
    for query in ("", f"agent_id={agent.pk}&"):
        by_number = statements(rest, f"/api/v1/agents/runs?{query}page=290")[0]
        assert "using runs_of_" in (found := plan(by_number)), found


def statements(rest: APIClient, url: str) -> list[Statement]:
    with statements_noted() as noted:
        assert len(rest.get(url).json()) == 50
    return [each for each in noted if 'FROM "agents_run"' in each[0] and "ORDER BY" in each[0]]


def touched(rest: APIClient, url: str) -> int:
    """Pages of the database that the rows of a list's page are read from, with those of its index."""
    ((sql, parameters),) = statements(rest, url)
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON, TIMING OFF) {sql}", parameters)
        ((found,),) = cursor.fetchall()
    top = found[0]["Plan"]
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])
