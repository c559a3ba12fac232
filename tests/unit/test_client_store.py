"""The headless device's rows: what calls do, and that a call that comes twice happens once."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import time_machine
from hypothesis import given, settings
from hypothesis import strategies as st

from adiuva.devices.client import BadWorkspace, Store
from adiuva.devices.tables import TABLES
from tests.sampling import fewer

_ids = (f"call-{number}" for number in itertools.count())


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.close()


def call(store: Store, action: str, table: str | None = None, **rest: Any) -> dict[str, Any]:
    (result,) = store.apply(
        [{"id": rest.pop("id", None) or next(_ids), "action": action, "table": table, **rest}]
    )
    return result


def insert(store: Store, table: str, **data: Any) -> dict[str, Any]:
    result = call(store, "insert", table, data=data)
    assert "error" not in result, result
    row: dict[str, Any] = result["row"]
    return row


def titles(store: Store, table: str = "tasks", **filters: Any) -> list[str]:
    result = call(store, "select", table, filters=filters)
    assert "error" not in result, result
    return [row.get("title") or row["name"] for row in result["rows"]]


def test_an_inserted_row_has_an_id_times_and_defaults_of_the_devices_making(store: Store) -> None:
    row = insert(store, "tasks", title="Call Anna")
    assert len(row["id"]) == 32
    assert row["createdAt"] > 1_700_000_000_000
    assert (row["status"], row["priority"], row["isAiSuggested"], row["projectId"]) == (
        "todo",
        "medium",
        0,
        None,
    )
    assert call(store, "get", "tasks", data={"id": row["id"]})["row"] == row


def test_an_update_changes_what_it_names_and_the_time_of_the_change(store: Store) -> None:
    with time_machine.travel(1_800_000_000, tick=False):
        note = insert(store, "notes", title="A", content="B")
    with time_machine.travel(1_800_000_100, tick=False):
        changed = call(store, "update", "notes", data={"id": note["id"], "updates": {"content": "C"}})["row"]
    assert changed == note | {"content": "C", "updatedAt": 1_800_000_100_000}


def test_deleting_says_whether_there_was_something_and_takes_nothing_else_along(store: Store) -> None:
    project = insert(store, "projects", name="P")
    insert(store, "tasks", title="T", projectId=project["id"])
    assert call(store, "delete", "projects", data={"id": project["id"]})["deleted"] is True
    assert call(store, "delete", "projects", data={"id": project["id"]})["deleted"] is False
    assert titles(store, projectId=project["id"]) == ["T"]
    assert call(store, "get", "projects", data={"id": project["id"]})["row"] is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"action": "select", "table": "users"}, "no such table"),
        ({"action": "select", "table": ["tasks"]}, "no such table"),
        ({"action": "drop", "table": "tasks"}, "does not know that action"),
        ({"action": None}, "does not know that action"),
        (
            {"action": "insert", "table": "tasks", "data": {"title": "T", "colour": "red"}},
            "no column 'colour'",
        ),
        ({"action": "insert", "table": "tasks", "data": {"title": "T", "id": "mine"}}, "made by the device"),
        ({"action": "insert", "table": "tasks", "data": {"title": 7}}, "wrong value"),
        (
            {"action": "insert", "table": "tasks", "data": {"title": "T", "dueDate": "tomorrow"}},
            "wrong value",
        ),
        ({"action": "insert", "table": "tasks", "data": {"title": "T", "dueDate": 2**70}}, "wrong value"),
        ({"action": "insert", "table": "tasks", "data": {"title": "T", "status": "open"}}, "wrong value"),
        ({"action": "insert", "table": "tasks", "data": {}}, "title is required"),
        ({"action": "insert", "table": "tasks", "data": [1]}, "must be an object"),
        ({"action": "update", "table": "tasks", "data": {"id": "none", "updates": {"title": "x"}}}, "no row"),
        ({"action": "update", "table": "tasks", "data": {"updates": {}}}, "must name a row"),
        ({"action": "select", "table": "tasks", "filters": {"owner": "me"}}, "no filter"),
        ({"action": "select", "table": "clients", "filters": {"projectId": "p"}}, "no column"),
        (
            {"action": "select", "table": "tasks", "filters": {"orderBy": "title; DROP TABLE tasks"}},
            "orderBy",
        ),
        ({"action": "select", "table": "tasks", "filters": {"orderBy": '"; --'}}, "orderBy knows"),
        ({"action": "select", "table": "notes", "filters": {"dueDateFrom": 1}}, "no due date"),
        ({"action": "select", "table": "tasks", "limit": -1}, "limit"),
        ({"action": "vector_upsert", "data": {"id": "v", "content": "c"}, "vector": []}, "vector"),
        ({"action": "vector_upsert", "data": {"id": "v", "content": "c"}, "vector": ["a"]}, "numbers"),
        ({"action": "vector_upsert", "data": {"id": "v"}, "vector": [1.0]}, "content"),
        ({"action": "vector_search", "vector": [1.0], "limit": 0}, "limit"),
    ],
)
def test_a_wrong_call_is_an_error_in_the_result_and_changes_nothing(
    store: Store, wrong: dict[str, Any], said: str
) -> None:
    insert(store, "tasks", title="Here before")
    (result,) = store.apply([{"id": "wrong", **wrong}])
    assert said in result["error"]
    assert titles(store) == ["Here before"]


def test_a_call_that_fails_in_a_batch_fails_alone(store: Store) -> None:
    results = store.apply(
        [
            {"id": "1", "action": "insert", "table": "tasks", "data": {"title": "A"}},
            {"id": "2", "action": "insert", "table": "tasks", "data": {"title": 5}},
            {"id": "3", "action": "insert", "table": "tasks", "data": {"title": "C"}},
            {"id": "4", "action": "select", "table": "tasks"},
        ]
    )
    assert ["error" in result for result in results] == [False, True, False, False]
    assert [row["title"] for row in results[3]["rows"]] == ["A", "C"]


def test_select_filters_by_what_the_protocol_names(store: Store) -> None:
    insert(store, "tasks", title="Größe prüfen", projectId="p", dueDate=10, priority="low")
    insert(store, "tasks", title="Call 100% sure", projectId="p", dueDate=20, status="done", priority="high")
    insert(store, "tasks", title="Other", description="about the GRÖSSE", projectId="q", dueDate=30)
    insert(store, "tasks", title="Undated", projectId="q")
    assert titles(store, projectId="p") == ["Größe prüfen", "Call 100% sure"]
    assert titles(store, status="done") == ["Call 100% sure"]
    assert titles(store, search="GRÖSSE") == ["Größe prüfen", "Other"]
    assert titles(store, search="prüfen größe") == ["Größe prüfen"]
    assert titles(store, search="0%") == ["Call 100% sure"]
    assert titles(store, search="_") == []
    assert titles(store, dueDateFrom=20, dueDateTo=30) == ["Call 100% sure", "Other"]
    assert titles(store, orderBy="-dueDate") == ["Other", "Call 100% sure", "Größe prüfen", "Undated"]
    assert titles(store, orderBy="dueDate") == ["Größe prüfen", "Call 100% sure", "Other", "Undated"]
    assert titles(store, orderBy="title desc")[0] == "Undated"
    assert titles(store, orderBy="priority") == ["Call 100% sure", "Other", "Undated", "Größe prüfen"]
    assert titles(store, projectId=None, status=None) == titles(store)


def test_archived_projects_are_shown_when_they_are_asked_for(store: Store) -> None:
    insert(store, "projects", name="Now", clientId="c")
    insert(store, "projects", name="Then", status="archived")
    assert titles(store, "projects") == ["Now"]
    assert titles(store, "projects", includeArchived=True) == ["Now", "Then"]
    assert titles(store, "projects", status="archived") == ["Then"]
    assert titles(store, "projects", clientId="c") == ["Now"]


def test_the_dates_of_timelines_and_the_task_of_comments_are_filters_too(store: Store) -> None:
    insert(store, "timelines", projectId="p", title="Early", date=1)
    insert(store, "timelines", projectId="p", title="Late", date=9)
    insert(store, "taskComments", taskId="t", content="Hello")
    assert titles(store, "timelines", dueDateFrom=5) == ["Late"]
    assert len(call(store, "select", "taskComments", filters={"taskId": "t"})["rows"]) == 1
    assert call(store, "select", "taskComments", filters={"taskId": "u"})["rows"] == []


def test_vector_search_finds_the_nearest_by_angle_and_never_mixes_dimensions(store: Store) -> None:
    for key, vector in {"north": [0.0, 2.0], "east": [5.0, 0.0], "northeast": [1e200, 1e200]}.items():
        data = {"id": key, "projectId": "p", "content": f"text of {key}"}
        assert call(store, "vector_upsert", data=data, vector=vector)["ok"] is True
    call(store, "vector_upsert", data={"id": "deep", "content": "other model"}, vector=[1.0, 1.0, 1.0])
    found = call(store, "vector_search", vector=[0.1, 9.0], limit=2)["results"]
    assert [result["id"] for result in found] == ["north", "northeast"]
    assert found[0]["content"] == "text of north"
    assert found[0]["score"] == pytest.approx(1.0, abs=1e-3)
    assert found[1]["score"] == pytest.approx(0.7149, abs=1e-3)
    assert "dimensions" in call(store, "vector_search", vector=[1.0] * 4)["error"]


def test_a_vector_is_replaced_by_its_id_and_goes_with_its_row(store: Store) -> None:
    note = insert(store, "notes", title="A", content="B")
    for vector in ([1.0, 0.0], [0.0, 1.0, 0.0]):
        call(store, "vector_upsert", data={"id": note["id"], "content": "B"}, vector=vector)
    assert len(call(store, "vector_search", vector=[0.0, 1.0, 0.0])["results"]) == 1
    call(store, "delete", "notes", data={"id": note["id"]})
    assert call(store, "vector_search", vector=[0.0, 1.0, 0.0])["results"] == []


def test_a_repeated_write_gets_the_stored_result_also_when_it_was_an_error(store: Store) -> None:
    first = call(store, "insert", "tasks", id="same", data={"title": "Once"})
    assert call(store, "insert", "tasks", id="same", data={"title": "Once"}) == first
    missing = {
        "id": "u",
        "action": "update",
        "table": "tasks",
        "data": {"id": "x", "updates": {"title": "y"}},
    }
    assert store.apply([missing, missing])[0] == store.apply([missing])[0]
    assert titles(store) == ["Once"]


_writes = st.one_of(
    st.tuples(st.just("insert"), st.sampled_from(["A", "B", 3]), st.none()),
    st.tuples(st.just("update"), st.sampled_from(["X", "Y", 4]), st.integers(0, 5)),
    st.tuples(st.just("delete"), st.none(), st.integers(0, 5)),
)


@settings(max_examples=fewer(150), deadline=None)
@given(
    steps=st.lists(_writes, max_size=12),
    repeats=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=12),
    together=st.booleans(),
)
def test_any_calls_with_any_repeats_leave_what_the_calls_alone_would(
    steps: list[tuple[str, Any, int | None]], repeats: list[tuple[int, int]], together: bool
) -> None:
    def outcome(with_repeats: bool) -> list[Any]:
        store = Store()
        try:
            calls: list[dict[str, Any]] = []
            made: list[str] = []
            first: dict[str, Any] = {}
            for number, (action, title, target) in enumerate(steps):
                data: dict[str, Any] = {"title": title} if action == "insert" else {"id": "nothing"}
                if target is not None and target < len(made):
                    data["id"] = made[target]
                if action == "update":
                    data["updates"] = {"title": title}
                calls.append({"id": str(number), "action": action, "table": "tasks", "data": data})
                old = [calls[at] for after, at in repeats if after == number and at <= number] * with_repeats
                batch = [calls[-1], *old]
                results = store.apply(batch) if together else [store.apply([one])[0] for one in batch]
                for one, result in zip(batch, results, strict=True):
                    assert first.setdefault(one["id"], result) == result
                if action == "insert" and "row" in results[0]:
                    made.append(results[0]["row"]["id"])
            return [row["title"] for row in store.select(TABLES["tasks"])]
        finally:
            store.close()

    assert outcome(with_repeats=True) == outcome(with_repeats=False)


def test_results_are_kept_over_a_restart_and_for_thirty_days(tmp_path: Path) -> None:
    once = {"id": "same", "action": "insert", "table": "tasks", "data": {"title": "Once"}}

    def apply() -> int:
        store = Store(tmp_path / "data.sqlite3")
        store.apply([once])
        count = len(store.select(TABLES["tasks"]))
        store.close()
        return count

    with time_machine.travel(1_800_000_000):
        apply()
    with time_machine.travel(1_800_000_000 + 29 * 86400):
        assert apply() == 1
    with time_machine.travel(1_800_000_000 + 31 * 86400):
        assert apply() == 2


def test_a_write_that_a_full_disk_does_not_take_is_not_refused_for_good(store: Store) -> None:
    (used,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {used}")
    note = {"title": "Minutes", "content": "x" * 100_000}
    result = call(store, "insert", "notes", id="note", data=note)
    assert (result["code"], "full" in result["error"]) == ("not_saved", True)
    store._db.execute("PRAGMA max_page_count = 100000")
    assert call(store, "insert", "notes", id="note", data=note)["row"]["title"] == "Minutes"


def test_an_error_of_the_database_that_will_not_pass_has_no_code(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise sqlite3.ProgrammingError("a mistake of ours")

    monkeypatch.setattr(store, "_insert", fail)
    assert call(store, "insert", "tasks", data={"title": "x"}).keys() == {"id", "error"}


def test_a_file_of_an_earlier_version_gets_the_columns_it_lacks(tmp_path: Path) -> None:
    file = tmp_path / "data.sqlite3"
    with sqlite3.connect(file) as db:
        db.execute('CREATE TABLE tasks ("id" TEXT PRIMARY KEY, "title" TEXT, "createdAt" INTEGER)')
        db.execute("INSERT INTO tasks VALUES ('old', 'From before', 1)")
    db.close()
    store = Store(file)
    (row,) = store.select(TABLES["tasks"])
    assert (row["title"], row["status"], row["isAiSuggested"], row["assignee"]) == (
        "From before",
        "todo",
        0,
        None,
    )
    store.close()


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    Store(tmp_path / "data.sqlite3").close()
    assert (tmp_path / "data.sqlite3").stat().st_mode & 0o077 == 0


def test_what_is_no_database_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "data.sqlite3").write_bytes(b"not a database " * 100)
    with pytest.raises(BadWorkspace, match="cannot be opened"):
        Store(tmp_path / "data.sqlite3")


def test_a_seed_fills_an_empty_store_once_and_ties_its_rows_together(store: Store) -> None:
    seed = {
        "clients": [{"id": "c", "name": "Client"}],
        "projects": [{"id": "p", "name": "Project", "clientId": "c"}],
    }
    assert store.seed(seed) == 2
    assert store.seed(seed) == 0
    (client,) = store.select(TABLES["clients"])
    (project,) = store.select(TABLES["projects"])
    assert project["clientId"] == client["id"] != "c"


def test_a_seed_that_does_not_fit_leaves_the_store_empty(store: Store) -> None:
    with pytest.raises(BadWorkspace, match="colour"):
        store.seed({"clients": [{"name": "Client"}, {"name": "Other", "colour": "red"}]})
    assert store.select(TABLES["clients"]) == []


def test_the_samples_seed_fits_the_tables(store: Store) -> None:
    sample = Path(__file__).parents[2] / "adiuva" / "embedded" / "sample"
    assert store.seed(json.loads((sample / "projects.json").read_bytes())) == 6
