from typing import Any

from django.apps import AppConfig
from django.db.models.signals import pre_delete


class IntegrationsConfig(AppConfig):
    name = "integrations"

    def ready(self) -> None:
        from adiuva.accounts.models import UserKey

        # The last moment at which a user's tokens can be opened.
        pre_delete.connect(_key_goes, sender=UserKey, dispatch_uid="permissions are taken back")


def _key_goes(instance: Any, **_: Any) -> None:
    from integrations import connections

    connections.revoke_for_deleted_user(instance.pk)
