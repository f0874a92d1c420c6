"""Tokens: how many a conversation has used since its last reset and in its whole life."""

from __future__ import annotations

from typing import NamedTuple


class TokenTotals(NamedTuple):
    """Sums of prompt and completion tokens, since the last reset and over the whole life."""

    prompt: int = 0
    completion: int = 0
    lifetime_prompt: int = 0
    lifetime_completion: int = 0

    def plus(self, prompt_tokens: int, completion_tokens: int) -> TokenTotals:
        """Returns the totals after one more use."""
        return TokenTotals(
            self.prompt + prompt_tokens,
            self.completion + completion_tokens,
            self.lifetime_prompt + prompt_tokens,
            self.lifetime_completion + completion_tokens,
        )

    def reset(self) -> TokenTotals:
        """Returns the totals after a reset: only those of the whole life stay."""
        return TokenTotals(0, 0, self.lifetime_prompt, self.lifetime_completion)
