"""Errors that refuse a step of a plugin from draft to listing."""

from __future__ import annotations

from collections.abc import Sequence

from adiuva.core.errors import AdiuvaError, Conflict, Forbidden, NotFound, Text, Unavailable
from billing.marketplace.findings import Finding


class NoSuchPlugin(NotFound):
    def __init__(self) -> None:
        super().__init__("there is no such plugin")


class NoSuchVersion(NotFound):
    def __init__(self) -> None:
        super().__init__("there is no such version")


class VersionExists(Conflict):
    code = "version_exists"

    def __init__(self, version: str) -> None:
        super().__init__(Text("version {version} exists, and a version never changes", version=version))


class PackageRefused(AdiuvaError):
    """The package was refused. `findings` in the answer: the problems, in the sender's language."""

    code, status = "bad_package", 400

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__(
            "the package cannot be published as it is",
            findings=[{**finding.body(), "problem": Text.of(finding.problem)} for finding in findings],
        )


class WrongState(Conflict):
    """The version is not in the state in which the step begins."""

    code = "wrong_state"

    def __init__(self, state: str) -> None:
        super().__init__(Text("this cannot be done with a version that is {state}", state=state), state=state)


class OwnVersion(Forbidden):
    code = "own_version"

    def __init__(self) -> None:
        super().__init__("nobody reviews a version of their own, nor one of a plugin of their own")


class NotReviewed(Conflict):
    code = "not_reviewed"

    def __init__(self) -> None:
        super().__init__("the package is another one than the one that was looked at: look again")


class ChecklistOpen(Conflict):
    code = "checklist_open"

    def __init__(self) -> None:
        super().__init__(
            "something of the checklist is not ticked: only what was looked at in full is approved"
        )


class NoSigningKey(Unavailable):
    code = "no_signing_key"

    def __init__(self) -> None:
        super().__init__("there is no key to sign plugins with: set ADIUVA_PLUGIN_KEYS")


class NotInstalled(Forbidden):
    code = "not_installed"

    def __init__(self) -> None:
        super().__init__("only who has had a plugin installed for a day rates it")
