"""A team over REST: bought with its seats, changed with proration, and its members invited."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from adiuva.accounts.models import Mail
from billing.models import Customer, Subscription
from billing.payments import sync
from tests.accounts.mailbox import mail_to
from tests.billing.payers import BILLING, Payer, due_now, settle
from tests.fakes.stripe import DECLINES, Cut, Stripe

TEAM = f"{BILLING}/team"


@pytest.fixture(autouse=True)
def _plans_on(settings: Any) -> None:
    settings.PLANS = True


def put_seats(payer: Payer, seats: int) -> Any:
    return payer.rest.put(f"{TEAM}/seats", {"seats": seats}, format="json")


def invite(payer: Payer, email: str) -> Any:
    return payer.rest.post(f"{TEAM}/members", {"email": email}, format="json")


def accept(payer: Payer, link: str) -> Any:
    token = link.partition("invitation=")[2]
    return payer.rest.post(f"{TEAM}/accept", {"invitation": token}, format="json")


def prorated(stripe: Stripe) -> list[int]:
    return stripe.do(
        lambda world: [
            row["amount_paid"]
            for row in world.of("invoice")
            if row["billing_reason"] == "subscription_update"
        ]
    )


def test_a_team_is_bought_filled_and_emptied(payer: Payer, stripe: Stripe) -> None:
    assert payer.rest.get(TEAM).status_code == 404
    refused = invite(payer, "rosa@crew.example")
    assert (refused.status_code, refused.data["feature"], refused.data["upgrade_to"]) == (
        402,
        "seats",
        "team",
    )
    payer.subscribe("team", seats=2)
    guest = Payer(stripe)
    link = invite(payer, "rosa@crew.example").data["link"]
    assert invite(payer, "otto@crew.example").data["code"] == "quota_exceeded"
    assert accept(guest, link).data["role"] == "member"
    assert guest.tier == "team" and accept(Payer(stripe), link).data["code"] == "invitation_invalid"
    shown = payer.rest.get(TEAM).data
    assert (shown["seats"], shown["seats_taken"], len(shown["members"])) == (2, 2, 2)
    assert guest.rest.get(TEAM).data["members"] == []
    used = put_seats(payer, 1)
    assert (used.status_code, used.data["code"], used.data["members"]) == (409, "seats_in_use", 2)
    member = shown["members"][1]["id"]
    assert guest.rest.delete(f"{TEAM}/members/{member}").status_code == 404
    assert payer.rest.delete(f"{TEAM}/members/{member}").status_code == 200
    assert guest.tier == "free" and guest.rest.delete(TEAM).status_code == 404


def test_more_seats_are_charged_at_once_for_the_rest_of_the_period_and_once(payer: Payer) -> None:
    payer.subscribe("team", seats=2)
    payer.stripe.advance(days=15)
    payer.stripe.fault("POST /v1/subscriptions", Cut(done=True))
    assert put_seats(payer, 4).status_code == 202  # the answer was lost
    due_now(payer)
    settle()
    assert payer.subscription()["seats"] == 4
    assert len(prorated(payer.stripe)) == 1
    assert abs(prorated(payer.stripe)[0] - 4900) <= 2  # two more, for half a month
    assert put_seats(payer, 3).data["seats"] == 3
    assert len(prorated(payer.stripe)) == 1  # credited with the next invoice


def test_seats_that_the_card_does_not_pay_are_not_given(payer: Payer) -> None:
    payer.subscribe("team", seats=2)
    payer.stripe.card(Customer.objects.get(user_id=payer.person.id).stripe_id, DECLINES)
    answer = put_seats(payer, 5)
    assert (answer.status_code, answer.data["code"]) == (402, "card_refused")
    assert payer.rest.get(TEAM).data["seats"] == 2 and payer.tier == "team"


def test_seats_that_stripe_refuses_for_another_reason_are_no_fault_of_the_card(payer: Payer) -> None:
    from tests.fakes.stripe.subscriptions import end

    stripe_id = payer.subscribe("team", seats=2)
    payer.stripe.do(lambda world: end(world, world.get("subscription", stripe_id)))  # its event does not come
    answer = put_seats(payer, 5)
    assert (answer.status_code, answer.data["code"]) == (502, "billing_refused")
    settle()
    assert payer.tier == "free"


def test_nobody_is_invited_to_a_seat_that_is_about_to_go(payer: Payer) -> None:
    payer.subscribe("team", seats=3)
    payer.stripe.fault("POST /v1/subscriptions", Cut(), times=3)
    assert put_seats(payer, 1).status_code == 202
    assert invite(payer, "rosa@crew.example").data["limit"] == 1
    assert put_seats(payer, 3).status_code == 202  # wished back: the row is another one
    assert invite(payer, "rosa@crew.example").status_code == 201


def test_fewer_seats_by_the_portal_take_the_newest_members_off_and_more_bring_them_back(
    payer: Payer, stripe: Stripe
) -> None:
    stripe_id = payer.subscribe("team", seats=3)
    guests = [Payer(stripe), Payer(stripe)]
    for number, guest in enumerate(guests):
        accept(guest, invite(payer, f"guest{number}@crew.example").data["link"])
    for seats, tiers in ((2, ["team", "free"]), (3, ["team", "team"]), (1, ["free", "free"])):
        stripe.do(
            lambda world, seats=seats: world.get("subscription", stripe_id)["items"]["data"][0].update(
                quantity=seats
            )
        )
        sync.fetch_now(stripe_id)
        assert [guest.tier for guest in guests] == tiers
    assert Subscription.objects.get(stripe_id=stripe_id).quantity == 1


def test_an_invitation_is_mailed_and_once_more_only_when_it_was_sent(payer: Payer) -> None:
    payer.subscribe("team", seats=3)
    address = f"{uuid.uuid4().hex}@crew.example"
    made = invite(payer, address).data
    invite(payer, address)
    assert Mail.objects.filter(kind="team_invitation", about=made["id"]).count() <= 1
    assert "/account/team?invitation=" in mail_to(address, "invited to a team")
