"""The texts of messages: made of words by chance, as long as those of a chat."""

from __future__ import annotations

import random

CHARS = 215

_SENTENCE = (
    "the quick brown fox jumps over a lazy dog while tokens are counted and somebody asks whether "
    "that model answers what was meant by its user on an ordinary day in this conversation about "
    "weather travel code music prices letters and every other thing that people like to discuss"
)
_WORDS = _SENTENCE.split()


def text(seed: int) -> str:
    """A message's text: `CHARS` characters, the same for the same seed."""
    chance = random.Random(seed)
    return " ".join(chance.choice(_WORDS) for _ in range(CHARS // 2))[:CHARS]
