from typing import Any
from uuid import UUID

from django.apps import AppConfig
from django.conf import settings
from django.db.models.signals import post_save

from adiuva.core import readiness
from integrations.signals import needs_reauth, reconnected


class AgentsConfig(AppConfig):
    name = "agents"

    def ready(self) -> None:
        post_save.connect(_user_saved, sender=settings.AUTH_USER_MODEL, dispatch_uid="agents.user_saved")
        needs_reauth.connect(_needs_reauth, dispatch_uid="agents.needs_reauth")
        reconnected.connect(_reconnected, dispatch_uid="agents.reconnected")
        readiness.register("runs", _backlog)


def _user_saved(instance: Any, created: bool, raw: bool = False, **_: Any) -> None:
    from agents import schedules

    if not created and not raw:
        schedules.reschedule_for_user(user_id=instance.pk)


def _needs_reauth(connection_id: UUID, **_: Any) -> None:
    from agents import runs

    runs.enqueue_reauth_notice(connection_id)


def _reconnected(connection_id: UUID, **_: Any) -> None:
    from agents import schedules

    schedules.connection_restored(connection_id=connection_id)


def _backlog() -> dict[str, float]:
    from agents import run_queue

    found = run_queue.backlog()
    return {"queued": found.runs, "oldest_queued_s": round(found.oldest_s, 1)}
