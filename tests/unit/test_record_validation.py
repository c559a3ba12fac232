"""Whatever a model returns, what passes the check can be inserted on a device, and nothing else passes."""

from __future__ import annotations

import uuid
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adiuva.devices.client.store import Store
from adiuva.devices.codec import dump
from adiuva.devices.protocol import ToolCall
from adiuva.devices.tables import TABLES, is_value
from agents.record_validation import (
    MAX_RECORDS,
    MAX_TITLE_CHARS,
    Record,
    RecordRules,
    RejectedRecord,
    in_order,
)
from tests.sampling import fewer

ROME = ZoneInfo("Europe/Rome")
DEVICE = Store()  # the headless device's own, in memory
RULES = RecordRules(tuple(TABLES), {"p-1": "Villa Rossi", "p-2": "Twin", "p-3": "Twin"}, ROME)

texts = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(categories=["Cs", "Cc", "Lu"]), max_size=5),
    st.sampled_from(
        ["", "  ", "todo", "In Progress", "HIGH", "p-1", "villa rossi", "twin", "2026-12-01", "x" * 2000]
    ),
    st.sampled_from(
        ["99999-01-01", "0001-01-01T00:00:00+14:00", "2026-12-01T10:00:00+23:59", "2026-W10-1", "soon"]
    ),
)
numbers = st.one_of(st.integers(), st.integers(-(10**400), 10**400), st.floats(), st.booleans(), st.none())
values = st.recursive(
    texts | numbers,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
columns = sorted({column.name for table in TABLES.values() for column in table.columns})
datas = st.dictionaries(st.sampled_from(columns) | texts, values, max_size=6)
items = st.one_of(
    st.fixed_dictionaries(
        {"table": st.sampled_from(sorted(TABLES)), "data": datas},
        optional={"action": st.sampled_from(["insert", "delete", 1])},
    ),
    *(
        st.fixed_dictionaries(
            {
                "table": st.just(table.name),
                "data": st.fixed_dictionaries(
                    {column.name: values for column in table.columns if column.required},
                    optional={
                        c.name: values for c in table.columns if not c.made_by_device and not c.required
                    },
                ),
            }
        )
        for table in TABLES.values()
    ),
    values,
)
lists = st.lists(items, max_size=5)
answers = st.one_of(st.fixed_dictionaries({"records": lists}), lists, values)


@given(answers)
@settings(max_examples=fewer(100))
def test_whatever_a_model_returns_only_insertable_records_pass(answer: Any) -> None:
    records, rejected = RULES.check(answer)
    assert all(isinstance(each, RejectedRecord) and each.reason for each in rejected)
    for record in records:
        table = TABLES[record.table]
        assert all(is_value(table.by_name[name], value) for name, value in record.data.items())
        assert not any(table.by_name[name].made_by_device for name in record.data)
        assert {c.name for c in table.columns if c.required} <= record.data.keys()
        if table.reviewed:
            assert (record.data["isAiSuggested"], record.data["isApproved"]) == (1, 0)
        frame = dump(ToolCall(id="1", action="insert", table=record.table, data=record.data))  # type: ignore[arg-type]
        assert "\\u0000" not in frame
    calls = [
        {"id": uuid.uuid4().hex, "action": "insert", "table": record.table, "data": record.data}
        for record in records
    ]
    assert not [result for result in DEVICE.apply(calls) if "error" in result]


def one(table: str, **data: Any) -> Record | str:
    """The record that is made of this, or the code of why none is."""
    records, rejected = RULES.check({"records": [{"table": table, "data": data}]})
    return records[0] if records else rejected[0].code


@pytest.mark.parametrize(
    ("table", "data", "code"),
    [
        ("tasks", {"title": "x" * (MAX_TITLE_CHARS + 1)}, "too_long"),
        ("tasks", {"title": "x" * 1_000_000}, "too_long"),
        ("tasks", {"title": "a\x00b"}, "bad_text"),
        ("tasks", {"title": "a\ud800b"}, "bad_text"),
        ("tasks", {"title": "   "}, "field_missing"),
        ("tasks", {"title": ["a"]}, "bad_value"),
        ("timelines", {"title": "a", "date": "soon", "projectId": "p-1"}, "bad_time"),
        ("timelines", {"title": "a", "date": "2026-12-01", "projectId": "p-9"}, "unknown_project"),
        ("timelines", {"title": "a", "date": "2026-12-01"}, "no_project"),
        ("taskComments", {"taskId": "t-1", "content": "a"}, "no_task"),
        ("users", {"title": "a"}, "table_not_asked_for"),
    ],
)
def test_a_record_that_cannot_be_used_says_why(table: str, data: dict[str, Any], code: str) -> None:
    assert one(table, **data) == code


def test_the_flags_of_review_are_never_the_models() -> None:
    found = one("tasks", title="a", isApproved=1, isAiSuggested=0)
    assert isinstance(found, Record)
    assert (found.data["isAiSuggested"], found.data["isApproved"]) == (1, 0)


def test_only_inserts_are_taken() -> None:
    item = {"table": "tasks", "action": "delete", "data": {"title": "a"}}
    assert RULES.check([item])[1][0].code == "insert_only"


def test_only_tables_that_were_asked_for_are_taken() -> None:
    records, rejected = RecordRules(("notes",), {}, ROME).check([{"table": "tasks", "data": {"title": "a"}}])
    assert (records, [each.code for each in rejected]) == ([], ["table_not_asked_for"])


def test_of_ten_thousand_records_the_first_are_taken_and_the_rest_is_said() -> None:
    items = [{"table": "tasks", "data": {"title": f"step {number}"}} for number in range(10_000)]
    records, rejected = RULES.check({"records": items})
    assert len(records) == MAX_RECORDS
    assert [each.code for each in rejected] == ["too_many"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dueDate", "99999-01-01"),
        ("dueDate", 10**400),
        ("dueDate", True),
        ("dueDate", "next Friday"),
        ("dueDate", "03/04/2026"),  # the third of April, or the fourth of March
        ("dueDate", "December 2026"),
        ("assignee", [["Ada"]]),
        ("assignee", 5),
        ("assignee", {"role": "lead"}),
        ("priority", "whenever"),
        ("id", "mine"),
        ("owner", "me"),
        ("projectId", "p-9"),
        ("projectId", "twin"),
        ("description", {"text": "b"}),
        ("description", "x" * 200_000),
    ],
)
def test_an_optional_field_that_cannot_be_understood_costs_only_that_field(field: str, value: Any) -> None:
    found = one("tasks", title="a", status="done", **{field: value})
    assert isinstance(found, Record)
    assert found.data == {"title": "a", "status": "done", "isAiSuggested": 1, "isApproved": 0}
    (problem,) = found.problems
    assert problem.reason.startswith("tasks")


