from django.apps import AppConfig


class AdiuvaConfig(AppConfig):
    name = "adiuva"
    label = "adiuva"
    verbose_name = "Adiuva"

    def ready(self) -> None:
        # These imports register the system checks and make our Celery application the default one.
        from corsheaders.signals import check_request_enabled

        from adiuva import celery, checks  # noqa: F401
        from adiuva.core import origins

        check_request_enabled.connect(origins.allows_cors)
