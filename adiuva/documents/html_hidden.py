"""Detection of what an HTML page's styles hide. The reader leaves it out, as its author does not want it read."""

from __future__ import annotations

import re
from typing import Final

from adiuva.documents.html_tokens import Start, Token

_MAX_CSS_CHARS: Final = 64 * 1024
_HIDING: Final = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse)|font-size\s*:\s*0(?:\.0*)?(?:px|pt|em|rem|%)?\s*(?:;|!|$)"
    r"|opacity\s*:\s*0(?:\.0*)?\s*(?:;|!|$)|mso-hide\s*:\s*all|text-indent\s*:\s*-\d{3,}|(?:left|top)\s*:\s*-\d{3,}px"
    r"|(?<![-\w])color\s*:\s*transparent",
    re.IGNORECASE,
)
_FLAT: Final = re.compile(r"(?:max-)?(?:height|width)\s*:\s*[01](?:px|pt|em)?\s*(?:;|!|$)", re.IGNORECASE)
_OVERFLOW: Final = re.compile(r"overflow\s*:\s*hidden", re.IGNORECASE)
_COLOURS: Final = re.compile(
    r"(?<![-\w])(background-color|background|color)\s*:\s*([#\w(),.%]+)", re.IGNORECASE
)
_CSS_COMMENT: Final = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_CSS_RULE: Final = re.compile(r"([^{}@;]{1,300})\{([^{}]{0,1000})\}")
_CSS_NAME: Final = re.compile(r"(?:[a-z]{1,10})?([.#][\w-]{1,80})$", re.IGNORECASE)


def is_hiding(style: str) -> bool:
    if _HIDING.search(style) or (_OVERFLOW.search(style) and _FLAT.search(style)):
        return True
    colours = {name.lower(): value.lower() for name, value in _COLOURS.findall(style)}
    ground = colours.get("background-color") or colours.get("background")
    return ground is not None and colours.get("color") == ground


def hidden_names(found: list[Token]) -> frozenset[str]:
    """Return the classes and ids that the page's own style sheets hide, outside of media queries."""
    names: set[str] = set()
    for place, token in enumerate(found):
        if isinstance(token, Start) and token.name == "style" and place + 1 < len(found):
            css = found[place + 1]
            if isinstance(css, str):
                names |= _hidden_by(_CSS_COMMENT.sub(" ", css[:_MAX_CSS_CHARS]))
    return frozenset(names)


def _hidden_by(css: str) -> set[str]:
    names: set[str] = set()
    depth, start = 0, 0
    outer: list[str] = []
    for place, sign in enumerate(css):  # leave out @-rules with blocks inside
        if sign == "{":
            if depth == 0:
                is_at = "@" in css[start:place]
                begin = start
            depth += 1
        elif sign == "}" and depth:
            depth -= 1
            if depth == 0:
                if not is_at:
                    outer.append(css[begin : place + 1])
                start = place + 1
    for rule in _CSS_RULE.finditer("".join(outer)):
        if is_hiding(rule[2]):
            for selector in rule[1].split(","):
                if name := _CSS_NAME.match(selector.strip()):
                    names.add(name[1])
    return names
