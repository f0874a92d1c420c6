"""Search finds in real conversations what grep finds in their files."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from domain.messages import texts_of
from projections.directory import search
from tests.projections.directory.given import Told

SAMPLES = sorted((Path(__file__).resolve().parents[3] / "docs/samples").glob("*.jsonl.gz"))
MORE = sorted(Path(os.environ.get("CONVO_TEST_DATA", "-")).glob("*.jsonl.gz"))
BATCH_EVENTS = 5_000

# What is typed, and for each part of it (all must match) what `grep -iP` would be given.
QUERIES: list[tuple[str, Sequence[str]]] = [
    # English
    ("steamer", [r"\bsteamer\b"]),
    ("Integration Tests", [r"\bintegration\b", r"\btests\b"]),
    ('"integration tests"', [r"\bintegration\W+tests\b"]),
    ("don't know", [r"\bdon\W+t\b", r"\bknow\b"]),
    ('"apt-get install"', [r"\bapt\W+get\W+install\b"]),
    ("refund*", [r"\brefund"]),
    ("economy cabin", [r"\beconomy\b", r"\bcabin\b"]),
    ("xorg.conf", [r"\bxorg\W+conf\b"]),
    ("basketball NBA", [r"\bbasketball\b", r"\bnba\b"]),
    ("2024-05-15", [r"\b2024\W+05\W+15\b"]),
    # Chinese: two characters and one, parts of words, several
    ("北京", ["北京"]),
    ("酒店", ["酒店"]),
    ("地铁站", ["地铁站"]),
    ("天安门广场", ["天安门广场"]),
    ("评分 免费", ["评分", "免费"]),
    ("安", ["安"]),
    ("5分", [r"(?<![A-Za-z0-9０-９])[5５]分"]),
    # Japanese: kanji, kana, across both, a long sound
    ("映画", ["映画"]),
    ("こんばんは", ["こんばんは"]),
    ("好きです", ["好きです"]),
    ("ラーメン", ["ラーメン"]),
    ("です ます", ["です", "ます"]),
    ("ー", ["[ーｰ]"]),
    ("ディズニーランド", ["ディズニーランド"]),
    # French, Spanish, Russian, Arabic: with accents and without
    ("precedente", [r"\bpr[eé]c[eé]dente\b"]),
    ("électromagnétiques", [r"\b[eé]lectromagn[eé]tiques\b"]),
    ("café", [r"\bcaf[eé]\b"]),
    ("espanol", [r"\bespa[nñ]ol\b"]),
    ("русском", [r"\bрусском\b"]),
    ("العربية", [r"\bالعربية\b"]),
]


def messages(files: Sequence[Path]) -> Iterator[tuple[str, str, str]]:
    """(conversation, message, text) of everything in the files."""
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                for place, message in enumerate(json.loads(line)["messages"]):
                    text = "\n".join(texts_of(message.get("content")))
                    yield f"{file.name} {number}", f"m-{place}", text


def grep(texts: dict[str, str], patterns: Sequence[str]) -> set[str]:
    """The messages in which every pattern is; an underscore ends a word."""
    compiled = [re.compile(_word_ends(each), re.IGNORECASE) for each in patterns]
    return {name for name, text in texts.items() if all(each.search(text) for each in compiled)}


def _word_ends(pattern: str) -> str:
    r"""The pattern with `\b` as an end of a word, of which an underscore is no part."""
    pattern = pattern.replace(r"\W", r"[\W_]")
    pattern = re.sub(r"^\\b", r"(?<![^\\W_])", pattern)
    return re.sub(r"\\b$", r"(?![^\\W_])", pattern)


def finds_what_grep_finds(
    told: Told, files: Sequence[Path], monkeypatch: pytest.MonkeyPatch
) -> int:
    monkeypatch.setattr(search, "CANDIDATES_MAX", 10**9)
    texts: dict[str, str] = {}
    last = None
    for number, (conversation, message, text) in enumerate(messages(files)):
        texts[f"{conversation}/{message}"] = text
        if conversation != last:
            told.start(conversation)
            last = conversation
        told.say(conversation, text, message)
        if number % BATCH_EVENTS == 0:
            told.flush()
            told.written.clear()
    found_something = 0
    for query, patterns in QUERIES:
        expected = grep(texts, patterns)
        assert told.found(query, limit=10**9) == expected, query
        found_something += bool(expected)
    return found_something


def test_in_the_samples(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(QUERIES) == 30
    assert finds_what_grep_finds(told, SAMPLES, monkeypatch) >= 12


@pytest.mark.slow
@pytest.mark.skipif(not MORE, reason="CONVO_TEST_DATA names a folder of *.jsonl.gz to search")
@pytest.mark.timeout(600)
def test_in_more_files(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    assert finds_what_grep_finds(told, MORE, monkeypatch) == len(QUERIES)
