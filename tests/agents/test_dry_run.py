"""A dry run shows what a run would create, and creates nothing: no rows, nothing in line, nothing in the ledger."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from django.utils import timezone

from adiuva.core import db
from adiuva.devices.models import OutboxRecord
from agents import claimed_runs, preview, run_release, runs
from agents.extraction import SourceDocument
from agents.models import Agent, Run, Source
from agents.preview import SourceSample
from agents.record_validation import Record
from tests.agents.device_owner import (
    END_STATES,
    DeviceOwner,
    connected,
    counts_add_up,
    document_text,
    tasks_from_lines,
)
from tests.agents.factories import (
    claim_run,
    commit_document,
    commit_tasks,
    create_agent,
    create_device,
    create_run,
)
from tests.fakes.provider import Provider


async def dry(desk: DeviceOwner, agent: str, **query: Any) -> dict[str, Any]:
    """Start a dry run and wait for its end."""
    answer = await desk.rest.post(f"/agents/{agent}/run", params={"dry_run": "true", **query})
    assert answer.status_code == 202, answer.text
    return await desk.until(answer.json()["run_id"], lambda seen: seen["state"] in END_STATES)


def found(seen: dict[str, Any]) -> list[str]:
    return sorted(record["data"]["title"] for record in seen["records"])


def traces(agent: str) -> list[int]:
    """What is left of an agent's runs in the outbox and the ledger."""
    ids = Run.objects.filter(agent_ref=agent).values("pk")
    left = OutboxRecord.objects.filter(source_run__in=ids), Source.objects.filter(agent_id=agent)
    return [rows.count() for rows in left]


