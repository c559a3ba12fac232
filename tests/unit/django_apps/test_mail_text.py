"""Text of mails: the author's words, then what they quote. Every mail ends in text or a reason."""

from __future__ import annotations

import base64
import random
from email import message_from_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adiuva.documents import Unreadable, quotation
from adiuva.documents.html import html_to_text
from adiuva.documents.mail import parse_message, read_mail
from integrations.gmail import MessageBuilder
from integrations.mail import message_documents
from integrations.mail.mailbox_types import MailDocument, SkippedMessage
from tests.fakes.google import payload_of
from tests.sampling import fewer

QUOTES = [
    ("Yes.\n\nOn Mon, 16 Nov 2026 at 10:00, Ann Roe <ann@example.com> wrote:\n> How much?\n> Ann", "Yes."),
    ("Ja.\n\nAm 16.11.2026 um 10:00 schrieb Ann Roe:\n\n> Wie viel?", "Ja."),
    ("Oui.\n\nLe lun. 16 nov. 2026 à 10:00, Ann Roe <ann@example.com> a écrit :\n> Combien ?", "Oui."),
    ("Sí.\n\nEl lun, 16 nov 2026 a las 10:00, Ann (<ann@example.com>) escribió:\n\n> ¿Cuánto?", "Sí."),
    ("Sì.\n\nIl giorno lun 16 nov 2026 alle ore 10:00 Ann <a@example.com> ha scritto:\n> Quanto?", "Sì."),
    ("Ja.\n\nOp ma 16 nov 2026 om 10:00 schreef Ann <ann@example.com>:\n> Hoeveel?", "Ja."),
    ("Yes.\n\nOn Mon, 16 Nov 2026 at 10:00, Ann Roe\n<ann@example.com> wrote:\n\n> How much?", "Yes."),
    # Quotations without any mark in their lines.
    ("Yes.\n\nOn 16 Nov 2026, at 10:00 AM, Ann Roe wrote:\n\nHow much?\nAnn", "Yes."),
    (
        "Yes.\n\nOn Monday, November 16, 2026, 10:00:00 AM GMT+1, Ann <a@example.com> wrote:\n\nHow much?",
        "Yes.",
    ),
    ("Yes.\n\nOn Mon, Nov 16, 2026, Ann Roe\n<ann@example.com> wrote:\n\n- How much?\n- When?", "Yes."),
    ("Ja.\n\nAm 16.11.26 um 10:00 schrieb Ann Roe:\n\nWie viel?", "Ja."),
    ("Ja.\n\nAm Montag schrieb Ann Roe <ann@example.com>:\n\nWie viel?", "Ja."),
    ("Oui.\n\nLe lun. 16 nov. 2026 à 10 h 05, Ann Roe a écrit :\n\nCombien ?", "Oui."),
    ("Sí.\n\nEl 16 nov 2026, a las 10:00, Ann escribió:\n\n¿Cuánto?", "Sí."),
    ("Sì.\n\nIl giorno 16 nov 2026, alle ore 10:00, Ann ha scritto:\n\nQuanto?", "Sì."),
    ("Sim.\n\nEm seg., 16 de nov. de 2026 às 10:00, Ann escreveu:\n\nQuanto?", "Sim."),
    ("Ja.\n\nOp 16 nov. 2026 om 10:00 schreef Ann Roe:\n\nHoeveel?", "Ja."),
    ("Ja.\n\nDen 16. nov. 2026 kl. 10.00 skrev Ann Roe:\n\nHvor meget?", "Ja."),
    ("Tak.\n\nW dniu 16.11.2026 o 10:00, Ann Roe napisał(a):\n\nIle?", "Tak."),
    ("Yes.\n\n-----Original Message-----\nFrom: Ann\nHow much?", "Yes."),
    ("Ja.\n\n-----Ursprüngliche Nachricht-----\nVon: Ann\nWie viel?", "Ja."),
    ("Yes.\n\nFrom: Ann Roe <ann@example.com>\nSent: Monday\nTo: Bea\nSubject: Offer\n\nHow much?", "Yes."),
    ("Ja.\n\nVon: Ann\nGesendet: Montag\nAn: Bea\nBetreff: Angebot\n\nWie viel?", "Ja."),
    ("Tak.\n\npon., 16 lis 2026 o 10:00 Ann <ann@example.com> napisał(a):\n> Ile?", "Tak."),
    ("Да.\n\nпн, 16 нояб. 2026 г. в 10:00, Ann <ann@example.com>:\n> Сколько?", "Да."),
    ("はい。\n\n2026年11月16日(月) 10:00 Ann <ann@example.com>:\n\n> いくら？", "はい。"),
    ("Ja.\n\nFrån: Ann\nSkickat: den 16 november\nTill: Bea\nÄmne: Offert\n\nHur mycket?", "Ja."),
    ("Ja.\n\nFra: Ann\nSendt: 16. november\nTil: Bea\nEmne: Tilbud\n\nHvor meget?", "Ja."),
    ("Tak.\n\nOd: Ann\nWysłano: poniedziałek\nDo: Bea\nTemat: Oferta\n\nIle?", "Tak."),
    ("Да.\n\nОт: Ann\nОтправлено: 16 ноября\nКому: Bea\nТема: Смета\n\nСколько?", "Да."),
    ("好。\n\n发件人： Ann\n发送时间： 星期一\n收件人： Bea\n主题： 报价\n\n多少？", "好。"),
    ("> How much?\n\nTwelve hundred.\n-- \nBea", "Twelve hundred.\n-- \nBea"),
    ("Ann wrote:\n> How much?\n\nTwelve hundred.", "Twelve hundred."),
]


