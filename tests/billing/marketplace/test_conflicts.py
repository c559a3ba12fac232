"""Work of pollers that PostgreSQL aborts in favour of another transaction."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import IntegrityError, connection, connections, transaction
from django.db.models import QuerySet
from django.utils.timezone import now
from structlog.testing import capture_logs

from billing import tasks
from billing.marketplace import payouts, purchase_sync
from billing.models import Developer, Event, PluginPurchase, StripeJob
from billing.payments import stripe_jobs, webhooks
from billing.payments.copies import Copies
from billing.payments.stripe_api import StripeAway
from tests.billing.marketplace.shops import Shop, is_exact, payments_of, work
from tests.billing.payers import until
from tests.fakes.stripe import Stripe


@pytest.fixture
def shop(stripe: Stripe) -> Shop:
    return Shop(stripe)


@contextmanager
def a_rival(first: QuerySet[Any], then: QuerySet[Any]) -> Iterator[Callable[[], None]]:
    """Another transaction, which locks `first`, and once somebody who has `then` waits for it, `then` as well.

    It is who waits that PostgreSQL ends, after a second: this thread, unless another process came before it. `first` is
    locked when what is yielded returns.
    """
    has_first, is_over = threading.Event(), threading.Event()

    def contend() -> None:
        try:
            with transaction.atomic():
                with connection.cursor() as cursor:
                    cursor.execute("SET LOCAL deadlock_timeout = '10s'")
                list(first.select_for_update(no_key=True))
                has_first.set()
                while not is_over.is_set() and not _is_waited_for():
                    time.sleep(0.01)
                list(then.select_for_update(no_key=True))
                transaction.set_rollback(True)
        finally:
            connections.close_all()

    thread = threading.Thread(target=contend)

    def begin() -> None:
        thread.start()
        assert has_first.wait(30)

    try:
        yield begin
    finally:
        is_over.set()
        thread.join(60)
        assert not thread.is_alive()


def _is_waited_for() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND pg_backend_pid() = ANY(pg_blocking_pids(pid)))"
        )
        return bool(cursor.fetchone()[0])


def rows_of(sale: PluginPurchase) -> tuple[QuerySet[PluginPurchase], QuerySet[Developer]]:
    return PluginPurchase.objects.filter(pk=sale.pk), Developer.objects.filter(pk=sale.developer_id)


def test_a_copy_is_fetched_again_in_a_later_round(shop: Shop) -> None:
    sale = shop.sell()
    row, developer = rows_of(sale)
    shop.stripe.do(lambda world: world.get("charge", sale.charge).update(amount_refunded=400))
    row.update(wanted=sale.wanted + 1)  # nobody else asks for it, or has it to settle
    with a_rival(row, developer) as begin, capture_logs() as logs:

        def get(claimed: PluginPurchase) -> Any:
            answer = purchase_sync._get(claimed)
            begin()  # after the claim, which leaves out what others hold
            return answer

        copies: Any = Copies(PluginPurchase, get, purchase_sync._write)
        with pytest.raises(StripeAway):
            copies.fetch_free(row)
    assert "stripe.copy_not_written" in [each["event"] for each in logs]
    sale.refresh_from_db()
    assert (sale.refunded_cents, sale.lease_until, sale.wanted - sale.synced) == (0, None, 1)
    work(shop.developer)
    sale.refresh_from_db()
    assert (sale.refunded_cents, sale.due_cents, sale.wanted) == (400, 420, sale.synced)


def test_a_transfer_that_was_sent_is_written_in_a_later_round_and_sent_once(shop: Shop) -> None:
    sales: list[PluginPurchase] = []
    put_off: list[Any] = []

    def a_round() -> None:
        sales.append(shop.sell())
        rows_of(sales[-1])[0].update(transfer_after=now())
        payouts.settle(shop.developer.pk)
        job = StripeJob.objects.get(kind="transfer", subject=str(sales[-1].payments.get().pk))
        with a_rival(*rows_of(sales[-1])) as begin, capture_logs() as logs:
            begin()
            state = stripe_jobs.carry_out(job.pk).state
        if any(each["event"] == "stripe.job_not_written" for each in logs):
            put_off.append(state)

    until(lambda: put_off, a_round)  # a worker of other tests may have been in between
    assert put_off == [StripeJob.State.UNKNOWN]
    assert shop.at_stripe() == 700 * len(sales) and payments_of(sales[-1]) == [("transfer", 700, "open")]
    work(shop.developer)
    assert shop.at_stripe() == 700 * len(sales) and payments_of(sales[-1]) == [("transfer", 700, "done")]
    is_exact(shop.developer)


def test_events_stay_new_and_the_rest_of_the_round_is_done(shop: Shop) -> None:
    sale = shop.sell()
    shop.stripe.do(lambda world: world.get("charge", sale.charge).update(amount_refunded=400))
    row, developer = rows_of(sale)
    put_off: list[Any] = []
    events: list[Event] = []

    def a_round() -> None:
        event = Event(stripe_id=f"evt_{uuid.uuid4().hex}", type="charge.refunded", object_id=shop.account)
        event.payment_intent, event.livemode, event.created = sale.payment_intent or "", False, now()
        with a_rival(row, developer) as begin, capture_logs() as logs:
            begin()
            event.save(force_insert=True)
            tasks.sync_payments()
        events.append(event)
        put_off.extend(each["step"] for each in logs if each["event"] == "payments.step_put_off")

    until(
        lambda: put_off, a_round
    )  # a worker of other tests may take the event, and be the one that is put off
    assert put_off == [webhooks.__name__]
    work(shop.developer)
    sale.refresh_from_db()
    assert sale.refunded_cents == 400
    mine = Event.objects.filter(pk__in=[each.pk for each in events])
    assert set(mine.values_list("state", flat=True)) == {Event.State.DONE}


def test_a_step_that_fails_is_seen_and_the_steps_after_it_are_done(
    stripe: Stripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise IntegrityError("x")

    done: list[str] = []
    monkeypatch.setattr(tasks.purchase_sync, "run", fail)
    monkeypatch.setattr(tasks.connected_accounts, "run", lambda: done.append("accounts"))
    with pytest.raises(IntegrityError), capture_logs() as logs:
        tasks.sync_payments()
    assert done == ["accounts"]
    assert [each["frames"] for each in logs if each["event"] == "payments.step_failed"]


def test_a_developer_who_is_not_settled_is_settled_in_the_next_round(shop: Shop) -> None:
    sales: list[PluginPurchase] = []
    put_off: list[Any] = []

    def a_round() -> None:
        sales.append(shop.sell())
        row, developer = rows_of(sales[-1])
        row.update(transfer_after=now())
        with a_rival(row, developer) as begin, capture_logs() as logs:
            begin()
            payouts.sweep()
        put_off.extend(each for each in logs if each["event"] == "developer.not_settled")

    until(lambda: put_off, a_round)  # as above
    until(lambda: all(map(payments_of, sales)), payouts.sweep)
    assert [[kind for kind, _, _ in payments_of(sale)] for sale in sales] == [["transfer"]] * len(sales)
