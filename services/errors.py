"""How a failure is told: every exception that can end a request, as the contract's error.

The domain's refusals carry their code themselves; the store's and our own faults get theirs here,
and nowhere else.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from typing import Any

from domain.errors import ConversationError
from infra.jetstream.errors import (
    Conflict,
    LedgerDamaged,
    OutcomeUnknown,
    StoreUnavailable,
    TooLarge,
)
from infra.jetstream.fence import LedgerWentBack

log = logging.getLogger(__name__)


class NotYetThere(Exception):
    """The event that the caller has seen (`Convo-Min-Seq`) did not become visible in time."""

    def __init__(self, wanted_seq: int, seq: int) -> None:
        super().__init__(
            f"the conversation is at seq {seq} here, not at {wanted_seq} yet; try again, "
            "and check that the seq is from a reply about this very conversation"
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """The `error` of a reply, and the HTTP-like status that goes into its headers."""

    code: str
    status: int
    message: str
    retryable: bool
    details: Any = None

    def body(self) -> dict[str, Any]:
        """The reply as the contract has it."""
        error: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "retryable": self.retryable,
        }
        if self.details is not None:
            error["details"] = self.details
        return {"ok": False, "error": error}


class Refused(Exception):
    """A request that is not answered, for a reason that has its own error."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refusal(error: Exception) -> Refusal:
    """What to tell the caller about `error`. An unexpected one is logged with its incident."""
    match error:
        case Refused():
            return error.refusal
        case ConversationError():
            return Refusal(error.code, error.status, error.message, error.retryable, error.details)
        case TooLarge():
            return Refusal("message_too_large", 413, str(error), retryable=False)
        case OutcomeUnknown():
            return Refusal(
                "outcome_unknown",
                504,
                "it may or may not have been written: send it again with the same command id",
                retryable=True,
                details={"reason": str(error)},
            )
        case StoreUnavailable() | NotYetThere() | LedgerWentBack():
            return Refusal("storage_unavailable", 503, str(error), retryable=True)
        case Conflict():
            return Refusal(
                "version_conflict",
                409,
                "other writers kept getting in first: send it again with the same command id",
                retryable=True,
            )
    incident = secrets.token_hex(6)
    if isinstance(error, LedgerDamaged):  # not a fault of ours: no traceback, but what to do
        log.error("incident %s: the record is damaged: %s", incident, error)
        return Refusal(
            "internal",
            500,
            f"the record is damaged: {error} (incident {incident} in the log). `convo verify` "
            "tells what is wrong with it; restore the stream from a backup or a replica before "
            "anything else is written",
            retryable=False,
            details={"incident": incident, "damaged": True},
        )
    log.error("incident %s", incident, exc_info=error)
    return Refusal(
        "internal",
        500,
        f"a fault of ours; it is in the log as incident {incident}",
        retryable=False,
        details={"incident": incident},
    )
