"""Installing plugins: who may, what they agree to, where the package is, and what counts."""

from __future__ import annotations

import datetime as dt
import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connections, transaction
from django.test import Client
from django.utils.timezone import now
from rest_framework.test import APIClient

from adiuva.object_store.store import new_name, store
from billing.models import Developer, Plugin, PluginInstall, PluginVersion
from tests.billing.marketplace.factories import a_developer, a_listed_plugin, a_plugin, a_version, approve
from tests.factories import Person, somebody

pytestmark = pytest.mark.usefixtures("committed_db")

PACKAGE = b"a package as it was reviewed"


def client(person: Person) -> APIClient:
    rest = APIClient()
    rest.credentials(HTTP_AUTHORIZATION=f"Bearer {person.access_token}")
    return rest


@pytest.fixture
def rest() -> APIClient:
    return client(somebody(tier="power"))


def offer(plugin: Plugin, version: str, permissions: list[str], **fields: Any) -> PluginVersion:
    """List a version of a plugin, with bytes in the store."""
    with store().sink(name := new_name()) as sink:
        sink.write(PACKAGE)
        sink.finish()
    made = a_version(
        plugin,
        version,
        permissions=permissions,
        object=name,
        size=len(PACKAGE),
        sha256=hashlib.sha256(PACKAGE).hexdigest(),
        **fields,
    )
    approve(made)
    with transaction.atomic():
        Plugin.objects.select_for_update(no_key=True).get(
            pk=plugin.pk
        )  # before its versions, as the product does
        PluginVersion.objects.filter(pk=made.pk).update(state="listed", listed_at=now())
        Plugin.objects.filter(pk=plugin.pk).update(state="listed", current_version=made, listed_at=now())
    return made


async def content_of(answer: Any) -> bytes:
    return b"".join([piece async for piece in answer.streaming_content])


def path(plugin: Plugin) -> str:
    return f"/api/v1/plugins/{plugin.pk}/install"


def test_an_installation_is_agreed_to_fetched_updated_and_removed(rest: APIClient) -> None:
    plugin = a_plugin()
    offer(plugin, "1.0.0", ["tasks.read"])
    answer = rest.post(path(plugin))  # as deployed clients ask
    assert answer.status_code == 200, answer.data
    assert answer.data["ok"] is True and answer.data["permissions"] == ["tasks.read"]
    url = answer.data["download_url"]
    found = APIClient().get(url)
    assert found.status_code == 200 and found["X-Checksum"] == answer.data["sha256"]
    assert async_to_sync(content_of)(found) == PACKAGE
    offer(plugin, "1.1.0", ["tasks.read", "tasks.write"])
    (update,) = rest.get("/api/v1/plugins/updates").data
    assert update["update"]["new_permissions"] == ["tasks.write"]
    refused = rest.post(path(plugin))
    assert (refused.status_code, refused.data["code"]) == (409, "permissions_grown")
    assert refused.data["new"] == ["tasks.write"]
    agreed = rest.post(path(plugin), {"permissions": ["tasks.read", "tasks.write"]}, format="json")
    assert agreed.status_code == 200 and agreed.data["version"] == "1.1.0"
    assert rest.get("/api/v1/plugins/updates").data == []
    for _ in range(2):
        assert rest.delete(path(plugin)).data == {"ok": True}
    assert rest.get("/api/v1/plugins/installed").data == []
    assert APIClient().get(agreed.data["download_url"]).status_code == 404  # it was removed


def test_a_first_installation_is_held_to_what_was_shown(rest: APIClient) -> None:
    plugin = a_plugin()
    offer(plugin, "1.0.0", ["network"])
    answer = rest.post(path(plugin), {"permissions": []}, format="json")
    assert (answer.status_code, answer.data["new"]) == (409, ["network"])
    assert not PluginInstall.objects.filter(plugin=plugin).exists()


