"""The journal has each event once, in order, and loses none."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents import journal, lease, runs
from agents.extraction import Document
from agents.journal import Entry, Kind
from agents.lease import Job
from agents.models import Run, RunEvent
from tests.agents.factories import a_device, a_run, an_agent, claimed, kept, read
from tests.agents.test_rest import API, client_of
from tests.agents.test_run_services import lose
from tests.factories import Person, somebody

if TYPE_CHECKING:
    from rest_framework.test import APIClient


@pytest.fixture
def ada(db: None) -> Person:
    return somebody()


@pytest.fixture
def rest(ada: Person) -> APIClient:
    return client_of(ada)


@pytest.fixture
def job(ada: Person) -> Job:
    agent = an_agent(ada.id)
    a_device(agent)
    return claimed(a_run(agent))


def run_of(job: Job) -> Run:
    return Run.objects.get(pk=job.run_id)


def lines(job: Job) -> list[tuple[Any, ...]]:
    """What is in it, after the line about the start."""
    events = journal.read(run_of(job))[1:]
    return [(event["code"], event["count"], event["source"]) for event in events]


def test_events_come_in_order_after_a_number_and_no_more_than_asked_for(rest: APIClient, job: Job) -> None:
    lease.count(job, entries=[Entry(Kind.NOTE, f"code-{number}") for number in range(1_500)])
    place = f"{API}/runs/{job.run_id}/events"
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
def test_a_wrong_query_is_refused_by_its_name(rest: APIClient, job: Job, query: dict[str, str]) -> None:
    answer = rest.get(f"{API}/runs/{job.run_id}/events", query)
    assert (answer.status_code, list(answer.json()["fields"])) == (400, list(query))


def test_the_same_event_twice_is_one(job: Job) -> None:
    failed = Entry(Kind.SOURCE_FAILED, "unreadable", source="/a.md", message="it is a picture")
    other = Entry(Kind.SOURCE_FAILED, "unreadable", source="/b.md", message="it is a picture")
    lease.count(job, entries=[failed, failed])
    lease.count(job, entries=[failed, other])
    assert [line[2] for line in lines(job)] == ["/a.md", "/b.md"]
    assert run_of(job).problems == 2  # what is said twice has gone wrong once


def test_what_may_happen_several_times_is_several_events(job: Job) -> None:
    entries = [Entry(Kind.NOTE, "interrupted"), Entry(Kind.RECORD_REFUSED, "device_refused", 1, "/a.md")]
    for _ in range(2):
        lease.count(job, entries=entries)
    assert len(lines(job)) == 4


def test_a_conflict_is_kept_beside_what_it_conflicts_with_and_noted_once(job: Job) -> None:
    for count in (1, 2, 2, 1):
        entry = Entry(Kind.RECORD_QUARANTINED, "bad_value", count, "/a.md", "tasks: status is not one of")
        lease.count(job, entries=[entry])
    assert lines(job) == [
        ("bad_value", 1, "/a.md"),
        ("bad_value", 2, "/a.md"),
        ("event_conflict", None, ""),
    ]


def test_an_event_of_one_run_is_none_of_another(job: Job) -> None:
    entry = Entry(Kind.SOURCE_FAILED, "unreadable", source="/a.md")
    lease.count(job, entries=[entry])
    lease.finish(job)
    other = claimed(a_run(run_of(job).agent))  # type: ignore[arg-type]
    lease.count(other, entries=[entry])
    assert lines(other) == [("unreadable", None, "/a.md")]


def test_a_worker_that_takes_over_says_nothing_twice(job: Job) -> None:
    failed = Entry(Kind.SOURCE_FAILED, "unreadable", source="/a.md")
    lease.count(job, seen=1, done=1, failed=1, entries=[failed])
    lose(run_of(job))
    runs.sweep()
    second = claimed(run_of(job))
    lease.count(second, seen=1, done=1, failed=1, entries=[failed])
    assert [event["kind"] for event in journal.read(run_of(job))].count("source_failed") == 1


A, B = (Entry(Kind.SOURCE_FAILED, "unreadable", source=f"/{name}.md") for name in "ab")
UNNAMED = Entry(Kind.SOURCE_FAILED, "never_sent", count=3)
KILLER = Entry(Kind.SOURCE_FAILED, journal.KILLED_WORKERS, source="/a.md")
SET_ASIDE = Entry(Kind.RECORD_QUARANTINED, "bad_value", 2, "/a.md", "tasks: status is not one of")
REFUSED = Entry(Kind.RECORD_REFUSED, "device_refused", 1, "/a.md")


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
    rest: APIClient, job: Job, attempts: list[list[Entry]], problems: int, errors: int, lines: int
) -> None:
    run = run_of(job)
    for number, entries in enumerate(attempts):
        if number:
            lose(run)
            runs.sweep()
            job = claimed(run)
        for entry in entries:
            lease.count(job, entries=[entry])
    lease.count(job, seen=1, done=1)
    ended = lease.finish(job)
    assert (ended.state, ended.problems) == (Run.State.PARTIAL if problems else Run.State.SUCCESS, problems)
    assert len(rest.get(f"{API}/runs/{run.pk}").json()["errors"]) == errors
    kinds = {str(kind) for kind in RunEvent.PROBLEMS}
    assert sum(event["kind"] in kinds for event in journal.read(run)) == lines


def test_a_source_that_was_changed_and_read_again_is_another_event(job: Job) -> None:
    for content in (b"one", b"two", b"two"):
        document = Document("a", "/a.md", "text", job.source_key("/a.md"), content)
        read(job, document)
    assert lines(job) == [("", 0, "/a.md")] * 2


@pytest.mark.parametrize(
    ("files", "problems", "verdict"),
    [(0, 0, "empty"), (2, 0, "completed"), (2, 1, "completed_with_failures"), (1, 1, "")],
)
def test_a_run_that_ended_in_order_has_a_verdict(
    rest: APIClient, job: Job, files: int, problems: int, verdict: str
) -> None:
    entries = [Entry(Kind.SOURCE_FAILED, "unreadable", source=f"/{n}.md") for n in range(problems)]
    lease.count(job, seen=files, done=files, failed=problems, entries=entries)
    lease.finish(job)
    assert rest.get(f"{API}/runs/{job.run_id}").json()["verdict"] == verdict
    assert rest.get(f"{API}/runs").json()[0]["verdict"] == verdict


def test_a_run_that_did_not_come_to_its_end_has_none(job: Job) -> None:
    kept(job, "call Ada")
    assert lease.finish(job, Run.State.TIMEOUT, "deadline").verdict == ""


texts = st.text(st.characters(codec="utf-8"), max_size=8)


@given(
    st.lists(
        st.builds(
            Entry,
            kind=st.sampled_from(list(Kind)),
            code=st.sampled_from(["", "a", "b"]),
            count=st.none() | st.integers(0, 3),
            source=texts,
            message=texts,
            key=st.sampled_from(["", "", "k"]),
        ),
        max_size=12,
    )
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_event_is_lost_whatever_comes_how_often(ada: Person, entries: list[Entry]) -> None:
    run = a_run(an_agent(ada.id))
    for _ in range(2):
        journal.write(run, entries)
    seqs = [event["seq"] for event in journal.read(run)]
    assert seqs == sorted(seqs)
    there = {(e["kind"], e["code"], e["count"], e["source"], e["message"]) for e in journal.read(run)}
    assert there >= {(str(e.kind), e.code, e.count, e.source, e.message) for e in entries}


def test_another_users_journal_is_answered_like_none(rest: APIClient) -> None:
    theirs = a_run(an_agent())
    for run in (theirs.pk, uuid.uuid4(), "no-id"):
        assert rest.get(f"{API}/runs/{run}/events").status_code == 404
        assert rest.get(f"{API}/runs/{run}/events", {"limit": "x"}).status_code == 404
        assert rest.post(f"{API}/runs/{run}/undo").status_code == 404
