"""Names of plugins and developers: which can be mistaken for another's."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from adiuva.core.errors import Text

# Names that speak for us, or that people would take for ours.
RESERVED: Final = frozenset(
    """adiuva admin administrator api app assistant billing client console core developer floating help home
    marketplace moderator official plugin plugins security signin staff store support system team update
    verified""".split()  # noqa: SIM905  # as a paragraph it can be read and sorted
)
NAME_PROBLEM: Final = Text(
    "a name is letters, digits and plain signs, of one script, without characters that are not seen"
)

_LOOK_ALIKES: Final = str.maketrans(
    {
        # Cyrillic and Greek letters that look like Latin ones.
        **dict(zip("аеорсухѕіјԁһкмнтвԛѡ", "aeopcyxsljdhkmhtbqw", strict=True)),
        **dict(zip("αεικνορτυχ", "aelkvoptux", strict=True)),
        # Signs that are read as letters, and letters that look like others.
        "0": "o", "1": "l", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "9": "g", "i": "l", "|": "l", "!": "l",
        "$": "s", "@": "a", "ı": "l", "ł": "l", "ø": "o", "ß": "b",
    }
)  # fmt: skip
_PAIRS: Final = (("rn", "m"), ("vv", "w"))
_SCRIPTS: Final = ("LATIN", "GREEK", "CYRILLIC", "HEBREW", "ARABIC", "HANGUL", "HIRAGANA", "KATAKANA", "CJK")
# Scripts that are written together.
_TOGETHER: Final = frozenset({"HIRAGANA", "KATAKANA", "CJK", "HANGUL"})
_PLAIN: Final = re.compile(r"[\w .,:'&+()/#!?-]*")
_SHORT: Final = 5


def skeleton(name: str) -> str:
    """Reduce a name to what people see of it. Names with equal skeletons can be mistaken for each other."""
    text = unicodedata.normalize("NFKD", name).casefold()
    text = "".join(sign for sign in text if not unicodedata.combining(sign)).translate(_LOOK_ALIKES)
    text = "".join(sign for sign in text if sign.isalnum())
    for pair, one in _PAIRS:
        text = text.replace(pair, one)
    return text


def is_plain_name(name: str) -> bool:
    """Return whether a shown name has no hidden or strange characters, and no word of several scripts."""
    if unicodedata.normalize("NFC", name) != name or not _PLAIN.fullmatch(name):
        return False
    return all(_is_one_script(word) for word in re.findall(r"\w+", name))


def too_close(name: str, others: Iterable[str]) -> str | None:
    """Return the first of `others` that a name can be mistaken for, although it is not the same; None if there is none.

    Short names often differ by a letter; longer ones are too close if one letter is added, missing, different or
    swapped.
    """
    mine = skeleton(name)
    return next(
        (
            other
            for other in others
            if other != name and ((theirs := skeleton(other)) == mine or _differ_by_one(mine, theirs))
        ),
        None,
    )


def is_reserved(name: str) -> bool:
    """Return whether a name is one of ours, or begins like one. Raises nothing."""
    mine = skeleton(name)
    return mine in _RESERVED_SKELETONS or mine.startswith(skeleton("adiuva"))


def _is_one_script(word: str) -> bool:
    found = {
        script
        for sign in word
        if sign.isalpha()
        for script in _SCRIPTS
        if script in unicodedata.name(sign, "")
    }
    return len(found) <= 1 or found <= _TOGETHER


def _differ_by_one(a: str, b: str) -> bool:
    if min(len(a), len(b)) <= _SHORT or abs(len(a) - len(b)) > 1:
        return False
    start = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rest_a, rest_b = a[start:], b[start:]
    return (
        rest_a[1:] == rest_b
        or rest_a == rest_b[1:]
        or rest_a[1:] == rest_b[1:]
        or (rest_a[:2] == rest_b[1::-1] and rest_a[2:] == rest_b[2:])
    )


_RESERVED_SKELETONS: Final = frozenset(skeleton(name) for name in RESERVED)
