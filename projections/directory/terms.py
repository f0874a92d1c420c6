"""What a text is made of for search: terms, folded, the same for messages and for queries.

A run is a word of a script that sets blanks between words; or a stretch of one that does not
(Chinese, Japanese, Thai …, and Korean, whose endings are joined to the words); or one picture
(emoji, arrow). A word and a picture are one term each. A stretch has a term for each character:
that character together with the next one, and the last one alone. 北京站 is 北京, 京站, 站. So any
part of a stretch, two characters or a hundred, is a sequence of neighbouring terms, and a single
character is the beginning of a term.

Folding takes away what a searcher does not care for: case, diacritics, full and half width,
ligatures, vowel points of Hebrew and Arabic, invisible joiners. Marks that make another letter
(Japanese が and か, the vowels of Indic scripts) stay.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

FORMAT: Final = 1
"""Changes with every change of what a text's terms are: an index of another one is built anew."""

TERM_CHARS_MAX: Final = 64
"""Of a longer word the beginning counts (base64, say); a query for it is cut alike."""

# Scripts without blanks between words, and Hangul, as they are after folding.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf"  # Thai … Tai Tham
    "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"  # Hangul
    "\u3005-\u3007\u3021-\u302f\u3031-\u3035\u3038-\u303c\u3040-\u30fa\u30fc-\u30ff"
    "\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff"  # kana, bopomofo
    "\u2e80-\u2fdf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U0003fffd"  # Han
)
_PICTURES = "\u2190-\u23ff\u2460-\u27bf\u2900-\u2bff\U0001f000-\U0001faff"
_MARKS = "".join(
    character
    for character in map(chr, range(0x300, 0xFE00))
    if unicodedata.category(character)[0] == "M" and not re.match(f"[{_UNSPACED}]", character)
)

LETTER: Final = f"(?:(?![{_UNSPACED}])[^\\W_])"
"""A pattern: one letter or digit of a word."""

WORD_PART: Final = f"(?:{LETTER}|[{_MARKS}])"
"""A pattern: one character of a word, behind its first."""

_RUN = re.compile(
    f"(?P<STRETCH>[{_UNSPACED}]+)|(?P<PICTURE>[{_PICTURES}])|(?P<WORD>{LETTER}{WORD_PART}*)"
)
_ASCII_WORD = re.compile(r"[a-z0-9]+")

# A character with what belongs to it when it is folded; ASCII in one piece.
_JOINS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670\u3099\u309a\uff9e\uff9f\u1160-\u11ff"
_CLUSTER = re.compile(f"[\\x00-\\x7f]+(?![{_JOINS}])|.[{_JOINS}]*", re.DOTALL)
_DROPPED = re.compile(
    "[\u00ad\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0640\u064b-\u065f"
    "\u0670\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff]"
)
_CLUSTERS_CACHED: Final = 16_384


class Kind(Enum):
    """What a run is."""

    WORD = "word"
    STRETCH = "stretch"
    PICTURE = "picture"


class Run(NamedTuple):
    """One run of a folded text."""

    kind: Kind
    text: str


@lru_cache(_CLUSTERS_CACHED)
def _folded(cluster: str) -> str:
    plain = _DROPPED.sub("", unicodedata.normalize("NFKD", cluster)).casefold()
    plain = _DROPPED.sub("", unicodedata.normalize("NFKD", plain))
    return unicodedata.normalize("NFKC", plain)


def _fold_piece(piece: str) -> str:
    return piece.lower() if piece.isascii() else _folded(piece)


def fold(text: str) -> str:
    """The text without what search does not tell apart."""
    if text.isascii():
        return text.lower()
    return "".join(map(_fold_piece, _CLUSTER.findall(text)))


def fold_with_places(text: str) -> tuple[str, list[int] | None]:
    """The folded text and, for each of its characters and for its end, the place in `text`.

    None in the place of the places where every character stayed in its own.
    """
    if text.isascii():
        return text.lower(), None
    pieces: list[str] = []
    places: list[int] = []
    for found in _CLUSTER.finditer(text):
        piece = _fold_piece(found[0])
        pieces.append(piece)
        if found[0].isascii():
            places += range(*found.span())
        else:
            places += [found.start()] * len(piece)
    places.append(len(text))
    return "".join(pieces), places


def runs(folded: str) -> Iterator[Run]:
    """The runs of a folded text, in their order."""
    if folded.isascii():
        for word in _ASCII_WORD.findall(folded):
            yield Run(Kind.WORD, word)
        return
    for found in _RUN.finditer(folded):
        assert found.lastgroup is not None
        yield Run(Kind[found.lastgroup], found[0])


def terms(run: Run) -> list[str]:
    """The terms of a run, in their order."""
    if run.kind is Kind.STRETCH:
        return [run.text[place : place + 2] for place in range(len(run.text))]
    return [run.text[:TERM_CHARS_MAX]]


def index_text(text: str) -> str:
    """The text's terms with a blank between: what the full-text index is given."""
    folded = fold(text)
    if folded.isascii():
        return " ".join([word[:TERM_CHARS_MAX] for word in _ASCII_WORD.findall(folded)])
    return " ".join([term for run in runs(folded) for term in terms(run)])
