"""Translation of the server's texts for people; no text is missing from a catalogue."""

from __future__ import annotations

import ast
import gettext
import json
import pickle
import re
import uuid
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.test import RequestFactory
from django.utils import translation
from django.utils.functional import Promise
from django.utils.translation import templatize
from rest_framework.response import Response

from adiuva import body_guard, views
from adiuva.accounts import forms
from adiuva.accounts.models import User
from adiuva.accounts.pages import security
from adiuva.core import db
from adiuva.core.browsable_api import BrowsableRenderer
from adiuva.core.errors import AdiuvaError, Invalid, NotAuthenticated, Text, packed, unpacked
from adiuva.core.language import LANGUAGES, TRANSLATED, body_of, language_of, said, speaking
from adiuva.devices.link import DeviceOffline
from adiuva.views import index
from agents.journeys import interview, mailbox_choice, samples, services, trial
from agents.local_folders import DeviceSilent
from agents.models import AgentType
from chat import end_messages
from chat.approvals import _NOUNS, refusal_text
from chat.assistants import TOOLS
from chat.deferred_calls import OTHER_YES_WORDS, DeferredCall, is_yes, question_text
from integrations.errors import NeedsReauth, ProviderUnavailable
from integrations.mail.errors import NoSuchFolder
from integrations.models import Reason
from tests.unit.django_apps.api_page_texts import page_texts
from tests.unit.django_apps.api_page_texts import views as api_views

ROOT: Final = Path(settings.BASE_DIR)
PACKAGES: Final = ("adiuva", "agents", "billing", "chat", "integrations", "memory")
CONSENT_PAGE: Final = ROOT / "integrations/templates/integrations/callback.html"
# How many of its arguments are texts.
_CALLS: Final = {"gettext": 1, "gettext_noop": 1, "gettext_lazy": 1, "ngettext": 2, "Text": 1}
_PLACE = re.compile(r"%\(\w+\)s|\{\w+\}")


# What runs in a terminal speaks English, and so does the device, which knows no account's locale.
_PROGRAMS: Final = (
    "embedded",
    "devices/client",
    "devices/management",
    "management",
    "offline_llm",
    "local_embeddings",
)


@cache
def server_modules() -> dict[Path, ast.Module]:
    """The modules of the server that speaks to people."""
    left_out = tuple(f"{ROOT}/adiuva/{name}/" for name in _PROGRAMS)
    return {
        path: ast.parse(path.read_text())
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "migrations" not in path.parts and not str(path).startswith(left_out)
    }


@cache
def nodes() -> dict[Path, list[ast.AST]]:
    """All nodes of each module: to walk through one takes longer than to parse it."""
    return {path: [*ast.walk(tree)] for path, tree in server_modules().items()}


