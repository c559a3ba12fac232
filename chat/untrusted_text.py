"""Makes texts from devices and models safe to write into a prompt, where they must not pose as anything else."""

from __future__ import annotations

import re
from typing import Final

# The most characters of a title that the model is shown.
MAX_TITLE_CHARS: Final = 200
# Ids are written between brackets and commas, and clients look for them between tags.
_ROW_ID = re.compile(r"[^\s\[\]<>,\"]{1,200}")
# Zero-width characters that hide, reverse or smuggle text. Joiners are not among them: some scripts need them.
_INVISIBLE = re.compile(
    "[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_QUOTATION_MARKS = re.compile('["“”„‟«»‹›‚‘’‛`´❝❞＂]')
_MARKS = re.compile(r"[*<>\[\]\\|~#]|(?<!\w)_|_(?!\w)|(?<=\])\(")
_JOINERS = re.compile("[\u200c\u200d]")
# The form of a row's alias in the texts that the model gets.
_ID_MARKER = re.compile(r"\[\s*(?:id\b|[a-z]\s*\d)", re.IGNORECASE)


def one_line(text: object, max_chars: int = MAX_TITLE_CHARS) -> str:
    """Return a text from the user's data on one line, so that it cannot pose as another line, or as a row's id."""
    if not isinstance(text, str):
        return ""
    if (
        len(text) <= max_chars and text.isprintable()
        and "[" not in text and "  " not in text and text[:1] != " " and text[-1:] != " "
    ):  # fmt: skip
        return text  # most texts need no change
    text = text[: 4 * max_chars]
    if not text.isprintable():
        text = _CONTROL.sub(" ", _INVISIBLE.sub("", text))
    text = " ".join(text.split())
    if "[" in text and _ID_MARKER.search(_JOINERS.sub("", text)):
        text = text.replace("[", "(").replace("]", ")")
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def quotable(text: object, max_chars: int = MAX_TITLE_CHARS) -> str:
    """Return a text that can stand in quotation marks in a question of ours: it can neither end them nor format what is
    around.

    Quotation marks become apostrophes, and characters that Markdown or HTML could read as markup are left out.
    """
    return " ".join(_MARKS.sub("", _QUOTATION_MARKS.sub("'", one_line(text, max_chars))).split())


def is_row_id(key: object) -> bool:
    """Return whether an id can be written in the texts that the model gets."""
    return isinstance(key, str) and key.isprintable() and _ROW_ID.fullmatch(key) is not None