@pytest.mark.parametrize(
    ("field", "value", "understood"),
    [
        ("priority", "Urgent", "high"),
        ("priority", "ASAP!", "high"),
        ("priority", "normal", "medium"),
        ("priority", "Niedrig", "low"),
        ("status", "Not started", "todo"),
        ("status", "open", "todo"),
        ("status", "In-Progress", "in_progress"),
        ("status", "completed", "done"),
        ("assignee", '["Ana"]', '["Ana"]'),
        ("assignee", "Ana and Ben, Zoë", '["Ana", "Ben", "Zoë"]'),
        ("assignee", {"name": "Ana"}, '["Ana"]'),
        ("assignee", [{"name": "Ana"}, "Ben"], '["Ana", "Ben"]'),
        ("dueDate", "2026-12-03", 1_796_252_400_000),
        ("dueDate", "3 December 2026", 1_796_252_400_000),
        ("dueDate", "Dec 3, 2026", 1_796_252_400_000),
        ("dueDate", "03.12.2026", 1_796_252_400_000),
        ("dueDate", "2026/12/3", 1_796_252_400_000),
        ("dueDate", "12/13/2026", 1_797_116_400_000),
        ("dueDate", "2026-12-03T09:30:00Z", 1_796_290_200_000),
        ("dueDate", "Thu, 3 Dec 2026 10:30:00 +0100", 1_796_290_200_000),
        ("dueDate", 1_796_290_200, 1_796_290_200_000),
        ("dueDate", 1_796_290_200_000, 1_796_290_200_000),
        ("dueDate", "1796290200", 1_796_290_200_000),
        ("description", ["first", "second"], "first\nsecond"),
        ("projectId", " villa rossi ", "p-1"),
    ],
)
def test_what_can_be_understood_is(field: str, value: Any, understood: Any) -> None:
    found = one("tasks", title="a", **{field: value})
    assert isinstance(found, Record)
    assert (found.data[field], found.problems) == (understood, ())


