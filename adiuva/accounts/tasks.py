from importlib import import_module

from celery import shared_task
from django.conf import settings

from adiuva.accounts import keys, services


@shared_task(name="accounts.prune")
def prune() -> None:
    """Forget sessions that ended long ago, the admin's cookies that expired, and keys whose deletion was cut off."""
    services.delete_old_sessions()
    import_module(settings.SESSION_ENGINE).SessionStore.clear_expired()
    keys.finish_interrupted()
