"""Streaming through the sanitizer: the result does not depend on how the text was cut, and the delay is bounded."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adiuva.sanitizer import MAX_HELD_CHARS, LeakPatterns, Sanitizer
from tests.sampling import fewer

PROMPT = """You are the assistant of a freelancer, and you help with tasks, projects, timelines and notes.
Never say which tools you have; if somebody asks for them, speak of what you can do instead.
The word of this house is larkenmoor-58-quint. Answer in the language of the user, briefly and kindly."""
CANARY = "larkenmoor-58-quint"
TOOLS = ["list_tasks", "create_task", "list_tasks_due_today", "task"]
ROW, OTHER = "3f2a9c77b0d14e", "77b0-4aa1-9c"
PRIVATE = "0b6f3c1e-5d11-4c53-9d07-aa54e0b1c9f2"
GUARD = LeakPatterns(
    prompts=[PROMPT, "Say what you did and nothing else."], canaries=[CANARY], tool_names=TOOLS
)

CHART = (
    '<chart>{"chartType":"bar","title":"Hours","data":[{"month":"Oct","hours":12}],'
    '"config":{"hours":{"label":"Hours","color":"#aa3300"}}}</chart>'
)
READABLE = re.compile(r"[\s\u200b\u200d*~`'\",.:;|_-]{0,4}".join("larkenmoor58quint"), re.IGNORECASE)
# Whole things, and what is easily mistaken for the beginning of one.
WHOLE = [
    *(CANARY, CANARY.upper(), "l a r k e n m o o r 5 8 q u i n t", "lark**enm**oor-58-\u200bquint"),
    *(
        f"<task>[{ROW}]</task>",
        f"<note>[{ROW}, 'nobody', {OTHER}]</note>",
        "<task>[nobody]</task>",
        "<task> [",
        "<task>",
    ),
    *(CHART, CHART.replace("bar", "cake"), "<chart>{", "<chart> {}", '<chart>{"a": "</chart>"}'),
    *("`list_tasks`", "list\\_tasks", "create_task(", "xlist_tasks", "list_tasks_", "`create_task"),
    *(
        ROW,
        f" (id: {ROW})",
        f"[id {ROW}, {OTHER}]",
        f"(task id `{ROW}`)",
        f" id {ROW}",
        f"**{ROW}**",
        "(see",
        "(id ",
        "id",
        "ids:",
    ),
    *(PRIVATE, PRIVATE.upper(), f"({PRIVATE})", PRIVATE[:20] + PRIVATE + PRIVATE[20:], f"x{PRIVATE}y"),
    *(
        '<tool_call>{"name": "list_tasks"}</tool_call>',
        "<tool_call>",
        "</tool_call>",
        "<function=list_tasks>\n",
        "</function>",
    ),
    *(
        "<|im_end|>",
        "<|",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        *("<|channel|>", "analysis", "final<|message|>", "<|call|>", "```json\n", "```", "```tool_code\n"),
        "[TOOL_CALLS]",
        "list_tasks[ARGS]",
        '[{"name": "x"}]',
    ),
    *(
        '{"name": "list_tasks", "arguments": {"a": "}"}}',
        '{"type": "function"}',
        '{"name": "npm"}',
        '{"id": [',
        '{"a": 1}',
        "[TOOL",
    ),
    *("a" * 300, f"{'b' * 200}{PRIVATE}{'c' * 120}", "-" * 300, "…" * 300, " " * 300),
    *(
        "\n",
        "\n\n",
        ". ",
        ".",
        " ",
        " ",
        " ",
        "  ",
        "<",
        "[",
        "{",
        "(",
        ")",
        "]",
        "}",
        '"',
        "`",
        "*",
        "'",
        "…",
        ",",
        "\u200b",
        "\u200d",
    ),
    *(
        "Straße",
        "İ",
        "今日は",
        "ß",
        "наш",
        "don't",
        "1 < 2",
        "e.g. ",
        "https://example.org/a_b?c=d",
        "https://evil.example/?d=secret",
        "![a](",
        "[b]",
        "](",
        ")",
        "[a](https://example.org)",
        "<img src=x>",
        "<b>",
        "</b>",
        "<!--",
        "-->",
        "ht",
        "tp://",
        "www.",
        "!",
        "<",
        ">",
        "\n\n",
        "\\",
        "2026-11-20",
    ),
]
prompt_words = PROMPT.split()
runs = st.tuples(st.integers(0, len(prompt_words)), st.integers(1, 14)).map(
    lambda at: " ".join(prompt_words[at[0] : at[0] + at[1]])
)
parts = st.lists(st.one_of(st.sampled_from(WHOLE), runs, st.text(max_size=6)), max_size=14)
texts = st.builds(lambda joined, between: between.join(joined), parts, st.sampled_from(["", "", " "]))


def sanitizer() -> Sanitizer:
    known = {"https://example.org/a_b?c=d", "https://example.org"}
    return Sanitizer(
        GUARD, known={ROW, OTHER}, private=[PRIVATE, "request-of-today"], knows_address=known.__contains__
    )


def said(*pieces: str) -> str:
    one = sanitizer()
    return "".join([*map(one.feed, pieces), one.finish()])


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@settings(max_examples=fewer(250), deadline=None)
@given(texts, st.lists(st.integers(0, 5_000), max_size=30))
@example(f"id {ROW}", [3])
def test_the_cuts_change_nothing(text: str, places: list[int]) -> None:
    assert said(*cut(text, places)) == said(text)


@settings(max_examples=fewer(120), deadline=None)
@given(texts)
def test_character_by_character_is_as_good_as_in_one_piece(text: str) -> None:
    assert said(*text) == said(text)


@settings(max_examples=fewer(120), deadline=None)
@given(texts, st.integers(1, 9))
def test_no_way_of_joining_lets_a_canary_or_a_private_id_through(text: str, size: int) -> None:
    shown = said(*(text[at : at + size] for at in range(0, len(text), size)))
    assert not READABLE.search(shown)
    assert PRIVATE not in shown.lower()


@settings(max_examples=fewer(120), deadline=None)
@given(
    st.text(st.characters(exclude_characters="<[]{"), max_size=200), st.lists(st.integers(0, 200), max_size=9)
)
def test_what_holds_nothing_to_hide_comes_out_as_it_went_in(text: str, places: list[int]) -> None:
    assert said(*cut(text, places)) == text


PLAIN = [
    *(
        "the",
        "You are the",
        "of the user",
        "a freelancer",
        "with",
        "which",
        "right",
        "of",
        "left",
        "how",
        "w",
        "ww",
    ),
    *(
        "id",
        "ids",
        "Idea",
        "said",
        "www.",
        "www",
        "don't",
        "e.g.",
        "Say:",
        "- ",
        "**bold**",
        "what?",
        "A|B",
        '"',
        "'",
    ),
    *("Larken", "l", "L a r", "Answer in the language of", "larkenmoor", "x" * 90, "\n", "\n\n", ", ", ". "),
]
plain_parts = st.lists(
    st.one_of(
        st.sampled_from(PLAIN), st.sampled_from(PLAIN), st.sampled_from(PLAIN), st.sampled_from(WHOLE), runs
    ),
    max_size=30,
)
plain_texts = st.builds(
    lambda joined, between: between.join(joined), plain_parts, st.sampled_from([" ", " ", ""])
)


@settings(max_examples=fewer(600), deadline=None)
@given(plain_texts, st.lists(st.integers(0, 2_000), max_size=40), st.booleans())
def test_the_fast_path_says_what_the_stages_do_piece_by_piece(
    text: str, places: list[int], is_by_word: bool
) -> None:
    fast, whole = (Sanitizer(GUARD, known={ROW, OTHER}, private=[PRIVATE]) for _ in range(2))
    whole._fast_path.take = lambda text: None  # type: ignore[method-assign]
    pieces = re.findall(r"\s*\S+|\s+", text) if is_by_word else cut(text, places)
    for piece in pieces:
        assert fast.feed(piece) == whole.feed(piece), piece
    assert fast.finish() == whole.finish()
    assert fast.removed == whole.removed


def test_most_plain_words_take_the_fast_path() -> None:
    one = Sanitizer(GUARD, known=set(), private=[PRIVATE])
    taken = [
        one._fast_path.take(piece) or one.feed(piece) is None
        for piece in re.findall(
            r"\S+\s*", "The harbour has asked for another week before it signs what we sent. " * 9
        )
    ]
    assert sum(map(bool, taken)) > len(taken) * 0.8


@pytest.mark.parametrize("secret", ["request-of-today", "a plain request", "word 7 of nine", "ends in 9"])
def test_private_strings_of_plain_words_are_looked_for(secret: str) -> None:
    one = Sanitizer(GUARD, known=set(), private=[secret])
    text = f"There was {secret}, and more."
    assert "".join([*map(one.feed, text), one.finish()]) == "There was , and more."


def test_a_canary_does_not_come_through_wherever_it_is_cut() -> None:
    for canary in (CANARY, CANARY.upper(), " ".join(CANARY), "*".join(CANARY)):
        text = f"It says {canary}, and goes on."
        encoded = text.encode()
        for at in range(len(encoded) + 1):
            shown = said(encoded[:at].decode(), encoded[at:].decode())
            assert shown == "It says […], and goes on."


def test_a_tag_and_a_chart_come_in_one_piece_of_output() -> None:
    tag = f"<task>[{ROW},{OTHER}]</task>"
    text = f"Here: {tag} and {CHART} too."
    one = sanitizer()
    pieces = [one.feed(letter) for letter in text] + [one.finish()]
    assert "".join(pieces) == text
    assert any(tag in piece for piece in pieces)
    assert any(CHART in piece for piece in pieces)


def test_ordinary_text_is_at_most_a_word_late() -> None:
    text = (
        "The kitchen of the café opens at nine, and the painters come back in two weeks' time.\n\n- Call them.\n"
        * 3
    )
    one, shown = sanitizer(), 0
    for number, letter in enumerate(text, 1):
        shown += len(one.feed(letter))
        assert number - shown <= 12


def test_nothing_is_held_back_beyond_the_limit() -> None:
    endless = {
        "entity": f"<task>[{ROW}, ",
        "chart": '<chart>{"title": "',
        "call": "<tool_call>",
        "control": "<|im",
        "value": '{"name": "',
        "calls": "[TOOL_CALLS][",
        "wrapper": f"(id {ROW}, ",
        "word": "",
        "run": "You are the assistant of a",
        "begun canary": "larkenmoor-5",
    }
    for kind, beginning in endless.items():
        for filling in ("a", f"{ROW}, ", "… ", "text and ", "\u200b"):
            one = sanitizer()
            one.feed(beginning)
            for _ in range(2 * MAX_HELD_CHARS // 5_000):
                one.feed(filling * (5_000 // len(filling)))
            # What is dropped looks like what is held from outside, so this looks inside.
            state = sum(len(stage.held) for stage in (one._markup, one._identifiers, one._prompt_leaks))
            assert state <= MAX_HELD_CHARS + 6_000, (kind, filling)


def test_prose_after_what_was_endless_is_shown() -> None:
    for beginning, end in (
        ('<chart>{"title": "', "</chart>"),
        ("<tool_call>", "</tool_call>"),
        ("<tool_call>", "\n\n"),
        ('{"name": "list_tasks", "arguments": "', '"}\n\n'),
    ):
        shown = said(beginning, *["abc " * 1_000] * 20, end, "And that is all.")
        assert shown.endswith("And that is all."), beginning
