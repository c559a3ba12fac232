"""Lock order of transactions on the same rows: run again and again side by side, none is aborted for a deadlock."""

from __future__ import annotations

import datetime as dt
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections, transaction
from django.db.models import Q
from django.utils.timezone import now

from adiuva.accounts import deletion, services
from adiuva.accounts.models import User
from billing import tiers
from billing.marketplace import payouts, purchase_sync
from billing.models import Customer, Developer, DeveloperPayment, Dispute, Event, PluginPurchase, StripeJob
from billing.payments import disputes, stripe_jobs, sync, webhooks
from billing.payments.models import Subscription
from billing.payments.stripe_api import SubscriptionState
from billing.teams import members, seats
from billing.teams.models import Membership, Team
from tests.billing.marketplace.factories import a_developer, a_listed_plugin
from tests.conflicts import conflicts_of, overtaken
from tests.factories import Person, somebody

pytestmark = pytest.mark.usefixtures("committed_db")
LEASE = dt.timedelta(minutes=1)


def deletion_of(person: Person) -> Callable[[], None]:
    """Without what is done when PostgreSQL ends it: it is begun again."""
    return lambda: deletion.delete_at_once(User.objects.get(pk=person.id))


def sales_of(developer: Developer, number: int = 20, buyer: Person | None = None) -> list[PluginPurchase]:
    """Sales of which nothing can be settled now: of those with the last keys the developer owes what they got, and of
    the others they are due money of another currency, and have no account."""
    plugins = [a_listed_plugin(developer, price_cents=1000) for _ in range(number)]
    owed = {"refunded_cents": 1000, "settled_cents": 700, "state": "refunded", "debt_since": now()}
    due = {"due_cents": 700, "state": "paid", "transfer_after": now(), "currency": "usd"}
    made: list[PluginPurchase] = []
    with transaction.atomic():
        for plugin, pk in zip(plugins, sorted((uuid.uuid4() for _ in plugins), reverse=True), strict=True):
            sale = PluginPurchase.objects.create(
                id=pk,
                plugin=plugin,
                developer=developer,
                user_id=buyer.id if buyer else None,
                total_cents=1000,
                session=f"cs_{pk}",
                payment_intent=f"pi_{pk}",
                charge=f"ch_{pk}",
                paid_at=now(),
                **(owed if len(made) < number / 2 else due),
            )
            if sale.settled_cents:
                DeveloperPayment.objects.create(
                    developer=developer,
                    purchase=sale,
                    kind="transfer",
                    cents=sale.settled_cents,
                    currency=sale.currency,
                    state="done",
                )
            made.append(sale)
    return made


def events_about(*, plugins: tuple[str, ...] = (), **fields: Any) -> None:
    """Events that came just now, one for each object."""
    for object_id in (*plugins, ""):
        Event.objects.create(
            stripe_id=f"evt_{uuid.uuid4().hex}",
            type="checkout.session.completed" if object_id else "charge.dispute.closed",
            livemode=False,
            created=now(),
            **({"object_id": object_id} if object_id else fields),
        )


def test_settling_a_developer_and_asking_for_copies_of_their_sales() -> None:
    developer = a_developer()
    sales_of(developer)
    assert not conflicts_of(
        lambda: payouts.settle(developer.pk), lambda: purchase_sync.want(Q(developer=developer))
    )


def test_settling_a_developer_and_events_of_their_account_and_sales() -> None:
    account = f"acct_{uuid.uuid4().hex}"
    developer = a_developer(stripe_account=account)
    sessions = tuple(str(sale.session) for sale in sales_of(developer, 3))

    def events_come() -> None:
        events_about(plugins=(account, *sessions))
        webhooks.process()

    assert not conflicts_of(lambda: payouts.settle(developer.pk), events_come)


def test_deleting_an_account_that_pays_and_events_of_its_subscriptions_and_purchases() -> None:
    buyer = somebody()
    sessions = tuple(str(sale.session) for sale in sales_of(a_developer(), 3, buyer))
    subscriptions = subscriptions_of(buyer, "active", "canceled")

    def events_come() -> None:
        events_about(plugins=sessions)
        for each in subscriptions:
            events_about(object_id=each.stripe_id, subscription_id=each.stripe_id)
        webhooks.process()

    assert not conflicts_of(deletion_of(buyer), events_come, times=40)


def subscriptions_of(person: Person, *statuses: str) -> list[Subscription]:
    """In the order of their keys."""
    customer = Customer.objects.create(stripe_id=f"cus_{uuid.uuid4().hex}", user_id=person.id)
    return [
        Subscription.objects.create(
            id=pk,
            stripe_id=f"sub_{pk}",
            user_id=person.id,
            customer=customer,
            tier="pro",
            status=status,
            started_at=now(),
        )
        for pk, status in zip(sorted(uuid.uuid4() for _ in statuses), statuses, strict=True)
    ]


