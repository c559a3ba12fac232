"""The page on which people see what their work has used."""

from __future__ import annotations

import html
import re
import uuid
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from adiuva.accounts.models import User
from adiuva.llm import ModelUse
from agents.models import Agent
from billing import allowances, usage
from billing.models import Allowance, Purpose, StoredAmount, Use
from billing.months import month_of
from tests.chat.factories import claim, finish_turn, make_request
from tests.factories import Person, somebody

PAGE = "/account/usage"


def shown(person: Person) -> str:
    browser = Client()
    browser.force_login(User.objects.get(pk=person.id))
    answer = browser.get(PAGE)
    assert answer.status_code == 200 and answer["Cache-Control"] == "no-store"
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", answer.content.decode()))
    return text.replace("\u202f", " ")


def used(person: Person, cost: int, purpose: Purpose = Purpose.CHAT, agent: uuid.UUID | None = None) -> None:
    usage.record(person.id, purpose, [ModelUse("openai/gpt-9", 1200, 3400, 0, 50, cost_micro=cost)], agent)


def spent(person: Person, micro: int, reserved: int = 0) -> None:
    window = month_of(timezone.now(), ZoneInfo("UTC"))
    Allowance.objects.create(
        scope="user",
        user_id=person.id,
        month=window.first_day,
        spent=micro,
        reserved=reserved,
    )


def test_nothing_used_is_said_and_nobody_else_sees_it(db: None) -> None:
    assert Client().get(PAGE)["Location"].startswith("/account/sign-in")
    text = shown(somebody())
    assert "None yet." in text and "Nothing limits what you may spend." in text


@pytest.mark.parametrize(
    ("locale", "words"),
    [
        ("en", ["€1,234.50", "Requests: 1,200 · tokens read: 3,400 · written: 50", "5 GB", "Chat"]),
        ("de", ["1.234,50 €", "Anfragen: 1.200", "5 GB"]),
        ("de-CH", ["EUR 1'234.50"]),
        ("xx-YY", ["€1,234.50"]),
    ],
)
def test_figures_are_in_the_accounts_locale(db: None, locale: str, words: list[str]) -> None:
    person = somebody(locale=locale)
    used(person, 1_234_500_000)
    StoredAmount.objects.create(user_id=person.id, kind="storage_bytes", used=5 * 10**9)
    text = html.unescape(shown(person)).replace("\u00a0", " ")
    assert all(word in text for word in words), text


def test_what_cost_less_than_a_cent_does_not_look_free(db: None) -> None:
    person = somebody()
    used(person, 1_230)
    assert "€0.00123" in shown(person)


def test_use_is_named_by_kind_agent_and_model(db: None) -> None:
    person, other = somebody(), somebody()
    agent = Agent(user_id=person.id)
    agent.name = "Reads the <mails>"
    agent.seal_configuration({})
    agent.save()
    used(person, 2_000_000, Purpose.AGENTS, agent.pk)
    used(person, 1_000_000, Purpose.AGENTS, uuid.uuid4())
    used(person, 500_000, Purpose.FOLLOWUPS)
    used(other, 77_000_000)
    text = shown(person)
    assert "Following up runs" in text
    assert "Reads the &lt;mails&gt;" in text and "An agent that was deleted" in text
    assert text.index("By agent") < text.index("€2.00", text.index("By agent")) < text.index("deleted")
    assert "openai/gpt-9" in text and "77" not in text and "Chat" not in text


@pytest.mark.parametrize("in_a_chat", [False, True])
def test_use_counts_on_the_day_of_its_user(db: None, in_a_chat: bool) -> None:
    """Else a month's first or last hours show what was spent, and not for what."""
    now = timezone.now()
    zone = "Pacific/Kiritimati" if now.hour >= 10 else "Pacific/Pago_Pago"  # where it is another day
    person = somebody(timezone=zone)
    if in_a_chat:
        asked = make_request(person.id)
        finish_turn(asked, claim(asked), uses=[ModelUse("openai/gpt-9", 1200, 3400, cost_micro=1)])
    else:
        used(person, 1)
    day = Use.objects.of(person.id).get().day
    assert day == now.astimezone(ZoneInfo(zone)).date() != now.date()


@pytest.mark.parametrize(
    ("percent", "words"), [(79, []), (80, ["Little is left until"]), (100, ["It is used up."])]
)
def test_the_marks_of_the_budget_are_said(db: None, settings: Any, percent: int, words: list[str]) -> None:
    from billing import plans

    settings.PLANS = True
    person = somebody(tier="pro")
    limit = plans.plan_of("pro").budget_micro
    assert limit
    spent(person, limit * percent // 100)
    text = shown(person)
    assert "was added on" not in text
    assert (
        f"({percent} %)" in text
        and "80 % 100 %" in text
        and "requests to the server through a minute" in text
    )
    assert [word for word in ("Little is left until", "It is used up.") if word in text] == words


def test_what_staff_added_is_said_with_its_reason(db: None, settings: Any) -> None:
    settings.PLANS = True
    person = somebody(tier="pro")
    allowances.add(user_id=person.id, micro=1_500_000, reason="our fault", by=uuid.uuid4())
    text = shown(person)
    assert "of €5.50 (0 %)" in text and "€1.50 of it was added on" in text and ": our fault" in text


def test_the_pages_of_the_api_and_of_the_plan_have_the_same_sizes(db: None) -> None:
    person = somebody()
    used(person, 1_234_500_000)
    StoredAmount.objects.create(user_id=person.id, kind="backup_bytes", used=1536)
    rest = APIClient()
    rest.credentials(HTTP_AUTHORIZATION=f"Bearer {person.access_token}")
    for path in ("/api/v1/usage", "/api/v1/billing/subscription"):
        page = rest.get(path, HTTP_ACCEPT="text/html").content.decode()
        assert "<dd>1.5 kB</dd>" in page, page
    assert "<dd>€1,234.50</dd>" in rest.get("/api/v1/usage", HTTP_ACCEPT="text/html").content.decode()
    assert "figures" not in rest.get("/api/v1/usage").data
    browser = Client()
    browser.force_login(User.objects.get(pk=person.id))
    plan = browser.get("/account/billing").content.decode()
    assert "1.5 kB" in plan and f'href="{PAGE}"' in plan


def test_the_pages_of_the_api_say_their_figures_in_the_accounts_language(db: None, settings: Any) -> None:
    settings.PLANS = True
    person = somebody(tier="pro", locale="de-DE")
    used(person, 1_500_000)
    spent(person, 1_500_000)
    rest = APIClient()
    rest.credentials(HTTP_AUTHORIZATION=f"Bearer {person.access_token}")
    page = rest.get("/api/v1/usage", HTTP_ACCEPT="text/html").content.decode()
    said = dict(re.findall(r"<dt>([^<]*)</dt>\s*<dd>([^<]*)</dd>", page.replace("\xa0", " ")))
    assert said["Anfragen an Modelle"] == "1,50 € von 4,00 €"
    assert (said["Chat"], said["Agenten"]) == ("1,50 €", "0,00 €")
