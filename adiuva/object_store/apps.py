from django.apps import AppConfig


class BlobsConfig(AppConfig):
    name = "adiuva.object_store"
    label = "object_store"
    verbose_name = "Stored objects"
