"""Headless device as a program: its command line, its output, and its end by a signal."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from adiuva.devices.client.account import Account, ServerAddress, ServerUnavailable
from adiuva.devices.client.backup import Backups
from adiuva.devices.client.config import DeviceConfig
from adiuva.devices.client.console import Console
from adiuva.devices.client.device import Device
from adiuva.devices.client.errors import BadUse, BadWorkspace, DeviceError
from adiuva.devices.client.events import Applied, Connected, Disconnected, Event, RunEnded, RunStarted

DESCRIPTION = (
    "Run this machine as a device: keep a user's data in a folder here, and let the user's agents read the granted "
    "folders. The password comes from ADIUVA_DEVICE_PASSWORD, or is asked for; after the first sign-in the "
    "workspace holds a session, and no password is needed. At a terminal it takes commands, such as help. Ctrl-C "
    "stops it."
)
_SHOWN_PROBLEMS = 10
_SHORTEST_PASSPHRASE = 12
_SUMMARY_DELAY_S = 1.0  # records arrive one by one; their counts are printed together


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", required=True, metavar="URL", help="https://adiuva.example.com")
    parser.add_argument(
        "--email", help="e-mail of the account; not needed while the workspace holds a session"
    )
    parser.add_argument(
        "--workspace", required=True, type=Path, metavar="FOLDER", help="where the data is kept"
    )
    parser.add_argument(
        "--grant",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="a folder whose files the user's agents may read; may be given several times",
    )
    parser.add_argument(
        "--protocol", type=int, choices=(1, 2), default=2, help="version of the socket's protocol (2)"
    )
    parser.add_argument("--device-id", help="use this id instead of the workspace's")
    parser.add_argument("--name", help="name of the device in lists (this machine's name)")
    parser.add_argument(
        "--seed", type=Path, metavar="FILE", help="JSON file of rows for a workspace that has none yet"
    )

    once = parser.add_mutually_exclusive_group()
    once.add_argument(
        "--backup",
        action="store_true",
        help="seal the workspace's data with a passphrase (ADIUVA_DEVICE_PASSPHRASE, or asked for), store it at "
        "the server unless nothing has changed, and end. The server cannot read it, and nobody can restore it "
        "without the passphrase. Beside a running device sign in by password (--email)",
    )
    once.add_argument(
        "--restore",
        action="store_true",
        help="bring the newest backup of the account into a workspace that has no data, and end",
    )
    parser.add_argument(
        "--console",
        action="store_true",
        default=sys.stdin.isatty(),
        help="take commands from the standard input also where that is no terminal",
    )


def main(arguments: Sequence[str]) -> int:
    """Run until a signal; return the exit code."""
    parser = argparse.ArgumentParser(prog="manage.py device", description=DESCRIPTION)
    add_arguments(parser)
    try:
        Program(partial(print, flush=True)).run(vars(parser.parse_args(arguments)))
    except DeviceError as error:
        print(error.message, file=sys.stderr)  # noqa: T201
        return 1
    return 0


class Program:
    """Run of the command. It says each line with `write`."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._applied = self._refused = 0
        self._typed = b""  # the beginning of a line that is not complete

    def run(self, options: dict[str, Any]) -> None:
        """Run the command. `options` are those of the command line. Raises DeviceError."""
        once = options["backup"] or options["restore"]
        try:
            asyncio.run(self._back_up_or_restore(options) if once else self._run(options))
        except ServerUnavailable as error:
            raise DeviceError(f"{error}: try again later") from error
        if not once:
            self._say("Stopped.")

    async def _back_up_or_restore(self, options: dict[str, Any]) -> None:
        folder, is_new = options["workspace"], options["backup"]
        folder.mkdir(parents=True, exist_ok=True)
        address, password = ServerAddress.parse(options["server"]), _password(folder, options["email"])
        account = Account(
            address,
            email=options["email"],
            password=password,
            code=os.environ.get("ADIUVA_DEVICE_CODE"),
            # A device that runs here renews the session of the workspace, so this command signs in with one of its own.
            file=None if password else folder / "session.json",
        )
        backups, passphrase = Backups(address, account, folder), _passphrase(is_new=is_new)
        if is_new:
            made = await backups.make(passphrase)
            if made is None:
                self._say("Nothing has changed since the last backup.")
            else:
                what = "bytes" if made.is_whole else "bytes of changes"
                self._say(
                    f"Backed up: {made.size} {what}, sealed. Without the passphrase nobody can restore it."
                )
        else:
            made_at = datetime.fromtimestamp(await backups.restore(passphrase) / 1000).astimezone()
            self._say(f"Restored the backup of {made_at:%Y-%m-%d %H:%M:%S}.")

    async def _run(self, options: dict[str, Any]) -> None:
        for grant in options["grant"]:
            if not grant.is_dir():
                raise BadWorkspace(f"The granted folder {grant} is not there.")
        config = DeviceConfig(
            server=options["server"],
            workspace=options["workspace"],
            grants=options["grant"],
            email=options["email"],
            password=_password(options["workspace"], options["email"]),
            code=os.environ.get("ADIUVA_DEVICE_CODE"),
            protocol=options["protocol"],
            device_id=options["device_id"],
            name=options["name"],
        )
        device = Device(config, on_event=self._report)
        if options["seed"] and (count := device.store.seed(_seed(options["seed"]))):
            self._say(f"Put {count} rows into the new workspace.")
        loop = asyncio.get_running_loop()
        for end in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(end, device.stop)
        if options["console"]:
            console = Console(device.store)
            try:
                loop.add_reader(0, self._take_lines, console, device)
            except PermissionError:  # a file cannot be waited for
                raise BadUse("--console needs a terminal or a pipe") from None
            self._write("Suggestions of your agents: list. All commands: help.")
        self._say(f"Device {device.device_id}, granted folders: {len(options['grant'])}.")
        try:
            await device.run()
        finally:
            if options["console"]:
                loop.remove_reader(0)
            if self._applied:
                self._report_applied()

    def _take_lines(self, console: Console, device: Device) -> None:
        """Carry out the typed lines. It is short work on the store that the device's own calls wait for too."""
        given = os.read(0, 65_536)
        if not given:  # the input is closed; the device goes on
            asyncio.get_running_loop().remove_reader(0)
        *lines, self._typed = (self._typed + given).split(b"\n")
        for line in lines:
            answer = console.answer(line.decode(errors="replace"))
            if answer is None:
                device.stop()
                return
            if answer:
                self._write(answer)

    def _report(self, event: Event) -> None:
        match event:
            case Connected():
                self._say(f"Connected (protocol {event.protocol}).")
            case Disconnected(retry_in=None):
                pass  # the last line already says it
            case Disconnected():
                self._say(f"Not connected: {event.reason}; reconnecting in {event.retry_in:.1f} s.")
            case RunStarted():
                folders = "1 folder" if event.folders == 1 else f"{event.folders} folders"
                self._say(f"Run {event.run_id} started over {folders}.")
            case RunEnded(completed=False):
                self._say(f"Run {event.run_id} was broken off: {event.sent} files sent.")
            case RunEnded():
                self._say(
                    f"Run {event.run_id}: {event.found} files found, {event.sent} sent, "
                    f"{len(event.problems)} not read."
                )
                for problem in event.problems[:_SHOWN_PROBLEMS]:
                    self._say(f"  {problem['path']}: {problem['reason']}")
            case Applied() if event.writes:
                if not self._applied:
                    asyncio.get_running_loop().call_later(_SUMMARY_DELAY_S, self._report_applied)
                self._applied += event.writes
                self._refused += event.refused

    def _report_applied(self) -> None:
        refused = f", {self._refused} of them refused" if self._refused else ""
        self._say(f"Records applied: {self._applied}{refused}.")
        self._applied = self._refused = 0

    def _say(self, line: str) -> None:
        self._write(f"{datetime.now().astimezone():%H:%M:%S}  {line}")


