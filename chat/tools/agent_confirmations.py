"""The questions about agents that need the user's yes, in our words and in the user's language."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from django.utils.translation import gettext, ngettext

from adiuva.devices.tables import NOUNS
from agents import schedule_words
from agents.models import Agent, Announce, CatchUp
from agents.set_up import PlannedChange
from chat.untrusted_text import quotable

_PATH_CHARS: Final = 500
_LOOK_FOR_CHARS: Final = 300
_ALL: Final = (
    "name",
    "directory_paths",
    "connection",
    "file_extensions",
    "filter_config",
    "prompt_template",
    "data_types",
    "schedule_cron",
    "catch_up",
    "announce",
    "enabled",
)


def plan_question(plan: PlannedChange, template: str = "") -> str:
    """Return `Make the agent “Clients”: read /home/you/Documents/clients on “Studio”; …`. `template`: its plugin."""
    if plan.action == "delete":
        return gettext("Delete the agent “{name}”").format(name=quotable(plan.agent.name))
    said = gettext("Make the agent “{name}”: {facts}")
    if plan.before is not None:
        said = gettext("Change the agent “{name}”: {facts}")
    facts = [gettext("of the plugin “{plugin}”").format(plugin=quotable(template))] if template else []
    facts += _facts(plan, _changed(plan))
    return said.format(name=quotable((plan.before or plan.agent).name), facts="; ".join(facts))


def run_question(name: str, *, dry_run: bool) -> str:
    said = gettext("Try out the agent “{name}”") if dry_run else gettext("Run the agent “{name}”")
    return said.format(name=quotable(name))


def stop_question(name: str, *, undo: bool, is_live: bool) -> str:
    if not undo:
        said = gettext("Stop the run of “{name}”")
    elif is_live:
        said = gettext("Stop the run of “{name}” and delete what it has created")
    else:
        said = gettext("Undo the run of “{name}” and delete what it has created")
    return said.format(name=quotable(name))


def _changed(plan: PlannedChange) -> Collection[str]:
    if plan.before is None:
        return [name for name in _ALL if name != "name"]
    names = set(plan.values)
    if names & {"timezone"}:
        names |= {"schedule_cron"}
    if names & {"catch_up_hours"}:
        names |= {"catch_up"}
    return [name for name in _ALL if name in names]


def _facts(plan: PlannedChange, names: Collection[str]) -> list[str]:
    agent, is_new = plan.agent, plan.before is None
    facts: list[str] = []
    if "name" in names:
        facts.append(gettext("call it “{name}”").format(name=quotable(agent.name)))
    if "directory_paths" in names and agent.is_local:
        folders = ", ".join(quotable(path, _PATH_CHARS) for path in agent.directory_paths)
        facts.append(
            gettext("read {folders} on “{device}”").format(folders=folders, device=quotable(plan.device_name))
        )
    if "connection" in names and agent.connection is not None:
        account = f"{agent.get_type_display()} {quotable(agent.connection.address_or_blank)}".strip()
        facts.append(gettext("read {account}").format(account=account))
    if "file_extensions" in names and (agent.file_extensions or not is_new):
        kinds = _listed(agent.file_extensions) or gettext("all kinds of files")
        facts.append(gettext("of the files {kinds}").format(kinds=kinds))
    if "filter_config" in names and not agent.is_local:
        facts += _filter_facts(agent, is_new=is_new)
    if "prompt_template" in names:
        words = quotable(agent.prompt_template, _LOOK_FOR_CHARS)
        facts.append(gettext("look for “{words}”").format(words=words))
    if "data_types" in names:
        tables = ", ".join(ngettext(*NOUNS[table], 2) for table in agent.data_types)
        facts.append(gettext("suggest {tables}").format(tables=tables))
    if "schedule_cron" in names:
        facts.append(schedule_words.schedule_text(agent) or gettext("only when asked to, without a schedule"))
    if "catch_up" in names and (agent.catch_up != CatchUp.ONCE or not is_new):
        facts.append(_catch_up(agent))
    if "announce" in names and (agent.announce != Announce.PROBLEMS or not is_new):
        facts.append(_announce(agent))
    if "enabled" in names and (not agent.enabled or not is_new):
        facts.append(gettext("its schedule on") if agent.enabled else gettext("its schedule off"))
    return facts


def _filter_facts(agent: Agent, *, is_new: bool) -> list[str]:
    filters, facts = agent.filter_config, []
    if labels := filters.get("labels"):
        facts.append(gettext("only what lies in {labels}").format(labels=_listed(labels)))
    if senders := filters.get("senders"):
        facts.append(gettext("only from {senders}").format(senders=_listed(senders)))
    if days := filters.get("date_range"):
        first, last = quotable(days.get("from")) or "…", quotable(days.get("to")) or "…"
        facts.append(gettext("only of the days {first} to {last}").format(first=first, last=last))
    if not facts and not is_new:
        facts.append(gettext("without a filter"))
    return facts


def _catch_up(agent: Agent) -> str:
    match agent.catch_up:
        case CatchUp.SKIP:
            return gettext("missed times are not caught up on")
        case CatchUp.WITHIN:
            hours = agent.catch_up_hours or 0
            said = ngettext(
                "missed times are caught up on within {hours} hour",
                "missed times are caught up on within {hours} hours",
                hours,
            )
            return said.format(hours=hours)
    return gettext("missed times are caught up on once")


def _announce(agent: Agent) -> str:
    match agent.announce:
        case Announce.NEVER:
            return gettext("nothing is told of its scheduled runs")
        case Announce.ALWAYS:
            return gettext("every end of its scheduled runs is told")
    return gettext("problems of its scheduled runs are told")


def _listed(words: Sequence[str]) -> str:
    return ", ".join(quotable(word) for word in words)
