from django.apps import AppConfig


class AdiuvaConfig(AppConfig):
    name = "adiuva"
    label = "adiuva"
    verbose_name = "Adiuva"

    def ready(self) -> None:
        # Importing them registers the system checks and makes our Celery application the default one.
        from adiuva import celery, checks  # noqa: F401
