"""Demo of `make run`: an agent reads a small workspace, and its records arrive on a device.

It uses only what any client can use: REST and the device socket. The device is the headless one.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeVar

from adiuva.embedded import demo_report, sample_workspace
from adiuva.embedded.processes import StackError
from adiuva.embedded.rest_client import ApiClient, ApiError
from adiuva.embedded.state_folder import StateFolder
from adiuva.embedded.terminal import Terminal

DEMO_EMAIL = "demo@adiuva.example"
AGENT_NAME = "Sample workspace"
_POLL_INTERVAL_S = 0.15
_DEVICE_TIMEOUT_S = 60.0
_RUN_TIMEOUT_S = 600.0
_T = TypeVar("_T")
_PROBLEMS_SHOWN = 5
_FINAL_STATES = {"success", "partial", "error", "cancelled", "timeout"}
_PROMPT = (
    "These are the working papers of a freelance designer: mails, meeting notes and plans. Find what I have "
    "promised or been asked to do, with its date and who is to do it; the dates that matter to a project; and "
    "decisions worth a note. Leave out what is done already and what is only talk."
)


class DemoStopped(Exception):
    """Error for a demo that ends because the stack is stopping."""


@dataclass
class Demo:
    """Demo of the stack. `device` gives the command that runs as the device; `show` runs in its own thread."""

    rest: ApiClient
    state: StateFolder
    terminal: Terminal
    password: str
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def documents(self) -> Path:
        return self.state.folder / "demo" / "documents"

    @property
    def workspace(self) -> Path:
        return self.state.folder / "demo" / "device"

    def _write_sample(self) -> None:
        """Write the sample on the first start, with dates about today. After that the files are the user's."""
        if self.documents.exists():
            return
        self.documents.parent.mkdir(mode=0o700, exist_ok=True)
        new = self.documents.with_name("documents.new")
        shutil.rmtree(new, ignore_errors=True)
        try:
            sample_workspace.write(new, date.today())  # noqa: DTZ011  # the day of whoever starts it
            new.rename(self.documents)
        except OSError as error:
            raise StackError(f"the sample workspace cannot be written to {self.documents}: {error}") from None

    def device(self) -> list[str]:
        """Prepare the folders; return Python's arguments for the headless device that uses them."""
        self._write_sample()
        self.workspace.mkdir(mode=0o700, exist_ok=True)
        arguments = ["manage.py", "device", "--server", self.rest.base, "--email", DEMO_EMAIL]
        arguments += ["--workspace", str(self.workspace), "--grant", str(self.documents)]
        arguments += ["--seed", str(sample_workspace.SEED), "--name", "Sample device"]
        return arguments

    def show(self) -> bool:
        """Run the agent and print the records on the device. Returns False when the stack is stopping.

        A failure is printed as one line, and the stack stays up.
        """
        try:
            self.rest.sign_in(DEMO_EMAIL, self.password)
            device_id = self._device()
            run = self._run(self._agent(device_id))
            self.terminal.say(_summary(run))
            for problem in run["errors"][:_PROBLEMS_SHOWN]:
                self.terminal.say(f"  {problem}")
            began = datetime.fromisoformat(run["created_at"])
            demo_report.print_report(
                self.workspace / "data.sqlite3", self.terminal, since_ms=int(began.timestamp() * 1000)
            )
        except DemoStopped:
            return False
        except (StackError, KeyError, ValueError, sqlite3.Error) as error:
            if self.stopping.is_set():
                return False
            self.terminal.end_bar()
            line = f"The demo stopped, but the servers are running: {error}; logs are in {self.state.folder / 'logs'}."
            self.terminal.say(self.terminal.styled(line, "red"))
        return True

    def _device(self) -> str:
        """Return the id of our device, once it is online."""

        def online() -> str | None:
            devices = self.rest.get("/devices?limit=100")
            return next((found["device_id"] for found in devices if found["online"]), None)

        self.terminal.bar("Device", 0, 0, "connecting")
        log = self.state.log("device")
        return self._until(online, _DEVICE_TIMEOUT_S, f"the device did not come online; see {log}")

    def _agent(self, device_id: str) -> str:
        """Return the id of the demo's agent, which is created on the first start."""
        agents = self.rest.get("/agents/local?limit=100")
        for agent in agents:
            if agent["name"] == AGENT_NAME and agent["device_id"] == device_id:
                return str(agent["id"])
        made = self.rest.post(
            "/agents/local",
            {
                "name": AGENT_NAME,
                "device_id": device_id,
                "directory_paths": [str(self.documents)],
                "data_types": ["tasks", "timelines", "notes", "projects"],
                "prompt_template": _PROMPT,
                "file_extensions": [".md", ".txt", ".eml", ".html", ".csv"],
                "schedule_cron": "0 8 * * 1-5",
            },
        )
        return str(made["id"])

    def _run(self, agent_id: str) -> dict[str, Any]:
        """Run the agent, with a bar, and return the run when it has ended."""
        try:
            run_id = self.rest.post(f"/agents/{agent_id}/run")["run_id"]
        except ApiError as error:
            if error.status != 409 or "run_id" not in error.answer:
                raise
            run_id = error.answer["run_id"]  # its schedule has started a run already

        def ended() -> dict[str, Any] | None:
            run: dict[str, Any] = self.rest.get(f"/agents/runs/{run_id}")
            self.terminal.bar(f"Agent “{AGENT_NAME}”", run["files_done"], run["files_seen"], _progress(run))
            return run if run["state"] in _FINAL_STATES else None

        log = self.state.log("worker-runs")
        return self._until(ended, _RUN_TIMEOUT_S, f"the run did not end in {_RUN_TIMEOUT_S:.0f} s; see {log}")

    def _until(self, found: Callable[[], _T | None], within_s: float, otherwise: str) -> _T:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if (value := found()) is not None:
                self.terminal.end_bar()
                return value
            if self.stopping.wait(_POLL_INTERVAL_S):
                raise DemoStopped
        raise StackError(otherwise)


def _progress(run: dict[str, Any]) -> str:
    if run["state"] == "waiting_device":
        return "waiting for the device"
    if not run["files_seen"]:
        return run["state"] if run["state"] in _FINAL_STATES else "looking at the files"
    return f"{run['files_done']} of {run['files_seen']} files, {_records(run)}"


def _records(run: dict[str, Any]) -> str:
    made = run["items_created"]
    return f"{made} record" if made == 1 else f"{made} records"


def _summary(run: dict[str, Any]) -> str:
    files, read, made = run["files_seen"], run["items_processed"], run["items_created"]
    if run["state"] in {"error", "cancelled", "timeout"}:
        return f"The run ended with “{run['state']}” after {read} of {files} files and {_records(run)}."
    if run["state"] == "success" and not read and not made:
        return f"All {files} files are as the last run left them: nothing was uploaded and nothing made."
    some = "" if run["state"] == "success" else ", with problems"
    seconds = datetime.fromisoformat(run["completed_at"]) - datetime.fromisoformat(run["started_at"])
    return f"Read {read} of {files} files and found {_records(run)} in {seconds.total_seconds():.1f} s{some}."
