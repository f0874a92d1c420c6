"""The part of a text that was found, with the hits marked."""

from __future__ import annotations

import re
from typing import Final

from .query import Phrase
from .terms import fold_with_places

BEGIN: Final = "⟦"
END: Final = "⟧"
"""What stands around a hit. A text that holds one itself is shown without it."""

CHARS: Final = 160
BEFORE: Final = 48
"""Characters of a snippet, and of them those in front of the first hit."""

_CUT = "…"
_MARKERS = str.maketrans("", "", BEGIN + END)
_BLANKS = re.compile(r"\s+")


def snippet(text: str, phrases: list[Phrase]) -> str:
    """About 160 characters around the first hit, on one line; `…` where the text goes on."""
    text = _BLANKS.sub(" ", text.translate(_MARKERS)).strip()
    folded, places = fold_with_places(text)
    hits = _hits(folded, phrases)
    spans = [_in_text(hit, places) for hit in hits]
    first = spans[0][0] if spans else 0
    start = _word_start(text, max(0, min(first - BEFORE, len(text) - CHARS)), first)
    end = _word_end(text, start + CHARS)
    pieces = [_CUT if start else ""]
    at = start
    for begin, stop in spans:
        if begin < at or begin >= end:
            continue
        pieces += [text[at:begin], BEGIN, text[begin : min(stop, end)], END]
        at = min(stop, end)
    pieces += [text[at:end], _CUT if end < len(text) else ""]
    return "".join(pieces)


def _hits(folded: str, phrases: list[Phrase]) -> list[tuple[int, int]]:
    """Where the phrases are, in order; those behind the first snippet's length are left out."""
    patterns = [re.compile(phrase.pattern()) for phrase in phrases]
    firsts = [found.start() for pattern in patterns if (found := pattern.search(folded))]
    if not firsts:
        return []
    first = min(firsts)
    hits = [
        found.span()
        for pattern in patterns
        for found in pattern.finditer(folded, first, min(len(folded), first + 4 * CHARS))
        if found.end() > found.start()
    ]
    return sorted(hits)


def _in_text(span: tuple[int, int], places: list[int] | None) -> tuple[int, int]:
    """The span in the text itself of one in the folded text."""
    if places is None:
        return span
    start, end = span
    last = places[end - 1]
    while places[end] == last:  # one character became several
        end += 1
    return places[start], places[end]


def _word_start(text: str, start: int, first: int) -> int:
    """`start`, or the beginning of the next word where that is near and in front of the hit."""
    if start == 0:
        return 0
    blank = text.find(" ", start - 1, min(start + 16, first))
    return start if blank < 0 else blank + 1


def _word_end(text: str, end: int) -> int:
    if end >= len(text):
        return len(text)
    blank = text.rfind(" ", end - 16, end + 1)
    return end if blank < 0 else blank
