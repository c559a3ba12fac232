"""`manage.py publish_examples`: list the example plugins on a server for trial."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from adiuva.accounts.models import User
from adiuva.core.env import BASE_DIR
from adiuva.core.errors import AdiuvaError
from billing.marketplace import examples
from billing.marketplace.manifest import BadManifest


class Command(BaseCommand):
    help = (
        "List the plugins of a folder, as `make run` does with examples/plugins: uploaded, checked, approved in the "
        "name of somebody of the staff, and signed. Not for production, where somebody reads them first."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("reviewer", help="the e-mail address of a staff account")
        parser.add_argument("--folder", type=Path, default=BASE_DIR / "examples" / "plugins")
        parser.add_argument(
            "--price", action="append", default=[], metavar="ID=CENTS", help="what one of them costs"
        )

    def handle(self, *_: Any, reviewer: str, folder: Path, price: list[str], **__: Any) -> None:
        if settings.PRODUCTION:
            raise CommandError(
                "In production plugins are published by their developers, and read by the staff."
            )
        staff = User.objects.filter(email=reviewer, is_staff=True).first()
        if staff is None:
            raise CommandError(f"There is no staff account {reviewer}.")
        prices = {name: int(cents) for name, _, cents in (each.partition("=") for each in price)}
        try:
            for version in examples.publish(folder, reviewer_id=staff.pk, prices=prices):
                self.stdout.write(f"{version.plugin.slug} {version.version}: {version.get_state_display()}")
        except AdiuvaError as error:
            raise CommandError(f"{error.message}.") from None
        except examples.NotChecked:
            raise CommandError("The checks of an example did not end in time.") from None
        except (BadManifest, OSError) as error:
            raise CommandError(f"{folder}: {error}") from None
