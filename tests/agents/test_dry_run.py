"""A dry run shows what a run would create, and creates nothing: no rows, nothing in line, nothing in the ledger."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from django.utils import timezone

from adiuva.core import db
from adiuva.devices.models import OutboxRecord
from agents import lease, preview, runs
from agents.extraction import Document
from agents.models import Agent, Run, Source
from agents.preview import Sample
from agents.records import Record
from tests.agents.factories import a_device, a_run, an_agent, claimed, kept, read
from tests.agents.test_runs import ENDED, Desk, adds_up, connected, document, tasks_of_lines
from tests.fakes.provider import Provider


async def dry(desk: Desk, agent: str, **query: Any) -> dict[str, Any]:
    """Start a dry run and wait for its end."""
    answer = await desk.rest.post(f"/agents/{agent}/run", params={"dry_run": "true", **query})
    assert answer.status_code == 202, answer.text
    return await desk.until(answer.json()["run_id"], lambda seen: seen["state"] in ENDED)


def found(seen: dict[str, Any]) -> list[str]:
    return sorted(record["data"]["title"] for record in seen["records"])


def traces(agent: str) -> list[int]:
    """What is left of an agent's runs in the outbox and the ledger."""
    ids = Run.objects.filter(agent_ref=agent).values("pk")
    left = OutboxRecord.objects.filter(source_run__in=ids), Source.objects.filter(agent_id=agent)
    return [rows.count() for rows in left]


async def test_it_shows_what_the_run_after_it_creates(desk: Desk, provider: Provider) -> None:
    provider.default = tasks_of_lines
    desk.write("one.md", "do call Ada\ndo write the offer\n")
    desk.write("two.md", "nothing")
    async with connected(desk):
        agent = await desk.agent()
        seen = await dry(desk, agent)
        assert (seen["state"], seen["verdict"], seen["dry_run"]) == ("success", "completed", True)
        assert (seen["items_created"], seen["items_processed"], seen["model_calls"]) == (0, 2, 2)
        assert adds_up(seen)
        assert seen["records"][0] == {
            "table": "tasks",
            "data": {"title": "call Ada", "isAiSuggested": 1, "isApproved": 0},
            "source": str(desk.folder / "one.md"),
            "known": False,
        }
        assert desk.rows("tasks") == []
        assert await db.run(traces, agent) == [0, 0]
        assert (await desk.rest.get(f"/agents/local/{agent}")).json()["last_run_at"] is None
        real = await desk.run(agent)
    assert (real["dry_run"], real["records"], real["files_unchanged"]) == (False, None, 0)
    assert sorted(row["title"] for row in desk.rows("tasks")) == found(seen)


async def test_when_nothing_is_due_it_reads_what_is_there_and_says_what_is_known(
    desk: Desk, provider: Provider
) -> None:
    provider.default = tasks_of_lines
    for number in range(3):
        desk.write(f"{number}.md", f"do step {number}")
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        seen = await dry(desk, agent)
        assert found(seen) == ["step 0", "step 1", "step 2"]
        assert all(record["known"] for record in seen["records"])
        assert adds_up(seen) and seen["files_unchanged"] == 0
        desk.write("1.md", "do step 1\ndo step 4")
        seen = await dry(desk, agent)  # and what is due, if something is
        assert {record["data"]["title"]: record["known"] for record in seen["records"]} == {
            "step 1": True,
            "step 4": False,
        }
        real = await desk.run(agent)
    assert (real["items_processed"], real["items_created"]) == (1, 1)


@pytest.mark.parametrize("protocol", [1, 2])
async def test_it_reads_no_more_sources_than_it_may(desk: Desk, provider: Provider, protocol: int) -> None:
    provider.default = tasks_of_lines
    for number in range(10):
        desk.write(f"{number}.md", f"do step {number}")
    desk.device = desk.new_device(protocol=protocol)
    async with connected(desk):
        agent = await desk.agent()
        seen = await dry(desk, agent, max_sources=3)
        assert (seen["max_sources"], len(found(seen)), seen["model_calls"]) == (3, 3, 3)
        assert adds_up(seen)
        await desk.run(agent)
        seen = await dry(desk, agent, max_sources=2)
        assert (len(found(seen)), len(provider.chats)) == (2, 3 + 10 + 2)
    assert len(desk.rows("tasks")) == 10


