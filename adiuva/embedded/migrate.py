"""The databases as the stack needs them: migrated, keys apart, with the demo account if one is asked for.

A process of its own, because Django reads its settings once and the stack's supervisor started before the database:
`python -m adiuva.embedded.migrate`, with the account in DEMO_EMAIL and DEMO_PASSWORD.
"""

from __future__ import annotations

import os
import sys

DEMO_EMAIL, DEMO_PASSWORD = "ADIUVA_DEMO_EMAIL", "ADIUVA_DEMO_PASSWORD"


def migrate() -> None:
    from django.core.management import call_command
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
    call_command("migrate", interactive=False, verbosity=1)


def separate_keys() -> None:
    """Data of a time when the keys were with it is taken over."""
    from adiuva.accounts import keys

    keys.move_to_own_database()


def make_demo_account(email: str, password: str) -> None:
    """Staff and superuser, so that it opens the admin. One that exists keeps what its owner changed."""
    from adiuva.accounts.models import User

    if not User.objects.filter(email=email).exists():
        User.objects.create_superuser(email, password)


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adiuva.settings")
    import django
    from django.core.exceptions import ImproperlyConfigured
    from django.db import Error

    try:
        django.setup()
        migrate()
        separate_keys()
        if os.environ.get(DEMO_EMAIL):
            make_demo_account(os.environ[DEMO_EMAIL], os.environ[DEMO_PASSWORD])
    except (Error, ImproperlyConfigured) as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