@pytest.mark.parametrize(("body", "own"), QUOTES)
def test_what_the_author_wrote_is_told_from_what_is_quoted(body: str, own: str) -> None:
    new, old = quotation.split_quotation(body, "Re: Offer")
    assert new == own
    assert old and all(line.startswith(">") for line in quotation.mark_quoted(old).split("\n"))
    assert sorted(f"{new}\n{old}".split()) == sorted(body.split())


@pytest.mark.parametrize(
    ("body", "subject"),
    [
        ("> How much?\nTwelve hundred.\n> When?\nFriday.", "Re: x"),  # the order is the meaning
        ("See below.\n\nFrom: Ann\nSent: Monday\nSubject: Offer\n\nHow much?", "Fwd: Offer"),
        ("> all of it is quoted", "Re: x"),
        ("On Monday we met. I wrote: nothing", ""),
        ("From: here to there\nit is far", ""),
        # The author's own list, after a line that only resembles the one that mail programs write.
        ("Hi,\n\nOn Friday Tom wrote these open points:\n- send the offer\n- book the hall", "Points"),
        ("Hi,\n\nOn 13 November 2026 at 10:00 Tom wrote these points:\nsend the offer", "Points"),
        ("Hi,\n\nOn 13 November 2026 Tom wrote:\nsend the offer", "Points"),
        ("Hi,\n\nOn 13.11 Tom wrote:\n- send the offer", "Points"),
        ("Hi,\n\nOn Friday we met.\nTom wrote:\n\nsend the offer", "Points"),
        ("Hallo,\n\nAm Montag schrieb Tom diese offenen Punkte:\n- Angebot senden", "Punkte"),
        ("Hallo,\n\nAm 13.11.2026 schrieb Tom unsere Punkte auf:\n- Angebot senden", "Punkte"),
        ("Bonjour,\n\nLe 13 novembre, Tom a écrit ces points :\n- envoyer le devis", "Points"),
        ("Hola,\n\nEl viernes Tom escribió estos puntos:\n- enviar la oferta", "Puntos"),
        ("Ciao,\n\nIl 13.11.2026 Tom ha scritto:\n- mandare il preventivo", "Punti"),
        ("Hoi,\n\nOp vrijdag schreef Tom deze punten:\n- offerte sturen", "Punten"),
        ("Hej,\n\nDen 13.11.26 skrev Tom ned punkterna:\n- skicka offerten", "Punkter"),
        ("no quotes at all", ""),
        ("", ""),
    ],
)
def test_what_cannot_be_told_apart_stays_as_it_is(body: str, subject: str) -> None:
    assert quotation.split_quotation(body, subject) == (body, "")


