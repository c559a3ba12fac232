from django.apps import AppConfig


class DevicesConfig(AppConfig):
    name = "adiuva.devices"
    label = "devices"
