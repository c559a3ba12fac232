"""The API's pages for people: pages, forms, documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.test import Client

from adiuva.accounts.models import User
from tests.factories import Person, somebody

OPENAPI = Path(settings.BASE_DIR) / "docs" / "openapi.yaml"
HTML = {"Accept": "text/html"}


@pytest.fixture
def staff(db: None) -> Person:
    return somebody(is_staff=True, is_superuser=True)


@pytest.fixture
def browser(staff: Person) -> Client:
    """A browser that is signed in through the form of the API's pages, and checked for CSRF."""
    browser = Client(enforce_csrf_checks=True)
    form = browser.get("/api-auth/login/").content.decode()
    assert "Adiuva" in form
    found = re.search('name="csrfmiddlewaretoken" value="(.+?)"', form)
    assert found
    answer = browser.post(
        "/api-auth/login/",
        {"username": staff.email, "password": staff.password, "csrfmiddlewaretoken": found[1]},
    )
    assert (answer.status_code, answer["Location"]) == (302, "/api/v1/")
    return browser


def test_the_first_page_says_what_runs_here_and_loads_nothing_from_elsewhere(client: Client) -> None:
    page = client.get("/").content.decode()
    for link in ("/admin/", "/api/v1/", "/api/v1/docs/", "/api/v1/health/ready"):
        assert f'href="{link}"' in page
        assert client.get(link, follow=True).status_code in (200, 503)
    assert not re.search(r'(src|href)="(https?:)?//', page)


@pytest.fixture
def client(db: None) -> Client:
    return Client()


def test_the_api_lists_what_it_offers_and_every_link_works(browser: Client) -> None:
    missing = {"backup", "developer", "developer/earnings", "plugins/download"}  # what a new account has not
    offered = browser.get("/api/v1/").json()
    assert {"auth/me", "auth/sessions", "health", "docs/", "agents/local", "devices"} <= offered.keys()
    for name, url in offered.items():
        assert url == f"http://testserver/api/v1/{name}"
        nothing_yet = {404} if name in missing else set()
        assert browser.get(url).status_code in {200, 503} | nothing_yet, name
    assert Client().get("/api/v1").json() == offered


def test_staff_can_use_the_api_in_the_browser(browser: Client, staff: Person) -> None:
    page = browser.get("/api/v1/auth/me", headers=HTML).content.decode()
    assert staff.email in page
    assert "Adiuva" in page
    assert "django-rest-framework.org" not in page

    change = {"data": '{"timezone": "Europe/Rome"}', "content_type": "application/json"}
    assert browser.patch("/api/v1/auth/me", **change).status_code == 403  # no CSRF token
    token = browser.cookies["csrftoken"].value
    assert browser.patch("/api/v1/auth/me", **change, headers={"X-CSRFToken": token}).status_code == 200
    assert User.objects.get(pk=staff.id).timezone == "Europe/Rome"


def test_the_form_of_a_page_is_taken_as_a_browser_sends_it(browser: Client) -> None:
    browser.get("/api/v1/auth/me", headers=HTML)
    token = {"X-CSRFToken": browser.cookies["csrftoken"].value}
    agent = {
        "name": "Desk",
        "device_id": "desk",
        "directory_paths": ["/home/mara/papers"],
        "data_types": ["tasks"],
        "file_extensions": [".md"],
    }
    made = browser.post(
        "/api/v1/agents/local", agent, headers=token
    )  # Django's client sends multipart/form-data
    assert made.status_code == 201, made.content
    assert made.json()["directory_paths"] == ["/home/mara/papers"]
    named = agent | {"name": SimpleUploadedFile("a.txt", b"a file")}
    assert browser.post("/api/v1/agents/local", named, headers=token).status_code == 400


@pytest.mark.parametrize(
    "path", ["register", "login", "refresh", "logout", "me", "password", "ws-ticket", "sessions"]
)
def test_every_endpoint_has_a_page(browser: Client, path: str) -> None:
    answer = browser.get(f"/api/v1/auth/{path}", headers=HTML)
    assert answer.status_code in (200, 401, 405)
    assert answer["Content-Type"].startswith("text/html")


def test_the_documentation_comes_from_here(client: Client) -> None:
    page = client.get("/api/v1/docs/").content.decode()
    sources = re.findall(r'(?:src|href)="(.+?)"', page)
    assert any("swagger-ui-bundle" in source for source in sources)
    for source in set(sources) - {"data:,"}:
        assert source.startswith(("/static/", "/api/v1/docs/?script"))
        assert client.get(source).status_code == 200
    assert client.get("/api/v1/schema/").status_code == 200


def test_the_published_openapi_document_is_fresh(tmp_path: Path) -> None:
    now = tmp_path / "openapi.yaml"
    call_command("spectacular", file=str(now), validate=True, fail_on_warn=True)
    refresh = "python manage.py spectacular --validate --fail-on-warn --file docs/openapi.yaml"
    assert OPENAPI.read_text() == now.read_text(), f"run: {refresh}"
