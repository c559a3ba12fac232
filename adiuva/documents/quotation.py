"""Separation of what a mail's author wrote from what the mail quotes. The two parts together are the whole text.

Mail programs mark a quotation in three ways: with '>' before each line, with a line that says who wrote when, or with
the headers of the older mail. If an author answers between quoted lines, the text stays as it is, because its order
matters.
"""

from __future__ import annotations

import re
from typing import Final

# A longer line cannot be the mark of a quotation.
_MAX_MARK_CHARS: Final = 400
_WROTE: Final = re.compile(
    r"(?:on|am|le|el|il|em|op|den|dnia|w dniu)\b.{4,250}"
    r"\b(?:wrote|schrieb|écrit|escribió|scritto|escreveu|schreef|skrev|napisał)\b.{0,80}:",
    re.IGNORECASE,
)
# Sufficient if lines with '>' follow: a word for "wrote", or an address in any language.
_WROTE_SHORT: Final = re.compile(
    r".{1,200}\b(?:wrote|writes|schrieb|schreibt|a écrit|escribió|ha scritto|escreveu|schreef|skrev|napisał(?:\(a\))?"
    r"|napsal(?:\(a\))?|kirjoitti|написал(?:\(а\)|а)?|пишет|yazdı)\s?:"
    r"|.{0,200}<[^<>\s]{1,100}@[^<>\s]{1,100}>[^<>]{0,30}[:：]",
    re.IGNORECASE,
)
# With a full stop it could be a day and month, so a word has to come before it.
_TIME_OF_DAY: Final = (
    r"(?:(?<![.\d])\d{1,2}(?::|\s?h\s?)|\b(?:kl|klo|om|um|at|ore|alle)\b\.?\s?\d{1,2}\.)\d\d(?![.\d])"
)
# Needed if no '>' follows, since people write "On Friday Tom wrote these points:" above lists of their own. Mail
# programs give the time of day or an address, and end with the verb or, in some languages, with the name after it.
_WROTE_BY_PROGRAM: Final = re.compile(
    rf"(?=.*(?:{_TIME_OF_DAY}|\S@\S))"
    r".*\b(?:wrote|écrit|escribió|scritto|escreveu|napisał(?:\(a\)|/a)?|(?:schrieb|schreef|skrev)\b.{0,80})\s?:",
    re.IGNORECASE,
)
_WROTE_BEGINS: Final = re.compile(r"(?:on|am|le|el|il|em|op|den|dnia|w dniu)\b.{4,250}", re.IGNORECASE)
_RULE: Final = re.compile(
    r"[-_]{2,}\s*(?:original message|original appointment|ursprüngliche nachricht|message d.origine|mensaje original"
    r"|messaggio originale|mensagem original|oorspronkelijk bericht)\s*[-_]{2,}",
    re.IGNORECASE,
)
# The headers that Outlook writes above the answered mail, in its user's language.
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
_LINE_ABOVE: Final = re.compile(r"[-_=*─━]{5,200}")
_FORWARDED: Final = re.compile(
    r"[-_=*]{2,}\s*(?:(?:begin )?forwarded message|weitergeleitete nachricht|message transféré|mensaje reenviado"
    r"|messaggio inoltrato|mensagem encaminhada|doorgestuurd bericht)\s*[-_=*]{2,}"
    r"|begin forwarded message:",
    re.IGNORECASE,
)
_FORWARD: Final = re.compile(
    r"\s*(?:fwd?|wg|tr|rv|i|enc|doorst|vb|vs|vl|pd|转发|轉寄|転送)\s*[:：]", re.IGNORECASE
)


def split_quotation(body: str, subject: str = "") -> tuple[str, str]:
    """Return the author's own text and the quoted text, which is empty if there is none or it cannot be separated.

    Nothing in a forwarded mail counts as quoted: its sender wants it to be read.
    """
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
    """Return the text with '>' before each line that has none yet."""
    return "\n".join(line if line.startswith(">") else f"> {line}".rstrip() for line in quoted.split("\n"))


def _quotation(lines: list[str]) -> tuple[int, int]:
    """Return the first and last line (exclusive) of the only quotation; equal if there is none, or several."""
    for number, line in enumerate(lines):
        if len(line) > _MAX_MARK_CHARS or line.startswith(">"):
            continue
        text = line.strip()
        if _FORWARDED.fullmatch(text):
            break  # its sender wants it to be read
        if _RULE.fullmatch(text) or _is_header_block(lines, number):
            return _with_line_above(lines, number), len(lines)
        if end := _attribution(lines, number):
            end += number
            after = _skip_blank(lines, end)
            is_marked = after == len(lines) or lines[after].startswith(">")
            if not is_marked and _WROTE_BY_PROGRAM.fullmatch(" ".join(map(str.strip, lines[number:end]))):
                return number, len(lines)  # the quoted lines are not marked: it is all the rest
    blocks = _blocks(lines)
    if len(blocks) != 1:
        return 0, 0
    begin, end = blocks[0]
    return _with_attribution(lines, begin), end


def _with_line_above(lines: list[str], number: int) -> int:
    """Move the start of a quotation up to the line drawn above it, if there is one."""
    above = number - 1
    while above >= 0 and not lines[above].strip():
        above -= 1
    return above if above >= 0 and _LINE_ABOVE.fullmatch(lines[above].strip()) else number


def _blocks(lines: list[str]) -> list[tuple[int, int]]:
    """Return consecutive lines with '>', including empty lines between them."""
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
    """Move the start of a quotation up to the line that says who wrote it, if there is one."""
    last = begin - 1
    while last >= 0 and not lines[last].strip():
        last -= 1
    for number in (last - 1, last):
        if number >= 0 and number + _attribution(lines, number) == last + 1:
            return number
    return last if last >= 0 and _WROTE_SHORT.fullmatch(lines[last].strip()) else begin


def _attribution(lines: list[str], number: int) -> int:
    """Return how many lines from here say who wrote when: 1, 2 if the line was wrapped, or 0."""
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
    """Return whether the older mail's headers start here: several in a row, the sender first, a subject among them."""
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
