"""State folder: everything `make run` keeps. One stack at a time uses it.

`secrets.json` is written once, completely or not at all; `env` says how to reach the servers while they are up. Nothing
in the folder is ever deleted to repair it: an error says what does not fit and what to do.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from adiuva.embedded.processes import StackError

_MAX_LOG_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True, repr=False)
class Secrets:
    """Keys and passwords of a state folder's servers and accounts."""

    secret_key: str
    keys: str
    database_password: str
    redis_password: str
    demo_password: str

    @classmethod
    def new(cls) -> Secrets:
        return cls(
            secret_key=secrets.token_urlsafe(48),
            keys=f"k1:{base64.b64encode(secrets.token_bytes(32)).decode()}",
            database_password=secrets.token_hex(24),
            redis_password=secrets.token_hex(24),
            demo_password=secrets.token_urlsafe(12),
        )

    @classmethod
    def parse(cls, text: str) -> Secrets:
        """Parse the secrets. Raises ValueError if one is missing."""
        found = json.loads(text)
        names = {field.name for field in fields(cls)}
        if not isinstance(found, dict) or not all(isinstance(found.get(n), str) and found[n] for n in names):
            raise ValueError("a secret is missing")
        return cls(**{name: found[name] for name in names})


class StateFolder:
    """State folder that is locked until `release`, or until this process and its children have ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = -1
        try:
            self._make()
            self.lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StackError(
                f"the state folder {folder} cannot be used ({error.strerror}): let this user own it, "
                "or choose another with ADIUVA_STATE_DIR"
            ) from None

    def _make(self) -> None:
        if self.folder.is_dir():
            return
        self.folder.mkdir(parents=True)
        # If we are root, PostgreSQL is another user and must be able to pass through to its own folder.
        self.folder.chmod(0o711 if os.geteuid() == 0 else 0o700)

    def acquire(self, address: str, *, within_s: float = 20.0) -> None:
        """Take the lock and write our pid and address into it.

        The children of a killed supervisor hold the lock while they end; this waits for them. Raises StackError with
        the pid and address of another stack that holds it.
        """
        deadline = time.monotonic() + within_s
        while not self._lock():
            pid, _, where = os.pread(self.lock, 200, 0).decode(errors="replace").strip().partition(" ")
            if pid.isdigit() and is_process(int(pid)):
                raise StackError(
                    f"Adiuva is up already on {self.folder}: process {pid}, at {where}; end it first "
                    f"(Ctrl-C, or kill {pid}), or choose another folder with ADIUVA_STATE_DIR"
                )
            if time.monotonic() > deadline:
                raise StackError(f"servers of an earlier start (process {pid}) still use {self.folder}")
            time.sleep(0.05)
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, f"{os.getpid()} {address}\n".encode(), 0)

    def _lock(self) -> bool:
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        os.close(self.lock)

    def secrets(self) -> Secrets:
        """Return the folder's secrets; new ones for a new folder. StackError if the file is missing or unreadable."""
        path = self.folder / "secrets.json"
        try:
            return Secrets.parse(path.read_text())
        except FileNotFoundError:
            pass
        except (OSError, ValueError):
            raise StackError(
                f"the secrets in {path} are unreadable or incomplete: bring back a copy of the file, or move "
                f"{self.folder} away to start anew; nothing was changed"
            ) from None
        if (self.folder / "postgres").exists():
            raise StackError(
                f"{path} is missing, and without it the data beside it cannot be opened: bring back a copy "
                f"of the file, or move {self.folder} away to start anew; nothing was changed"
            )
        made = Secrets.new()
        self.write("secrets.json", json.dumps(asdict(made), indent=2) + "\n")
        return made

    def write(self, name: str, text: str) -> None:
        """Write a file that only this user can read, completely or not at all."""
        new = self.folder / f".{name}.new"
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.folder / name)

    def plugin_key(self) -> str:
        """Return the key that signs plugins here, as `id:key`: made on the first start, and kept."""
        if not self.remembered("plugin-key"):
            self.remember("plugin-key", f"here:{base64.b64encode(secrets.token_bytes(32)).decode()}")
        return self.remembered("plugin-key")

    def remember(self, name: str, text: str) -> None:
        """Write down a fact about this folder, such as which migrations its database has."""
        self.write(name, f"{text}\n")

    def remembered(self, name: str) -> str:
        """Return the fact that was last written down; empty if there is none, or if it cannot be read."""
        try:
            return (self.folder / name).read_text().strip()
        except (OSError, ValueError):
            return ""

    def publish(self, values: Mapping[str, str]) -> None:
        """Let `python manage.py …` in another terminal find the servers."""
        lines = ["# Written by `make run` while its servers are up."]
        for name, value in values.items():
            quoted = value.replace("\\", "\\\\").replace("'", "\\'")
            lines.append(f"{name}='{quoted}'")
        self.write("env", "\n".join([*lines, ""]))

    def withdraw(self) -> None:
        (self.folder / "env").unlink(missing_ok=True)

    def log(self, name: str) -> Path:
        """Return the path of a program's log file. A file that has grown large is renamed to `.old`."""
        folder = self.folder / "logs"
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{name}.log"
        if path.exists() and path.stat().st_size > _MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.old"))
        return path


def is_process(pid: int) -> bool:
    """Return whether a process with this id exists, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
