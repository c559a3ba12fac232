from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.db.models.signals import post_save


class AgentsConfig(AppConfig):
    name = "agents"

    def ready(self) -> None:
        post_save.connect(_user_saved, sender=settings.AUTH_USER_MODEL, dispatch_uid="agents follow users")


def _user_saved(instance: Any, created: bool, raw: bool = False, **_: Any) -> None:
    from agents import schedules

    if not created and not raw:
        schedules.follow_user(user_id=instance.pk)
