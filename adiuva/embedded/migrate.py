"""Preparation of the stack's databases: migrations, separate keys, and the demo account if one is wanted.

It runs as a process of its own (`python -m adiuva.embedded.migrate`), because Django reads its settings once and the
stack's supervisor has started before the database. ADIUVA_DEMO_EMAIL and ADIUVA_DEMO_PASSWORD name the account. With
`--same-code`, an earlier start has prepared the same databases with the same code.
"""

from __future__ import annotations

import os
import sys
import time

from adiuva import env_variables as env
from adiuva.core import garbage


def migrate(*, same_code: bool = False) -> None:
    from django.core.management import call_command
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    if same_code:  # an older dump may have been restored since
        executor = MigrationExecutor(connection)
        if not executor.migration_plan(executor.loader.graph.leaf_nodes()):
            return  # `migrate` would compare all models with it, and make permissions and roles anew
    with connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
    call_command("migrate", interactive=False, verbosity=1)


def separate_keys() -> None:
    """Move data keys that are still in the main database into their own."""
    from adiuva.accounts import key_maintenance

    key_maintenance.move_to_own_database()


def make_demo_account(email: str, password: str) -> None:
    """Make the demo account a superuser, so that it can open the admin. An existing one keeps its owner's changes."""
    from adiuva.accounts.models import User

    if not User.objects.filter(email=email).exists():
        User.objects.create_superuser(email, password)


def make_prices() -> None:
    """Make the plans' prices at Stripe's double, which may still be starting."""
    from django.core.management import CommandError, call_command

    for attempt in range(20):
        try:
            call_command("set_up_stripe", verbosity=0)
            return
        except CommandError as error:
            if attempt == 19:
                sys.stderr.write(f"Nothing can be bought: {error}\n")
            time.sleep(0.25)


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adiuva.settings")
    import django
    from django.core.exceptions import ImproperlyConfigured
    from django.db import Error

    garbage.collect_rarely_while_loading()  # migrations make thousands of classes, too
    try:
        django.setup()
        migrate(same_code="--same-code" in sys.argv[1:])
        separate_keys()
        if email := env.DEMO_EMAIL.read():
            make_demo_account(email, env.DEMO_PASSWORD.read())
        if env.STRIPE_API.read():
            make_prices()
    except (Error, ImproperlyConfigured) as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
