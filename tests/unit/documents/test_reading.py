"""Each kind of file says what its author sees: nothing lost, nothing hidden, what is done is marked as done."""

from __future__ import annotations

import base64
import io
import zipfile

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7

from adiuva.documents import Document, Unreadable
from adiuva.documents.mail import read_mail_bytes
from adiuva.documents.reading import read_document
from tests.unit.documents import office_files, outlook_files

HEAD = "From: Ann <ann@x.example>\nTo: bea@x.example\nSubject: {0}\nDate: Mon, 05 Jan 2026 09:00:00 +0100\n"


def mail(content: str, subject: str = "s") -> Document:
    return read_mail_bytes((HEAD.format(subject) + content).encode())


def multipart(kind: str, *parts: str) -> str:
    inner = "".join(f"--b\n{part}\n" for part in parts)
    return f"Content-Type: multipart/{kind}; boundary=b\n\n{inner}--b--\n"


PLAIN = "Content-Type: text/plain; charset=utf-8\n\n"
HTML = "Content-Type: text/html; charset=utf-8\n\n"
CALENDAR = (
    "Content-Type: text/calendar; method=REQUEST\n\nBEGIN:VCALENDAR\nMETHOD:REQUEST\nBEGIN:VEVENT\n"
    "DTSTART;TZID=Europe/Rome:20260112T143000\nSUMMARY:Press check\nLOCATION:Hall 3\nDESCRIPTION:Bring the pro\n"
    " ofs\\, all\n"
    "END:VEVENT\nEND:VCALENDAR"
)

# ── Mail ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "stub",
    [
        "Your mail program cannot show HTML.",
        "The full text is in the other version, in your browser.",
        "Minutes of today.",
    ],
)
def test_the_form_of_a_text_that_says_more_is_read(stub: str) -> None:
    page = "<p>Approve the layout</p><p>Return the contract by Monday</p><p>Pay the second rate</p>"
    text = mail(multipart("alternative", PLAIN + stub, HTML + page)).text
    assert "Return the contract by Monday" in text and "Pay the second rate" in text


def test_what_only_the_rich_form_strikes_out_is_struck_out() -> None:
    text = mail(
        multipart(
            "alternative",
            PLAIN + "Book the hall\nPay the band",
            HTML + "<p><s>Book the hall</s><p>Pay the band",
        )
    ).text
    assert "~~Book the hall~~" in text and "~~Pay" not in text


def test_an_invitation_is_read_beside_its_text_and_alone() -> None:
    for content in (multipart("alternative", PLAIN + "You are invited.", CALENDAR), CALENDAR):
        text = mail(content).text
        assert "Event: Press check\nStart: 2026-01-12 14:30 (Europe/Rome)\nPlace: Hall 3" in text
        assert "Description: Bring the proofs, all" in text


def test_signed_data_is_unwrapped() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    import datetime as dt

    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    certificate = (
        builder.serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=9))
        .sign(key, hashes.SHA256())
    )
    content = b"Content-Type: text/plain; charset=utf-8\r\n\r\nReturn the agreement \xc3\xbc\r\n"
    der = (
        pkcs7.PKCS7SignatureBuilder()
        .set_data(content)
        .add_signer(certificate, key, hashes.SHA256())
        .sign(serialization.Encoding.DER, [pkcs7.PKCS7Options.Binary])
    )
    head = (
        "Content-Type: application/pkcs7-mime; smime-type=signed-data\nContent-Transfer-Encoding: base64\n\n"
    )
    assert "Return the agreement ü" in mail(head + base64.encodebytes(der).decode()).text
    for place in range(0, len(der), 7):  # cut off anywhere, it is read or refused
        try:
            mail(head + base64.encodebytes(der[:place]).decode())
        except Unreadable:
            pass


@pytest.mark.parametrize(
    "content",
    [
        "Content-Type: application/pkcs7-mime; smime-type=enveloped-data\nContent-Transfer-Encoding: base64\n\nMIIB\n",
        "Content-Type: multipart/encrypted; boundary=c\n\n--c\nContent-Type: application/pgp-encrypted\n\nx\n--c--\n",
        PLAIN + "-----BEGIN PGP MESSAGE-----\n\nhQEM\n-----END PGP MESSAGE-----\n",
    ],
)
def test_an_encrypted_mail_is_refused_and_an_encrypted_part_told(content: str) -> None:
    with pytest.raises(Unreadable, match="encrypted"):
        mail(content)
    found = mail(multipart("mixed", PLAIN + "See below.", content.rstrip("\n")))
    assert found.problems == ("a part of it is encrypted and cannot be read",)
    assert "See below." in found.text


