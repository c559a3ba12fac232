"""The Celery application. Tasks carry ids only: a queue is read by more eyes than the database is."""

from __future__ import annotations

import os

from celery import Celery, signals

from adiuva.core import celery_heartbeat

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adiuva.settings")


def _refuse_unsafe_start(**_: object) -> None:
    # Before worker or beat touch anything; Celery runs Django's checks and ignores what they find.
    from adiuva.checks import refuse_unsafe_start

    refuse_unsafe_start()


app = Celery("adiuva")
app.on_configure.connect(_refuse_unsafe_start)
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
celery_heartbeat.connect(app)


@signals.setup_logging.connect
def _keep_our_logging(**_: object) -> None:
    """Django's LOGGING stands. Without a receiver Celery would put the root logger to WARNING."""
