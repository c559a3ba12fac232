"""Mails, pages and texts to text: what people and programs send, and what nobody should."""

from __future__ import annotations

import base64
import random
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adiuva.documents import Document, Unreadable
from adiuva.documents.html import html_to_text
from adiuva.documents.kinds import READABLE
from adiuva.documents.mail import read_mail_bytes
from adiuva.documents.reading import read_document
from tests.sampling import fewer


def extract(suffix: str, raw: bytes) -> Document:
    return read_document(f"a{suffix}", raw)


def mail_to_text(raw: bytes) -> tuple[str, dict[str, Any]]:
    document = read_mail_bytes(raw)
    return document.text, document.metadata()


def mail(*lines: str | bytes) -> bytes:
    return b"\n".join(line.encode() if isinstance(line, str) else line for line in lines)


MULTIPART = mail(
    "From: a@example.com",
    "Subject: Two ways",
    'Content-Type: multipart/alternative; boundary="b"',
    "",
    "--b",
    "Content-Type: text/plain",
    "",
    "the plain way",
    "--b",
    "Content-Type: text/html",
    "",
    "<p>the <b>rich</b> way</p>",
    "--b--",
)


def test_headers_come_first_decoded_and_in_one_order() -> None:
    text, metadata = mail_to_text(
        mail(
            "Subject: =?utf-8?q?Angebot_f=C3=BCr?= =?utf-8?q?_Caf=C3?= =?utf-8?q?=A9?=",
            "X-Spam: no",
            "To: =?iso-8859-1?b?SvxyZ2Vu?= <j@example.com>,",
            " b@example.com",
            "From: a@example.com",
            "Date: Wed, 18 Nov 2026 19:33:50 +0100",
            "",
            "Hello",
        )
    )
    assert text == (
        "Date: Wed, 18 Nov 2026 19:33:50 +0100\nFrom: a@example.com\nTo: Jürgen <j@example.com>, b@example.com\n"
        "Subject: Angebot für Café\n\nHello\n"
    )
    assert metadata == {
        "type": "message/rfc822",
        "title": "Angebot für Café",
        "date": "2026-11-18T19:33:50+01:00",
        "sender": "a@example.com",
        "recipients": "Jürgen <j@example.com>, b@example.com",
    }


def test_a_header_cannot_make_up_another_one() -> None:
    text, _ = mail_to_text(mail("Subject: =?utf-8?q?Hi=0AFrom:_boss@example.com?=", "", "x"))
    assert text.splitlines()[0] == "Subject: Hi From: boss@example.com"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("=?utf-8?b?!!!?=", "Subject: "),
        ("=?no-such-charset?q?abc?=", "abc"),
        ("=?utf-8?q?unfinished", "=?utf-8?q?unfinished"),
        (b"raw \xc3\xbc", "raw ü"),
        (b"latin \xfc", "latin ü"),
        (r"=?utf-8?q?a?= C:\users\x", r"C:\users\x"),
    ],
)
def test_a_broken_subject_is_shown_as_well_as_can_be(raw: str | bytes, shown: str) -> None:
    subject = raw.encode() if isinstance(raw, str) else raw
    text, _ = mail_to_text(mail(b"Subject: x " + subject, "", "body"))
    assert shown in text
    assert text.endswith("body\n")


def test_of_two_forms_of_one_text_the_plain_one_is_taken() -> None:
    text, _ = mail_to_text(MULTIPART)
    assert "the plain way" in text
    assert "rich" not in text


def test_html_is_taken_where_the_plain_form_is_empty() -> None:
    text, _ = mail_to_text(MULTIPART.replace(b"the plain way", b" "))
    assert "the rich way" in text


def test_base64_and_quoted_printable_are_decoded_in_their_charset() -> None:
    body = base64.b64encode("Grüße".encode("iso-8859-1"))
    text, _ = mail_to_text(
        mail("Content-Type: text/plain; charset=iso-8859-1", "Content-Transfer-Encoding: base64", "", body)
    )
    assert text == "Grüße\n"
    text, _ = mail_to_text(
        mail(
            "Content-Type: text/plain; charset=utf-8",
            "Content-Transfer-Encoding: quoted-printable",
            "",
            "Gr=C3=BC=C3=9Fe an =\nalle",
        )
    )
    assert text == "Grüße an alle\n"


def test_quoted_replies_stay() -> None:
    text, _ = mail_to_text(mail("Subject: Re: x", "", "Yes.", "", "> - [ ] Jonas: hours by 2026-11-20"))
    assert "> - [ ] Jonas: hours by 2026-11-20" in text


