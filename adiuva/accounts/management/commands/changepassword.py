"""Set an account's password, where no mail server can send its owner a link.

Takes the place of Django's command, which would store the whole account as it was before the prompts, and leave its
sessions signed in.
"""

from __future__ import annotations

import getpass
from argparse import ArgumentParser

from django.core.management.base import BaseCommand, CommandError

from adiuva.accounts import services
from adiuva.accounts.models import User
from adiuva.core.errors import AdiuvaError

_TRIES = 3


class Command(BaseCommand):
    help = "Set the password of an account, and sign out all of its sessions."
    requires_migrations_checks = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email", help="the address that the account signs in with")

    def handle(self, *, email: str, **options: object) -> None:
        try:
            user = User.objects.get_by_natural_key(email)
        except User.DoesNotExist:
            raise CommandError(f"there is no account with the address {email}") from None
        password = self._ask(user)
        try:
            services.set_password(user=user, password=password)
        except AdiuvaError as error:
            raise CommandError(f"nothing was changed: {error.message}") from None
        self.stdout.write(
            f"The password of {user.email} was changed, and all of its sessions are signed out."
        )

    def _ask(self, user: User) -> str:
        """Return a password that was typed twice and breaks no rule. Raises CommandError."""
        for _ in range(_TRIES):
            password = getpass.getpass("New password: ")
            if password != getpass.getpass("Once more: "):
                self.stderr.write("These are two different passwords. Try again.")
                continue
            try:
                services.check_password_rules(password, user, field="password")
            except AdiuvaError as error:
                self.stderr.write("\n".join((error.fields or {}).get("password", [error.message])))
            else:
                return password
        raise CommandError("nothing was changed: no password that can be used was typed")
