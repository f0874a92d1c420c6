"""What somebody looks for: words, "phrases" and beginnings*, whatever else is typed.

Everything that stands between blanks, or between double quotes, is a phrase: its runs must follow
one another in the message. All phrases must be in it. A star behind a phrase makes its last word
the beginning of one; a stretch of Chinese or Japanese may end anywhere anyway. Nothing has another
meaning: there are no operators and no errors of syntax.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from .terms import LETTER, WORD_PART, Kind, Run, fold, runs, terms

PHRASES_MAX: Final = 32
"""Further ones do not count."""

RUNS_MAX: Final = 64
"""Of one phrase; further ones do not count."""

_QUOTES = str.maketrans("“”„‟«»＂", '"' * 7)
_PHRASE = re.compile(r'"([^"]*)(?:"|$)(\*?)|([^\s"]+)')


@dataclass(frozen=True, slots=True)
class Phrase:
    """Runs that follow one another; with `beginning` the last one may go on."""

    runs: tuple[Run, ...]
    beginning: bool = False

    def expression(self) -> str:
        """The phrase in the language of FTS5. Its terms hold no quotes: none can end it early."""
        wanted = [term for run in self.runs for term in terms(run)]
        beginning = self.beginning
        last = self.runs[-1]
        if last.kind is Kind.STRETCH:
            # The last character alone is a term only at the end of a stretch.
            beginning = len(last.text) == 1
            if not beginning:
                wanted.pop()
        return f'"{" ".join(wanted)}"' + (" *" if beginning else "")

    def pattern(self) -> str:
        """A pattern that finds the phrase in a folded text."""
        parts = []
        for place, run in enumerate(self.runs):
            first, last = place == 0, place == len(self.runs) - 1
            part = re.escape(run.text)
            if run.kind is Kind.WORD:
                if not (last and self.beginning):
                    part = f"{part}(?!{WORD_PART})"
                if first:
                    part = f"(?<!{LETTER}){part}" if run.text.isascii() else part
            parts.append(part)
        return r"[\W_]*?".join(parts)


def parse(query: str) -> list[Phrase]:
    """The phrases of a query, each once; empty where nothing in it can be looked for."""
    found: dict[Phrase, None] = {}
    for quoted, star, bare in _PHRASE.findall(query.translate(_QUOTES)):
        of_it = tuple(runs(fold(quoted or bare)))[:RUNS_MAX]
        if of_it:
            found[Phrase(of_it, bool(star) or bare.endswith("*"))] = None
    return list(found)[:PHRASES_MAX]


def expression(phrases: list[Phrase]) -> str:
    """All the phrases in the language of FTS5."""
    return " AND ".join(phrase.expression() for phrase in phrases)
