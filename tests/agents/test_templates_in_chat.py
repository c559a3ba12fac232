"""An agent template out of the catalogue, set up in a chat: tried out, asked for, installed and saved after a yes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from adiuva.core import db
from adiuva.core.errors import AdiuvaError
from agents import template_set_up
from agents.models import Agent, AgentType, CatchUp
from agents.set_up import PlannedChange
from billing.models import Plugin, PluginInstall
from tests.agents.device_owner import connected, tasks_from_lines
from tests.agents.test_agents_in_chat import CAN_ASK, chatting, mine, script
from tests.agents.test_plugin_agents import AGENT, a_listed_template
from tests.factories import somebody
from tests.fakes.provider import Call, Provider

if TYPE_CHECKING:
    from tests.agents.device_owner import DeviceOwner


async def has(desk: DeviceOwner, plugin: Plugin) -> bool:
    return await db.run(PluginInstall.objects.of(desk.person.id).present().filter(plugin=plugin).exists)


async def test_a_template_is_tried_out_and_installed_with_its_agent_after_a_yes(
    desk: DeviceOwner, provider: Provider
) -> None:
    plugin = await db.run(a_listed_template)
    for number in range(4):
        desk.write(f"{number}.md", f"do step {number}")
    made = Call("set_up_agent", {"template": plugin.slug, "folders": [str(desk.folder)]})
    own = Call(
        "set_up_agent",
        {"template": plugin.name, "folders": [str(desk.folder)], "name": "Mine", "schedule": "none"},
    )
    model = script(provider, made, "Not then.", made, "It is made.", own, "It is made.")
    model.reading = tasks_from_lines
    async with connected(desk), chatting(desk, capabilities=CAN_ASK) as client:
        for place, (approved, names) in enumerate(
            ((False, []), (True, ["Things to do"]), (True, ["Things to do", "Mine"]))
        ):
            key = await client.ask(f"make an agent of the template {plugin.slug}", device_id="desk")
            question = await client.asked_for(key)
            summary = question["summary"]
            name = "Mine" if place == 2 else "Things to do"
            assert summary.startswith(f"Make the agent “{name}”: of the plugin “{plugin.name}”; read "), (
                summary
            )
            assert f"look for “{AGENT['prompt']}”; suggest tasks; " in summary and "files .md" in summary
            assert ("every weekday at 08:00" in summary) is (place < 2)
            assert "In 3 documents of yours it finds: 3 tasks." in summary
            assert await has(desk, plugin) is (place == 2)
            await client.decide(question["id"], approved)
            await client.ended(key)
            agents = await mine(Agent, desk)
            assert [await db.run(lambda a=agent: named(a)) for agent in agents] == names
            assert await has(desk, plugin) is approved
    first, second = agents
    assert (first.schedule_cron, second.schedule_cron) == (AGENT["schedule_cron"], "")
    assert first.data_types == second.data_types == AGENT["data_types"]


def named(agent: Any) -> str:
    from agents.run_reports import open_agent

    return open_agent(Agent.objects.select_related("user").get(pk=agent.pk)).name


@pytest.mark.parametrize("why", ["the agent is refused", "the template has changed"])
def test_a_template_whose_agent_cannot_be_saved_is_not_installed(db: None, why: str) -> None:
    person, plugin = somebody(), a_listed_template()
    chosen = template_set_up.choose(person.id, plugin.slug)
    agent = Agent(user_id=person.id, type=AgentType.LOCAL_DIRECTORY)
    plan = PlannedChange("insert", agent, values={"catch_up": CatchUp.WITHIN})  # without hours
    if why == "the template has changed":
        chosen = replace(chosen, template=chosen.template.model_copy(update={"prompt": "Before."}))
    with pytest.raises(AdiuvaError):
        template_set_up.install_and_save(person.id, chosen, plan)
    assert not PluginInstall.objects.of(person.id).present().exists()


async def test_a_template_that_cannot_be_used_is_told_and_nothing_is_asked(
    desk: DeviceOwner, provider: Provider
) -> None:
    paid = await db.run(a_listed_template)
    of_mails = await db.run(lambda: a_listed_template(source="mail", file_extensions=[], filters={}))
    await db.run(Plugin.objects.filter(pk=paid.pk).update, price_cents=500)
    await desk.agent(name="Clients")
    folders = [str(desk.folder)]
    cases = (
        ({"template": paid.slug, "folders": folders}, "has to be bought first, by the user, on "),
        ({"template": "no such thing"}, "there is no agent template “no such thing”"),
        ({"template": of_mails.slug}, "kind is needed: the template reads gmail or outlook"),
        ({"template": of_mails.slug, "kind": "teams"}, "this template reads gmail or outlook"),
        ({"template": of_mails.slug, "kind": "gmail"}, "no Gmail account is connected"),
        ({"template": of_mails.slug, "agent": "Clients"}, "a template makes a new agent"),
    )
    async with chatting(desk, capabilities=CAN_ASK) as client:
        for arguments, said in cases:
            model = script(provider, Call("set_up_agent", arguments), "No.")
            await client.say("make an agent of the template")
            assert said in model.told and "Nothing was saved." in model.told, model.told
    assert len(await mine(Agent, desk)) == 1 and not await has(desk, paid)
