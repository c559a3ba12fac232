"""The catalogue: searched by words and category, in three orders, in few queries; rated by users of the plugins."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.test import APIClient

from adiuva.accounts.models import User
from billing.marketplace import catalogue
from billing.models import Plugin, PluginInstall
from tests.billing.marketplace.factories import a_developer, a_listed_plugin, a_plugin
from tests.factories import Person, somebody

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _counts_of_this_test() -> Iterator[None]:
    catalogue.forget_counts()
    yield
    catalogue.forget_counts()


@pytest.fixture
def word() -> str:
    """A word that no other test's plugins have."""
    return f"w{uuid.uuid4().hex[:12]}"


def reader(person: Person | None = None) -> APIClient:
    person = person or somebody()
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {person.access_token}")
    return client


def found(client: APIClient, **query: Any) -> list[str]:
    answer = client.get("/api/v1/plugins", query)
    assert answer.status_code == 200, answer.json()
    return [plugin["name"] for plugin in answer.json()["plugins"]]


@pytest.mark.parametrize(
    "name", ["{}-2026", "{} v1.25", "{} for files.example.com", "{}/3: Café-Rechnungen_neu"]
)
def test_each_word_of_a_name_is_found_whatever_stands_between_them(word: str, name: str) -> None:
    plugin = a_listed_plugin(name=name.format(word))
    client = reader()
    for asked in re.findall(r"[^\W_]+", plugin.name):
        assert found(client, q=f"{word} {asked}") == [plugin.name]
    assert found(client, q=plugin.name) == [plugin.name]


def test_plugins_are_found_by_words_and_category_in_three_orders(word: str) -> None:
    now = timezone.now()
    for name, category, stars, installs, age in (
        ("Loved", "finance", (450, 100), 5, 3),
        ("Single", "finance", (5, 1), 9, 1),
        ("Plain", "design", (0, 0), 7, 2),
    ):
        plugin = a_listed_plugin(name=f"{name} {word}", category=category, installs=installs)
        Plugin.objects.filter(pk=plugin.pk).update(
            stars=stars[0], ratings=stars[1], listed_at=now - dt.timedelta(days=age)
        )
    a_plugin(name=f"Draft {word}")
    client = reader()
    names = [f"{name} {word}" for name in ("Loved", "Single", "Plain")]
    assert found(client, q=word) == names  # one rating does not win
    assert found(client, q=word, sort="installs") == [names[1], names[2], names[0]]
    assert found(client, q=word, sort="newest") == [names[1], names[2], names[0]]
    assert found(client, q=word, category="finance") == names[:2]
    assert found(client, q=f"lov {word[:6]}") == names[:1]  # by how words begin
    assert found(client, q=f"& | ! :* ' {word} loved") == names[:1]
    assert found(client, q="!!!") == []
    assert found(client, q=word, limit=1, page=2) == names[1:2]
    for query in ({"sort": "price"}, {"page": 0}, {"category": "none"}):
        assert client.get("/api/v1/plugins", query).status_code == 400


def test_a_list_takes_three_queries_at_most(word: str) -> None:
    for _ in range(3):
        a_listed_plugin(name=word)
    client = reader()
    for query in ({}, {"q": word}, {"category": "other", "sort": "newest"}):
        with CaptureQueriesContext(connection) as queries:
            assert client.get("/api/v1/plugins", query).status_code == 200
        assert len(queries) <= 3, [each["sql"] for each in queries]


def test_only_who_has_had_it_for_a_day_rates_it_and_once() -> None:
    author = somebody()
    plugin = a_listed_plugin(a_developer(author.id))
    person = somebody()
    path = f"/api/v1/plugins/{plugin.pk}/rating"

    def rate(who: Person, stars: int) -> Any:
        return reader(who).put(path, {"stars": stars}, format="json")

    assert rate(person, 5).json()["code"] == "not_installed"
    for who in (person, author):
        PluginInstall.objects.create(user_id=who.id, plugin=plugin, version_id=plugin.current_version_id)
    assert rate(person, 5).status_code == 403
    PluginInstall.objects.filter(plugin=plugin).update(installed_at=timezone.now() - dt.timedelta(hours=25))
    assert rate(author, 5).status_code == 403
    assert rate(person, 5).json() == {"rating": 5.0, "ratings": 1}
    assert rate(person, 2).json() == {"rating": 2.0, "ratings": 1}
    User.objects.get(pk=person.id).delete()
    plugin.refresh_from_db()
    assert (plugin.stars, plugin.ratings) == (0, 0)


def test_only_reports_of_old_accounts_that_have_it_take_a_plugin_down() -> None:
    plugin = a_listed_plugin()
    day = dt.timedelta(days=1)

    def report(*, age: int, has_it: bool) -> None:
        person = somebody(created_at=timezone.now() - age * day)
        if has_it:
            install = PluginInstall(user_id=person.id, plugin=plugin, version_id=plugin.current_version_id)
            install.installed_at = timezone.now() - 2 * day
            install.save()
        body = {"reason": "malicious", "text": "it sends my files away"}
        answer = reader(person).post(f"/api/v1/plugins/{plugin.pk}/report", body, format="json")
        assert answer.json() == {"ok": True}

    for _ in range(6):
        report(age=0, has_it=True)
        report(age=60, has_it=False)
    plugin.refresh_from_db()
    assert plugin.state == "listed"
    for _ in range(5):
        report(age=60, has_it=True)
    plugin.refresh_from_db()
    assert plugin.state == "suspended"


def test_pages_show_the_catalogue_a_plugin_and_its_developer_in_five_languages(word: str) -> None:
    plugin = a_listed_plugin(name=f"<b>{word}</b>", summary="Counts hours", price_cents=450)
    version = plugin.current_version
    assert version is not None
    browser = Client()
    prices = {"en": "€4.50", "it": "4,50\xa0€", "de": "4,50\xa0€", "fr": "4,50\xa0€", "es": "4,50\xa0€"}
    for language, price in prices.items():
        page = browser.get("/plugins", {"q": word}, headers={"Accept-Language": language})
        text = page.content.decode()
        assert page.headers["Content-Language"] == language and f'<html lang="{language}">' in text
        assert f"&lt;b&gt;{word}&lt;/b&gt;" in text and price in text and "<script" not in text
    assert "Counts hours" in browser.get(f"/plugins/{plugin.slug}").content.decode()
    assert word in browser.get(f"/developers/{plugin.developer.handle}").content.decode()
    for place in ("/plugins/nothing-here", "/developers/nobody", f"/plugins/{a_plugin().slug}"):
        assert browser.get(place).status_code == 404
    for query in ({"page": "x"}, {"page": "99"}, {"category": "zz", "sort": "zz", "q": "'&"}):
        assert browser.get("/plugins", query).status_code == 200