def _password(workspace: Path, email: str | None) -> str | None:
    given = os.environ.get("ADIUVA_DEVICE_PASSWORD")
    if given or email is None or (workspace / "session.json").exists() or not sys.stdin.isatty():
        return given
    return getpass.getpass("Password: ")


def _passphrase(*, is_new: bool) -> str:
    """Ask for the backup's passphrase; twice for a new one, because a mistake in it could not be mended."""
    given = os.environ.get("ADIUVA_DEVICE_PASSPHRASE")
    if not given and sys.stdin.isatty():
        given = getpass.getpass("Passphrase of the backup: ")
        if is_new and given != getpass.getpass("Once more: "):
            raise BadUse("These were two different passphrases.")
    if not given:
        raise BadUse("A passphrase is required: ADIUVA_DEVICE_PASSPHRASE, or a terminal.")
    if is_new and len(given) < _SHORTEST_PASSPHRASE:
        raise BadUse(f"A passphrase has at least {_SHORTEST_PASSPHRASE} characters.")
    return given


def _seed(file: Path) -> dict[str, Any]:
    try:
        rows = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise BadWorkspace(f"The seed {file} cannot be read ({error}).") from error
    if not isinstance(rows, dict):
        raise BadWorkspace(f"The seed {file} must be an object of tables.")
    return rows
