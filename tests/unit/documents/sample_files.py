"""Files of every kind in twelve languages, whole and damaged, made from a seed; and one run of a device over them."""

from __future__ import annotations

import asyncio
import base64
import quopri
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from adiuva.devices.client.agent_run import Upload
from adiuva.devices.client.file_access import ReadableArea
from adiuva.devices.client.store import Store
from adiuva.devices.protocol import (
    AgentAck,
    AgentComplete,
    AgentData,
    AgentFetch,
    AgentFile,
    AgentManifest,
    AgentRun,
    AgentRunConfig,
    Received,
)
from tests.unit.documents import office_files, outlook_files

# Of each language some items, and a charset of the time before Unicode.
LANGUAGES: Final[dict[str, tuple[str, Sequence[str]]]] = {
    "en": (
        "windows-1252",
        ["Send the price list by Friday", "Call the printer about the paper", "Pay “Stage 2”, 40 €"],
    ),
    "de": (
        "iso-8859-15",
        ["Angebot bis Freitag prüfen", "Größe der Flächen erfragen", "Rechnung über 40 € schicken"],
    ),
    "fr": (
        "windows-1252",
        ["Préparer le devis pour l’été", "Appeler le relieur à midi", "Payer la dernière étape"],
    ),
    "it": (
        "iso-8859-1",
        ["Mandare il preventivo entro venerdì", "Chiamare la tipografia", "Pagare più tardi"],
    ),
    "es": ("windows-1252", ["Enviar el presupuesto mañana", "Llamar a la imprenta", "¿Pagar el diseño?"]),
    "pl": ("iso-8859-2", ["Wysłać ofertę do piątku", "Zadzwonić do drukarni", "Zapłacić za źródła"]),
    "ru": ("koi8-r", ["Отправить счёт заказчику", "Позвонить в понедельник", "Оплатить второй этап"]),
    "el": ("iso-8859-7", ["Να σταλεί η προσφορά", "Τηλεφώνημα στο τυπογραφείο", "Πληρωμή ως την Παρασκευή"]),
    "he": ("windows-1255", ["לשלוח את ההצעה עד יום שישי", "להתקשר לדפוס", "לשלם את החשבון"]),
    "ja": ("shift_jis", ["金曜日までに見積書を送る", "印刷会社に電話する", "第二段階の請求書を払う"]),
    "zh": ("gb18030", ["周五之前发送报价单", "给印刷厂打电话", "支付第二阶段的发票"]),
    "ko": ("euc-kr", ["금요일까지 견적서 보내기", "인쇄소에 전화하기", "두 번째 단계 청구서 결제"]),
}
_WORD: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")


@dataclass(frozen=True)
class SampleFile:
    """`lines`: what a reader of it must be shown; `damage`: what was done to it, "" if nothing."""

    name: str
    raw: bytes
    lines: Sequence[str]
    damage: str = ""

    @property
    def kind(self) -> str:
        return self.name.rpartition(".")[2]


def words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def share_of_words(file: SampleFile, shown: str) -> float:
    wanted, there = words(" ".join(file.lines)), set(words(shown))
    return sum(word in there for word in wanted) / len(wanted)


def _mail(lines: Sequence[str], head: str, body: str) -> bytes:
    return (
        "From: Sam <sam@client.example>\r\nTo: me@studio.example\r\nSubject: x\r\nMessage-ID: <1@client.example>\r\n"
        f"Date: Mon, 05 Jan 2026 09:00:00 +0100\r\nMIME-Version: 1.0\r\n{head}\r\n\r\n{body}\r\n"
    ).encode()


def _plain_mail(lines: Sequence[str], charset: str) -> bytes:
    body = base64.encodebytes("\r\n".join(lines).encode(charset)).decode()
    return _mail(
        lines, f"Content-Type: text/plain; charset={charset}\r\nContent-Transfer-Encoding: base64", body
    )


