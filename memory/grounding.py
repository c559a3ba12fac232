"""Checks whether a text to remember is what the user said, for the tool in a chat and for the worker that reads
exchanges.

Comparing words does not understand a text, so the check is strict where a wrong word does harm: numbers, addresses,
words like accounts and names must be the user's own, and a denial must stay one. Of the other words, at least two
thirds must be the user's in any of their forms. It works without a dictionary; memory.word_lists has a few words of
five languages.
"""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

from memory import word_lists
from memory.terms import COMMON_WORDS, WORD, is_unspaced, split_words

# The share of the words that the user must have said.
_MIN_OWN: Final = 2 / 3
# The longest time between the day on which the user spoke and a date that they gave as "tomorrow" or "next month".
_MAX_RELATIVE: Final = dt.timedelta(days=370)

_ADDRESS = re.compile(
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*|(?:https?://|www\.)\S+|\b[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b(?:/\S*)?", re.I
)
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:[.,'’\u00a0\u202f ]\d{3})+(?![\d])")
_DECIMALS = re.compile(r"(?<![\d.,])(\d+)[.,](\d{1,2})(?![\d.,]*\d)")
# A word with a digit in it, such as 80, 9am or DE89.
_WITH_DIGIT = re.compile(r"[^\W_]*\d[^\W_]*")
_NUMERALS = re.compile(r"(\d+)([^\W\d_]*)")
_ISO_DATE = re.compile(r"\b(\d{4})-(\d{2})-(\d{2})\b")
_SENTENCE = re.compile(r"[^.!?…;:\n]+(?:[.!?…;:\n]|$)")
_CLAUSE = re.compile(
    r"[.!?…;:,\n()–—]+|\b(?:but|and|or|aber|sondern|und|oder|mais|et|ou|ma|però|e|o|pero|sino|y)\b", re.I
)
_CURRENCIES: Final = {
    "€": {"euro", "euros", "eur"},
    "$": {"dollar", "dollars", "usd"},
    "£": {"pound", "pounds", "gbp"},
}
_NOT_CONTRACTED = re.compile(r"n['’]t\b", re.I)
_FRENCH_DENIAL = re.compile(
    r"\b(?:ne\b|n['’])[^.!?;]*?\b(?:pas|plus|jamais|rien|personne|aucune?|guère)\b", re.I
)
_MONTH_MAI = re.compile(
    r"(?:\b(?:im|ende|anfang|mitte|en|fin|début|de|le|au|au mois de)\s+|\d\.?\s+)mai\b", re.I
)


def problem(content: str, said: Iterable[str], *, day: dt.date | None = None) -> str:
    """Return why `content` may not be kept as the user's, in words for a model; "" if it may.

    `said`: the user's words, without quotations (memory.intent.own_words). `day`: when they said it; dates up to about
    a year from there are accepted if they spoke of one without its number, such as "tomorrow".
    """
    text, whole = _fold(content), _fold("\n".join(said))
    if foreign := foreign_facts(text, whole, day=day):
        return f"the user did not say “{foreign[0]}”"
    own = _own_words(whole)
    relative = not own.isdisjoint(word_lists.RELATIVE_TIMES)
    if not relative and (unsaid := _unsaid_day(text, own)):
        return f"the user did not say “{unsaid}”"
    if name := next(_foreign_names(text, own), ""):
        return f"the user did not say “{name}”"
    # Numbers and addresses were compared above.
    wanted = [word for word in content_words(_ADDRESS.sub(" ", text)) if not _has_digit(word)]
    if not wanted and not _numbers(text) and not _ADDRESS.search(text):
        own, wanted = frozenset(_words(whole.casefold())), _words(text.casefold()) or [""]
    if sum(is_own(word, own) for word in wanted) < _MIN_OWN * len(wanted):
        return "the user did not say this"
    if _turns_a_denial(text, whole):
        return "the user denied this, or did not deny it"
    return ""


def foreign_facts(text: str, material: str, *, day: dt.date | None = None) -> list[str]:
    """Return the numbers, addresses and account-like words of a text that its material does not hold."""
    text, material = _fold(text), _fold(material)
    found = [one for one in _addresses(text) if one not in material.casefold()]
    text = _ADDRESS.sub(" ", text)
    if day is not None and set(split_words(material.casefold())) & word_lists.RELATIVE_TIMES:
        text = _ISO_DATE.sub(lambda date: " " if _is_near(date, day) else date[0], text)
    numbers = _numbers(material)
    compact = re.sub(r"[\W_]", "", material.casefold())
    for number in _numbers(text):
        # Numbers longer than a year's may be written in groups, as those of accounts and telephones are.
        if number not in numbers and not (len(number) > 4 and number in compact):
            found.append(number)
    return found


def is_own(word: str, own: frozenset[str]) -> bool:
    """Return whether the user said a word in any form: the same first letters, and little else."""
    return word in own or (not _has_digit(word) and any(_same_stem(word, other) for other in own))


def content_words(text: str) -> list[str]:
    """Return the words of a text that say something of it, in lower case, each once."""
    kept = [
        part
        for word in _words(_fold(text).casefold())
        if len(word) > 1 and word not in COMMON_WORDS and word not in word_lists.FRAME
        # Scripts without spaces are compared by pairs of letters.
        for part in (split_words(word) if is_unspaced(word) else [word])
    ]
    return list(dict.fromkeys([*kept, *sorted(_numbers(_fold(text)))]))


def is_denial(clause: str) -> bool:
    text = _MONTH_MAI.sub(" ", _NOT_CONTRACTED.sub(" not", _fold(clause)))
    if _FRENCH_DENIAL.search(text):
        return True
    return not word_lists.DENIALS.isdisjoint(word.casefold() for word in _words(text))


def _own_words(said: str) -> frozenset[str]:
    own = frozenset(split_words(said.casefold())) | _numbers(said)
    return own.union(*(names for sign, names in _CURRENCIES.items() if sign in said))


def _unsaid_day(text: str, own: frozenset[str]) -> str:
    """Return a weekday or month that the user did not say; "" if there is none."""
    days = (word for word in _words(text) if word.casefold() in word_lists.CALENDAR)
    return next((word for word in days if not _is_inflected(word.casefold(), own)), "")


def _words(text: str) -> list[str]:
    return [word for word in WORD.findall(text) if not _has_digit(word)]


def _has_digit(word: str) -> bool:
    return any(letter.isdigit() for letter in word)


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _addresses(text: str) -> Iterator[str]:
    for found in _ADDRESS.findall(text):
        yield found.rstrip(".,;:!?)").casefold()


@lru_cache(maxsize=256)
def _numbers(text: str) -> frozenset[str]:
    """Return its numbers as digits alone, and its words with digits, in lower case. Numbers in words count as well."""
    text = _GROUPED.sub(lambda number: re.sub(r"\D", "", number[0]), _ADDRESS.sub(" ", text))
    text = _DECIMALS.sub(lambda number: number[1] + (f"d{number[2]}" if number[2].strip("0") else ""), text)
    found = set()
    for word in _WITH_DIGIT.findall(text.casefold()):
        # In "9am", "80h" and "3rd" the unit is a word of its own.
        unit = _NUMERALS.fullmatch(word)
        found.add((unit[1] if unit and not unit[2].startswith("d") else word).lstrip("0") or "0")
    for word in _words(text.casefold()):
        if (number := word_lists.NUMBERS.get(word)) is not None:
            found.add(number)
    return frozenset(found)


def _is_near(date: re.Match[str], day: dt.date) -> bool:
    try:
        return abs(dt.date(*map(int, date.groups())) - day) <= _MAX_RELATIVE
    except ValueError:
        return False


def _foreign_names(text: str, own: frozenset[str]) -> Iterator[str]:
    """Yield capitalised words that the user did not say."""
    for sentence in _SENTENCE.findall(_ADDRESS.sub(" ", text)):
        for place, word in enumerate(_words(sentence)):
            folded = word.casefold()
            if len(word) < 2 or not word[0].isupper() or folded in COMMON_WORDS or folded in word_lists.FRAME:
                continue
            if folded in word_lists.NUMBERS or folded in word_lists.CALENDAR or folded in word_lists.DENIALS:
                continue
            # Any word may begin a sentence, so there another form of one of the user's is enough.
            if is_own(folded, own) if place == 0 else _is_inflected(folded, own):
                continue
            yield word


def _is_inflected(word: str, own: Iterable[str]) -> bool:
    """Return whether the user said a name, perhaps with another ending (Roms, Rom)."""
    return any(
        word == other
        or (
            min(len(word), len(other)) >= 3
            and abs(len(word) - len(other)) <= 2
            and (word.startswith(other) or other.startswith(word))
        )
        or (len(word) > 8 and len(other) >= 4 and not other.endswith("*") and (other in word))
        for other in own
    )


def _same_stem(word: str, other: str) -> bool:
    longer = max(len(word), len(other))
    shared = 0
    for one, two in zip(word, other, strict=False):
        if one != two:
            break
        shared += 1
    return shared >= 3 and shared >= 0.6 * longer


def _turns_a_denial(content: str, said: str) -> bool:
    """Return whether a part of the content denies what the user did not, or states what they only denied."""
    clauses = [(frozenset(content_words(clause)), is_denial(clause)) for clause in _clauses(said)]
    denied = frozenset[str]().union(*(words for words, denial in clauses if denial))
    for clause in _clauses(content):
        words = [word for word in content_words(clause) if word not in word_lists.DENIALS]
        if is_denial(clause):
            if words and not any(is_own(word, denied) for word in words):
                return True
            if not words and not any(denial for _, denial in clauses):
                return True
            continue
        own = [word for word in words if any(is_own(word, said_words) for said_words, _ in clauses)]
        if not own or not all(is_own(word, denied) for word in own):
            continue
        if not any(
            not denial and all(is_own(word, said_words) for word in own) for said_words, denial in clauses
        ):
            return True
    return False


def _clauses(text: str) -> list[str]:
    # A comma or point within a number separates nothing.
    text = re.sub(r"(?<=\d)[.,](?=\d)", "\u2060", text)
    return [clause.replace("\u2060", ".") for clause in _CLAUSE.split(text) if clause.strip()]
