"""The admin in a real Chromium: nothing is cut off, wide or narrow, light or dark, and the keyboard is enough."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib import admin
from django.urls import reverse

from adiuva.accounts.models import User
from tests.accounts.chromium import PROGRAM, Page, browser
from tests.factories import Person, confirmed
from tests.staff.test_staff_pages import what_happened

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")
# Where axe-core is, for those who have it.
AXE = os.environ.get("AXE")


@pytest.fixture
def page() -> Iterator[Page]:
    with browser() as opened:
        yield opened
        assert not opened.problems


def check(page: Page, name: str) -> None:
    """No table is wider than its place at 1,280 pixels, and no page than its window; with AXE and PICTURES, more."""
    folder = os.environ.get("PICTURES")
    for width in (1280, 390):
        for dark in (False, True) if AXE or folder else (True,):
            page.look(width=width, dark=dark)
            if folder:
                page.picture(Path(folder) / f"{name}-{width}-{'dark' if dark else 'light'}.png")
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{name} is {wide} pixels wide"
            if width == 1280:
                tables = "[...document.querySelectorAll('.results, .across')]"
                wide = f"{tables}.filter(one => one.scrollWidth > one.clientWidth)"
                assert page.evaluate(f"{wide}.map(one => one.innerText.slice(0, 80))") == [], name
            if AXE:
                page.evaluate(Path(AXE).read_text())
                ran = "axe.run().then(found => JSON.stringify(found.violations.map(one => "
                ran += "[one.impact, one.id, one.nodes.map(node => node.html).slice(0, 3)])))"
                found = json.loads(page.evaluate(ran))
                bad = [one for one in found if one[0] in {"critical", "serious"}]
                assert not bad, (name, bad)
    page.look()


def press_key(page: Page, key: str, code: int) -> None:
    for kind in ("keyDown", "keyUp"):
        text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
        page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)


def sign_in(page: Page, site: str, person: Person) -> None:
    page.open(f"{site}/admin/")
    page.fill(username=person.email, password=person.password)
    page.press("Sign in")
    page.wait_for("document.readyState === 'complete' && location.pathname === '/admin/'")


def test_all_pages_fit_and_the_search_is_used_by_keyboard(web: str, page: Page) -> None:
    boss, ada = confirmed(), confirmed()
    User.objects.filter(pk=boss.id).update(is_staff=True, is_superuser=True)
    run = what_happened(ada)
    sign_in(page, web, boss)
    check(page, "start")
    # The first key skips to the content, the next ones come to the search.
    for _ in range(20):
        if page.evaluate("document.activeElement.id") == "find":
            break
        press_key(page, "Tab", 9)
    assert page.evaluate("document.activeElement.id") == "find"
    page.call("Input.insertText", text=str(ada.id))
    press_key(page, "Enter", 13)
    page.wait_for(f"document.readyState === 'complete' && location.pathname.includes('{ada.id}')")
    check(page, "account")
    for model in admin.site._registry:
        name = f"{model._meta.app_label}_{model._meta.model_name}"
        page.open(f"{web}{reverse(f'admin:{name}_changelist')}?q={ada.email}")
        check(page, f"list-{name}")
    page.open(f"{web}{reverse('admin:agents_run_change', args=[run.pk])}")
    check(page, "run")
    page.open(f"{web}{reverse('staff-find')}?q={ada.email.split('@')[0]}+unreadable")
    check(page, "find")
