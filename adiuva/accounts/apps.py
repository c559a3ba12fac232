from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "adiuva.accounts"
    label = "accounts"
    verbose_name = "Accounts"