def texts_of(tree: ast.AST) -> Iterator[tuple[str, ...]]:
    """The texts that are wrapped in a call of gettext or of Text; two of them for a plural."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
            texts = [
                one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)
            ]
            if len(texts) == _CALLS[node.func.id] and (node.func.id != "Text" or _has_words(texts[0])):
                yield tuple(texts)


def _has_words(msgid: str) -> bool:
    """Not one that only puts other texts beside each other."""
    return re.search(r"[^\W\d_]", _PLACE.sub("", msgid)) is not None


# Helpers that make an error: which of their arguments is its message, or the problem of a field.
_HELPERS: Final = {"_no_connection": 0, "_bad_filter": 1, "_bad_field": 1, "AddressInvalid": 0}
# Errors of these are results of a tool, which a model reads, and the model speaks the user's language.
_FOR_MODELS: Final = {
    "agents/set_up.py",
    "agents/template_set_up.py",
    "agents/run_waits.py",
    "agents/run_watches.py",
}
# Texts that others wrote, or that were translated where they were made: the validators of Django and of REST framework.
_FROM_ELSEWHERE: Final = {
    "adiuva/core/rest.py": {"problems[0]", "dict(_flat(detail))"},
    "adiuva/accounts/services.py": {"error.messages", "error.message_dict"},
    "adiuva/accounts/mail_link_actions.py": {"error.message"},
    "adiuva/documents/isolation.py": {"one_line(said['unreadable']) or _CRASHED"},
    **{f"adiuva/documents/{name}.py": {"problems[0]"} for name in ("epub", "office", "pdf")},
    "agents/services.py": {"(error.fields or {'': []}).popitem()[1]"},
    "chat/views.py": {"end_message(end)"},
    "memory/entry_content.py": {"{}"},
}


def _called(node: ast.AST) -> str:
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name
    return ""


@cache
def error_classes() -> dict[str, int]:
    """The errors, and which of their arguments is the message; −1 if they have a message of their own."""
    classes = [node for each in nodes().values() for node in each if isinstance(node, ast.ClassDef)]
    found = {"AdiuvaError": 0, "BadPart": 0, "BadCron": 0}
    while more := {
        node.name: _message_at(node, found[base])
        for node in classes
        if node.name not in found
        for base in [ast.unparse(each).rpartition(".")[2] for each in node.bases]
        if base in found
    }:
        found |= more
    return found


def _message_at(error: ast.ClassDef, inherited: int) -> int:
    for node in error.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            names = [each.arg for each in node.args.args]
            return names.index("message") - 1 if "message" in names else -1
    return inherited


@cache
def error_messages() -> frozenset[tuple[str, str]]:
    """Each message and each field's problem of the errors: its literal, or "" and the place of one that is none."""
    names = error_classes()
    found: set[tuple[str, str]] = set()
    for path, tree in server_modules().items():
        place = str(path.relative_to(ROOT))
        if place in _FOR_MODELS:
            continue
        constants = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        own = {
            id(node)
            for error in nodes()[path]
            if isinstance(error, ast.ClassDef) and error.name in names
            for node in ast.walk(error)
        }
        for function in nodes()[path]:
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
                for node in _own_nodes(function):
                    for said in _said_by(node, names, in_error=id(node) in own):
                        found |= {(text, place) for text in _literals(said, function, constants, place)}
    return frozenset(found)


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function or module without those of the functions in it."""
    above = [function]
    while above:
        for child in ast.iter_child_nodes(above.pop()):
            yield child
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                above.append(child)


def _said_by(node: ast.AST, names: dict[str, int], *, in_error: bool) -> Iterator[ast.expr]:
    if not isinstance(node, ast.Call):
        return
    name = _called(node)
    if name == "__init__" and in_error and isinstance(node.func, ast.Attribute):
        at = 0 if ast.unparse(node.func.value) == "super()" else 1
    else:
        at = _HELPERS.get(name, names.get(name, -1))
        if name not in names and name not in _HELPERS:
            return
    if 0 <= at < len(node.args):
        yield node.args[at]
    for keyword in node.keywords:
        if keyword.arg == "message":
            yield keyword.value
        elif keyword.arg == "fields":
            values = keyword.value.values if isinstance(keyword.value, ast.Dict) else [keyword.value]
            for value in values:
                yield from value.elts if isinstance(value, ast.List) else [value]


def _literals(node: ast.expr, function: ast.AST, constants: dict[str, ast.expr], place: str) -> Iterator[str]:
    again = partial(_literals, function=function, constants=constants, place=place)
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.Call(func=ast.Name(id="Text"), args=[ast.Constant(value=str(text)), *_]):
            yield from [text] if _has_words(text) else []
        case ast.Call(func=ast.Name(id="Text"), args=[inner, *_]):
            yield from again(inner)
        case ast.Call(func=ast.Name(id="gettext_noop"), args=[inner]):
            yield from again(inner)
        case ast.IfExp():
            yield from [*again(node.body), *again(node.orelse)]
        case ast.List(elts=parts):
            for part in parts:
                yield from again(part)
        case ast.Call(func=ast.Name(id="list"), args=[inner]) | ast.Starred(value=inner):
            yield from again(inner)
        case ast.Call(func=ast.Name(id="reconnect_text")):
            pass  # it makes a Text
        case ast.Subscript(value=ast.Name(id=name)) if isinstance(constants.get(name), ast.Dict):
            for value in constants[name].values:  # type: ignore[attr-defined]
                yield from again(value)
        case ast.Name(id=name) if name in constants:
            yield from again(constants[name])
        case ast.Name(id=name) if name in _parameters(function):
            pass  # a subclass or a helper: its callers are looked at
        case ast.Name(id=name) if values := _assigned(name, function):
            for value in values:
                yield from again(value)
        case _ if ast.unparse(node) not in _FROM_ELSEWHERE.get(place, ()):
            yield f"\0{ast.unparse(node)}"


def _parameters(function: ast.AST) -> set[str]:
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return set()
    given = function.args
    return {each.arg for each in [*given.args, *given.kwonlyargs, *([given.vararg] if given.vararg else [])]}


def _assigned(name: str, function: ast.AST) -> list[ast.expr]:
    return [
        node.value
        for node in _own_nodes(function)
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id == name
    ]


_CALL_IN_TEMPLATE = re.compile(r"""\b(?:gettext|_)\((u?'(?:[^'\\]|\\.)*'|u?"(?:[^"\\]|\\.)*")\)""")


