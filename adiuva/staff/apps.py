from django.apps import AppConfig
from django.db.models.signals import post_migrate


class StaffConfig(AppConfig):
    name = "adiuva.staff"
    label = "staff"
    verbose_name = "Staff"

    def ready(self) -> None:
        from adiuva.staff import roles

        post_migrate.connect(roles.create_roles, sender=self, dispatch_uid="staff.create_roles")
