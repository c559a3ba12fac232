"""The way of a plugin from its developer to the catalogue, through the front door."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from rest_framework.test import APIClient

from adiuva.accounts.models import User
from adiuva.object_store.store import store
from adiuva.staff import roles
from billing.marketplace import (
    catalogue,
    isolated_checks,
    publication,
    revocations,
    staff_reviews,
    submissions,
)
from billing.marketplace.errors import ChecklistOpen, NotReviewed, OwnVersion
from billing.marketplace.signing import BadSignature, Signed, plugin_statement, verify
from billing.models import Plugin, PluginCheck, PluginVersion
from tests.billing.marketplace.factories import a_developer
from tests.factories import Person, somebody
from tests.fakes.clamd import Clamd
from tests.unit.marketplace.packages import CODE, TOKEN, pack

pytestmark = pytest.mark.django_db


class Developer:
    """Somebody who publishes one plugin over REST."""

    def __init__(self) -> None:
        self.person: Person = somebody()
        self.row = a_developer(self.person.id)
        self.rest = APIClient()
        self.rest.force_authenticate(User.objects.get(pk=self.person.id))
        self.slug = f"report-{uuid.uuid4().hex[:10]}"
        body = {"slug": self.slug, "name": self.slug.title(), "category": "planning"}
        made = self.rest.post("/api/v1/plugins", body, format="json")
        assert made.status_code == 201, made.json()
        self.path = f"/api/v1/plugins/{made.json()['id']}"
        self.plugin = Plugin.objects.get(slug=self.slug)

    def package(self, version: str = "1.0.0", **changes: Any) -> bytes:
        return pack(id=self.slug, name=self.slug.title(), version=version, **changes)

    def upload(self, package: bytes) -> Any:
        return self.rest.generic("POST", f"{self.path}/versions", package, "application/zip")

    def handed_in(self, version: str = "1.0.0") -> PluginVersion:
        """Uploaded, submitted and checked."""
        assert self.upload(self.package(version)).status_code == 201
        assert self.rest.post(f"{self.path}/versions/{version}/submit", {}, format="json").status_code == 200
        found = PluginVersion.objects.get(plugin=self.plugin, version=version)
        assert submissions.check_one(found.pk)
        found.refresh_from_db()
        return found

    def state(self, version: str = "1.0.0") -> str:
        found: str = self.rest.get(f"{self.path}/versions/{version}").json()["state"]
        return found


def approve(version: PluginVersion, by: uuid.UUID | None = None, **changes: Any) -> PluginVersion:
    given = {"sha256": version.sha256, "checklist": list(staff_reviews.CHECKLIST), **changes}
    return staff_reviews.decide(
        version_id=version.pk, reviewer_id=by or uuid.uuid4(), decision="approve", **given
    )


def test_a_browser_uploads_a_package_with_its_session_and_its_token() -> None:
    developer, token = Developer(), "a" * 32
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(User.objects.get(pk=developer.person.id))
    browser.cookies["csrftoken"] = token
    place, package = f"{developer.path}/versions", developer.package()
    refused = browser.post(place, package, content_type="application/zip")
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    sent = browser.post(place, package, content_type="application/zip", headers={"X-CSRFToken": token})
    assert sent.status_code == 201, sent.json()


def test_a_version_is_checked_reviewed_held_and_listed_with_its_signature() -> None:
    developer, reader = Developer(), APIClient()
    reader.force_authenticate(User.objects.get(pk=somebody().id))
    version = developer.handed_in()
    assert (version.state, reader.get(developer.path).status_code) == ("in_review", 404)
    approve(version)
    publication.list_due()
    assert developer.state() == "approved"  # for a day
    PluginVersion.objects.filter(pk=version.pk).update(list_at=timezone.now())
    publication.list_due()
    catalogue.forget_counts()
    found = reader.get("/api/v1/plugins", {"q": developer.slug}).json()
    assert (found["total"], found["page"], found["plugins"][0]["id"]) == (1, 1, str(developer.plugin.pk))
    shown = reader.get(developer.path).json()
    assert (shown["version"], shown["manifest"]["entry"]) == ("1.0.0", "main.js")
    package = b"".join(store().read(version.object, 0, version.size))
    assert isolated_checks.check(_file(package)).sha256 == shown["sha256"]
    keys = reader.get("/api/v1/plugins/keys").json()["keys"]
    statement = plugin_statement(
        plugin=shown["slug"],
        version=shown["version"],
        sha256=shown["sha256"],
        size=len(package),
        permissions=shown["permissions"],
        reviewed_at=PluginVersion.objects.get(pk=version.pk).reviewed_at,  # type: ignore[arg-type]
    )
    verify("plugin", Signed(statement, shown["signature"], shown["key_id"]), keys)
    with pytest.raises(BadSignature):
        verify("plugin", Signed({**statement, "size": 1}, shown["signature"], shown["key_id"]), keys)


def _file(content: bytes) -> Any:
    import tempfile

    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(content)
    file.flush()
    return file


def test_a_package_that_cannot_be_published_leaves_nothing_and_its_number_free() -> None:
    developer = Developer()
    refused = developer.upload(developer.package(files={"main.js": CODE + TOKEN.encode()}))
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_package")
    (finding,) = refused.json()["findings"]
    assert (finding["check"], finding["path"]) == ("secrets", "main.js") and TOKEN not in str(refused.json())
    for package in (b"no zip", pack(id="another-plugin")):
        assert developer.upload(package).json()["code"] == "bad_package"
    assert not developer.plugin.versions.exists()
    assert developer.upload(developer.package()).status_code == 201
    again = developer.upload(developer.package())
    assert (again.status_code, again.json()["code"]) == (409, "version_exists")
    assert developer.rest.delete(f"{developer.path}/versions/1.0.0").json() == {"ok": True}
    assert developer.upload(developer.package()).status_code == 201


def test_nobody_reviews_their_own_nor_what_they_have_not_seen() -> None:
    developer = Developer()
    version = developer.handed_in()
    with pytest.raises(OwnVersion):
        approve(version, by=developer.person.id)
    for changes, refused in (({"sha256": "0" * 64}, NotReviewed), ({"checklist": ["code"]}, ChecklistOpen)):
        with pytest.raises(refused):
            approve(version, **changes)
    assert developer.state() == "in_review"
    staff_reviews.decide(
        version_id=version.pk,
        reviewer_id=uuid.uuid4(),
        decision="ask_changes",
        sha256=version.sha256,
        notes="Say what it sends.",
    )
    told = developer.rest.get(f"{developer.path}/versions/1.0.0").json()
    assert (told["state"], told["reason"]) == ("changes_asked", "Say what it sends.")


def test_what_the_checks_cannot_do_lets_nothing_pass(settings: Any) -> None:
    settings.PLUGIN_SCANNER = "tcp://127.0.0.1:1"  # nothing listens there
    developer = Developer()
    version = developer.handed_in()
    assert (version.state, version.tries) == ("submitted", 1)
    assert PluginCheck.objects.get(version=version, name="scanner").result == "error"
    assert not submissions.check_one(version.pk)  # not yet
    settings.PLUGIN_SCANNER = ""
    PluginVersion.objects.filter(pk=version.pk).update(not_before=timezone.now())
    assert submissions.check_one(version.pk) and developer.state() == "in_review"


def test_what_the_scanner_finds_goes_back_to_its_developer(settings: Any) -> None:
    with Clamd() as clamd:
        settings.PLUGIN_SCANNER = clamd.url
        developer = Developer()
        assert developer.upload(developer.package()).status_code == 201
        developer.rest.post(f"{developer.path}/versions/1.0.0/submit", {}, format="json")
        version = PluginVersion.objects.get(plugin=developer.plugin)
        clamd.answer = b"stream: Test-Signature FOUND"  # a package is packed, and a scanner unpacks it
        assert submissions.check_one(version.pk)
        told = developer.rest.get(f"{developer.path}/versions/1.0.0").json()
        assert (told["state"], told["checks"]["scanner"]) == ("changes_asked", "found")
        assert clamd.seen == [b"".join(store().read(version.object, 0, version.size))]


def test_other_bytes_in_the_store_do_not_pass() -> None:
    developer = Developer()
    assert developer.upload(developer.package()).status_code == 201
    version = PluginVersion.objects.get(plugin=developer.plugin)
    store().delete(version.object)
    with store().sink(version.object) as sink:
        sink.write(developer.package(files={"main.js": CODE + b"\n"}))
        sink.finish()
    developer.rest.post(f"{developer.path}/versions/1.0.0/submit", {}, format="json")
    assert submissions.check_one(version.pk) and developer.state() == "submitted"


def test_a_revocation_is_told_until_it_is_restored_and_its_number_grows() -> None:
    developer, staff = Developer(), uuid.uuid4()
    version = approve(developer.handed_in())
    publication.list_now(version_id=version.pk)
    counters = []
    for act in (
        lambda: publication.revoke(version_id=version.pk, by=staff, reason="it sends files away"),
        lambda: publication.restore(version_id=version.pk, by=staff),
    ):
        act()
        answer = APIClient().get("/api/v1/plugins/revocations").json()
        verify(
            "revocations",
            Signed(answer["statement"], answer["signature"], answer["key_id"]),
            staff_reviews.keys().public_keys(),
        )
        counters.append(answer["statement"]["counter"])
        mine = [each for each in answer["statement"]["revoked"] if each["plugin"] == developer.slug]
        assert bool(mine) == (developer.state() == "revoked")
        developer.plugin.refresh_from_db()
        assert (developer.plugin.state == "listed") == (not mine)
    assert counters[0] < counters[1]
    assert revocations.signed_list().statement["counter"] == counters[1]


def test_who_is_not_the_developer_finds_nothing_to_change() -> None:
    developer, other = Developer(), Developer()
    assert developer.upload(developer.package()).status_code == 201
    path = developer.path
    for method, place, body in (
        ("patch", path, {"category": "other"}),
        ("get", f"{path}/versions", None),
        ("post", f"{path}/versions", None),
        ("get", f"{path}/versions/1.0.0", None),
        ("delete", f"{path}/versions/1.0.0", None),
        ("post", f"{path}/versions/1.0.0/submit", {}),
        ("post", f"{path}/versions/1.0.0/withdraw", {}),
        ("post", f"{path}/versions/1.0.0/yank", {}),
    ):
        answer = getattr(other.rest, method)(place, body, format="json")
        assert answer.status_code == 404, place


def test_a_name_that_people_take_for_anothers_is_refused() -> None:
    developer = Developer()
    other = Developer()
    close = developer.slug[:-1] + ("a" if developer.slug[-1] != "a" else "b")
    for slug, code in (
        (developer.slug, "name_taken"),
        (close, "name_too_close"),
        ("adiuva-notes", "invalid"),
    ):
        refused = other.rest.post("/api/v1/plugins", {"slug": slug, "name": "Other thing"}, format="json")
        assert refused.json()["code"] == code, slug


def staff_in(role: str) -> Client:
    user, browser = User.objects.get(pk=somebody(is_staff=True).id), Client()
    user.groups.add(Group.objects.get(name=role))
    browser.force_login(user)
    return browser


def test_a_reviewer_sees_what_there_is_to_see_and_decides_in_the_admin() -> None:
    developer = Developer()
    version = developer.handed_in()
    page = reverse("admin:billing_pluginversion_change", args=[version.pk])
    act = reverse("admin:billing_pluginversion_act", args=[version.pk])
    looking, reviewer = staff_in(roles.SUPPORT), staff_in(roles.REVIEWER)
    for browser, may in ((looking, False), (reviewer, True)):
        shown = browser.get(page).content.decode()
        assert "main.js" in shown and "structure" in shown
        assert ("Approve and sign" in shown) is may
    given = {"act": "approve", "sha256": version.sha256, "checklist": list(staff_reviews.CHECKLIST)}
    assert looking.post(act, given).status_code == 403
    for wrong in (given | {"checklist": ["code"]}, given | {"sha256": "0" * 64}):
        assert "Not done" in reviewer.post(act, wrong, follow=True).content.decode()
    assert developer.state() == "in_review"
    assert "Done." in reviewer.post(act, given, follow=True).content.decode()
    assert developer.state() == "approved"
    reviewer.post(act, {"act": "revoke", "notes": "It sends rows\0 elsewhere."})
    assert developer.state() == "revoked"
    listed = developer.rest.get("/api/v1/plugins/revocations").json()["statement"]["revoked"]
    mine = {"plugin": developer.slug, "version": "1.0.0", "reason": "It sends rows elsewhere."}
    assert mine in listed
