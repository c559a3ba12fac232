from importlib import import_module

from celery import shared_task
from django.conf import settings

from adiuva.accounts import verbs


@shared_task(name="accounts.prune")
def prune() -> None:
    """Forget sessions that ended long ago, and the admin's cookies that expired."""
    verbs.prune()
    import_module(settings.SESSION_ENGINE).SessionStore.clear_expired()
