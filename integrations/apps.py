from typing import Any

from django.apps import AppConfig
from django.db.models.signals import pre_delete


class IntegrationsConfig(AppConfig):
    name = "integrations"

    def ready(self) -> None:
        from adiuva.accounts.models import UserKey

        # The last moment at which a user's tokens can be unsealed.
        pre_delete.connect(
            _revoke_permissions, sender=UserKey, dispatch_uid="integrations.revoke_permissions"
        )
        from billing import entitlements
        from integrations import connections

        entitlements.count_with("providers", connections.count_providers)


def _revoke_permissions(instance: Any, **_: Any) -> None:
    from integrations import connections

    connections.revoke_for_deleted_user(instance.pk)
