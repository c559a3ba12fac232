"""The pages on which people publish plugins and report one: without scripts, each step, and what refuses it."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from adiuva.accounts.models import User
from billing.marketplace.package import MAX_PACKAGE_BYTES
from billing.models import Plugin, PluginReport, PluginTransfer, PluginVersion
from tests.agents.test_plugin_agents import a_listed_template
from tests.billing.marketplace.factories import a_developer, a_listed_plugin, a_plugin
from tests.factories import Person, somebody
from tests.unit.marketplace.packages import pack

pytestmark = pytest.mark.django_db


def signed_in(person: Person) -> Client:
    browser = Client()
    browser.force_login(User.objects.get(pk=person.id))
    return browser


def a_file(content: bytes) -> SimpleUploadedFile:
    return SimpleUploadedFile("plugin.zip", content, "application/zip")


def test_a_plugin_is_published_page_by_page() -> None:
    browser, unique = signed_in(somebody()), uuid.uuid4().hex[:10]
    handle, slug = f"kim-{unique}", f"hours-{unique}"
    assert 'href="/account/plugins/new"' in browser.get("/account/plugins").content.decode()
    refused = browser.post("/account/plugins/new", {"handle": "Not A Handle", "name": "Kim"})
    assert refused.status_code == 400
    assert re.search(r'<input[^>]*name="handle"[^>]*autofocus', refused.content.decode())
    browser.post("/account/plugins/new", {"handle": handle, "name": f"Kim {unique}"})
    fields = {"slug": slug, "name": f"Hours {unique}", "category": "planning", "price": "1"}
    assert browser.post("/account/plugins/new", fields).status_code == 400
    assert (
        browser.post("/account/plugins/new", fields | {"slug": "adiuva-x", "price": "0"}).status_code == 400
    )
    made = browser.post("/account/plugins/new", fields | {"price": "4.5"})
    page = f"/account/plugins/own/{slug}"
    assert (made.status_code, made["Location"]) == (302, page)
    plugin = Plugin.objects.get(slug=slug)
    assert (plugin.price_cents, plugin.category, plugin.developer.handle) == (450, "planning", handle)

    def act(name: str, **fields: Any) -> Any:
        return browser.post(page, {"act": name, **fields})

    hostile = act("upload", package=a_file(pack({"main.js": b"eval(atob('aGk='))\n"}, id=slug)))
    text = hostile.content.decode()
    assert hostile.status_code == 400 and "(code)" in text and "main.js:1" in text
    assert act("upload").status_code == 400
    large = act("upload", package=a_file(bytes(MAX_PACKAGE_BYTES + 1)))
    assert large.status_code == 413 and "20 MiB" in large.content.decode()
    assert not plugin.versions.exists()
    for number in ("1.0.0", "1.1.0"):
        done = act("upload", package=a_file(pack(id=slug, version=number)))
        assert (done.status_code, done["Location"]) == (302, f"{page}?done=uploaded")
    assert act("upload", package=a_file(pack(id=slug, version="1.1.0"))).status_code == 409
    act("delete", version="1.1.0")
    act("submit", version="1.0.0", words="Counts hours of a day.")
    version = plugin.versions.get()
    assert (version.version, version.notes) == ("1.0.0", "Counts hours of a day.")
    assert version.state not in (PluginVersion.State.DRAFT, PluginVersion.State.WITHDRAWN)
    assert act("delete", version="1.0.0").status_code == 409
    act("withdraw", version="1.0.0")
    version.refresh_from_db()
    assert version.state == PluginVersion.State.WITHDRAWN
    assert act("submit", version="9.9.9").status_code == 404
    assert act("eat", version="1.0.0").status_code == 404


def test_what_is_listed_is_yanked_taken_out_and_given_away() -> None:
    owner = somebody()
    plugin = a_listed_plugin(a_developer(owner.id))
    browser, page = signed_in(owner), f"/account/plugins/own/{plugin.slug}"
    browser.post(page, {"act": "yank", "version": "1.0.0", "words": "It forgets\0 Sundays."})
    version = plugin.versions.get()
    assert (version.state, version.reason) == ("yanked", "It forgets Sundays.")
    assert "It forgets Sundays." in browser.get(page).content.decode()
    browser.post(page, {"act": "unyank", "version": "1.0.0"})
    for act, state in (("take_out", "withdrawn"), ("offer_again", "listed")):
        browser.post(page, {"act": act})
        plugin.refresh_from_db()
        assert plugin.state == state
    nobody = browser.post(page, {"act": "give", "handle": "nobody-at-all"})
    assert nobody.status_code == 400 and "no other developer" in nobody.content.decode()
    receiver = a_developer()
    assert browser.post(page, {"act": "give", "handle": receiver.handle}).status_code == 302
    assert PluginTransfer.objects.get(plugin=plugin).receiver == receiver


def test_nobody_sees_or_changes_a_plugin_of_another() -> None:
    plugin = a_plugin()
    page = f"/account/plugins/own/{plugin.slug}"
    stranger = signed_in(somebody())
    assert stranger.get(page).status_code == 404
    assert stranger.post(page, {"act": "take_out"}).status_code == 404
    for address in (page, "/account/plugins/new", "/account/plugins"):
        answer = Client().get(address)
        assert answer.status_code == 302 and "next=" in answer["Location"]


def test_a_plugin_is_reported_by_who_is_signed_in() -> None:
    plugin, person = a_listed_plugin(), somebody()
    page = f"/plugins/{plugin.slug}/report"
    assert f'href="{page}"' in Client().get(f"/plugins/{plugin.slug}").content.decode()
    assert Client().post(page, {"reason": "broken"}).status_code == 302
    browser = signed_in(person)
    assert browser.post(page, {"reason": ""}).status_code == 400
    assert not PluginReport.objects.filter(plugin=plugin).exists()
    sent = browser.post(page, {"reason": "broken", "text": "It stops at noon."})
    assert (sent.status_code, sent["Location"]) == (302, f"{page}?done=sent")
    report = PluginReport.objects.get(plugin=plugin)
    assert (report.user_id, report.reason, report.text) == (person.id, "broken", "It stops at noon.")
    assert 'role="status"' in browser.get(sent["Location"]).content.decode()
    assert browser.get(f"/plugins/{a_plugin().slug}/report").status_code == 404


@pytest.mark.parametrize(
    ("locale", "publish", "report", "schedule"),
    [
        ("en-GB", "Publish a plugin", "What is wrong", "every weekday at 08:00"),
        ("de-DE", "Ein Plugin veröffentlichen", "Was nicht stimmt", "werktags um 08:00"),
        ("fr-FR", "Publier un plugin", "Ce qui ne va pas", "08:00"),
        ("it-IT", "Pubblicare un plugin", "Che cosa non va", "08:00"),
        ("es-ES", "Publicar un plugin", "Qué está mal", "08:00"),
    ],
)
def test_the_pages_speak_the_language_of_the_account(
    locale: str, publish: str, report: str, schedule: str
) -> None:
    person = somebody(locale=locale)
    plugin = a_listed_template()
    browser = signed_in(person)
    for address, said in (
        ("/account/plugins/new", publish),
        (f"/plugins/{plugin.slug}/report", report),
        (f"/plugins/{plugin.slug}", schedule),
    ):
        text = browser.get(address).content.decode()
        assert said in text and f'<html lang="{locale[:2]}">' in text and "<script" not in text
        assert "0 8 * * 1-5" not in text