def test_a_part_in_outlooks_own_format_is_told() -> None:
    part = (
        "Content-Type: application/ms-tnef; name=winmail.dat\nContent-Transfer-Encoding: base64\n\neJ8+IgEA"
    )
    found = mail(multipart("mixed", PLAIN, part))
    assert "a part in Outlook's own format (winmail.dat) cannot be read" in found.problems


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "Content-Transfer-Encoding: base64\n\nUGF5IHRoZSBiaWxs\n\n_____\nthe list\nlist@x.example",
            "Pay the bill",
        ),
        ("Content-Transfer-Encoding: base64\n\nUGF5IHRoZSBiaWxsIQ", "Pay the bill!"),
        ("Content-Transfer-Encoding: Quoted-Printable \n\nPay the bi=\nll =E2=82=AC", "Pay the bill €"),
        ("Content-Type: text/plain; format=flowed; delsp=yes\n\nPay the bi \nll", "Pay the bill"),
        ("Content-Type: text/plain; format=flowed\n\nPay the \nbill", "Pay the bill"),
        ('Content-Disposition: attachment; filename="b.txt"\n\nPay the bill', "Pay the bill"),
        ("Content-Type: text/plain; charset=x-mac-cyrillic\n\nPay the bill", "Pay the bill"),
    ],
)
def test_odd_encodings_are_read(content: str, said: str) -> None:
    text = mail(content).text
    assert said in text
    if "the list" in content:
        assert "the list\nlist@x.example" in text


@pytest.mark.parametrize("before", ["\r\n\r\n", "From ann@x.example Mon Jan  5 09:00:00 2026\r\n"])
def test_lines_before_the_headers_do_no_harm(before: str) -> None:
    raw = (before + HEAD.format("s").replace("\n", "\r\n") + "\r\nPay the bill\r\n").encode()
    assert read_mail_bytes(raw).head.title == "s"
    assert read_mail_bytes(raw.replace(b"\r\n", b"\r\r\n")).head.title == "s"


def test_a_mail_s_head_is_told_apart_from_its_text() -> None:
    found = mail("Message-ID: <42@x.example>\n" + PLAIN + "Hi", subject="=?x-sjis?B?kL+LgY+R?=")
    assert (found.head.title, found.head.date) == ("請求書", "2026-01-05T09:00:00+01:00")
    assert (found.head.sender, found.head.message_id) == ("Ann <ann@x.example>", "42@x.example")


def test_what_a_mail_quotes_comes_last_and_marked_in_files_as_in_mailboxes() -> None:
    older = "From: Bea <bea@x.example>\nSent: Monday\nTo: Ann\nSubject: Prices\n\nSend the price list"
    text = mail(PLAIN + f"Thanks.\n\n________________\n{older}", subject="Re: Prices").text
    own, _, quoted = text.partition("Quoted from earlier messages:\n")
    assert "Send the price list" not in own and "> Send the price list" in quoted
    page = (
        '<div>Will do</div><div class="gmail_quote"><div>On Mon, Bea wrote:</div>'
        "<blockquote>Send the price list</blockquote></div>"
    )
    text = mail(HTML + page, subject="Re: Prices").text
    own, _, quoted = text.partition("Quoted from earlier messages:\n")
    assert own.rstrip().endswith("Will do") and "Send the price list" in quoted
    forwarded = f"See this.\n\n---------- Forwarded message ---------\n{older}"
    assert "Quoted" not in mail(PLAIN + forwarded).text


# ── HTML ────────────────────────────────────────────────────────────────────────────────────────────────


def page(html: str) -> str:
    return read_document("a.html", html.encode()).text


