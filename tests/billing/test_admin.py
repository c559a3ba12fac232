"""Staff edit plans and give them to users, and both are written down."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from adiuva.accounts.models import StaffAction, User
from billing import plans
from billing.models import AddedAllowance, Override, Plan
from tests.agents.factories import rest_client
from tests.factories import Person, somebody

pytestmark = pytest.mark.django_db


@pytest.fixture
def staff() -> Client:
    browser = Client()
    browser.force_login(User.objects.get(pk=somebody(is_staff=True, is_superuser=True).id))
    return browser


def actions_on(person: Person) -> list[str]:
    return list(StaffAction.objects.filter(user_id=person.id).order_by("id").values_list("kind", flat=True))


def test_an_edit_of_a_plan_holds_and_stays_in_its_history(staff: Client) -> None:
    page = reverse("admin:billing_plan_change", args=["pro"])
    form = staff.get(page).context["adminform"].form
    values = {name: "" if value is None else value for name, value in form.initial.items()}
    answer = staff.post(page, {**values, "agents_enabled": "12", "plugins": ""})
    assert answer.status_code == 302, answer.context["adminform"].form.errors
    plans.forget()
    assert plans.plan_of("pro").agents_enabled == 12
    change = Plan.objects.get(pk="pro").changes.get()
    assert change.changes == {"agents_enabled": [10, 12]}
    shown = staff.get(page).content.decode()
    assert "agents_enabled" in shown and "10 → 12" in shown
    plans.forget()


def test_staff_give_a_plan_and_end_it_and_the_user_can_read_who_did_what(staff: Client) -> None:
    mara = somebody()
    add = reverse("admin:billing_override_add")
    form = staff.get(add).content.decode()
    assert 'aria-label="Until: date"' in form and 'aria-label="Until: time"' in form
    given = {"user": str(mara.id), "tier": "power", "reason": "beta tester"}
    refused = staff.post(add, {**given, "until_0": "2020-01-01", "until_1": "00:00"})
    assert refused.status_code == 200 and "This time is over." in refused.content.decode()
    assert staff.post(add, {**given, "until_0": "2099-01-01", "until_1": "00:00"}).status_code == 302
    assert User.objects.get(pk=mara.id).tier == "power"
    override = Override.objects.get(user_id=mara.id)
    assert (override.reason, override.until is not None) == ("beta tester", True)
    rows = reverse("admin:billing_override_changelist")
    assert staff.post(rows, {"action": "end_now", "_selected_action": [override.pk]}).status_code == 302
    assert User.objects.get(pk=mara.id).tier == "free"
    assert actions_on(mara) == ["plan_given", "plan_ended"]


def test_staff_add_to_a_months_budget_and_the_user_reads_why(staff: Client) -> None:
    mara = somebody()
    add = reverse("admin:billing_addedallowance_add")
    refused = staff.post(add, {"user": str(mara.id), "micro": "0", "reason": ""})
    assert {*refused.context["adminform"].form.errors} == {"micro", "reason"}
    for _ in range(2):
        given = {"user": str(mara.id), "micro": "2000000", "reason": "our fault"}
        assert staff.post(add, given).status_code == 302
    shown = rest_client(mara).get("/api/v1/usage").json()
    assert (shown["added_micro"], [each["reason"] for each in shown["added"]]) == (
        4 * 10**6,
        ["our fault"] * 2,
    )
    assert actions_on(mara) == ["budget_added"] * 2
    row = reverse("admin:billing_addedallowance_change", args=[AddedAllowance.objects.latest("id").pk])
    assert "our fault" in staff.get(row).content.decode()
    assert staff.post(row, {"micro": "9"}).status_code == 403
    assert rest_client(somebody()).get("/api/v1/usage").json()["added"] == []


def test_nobody_edits_the_tier_of_an_account_by_hand(staff: Client) -> None:
    mara = somebody()
    page = reverse("admin:accounts_user_change", args=[mara.id])
    staff.post(page, {"tier": "team", "timezone": "UTC", "locale": "de", "is_active": "on"})
    user = User.objects.get(pk=mara.id)
    assert (user.tier, user.locale) == ("free", "de")


@pytest.mark.parametrize(
    "page", ["ledgerentry", "dispute", "team", "membership", "subscription", "event", "stripejob"]
)
def test_staff_search_what_is_paid_by_an_id_of_stripe(staff: Client, page: str) -> None:
    rows = reverse(f"admin:billing_{page}_changelist")
    for term in ("", "ch_of_nobody", str(somebody().id)):
        assert staff.get(rows, {"q": term}).status_code == 200
