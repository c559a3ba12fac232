"""Try out a proposed configuration on a few of the user's documents, without a run and without creating anything."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Final
from zoneinfo import ZoneInfo

from django.utils.translation import gettext, gettext_noop, ngettext
from pydantic import BaseModel

from adiuva import llm
from adiuva.core import db
from adiuva.core.errors import AdiuvaError
from adiuva.core.language import said
from adiuva.core.logging import log_failure
from adiuva.devices.link import DeviceOffline
from adiuva.devices.tables import NOUNS
from agents.extraction import Extraction, Extractor, SourceDocument
from agents.journeys import samples
from agents.journeys.samples import NothingToSample, SampleRequest
from agents.local_folders import DeviceSilent
from agents.record_validation import RecordRules
from integrations.errors import NeedsReauth, ProviderUnavailable
from integrations.mail.errors import NoSuchFolder
from memory.profile import read_profile

TRIAL_TIMEOUT_S: Final = 40.0
_MAX_RECORDS: Final = 100

_OFFLINE: Final = gettext_noop("Your device is not connected, so nothing was tried out yet.")
_SILENT: Final = gettext_noop("Your device did not answer, so nothing was tried out yet.")
_LATE: Final = gettext_noop("There was not enough time to try it out on all of your documents.")
_MODEL: Final = gettext_noop("The model could not read all of your documents for now.")
_REAUTH: Final = gettext_noop("The account has to be connected again, so nothing was tried out yet.")
_NO_FOLDER: Final = gettext_noop(
    "None of the labels, folders or channels that were named exists there, so nothing was tried out yet."
)
_AWAY: Final = gettext_noop("The account cannot be read for now, so nothing was tried out yet.")
_FAILED: Final = gettext_noop("It could not be tried out for now.")


class TrialRecord(BaseModel):
    """A record that the agent would propose, and the document that it was found in."""

    table: str
    data: dict[str, Any]
    source: str


class TrialResult(BaseModel):
    """The result of a trial. `code` and `message` say why nothing, or not everything, was tried out; both are empty if
    all went well.
    """

    sources: list[str] = []
    records: list[TrialRecord] = []
    counts: dict[str, int] = {}
    code: str = ""
    message: str = ""


async def run_trial(request: SampleRequest, zone: ZoneInfo) -> TrialResult:
    """Read a sample of documents and show what would be found in them, within TRIAL_TIMEOUT_S. It raises nothing."""
    trial = TrialResult()
    try:
        async with asyncio.timeout(TRIAL_TIMEOUT_S):
            await _read_sample(request, zone, trial)
    except TimeoutError:
        trial.code, trial.message = "out_of_time", gettext(_LATE)
    except DeviceSilent:
        trial.code, trial.message = "device_silent", gettext(_SILENT)
    except DeviceOffline as error:
        trial.code, trial.message = error.code, gettext(_OFFLINE)
    except NothingToSample as error:
        trial.code, trial.message = error.code, said(error.message)
    except NeedsReauth as error:
        trial.code, trial.message = error.code, gettext(_REAUTH)
    except NoSuchFolder as error:
        trial.code, trial.message = error.code, gettext(_NO_FOLDER)
    except ProviderUnavailable as error:
        trial.code, trial.message = error.code, gettext(_AWAY)
    except AdiuvaError as error:
        trial.code, trial.message = error.code, gettext(_FAILED)
    except Exception as error:
        log_failure("journey.trial_failed", error, session=str(request.session_id))
        trial.code, trial.message = "internal_error", gettext(_FAILED)
    trial.counts = dict(Counter(record.table for record in trial.records))
    trial.records = trial.records[:_MAX_RECORDS]
    return trial


async def _read_sample(request: SampleRequest, zone: ZoneInfo, trial: TrialResult) -> None:
    """Read the sample, and add records document by document, so that those found within the time are shown."""
    sample = await samples.collect(request)
    rules = RecordRules(tuple(request.proposal.data_types), sample.projects, zone)
    model = llm.chat_model(purpose="extraction")
    profile = await db.run(read_profile, request.user_id, model)
    extractor = Extractor(model, request.proposal.prompt_template, rules, profile)
    async with asyncio.TaskGroup() as group:
        for document in sample.documents:
            group.create_task(_read_document(document, extractor, trial))


async def _read_document(document: SourceDocument, extractor: Extractor, trial: TrialResult) -> None:
    extraction = Extraction()
    try:
        await extractor.extract(document, extraction)
    except llm.ModelError as error:
        trial.code, trial.message = error.code, gettext(_MODEL)
        return
    trial.sources.append(document.path)
    trial.records += [
        TrialRecord(table=record.table, data=record.data, source=document.path)
        for record in extraction.records
    ]


def trial_summary(trial: TrialResult) -> str:
    """Return the trial's findings in a sentence."""
    if not trial.sources and trial.message:
        return trial.message
    counted = ", ".join(f"{count} {ngettext(*NOUNS[table], count)}" for table, count in trial.counts.items())
    said = ngettext(
        "In {count} document of yours it finds: {records}.",
        "In {count} documents of yours it finds: {records}.",
        len(trial.sources),
    )
    found = said.format(count=len(trial.sources), records=counted or gettext("nothing"))
    return f"{found} {trial.message}".strip()