@pytest.mark.parametrize(
    "hidden",
    [
        '<div style="display:none">NO</div>',
        "<p hidden>NO</p>",
        '<span style="font-size:0">NO</span>',
        '<div style="max-height:0;overflow:hidden">NO<p>NO</p></div>',
        '<p style="visibility: hidden">NO<b>NO</b>',
        '<p style="color:#fff;background:#fff">NO</p>',
        "<style>.pre{display:none} @media print{.x{display:none}}</style><div class='a pre'>NO</div>",
        "<!--[if mso]><p>NO</p><![endif]-->",
        "<template>NO</template><script>NO</script>",
        '<input type="hidden" value="NO"><title>NO</title>',
    ],
)
def test_what_is_hidden_is_left_out(hidden: str) -> None:
    text = page(f"<body><p>before</p>{hidden}<p class=x>after</p></body>")
    assert "NO" not in text and "before" in text and "after" in text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<s>a</s> b", "~~a~~ b"),
        ("<ul><li><del>a</del><li>b</ul>", "- ~~a~~\n- b"),
        ("<p style='text-decoration: underline line-through'>a<br>b</p>c", "~~a~~\n~~b~~\n\nc"),
        ("<strike><p>a</p><p>b</p></strike>", "~~a~~\n\n~~b~~"),
        ("<input type=checkbox checked> a", "[x] a"),
        ("<div><div>&#9745;</div><div>a</div></div>", "[x] a"),
        ("<span role=checkbox aria-checked=false></span> a", "[ ] a"),
        ("<ol start=3><li>a<ul><li>b</ul><li>c</ol>", "3. a\n  - b\n4. c"),
        ("<table><tr><th>a<th>b<tr><td>1<td><p>2</p><p>3</p></table>", "a | b\n--- | ---\n1 | 2; 3"),
        ("<table role=presentation><tr><td>a<td>b</table>", "a\nb"),
        ("<table><tr><td><table><tr><td>x<td>y</table></table>", "x | y"),
        ("<h2>a</h2>b", "## a\n\nb"),
        ("a&shy;b &#99999999; &#xD800;", "ab � �"),
        ('<a title="1 > 0">a</a>', "a"),
    ],
)
def test_html_keeps_what_its_reader_sees(html: str, text: str) -> None:
    assert page(html) == text


@pytest.mark.parametrize(
    "piece",
    [
        "<div>",
        "<b><i>",
        "<b><p>",
        "<table>",
        "<table><b>",
        "<ul><li>",
        "<li>",
        "<td>",
        '<a href="x>',
        "<s>x\n</s>",
        "</p>",
    ],
)
def test_hostile_html_takes_time_in_proportion(piece: str) -> None:
    from adiuva.documents.html import read_page

    read_page(piece * 20_000, quotes=True)


# ── Other kinds ─────────────────────────────────────────────────────────────────────────────────────────


def test_transcripts_keep_speakers_and_lose_times() -> None:
    cues = "00:01.000 --> 00:04.000 align:start\n<v Mara>Send the <i>sketch</i>\n\n00:04.000 --> 00:05.000\nBy Monday"
    assert (
        read_document("a.vtt", f"WEBVTT\n\nNOTE x\n\n{cues}".encode()).text
        == "Mara: Send the sketch\nBy Monday\n"
    )
    head = "WEBVTT - Review\nKind: captions\nLanguage: en"
    shown = "Review\nMara: Send the sketch\nBy Monday\n"
    assert read_document("a.vtt", f"{head}\n\n{cues}".encode()).text == shown
    assert read_document("a.vtt", f"{head}\n{cues}".encode()).text == shown
    srt = b"1\r\n00:00:01,000 --> 00:00:04,000\r\nMara: Send it\r\n\r\n2\r\n00:00:04,000 --> 00:00:05,000\r\n2026\r\n"
    assert read_document("a.srt", srt).text == "Mara: Send it\n2026\n"


def test_a_message_of_outlook_is_a_mail_with_its_attachments_that_are_text() -> None:
    said = {0x0037: "Größe", 0x1000: "Return the lens.\r\nFrom here on", 0x0E04: "Ann", 0x1035: "<1@b>"}
    sender = {0x0C1A: "Bea Roe", 0x0C1F: "bea@example.com"}
    plan = {0x3707: "plan.txt", 0x370E: "text/plain", 0x3701: b"book the hall"}
    photo = {0x3707: "a.jpg", 0x370E: "image/jpeg", 0x3701: bytes(900)}
    found = read_document("a.msg", outlook_files.msg(said | sender, [plan, photo]))
    assert (found.head.title, found.head.message_id) == ("Größe", "1@b")
    assert "bea@example.com" in found.head.sender
    assert "Return the lens.\nFrom here on" in found.text and "book the hall" in found.text
    assert [(each.name, each.size) for each in found.attachments] == [("a.jpg", 900)]
    html = read_document("a.msg", outlook_files.msg({0x0037: "s", 0x1013: b"<ul><li>Pay</ul>"}))
    assert "- Pay" in html.text
    only_rtf = read_document("a.msg", outlook_files.msg({0x0037: "s", 0x1009: b"compressed"}))
    assert only_rtf.problems == ("its text is in Outlook's own format, which cannot be read",)
    with pytest.raises(Unreadable, match="damaged"):
        read_document("a.msg", outlook_files.msg(said)[:700])


