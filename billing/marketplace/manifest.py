"""A package's manifest.json: the plugin's claims about itself, and the hash of each of its files."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from adiuva.core.errors import Text
from billing.marketplace.names import NAME_PROBLEM, is_plain_name
from billing.marketplace.permissions import PERMISSIONS
from billing.marketplace.versions import parse_range, version_key

MANIFEST_NAME: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 512 * 1024
MAX_FILES: Final = 2_000
MAX_HOSTS: Final = 20

_HOST: Final = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}", re.ASCII)

Slug = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", min_length=3, max_length=50)
]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Line = Annotated[str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True)]


class BadManifest(ValueError):
    """The manifest cannot be used. `problems` has a sentence for each wrong part, with the part's name."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class PluginKind(StrEnum):
    AGENT_TEMPLATE = "agent_template"
    """A ready configuration of an agent. It has no code."""

    IMPORTER = "importer"
    """Reads files of some kinds into records."""

    THEME = "theme"
    """Colours and fonts. It has no code."""

    EXTENSION = "extension"
    """Code that the client runs within its permissions."""


WITHOUT_CODE: Final = frozenset({PluginKind.AGENT_TEMPLATE, PluginKind.THEME})


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AgentTemplate(_Part):
    """The initial configuration of an agent made from it. The user chooses folders or mailbox, device and account."""

    name: Line
    prompt: Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
    data_types: Annotated[list[str], Field(min_length=1, max_length=10)]
    source: Annotated[str, StringConstraints(pattern=r"^(local|mail|teams)$")] = "local"
    file_extensions: Annotated[list[str], Field(max_length=100)] = []
    filters: Annotated[dict[str, Any], Field(max_length=20)] = {}
    schedule_cron: Annotated[str, StringConstraints(max_length=200)] = ""


class Manifest(_Part):
    id: Slug
    name: Line
    version: str
    kind: PluginKind
    summary: Line
    engine: str
    """The versions of the client that it works with, such as ">=1.0.0 <2.0.0"."""

    license: Line
    homepage: Annotated[str, StringConstraints(max_length=200)] = ""
    permissions: Annotated[list[str], Field(max_length=len(PERMISSIONS))] = []
    hosts: Annotated[list[str], Field(max_length=MAX_HOSTS)] = []
    """The hosts that `network` may reach: exact names, by https alone."""

    file_kinds: Annotated[list[str], Field(max_length=20)] = []
    """The extensions that an importer reads, such as ".vcf"."""

    entry: Annotated[str, StringConstraints(max_length=200)] = ""
    """The file that the client runs, or a theme's style sheet."""

    agent: AgentTemplate | None = None
    files: Annotated[dict[str, Sha256], Field(max_length=MAX_FILES)]

    @field_validator("kind", mode="before")
    @classmethod
    def _kind(cls, kind: object) -> object:
        return PluginKind(kind) if isinstance(kind, str) and kind in list(PluginKind) else kind

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        if not is_plain_name(name):
            raise ValueError(NAME_PROBLEM)
        return name

    @field_validator("version")
    @classmethod
    def _version(cls, version: str) -> str:
        version_key(version)
        return version

    @field_validator("engine")
    @classmethod
    def _engine(cls, engine: str) -> str:
        parse_range(engine)
        return engine

    @field_validator("permissions")
    @classmethod
    def _permissions(cls, permissions: list[str]) -> list[str]:
        if unknown := sorted(set(permissions) - PERMISSIONS.keys()):
            raise ValueError(f"there is no permission {unknown[0][:50]!r}")
        if len(set(permissions)) < len(permissions):
            raise ValueError(Text("a permission is there twice"))
        return permissions

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if len(host) > 253 or not _HOST.fullmatch(host):
                raise ValueError(f"{host[:60]!r} is not the full name of a host, such as api.example.com")
            if any(label.startswith("xn--") for label in host.split(".")):
                raise ValueError(f"{host[:60]!r} is written in letters that can be mistaken for others")
        return hosts

    @field_validator("homepage")
    @classmethod
    def _homepage(cls, homepage: str) -> str:
        if homepage and not re.fullmatch(rf"https://{_HOST.pattern}(?:/[!-~]*)?", homepage, re.ASCII):
            raise ValueError(Text("it must begin with https:// and a host name"))
        return homepage

    @field_validator("file_kinds")
    @classmethod
    def _file_kinds(cls, kinds: list[str]) -> list[str]:
        for kind in kinds:
            if not re.fullmatch(r"\.[a-z0-9]{1,15}", kind, re.ASCII):
                raise ValueError(f"{kind[:20]!r} is not a file extension such as .vcf")
        return kinds

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if (self.agent is None) == (self.kind == PluginKind.AGENT_TEMPLATE):
            raise ValueError(Text("an agent template, and nothing else, has the part `agent`"))
        if bool(self.entry) == (self.kind == PluginKind.AGENT_TEMPLATE):
            raise ValueError(Text("all kinds but an agent template have an `entry`"))
        if self.entry and self.entry not in self.files:
            raise ValueError(Text("`entry` is not among `files`"))
        if (self.kind == PluginKind.IMPORTER) != bool(self.file_kinds):
            raise ValueError(Text("an importer, and nothing else, has `file_kinds`"))
        if self.kind in WITHOUT_CODE and self.permissions:
            raise ValueError(Text("what has no code needs no permissions"))
        if ("network" in self.permissions) != bool(self.hosts):
            raise ValueError(Text("the permission `network` and `hosts` go together"))
        return self


def parse_manifest(raw: bytes) -> Manifest:
    """Return a checked manifest. Raises BadManifest."""
    try:
        return Manifest.model_validate(parse_json(raw))
    except ValidationError as error:
        raise BadManifest(*(_sentence(each["loc"], _said(each)) for each in error.errors()[:20])) from None


def _said(error: Any) -> str:
    """Describe what is wrong with a part; the commonest mistakes in words of ours."""
    ours = {"missing": Text("it is missing"), "extra_forbidden": Text("there is no such part")}
    return ours.get(error["type"]) or str(error["msg"])


def parse_json(raw: bytes) -> Any:
    """Return a manifest's content, before its parts are checked. Raises BadManifest."""
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BadManifest(Text("it is larger than {most} KiB", most=MAX_MANIFEST_BYTES // 1024))
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_without_doubles)
    except RecursionError:
        raise BadManifest(Text("it is nested too deeply")) from None
    except ValueError as error:
        reason = error.args[0] if isinstance(error, _DoubleKey) else Text("it is not JSON in UTF-8")
        raise BadManifest(reason) from None


class _DoubleKey(ValueError):
    pass


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse equal keys: two readers of JSON may take different ones, so that one would see unchecked values."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _DoubleKey(Text("it has a key twice"))
    return made


def _sentence(place: tuple[int | str, ...], message: str) -> str:
    name = ".".join(str(part) for part in place)[:100]
    said = message.removeprefix("Value error, ")
    return Text("{name}: {problem}", name=name, problem=Text(said)) if name else said