def test_attached_texts_are_read_and_other_attachments_listed() -> None:
    text, metadata = mail_to_text(
        mail(
            "Subject: Contract",
            "Content-Type: multipart/mixed; boundary=b",
            "",
            "--b",
            "",
            "See below.",
            "--b",
            "Content-Type: application/pdf",
            "Content-Disposition: attachment; filename*=utf-8''Vertr%C3%A4ge.pdf",
            "",
            "%PDF",
            "--b",
            'Content-Type: text/plain; name="notes.txt"',
            "Content-Disposition: attachment",
            "",
            "attached text",
            "--b--",
        )
    )
    assert text.endswith(
        "See below.\n\nAttachment notes.txt:\nattached text\n\nAttachments:\n- Verträge.pdf (application/pdf)\n"
    )
    assert metadata["attachments"][0] == {"name": "Verträge.pdf", "type": "application/pdf"}


def test_a_forwarded_mail_is_read_too_and_a_long_one_is_cut_visibly() -> None:
    inner = "Subject: Inner\n\n" + "The forwarded words.\n" * 10_000
    text, metadata = mail_to_text(mail("Subject: Fwd", "Content-Type: message/rfc822", "", inner))
    assert "Forwarded mail:\nSubject: Inner\n\nThe forwarded words." in text
    assert "[The rest of it is left out.]" in text
    assert len(text) < 110_000
    assert metadata["problems"] == ["a long forwarded or attached text was cut"]


def test_mails_forwarded_over_and_over_end() -> None:
    raw = b"Subject: s\nContent-Type: message/rfc822\n\n" * 50 + b"\nthe end"
    text, metadata = mail_to_text(raw)
    assert text.count("Forwarded mail:") == 5
    assert metadata["problems"] == ["a mail forwarded too many times over was left out"]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (mail("no headers here", "just words"), "just words"),
        (mail("Content-Type: multipart/mixed", "", "no boundary given"), "no boundary given"),
        (mail("Content-Type: multipart/mixed; boundary=x", "", "never started"), "never started"),
        (mail("Content-Type: text/plain; charset=undefined", "", b"caf\xe9"), "café"),
        (mail("Content-Type: text/plain; charset=utf-8", "", b"caf\xe9"), "café"),
        (mail("Content-Type: text/plain; charset*=a'b'c", "", "text"), "text"),
        (mail("Content-Type: text/plain; charset*0*=\xff", "", "text"), "text"),
        (mail("Content-Type: ;;;", "", "text"), "text"),
        (mail("Content-Transfer-Encoding: base64", "", "SGVsbG8g!d29ybGQ"), "Hello"),
        (mail("Content-Transfer-Encoding: x-uuencode", "", "begin 644 a", "\x01\x02"), None),
        (MULTIPART[:-30], "the plain way"),
    ],
)
def test_malformed_mails_give_what_can_be_read(raw: bytes, said: str | None) -> None:
    text, _ = mail_to_text(mail("Subject: s", raw) if said != "just words" else raw)
    assert said is None or said in text


def test_a_mail_that_is_cut_off_is_said_to_be() -> None:
    _, metadata = mail_to_text(mail("Subject: s", "Content-Type: multipart/mixed; boundary=x", "", "text"))
    assert metadata["problems"] == ["it may be cut off"]


@pytest.mark.parametrize(
    "raw", [b"", b"\n\n", b"X-Only: headers\n\n", mail("Content-Type: image/png", "", "binary"), b"\0" * 100]
)
def test_a_mail_without_any_text_is_refused_with_a_reason(raw: bytes) -> None:
    with pytest.raises(Unreadable):
        extract(".eml", raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"Subject: x" + b"\n" * 2_000_000,
        b"Subject: s\n"
        + b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (i, i) for i in range(2000)),
        b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\n" * 100_000,
        b"Content-Type: multipart/report; boundary=b\n\n--b\nContent-Type: message/delivery-status\n\n"
        + b"a:b\n\n" * 100_000,
    ],
)
def test_mails_that_would_take_for_ever_are_refused(raw: bytes) -> None:
    with pytest.raises(Unreadable, match="too many"):
        mail_to_text(raw)


def test_a_mail_of_ten_megabytes_is_read_whole() -> None:
    body = base64.encodebytes(b"A line of text in a large mail.\n" * 230_000)
    text, _ = mail_to_text(b"Subject: large\nContent-Transfer-Encoding: base64\n\n" + body)
    assert text.count("A line of text") == 230_000


