"""Split texts into words that can be compared and looked up by keyed hash, in any language, without a dictionary."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from adiuva.core.crypto import UserCipher

# The most terms of one text.
MAX_TERMS: Final = 300
_READ_CHARS: Final = 20_000
# Combining marks belong to words: without its vowel signs, Hindi would fall apart into single letters.
_MARKS: Final = "".join(filter(lambda char: unicodedata.category(char)[0] == "M", map(chr, range(0x10000))))
WORD = re.compile(rf"[\w{_MARKS}]+")
# The number of first letters that forms of a longer word mostly share.
_STEM_CHARS: Final = 5
# Scripts written without spaces. Pairs of their letters are used in place of words.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)
# The most common words of some languages, which would match everything.
COMMON_WORDS: Final = frozenset(
    """
a about after all also am an and any are as at be been but by can could did do does for from had has have he her
him his how i if in into is it its just me my no not now of on or our she so some that the their them then there
they this to up us was we were what when where which who why will with would you your
aber als am an auch auf aus bei bin bis das dass dem den der des die du ein eine einen einer er es für hat ich
ihr im in ist ja kein man mein mir mit nach nicht noch nur oder schon sein sich sie sind so um und uns von war
was wenn wer wie wir wird zu zum zur
ai al alla che chi ci come con cosa da dal dei del della di e gli ha ho il io la le lo loro ma mi mio ne nel non
per più quando questo se si sono su sua suo ti tu un una uno
au aux avec ce ces cette dans de des du elle en est et eux il ils je la le les leur lui ma mais mes moi mon ne
nous ou où par pas pour qu que qui sa se ses son sur ta te tes toi ton un une vous
al como con del el ella en es esta este la las lo los más mi muy nos para pero por que se sin son su sus te tu
un una y ya yo
""".split()  # noqa: SIM905
)


def normalize(text: str) -> str:
    """Normalize a text for comparison: case, width and spacing do not matter."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def is_printable(text: str) -> bool:
    """Return what str.isprintable does, but allow the joiners that Persian, Hindi and some emoji need."""
    return text.replace("\u200c", "").replace("\u200d", "").isprintable()


def is_unspaced(word: str) -> bool:
    return _UNSPACED.search(word) is not None


def hash_terms(text: str, cipher: UserCipher) -> list[int]:
    """Return keyed hashes (64 bits, signed as in PostgreSQL) of a text's words, each once, at most MAX_TERMS.

    A long word gives two terms, itself and its first letters, so that its other forms are found too.
    """
    found = dict.fromkeys(split_words(unicodedata.normalize("NFKC", text[:_READ_CHARS]).casefold()))
    return [
        int.from_bytes(cipher.fingerprint(word, "memory term")[:8], "big", signed=True)
        for word in list(found)[:MAX_TERMS]
    ]


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, and the first letters of long ones with an asterisk."""
    found: list[str] = []
    for run in WORD.findall(text):
        if not _UNSPACED.search(run):
            found += _forms(run)
            continue
        for part in _UNSPACED.findall(run):
            found += [part[start : start + 2] for start in range(max(1, len(part) - 1))]
        found += [form for word in _UNSPACED.split(run) for form in _forms(word)]
    return found


def _forms(word: str) -> list[str]:
    if len(word) < 2 or word in COMMON_WORDS:
        return []
    # The asterisk tells a stem from a word of the same letters.
    return (
        [word, f"{word[:_STEM_CHARS]}*"]
        if len(word) > _STEM_CHARS
        else [word, f"{word}*"]
        if len(word) == _STEM_CHARS
        else [word]
    )