@settings(max_examples=fewer(150), deadline=None)
@given(
    st.lists(
        st.sampled_from(["> a", ">", "", "b", "On Mon, Ann wrote:", "From: x", "To: y", "Subject: z", "-- "])
    )
)
def test_no_word_is_lost_when_a_mail_is_taken_apart(lines: list[str]) -> None:
    body = "\n".join(lines)
    new, old = quotation.split_quotation(body)
    assert sorted(f"{new}\n{old}".split()) == sorted(body.split())


@pytest.mark.parametrize("line", ["On " + "a wrote " * 30, "From: x", "> a\nb", "_" * 300, "On x\n"])
def test_no_mail_takes_for_ever(line: str) -> None:
    quotation.split_quotation(f"{line}\n" * 3_000)


def test_quotations_of_a_page_are_marked() -> None:
    page = "<p>Yes.</p><blockquote>How<br>much?<blockquote><p>Offer</p></blockquote></blockquote><p>Bea \x0e&#14;</p>"
    assert html_to_text(page, quotes=True) == "Yes.\n\n> How\n> much?\n\n> > Offer\n\nBea"
    assert html_to_text(page) == "Yes.\n\nHow\nmuch?\n\nOffer\n\nBea"


@settings(max_examples=fewer(150), deadline=None)
@given(st.text(alphabet="<>/blockquotep \n\x0e\x0f", max_size=150))
def test_no_page_with_quotations_raises_or_keeps_a_mark(page: str) -> None:
    assert not {"\x0e", "\x0f"} & set(html_to_text(page, quotes=True))


def _mail(charset: str, raw: bytes, encoding: str = "8bit") -> bytes:
    head = (
        f"Subject: x\nContent-Type: text/plain; charset={charset}\nContent-Transfer-Encoding: {encoding}\n\n"
    )
    return head.encode() + raw


SAMPLES = [
    (_mail("utf-8", "日本語の見積もり".encode()), "日本語の見積もり"),
    (_mail("iso-2022-jp", "日本語の見積もり".encode("iso-2022-jp")), "日本語の見積もり"),
    (_mail("shift_jis", "見積もり".encode("shift_jis")), "見積もり"),
    (_mail("gb18030", "报价单".encode("gb18030")), "报价单"),
    (_mail("big5", "報價單".encode("big5")), "報價單"),
    (_mail("euc-kr", "견적서".encode("euc-kr")), "견적서"),
    (_mail("koi8-r", "Привет, смета".encode("koi8-r")), "Привет, смета"),
    (_mail("windows-1255", "הצעת מחיר".encode("windows-1255")), "הצעת מחיר"),
    (_mail("iso-8859-7", "Προσφορά".encode("iso-8859-7")), "Προσφορά"),
    (_mail("windows-1256", "عرض سعر".encode("windows-1256")), "عرض سعر"),
    (_mail("tis-620", "ใบเสนอราคา".encode("tis-620")), "ใบเสนอราคา"),
    (_mail("utf-7", "Angebot für 5 €".encode("utf-7")), "Angebot für 5 €"),
    (_mail("utf-16", base64.b64encode("breit ü".encode("utf-16")), "base64"), "breit ü"),
    (_mail("no-such-charset", "Grüße".encode()), "Grüße"),
    (_mail("us-ascii", "Grüße".encode("iso-8859-1")), "Grüße"),  # untrue
    (_mail("utf-8", "Grüße".encode("cp1252")), "Grüße"),  # untrue
    ("Subject: x\n\nGrüße ohne Angabe".encode(), "Grüße ohne Angabe"),
    (b"Subject: x\nContent-Type: text/html\n\n<p>Gr&uuml;&szlig;e", "Grüße"),
    (b"Subject: x\nContent-Type: multipart/mixed\n\nno boundary", "no boundary"),
    (b"Subject: x\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nnever ends", "never ends"),
    (b"Subject: x\nContent-Transfer-Encoding: base64\n\n!!!SGFsbG8=", "Hallo"),
]


