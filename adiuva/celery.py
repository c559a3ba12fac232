"""Celery application. Task arguments are ids only, because more people and tools can read a queue than the database."""

from __future__ import annotations

import os

from celery import Celery, signals

from adiuva.core import celery_beat_thread, celery_heartbeat, garbage

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adiuva.settings")
garbage.collect_rarely_while_loading()


def _refuse_unsafe_start(**_: object) -> None:
    # Celery runs Django's system checks too, but starts even if they fail.
    from adiuva.checks import refuse_unsafe_start

    refuse_unsafe_start()


app = Celery("adiuva")
app.set_default()  # also for other threads, where Celery knows no current app
app.on_configure.connect(_refuse_unsafe_start)
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
celery_beat_thread.connect(app)
celery_heartbeat.connect(app)


@signals.worker_init.connect
def _start_worker_metrics_and_traces(**_: object) -> None:
    from adiuva.core import metrics, tracing

    metrics.serve()
    tracing.start("worker")


@signals.worker_ready.connect
def _tune_garbage_collector(**_: object) -> None:
    garbage.tune()


@signals.beat_init.connect
def _serve_beat_metrics(**_: object) -> None:
    from adiuva.core import metrics

    metrics.serve(with_store_facts=True)


@signals.setup_logging.connect
def _keep_our_logging(**_: object) -> None:
    """Keep Django's LOGGING. Without a receiver of this signal, Celery sets the root logger to WARNING."""