def test_no_damage_to_a_mail_raises_anything_but_unreadable() -> None:
    chance = random.Random(7)
    inserted = [
        b"=?utf-8?b?//?=",
        b"\0",
        b"charset*=a'b'c",
        b"Content-Transfer-Encoding: x-uuencode\n",
        b"\n\n",
        b"\xff",
    ]
    for _ in range(1500):
        raw = bytearray(MULTIPART)
        for _ in range(chance.randint(1, 12)):
            place = chance.randrange(len(raw))
            match chance.randrange(3):
                case 0:
                    raw[place] = chance.randrange(256)
                case 1:
                    raw[place:place] = chance.choice(inserted)
                case 2:
                    del raw[place : place + chance.randrange(20)]
        try:
            document = read_mail_bytes(bytes(raw))
        except Unreadable:
            continue
        orjson.dumps([document.text, document.metadata()])


def test_a_page_reads_as_a_reader_sees_it() -> None:
    page = """<!doctype html><html><head><title>T</title><style>p {}</style></head><body>
    <h1>Head &amp; tail</h1><p>One<br>two &lt;3</p><script>alert("no")</script>
    <ul><li><input type="checkbox" checked> done</li>
        <li><input type=checkbox> open</li></ul>
    <table><tr><td>a</td><td>b</td></tr></table><!-- gone --><pre>  x
  y</pre> 1 < 2 <img alt="a boat"></body></html>"""
    assert html_to_text(page) == (
        "# Head & tail\n\nOne\ntwo <3\n\n- [x] done\n- [ ] open\n\na | b\n\nx\ny\n\n1 < 2 a boat"
    )


@pytest.mark.parametrize(
    "comment", ["<!-- x -->", "<!-->", "<!--->", "<!-- x --!>", "<!--!> x -->", "<!---->"]
)
def test_what_follows_a_comment_is_read_however_it_ends(comment: str) -> None:
    assert html_to_text(f"before {comment}after") == "before after"


@pytest.mark.parametrize(
    "piece", ["<!--", "<a", "<", "<head>", "<script>", "&#9", "<pre> ", "<img alt='", "</p", "\f"]
)
def test_malformed_pages_do_not_take_for_ever(piece: str) -> None:
    html_to_text("<p>start</p>" + piece * 200_000)


@settings(max_examples=fewer(200), deadline=None)
@given(st.text(alphabet="<>/!-pbrscitlehad &#;x09'\"= \n\v\f", max_size=200))
def test_no_page_raises(page: str) -> None:
    html_to_text(page)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("plain ü".encode(), "plain ü"),
        (b"\xef\xbb\xbfwith a mark", "with a mark"),
        ("wide ü".encode("utf-16"), "wide ü"),
        (b"\xfe\xff" + "big ü".encode("utf-16-be"), "big ü"),
        ("wider ü".encode("utf-32"), "wider ü"),
        (b"windows \x80 \xfc", "windows € ü"),
        (b"a\r\nb\rc\n", "a\nb\nc\n"),
        (b"", ""),
    ],
)
def test_texts_are_decoded_by_mark_then_utf8_then_windows(raw: bytes, text: str) -> None:
    assert extract(".txt", raw).text == text


def test_the_charset_of_a_page_is_the_one_it_names() -> None:
    page = "<meta charset='iso-8859-2'><p>Łódź</p>".encode("iso-8859-2")
    assert extract(".html", page).text == "Łódź"


@pytest.mark.parametrize("raw", [b"MZ\0\0\x01\x02" * 50, bytes(range(256)) * 4, b"\x89PNG\r\n\x1a\n\0\0\0"])
def test_what_is_not_text_is_refused(raw: bytes) -> None:
    with pytest.raises(Unreadable, match="not text"):
        extract(".md", raw)


def test_other_kinds_are_refused_with_the_reason() -> None:
    with pytest.raises(Unreadable, match="this kind of file cannot be read yet"):
        extract(".psd", b"8BPS")


def test_every_file_of_the_sample_workspace_can_be_read() -> None:
    sample = Path(__file__).parents[2] / "adiuva" / "embedded" / "sample"
    files = [path for path in sample.rglob("*") if path.is_file()]
    assert len(files) >= 14
    lengths = {path.name: len(extract(path.suffix, path.read_bytes()).text) for path in files}
    assert all(path.suffix in READABLE for path in files)
    assert min(lengths.values()) > 100
    assert max(lengths.values()) > 8_000
