"""Token totals: since the last reset, and over the conversation's whole life."""

from __future__ import annotations

from domain.events import ConversationEvent, SessionReset, UsageRecorded
from domain.usage import TokenTotals


class Totals:
    """The sums of all recorded usage."""

    __slots__ = ("tokens",)

    def __init__(self, tokens: TokenTotals = TokenTotals()) -> None:  # noqa: B008  # immutable
        self.tokens = tokens

    def apply(self, event: ConversationEvent) -> None:
        """Takes the event in; one that is no usage and no reset changes nothing."""
        if isinstance(event, UsageRecorded):
            self.tokens = self.tokens.plus(event.prompt_tokens, event.completion_tokens)
        elif isinstance(event, SessionReset):
            self.tokens = self.tokens.reset()

    def since_reset(self) -> dict[str, int]:
        """Returns {prompt, completion, total} since the last reset."""
        return _sums(self.tokens.prompt, self.tokens.completion)

    def lifetime(self) -> dict[str, int]:
        """Returns {prompt, completion, total} of the whole life."""
        return _sums(self.tokens.lifetime_prompt, self.tokens.lifetime_completion)


def _sums(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt": prompt, "completion": completion, "total": prompt + completion}
