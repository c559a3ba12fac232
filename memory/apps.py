from typing import Any
from uuid import UUID

from django.apps import AppConfig

from adiuva.accounts.signals import closing


class MemoryConfig(AppConfig):
    name = "memory"

    def ready(self) -> None:
        closing.connect(_account_closing, dispatch_uid="memory.account_closing")


def _account_closing(user_id: UUID, **_: Any) -> None:
    """Delete exchanges and switch the memory off, so that nothing is read any more and no entry changes."""
    from memory.models import Exchange, Memory

    Exchange.objects.filter(user_id=user_id).delete()
    Memory.objects.filter(pk=user_id).update(enabled=False, consolidate_at=None)
