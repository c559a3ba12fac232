from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_delete


class VaultConfig(AppConfig):
    name = "adiuva.vault"
    label = "vault"
    verbose_name = "Vault"

    def ready(self) -> None:
        from adiuva.accounts.models import User
        from adiuva.object_store import garbage
        from adiuva.vault import object_references

        garbage.refers_with(object_references)
        post_delete.connect(_forget_owner, sender=User, dispatch_uid="vault.forget_owner")


def _forget_owner(instance: Any, **_: Any) -> None:
    from adiuva.vault import object_references

    object_references.forget_owner(instance.pk)
