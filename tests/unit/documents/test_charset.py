"""Bytes become the text that their author wrote: by WHATWG's labels, and by a detector where no label fits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adiuva.documents import Unreadable
from adiuva.documents.charset import decode, python_codec
from tests.sampling import fewer

RUSSIAN = "Отправить смету до пятницы, позвонить заказчику"
JAPANESE = "金曜日までに見積書を送ってください"


@pytest.mark.parametrize(
    ("raw", "label", "text"),
    [
        ("40 € – don’t".encode("cp1252"), "iso-8859-1", "40 € – don’t"),
        ("40 €".encode("cp1252"), "US-ASCII", "40 €"),
        (JAPANESE.encode("cp932"), "x-sjis", JAPANESE),
        ("发送报价单".encode("gbk"), "x-gbk", "发送报价单"),
        ("发送报价单㐀".encode("gb18030"), "gb2312", "发送报价单㐀"),
        ("לשלוח".encode("iso-8859-8"), "iso-8859-8-i", "לשלוח"),
        ("ใบเสนอ".encode("cp874"), "windows-874", "ใบเสนอ"),
        ("뷁 견적".encode("cp949"), "ks_c_5601-1987", "뷁 견적"),
        ("weiß".encode("utf-7"), "utf-7", "weiß"),
        ("größer".encode(), "iso-8859-1", "größer"),  # the label is wrong
        ("größer".encode(), "no-such-charset", "größer"),
        (RUSSIAN.encode("koi8-r"), "utf-8", RUSSIAN),
        (b"\x81 stays", "windows-1252", " stays"),
    ],
)
def test_a_label_is_read_as_browsers_read_it(raw: bytes, label: str, text: str) -> None:
    assert decode(raw, label).text == text


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("cp1251", RUSSIAN),
        ("koi8-r", RUSSIAN),
        ("cp932", JAPANESE),
        ("euc-jp", JAPANESE),
        ("gb18030", "任务,日期\n发送报价单"),
        ("big5", "週五前寄出報價單給客戶"),
        ("euc-kr", "금요일까지 견적서를 보내기"),
        ("cp1253", "Να σταλεί η προσφορά μέχρι την Παρασκευή"),
        ("cp1255", "לשלוח את ההצעה עד יום שישי"),
        ("iso-8859-2", "Zażółć gęślą jaźń, wysłać fakturę"),
        ("cp1252", "Größere Änderung bis Freitag prüfen – 40 €"),
        ("cp1252", "Grüße"),
        ("mac-roman", "préparer l’été – déjà payé"),
        ("utf-16-le", "Angebot prüfen"),
        ("utf-16-be", "Angebot prüfen"),
    ],
)
def test_without_a_label_a_line_is_enough(charset: str, text: str) -> None:
    assert decode(text.encode(charset)).text == text


def test_mostly_valid_utf8_stays_utf8_and_its_bad_bytes_are_told() -> None:
    decoded = decode("café – größer – ".encode() + b"caf\xe9")
    assert decoded.text == "café – größer – café"
    assert decoded.note == "1 of its bytes is not UTF-8, and read as Windows-1252"


def test_what_was_guessed_is_told() -> None:
    assert "Windows-1251" in decode(RUSSIAN.encode("cp1251")).note
    assert decode(RUSSIAN.encode()).note == ""


@pytest.mark.parametrize("raw", [b"\x80\x81\xff\xfe\xfd" * 20 + b"\0" * 30, b"\xff\xd8\0\0", b"\x01\x02\x80"])
def test_what_is_no_text_is_refused_instead_of_garbled(raw: bytes) -> None:
    with pytest.raises(Unreadable):
        decode(raw)


@given(st.text(max_size=200))
@settings(max_examples=fewer(200), deadline=None)
def test_utf8_comes_back_as_it_was(text: str) -> None:
    raw = text.encode("utf-8", "ignore")
    if not raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe")) and b"\0" not in raw:
        assert decode(raw).text == raw.decode()


@given(
    st.binary(max_size=300),
    st.sampled_from(["", "utf-8", "iso-8859-1", "x-sjis", "gbk", "utf-7", "idna", "zip", "x"]),
)
@settings(max_examples=fewer(300), deadline=None)
def test_no_bytes_and_no_label_raise_anything_but_unreadable(raw: bytes, label: str) -> None:
    try:
        decode(raw, label)
    except Unreadable as refused:
        assert refused.message


@pytest.mark.parametrize(
    "label", ["idna", "punycode", "unicode_escape", "zip", "base64", "rot13", "", "undefined", "\0"]
)
def test_what_is_no_charset_is_none(label: str) -> None:
    assert python_codec(label) == ""