async def test_what_goes_wrong_in_it_is_said_as_ever(desk: Desk, provider: Provider) -> None:
    provider.default = lambda request: (
        {"records": [{"table": "clients", "data": {}}]}
        if "bad" in document(request)
        else tasks_of_lines(request)
    )
    desk.write("one.md", "do call Ada")
    desk.write("two.md", "bad")
    async with connected(desk):
        seen = await dry(desk, await desk.agent())
    assert (seen["state"], seen["verdict"]) == ("partial", "completed_with_failures")
    assert len(seen["errors"]) == 1 and found(seen) == ["call Ada"]


async def test_an_agent_has_one_run_at_a_time_dry_or_not(desk: Desk) -> None:
    agent = await desk.agent()
    run = await desk.start(agent)
    again = await desk.rest.post(f"/agents/{agent}/run", params={"dry_run": "true"})
    assert (again.status_code, again.json()["run_id"]) == (409, run)


# ── Beside the front door ───────────────────────────────────────────────────────────────────────────────


def a_document(job: lease.Job, path: str) -> Document:
    return Document(path, path, "text", job.source_key(path), b"hash")


def a_dry_job(agent: Agent) -> lease.Job:
    return claimed(a_run(agent, dry_run=True))


def shown(job: lease.Job, path: str, *titles: str) -> None:
    records = [Record("tasks", {"title": title}) for title in titles]
    lease.count(job, seen=1)
    assert read(job, a_document(job, path), records) == []


def test_what_it_shows_is_bounded_and_the_journal_says_so_once(db: None) -> None:
    agent = an_agent()
    a_device(agent)
    job = a_dry_job(agent)
    for number in range(3):
        shown(job, f"/{number}.md", *(f"{number} {place}" for place in range(490)))
    shown(job, "/last.md", "one more")
    run = lease.finish(job)
    assert len(preview.read(Run.objects.get(pk=run.pk))) == preview.MOST_RECORDS
    assert [event.code for event in run.events.all()].count("preview_full") == 1
    long = a_dry_job(agent)
    shown(long, "/long.md", *("x" * 90_000 + str(number) for number in range(100)))
    assert 10 < len(preview.read(Run.objects.get(pk=long.run_id))) < 30


def test_it_is_sealed_and_not_read_where_it_is_not_shown(db: None) -> None:
    agent = an_agent()
    a_device(agent)
    job = a_dry_job(agent)
    shown(job, "/canary.md", "canary")
    run = Run.objects.get(pk=job.run_id)
    assert run.get_deferred_fields() == {"preview"}
    assert b"canary" not in bytes(run.preview) and "canary" in json.dumps(preview.read(run))


def test_one_that_begins_anew_shows_each_thing_once(db: None) -> None:
    agent = an_agent()
    a_device(agent)
    first = a_dry_job(agent)
    shown(first, "/a.md", "call Ada")
    Run.objects.filter(pk=first.run_id).update(lease_until=timezone.now() - dt.timedelta(seconds=1))
    runs.sweep()
    second = claimed(Run.objects.get(pk=first.run_id))
    shown(second, "/a.md", "call Ada")
    assert len(preview.read(Run.objects.get(pk=first.run_id))) == 1


def test_it_leaves_what_is_in_line_to_a_real_run(db: None) -> None:
    agent = an_agent()
    a_device(agent)
    cancelled = claimed(a_run(agent))
    ids = kept(cancelled, "call Ada")
    lease.finish(cancelled, Run.State.CANCELLED, "cancelled")
    lease.finish(a_dry_job(agent))
    assert OutboxRecord.objects.get(pk=ids[0]).source_run == cancelled.run_id
    real = claimed(a_run(agent))
    assert OutboxRecord.objects.get(pk=ids[0]).source_run == real.run_id


def test_a_sample_is_what_is_due_or_else_what_is_there() -> None:
    files = {f"/{number}": b"" for number in range(4)}
    none, all_ = [False] * 4, [True] * 4
    assert Sample(None).choose(files, all_, last=True) == files
    assert Sample(None).choose(files, none, last=True) == files
    assert list(Sample(2).choose(files, [False, False, True, False], last=True)) == ["/2"]
    in_parts = Sample(3)
    assert in_parts.choose({"/a": b""}, [False], last=False) == {}
    assert in_parts.choose({}, [], last=True) == {"/a": b""}
    in_parts = Sample(3)
    assert in_parts.choose({"/a": b""}, [False], last=False) == {}
    assert list(in_parts.choose(files, all_, last=False)) == ["/0", "/1", "/2"]
    assert in_parts.choose({"/b": b""}, [True], last=True) == {}
