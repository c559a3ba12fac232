"""Rules for what containers cannot show here: the image, the compose file, the units, the alerts."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from adiuva import env_variables
from adiuva.core.env import BASE_DIR, Variable

DEPLOY = BASE_DIR / "deploy"
OURS = ("migrate", "sockets", "web", "worker-runs", "worker-short", "beat")
SETTINGS = {each.name for each in vars(env_variables).values() if isinstance(each, Variable)}


def instructions() -> list[tuple[str, str]]:
    text = (BASE_DIR / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.M)).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if word]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def test_the_image_is_small_serves_as_nobody_special_and_installs_only_what_is_pinned() -> None:
    found = instructions()
    bases = [rest for word, rest in found if word == "FROM"]
    assert len(bases) == 2 and all(re.match(r"python:3\.\d+-slim-\w+", base) for base in bases)
    last = found[max(number for number, (word, _) in enumerate(found) if word == "FROM") :]
    assert [rest for word, rest in last if word == "USER"] == ["10001"]
    assert last.index(("USER", "10001")) > max(
        i for i, (word, _) in enumerate(last) if word in {"RUN", "COPY"}
    )
    installs = [rest for word, rest in found if word == "RUN" and "pip install" in rest]
    assert len(installs) == 1 and "--require-hashes" in installs[0]
    # Whatever a setting may ask for is there: traces too.
    assert set(re.findall(r"-r /tmp/(\S+)", installs[0])) == {"requirements.txt", "requirements-traces.txt"}
    assert ("COPY", "requirements.txt requirements-traces.txt /tmp/") in found
    (check,) = [rest for word, rest in last if word == "HEALTHCHECK"]
    compile(json.loads(check.partition("CMD ")[2])[2], "healthcheck", "exec")
    (command,) = [json.loads(rest) for word, rest in last if word == "CMD"]
    assert importlib.util.find_spec(command[-1])


def test_the_locks_pin_packages_without_extras_so_that_every_pip_takes_their_hashes() -> None:
    """A pip before 23.3, such as Debian's, takes `redis[hiredis]==…` for another package than the `redis` that a
    dependency asks for, and refuses that as not pinned. What an extra brings is pinned by itself."""
    for lock in BASE_DIR.glob("requirements*.txt"):
        text = lock.read_text()
        assert re.search(r"^[\w.-]+==", text, re.M)
        assert not re.search(r"^[\w.-]+\[", text, re.M), lock


def test_nothing_secret_and_no_index_is_in_the_image() -> None:
    text = "\n".join(f"{word} {rest}" for word, rest in instructions())
    assert set(re.findall(r"https?://[^\s'\"]+", text)) <= {"http://127.0.0.1:"}
    assert not re.search(r"index-url|SECRET|PASSWORD|_KEYS?=", text)
    ignored = (BASE_DIR / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    for allowed in (line[1:] for line in ignored if line.startswith("!")):
        assert (BASE_DIR / allowed).exists()
    packages = {path.parent.name for path in BASE_DIR.glob("*/__init__.py")} - {"bench", "tests"}
    assert {f"!{name}" for name in packages | {"templates", "locale"}} <= set(ignored)


def test_compose_starts_every_process_and_shows_only_the_proxy(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert [name for name, each in services.items() if "ports" in each] == ["proxy"]
    assert services["objects"]["profiles"] == ["vault"]
    for name in OURS:
        service = services[name]
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert set(service["environment"]) <= SETTINGS
        if name in {"sockets", "web"}:
            assert "healthcheck" not in service  # the image's own
        else:
            assert service["healthcheck"] == {"disable": True}
    lanes = {services[name]["command"][5] for name in ("worker-runs", "worker-short")}
    assert lanes == {"runs", "short"}
    for service in services.values():
        for needed in service.get("depends_on", {}):
            assert needed in services
    images = [each["image"] for each in services.values()]
    assert all(re.search(r":[\w.-]+$", image) and not image.endswith(":latest") for image in images)
    named = {volume.split(":")[0] for each in services.values() for volume in each.get("volumes", [])}
    assert {name for name in named if not name.startswith((".", "$"))} == set(compose["volumes"])


def test_compose_holds_no_secret_of_its_own(compose: dict[str, Any]) -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    assert not re.search(r"(PASSWORD|SECRET|KEYS?): (?!\$\{)\S", text)
    assert all("${POSTGRES_PASSWORD:?" in compose["services"]["web"]["environment"][name]
               for name in ("DATABASE_URL", "ADIUVA_KEYS_DATABASE_URL"))  # fmt: skip
    for mounted in re.findall(r"- (\./[^:]+):", text):
        assert (DEPLOY / mounted).exists()


@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").iterdir()), ids=lambda path: path.name)
def test_units_are_fenced_in_and_systemd_takes_them(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text()
    for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "User=adiuva", "CapabilityBoundingSet="):
        assert f"\n{line}\n" in text
    assert set(re.findall(r"\b(ADIUVA_[A-Z_]+)=", text)) <= SETTINGS
    assert "\nEnvironmentFile=/etc/adiuva/adiuva.env\n" in text
    if program := shutil.which("systemd-analyze"):
        copy = tmp_path / unit.name.replace("@", "@8001")
        copy.write_text(re.sub(r"^ExecStart=.*", "ExecStart=/bin/true", text, flags=re.M))
        done = subprocess.run([program, "verify", copy], capture_output=True, text=True)
        assert unit.name.replace("@", "@8001") not in done.stderr
