"""The form for packages at a real server: large bodies from who is signed in in a browser, and from nobody else."""

from __future__ import annotations

import os
import re
import uuid

import httpx
import pytest
from django.conf import settings

from tests.billing.marketplace.factories import a_developer, a_plugin
from tests.factories import Person, somebody
from tests.sampling import ONE_SERVER
from tests.unit.marketplace.packages import pack

both_servers = pytest.mark.parametrize("web_on", ONE_SERVER, indirect=True)


class Browser:
    """A browser at a real web process, signed in through the form."""

    def __init__(self, web: str, person: Person) -> None:
        self.http = httpx.Client(base_url=web, timeout=60, headers={"Accept": "text/html", "Origin": web})
        words = {"username": person.email, "password": person.password}
        signed_in = self.http.post("/account/sign-in", data=words | self._token("/account/sign-in"))
        assert signed_in.status_code == 302, signed_in.text

    def _token(self, page: str) -> dict[str, str]:
        found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.http.get(page).text)
        return {"csrfmiddlewaretoken": found[1] if found else "x" * 64}

    def upload(self, page: str, content: bytes) -> httpx.Response:
        files = {"package": ("p.zip", content, "application/zip")}
        return self.http.post(page, data={"act": "upload"} | self._token(page), files=files)


@both_servers
def test_a_package_of_megabytes_passes_the_form_of_who_is_signed_in_alone(web_on: str) -> None:
    person = somebody()
    plugin = a_plugin(a_developer(person.id), slug=f"large-{uuid.uuid4().hex[:10]}")
    page = f"/account/plugins/own/{plugin.slug}"
    picture = b"\x89PNG\r\n\x1a\n" + os.urandom(3 << 20)
    package = pack({"main.js": b"export const a = 1;\n", "a.png": picture}, id=plugin.slug)
    padded = package + b"x" * (1 << 20)
    browser = Browser(web_on, person)
    done = browser.upload(page, package)
    assert done.status_code == 302, (done.status_code, done.text)
    assert done.headers["location"] == f"{page}?done=uploaded"
    assert browser.upload(page, padded).status_code == 400
    del browser.http.cookies[settings.SESSION_COOKIE_NAME]
    forged = {"Cookie": f"{settings.SESSION_COOKIE_NAME}={'a' * 32}"}
    refused = browser.http.post(page, content=padded, headers=forged)
    assert refused.status_code == 401 and "<h1>" in refused.text
    assert browser.upload(page, padded).status_code == 413
    assert plugin.versions.count() == 1