def texts_in_template(path: Path) -> Iterator[tuple[str, ...]]:
    for call in _CALL_IN_TEMPLATE.findall(templatize(path.read_text())):
        yield (ast.literal_eval(call),)


@cache
def all_texts() -> frozenset[tuple[str, ...]]:
    found = set(_NOUNS.values()) | {(str(label),) for label in Reason.labels}
    found |= {(str(tool.metadata["label"]),) for tool in TOOLS if tool.metadata}
    found |= {(message,) for message, _ in error_messages() if message}
    found |= {(text,) for text in page_texts()}
    for tree in server_modules().values():
        found |= set(texts_of(tree))
    for path in [*(ROOT / "templates").rglob("*.*"), CONSENT_PAGE]:
        found |= set(texts_in_template(path))
    return frozenset(found)


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


def test_each_message_of_an_error_is_a_literal() -> None:
    """So that it can be in the catalogues: `Text` carries what varies."""
    composed = sorted(f"{place}: {text[1:]}" for text, place in error_messages() if text.startswith("\0"))
    assert composed == []
    assert len(error_messages()) > 150


def test_what_is_wrong_with_a_form_is_said_in_their_language() -> None:
    """Django's and REST framework's own validators speak it; what ours say is wrapped where it is raised."""
    plain = sorted(
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, each in nodes().items()
        for node in each
        if isinstance(node, ast.Call) and _called(node) == "ValidationError"
        for problem in _problems(node.args[0])
        if isinstance(problem, ast.Constant | ast.JoinedStr | ast.BinOp)
    )
    assert plain == []