def _page(lines: Sequence[str]) -> str:
    return "<html><body><ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul></body></html>"


def _html_mail(lines: Sequence[str]) -> bytes:
    body = quopri.encodestring(_page(lines).encode()).decode()
    head = "Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable"
    return _mail(lines, head, body)


def _mbox(lines: Sequence[str]) -> bytes:
    mails = [
        f"From s@x Mon Jan  5 09:00:00 2026\nFrom: s@x\nSubject: s{number}\nContent-Type: text/plain; charset=utf-8\n\n"
        f"{line}\n\n"
        for number, line in enumerate(lines)
    ]
    return "".join(mails).encode()


def _ics(lines: Sequence[str]) -> bytes:
    events = "".join(
        f"BEGIN:VEVENT\r\nDTSTART:20260105T090000Z\r\nSUMMARY:{line}\r\nEND:VEVENT\r\n" for line in lines
    )
    return f"BEGIN:VCALENDAR\r\nVERSION:2.0\r\n{events}END:VCALENDAR\r\n".encode()


def _vcf(lines: Sequence[str]) -> bytes:
    photo = base64.b64encode(random.Random(1).randbytes(3_000)).decode()
    return "".join(
        f"BEGIN:VCARD\r\nVERSION:3.0\r\nFN:Sam\r\nNOTE:{line}\r\nPHOTO;ENCODING=b:{photo}\r\nEND:VCARD\r\n"
        for line in lines
    ).encode()


def _cues(lines: Sequence[str], mark: str) -> str:
    return "\n\n".join(
        f"{number}\n00:00:{number:02d}{mark}000 --> 00:00:{number + 1:02d}{mark}000\n{line}"
        for number, line in enumerate(lines, 1)
    )


def _enex(lines: Sequence[str]) -> bytes:
    items = "".join(f"<div><en-todo/>{escape(line)}</div>" for line in lines)
    return (
        '<?xml version="1.0" encoding="UTF-8"?><en-export><note><title>t</title><content><![CDATA['
        f'<?xml version="1.0"?><en-note>{items}</en-note>]]></content></note></en-export>'
    ).encode()


_MAKERS: Final[dict[str, Callable[[Sequence[str], str], bytes]]] = {
    "md": lambda lines, _: "\n".join(f"- [ ] {line}" for line in lines).encode(),
    "txt": lambda lines, charset: "\n".join(lines).encode(charset),
    "log": lambda lines, _: "\n".join(f"\x1b[31m{line}\x1b[0m" for line in lines).encode("utf-16"),
    "csv": lambda lines, _: "\n".join(["what,when", *(f'"{line}",2026-01-05' for line in lines)]).encode(),
    "html": lambda lines, _: _page(lines).encode(),
    "htm": lambda lines, charset: (f"<meta charset={charset}>" + _page(lines)).encode(charset),
    "eml": lambda lines, charset: _plain_mail(lines, charset),
    "rich.eml": lambda lines, _: _html_mail(lines),
    "mbox": lambda lines, _: _mbox(lines),
    "ics": lambda lines, _: _ics(lines),
    "vcf": lambda lines, _: _vcf(lines),
    "vtt": lambda lines, _: f"WEBVTT\n\n{_cues(lines, '.')}".encode(),
    "srt": lambda lines, _: _cues(lines, ",").encode(),
    "enex": lambda lines, _: _enex(lines),
    "rtf": lambda lines, _: office_files.rtf("t", lines),
    "docx": lambda lines, _: office_files.docx("t", lines),
    "pptx": lambda lines, _: office_files.pptx("t", lines),
    "xlsx": lambda lines, _: office_files.xlsx(
        "t", [["what", "when"], *([line, "2026-01-05"] for line in lines)]
    ),
    "odt": lambda lines, _: office_files.odt("t", lines),
    "epub": lambda lines, _: office_files.epub("t", lines),
    "msg": lambda lines, _: outlook_files.msg({0x0037: "s", 0x1000: "\r\n".join(lines)}),
    "pdf": lambda lines, _: office_files.pdf("t", lines),
}