def test_writing_a_copy_that_doubles_another_and_asking_for_copies_of_both() -> None:
    newer, older = subscriptions_of(somebody(), "active", "unknown")
    assert older.customer is not None
    state = SubscriptionState(
        stripe_id=older.stripe_id,
        customer_id=older.customer.stripe_id,
        status="active",
        price_id="price_x",
        tier="pro",
        quantity=1,
        period_end=now(),
        started_at=now() - dt.timedelta(days=1),
        cancel_at_period_end=False,
        pending_price_id="",
        environment="",
    )
    assert not conflicts_of(
        lambda: sync._write(older.lease(LEASE), state, older.wanted),
        lambda: sync.want([newer.stripe_id, older.stripe_id]),
    )


def test_a_dispute_that_is_released_while_its_subscription_ends_and_events_tell_of_both() -> None:
    person = somebody()
    (paid,) = subscriptions_of(person, "active")
    assert paid.customer is not None
    dispute = Dispute.objects.create(
        stripe_id=f"dp_{uuid.uuid4().hex}",
        status="lost",
        subscription_id=paid.stripe_id,
        customer_id=paid.customer.stripe_id,
    )
    job = stripe_jobs.want(StripeJob.Kind.END, paid.stripe_id, person.id)
    kind = stripe_jobs._KINDS[StripeJob.Kind.END]

    def events_come() -> None:
        events_about(object_id=dispute.pk, subscription_id=paid.stripe_id)
        webhooks.process()

    assert not conflicts_of(
        lambda: disputes.release(dispute=dispute),
        lambda: stripe_jobs._finish(job.lease(LEASE), kind, job, paid.stripe_id),
        events_come,
        times=60,
    )


def owner_of(*people: Person) -> Person:
    """Somebody whose team these are members of."""
    owner = somebody()
    tiers.give(user_id=owner.id, tier="team", until=None, reason="a test", by=uuid.uuid4())
    team = Team.objects.create(owner_id=owner.id, seats_given=1 + len(people))
    for each in people:
        Membership.objects.create(team=team, user_id=each.id, state="active", joined_at=now())
    return owner


def test_seats_that_are_lost_and_a_member_who_deletes_their_account(settings: Any) -> None:
    settings.PLANS = True
    member = somebody()
    owner = owner_of(member)

    def fewer_seats() -> None:
        Team.objects.filter(owner_id=owner.id).update(seats_given=1)
        assert seats.settle(owner.id) == 1

    assert not conflicts_of(fewer_seats, deletion_of(member), times=20)


def test_an_owner_and_a_member_who_delete_their_accounts() -> None:
    member = somebody()
    owner = owner_of(member)
    assert not conflicts_of(deletion_of(owner), deletion_of(member), times=20)
    overtaken(deletion_of(owner), deletion_of(member))
    assert not User.objects.filter(pk__in=[owner.id, member.id]).exists()


def test_a_member_who_is_removed_and_deletes_their_account() -> None:
    member = somebody()
    owner = owner_of(member)
    mine = Membership.objects.get(user=member.id)
    assert not conflicts_of(
        lambda: members.remove(owner_id=owner.id, membership_id=mine.pk),
        deletion_of(member),
        times=20,
    )


def test_two_owners_who_accept_each_others_invitations(settings: Any) -> None:
    settings.PLANS = True
    owners = [owner_of(somebody()) for _ in range(2)]
    for owner in owners:
        Team.objects.filter(owner_id=owner.id).update(seats_given=5)
    links = [members.link_of(members.invite(owner_id=each.id, email="x@crew.example")) for each in owners]
    tokens = [link.partition("=")[2] for link in links]
    assert not conflicts_of(
        lambda: members.accept(user_id=owners[0].id, token=tokens[1]),
        lambda: members.accept(user_id=owners[1].id, token=tokens[0]),
    )


def test_staff_who_deactivate_two_accounts_keep_nobody_from_one_while_they_wait_for_the_other() -> None:
    member = somebody()
    owner = owner_of(member)
    both = User.objects.filter(pk__in=[owner.id, member.id]).order_by("created_at")

    def deactivate() -> None:
        services.deactivate(users=both)
        connections.close_all()

    thread = threading.Thread(target=deactivate)
    with transaction.atomic():
        seats.lock(owner.id)
        thread.start()
        give_up_at = time.monotonic() + 30
        while User.objects.filter(pk=member.id, is_active=True).exists():
            assert time.monotonic() < give_up_at
            time.sleep(0.02)
        assert seats.lock_members([member.id]) == {member.id}
    thread.join()
    assert not both.filter(is_active=True).exists()
