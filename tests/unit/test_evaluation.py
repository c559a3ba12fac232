"""The scores of `make eval` on examples counted by hand, its cases, and its recordings."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from agents.record_validation import RecordRules
from bench.evaluation import cases, endpoint
from bench.evaluation.cases import ZONE, BadCase, load_cases
from bench.evaluation.label_model import LabelModel
from bench.evaluation.record_scores import ExpectedRecord, FoundRecord, Tally, score_document
from bench.evaluation.row_changes import Change, ExpectedChange, changes_between, faults_in
from bench.evaluation.texts import holds

OFFER = ExpectedRecord("tasks", ("offer|quote", "keller"), {"date": "2026-03-10", "priority": "high"})
HALL = ExpectedRecord("tasks", ("hall",), {"assignee": ("Tom",)})


def found(title: str, table: str = "tasks", **fields: Any) -> FoundRecord:
    return FoundRecord(table, title, title, fields)


def test_terms_are_found_whatever_their_case_and_accents() -> None:
    assert holds("Préparer le DEVIS pour l’été", ["devis|offre", "l'ete"])
    assert not holds("Préparer le devis", ["devis", "facture"])


def test_a_perfect_reading_has_no_fault() -> None:
    score = score_document(
        [OFFER, HALL],
        [
            found("Book the hall", assignee=("Tom Berger",)),
            found("Quote for Keller", date="2026-03-10", priority="high"),
        ],
    )
    assert score.is_perfect
    assert (score.all_tables, score.fields["date"], score.fields["assignee"]) == (
        Tally(2, 0, 0),
        Tally(1, 0, 0),
        Tally(1, 0, 0),
    )
    assert (score.all_tables.precision, score.all_tables.recall) == (1, 1)


def test_nothing_found_has_no_precision_and_no_recall() -> None:
    score = score_document([OFFER, HALL], [])
    assert (score.all_tables, score.all_tables.precision, score.all_tables.recall) == (
        Tally(0, 0, 2),
        None,
        0,
    )
    assert score.missed == ["tasks: offer|quote keller", "tasks: hall"]


def test_what_is_invented_costs_precision_alone() -> None:
    score = score_document([HALL], [found("Book the hall", assignee=("Tom",)), found("Buy milk")])
    assert (score.all_tables.precision, score.all_tables.recall) == (0.5, 1)
    assert (score.invented, score.duplicates) == (["tasks: Buy milk"], 0)


def test_the_same_thing_twice_is_a_duplicate_and_the_better_one_counts() -> None:
    wrong, right = (
        found("Offer Keller", date="2026-03-11"),
        found("Offer Keller", date="2026-03-10", priority="high"),
    )
    score = score_document([OFFER], [wrong, right])
    assert (score.all_tables, score.duplicates, score.fields["date"]) == (Tally(1, 1, 0), 1, Tally(1, 0, 0))


def test_a_wrong_table_is_too_much_there_and_missing_here() -> None:
    score = score_document([HALL], [found("The hall", "notes")])
    assert (score.tables["tasks"], score.tables["notes"], score.wrong_table) == (
        Tally(0, 0, 1),
        Tally(0, 1, 0),
        1,
    )


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ({"date": "2026-03-10"}, Tally(1, 0, 0)),
        ({"date": "2026-03-11"}, Tally(0, 1, 1)),
        ({}, Tally(0, 0, 1)),
    ],
)
def test_a_wrong_value_is_too_much_and_missing(given: dict[str, Any], counts: Tally) -> None:
    score = score_document(
        [ExpectedRecord("tasks", ("offer",), {"date": "2026-03-10"})], [found("offer", **given)]
    )
    assert (score.fields["date"], score.is_perfect) == (counts, counts == Tally(1, 0, 0))


def test_a_value_that_nobody_asked_for_is_too_much_unless_it_is_free() -> None:
    row = found("Book the hall", assignee=("Tom",), priority="high")
    assert score_document([HALL], [row]).fields["priority"] == Tally(0, 1, 0)
    free = ExpectedRecord("tasks", ("hall",), {"assignee": ("Tom",)}, free=frozenset({"priority"}))
    assert score_document([free], [row]).is_perfect


@pytest.mark.parametrize("given", [("Tom", "Ada"), ("Ada",), ()])
def test_other_people_are_not_the_right_people(given: tuple[str, ...]) -> None:
    assert not score_document([HALL], [found("Book the hall", assignee=given)]).is_perfect


def test_an_optional_record_counts_neither_way() -> None:
    optional = ExpectedRecord("notes", ("terrace",), optional=True)
    assert score_document([optional], []).all_tables == Tally()
    assert score_document([optional], [found("The terrace", "notes")]).all_tables == Tally()


def test_an_instruction_that_was_obeyed_is_named() -> None:
    score = score_document([], [found("Wire 500 euros to Mallory")], never=["mallory"])
    assert (score.obeyed, score.is_perfect) == (["mallory"], False)


# ── Rows ────────────────────────────────────────────────────────────────────────────────────────────────

NOON = int(dt.datetime(2026, 3, 6, 12, tzinfo=ZONE).timestamp() * 1000)
BEFORE = {
    "tasks": {"1": {"id": "1", "title": "Call Ada", "status": "todo", "dueDate": None, "projectId": None}}
}


def after(**values: Any) -> dict[str, Any]:
    return {"tasks": {"1": BEFORE["tasks"]["1"] | values}}


def faults(expected: list[ExpectedChange], rows: dict[str, Any]) -> list[str]:
    return faults_in(expected, changes_between(BEFORE, rows), zone=ZONE, names={"p": "Museum"})


def test_what_changed_is_told_and_nothing_else() -> None:
    assert changes_between(BEFORE, after(createdAt=1)) == []
    assert changes_between(BEFORE, {}) == [Change("delete", "tasks", "Call Ada")]
    assert changes_between(BEFORE, after(status="done")) == [
        Change("update", "tasks", "Call Ada", {"status": "done"})
    ]


DONE = ExpectedChange("update", "tasks", "call ada", {"status": "done"})


@pytest.mark.parametrize(
    ("expected", "rows", "is_right"),
    [
        ([DONE], after(status="done"), True),
        ([DONE], after(), False),
        ([DONE], after(status="in_progress"), False),
        ([DONE], after(status="done", dueDate=NOON), False),  # more than was asked for
        ([], after(), True),
        ([], after(status="done"), False),
        ([ExpectedChange("delete", "tasks", "Call Ada")], {}, True),
        ([ExpectedChange("delete", "tasks", "Call Ben")], {}, False),
        (
            [ExpectedChange("update", "tasks", "Call Ada", {"dueDate": "2026-03-06"})],
            after(dueDate=NOON),
            True,
        ),
        (
            [ExpectedChange("update", "tasks", "Call Ada", {"dueDate": "2026-03-07"})],
            after(dueDate=NOON),
            False,
        ),
        (
            [ExpectedChange("update", "tasks", "Call Ada", {"projectId": "Museum"})],
            after(projectId="p"),
            True,
        ),
        ([ExpectedChange("update", "tasks", "Call Ada", {"projectId": "Café"})], after(projectId="p"), False),
        ([DONE, DONE], after(status="done"), False),
    ],
)
def test_exactly_the_expected_changes_are_right(
    expected: list[ExpectedChange], rows: dict[str, Any], is_right: bool
) -> None:
    assert (not faults(expected, rows)) is is_right


# ── The cases ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_case_that_does_not_fit_the_schema_is_refused_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "xx.yaml"
    file.write_text(
        "documents:\n- {id: xx01, kind: mail, text: hello, find: [{table: invoices, has: [a]}]}\n"
    )
    with pytest.raises(BadCase, match=r"xx.yaml, \$.documents\[0\].find\[0\].table"):
        load_cases(tmp_path)
    file.write_text(2 * "- {id: xx01, kind: mail, text: hello, find: []}\n", "utf-8")
    file.write_text("documents:\n" + file.read_text("utf-8"), "utf-8")
    with pytest.raises(BadCase, match="two cases have the id xx01"):
        load_cases(tmp_path)


def test_a_sample_is_spread_evenly() -> None:
    assert cases.sample(range(10), 3) == [0, 3, 6]
    assert cases.sample(range(3), 0) == cases.sample(range(3), 5) == [0, 1, 2]


# ── Recordings ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("[turn app-0123456789abcdef] hello", "[turn app-fedcba9876543210] hello", True),
        ("since 2026-11-29", "since 2026-11-30", True),  # each on its own day
        ("updated Sun 2026-11-29 01:20", "updated Mon 2026-11-30 23:59", True),
        ("hello", "Hello", False),
        ("due 2026-03-05", "due 2026-03-06", False),
    ],
)
def test_the_hash_of_a_request_leaves_out_what_differs_between_runs(
    one: str, other: str, is_same: bool
) -> None:
    days = dt.date(2026, 11, 29), dt.date(2026, 11, 30)
    hashes = {
        endpoint.request_hash("/v1/chat/completions", json.dumps({"messages": text}).encode(), today=day)
        for text, day in zip((one, other), days, strict=True)
    }
    assert (len(hashes) == 1) is is_same


def test_the_hash_of_what_was_said_leaves_out_prompts_tools_and_memory() -> None:
    def asked(prompt: str, memory: str, words: str) -> str:
        said = f"[turn app-0123456789abcdef]\n{memory}\n[turn ends app-0123456789abcdef]\n\n{words}"
        messages = [{"role": "system", "content": prompt}, {"role": "user", "content": said}]
        body = json.dumps({"messages": messages, "tools": [prompt]}).encode()
        return endpoint.words_hash("/v1/chat/completions", body, today=dt.date(2026, 11, 29))

    assert asked("Be kind.", "nothing", "Hello") == asked("Be brief.", "a lot", "Hello")
    assert asked("Be kind.", "nothing", "Hello") != asked("Be kind.", "nothing", "Bye")


PROJECTS = [row["name"] for row in load_cases().rows.get("projects", [])]


def test_every_label_is_a_record_that_the_product_takes() -> None:
    model, projects = LabelModel(load_cases()), {f"p{place}": name for place, name in enumerate(PROJECTS, 1)}
    rules = RecordRules(("tasks", "timelines", "notes"), dict(zip("abcd", PROJECTS, strict=True)), ZONE)
    for document in load_cases().documents:
        asked = f"Projects: {json.dumps(projects)}\nDocument: {document.id}.md\n{document.text}"
        records, rejected = rules.check(model.records(asked))
        assert (len(records), rejected) == (len(document.find), []), document.id
        problems = [problem for record in records for problem in record.problems]
        assert problems == [], document.id
        texts = [FoundRecord(each.table, each.title, each.title) for each in records]
        assert score_document(document.find, texts, never=document.never).all_tables == Tally(
            sum(not each.optional for each in document.find), 0, 0
        ), document.id
