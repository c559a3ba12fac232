"""What the server says to people comes in their language, and no text is left out of a catalogue."""

from __future__ import annotations

import ast
import gettext
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from django.conf import settings
from django.utils.translation import templatize

from adiuva.core.language import LANGUAGES, TRANSLATED, language_of, speaking
from chat import end_messages
from chat.approvals import _NOUNS, refusal_text
from chat.assistants import TOOLS
from chat.deferred_calls import OTHER_YES_WORDS, DeferredCall, is_yes, question_text
from integrations.models import Reason

ROOT: Final = Path(settings.BASE_DIR)
PACKAGES: Final = ("adiuva", "agents", "chat", "integrations", "memory")
# How many of its arguments are texts.
_CALLS: Final = {"gettext": 1, "gettext_noop": 1, "gettext_lazy": 1, "ngettext": 2}
_PLACE = re.compile(r"%\(\w+\)s|\{\w+\}")


def texts_of(source: str) -> Iterator[tuple[str, ...]]:
    """The texts that are wrapped in a call of gettext; two of them for a plural."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
            texts = [
                one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)
            ]
            if len(texts) == _CALLS[node.func.id]:
                yield tuple(texts)


def texts_in_template(path: Path) -> Iterator[tuple[str, ...]]:
    for call in re.findall(
        r"gettext\((u'(?:[^'\\]|\\.)*'|u\"(?:[^\"\\]|\\.)*\")\)", templatize(path.read_text())
    ):
        yield (ast.literal_eval(call),)


def all_texts() -> set[tuple[str, ...]]:
    found = set(_NOUNS.values()) | {(str(label),) for label in Reason.labels}
    found |= {(str(tool.metadata["label"]),) for tool in TOOLS if tool.metadata}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            found |= set(texts_of(path.read_text()))
    for path in (ROOT / "templates").rglob("*.*"):
        found |= set(texts_in_template(path))
    return found


def read_po(path: Path) -> dict[str | tuple[str, int], str]:
    """A catalogue's source as gettext keeps it compiled."""
    found: dict[str | tuple[str, int], str] = {}
    for block in path.read_text().split("\n\n"):
        parts: dict[str, str] = {}
        for line in block.splitlines():
            if name := re.match(r"(msgid|msgid_plural|msgstr|msgstr\[\d\]) ", line):
                part = name[1]
                parts[part] = ast.literal_eval(line[name.end() :])
            elif line.startswith('"'):
                parts[part] += ast.literal_eval(line)
        if "msgid_plural" in parts:
            found |= {(parts["msgid"], form): parts[f"msgstr[{form}]"] for form in (0, 1)}
        elif "msgid" in parts:
            found[parts["msgid"]] = parts["msgstr"]
    return found


@pytest.mark.parametrize("language", TRANSLATED)
def test_no_text_is_left_out_and_none_is_left_over(language: str) -> None:
    po = read_po(ROOT / "locale" / language / "LC_MESSAGES" / "django.po")
    said = all_texts()
    assert len(said) > 90
    keys = {
        text for texts in said for text in ([texts[0]] if len(texts) == 1 else [(texts[0], 0), (texts[0], 1)])
    }
    assert po.keys() - {""} == keys
    for key, translated in po.items():
        source = key if isinstance(key, str) else key[0]
        assert translated, source
        if source:
            assert set(_PLACE.findall(translated)) == set(_PLACE.findall(source)), source


@pytest.mark.parametrize("language", TRANSLATED)
def test_the_compiled_catalogue_is_fresh(language: str) -> None:
    folder = ROOT / "locale" / language / "LC_MESSAGES"
    with (folder / "django.mo").open("rb") as file:
        compiled = dict(gettext.GNUTranslations(file)._catalog)  # type: ignore[attr-defined]
    assert compiled == read_po(folder / "django.po"), f"run: msgfmt -o {folder}/django.mo {folder}/django.po"


@pytest.mark.parametrize(
    ("locale", "language"),
    [
        ("de", "de"),
        ("de-CH", "de"),
        ("fr_CA", "fr"),
        ("IT", "it"),
        ("es-419", "es"),
        ("pt-BR", "en"),
        ("", "en"),
    ],
)
def test_the_language_is_that_of_the_locale(locale: str, language: str) -> None:
    assert language_of(locale) == language


@pytest.mark.parametrize("language", LANGUAGES)
def test_questions_and_ends_of_turns_are_said_in_it(language: str) -> None:
    with speaking(language):
        question = question_text([DeferredCall("delete_task", {}, "X")])
        end = end_messages.message_of("deadline")
        refused = refusal_text(["X"])
    is_english = language == "en"
    assert (end == "This took too long, so I stopped. What was done so far stays.") is is_english
    assert (refused == "**Not done, because you said no:** X") is is_english
    assert ("Answer yes" in question) is is_english
    # Each word that a question names counts as a yes.
    _, _, named = question.partition("**")[2].partition("(")
    words = re.split(r", | or | oder | ou | o | with | ohne | sans | senza | sin ", named.split(")")[0])[:-1]
    for word in words:
        said = re.sub(r"^(Also|Auch|Aussi|Anche|También) ", "", word).strip()
        assert is_yes(said), said
    assert OTHER_YES_WORDS.startswith("(Also")


@pytest.mark.parametrize(
    "word", ["no", "nein", "non", "nein danke", "no, grazie", "non merci", "no gracias", "ja aber", "si no"]
)
def test_a_no_is_no_yes(word: str) -> None:
    assert not is_yes(word)