def test_cards_and_calendars_are_paragraphs_without_their_photos() -> None:
    photo = base64.b64encode(bytes(range(256)) * 40).decode()
    note = "NOTE;ENCODING=QUOTED-PRINTABLE:Gr=C3=BC=\n=C3=9Fe"
    card = f"BEGIN:VCARD\nVERSION:2.1\nFN:Ann\nTEL;TYPE=CELL:+39 1\n{note}\nPHOTO:{photo}\nEND:VCARD\n"
    assert read_document("a.vcf", card.encode()).text == "Contact: Ann\nPhone: +39 1 (cell)\nNote: Grüße"
    todo = (
        "BEGIN:VCALENDAR\nBEGIN:VTODO\nSUMMARY:Pay\nDUE:20260112\nSTATUS:COMPLETED\nEND:VTODO\nEND:VCALENDAR"
    )
    assert read_document("a.ics", todo.encode()).text == "[x] To-do: Pay\nDue: 2026-01-12"


def test_a_word_document_keeps_lists_tables_and_struck_text() -> None:
    def run(text: str, form: str = "") -> str:
        return f"<w:r><w:rPr>{form}</w:rPr><w:t>{text}</w:t></w:r>"

    body = (
        f"<w:p>{run('Renew the domain', '<w:strike/>')}</w:p>"
        f"<w:tbl><w:tr><w:tc><w:p>{run('Layout')}</w:p></w:tc><w:tc><w:p>{run('Monday')}</w:p></w:tc></w:tr></w:tbl>"
        f"<w:p><w:del><w:r><w:delText>gone</w:delText></w:r></w:del><w:ins>{run('added')}</w:ins></w:p>"
    )
    found = read_document("a.docx", office_files.docx("Brief", ["Größe prüfen"], body))
    assert "Größe prüfen" in found.text and "~~Renew the domain~~" in found.text
    assert "Layout | Monday" in found.text and "added" in found.text and "gone" not in found.text
    assert (found.head.title, found.head.date) == ("Brief", "2026-01-05T09:00:00+00:00")


def test_slides_come_in_the_order_of_the_presentation() -> None:
    text = read_document("a.pptx", office_files.pptx("Start", ["first", "second"])).text
    assert text.index("Start") < text.index("first") < text.index("second")


def test_a_sheet_is_rows_under_its_name() -> None:
    found = read_document("a.xlsx", office_files.xlsx("Plan", [["What", "Due"], ["Layout", "2026-01-12"]]))
    assert found.text == "## Plan\n\nWhat | Due\nLayout | 2026-01-12\n"


@pytest.mark.parametrize("suffix", ["docx", "pptx", "xlsx", "odt", "epub", "pdf", "rtf"])
def test_what_is_damaged_or_protected_is_refused_in_words(suffix: str) -> None:
    whole = getattr(office_files, suffix)("t", [["line"]] if suffix == "xlsx" else ["line"])
    for raw in (whole[: len(whole) // 3], b"\xd0\xcf\x11\xe0" + b"\0" * 600, b"x", b""):
        try:
            assert read_document(f"a.{suffix}", raw).text.strip()
        except Unreadable as refused:
            assert refused.message


def test_archives_that_unpack_to_too_much_are_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("content.xml", b" " * (80 * 1024 * 1024))
    with pytest.raises(Unreadable, match="unpacks to too much"):
        read_document("a.odt", file.getvalue())


def test_xml_entities_and_depth_are_refused() -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>'
    with pytest.raises(Unreadable, match="entities"):
        read_document("a.odt", office_files.packed({"content.xml": bomb}))
    deep = "<a>" * 5_000 + "</a>" * 5_000
    with pytest.raises(Unreadable, match="deeply"):
        read_document("a.odt", office_files.packed({"content.xml": deep}))
