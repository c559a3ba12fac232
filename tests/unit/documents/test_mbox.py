"""An mbox file is its mails, each of them once, as it was before it was put there."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from adiuva.devices.client.file_access import ReadableArea
from adiuva.documents.kinds import READABLE
from adiuva.documents.mbox import mail_bytes, mails_of_mbox
from tests.sampling import fewer
from tests.unit.documents.sample_files import run_device

LINES = st.lists(
    st.sampled_from([b"Hello", b"", b"From here on", b">From there", b">>From afar", b"> quoted", b"x: y"]),
    max_size=6,
)


def put(mails: list[bytes]) -> bytes:
    """As a mail program writes them."""
    said = []
    for mail in mails:
        lines = [
            b">" + line if line.lstrip(b">").startswith(b"From ") else line for line in mail.split(b"\n")
        ]
        said.append(b"From me@example.com Mon Jan  5 09:00:00 2026\n" + b"\n".join(lines) + b"\n")
    return b"".join(said)


@settings(max_examples=fewer(60), deadline=None)
@given(st.lists(LINES, min_size=1, max_size=5))
def test_what_is_put_into_a_mailbox_comes_out_again(bodies: list[list[bytes]]) -> None:
    mails = [b"Subject: s%d\n\n%s\n" % (number, b"\n".join(body)) for number, body in enumerate(bodies)]
    raw = put(mails)
    found, left_out = mails_of_mbox(io.BytesIO(raw), 100)
    assert left_out == 0
    taken = [mail_bytes(raw[mail.start : mail.start + mail.size]) for mail in found]
    assert [mail.rstrip(b"\n") for mail in taken] == [mail.rstrip(b"\n") for mail in mails]
    assert [hashlib.sha256(mail).hexdigest() for mail in taken] == [mail.sha256 for mail in found]
    last, left_out = mails_of_mbox(io.BytesIO(raw), 2)
    assert (last, left_out) == (found[-2:], max(0, len(found) - 2))


@settings(max_examples=fewer(60), deadline=None)
@given(st.binary(max_size=200), st.integers(0, 5))
def test_any_bytes_are_mails_or_none(noise: bytes, place: int) -> None:
    raw = put([b"Subject: s\n\nx"])
    for mail in mails_of_mbox(io.BytesIO(raw[:place] + noise + raw[place:]), 100)[0]:
        assert mail.size > 0


async def test_a_device_offers_each_mail_of_a_mailbox_and_says_what_is_none(tmp_path: Path) -> None:
    one, two = b"Subject: One\nMessage-ID: <1@b>\n\nPay one\nFrom here", b"Subject: Two\n\nPay two"
    (tmp_path / "all.mbox").write_bytes(put([one, two, one]))
    (tmp_path / "none.mbox").write_bytes(b"just text")
    run = await run_device(tmp_path)
    mails = {file.metadata["title"]: file for file in run.files["all.mbox"]}
    assert mails.keys() == {"One", "Two"}
    assert "Pay one\nFrom here" in mails["One"].content
    assert run.problems == {"none.mbox": "there is no mail in it"}
    before = {file.path for file in run.files["all.mbox"]}
    (tmp_path / "all.mbox").write_bytes(put([b"Subject: Zero\n\nPay first", one, two]))
    area = ReadableArea([tmp_path.resolve()], [str(tmp_path)])
    # A mail keeps its path, so what is known of it holds wherever it lies in the file.
    assert before < {file.path for file in area.list_files([], READABLE).files}
