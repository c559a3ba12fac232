"""Agents made and changed on the API's pages, in a real Chromium, as a person without JSON does it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adiuva.devices.models import Device
from agents.models import Agent, Run
from tests.accounts.chromium import PROGRAM, Page, browser
from tests.agents.factories import create_run
from tests.agents.mailbox_scenario import connect_account
from tests.factories import Person, confirmed
from tests.fakes.mailboxes import Box

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")
# Where axe-core is, for those who have it.
AXE = os.environ.get("AXE")


@pytest.fixture
def page() -> Iterator[Page]:
    with browser() as opened:
        yield opened
        assert not [each for each in opened.problems if "400" not in each and "405" not in each]


def check(page: Page, name: str) -> None:
    """Nothing is cut off; with AXE and PICTURES set, axe has no critical or serious finding, and pictures are kept."""
    folder = os.environ.get("PICTURES")
    for width in (1280, 390) if AXE or folder else (390,):
        for dark in (False, True) if AXE or folder else (True,):
            page.look(width=width, dark=dark)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is too wide"
            if AXE:
                page.evaluate(Path(AXE).read_text())
                ran = "axe.run().then(found => JSON.stringify(found.violations.map(one => "
                ran += "[one.impact, one.id, one.nodes.map(node => node.html).slice(0, 3)])))"
                found = json.loads(page.evaluate(ran))
                assert not [one for one in found if one[0] in {"critical", "serious"}], (name, found)
            if folder:
                page.picture(Path(folder) / f"{name}-{width}-{'dark' if dark else 'light'}.png")
    page.look()


def sign_in(page: Page, site: str, person: Person, path: str) -> None:
    page.open(f"{site}/api-auth/login/?next={path}")
    page.fill(username=person.email, password=person.password)
    page.press("Sign in")
    page.wait_for(f"document.readyState === 'complete' && location.pathname === {json.dumps(path)}")


def type_in(page: Page, **values: Any) -> None:
    for name, value in values.items():
        page.evaluate(
            f"document.querySelector('main [name={name}]:not([type=hidden])').value = {json.dumps(value)}"
        )


def value_of(page: Page, name: str) -> Any:
    return page.evaluate(f"document.querySelector('main [name={name}]:not([type=hidden])').value")


def shows(page: Page, words: str) -> None:
    page.wait_for(
        f"document.readyState === 'complete' && document.body.innerText.includes({json.dumps(words)})"
    )


def test_an_agent_is_made_changed_run_and_deleted_without_json(web: str, page: Page) -> None:
    person = confirmed()
    Device.objects.create(user_id=person.id, device_id="desk")
    sign_in(page, web, person, "/api/v1/agents/local")
    check(page, "agents")
    assert value_of(page, "device_id") == "desk"  # the device seen last is suggested
    type_in(
        page, name="Papers", directory_paths="papers", file_extensions=".md\n.eml", schedule_cron="0 8 * * *"
    )
    page.press("Create")
    shows(page, "'papers' is not an absolute path.")
    check(page, "agents-error")
    assert (value_of(page, "name"), value_of(page, "directory_paths")) == ("Papers", "papers")
    assert value_of(page, "file_extensions") == ".md\n.eml"
    type_in(page, directory_paths="/home/mara/papers\n/home/mara/mails")
    page.evaluate("document.querySelector('[name=data_types][value=notes]').click()")
    page.press("Create")
    shows(page, "HTTP 201")
    (agent,) = Agent.objects.of(person.id)
    assert (agent.directory_paths, agent.file_extensions) == (
        ["/home/mara/papers", "/home/mara/mails"],
        [".md", ".eml"],
    )
    assert (agent.enabled, agent.catch_up, "notes" in agent.data_types) == (True, "once", False)
    assert agent.data_types

    page.press("Papers")
    shows(page, "Run now")
    check(page, "agent")
    assert value_of(page, "directory_paths") == "/home/mara/papers\n/home/mara/mails"
    assert page.evaluate("document.querySelector('[name=data_types][value=notes]').checked") is False
    type_in(page, name="Letters")
    page.evaluate("document.querySelector('[name=enabled][type=checkbox]').click()")
    page.press("Save")
    shows(page, '"name": "Letters"')
    agent.refresh_from_db()
    assert (agent.name, agent.enabled, agent.directory_paths[0]) == ("Letters", False, "/home/mara/papers")

    page.press("Dry run")
    shows(page, "HTTP 202")
    page.press("The run")
    shows(page, '"dry_run": true')
    check(page, "run")
    page.press("Cancel")
    shows(page, '"state": "cancelled"')
    assert Run.objects.of(person.id).get().state == "cancelled"

    done = create_run(agent, state=Run.State.SUCCESS, items_created=1)
    page.open(f"{web}/api/v1/agents/runs/{done.pk}")
    page.press("Undo")
    shows(page, '"never_sent": ')
    done.refresh_from_db()
    assert done.undone_at is not None

    # Also where it is listed: the first press asks, the second does it.
    again = create_run(agent, state=Run.State.SUCCESS, items_created=1)
    page.open(f"{web}/api/v1/agents/runs")
    check(page, "runs")
    page.evaluate("document.querySelector('summary[aria-label=\"Undo: Letters\"]').click()")
    page.press("Yes, undo: Letters")
    shows(page, '"never_sent": ')
    again.refresh_from_db()
    assert again.undone_at is not None

    page.open(f"{web}/api/v1/agents/local/{agent.pk}")
    page.evaluate("[...document.querySelectorAll('[type=checkbox][required]')].at(-1).click()")
    page.evaluate("document.querySelector('form[data-method=DELETE] button').click()")
    page.wait_for("location.pathname === '/api/v1/agents/local'")
    assert not Agent.objects.of(person.id).exists()


def test_each_list_has_its_buttons_and_deleting_asks_first(web: str, page: Page) -> None:
    person = confirmed()
    device = Device.objects.create(user_id=person.id, device_id="desk")
    with person.rest(web) as rest:
        rest.post("/memory/core", json={"key": "city", "content": "Lives in Turin"}).raise_for_status()
        rest.post("/account/export", json={"password": person.password}).raise_for_status()
    sign_in(page, web, person, "/api/v1/devices")
    page.evaluate("document.querySelector('summary[aria-label=\"Delete: desk\"]').click()")
    check(page, "devices-asked")
    assert Device.objects.filter(pk=device.pk).exists()
    page.press("Yes, delete: desk")
    page.wait_for("document.readyState === 'complete' && !document.querySelector('.ask')")
    assert not Device.objects.filter(pk=device.pk).exists()
    page.open(f"{web}/api/v1/memory/core")
    page.evaluate("document.querySelector('.ask summary').click()")
    page.press("Yes, delete: Lives in Turin")
    page.wait_for("document.readyState === 'complete' && !document.querySelector('.ask')")
    for path in ("auth/sessions", "account/export"):
        page.open(f"{web}/api/v1/{path}")
        assert page.evaluate("document.querySelectorAll('.ask form[data-method=DELETE]').length"), path


def test_a_cloud_agents_mailbox_and_filters_are_chosen(web: str, page: Page) -> None:
    person = confirmed()
    connection = connect_account(person, Box("ada"))
    sign_in(page, web, person, "/api/v1/agents/cloud")
    type_in(page, provider="gmail", name="Mail", connection=str(connection.pk))
    page.evaluate("document.querySelector('[name=\"filter_config.labels\"]').value = 'Clients\\nBills'")
    page.evaluate("document.querySelector('[name=\"filter_config.from\"]').value = '2026-01-01'")
    check(page, "cloud")
    page.press("Create")
    shows(page, "HTTP 201")
    (agent,) = Agent.objects.of(person.id)
    assert agent.filter_config == {"labels": ["Clients", "Bills"], "date_range": {"from": "2026-01-01"}}
    assert agent.connection_id == connection.pk


def test_memory_policy_and_the_account_are_changed_without_json(web: str, page: Page) -> None:
    person = confirmed()
    sign_in(page, web, person, "/api/v1/memory/core")
    type_in(page, key="city", content="Lives in Turin")
    check(page, "memory")
    page.press("Create")
    shows(page, "HTTP 201")
    page.press("Lives in Turin")
    shows(page, "Change")
    type_in(page, content="Lives in Bari")
    check(page, "memory-entry")
    page.press("Save")
    shows(page, '"content": "Lives in Bari"')
    page.evaluate("document.querySelector('form[data-method=DELETE] input').click()")
    page.evaluate("document.querySelector('form[data-method=DELETE] button').click()")
    page.wait_for("document.readyState === 'complete' && location.pathname === '/api/v1/memory/core'")
    with person.rest(web) as rest:
        assert rest.get("/memory/core").json() == []
    page.open(f"{web}/api/v1/memory/policy")
    page.evaluate("document.querySelector('[name=\"tiers.core\"]').value = 'none'")
    check(page, "policy")
    page.press("Save")
    shows(page, "PUT /api/v1/memory/policy")
    page.open(f"{web}/api/v1/memory/policy")
    assert page.evaluate("document.querySelector('[name=\"tiers.core\"]').value") == "none"
    assert page.evaluate("document.querySelector('[name=\"tiers.episodic\"]').value") == ""
    page.open(f"{web}/api/v1/auth/me")
    type_in(page, timezone="Europe/Paris")
    page.press("Save")
    shows(page, '"timezone": "Europe/Paris"')
    for path in ("auth/sessions", "devices", "connections", "chat/conversations", "", "chat"):
        page.open(f"{web}/api/v1/{path}")
        check(page, path.replace("/", "-") or "root")
