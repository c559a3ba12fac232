"""Packages at the front door of a real server: of hostile ones, refused with what is wrong, nothing is kept;
honest ones are taken.

Others each time; `make check` sends them all.
"""

from __future__ import annotations

import io
import json
import uuid
import zipfile
from typing import Any

import httpx
import pytest

from billing.models import Plugin
from tests.billing.marketplace.factories import a_developer, a_plugin
from tests.factories import somebody
from tests.sampling import few
from tests.unit.marketplace.packages import HONEST, HOSTILE, pack


class Uploader:
    """A developer with a plugin, at a real web process."""

    def __init__(self, web: str) -> None:
        person = somebody()
        self.plugin = a_plugin(a_developer(person.id), slug=f"weekly-{uuid.uuid4().hex[:10]}")
        self.url = f"{web}/api/v1/plugins/{self.plugin.pk}/versions"
        self.headers = {"Authorization": f"Bearer {person.access_token}", "Content-Type": "application/zip"}

    def send(self, content: Any, **headers: str) -> httpx.Response:
        return httpx.post(self.url, content=content, headers=self.headers | headers, timeout=60)


@pytest.fixture
def uploader(web: str) -> Uploader:
    return Uploader(web)


@pytest.mark.parametrize("name", few(HOSTILE, 4))
def test_a_hostile_package_is_refused_and_not_kept(uploader: Uploader, name: str) -> None:
    check, make = HOSTILE[name]
    answer = uploader.send(make())
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_package")
    assert check in {finding["check"] for finding in answer.json()["findings"]}
    assert not Plugin.objects.get(pk=uploader.plugin.pk).versions.exists()


def _as(slug: str, package: bytes) -> bytes:
    """The same package with another id."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(package)) as given, zipfile.ZipFile(target, "w") as made:
        for info in given.infolist():
            content = given.read(info)
            if info.filename == "manifest.json":
                content = json.dumps(json.loads(content) | {"id": slug}).encode()
            made.writestr(info, content)
    return target.getvalue()


@pytest.mark.parametrize("name", few(HONEST, 2))
def test_an_honest_package_is_taken(uploader: Uploader, name: str) -> None:
    answer = uploader.send(_as(uploader.plugin.slug, HONEST[name]()))
    assert (answer.status_code, answer.json().get("state")) == (201, "draft"), answer.text
    assert not [each for each in answer.json()["findings"] if each["severity"] == "blocks"]


def test_what_is_no_package_is_refused_by_its_headers_or_its_size(uploader: Uploader) -> None:
    def endless() -> Any:
        for _ in range(25):
            yield bytes(1 << 20)

    too_large = uploader.send(endless())
    assert (too_large.status_code, too_large.json()["code"]) == (413, "too_large")
    form = httpx.post(
        uploader.url,
        files={"package": ("p.zip", pack(), "application/zip")},
        headers={"Authorization": uploader.headers["Authorization"]},
        timeout=60,
    )
    assert (form.status_code, form.json()["code"]) == (415, "unsupported_media_type")
    huge = pack(manifest=b'{"id": "' + b"x" * (600 << 10) + b'"}')
    for content in (b"", huge):
        answer = uploader.send(content)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_package"), answer.text
    honest = uploader.send(pack(id=uploader.plugin.slug))
    assert honest.status_code == 201, honest.text
