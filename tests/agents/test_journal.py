"""The journal has each event once, in order, and loses none."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents import claimed_runs, journal, run_release, runs
from agents.claimed_runs import ClaimedRun
from agents.extraction import SourceDocument
from agents.journal import EventKind, JournalEntry
from agents.models import Run, RunEvent
from tests.agents.factories import (
    API,
    claim_run,
    commit_document,
    commit_tasks,
    create_agent,
    create_run,
    lose_worker,
)
from tests.factories import Person
from tests.sampling import fewer

if TYPE_CHECKING:
    from rest_framework.test import APIClient


def run_of(claimed: ClaimedRun) -> Run:
    return Run.objects.get(pk=claimed.run_id)


def lines(claimed: ClaimedRun) -> list[tuple[Any, ...]]:
    """What is in it, after the line about the start."""
    events = journal.read(run_of(claimed))[1:]
    return [(event["code"], event["count"], event["source"]) for event in events]


def test_events_come_in_order_after_a_number_and_no_more_than_asked_for(
    rest: APIClient, claimed: ClaimedRun
) -> None:
    claimed_runs.add_counts(
        claimed, entries=[JournalEntry(EventKind.NOTE, f"code-{number}") for number in range(1_500)]
    )
    place = f"{API}/runs/{claimed.run_id}/events"
    first = rest.get(place).json()
    assert len(first) == 1_000
    assert first[0].keys() == {"seq", "at", "kind", "code", "count", "source", "message"}
    second = rest.get(place, {"after": first[-1]["seq"]}).json()
    codes = [event["code"] for event in [*first, *second]]
    assert codes == ["", *(f"code-{number}" for number in range(1_500))]
    assert [event["seq"] for event in rest.get(place, {"limit": 2}).json()] == [e["seq"] for e in first[:2]]
    assert rest.get(place, {"after": second[-1]["seq"]}).json() == []


@pytest.mark.parametrize(
    "query",
    [{"after": "x"}, {"after": "-1"}, {"after": "9" * 19}, {"after": "١"}]
    + [{"limit": value} for value in ("0", "1001", "x", "-1", "1.5", "9" * 400)],
)
def test_a_wrong_query_is_refused_by_its_name(
    rest: APIClient, claimed: ClaimedRun, query: dict[str, str]
) -> None:
    answer = rest.get(f"{API}/runs/{claimed.run_id}/events", query)
    assert (answer.status_code, list(answer.json()["fields"])) == (400, list(query))


def test_the_same_event_twice_is_one(claimed: ClaimedRun) -> None:
    failed = JournalEntry(EventKind.SOURCE_FAILED, "unreadable", source="/a.md", message="it is a picture")
    other = JournalEntry(EventKind.SOURCE_FAILED, "unreadable", source="/b.md", message="it is a picture")
    claimed_runs.add_counts(claimed, entries=[failed, failed])
    claimed_runs.add_counts(claimed, entries=[failed, other])
    assert [line[2] for line in lines(claimed)] == ["/a.md", "/b.md"]
    assert run_of(claimed).problems == 2  # what is said twice has gone wrong once


def test_what_may_happen_several_times_is_several_events(claimed: ClaimedRun) -> None:
    entries = [
        JournalEntry(EventKind.NOTE, "interrupted"),
        JournalEntry(EventKind.RECORD_REFUSED, "device_refused", 1, "/a.md"),
    ]
    for _ in range(2):
        claimed_runs.add_counts(claimed, entries=entries)
    assert len(lines(claimed)) == 4


def test_a_conflict_is_kept_beside_what_it_conflicts_with_and_noted_once(claimed: ClaimedRun) -> None:
    for count in (1, 2, 2, 1):
        entry = JournalEntry(
            EventKind.RECORD_QUARANTINED, "bad_value", count, "/a.md", "tasks: status is not one of"
        )
        claimed_runs.add_counts(claimed, entries=[entry])
    assert lines(claimed) == [
        ("bad_value", 1, "/a.md"),
        ("bad_value", 2, "/a.md"),
        ("event_conflict", None, ""),
    ]


def test_an_event_of_one_run_is_none_of_another(claimed: ClaimedRun) -> None:
    entry = JournalEntry(EventKind.SOURCE_FAILED, "unreadable", source="/a.md")
    claimed_runs.add_counts(claimed, entries=[entry])
    run_release.finish(claimed)
    other = claim_run(create_run(run_of(claimed).agent))  # type: ignore[arg-type]
    claimed_runs.add_counts(other, entries=[entry])
    assert lines(other) == [("unreadable", None, "/a.md")]


def test_a_worker_that_takes_over_says_nothing_twice(claimed: ClaimedRun) -> None:
    failed = JournalEntry(EventKind.SOURCE_FAILED, "unreadable", source="/a.md")
    claimed_runs.add_counts(claimed, seen=1, done=1, failed=1, entries=[failed])
    lose_worker(run_of(claimed))
    runs.sweep()
    second = claim_run(run_of(claimed))
    claimed_runs.add_counts(second, seen=1, done=1, failed=1, entries=[failed])
    assert [event["kind"] for event in journal.read(run_of(claimed))].count("source_failed") == 1


A, B = (JournalEntry(EventKind.SOURCE_FAILED, "unreadable", source=f"/{name}.md") for name in "ab")
UNNAMED = JournalEntry(EventKind.SOURCE_FAILED, "never_sent", count=3)
KILLER = JournalEntry(EventKind.SOURCE_FAILED, journal.KILLED_WORKERS, source="/a.md")
SET_ASIDE = JournalEntry(EventKind.RECORD_QUARANTINED, "bad_value", 2, "/a.md", "tasks: status is not one of")
REFUSED = JournalEntry(EventKind.RECORD_REFUSED, "device_refused", 1, "/a.md")


@pytest.mark.parametrize(
    ("attempts", "problems", "errors", "lines"),
    [
        ([[A], []], 0, 0, 1),
        ([[A], [A]], 1, 1, 1),
        ([[A], [], [A]], 1, 1, 1),
        ([[A], [B], [A, A]], 1, 1, 2),
        ([[A, B], [B]], 1, 1, 2),
        ([[UNNAMED], []], 0, 0, 1),
        ([[UNNAMED], [UNNAMED]], 3, 1, 2),
        ([[A, KILLER], []], 1, 1, 2),
        ([[A, SET_ASIDE], []], 2, 1, 2),
        ([[REFUSED], [], []], 1, 1, 1),
        ([[], [A, REFUSED], [B]], 2, 2, 3),
    ],
)
def test_what_a_later_attempt_has_read_is_no_problem_and_what_it_has_not_is_still_one(
    rest: APIClient,
    claimed: ClaimedRun,
    attempts: list[list[JournalEntry]],
    problems: int,
    errors: int,
    lines: int,
) -> None:
    run = run_of(claimed)
    for number, entries in enumerate(attempts):
        if number:
            lose_worker(run)
            runs.sweep()
            claimed = claim_run(run)
        for entry in entries:
            claimed_runs.add_counts(claimed, entries=[entry])
    claimed_runs.add_counts(claimed, seen=1, done=1)
    ended = run_release.finish(claimed)
    assert (ended.state, ended.problems) == (Run.State.PARTIAL if problems else Run.State.SUCCESS, problems)
    assert len(rest.get(f"{API}/runs/{run.pk}").json()["errors"]) == errors
    kinds = {str(kind) for kind in RunEvent.PROBLEMS}
    assert sum(event["kind"] in kinds for event in journal.read(run)) == lines


def test_a_source_that_was_changed_and_read_again_is_another_event(claimed: ClaimedRun) -> None:
    for content in (b"one", b"two", b"two"):
        document = SourceDocument("a", "/a.md", "text", claimed.source_key("/a.md"), content)
        commit_document(claimed, document)
    assert lines(claimed) == [("", 0, "/a.md")] * 2


@pytest.mark.parametrize(
    ("files", "problems", "verdict"),
    [(0, 0, "empty"), (2, 0, "completed"), (2, 1, "completed_with_failures"), (1, 1, "")],
)
def test_a_run_that_ended_in_order_has_a_verdict(
    rest: APIClient, claimed: ClaimedRun, files: int, problems: int, verdict: str
) -> None:
    entries = [
        JournalEntry(EventKind.SOURCE_FAILED, "unreadable", source=f"/{n}.md") for n in range(problems)
    ]
    claimed_runs.add_counts(claimed, seen=files, done=files, failed=problems, entries=entries)
    run_release.finish(claimed)
    assert rest.get(f"{API}/runs/{claimed.run_id}").json()["verdict"] == verdict
    assert rest.get(f"{API}/runs").json()[0]["verdict"] == verdict


def test_a_run_that_did_not_come_to_its_end_has_none(claimed: ClaimedRun) -> None:
    commit_tasks(claimed, "call Ada")
    assert run_release.finish(claimed, Run.State.TIMEOUT, "deadline").verdict == ""


texts = st.text(st.characters(codec="utf-8"), max_size=8)


@given(
    st.lists(
        st.builds(
            JournalEntry,
            kind=st.sampled_from(list(EventKind)),
            code=st.sampled_from(["", "a", "b"]),
            count=st.none() | st.integers(0, 3),
            source=texts,
            message=texts,
            key=st.sampled_from(["", "", "k"]),
        ),
        max_size=12,
    )
)
@settings(max_examples=fewer(30), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_event_is_lost_whatever_comes_how_often(ada: Person, entries: list[JournalEntry]) -> None:
    run = create_run(create_agent(ada.id))
    for _ in range(2):
        journal.write(run, entries)
    seqs = [event["seq"] for event in journal.read(run)]
    assert seqs == sorted(seqs)
    there = {(e["kind"], e["code"], e["count"], e["source"], e["message"]) for e in journal.read(run)}
    assert there >= {(str(e.kind), e.code, e.count, e.source, e.message) for e in entries}


def test_another_users_journal_is_answered_like_none(rest: APIClient) -> None:
    theirs = create_run(create_agent())
    for run in (theirs.pk, uuid.uuid4(), "no-id"):
        assert rest.get(f"{API}/runs/{run}/events").status_code == 404
        assert rest.get(f"{API}/runs/{run}/events", {"limit": "x"}).status_code == 404
        assert rest.post(f"{API}/runs/{run}/undo").status_code == 404
