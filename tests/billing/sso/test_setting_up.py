"""Set-up of single sign-on by an owner, and the staff's view: page, contested domains, silent name servers, mails."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.db.models.functions import Now
from django.test import Client
from django.urls import reverse

from adiuva.accounts.models import Mail, User
from billing.sso import configuration, domain_rechecks
from billing.sso.models import Domain, IdentityProvider
from tests.accounts.mailbox import mail_to
from tests.billing.sso.teams import TeamOf, account
from tests.conflicts import overtaken
from tests.factories import somebody
from tests.fakes.dns import NameServer
from tests.fakes.oidc import CLIENT, SECRET, Oidc

PAGE = "/account/team/sso"


def owner_of(team: TeamOf) -> Client:
    browser = Client()
    browser.force_login(User.objects.get(pk=team.owner.id))
    return browser


def text_of(answer: Any) -> str:
    return str(answer.content.decode())


def row_of(team: TeamOf) -> Domain:
    return Domain.objects.get(provider=team.provider, name=team.domain)


def look_now(team: TeamOf) -> None:
    Domain.objects.filter(provider=team.provider).update(look_at=Now())
    domain_rechecks.recheck()


def test_an_owner_sets_it_up_on_the_page(team: TeamOf) -> None:
    browser = owner_of(team)
    form = {"act": "set", "issuer": team.idp.url, "client_id": CLIENT, "secret": SECRET}
    wrong = browser.post(PAGE, {**form, "password": "not it"})
    assert 'role="alert"' in text_of(wrong) and SECRET not in text_of(wrong)
    answer = browser.post(PAGE, {**form, "password": team.owner.password})
    assert answer["Location"].endswith("?done=set")
    assert "other.example" in text_of(
        browser.post(PAGE, {"act": "add", "name": "other.example"}, follow=True)
    )
    (other,) = Domain.objects.filter(provider=team.provider, name="other.example")
    unproven = browser.post(f"{PAGE}?done=add", {"act": "prove", "domain": str(other.pk)})
    assert "does not hold the record yet" in text_of(unproven) and "It is done" not in text_of(unproven)
    browser.post(PAGE, {"act": "drop", "domain": str(other.pk)})
    assert not Domain.objects.filter(pk=other.pk).exists()
    early = browser.post(PAGE, {"act": "require", "password": team.owner.password})
    assert "once yourself first" in text_of(early)
    assert browser.post(PAGE, {"act": "prove", "domain": "nonsense"}).status_code == 400
    assert browser.post(PAGE, {"act": "remove", "password": team.owner.password}).status_code == 302
    assert "Nobody has signed in this way yet" not in text_of(browser.get(PAGE))


@pytest.fixture
def committed_team(committed_db: str, idp: Oidc, name_server: NameServer, settings: Any) -> TeamOf:
    settings.PLANS = True
    return TeamOf(idp, name_server, proven=False)


def test_a_new_secret_does_not_require_again_what_staff_took_back(committed_team: TeamOf) -> None:
    team = committed_team
    IdentityProvider.objects.filter(pk=team.provider.pk).update(is_required=True, worked_at=Now())
    answer = overtaken(
        lambda: team.set(secret="another"),
        lambda: configuration.set_required(team.provider, False, by=team.owner.id),
    )
    assert answer.status_code == 200
    assert not team.provider.is_required and team.provider.worked_at is not None


def test_a_change_does_not_bring_back_a_provider_that_was_removed(committed_team: TeamOf) -> None:
    team = committed_team
    answer = overtaken(
        lambda: team.set(secret=""), lambda: configuration.remove_provider(owner_id=team.owner.id)
    )
    assert (answer.status_code, list(answer.data["fields"])) == (400, ["secret"])
    assert not IdentityProvider.objects.filter(team=team.team).exists()


def test_a_domain_that_is_removed_while_its_record_is_read_is_not_found(
    team: TeamOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = team.add("other.example").data

    def read(name: str, token: str) -> None:
        Domain.objects.filter(pk=added["id"]).delete()

    monkeypatch.setattr("billing.sso.domains.require_proven", read)
    assert team.rest.post(f"/api/v1/billing/team/sso/domains/{added['id']}").status_code == 404
    assert not Domain.objects.filter(name="other.example").exists()


def test_silent_name_servers_are_said_to_be_and_change_nothing(
    team: TeamOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("billing.sso.domains._TOTAL_S", 0.2)
    added = team.add("silent.example").data
    team.name_server.is_silent = True
    answer = team.rest.post(f"/api/v1/billing/team/sso/domains/{added['id']}")
    assert (answer.status_code, answer.data["code"]) == (503, "dns_away")
    Domain.objects.filter(pk=row_of(team).pk).update(missing_since=Now() - dt.timedelta(days=30))
    look_now(team)
    assert row_of(team).proven_at is not None


def test_a_record_that_is_gone_is_missed_for_two_weeks_and_can_come_back(team: TeamOf) -> None:
    records = dict(team.name_server.records)
    look_now(team)
    first = row_of(team)
    assert first.missing_since is None and first.look_at is not None
    team.name_server.records.clear()
    look_now(team)
    assert row_of(team).missing_since is not None and row_of(team).proven_at is not None
    assert "gone from the DNS" in text_of(owner_of(team).get(PAGE))
    team.name_server.records.update(records)
    look_now(team)
    assert row_of(team).missing_since is None
    team.name_server.records.clear()
    Domain.objects.filter(pk=first.pk).update(missing_since=Now() - dt.timedelta(days=15))
    look_now(team)
    assert row_of(team).proven_at is None and team.events()[-1] == "domain_lost"


def test_only_what_is_due_is_looked_at(team: TeamOf) -> None:
    look_now(team)
    team.name_server.records.clear()
    domain_rechecks.recheck()
    assert row_of(team).missing_since is None


def test_of_two_teams_the_one_with_the_record_has_the_domain(
    team: TeamOf, idp: Oidc, name_server: NameServer
) -> None:
    other = TeamOf(idp, name_server, proven=False)
    added = other.add(team.domain).data
    place, theirs = added["record_name"], name_server.records[added["record_name"]]
    address = f"/api/v1/billing/team/sso/domains/{added['id']}"
    assert other.rest.post(address).data["code"] == "domain_unproven"
    name_server.records[place] = [*theirs, added["record_value"]]
    assert other.rest.post(address).data["code"] == "domain_taken"
    assert row_of(team).proven_at is not None
    name_server.records[place] = [added["record_value"]]
    assert other.rest.post(address).data["proven_at"]
    assert row_of(team).proven_at is None and team.events()[-1] == "domain_lost"


def test_members_are_mailed_when_it_becomes_required(team: TeamOf) -> None:
    address = team.address("rosa")
    team.sign_in(address)
    assert team.require().status_code == 200
    waiting = Mail.objects.filter(kind="sso_required", about=team.provider.pk)
    assert [mail.user for mail in waiting] == [account(address)]  # the owner keeps the password
    assert "/account/sso" in mail_to(address, "signs in through your organisation")
    team.require(False)
    team.require()
    team.require(False)
    assert not waiting.all().exists()


def test_staff_see_no_secret_and_take_back_what_locks_people_out(team: TeamOf) -> None:
    team.sign_in(team.address("rosa"))
    team.require()
    staff = Client()
    staff.force_login(User.objects.get(pk=somebody(is_staff=True, is_superuser=True).id))
    rows = reverse("admin:billing_identityprovider_changelist")
    page = reverse("admin:billing_identityprovider_change", args=[team.provider.pk])
    shown = text_of(staff.get(page))
    assert team.domain in shown and team.idp.url in shown and SECRET not in shown
    events = text_of(staff.get(reverse("admin:billing_ssoevent_changelist"), {"q": str(team.team.pk)}))
    assert "it became required" in events
    staff.post(rows, {"action": "stop_requiring", "_selected_action": [str(team.provider.pk)]})
    assert not team.provider.is_required and team.events()[-1] == "optional"