@pytest.mark.parametrize(("raw", "text"), SAMPLES, ids=range(len(SAMPLES)))
async def test_a_mail_in_any_language_reads_the_same_from_gmail_and_as_it_was_sent(
    raw: bytes, text: str
) -> None:
    from_gmail = MessageBuilder().message(payload_of(message_from_bytes(raw), iter(range(99))))
    for whole in (raw, message_documents.to_bytes(from_gmail)):
        item = await message_documents.read_raw(whole, source_id="1", content_hash=b"", sent_at=None)
        assert isinstance(item, MailDocument)
        assert item.title == "x" and text in item.text


def test_a_text_that_gmail_did_not_decode_is_decoded_by_its_own_charset() -> None:
    for charset, text in (("iso-2022-jp", "見積"), ("koi8-r", "Привет"), ("utf-7", "für")):
        header = {"name": "Content-Type", "value": f"text/plain; charset={charset}"}
        data = base64.urlsafe_b64encode(text.encode(charset)).decode().rstrip("=")
        part = {"mimeType": "text/plain", "headers": [header], "body": {"data": data}}
        assert read_mail(MessageBuilder().message(part)).text.rstrip() == text


async def test_whatever_gmail_gives_as_a_payload_ends_in_a_document_or_a_reason() -> None:
    chance = random.Random(11)
    header = {"name": "Subject", "value": "a\nb: c"}
    odd = [None, 3, "x", "\ud800", [], {}, [None], {"name": 5}, header, "a\0b", "=?utf-8?b?//?="]
    names = [
        "mimeType",
        "headers",
        "body",
        "parts",
        "filename",
        "data",
        "size",
        "attachmentId",
        "name",
        "value",
    ]

    def made(depth: int) -> object:
        if depth == 0 or chance.random() < 0.3:
            return chance.choice([*odd, "multipart/mixed", "text/html", "message/rfc822", "SGFsbG8"])
        if chance.random() < 0.3:
            return [made(depth - 1) for _ in range(chance.randrange(4))]
        return {name: made(depth - 1) for name in chance.sample(names, chance.randrange(1, 7))}

    for _ in range(1500):
        payload = made(5)
        if isinstance(payload, dict):
            message = MessageBuilder().message(payload)
            item = await message_documents.read_document(
                message, source_id="1", content_hash=b"", sent_at=None
            )
            assert isinstance(item, MailDocument | SkippedMessage)


async def test_what_is_attached_is_listed_with_its_size_and_a_name_can_be_anything() -> None:
    part = message_documents.attachment_part('a"\r\nX: b\u2028é.pdf', "application/pdf\nX: y", 1234)
    message = message_documents.text_part(b"text", "text/plain")
    whole = message_from_bytes(b"Subject: x\nContent-Type: multipart/mixed\n\n")
    whole.set_payload([message, part])
    item = await message_documents.read_document(whole, source_id="1", content_hash=b"", sent_at=None)
    assert isinstance(item, MailDocument)
    [attachment] = item.document.attachments
    assert (attachment.type, attachment.size) == ("application/octet-stream", 1234)
    assert "\n" not in attachment.name and "é.pdf" in attachment.name


async def test_ten_megabytes_of_a_page_are_read() -> None:
    line = b"<p>A line of <b>text</b>" + b" in a large mail" * 60 + b"</p>\n"
    page = b"Subject: large\nContent-Type: text/html\n\n" + line * 10_300
    assert len(page) > 10_000_000
    item = await message_documents.read_document(
        parse_message(page), source_id="1", content_hash=b"", sent_at=None
    )
    assert isinstance(item, MailDocument) and item.text.count("A line of text") == 10_300


def test_parts_inside_parts_have_an_end() -> None:
    part = b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n"
    raw = b"Subject: x\n" + b"".join(part % (number, number) for number in range(99))
    with pytest.raises(Unreadable):
        read_mail(parse_message(raw * 500))