def _cut_off(raw: bytes, chance: random.Random) -> bytes:
    return raw[: chance.randrange(1, len(raw))]


def _flipped(raw: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(raw)
    for _ in range(max(1, len(raw) // 50)):
        damaged[chance.randrange(len(raw))] = chance.randrange(256)
    return bytes(damaged)


def _zeroed(raw: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(raw))
    return raw[:start] + b"\0" * (len(raw) - start)


def _spliced(raw: bytes, chance: random.Random) -> bytes:
    start, end = sorted((chance.randrange(len(raw)), chance.randrange(len(raw))))
    return raw[:end] + raw[start:]


_DAMAGES: Final = {
    "cut off": _cut_off,
    "bytes changed": _flipped,
    "end lost to zeros": _zeroed,
    "a piece twice": _spliced,
    "of another kind": lambda raw, chance: chance.randbytes(len(raw)),
    "empty": lambda raw, chance: b"",
}


def sample_files(count: int, seed: int) -> list[SampleFile]:
    """`count` files; every second one is damaged."""
    chance = random.Random(seed)
    kinds, languages, damages = list(_MAKERS), list(LANGUAGES), list(_DAMAGES)
    files = []
    for number in range(count):
        kind, language = kinds[number // 2 % len(kinds)], languages[number // 2 % len(languages)]
        charset, items = LANGUAGES[language]
        lines = [f"{items[place % len(items)]} {number}{place}" for place in range(chance.randrange(4, 9))]
        raw, damage = _MAKERS[kind](lines, charset), ""
        if number % 2:
            damage = damages[number // 2 // 3 % len(damages)]
            raw = _DAMAGES[damage](raw, chance)
        files.append(SampleFile(f"{number:03d}-{language}.{kind}", raw, lines, damage))
    return files


def file_name(path: str) -> str:
    """The name of the file that a source lies in."""
    parent = Path(path).parent
    return parent.name if parent.suffix == ".mbox" else Path(path).name


@dataclass
class DeviceRun:
    """What a device sent, by file name, a mailbox file's mails under its own; and what it counted as passed over."""

    files: dict[str, list[AgentFile]]
    problems: dict[str, str]
    passed_over: dict[str, int]


async def run_device(folder: Path) -> DeviceRun:
    """One run of the headless device over a folder, with all that is offered asked for."""
    frames: list[Received] = []
    config = AgentRunConfig(paths=[str(folder)], file_extensions=[], prompt_template="", data_types=[])
    frame = AgentRun(run_id="run", agent_id="agent", config=config)

    async def send(sent: Received) -> None:
        frames.append(sent)
        if isinstance(sent, AgentManifest):
            upload.fetch(AgentFetch(run_id="run", paths=[file.path for file in sent.files]))
        elif isinstance(sent, AgentData) and sent.batch is not None:
            number = sent.batch
            asyncio.get_running_loop().call_soon(
                lambda: upload.acknowledge(AgentAck(run_id="run", batch=number))
            )

    store = Store()
    area = ReadableArea([folder.resolve()], [str(folder)])
    upload = Upload(frame, area, store, send, with_manifest=True, max_inflight=4)
    try:
        await upload.run()
    finally:
        store.close()
    complete = frames[-1]
    assert isinstance(complete, AgentComplete)
    files: dict[str, list[AgentFile]] = {}
    for each in (file for sent in frames if isinstance(sent, AgentData) for file in sent.files):
        files.setdefault(file_name(each.path), []).append(each)
    problems = [problem for problem in complete.errors if isinstance(problem, dict)]
    assert len(problems) == len(complete.errors)
    return DeviceRun(
        files,
        {file_name(problem["path"]): problem["reason"] for problem in problems},
        complete.passed_over or {},
    )
