"""The ledger of sources: one is read again only if it, or what the agent looks for, changed; nothing comes twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from adiuva.core import db
from agents import ledger
from agents.models import Agent
from tests.agents.device_owner import END_STATES, DeviceOwner, connected, tasks_from_lines
from tests.agents.factories import claim_run, commit_tasks, create_agent, create_device, create_run
from tests.agents.worker_processes import start_worker
from tests.fakes.provider import Provider
from tests.server_processes import Stack


async def test_only_new_or_changed_files_are_uploaded_and_read(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    desk.write("two.md", "do write the offer")
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        assert sorted(desk.fetched) == ["one.md", "two.md"]
        desk.fetched.clear()
        calls = len(provider.chats)
        seen = await desk.run(agent)
        assert (desk.fetched, len(provider.chats) - calls) == ([], 0)
        assert (seen["state"], seen["files_unchanged"], seen["items_created"]) == ("success", 2, 0)
        desk.write("two.md", "do write the offer\ndo send it")
        desk.write("three.md", "do rest")
        seen = await desk.run(agent)
    assert (sorted(desk.fetched), len(provider.chats) - calls) == (["three.md", "two.md"], 2)
    assert seen["items_created"] == 2
    titles = sorted(row["title"] for row in desk.rows("tasks"))
    assert titles == ["call Ada", "rest", "send it", "write the offer"]


@pytest.mark.parametrize("change", [{"prompt_template": "Look harder."}, {"data_types": ["notes", "tasks"]}])
async def test_another_prompt_reads_all_sources_again_without_duplicating_records(
    desk: DeviceOwner, provider: Provider, change: dict[str, Any]
) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    desk.write("two.md", "nothing yet")
    async with connected(desk):
        agent = await desk.agent(data_types=["tasks"])
        await desk.run(agent)
        more = {"table": "tasks", "data": {"title": "more"}}
        provider.default = lambda request: {"records": [*tasks_from_lines(request)["records"], more]}
        answer = await desk.rest.patch(f"/agents/local/{agent}", json=change)
        assert answer.status_code == 200
        seen = await desk.run(agent)
        assert (seen["items_processed"], seen["model_calls"]) == (2, 2)
        assert seen["items_created"] == 2  # one of each document, as they are two sources
        calls = len(provider.chats)
        assert (await desk.run(agent))["files_unchanged"] == 2
    assert len(provider.chats) == calls
    assert sorted(row["title"] for row in desk.rows("tasks")) == ["call Ada", "more", "more"]


async def test_another_model_reads_all_sources_again_without_duplicating_records(
    desk: DeviceOwner, provider: Provider, stack: Stack
) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        run = str((await db.run(lambda: create_run(Agent.objects.get(pk=agent)))).pk)
        other = {"ADIUVA_MODEL": "openai/another", "ADIUVA_MODEL_API_BASE": provider.url}
        await asyncio.to_thread(start_worker, stack, run, **other)
        seen = await desk.until(run, lambda seen: seen["state"] in END_STATES)
    assert (seen["state"], seen["model_calls"], seen["items_created"]) == ("success", 1, 0)
    assert provider.chats[-1].body["model"] == "another"
    assert len(desk.rows("tasks")) == 1


async def test_a_change_that_cannot_affect_records_reads_nothing_again(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    async with connected(desk):
        agent = await desk.agent(data_types=["tasks", "notes"])
        await desk.run(agent)
        await desk.rest.patch(
            f"/agents/local/{agent}", json={"name": "Another", "data_types": ["notes", "tasks"]}
        )
        seen = await desk.run(agent)
    assert (seen["files_unchanged"], seen["model_calls"]) == (1, 0)


def test_agents_have_separate_ledgers(db: None) -> None:
    agent = create_agent()
    create_device(agent)
    claimed = claim_run(create_run(agent))
    commit_tasks(claimed, "call Ada", path="/a.md")
    assert ledger.needs_reading(claimed, [(claimed.source_key("/a.md"), b"hash")]) == [False]
    other = claim_run(create_run(create_agent(agent.user_id)))
    assert ledger.needs_reading(other, [(other.source_key("/a.md"), b"hash")]) == [True]
    # What a source is, is the same for all agents, so that none finds again what another has found.
    assert other.source_key("/a.md") == claimed.source_key("/a.md")
    assert commit_tasks(other, "call Ada", path="/a.md") == []