def test_addresses_of_downloads_end_and_are_bound(rest: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    plugin = a_plugin()
    offer(plugin, "1.0.0", [])
    url = rest.post(path(plugin)).data["download_url"]
    assert "token=" in url.partition("?")[2]  # logs have no query strings
    assert APIClient().get(url[:-1] + ("a" if url[-1] != "a" else "b")).status_code == 404
    later = time.time() + 301
    monkeypatch.setattr("django.core.signing.time.time", lambda: later)
    assert APIClient().get(url).data["code"] == "download_over"


def test_each_user_counts_once_and_the_developer_not_at_all(rest: APIClient) -> None:
    owner = somebody(tier="power")
    plugin = a_listed_plugin(a_developer(owner.id))
    for who in (rest, client(owner), client(somebody(tier="power"))):
        for _ in range(2):
            assert who.post(path(plugin)).status_code == 200
            assert who.delete(path(plugin)).status_code == 200
    plugin.refresh_from_db()
    assert plugin.installs == 2


def test_who_may_not_is_told_why(rest: APIClient, settings: Any) -> None:
    settings.PLANS = True
    plugin = a_listed_plugin()
    assert client(somebody()).post(path(plugin)).data["code"] == "not_in_plan"
    assert rest.post(path(a_plugin())).status_code == 404  # never listed: nobody's business
    version = PluginVersion.objects.get(plugin=plugin)
    assert rest.post(path(plugin)).status_code == 200
    with transaction.atomic():
        Plugin.objects.select_for_update(no_key=True).get(pk=plugin.pk)
        PluginVersion.objects.filter(pk=version.pk).update(state="yanked")
        Plugin.objects.filter(pk=plugin.pk).update(state="draft", current_version=None)
    assert rest.post(path(plugin)).status_code == 200  # who has it keeps it
    other = client(somebody(tier="power"))
    assert other.post(path(plugin)).data["code"] == "not_listed"
    PluginVersion.objects.filter(pk=version.pk).update(state="revoked", reason="It reads mails.")
    for who in (rest, other):
        answer = who.post(path(plugin))
        assert (answer.status_code, answer.data["reason"]) == (410, "It reads mails.")
    (mine,) = rest.get("/api/v1/plugins/installed").data
    assert mine["revoked"] == "It reads mails."


def test_what_is_not_listed_is_not_installed_whatever_happens_at_once() -> None:
    """Users install while the version is yanked and listed again: who got it, got it while it was listed."""
    from billing.marketplace import installs

    plugin = a_plugin()
    version = offer(plugin, "1.0.0", [])
    people = [somebody(tier="power").id for _ in range(8)]

    def switch(times: int) -> None:
        try:
            for number in range(times):
                with transaction.atomic():
                    Plugin.objects.select_for_update(no_key=True).get(pk=plugin.pk)
                    on = number % 2 == 1
                    PluginVersion.objects.filter(pk=version.pk).update(state="listed" if on else "yanked")
                    Plugin.objects.filter(pk=plugin.pk).update(
                        state="listed" if on else "draft", current_version=version if on else None
                    )
        finally:
            connections.close_all()

    def take(user: Any) -> str:
        try:
            with transaction.atomic():
                installs.install(user_id=user, plugin_id=plugin.pk)
                # Under the same lock: nothing has changed since.
                state = PluginVersion.objects.values_list("state", flat=True).get(pk=version.pk)
            return f"installed while {state}"
        except installs.NotListed:
            return "refused"
        finally:
            connections.close_all()

    with ThreadPoolExecutor(10) as pool:
        done = [pool.submit(switch, 20)]
        results = [pool.submit(take, user) for user in people]
        for each in done:
            each.result()
        said = {each.result() for each in results}
    assert said <= {"installed while listed", "refused"}
    assert PluginInstall.objects.filter(plugin=plugin).count() == Plugin.objects.get(pk=plugin.pk).installs


def test_a_plugin_changes_hands_after_a_hold_in_which_it_can_be_stopped() -> None:
    from billing.marketplace import ownership_transfers
    from billing.models import PluginTransfer

    owner, other = somebody(tier="power"), somebody()
    plugin = a_listed_plugin(a_developer(owner.id))
    receiver = a_developer(other.id)
    give = f"/api/v1/plugins/{plugin.pk}/transfer"
    assert client(other).post(give, {"handle": receiver.handle}, format="json").status_code == 404
    for stops in (True, False):
        asked = client(owner).post(give, {"handle": receiver.handle}, format="json")
        assert asked.status_code == 201, asked.data
        one = f"/api/v1/developer/transfers/{asked.data['id']}"
        assert client(owner).post(one).status_code == 404  # only who is to have it accepts
        assert client(other).post(one).data["state"] == "accepted"
        ownership_transfers.sweep()
        assert Plugin.objects.get(pk=plugin.pk).developer_id == plugin.developer_id
        if stops:
            assert client(owner).delete(one).status_code == 200
        PluginTransfer.objects.filter(pk=asked.data["id"]).update(due_at=now())
        ownership_transfers.sweep()
    assert Plugin.objects.get(pk=plugin.pk).developer_id == receiver.pk


def test_both_sides_of_a_change_of_hands_get_mails_and_a_page_to_act_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from adiuva.accounts import mails
    from adiuva.accounts.models import Mail, User
    from billing.marketplace import ownership_transfers
    from billing.models import PluginTransfer

    owner, other = somebody(), somebody(locale="de")
    plugin = a_listed_plugin(a_developer(owner.id), name="Counted hours")
    receiver = a_developer(other.id)
    mine, theirs = Client(), Client()
    for browser, person in ((mine, owner), (theirs, other)):
        browser.force_login(User.objects.get(pk=person.id))
    page = "/account/plugins"

    # None is due before the test is over, so no worker sends one.
    monkeypatch.setattr(mails, "order", partial(mails.order, after=dt.timedelta(hours=1)))

    def told(to: Person) -> str:
        """The mails to somebody since the last look."""
        waiting = Mail.objects.filter(user_id=to.id, not_before__gt=now())
        letters = [mails._message(letter) for mail in waiting for letter in mails._letters(mail)]
        waiting.delete()
        assert all(letter.to == [to.email] for letter in letters)
        return "".join(letter.subject + letter.body for letter in letters)

    client(owner).post(f"/api/v1/plugins/{plugin.pk}/transfer", {"handle": receiver.handle}, format="json")
    transfer = PluginTransfer.objects.get(plugin=plugin)
    assert "bietet Ihnen das Plugin „Counted hours“ an" in told(other)
    assert "Annehmen" in theirs.get(page).content.decode()
    shown = mine.get(page).content.decode()
    assert "Stop it" in shown and "Accept" not in shown and "in the catalogue" in shown
    assert mine.post(page, {"transfer": transfer.pk, "act": "accept"}).status_code == 404
    assert theirs.post(page, {"transfer": transfer.pk, "act": "accept"}).status_code == 302
    assert "Your plugin “Counted hours” goes to" in (letter := told(owner)) and page in letter
    with transaction.atomic():  # by this process, whose mails wait
        PluginTransfer.objects.filter(pk=transfer.pk).update(due_at=now())
        ownership_transfers.sweep()
    assert "went to" in told(owner)
    assert mine.post(page, {"transfer": transfer.pk, "act": "stop"}).status_code == 404  # it is over
    for wrong in ({"transfer": "x", "act": "stop"}, {"transfer": transfer.pk, "act": "x"}):
        assert mine.post(page, wrong).status_code == 404


def test_a_handle_is_of_ones_own_and_like_no_other(rest: APIClient) -> None:
    handle = f"inkwell-{hashlib.sha256(str(now()).encode()).hexdigest()[:12]}"
    developer = "/api/v1/developer"
    assert rest.get(developer).status_code == 404
    made = rest.post(developer, {"handle": handle, "name": "Inkwell"}, format="json")
    assert (made.status_code, made.data["account"]) == (201, "none")
    other = client(somebody())
    for taken, code in (
        (handle, "name_taken"),
        (f"{handle}0"[:39], "name_too_close"),
        ("adiuva-x", "invalid"),
    ):
        assert other.post(developer, {"handle": taken, "name": "X"}, format="json").data["code"] == code
    assert rest.get(f"{developer}/earnings?period=2026-11").data["earnings"] == []
    assert rest.get(f"{developer}/earnings?period=2026-1").status_code == 400


def test_a_deleted_developer_leaves_what_was_bought_and_no_name() -> None:
    from adiuva.accounts.models import User

    owner = somebody()
    developer = a_developer(owner.id)
    plugin = a_listed_plugin(developer)
    User.objects.get(pk=owner.id).delete()
    developer = Developer.objects.get(pk=developer.pk)
    assert (developer.user_id, developer.name, developer.state) == (None, "", "gone")
    assert Plugin.objects.get(pk=plugin.pk).state == "withdrawn"
