"""The errors of the JetStream store: one tree, inside the `eventsourcing` library's own family.

An application written with the library already knows the parents (PEP 249 names,
`eventsourcing.persistence`); the leaves carry the facts of JetStream.
"""

from __future__ import annotations

from eventsourcing.persistence import DataError, IntegrityError, InternalError, OperationalError
from nats.errors import Error as NatsError


class Conflict(IntegrityError):
    """Somebody else appended to the subject first: load it again and decide again.

    `subject` is the one that moved on, `expected_seq` the stream sequence that the write was
    decided on (0: an empty subject).
    """

    def __init__(self, subject: str, expected_seq: int) -> None:
        super().__init__(
            f"{subject} is no longer at stream sequence {expected_seq}: "
            "read it again and decide again"
        )
        self.subject = subject
        self.expected_seq = expected_seq


class StoreUnavailable(OperationalError):
    """The store cannot be reached or did not take the write; nothing was written. Try again."""


class StoreReadOnly(StoreUnavailable):
    """The store is full and refuses writes until there is room; nothing was written."""


class OutcomeUnknown(OperationalError):
    """The write may or may not have been stored: send it again under the same identity."""


class TooLarge(DataError):
    """The write is over a limit of the store (message size, messages in one batch)."""


class StreamMismatch(OperationalError):
    """A stream exists with a configuration that breaks the ledger's promises.

    `differences` holds one line for each setting: what it is, and what it has to be.
    """

    def __init__(self, stream: str, differences: list[str]) -> None:
        listed = "\n  ".join(differences)
        super().__init__(
            f"stream {stream} cannot hold a ledger; change these settings "
            f"(`nats stream edit {stream}`) or use another account:\n  {listed}"
        )
        self.stream = stream
        self.differences = differences


class LedgerDamaged(InternalError):
    """What was read contradicts itself (a missing version, a hash that does not fit): stop.

    Never raised for a busy or slow store. Restore from a backup or a replica; do not write on.
    """


NATS_FAILURES: tuple[type[Exception], ...] = (NatsError, OSError, TimeoutError)
"""What a request or publish of nats-py fails with."""


def reason(error: Exception) -> str:
    """What an exception says, or its name when it says nothing."""
    return str(error) or type(error).__name__