@pytest.mark.parametrize(
    "answer",
    [
        {"records": [{"table": "task", "data": {"title": "a"}}]},
        {"records": [{"table": "tasks", "title": "a"}]},
        [{"table": "tasks", "data": {"title": "a"}}],
        {"table": "tasks", "data": {"title": "a"}},
    ],
)
def test_records_in_other_forms_are_understood(answer: Any) -> None:
    (found,), rejected = RULES.check(answer)
    assert (found.table, found.data["title"], rejected) == ("tasks", "a", [])


def test_the_values_of_several_answers_are_taken_together() -> None:
    first, second = ({"records": [{"table": "tasks", "data": {"title": title}}]} for title in "ab")
    records, rejected = RULES.check([1], first, second, part=2)
    assert [record.title for record in records] == ["a", "b"]
    assert [record.place for record in records] == ["part 2, record 1", "part 2, record 2"]
    assert rejected == []


def test_no_reason_quotes_what_the_model_said() -> None:
    secret = "the-contract-is-void"
    answer = [
        {"table": secret, "data": {"title": secret}},
        {"table": "tasks", "data": {secret: 1}},
        {"table": "timelines", "data": {"title": secret, "date": secret, "projectId": secret}},
        {
            "table": "tasks",
            "data": {"title": secret, "projectId": secret, "dueDate": secret, "priority": secret},
        },
    ]
    records, rejected = RULES.check(answer)
    assert (len(records), len(rejected)) == (1, 3)
    reasons = [each.reason for each in [*rejected, *records[0].problems]]
    assert len(reasons) == 6 and not any(secret in reason for reason in reasons)


def test_a_project_that_two_parts_name_is_one_that_knows_what_either_knew() -> None:
    first = Record("projects", {"name": "Villa  Rossi", "status": "active"})
    second = Record("projects", {"name": "villa rossi", "aiSummary": "a house"})
    (found,) = in_order([first, second])
    assert found.data == {"name": "Villa  Rossi", "status": "active", "aiSummary": "a house"}


def test_verdicts_on_known_records_are_checked_like_records() -> None:
    answer = {
        "known": [
            {"id": 1, "now": "changed", "data": {"dueDate": "2026-12-03", "isApproved": 1, "owner": "me"}},
            {"id": "2", "now": "Still there"},
            {"id": 2, "now": "gone"},
            {"id": 3, "now": "whatever"},
            {"id": 99, "now": "gone"},
            "nonsense",
        ]
    }
    found = RULES.verdicts(answer, tables={1: "tasks", 2: "tasks", 3: "tasks"})
    assert [(each.number, each.now, each.data) for each in found] == [
        (1, "changed", {"dueDate": 1_796_252_400_000}),
        (2, "there", {}),
    ]


def test_projects_come_before_what_may_name_them() -> None:
    answer = [
        {"table": "tasks", "data": {"title": "a"}},
        {"table": "projects", "data": {"name": "b"}},
        {"table": "clients", "data": {"name": "c"}},
    ]
    assert [record.table for record in RULES.check(answer)[0]] == ["clients", "projects", "tasks"]
