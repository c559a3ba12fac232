from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "adiuva.accounts"
    label = "accounts"
    verbose_name = "Accounts"

    def ready(self) -> None:
        from adiuva.accounts import browser_sessions  # noqa: F401  # connects its signals
