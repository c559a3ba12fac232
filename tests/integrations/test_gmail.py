"""Gmail, read through HTTP: what is new, once each, whatever Google does."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import orjson
import pytest
import time_machine
from django.utils import timezone

from adiuva.core.errors import NotFound
from adiuva.core.language import body_of
from integrations.errors import NeedsReauth, ProviderUnavailable
from integrations.gmail import GmailSync
from integrations.mail import provider_http
from integrations.mail.errors import NoSuchFolder, PageLoop, ProviderRefused, ProviderThrottled
from integrations.mail.mailbox_types import MailDocument
from integrations.mail.provider_http import MailboxAccount, Timeouts
from tests.fakes.google import Google
from tests.fakes.mailboxes import Bytes, Change, Cut, Fail, Slow
from tests.integrations.sync_harness import SWIFT, Run, gmail, skipped, titles, use


@pytest.fixture(scope="module")
def google() -> Iterator[Google]:
    with Google() as server:
        yield server


@pytest.fixture(autouse=True)
def configured(settings: Any, google: Google) -> None:
    use(settings, google=google)


def mail(subject: str, sender: str = "Bea <bea@example.com>", body: str = "Please send the offer.") -> bytes:
    return f"From: {sender}\nTo: ann@example.com\nSubject: {subject}\n\n{body}\n".encode()


async def test_a_message_becomes_a_document(google: Google) -> None:
    box = google.mailbox("document")
    sent = dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(hours=3)
    source_id = box.add(
        b"From: =?utf-8?q?J=C3=BCrgen?= <j@example.com>\nTo: a@example.com\nCc: b@example.com\nSubject: Re: Angebot\n"
        b"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/plain; charset=iso-8859-1\n"
        b"Content-Transfer-Encoding: quoted-printable\n\nGr=FC=DFe\n\nOn Mon, 16 Nov 2026, Ann wrote:\n> How much?\n"
        b"--b\nContent-Type: application/pdf; name=a.pdf\nContent-Disposition: attachment; filename=a.pdf\n\n%PDF\n"
        b"--b\nContent-Type: message/rfc822\n\nSubject: Inner\n\nThe forwarded words.\n--b--\n",
        at=sent.timestamp(),
    )  # fmt: skip
    [item] = await Run().read(gmail(box))
    assert isinstance(item, MailDocument)
    assert (item.source_id, item.title, item.sent_at) == (source_id, "Re: Angebot", sent)
    assert (item.sender, item.document.head.recipients) == (
        "Jürgen <j@example.com>",
        "a@example.com, b@example.com",
    )
    assert [(each.name, each.type, each.size) for each in item.document.attachments] == [
        ("a.pdf", "application/pdf", 4)
    ]
    assert "Grüße\n\nForwarded mail:\nSubject: Inner\n\nThe forwarded words." in item.text
    assert item.text.index("The forwarded words.") < item.text.index(
        "Quoted from earlier messages:\n> On Mon"
    )
    assert not any("attachments" in path for path in box.asked)


async def test_attachments_that_are_text_are_read(google: Google) -> None:
    box = google.mailbox("attached")
    head = b"--b\nContent-Type: %s; name=%s\nContent-Disposition: attachment; filename=%s\n\n%s\n"
    attached = [
        (b"text/plain", b"plan.txt", b"book the hall"),
        (b"application/octet-stream", b"list.csv", b"what,when\nprint the flyers,Friday"),
        (
            b"text/calendar",
            b"call.ics",
            b"BEGIN:VCALENDAR\nBEGIN:VEVENT\nSUMMARY:Press check\nEND:VEVENT\nEND:VCALENDAR",
        ),
        (b"text/plain", b"big.txt", b"x" * (1 << 20) + b"y"),
        (b"application/pdf", b"a.pdf", b"%PDF"),
    ]
    parts = b"".join(head % (kind, name, name, raw) for kind, name, raw in attached)
    box.add(
        b"Subject: s\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nSee below.\n" + parts + b"--b--\n"
    )
    [item] = await Run().read(gmail(box))
    assert isinstance(item, MailDocument)
    for shown in ("See below.", "book the hall", "print the flyers,Friday", "Event: Press check"):
        assert shown in item.text
    assert [each.name for each in item.document.attachments] == ["big.txt", "a.pdf"]


async def test_what_arrives_later_and_during_a_reading_is_found_by_the_next_one(google: Google) -> None:
    box, run = google.mailbox("later"), Run()
    box.add(mail("one"))
    box.add(mail("two"))
    reading = gmail(box)
    box.fault("/messages/", Change(lambda answer: (box.add(mail("meanwhile")), answer)[1]))
    assert sorted(titles(await run.read(reading))) == ["one", "two"]
    box.add(mail("three"))
    assert titles(await run.read(gmail(box))) == ["meanwhile", "three"]
    assert await run.read(gmail(box)) == []
    assert len([path for path in box.asked if "/messages/m" in path]) == 4  # each was fetched once


async def test_a_reading_that_dies_half_way_loses_nothing_and_fetches_nothing_twice(google: Google) -> None:
    box, run = google.mailbox("dies"), Run()
    box.page = 5
    for number in range(12):
        box.add(mail(str(number)))
    await run.read(gmail(box), most=7)
    assert run.cursor is None  # a list is not settled before its end
    box.add(mail("late"))
    await run.read(gmail(box))
    for number in range(12, 24):
        box.add(mail(str(number)))
    await run.read(gmail(box), most=7)
    stored = run.cursor
    await run.read(gmail(box))
    assert run.cursor != stored
    assert len(run.settled) == 25 and set(run.settled.values()) == {1}


async def test_an_expired_history_is_made_good_by_a_list_of_a_bounded_time(google: Google) -> None:
    box, run = google.mailbox("expired"), Run()
    box.add(mail("long ago"), at=time.time() - 80 * 86400)
    box.add(mail("old"), at=time.time() - 3600)
    assert len(await run.read(gmail(box))) == 2
    box.add(mail("new"))
    box.forget()
    assert titles(await run.read(gmail(box))) == ["new"]
    bound = int(box.queries[-1].split()[0].removeprefix("after:"))
    assert 1.9 < (time.time() - bound) / 86400 < 2.1
    box.add(mail("newer"))
    assert titles(await run.read(gmail(box))) == ["newer"]


async def test_labels_senders_and_days_are_asked_for_and_checked(
    google: Google, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    box = google.mailbox("filters")
    box.labels["Label_7"] = "Clients/Big"
    # Without a range of days, which comes last here, mails of a bounded time are read.
    noon = (dt.datetime.now(dt.UTC) - dt.timedelta(days=20)).replace(hour=12)
    day = noon.timestamp()
    box.add(mail("wanted"), "INBOX", "Label_7", at=day)
    box.add(mail("twice labelled"), "SENT", "Label_7", at=day)
    box.add(mail("other sender", "Max <max@example.com>"), "Label_7", at=day)
    box.add(mail("next day"), "Label_7", at=day + 86400)
    unlabelled = box.add(mail("labelled later"), at=day)
    box.add(mail("draft"), "DRAFT", "Label_7", at=day)
    config = {
        "labels": ["clients/big", "SENT", "No such"],
        "senders": ["bea@example.com"],
        "date_range": {"from": f"{noon:%Y-%m-%d}", "to": f"{noon:%Y-%m-%d}"},
    }
    run = Run()
    items = await run.read(gmail(box), **config)
    assert sorted(titles(items)) == ["twice labelled", "wanted"]
    assert skipped(items) == [("No such", "no_such_folder")]
    assert box.queries[0].endswith("{from:bea@example.com}")
    assert "example.com" not in caplog.text and "after:" not in caplog.text
    box.label(unlabelled, "Label_7")
    assert titles(await run.read(gmail(box), **config)) == ["labelled later"]
    # Other filters: what was passed over may be wanted now.
    before = len(box.queries)
    assert titles(await run.read(gmail(box), labels=["SENT", "Label_7"])) == [
        "next day",
        "other sender",
    ]
    assert len(box.queries) > before


@pytest.mark.parametrize("label", ["DRAFT", "CHAT", "SPAM", "TRASH"])
async def test_what_is_read_only_if_it_is_named_is_read_from_the_beginning(
    google: Google, label: str
) -> None:
    box, run = google.mailbox(f"named {label}"), Run()
    box.labels[label] = label.lower()
    box.add(mail("before"), label)
    box.add(mail("another"), "INBOX")
    assert titles(await run.read(gmail(box), labels=[label.lower()])) == ["before"]
    box.add(mail("later"), label)
    assert titles(await run.read(gmail(box), labels=[label.lower()])) == ["later"]
    assert titles(await Run().read(gmail(box))) == ["another"]


@pytest.mark.parametrize(
    "sender", ["x} OR in:trash", 'a" OR from:b', "b@example.com in:trash", "b@example.com}{"]
)
async def test_a_sender_cannot_become_a_query(google: Google, sender: str) -> None:
    box = google.mailbox("injection")
    box.add(mail("x"))
    assert await Run().read(gmail(box), senders=[sender]) == []
    assert "from:" not in box.queries[0] and "trash" not in box.queries[0]


async def test_a_mail_that_comes_back_from_spam_is_news_and_one_that_is_archived_is_not(
    google: Google,
) -> None:
    box, run = google.mailbox("rescued"), Run()
    old = box.add(mail("old"), at=time.time() - 200 * 86400)  # before all that is read
    await run.read(gmail(box))
    lost = box.add(mail("no spam"), "SPAM")
    assert await run.read(gmail(box)) == []
    for key, label, now in ((lost, "SPAM", ["INBOX"]), (old, "UNREAD", ["INBOX"]), (old, "INBOX", [])):
        box.messages[key].labels = now
        box._record("labelsRemoved", box.messages[key])
        box.history[-1]["labelsRemoved"][0]["labelIds"] = [label]
    assert titles(await run.read(gmail(box))) == ["no spam"]


async def test_a_history_that_does_not_say_labels_hides_no_mail(google: Google) -> None:
    box, run = google.mailbox("silent"), Run()
    await run.read(gmail(box), labels=["INBOX"])
    for label in ("INBOX", "SENT"):
        box.add(mail(label), label)
        del box.history[-1]["messagesAdded"][0]["message"]["labelIds"]
    assert titles(await run.read(gmail(box), labels=["INBOX"])) == ["INBOX"]


async def test_a_reading_that_dies_in_an_old_history_is_made_good_from_where_that_began(
    google: Google,
) -> None:
    box, run = google.mailbox("old history"), Run()
    box.page = 3
    await run.read(gmail(box))
    begun = timezone.now()
    for number in range(9):
        box.add(mail(str(number)), at=begun.timestamp() + 60)
    with time_machine.travel(begun + dt.timedelta(days=6)):
        await run.read(gmail(box), most=5)
    box.forget()
    with time_machine.travel(begun + dt.timedelta(days=20)):
        await run.read(gmail(box))
    assert len(run.settled) == 9 and set(run.settled.values()) == {1}


async def test_mails_that_leave_a_list_while_it_is_read_hide_no_others(google: Google) -> None:
    box, run = google.mailbox("shifts"), Run()
    box.page = 4
    keys = [box.add(mail(str(number))) for number in range(12)]
    gone = iter([keys[-1], keys[-2], keys[-6]])

    def bin_one(answer: dict[str, Any]) -> dict[str, Any]:
        if key := next(gone, None):
            box.messages[key].labels = ["TRASH"]
        return answer

    box.fault("/messages/", Change(bin_one), times=3)
    await run.read(gmail(box))
    assert set(keys) - {keys[-1], keys[-2], keys[-6]} <= run.settled.keys()


ODD_TIMES = ["Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 +2359"]


@pytest.mark.parametrize("after", ["inf", "1e400", "1e300", "1e12", "nan", "-1", "?", *ODD_TIMES])
async def test_whatever_a_retry_after_says_it_is_a_time_that_can_be_waited_for(
    google: Google, after: str
) -> None:
    box, run = google.mailbox(f"asks {after}"), Run()
    box.add(mail("x"))
    box.fault("/profile", Fail(429, "rateLimitExceeded", after))
    try:
        assert titles(await run.read(gmail(box))) == ["x"]
    except ProviderThrottled as throttled:
        assert throttled.retry_after_s == 86_400


@pytest.mark.parametrize(
    "reason", ["rateLimitExceeded", "userRateLimitExceeded", "dailyLimitExceeded", "quotaExceeded"]
)
async def test_a_quota_that_is_used_up_is_a_matter_of_time(google: Google, reason: str) -> None:
    box = google.mailbox(reason)
    box.fault("/profile", Fail(403, reason), times=9)
    with pytest.raises(ProviderThrottled):
        await Run().read(gmail(box))


async def test_no_label_at_all_is_an_error(google: Google) -> None:
    with pytest.raises(NoSuchFolder):
        await Run().read(gmail(google.mailbox("labels")), labels=["gone"])


async def test_a_text_that_google_keeps_apart_is_fetched_and_a_deleted_message_is_not_mentioned(
    google: Google,
) -> None:
    box = google.mailbox("apart")
    box.add(mail("long", body="A line of text in a large mail.\n" * 320_000))  # 10 MB
    gone = box.add(mail("gone"))
    box.add(b"")
    box.delete(gone)
    [item] = await Run().read(gmail(box))
    assert isinstance(item, MailDocument) and item.text.count("A line of text") == 320_000


async def test_what_is_wrong_with_one_message_is_listed_and_the_others_are_read(google: Google) -> None:
    box = google.mailbox("wrong")
    ids = [box.add(mail(f"n{number}")) for number in range(9)]
    box.fault(f"/messages/{ids[0]}", Fail(500), times=9)
    box.fault(f"/messages/{ids[1]}", Bytes(b"{"), times=9)
    box.fault(f"/messages/{ids[2]}", Bytes(b'{"x": "' + b"a" * 26_000_000 + b'"}'))
    box.fault(f"/messages/{ids[3]}", Fail(400, "invalidArgument"))
    box.fault(f"/messages/{ids[4]}", Change(lambda answer: {**answer, "payload": "what?"}))
    box.fault(
        f"/messages/{ids[5]}", Change(lambda answer: {**answer, "payload": {"parts": [1], "headers": 3}})
    )
    run = Run()
    items = await run.read(gmail(box))
    assert sorted(titles(items)) == ["n6", "n7", "n8"]
    assert sorted(skipped(items)) == [
        (ids[0], "provider_away"),
        (ids[1], "provider_garbled"),
        (ids[2], "too_large"),
        (ids[3], "provider_refused"),
        (ids[4], "unreadable"),
        (ids[5], "unreadable"),
    ]  # fmt: skip
    assert run.cursor


async def test_a_rejected_token_is_renewed_once_for_all_requests(google: Google) -> None:
    box = google.mailbox("token")
    for number in range(9):
        box.add(mail(str(number)))
    box.fault("/messages?", Change(lambda answer: (box.expire(), answer)[1]))
    run = Run()
    assert len(await run.read(gmail(box))) == 9
    assert box.rejected == ["token:1"]


async def test_a_reading_ends_soon_after_its_account_was_disconnected(
    google: Google, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the token would serve for an hour: not every provider takes it back."""
    monkeypatch.setattr(provider_http, "_TOKEN_REUSE_S", 0.0)
    box = google.mailbox("disconnected")
    for number in range(20):
        box.add(mail(str(number)))

    async def token(rejected: str | None) -> str:
        if len(box.asked) >= 5:
            raise NotFound("there is no such connection")
        return await box.token(rejected)

    with pytest.raises(NotFound):
        await Run().read(GmailSync(MailboxAccount(uuid4(), box.name, token), timeouts=SWIFT))
    assert len(box.asked) < 12


