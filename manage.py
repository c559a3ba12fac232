#!/usr/bin/env python
"""Django's command line with Adiuva's commands.

up             start everything on this machine (`make run`)
device         take part as a headless device
chat           talk to the assistant
protocol       write the socket's schema and types into docs/
settings_docs  write .env.example and docs/settings.md
backup         dump both databases while everything runs
restore        fill empty databases from such dumps
rotate_keys    wrap users' data keys with the newest key
reembed        compute the memory's vectors with the current model
"""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adiuva.settings")
    if sys.argv[1:2] == ["up"]:  # starts the servers that Django's settings need
        from adiuva.embedded.up import main as up

        sys.exit(up(sys.argv[2:]))
    if sys.argv[1:2] == ["device"]:  # needs no server, and runs on machines with little memory
        from adiuva.devices.client.program import main as device

        sys.exit(device(sys.argv[2:]))

    from adiuva.core import garbage

    garbage.collect_rarely_while_loading()
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"Configuration: {error}")


if __name__ == "__main__":
    main()
