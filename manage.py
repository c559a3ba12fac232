#!/usr/bin/env python
"""Django's command line, and Adiuva's: `up`, `device`, `protocol`."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adiuva.settings")
    if sys.argv[1:2] == ["up"]:  # it starts the servers that Django's settings ask for
        from adiuva.embedded.up import main as up

        sys.exit(up(sys.argv[2:]))

    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"Configuration: {error}")


if __name__ == "__main__":
    main()
