"""The pages of accounts in a real Chromium, as people walk them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pyotp
import pytest

from adiuva.accounts.models import User
from tests.accounts.chromium import PROGRAM, Page, browser
from tests.accounts.mailbox import link_in, mail_to
from tests.factories import Person, confirmed
from tests.server_processes import Stack

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")
NEW = "another quiet afternoon"


@pytest.fixture(scope="module")
def site(stack: Stack) -> str:
    """A web process whose public address is the one that the browser uses: passkeys are bound to a name."""
    return stack.web(ADIUVA_PUBLIC_URL="http://localhost").replace("127.0.0.1", "localhost")


@pytest.fixture
def page() -> Iterator[Page]:
    with browser() as opened:
        yield opened
        assert not [each for each in opened.problems if "400" not in each]


def picture(page: Page, name: str) -> None:
    """Kept in the folder that PICTURES names, light and dark, wide and narrow; nothing is cut off at the side."""
    folder = os.environ.get("PICTURES")
    for width in (1280, 390):
        for dark in (False, True):
            page.look(width=width, dark=dark)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is too wide"
            if folder:
                page.picture(Path(folder) / f"{name}-{width}-{'dark' if dark else 'light'}.png")


def sign_in(page: Page, site: str, person: Person, password: str = "") -> None:
    page.open(f"{site}/account/")
    page.wait_for_heading("Sign in")
    page.fill(username=person.email, password=password or person.password)
    page.press("Sign in")


def sign_out(page: Page) -> None:
    page.press("Sign out of this browser")
    page.wait_for_heading("Sign in")


def test_a_person_adds_an_app_and_signs_in_with_it_and_with_a_recovery_code(site: str, page: Page) -> None:
    person = confirmed()
    page.open(f"{site}/account/")
    page.wait_for_heading("Sign in")
    picture(page, "sign-in")
    page.fill(username=person.email, password="not the password")
    page.press("Sign in")
    page.wait_for("document.body.innerText.includes('is wrong')")
    sign_in(page, site, person)
    page.wait_for_heading("Your account")
    picture(page, "account")
    page.press("Add an app")
    page.wait_for_heading("Add an authenticator app")
    page.fill(password=person.password)
    page.press("Go on")
    page.wait_for_heading("Scan this with your app")
    picture(page, "app")
    secret = page.evaluate("document.querySelector('code').innerText").replace(" ", "")
    app = pyotp.TOTP(secret)
    page.fill(code="000000")
    page.press("Confirm")
    page.wait_for("document.body.innerText.includes('not the code')")
    page.fill(code=app.now())
    page.press("Confirm")
    page.wait_for_heading("Your recovery codes")
    picture(page, "codes")
    codes = re.findall(r"\b(?:[a-z2-7]{4}-){3}[a-z2-7]{4}\b", page.text)
    assert len(codes) == 10
    page.press("I have kept them")
    page.wait_for_heading("Your account")
    picture(page, "account-with-app")
    sign_out(page)
    # A code works once, so the next one; both are good for half a minute at least, however long a page takes.
    for typed in (app.at(datetime.now(UTC) + timedelta(seconds=30)), codes[0]):
        sign_in(page, site, person)
        page.wait_for_heading("One more step")
        picture(page, "second-step")
        page.fill(code=typed)
        page.press("Sign in")
        page.wait_for_heading("Your account")
        sign_out(page)


def test_a_person_makes_a_passkey_and_signs_in_with_it(site: str, page: Page) -> None:
    person = confirmed()
    page.add_authenticator()
    sign_in(page, site, person)
    page.wait_for_heading("Your account")
    page.press("Add a passkey")
    page.wait_for_heading("Add a passkey")
    page.fill(password=person.password)
    page.press("Go on")
    page.wait_for_heading("Make the passkey")
    picture(page, "make-passkey")
    page.fill(name="this laptop")
    page.press("Make the passkey")
    page.wait_for_heading("Your recovery codes")
    page.press("I have kept them")
    page.wait_for_heading("Your account")
    assert "this laptop" in page.text
    picture(page, "account-with-passkey")
    sign_out(page)

    sign_in(page, site, person)
    page.wait_for_heading("One more step")
    picture(page, "second-step-passkey")
    page.press("Use a passkey")
    page.wait_for_heading("Your account")
    sign_out(page)
    page.press("Sign in with a passkey")
    page.wait_for_heading("Your account")
    page.press("Remove the passkey this laptop")
    page.wait_for_heading("Remove this passkey")
    page.fill(password=person.password)
    page.press("Remove it")
    page.wait_for_heading("Your account")
    assert "this laptop" not in page.text


def test_staff_are_asked_for_their_second_factor_before_the_admin(site: str, page: Page) -> None:
    person = confirmed(is_staff=True, is_superuser=True)
    page.add_authenticator()
    sign_in(page, site, person)
    page.wait_for_heading("Your account")
    page.press("Add a passkey")
    page.wait_for_heading("Add a passkey")
    page.fill(password=person.password)
    page.press("Go on")
    page.wait_for_heading("Make the passkey")
    page.press("Make the passkey")
    page.wait_for_heading("Your recovery codes")
    page.press("I have kept them")
    page.wait_for_heading("Your account")
    sign_out(page)
    page.open(f"{site}/admin/accounts/")
    page.wait_for_heading("Sign in")
    page.fill(username=person.email, password=person.password)
    page.press("Sign in")
    page.wait_for_heading("One more step")
    page.press("Use a passkey")
    page.wait_for("location.pathname === '/admin/accounts/'")


def test_a_person_sets_a_forgotten_password_and_changes_the_address(site: str, page: Page) -> None:
    person = confirmed()
    page.open(f"{site}/account/sign-in")
    page.press("Forgot your password?")
    page.wait_for_heading("Forgot your password?")
    picture(page, "forgot")
    page.fill(email=person.email)
    page.press("Send the mail")
    page.wait_for_heading("Look at your mails")
    picture(page, "forgot-done")
    page.open(at(site, link_in(mail_to(person.email, "Set a new password"))))
    page.wait_for_heading("Set a new password")
    picture(page, "new-password")
    page.fill(new_password=NEW)
    page.press("Set the password")
    page.wait_for_heading("Your password is set")

    sign_in(page, site, person, NEW)
    page.wait_for_heading("Your account")
    page.press("Change the password")
    page.wait_for_heading("Change your password")
    page.fill(password=NEW, new_password=f"{NEW} again")
    picture(page, "change-password")
    page.press("Change it")
    page.wait_for("document.body.innerText.includes('The password is changed')")
    page.press("Change the address")
    page.wait_for_heading("Change your e-mail address")
    page.fill(email=f"new.{person.email}", password=f"{NEW} again")
    picture(page, "change-address")
    page.press("Send the mail")
    page.wait_for_heading("Your account")
    link = at(site, link_in(mail_to(f"new.{person.email}", "Confirm your new address")))
    page.open(link)
    page.wait_for_heading("Confirm your new address")
    page.press("Use the new address")
    page.wait_for_heading("Your address is changed")
    picture(page, "address-changed")
    page.open(link)
    page.wait_for_heading("This link is not valid")
    picture(page, "link-invalid")
    assert User.objects.get(pk=person.id).email == f"new.{person.email}"


def at(site: str, link: str) -> str:
    parts = urlsplit(link)
    return f"{site}{parts.path}?{parts.query}"
