"""The part of a plugin's manifest that describes an agent, checked as the form of agents checks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from adiuva.core.errors import Invalid, Text
from agents import configuration
from agents.configuration import BadPart
from billing.marketplace.findings import Finding
from billing.marketplace.manifest import MANIFEST_NAME, Manifest
from integrations.mail.filters import Filters

CHECK: Final = "agent_template"


def look(manifest: Manifest) -> Iterator[Finding]:
    if (template := manifest.agent) is None:
        return
    checks: tuple[tuple[Callable[[Any], Any], Any], ...] = (
        (configuration.tables, template.data_types),
        (configuration.extensions, template.file_extensions),
        (configuration.schedule, template.schedule_cron),
        (Filters.parse, template.filters),
    )
    for check, given in checks:
        try:
            check(given)
        except BadPart as error:
            yield Finding(CHECK, error.problem, MANIFEST_NAME)
        except Invalid as error:
            for name, problems in (error.fields or {}).items():
                yield Finding(CHECK, Text("{name}: {problem}", name=name, problem=problems[0]), MANIFEST_NAME)