async def test_a_token_that_is_rejected_again_needs_the_user(google: Google) -> None:
    box = google.mailbox("revoked")
    box.fault("", Fail(401), times=2)
    with pytest.raises(NeedsReauth) as raised:
        await Run().read(gmail(box))
    assert "revoked" not in str(body_of(raised.value))
    assert len(box.asked) == 2


@pytest.mark.parametrize(
    ("part", "faults", "error"),
    [
        ("/messages", [Change(lambda answer: {**answer, "nextPageToken": "1"})] * 9, PageLoop),
        ("/profile", [Fail(503)] * 9, ProviderUnavailable),
        ("/profile", [Cut()] * 9, ProviderUnavailable),
        ("/profile", [Fail(429, "rateLimitExceeded", 7200)], ProviderThrottled),
        ("/profile", [Fail(403, "insufficientPermissions")], ProviderRefused),
        ("/messages/", [Fail(403, "insufficientPermissions")] * 9, ProviderRefused),
        ("", [Fail(500)] * 300, ProviderUnavailable),
    ],
)
async def test_what_cannot_be_overcome_is_an_error_that_quotes_nothing_and_moves_no_cursor(
    google: Google, part: str, faults: list[Fail], error: type[Exception]
) -> None:
    box, run = google.mailbox(f"error-{time.monotonic_ns()}"), Run()
    for number in range(3):
        box.add(mail(str(number)))
    box.page = 1
    box.fault(part, *faults)
    with pytest.raises(error) as raised:
        await run.read(gmail(box))
    assert run.cursor is None
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"code": 403, "errors": [{"reason": "rateLimitExceeded"}]}, "rateLimitExceeded"),
        (
            {"code": 403, "details": [{"@type": "x"}, {"reason": "RATE_LIMIT_EXCEEDED"}]},
            "RATE_LIMIT_EXCEEDED",
        ),
        (
            {"code": "SyncStateNotFound", "message": "secret", "innerError": {"date": "x"}},
            "SyncStateNotFound",
        ),
        ({"code": "Forbidden", "errors": [], "details": None}, "Forbidden"),
        ({"code": "a secret of the mail"}, ""),
        ({"code": 403, "errors": [7]}, ""),
        ("invalid_grant", ""),
        (None, ""),
    ],
)
def test_a_refusals_reason_is_one_word_in_whatever_form_it_comes(error: Any, reason: str) -> None:
    assert provider_http._error_reason(orjson.dumps({"error": error})) == reason


async def test_a_slow_answer_is_given_up_and_asked_for_again(google: Google) -> None:
    box = google.mailbox("slow")
    box.add(mail("x"))
    box.fault("/profile", Slow(5))
    assert len(await Run().read(gmail(box, Timeouts(response_s=0.2, first_backoff_s=0.01)))) == 1
