"""How a command fails: one clear line on standard error, and an exit status.

| status | meaning |
|---|---|
| 0 | done |
| 1 | refused or failed |
| 2 | the command line cannot be understood |
| 130 | interrupted by Ctrl-C |
"""

from __future__ import annotations

from typing import Any

FAILED = 1
USAGE = 2
INTERRUPTED = 130


class CommandFailed(Exception):
    """The command did not do what was asked; the message says what to do next.

    `answer` is the reply as it was on NATS when there is one: `--json` prints it all the same.
    `unknown` says that what was asked may have been done.
    """

    unknown = False

    def __init__(self, message: str, *, answer: bytes | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.answer = answer


class Interrupted(CommandFailed):
    """Ctrl-C in the middle of something that has a line to say about it."""


class Unanswered(CommandFailed):
    """Nobody answered in time, or the server cannot be reached: nothing is known of the outcome."""


class Refused(CommandFailed):
    """The service answered with one of the contract's error codes."""

    def __init__(self, error: dict[str, Any], answer: bytes) -> None:
        self.code = str(error.get("code", "internal"))
        self.retryable = error.get("retryable") is True
        self.details: Any = error.get("details")
        super().__init__(_sentence(error), answer=answer)

    @property
    def retry_after_s(self) -> float:
        """When a limited caller may come back, in seconds from now; 0 when it is not said."""
        after = self.details.get("retry_after_ms") if isinstance(self.details, dict) else None
        return after / 1000 if isinstance(after, int | float) and after > 0 else 0.0


def _sentence(error: dict[str, Any]) -> str:
    """The error's message, with each field it does not name itself, and the code in brackets."""
    message = str(error.get("message") or "the service refused without saying why").strip()
    details = error.get("details")
    if isinstance(details, list):
        named = [
            f"{each['field']}: {each.get('problem', 'not accepted')}"
            for each in details
            if isinstance(each, dict) and each.get("field") and str(each["field"]) not in message
        ]
        if named:
            message = f"{message.rstrip('.')} ({'; '.join(named)})"
    return f"{message} [{error.get('code', 'internal')}]"