def _problems(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.Dict(values=parts) | ast.List(elts=parts) | ast.Tuple(elts=parts):
            for part in parts:
                yield from _problems(part)
        case ast.IfExp():
            yield from [*_problems(node.body), *_problems(node.orelse)]
        case _:
            yield node


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_error_is_said_in_it_and_stays_english_itself(language: str) -> None:
    cause = Text("{provider} does not answer ({why})", provider="Gmail", why="503")
    words = Text("{cause}; the undo has stopped, and goes on when it is asked for again", cause=cause)
    error = Invalid(
        words, fields={"title": [Text("1 to {most} characters.", most=200), "Not a UUID."]}, run_id="x"
    )
    with speaking(language):
        body = body_of(error)
        kept = said(unpacked(json.loads(json.dumps(packed(words)))))
    assert (
        str(error)
        == error.message
        == f"{cause}; the undo has stopped, and goes on when it is asked for again"
    )
    assert str(cause) == "Gmail does not answer (503)"
    assert (body["code"], body["run_id"]) == ("invalid", "x")
    assert kept == body["message"] and "Gmail" in kept and "(503)" in kept
    texts = {body["message"], *body["fields"]["title"]}
    english = {error.message, "1 to 200 characters.", "Not a UUID."}
    assert texts == english if language == "en" else not texts & english


def test_other_words_are_said_as_they_are() -> None:
    with speaking("de"):
        assert said("of a user: {braces}") == "of a user: {braces}"
        assert (
            said(Text("{name}: {problem}", name="there is no such run", problem="{x}"))
            == "there is no such run: {x}"
        )
        assert said(Text.of("there is no such run")) == "diesen Lauf gibt es nicht"
    assert pickle.loads(pickle.dumps(Text("{n} {m}", n=1, m="{"))) == "1 {"


@pytest.mark.parametrize(
    ("header", "words"),
    [("de-CH, en;q=0.5", "melden Sie sich zuerst an"), ("", "sign in first"), ("pt, ja", "sign in first")],
)
def test_a_request_refused_by_its_headers_is_answered_in_the_language_it_accepts(
    header: str, words: str
) -> None:
    _, _, body = body_guard.refusal(NotAuthenticated("sign in first"), {b"accept-language": header.encode()})
    assert json.loads(body)["message"] == words


PAGES: Final = [
    *(
        path
        for folder in ("accounts", "api_forms", "rest_framework")
        for path in (ROOT / "templates" / folder).glob("*.html")
        if path.stem != "about"  # attributes alone
    ),
    ROOT / "templates" / "index.html",
]
# Attributes whose value a person reads or hears.
_SPOKEN = re.compile(r"""(?:aria-label|title|placeholder|alt|data-(?:exists|elsewhere|failed))="([^"]*)\"""")
_WRAPPED = re.compile(r"{% blocktranslate\b.*?{% endblocktranslate %}|{[{%#].*?[}%#]}", re.DOTALL)


def unwrapped_in_template(source: str) -> list[str]:
    """Words of a page that are not wrapped for translation."""
    buttons = re.findall(r"""{% include [^%]*?\bbutton=("[^"]+")""", source)
    rest = re.sub(r"<(style|script)\b.*?</\1>", "", _WRAPPED.sub("", source), flags=re.DOTALL)
    said = _SPOKEN.findall(rest) + re.sub(r"<[^>]*>", "\n", rest).splitlines()
    return buttons + [
        text.strip() for text in said if re.search(r"[^\W\d_]", re.sub("Adiuva|HTTP", "", text))
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_no_words_that_are_not_wrapped(page: Path) -> None:
    assert unwrapped_in_template(page.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "<p>Hello</p>",
        '<p>{% translate "Hello" %} you</p>',
        '<div aria-label="Hello"></div>',
        '{% include "form.html" with button="Send" %}',
    ],
)
def test_words_that_are_not_wrapped_are_found(source: str) -> None:
    assert unwrapped_in_template(source)


def test_a_page_of_the_api_is_in_one_language_throughout() -> None:
    """Of people's pages each text is in the catalogues, which is tested above; programs' pages show no text of them."""
    assert len(page_texts()) > 150
    by_language: dict[bool, set[type]] = {True: set(), False: set()}
    with speaking("de"):
        for view in api_views():
            renderer = view.renderer_classes[-1]
            if not issubclass(renderer, BrowsableRenderer):
                continue
            is_theirs = getattr(view, "page_for_people", False)
            response = Response({})
            response.exception = True  # nothing of it is read then but its message
            context = {"view": view, "request": view.request, "response": response, "args": (), "kwargs": {}}
            view.request.accepted_renderer, response.status_code = renderer(), 404
            view.headers = {}
            page = str(renderer().render({"message": "x"}, "text/html", context))
            assert f'<html lang="{"de" if is_theirs else "en"}">' in page, type(view)
            assert ("Sie sind hier" in page, "You are here" in page) == (is_theirs, not is_theirs)
            assert response.get("Content-Language", "de") == ("de" if is_theirs else "en")
            by_language[is_theirs].add(type(view))
    assert len(by_language[True]) > 20 and len(by_language[False]) > 40


def _subclasses(of: type) -> Iterator[type]:
    for each in of.__subclasses__():
        yield each
        yield from _subclasses(each)


def test_labels_and_helps_of_forms_and_titles_of_pages_are_translated_when_they_are_shown() -> None:
    said: list[object] = [
        text
        for each in vars(forms).values()
        if isinstance(each, type) and each.__module__ == forms.__name__ and hasattr(each, "declared_fields")
        for field in each.declared_fields.values()
        if not field.widget.is_hidden
        for text in (field.label, field.help_text)
        if text or text is None  # without a label, the field's name is shown
    ]
    said += [
        text
        for page in _subclasses(security._Change)
        for text in (page.title, page.button, page.text)
        if text
    ]
    assert len(said) > 30
    assert [text for text in said if not isinstance(text, Promise)] == []


@pytest.mark.parametrize(
    ("locale", "browser", "language", "words"),
    [
        ("", "de-CH,de;q=0.9,en;q=0.5", "de", "Adresse, Passwort, zweiter Faktor."),
        ("it", "de", "it", "Indirizzo, password, secondo fattore."),
        ("", "pt-BR", "en", "Address, password, second factor."),
        ("", "", "en", "Address, password, second factor."),
    ],
)
def test_a_page_speaks_the_account_s_language_else_the_browser_s(
    rf: RequestFactory, locale: str, browser: str, language: str, words: str
) -> None:
    request = rf.get("/", headers={"Accept-Language": browser} if browser else {})
    request.user = User(locale=locale) if locale else AnonymousUser()
    response = index(request)
    assert words in response.content.decode()
    assert f'<html lang="{language}">' in response.content.decode()
    assert response["Content-Language"] == language
    assert "Accept-Language" in response["Vary"]


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


def test_a_turn_that_nobody_began_does_not_say_that_the_month_is_used_up() -> None:
    """Perhaps only the share of such turns is."""
    said = {each: end_messages.said_in_answer("budget_spent", follows_up=each) for each in (False, True)}
    assert "month" in said[False] and "month" not in said[True] and said[True]
    assert end_messages.said_in_answer("stop", follows_up=True) == ""


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


async def test_database_work_in_a_thread_speaks_the_callers_language() -> None:
    with speaking("de"):
        assert await db.run(translation.get_language) == "de"
    assert await db.run(translation.get_language) == "en"


# ── The page that follows a provider's consent ──────────────────────────────────────────────────────────


def test_no_text_of_the_consent_page_is_left_out() -> None:
    source = CONSENT_PAGE.read_text()
    for part in (
        r"<style.*?</style>",
        r"{% blocktranslate.*?{% endblocktranslate %}",
        r"{%.*?%}|{{.*?}}",
        r"<.*?>",
    ):
        source = re.sub(part, "", source, flags=re.DOTALL)
    assert re.findall(r"\w+", source) == ["Adiuva"]


# ── Conversations about agents ──────────────────────────────────────────────────────────────────────────

GMAIL: Final = interview.InterviewBrief(AgentType.GMAIL)
# Errors have their text from the API's, in English.
_REFUSALS: Final = {"Invalid", "NotFound", "ModelTimeout", "NothingToSample", "__init__"}


def unwrapped_sentences(source: str) -> Iterator[str]:
    """The sentences outside gettext's calls, docstrings and errors."""

    def visit(node: ast.AST) -> Iterator[str]:
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if (
                name in _CALLS or name in _REFUSALS
            ):
                return
            case ast.Expr(value=ast.Constant()):
                return
            case ast.JoinedStr():
                text = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
                if re.match(r"[A-Z]\w* .*[.?]", text):
                    yield text
                return
            case ast.Constant(value=str(text)) if re.match(r"[A-Z].* .*[.?]", text):
                yield text
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return visit(ast.parse(source))


def test_no_sentence_of_a_conversation_about_an_agent_is_left_out() -> None:
    for module in (services, mailbox_choice, samples, trial):
        assert module.__file__
        assert list(unwrapped_sentences(Path(module.__file__).read_text())) == []
    assert list(unwrapped_sentences('say("There is none.")\nsay(f"There are {n}.")')) == [
        "There is none.",
        "There are .",
    ]


def notes(proposal: interview.AgentProposal) -> list[str]:
    return [proposal.name, *proposal.notes]


def said_in_a_journey() -> list[str]:
    found = {"prompt_template": "All.", "data_types": ["notes", "x"], "schedule_cron": "x"}
    local = interview.InterviewBrief(AgentType.LOCAL_DIRECTORY)
    counted = trial.TrialResult(sources=["a", "b"], counts={"tasks": 2, "timelines": 1})
    return [
        *notes(interview._outcome(found | {"filters": {"senders": 1}}, GMAIL)),
        *notes(interview._outcome(found | {"filters": {"file_extensions": ["?"]}}, local)),
        *notes(interview._fallback_proposal(GMAIL, [])),
        mailbox_choice.question([]),
        trial.trial_summary(counted),
        trial.trial_summary(trial.TrialResult(sources=["a"])),
    ]


@pytest.mark.parametrize("language", TRANSLATED)
def test_conversations_about_agents_are_held_in_it(language: str) -> None:
    with speaking("en"):
        english = said_in_a_journey()
    with speaking(language):
        theirs = said_in_a_journey()
    assert len(english) == 13 and "In 2 documents of yours it finds: 2 tasks, 1 timeline entry." in english
    assert [one for one, other in zip(english, theirs, strict=True) if one == other] == []


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        DeviceSilent(),
        DeviceOffline(),
        NeedsReauth("x", connection_id=uuid.uuid4()),
        NoSuchFolder("x"),
        ProviderUnavailable("x"),
        AdiuvaError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_why_nothing_was_tried_out_is_said_in_it(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(request: samples.SampleRequest) -> samples.DocumentSample:
        raise error

    monkeypatch.setattr(samples, "collect", fail)
    proposal = interview.AgentProposal(prompt_template="All.", data_types=["notes"], name="Mine")
    request = samples.SampleRequest(uuid.uuid4(), uuid.uuid4(), AgentType.GMAIL, None, proposal)
    said = set()
    for language in LANGUAGES:
        with speaking(language):
            said.add((await trial.run_trial(request, ZoneInfo("UTC"))).message)
    assert len(said) == len(LANGUAGES)


def test_pages_of_errors_are_in_the_browsers_language_and_ask_no_account() -> None:
    request = RequestFactory().get("/nothing", headers={"Accept-Language": "de-CH"})
    for handler, status, title in [
        (views.not_found, 404, "Hier ist nichts"),
        (views.forbidden, 403, "Das ist nicht erlaubt"),
        (views.bad_request, 400, "Diese Anfrage wurde nicht verstanden"),
        (views.server_error, 500, "Etwas ist schiefgegangen"),
        (views.csrf_failure, 403, "Dieses Formular ist zu alt"),
    ]:
        answer = handler(request)
        assert (answer.status_code, f"<h1>{title}</h1>" in answer.content.decode()) == (status, True)
