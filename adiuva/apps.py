from django.apps import AppConfig


class AdiuvaConfig(AppConfig):
    name = "adiuva"
    label = "adiuva"
    verbose_name = "Adiuva"

    def ready(self) -> None:
        from adiuva import celery, checks  # noqa: F401  # checks register themselves; tasks find their broker
