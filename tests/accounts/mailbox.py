"""The mails that users get in tests: read from where this process and the server processes write them."""

from __future__ import annotations

import email
import email.policy
import re
import time
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


def mails_to(address: str) -> list[EmailMessage]:
    """All mails to an address so far, in no order. Sends first what waits to be sent."""
    from django.conf import settings
    from django.core import mail

    from adiuva.accounts import mails

    mails.sweep()
    written = [sent.message().as_bytes() for sent in mail.outbox]
    folder = Path(settings.EMAIL_FILE_PATH)
    for file in folder.glob("*.log") if folder.exists() else ():
        written += [part for part in re.split(rb"\n-{79}\n", file.read_bytes()) if part.strip()]
    found = [email.message_from_bytes(raw, policy=email.policy.default) for raw in written]
    return [message for message in found if message["To"] == address]


def mail_to(address: str, subject: str, *, within_s: float = 60) -> str:
    """The text of the mail to an address whose subject holds `subject`. A worker may be about to send it."""
    until = time.monotonic() + within_s
    while True:
        for message in mails_to(address):
            if subject in message["Subject"]:
                return str(message.get_content())
        assert time.monotonic() < until, f"no mail about {subject!r}"
        time.sleep(0.1)


def link_in(text: str) -> str:
    (link,) = re.findall(r"\S+\?token=\S+", text)
    return str(link)


def token_in(text: str) -> str:
    """The token of the link in a mail."""
    return parse_qs(urlsplit(link_in(text)).query)["token"][0]
