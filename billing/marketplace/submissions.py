"""From a draft to the reviewers: submitting, the checks by workers, and withdrawing.

The checks fail closed. Checks that broke are tried again, later each time; blocked versions go back to their
developers.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import tempfile
from typing import IO, Final
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.core import leases
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.errors import Text
from adiuva.core.leases import Lease, LeaseLost
from adiuva.core.logging import log_failure
from adiuva.object_store.store import ObjectMissing, StorageAway, store
from billing.marketplace import developers, drafts, isolated_checks, states, virus_scanner
from billing.marketplace.checks import Report, Result
from billing.marketplace.developers import NameTooClose
from billing.marketplace.errors import NoSuchVersion
from billing.marketplace.findings import Finding, Severity
from billing.marketplace.models import PluginCheck, PluginVersion
from billing.marketplace.states import State

log = structlog.get_logger(__name__)

LEASE: Final = dt.timedelta(minutes=5)
_AT_ONCE: Final = 20
_LONGEST_PAUSE: Final = dt.timedelta(hours=1)
_BLOCKED: Final = Text("the checks have found what cannot be published")


@transaction.atomic
def submit(*, user_id: UUID, plugin_id: UUID, version: str, notes: str = "") -> PluginVersion:
    """Hand a version in. Raises NoSuchPlugin, NoSuchVersion, WrongState, NoDeveloper, Suspended."""
    developers.active(user_id)
    found = owned(user_id, plugin_id, version)
    states.move(
        found, State.SUBMITTED, submitted_at=timezone.now(), notes=notes, reason="", tries=0, not_before=Now()
    )
    enqueue_on_commit("billing.check_plugin", found.pk)
    return found


@transaction.atomic
def withdraw(*, user_id: UUID, plugin_id: UUID, version: str) -> PluginVersion:
    """Take a version back before it is listed. Raises what `submit` does."""
    found = owned(user_id, plugin_id, version)
    states.move(found, State.WITHDRAWN)
    return found


def owned(user_id: UUID, plugin_id: UUID, version: str) -> PluginVersion:
    """Return a version of a user's plugin, locked. Raises NoSuchPlugin, NoSuchVersion."""
    plugin = drafts.owned(user_id, plugin_id)
    version_id = plugin.versions.filter(version=version).values_list("pk", flat=True).first()
    if version_id is None:
        raise NoSuchVersion
    return states.locked(version_id)


def check_one(version_id: UUID) -> bool:
    """Check a version that waits for it. Returns False if it does not, or another worker checks it."""
    claimed = leases.claim(
        PluginVersion.objects.to_check().filter(pk=version_id), LEASE, state=State.CHECKING
    )
    if not claimed:
        return False
    try:
        _check(claimed[0], claimed[0].lease(LEASE))
    except LeaseLost:
        log.info("plugin_check.overtaken", version_id=str(version_id))
    return True


def sweep() -> int:
    """Check waiting versions, including those that a dead worker has left. Returns how many."""
    waiting = list(
        PluginVersion.objects.to_check().order_by("not_before").values_list("pk", flat=True)[:_AT_ONCE]
    )
    return sum(check_one(version_id) for version_id in waiting)


def _check(version: PluginVersion, lease: Lease[PluginVersion]) -> None:
    report = _report(version)
    if Result.ERROR in report.results.values():
        pause = min(_LONGEST_PAUSE, dt.timedelta(minutes=2 ** min(version.tries, 6)))
        with transaction.atomic():
            lease.held()
            _keep(version, report)
            lease.release(state=State.SUBMITTED, tries=version.tries + 1, not_before=Now() + pause)
        log.warning("plugin_check.broken", version_id=str(version.pk), tries=version.tries + 1)
        return
    blocks = any(finding.severity == Severity.BLOCKS for finding in report.findings)
    with transaction.atomic():
        locked = states.locked(version.pk)
        lease.held()
        _keep(version, report)
        states.move(
            locked,
            State.CHANGES_ASKED if blocks else State.IN_REVIEW,
            reason=_BLOCKED if blocks else "",
        )


def _report(version: PluginVersion) -> Report:
    """Return the results of all checks; `Result.ERROR` for those that could not be made."""
    with tempfile.TemporaryFile() as package:
        try:
            _fetch(version, package)
            report = isolated_checks.check(package)
        except (ObjectMissing, StorageAway, isolated_checks.Unchecked) as error:
            log_failure("plugin_check.failed", error, logger=log, level="warning", check="structure")
            return Report(results={"structure": Result.ERROR})
        _look_at_names(version, report)
        if virus_scanner.is_on():
            _scan(package, report)
    if report.manifest is not None and report.sha256 != version.sha256:
        report.results["structure"] = Result.ERROR
    return report


def _fetch(version: PluginVersion, target: IO[bytes]) -> None:
    """Copy the package's bytes to a file. Raises ObjectMissing, also if they are not those that were uploaded."""
    digest = hashlib.sha256()
    for piece in store().read(version.object, 0, version.size):
        digest.update(piece)
        target.write(piece)
    target.flush()
    if digest.hexdigest() != version.sha256:
        raise ObjectMissing


def _look_at_names(version: PluginVersion, report: Report) -> None:
    """Check for names that were taken since, or that this version introduces."""
    report.results["taken_names"] = Result.PASSED
    if report.manifest is None:
        return
    try:
        drafts.check_others(version.plugin.developer, version.plugin.slug, report.manifest.name)
    except NameTooClose as error:
        report.add("taken_names", [Finding("taken_names", error.message)])


def _scan(package: IO[bytes], report: Report) -> None:
    report.results["scanner"] = Result.PASSED
    try:
        found = virus_scanner.scan(package)
    except virus_scanner.ScannerAway as error:
        log_failure("plugin_check.failed", error, logger=log, level="warning", check="scanner")
        report.results["scanner"] = Result.ERROR
        return
    report.add("scanner", found)


def _keep(version: PluginVersion, report: Report) -> None:
    PluginCheck.objects.filter(version=version).delete()
    rows = []
    for name, result in report.results.items():
        found = [finding for finding in report.findings if finding.check == name]
        blocks = result == Result.ERROR or any(each.severity == Severity.BLOCKS for each in found)
        rows.append(
            PluginCheck(
                version=version,
                name=name,
                result=result.value,
                blocks=blocks,
                findings=[each.body() for each in found],
            )
        )
    PluginCheck.objects.bulk_create(rows)
