"""A run over 1,000 files, with a model that answers at once and one that takes 200 ms.

`python -m bench.agents_run [FILES]`. Web, worker, device and model are processes of their own. The run is started
through REST; its duration is read from its row. It is compared with a run over 40 files with one model call at a time.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from adiuva.embedded.ports import free_port
from adiuva.embedded.processes import Child
from bench.harness import BenchServers, bench_servers, cpu_s, listens, record, show

if TYPE_CHECKING:
    from agents.models import Run

FILES, FEW = 1_000, 40
LINES: Final = 3
LARGE_BYTES: Final = 20 * 1024
SLOW_S: Final = 0.2
PATIENCE_S: Final = 600


class UserWithDevice:
    """A user with a device, whose folders an agent reads."""

    def __init__(self, servers: BenchServers) -> None:
        from adiuva.accounts import services

        self.servers = servers
        self.folder = servers.folder / "documents"
        self.base = servers.web()
        email, password = f"{uuid4().hex}@example.com", "correct horse"
        self.token = services.register(email=email, password=password).access_token
        arguments = ["--server", self.base, "--email", email, "--workspace", str(servers.folder / "device")]
        self.folder.mkdir()
        self.device_process = servers.run(
            "device",
            "manage.py",
            "device",
            *arguments,
            "--grant",
            str(self.folder),
            ADIUVA_DEVICE_PASSWORD=password,
        )
        self.device = self._device()

    def _device(self) -> str:
        from adiuva.devices.models import Device

        until = time.monotonic() + 60
        while (found := Device.objects.online().values_list("device_id", flat=True).first()) is None:
            if time.monotonic() > until:
                raise TimeoutError("the device did not connect")
            time.sleep(0.1)
        return found

    def worker(self, model_s: float, at_once: int) -> Child:
        return self.worker_with(f"{self.model(str(model_s))}/v1", at_once)

    def model(self, *arguments: str) -> str:
        """The address of a new bench.chaos.extraction_model."""
        port = free_port()
        model = self.servers.run(f"model-{port}", "-m", "bench.chaos.extraction_model", str(port), *arguments)
        model.wait_until(lambda: listens(port), within_s=30)
        return f"http://127.0.0.1:{port}"

    def worker_with(self, model_url: str, at_once: int, **env: str) -> Child:
        return start_worker(
            self.servers,
            ADIUVA_MODEL="openai/scripted",
            ADIUVA_MODEL_API_BASE=model_url,
            ADIUVA_MODEL_CONCURRENCY_PER_USER=str(at_once),
            **env,
        )

    def run(self, files: int) -> float:
        """Returns the seconds that a new agent's run over `files` new files takes."""
        folder = self.folder / uuid4().hex
        write(folder, files)
        run = self.run_agent(self.agent(folder, file_extensions=[".md"]))
        if (run.state, run.items_created) != (run.State.SUCCESS, files * LINES):
            raise AssertionError(f"the run ended as {run.state} with {run.items_created} records")
        assert run.started_at is not None and run.completed_at is not None
        return (run.completed_at - run.started_at).total_seconds()

    def agent(self, folder: Path, **fields: Any) -> str:
        """Make an agent for a folder; returns its id."""
        made = self.post(
            "agents/local",
            {
                "name": "Bench",
                "device_id": self.device,
                "directory_paths": [str(folder)],
                "data_types": ["tasks"],
                "prompt_template": "Find what is to be done.",
                "schedule_cron": "",
                **fields,
            },
        )
        return str(made["id"])

    def run_agent(self, agent: str) -> Run:
        """The agent's run, when it has ended."""
        from agents.models import Run

        run_id = self.post(f"agents/{agent}/run")["run_id"]
        until = time.monotonic() + PATIENCE_S
        while (run := Run.objects.get(pk=run_id)).is_live:
            if time.monotonic() > until:
                raise TimeoutError("the run did not end")
            time.sleep(0.05)
        return run

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            f"{self.base}/api/v1/{path}",
            data=json.dumps(body or {}).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


def start_worker(servers: BenchServers, **env: str) -> Child:
    name = f"worker-{uuid4().hex[:8]}"
    options = ("--without-mingle", "--without-gossip", "-n", f"{name}@localhost")
    return servers.run(name, "-m", "celery", "-A", "adiuva", "worker", *options, **env)


def write(folder: Path, files: int, size: int = 0) -> None:
    """Files of three lines for the model, each filled up to a size with paragraphs that say nothing."""
    folder.mkdir()
    filler = "A paragraph about the history of the project, in which nothing had to be decided.\n\n"
    for number in range(files):
        lines = "".join(f"task: {folder.name} file {number} line {line}\n" for line in range(LINES))
        text = f"# Notes {number}\n\n{lines}"
        text += ("\n" + filler * (size // len(filler) + 1))[: max(0, size - len(text))]
        (folder / f"{number:05}.md").write_text(text, "utf-8")


def main(servers: BenchServers, files: int = FILES) -> None:
    from django.conf import settings

    at_once: int = settings.MODEL_CONCURRENCY_PER_USER
    print(f"A run over {files:,} files with {LINES} records each, {at_once} model calls at once")
    user = UserWithDevice(servers)
    worker = user.worker(0.0, at_once)
    user.run(FEW)  # warm
    before = cpu_s(worker)
    quick = user.run(files)
    cpu = cpu_s(worker) - before
    show("a model that answers at once", f"{quick:.1f} s")
    record("the worker's CPU a file", cpu / files * 1000, "ms", most=1.2)
    record_large_files(user, worker, files)
    worker.stop()
    worker = user.worker(SLOW_S, at_once)
    user.run(FEW)
    slow = user.run(files)
    worker.stop()
    show(f"a model that takes {SLOW_S * 1000:.0f} ms", f"{slow:.1f} s")
    worker = user.worker(SLOW_S, 1)
    alone = user.run(FEW) / FEW
    worker.stop()
    show("at most so many times faster", str(at_once))
    name = "with one call at a time"
    # Short runs begin and end as long ones do, and have less between.
    aim = 1 / 16 if files == FILES else None
    record(
        "a file, many calls at once",
        slow / files * 1000,
        "ms",
        beside=alone * 1000,
        name=name,
        ratio_most=aim,
    )


def record_large_files(user: UserWithDevice, worker: Child, files: int) -> None:
    """CPU a file of 20 KB, of which the model is shown three parts; and of a second run, which reads none."""
    folder = user.folder / "large"
    write(folder, files, LARGE_BYTES)
    agent = user.agent(folder, file_extensions=[".md"])
    for what in ("files of 20 KB", "their second run"):
        worker_s, device_s = cpu_s(worker), cpu_s(user.device_process)
        user.run_agent(agent)
        worker_s, device_s = cpu_s(worker) - worker_s, cpu_s(user.device_process) - device_s
        record(f"{what}: the worker's CPU a file", worker_s / files * 1000, "ms")
        record(f"{what}: the device's CPU a file", device_s / files * 1000, "ms")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with bench_servers() as started:
        main(started, *map(int, sys.argv[1:]))
