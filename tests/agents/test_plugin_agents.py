"""An agent template: installed, tried out on three documents, saved with what is the user's to choose, and run."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.utils.timezone import now

from adiuva.core import db
from agents.models import Agent, Run
from billing.marketplace import publication
from billing.models import Plugin, PluginVersion
from tests.billing.marketplace.factories import a_plugin, a_version, approve
from tests.fakes.provider import Provider

if TYPE_CHECKING:
    from tests.agents.device_owner import DeviceOwner

AGENT = {
    "name": "Things to do",
    "prompt": "Find what is to be done of the heron.",
    "data_types": ["tasks"],
    "source": "local",
    "file_extensions": [".md"],
    "schedule_cron": "0 8 * * 1-5",
}


def a_listed_template(**changes: Any) -> Plugin:
    plugin = a_plugin(kind="agent_template")
    manifest = {
        "id": plugin.slug,
        "name": plugin.name,
        "version": "1.0.0",
        "kind": "agent_template",
        "summary": "Things to do",
        "license": "MIT",
        "files": {},
        "agent": AGENT | changes,
    }
    version = approve(a_version(plugin, manifest=manifest))
    with transaction.atomic():
        PluginVersion.objects.filter(pk=version.pk).update(state="listed", listed_at=now())
        Plugin.objects.filter(pk=plugin.pk).update(state="listed", current_version=version, listed_at=now())
    return plugin


async def test_a_template_is_installed_tried_out_on_three_documents_saved_and_run(
    desk: DeviceOwner, provider: Provider
) -> None:
    from tests.agents.device_owner import connected, tasks_from_lines

    provider.default = tasks_from_lines
    plugin = await db.run(a_listed_template)
    path = f"/plugins/{plugin.pk}"
    absent = await desk.rest.get(f"{path}/agent")
    assert (absent.status_code, absent.json()["code"]) == (404, "no_template")
    assert (await desk.rest.post(f"{path}/install")).status_code == 200
    offered = (await desk.rest.get(f"{path}/agent")).json()
    assert offered == {
        "agent_type": "local",
        "agent_kinds": ["local_directory"],
        "name": "Things to do",
        "prompt_template": AGENT["prompt"],
        "data_types": ["tasks"],
        "schedule_cron": "0 8 * * 1-5",
        "file_extensions": [".md"],
    }
    for number in range(5):
        desk.write(f"{number}.md", f"do step {number}")
    desk.write("other.log", "do not read this")
    where = {"device_id": "desk", "directory_paths": [str(desk.folder)]}
    async with connected(desk):
        found = (await desk.rest.post(f"{path}/agent/try_out", json=where)).json()
        assert len(found["sources"]) == 3 and found["counts"] == {"tasks": 3} and not found["code"], found
        assert AGENT["prompt"] in str(provider.last["messages"]) and "other.log" not in desk.fetched
        assert desk.rows("tasks") == []
        mine = desk.person.id
        assert not await db.run(Agent.objects.of(mine).exists) and not await db.run(
            Run.objects.of(mine).exists
        )
        # As a client saves it: what was offered, with what is the user's to choose.
        fields = {name: offered[name] for name in offered if not name.startswith("agent_")}
        agent = await desk.agent(**fields)
        await desk.run(agent)
        assert sorted(row["title"] for row in desk.rows("tasks")) == [f"step {number}" for number in range(5)]


async def test_what_a_template_cannot_be_tried_out_on_is_told(desk: DeviceOwner) -> None:
    plugin, of_mails = (
        await db.run(a_listed_template),
        await db.run(
            lambda: a_listed_template(
                source="mail", file_extensions=[], filters={"senders": ["a@example.com"]}
            )
        ),
    )
    path = f"/plugins/{plugin.pk}"
    for each in (plugin, of_mails):
        assert (await desk.rest.post(f"/plugins/{each.pk}/install")).status_code == 200
    offered = (await desk.rest.get(f"/plugins/{of_mails.pk}/agent")).json()
    assert (offered["agent_type"], offered["agent_kinds"]) == ("cloud", ["gmail", "outlook"])
    assert offered["filter_config"]["senders"] == ["a@example.com"]
    for tried, body, field in (
        (plugin, {}, "device_id"),
        (plugin, {"device_id": "another"}, "device_id"),
        (of_mails, {"device_id": "desk", "directory_paths": ["/x"]}, "provider"),
        (of_mails, {"provider": "teams"}, "provider"),
    ):
        refused = await desk.rest.post(f"/plugins/{tried.pk}/agent/try_out", json=body)
        assert refused.status_code == 400 and field in refused.json()["fields"], refused.text
    version = await db.run(PluginVersion.objects.get, plugin=plugin)
    await db.run(lambda: publication.revoke(version_id=version.pk, by=uuid.uuid4(), reason="It lies."))
    unusable = await desk.rest.get(f"{path}/agent")
    assert (unusable.status_code, unusable.json()["code"]) == (409, "template_unusable")
    assert (await desk.rest.delete(f"{path}/install")).status_code == 200
    assert (await desk.rest.post(f"{path}/agent/try_out", json={})).json()["code"] == "no_template"
