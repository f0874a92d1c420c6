"""What search tells apart and what it does not, in the languages of the world."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import example, settings
from hypothesis import given as arbitrary
from hypothesis import strategies as st

from projections.directory.query import expression, parse
from projections.directory.snippet import BEGIN, CHARS, END, snippet
from projections.directory.terms import fold, fold_with_places, index_text


def matches(query: str, text: str) -> bool:
    """Whether the index finds the text, as SQLite sees it."""
    phrases = parse(query)
    database = sqlite3.connect(":memory:")
    try:
        database.execute("CREATE VIRTUAL TABLE t USING fts5(terms, tokenize = 'ascii')")
        database.execute("INSERT INTO t VALUES (?)", (index_text(text),))
        if not phrases:
            return False
        found = database.execute("SELECT 1 FROM t WHERE t MATCH ?", (expression(phrases),))
        return found.fetchone() is not None
    finally:
        database.close()


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("hotel", "A Hotel, please."),
        ("HOTEL", "a hotel"),
        ("cafe", "Un CAFÉ noir"),
        ("café", "un cafe noir"),
        ("cafe\u0301", "un café noir"),
        ("strasse", "Straße 1"),
        ("ＡＢＣ", "abc"),
        ("don't", "I don’t know"),
        ("my_function", "call my_function()"),
        ("foo.bar", "use foo.bar here"),
        ("integration tests", "tests of the integration"),
        ('"integration tests"', "the Integration-Tests fail"),
        ('"integration tests', "the integration tests fail"),
        ("depl*", "we deployed it"),
        ('"we depl"*', "we deployed it"),
        ("北京", "我要去北京办事"),
        ("京", "我要去北京"),
        ("京", "京都"),
        ("北京办事", "我要去北京办事"),
        ("北京 酒店", "酒店在北京"),
        ("北京*", "北京站"),
        ("こんばん", "こんばんはー"),
        ("ばー", "こんばー"),
        ("ガイド", "ｶﾞｲﾄﾞﾌﾞｯｸ"),
        ("AI技術", "最新AI技術の話"),
        ("技術", "AI技術"),
        ('"AI 技術"', "AI技術"),
        ("한국", "한국어를"),
        ("국어", "한국어를"),
        ("สวัสดี", "สวัสดีครับ"),
        ("हिन्दी", "मैं हिन्दी बोलता हूँ"),
        ("سلام", "سَلامٌ عليكم"),
        ("Елка", "ёлка"),
        ("👍", "ok 👍!"),
        ("2024-05-15", "on 2024-05-15 at 15:00"),
        ("« bonjour »", "il dit bonjour"),
        ("İstanbul", "istanbul"),
    ],
)
def test_finds(query: str, text: str) -> None:
    assert matches(query, text)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("hotel", "hotels"),
        ("otel", "hotel"),
        ('"tests integration"', "integration tests"),
        ("hotel bar", "a hotel"),
        ("北京", "北方京都"),
        ("か", "が"),
        ("京北", "北京"),
        ('"北京上海"', "北京。上海"),
        ("NOT hotel", "hotel"),
        ("a OR b", "a"),
        ("?!", "?!"),
        ("", "x"),
    ],
)
def test_does_not_find(query: str, text: str) -> None:
    assert not matches(query, text)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@arbitrary(query=texts)
@settings(max_examples=500)
@example('"')
@example('" AND NEAR(a b) *')
@example("terms:x -y ^z {a} (b) + c")
@example("'; DROP TABLE t; --")
@example('""""*')
@example("\x00 a\x00b")
@example("a " * 500)
@example("京" * 1000)
def test_nothing_that_is_typed_is_an_error(query: str) -> None:
    matches(query, query)


@arbitrary(text=texts)
@settings(max_examples=300)
def test_a_text_is_found_by_itself_in_quotes(text: str) -> None:
    bare = "".join(character for character in text if character not in '"“”„‟«»＂')
    if index_text(bare):
        assert matches(f'"{bare}"', bare)


@arbitrary(
    text=st.text("我要去北京办事。天気はいいですね、ガードー가나 abc", max_size=30),
    data=st.data(),
)
@settings(max_examples=300)
def test_any_two_neighbouring_characters_are_found(text: str, data: st.DataObject) -> None:
    """As grep would; a query with a blank or a mark in it means something else."""
    pairs = [text[n : n + 2] for n in range(len(text) - 1)]
    pairs = [pair for pair in pairs if pair.isalpha() and not pair.isascii()]
    pairs = [pair for pair in pairs if not any(each in "abc" for each in pair)]
    if pairs:
        assert matches(data.draw(st.sampled_from(pairs)), text)


@arbitrary(text=texts)
@settings(max_examples=300)
def test_folded_characters_know_where_they_come_from(text: str) -> None:
    folded, places = fold_with_places(text)
    assert folded == fold(text)
    if places is not None:
        assert len(places) == len(folded) + 1
        assert places == sorted(places)
        assert places[-1] == len(text)


@pytest.mark.parametrize(
    ("query", "text", "shown"),
    [
        ("hotel", "A Hotel, please.", "A ⟦Hotel⟧, please."),
        ("北京", "我要去北京办事", "我要去⟦北京⟧办事"),
        ("ガイド", "ｶﾞｲﾄﾞﾌﾞｯｸ", "⟦ｶﾞｲﾄﾞ⟧ﾌﾞｯｸ"),
        ("strasse", "Straße 1", "⟦Straße⟧ 1"),
        ("cafe", "cafe\u0301 noir", "⟦cafe\u0301⟧ noir"),
        ("depl*", "we deployed", "we ⟦depl⟧oyed"),
        ("a b", "b a", "⟦b⟧ ⟦a⟧"),
        ('"a b"', "a-b b", "⟦a-b⟧ b"),
        ("x", "two\n\nlines x", "two lines ⟦x⟧"),
        ("x", "⟦sly⟧ x", "sly ⟦x⟧"),
        ("in", "inside in", "inside ⟦in⟧"),
        ("hi", "hi", "⟦hi⟧"),
    ],
)
def test_snippets_mark_the_hits(query: str, text: str, shown: str) -> None:
    assert snippet(text, parse(query)) == shown


def test_a_snippet_of_a_long_text_is_around_the_hit_and_short() -> None:
    text = "begin " + "before " * 200 + "needle" + " after" * 200
    shown = snippet(text, parse("needle"))

    assert "⟦needle⟧" in shown
    assert shown.startswith("…before ")
    assert shown.endswith(" after…")
    assert len(shown) <= CHARS + 4


@arbitrary(text=texts, query=texts)
@settings(max_examples=300)
@example(text="ﷺ" * 20, query="صلى")
def test_a_snippet_is_a_part_of_the_text_with_marks(text: str, query: str) -> None:
    shown = snippet(text, parse(query))
    plain = "".join(each for each in shown if each not in BEGIN + END + "…")
    whole = " ".join(text.split())
    assert "".join(plain.split()) in "".join(whole.replace("…", "").split())
    assert shown.count(BEGIN) == shown.count(END)