async def test_a_dry_run_shows_what_the_next_run_creates(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada\ndo write the offer\n")
    desk.write("two.md", "nothing")
    async with connected(desk):
        agent = await desk.agent()
        seen = await dry(desk, agent)
        assert (seen["state"], seen["verdict"], seen["dry_run"]) == ("success", "completed", True)
        assert (seen["items_created"], seen["items_processed"], seen["model_calls"]) == (0, 2, 2)
        assert counts_add_up(seen)
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


async def test_a_dry_run_with_nothing_due_reads_unchanged_files_and_marks_known_records(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = tasks_from_lines
    for number in range(3):
        desk.write(f"{number}.md", f"do step {number}")
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        seen = await dry(desk, agent)
        assert found(seen) == ["step 0", "step 1", "step 2"]
        assert all(record["known"] for record in seen["records"])
        assert counts_add_up(seen) and seen["files_unchanged"] == 0
        desk.write("1.md", "do step 1\ndo step 4")
        seen = await dry(desk, agent)  # and what is due, if something is
        assert {record["data"]["title"]: record["known"] for record in seen["records"]} == {
            "step 1": True,
            "step 4": False,
        }
        real = await desk.run(agent)
    assert (real["items_processed"], real["items_created"]) == (1, 1)


@pytest.mark.parametrize("protocol", [1, 2])
async def test_a_dry_run_reads_at_most_max_sources(
    desk: DeviceOwner, provider: Provider, protocol: int
) -> None:
    provider.default = tasks_from_lines
    for number in range(10):
        desk.write(f"{number}.md", f"do step {number}")
    desk.device = desk.new_device(protocol=protocol)
    async with connected(desk):
        agent = await desk.agent()
        seen = await dry(desk, agent, max_sources=3)
        assert (seen["max_sources"], len(found(seen)), seen["model_calls"]) == (3, 3, 3)
        assert seen["sources_due"] == 10  # which a real run would read
        assert counts_add_up(seen)
        await desk.run(agent)
        seen = await dry(desk, agent, max_sources=2)
        assert (len(found(seen)), len(provider.chats), seen["sources_due"]) == (2, 3 + 10 + 2, 0)
    assert len(desk.rows("tasks")) == 10


async def test_a_dry_run_reports_problems_like_any_run(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = lambda request: (
        {"records": [{"table": "clients", "data": {}}]}
        if "bad" in document_text(request)
        else tasks_from_lines(request)
    )
    desk.write("one.md", "do call Ada")
    desk.write("two.md", "bad")
    async with connected(desk):
        seen = await dry(desk, await desk.agent())
    assert (seen["state"], seen["verdict"]) == ("partial", "completed_with_failures")
    assert len(seen["errors"]) == 1 and found(seen) == ["call Ada"]


async def test_an_agent_has_one_run_at_a_time_dry_or_not(desk: DeviceOwner) -> None:
    agent = await desk.agent()
    run = await desk.start(agent)
    again = await desk.rest.post(f"/agents/{agent}/run", params={"dry_run": "true"})
    assert (again.status_code, again.json()["run_id"]) == (409, run)


# ── Beside the front door ───────────────────────────────────────────────────────────────────────────────


def source_document(claimed: claimed_runs.ClaimedRun, path: str) -> SourceDocument:
    return SourceDocument(path, path, "text", claimed.source_key(path), b"hash")


def claim_dry_run(agent: Agent) -> claimed_runs.ClaimedRun:
    return claim_run(create_run(agent, dry_run=True))


def shown(claimed: claimed_runs.ClaimedRun, path: str, *titles: str) -> None:
    records = [Record("tasks", {"title": title}) for title in titles]
    claimed_runs.add_counts(claimed, seen=1)
    assert commit_document(claimed, source_document(claimed, path), records) == []


def test_a_preview_is_bounded_and_the_journal_says_so_once(db: None) -> None:
    agent = create_agent()
    create_device(agent)
    claimed = claim_dry_run(agent)
    for number in range(3):
        shown(claimed, f"/{number}.md", *(f"{number} {place}" for place in range(490)))
    shown(claimed, "/last.md", "one more")
    run = run_release.finish(claimed)
    assert len(preview.read_records(Run.objects.get(pk=run.pk))) == preview.MAX_RECORDS
    assert [event.code for event in run.events.all()].count("preview_full") == 1
    long = claim_dry_run(agent)
    shown(long, "/long.md", *("x" * 90_000 + str(number) for number in range(100)))
    assert 10 < len(preview.read_records(Run.objects.get(pk=long.run_id))) < 30


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1e", "\r", "\n"])
def test_a_preview_holds_whatever_ends_a_line(db: None, separator: str) -> None:
    agent = create_agent()
    create_device(agent)
    claimed = claim_dry_run(agent)
    path, titles = f"/a{separator}b.md", [f"call{separator}Ada", "write the offer"]
    shown(claimed, path, titles[0])
    shown(claimed, "/c.md", titles[1])
    records = preview.read_records(Run.objects.get(pk=claimed.run_id))
    assert [(record["source"], record["data"]["title"]) for record in records] == [
        (path, titles[0]),
        ("/c.md", titles[1]),
    ]


def test_a_preview_is_sealed_and_not_read_where_it_is_not_shown(db: None) -> None:
    agent = create_agent()
    create_device(agent)
    claimed = claim_dry_run(agent)
    shown(claimed, "/canary.md", "canary")
    run = Run.objects.get(pk=claimed.run_id)
    assert run.get_deferred_fields() == {"preview"}
    assert b"canary" not in bytes(run.preview) and "canary" in json.dumps(preview.read_records(run))


def test_a_dry_run_that_starts_again_shows_each_record_once(db: None) -> None:
    agent = create_agent()
    create_device(agent)
    first = claim_dry_run(agent)
    shown(first, "/a.md", "call Ada")
    Run.objects.filter(pk=first.run_id).update(lease_until=timezone.now() - dt.timedelta(seconds=1))
    runs.sweep()
    second = claim_run(Run.objects.get(pk=first.run_id))
    shown(second, "/a.md", "call Ada")
    assert len(preview.read_records(Run.objects.get(pk=first.run_id))) == 1


def test_a_dry_run_leaves_waiting_records_to_a_real_run(db: None) -> None:
    agent = create_agent()
    create_device(agent)
    cancelled = claim_run(create_run(agent))
    ids = commit_tasks(cancelled, "call Ada")
    run_release.finish(cancelled, Run.State.CANCELLED, "cancelled")
    run_release.finish(claim_dry_run(agent))
    assert OutboxRecord.objects.get(pk=ids[0]).source_run == cancelled.run_id
    real = claim_run(create_run(agent))
    assert OutboxRecord.objects.get(pk=ids[0]).source_run == real.run_id


def test_a_sample_has_the_due_sources_or_else_unchanged_ones() -> None:
    files = {f"/{number}": b"" for number in range(4)}
    none, all_ = [False] * 4, [True] * 4
    assert SourceSample(None).choose(files, all_, last=True) == files
    assert SourceSample(None).choose(files, none, last=True) == files
    assert list(SourceSample(2).choose(files, [False, False, True, False], last=True)) == ["/2"]
    in_parts = SourceSample(3)
    assert in_parts.choose({"/a": b""}, [False], last=False) == {}
    assert in_parts.choose({}, [], last=True) == {"/a": b""}
    in_parts = SourceSample(3)
    assert in_parts.choose({"/a": b""}, [False], last=False) == {}
    assert list(in_parts.choose(files, all_, last=False)) == ["/0", "/1", "/2"]
    assert in_parts.choose({"/b": b""}, [True], last=True) == {}
