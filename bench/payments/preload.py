"""Makes the process from which those of the bench are forked ready to work, so that each of thousands starts quickly.

What is imported late, and what is computed with the first request, task and call to Stripe, is paid here once: without
it, a process spent nine tenths of its time on that.
"""

import gc
from contextlib import suppress
from typing import Any

import django
import kombu.transport.redis
import psycopg_pool  # noqa: F401
import stripe
from django.apps import apps

if not apps.ready:
    django.setup()

from adiuva.celery import app
from bench.payments import processes  # noqa: F401
from bench.payments.ways import Product, use_stripe_at
from billing import tasks
from billing.payments import stripe_api
from billing.payments.stripe_api import StripeAway

computed: list[Any] = []
for model in apps.get_models():
    meta: Any = model._meta
    computed += meta.related_objects, meta._reverse_one_to_one_field_names
app.finalize()
computed += app.amqp.Producer, kombu.transport.redis.Transport
for name in ("Customer", "Invoice", "Price", "Subscription", "SubscriptionSchedule"):
    getattr(stripe, name)
computed += stripe.checkout.Session, stripe.billing_portal.Session
assert tasks.sync_payments.name in app.tasks
use_stripe_at("http://127.0.0.1:9")  # where nobody listens
with suppress(StripeAway):
    stripe_api.get_subscription("sub_x")
Product().deliver({}, secret="another's")
gc.collect()
gc.freeze()  # shared with the forks
