"""What a configuration would find in a few of the user's own documents. Nothing is created, and no run is made."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Final
from zoneinfo import ZoneInfo

import structlog
from pydantic import BaseModel

from adiuva import llm
from adiuva.core.errors import AdiuvaError
from adiuva.devices.link import DeviceOffline
from agents.extraction import Extraction, Extractor, SourceDocument
from agents.journeys import samples
from agents.journeys.samples import NothingToSample, SampleRequest
from agents.local_folders import DeviceSilent
from agents.records import RecordRules
from integrations.errors import NeedsReauth, ProviderUnavailable
from integrations.mail.errors import NoSuchFolder

TRIAL_TIMEOUT_S: Final = 40.0
_MAX_RECORDS: Final = 100  # records

_OFFLINE: Final = "Your device is not connected, so nothing was tried out yet."
_SILENT: Final = "Your device did not answer, so nothing was tried out yet."
_LATE: Final = "It took too long to try it out on all of your documents."
_MODEL: Final = "The model could not read all of your documents for now."
_FAILED: Final = "It could not be tried out for now."

log = structlog.get_logger("agents.journeys")


class TrialRecord(BaseModel):
    """A record that would be proposed, and what it was found in."""

    table: str
    data: dict[str, Any]
    source: str


class TrialResult(BaseModel):
    """`code` and `message` say why not all, or nothing, was looked into; both are empty if all went well."""

    sources: list[str] = []
    records: list[TrialRecord] = []
    counts: dict[str, int] = {}
    code: str = ""
    message: str = ""


async def run_trial(wanted: SampleRequest, zone: ZoneInfo) -> TrialResult:
    """Read a sample and show what would come of it, within LOOK_S. It always answers."""
    found = TrialResult()
    try:
        async with asyncio.timeout(TRIAL_TIMEOUT_S):
            await _read(wanted, zone, found)
    except TimeoutError:
        found.code, found.message = "out_of_time", _LATE
    except DeviceSilent:
        found.code, found.message = "device_silent", _SILENT
    except DeviceOffline as error:
        found.code, found.message = error.code, _OFFLINE
    except NothingToSample as error:
        found.code, found.message = error.code, error.message
    except (
        NeedsReauth,
        NoSuchFolder,
        ProviderUnavailable,
    ) as error:  # which its user can do something about, or wait for
        found.code, found.message = error.code, f"Nothing was tried out yet: {error.message}."
    except AdiuvaError as error:
        found.code, found.message = error.code, _FAILED
    except Exception as error:
        # Its words may quote a document.
        log.error("journey.look_failed", session=str(wanted.session_id), error=type(error).__name__)
        found.code, found.message = "internal_error", _FAILED
    found.counts = dict(Counter(record.table for record in found.records))
    found.records = found.records[:_MAX_RECORDS]
    return found


async def _read(wanted: SampleRequest, zone: ZoneInfo, found: TrialResult) -> None:
    """Each document's finds are entered as they come: what was found before the time is over is shown."""
    sample = await samples.collect(wanted)
    rules = RecordRules(tuple(wanted.outcome.data_types), sample.projects, zone)
    extractor = Extractor(llm.chat_model(), wanted.outcome.prompt_template, rules)
    async with asyncio.TaskGroup() as group:
        for document in sample.documents:
            group.create_task(_one(document, extractor, found))


async def _one(document: SourceDocument, extractor: Extractor, found: TrialResult) -> None:
    extraction = Extraction()
    try:
        await extractor.extract(document, extraction)
    except llm.ModelError as error:
        found.code, found.message = error.code, _MODEL
        return
    found.sources.append(document.path)
    found.records += [
        TrialRecord(table=record.table, data=record.data, source=document.path)
        for record in extraction.records
    ]
