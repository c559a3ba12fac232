from django.apps import AppConfig


class ExportConfig(AppConfig):
    name = "adiuva.export"
    label = "export"
    verbose_name = "Account exports"
