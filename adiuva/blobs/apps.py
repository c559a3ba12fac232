from django.apps import AppConfig


class BlobsConfig(AppConfig):
    name = "adiuva.blobs"
    label = "blobs"
    verbose_name = "Stored objects"
