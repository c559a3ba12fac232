"""What a mail's author wrote, apart from what the mail quotes. Nothing is lost: the two parts are the whole text.

Mail programs mark a quotation in three ways: with '>' before each line, with a line that says who wrote when, or with
the headers of the older mail. Where an author answers between quoted lines, the order is the meaning, and it stays.
"""

from __future__ import annotations

import re
from typing import Final

_MAX_MARK_CHARS: Final = 400  # of what can be such a mark
_WROTE: Final = re.compile(
    r"(?:on|am|le|el|il|em|op|den|dnia|w dniu)\b.{4,250}"
    r"\b(?:wrote|schrieb|écrit|escribió|scritto|escreveu|schreef|skrev|napisał)\b.{0,80}:",
    re.IGNORECASE,
)
# Enough of a mark where marked lines follow: a word for it, or in any language an address.
_WROTE_SHORT: Final = re.compile(
    r".{1,200}\b(?:wrote|writes|schrieb|schreibt|a écrit|escribió|ha scritto|escreveu|schreef|skrev|napisał(?:\(a\))?"
    r"|napsal(?:\(a\))?|kirjoitti|написал(?:\(а\)|а)?|пишет|yazdı)\s?:"
    r"|.{0,200}<[^<>\s]{1,100}@[^<>\s]{1,100}>[^<>]{0,30}[:：]",
    re.IGNORECASE,
)
_WROTE_BEGINS: Final = re.compile(r"(?:on|am|le|el|il|em|op|den|dnia|w dniu)\b.{4,250}", re.IGNORECASE)
_RULE: Final = re.compile(
    r"[-_]{2,}\s*(?:original message|original appointment|ursprüngliche nachricht|message d.origine|mensaje original"
    r"|messaggio originale|mensagem original|oorspronkelijk bericht)\s*[-_]{2,}",
    re.IGNORECASE,
)
# A mail's headers as Outlook writes them above the mail that is answered, in its user's language.
_FROM: Final = "from|von|de|da|van|från|fra|od|lähettäjä|от|kimden|από|feladó|发件人|寄件者|差出人"
_SUBJECT: Final = (
    "subject|betreff|objet|asunto|oggetto|assunto|onderwerp|ämne|emne|temat|předmět|aihe|тема|konu|θέμα|tárgy"
    "|主题|主旨|件名"
)
_SENT: Final = (
    "sent|gesendet|envoyé|enviado|inviato|verzonden|skickat|sendt|wysłano|odesláno|lähetetty|отправлено|gönderildi"
    "|στάλθηκε|elküldve|发送时间|寄件日期|送信日時|date|datum|fecha|data|dato|дата"
)
_TO: Final = "to|an|à|para|a|aan|till|til|do|komu|vastaanottaja|кому|kime|προς|címzett|收件人|收件者|宛先"
_HEADER: Final = re.compile(
    rf"\*?(?:(?P<from>{_FROM})|(?P<subject>{_SUBJECT})|{_SENT}|{_TO})\s?(?::\*?\s|：).{{0,380}}",
    re.IGNORECASE,
)
_HEADER_LINES: Final = 8
_FORWARD: Final = re.compile(
    r"\s*(?:fwd?|wg|tr|rv|i|enc|doorst|vb|vs|vl|pd|转发|轉寄|転送)\s*[:：]", re.IGNORECASE
)


def split_quotation(body: str, subject: str = "") -> tuple[str, str]:
    """The author's own words, and what they quote (empty if nothing, or if it cannot be taken apart). A mail that is
    forwarded is what its sender wants to be read: nothing in it counts as quoted."""
    lines = body.split("\n")
    if _FORWARD.match(subject):
        return body, ""
    begin, end = _quotation(lines)
    around = ("\n".join(part).strip("\n") for part in (lines[:begin], lines[end:]))
    own = "\n\n".join(part for part in around if part.strip())
    if begin == end or not own:
        return body, ""
    return own, "\n".join(lines[begin:end]).strip("\n")


def mark_quoted(quoted: str) -> str:
    """Quoted text with '>' before each line that has none yet."""
    return "\n".join(line if line.startswith(">") else f"> {line}".rstrip() for line in quoted.split("\n"))


def _quotation(lines: list[str]) -> tuple[int, int]:
    """The first and the last line (exclusive) of the one quotation; the same if there is none, or several."""
    for number, line in enumerate(lines):
        if len(line) > _MAX_MARK_CHARS or line.startswith(">"):
            continue
        text = line.strip()
        if _RULE.fullmatch(text) or _is_header_block(lines, number):
            return number, len(lines)
        if intro := _attribution(lines, number):
            after = _skip_blank(lines, number + intro)
            if after < len(lines) and not lines[after].startswith(">"):
                return number, len(lines)  # what follows is not marked: all of it
    blocks = _blocks(lines)
    if len(blocks) != 1:
        return 0, 0
    begin, end = blocks[0]
    return _with_attribution(lines, begin), end


def _blocks(lines: list[str]) -> list[tuple[int, int]]:
    """Runs of lines with '>'; empty lines between them belong to them."""
    found: list[tuple[int, int]] = []
    for number, line in enumerate(lines):
        if not line.startswith(">"):
            continue
        if found and not any(map(str.strip, lines[found[-1][1] : number])):
            found[-1] = found[-1][0], number + 1
        else:
            found.append((number, number + 1))
    return found


def _with_attribution(lines: list[str], begin: int) -> int:
    """Where the line begins that says who wrote what is quoted."""
    last = begin - 1
    while last >= 0 and not lines[last].strip():
        last -= 1
    for number in (last - 1, last):
        if number >= 0 and number + _attribution(lines, number) == last + 1:
            return number
    return last if last >= 0 and _WROTE_SHORT.fullmatch(lines[last].strip()) else begin


def _attribution(lines: list[str], number: int) -> int:
    """How many lines say who wrote when: one, or two where the line was broken; else none."""
    line = lines[number].strip()
    if len(line) > _MAX_MARK_CHARS or not _WROTE_BEGINS.match(line):
        return 0
    if _WROTE.fullmatch(line):
        return 1
    following = lines[number + 1].strip() if number + 1 < len(lines) else ""
    if following and len(following) <= _MAX_MARK_CHARS and _WROTE.fullmatch(f"{line} {following}"):
        return 2
    return 0


def _is_header_block(lines: list[str], number: int) -> bool:
    """The older mail's headers: its sender first, its subject at last, all together."""
    kinds = []
    for line in lines[number : number + _HEADER_LINES]:
        match = _HEADER.fullmatch(line.strip()) if len(line) <= _MAX_MARK_CHARS else None
        if match is None:
            break
        kinds.append(match.lastgroup)
    return len(kinds) >= 3 and kinds[0] == "from" and "subject" in kinds


def _skip_blank(lines: list[str], number: int) -> int:
    while number < len(lines) and not lines[number].strip():
        number += 1
    return number
